"""Every tool of bunqueue's MCP server: that it is there, and what it answers, without ids and times."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.clients.cli_checks import bare

# They tell of the whole server: only what keys they say are compared.
WHOLE = ("stats", "metrics", "memory", "storage", "list_", "handler")
# What a tool needs of the job that it is about.
ACTIVE = (
    "update_progress", "get_progress", "ack_job", "ack_job_batch", "fail_job", "job_heartbeat", "job_heartbeat_batch",
    "extend_lock", "move_to_delayed",
)  # fmt: skip
DELAYED = ("promote_job", "change_delay")
COMPLETED = ("get_job_result", "retry_completed", "wait_for_job")
FAILED = ("get_dlq", "retry_dlq", "purge_dlq")


class Mcp:
    """The server as a child process that is spoken to over its standard input and output."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._number = 0

    @classmethod
    async def start(cls, bun: Path, program: Path, address: str) -> Mcp:
        host, _, port = address.rpartition(":")
        process = await asyncio.create_subprocess_exec(
            str(bun),
            str(program),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=1 << 24,
            env={
                "PATH": os.environ["PATH"],
                "HOME": os.environ.get("HOME", "/tmp"),
                "BUNQUEUE_MODE": "tcp",
                "BUNQUEUE_HOST": host,
                "BUNQUEUE_PORT": port,
            },
        )
        server = cls(process)
        await server.ask(
            "initialize",
            protocolVersion="2025-03-26",
            capabilities={},
            clientInfo={"name": "checks", "version": "1"},
        )
        await server.tell("notifications/initialized")
        return server

    async def tell(self, method: str, **params: Any) -> None:
        await self._send({"jsonrpc": "2.0", "method": method, "params": params})

    async def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        await self.process.stdin.drain()

    async def ask(self, method: str, **params: Any) -> Any:
        """Return a method's result. Raises RuntimeError for an error."""
        self._number += 1
        await self._send({"jsonrpc": "2.0", "id": self._number, "method": method, "params": params})
        assert self.process.stdout is not None
        while True:
            line = await asyncio.wait_for(self.process.stdout.readline(), 60)
            if not line:
                raise RuntimeError("the MCP server ended")
            message = json.loads(line)
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(message["error"]["message"])
                return message["result"]

    async def call(self, tool: str, **arguments: Any) -> Any:
        """Return what a tool says: JSON where it is."""
        found = await self.ask("tools/call", name=tool, arguments=arguments)
        text = "".join(part.get("text", "") for part in found["content"])
        try:
            said = json.loads(text)
        except ValueError:
            said = text
        return {"error": said} if found.get("isError") else said

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


class Story:
    """A queue of its own for one tool, with a job that is as the tool needs it."""

    def __init__(self, server: Mcp, queue: str) -> None:
        self.server = server
        self.queue = queue
        self.known: dict[str, Any] = {
            "queue": queue, "queues": [queue], "name": f"{queue}-n", "data": {"a": 1}, "jobs": [{"name": "x", "data": {"b": 2}}],
            "count": 1, "timeoutMs": 100, "graceMs": 0, "state": "waiting", "limit": 10, "priority": 7, "delay": 60_000, "progress": 50,
            "message": "a line", "token": "t", "duration": 5000, "url": "https://example.com/hook", "events": ["job.completed"],
            "enabled": False, "customId": "none", "method": "POST", "error": "broken", "queueName": queue,
            "children": [{"name": "child", "queueName": queue, "data": {"c": 1}}],
            "final": {"name": "last", "queueName": queue, "data": {}},
            "steps": [{"name": name, "queueName": queue, "data": {"s": name}} for name in ("one", "two")],
            "parallel": [{"name": name, "queueName": queue, "data": {"p": name}} for name in ("one", "two")],
        }  # fmt: skip

    async def call(self, tool: str, **arguments: Any) -> Any:
        return await self.server.call(f"bunqueue_{tool}", **arguments)

    async def prepare(self, tool: str) -> None:
        """Bring about what a tool needs."""
        late = {"delay": 60_000} if tool in DELAYED else {}
        added = await self.call("add_job", queue=self.queue, name="n", data={"a": 1}, attempts=1, **late)
        job = id_of(added)
        self.known |= {"jobId": job, "jobIds": [job]}
        if tool in ACTIVE or tool in COMPLETED or tool in FAILED:
            await self.call("pull_job", queue=self.queue)
        if tool in COMPLETED:
            await self.call("ack_job", jobId=job, result={"r": 1})
        if tool in FAILED:
            await self.call("fail_job", jobId=job, error="broken")
        if "cron" in tool and tool != "add_cron":
            await self.call("add_cron", name=f"{self.queue}-n", queue=self.queue, data={"a": 1}, repeatEvery=60_000)
            self.known["name"] = f"{self.queue}-n"
        if "webhook" in tool and tool != "add_webhook":
            added = await self.call("add_webhook", url="https://example.com/hook", events=["job.completed"])
            self.known["id"] = id_of(added)
        if "worker" in tool and tool != "register_worker":
            added = await self.call("register_worker", name="w", queues=[self.queue])
            self.known["workerId"] = id_of(added)
        if tool == "add_cron":
            self.known["repeatEvery"] = 60_000
        if tool in ("get_flow", "get_children_values"):
            children = [{"name": "child", "queueName": self.queue, "data": {"c": 1}}]
            added = await self.call("add_flow", name="parent", queueName=self.queue, data={}, children=children)
            self.known["jobId"] = self.known["parentJobId"] = id_of(added)

    async def answer(self, tool: str, schema: dict[str, Any]) -> Any:
        await self.prepare(tool)
        more = {"add_cron": ["repeatEvery"], "add_flow": ["children"]}
        names = [*schema.get("required", []), *more.get(tool, [])]
        answer = await self.call(tool, **{name: self.known[name] for name in names})
        if tool == "get_per_queue_stats":
            return type(answer).__name__
        if any(word in tool for word in WHOLE):
            return sorted(answer) if isinstance(answer, dict) else type(answer).__name__
        return bare(answer, self.queue)


def id_of(said: Any) -> str:
    """Return the id that a tool tells."""
    places = (said, said.get("data"), said.get("webhook"), said.get("worker")) if isinstance(said, dict) else ()
    for place in places:
        for key in ("jobId", "id", "webhookId", "workerId"):
            if isinstance(place, dict) and isinstance(place.get(key), str):
                return str(place[key])
    return "none"


async def checks(server: Mcp, queue: str) -> AsyncIterator[tuple[str, Any]]:
    """List the tools and call each; yield what they answer."""
    tools = {
        tool["name"].removeprefix("bunqueue_"): tool["inputSchema"]
        for tool in (await server.ask("tools/list"))["tools"]
    }
    yield "the tools", sorted(tools)
    yield "the resources", sorted(one["uri"] for one in (await server.ask("resources/list"))["resources"])
    yield "the prompts", sorted(one["name"] for one in (await server.ask("prompts/list"))["prompts"])
    for number, (tool, schema) in enumerate(sorted(tools.items())):
        yield tool, await Story(server, f"{queue}-{number}").answer(tool, schema)
    for one in (await server.ask("resources/list"))["resources"]:
        found = await server.ask("resources/read", uri=one["uri"])
        yield one["uri"], [part.get("mimeType") for part in found["contents"]]

"""Every command of bunqueue's command line, as a story: what it ends with, and what it says, without ids and times."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{12,}")
# Keys whose values are times, figures of the machine, or of a server as a whole.
VARIES = {
    "createdAt", "runAt", "startedAt", "completedAt", "timestamp", "lastHeartbeat", "time", "nextRun", "registeredAt", "lastSeen",
    "uptime", "pid", "hostname", "memory", "fencingToken", "owner", "lockExpiresAt", "token", "timeline", "stacktrace", "expiresAt",
    "failedAt", "enteredAt", "duration", "oldestEntry", "newestEntry", "lastTriggered",
}  # fmt: skip
# Of these only the kind of answer is compared: they tell of the whole server.
WHOLE = ("stats", "metrics", "health", "worker list", "webhook list", "queue list", "cron list", "version")


class Cli:
    """The command line: each call is a connection, to one address after the other."""

    def __init__(self, bun: Path, program: Path, addresses: Sequence[str], queue: str) -> None:
        self.bun, self.program, self.queue = bun, program, queue
        self.addresses = itertools.cycle(addresses)

    async def run(self, *words: str) -> tuple[int, str, str]:
        """Return how a command ended and what it said."""
        host, _, port = next(self.addresses).rpartition(":")
        address = ("--host", host, "--port", port)
        words = tuple(word.replace("$health", f"http://{host}:{int(port) + 1}/health") for word in words)
        process = await asyncio.create_subprocess_exec(
            str(self.bun), str(self.program), *address, "--json", *words,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/tmp"), "NO_COLOR": "1"},
        )  # fmt: skip
        out, error = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode or 0, out.decode(), error.decode()


def bare(value: Any, queue: str) -> Any:
    """Return an answer without what is other each time."""
    if isinstance(value, dict):
        return {key: bare(one, queue) for key, one in sorted(value.items()) if key not in VARIES}
    if isinstance(value, list):
        return [bare(one, queue) for one in value]
    if isinstance(value, str):
        return UUID.sub("<id>", value.replace(queue, "<queue>"))
    return value


def shown(words: tuple[str, ...], ended: int, out: str, error: str, queue: str) -> Any:
    """Return what of an answer is compared."""
    try:
        said = json.loads(out)
    except ValueError:
        said = out.strip() or error.strip()
    if words[0] == "doctor":
        # How it ends depends on what others left in the dead letter queues.
        return [sorted(said), said["clientVersion"] == said["health"]["version"]]
    if " ".join(words[:2]).startswith(WHOLE):
        return [ended, sorted(said) if isinstance(said, dict) and "error" not in said else type(said).__name__]
    return [ended, bare(said, queue)]


# Steps of the story without which the others of the short form mean nothing are those before this many.
SHORT_STEPS = 14


async def checks(cli: Cli, *, short: bool = False) -> AsyncIterator[tuple[str, Any]]:
    """Run every command; yield each with its answer. short: only the first ones."""
    number = 0
    async for found in story(cli):
        yield found
        number += 1
        if short and number == SHORT_STEPS:
            return


async def story(cli: Cli) -> AsyncIterator[tuple[str, Any]]:
    queue = cli.queue
    known: dict[str, str] = {}
    times: dict[str, int] = {}

    async def step(*words: str, keep: str = "") -> tuple[str, Any]:
        given = tuple(known.get(word.removeprefix("$"), word) for word in words)
        ended, out, error = await cli.run(*given)
        if keep:
            known[keep] = id_in(out)
        name = " ".join(word.replace(queue, "<queue>") for word in words)
        times[name] = times.get(name, 0) + 1
        name = name if times[name] == 1 else f"{name} ({times[name]})"
        return name, shown(words, ended, out, error, queue)

    yield await step("ping")
    yield await step("push", queue, '{"to":"a"}', keep="first")
    yield await step("job", "get", "$first")
    yield await step("job", "state", "$first")
    options = ("--priority", "5", "--delay", "60000", "--max-attempts", "2", "--tags", "x,y")
    yield await step("push", queue, '{"to":"b"}', *options, keep="late")
    yield await step("push", queue, '{"to":"c"}', "--unique-key", "k", keep="unique")
    yield await step("push", queue, '{"to":"c"}', "--unique-key", "k")
    yield await step("push", queue, '{"to":"d"}', "--job-id", f"{queue}-own")
    yield await step("push", queue, "not json")
    yield await step("push", "a b", "1")
    yield await step("push")
    yield await step("nonsense")
    yield await step("queue", "count", queue)
    yield await step("queue", "jobs", queue, "--state", "waiting")
    yield await step("queue", "jobs", queue, "--state", "delayed")
    yield await step("queue", "list")
    yield await step("job", "promote", "$late")
    yield await step("job", "priority", "$late", "9")
    yield await step("job", "update", "$late", '{"to":"e"}')
    yield await step("pull", queue, keep="taken")
    yield await step("job", "progress", "$taken", "40", "--msg", "on the way")
    yield await step("job", "log", "$taken", "a line")
    yield await step("job", "logs", "$taken")
    yield await step("ack", "$taken", "--result", '{"ok":1}')
    yield await step("job", "get", "$taken")
    yield await step("job", "result", "$taken")
    yield await step("job", "cancel", "$unique")
    yield await step("job", "get", "$unique")
    yield await step("job", "discard", "$first")
    yield await step("job", "state", "$first")
    yield await step("dlq", "list", queue)
    yield await step("dlq", "retry", queue, "--id", "$first")
    yield await step("job", "discard", "$first")
    yield await step("dlq", "retry", queue)
    yield await step("dlq", "purge", queue)
    yield await step("job", "delay", "$first", "1000")
    yield await step("job", "wait", "$first", "--timeout", "200")
    yield await step("fail", "$first", "--error", "broken")
    yield await step("job", "get", "none")
    yield await step("job", "state", "none")
    yield await step("queue", "pause", queue)
    yield await step("queue", "paused", queue)
    yield await step("pull", queue)
    yield await step("queue", "resume", queue)
    yield await step("queue", "paused", queue)
    yield await step("queue", "clean", queue, "--grace", "0", "--state", "waiting")
    yield await step("queue", "drain", queue)
    yield await step("queue", "count", queue)
    yield await step("rate-limit", "set", queue, "10")
    yield await step("rate-limit", "clear", queue)
    yield await step("concurrency", "set", queue, "3")
    yield await step("concurrency", "clear", queue)
    yield await step("cron", "add", f"{queue}-c", "--queue", queue, "--data", '{"a":1}', "--every", "60000")
    yield await step("cron", "add", f"{queue}-d", "--queue", queue, "--data", "1", "--schedule", "0 3 * * *")
    yield await step("cron", "add", f"{queue}-e", "--queue", queue, "--data", "1", "--schedule", "nonsense")
    yield await step("cron", "list")
    yield await step("cron", "delete", f"{queue}-c")
    yield await step("cron", "delete", f"{queue}-d")
    yield await step("cron", "delete", f"{queue}-c")
    yield await step("worker", "register", "w", "--queues", queue, keep="worker")
    yield await step("worker", "list")
    yield await step("worker", "unregister", "$worker")
    yield await step("webhook", "add", "https://example.com/hook", "--events", "job.completed", keep="webhook")
    yield await step("webhook", "list")
    yield await step("webhook", "remove", "$webhook")
    yield await step("webhook", "remove", "$webhook")
    yield await step("stats")
    yield await step("metrics")
    yield await step("health")
    yield await step("version")
    yield await step("doctor")
    yield await step("healthcheck", "$health")
    yield await step("queue", "obliterate", queue)
    yield await step("backup", "status")


def id_in(out: str) -> str:
    """Return the id that an answer tells."""
    try:
        said = json.loads(out)
    except ValueError:
        return "none"
    for place in (said, said.get("data") or {}, said.get("job") or {}):
        for key in ("id", "workerId", "webhookId"):
            if isinstance(place, dict) and isinstance(place.get(key), str):
                return str(place[key])
    return "none"

"""One node in this process with a real listener on a port from the system, and a client that holds every reply
against the type that its route declares."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import pytest
from yarl import URL

from quorumq.api import surrogates
from quorumq.api.dialects.bunqueue.replies import Failure
from quorumq.api.dialects.openarchiver.render import ArchiverFailure
from quorumq.api.rows import Html, NotReady, Octets, Text
from quorumq.api.server import Listener, Server
from quorumq.api.settings.rows import NodeConfig
from quorumq.node.machine.machine import Machine
from quorumq.node.node import Node
from tests.support.local import LocalEngine


class Answer:
    """A reply as tests look at it."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        body = self.json
        assert body["ok"] is False
        return str(body["error"])


class Client:
    """Sends requests to a server and checks what comes back."""

    def __init__(
        self, server: Server, engine: LocalEngine, session: aiohttp.ClientSession, listener: Listener | None = None
    ) -> None:
        self.server = server
        self.engine = engine
        self.session = session
        self.listener = listener or server.main
        self.base = f"http://127.0.0.1:{self.listener.port}"

    @property
    def bullmq(self) -> Client:
        """The same for the listener of the BullMQ dialect."""
        return Client(self.server, self.engine, self.session, self.server.listeners[1])

    async def send(
        self, method: str, path: str, body: Any = None, *, raw: bytes | None = None, headers: Any = None
    ) -> Answer:
        """Send a request. body: made into JSON; raw: sent as it is."""
        # A file, because aiohttp's client warns of large bodies in one piece.
        sent = raw if body is None else json.dumps(body).encode()
        data = io.BytesIO(sent) if sent and len(sent) > 1 << 20 else sent
        async with self.session.request(
            method, URL(self.base + path, encoded=True), data=data, headers=headers
        ) as response:
            answer = Answer(response.status, response.headers, await response.read())
        self.check(method, path, answer)
        return answer

    def check(self, method: str, path: str, answer: Answer) -> None:
        """Hold a reply against its route's declaration."""
        if method == "OPTIONS" or method == "HEAD":
            return
        found = self.listener.find(method, urlsplit(path).path) if answer.status == 200 else None
        if found is None:
            if answer.status != 200:
                self.check_failure(path, answer)
            return
        route = found[0].route
        if route.reply is Text:
            assert answer.headers["Content-Type"].startswith("text/plain")
        elif route.reply is Html:
            assert answer.headers["Content-Type"].startswith("text/html")
        elif route.reply is Octets:
            assert answer.headers["Content-Type"] == "application/octet-stream"
        else:
            assert answer.headers["Content-Type"] == "application/json"
            covered = surrogates.cover(answer.body)
            msgspec.json.decode(covered[0] if covered else answer.body, type=route.reply, strict=True)

    def check_failure(self, path: str, answer: Answer) -> None:
        """Hold an error against the form of its dialect."""
        if b'"ready"' in answer.body:
            msgspec.json.decode(answer.body, type=NotReady)
            return
        match self.listener.speaker(urlsplit(path).path).name:
            case "bunqueue" | "pages":
                msgspec.json.decode(answer.body, type=Failure)
            case "openarchiver":
                msgspec.json.decode(answer.body, type=ArchiverFailure)
            case "admin":
                assert {"ok", "error", "code"} == set(answer.json)

    async def get(self, path: str, **more: Any) -> Answer:
        return await self.send("GET", path, **more)

    async def post(self, path: str, body: Any = None, **more: Any) -> Answer:
        return await self.send("POST", path, body, **more)

    async def delete(self, path: str, **more: Any) -> Answer:
        return await self.send("DELETE", path, **more)

    async def push(self, queue: str = "q", data: Any = 1, **options: Any) -> str:
        """Push a job; return its id."""
        answer = await self.post(f"/queues/{queue}/jobs", {"data": data, **options})
        assert answer.status == 200, answer.body
        return str(answer.json["id"])

    async def pull(self, queue: str = "q") -> Any:
        """Take a job, or None."""
        answer = await self.get(f"/queues/{queue}/jobs")
        assert answer.status == 200, answer.body
        return answer.json["job"]

    async def take(self, queue: str = "q", **options: Any) -> Any:
        """Take one job with a lock; return job and token."""
        answer = await self.post(f"/queues/{queue}/jobs/pull-batch", {"count": 1, "owner": "w", **options})
        assert answer.status == 200, answer.body
        return answer.json["jobs"][0], answer.json["tokens"][0]

    async def state(self, job_id: str) -> str:
        return str((await self.get(f"/jobs/{job_id}/state")).json["state"])

    async def counts(self, queue: str = "q") -> dict[str, int]:
        counts: dict[str, int] = (await self.get(f"/queues/{queue}/counts")).json["counts"]
        return counts


Serve = Callable[..., Awaitable[Client]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start nodes with the settings given; each ends with the test."""
    running: list[tuple[Server, Node, LocalEngine, aiohttp.ClientSession]] = []

    async def start(**settings: Any) -> Client:
        config = NodeConfig(host="127.0.0.1", http_port=0, **{"bullmq_port": 0, "tcp_port": 0, **settings})
        machine = Machine(timed_by_clients=config.clock == "clients")
        engine = LocalEngine(machine)
        node = Node(
            engine,
            machine,
            write_timeout_s=config.write_timeout_ms / 1000,
            shutdown_s=config.shutdown_timeout_ms / 1000,
        )
        server = Server(node, config)
        await engine.start()
        await node.start()
        await server.start()
        session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20))
        running.append((server, node, engine, session))
        return Client(server, engine, session)

    yield start
    for server, node, engine, session in running:
        await session.close()
        await server.stop(1)
        await node.stop()
        await engine.stop()


@pytest.fixture
async def client(serve: Serve) -> Client:
    """A node with the default settings."""
    return await serve()

"""An endpoint for push workers: a real HTTP server on loopback that notes what it is sent and answers as it is told."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Said:
    """One call as the endpoint saw it."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any

    @property
    def job(self) -> Any:
        return self.body["job"]

    @property
    def token(self) -> str:
        return str(self.body["token"])


Answering = Callable[[Said], Awaitable[web.StreamResponse]]


async def done(said: Said) -> web.StreamResponse:
    return web.json_response({"done": True})


@dataclass
class Endpoint:
    """answer: what each call gets.  port: 0 for one of the system's choice.  at_once, most_at_once: calls under way.

    overlaps: jobs that were sent while a call for them was under way.
    """

    answer: Answering = done
    port: int = 0
    said: list[Said] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    overlaps: list[str] = field(default_factory=list)
    _running: Counter[str] = field(default_factory=Counter)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def start(self) -> Endpoint:
        self.server = web.Server(self.handle, access_log=None)
        loop = asyncio.get_running_loop()
        self.listener = await loop.create_server(self.server, "127.0.0.1", self.port, backlog=1024)
        self.port = self.listener.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        self.listener.close()
        await self.server.shutdown(0.1)

    async def __aenter__(self) -> Endpoint:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/work"

    @property
    def names(self) -> list[str]:
        """The names of the jobs that came, in order."""
        return [said.job["name"] for said in self.said]

    async def until(self, calls: int, timeout_s: float = 20) -> list[Said]:
        """Wait until so many calls have come."""
        async with asyncio.timeout(timeout_s), self._news:
            await self._news.wait_for(lambda: len(self.said) >= calls)
        return self.said

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        text = await request.text()
        said = Said(request.method, request.path_qs, dict(request.headers), json.loads(text) if text else None)
        # Which job it is: its id is its queue's affair.
        key = f"{said.job['queueQualifiedName']}/{said.job['id']}" if said.body else ""
        self._running[key] += 1
        if self._running[key] > 1:
            self.overlaps.append(key)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        async with self._news:
            self.said.append(said)
            self._news.notify_all()
        try:
            return await self.answer(said)
        finally:
            self.at_once -= 1
            self._running[key] -= 1

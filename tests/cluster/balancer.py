"""A load balancer for tests: each request goes to the next node, whoever leads.

With `repeats` it also does what the documentation tells clients to do: it gives each request an idempotency key, and sends it
again to another node when it got no answer or was told that nobody could answer.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from scripts.tools.local_cluster import LocalNode

OF_CONNECTIONS = {"connection", "content-length", "transfer-encoding", "date", "server"}
PAUSE_S = 0.05


class Balancer:
    """Listens on a port of its own; an async context manager."""

    def __init__(self, nodes: list[LocalNode], *, repeats: bool = False, deadline_s: float = 30.0) -> None:
        self.turn = itertools.cycle(nodes)
        self.repeats = repeats
        self.deadline_s = deadline_s
        self.url = ""
        self.repeated = 0

    async def __aenter__(self) -> Balancer:
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=90),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Content-Type", "Accept", "Accept-Encoding"),
        )
        self.runner = web.ServerRunner(web.Server(self.handle, handler_cancellation=True, access_log=None))
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        host, port = self.runner.addresses[0]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.runner.cleanup()
        await self.session.close()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Pass a request on, and the answer back."""
        body = await request.read()
        headers = {name: value for name, value in request.headers.items() if name.lower() not in OF_CONNECTIONS}
        if self.repeats:
            headers.setdefault("Idempotency-Key", uuid.uuid4().hex)
        ends = asyncio.get_running_loop().time() + self.deadline_s
        while True:
            answer = await self.forward(request, headers, body)
            final = not self.repeats or asyncio.get_running_loop().time() > ends
            if answer is not None and (answer.status != 503 or final):
                return answer
            if final:
                return web.Response(status=502, text="no node answers")
            self.repeated += 1
            await asyncio.sleep(PAUSE_S)

    async def forward(self, request: web.BaseRequest, headers: Any, body: bytes) -> web.Response | None:
        """Send a request to the next node; None when there was no answer."""
        url = URL(next(self.turn).url + request.raw_path, encoded=True)
        try:
            async with self.session.request(request.method, url, headers=headers, data=body or None) as answer:
                kept = {name: value for name, value in answer.headers.items() if name.lower() not in OF_CONNECTIONS}
                return web.Response(status=answer.status, headers=kept, body=await answer.read())
        except aiohttp.ClientError:
            return None

"""A load balancer for scripts and tests: each request goes to the next node that is ready, whoever leads; WebSockets and event
streams too.

As the documentation tells people to, it asks each node whether it is ready, from time to time, and sends nothing to one that says
no or nothing; when none is ready it tries them all, since each may be by the time the request arrives. With `repeats` it also does
what the documentation tells clients to do: it gives each request an idempotency key, and sends it again to another node when it
got no answer or was told that nobody could answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from tests.support.local_cluster import HOST, LocalNode

OF_CONNECTIONS = {"connection", "content-length", "transfer-encoding", "date", "server", "upgrade"}
PAUSE_S = 0.05
# How often a node is asked whether it is ready, and how long it has for the answer; the path that every port of a node has.
LOOK_S = 0.25
LOOK_TIMEOUT_S = 1.0
READY = "/readyz"
# A node that was just killed refuses connections at once; one that is frozen or cut off does not.
CONNECT_S = 2.0
STREAM = "text/event-stream"
MESSAGE_BYTES_MAX = 16 << 20


class Balancer:
    """Listens on a port of its own; an async context manager.

    follows: whether it asks nodes if they are ready, every look_s seconds.  port_of: which of a node's ports is meant.
    not_ready: ids of nodes that said so at the last look, or nothing.  repeated, cut: requests sent again, streams and sockets
    lost with a node.
    """

    def __init__(
        self,
        nodes: Sequence[LocalNode],
        *,
        repeats: bool = False,
        follows: bool = True,
        deadline_s: float = 30.0,
        look_s: float = LOOK_S,
        port_of: Callable[[LocalNode], int] = lambda node: node.http_port,
    ) -> None:
        self.nodes = list(nodes)
        self.turn = itertools.cycle(nodes)
        self.not_ready: set[str] = set()
        self.looking: list[asyncio.Task[None]] = []
        self.port_of = port_of
        # How nodes are spoken to; None: without TLS. It may change while the balancer runs.
        self.tls: ssl.SSLContext | None = None
        self.repeats = repeats
        self.follows = follows
        self.deadline_s = deadline_s
        self.look_s = look_s
        self.url = ""
        # Ids of nodes that get nothing new, ready or not, and how many requests each is answering.
        self.aside: set[str] = set()
        self.under_way: Counter[str] = Counter()
        self.repeated = 0
        self.cut = 0

    async def __aenter__(self) -> Balancer:
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=90, sock_connect=CONNECT_S),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Content-Type", "Accept", "Accept-Encoding"),
        )
        self.runner = web.ServerRunner(web.Server(self.handle, handler_cancellation=True, access_log=None))
        await self.runner.setup()
        await web.TCPSite(self.runner, HOST, 0).start()
        host, port = self.runner.addresses[0]
        self.url = f"http://{host}:{port}"
        if self.follows:
            await asyncio.gather(*map(self.look, self.nodes))
            self.looking = [asyncio.create_task(self.follow(node)) for node in self.nodes]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self.looking:
            task.cancel()
        await asyncio.gather(*self.looking, return_exceptions=True)
        await self.runner.cleanup()
        await self.session.close()

    async def follow(self, node: LocalNode) -> None:
        """Ask a node again and again whether it is ready."""
        while True:
            await asyncio.sleep(self.look_s)
            await self.look(node)

    async def look(self, node: LocalNode) -> None:
        """Ask a node whether it is ready."""
        url = f"{self.scheme}://{HOST}:{self.port_of(node)}{READY}"
        try:
            limit = aiohttp.ClientTimeout(total=LOOK_TIMEOUT_S)
            async with self.session.get(url, timeout=limit, ssl=self.tls or True) as answer:
                is_ready = answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            is_ready = False
        if is_ready:
            self.not_ready.discard(node.id)
        else:
            self.not_ready.add(node.id)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Pass a request on, and the answer back."""
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self.join(request)
        body = await request.read()
        headers = {name: value for name, value in request.headers.items() if name.lower() not in OF_CONNECTIONS}
        if self.repeats:
            headers.setdefault("Idempotency-Key", uuid.uuid4().hex)
        ends = asyncio.get_running_loop().time() + self.deadline_s
        node: LocalNode | None = None
        while True:
            node = self.next_node(node)
            answer = await self.forward(request, node, headers, body)
            final = not self.repeats or asyncio.get_running_loop().time() > ends
            if answer is not None and (answer.status != 503 or final):
                return answer
            if final:
                return web.Response(status=502, text="no node answers")
            self.repeated += 1
            await asyncio.sleep(PAUSE_S)

    def next_node(self, failed: LocalNode | None = None) -> LocalNode:
        """Whose turn it is, but not of the node that just failed: many that repeat together could meet it every time."""
        candidates = [next(self.turn) for _ in self.nodes]
        others = [node for node in candidates if node is not failed and node.id not in self.aside] or candidates
        chosen = next((node for node in others if node.id not in self.not_ready), others[0])
        # The turn goes on after the one that was chosen.
        for _ in range(candidates.index(chosen) + 1):
            next(self.turn)
        return chosen

    @property
    def scheme(self) -> str:
        return "https" if self.tls is not None else "http"

    def url_at(self, node: LocalNode, request: web.BaseRequest) -> URL:
        return URL(f"{self.scheme}://{HOST}:{self.port_of(node)}{request.raw_path}", encoded=True)

    async def forward(
        self, request: web.BaseRequest, node: LocalNode, headers: Any, body: bytes
    ) -> web.StreamResponse | None:
        """Send a request to a node; None when there was no answer."""
        self.under_way[node.id] += 1
        try:
            async with self.session.request(
                request.method,
                self.url_at(node, request),
                data=body or None,
                headers=headers,
                allow_redirects=False,
                ssl=self.tls or True,
            ) as answer:
                kept = {name: value for name, value in answer.headers.items() if name.lower() not in OF_CONNECTIONS}
                if answer.content_type == STREAM:
                    return await self.pour(request, answer, kept)
                return web.Response(status=answer.status, headers=kept, body=await answer.read())
        except (aiohttp.ClientError, TimeoutError):
            if self.follows:
                self.not_ready.add(node.id)
            return None
        finally:
            self.under_way[node.id] -= 1

    async def take_out(self, node: LocalNode) -> None:
        """Send a node nothing more, and return when it has answered what it got."""
        self.aside.add(node.id)
        while self.under_way[node.id]:
            await asyncio.sleep(PAUSE_S)

    async def pour(
        self, request: web.BaseRequest, answer: aiohttp.ClientResponse, headers: dict[str, str]
    ) -> web.StreamResponse:
        """Pass a stream on until one of its ends closes it."""
        response = web.StreamResponse(status=answer.status, headers=headers)
        await response.prepare(request)
        try:
            async for piece in answer.content.iter_any():
                await response.write(piece)
        except (aiohttp.ClientError, ConnectionError):
            self.cut += 1
        return response

    async def join(self, request: web.BaseRequest) -> web.StreamResponse:
        """Join a WebSocket to one of the next node; it ends with either."""
        headers = {name: value for name, value in request.headers.items() if name.lower() == "authorization"}
        ends = asyncio.get_running_loop().time() + self.deadline_s
        node: LocalNode | None = None
        while True:
            node = self.next_node(node)
            try:
                behind = await self.session.ws_connect(
                    self.url_at(node, request),
                    headers=headers,
                    max_msg_size=MESSAGE_BYTES_MAX,
                    ssl=self.tls or True,
                )
                break
            except aiohttp.WSServerHandshakeError as refused:
                if refused.status != 503 or asyncio.get_running_loop().time() > ends:
                    return web.Response(status=refused.status)
            except (aiohttp.ClientError, TimeoutError):
                if asyncio.get_running_loop().time() > ends:
                    return web.Response(status=502)
            await asyncio.sleep(PAUSE_S)
        before = web.WebSocketResponse(max_msg_size=MESSAGE_BYTES_MAX)
        await before.prepare(request)
        pumps = [asyncio.create_task(pump(before, behind)), asyncio.create_task(pump(behind, before))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            self.cut += behind.close_code in (None, aiohttp.WSCloseCode.ABNORMAL_CLOSURE) and not before.closed
        finally:
            for task in pumps:
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            await asyncio.gather(behind.close(), before.close(), return_exceptions=True)
        return before


async def pump(source: Any, target: Any) -> None:
    """Pass the messages of a WebSocket on to another one."""
    with contextlib.suppress(ConnectionError, aiohttp.ClientError, RuntimeError):
        async for message in source:
            if message.type == aiohttp.WSMsgType.TEXT:
                await target.send_str(message.data)
            elif message.type == aiohttp.WSMsgType.BINARY:
                await target.send_bytes(message.data)

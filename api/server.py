"""The listener of a node: it takes connections, finds each request's route, and stops without losing a request.

aiohttp's low-level server parses HTTP; its Application, router and middlewares are not used, because they cost more
than the rest of a small request. A client that closes its connection cancels its request, which is how a job that a
long poll has taken goes back at once.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import MutableMapping
from typing import Any

from aiohttp import web

from node.config import NodeConfig
from node.node import Node

from .auth import Tokens
from .dashboard import Pages
from .dialects.admin import Admin
from .dialects.bunqueue import Bunqueue
from .disk import DiskWatch
from .events.streams import EventStreams, Streams
from .http import HEADS, REPLAYING, Dialect, Invalid, Mount, Reply, Router, answer, failure
from .limits import Bodies, Proxies, RequestLimit
from .metrics import Histogram
from .once import HEADER

log = logging.getLogger(__name__)

BACKLOG = 1024
# What is cut off gets this long to notice.
CUT_OFF_S = 0.1
# Longer than balancers keep an idle connection, so that it is they who close it.
KEEP_ALIVE_S = 620
# Requests under way at once, long polls included; each takes a few kilobytes.
REQUESTS_MAX = 20_000
PREFLIGHT = (
    b"Access-Control-Allow-Methods: GET, POST, PUT, DELETE, OPTIONS\r\n"
    b"Access-Control-Max-Age: 86400\r\n"
    b"Access-Control-Allow-Headers: Content-Type, Authorization"
)

BUNQUEUE = Bunqueue()
# What the listener serves, and under which prefix.
DIALECTS: tuple[tuple[Dialect, str], ...] = ((BUNQUEUE, ""), (EventStreams(), ""), (Admin(), "/admin"), (Pages(), ""))


class Server:
    """Serves the dialects of one node."""

    def __init__(self, node: Node, config: NodeConfig) -> None:
        self.node = node
        self.config = config
        self.started_at = time.monotonic()
        self.tokens = Tokens(config.auth_tokens)
        self.bodies = Bodies(config.body_bytes_max)
        self.origins = [origin.strip() for origin in config.cors_allow_origin.split(",") if origin.strip()]
        self.bunqueue = BUNQUEUE
        self.dialects = DIALECTS
        self.proxies = Proxies(config.trusted_proxies)
        self.request_limit: RequestLimit | None = None
        if config.rate_limit_max_requests:
            self.request_limit = RequestLimit(
                config.rate_limit_max_requests, config.rate_limit_window_ms, config.rate_limit_cleanup_ms
            )
        # What needs no token: probes, and the metrics unless they are to be kept from strangers.
        self.open_rights: frozenset[str] = frozenset({"open"} if config.metrics_auth == "true" else {"open", "metrics"})
        self.router = Router()
        for dialect, prefix in DIALECTS:
            self.router.mount(dialect, prefix)
        self.disk = DiskWatch(config.data_path)
        self.writes = Histogram()
        self.streams = Streams(self)
        # Replies by the first digit of their status.
        self.replies = [0] * 6
        self.under_way = 0
        self.stopping = False
        self._idle = asyncio.Event()
        self._heads = {status: line + self.allow_origin(None) for status, line in HEADS.items()}
        self._runner: web.ServerRunner | None = None

    @property
    def address(self) -> str:
        """Where the listener listens, as host:port."""
        host, port = self.addresses[0]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Every address that is bound; the port is the system's choice when the setting is 0."""
        assert self._runner is not None, "the server is not started"
        return [(name[0], name[1]) for name in self._runner.addresses]

    @property
    def port(self) -> int:
        return self.addresses[0][1]

    @property
    def connections(self) -> int:
        """Open connections."""
        server = self._runner.server if self._runner else None
        return len(server.connections) if server else 0

    @property
    def node_started(self) -> bool:
        """Whether the node has its state; the listener is there before, so that probes get an answer."""
        return bool(getattr(self.node, "started", True))

    def readiness(self) -> tuple[bool, str]:
        """Say whether requests should be sent to this node, and if not, why."""
        if not self.node_started:
            return False, REPLAYING
        if self.stopping or self.node.draining:
            return False, "the node is stopping"
        status = self.node.status()
        return status.ready, status.ready_reason or "the node is not ready"

    async def start(self) -> None:
        """Bind and listen. Raises OSError."""
        server = web.Server(
            self.handle,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=KEEP_ALIVE_S,
            logger=MalformedRequests(logging.getLogger(f"{__name__}.http"), {}),
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=CUT_OFF_S)
        await self._runner.setup()
        try:
            # One socket for one host, so that a port of 0 means one port.
            listener = listen(self.config.host, self.config.http_port)
            await web.SockSite(self._runner, listener, backlog=BACKLOG).start()
        except BaseException:
            await self._runner.cleanup()
            self._runner = None
            raise
        self.streams.start()

    async def stop(self, timeout_s: float = 10) -> None:
        """Answer what is under way, long polls with what they have, then close.

        timeout_s: after this, whatever is still under way is cut off.
        """
        if self._runner is None:
            return
        self.stopping = True
        for site in list(self._runner.sites):
            await site.stop()
        self.streams.close()
        if self.under_way:
            self._idle.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._idle.wait()
            except TimeoutError:
                log.warning("%d requests cut off", self.under_way)
        runner, self._runner = self._runner, None
        await runner.cleanup()

    async def handle(self, request: web.BaseRequest) -> Reply:
        """Answer one request."""
        if self.under_way >= REQUESTS_MAX:
            reply = failure(self.bunqueue, 503, "Too many requests under way", "busy", retry_after_s=1)
            return self.finished(request, reply)
        self.under_way += 1
        try:
            return self.finished(request, await self.reply(request))
        finally:
            self.under_way -= 1
            if self.stopping and not self.under_way:
                self._idle.set()

    def finished(self, request: web.BaseRequest, reply: Reply) -> Reply:
        """Give a reply what every reply of this listener has."""
        self.replies[reply.status // 100] += 1
        if len(self.origins) > 1:
            reply.heads = {reply.status: HEADS[reply.status] + self.allow_origin(request.headers.get("Origin"))}
        else:
            reply.heads = self._heads
        if self.stopping:
            reply.end_connection()
        return reply

    async def reply(self, request: web.BaseRequest) -> Reply:
        method, target = request.method, request.raw_path
        if not target.startswith("/"):
            # The form that proxies are sent: http://host/path.
            target = request.rel_url.raw_path_qs
        path, _, query = target.partition("?")
        if method == "OPTIONS":
            # The documented headers, and the one that is ours when a page asks whether it may send it.
            asked = request.headers.get("Access-Control-Request-Headers", "").lower()
            more = b", Idempotency-Key\r\n" if HEADER.lower() in asked else b"\r\n"
            return Reply(204, b"", headers=PREFLIGHT + more)
        malformed: Invalid | None = None
        try:
            found = self.find(method, path)
        except Invalid as error:
            found, malformed = None, error
        route = None if found is None else found[0].route
        if self.request_limit is not None and (route is None or route.limited):
            wait_s = self.request_limit.admit(self.proxies.client_of(request), time.monotonic())
            if wait_s:
                return failure(self.bunqueue, 429, "Rate limit exceeded", "rate_limited", retry_after_s=wait_s)
        is_open = route is not None and route.right in self.open_rights
        if self.tokens and not is_open and not self.tokens.allow(request.headers.get("Authorization")):
            return self.unauthorized()
        if malformed is not None:
            return failure(self.bunqueue, malformed.status, str(malformed), "invalid_request")
        if found is None:
            return failure(self.bunqueue, 404, "Not found", "not_found")
        if found[0].route.right != "open" and not self.node_started:
            return failure(self.bunqueue, 503, f"Not ready: {REPLAYING}", "unavailable", retry_after_s=1)
        return await answer(self, request, found[0], found[1], query)

    def find(self, method: str, path: str) -> tuple[Mount, dict[str, str]] | None:
        """Find the route. Raises Invalid when the path cannot be decoded."""
        found = self.router.find(method, path)
        if found is None and method == "HEAD":
            # Probes and balancers ask this way; anything else is not meant to be asked for without its answer.
            found = self.router.find("GET", path)
            if found is not None and found[0].route.right != "open":
                return None
        if not path.isascii():
            try:
                path.encode("utf-8")
            except UnicodeEncodeError:
                raise Invalid("The path is not UTF-8") from None
        return found

    def unauthorized(self) -> Reply:
        return failure(self.bunqueue, 401, "Unauthorized", "unauthorized")

    def allow_origin(self, origin: str | None) -> bytes:
        """Return the header lines that say which pages may read a reply.

        origin: the page that asks.  A browser takes one origin only, so of several the asking one is named.
        """
        if len(self.origins) < 2:
            return b"Access-Control-Allow-Origin: %b\r\n" % "".join(self.origins).encode("latin-1", "replace")
        named = origin if origin in self.origins else self.origins[0]
        return b"Access-Control-Allow-Origin: %b\r\nVary: Origin\r\n" % named.encode("latin-1", "replace")


class MalformedRequests(logging.LoggerAdapter[logging.Logger]):
    """Where aiohttp reports what it cannot parse.

    Its messages quote the line in question, which may be a header with a token; only the kind of error is kept.
    """

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, kwargs

    def exception(self, msg: object, *args: object, **kwargs: Any) -> None:
        error = kwargs.get("exc_info")
        self.logger.info("a request could not be read: %s", type(error).__name__)

    def debug(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.logger.debug("a request could not be read")


def listen(host: str, port: int) -> socket.socket:
    """Bind a socket. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener

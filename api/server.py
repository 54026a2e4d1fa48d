"""The listeners of a node: they take connections, find each request's route, and stop without losing a request.

aiohttp's low-level server parses HTTP; its Application, router and middlewares are not used, because they cost more
than the rest of a small request. A client that closes its connection cancels its request, which is how a job that a
long poll has taken goes back at once.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, MutableMapping
from http import HTTPStatus
from typing import Any, Protocol

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from node.config import NodeConfig, join_address
from node.node import Node

from .audit import Audit
from .auth import API_KEY, EVERYTHING, NOTHING, Access, Grant, Unauthorized
from .dashboard import Pages
from .dialects.admin import Admin
from .dialects.bullmq import Bullmq
from .dialects.bunqueue import Bunqueue, Probes
from .dialects.openarchiver import OpenArchiver
from .disk import DiskWatch
from .events.streams import EventStreams, Streams
from .http import HEADS, REPLAYING, Call, Dialect, Invalid, Mount, Reply, Router, answer, failure
from .limits import Bodies, Proxies, RequestLimit
from .metrics import Histogram
from .once import HEADER

log = logging.getLogger(__name__)

BACKLOG = 1024
# What is cut off gets this long to notice.
CUT_OFF_S = 0.1
# Longer than balancers keep an idle connection, so that it is they who close it.
KEEP_ALIVE_S = 620
# How often the file of tokens is looked at.
REREAD_S = 1.0
# Requests under way at once, long polls included; each takes a few kilobytes.
REQUESTS_MAX = 20_000
# The longest id of a job fits: 1,024 characters, each up to twelve bytes when percent-encoded.
REQUEST_LINE_BYTES_MAX = 32_768
PREFLIGHT = (
    b"Access-Control-Allow-Methods: GET, POST, PUT, DELETE, OPTIONS\r\n"
    b"Access-Control-Max-Age: 86400\r\n"
    b"Access-Control-Allow-Headers: Content-Type, Authorization"
)
ALSO_ALLOWED = (HEADER, API_KEY)

BUNQUEUE, BULLMQ, OPEN_ARCHIVER = Bunqueue(), Bullmq(), OpenArchiver()
Mounts = tuple[tuple[Dialect, str], ...]
# What each listener serves, and under which prefix; the first is whose words answer what no other is asked for.
DIALECTS: Mounts = (
    (BUNQUEUE, ""),
    (EventStreams(), ""),
    (Admin(), "/admin"),
    (Pages(), ""),
    (BULLMQ, "/bullmq"),
    (OPEN_ARCHIVER, "/v1/jobs"),
)
BULLMQ_DIALECTS: Mounts = ((BULLMQ, ""), (Probes(), ""), (OPEN_ARCHIVER, "/v1/jobs"))


class Session(Protocol):
    """A connection that lasts. grant: None as long as it has shown no token."""

    grant: Grant | None

    def close(self) -> None:
        """Come to an end."""


class Listener:
    """One port: what is served there, and in whose words.

    setting: the name of the setting that gives the port.  port: 0 for the system's choice.
    """

    def __init__(self, server: Server, mounts: Mounts, host: str, port: int, setting: str) -> None:
        self.server = server
        self.setting = setting
        self.router = Router()
        for dialect, prefix in mounts:
            self.router.mount(dialect, prefix)
        self._own = mounts[0][0]
        self._prefixed = [(prefix, dialect) for dialect, prefix in mounts if prefix]
        self._host = host
        self._port = port
        self._runner: web.ServerRunner | None = None

    @property
    def address(self) -> str:
        """Where it listens, as host:port."""
        return join_address(*self.addresses[0])

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Every address that is bound; the port is the system's choice when the setting is 0."""
        assert self._runner is not None, "the listener is not started"
        return [(name[0], name[1]) for name in self._runner.addresses]

    @property
    def port(self) -> int:
        return self.addresses[0][1]

    @property
    def connections(self) -> int:
        """Open connections."""
        server = self._runner.server if self._runner else None
        return len(server.connections) if server else 0

    async def start(self) -> None:
        """Bind and listen. Raises OSError with the address in its message."""
        server = HttpServer(
            self,
            access_log=None,
            keepalive_timeout=KEEP_ALIVE_S,
            max_line_size=REQUEST_LINE_BYTES_MAX,
            logger=MalformedRequests(logging.getLogger(f"{__name__}.http"), {}),
        )
        runner = web.ServerRunner(server, shutdown_timeout=CUT_OFF_S)
        await runner.setup()
        try:
            # One socket for one host, so that a port of 0 means one port.
            await web.SockSite(runner, listen(self._host, self._port), backlog=BACKLOG).start()
        except OSError as error:
            await runner.cleanup()
            where = join_address(self._host, self._port)
            reason = error.strerror or error
            raise OSError(error.errno, f"cannot listen on {where} ({self.setting}): {reason}") from None
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner

    async def take_no_more(self) -> None:
        """Close the listening socket; what is connected stays so."""
        if self._runner is not None:
            for site in list(self._runner.sites):
                await site.stop()

    async def close(self) -> None:
        """End what is still connected."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    def handle(self, request: web.BaseRequest) -> Awaitable[Reply]:
        """Answer one request."""
        return self.server.handle(self, request)

    def unreadable(self, request: web.BaseRequest, status: int) -> Reply:
        """Answer what cannot be parsed, or is longer than one request's head may be, in the words of the port's own dialect."""
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            reply = failure(self._own, status, "Malformed HTTP request", "invalid_request")
        else:
            reply = failure(self._own, status, "Internal server error", "internal_error")
        return self.server.finished(request, reply.end_connection())

    def speaker(self, path: str) -> Dialect:
        """Return the dialect in whose words a path is answered that has no route."""
        for prefix, dialect in self._prefixed:
            if path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/"):
                return dialect
        return self._own

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


class Server:
    """Serves the dialects of one node on all its listeners, under common bounds."""

    def __init__(self, node: Node, config: NodeConfig) -> None:
        self.node = node
        self.config = config
        self.started_at = time.monotonic()
        self.access = Access(config.auth_tokens, config.auth_tokens_file)
        self.bodies = Bodies(config.body_bytes_max)
        self.origins = [origin.strip() for origin in config.cors_allow_origin.split(",") if origin.strip()]
        self.bunqueue = BUNQUEUE
        self.dialects = DIALECTS
        self.main = Listener(self, DIALECTS, config.host, config.http_port, "HTTP_PORT")
        self.listeners = [self.main]
        if config.bullmq_port is not None:
            self.listeners.append(Listener(self, BULLMQ_DIALECTS, config.host, config.bullmq_port, "BULLMQ_PORT"))
        self.proxies = Proxies(config.trusted_proxies)
        self.audit = Audit(self.proxies)
        self.request_limit: RequestLimit | None = None
        if config.rate_limit_max_requests:
            self.request_limit = RequestLimit(
                config.rate_limit_max_requests, config.rate_limit_window_ms, config.rate_limit_cleanup_ms
            )
        # What needs no token: probes, the job's own token, and the metrics unless they are to be kept from strangers.
        self.open_rights: frozenset[str] = frozenset(
            {"open", "job"} if config.metrics_auth == "true" else {"open", "job", "metrics"}
        )
        self.disk = DiskWatch(config.data_path)
        self.writes = Histogram()
        self.streams = Streams(self)
        # Connections that last, each with the token that it showed.
        self.sessions: dict[Session, None] = {}
        # Requests that wait for something to happen, with what runs them.
        self.waiting: dict[Call, asyncio.Task[Any]] = {}
        # Replies by the first digit of their status.
        self.replies = [0] * 6
        self.under_way = 0
        self.stopping = False
        self._running = False
        self._watching: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._heads = {status: line + self.allow_origin(None) for status, line in HEADS.items()}

    @property
    def address(self) -> str:
        """Where the main listener listens, as host:port."""
        return self.main.address

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Every address that the main listener has bound."""
        return self.main.addresses

    @property
    def port(self) -> int:
        return self.main.port

    @property
    def router(self) -> Router:
        """The routes of the main listener."""
        return self.main.router

    @property
    def connections(self) -> int:
        """Open connections."""
        return sum(listener.connections for listener in self.listeners)

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
        """Bind and listen. Raises OSError with the address in its message."""
        try:
            for listener in self.listeners:
                await listener.start()
        except BaseException:
            await self._close()
            raise
        self._running = True
        self.streams.start()
        if self.access.file is not None:
            self._watching = asyncio.create_task(self._keep_up())

    async def stop(self, timeout_s: float = 10) -> None:
        """Answer what is under way, long polls with what they have, then close.

        timeout_s: after this, whatever is still under way is cut off.
        """
        if not self._running:
            return
        self.stopping = True
        self._running = False
        if self._watching is not None:
            self._watching.cancel()
        for listener in self.listeners:
            await listener.take_no_more()
        self.streams.close()
        if self.under_way:
            self._idle.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._idle.wait()
            except TimeoutError:
                log.warning("%d requests cut off", self.under_way)
        await self._close()

    async def _keep_up(self) -> None:
        """Follow the file of tokens, and end what tokens that are none any more still have: connections, requests that wait."""
        while True:
            await asyncio.sleep(REREAD_S)
            try:
                await self.access.keep_up()
                for session in list(self.sessions):
                    if session.grant is not None and not session.grant.alive:
                        session.close()
                for call, task in list(self.waiting.items()):
                    if not call.grant.alive and not call.cut_off:
                        call.cut_off = True
                        task.cancel()
            except Exception:
                # Whatever is wrong with the file, it is looked at again.
                log.exception("the file of tokens could not be looked at")

    async def _close(self) -> None:
        await asyncio.gather(*(listener.close() for listener in self.listeners))
        self.audit.settle()

    async def handle(self, listener: Listener, request: web.BaseRequest) -> Reply:
        """Answer one request."""
        if self.under_way >= REQUESTS_MAX:
            dialect = listener.speaker(request.raw_path)
            reply = failure(dialect, 503, "Too many requests under way", "busy", retry_after_s=1)
            return self.finished(request, reply)
        self.under_way += 1
        try:
            return self.finished(request, await self.reply(listener, request))
        finally:
            self.under_way -= 1
            if self.stopping and not self.under_way:
                self._idle.set()

    def finished(self, request: web.BaseRequest, reply: Reply) -> Reply:
        """Give a reply what every reply of this node has."""
        self.replies[reply.status // 100] += 1
        if len(self.origins) > 1:
            reply.heads = {reply.status: HEADS[reply.status] + self.allow_origin(request.headers.get("Origin"))}
        else:
            reply.heads = self._heads
        if self.stopping:
            reply.end_connection()
        return reply

    async def reply(self, listener: Listener, request: web.BaseRequest) -> Reply:
        method, target = request.method, request.raw_path
        if not target.startswith("/"):
            # The form that proxies are sent: http://host/path.
            target = request.rel_url.raw_path_qs
        path, _, query = target.partition("?")
        malformed: Invalid | None = None
        try:
            found = listener.find(method, path)
        except Invalid as error:
            found, malformed = None, error
        dialect = listener.speaker(path) if found is None else found[0].dialect
        if method == "OPTIONS" and (dialect.hides_paths or "Access-Control-Request-Method" in request.headers):
            return preflight(request)
        route = None if found is None else found[0].route
        if self.request_limit is not None and (route is None or route.limited):
            wait_s = self.request_limit.admit(self.proxies.client_of(request), time.monotonic())
            if wait_s:
                return failure(dialect, 429, "Rate limit exceeded", "rate_limited", retry_after_s=wait_s)
        grant = EVERYTHING if route is not None and route.right == "job" else NOTHING
        if route.right not in self.open_rights if route is not None else dialect.hides_paths:
            try:
                grant = dialect.authorize(self.access, request)
            except Unauthorized as error:
                queue = found[1].get("queue") if found is not None else None
                self.audit.unknown(request, f"{method} {found[0].template if found is not None else '-'}", queue)
                return failure(dialect, 401, str(error), "unauthorized")
        if malformed is not None:
            return failure(dialect, malformed.status, str(malformed), "invalid_request")
        if found is None:
            return failure(dialect, 404, "Not found", "not_found")
        if found[0].route.right != "open" and not self.node_started:
            return failure(dialect, 503, f"Not ready: {REPLAYING}", "unavailable", retry_after_s=1)
        return await answer(self, request, found[0], found[1], query, grant)

    def find(self, method: str, path: str) -> tuple[Mount, dict[str, str]] | None:
        """Find a route of the main listener. Raises Invalid when the path cannot be decoded."""
        return self.main.find(method, path)

    def allow_origin(self, origin: str | None) -> bytes:
        """Return the header lines that say which pages may read a reply.

        origin: the page that asks.  A browser takes one origin only, so of several the asking one is named.
        """
        if len(self.origins) < 2:
            return b"Access-Control-Allow-Origin: %b\r\n" % "".join(self.origins).encode("latin-1", "replace")
        named = origin if origin in self.origins else self.origins[0]
        return b"Access-Control-Allow-Origin: %b\r\nVary: Origin\r\n" % named.encode("latin-1", "replace")


def preflight(request: web.BaseRequest) -> Reply:
    """Answer a page's browser what the page may send: the documented headers, and one of ours when it asks for that."""
    asked = request.headers.get("Access-Control-Request-Headers", "").lower()
    more = [name for name in ALSO_ALLOWED if name.lower() in asked]
    return Reply(204, b"", headers=b", ".join([PREFLIGHT, *(name.encode() for name in more)]) + b"\r\n")


class Connection(RequestHandler):
    """One client's connection, which is answered in the port's dialect even where aiohttp cannot parse what it sent."""

    __slots__ = ("_listener",)

    def __init__(self, listener: Listener, manager: HttpServer, **settings: Any) -> None:
        super().__init__(manager, **settings)
        self._listener = listener

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        # It logs the error, and raises where a reply has begun; its own reply would quote the request.
        super().handle_error(request, status, exc, message)
        return self._listener.unreadable(request, status)


class HttpServer(web.Server):
    """aiohttp's server, with our connections."""

    def __init__(self, listener: Listener, **settings: Any) -> None:
        super().__init__(listener.handle, handler_cancellation=True)
        self._listener = listener
        self._settings = settings

    def __call__(self) -> RequestHandler:
        return Connection(self._listener, self, loop=asyncio.get_running_loop(), **self._settings)


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

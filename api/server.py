"""The listeners of a node: they take connections, find each request's route, and stop without losing a request.

aiohttp's low-level server parses HTTP; its Application, router and middlewares are not used, because they cost more
than the rest of a small request. A client that closes its connection cancels its request, which is how a job that a
long poll has taken goes back at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from functools import partial
from http import HTTPStatus
from typing import cast

from aiohttp import web

from quorumq.api.outgoing.egress import CALLER, caller_of
from quorumq.api.settings.rows import NodeConfig
from quorumq.cluster.addresses import join_address
from quorumq.node.node import Node

from .auth import API_KEY, EVERYTHING, NOTHING, Unauthorized
from .certificates import Certificate
from .commands.tcp import TcpListener
from .connections import HEADER_BYTES_MAX, HttpConnection, HttpServer, MalformedRequests
from .dialects.bullmq.workers import delivery
from .dialects.bunqueue.commands import Commands
from .dialects.bunqueue.dialect import Bunqueue
from .dialects.bunqueue.streams import LiveStreams
from .door import TURNED_AWAY
from .errors import Invalid
from .host import REPLAYING, Host, Port
from .mounts import Mounts, bullmq_dialects, main_dialects
from .once import HEADER
from .outgoing.services import Outgoing
from .path import answer, failure
from .reply import HEADS, Reply
from .router import Dialect, Mount, Router
from .rows import WebSocketUpgrade
from .sockets import BACKLOG, KEEP_ALIVE_S, cannot_listen, listen

log = logging.getLogger(__name__)

# What is cut off gets this long to notice.
CUT_OFF_S = 0.1
OTHER_VERSION = "Only HTTP/1.1 and HTTP/1.0 are spoken here"
VERSIONS = ((1, 1), (1, 0))
# How often the file of tokens is looked at.
REREAD_S = 1.0
# The longest id of a job fits: 1,024 characters, each up to twelve bytes when percent-encoded.
REQUEST_LINE_BYTES_MAX = 32_768
PREFLIGHT = (
    b"Access-Control-Allow-Methods: GET, POST, PUT, DELETE, OPTIONS\r\n"
    b"Access-Control-Max-Age: 86400\r\n"
    b"Access-Control-Allow-Headers: Content-Type, Authorization"
)
ALSO_ALLOWED = (HEADER, API_KEY)


class Listener:
    """One port: what is served there, and in whose words.

    setting: the name of the setting that gives the port.  port: 0 for the system's choice.
    """

    def __init__(self, server: Server, mounts: Mounts, host: str, port: int, setting: str) -> None:
        self.host: Host = server
        self._server = server
        self.setting = setting
        self.router = Router()
        for dialect, prefix in mounts:
            self.router.mount(dialect, prefix)
        self._own = mounts[0][0]
        self._prefixed = [(prefix, dialect) for dialect, prefix in mounts if prefix]
        self._bind = (host, port)
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
            max_field_size=HEADER_BYTES_MAX,
            logger=MalformedRequests(logging.getLogger(f"{__name__}.http"), {}),
        )
        runner = web.ServerRunner(server, shutdown_timeout=CUT_OFF_S)
        await runner.setup()
        try:
            # One socket for one host, so that a port of 0 means one port.
            await web.SockSite(runner, listen(*self._bind), backlog=BACKLOG).start()
        except OSError as error:
            await runner.cleanup()
            raise cannot_listen(error, *self._bind, self.setting) from None
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
        return self._server.handle(self, request)

    def late(self) -> bytes:
        """Return the whole answer to a head that did not come in time."""
        return self._last(HTTPStatus.REQUEST_TIMEOUT, "The request's head did not come in time", "request_timeout")

    def without_tls(self) -> bytes:
        """Return the whole answer to a request that came without TLS where there is some."""
        return self._last(HTTPStatus.BAD_REQUEST, "This port speaks TLS: use https://", "tls_required")

    def _last(self, status: HTTPStatus, text: str, code: str) -> bytes:
        """Return a whole answer, after which the connection ends."""
        body = self._own.error(status, text, code)
        self._server.replies[4] += 1
        return b"%bContent-Type: %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (
            HEADS[status],
            self._own.content_type,
            len(body),
            body,
        )

    def unreadable(self, request: web.BaseRequest, status: int) -> Reply:
        """Answer what cannot be parsed, or is longer than one request's head may be, in the words of the port's own dialect."""
        if status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            reply = failure(
                self._own, status, "Request headers too large (max 16KB each, 128 of them)", "headers_too_large"
            )
        elif status == HTTPStatus.HTTP_VERSION_NOT_SUPPORTED:
            reply = failure(self._own, status, OTHER_VERSION, "version_not_supported")
        elif status < HTTPStatus.INTERNAL_SERVER_ERROR:
            reply = failure(self._own, status, "Malformed HTTP request", "invalid_request")
        else:
            reply = failure(self._own, status, "Internal server error", "internal_error")
        return self._server.finished(request, reply.end_connection())

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


class Server(Host):
    """Serves the dialects of one node on all its listeners, under common bounds."""

    listeners: list[Listener]
    tcp: TcpListener | None

    def __init__(self, node: Node, config: NodeConfig) -> None:
        super().__init__(node, config)
        self.outgoing = Outgoing(node, config, partial(delivery, config.queue_prefix))
        self.provide(self.outgoing)
        self.streams = LiveStreams(self, Commands(Bunqueue()))
        self.provide(self.streams)
        self.main = Listener(self, main_dialects(), config.host, config.http_port, "HTTP_PORT")
        self.listeners = [self.main]
        if config.bullmq_port is not None:
            self.listeners.append(Listener(self, bullmq_dialects(), config.host, config.bullmq_port, "BULLMQ_PORT"))
        self.tcp = None
        if config.tcp_port is not None:
            self.tcp = TcpListener(self, config.host, config.tcp_port)
        self._running = False
        self._watching: list[asyncio.Task[None]] = []
        self._heads = {status: line + self.origins.header(None) for status, line in HEADS.items()}

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
    def ports(self) -> list[Port]:
        """Every listener, that of commands over TCP too."""
        return [*self.listeners, *([self.tcp] if self.tcp is not None else ())]

    def leave(self) -> None:
        """Be not ready any more and go on answering; each reply ends its connection, so that the next request goes elsewhere."""
        self.leaving = True
        self._leave_connections()

    def _leave_connections(self) -> None:
        if self.tcp is not None:
            self.tcp.leave()
        for backend in list(self.backends):
            backend.leave()

    async def start(self) -> None:
        """Bind and listen. Raises OSError with the address in its message."""
        try:
            for port in self.ports:
                await port.start()
        except BaseException:
            await self._close()
            raise
        self._running = True
        self.streams.start()
        if self.access.file is not None:
            self._watching.append(asyncio.create_task(self._keep_up()))
        if self.certificate is not None:
            log.info("clients speak TLS, and are shown a certificate %s", self.certificate.described())
            self.certificate.tell_end()
            self._watching.append(asyncio.create_task(self._follow(self.certificate)))

    async def stop(self, timeout_s: float = 10) -> None:
        """Answer what is under way, long polls with what they have, then close.

        timeout_s: after this, whatever is still under way is cut off.
        """
        if not self._running:
            return
        self.stopping = True
        self._running = False
        for task in self._watching:
            task.cancel()
        for port in self.ports:
            await port.take_no_more()
        self.streams.close()
        self._leave_connections()
        if self.under_way:
            self._idle.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._idle.wait()
            except TimeoutError:
                log.warning("%d requests cut off", self.under_way)
        await self._close()

    def cut_off(self) -> None:
        """While this node stops: wait for no request any more."""
        self._idle.set()

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

    async def _follow(self, certificate: Certificate) -> None:
        """Take renewed files of the certificate."""
        while True:
            await asyncio.sleep(REREAD_S)
            try:
                await certificate.keep_up()
            except Exception:
                # Whatever is wrong with the files, they are looked at again.
                log.exception("the certificate could not be looked at")

    async def _close(self) -> None:
        await asyncio.gather(*(port.close() for port in self.ports))
        self.door.close()
        self.audit.settle()

    async def handle(self, listener: Listener, request: web.BaseRequest) -> Reply:
        """Answer one request."""
        if self.full:
            dialect = listener.speaker(request.raw_path)
            reply = failure(dialect, 503, "Too many requests under way", "busy", retry_after_s=1)
            return self.finished(request, reply)
        self.begun()
        try:
            return self.finished(request, await self.reply(listener, request))
        finally:
            self.done()

    def finished(self, request: web.BaseRequest, reply: Reply) -> Reply:
        """Give a reply what every reply of this node has."""
        self.replies[reply.status // 100] += 1
        if reply.private:
            reply.heads = HEADS
        elif self.origins.several:
            reply.heads = {reply.status: HEADS[reply.status] + self.origins.header(request.headers.get("Origin"))}
        else:
            reply.heads = self._heads
        reply.pace = self.pace
        connection = connection_of(request)
        if self.stopping or self.leaving or connection.turned_away is not None or connection.asks_for_another:
            reply.end_connection()
        return reply

    async def reply(self, listener: Listener, request: web.BaseRequest) -> Reply:
        method, target = request.method, request.raw_path
        if not target.startswith("/"):
            # The form that proxies are sent: http://host/path.
            target = request.rel_url.raw_path_qs
        path, _, query = target.partition("?")
        if request.version not in VERSIONS:
            return failure(listener.speaker(path), 505, OTHER_VERSION, "version_not_supported").end_connection()
        malformed: Invalid | None = None
        try:
            found = listener.find(method, path)
        except Invalid as error:
            found, malformed = None, error
        dialect = listener.speaker(path) if found is None else found[0].dialect
        if CALLER in request.headers and request.headers[CALLER] == caller_of(self.node.status().cluster_id):
            text = "A push worker or a webhook of this cluster calls the cluster itself"
            return failure(dialect, 508, text, "loop_detected")
        if dialect.private:
            why = self.origins.kept_out(request, no_tokens=self.access.is_open)
            if why is not None:
                self.audit.kept_out(request, f"{method} {found[0].template if found is not None else '-'}")
                return failure(dialect, 403, why, "forbidden").keep_private()
            reply = await self.answered(listener, request, method, dialect, found, malformed, query)
            return reply.keep_private()
        return await self.answered(listener, request, method, dialect, found, malformed, query)

    async def answered(
        self,
        listener: Listener,
        request: web.BaseRequest,
        method: str,
        dialect: Dialect,
        found: tuple[Mount, dict[str, str]] | None,
        malformed: Invalid | None,
        query: str,
    ) -> Reply:
        """Answer what has been found, or not been found, if its sender may have an answer."""
        if (
            method == "OPTIONS"
            and not dialect.private
            and (dialect.hides_paths or "Access-Control-Request-Method" in request.headers)
        ):
            return preflight(request)
        route = None if found is None else found[0].route
        turned_away = connection_of(request).turned_away
        # Probes are answered: a node that is full is not one to be restarted.
        if turned_away is not None and (route is None or route.right != "open" or route.reply is WebSocketUpgrade):
            return failure(dialect, 503, TURNED_AWAY[turned_away], "busy", retry_after_s=1).end_connection()
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


def connection_of(request: web.BaseRequest) -> HttpConnection:
    """Return the connection that a request came by."""
    return cast(HttpConnection, request.protocol)


def preflight(request: web.BaseRequest) -> Reply:
    """Answer a page's browser what the page may send: the documented headers, and one of ours when it asks for that."""
    asked = request.headers.get("Access-Control-Request-Headers", "").lower()
    more = [name for name in ALSO_ALLOWED if name.lower() in asked]
    return Reply(204, b"", headers=b", ".join([PREFLIGHT, *(name.encode() for name in more)]) + b"\r\n")

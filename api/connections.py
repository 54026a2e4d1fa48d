"""Connections of HTTP as aiohttp parses them, under the door's bounds, over TLS where there is a certificate.

aiohttp has no bound on connections, none on the time of a request's head, and reads on after a refusal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, MutableMapping
from http import HTTPStatus
from typing import Any, Protocol, cast

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.web_protocol import RequestHandler

from .door import LINGER_S, Turned
from .handshake import Handshake
from .host import Host
from .reply import Reply

LINGER_BYTES_MAX = 64 << 20
# What a connection holds that waits while its request is handled; twice as much is read at most.
READ_BYTES = 1 << 16
# Of one header: 16 KB, and its name besides.
HEADER_BYTES_MAX = (16 << 10) + 128
# And this long to read the last answer of a connection.
UNREAD_S = 60.0


class ConnectionListener(Protocol):
    """The listener of a connection."""

    host: Host

    def handle(self, request: web.BaseRequest) -> Awaitable[Reply]:
        """Answer one request."""

    def late(self) -> bytes:
        """Return the whole answer to a head that did not come in time."""

    def without_tls(self) -> bytes:
        """Return the whole answer to a request that came without TLS where there is some."""

    def unreadable(self, request: web.BaseRequest, status: int) -> Reply:
        """Answer what cannot be parsed."""


class HttpConnection(RequestHandler):
    """One client's connection, which is answered in the port's dialect even where aiohttp cannot parse what it sent."""

    __slots__ = ("_begun", "_body", "_discarding", "_dropped", "_gone", "_listener", "client", "turned_away")

    def __init__(self, listener: ConnectionListener, manager: HttpServer, **settings: Any) -> None:
        super().__init__(manager, **settings)
        self._listener = listener
        # The last body that has begun; what comes before its end is no head.
        self._body: Any = None
        # Whether a head has begun that is not finished.
        self._begun = False
        # Whether what comes is dropped unseen, because the answer has been given.
        self._discarding = False
        self._dropped = 0
        self._gone: asyncio.Future[None] | None = None
        # The peer's address, where connections of an address are bounded.
        self.client = ""
        # Why every request but a probe's is refused, if it is.
        self.turned_away: Turned | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way; a head may have begun."""
        waiter = self._waiter
        return waiter is not None and not waiter.done()

    @property
    def idle_until(self) -> float:
        """When it would be closed for being idle; the earliest has been idle longest."""
        return self._next_keepalive_close_time

    @property
    def asks_for_another(self) -> bool:
        """Whether it was asked for another protocol, and still speaks HTTP."""
        return bool(self._upgraded) and self._payload_parser is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        door = self._listener.host.door
        self.turned_away = door.enter(self, cast(asyncio.Transport, transport))
        if self.transport is not None:
            door.expect(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._listener.host.door.leave(self)
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)
        super().connection_lost(exc)
        # They know each other, and what has come of a body would wait for the garbage collector.
        self._body = None

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            self._dropped += len(data)
            if self._dropped > LINGER_BYTES_MAX:
                self.drop()
            else:
                self._pause_transport_reading()
                self._listener.host.bodies.turnstile.enter(self._resume_transport_reading)
            return
        before = self._request_count
        in_body = self._body is not None and not self._body.is_eof()
        super().data_received(data)
        door = self._listener.host.door
        if self._request_count != before:
            self._body = self._messages[-1][1]
            self._begun = False
            door.unfinished.pop(self, None)
        elif data and not (in_body or self._upgraded or self._buffer_paused):
            # Bytes after which there is no whole head. The first of them set the time, later ones give it no more. The bytes that end
            # a body are none of a head's; if some come along with them, what comes next sets the time, or it is closed for being idle.
            self._begun = True
            if self not in door.unfinished and self.transport is not None:
                door.expect(self)

    def too_late(self) -> None:
        """End the connection, because a head did not come in time, and say so if there is room for it to be heard."""
        transport = self.transport
        if transport is not None and self._begun and self.is_idle and not transport.is_closing():
            transport.write(self._listener.late())
        self.drop()

    def drop(self) -> None:
        """End the connection at once; what was written still goes out, as far as the client reads it."""
        transport = self.transport
        self.force_close()
        if transport is not None and transport.get_write_buffer_size():
            # A client that does not read would keep it for ever.
            self._loop.call_later(LINGER_S, transport.abort)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        written = await super().finish_response(request, resp, start_time)
        transport = self.transport
        if transport is not None and not self._upgraded:
            if not request.content.is_eof():
                await self._linger(transport)
            elif not resp.keep_alive and transport.get_write_buffer_size():
                # It is closed when the client has read everything; one that does not would keep it.
                self._loop.call_later(UNREAD_S, transport.abort)
        return written

    async def _linger(self, transport: asyncio.Transport) -> None:
        """Let the client read the answer to a body that nobody wants; what is still to come of it is dropped unparsed."""
        self._discarding = True
        self._keepalive = False
        self._gone = self._loop.create_future()
        with contextlib.suppress(Exception):
            # What has come of it already.
            self._body.read_nowait()
        try:
            if transport.can_write_eof():
                transport.write_eof()
            self._reading_paused = self._buffer_paused = False
            self._resume_transport_reading()
            await asyncio.wait([self._gone], timeout=LINGER_S)
        finally:
            self.drop()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        # It logs the error, and raises where a reply has begun; its own reply would quote the request.
        super().handle_error(request, status, exc, message)
        return self._listener.unreadable(request, status_of(exc, status))


# What the parser says of a request line of HTTP/1.2 or HTTP/3.0, and of the preface with which HTTP/2 begins.
OTHER_VERSION = ("Invalid HTTP version", "Pause on PRI/Upgrade")


def status_of(error: BaseException | None, status: int) -> int:
    """Return the status of what cannot be parsed: aiohttp has one for all of it."""
    too_long = isinstance(error, LineTooLong) and error.args[1] == HEADER_BYTES_MAX
    too_many = isinstance(error, BadHttpMessage) and error.message == "Too many headers received"
    if isinstance(error, BadHttpMessage) and any(words in error.message for words in OTHER_VERSION):
        return HTTPStatus.HTTP_VERSION_NOT_SUPPORTED
    return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if too_long or too_many else status


class HttpServer(web.Server):
    """aiohttp's server, with our connections."""

    def __init__(self, listener: ConnectionListener, **settings: Any) -> None:
        super().__init__(listener.handle, handler_cancellation=True)
        self._listener = listener
        self._settings = settings

    def __call__(self) -> Any:
        certificate = self._listener.host.certificate
        if certificate is None:
            return self.connection()
        host = self._listener.host
        plain = None if host.config.tls == "optional" else self._listener.without_tls
        return Handshake(certificate.context, host.door, self.connection, plain)

    def connection(self) -> HttpConnection:
        """What speaks HTTP."""
        return HttpConnection(
            self._listener,
            self,
            loop=asyncio.get_running_loop(),
            read_bufsize=READ_BYTES,
            # Only a body that is let in is inflated, in bounded steps (limits.py).
            auto_decompress=False,
            # Ours begins where aiohttp's would read on.
            lingering_time=0,
            **self._settings,
        )


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

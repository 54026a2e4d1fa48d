"""Replies: a head and a body that are written in one piece, or in the pieces that a large body is in."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from email.utils import formatdate
from http import HTTPStatus

from aiohttp import web

from .limits import Pace

JSON = b"application/json"
HTML = b"text/html; charset=utf-8"
TEXT = b"text/plain; charset=utf-8"
# A reply longer than this waits for the client to read it before the next request of its connection is looked at.
DRAIN_BYTES = 1 << 16


class Reply(web.StreamResponse):
    """A whole response, written in one piece.

    It takes the place of aiohttp's Response, whose header dictionary and writer cost more than the rest of a small
    request; aiohttp calls prepare and write_eof and reads keep_alive, and that is all it needs.
    heads: the first lines by status, with the headers that every reply of a listener has.  pace: how slowly it may be read.
    """

    def __init__(self, status: int, body: bytes, content_type: bytes = JSON, headers: bytes = b"") -> None:
        self._line = status
        self._whole = body
        self._kind = content_type
        self._more = headers
        self._stay = True
        self.heads: Mapping[int, bytes] = HEADS
        self.pace = ANY_PACE
        # Whether no page of another origin may read it.
        self.private = False

    @property
    def status(self) -> int:
        return self._line

    @property
    def body(self) -> bytes:
        return self._whole

    @property
    def keep_alive(self) -> bool | None:
        return self._stay

    def replaced(self, body: bytes) -> Reply:
        """Take another body."""
        self._whole = body
        return self

    def keep_private(self) -> Reply:
        """Let no page of another origin read it."""
        self.private = True
        return self

    def end_connection(self) -> Reply:
        """Close the connection after this reply."""
        self._stay = False
        return self

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write the response. A client that is gone is no error."""
        transport = request.transport
        if transport is None or transport.is_closing():
            return
        body = self._whole
        head = self.head(request, len(body))
        if request.method != "HEAD":
            head.append(body)
        transport.write(b"".join(head))
        await self.pace.drain(request)

    def head(self, request: web.BaseRequest, length: int) -> list[bytes]:
        """Return everything before a body of so many bytes."""
        head = [self.heads[self._line], DATE.line(), self._more]
        if self._line != HTTPStatus.NO_CONTENT:
            head.append(b"Content-Type: %b\r\nContent-Length: %d\r\n" % (self._kind, length))
        if not request.keep_alive or not request.content.is_eof():
            # What is left of a body would be taken for the next request, unless it is read to its end.
            self._stay = False
        if not self._stay:
            head.append(b"Connection: close\r\n")
        elif request.version < (1, 1):
            head.append(b"Connection: keep-alive\r\n")
        head.append(b"\r\n")
        return head

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing: prepare has written everything."""


class Pieced(Reply):
    """A reply whose body is in pieces, some of them large and somebody else's: they are not copied into one text."""

    def __init__(self, status: int, pieces: Sequence[bytes]) -> None:
        super().__init__(status, b"")
        self._pieces = pieces

    @property
    def body(self) -> bytes:
        return b"".join(self._pieces)

    def replaced(self, body: bytes) -> Reply:
        self._pieces = [body]
        return self

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write the response as fast as the client reads it."""
        pieces = self._pieces
        length = sum(map(len, pieces))
        transport = request.transport
        if length <= DRAIN_BYTES or transport is None or transport.is_closing() or request.method == "HEAD":
            self._whole = self.body
            await super().prepare(request)
            return
        unsent = self.head(request, length)
        size = 0
        for piece in pieces:
            unsent.append(piece)
            size += len(piece)
            if size > DRAIN_BYTES:
                # A large piece is alone in what is joined, or nearly so.
                transport.write(b"".join(unsent))
                unsent, size = [], 0
                await self.pace.drain(request)
                if transport.is_closing():
                    return
        transport.write(b"".join(unsent))


class Streamed(Reply):
    """Stands for a response that its route has written itself, to its end."""

    def __init__(self, status: int) -> None:
        super().__init__(status, b"")
        self._stay = False

    async def prepare(self, request: web.BaseRequest) -> None:
        """Do nothing: everything is written."""


class DateLine:
    """The Date header, worked out once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._text = b""

    def line(self) -> bytes:
        now = int(time.time())
        if now != self._second:
            self._second = now
            self._text = b"Date: %b\r\n" % formatdate(now, usegmt=True).encode("ascii")
        return self._text


DATE = DateLine()
ANY_PACE = Pace()
HEADS = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode("ascii") for s in HTTPStatus}

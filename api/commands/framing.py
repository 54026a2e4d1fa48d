"""Frames of bunqueue's TCP protocol, under the bounds of bodies: four bytes that say how long, big-endian, and so many of MessagePack.

A frame beyond its bound ends the connection, as in the protocol. One for which there is no room among the bodies under way becomes a
`RefusedFrame` in its place, and what there is of it is dropped unseen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from quorumq.api.limits import SMALL_BYTES, Bodies, Busy, PaceClock

from .messagepack import END_BYTES, number_of

HEAD_BYTES = 4
# The protocol's bound, which clients have, too.
FRAME_BYTES_MAX = 64 << 20
# Of a client that has not shown its token.
STRANGER_BYTES_MAX = 1 << 16


def framed(body: bytes) -> bytes:
    """Return a frame."""
    return len(body).to_bytes(HEAD_BYTES, "big") + body


class FrameTooLarge(Exception):
    """A frame is announced that is longer than the bound; the message is the protocol's."""

    def __init__(self, length: int, limit: int) -> None:
        super().__init__(f"Frame too large: {length} bytes exceeds maximum {limit}")


class RefusedFrame(NamedTuple):
    """A frame that was not taken. number: the `reqId` of the command in it, where that could be told."""

    number: str | None


class Frame(NamedTuple):
    """A frame. counted: its bytes that are counted among the bodies under way; who gets it gives them back."""

    body: bytes | bytearray
    counted: int


class FrameReader:
    """Puts the frames of one connection together.

    take: gets each.  too_slow: called when an unfinished frame comes more slowly than a body may.  bytes_max: of one frame; may
    be changed at any time.
    """

    def __init__(
        self,
        bodies: Bodies,
        bytes_max: int,
        take: Callable[[Frame | RefusedFrame], None],
        too_slow: Callable[[], None],
    ) -> None:
        self.bytes_max = bytes_max
        self._bodies = bodies
        self._take = take
        self._slow = too_slow
        # The beginning of a head; then what has come of the frame, and how much is still to come.
        self._head = b""
        self._body: bytearray | None = None
        self._left = 0
        self._counted = 0
        self._refused = False
        self._first = self._last = b""
        self._clock = PaceClock(bodies.pace, self._too_slow)
        self._ended = False

    @property
    def in_part(self) -> bool:
        """Whether a frame has begun that is not finished."""
        return self._body is not None or bool(self._head)

    def feed(self, data: bytes) -> None:
        """Take in what has arrived. Raises FrameTooLarge."""
        at, end = 0, len(data)
        while at < end and not self._ended:
            if self._body is None:
                if self._head or end - at < HEAD_BYTES:
                    missing = HEAD_BYTES - len(self._head)
                    self._head += data[at : at + missing]
                    at += missing
                    if len(self._head) < HEAD_BYTES:
                        break
                    length, self._head = int.from_bytes(self._head, "big"), b""
                else:
                    length = int.from_bytes(data[at : at + HEAD_BYTES], "big")
                    at += HEAD_BYTES
                if length > self.bytes_max:
                    raise FrameTooLarge(length, self.bytes_max)
                if end - at >= length:
                    # The usual case: it came in one piece, or the last of several with it.
                    self._take(Frame(data[at : at + length], 0))
                    at += length
                    continue
                self._body, self._left = bytearray(), length
            part = data[at : at + self._left]
            at += len(part)
            self._left -= len(part)
            self._add(part)
            if not self._left:
                self._finish()
        if not self._ended:
            self._clock.came(end, unfinished=self.in_part)

    def _add(self, part: bytes) -> None:
        assert self._body is not None
        if self._refused:
            self._last = (self._last + part[-END_BYTES:])[-END_BYTES:]
            return
        self._body += part
        # As of a body: a short one is let in whatever others take.
        try:
            self._bodies.reserve(len(part))
            self._counted += len(part)
        except Busy:
            if len(self._body) + self._left > SMALL_BYTES:
                self._refused = True
                self._first, self._last = bytes(self._body[:END_BYTES]), bytes(self._body[-END_BYTES:])
                self._body = bytearray()
                self._release()

    def _finish(self) -> None:
        body, self._body = self._body, None
        assert body is not None
        if self._refused:
            self._refused = False
            self._take(RefusedFrame(number_of(self._first, self._last)))
            self._first = self._last = b""
            return
        counted, self._counted = self._counted, 0
        self._take(Frame(body, counted))

    def _release(self) -> None:
        self._bodies.release(self._counted)
        self._counted = 0

    def _too_slow(self) -> None:
        self.end()
        self._slow()

    def end(self) -> None:
        """Read nothing more, and give back what the unfinished frame took of the common bound."""
        self._ended = True
        self._clock.stop()
        self._release()
        self._body = None

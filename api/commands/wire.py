"""The way out of a connection over TCP: JSON comes in, frames of MessagePack go out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from .framing import framed
from .messagepack import encoded

if TYPE_CHECKING:
    from quorumq.api.door import Door

# Unsent bytes beyond which the connection is ended (the protocol's bound).
WRITE_QUEUE_BYTES_MAX = 64 << 20


class Wire:
    """Where frames go out: JSON comes in."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self.transport: asyncio.Transport | None = None
        self.missed = 0
        self.written = 0
        # Whether the transport holds more than it should.
        self.paused = False
        self.ending = False

    @property
    def full(self) -> bool:
        return self.paused

    def put(self, frame: bytes) -> None:
        self.send(encoded(frame))

    def send(self, packed: bytes) -> None:
        """Write a frame."""
        self.write(framed(packed))

    def offer(self, frames: bytes, count: int) -> None:
        """Write so many frames, unless the client is too far behind."""
        if self.paused:
            self.missed += count
        else:
            self.write(frames)

    def write(self, frames: bytes) -> None:
        """Write what is framed. A client that is too far behind is left."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        transport.write(frames)
        self.written += len(frames)
        if transport.get_write_buffer_size() > WRITE_QUEUE_BYTES_MAX:
            self._door.note("unread")
            transport.abort()

    @property
    def read(self) -> int:
        """Bytes that have left."""
        return self.written - (0 if self.transport is None else self.transport.get_write_buffer_size())

    def end(self) -> None:
        self.ending = True
        if self.transport is not None:
            self.transport.close()

"""Memory for large answers to outgoing calls: those beyond the bound wait, unread, until others are done.

It counts bytes against a bound and knows nothing of sockets: readers are told when to stop and when to go on. Small answers are
not counted, because their number is bounded.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

# An answer up to this size needs no room of its own.
SMALL_BYTES = 64 * 1024
# What all others together may take: being read, and read but not in the log yet. Locks are renewed through the same log, so
# that what waits there has to be a matter of a second.
ROOM_BYTES = 32 << 20


class Reader(Protocol):
    """Who reads an answer."""

    def stop_reading(self) -> None:
        """Read nothing until told to go on."""

    def go_on(self) -> None:
        """Read on."""


class ReceiveBudget:
    """Counts what large answers take.

    The one that has been read for longest may always go on as long as what is held fits, so that answers of unknown length, each
    with a part of the room, never wait for each other.
    """

    __slots__ = ("_admitting", "_bound", "_held", "_loop", "_reading", "_waiting", "taken")

    def __init__(self, bound: int = ROOM_BYTES) -> None:
        self._bound = bound
        self._loop = asyncio.get_running_loop()
        # Bytes that are not free.
        self.taken = 0
        # Of answers that are whole; of those that are read, by reader, in order of their beginning.
        self._held = 0
        self._reading: dict[Reader, int] = {}
        # Readers that wait, in order, and what they want to have in all.
        self._waiting: dict[Reader, int] = {}
        self._admitting = False

    @property
    def waiting(self) -> int:
        """How many readers wait."""
        return len(self._waiting)

    def want(self, reader: Reader, size: int) -> None:
        """Take room for an answer, so many bytes in all; the reader is told to stop if there is none yet."""
        self._reading.setdefault(reader, 0)
        if not self._waiting and self._fits(reader, size):
            self._give(reader, size)
        else:
            self._waiting[reader] = size
            reader.stop_reading()
            self._admit_soon()

    def leave(self, reader: Reader) -> None:
        """Give back what a reader has, who reads no more."""
        size = self._reading.pop(reader, None)
        if size is not None:
            self.taken -= size
            self._waiting.pop(reader, None)
            self._admit_soon()

    def hold(self, size: int) -> None:
        """Count an answer that is whole."""
        self._held += size
        self.taken += size

    def release(self, size: int) -> None:
        """Count it no more."""
        self._held -= size
        self.taken -= size
        self._admit_soon()

    def _fits(self, reader: Reader, size: int) -> bool:
        if self._held >= self._bound:
            return False
        oldest = next(iter(self._reading))
        return reader is oldest or self.taken - self._reading[reader] + size <= self._bound

    def _admit_soon(self) -> None:
        # Later in this turn: what a reader leaves may become what is held.
        if self._waiting and not self._admitting:
            self._admitting = True
            self._loop.call_soon(self._admit)

    def _admit(self) -> None:
        self._admitting = False
        oldest = next(iter(self._reading), None)
        if oldest in self._waiting and oldest is not None:
            self._try(oldest)
        while self._waiting:
            if not self._try(next(iter(self._waiting))):
                return

    def _try(self, reader: Reader) -> bool:
        size = self._waiting[reader]
        if not self._fits(reader, size):
            return False
        del self._waiting[reader]
        self._give(reader, size)
        reader.go_on()
        return True

    def _give(self, reader: Reader, size: int) -> None:
        self.taken += size - self._reading[reader]
        self._reading[reader] = size

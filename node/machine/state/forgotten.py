"""Digests of idempotency keys whose outcomes had to go before their day was over: enough to say that a request was done.

Sixteen bytes each, because there may be a million: a digest is 64 bits in an array, found through a table of positions.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from hashlib import blake2b

KEEP_MS = 24 * 3600 * 1000
HOUR_MS = 3600 * 1000
DIGESTS_MAX = 1_000_000
SLICE_MAX = 16_384
"""Digests of one slice: so many go at once when there are too many, and no table is ever larger."""
_SLOTS_FIRST = 512


def digest_of(key: str) -> int:
    """64 bits that stand for a key."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")


class Slice:
    """Digests of keys that were used in the same hour of the log's clock, in the order in which they were forgotten."""

    __slots__ = ("_order", "_slots", "hour")

    def __init__(self, hour: int, digests: bytes = b"") -> None:
        self.hour = hour
        self._order = array("Q")
        self._slots = array("I", bytes(4 * _SLOTS_FIRST))
        if digests:
            given = array("Q", digests)
            if sys.byteorder == "big":
                given.byteswap()
            for digest in given:
                self.add(digest)

    def __len__(self) -> int:
        return len(self._order)

    def _slot(self, digest: int) -> int:
        """Where a digest is, or would be. Two hashes of it: nobody can choose keys that pile up."""
        slots, order, mask = self._slots, self._order, len(self._slots) - 1
        at, step = digest & mask, (digest >> 40) | 1
        while (position := slots[at]) and order[position - 1] != digest:
            at = (at + step) & mask
        return at

    def __contains__(self, digest: int) -> bool:
        return self._slots[self._slot(digest)] != 0

    def add(self, digest: int) -> bool:
        """Take a digest in; say whether it is new."""
        at = self._slot(digest)
        if self._slots[at]:
            return False
        self._order.append(digest)
        self._slots[at] = len(self._order)
        if len(self._order) * 5 > len(self._slots) * 3:
            self._slots = array("I", bytes(4 * 4 * len(self._slots)))
            for position, each in enumerate(self._order, 1):
                self._slots[self._slot(each)] = position
        return True

    def bytes(self) -> bytes:
        """The digests, eight bytes each, little endian."""
        if sys.byteorder == "little":
            return self._order.tobytes()
        swapped = self._order[:]
        swapped.byteswap()
        return swapped.tobytes()

    def is_over(self, now_ms: int) -> bool:
        """Whether the day of all of its keys has passed."""
        return (self.hour + 1) * HOUR_MS + KEEP_MS <= now_ms


class Forgotten:
    """The digests of one scope, those used first first."""

    __slots__ = ("count", "slices")

    def __init__(self) -> None:
        self.slices: list[Slice] = []
        self.count = 0

    def holds(self, digest: int, now_ms: int) -> bool:
        """Whether a key was forgotten whose day is not over; it is remembered for up to an hour longer."""
        return any(digest in each and not each.is_over(now_ms) for each in self.slices)

    def add(self, digest: int, at: int) -> int:
        """Remember a key that was used at `at` of the log's clock, in milliseconds. Returns by how many there are more now."""
        hour = at // HOUR_MS
        if not self.slices or self.slices[-1].hour != hour or len(self.slices[-1]) >= SLICE_MAX:
            self.slices.append(Slice(hour))
        more = int(self.slices[-1].add(digest))
        self.count += more
        return more

    def drop_oldest(self) -> int:
        """Let the first slice go; returns how many digests that were."""
        gone = len(self.slices.pop(0))
        self.count -= gone
        return gone

    def sweep(self, now_ms: int) -> int:
        """Let go of what is over; returns how many digests that were."""
        stay = [each for each in self.slices if not each.is_over(now_ms)]
        gone = self.count - sum(map(len, stay))
        self.slices, self.count = stay, self.count - gone
        return gone

    def restore(self, hour: int, digests: bytes) -> int:
        """Add a slice of an image, in its order. Returns how many digests it has."""
        piece = Slice(hour, digests)
        self.slices.append(piece)
        self.count += len(piece)
        return len(piece)

    def __iter__(self) -> Iterator[Slice]:
        return iter(self.slices)

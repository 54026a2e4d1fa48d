"""How many jobs of a queue ended in each minute: well, or for good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

MINUTE_MS = 60_000
# Minutes before the last one in which a job ended that are remembered: a day. Those without an end take no room.
MINUTES_KEPT = 1_440
_COUNT_BITS = 32
_COUNT_MASK = (1 << _COUNT_BITS) - 1


class Minutes:
    """Ends of one kind. last_at: when the last one was, milliseconds since the epoch; 0 before the first."""

    __slots__ = ("_packed", "last_at")

    def __init__(self, last_at: int = 0, packed: Iterable[int] = ()) -> None:
        self.last_at = last_at
        # A number for each minute, in their order: the minute since the epoch in its high bits, the count in the low ones.
        self._packed = list(packed)

    def note(self, now_ms: int, count: int = 1) -> None:
        """Count ends. A clock that was set back counts on in the last minute, until it has caught up."""
        self.last_at = now_ms
        packed = self._packed
        first = now_ms // MINUTE_MS << _COUNT_BITS
        if packed and packed[-1] >= first:
            packed[-1] += count
            return
        packed.append(first + count)
        oldest = first - (MINUTES_KEPT - 1 << _COUNT_BITS)
        while packed[0] < oldest:
            del packed[0]

    def moved(self, move: Callable[[int], int]) -> Minutes:
        """Return the same with other times. move: from a time to another, milliseconds since the epoch."""
        counts: Counter[int] = Counter()
        for each in self._packed:
            counts[move((each >> _COUNT_BITS) * MINUTE_MS) // MINUTE_MS] += each & _COUNT_MASK
        packed = [(minute << _COUNT_BITS) + count for minute, count in sorted(counts.items())]
        return Minutes(move(self.last_at), packed)

    @property
    def packed(self) -> list[int]:
        """The numbers that it is kept as."""
        return self._packed

    @property
    def last_count(self) -> int:
        """How many ended in the last minute in which any did."""
        return self._packed[-1] & _COUNT_MASK if self._packed else 0

    def series(self) -> list[int]:
        """Return the counts of all minutes, also of those without an end: from the last one that had any back to the first."""
        if not self._packed:
            return []
        last = self._packed[-1] >> _COUNT_BITS
        counts = [0] * (last - (self._packed[0] >> _COUNT_BITS) + 1)
        for each in self._packed:
            counts[last - (each >> _COUNT_BITS)] = each & _COUNT_MASK
        return counts

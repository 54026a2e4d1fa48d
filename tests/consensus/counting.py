"""The smallest state machine: remembers what it applied, in order."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence

import msgpack


class Recorder:
    """Keeps every payload; the outcome of a batch is its position."""

    def __init__(self) -> None:
        self.applied: list[bytes] = []
        self.times: list[int] = []
        self._digest = 0

    def apply(self, index: int, now_ms: int, batches: Sequence[bytes]) -> list[int]:
        outcomes = []
        for payload in batches:
            self.applied.append(payload)
            self.times.append(now_ms)
            self._digest = zlib.crc32(payload, self._digest)
            outcomes.append(len(self.applied))
        return outcomes

    def image(self) -> Iterator[bytes]:
        for start in range(0, len(self.applied), 100):
            yield msgpack.packb([self.applied[start : start + 100], self.times[start : start + 100]])

    def restore(self, pieces: Iterable[bytes]) -> None:
        self.__init__()  # type: ignore[misc]
        for piece in pieces:
            applied, times = msgpack.unpackb(piece)
            self.applied += applied
            self.times += times
        for payload in self.applied:
            self._digest = zlib.crc32(payload, self._digest)

    def digest(self) -> str:
        return f"{self._digest:08x}"

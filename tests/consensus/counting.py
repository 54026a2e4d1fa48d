"""The smallest state machine: remembers what it applied, in order."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

import msgpack


class Recorder:
    """Keeps every payload; the outcome of a batch is its position."""

    level = 0
    level_known = 0

    def __init__(self) -> None:
        self.applied: list[bytes] = []
        self.times: list[int] = []
        self.resumed: list[int] = []
        self._digest = 0
        self.points: dict[int, tuple[bytes, bytes]] = {}

    def apply(self, index: int, now_ms: int, batches: Sequence[bytes], *, resumed: bool = False) -> list[int]:
        if resumed:
            self.resumed.append(index)
        outcomes = []
        for payload in batches:
            self.applied.append(payload)
            self.times.append(now_ms)
            self._digest = zlib.crc32(payload, self._digest)
            outcomes.append(len(self.applied))
        if index % 4 == 0:
            self.points[index] = (self._digest.to_bytes(4, "big"), b"")
        return outcomes

    def understands(self, payload: bytes) -> bool:
        return True

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

    def restoring(self, pieces: Iterable[bytes]) -> Generator[None, None, Callable[[], Iterator[None]]]:
        new = type(self)()
        for piece in pieces:
            yield
            applied, times = msgpack.unpackb(piece)
            new.applied += applied
            new.times += times
        for payload in new.applied:
            new._digest = zlib.crc32(payload, new._digest)

        def put() -> Iterator[None]:
            self.applied, self.times, self._digest = new.applied, new.times, new._digest
            return iter((None,))

        return put

    @property
    def shape(self) -> str:
        return "payloads"

    def digest(self) -> str:
        return f"{self._digest:08x}"

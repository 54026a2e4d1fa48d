"""A disk under virtual time: work takes a while, and a crash in the middle of it leaves what a real one would."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.consensus.disks import MemoryDisk
from tests.simulation.loop import Process, VirtualLoop

SECTOR = 512


class _Crash(BaseException):
    """The power went out in the middle of a piece of work."""


class SimDisk(MemoryDisk):
    """Survives its process: a new one takes it over with `attach`."""

    def __init__(self, loop: VirtualLoop, rng: random.Random) -> None:
        super().__init__(immediate=False)
        self.loop = loop
        self.rng = rng
        self.process: Process | None = None
        self.latency = (0.0002, 0.002)
        self.garbage = False
        self.hung = False
        self._stuck: Callable[[], None] | None = None
        self._queue: list[Callable[[], None]] = []
        self._busy = False
        self._steps_left: int | None = None

    @property
    def busy(self) -> bool:
        """Whether work is under way."""
        return self._busy

    def attach(self, process: Process) -> None:
        """The disk belongs to `process` from now on."""
        self.process = process
        self._queue.clear()
        self._busy = False

    def run(self, work: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
        process = self.process
        assert process is not None

        def task() -> None:
            if process.dead:
                return
            result: Any = None
            error: Exception | None = None
            try:
                result = work()
            except Exception as caught:
                error = caught
            self._busy = False
            process.run(done, result, error)
            self._next()

        task.work = work  # type: ignore[attr-defined]
        self._queue.append(task)
        if not self._busy:
            self._next()

    def _next(self) -> None:
        if self._queue and not self._busy:
            self._busy = True
            task = self._queue[0]

            def begin() -> None:
                if self.hung:
                    self._stuck = begin
                elif self._queue and self._queue[0] is task:
                    self._queue.pop(0)
                    task()

            self.loop.call_later(self.rng.uniform(*self.latency), begin)

    def hang(self) -> None:
        """Take work and do none of it, without an error, until `answer`."""
        self.hung = True

    def answer(self) -> None:
        """Go on with what has waited."""
        stuck, self.hung, self._stuck = self._stuck, False, None
        if stuck is not None:
            stuck()

    def close(self, patience_s: float = 0.0) -> bool:
        self._queue.clear()
        return True

    def _step(self) -> None:
        if self._steps_left is not None:
            if self._steps_left == 0:
                raise _Crash
            self._steps_left -= 1

    def kept(self, data: bytes) -> bytes:
        """A disk runs full, or fails, in the middle of a write."""
        return data[: self.rng.randint(0, len(data))] if self.garbage else b""

    def _may_fail(self) -> None:
        self._step()
        super()._may_fail()

    def sync_directory(self) -> None:
        self._step()
        super().sync_directory()

    def rename(self, old: str, new: str) -> None:
        self._step()
        super().rename(old, new)

    def remove(self, name: str) -> None:
        self._step()
        super().remove(name)

    def crash(self, rng: random.Random) -> None:
        """Power is lost: the work under way got as far as some step, and what was not synced survives in part."""
        if self._queue and rng.random() < 0.8:
            self._steps_left = rng.choice((0, 1, 1, 1, 2, 3, 4))
            try:
                self._queue[0].work()  # type: ignore[attr-defined]
            except (_Crash, Exception):
                pass
            self._steps_left = None
        written = {name: (len(file.durable), len(file.content)) for name, file in self.files.items() if file.unsynced}
        super().crash(rng)
        if self.garbage:
            for name, (synced, end) in written.items():
                file = self.files.get(name)
                if file is not None and rng.random() < 0.5:
                    file.durable = self._grown(rng, file.durable, synced, end)

    @staticmethod
    def _grown(rng: random.Random, kept: bytes, synced: int, end: int) -> bytes:
        """The file system had grown the file, and the data had not arrived yet.

        What stands there instead is zeros, by whole sectors; or, not up to the end and not in the first sector of the write,
        what belonged to another file. One that shows more than that puts its node in doubt (cluster/log.py).
        """
        if rng.random() < 0.5:
            return kept[: max(synced, len(kept) // SECTOR * SECTOR)].ljust(end, b"\0")
        if len(kept) - synced < SECTOR // 4:
            return kept
        return kept + rng.randbytes(rng.randint(0, max(0, end - len(kept) - 1)))

    def keep(self) -> None:
        """Only the process ends: what it had written is there, synced or not."""
        for file in self.files.values():
            file.durable, file.unsynced, file.patches, file.named_durably = file.content, [], [], True

    def wipe(self) -> None:
        """An empty disk takes its place."""
        self.files.clear()

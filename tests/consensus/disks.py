"""A disk in memory that can lose what was not synced, tear the last write, and fail."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import Any


class MemoryFile:
    """One file: what is synced, and what was written since."""

    def __init__(self) -> None:
        self.durable = b""
        self.unsynced: list[bytes] = []
        self.patches: list[tuple[int, bytes]] = []
        self.named_durably = False

    @property
    def content(self) -> bytes:
        return self.patched(len(self.patches)) + b"".join(self.unsynced)

    def patched(self, count: int) -> bytes:
        """What was synced, with the first so many of the changes in place since."""
        content = bytearray(self.durable)
        for offset, data in self.patches[:count]:
            content[offset : offset + len(data)] = data
        return bytes(content)


class MemoryDisk:
    """The methods of cluster.disk.Disk. Work is done when `step` is called, or at once with `immediate`."""

    def __init__(self, *, immediate: bool = True) -> None:
        self.files: dict[str, MemoryFile] = {}
        self.immediate = immediate
        self.work: list[Callable[[], None]] = []
        self.fail_writes: int | None = None
        self.fail_syncs: int | None = None
        self.syncs = 0

    # files

    def list(self) -> list[str]:
        return sorted(self.files)

    def read(self, name: str) -> bytes:
        if name not in self.files:
            raise FileNotFoundError(name)
        return self.files[name].content

    def size(self, name: str) -> int:
        return len(self.read(name))

    def read_at(self, name: str, offset: int, count: int) -> bytes:
        return self.read(name)[offset : offset + count]

    def append(self, name: str) -> _Handle:
        self.files.setdefault(name, MemoryFile())
        return _Handle(self, name)

    def patch(self, name: str) -> _Patch:
        self.read(name)
        return _Patch(self, name)

    def truncate(self, name: str, size: int) -> None:
        file = self.files[name]
        file.durable, file.unsynced = file.content[:size], []

    def write_atomic(self, name: str, data: bytes) -> None:
        self._may_fail()
        file = self.files[name] = MemoryFile()
        file.durable, file.named_durably = data, True

    def rename(self, old: str, new: str) -> None:
        self.files[new] = self.files.pop(old)
        self.sync_directory()

    def remove(self, name: str) -> None:
        self.files.pop(name, None)

    def sync_directory(self) -> None:
        for file in self.files.values():
            file.named_durably = True

    def free_bytes(self) -> int:
        return 1 << 40

    def close(self, patience_s: float = 0.0) -> bool:
        self.work.clear()
        return True

    # work

    def run(self, work: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
        def task() -> None:
            try:
                result = work()
            except Exception as error:
                done(None, error)
            else:
                done(result, None)

        if self.immediate:
            task()
        else:
            self.work.append(task)

    def step(self) -> bool:
        """Do the oldest piece of work; False when there is none."""
        if not self.work:
            return False
        self.work.pop(0)()
        return True

    def kept(self, data: bytes) -> bytes:
        """What of a write that failed is in the file all the same."""
        return b""

    def _may_fail(self) -> None:
        if self.fail_writes is not None:
            raise OSError(self.fail_writes, errno.errorcode[self.fail_writes])

    def crash(self, rng: random.Random) -> None:
        """The machine loses power: unsynced writes survive in part, files whose names were never synced may vanish."""
        self.work.clear()
        for name in list(self.files):
            file = self.files[name]
            if not file.named_durably and rng.random() < 0.5:
                del self.files[name]
                continue
            file.durable, file.patches = file.patched(rng.randint(0, len(file.patches))), []
            kept = b"".join(file.unsynced)
            kept = kept[: rng.randint(0, len(kept))]
            file.durable, file.unsynced, file.named_durably = file.durable + kept, [], True


class _Handle:
    def __init__(self, disk: MemoryDisk, name: str) -> None:
        self._disk = disk
        self._name = name

    def write(self, data: bytes) -> None:
        unsynced = self._disk.files[self._name].unsynced
        try:
            self._disk._may_fail()
        except OSError:
            unsynced.append(self._disk.kept(data))
            raise
        unsynced.append(data)

    def sync(self) -> None:
        self._disk._may_fail()
        if self._disk.fail_syncs is not None:
            # As Linux does it: what could not be written is lost, and the next sync says that all is well.
            error, file = self._disk.fail_syncs, self._disk.files[self._name]
            file.durable, file.unsynced = file.durable + self._disk.kept(b"".join(file.unsynced)), []
            raise OSError(error, errno.errorcode[error])
        self._disk.syncs += 1
        file = self._disk.files[self._name]
        file.durable, file.unsynced = file.content, []

    def close(self) -> None:
        pass


class _Patch:
    def __init__(self, disk: MemoryDisk, name: str) -> None:
        self._disk = disk
        self._name = name

    def put(self, offset: int, data: bytes) -> None:
        self._disk._may_fail()
        file = self._disk.files[self._name]
        assert offset + len(data) <= len(file.durable)
        file.patches.append((offset, data))

    def sync(self) -> None:
        self._disk._may_fail()
        if self._disk.fail_syncs is not None:
            raise OSError(self._disk.fail_syncs, errno.errorcode[self._disk.fail_syncs])
        file = self._disk.files[self._name]
        file.durable, file.patches = file.content, []

    def close(self) -> None:
        pass

"""The one way to the disk: files in a directory, and a queue of work done off the event loop in order.

`Disk` is the real one. The simulation has its own with the same methods, where unsynced bytes can be lost.
"""

from __future__ import annotations

import asyncio
import errno
import os
import queue
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

T = TypeVar("T")


_OTHERS = 0o077
PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
"""Nobody but the node's own user has business in its files: they hold every job."""


class AppendFile(Protocol):
    """A file that only grows."""

    def write(self, data: bytes) -> None: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...


class PatchFile(Protocol):
    """A small file that is written in place, and does not grow."""

    def put(self, offset: int, data: bytes) -> None: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...


class Disk:
    """Files below one directory. Blocking calls, except `run`, which hands blocking work to a thread."""

    def __init__(self, directory: Path) -> None:
        """Files of a directory, which is made when it is missing, for this user alone. One that is there stays as it is."""
        self.directory = directory
        directory.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    # -- files -----------------------------------------------------------------------------------------------------

    def list(self) -> list[str]:
        """Names of the files, sorted."""
        return sorted(entry.name for entry in self.directory.iterdir() if entry.is_file())

    def read(self, name: str) -> bytes:
        """The whole file."""
        return (self.directory / name).read_bytes()

    def size(self, name: str) -> int:
        """Bytes in the file."""
        return (self.directory / name).stat().st_size

    def read_at(self, name: str, offset: int, count: int) -> bytes:
        """At most `count` bytes from `offset`."""
        with (self.directory / name).open("rb") as file:
            file.seek(offset)
            return file.read(count)

    def append(self, name: str) -> AppendFile:
        """Open for appending; created when missing."""
        return _RealFile(self.directory / name)

    def truncate(self, name: str, size: int) -> None:
        """Cut the file and sync it."""
        with (self.directory / name).open("r+b") as file:
            file.truncate(size)
            os.fsync(file.fileno())

    def write_atomic(self, name: str, data: bytes) -> None:
        """Replace a small file: after a crash it holds the old or the new content, whole."""
        temporary = self.directory / f"{name}.tmp"
        with private_file(temporary) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.directory / name)
        self.sync_directory()

    def patch(self, name: str) -> PatchFile:
        """Open for writing in place; it exists."""
        return _RealPatch(self.directory / name)

    def rename(self, old: str, new: str) -> None:
        """Rename and make the new name durable."""
        (self.directory / old).rename(self.directory / new)
        self.sync_directory()

    def remove(self, name: str) -> None:
        """Remove the file; missing is fine."""
        (self.directory / name).unlink(missing_ok=True)

    def sync_directory(self) -> None:
        """Make created, renamed and removed names durable."""
        handle = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def free_bytes(self) -> int:
        """Bytes that may still be written."""
        return shutil.disk_usage(self.directory).free

    # -- work off the loop -----------------------------------------------------------------------------------------

    def run(self, work: Callable[[], T], done: Callable[[T | None, Exception | None], None]) -> None:
        """Do `work` in the disk's thread, after all earlier work; then call `done` on the loop with its result or error.

        Nothing is done after `close`: the directory may be another process's by then.
        """
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="disk", daemon=True)
            self._thread.start()

        def task() -> None:
            result: Any = None
            error: Exception | None = None
            try:
                result = work()
            except Exception as caught:
                error = caught
            try:
                loop.call_soon_threadsafe(done, result, error)
            except RuntimeError:
                pass  # the loop is closed: nobody is left to be told

        self._work.put(task)

    def _serve(self) -> None:
        while (task := self._work.get()) is not None:
            task()

    def close(self, patience_s: float = 10.0) -> bool:
        """Finish the work handed over so far and end the thread; returns whether it did so in time.

        A thread that a disk holds up goes on as soon as that answers, so until then the directory must stay this process's.
        """
        self._closed = True
        thread, self._thread = self._thread, None
        if thread is None:
            return True
        self._work.put(None)
        thread.join(patience_s)
        return not thread.is_alive()


def private_file(path: Path) -> BinaryIO:
    """Open a new file for writing, in the place of one that is there; only this user may read it. Raises OSError."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE), "wb")


def make_private(directory: Path, owned: Callable[[str], object] = lambda name: True) -> str:
    """Take everybody else's rights to a directory and the files in it; returns what was not done, or nothing.

    owned: whether a name in it is one that a node makes. Where others are, the directory is left as it is. Earlier versions left
    it open to everybody who may enter the one above.
    """
    try:
        names = sorted(each.name for each in directory.iterdir())
        open_to = stat.S_IMODE(directory.stat().st_mode) & _OTHERS
        for path in (directory / name for name in names if owned(name)):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) & _OTHERS:
                path.chmod(PRIVATE_FILE)
        strange = [name for name in names if not owned(name)]
        if open_to and strange:
            return f"{directory} stays open to other users: it holds more than a node's files ({strange[0]})"
        if open_to:
            directory.chmod(PRIVATE_FOLDER)
    except OSError as error:
        return f"{error.filename or directory} stays open to other users: {error.strerror}"
    return ""


class _RealFile:
    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE_FILE)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.write(self._handle, view)
            if written == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            view = view[written:]

    def sync(self) -> None:
        os.fdatasync(self._handle)

    def close(self) -> None:
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)


class _RealPatch:
    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY)

    def put(self, offset: int, data: bytes) -> None:
        os.pwrite(self._handle, data, offset)

    def sync(self) -> None:
        os.fdatasync(self._handle)

    def close(self) -> None:
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

"""What this node can say of its disk: whether its log is being written, and how much room there is."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

if TYPE_CHECKING:
    from quorumq.node.node import Node

# With less room than this the next segment of the log, or a snapshot, may not fit.
FREE_BYTES_MIN = 64 << 20
CANNOT_WRITE = "the log cannot be written"
# The file system is asked for so long; after that it counts as one that does not answer.
PATIENCE_S = 2.0

T = TypeVar("T")


class DiskState(msgspec.Struct, frozen=True):
    """full: no room, or nearly.  error: why nothing can be written.  since_ms: when that was noticed."""

    full: bool
    error: str | None
    since_ms: int | None
    free_bytes: int | None
    log_bytes: int


class DiskWatch:
    """Looks at the disk when asked, and remembers since when something is wrong."""

    def __init__(self, data_path: Path) -> None:
        self._path = data_path
        self._since_ms: int | None = None
        self._under_way: dict[str, asyncio.Future[Any]] = {}

    async def _ask(self, name: str, question: Callable[[], T]) -> T | None:
        """Ask the file system; None when it does not answer in time.

        Each question is under way once at most, and in a thread that ends with the process: the file system may hang for ever.
        """
        answer = self._under_way.get(name)
        if answer is None:
            loop = asyncio.get_running_loop()
            answer = self._under_way[name] = loop.create_future()
            answer.add_done_callback(lambda done: self._under_way.pop(name, None))
            tell = answer.set_result

            def work() -> None:
                result = question()
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
                    loop.call_soon_threadsafe(tell, result)

            threading.Thread(target=work, name=name, daemon=True).start()
        done, _ = await asyncio.wait({answer}, timeout=PATIENCE_S)
        found: T | None = answer.result() if done else None
        return found

    async def look(self, node: Node) -> DiskState:
        """Return the state of the disk; free_bytes is None when the file system does not say."""
        free = await self._ask("free_bytes", self._free_bytes)
        status = node.status()
        error = status.ready_reason if status.ready_reason.startswith(CANNOT_WRITE) else None
        full = (error is not None and "No space" in error) or (free is not None and free < FREE_BYTES_MIN)
        if full and error is None:
            error = f"only {free} bytes are free"
        if error is None:
            self._since_ms = None
        elif self._since_ms is None:
            self._since_ms = status.write_failed_since_ms or time.time_ns() // 1_000_000
        return DiskState(full, error, self._since_ms, free, status.log_bytes)

    async def held_bytes(self) -> int | None:
        """Return how much room the node's folder takes, its log and its snapshots; None when the file system does not say."""
        return await self._ask("held_bytes", self._held_bytes)

    def _held_bytes(self) -> int:
        total = 0
        for path in self._path.rglob("*"):
            # A segment or a snapshot may be dropped meanwhile.
            with contextlib.suppress(OSError):
                total += path.stat().st_size if path.is_file() else 0
        return total

    def _free_bytes(self) -> int | None:
        path = self._path.absolute()
        for folder in (path, *path.parents):
            try:
                return shutil.disk_usage(folder).free
            except FileNotFoundError:
                continue
            except OSError:
                return None
        return None

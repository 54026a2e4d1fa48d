"""What this node can say of its disk: whether its log is being written, and how much room there is."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from node.node import Node

# With less room than this the next segment of the log, or a snapshot, may not fit.
FREE_BYTES_MIN = 64 << 20
CANNOT_WRITE = "the log cannot be written"


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

    async def look(self, node: Node) -> DiskState:
        """Return the state of the disk; asking the file system may take time, so it is done in a thread."""
        free = await asyncio.to_thread(self._free_bytes)
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

    async def held_bytes(self) -> int:
        """Return how much room the node's folder takes: its log and its snapshots."""
        return await asyncio.to_thread(self._held_bytes)

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

"""A node's data directory while the node runs: its disks, and the lock that keeps other processes out."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from quorumq.cluster.environment import NodeEnvironment

log = logging.getLogger("quorumq.cluster")

# How long the disk may take to finish at the end, and how long if it is known to hang.
_CLOSE_S, _CLOSE_HUNG_S = 10.0, 1.0


class Closes(Protocol):
    """A file that is open."""

    def close(self) -> None: ...


class Folder:
    """Takes the directory. Raises OSError when it is not to be had."""

    def __init__(self, directory: Path, around: NodeEnvironment) -> None:
        self.root = around.disk(directory)
        self._lock = around.lock(directory)
        self.log = around.disk(directory / "log")
        self.snapshots = around.disk(directory / "snapshots")
        try:
            around.make_private(directory)
        except BaseException:
            self.unlock()
            raise

    def close(self, files: Iterable[Closes], *, hung: bool) -> None:
        """Finish what is under way, close the files and let others have the directory; waits for the disk."""
        # A disk that hangs may do so for ever: the process is not to wait for it, and the folder stays locked as long as it lives.
        ends = time.monotonic() + (_CLOSE_HUNG_S if hung else _CLOSE_S)
        left = [
            disk for disk in (self.log, self.snapshots, self.root) if not disk.close(max(ends - time.monotonic(), 0.0))
        ]
        if not left:
            for file in files:
                file.close()
            self.unlock()
        else:
            log.error("the disk does not answer: what it was given last is left to it")

    def unlock(self) -> None:
        """Let others have the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

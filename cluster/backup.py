"""Images of the whole state that leave a cluster, and data directories of a new cluster made from one.

A backup is a file in the format of snapshots.py. What is restored is a cluster of its own: it has another id, derived from the
backup, so that nodes restored from different ones refuse each other; its members are those of its configuration; and it knows
nothing of batches that were under way.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from cluster import snapshots
from cluster.disk import Disk
from cluster.engine import Engine
from cluster.errors import ClusterError, LogDamaged
from cluster.identity import Identity
from cluster.replica import of_a_new_cluster
from cluster.snapshots import Head

_READ_BYTES = 256 << 10


class RestoreRefused(ClusterError):
    """The backup cannot be placed there; says why."""


class Backup:
    """An image on this node's disk, held open: it stays readable when newer ones have taken its place."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._handle = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._handle).st_size

    async def pieces(self) -> AsyncIterator[bytes]:
        """The file, read beside the event loop. Raises LogDamaged when it is shorter than it was."""
        offset = 0
        while offset < self.size:
            piece = await asyncio.to_thread(os.pread, self._handle, _READ_BYTES, offset)
            if not piece:
                raise LogDamaged(f"{self.name} ends at offset {offset} of {self.size}")
            offset += len(piece)
            yield piece

    def close(self) -> None:
        """Let go of the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


async def take(engine: Engine, timeout_s: float = 60.0) -> Backup:
    """Have an image written that holds everything this node has applied by now, unless one does already, and open it.

    The caller closes it. Raises Unavailable when it could not be written in time; the log says why.
    """
    return Backup(await engine.snapshot(timeout_s))


def restore(source: Path, data_dir: Path, node_id: str, cluster_name: str) -> Head:
    """Make the data directory of one node of a new cluster from a backup; every node of it needs one, from the same backup.

    Raises RestoreRefused when the directory holds something, LogDamaged when the backup is not sound, OSError when it cannot be
    written; then nothing is left behind, and it can be tried again.
    """
    if data_dir.exists() and any(data_dir.iterdir()):
        raise RestoreRefused(f"{data_dir} is not empty: a restored node begins with a directory of its own")
    if not source.is_file():
        raise RestoreRefused(f"{source} is not a file")
    reader = snapshots.Reader(Disk(source.parent), source.name)
    head = _of_a_new_cluster(reader.head, _cluster_id(source, cluster_name))
    try:
        snapshots.write(Disk(data_dir / "snapshots"), "writing.part", head, reader.pieces(), lambda: None)
        # Last, because a directory without it belongs to a node that has promised nothing and must not vote.
        Identity(1, node_id, cluster_name, "", True).store(Disk(data_dir))
    except BaseException:
        for left in data_dir.iterdir() if data_dir.is_dir() else ():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        raise
    return head


def _cluster_id(source: Path, cluster_name: str) -> str:
    with source.open("rb") as file:
        content = hashlib.file_digest(file, "blake2b").digest()
    return hashlib.blake2b(content + cluster_name.encode(), digest_size=16).hexdigest()


def _of_a_new_cluster(head: Head, cluster_id: str) -> Head:
    """The same state at the same index, but of nobody: terms begin anew, and so do members and sessions."""
    return Head(head.version, head.index, 0, of_a_new_cluster(head.replica, cluster_id))

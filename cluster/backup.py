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
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from quorumq.cluster import held, snapshots
from quorumq.cluster.disk import Disk
from quorumq.cluster.engine import Engine
from quorumq.cluster.errors import ClusterError, LogDamaged
from quorumq.cluster.identity import Identity
from quorumq.cluster.replica import of_a_new_cluster, times_of
from quorumq.cluster.snapshots import Head

_READ_BYTES = 256 << 10


AHEAD_MS = 60_000
"""An image whose clock is further than this ahead of what wall clocks said has a time that is not to be taken over."""

Rewind = Callable[[Iterable[bytes], int], Iterator[bytes]]
"""Sets the clock of the state machine's image back to a time in milliseconds since the epoch (node/rewinding.py)."""


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


def begins_at(source: Path, wall_ms: int, at_ms: int | None = None) -> int | None:
    """The time at which a cluster made from a backup has to begin, or None for the backup's own. None of the future is taken over.

    It must be the same for every node, so only the backup itself decides, or whoever restores it (at_ms); this machine's clock
    (wall_ms) only refuses what is not decided. Raises RestoreRefused, LogDamaged.
    """
    if not source.is_file():
        raise RestoreRefused(f"{source} is not a file")
    now_ms, taken_ms = times_of(snapshots.SnapshotReader(Disk(source.parent), source.name).head.replica)
    if at_ms is not None:
        return at_ms if at_ms < now_ms else None
    if taken_ms:
        return taken_ms if now_ms - taken_ms > AHEAD_MS else None
    if now_ms - wall_ms > AHEAD_MS:
        raise RestoreRefused(
            f"the time in this backup is {_shown(now_ms)}, {(now_ms - wall_ms) // 1000:,} s ahead of this machine's clock, and it "
            "does not say what a majority's clocks said: put this clock right, or give --at, the same for every node"
        )
    return None


def _shown(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")


def restore(
    source: Path,
    data_dir: Path,
    node_id: str,
    cluster_name: str,
    *,
    at_ms: int | None = None,
    rewind: Rewind | None = None,
) -> Head:
    """Make the data directory of one node of a new cluster from a backup; every node of it needs one, from the same backup.

    at_ms, rewind: move its time back, see `begins_at`. Nodes whose times differ are not of one cluster.

    Raises RestoreRefused when the directory holds something, LogDamaged when the backup is not sound, OSError when it cannot be
    written; then nothing is left behind, and it can be tried again.
    """
    if data_dir.exists() and any(data_dir.iterdir()):
        raise RestoreRefused(f"{data_dir} is not empty: a restored node begins with a directory of its own")
    if not source.is_file():
        raise RestoreRefused(f"{source} is not a file")
    reader = snapshots.SnapshotReader(Disk(source.parent), source.name)
    pieces = reader.pieces() if at_ms is None or rewind is None else rewind(reader.pieces(), at_ms)
    head = _of_a_new_cluster(reader.head, _cluster_id(source, cluster_name, at_ms), at_ms)
    root = Disk(data_dir)
    try:
        snapshots.write(Disk(data_dir / "snapshots"), "writing.part", head, pieces, lambda: None)
        root.write_atomic(held.FILE, held.encode(held.HighWaterMark(snapshot=head.index)))
        # Last, because a directory without it belongs to a node that has promised nothing and must not vote.
        Identity(1, node_id, cluster_name, "", True, noted=True).store(root)
    except BaseException:
        for left in data_dir.iterdir() if data_dir.is_dir() else ():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        raise
    return head


def _cluster_id(source: Path, cluster_name: str, at_ms: int | None) -> str:
    with source.open("rb") as file:
        content = hashlib.file_digest(file, "blake2b").digest()
    told = cluster_name if at_ms is None else f"{cluster_name} at {at_ms}"
    return hashlib.blake2b(content + told.encode(), digest_size=16).hexdigest()


def _of_a_new_cluster(head: Head, cluster_id: str, latest_ms: int | None) -> Head:
    """The same state at the same index, but of nobody: terms begin anew, and so do members and sessions."""
    return Head(head.version, head.index, 0, of_a_new_cluster(head.replica, cluster_id, latest_ms=latest_ms))

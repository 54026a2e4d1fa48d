"""What the disk holds at the start: the newest sound snapshot, and the log behind it, brought together by index and term.

Nothing above the snapshot is dropped (finding 3), and what cannot be trusted refuses the start with file and reason. A log that
may be shorter than it was is taken as it is, and its node begins on probation (identity.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import msgspec

from quorumq.cluster import snapshots
from quorumq.cluster.config import ClusterConfig
from quorumq.cluster.errors import LogDamaged
from quorumq.cluster.held import HeldFile
from quorumq.cluster.log import Log, LogDisk
from quorumq.cluster.replica import Replica

log = logging.getLogger("quorumq.cluster")


def recover(
    config: ClusterConfig,
    log_disk: LogDisk,
    snapshot_disk: snapshots.SnapshotDisk,
    replica: Replica,
    witness: HeldFile | None = None,
    lacking: Callable[[Log, int], str] = lambda journal, snapshot: "",
    doubted: Callable[[str, Log], None] = lambda why, journal: None,
) -> tuple[Log, str, int]:
    """Restore `replica` from the newest sound snapshot; returns the log behind it, and that snapshot's name and index.

    Without a snapshot the name is empty and the index 1, that of the entry before every log.
    lacking: what log and snapshot, by its index, lack of what the directory has held.  doubted: called with what may be missing that
    was promised, before anything on the disk is changed; it makes sure that the node is not trusted with it, or raises.

    Raises LogDamaged when entries are missing between the two, or the log cannot be trusted.
    """
    name, head = newest_sound(snapshot_disk, replica)
    journal = Log(log_disk, config.segment_bytes, witness, settle=False)
    if why := lacking(journal, 0 if head is None else head.index) or journal.doubt:
        doubted(why, journal)
    journal.settle()
    if head is None:
        if journal.base_index > 1:
            raise LogDamaged(f"the log begins after entry {journal.base_index}, and no snapshot holds what came before")
        return journal, "", 1
    held = journal.term_at(head.index)
    if held is None and journal.base_index > head.index:
        raise LogDamaged(
            f"the log begins after entry {journal.base_index}, the newest sound snapshot ends at {head.index}"
        )
    if held is None or held not in (head.term, -1):
        journal.reset(head.index, head.term)
    journal.setRaftCommitIndex(head.index)
    journal.compact(journal.before_tail(head.index, config.tail_entries, config.tail_bytes))
    return journal, name, head.index


def newest_sound(disk: snapshots.SnapshotDisk, replica: Replica) -> tuple[str, snapshots.Head | None]:
    """Restore `replica` from the newest sound snapshot; returns its name and head, or an empty name and None."""
    for name in snapshots.newest(disk):
        began = time.monotonic()
        try:
            reader = snapshots.SnapshotReader(disk, name)
            replica.restore(reader.head.replica, reader.pieces())
        except (LogDamaged, msgspec.MsgspecError, ValueError) as error:
            log.error("snapshot %s cannot be used: %s", name, error)
            continue
        log.info("restored entry %d from %s in %.1f s", reader.head.index, name, time.monotonic() - began)
        return name, reader.head
    return "", None

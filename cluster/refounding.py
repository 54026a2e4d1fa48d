"""A new cluster from what one stopped node still holds: after a lost majority, or when the old one can go on no more.

Everything in the newest snapshot and the log behind it is taken, also what is not known to be committed: of an entry that was
acknowledged this node need not have heard the end. What was there is set aside beside the new files, and never removed here.
"""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from quorumq.cluster import held, identity, log, messages, recovery, snapshots
from quorumq.cluster.disk import PRIVATE_FOLDER, Disk
from quorumq.cluster.errors import ClusterError, LogDamaged
from quorumq.cluster.identity import REFOUNDING, Identity
from quorumq.cluster.membership import Membership, Seat, decode
from quorumq.cluster.replica import Replica, StateMachine, of_a_new_cluster
from quorumq.cluster.snapshots import Head

_log = logging.getLogger("quorumq.cluster")

_PARTS = ("log", "snapshots", held.FILE, "identity.json")

Rewind = Callable[[Iterable[bytes], int], Iterator[bytes]]
"""Sets the clock of the state machine's image back to a time in milliseconds since the epoch, unless it is earlier."""


class RefoundingRefused(ClusterError):
    """No new cluster can be made there; says why."""


class Survivor(msgspec.Struct):
    """What the data directory of a stopped node holds, after all of it was applied.

    snapshot_index: 0 without a snapshot.  last_index: of the last entry.  committed: how many of them are known to be, at least.
    now_ms: of the log's clock.  members: of the old cluster, by id.  lacks: what the directory once held and lacks now, in words.
    """

    identity: Identity
    cluster_id: str
    snapshot_index: int
    last_index: int
    committed: int
    term: int
    now_ms: int
    members: dict[str, Seat]
    replica: Replica
    lacks: str

    def seats(self, given: dict[str, str]) -> Membership:
        """The members of the new cluster: this node votes, others (addresses by id) learn from it first.

        Raises RefoundingRefused when nobody says where this node is.
        """
        node = self.identity.node_id
        if node not in given and node not in self.members:
            raise RefoundingRefused(f"the log does not say at which address {node} is: name it, as {node}=host:port")
        own = {node: given.get(node) or self.members[node].address}
        return Membership({each: Seat(address, each == node) for each, address in (own | given).items()})


def interrupted(data_dir: Path) -> bool:
    """Whether an earlier attempt did not come to its end there; `undo` takes it back."""
    return (data_dir / REFOUNDING).exists()


def read(data_dir: Path, machine: StateMachine) -> Survivor:
    """Read what is there into `machine`, and change nothing.

    Raises RefoundingRefused when it is no node's directory, LogDamaged when it cannot be trusted, OSError.
    """
    if not (data_dir / "identity.json").is_file():
        raise RefoundingRefused(f"{data_dir} holds no identity.json: it is not a node's data directory")
    mine = identity.read(Disk(data_dir))
    if mine.lone:
        raise RefoundingRefused(f"{data_dir} was begun with CLOCK=clients, for tests: no cluster can be made of it")
    replica = Replica(machine, lambda batch, outcome: None)
    head = None
    if (data_dir / "snapshots").is_dir():
        _, head = recovery.newest_sound(Disk(data_dir / "snapshots"), replica)
    index = head.index if head is not None else 1
    last, committed, term = index, index, head.term if head is not None else 0
    journal = log.read_only(Disk(data_dir / "log") if (data_dir / "log").is_dir() else None)
    lacks = journal.doubt or held.lacking(
        Disk(data_dir), mine, journal, head.index if head is not None else 0, alone=mine.noted
    )
    if journal.segments:
        _apply(journal, head, replica)
        last = max(index, _last(journal, head))
        committed, term = max(index, min(journal.commit, last)), max(journal.term, journal.last_term)
    if last <= 1:
        raise RefoundingRefused(f"{data_dir} holds no entries: there is nothing to make a cluster of")
    members = decode(replica.membership).seats if replica.membership else {}
    return Survivor(
        mine,
        replica.cluster_id or mine.cluster_id,
        head.index if head is not None else 0,
        last,
        committed,
        term,
        replica.now_ms,
        members,
        replica,
        lacks,
    )


def _last(journal: log.Log, head: Head | None) -> int:
    """The last entry that `_apply` applies."""
    return journal.last_index if _continues(journal, head) else 0


def _continues(journal: log.Log, head: Head | None) -> bool:
    """Whether the log goes on where the snapshot ends. One that contradicts it, or ends before, is void, as at a start."""
    return head is None or journal.term_at(head.index) in (head.term, -1)


def _apply(journal: log.Log, head: Head | None, replica: Replica) -> None:
    index = head.index if head is not None else 1
    if journal.base_index > index:
        raise LogDamaged(
            f"the log begins after entry {journal.base_index}, and no sound snapshot holds what came before"
        )
    if not _continues(journal, head):
        return
    for command, at, _ in journal.entries_from(index + 1, None, None):
        payload = messages.replicated(command)
        if payload is not None:
            replica.apply(at, payload)


def found(
    survivor: Survivor, data_dir: Path, membership: Membership, latest_ms: int, rewind: Rewind, aside: str
) -> Head:
    """Make the directory that of the first node of a new cluster with that state; returns the head of its snapshot.

    latest_ms: the clock of the state is not later than that, in milliseconds since the epoch.  aside: the folder, new, in the
    directory, into which everything goes that was there. The caller holds the directory's lock.

    Terms begin anew, and so do sessions. Raises OSError when it cannot be written; then everything is as it was, or `undo` makes
    it so.
    """
    root = Disk(data_dir)
    root.write_atomic(REFOUNDING, aside.encode())
    try:
        (data_dir / aside).mkdir(PRIVATE_FOLDER)
        for part in _PARTS:
            if (data_dir / part).exists():
                (data_dir / part).rename(data_dir / aside / part)
        Disk(data_dir / aside).sync_directory()
        root.sync_directory()
        replica, mine = survivor.replica, survivor.identity
        head = Head(
            1,
            survivor.last_index,
            0,
            of_a_new_cluster(replica.head(), secrets.token_hex(16), membership.encode(), latest_ms),
        )
        pieces = rewind(replica.machine.image(), latest_ms)
        snapshots.write(Disk(data_dir / "snapshots"), "writing.part", head, pieces, lambda: None)
        root.write_atomic(held.FILE, held.encode(held.HighWaterMark(snapshot=head.index)))
        Identity(1, mine.node_id, mine.cluster_name, "", True, noted=True).store(root)
    except BaseException:
        undo(data_dir)
        raise
    root.remove(REFOUNDING)
    root.sync_directory()
    return head


def undo(data_dir: Path) -> None:
    """Put everything back as it was before an attempt that did not come to its end. Raises OSError."""
    root = Disk(data_dir)
    aside = data_dir / root.read(REFOUNDING).decode()
    for part in _PARTS:
        if (aside / part).exists():
            made = data_dir / part
            if made.is_dir():
                shutil.rmtree(made)
            else:
                made.unlink(missing_ok=True)
            (aside / part).rename(made)
    if aside.is_dir():
        aside.rmdir()
    root.sync_directory()
    root.remove(REFOUNDING)
    root.sync_directory()
    _log.warning("what an attempt to recover had begun in %s is undone", data_dir)

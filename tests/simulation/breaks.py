"""Each protection of cluster/ switched off, to show that the simulation notices: a simulator that cannot fail proves nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from cluster import log as log_module
from cluster import recovery
from cluster.config import ClusterConfig
from cluster.engine import Engine
from cluster.log import Log
from cluster.raft import Raft, _Outbox
from cluster.reads import Rounds
from cluster.replica import Replica


def conflict_only_truncation() -> Any:
    """As shipped: every append_entries cuts the log behind its previous index."""
    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.object(Raft, "_skip_known", lambda self, node, message: True))
    original = Raft._on_append_entries

    def always(self: Raft, node: Any, message: Any) -> None:
        original(self, node, message)

    def delete(self: Raft, index: int) -> None:
        super(Raft, self)._SyncObj__deleteEntriesFrom(index)

    stack.enter_context(mock.patch.object(Raft, "_on_append_entries", always))
    stack.enter_context(mock.patch.object(Raft, "_SyncObj__deleteEntriesFrom", delete))
    return stack


def durable_ack() -> Any:
    """Followers acknowledge, and vote, before anything is on disk."""

    def send(self: Any, node: Any, message: Any) -> bool:
        if message["type"] == "next_node_idx":
            message["term"] = self._raft.term
        if message["type"] == "request_vote":
            message["transfer"] = self._raft.transfer_election
        return bool(self._raft.links.send(node.id, message))

    return mock.patch.object(_Outbox, "send", send)


def leader_durability() -> Any:
    """The leader counts itself before its own copy is on disk."""

    def count(self: Raft, node: Any, acked: int) -> None:
        match = self._SyncObj__raftMatchIndex
        if node in match:
            match[node] = max(match[node], acked)

    return mock.patch.object(Raft, "_count", count)


def vote_durability() -> Any:
    """Term and vote are kept in memory only."""

    def forget(self: Log, term: int, votedForNodeId: str | None) -> None:
        self.term, self.voted_for = term, votedForNodeId

    return mock.patch.object(Log, "setCurrentTerm", forget)


def log_checksum() -> Any:
    """Records are believed whatever their checksum says."""

    def believe(data: bytes, offset: int) -> tuple[int, bytes, int] | None:
        header = log_module._HEADER
        if offset + header.size > len(data):
            return None
        length, _, kind = header.unpack_from(data, offset)
        end = offset + header.size + length
        return (kind, data[offset + header.size : end], end) if end <= len(data) else None

    return mock.patch.object(log_module, "read_record", believe)


def snapshot_log_reconcile() -> Any:
    """As shipped: the log is cleared when it does not begin where the snapshot ends (finding 3)."""
    original = recovery.recover

    def clear(config: ClusterConfig, log_disk: Any, snapshot_disk: Any, replica: Replica) -> tuple[Log, str, int]:
        journal, name, index = original(config, log_disk, snapshot_disk, replica)
        if name and journal.base_index != index:
            journal.reset(index, journal.term_at(index) or 0)
        return journal, name, index

    return mock.patch.object(recovery, "recover", clear)


def exactly_once() -> Any:
    """A batch that arrives again is applied again."""
    original = Replica.__init__

    def init(self: Replica, *args: Any) -> None:
        original(self, *args)
        self.exactly_once = False

    return mock.patch.object(Replica, "__init__", init)


def read_quorum() -> Any:
    """A leader answers reads without asking whether it still leads."""
    original = Rounds.drive

    def drive(self: Rounds, *, leads: bool, ready: bool, commit_index: int, quorum: int, now: float) -> None:
        original(self, leads=leads, ready=True, commit_index=commit_index, quorum=1, now=now)

    return mock.patch.object(Rounds, "drive", drive)


def wiped_vote() -> Any:
    """A node with an empty disk votes at once."""

    def whole_at_once(self: Engine) -> bool:
        self._identity.held.whole = True
        return False

    return mock.patch.object(Engine, "_probation_needed", whole_at_once)


BREAKS: dict[str, Callable[[], Any]] = {
    "conflict-only-truncation": conflict_only_truncation,
    "durable-ack": durable_ack,
    "leader-durability": leader_durability,
    "vote-durability": vote_durability,
    "log-checksum": log_checksum,
    "snapshot-log-reconcile": snapshot_log_reconcile,
    "exactly-once": exactly_once,
    "read-quorum": read_quorum,
    "wiped-vote": wiped_vote,
}


@contextlib.contextmanager
def broken(name: str | None) -> Iterator[None]:
    """Run with one protection off, or with all on."""
    if name is None:
        yield
    else:
        with BREAKS[name]():
            yield

"""Each protection of cluster/ switched off, to show that the simulation notices: a simulator that cannot fail proves nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from quorumq.cluster import held, recovery
from quorumq.cluster import log as log_module
from quorumq.cluster import raft as raft_module
from quorumq.cluster.agreement import Agreement
from quorumq.cluster.config import ClusterConfig
from quorumq.cluster.engine import Engine
from quorumq.cluster.exchange import Exchange
from quorumq.cluster.identity import Probation
from quorumq.cluster.log import Log
from quorumq.cluster.logclock import Bounds, LogClock
from quorumq.cluster.outbox import Outbox
from quorumq.cluster.raft import Raft
from quorumq.cluster.reads import Rounds
from quorumq.cluster.replica import Replica
from quorumq.cluster.routes import Routes
from quorumq.cluster.snapshotting import Snapshotting
from quorumq.cluster.vitals import Vitals
from quorumq.node.machine import contents
from quorumq.node.machine.lifecycle.bullmq import running
from quorumq.node.machine.state.bullmq.sessions import Session, Sessions
from quorumq.node.machine.state.digests import START
from quorumq.node.machine.state.job import ACTIVE


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

    return mock.patch.object(Outbox, "send", send)


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

    def clear(
        config: ClusterConfig, log_disk: Any, snapshot_disk: Any, replica: Replica, *noticing: Any
    ) -> tuple[Log, str, int]:
        journal, name, index = original(config, log_disk, snapshot_disk, replica, *noticing)
        if name and journal.base_index != index:
            journal.reset(index, journal.term_at(index) or 0)
        return journal, name, index

    return mock.patch.object(recovery, "recover", clear)


def call_once() -> Any:
    """What a call of a session was answered is not kept."""

    def forget(self: Any, session: Any, number: int, answer: Any) -> None:
        return None

    return mock.patch.object(Sessions, "keep", forget)


def call_floor() -> Any:
    """A call that was acknowledged is made again when it comes late."""

    def find(self: Any, number: int) -> Any:
        return self.answers.get(number)

    return mock.patch.object(Session, "find", find)


def strict_locks() -> Any:
    """A lock of a worker over the backend protocol that ran out ends a run all the same, as long as nobody else took the job."""

    def holds(state: Any, job: Any, token: str) -> bool:
        return bool(job.state == ACTIVE and job.token == token)

    return mock.patch.object(running, "holds", holds)


def kept_locks() -> Any:
    """A check of stalls puts back what is locked, too."""
    return mock.patch.object(running, "is_locked", lambda state, job: False)


def two_checks() -> Any:
    """The first check of stalls puts a job back."""
    original = running.check_stalled

    def check(state: Any, name: str, most: int, interval_ms: int) -> Any:
        facts = state.bullmq.facts.of(name)
        facts.marked_fence, facts.marked_at = state.fence, state.now_ms
        return original(state, name, most, interval_ms)

    return mock.patch.object(running, "check_stalled", check)


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


def contents_digest() -> Any:
    """What the state holds is in no digest, as before level 1: only entries and what their operations were answered."""

    def nothing(state: Any, place: Any) -> tuple[bytes, Any]:
        return b"", START

    return mock.patch.object(contents, "read", nothing)


def agreement() -> Any:
    """Members tell each other their digests, and nobody compares them."""
    return mock.patch.object(Agreement, "_judge", lambda self, index: None)


def apart_serves() -> Any:
    """A node that differs from the majority says so, and stays a leader that writes snapshots."""
    return mock.patch.object(Agreement, "_conclude", lambda self, trusted, index: None)


def probation_acks() -> Any:
    """What a node on probation acknowledges counts."""
    return mock.patch.object(Raft, "discount", lambda self, peer: None)


def probation_reads() -> Any:
    """A node on probation confirms a leader."""

    def confirm(self: Exchange, peer: str, message: Any) -> None:
        if message["term"] == self._raft.term and self._raft.leader == peer:
            self._routes.send(peer, {"type": "round_ok", "term": message["term"], "number": message["number"]})

    return mock.patch.object(Exchange, "on_round", confirm)


def probation_terms() -> Any:
    """Any leader will do to end a probation, also one that was deposed."""
    return mock.patch.object(Probation, "term", lambda self, peers: 0)


def probation_durability() -> Any:
    """A probation ends before what was caught up with is on disk."""

    def ends_at(self: Probation) -> int | None:
        return self.__dict__.get("ends_at")

    def learnt(self: Probation, position: int | None) -> None:
        self.__dict__["ends_at"] = None if position is None else 0

    return mock.patch.object(Probation, "ends_at", property(ends_at, learnt), create=True)


def damage_is_torn() -> Any:
    """A last group that is whole and wrong is taken for a torn write."""
    return mock.patch.object(log_module, "_is_torn", lambda data, offset, reach: True)


def held_note() -> Any:
    """Nothing beside the log says how far it reached."""
    return mock.patch.object(held, "lacking", lambda *args, **options: "")


def unwritten_bound() -> Any:
    """A follower takes entries however many it has that it cannot write."""
    return mock.patch.object(Raft, "_takes_entries", lambda self: True)


def log_clock() -> Any:
    """Entries are stamped with the leader's wall clock, and timers go by it."""

    def wall(self: Engine) -> int:
        return max(self._around.wall_ms(), self._replica.now_ms)

    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.object(Engine, "_now_ms", wall))
    stack.enter_context(mock.patch.object(Engine, "now_ms", wall))
    return stack


def majority_clock() -> Any:
    """A leader's own wall clock steers the log's clock, and sets it after a start."""

    def own(self: Vitals, now: float) -> Bounds:
        return Bounds(self._wall_ms(), self._wall_ms(), True)

    return mock.patch.object(Vitals, "_bounds", own)


def clock_slew() -> Any:
    """The log's clock is always what the majority's clocks say, at once."""
    original = LogClock.lead

    def lead(self: LogClock, walls: Bounds | None, now: float) -> None:
        self.settled = self.settled and walls is None
        original(self, walls, now)

    return mock.patch.object(LogClock, "lead", lead)


def clock_goes_on() -> Any:
    """A new leader does not go on from the clock of the one before: it begins with what the majority's clocks say."""
    original = LogClock.follow

    def follow(self: LogClock, now: float) -> None:
        original(self, now)
        self.settled = False

    return mock.patch.object(LogClock, "follow", follow)


def hung_disk() -> Any:
    """A leader goes on leading whose disk hangs without an error."""
    return mock.patch.object(Vitals, "could_go_on", lambda self: False)


def relay() -> Any:
    """A node whose link to another one is cut has no way round it."""
    return mock.patch.object(Routes, "drive", lambda self, now: None)


def relay_token() -> Any:
    """What comes by a route is believed, whichever process of its sender sent it."""
    original = Routes._on_relay

    def believe(self: Routes, sender: str, origin: str, message: Any) -> None:
        self._granted[origin] = message["token"]
        original(self, sender, origin, message)

    return mock.patch.object(Routes, "_on_relay", believe)


@contextlib.contextmanager
def hung_votes() -> Iterator[None]:
    """A node whose disk hangs stands for election, and encourages others to, also while a vote of its own waits for the disk."""
    original = Engine._vote_or_not

    def vote(self: Engine) -> None:
        hung, self._disk.hung = self._disk.hung, False
        original(self)
        self._disk.hung = hung

    with (
        mock.patch.object(Engine, "_vote_or_not", vote),
        mock.patch.object(Outbox, "elects", property(lambda _: False)),
    ):
        yield


def any_leader_round() -> Any:
    """A node confirms the round of whoever asks, whether it follows that leader or a later one."""

    def confirm(self: Exchange, peer: str, message: Any) -> None:
        self._routes.send(peer, {"type": "round_ok", "term": message["term"], "number": message["number"]})

    return mock.patch.object(Exchange, "on_round", confirm)


def change_before_own_term() -> Any:
    """A new leader changes the members before it has committed an entry of its own term."""

    def settled(self: Raft) -> bool:
        entries = self.journal.memberships
        return self.is_leader and (not entries or entries[-1][1] <= self.applied_index)

    return mock.patch.object(Raft, "membership_settled", property(settled))


def two_changes() -> Any:
    """A change of the members does not wait for the one before it."""
    return mock.patch.object(Raft, "membership_settled", property(lambda self: self.committed_own_term))


def wiped_old_term() -> Any:
    """A node whose probation has ended votes in a term in which it may have voted before."""
    return mock.patch.object(Raft, "forbid_votes", lambda self, term: None)


def snapshot_term() -> Any:
    """A snapshot is named with the present term, and not with that of its last entry."""
    original = Snapshotting._write

    class Present:
        def __init__(self, journal: Log) -> None:
            self._journal = journal

        def __getattr__(self, name: str) -> Any:
            return getattr(self._journal, name)

        def term_at(self, index: int) -> int:
            return self._journal.term

    def write(self: Snapshotting, **options: Any) -> None:
        journal = self._log
        self._log = Present(journal)  # type: ignore[assignment]
        try:
            original(self, **options)
        finally:
            self._log = journal

    return mock.patch.object(Snapshotting, "_write", write)


def install_keeps_log() -> Any:
    """An installed snapshot leaves a log as it is that holds another entry in that place, or ends before it."""
    original = Raft.install

    def install(self: Raft, index: int, term: int, membership: bytes) -> None:
        journal = self.journal
        if journal.last_index < index:
            original(self, index, term, membership)
        else:
            with mock.patch.object(journal, "reset", lambda index, term: None):
                original(self, index, term, membership)

    return mock.patch.object(Raft, "install", install)


def stranger_votes() -> Any:
    """The votes of machines that are no members count."""

    def take(self: Raft, node: Any, message: Any) -> None:
        if message["term"] == self.term and node.id not in self._voters:
            self._voters.add(node.id)
            self._to_engine(node, message)

    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.object(Raft, "_on_response_vote", take))
    stack.enter_context(mock.patch.object(raft_module, "_FROM_ANYBODY", raft_module._FROM_ANYBODY | {"response_vote"}))
    return stack


def contradiction_stands() -> Any:
    """A follower that asked for entries from a contradiction on is sent what lies behind, because it also told where its log ends."""
    original = Raft._on_next_node_idx

    def follow(self: Raft, node: Any, message: Any) -> None:
        original(self, node, message)
        asked = not message["success"] and message["reset"] and self.is_leader and message["term"] == self.term
        if asked and 1 <= message["next_node_idx"] <= self.journal.last_index + 1:
            self._SyncObj__raftNextIndex[node] = message["next_node_idx"]

    return mock.patch.object(Raft, "_on_next_node_idx", follow)


BREAKS: dict[str, Callable[[], Any]] = {
    "call-floor": call_floor,
    "call-once": call_once,
    "conflict-only-truncation": conflict_only_truncation,
    "durable-ack": durable_ack,
    "leader-durability": leader_durability,
    "vote-durability": vote_durability,
    "log-checksum": log_checksum,
    "snapshot-log-reconcile": snapshot_log_reconcile,
    "strict-locks": strict_locks,
    "kept-locks": kept_locks,
    "two-checks": two_checks,
    "exactly-once": exactly_once,
    "read-quorum": read_quorum,
    "wiped-vote": wiped_vote,
    "contents-digest": contents_digest,
    "agreement": agreement,
    "apart-serves": apart_serves,
    "probation-acks": probation_acks,
    "probation-reads": probation_reads,
    "probation-terms": probation_terms,
    "probation-durability": probation_durability,
    "damage-is-torn": damage_is_torn,
    "held-note": held_note,
    "unwritten-bound": unwritten_bound,
    "log-clock": log_clock,
    "majority-clock": majority_clock,
    "clock-slew": clock_slew,
    "clock-goes-on": clock_goes_on,
    "hung-disk": hung_disk,
    "hung-votes": hung_votes,
    "relay": relay,
    "relay-token": relay_token,
    "any-leader-round": any_leader_round,
    "change-before-own-term": change_before_own_term,
    "two-changes": two_changes,
    "wiped-old-term": wiped_old_term,
    "snapshot-term": snapshot_term,
    "install-keeps-log": install_keeps_log,
    "stranger-votes": stranger_votes,
    "contradiction-stands": contradiction_stands,
}

BY_SCENARIO = frozenset(
    {
        "probation-acks",
        "probation-reads",
        "probation-terms",
        "probation-durability",
        "unwritten-bound",
        "hung-disk",
        "contradiction-stands",
        "relay",
        "relay-token",
    }
)
"""Those whose absence shows only when several things come together, in a scenario each (contradiction-stands: in test_raft.py)."""


@contextlib.contextmanager
def broken(name: str | None) -> Iterator[None]:
    """Run with one protection off, or with all on."""
    if name is None:
        yield
    else:
        with BREAKS[name]():
            yield

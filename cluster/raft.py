"""The engine: PySyncObj's Raft, with what it lacks put around it. Only it, outbox.py and seams.py touch its inside.

PySyncObj decides elections, replication and commitment. Here messages are checked before it sees them (duplicates, conflicts, stale
terms, votes against a live leader), and held back after it sent them until what they promise is durable (outbox.py). The overridden
names are pinned by tests/consensus/test_seams.py. What it replicates, who waits for it and where files live is not known here.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

from pysyncobj import SyncObj, SyncObjConf, replicated
from pysyncobj.node import Node

from quorumq.cluster import replica
from quorumq.cluster.config import ClusterConfig
from quorumq.cluster.election_log import ElectionLog
from quorumq.cluster.frames import Message
from quorumq.cluster.log import MEMBERSHIP, Entry, Log
from quorumq.cluster.membership import Membership, configured, decode
from quorumq.cluster.outbox import Outbox, PeerLinks
from quorumq.cluster.seams import Clock, Peer

log = logging.getLogger("quorumq.raft")

FOLLOWER, CANDIDATE, LEADER = 0, 1, 2
ROLES = ("follower", "candidate", "leader")

_FROM_ANYBODY = frozenset({"append_entries", "request_vote", "pre_vote", "stale_term", "stepped_down", "timeout_now"})
_NEVER = 10**9
# After the leader's connection was reset: when to stand first, and how long to wait for a result before standing again.
_RESET_S = (0.01, 0.1)
_RETRY_S = (0.12, 0.3)
# Two nodes that ask for pre-votes at once would both stand and split the vote: for this long the lower id has the right of way.
_RIGHT_OF_WAY_S = 0.06
# Longest election timeouts without a leader after which a node stands that otherwise leaves that to others.
_ABANDONED_TIMEOUTS = 10


class Raft(SyncObj):  # type: ignore[misc]
    """One member. Everything happens in `tick` and `receive`, on one thread, at the time that `Clock` tells."""

    def __init__(
        self,
        config: ClusterConfig,
        journal: Log,
        links: PeerLinks,
        *,
        applied_index: int,
        membership: bytes,
        apply: Callable[[int, bytes], None],
        wanted_snapshot: Callable[[str], None],
        role_changed: Callable[[int, int], None],
    ) -> None:
        self.journal = journal
        self.links = links
        self.transfer_election = False
        self._config = config
        self._apply_entry = apply
        self._acked: dict[Node, int] = {}
        self._discounted: set[Node] = set()
        self._voters: set[str] = set()
        self._heard_leader_at = float("-inf")
        self._led_at = float("-inf")
        self._leader_reset = False
        self._leader_commit: int | None = None
        self._prevotes: set[str] | None = None
        self._prevote_at = float("-inf")
        self._election_log = ElectionLog()
        self._congested: set[str] = set()
        self._conflict = False
        self._beyond: list[Node] = []
        self._base = membership
        self._in_force: tuple[bytes, Entry | None] | None = None
        self._configured = configured({} if config.discover else config.peers)
        self.membership: Membership = self._configured
        self.may_vote = True
        """False while this node must not vote nor lead: it may have lost what it promised."""
        self.stands_last = False
        """While true this node stands only when nobody else has led for long: its state is not to be trusted, its log is."""
        self.whole = True
        """False during probation: what this node acknowledges then tells the leader how far it is, and counts for nothing."""
        self.verified_term = 0
        """The highest term whose leader has confirmed since the start that this log reaches its commit index, 0 before one has.

        Only a commit index of the leader's own term tells what is committed: before that it may be behind.
        """
        self.elections = 0
        self.answer_again_s = config.heartbeat_ms / 2000
        self.full = False
        """Whether too much waits for this node's disk: it follows its leader, and takes no entries."""
        self.entries_refused = 0
        """Messages of a leader that were passed over because of that."""
        # Through the instance, so that the engine's construction already finds the right transport.
        super().__init__(
            Peer(config.node_id),
            [Peer(peer) for peer in self._configured.voters if peer != config.node_id],
            conf=SyncObjConf(
                autoTick=False,
                appendEntriesUseBatch=False,
                appendEntriesPeriod=config.heartbeat_ms / 1000,
                raftMinTimeout=config.election_min_ms / 1000,
                raftMaxTimeout=config.election_max_ms / 1000,
                leaderFallbackTimeout=config.quorum_loss_ms / 1000,
                connectionTimeout=config.election_max_ms / 1000,
                # The engine would cut an entry of this size, and not well (finding 10); _SyncObj__getEntries bounds messages.
                appendEntriesBatchSizeBytes=config.frame_bytes_max,
                journalFile=journal,
                fullDumpFile=None,
                commandsWaitLeader=False,
                onStateChanged=role_changed,
                logCompactionMinEntries=_NEVER,
                logCompactionMinTime=_NEVER,
            ),
            transportClass=Outbox,
        )
        self._wanted_snapshot = wanted_snapshot
        self._SyncObj__serializer.wanted = self._beyond_the_log
        self._SyncObj__raftLastApplied = applied_index
        self.follow_membership()

    # -- membership --------------------------------------------------------------------------------------------------

    def follow_membership(self) -> None:
        """Put the last membership of the log in force, committed or not (Raft thesis 4.1); a truncation brings the one before back."""
        last = self.journal.memberships[-1] if self.journal.memberships else None
        if self._in_force == (self._base, last):
            return
        self._in_force = (self._base, last)
        held = self._base if last is None else replica.members_of(last[0][1:])
        self._seat(decode(held) if held else self._configured)

    def _seat(self, membership: Membership) -> None:
        self.membership = membership
        others = {node: seat for node, seat in membership.seats.items() if node != self.id}
        voters = {Peer(node) for node, seat in others.items() if seat.voter}
        learners = {Peer(node) for node, seat in others.items() if not seat.voter}
        known = self._members()
        for node in sorted(voters | learners, key=lambda node: str(node.id)):
            self.links.add_peer(node.id, others[node.id].address)
            if node not in known:
                self._SyncObj__raftNextIndex[node] = self.journal.last_index + 1
                self._SyncObj__raftMatchIndex[node] = 0
                self._SyncObj__lastResponseTime[node] = Clock.now()
        for node in known - voters - learners:
            self._SyncObj__raftNextIndex.pop(node, None)
            self._SyncObj__raftMatchIndex.pop(node, None)
            self._SyncObj__connectedNodes.discard(node)
            self._acked.pop(node, None)
            self._discounted.discard(node)
            self.links.drop_peer(node.id)
        # The engine's own names, by setattr because mypy would take an assignment here for their declaration.
        setattr(self, "_SyncObj__otherNodes", voters)  # noqa: B010
        setattr(self, "_SyncObj__readonlyNodes", learners)  # noqa: B010
        for node in voters | learners:
            if self.links.connected(node.id):
                self.peer_up(node.id)

    def found(self, peers: dict[str, str]) -> None:
        """The members, by id and address, are these until the log says more: they were not known at the start."""
        self._configured = configured(peers)
        self._in_force = None
        self.follow_membership()

    def based_on(self, membership: bytes) -> None:
        """A snapshot holds this membership: the log may forget the entry that brought it."""
        self._base = membership
        self.follow_membership()

    def propose_membership(self, command: bytes) -> None:
        """Append a membership: at once, so that whoever asks for a change before the next tick finds it. Only when `membership_settled`."""
        self.journal.add(MEMBERSHIP + command, self.journal.last_index + 1, self.term)
        self._SyncObj__sendAppendEntries()

    @property
    def membership_settled(self) -> bool:
        """Whether this leader may propose a change: none is under way, and it has committed an entry of its term."""
        entries = self.journal.memberships
        return self.committed_own_term and (not entries or entries[-1][1] <= self.applied_index)

    @property
    def membership_known(self) -> bool:
        """Whether the membership in force comes from the log, and is not just what the configuration says."""
        return bool(self._base or self.journal.memberships)

    @property
    def voter(self) -> bool:
        """Whether this node's vote counts."""
        seat = self.membership.seats.get(self.id)
        return seat is not None and seat.voter

    # -- what others read --------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """This node's id."""
        return self._config.node_id

    @property
    def term(self) -> int:
        """Current term."""
        return int(self._SyncObj__raftCurrentTerm)

    @property
    def role(self) -> int:
        """FOLLOWER, CANDIDATE or LEADER."""
        return int(self._SyncObj__raftState)

    @property
    def is_leader(self) -> bool:
        """Whether this node believes it leads."""
        return bool(self._SyncObj__raftState == LEADER)

    @property
    def leader(self) -> str | None:
        """The last leader heard of in this term."""
        node = self._SyncObj__raftLeader
        return None if node is None else node.id

    @property
    def commit_index(self) -> int:
        """Highest index known to be committed."""
        return int(self._SyncObj__raftCommitIndex)

    @property
    def applied_index(self) -> int:
        """Highest index applied."""
        return int(self._SyncObj__raftLastApplied)

    @property
    def peers(self) -> list[str]:
        """Ids of the other voting members, sorted."""
        return sorted(node.id for node in self._SyncObj__otherNodes)

    @property
    def quorum(self) -> int:
        """Votes needed, this node's own included."""
        return (len(self._SyncObj__otherNodes) + 1) // 2 + 1

    @property
    def committed_own_term(self) -> bool:
        """Whether this leader has committed an entry of its own term: before that its commit index may be behind."""
        return self.is_leader and self.commit_index >= self._SyncObj__noopIDx

    def match_index(self, peer: str) -> int:
        """Leader only: the highest index known to be durable on `peer`."""
        return self._acked.get(Peer(peer), 0)

    def counts(self, peer: str) -> bool:
        """Leader only: whether what `peer` acknowledges counts. It does not while `peer` may have lost what it promised."""
        return Peer(peer) not in self._discounted

    def answers(self, peer: str) -> bool:
        """Leader only: whether `peer` has answered within three heartbeats, and its word counts."""
        at = self._SyncObj__lastResponseTime.get(Peer(peer), float("-inf"))
        return bool(Clock.now() - at < 3 * self._config.heartbeat_ms / 1000)

    def leader_alive(self) -> bool:
        """Whether a leader was heard within the shortest election timeout and its connection stands."""
        if self.is_leader:
            return True
        return (
            self.leader is not None
            and not self._leader_reset
            and Clock.now() - self._heard_leader_at < self._config.election_min_ms / 1000
        )

    def caught_up(self) -> bool:
        """Whether everything that the leader had committed when it was last heard is applied here."""
        if self.is_leader:
            return self.committed_own_term and self.applied_index >= self.commit_index
        return self._leader_commit is not None and self.applied_index >= self._leader_commit

    @property
    def behind(self) -> int:
        """How many entries that the leader had committed when it was last heard are not applied here."""
        known = self.commit_index if self.is_leader else self._leader_commit or 0
        return max(0, known - self.applied_index)

    # -- driving -----------------------------------------------------------------------------------------------------

    @replicated  # type: ignore[untyped-decorator]
    def apply(self, command: bytes) -> None:
        """The one replicated method, for ever: methods are numbered, and a second one would renumber old logs."""
        self._apply_entry(self.applied_index + 1, command)

    def propose(self, command: bytes) -> None:
        """Append an entry at the next tick. Only when `is_leader`."""
        self.apply(command)

    def tick(self) -> None:
        """One step: elections, commitment, application, heartbeats."""
        journal = self.journal
        if not self._SyncObj__otherNodes and self.voter and journal.durable < journal.appended:
            # A lone node's own copy is the quorum: nothing may be committed before it is durable.
            return
        if self.is_leader:
            self._led_at = Clock.now()
        elif self._SyncObj__raftElectionDeadline < Clock.now():
            self._election_due()
        self.doTick(0)
        self.follow_membership()
        while self._beyond:
            self._SyncObj__connectedNodes.add(self._beyond.pop())

    def _beyond_the_log(self, peer: str) -> None:
        # The engine would ask again and again for a whole heartbeat period: for it the peer is away until the next tick.
        self._wanted_snapshot(peer)
        self._SyncObj__connectedNodes.discard(Peer(peer))
        self._beyond.append(Peer(peer))

    def durable_advanced(self) -> None:
        """The log's durable position moved: this node's own vote for those entries counts now."""
        self._SyncObj__transport.release()
        if self.is_leader:
            for node, acked in self._acked.items():
                self._count(node, acked)

    def _count(self, node: Node, acked: int) -> None:
        # The engine counts the leader itself at once. Bounding what it may count for the others by what is
        # durable here makes the leader's own vote wait as well.
        match = self._SyncObj__raftMatchIndex
        if node in match and node not in self._discounted:
            match[node] = max(match[node], min(acked, self.journal.durable_index))

    def discount(self, peer: str) -> None:
        """`peer` may have lost what it promised: nothing that it acknowledged counts, from now on and until it is whole.

        It may have forgotten that it elected another leader, and acknowledge entries of one that was deposed.
        """
        node = Peer(peer)
        if node in self._members():
            self._discounted.add(node)
            self._SyncObj__raftMatchIndex[node] = 0

    # -- elections ---------------------------------------------------------------------------------------------------

    def _election_due(self) -> None:
        self.transfer_election = bool(self._SyncObj__transferInProgress)
        apart = self.stands_last and not self._abandoned()
        if not (self.may_vote and self.voter) or apart or self._SyncObj__transport.elects:
            # What its own disk has not let out yet cannot have been answered, or counted: another term would be no better.
            self._postpone_election()
        elif not self.transfer_election and self._SyncObj__otherNodes:
            # Pre-vote (Raft thesis 9.6): ask whether an election could be won before raising the term for it.
            self._postpone_election(*(_RETRY_S if self._leader_reset else ()))
            self._prevotes = {self.id}
            self._prevote_at = Clock.now()
            now, heard_at = self._prevote_at, self._heard_leader_at
            self._election_log.asks(self.term + 1, self.leader, now - heard_at, now, reset=self._leader_reset)
            for node in sorted(self._SyncObj__otherNodes, key=lambda node: str(node.id)):
                self.links.send(
                    node.id,
                    {
                        "type": "pre_vote",
                        "term": self.term + 1,
                        "last_log_index": self.journal.last_index,
                        "last_log_term": self.journal.last_term,
                    },
                )
        else:
            self._stand()

    def _abandoned(self) -> bool:
        """Whether no leader was heard for so long that the others cannot have one: perhaps only this node's log reaches far enough."""
        return (
            Clock.now() - max(self._heard_leader_at, self._led_at)
            > _ABANDONED_TIMEOUTS * self._config.election_max_ms / 1000
        )

    def _stand(self) -> None:
        self._prevotes = None
        self._voters = set()
        self.elections += 1
        self._election_log.stands(self.term + 1, Clock.now(), asked=not self.transfer_election)

    def _postpone_election(self, least_s: float | None = None, most_s: float | None = None) -> None:
        least = self._config.election_min_ms / 1000 if least_s is None else least_s
        most = self._config.election_max_ms / 1000 if most_s is None else most_s
        self._SyncObj__raftElectionDeadline = Clock.now() + random.uniform(least, most)

    def _SyncObj__onBecomeLeader(self) -> None:
        self._acked.clear()
        self._election_log.over()
        self.transfer_election = False
        super()._SyncObj__onBecomeLeader()

    def forbid_votes(self, term: int) -> None:
        """Never vote in `term` or an earlier one: this node may have done so before it lost its disk."""
        if term > self.term:
            self._SyncObj__setCurrentTerm(term, self.id)
            self._SyncObj__raftLeader = None
        elif self.journal.voted_for is None and term == self.term:
            self._SyncObj__setCurrentTerm(term, self.id)

    def transfer(self, peer: str) -> bool:
        """Ask `peer` to stand at once (thesis 3.10). Only for a peer that holds the whole log; returns whether it was asked."""
        if not self.is_leader or not self.counts(peer) or self.match_index(peer) < self.journal.last_index:
            return False
        return self.links.send(peer, {"type": "timeout_now", "term": self.term})

    def step_down(self) -> None:
        """Stop leading, and say so, so that nobody has to miss the heartbeats first."""
        if self.is_leader:
            self._SyncObj__setState(FOLLOWER)
            self._SyncObj__raftLeader = None
            self._postpone_election()
            for peer in self.peers:
                self.links.send(peer, {"type": "stepped_down", "term": self.term})

    # -- what the links tell -----------------------------------------------------------------------------------------

    def peer_up(self, peer: str) -> None:
        """Frames can be sent to `peer`."""
        if Peer(peer) in self._members() and peer not in self._congested:
            self._SyncObj__transport._onNodeConnected(Peer(peer))

    def peer_down(self, peer: str) -> None:
        """Frames cannot be sent to `peer` for now."""
        self._congested.discard(peer)
        self._SyncObj__transport._onNodeDisconnected(Peer(peer))

    def peer_reset(self, peer: str) -> None:
        """A connection with `peer` was cut by the other side: its process probably died, so do not wait out a whole timeout."""
        if peer == self.leader and self.role == FOLLOWER:
            self._leader_reset = True
            self._postpone_election(*_RESET_S)

    def frame_under_way(self, peer: str) -> None:
        """Part of a frame arrived from `peer`: a large one must not look like silence.

        Pings and whole messages do not count: a node that ceased to lead sends those too.
        """
        if peer == self.leader:
            self._heard_leader_at = Clock.now()
            if self.role == FOLLOWER and not self._SyncObj__transferInProgress and not self._leader_reset:
                self._SyncObj__raftElectionDeadline = max(
                    self._SyncObj__raftElectionDeadline, Clock.now() + self._config.election_min_ms / 1000
                )
        elif self.is_leader and Peer(peer) in self._acked and self.counts(peer):
            self._SyncObj__lastResponseTime[Peer(peer)] = Clock.now()

    def peer_congested(self, peer: str, congested: bool) -> None:
        """`peer` has more unsent than it should: give it no entries until it drains. Its bytes keep it calm meanwhile."""
        if congested:
            self._congested.add(peer)
            self._SyncObj__connectedNodes.discard(Peer(peer))
        elif peer in self._congested:
            self._congested.discard(peer)
            self._SyncObj__connectedNodes.add(Peer(peer))

    def snapshot_installed(self, peer: str, index: int) -> None:
        """`peer` has put a snapshot at `index` in place: go on from there."""
        node = Peer(peer)
        if self.is_leader and node in self._SyncObj__raftNextIndex:
            self._acknowledged(node, index)

    def install(self, index: int, term: int, membership: bytes) -> None:
        """This node's state now comes from a snapshot at `index`: the log begins behind it unless it holds that very entry."""
        if self.journal.term_at(index) != term:
            self.journal.reset(index, term)
        self._SyncObj__raftLastApplied = index
        self._SyncObj__raftCommitIndex = max(self.commit_index, index)
        self._base = membership
        self.follow_membership()

    # -- messages ----------------------------------------------------------------------------------------------------

    def receive(self, peer: str, message: Message) -> None:
        """One message from a peer. Raises KeyError or TypeError on a malformed one."""
        self._SyncObj__onMessageReceived(Peer(peer), message)

    def _SyncObj__onMessageReceived(self, node: Node, message: Message) -> None:
        kind = message["type"]
        handler = getattr(self, f"_on_{kind}", None)
        # Entries and questions are taken from any proven peer: this node's view of the membership may be the older one
        # (Raft thesis 4.1). Answers count only from those it asked.
        if handler is not None and (kind in _FROM_ANYBODY or node in self._members()):
            handler(node, message)
            self.follow_membership()

    def _members(self) -> set[Node]:
        members: set[Node] = self._SyncObj__otherNodes | self._SyncObj__readonlyNodes
        return members

    def _to_engine(self, node: Node, message: Message) -> None:
        super()._SyncObj__onMessageReceived(node, message)

    def _on_append_entries(self, node: Node, message: Message) -> None:
        term = message["term"]
        if term < self.term:
            # The engine would be silent, and a deposed leader would go on (Raft paper 5.1: reply with the higher term).
            self.links.send(node.id, {"type": "stale_term", "term": self.term})
            return
        self._heard_leader_at = Clock.now()
        self._leader_commit = message["commit_index"]
        self._leader_reset = False
        self._prevotes = None
        self._election_log.over()
        if "prevLogIdx" in message and not self._takes_entries():
            # No answer: the leader is told what is lacking when the next message can be taken, and sends that or a snapshot.
            self.entries_refused += 1
            self._adopt_leader(node, message)
            return
        if "prevLogIdx" in message:
            entries: list[Entry] = [tuple(entry) for entry in message["entries"]]
            prev = message["prevLogIdx"]
            # Raft paper, figure 2: the commit index is bounded by the last entry that this message vouches for.
            committed = message["commit_index"]
            message["commit_index"] = min(committed, entries[-1][1] if entries else prev)
            message["entries"] = entries
            if not self._skip_known(node, message):
                return
            self._conflict = bool(message["entries"])
            matches = self.journal.term_at(message["prevLogIdx"]) == message["prevLogTerm"]
            reached = matches and message["commit_index"] == committed
        else:
            # A heartbeat to a follower that needs a snapshot says nothing about its log, and the engine would commit
            # whatever is there up to the leader's commit index (finding 16).
            message["commit_index"] = committed = 0
            reached = False
        self._to_engine(node, message)
        self._conflict = False
        if reached and self.journal.term_at(committed) == term:
            self.verified_term = max(self.verified_term, term)

    def _takes_entries(self) -> bool:
        """Whether what waits for this node's disk leaves room for more in memory."""
        waiting, most = self.journal.unwritten_bytes, self._config.unwritten_bytes_max
        full = waiting > (most // 2 if self.full else most)
        if full != self.full:
            self.full = full
            if full:
                log.error(
                    "%d MB wait to be written to the log: no entries are taken until half of it is", waiting >> 20
                )
            else:
                log.info("the log has been written: entries are taken again")
        return not full

    def _skip_known(self, node: Node, message: Message) -> bool:
        """Cut off the entries that the log already holds, so that only a true conflict truncates (finding 1).

        Returns False when the message needs no further handling.
        """
        journal = self.journal
        entries, prev = message["entries"], message["prevLogIdx"]
        base = journal.base_index
        if prev < base:
            # Committed and covered by a snapshot, so every later leader holds it too: skip to what the log begins with.
            entries = entries[base - prev :]
            prev, message["prevLogTerm"] = base, journal.term_at(base)
            message["prevLogIdx"] = prev
        held = journal.term_at(prev)
        if held is None or held != message["prevLogTerm"]:
            if held is not None:
                hint = max(journal.first_index_of_term(prev), self.commit_index + 1)
                self._adopt_leader(node, message)
                self._SyncObj__sendNextNodeIdx(node, nextNodeIdx=hint, success=False, reset=True)
                return False
            return True
        known = 0
        for _, index, term in entries:
            if journal.term_at(index) != term:
                break
            known += 1
        if known:
            message["prevLogIdx"], message["prevLogTerm"] = entries[known - 1][1], entries[known - 1][2]
        message["entries"] = entries[known:]
        return True

    def _adopt_leader(self, node: Node, message: Message) -> None:
        """Take the sender as leader and nothing else from its message."""
        self._to_engine(
            node, {"type": "append_entries", "term": message["term"], "commit_index": 0, "serialized": None}
        )

    def _SyncObj__deleteEntriesFrom(self, index: int) -> None:
        # Reached for every message that ends before the log does. After _skip_known, entries that follow contradict what
        # is held; when none follow, nothing is known to conflict and nothing may go.
        if not self._conflict:
            return
        if index <= self.commit_index:
            raise AssertionError(f"the leader contradicts committed entry {index} (commit index {self.commit_index})")
        super()._SyncObj__deleteEntriesFrom(index)

    def _on_request_vote(self, node: Node, message: Message) -> None:
        if self.may_vote and (message.get("transfer") or not self.leader_alive()):
            self._to_engine(node, message)

    def _on_response_vote(self, node: Node, message: Message) -> None:
        if message["term"] == self.term and node.id not in self._voters and node in self._SyncObj__otherNodes:
            self._voters.add(node.id)
            self._to_engine(node, message)

    def _on_pre_vote(self, node: Node, message: Message) -> None:
        mine = (self.journal.last_term, self.journal.last_index)
        theirs = (message["last_log_term"], message["last_log_index"])
        # A vote that waits for this disk would be void in a higher term, and the next one would have to wait as well.
        free = self.may_vote and not self._SyncObj__transport.elects
        if free and message["term"] > self.term and theirs >= mine and not self.leader_alive():
            if self._prevotes is not None and Clock.now() - self._prevote_at < _RIGHT_OF_WAY_S:
                if theirs == mine and self.id < node.id:
                    return
                self._prevotes = None
            self.links.send(node.id, {"type": "pre_vote_granted", "term": message["term"]})
        elif message["term"] <= self.term:
            self.links.send(node.id, {"type": "stale_term", "term": self.term})

    def _on_pre_vote_granted(self, node: Node, message: Message) -> None:
        if self._prevotes is None or message["term"] != self.term + 1 or self.role == LEADER:
            return
        if node not in self._SyncObj__otherNodes:
            return
        self._prevotes.add(node.id)
        if len(self._prevotes) >= self.quorum:
            self._stand()
            self._SyncObj__raftElectionDeadline = 0
            self.doTick(0)
            if self._leader_reset and self.role == CANDIDATE:
                self._postpone_election(*_RETRY_S)

    def _on_stale_term(self, node: Node, message: Message) -> None:
        if message["term"] > self.term:
            self._SyncObj__setCurrentTerm(message["term"], None)
            self._SyncObj__setState(FOLLOWER)
            self._SyncObj__raftLeader = None
            self._prevotes = None
            self._postpone_election()

    def _on_stepped_down(self, node: Node, message: Message) -> None:
        if message["term"] == self.term:
            self.peer_reset(node.id)

    def _on_timeout_now(self, node: Node, message: Message) -> None:
        if self.may_vote and not self.stands_last:
            self._to_engine(node, message)

    def _on_next_node_idx(self, node: Node, message: Message) -> None:
        if not self.is_leader or message["term"] != self.term:
            return  # the engine does not look at the term, and an old acknowledgement speaks of another log
        following = message["next_node_idx"]
        if not 1 <= following <= self.journal.last_index + 1:
            return  # nobody can hold, or want, what this leader's log does not reach
        if message.get("whole", True) is True:
            self._discounted.discard(node)
            self._SyncObj__lastResponseTime[node] = Clock.now()
        else:
            # Nor is it one of those who keep this leader in office.
            self.discount(node.id)
        if message["success"]:
            self._acknowledged(node, following - 1)
        elif message["reset"]:
            if following <= self._acked.setdefault(node, 0):
                # It lacks what it once acknowledged: its disk was wiped, and its word for those entries is void.
                self._acked[node] = self._SyncObj__raftMatchIndex[node] = 0
            # The answers to all messages under way come one after the other. One to a message beyond the end of its log asks for that
            # end; an earlier one knew of a contradiction below it, and holds until entries from there are acknowledged.
            self._SyncObj__raftNextIndex[node] = min(following, self._SyncObj__raftNextIndex[node])

    def _acknowledged(self, node: Node, index: int) -> None:
        # Unlike the engine's own handler this never moves the next index back: entries sent meanwhile are still under way.
        acked = self._acked[node] = max(self._acked.get(node, 0), index)
        self._count(node, acked)
        following = self._SyncObj__raftNextIndex
        following[node] = max(following[node], index + 1)

    # -- overridden for size -----------------------------------------------------------------------------------------

    def _SyncObj__getEntries(
        self, fromIDx: int | None, count: int | None = None, maxSizeBytes: int | None = None
    ) -> list[Entry]:
        if fromIDx is None:
            return []
        return self.journal.entries_from(fromIDx, count, None if maxSizeBytes is None else self._config.append_bytes)

    def _SyncObj__applyLogEntries(self) -> bool:
        # The others hear what is committed before it is applied here, with the next entry if there is one.
        if self.is_leader and self.commit_index > self.applied_index:
            last = self.journal.last_index
            self._checkCommandsToApply()
            if self.journal.last_index == last:
                self._SyncObj__sendAppendEntries()
        super()._SyncObj__applyLogEntries()
        return False

    def _SyncObj__doApplyCommand(self, command: bytes) -> Any:
        if command[:1] == MEMBERSHIP:
            return self._apply_entry(self.applied_index + 1, command[1:])
        return super()._SyncObj__doApplyCommand(command)

    def _SyncObj__tryLogCompaction(self) -> None:
        """Snapshots are taken by cluster/snapshots.py."""

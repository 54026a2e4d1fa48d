"""One node's consensus, put together: log, engine, peers, snapshots, the path of a write and of a read.

Callers see `propose`, `read_index`, `status` and changes of role. Everything runs on the event loop; `_step` is the one step, done soon
after anything happened and from a timer. What the batches mean is the state machine's business.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quorumq.cluster import held, recovery
from quorumq.cluster import replica as replicated
from quorumq.cluster.agreement import Agreement
from quorumq.cluster.availability import Availability
from quorumq.cluster.belonging import Belonging
from quorumq.cluster.changes import Changes
from quorumq.cluster.config import ClusterConfig
from quorumq.cluster.discovery import Who
from quorumq.cluster.driver import Driver
from quorumq.cluster.environment import NodeEnvironment
from quorumq.cluster.errors import LogDamaged, NotApplied, Unavailable
from quorumq.cluster.exchange import Exchange
from quorumq.cluster.finder import Finder
from quorumq.cluster.folder import Folder
from quorumq.cluster.frames import Message
from quorumq.cluster.handover import Handover
from quorumq.cluster.health import DiskHealth
from quorumq.cluster.held import HeldFile, HighWaterMark
from quorumq.cluster.identity import IdentityFile, Probation
from quorumq.cluster.levels import Levels
from quorumq.cluster.log import Log
from quorumq.cluster.logclock import LogClock
from quorumq.cluster.logwatch import LogWatch
from quorumq.cluster.membership import ChangeRefused, Membership
from quorumq.cluster.membership import decode as decode_membership
from quorumq.cluster.messages import check
from quorumq.cluster.metrics import ReplicationMetrics
from quorumq.cluster.probation import Probations
from quorumq.cluster.raft import LEADER, ROLES, Raft
from quorumq.cluster.replica import Replica, StateMachine
from quorumq.cluster.routes import Routes
from quorumq.cluster.seams import Clock
from quorumq.cluster.snapshotting import Snapshotting
from quorumq.cluster.status import Readiness, Status, members
from quorumq.cluster.submit import Done
from quorumq.cluster.terms import RUN_AWAY, Terms
from quorumq.cluster.vitals import Vitals

log = logging.getLogger("quorumq.cluster")

_ENTRY_OVERHEAD = 4096
# A new node without PEERS founds a cluster of its own after this long: members that know it dial it every second.
_ALONE_S = 1.5


class Engine:
    """A member of the cluster."""

    def __init__(self, config: ClusterConfig, machine: StateMachine, around: NodeEnvironment | None = None) -> None:
        config.validate()
        self.config = config
        self.node_id = config.node_id
        self.machine = machine
        self._around = around or NodeEnvironment()
        self._replica = Replica(machine, lambda batch, outcome: self._exchange.settled(batch, outcome))
        self.metrics = ReplicationMetrics()
        self._availability = Availability()
        self._driver = Driver(self._around, self.metrics, self._step, self._availability.lost)
        self._poke = self._driver.poke
        self._exchange = Exchange(
            config.node_id,
            machine,
            self._driver,
            self._replica,
            epoch=self._around.random_bits(62),
            payload_bytes_max=config.entry_bytes_max - _ENTRY_OVERHEAD,
        )
        self._terms = Terms()
        self._readiness = Readiness(3 * config.election_max_ms / 1000)
        self._instance = f"{self._around.random_bits(64):016x}"
        self._listeners: list[Callable[[bool], None]] = []
        self._was_leader, self._upkept_at = False, float("-inf")
        self._leader_seen: str | None = None
        self._named = self._draining = self._closed = False
        self._disk = DiskHealth(1.5 * config.election_max_ms / 1000, config.election_min_ms / 1000)
        self._elected_at: float | None = None
        self._proposed_at: dict[int, float] = {}

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read what the disk holds, listen, and take part.

        Raises LogDamaged when the files cannot be trusted, OSError when the directory or the port is not to be had.
        """
        self._driver.attach(self._around.loop())
        self._folder = Folder(self.config.data_dir, self._around)
        self._root = self._folder.root
        try:
            self._identity = IdentityFile.of(self._root, self.config)
            self._held = HeldFile(self._root)
            self._log, snapshot, index = recovery.recover(
                self.config,
                self._folder.log,
                self._folder.snapshots,
                self._replica,
                self._held,
                functools.partial(held.lacking, self._root, self._identity.held, alone=self._alone()),
                self._doubted,
            )
            self._note_held(index if snapshot else 0)
            if self._log.term >= RUN_AWAY:
                log.critical("%s; `quorumq recover` makes a new cluster of its jobs", self._run_away())
            self._join(snapshot, index)
            if self._alone() and not self._raft.peers and self._probations.probation is None:
                self._keep(whole=True)  # there is nobody whom it could have promised anything
            await self._links.start()
        except BaseException:
            self._folder.unlock()
            raise
        self._driver.tick()
        if self.config.discover:
            self._driver.spawn(self._finder.run())

    def _doubted(self, why: str, journal: Log) -> None:
        """Entries or votes may be missing that this node promised: it begins on probation, as one that was wiped."""
        entry = journal.memberships[-1] if journal.memberships else None
        members = self._replica.membership if entry is None else replicated.members_of(entry[0][1:])
        voters = decode_membership(members).voters if members else self.config.peers
        if not set(voters) - {self.node_id} and (members or self._alone()):
            raise LogDamaged(
                f"{why}; nobody else has what is missing. Put the whole directory back as it was, or decide with "
                "`quorumq recover` that what is left is all"
            )
        if self._identity.held.whole:
            log.error("%s: this node begins as one that was wiped, and counts for nothing until it has caught up", why)
            self._identity.keep_now(whole=False, doubted=True)

    def _note_held(self, snapshot: int) -> None:
        """From now on a log that becomes shorter is noticed."""
        journal, durable = self._log, self._held
        number, size = journal.end
        if durable.begin(HighWaterMark(number, size, journal.last_index, journal.term, snapshot)):
            self._keep(noted=True)

    def _keep(self, **changes: Any) -> None:
        try:
            self._identity.keep_now(**changes)
        except OSError as error:
            log.error("identity.json could not be written: %s", error)

    def _alone(self) -> bool:
        """Whether the settings know of no other node."""
        return not self.config.discover and len(self.config.peers) == 1

    def _join(self, snapshot: str, index: int) -> None:
        """Put the parts together. `snapshot`: name of the one that the state came from, if any, and its `index`."""
        self._join_raft(index)
        self._join_storage(snapshot, index)
        self._join_members()
        self._handlers: dict[str, Callable[[str, Message], None]] = {
            "present": self._on_present,
            **dict.fromkeys(("relay", "relay_ask", "relay_open", "relay_closed"), self._routes.on_message),
            "digests": self._agreement.on_digests,
            "vitals": self._vitals.on_vitals,
            "change": self._changes.on_change,
            "changed": self._changes.on_changed,
            **self._exchange.handlers(),
            **self._snapshots.handlers(),
        }
        self._vote_or_not()

    def _join_raft(self, index: int) -> None:
        """The links to the others, ways round those that are cut, and what is replicated over them."""
        self._links = self._around.links(self.config, self)
        self._routes = Routes(
            self.node_id,
            self._links,
            self.metrics,
            members=lambda: self._raft.membership.seats.keys() - {self.node_id},
            up=self._reachable,
            down=self._unreachable,
            congested=lambda peer, congested: self._raft.peer_congested(peer, congested),
            receive=self.message_received,
            vet=self._vet,
            introduce=lambda peer: self._probations.peer_up(peer),
            random_bits=self._around.random_bits,
        )
        self._raft = Raft(
            self.config,
            self._log,
            self._routes,
            applied_index=index,
            membership=self._replica.membership,
            apply=self._apply,
            wanted_snapshot=lambda peer: self._snapshots.want(peer),
            role_changed=self._role_changed,
        )
        self._belonging = Belonging(
            self._replica, self._raft, self._links, self._routes, self._identity, self._driver, self._readiness
        )

    def _join_storage(self, snapshot: str, index: int) -> None:
        """Snapshots, time, and whether disk and state are sound."""
        self._snapshots = Snapshotting(
            self.config,
            self._folder.snapshots,
            snapshot,
            index,
            self._raft,
            self._replica,
            self._driver,
            self._around,
            self.metrics,
            cluster_id=self.cluster_id,
            installed=self._state_replaced,
            sound=lambda: not self._agreement.apart,
            durable=lambda index: self._folder.log.run(lambda: self._held.covered(index), lambda result, error: None),
            majority_ms=lambda: self._vitals.majority_ms(),
        )
        self._clock = LogClock(Clock.now(), self._around.asleep_s())
        self._vitals = Vitals(
            self._raft,
            self._clock,
            self._disk,
            wall_ms=self._around.wall_ms,
            asleep_s=self._around.asleep_s,
            alarm_ms=self.config.clock_alarm_ms,
            tells_nothing=lambda peer: self._levels.is_of_old(peer),
            reaches=lambda: self._routes.reaches(self._vitals.tells),
            on_reaches=lambda peer, reached: self._routes.on_reaches(peer, reached, Clock.now()),
        )
        self._agreement = Agreement(self._raft, self.machine, self._instance, self._vote_or_not)
        self._log_watch = LogWatch(
            self._log,
            self._disk,
            self._raft,
            self._driver,
            self.metrics,
            wall_ms=self._around.wall_ms,
            could_go_on=self._vitals.could_go_on,
            changed=self._vote_or_not,
        )

    def _join_members(self) -> None:
        """What all members understand, who they are, who leads them, and whether this node counts."""
        self._named = bool(self._replica.cluster_id and self._replica.membership)
        self._log.format = self._format()
        self._levels = Levels(
            self.node_id,
            self.machine.level_known,
            self.config.level_after_ms / 1000,
            members=lambda: sorted(self._raft.membership.seats),
            level=lambda: self._replica.level,
            may_propose=self._may_propose,
            propose=self._propose_level,
            doors=self.config.doors,
        )
        # A node that joins a cluster has no part in founding one, whatever the others say.
        mine = self._identity.held
        history = bool(mine.cluster_id) or mine.doubted or self._has_history()
        probation: Probation | None = None
        if self._probation_needed():
            probation = Probation(history=history)
        elif self._perhaps_not_alone(history=history):
            probation = Probation(history=False, not_before=Clock.now() + _ALONE_S)
        self._finder = Finder(
            self.config,
            self._raft,
            self._links,
            self._driver,
            self._identity,
            probation,
            instance=self._instance,
            resolve=self._around.resolve,
            cluster_id=self.cluster_id,
            has_history=self._has_history,
            changed=self._vote_or_not,
        )
        self._probations = Probations(
            self._raft,
            self._driver,
            self._identity,
            probation,
            self._levels,
            belongs=self._finder.belongs,
            has_history=self._has_history,
            changed=self._vote_or_not,
        )
        self._handover = Handover(self._raft, self._routes, self._levels, self._agreement, self._driver)
        self._exchange.attach(self._raft, self._routes, self._levels, self._probations)
        self._changes = Changes(
            self._raft,
            self._driver,
            whole=self._probations.whole,
            may_propose=self._may_propose,
            propose=self._propose_members,
            hand_over=self._handover.transfer,
            raise_level=self._levels.raise_to,
            lone=self.config.lone,
        )

    def _probation_needed(self) -> bool:
        return not self._identity.held.whole and (bool(self._raft.peers) or bool(self.config.discover))

    def _perhaps_not_alone(self, *, history: bool) -> bool:
        """Whether this node is new and alone as far as it knows, and others that know it as a member could tell it otherwise.

        Its disk may have been emptied, and its settings lack PEERS: it must not found a cluster beside its old members.
        """
        new = not self._identity.held.whole and not history
        return new and self._alone() and not self._raft.peers and self.config.reached_by_others()

    def _has_history(self) -> bool:
        return self._log.last_index > 1 or bool(self._replica.cluster_id)

    def _vote_or_not(self) -> None:
        self._raft.whole = self.metrics.whole = whole = self._probations.probation is None
        self._raft.may_vote = whole and self._log_watch.writes and self._finder.belongs()
        self._raft.stands_last = bool(self._agreement.apart)

    async def stop(self, *, transfer: bool = True) -> None:
        """Leave: hand leadership over when `transfer`, then close. Batches without an outcome fail."""
        if self._closed:
            return
        self._closed = self._draining = True
        if transfer and not self._driver.stopped and self._raft.is_leader and self._raft.peers:
            await self.transfer_leadership()
        self._driver.stop()
        self._exchange.submitter.fail_all(Unavailable("the node is stopping"))
        self._exchange.rounds.abandon()
        self._snapshots.stop()
        await self._links.stop()
        await self._driver.loop.run_in_executor(
            None, lambda: self._folder.close((self._log, self._held), hung=self._disk.hung)
        )

    async def transfer_leadership(self, peer: str | None = None) -> bool:
        """Hand leadership to `peer`, or to the one furthest ahead, once it holds the whole log. Returns whether it was taken."""
        return await self._handover.transfer(peer)

    # -- callers -----------------------------------------------------------------------------------------------------

    @property
    def failed(self) -> asyncio.Future[None]:
        """Gets the error when this node cannot go on; it has stopped then, except for `stop`."""
        return self._driver.failed

    @property
    def is_leader(self) -> bool:
        """Whether this node believes it leads; the belief may be stale."""
        return self._raft.is_leader

    @property
    def applied_index(self) -> int:
        """Index of the last entry applied here."""
        return self._raft.applied_index

    def propose(self, payload: bytes, deadline: float, done: Done) -> None:
        """Replicate one batch.

        deadline: in loop.time() seconds.  done: called exactly once, synchronously inside the local apply with the state
        machine's outcome, or with NotApplied, OutcomeUnknown or EntryTooLarge.
        """
        if self._driver.stopped:
            done(None, NotApplied("the node is stopping"))
            return
        raft = self._raft
        self._exchange.submitter.hand_in(payload, deadline, done, raft.leader, raft.term, Clock.now())
        self._poke()

    async def read_index(self, deadline: float) -> None:
        """Return once the local state holds everything acknowledged anywhere before this call. Raises Unavailable."""
        if self._driver.stopped:
            raise Unavailable("the node is stopping")
        if not await self._exchange.read(deadline):
            raise Unavailable("no quorum: a consistent read is not possible now")

    def on_role_change(self, listener: Callable[[bool], None]) -> None:
        """`listener(True)` when this node became leader, `listener(False)` when it ceased to be."""
        self._listeners.append(listener)

    async def change_members(self, action: str, node: str, address: str = "", timeout_s: float = 10.0) -> Membership:
        """Add `node` as a learner, promote, or remove it, or hand leadership to it; the request goes to the leader.

        action: add, promote, remove, transfer, or level, with the feature level to reach in place of the node.
        Returns the membership in force afterwards.
        Raises ChangeRefused with the reason, Unavailable without a leader, OutcomeUnknown when the leader was lost meanwhile.
        """
        if action == "level" and node.isdecimal() and (reasons := self._levels.lacking(int(node))):
            # Known here already; and a leader of a version without levels could not say so.
            raise ChangeRefused(f"feature level {node} needs every member: {'; '.join(reasons)}")
        return await self._changes.request(action, node, address, timeout_s)

    async def snapshot(self, timeout_s: float) -> Path:
        """Have a snapshot hold everything applied by now; returns its file. Raises Unavailable when that takes too long."""
        return await self._snapshots.snapshot(timeout_s)

    def status(self) -> Status:
        """What this node knows."""
        raft, journal = self._raft, self._log
        seen = members(raft, self._routes, self._levels.announced, self._vitals.offsets())
        missing = self._not_ready()
        return Status(
            node_id=self.node_id,
            cluster_name=self.config.cluster_name,
            cluster_id=self._replica.cluster_id,
            role=ROLES[raft.role],
            term=raft.term,
            leader=raft.leader,
            commit_index=raft.commit_index,
            applied_index=raft.applied_index,
            last_index=journal.last_index,
            durable_index=journal.durable_index,
            first_index=journal.base_index + 1,
            snapshot_index=self._snapshots.index,
            log_bytes=journal.bytes_on_disk,
            write_failed_since_ms=self._log_watch.failed_since_ms,
            has_quorum=sum(member.connected and member.voter for member in seen) >= raft.quorum,
            ready=not missing,
            ready_reason=missing,
            digest=self.machine.digest(),
            members=seen,
            apart=self._agreement.apart,
            differing=self._agreement.differing,
            agreed_index=self._agreement.agreed,
            level=self._replica.level,
            level_known=self.machine.level_known,
            log_clock_ms=self._clock.read(Clock.now()) if self._clock.settled else None,
        )

    @property
    def silent_s(self) -> float:
        """For how long the consensus has done nothing, not even look at the time; a fraction of a second in a node that lives."""
        return self._driver.silent_s

    def _not_ready(self) -> str:
        if self._driver.stopped or self._draining:
            return "stopping"
        if self._log.failure is not None:
            return f"the log cannot be written: {self._log.failure}"
        if self._raft.full:
            return f"the log is written too slowly: {self._log.unwritten_bytes >> 20} MB wait"
        if self._raft.term >= RUN_AWAY and self._raft.leader is None:
            return self._run_away()
        if self._disk.hung:
            return "the log cannot be written: the disk does not answer"
        if self._agreement.apart:
            return self._agreement.apart
        probations = self._probations
        return self._readiness.missing(
            self._raft, probations.probation, probations.doubted, self._finder.looking, Clock.now()
        )

    def _run_away(self) -> str:
        return f"the term has run away (it is {self._log.term}), and nobody can be elected any more"

    # -- the one step ------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        now, raft = Clock.now(), self._raft
        if not 0 <= now - self._upkept_at < self._around.tick_s / 2:
            self._keep_up(now)
        self._propose()
        raft.tick()
        self._log.flush()
        now, leads = Clock.now(), raft.is_leader
        if leads != self._was_leader:
            self._was_leader = leads
            self._snapshots.send_no_more()
            self._proposed_at.clear()
            self._changes.ceased_to_lead()
            self._elected_at = now if leads else None
            log.info("%s in term %d", "leads" if leads else "does not lead any more", raft.term)
            for listener in self._listeners:
                listener(leads)
        self._probations.drive()
        self._changes.applied(self._replica.membership, self._replica.level)
        self._exchange.drive(now, leads=leads)
        self._snapshots.drive(now)
        if self._elected_at is not None and raft.committed_own_term:
            late_ms, self._elected_at = (now - self._elected_at) * 1000, None
            log.info("the first entry of term %d is committed, %.0f ms after its election", raft.term, late_ms)
        self._availability.look(now, able=raft.committed_own_term and self._may_propose())
        if leads:
            self._name_cluster()
            if len(self._exchange.inbox) and self._may_propose():
                self._poke()

    def _keep_up(self, now: float) -> None:
        """Do what no message waits for: it is looked at once a tick, and when another leads."""
        raft, metrics, self._upkept_at = self._raft, self.metrics, now
        self._log_watch.drive(now)
        self._vitals.drive(self._replica.now_ms, now)
        self._routes.drive(now)
        self._readiness.look(raft, self._replica.cluster_id, now)
        if raft.leader not in (None, self._leader_seen):
            self._leader_seen = raft.leader
            metrics.leader_changes += 1
        self._levels.drive(now, leads=raft.is_leader)
        self._agreement.drive(now)
        self._handover.drive(leads=raft.is_leader)
        if self._held.due(now):
            self._folder.log.run(self._held.sync, lambda result, error: None)
        metrics.elections, metrics.batches_resent = raft.elections, self._exchange.submitter.resent
        metrics.entries_refused, metrics.log_unwritten_bytes = raft.entries_refused, self._log.unwritten_bytes
        metrics.clock_jumps = self._clock.jumps

    def _role_changed(self, old: int, new: int) -> None:
        # At once: what a caller of this node hands over between this and the next step would be thrown away, and sent again
        # only a second later.
        self._exchange.inbox.clear()
        if new == LEADER:
            self._availability.lost()
        else:
            self._availability.not_leading()
        self._upkept_at = float("-inf")
        self._poke()

    def _may_propose(self) -> bool:
        raft = self._raft
        return (
            raft.is_leader
            and not self._handover.under_way
            and self._log.failure is None
            and self._clock.settled
            and self._log.last_index - raft.commit_index < self.config.entries_in_flight_max
        )

    def _propose(self) -> None:
        if len(self._exchange.inbox) and self._may_propose():
            batches = self._exchange.inbox.take(self.config.entry_bytes_target)
            self.metrics.entry_batches.observe(len(batches))
            self._proposed_at[self._log.last_index + 1] = Clock.now()
            resumed = self._availability.resumed(Clock.now())
            self._raft.propose(replicated.encode_batches(self._now_ms(), batches, resumed=resumed))

    def _now_ms(self) -> int:
        return max(self._clock.stamp(Clock.now()), self._replica.now_ms)

    def now_ms(self) -> int:
        """The log's clock as this node knows it, in milliseconds since the epoch.

        Before it knows one, the time of the last entry, for its own wall clock may be wrong: a leader works out by this what is
        due. Before the first entry, its wall clock.
        """
        if self._clock.settled:
            return max(self._clock.read(Clock.now()), self._replica.now_ms)
        return self._replica.now_ms or self._around.wall_ms()

    def _name_cluster(self) -> None:
        """The first leader gives the cluster its id and its members, through the log."""
        raft = self._raft
        if not self._named and raft.committed_own_term and self._may_propose():
            self._named = True
            if not self._replica.membership and not self._log.memberships:
                self._propose_members(raft.membership)
            if not self._replica.cluster_id:
                raft.propose(replicated.encode_cluster_id(self._now_ms(), f"{self._around.random_bits(128):032x}"))
                self._levels.founded(Clock.now())
                self._poke()

    def _propose_members(self, membership: Membership) -> None:
        self._raft.propose_membership(replicated.encode_members(self._now_ms(), membership.encode()))

    def _propose_level(self, level: int) -> None:
        self._raft.propose(replicated.encode_level(self._now_ms(), level))
        self._poke()

    def _format(self) -> int:
        """Format of the log's segments to come: from level 1 on one that versions without levels refuse."""
        return 2 if self._replica.level else 1

    def _apply(self, index: int, command: bytes) -> None:
        metrics, membership, began = self.metrics, self._replica.membership, time.perf_counter()
        self._replica.apply(index, command)
        metrics.apply_seconds.observe(time.perf_counter() - began)
        metrics.entry_bytes.observe(len(command))
        proposed_at = self._proposed_at.pop(index, None)
        if proposed_at is not None:
            metrics.commit_seconds.observe(Clock.now() - proposed_at)
        self._log.format = self._format()
        self._belonging.remember()
        if self._replica.membership is not membership:
            self._belonging.send_away()

    def _state_replaced(self) -> None:
        self._log.format = self._format()
        self._exchange.submitter.state_replaced(self._replica)
        self._belonging.remember()
        self._belonging.send_away()
        self._agreement.replaced()

    # -- what the links tell -----------------------------------------------------------------------------------------

    def message_received(self, peer: str, message: Message) -> None:
        """A message from a proven peer. Raises messages.Malformed for one that cannot be believed."""
        if self._driver.stopped:
            return
        self._terms.check(message, self._raft.term, Clock.now())
        handler = self._handlers.get(message["type"], self._raft.receive)
        try:
            handler(peer, message)
        except AssertionError as error:
            self._driver.fail(error)
            return
        self._poke()

    def _vet(self, message: Message) -> None:
        """Raise Malformed for a message that no member sends, before anybody acts on it or passes it on."""
        check(message, self.config.entry_bytes_max - _ENTRY_OVERHEAD)
        self._terms.check(message, self._raft.term, Clock.now())

    def _on_present(self, peer: str, message: Message) -> None:
        self._routes.on_introduction(peer)
        self._probations.on_present(peer, message)

    def peer_up(self, peer: str) -> None:
        """The link to `peer` stands."""
        self._routes.direct_up(peer)
        self._reachable(peer)

    def _reachable(self, peer: str) -> None:
        self._vitals.peer_up(peer)
        self._probations.peer_up(peer)
        self._agreement.peer_up(peer)
        self._raft.peer_up(peer)
        self._poke()

    def peer_down(self, peer: str) -> None:
        """The link to `peer` is gone."""
        self._unreachable(peer)
        self._routes.direct_down(peer)

    def _unreachable(self, peer: str) -> None:
        self._raft.peer_down(peer)
        self._snapshots.lost(peer)
        self._probations.peer_down(peer)
        self._vitals.peer_down(peer)
        self._poke()

    def peer_reset(self, peer: str) -> None:
        """`peer` cut a connection, or died."""
        self._raft.peer_reset(peer)

    def frame_under_way(self, peer: str) -> None:
        """Bytes of an unfinished frame came from `peer`."""
        self._raft.frame_under_way(peer)

    def peer_congested(self, peer: str, congested: bool) -> None:
        """The link to `peer` is full, or has drained."""
        self._routes.peer_congested(peer, congested)
        self._raft.peer_congested(peer, congested)

    def cluster_id(self) -> str:
        """The id that the first leader gave, empty before that."""
        return self._belonging.cluster_id

    def levels(self) -> tuple[int, int]:
        """The highest feature level that this node knows, and the one in force here."""
        return self.machine.level_known, self._replica.level

    def refused(self, peer: str, code: str, reason: str) -> None:
        """`peer` refused this node."""
        self._belonging.refused(peer, code, reason)

    def peer_refused(self) -> None:
        """A connection at the peer port was refused."""
        self.metrics.peers_refused += 1

    def message_refused(self) -> None:
        """A message of a proven peer ended its connection."""
        self.metrics.peer_messages_refused += 1

    def seated_at(self) -> int:
        """The entry up to which this node knows that it is a member, 0 when it does not."""
        return self._belonging.seated_at()

    def was_removed(self, peer: str, seated_at: int = 0) -> bool:
        """Whether `peer` was a member once, and its removal is committed."""
        return self._belonging.was_removed(peer, seated_at)

    def may_adopt(self, peer: str, seated_at: int = 0) -> bool:
        """Whether a peer that proved itself is listened to though this node does not know it."""
        return self._belonging.may_adopt(peer, seated_at)

    def who(self) -> Who:
        """What this node says of itself to one that asks."""
        return self._finder.who()

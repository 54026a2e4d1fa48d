"""One node's consensus, put together: log, engine, peers, snapshots, the path of a write and of a read.

Callers see `submit`, `read_index`, `status` and changes of role. Everything runs on the event loop; `_step` is the one step, done soon
after anything happened and from a timer. What the batches mean is the state machine's business.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import identity, recovery
from cluster import replica as replicated
from cluster.changes import Changes
from cluster.config import ClusterConfig
from cluster.discovery import Who
from cluster.driver import Driver
from cluster.errors import LogDamaged, NotApplied, Removed, Unavailable
from cluster.finder import Finder
from cluster.identity import IdentityFile, Probation
from cluster.membership import Membership
from cluster.membership import decode as decode_membership
from cluster.metrics import Metrics
from cluster.presence import Presence
from cluster.raft import ROLES, Clock, Raft
from cluster.reads import Readers, Rounds
from cluster.replica import Batch, Machine, Replica
from cluster.snapshotting import Snapshotting
from cluster.status import Readiness, Status, members
from cluster.submit import Done, Inbox, Submitter
from cluster.surroundings import Surroundings
from cluster.transport import Message

log = logging.getLogger("quorumq.cluster")

_LOG_RETRY_S = 0.5
_TRANSFER_S = 2.0
_STRANGERS_MAX = 16


class Engine:
    """A member of the cluster."""

    def __init__(self, config: ClusterConfig, machine: Machine, surroundings: Surroundings | None = None) -> None:
        config.validate()
        self.config = config
        self.node_id = config.node_id
        self.machine = machine
        self._around = surroundings or Surroundings()
        self._replica = Replica(machine, self._settled)
        self._inbox = Inbox(self._replica)
        self._submitter = Submitter(
            config.node_id, self._around.random_bits(62), config.entry_bytes_max - 4096, self._send_batch
        )
        self._rounds = Rounds(self._broadcast_round)
        self._readers = Readers(self._ask)
        self.metrics = Metrics()
        self._driver = Driver(self._around, self.metrics, self._step, self._stalled)
        self._poke = self._driver.poke
        self._readiness = Readiness(3 * config.election_max_ms / 1000)
        self._instance = f"{self._around.random_bits(64):016x}"
        self._listeners: list[Callable[[bool], None]] = []
        self._was_leader = False
        self._leader_seen: str | None = None
        self._named = False
        self._handing_over = 0
        self._draining = False
        self._closed = False
        self._write_failed_since_ms: int | None = None
        self._proposed_at: dict[int, float] = {}
        # Nothing could be replicated for a while: nobody led, or this leader stood still. The next entry says so.
        self._resumed = False
        self._lock: int | None = None

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read what the disk holds, listen, and take part.

        Raises LogDamaged when the files cannot be trusted, OSError when the directory or the port is not to be had.
        """
        self._driver.attach(self._around.loop())
        self._open_disks()
        try:
            self._identity = IdentityFile(self._root, identity.load(self._root, self.node_id, self.config.cluster_name))
            self._log, snapshot, index = recovery.recover(
                self.config, self._log_disk, self._snapshot_disk, self._replica
            )
            self._join(snapshot, index)
            await self._links.start()
        except BaseException:
            self._unlock()
            raise
        self._driver.tick()
        if self.config.discover:
            self._driver.spawn(self._finder.run())

    def _open_disks(self) -> None:
        directory, around = self.config.data_dir, self._around
        self._root = around.disk(directory)
        self._lock = around.lock(directory)
        self._log_disk = around.disk(directory / "log")
        self._snapshot_disk = around.disk(directory / "snapshots")

    def _join(self, snapshot: str, index: int) -> None:
        """Put the parts together. `snapshot`: name of the one that the state came from, if any, and its `index`."""
        self._links = self._around.links(self.config, self)
        self._raft = Raft(
            self.config,
            self._log,
            self._links,
            applied_index=index,
            membership=self._replica.membership,
            apply=self._apply,
            wanted_snapshot=lambda peer: self._snapshots.want(peer),
            role_changed=lambda old, new: self._poke(),
        )
        self._snapshots = Snapshotting(
            self.config,
            self._snapshot_disk,
            snapshot,
            index,
            self._raft,
            self._replica,
            self._driver,
            self._around,
            self.metrics,
            cluster_id=self.cluster_id,
            installed=self._state_replaced,
        )
        self._log.on_durable = self._durable
        self._log.on_failure = self._log_failed
        self._log.on_synced = self.metrics.sync_seconds.observe
        self._named = bool(self._replica.cluster_id and self._replica.membership)
        # A node that joins a cluster has no part in founding one, whatever the others say.
        probation = Probation(history=bool(self._identity.held.cluster_id)) if self._probation_needed() else None
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
        self._presence = Presence(
            self._raft,
            self._driver,
            self._identity,
            probation,
            belongs=self._finder.belongs,
            has_history=self._has_history,
            changed=self._vote_or_not,
        )
        self._changes = Changes(
            self._raft,
            self._driver,
            whole=self._presence.whole,
            may_propose=self._may_propose,
            propose=self._propose_members,
            hand_over=self.transfer_leadership,
        )
        self._handlers: dict[str, Callable[[str, Message], None]] = {
            "present": self._presence.on_present,
            "change": self._changes.on_change,
            "changed": self._changes.on_changed,
            "batch": self._on_batch,
            "batch_no": self._on_batch_no,
            "read": self._on_read,
            "read_index": self._on_read_index,
            "round": self._on_round,
            "round_ok": self._on_round_ok,
            "snapshot_begin": self._snapshots.on_begin,
            "snapshot_piece": self._snapshots.on_piece,
            "snapshot_held": self._snapshots.on_held,
            "snapshot_installed": self._snapshots.on_installed,
        }
        self._vote_or_not()

    def _probation_needed(self) -> bool:
        return not self._identity.held.whole and (bool(self._raft.peers) or bool(self.config.discover))

    def _has_history(self) -> bool:
        return self._log.last_index > 1 or bool(self._replica.cluster_id)

    def _vote_or_not(self) -> None:
        self._raft.may_vote = (
            self._presence.probation is None and self._write_failed_since_ms is None and self._finder.belongs()
        )

    async def stop(self, *, transfer: bool = True) -> None:
        """Leave: hand leadership over when `transfer`, then close. Batches without an outcome fail."""
        if self._closed:
            return
        self._closed = self._draining = True
        if transfer and not self._driver.stopped and self._raft.is_leader and self._raft.peers:
            await self.transfer_leadership()
        self._driver.stop()
        self._submitter.fail_all(Unavailable("the node is stopping"))
        self._rounds.abandon()
        self._snapshots.stop()
        await self._links.stop()
        await self._driver.loop.run_in_executor(None, self._close_disks)

    def _close_disks(self) -> None:
        for disk in (self._log_disk, self._snapshot_disk, self._root):
            disk.close()
        self._log.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def transfer_leadership(self, peer: str | None = None) -> bool:
        """Hand leadership to `peer`, or to the one furthest ahead, once it holds the whole log. Returns whether it was taken."""
        raft = self._raft
        deadline = Clock.now() + _TRANSFER_S
        asked_at = float("-inf")
        self._handing_over += 1
        try:
            while raft.is_leader and Clock.now() < deadline:
                target = peer
                if target is None:
                    present = [member for member in raft.peers if self._links.connected(member)]
                    target = max(present, key=lambda member: (raft.match_index(member), member), default=None)
                if target is not None and Clock.now() - asked_at > 0.3 and raft.transfer(target):
                    asked_at = Clock.now()
                self._poke()
                await asyncio.sleep(0.005)
            return not raft.is_leader
        finally:
            self._handing_over -= 1

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
    def leader_id(self) -> str | None:
        """The leader last heard of."""
        return self._raft.leader

    @property
    def applied_index(self) -> int:
        """Index of the last entry applied here."""
        return self._raft.applied_index

    def submit(self, payload: bytes, deadline: float, done: Done) -> None:
        """Replicate one batch.

        deadline: in loop.time() seconds.  done: called exactly once, synchronously inside the local apply with the state
        machine's outcome, or with NotApplied, OutcomeUnknown or EntryTooLarge.
        """
        if self._driver.stopped:
            done(None, NotApplied("the node is stopping"))
            return
        raft = self._raft
        self._submitter.submit(payload, deadline, done, raft.leader, raft.term, Clock.now())
        self._poke()

    async def read_index(self, deadline: float) -> None:
        """Return once the local state holds everything acknowledged anywhere before this call. Raises Unavailable."""
        if self._driver.stopped:
            raise Unavailable("the node is stopping")
        future: asyncio.Future[bool] = self._driver.loop.create_future()

        def done(fresh: bool) -> None:
            if not future.done():
                future.set_result(fresh)

        self._readers.wait(deadline, done)
        self._poke()
        if not await future:
            raise Unavailable("no quorum: a consistent read is not possible now")

    def on_role_change(self, listener: Callable[[bool], None]) -> None:
        """`listener(True)` when this node became leader, `listener(False)` when it ceased to be."""
        self._listeners.append(listener)

    async def change_members(self, action: str, node: str, address: str = "", timeout_s: float = 10.0) -> Membership:
        """Add `node` as a learner, promote, or remove it, or hand leadership to it; the request goes to the leader.

        action: add, promote, remove or transfer. Returns the membership in force afterwards.
        Raises ChangeRefused with the reason, Unavailable without a leader, OutcomeUnknown when the leader was lost meanwhile.
        """
        return await self._changes.request(action, node, address, timeout_s)

    async def snapshot(self, timeout_s: float) -> Path:
        """Have a snapshot written that holds everything applied by now, unless one does already; returns its file.

        Raises Unavailable when it could not be written in time; the log says why.
        """
        return await self._snapshots.snapshot(timeout_s)

    def status(self) -> Status:
        """What this node knows."""
        raft, journal = self._raft, self._log
        seen = members(raft, self._links)
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
            write_failed_since_ms=self._write_failed_since_ms,
            has_quorum=sum(member.connected and member.voter for member in seen) >= raft.quorum,
            ready=not missing,
            ready_reason=missing,
            digest=self.machine.digest(),
            members=seen,
        )

    def _not_ready(self) -> str:
        if self._driver.stopped or self._draining:
            return "stopping"
        if self._log.failure is not None:
            return f"the log cannot be written: {self._log.failure}"
        return self._readiness.missing(self._raft, self._presence.probation, self._finder.looking, Clock.now())

    # -- the one step ------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        raft, journal = self._raft, self._log
        self._propose()
        raft.tick()
        journal.flush()
        now = Clock.now()
        leads = raft.is_leader
        if raft.leader not in (None, self._leader_seen):
            self._leader_seen = raft.leader
            self.metrics.leader_changes += 1
        self.metrics.elections, self.metrics.batches_resent = raft.elections, self._submitter.resent
        if leads != self._was_leader:
            self._was_leader = leads
            self._resumed = leads
            self._inbox.clear()
            self._snapshots.send_no_more()
            self._proposed_at.clear()
            self._changes.ceased_to_lead()
            log.info("%s in term %d", "leads" if leads else "does not lead any more", raft.term)
            for listener in self._listeners:
                listener(leads)
        self._readiness.look(raft, now)
        self._presence.drive()
        self._changes.applied(self._replica.membership)
        self._rounds.drive(
            leads=leads, ready=raft.committed_own_term, commit_index=raft.commit_index, quorum=raft.quorum, now=now
        )
        self._readers.applied(raft.applied_index)
        self._readers.drive(raft.leader, raft.term, now)
        self._submitter.drive(raft.leader, raft.term, now)
        self._snapshots.drive(now)
        if leads:
            self._name_cluster()
            if len(self._inbox) and self._may_propose():
                self._poke()

    def _stalled(self) -> None:
        self._resumed = True

    def _may_propose(self) -> bool:
        raft = self._raft
        return (
            raft.is_leader
            and not self._handing_over
            and self._log.failure is None
            and self._log.last_index - raft.commit_index < self.config.entries_in_flight_max
        )

    def _propose(self) -> None:
        if len(self._inbox) and self._may_propose():
            batches = self._inbox.take(self.config.entry_bytes_target)
            self.metrics.entry_batches.observe(len(batches))
            self._proposed_at[self._log.last_index + 1] = Clock.now()
            self._raft.propose(replicated.encode_batches(self._now_ms(), batches, resumed=self._resumed))
            self._resumed = False

    def _now_ms(self) -> int:
        return max(self._around.wall_ms(), self._replica.now_ms)

    def _name_cluster(self) -> None:
        """The first leader gives the cluster its id and its members, through the log."""
        raft = self._raft
        if not self._named and raft.committed_own_term and self._may_propose():
            self._named = True
            if not self._replica.membership and not self._log.memberships:
                self._propose_members(raft.membership)
            if not self._replica.cluster_id:
                raft.propose(replicated.encode_cluster_id(self._now_ms(), f"{self._around.random_bits(128):032x}"))
                self._poke()

    def _propose_members(self, membership: Membership) -> None:
        self._raft.propose_membership(replicated.encode_members(self._now_ms(), membership.encode()))

    def _apply(self, index: int, command: bytes) -> None:
        metrics, membership, began = self.metrics, self._replica.membership, time.perf_counter()
        self._replica.apply(index, command)
        metrics.apply_seconds.observe(time.perf_counter() - began)
        metrics.entry_bytes.observe(len(command))
        proposed_at = self._proposed_at.pop(index, None)
        if proposed_at is not None:
            metrics.commit_seconds.observe(Clock.now() - proposed_at)
        self._remember_cluster_id()
        if self._replica.membership is not membership:
            self._send_away()

    def _remember_cluster_id(self) -> None:
        held, name = self._identity.held.cluster_id, self._replica.cluster_id
        if name in ("", held):
            return
        if held:
            raise LogDamaged(f"the data is of cluster {held}, the log of cluster {name}")
        self._identity.remember_cluster(name)

    def _state_replaced(self) -> None:
        self._submitter.state_replaced(self._replica)
        self._remember_cluster_id()
        self._send_away()

    def _settled(self, batch: Batch, outcome: Any) -> None:
        self._inbox.settled(batch)
        self._submitter.settled(batch, outcome)

    def _durable(self) -> None:
        if self._write_failed_since_ms is not None:
            log.info("the log can be written again")
            self._write_failed_since_ms = None
            self._vote_or_not()
        self._raft.durable_advanced()
        self._poke()

    def _log_failed(self, error: Exception) -> None:
        log.error("the log cannot be written: %s; this node neither leads nor votes until it can", error)
        self._write_failed_since_ms = self._around.wall_ms()
        self.metrics.log_failures += 1
        self._vote_or_not()
        self._raft.step_down()
        self._driver.loop.call_later(_LOG_RETRY_S, self._retry_log)

    def _retry_log(self) -> None:
        if not self._driver.stopped and self._log.failure is not None:
            self._log.retry()
            self._driver.loop.call_later(_LOG_RETRY_S, self._retry_log)

    # -- writes and reads between nodes --------------------------------------------------------------------------------

    def _send_batch(self, leader: str, batch: Batch) -> bool:
        if leader == self.node_id:
            self._inbox.put(batch)
            return True
        return self._links.send(
            leader, {"type": "batch", "batch": (batch.origin, batch.epoch, batch.seq, batch.floor, batch.payload)}
        )

    def _ask(self, leader: str, question: int) -> bool:
        if leader == self.node_id:
            self._rounds.ask(lambda index: self._readers.answered(question, index, self._raft.applied_index))
            self._poke()
            return True
        return self._links.send(leader, {"type": "read", "question": question})

    def _broadcast_round(self, number: int) -> None:
        for peer in self._raft.peers:
            self._links.send(peer, {"type": "round", "term": self._raft.term, "number": number})

    # -- what the links tell -----------------------------------------------------------------------------------------

    def message_received(self, peer: str, message: Message) -> None:
        """A message from a proven peer."""
        if self._driver.stopped:
            return
        handler = self._handlers.get(message["type"])
        try:
            if handler is not None:
                handler(peer, message)
            else:
                self._raft.receive(peer, message)
        except AssertionError as error:
            self._driver.fail(error)
            return
        self._poke()

    def _on_batch(self, peer: str, message: Message) -> None:
        batch = Batch(*message["batch"])
        if self._raft.is_leader:
            self._inbox.put(batch)
        else:
            self._links.send(peer, {"type": "batch_no", "epoch": batch.epoch, "seq": batch.seq})

    def _on_batch_no(self, peer: str, message: Message) -> None:
        epoch, seq = message["epoch"], message["seq"]
        # Not at once: the leader that refused may be about to be deposed, or to know of it only now.
        self._driver.loop.call_later(0.02, self._submitter.rejected, epoch, seq)

    def _on_read(self, peer: str, message: Message) -> None:
        question = message["question"]

        def reply(index: int | None) -> None:
            self._links.send(peer, {"type": "read_index", "question": question, "index": index})

        self._rounds.ask(reply)

    def _on_read_index(self, peer: str, message: Message) -> None:
        self._readers.answered(message["question"], message["index"], self._raft.applied_index)

    def _on_round(self, peer: str, message: Message) -> None:
        if message["term"] == self._raft.term and self._raft.leader == peer:
            self._links.send(peer, {"type": "round_ok", "term": message["term"], "number": message["number"]})

    def _on_round_ok(self, peer: str, message: Message) -> None:
        if self._raft.is_leader and message["term"] == self._raft.term and peer in self._raft.peers:
            self._rounds.confirmed(peer, message["number"], self._raft.quorum)

    def peer_up(self, peer: str) -> None:
        """The link to `peer` stands."""
        self._presence.peer_up(peer)
        self._raft.peer_up(peer)
        self._poke()

    def peer_down(self, peer: str) -> None:
        """The link to `peer` is gone."""
        self._raft.peer_down(peer)
        self._snapshots.lost(peer)
        self._presence.peer_down(peer)
        self._poke()

    def peer_reset(self, peer: str) -> None:
        """`peer` cut a connection, or died."""
        self._raft.peer_reset(peer)

    def frame_under_way(self, peer: str) -> None:
        """Bytes of an unfinished frame came from `peer`."""
        self._raft.frame_under_way(peer)

    def peer_congested(self, peer: str, congested: bool) -> None:
        """The link to `peer` is full, or has drained."""
        self._raft.peer_congested(peer, congested)

    def cluster_id(self) -> str:
        """The id that the first leader gave, empty before that."""
        return self._replica.cluster_id or self._identity.held.cluster_id

    def refused(self, peer: str, code: str, reason: str) -> None:
        """`peer` refused this node; the link has logged it and goes on trying, unless this node was removed."""
        if code == "removed" and self._identity.held.whole:
            self._driver.fail(
                Removed(f"{peer}: {reason}; to join again, start with an empty data directory and add the member anew")
            )

    def _send_away(self) -> None:
        """Close the connections of removed members, so that they dial again and are told.

        One that dialled between the entry of its removal and the commit of that was still listened to as a stranger.
        """
        if self._replica.membership:
            for peer in decode_membership(self._replica.membership).removed:
                if peer not in self._raft.membership.seats:
                    self._links.drop_peer(peer)

    def was_removed(self, peer: str) -> bool:
        """Whether `peer` was a member once, and its removal is committed."""
        return bool(self._replica.membership) and peer in decode_membership(self._replica.membership).removed

    def may_adopt(self, peer: str) -> bool:
        """Whether a peer that proved itself is listened to though this node does not know it.

        It may be a member, the leader even, that joined while this node was away: only its entries can say so.
        """
        return (
            not self.was_removed(peer)
            and len(self._links.addresses) < len(self._raft.membership.seats) + _STRANGERS_MAX
        )

    def who(self) -> Who:
        """What this node says of itself to one that asks."""
        return self._finder.who()

"""One node's consensus, put together: log, engine, peers, snapshots, the path of a write and of a read.

Callers see `submit`, `read_index`, `status` and changes of role. Everything runs on the event loop; `_drive` is the one step, soon after
anything happened and from a timer. What the batches mean is the state machine's business.
"""

from __future__ import annotations

import asyncio
import copy
import fcntl
import functools
import logging
import os
import secrets
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from cluster import discovery, identity, snapshots
from cluster import replica as replicated
from cluster.config import ClusterConfig
from cluster.disk import Disk
from cluster.errors import ClusterError, LogDamaged, NotApplied, OutcomeUnknown, Removed, Unavailable
from cluster.identity import Probation
from cluster.log import Log
from cluster.membership import ChangeRefused, Membership
from cluster.membership import decode as decode_membership
from cluster.metrics import Metrics
from cluster.raft import ROLES, Clock, Raft
from cluster.reads import Readers, Rounds
from cluster.replica import Batch, Machine, Replica
from cluster.submit import Done, Inbox, Submitter
from cluster.transport import Links, Message

T = TypeVar("T")
_Put = Callable[[], Iterator[None]]
log = logging.getLogger("quorumq.cluster")

_LOG_RETRY_S = 0.5
_TRANSFER_S = 2.0
_STALL_S = 0.25
_PROMOTABLE_LAG = 16
_STRANGERS_MAX = 16
_SNAPSHOT_POLL_S = 0.05


class Member(msgspec.Struct, frozen=True):
    """One member as this node sees it.

    role: leader, follower, learner or unknown.  match_index, lag (entries behind): known to the leader only.
    """

    id: str
    address: str
    role: str
    voter: bool
    connected: bool
    match_index: int | None
    lag: int | None
    self: bool


class Status(msgspec.Struct, frozen=True):
    """What a node knows of itself and its cluster at this moment; a follower's may be stale.

    write_failed_since_ms: when writing the log began to fail, in milliseconds since the epoch, or None while it can be written.
    ready_reason: why it is not ready, empty when it is.
    """

    node_id: str
    cluster_name: str
    cluster_id: str
    role: str
    term: int
    leader: str | None
    commit_index: int
    applied_index: int
    last_index: int
    durable_index: int
    first_index: int
    snapshot_index: int
    log_bytes: int
    has_quorum: bool
    ready: bool
    ready_reason: str
    digest: str
    members: list[Member]
    write_failed_since_ms: int | None = None


class Surroundings:
    """What a node gets from the machine it runs on. The simulation gives it disks, links and clocks of its own."""

    tick_s = 0.02
    slice_s = 0.005
    """How long work that can be done in steps may take at once; 0: one step."""

    def pause_s(self) -> float:
        """How long such work then waits."""
        return 0.001

    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that everything runs on."""
        return asyncio.get_running_loop()

    def disk(self, directory: Path) -> Disk:
        """Files below `directory`."""
        return Disk(directory)

    def lock(self, directory: Path) -> int | None:
        """Take the directory for this process alone; returns a handle to close. Raises OSError when another has it."""
        handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise OSError(f"{directory} is in use by another process") from None
        return handle

    def links(self, config: ClusterConfig, listener: Engine) -> Links:
        """Connections to the peers."""
        return Links(config, listener)

    def snapshot_writer(self) -> snapshots.Writer:
        """Writes snapshots beside the event loop."""
        return snapshots.Forked()

    async def resolve(self, names: Iterable[str]) -> list[str]:
        """The `host:port` of all addresses that `names` stand for."""
        return await discovery.resolve(names)

    def wall_ms(self) -> int:
        """Milliseconds since the epoch; may jump."""
        return time.time_ns() // 1_000_000

    def random_bits(self, bits: int) -> int:
        """A number that nobody can guess."""
        return secrets.randbits(bits)


def _steps(iterator: Iterator[None]) -> Generator[None, None, None]:
    yield from iterator


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
        self._policy = snapshots.Policy(
            config.snapshot_log_bytes,
            config.snapshot_log_entries,
            config.snapshot_interval_ms / 1000,
            0.8 + 0.4 * self._place(),
        )
        self._writer = self._around.snapshot_writer()
        self._senders: dict[str, snapshots.Sender] = {}
        self._wanted: set[str] = set()
        self._listeners: list[Callable[[bool], None]] = []
        self._changes: dict[int, asyncio.Future[None]] = {}
        self._change_number = 0
        self._changes_under_way: list[tuple[bytes, Callable[[ClusterError | None], None]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._whole: set[str] = set()
        self._was_leader = False
        self._snapshot_running = False
        self._snapshot_name = ""
        self._named = False
        self._draining = False
        self._handing_over = 0
        self._log_broken = False
        self._write_failed_since_ms: int | None = None
        self._instance = f"{self._around.random_bits(64):016x}"
        # While the members are to be found (discovery.py): why they are not yet, and whom this node would take.
        self._found = not config.discover
        self._looking = "not looked yet" if config.discover else ""
        # Members that were out of reach at the last look.
        self._missed: list[str] = []
        self._sees: list[str] = []
        self._stopped = False
        self._closed = False
        self._ready_once = False
        self._leader_seen_at = float("-inf")
        self._scheduled = False
        self._ticked_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._lock: int | None = None
        self._probation: Probation | None = None
        self.metrics = Metrics()
        self._proposed_at: dict[int, float] = {}
        # Nothing could be replicated for a while: nobody led, or this leader stood still. The next entry says so.
        self._resumed = False
        self._leader_seen: str | None = None
        self.failed: asyncio.Future[None]

    def _place(self) -> float:
        """Between 0 and 1, another one for each node."""
        peers = sorted(self.config.peers)
        if len(peers) > 1:
            return peers.index(self.node_id) / len(peers)
        return zlib.crc32(self.node_id.encode()) / (1 << 32)

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read what the disk holds, listen, and take part.

        Raises LogDamaged when the files cannot be trusted, OSError when the directory or the port is not to be had.
        """
        self._loop = self._around.loop()
        self.failed = self._loop.create_future()
        self._open_disks()
        try:
            self._identity = identity.load(self._root, self.node_id, self.config.cluster_name)
            self._open_log()
            self._join()
            await self._links.start()
        except BaseException:
            self._unlock()
            raise
        self._tick()
        if self.config.discover:
            self._tasks.add(task := self._loop.create_task(self._discover()))
            task.add_done_callback(self._tasks.discard)

    def _join(self) -> None:
        self._links = self._around.links(self.config, self)
        self._raft = Raft(
            self.config,
            self._log,
            self._links,
            applied_index=self._policy.index,
            membership=self._replica.membership,
            apply=self._apply,
            wanted_snapshot=self._wanted.add,
            role_changed=lambda old, new: self._poke(),
        )
        self._receiver = snapshots.Receiver(self._snapshot_disk, self._links.send, self._install)
        self._log.on_durable = self._durable
        self._log.on_failure = self._log_failed
        self._log.on_synced = self.metrics.sync_seconds.observe
        self._named = bool(self._replica.cluster_id and self._replica.membership)
        if self._probation_needed():
            # A node that joins a cluster has no part in founding one, whatever the others say.
            self._probation = Probation(history=bool(self._identity.cluster_id))
        self._vote_or_not()

    def _vote_or_not(self) -> None:
        self._raft.may_vote = self._probation is None and not self._log_broken and self._belongs()

    def _belongs(self) -> bool:
        """Whether the members are known: from the settings, from the log, or because they were found."""
        return self._found or self._raft.membership_known

    def _open_disks(self) -> None:
        directory, around = self.config.data_dir, self._around
        self._root = around.disk(directory)
        self._lock = around.lock(directory)
        self._log_disk = around.disk(directory / "log")
        self._snapshot_disk = around.disk(directory / "snapshots")

    def _probation_needed(self) -> bool:
        return not self._identity.whole and (bool(self._raft.peers) or bool(self.config.discover))

    def _open_log(self) -> None:
        """The newest sound snapshot, and the log behind it, reconciled by index: nothing above the snapshot is dropped (finding 3)."""
        head = self._load_snapshot()
        self._log = journal = Log(self._log_disk, self.config.segment_bytes)
        if head is None:
            if journal.base_index > 1:
                raise LogDamaged(
                    f"the log begins after entry {journal.base_index}, and no snapshot holds what came before"
                )
            return
        self._policy.taken(head.index, 0)
        held = journal.term_at(head.index)
        if held is None and journal.base_index > head.index:
            raise LogDamaged(
                f"the log begins after entry {journal.base_index}, the newest sound snapshot ends at {head.index}"
            )
        if held is None or held not in (head.term, -1):
            journal.reset(head.index, head.term)
        journal.setRaftCommitIndex(head.index)
        self._compact(head.index)

    def _load_snapshot(self) -> snapshots.Head | None:
        for name in snapshots.newest(self._snapshot_disk):
            began = time.monotonic()
            try:
                reader = snapshots.Reader(self._snapshot_disk, name)
                self._replica.restore(reader.head.replica, reader.pieces())
            except (LogDamaged, msgspec.MsgspecError, ValueError) as error:
                log.error("snapshot %s cannot be used: %s", name, error)
                continue
            log.info("restored entry %d from %s in %.1f s", reader.head.index, name, time.monotonic() - began)
            self._snapshot_name = name
            return reader.head
        return None

    async def stop(self, *, transfer: bool = True) -> None:
        """Leave: hand leadership over when `transfer`, then close. Batches without an outcome fail."""
        if self._closed:
            return
        self._closed = self._draining = True
        if transfer and not self._stopped and self._raft.is_leader and self._raft.peers:
            await self.transfer_leadership()
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        self._submitter.fail_all(Unavailable("the node is stopping"))
        self._rounds.abandon()
        self._writer.stop()
        await self._links.stop()
        await self._loop.run_in_executor(None, self._close_disks)

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

    def _fail(self, error: Exception) -> None:
        if not self.failed.done():
            # A removed node has nothing wrong with it: whoever runs it says why it ends.
            if not isinstance(error, Removed):
                log.critical("this node cannot go on: %s: %s", type(error).__name__, error, exc_info=error)
            self.failed.set_exception(error)
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    # -- callers -----------------------------------------------------------------------------------------------------

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
        if self._stopped:
            done(None, NotApplied("the node is stopping"))
            return
        raft = self._raft
        self._submitter.submit(payload, deadline, done, raft.leader, raft.term, Clock.now())
        self._poke()

    async def read_index(self, deadline: float) -> None:
        """Return once the local state holds everything acknowledged anywhere before this call. Raises Unavailable."""
        if self._stopped:
            raise Unavailable("the node is stopping")
        future: asyncio.Future[bool] = self._loop.create_future()

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

    def status(self) -> Status:
        """What this node knows."""
        raft, journal = self._raft, self._log
        ready, reason = self._readiness()
        members = []
        for member, seat in sorted(raft.membership.seats.items()):
            mine = member == self.node_id
            match = journal.last_index if mine else raft.match_index(member)
            known = raft.is_leader and (mine or match > 0)
            members.append(
                Member(
                    id=member,
                    address=self._links.addresses.get(member, seat.address),
                    role=self._role_of(member, voter=seat.voter),
                    voter=seat.voter,
                    connected=mine or self._links.connected(member),
                    match_index=match if known else None,
                    lag=max(0, journal.last_index - match) if known else None,
                    self=mine,
                )
            )
        connected = sum(member.connected and member.voter for member in members)
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
            snapshot_index=self._policy.index if self._snapshot_name else 0,
            log_bytes=journal.bytes_on_disk,
            write_failed_since_ms=self._write_failed_since_ms,
            has_quorum=connected >= raft.quorum,
            ready=ready,
            ready_reason=reason,
            digest=self.machine.digest(),
            members=members,
        )

    def _role_of(self, member: str, *, voter: bool) -> str:
        if not voter:
            return "learner"
        if self._raft.leader is None:
            return "unknown"
        return "leader" if member == self._raft.leader else "follower"

    def _readiness(self) -> tuple[bool, str]:
        if self._stopped or self._draining:
            return False, "stopping"
        if self._log.failure is not None:
            return False, f"the log cannot be written: {self._log.failure}"
        if not self._ready_once:
            if self._looking and not self._raft.membership_known:
                return False, f"no cluster yet: {self._looking}"
            missing = [] if self._probation is None else self._probation.missing(self._raft.peers)
            if missing and self._probation is not None and not self._probation.history:
                return False, f"first start: waiting for {', '.join(missing)}"
            return False, "catching up" if self._raft.leader else "no leader yet"
        if Clock.now() - self._leader_seen_at > 3 * self.config.election_max_ms / 1000:
            return False, "no leader"
        return True, ""

    # -- the one step ------------------------------------------------------------------------------------------------

    def _poke(self) -> None:
        if not self._scheduled and not self._stopped:
            self._scheduled = True
            self._loop.call_soon(self._drive)

    def _tick(self) -> None:
        if self._stopped:
            return
        now, metrics = Clock.now(), self.metrics
        if self._ticked_at:
            late = max(0.0, now - self._ticked_at - self._around.tick_s)
            metrics.loop_seconds.observe(late)
            metrics.loop_longest_seconds = max(metrics.loop_longest_seconds, late)
            if late > _STALL_S:
                metrics.loop_stalls += 1
                self._resumed = True
                log.warning("the event loop stood still for %.0f ms", late * 1000)
        self._ticked_at = now
        self._poke()
        self._timer = self._loop.call_later(self._around.tick_s, self._tick)

    def _drive(self) -> None:
        self._scheduled = False
        if self._stopped:
            return
        try:
            self._step()
        except Exception as error:
            # Whatever is half done in the engine cannot be trusted any more; another node takes over.
            self._fail(error)

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
            self._senders.clear()
            self._proposed_at.clear()
            self._changes_failed(OutcomeUnknown("this node ceased to lead: see the members"))
            log.info("%s in term %d", "leads" if leads else "does not lead any more", raft.term)
            for listener in self._listeners:
                listener(leads)
        if raft.leader_alive():
            self._leader_seen_at = now
            if not self._ready_once and raft.caught_up():
                self._ready_once = True
        self._leave_probation()
        self._changes_applied()
        self._rounds.drive(
            leads=leads, ready=raft.committed_own_term, commit_index=raft.commit_index, quorum=raft.quorum, now=now
        )
        self._readers.applied(raft.applied_index)
        self._readers.drive(raft.leader, raft.term, now)
        self._submitter.drive(raft.leader, raft.term, now)
        self._snapshots(now)
        if leads:
            self._name_cluster()
            if len(self._inbox) and self._may_propose():
                self._poke()

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
                raft.propose_membership(replicated.encode_members(self._now_ms(), raft.membership.encode()))
            if not self._replica.cluster_id:
                raft.propose(replicated.encode_cluster_id(self._now_ms(), f"{self._around.random_bits(128):032x}"))
                self._poke()

    def _apply(self, index: int, command: bytes) -> None:
        metrics, began = self.metrics, time.perf_counter()
        self._replica.apply(index, command)
        metrics.apply_seconds.observe(time.perf_counter() - began)
        metrics.entry_bytes.observe(len(command))
        proposed_at = self._proposed_at.pop(index, None)
        if proposed_at is not None:
            metrics.commit_seconds.observe(Clock.now() - proposed_at)
        self._remember_cluster_id()

    def _remember_cluster_id(self) -> None:
        held, name = self._identity.cluster_id, self._replica.cluster_id
        if name in ("", held):
            return
        if held:
            raise LogDamaged(f"the data is of cluster {held}, the log of cluster {name}")
        self._identity.cluster_id = name
        self._store_identity()

    def _store_identity(self) -> None:
        held = copy.copy(self._identity)
        self._root.run(lambda: held.store(self._root), self._ignore_written)

    def _ignore_written(self, result: None, error: Exception | None) -> None:
        if error is not None:
            log.error("identity.json could not be written: %s", error)

    def _settled(self, batch: Batch, outcome: Any) -> None:
        self._inbox.settled(batch)
        self._submitter.settled(batch, outcome)

    def _durable(self) -> None:
        if self._log_broken:
            log.info("the log can be written again")
            self._log_broken = False
            self._write_failed_since_ms = None
            self._vote_or_not()
        self._raft.durable_advanced()
        self._poke()

    def _log_failed(self, error: Exception) -> None:
        log.error("the log cannot be written: %s; this node neither leads nor votes until it can", error)
        self._log_broken = True
        self._write_failed_since_ms = self._around.wall_ms()
        self.metrics.log_failures += 1
        self._vote_or_not()
        self._raft.step_down()
        self._loop.call_later(_LOG_RETRY_S, self._retry_log)

    def _retry_log(self) -> None:
        if not self._stopped and self._log.failure is not None:
            self._log.retry()
            self._loop.call_later(_LOG_RETRY_S, self._retry_log)

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
        if self._stopped:
            return
        handler = self._HANDLERS.get(message["type"])
        try:
            if handler is not None:
                handler(self, peer, message)
            else:
                self._raft.receive(peer, message)
        except AssertionError as error:
            self._fail(error)
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
        self._loop.call_later(0.02, self._submitter.rejected, epoch, seq)

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

    def _say_present(self, peer: str) -> None:
        self._links.send(
            peer,
            {
                "type": "present",
                "term": self._raft.term,
                "history": self._has_history(),
                "whole": self._probation is None,
            },
        )

    def _has_history(self) -> bool:
        return self._log.last_index > 1 or bool(self._replica.cluster_id)

    def _on_present(self, peer: str, message: Message) -> None:
        (self._whole.add if message["whole"] else self._whole.discard)(peer)
        if self._probation is not None:
            self._probation.present(peer, message["term"], message["history"])

    def _leave_probation(self) -> None:
        """A node that began empty votes when nobody has a history, or when it has caught up and knows every member's term (finding 15)."""
        probation = self._probation
        if probation is None or probation.ending or not self._belongs() or probation.missing(self._raft.peers):
            return
        if not probation.history or self._raft.verified:
            # Only once it is on disk that this node is whole: else a crash would begin the probation again, and the
            # promises made meanwhile would not count.
            probation.ending = True
            held = msgspec.structs.replace(self._identity, whole=True)
            self._root.run(lambda: held.store(self._root), self._probation_ended)

    def _probation_ended(self, result: None, error: Exception | None) -> None:
        probation = self._probation
        assert probation is not None
        if error is not None:
            log.error("identity.json could not be written: %s", error)
            self._loop.call_later(_LOG_RETRY_S, setattr, probation, "ending", False)
            return
        self._probation = None
        self._identity.whole = True
        self._raft.forbid_votes(probation.term if probation.history else 0)
        self._vote_or_not()
        if probation.history:
            log.info("caught up after starting with an empty disk: this node votes again")
        for peer in self._raft.membership.seats:
            if peer != self.node_id:
                self._say_present(peer)
        self._poke()

    def peer_up(self, peer: str) -> None:
        """The link to `peer` stands."""
        self._say_present(peer)
        self._raft.peer_up(peer)
        self._poke()

    def peer_down(self, peer: str) -> None:
        """The link to `peer` is gone."""
        self._raft.peer_down(peer)
        self._senders.pop(peer, None)
        self._whole.discard(peer)
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
        return self._replica.cluster_id or self._identity.cluster_id

    def refused(self, peer: str, code: str, reason: str) -> None:
        """`peer` refused this node; the link has logged it and goes on trying, unless this node was removed."""
        if code == "removed" and self._identity.whole:
            self._fail(
                Removed(f"{peer}: {reason}; to join again, start with an empty data directory and add the member anew")
            )

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

    # -- discovery ------------------------------------------------------------------------------------------------------

    def who(self) -> discovery.Who:
        """What this node says of itself to one that asks."""
        seated, seats = self._raft.membership_known, self._raft.membership.seats
        return discovery.Who(
            id=self.node_id,
            instance=self._instance,
            address=self.config.peers[self.node_id],
            cluster_id=self.cluster_id(),
            seated=seated,
            history=self._has_history(),
            joins=bool(self._identity.cluster_id) and not self._identity.whole and not seated,
            founders=self._identity.founders,
            sees=self._sees,
            members={each: self._links.addresses.get(each, seat.address) for each, seat in seats.items()}
            if seated
            else {},
        )

    async def _discover(self) -> None:
        """Look until this node belongs to a cluster, and after that for members that cannot be reached where they were."""
        try:
            while not self._stopped:
                if not self._belongs() or self._away():
                    await self._look()
                await asyncio.sleep(discovery.LOOK_S if not self._belongs() else 3 * discovery.LOOK_S)
        except Exception as error:
            self._fail(error)

    def _away(self) -> list[str]:
        """Members that this node is not connected to."""
        seats = self._raft.membership.seats
        return [node for node in seats if node != self.node_id and not self._links.connected(node)]

    async def _look(self) -> None:
        addresses = await self._around.resolve(self.config.discover)
        found = await asyncio.gather(*(self._links.ask(address) for address in addresses))
        answers = [(address, who) for address, who in zip(addresses, found, strict=True) if who is not None]
        if not self._belongs():
            await self._decide(
                discovery.decide(self.who(), [who for _, who in answers], self.config.cluster_size), answers
            )
        away = self._away()
        for address, who in answers:
            if who.id not in away:
                continue
            if who.address != self._links.addresses.get(who.id):
                self._links.moved(who.id, who.address)
            elif who.id in self._missed:
                # What it calls its own address has been tried for a while; whoever asked it came by this one.
                self._links.moved(who.id, address)
        self._missed = away
        self._vote_or_not()

    async def _decide(self, decision: discovery.Decision, answers: list[tuple[str, discovery.Who]]) -> None:
        self._sees = decision.sees
        before, self._looking = self._looking, decision.waits_for
        if self._looking not in ("", before):
            log.info("no cluster yet: %s", self._looking)
        if decision.bind:
            await self._keep(founders=decision.sees)
        elif decision.found:
            addresses = {who.id: who.address for _, who in answers} | {self.node_id: self.config.peers[self.node_id]}
            self._take_part({node: addresses[node] for node in decision.sees})
        elif decision.join:
            # Remembered before anything of that cluster is believed: this node has no part in founding another any more.
            await self._keep(cluster_id=decision.cluster_id)
            if self._identity.cluster_id and self._probation is not None:
                self._probation.history = True
            if self._identity.cluster_id:
                self._take_part(decision.join)

    async def _keep(self, **changes: Any) -> None:
        """Write a changed identity, and put it in force when it is durable; not at all when it cannot be written."""
        written: asyncio.Future[Exception | None] = self._loop.create_future()
        held = msgspec.structs.replace(self._identity, **changes)

        def done(result: None, error: Exception | None) -> None:
            if not written.done():
                written.set_result(error)

        self._root.run(lambda: held.store(self._root), done)
        error = await written
        if error is not None:
            log.error("identity.json could not be written: %s", error)
            return
        self._identity = msgspec.structs.replace(self._identity, **changes)

    def _take_part(self, peers: dict[str, str]) -> None:
        log.info("found %s", ", ".join(sorted(peers)))
        self._found = True
        self._raft.found(peers)
        self._vote_or_not()
        self._poke()

    # -- membership ----------------------------------------------------------------------------------------------------

    async def change_members(self, action: str, node: str, address: str = "", timeout_s: float = 10.0) -> Membership:
        """Add `node` as a learner, promote, or remove it, or hand leadership to it; the request goes to the leader.

        action: add, promote, remove or transfer. Returns the membership in force afterwards.
        Raises ChangeRefused with the reason, Unavailable without a leader, OutcomeUnknown when the leader was lost meanwhile.
        """
        leader = self._raft.leader
        if leader is None:
            raise Unavailable("no leader: the membership cannot be changed now")
        future: asyncio.Future[None] = self._loop.create_future()
        self._change_number += 1
        number = self._change_number
        self._changes[number] = future
        if leader == self.node_id:
            self._change(action, node, address, functools.partial(self._changed, number))
        else:
            self._links.send(
                leader, {"type": "change", "number": number, "action": action, "node": node, "address": address}
            )
        self._poke()
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            raise OutcomeUnknown("no answer from the leader: see the members") from None
        finally:
            self._changes.pop(number, None)
        return self._raft.membership

    def _changed(self, number: int, error: ClusterError | None) -> None:
        future = self._changes.get(number)
        if future is not None and not future.done():
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

    def _change(self, action: str, node: str, address: str, reply: Callable[[ClusterError | None], None]) -> None:
        """The leader's part: propose the change, and reply when it is applied here."""
        raft = self._raft
        try:
            if not raft.is_leader:
                raise Unavailable("this node does not lead")
            if action == "transfer":
                self._hand_over_to(node, reply)
                return
            if not raft.membership_settled or not self._may_propose():
                raise ChangeRefused("another change is under way, or this leader is new: try again in a moment")
            after = self._membership_after(action, node, address)
        except ClusterError as error:
            reply(error)
            return
        log.info("%s %s", action, node)
        raft.propose_membership(replicated.encode_members(self._now_ms(), after.encode()))
        self._changes_under_way.append((after.encode(), reply))
        self._poke()

    def _membership_after(self, action: str, node: str, address: str) -> Membership:
        raft = self._raft
        # A voter that has lost its disk, and does not vote before it has caught up, is no help for a quorum; and what is
        # known of one that has not answered just now may be past.
        reachable = {
            self.node_id,
            *(
                peer
                for peer in raft.peers
                if self._links.connected(peer) and peer in self._whole and raft.answers(peer)
            ),
        }
        if action == "add":
            return raft.membership.adding(node, address)
        if action == "promote":
            after = raft.membership.promoting(node)
            behind = raft.commit_index - raft.match_index(node)
            if raft.match_index(node) == 0 or behind > _PROMOTABLE_LAG or node not in self._whole:
                raise ChangeRefused(
                    f"{node} is {behind} entries behind, or knows not yet every member: it must catch up first"
                )
            return after
        if action == "remove":
            if node == self.node_id:
                raise ChangeRefused(f"{node} leads: hand leadership over first")
            return raft.membership.removing(node, reachable)
        raise ChangeRefused(f"unknown action {action!r}")

    def _hand_over_to(self, node: str, reply: Callable[[ClusterError | None], None]) -> None:
        if node == self.node_id:
            reply(None)
            return
        if node not in self._raft.peers:
            raise ChangeRefused(f"{node} is not a voter")

        async def hand_over() -> None:
            moved = await self.transfer_leadership(node)
            reply(None if moved else ChangeRefused(f"{node} did not take over in time"))

        self._tasks.add(task := self._loop.create_task(hand_over()))
        task.add_done_callback(self._tasks.discard)

    def _changes_applied(self) -> None:
        for change in list(self._changes_under_way):
            if change[0] == self._replica.membership:
                self._changes_under_way.remove(change)
                change[1](None)

    def _changes_failed(self, error: ClusterError) -> None:
        changes, self._changes_under_way = self._changes_under_way, []
        for _, reply in changes:
            reply(error)

    def _on_change(self, peer: str, message: Message) -> None:
        number = message["number"]

        def reply(error: ClusterError | None) -> None:
            code = "" if error is None else type(error).__name__
            self._links.send(peer, {"type": "changed", "number": number, "code": code, "error": str(error or "")})

        self._change(str(message["action"]), str(message["node"]), str(message["address"]), reply)

    def _on_changed(self, peer: str, message: Message) -> None:
        kinds: dict[str, type[ClusterError]] = {"ChangeRefused": ChangeRefused, "OutcomeUnknown": OutcomeUnknown}
        code, text = message["code"], str(message["error"])
        self._changed(message["number"], kinds.get(code, Unavailable)(text) if code else None)

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def _snapshots(self, now: float) -> None:
        self._writer.poll()
        self._receiver.tick(now)
        raft = self._raft
        if not self._snapshot_running and self._policy.due(self._log.bytes_appended, raft.applied_index, now):
            self._take_snapshot()
        for peer in self._wanted:
            sender = self._senders.get(peer)
            if self._snapshot_name and (sender is None or sender.stalled(now)):
                log.info("sending %s to %s", self._snapshot_name, peer)
                send = functools.partial(self._links.send, peer)
                self._senders[peer] = snapshots.Sender(self._snapshot_disk, self._snapshot_name, send, now)
        self._wanted.clear()

    def _take_snapshot(self) -> None:
        index = self._raft.applied_index
        term = self._log.term_at(index)
        assert term is not None
        head, membership = snapshots.Head(1, index, term, self._replica.head()), self._replica.membership
        bytes_appended, began = self._log.bytes_appended, time.monotonic()
        self._snapshot_running = True

        def work(alive: Callable[[], None]) -> None:
            snapshots.write(self._snapshot_disk, "writing.part", head, self.machine.image(), alive)

        def done(error: Exception | None) -> None:
            self._snapshot_running = False
            self._policy.ended(Clock.now())
            self._count_snapshot(error, snapshots.file_name(index, term))
            if error is not None:
                log.error("a snapshot could not be written: %s; the log is kept", error)
                return
            log.info("wrote a snapshot at entry %d in %.1f s", index, time.monotonic() - began)
            self._policy.taken(index, bytes_appended)
            self._snapshot_name = snapshots.file_name(index, term)
            self._raft.based_on(membership)
            self._compact(index)
            self._snapshot_disk.run(lambda: snapshots.prune(self._snapshot_disk), self._ignore_pruned)

        self._writer.start(work, done)

    async def snapshot(self, timeout_s: float) -> Path:
        """Have a snapshot written that holds everything applied by now, unless one does already; returns its file.

        Raises Unavailable when it could not be written in time; the log says why.
        """
        wanted, deadline, begun = self.applied_index, self._loop.time() + timeout_s, False
        while not self._snapshot_name or self._policy.index < wanted:
            if not self._snapshot_running:
                if begun:
                    raise Unavailable("the image could not be written; this node's log says why", retry_after_s=10.0)
                begun = True
                self._take_snapshot()
            elif self._loop.time() > deadline:
                raise Unavailable("the image was not written in time", retry_after_s=10.0)
            await asyncio.sleep(_SNAPSHOT_POLL_S)
        return self.config.data_dir / "snapshots" / self._snapshot_name

    def _count_snapshot(self, error: Exception | None, name: str) -> None:
        metrics = self.metrics
        metrics.snapshot_fork_seconds = self._writer.fork_s
        if error is not None:
            metrics.snapshot_failures += 1
        else:
            metrics.snapshots += 1
            metrics.snapshot_at = self._around.wall_ms() / 1000
            metrics.snapshot_bytes = self._snapshot_disk.size(name)

    def _ignore_pruned(self, result: None, error: Exception | None) -> None:
        if error is not None:
            log.error("old snapshots could not be removed: %s", error)

    def _compact(self, index: int) -> None:
        """Forget the log below the snapshot at `index`, except a tail that spares a slightly slow follower a snapshot.

        What a peer needs that is being sent a snapshot stays too, as long as that is not too much.
        """
        journal, config = self._log, self.config
        if journal.bytes < 2 * config.snapshot_log_bytes:
            index = min([index, *(each.index for each in self._senders.values() if not each.stalled(Clock.now()))])
        if index <= journal.base_index:
            return
        keep = max(index - config.tail_entries, journal.base_index)
        size = 0
        for position in range(index - journal.base_index, keep - journal.base_index, -1):
            size += len(journal[position][0])
            if size > config.tail_bytes:
                keep = journal.base_index + position
                break
        journal.compact(keep)

    def _install(self, name: str, head: snapshots.Head, done: Callable[[], None]) -> None:
        """A snapshot from the leader is whole and durable: it becomes this node's state, unless the log gets there meanwhile.

        It is built beside the present state, which goes on as before, so that heartbeats and callers are answered.
        """
        if self.cluster_id() and replicated.cluster_of(head.replica) != self.cluster_id():
            log.error("%s is of another cluster, and is not installed", name)
            self._snapshot_disk.remove(name)
            done()
            return
        if head.index <= self._raft.applied_index:
            done()
            return
        self._step_by_step(self._restoring(name, head), lambda put: self._installed(name, head, put, done))

    def _restoring(self, name: str, head: snapshots.Head) -> Generator[None, None, _Put | None]:
        try:
            reader = snapshots.Reader(self._snapshot_disk, name)
            put: _Put = yield from self._replica.restoring(head.replica, reader.pieces())
            return put
        except FileNotFoundError:
            return None  # newer ones of this node's own have taken its place meanwhile

    def _installed(self, name: str, head: snapshots.Head, put: _Put | None, done: Callable[[], None]) -> None:
        if put is not None and head.index > self._raft.applied_index:
            self._step_by_step(_steps(put()), lambda nothing: None)
            self._raft.install(head.index, head.term, self._replica.membership)
            self._policy.taken(head.index, self._log.bytes_appended)
            self._snapshot_name = name
            self._submitter.state_replaced(self._replica)
            self._remember_cluster_id()
            self._snapshot_disk.run(lambda: snapshots.prune(self._snapshot_disk), self._ignore_pruned)
            log.info("installed %s", name)
        done()
        self._poke()

    def _step_by_step(self, steps: Generator[None, None, T], done: Callable[[T], None]) -> None:
        """Run `steps` to their end, a few milliseconds at a time, and then call `done` with what they return."""
        if self._stopped:
            return
        began = self._loop.time()
        try:
            while self._loop.time() - began <= self._around.slice_s:
                next(steps)
                if not self._around.slice_s:
                    break
            self._loop.call_later(self._around.pause_s(), self._step_by_step, steps, done)
            return
        except StopIteration as end:
            result = end.value
        except Exception as error:
            self._fail(error)
            return
        try:
            done(result)
        except Exception as error:
            self._fail(error)

    def _on_snapshot_begin(self, peer: str, message: Message) -> None:
        self._receiver.begin(peer, message)

    def _on_snapshot_piece(self, peer: str, message: Message) -> None:
        self._receiver.piece(peer, message)

    def _on_snapshot_held(self, peer: str, message: Message) -> None:
        sender = self._senders.get(peer)
        if sender is not None:
            sender.acknowledged(message["name"], message["offset"], Clock.now())

    def _on_snapshot_installed(self, peer: str, message: Message) -> None:
        if self._senders.pop(peer, None) is not None:
            self._raft.snapshot_installed(peer, message["index"])

    _HANDLERS: dict[str, Callable[[Engine, str, Message], None]] = {
        "present": _on_present,
        "change": _on_change,
        "changed": _on_changed,
        "batch": _on_batch,
        "batch_no": _on_batch_no,
        "read": _on_read,
        "read_index": _on_read_index,
        "round": _on_round,
        "round_ok": _on_round_ok,
        "snapshot_begin": _on_snapshot_begin,
        "snapshot_piece": _on_snapshot_piece,
        "snapshot_held": _on_snapshot_held,
        "snapshot_installed": _on_snapshot_installed,
    }

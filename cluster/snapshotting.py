"""The care for snapshots: when one is written, what the log forgets then, which peer is sent one, how a received one is installed.

Files, the writing child, and both ends of a transfer are snapshots.py's. The log forgets only what a durable snapshot covers.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from quorumq.cluster import replica as replicated
from quorumq.cluster import snapshots
from quorumq.cluster.config import ClusterConfig
from quorumq.cluster.driver import Driver
from quorumq.cluster.errors import Unavailable
from quorumq.cluster.frames import Message
from quorumq.cluster.metrics import ReplicationMetrics
from quorumq.cluster.raft import Raft
from quorumq.cluster.replica import Replica
from quorumq.cluster.seams import Clock
from quorumq.cluster.turns import Turns

log = logging.getLogger("quorumq.cluster")

_POLL_S = 0.05
# How far above this node a snapshot may be: weeks of a million entries a second.
_INDEX_LEAP = 1 << 40
_Put = Callable[[], Iterator[None]]


class SnapshotEnvironment(Protocol):
    """What snapshots need of the machine (cluster/environment.py)."""

    def snapshot_writer(self) -> snapshots.SnapshotWriter: ...
    def wall_ms(self) -> int: ...


class Snapshotting:
    """One node's snapshots, all on its disk `disk`.

    name, index: of the newest sound one; an empty name without any.  cluster_id: the id as far as it is known.
    installed: called when the state was replaced by that of a received one.  sound: whether this node's state is that of the
    others; while it is not, nothing of it is written, kept or sent.  durable: called with the index of a new one.
    majority_ms: the time by most members' wall clocks.
    """

    def __init__(
        self,
        config: ClusterConfig,
        disk: snapshots.SnapshotDisk,
        name: str,
        index: int,
        raft: Raft,
        replica: Replica,
        driver: Driver,
        around: SnapshotEnvironment,
        metrics: ReplicationMetrics,
        *,
        cluster_id: Callable[[], str],
        installed: Callable[[], None],
        sound: Callable[[], bool],
        durable: Callable[[int], None],
        majority_ms: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._config = config
        self._disk = disk
        self._raft = raft
        self._log = raft.journal
        self._replica = replica
        self._driver = driver
        self._around = around
        self._metrics = metrics
        self._cluster_id = cluster_id
        self._installed = installed
        self._sound = sound
        self._durable = durable
        self._majority_ms = majority_ms
        self.name = name
        self._policy = snapshots.Policy(
            config.snapshot_log_bytes,
            config.snapshot_log_entries,
            config.snapshot_interval_ms / 1000,
            0.8 + 0.4 * _place(config),
        )
        if name:
            self._policy.taken(index, 0)
        self._writer = around.snapshot_writer()
        self._turns = Turns(raft)
        self._writer.stall_s = config.snapshot_stall_ms / 1000
        self._running = False
        self._wanted: set[str] = set()
        self._senders: dict[str, snapshots.SnapshotSender] = {}
        self._receiver = snapshots.SnapshotReceiver(disk, raft.links.send, self._install)

    @property
    def index(self) -> int:
        """Index of the last entry that the newest snapshot holds, 0 without any."""
        return self._policy.index if self.name else 0

    def drive(self, now: float) -> None:
        """Do what is due."""
        self._writer.poll()
        self._metrics.snapshot_stalls = self._writer.stalls
        self._receiver.tick(now)
        self._turns.drive(now)
        if not self._running:
            due = self._due(now)
            self._metrics.snapshot_waits = due
            if not due:
                self._turns.over(now)
            elif self._urgent() or self._turns.mine(now):
                self._turns.take(now)
                self._write()
        for peer in self._wanted:
            sender = self._senders.get(peer)
            if self.name and self._sound() and (sender is None or sender.stalled(now)):
                self._send(peer, now)
        self._wanted.clear()

    def _due(self, now: float) -> bool:
        if not self._sound():
            return False
        lacking = bool(self._wanted) and not self.name and self._policy.may(now)
        return lacking or self._policy.due(self._log.bytes_appended, self._raft.applied_index, now)

    def _urgent(self) -> bool:
        """Whether others may be slowed down for it: a peer needs one, or the log grows faster than turns come."""
        lacking = bool(self._wanted) and not self.name
        return lacking or self._policy.overdue(self._log.bytes_appended, self._raft.applied_index)

    def stop(self) -> None:
        """End a writing under way."""
        self._writer.stop()

    # -- writing -----------------------------------------------------------------------------------------------------

    def _write(self, *, hurried: bool = False) -> None:
        """Begin to write. hurried: somebody waits for it."""
        index = self._raft.applied_index
        term = self._log.term_at(index)
        assert term is not None
        head, membership = (
            snapshots.Head(1, index, term, self._replica.head(self._majority_ms() or 0)),
            self._replica.membership,
        )
        bytes_appended, began = self._log.bytes_appended, time.monotonic()
        self._running = True
        self._metrics.snapshot_waits = False
        self._writer.hurried = hurried

        def work(alive: Callable[[], None]) -> None:
            snapshots.write(self._disk, "writing.part", head, self._replica.machine.image(), alive)

        def done(error: Exception | None) -> None:
            self._running = False
            self._policy.ended(Clock.now())
            self._metrics.snapshot_fork_seconds = self._writer.fork_s
            if error is not None:
                self._metrics.snapshot_failures += 1
                log.error("a snapshot could not be written: %s; the log is kept", error)
                return
            log.info("wrote a snapshot at entry %d in %.1f s", index, time.monotonic() - began)
            self._durable(index)
            # A newer one may have been installed meanwhile: then the log begins behind that one, with its members.
            if index >= self._policy.index:
                self._policy.taken(index, bytes_appended)
                self.name = snapshots.file_name(index, term)
                self._count()
                self._raft.based_on(membership)
                self._compact(index)
            self._prune()

        try:
            self._writer.start(work, done)
        except OSError as error:
            # No process or no memory to be had for the writing.
            done(error)

    def _count(self) -> None:
        metrics = self._metrics
        metrics.snapshots += 1
        metrics.snapshot_at = self._around.wall_ms() / 1000
        metrics.snapshot_bytes = self._disk.size(self.name)

    def _compact(self, index: int) -> None:
        """Forget the log below the snapshot at `index`, except a tail that spares a slightly slow follower a snapshot.

        What a peer needs that is being sent a snapshot stays too, as long as that is not too much.
        """
        journal, config = self._log, self._config
        if journal.bytes < 2 * config.snapshot_log_bytes:
            index = min([index, *(each.index for each in self._senders.values() if not each.stalled(Clock.now()))])
        journal.compact(journal.before_tail(index, config.tail_entries, config.tail_bytes))

    def _prune(self) -> None:
        def done(result: None, error: Exception | None) -> None:
            if error is not None:
                log.error("old snapshots could not be removed: %s", error)

        # Under load newer ones come quickly: a slow transfer would begin anew again and again, and never end.
        now = Clock.now()
        sending = {sender.name for sender in self._senders.values() if not sender.stalled(now)}
        self._disk.run(lambda: snapshots.prune(self._disk, sending), done)

    async def snapshot(self, timeout_s: float) -> Path:
        """Have a snapshot written that holds everything applied by now, unless one does already; returns its file.

        Raises Unavailable when it could not be written in time, which the log explains, or this node's state is not that of the others.
        """
        if not self._sound():
            raise Unavailable("this node's state differs from that of the others; ask another one", retry_after_s=10.0)
        loop = self._driver.loop
        wanted, deadline, begun = self._raft.applied_index, loop.time() + timeout_s, False
        while not self.name or self._policy.index < wanted:
            if not self._running:
                if begun:
                    raise Unavailable("the image could not be written; this node's log says why", retry_after_s=10.0)
                begun = True
                self._turns.take(Clock.now())
                self._write(hurried=True)
            elif loop.time() > deadline:
                raise Unavailable("the image was not written in time", retry_after_s=10.0)
            await asyncio.sleep(_POLL_S)
        return self._config.data_dir / "snapshots" / self.name

    # -- sending -----------------------------------------------------------------------------------------------------

    def want(self, peer: str) -> None:
        """The log cannot help `peer` any more."""
        self._wanted.add(peer)

    def _send(self, peer: str, now: float) -> None:
        log.info("sending %s to %s", self.name, peer)
        send = functools.partial(self._raft.links.send, peer)
        try:
            self._senders[peer] = snapshots.SnapshotSender(self._disk, self.name, send, now)
        except OSError as error:
            # Removed by somebody, or on a broken disk: the state is here all the same.
            log.error("%s cannot be sent: %s; another one is to be written", self.name, error)
            self.name = ""

    def lost(self, peer: str) -> None:
        """The link to `peer` is gone."""
        self._senders.pop(peer, None)
        self._turns.peer_down(peer)

    def send_no_more(self) -> None:
        """This node leads no more, or leads anew: peers ask their leader again for what they need."""
        self._senders.clear()

    def handlers(self) -> dict[str, Callable[[str, Message], None]]:
        """Return who takes each type of message."""
        return {
            "snapshot_begin": self.on_begin,
            "snapshot_piece": self.on_piece,
            "snapshot_held": self.on_held,
            "snapshot_installed": self.on_installed,
            "snapshot_turn": self.on_turn,
        }

    def on_held(self, peer: str, message: Message) -> None:
        """`peer` holds a part of the snapshot that it is sent."""
        sender = self._senders.get(peer)
        if sender is not None:
            sender.acknowledged(message["name"], message["offset"], Clock.now())

    def on_installed(self, peer: str, message: Message) -> None:
        """`peer` has put it in place."""
        sender = self._senders.get(peer)
        if sender is not None and message["index"] <= sender.index:
            del self._senders[peer]
            self._raft.snapshot_installed(peer, message["index"])

    def on_turn(self, peer: str, message: Message) -> None:
        """`peer` writes a snapshot, or does not any more."""
        self._turns.on_turn(peer, message, Clock.now())

    # -- receiving ---------------------------------------------------------------------------------------------------

    def on_begin(self, peer: str, message: Message) -> None:
        """The leader offers a snapshot."""
        self._receiver.begin(peer, message)

    def on_piece(self, peer: str, message: Message) -> None:
        """A piece of it."""
        self._receiver.piece(peer, message)

    def _install(self, name: str, head: snapshots.Head, done: Callable[[bool], None]) -> None:
        """A snapshot from the leader is whole and durable: it becomes this node's state, unless the log gets there meanwhile.

        It is built beside the present state, which goes on as before, so that heartbeats and callers are answered.
        """
        if trouble := self._unsuitable(name, head):
            log.error("%s %s, and is not installed", name, trouble)
            self._disk.run(lambda: self._disk.remove(name), lambda result, error: None)
            done(False)
            return
        if head.index <= self._raft.applied_index:
            done(True)
            return
        self._driver.step_by_step(self._restoring(name, head), lambda put: self._put(name, head, put, done))

    def _unsuitable(self, name: str, head: snapshots.Head) -> str:
        # Index and term become those of this node's log: what no leader of this term can hold must not get there.
        if head.term > self._raft.term or head.index - self._raft.applied_index > _INDEX_LEAP:
            return f"ends at entry {head.index} of term {head.term}, which cannot be"
        if name != snapshots.file_name(head.index, head.term):
            return "is called by another's name"
        try:
            owner = replicated.cluster_of(head.replica)
        except msgspec.MsgspecError as error:
            return f"cannot be read ({error})"
        return "is of another cluster" if self._cluster_id() not in ("", owner) else ""

    def _restoring(self, name: str, head: snapshots.Head) -> Generator[None, None, _Put | None]:
        try:
            reader = snapshots.SnapshotReader(self._disk, name)
            put: _Put = yield from self._replica.restoring(head.replica, reader.pieces())
            return put
        except FileNotFoundError:
            return None  # newer ones of this node's own have taken its place meanwhile

    def _put(self, name: str, head: snapshots.Head, put: _Put | None, done: Callable[[bool], None]) -> None:
        if put is not None and head.index > self._raft.applied_index:
            self._driver.step_by_step(_letting_go(put()), lambda nothing: None)
            self._raft.install(head.index, head.term, self._replica.membership)
            self._policy.taken(head.index, self._log.bytes_appended)
            self.name = name
            self._installed()
            self._durable(head.index)
            self._prune()
            log.info("installed %s", name)
        done(True)
        self._driver.poke()


def _letting_go(of: Iterator[None]) -> Generator[None, None, None]:
    yield from of


def _place(config: ClusterConfig) -> float:
    """Between 0 and 1, another one for each node."""
    peers = sorted(config.peers)
    if len(peers) > 1:
        return peers.index(config.node_id) / len(peers)
    return zlib.crc32(config.node_id.encode()) / (1 << 32)

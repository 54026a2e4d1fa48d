"""What a data directory says of its owner, and what a node must learn that began with an empty one."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from quorumq.cluster.config import ClusterConfig
from quorumq.cluster.disk import Disk
from quorumq.cluster.errors import LogDamaged

log = logging.getLogger("quorumq.cluster")

FILE = "identity.json"
REFOUNDING = "recovering"
"""A file that is in a data directory while refounding.py changes it, and names where it puts what was there."""


class Identity(msgspec.Struct):
    """So that a directory is never used by another node or in another cluster.

    cluster_id: empty until it is known; known before anything of that cluster when this node joins it.
    whole: this node holds all that it ever promised. False from the first start on an empty disk until probation ends.
    founders: ids of those with whom alone this node may found a cluster; once written they never change.
    doubted: it is not whole because it was found to hold less than it did, and not because it is new.
    lone: it was begun by a node that never has another beside it (CLOCK=clients), and is of use for no other.
    noted: beside this file lies one that says how far log and snapshots reached (held.py). Version 0.1.0 leaves both alone, or drops this.
    """

    format: int
    node_id: str
    cluster_name: str
    cluster_id: str
    whole: bool
    founders: list[str] = []
    noted: bool = False
    doubted: bool = False
    lone: bool = False

    def encode(self) -> bytes:
        """As it lies on the disk."""
        return msgspec.json.encode(self)

    def store(self, disk: Disk) -> None:
        """Write it; durable when this returns. Raises OSError."""
        disk.write_atomic(FILE, self.encode())


def read(disk: Disk) -> Identity:
    """Read it. Raises FileNotFoundError, and LogDamaged when it is unreadable."""
    try:
        return msgspec.json.decode(disk.read(FILE), type=Identity)
    except msgspec.MsgspecError as error:
        raise LogDamaged(f"{FILE} cannot be read: {error}") from None


def load(disk: Disk, node_id: str, cluster_name: str, *, lone: bool = False) -> Identity:
    """Read it, or write the first one.

    Raises LogDamaged when the directory is another node's or cluster's, was begun in another way, or is unreadable.
    """
    if REFOUNDING in disk.list():
        raise LogDamaged(
            "`quorumq recover` did not come to its end here: give it again, and it undoes what it had begun"
        )
    try:
        held = read(disk)
    except FileNotFoundError:
        first = Identity(1, node_id, cluster_name, "", False, lone=lone)
        first.store(disk)
        return first
    if held.node_id != node_id:
        raise LogDamaged(f"the data directory belongs to node {held.node_id!r}, this node is {node_id!r}")
    if held.cluster_name != cluster_name:
        raise LogDamaged(
            f"the data directory belongs to cluster {held.cluster_name!r}, this node's is {cluster_name!r}"
        )
    if held.lone != lone:
        raise LogDamaged(
            "CLOCK=clients needs a new data directory: this one was begun without it, and may have had members"
            if lone
            else "the data directory was begun with CLOCK=clients, for tests: without that it is of no use"
        )
    return held


class IdentityFile:
    """The identity in force, and the file it was read from. Changes are written one after the other, none over another."""

    def __init__(self, disk: Disk, held: Identity) -> None:
        self._disk = disk
        self._changes: deque[tuple[dict[str, Any], Callable[[Exception | None], None]]] = deque()
        self.held = held

    @classmethod
    def of(cls, disk: Disk, config: ClusterConfig) -> IdentityFile:
        """Read it, or write the first one. Raises LogDamaged; see `load`."""
        return cls(disk, load(disk, config.node_id, config.cluster_name, lone=config.lone))

    def write(self, done: Callable[[Exception | None], None], **changes: Any) -> None:
        """Write a changed identity, and put it in force when it is durable; not at all when it cannot be written."""
        self._changes.append((changes, done))
        if len(self._changes) == 1:
            self._write()

    def _write(self) -> None:
        changes, done = self._changes[0]
        changed = msgspec.structs.replace(self.held, **changes)

        def written(result: None, error: Exception | None) -> None:
            self._changes.popleft()
            if error is not None:
                log.error("%s could not be written: %s", FILE, error)
            else:
                self.held = msgspec.structs.replace(self.held, **changes)
            if self._changes:
                self._write()
            done(error)

        self._disk.run(lambda: changed.store(self._disk), written)

    def keep_now(self, **changes: Any) -> None:
        """At the start, before anything else is written: durable when this returns. Raises OSError."""
        changed = msgspec.structs.replace(self.held, **changes)
        if changed != self.held:
            changed.store(self._disk)
            self.held = changed

    async def keep(self, **changes: Any) -> None:
        """The same, and wait until it is written or has failed."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: Exception | None) -> None:
            if not ended.done():
                ended.set_result(None)

        self.write(done, **changes)
        await ended

    def remember_cluster(self, cluster_id: str) -> None:
        """The log names the cluster: known at once, and written for the next start. The log holds it if that fails."""
        self.held = msgspec.structs.replace(self.held, cluster_id=cluster_id)
        self.write(lambda error: None)


class Probation:
    """What a node that began with an empty disk must learn before it may vote: whether it is new, or was wiped.

    It may have voted and promised before the wipe. So it waits until every other voter has told its term and whether it has
    a history.
    """

    def __init__(self, *, history: bool, not_before: float = float("-inf")) -> None:
        self.history = history
        self.not_before = not_before
        """Without a history it does not end before this time of the monotonic clock."""
        self.ends_at: int | None = None
        """The position of the log that must be durable before it ends; None while something has to be learnt."""
        self.writing = False
        self._terms: dict[str, int] = {}

    def present(self, peer: str, term: int, history: bool) -> None:
        """A member told where it stands."""
        self.history = self.history or history
        self._terms[peer] = max(term, self._terms.get(peer, 0))

    def term(self, peers: Sequence[str]) -> int:
        """The highest term that any of `peers` told: this node voted and acknowledged in no later one before."""
        return max((self._terms.get(peer, 0) for peer in peers), default=0)

    def missing(self, peers: Sequence[str]) -> list[str]:
        """Those of `peers` that have not told yet."""
        return [peer for peer in peers if peer not in self._terms]

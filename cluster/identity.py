"""What a data directory says of its owner, and what a node must learn that began with an empty one."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from cluster.disk import Disk
from cluster.errors import LogDamaged

log = logging.getLogger("quorumq.cluster")

_FILE = "identity.json"


class Identity(msgspec.Struct):
    """So that a directory is never used by another node or in another cluster.

    cluster_id: empty until it is known; known before anything of that cluster when this node joins it.
    whole: this node holds all that it ever promised. False from the first start on an empty disk until probation ends.
    founders: ids of those with whom alone this node may found a cluster; once written they never change.
    """

    format: int
    node_id: str
    cluster_name: str
    cluster_id: str
    whole: bool
    founders: list[str] = []

    def encode(self) -> bytes:
        """As it lies on the disk."""
        return msgspec.json.encode(self)

    def store(self, disk: Disk) -> None:
        """Write it; durable when this returns. Raises OSError."""
        disk.write_atomic(_FILE, self.encode())


def load(disk: Disk, node_id: str, cluster_name: str) -> Identity:
    """Read it, or write the first one. Raises LogDamaged when the directory is another node's or cluster's, or unreadable."""
    try:
        held = msgspec.json.decode(disk.read(_FILE), type=Identity)
    except FileNotFoundError:
        first = Identity(1, node_id, cluster_name, "", False)
        first.store(disk)
        return first
    except msgspec.MsgspecError as error:
        raise LogDamaged(f"{_FILE} cannot be read: {error}") from None
    if held.node_id != node_id:
        raise LogDamaged(f"the data directory belongs to node {held.node_id!r}, this node is {node_id!r}")
    if held.cluster_name != cluster_name:
        raise LogDamaged(
            f"the data directory belongs to cluster {held.cluster_name!r}, this node's is {cluster_name!r}"
        )
    return held


class IdentityFile:
    """The identity in force, and the file it was read from. Changes are written one after the other, none over another."""

    def __init__(self, disk: Disk, held: Identity) -> None:
        self._disk = disk
        self._changes: deque[tuple[dict[str, Any], Callable[[Exception | None], None]]] = deque()
        self.held = held

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
                log.error("%s could not be written: %s", _FILE, error)
            else:
                self.held = msgspec.structs.replace(self.held, **changes)
            if self._changes:
                self._write()
            done(error)

        self._disk.run(lambda: changed.store(self._disk), written)

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

    def __init__(self, *, history: bool) -> None:
        self.history = history
        self.term = 0
        self.ending = False
        self._heard: set[str] = set()

    def present(self, peer: str, term: int, history: bool) -> None:
        """A member told where it stands."""
        self._heard.add(peer)
        self.history = self.history or history
        self.term = max(self.term, term)

    def missing(self, peers: Sequence[str]) -> list[str]:
        """Those of `peers` that have not told yet."""
        return [peer for peer in peers if peer not in self._heard]

"""What a data directory says of its owner, and what a node must learn that began with an empty one."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cluster.disk import Disk
from cluster.errors import LogDamaged

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

"""Who belongs to this node's cluster, as far as its log says: whether a stranger is listened to, and whether this node was sent away."""

from __future__ import annotations

from quorumq.cluster.driver import Driver
from quorumq.cluster.errors import LogDamaged, NodeRemoved, NotUnderstood
from quorumq.cluster.identity import IdentityFile
from quorumq.cluster.links import Links
from quorumq.cluster.membership import decode
from quorumq.cluster.raft import Raft
from quorumq.cluster.replica import Replica
from quorumq.cluster.routes import Routes
from quorumq.cluster.status import Readiness

_STRANGERS_MAX = 16


class Belonging:
    """One node's view of it."""

    def __init__(
        self,
        replica: Replica,
        raft: Raft,
        links: Links,
        routes: Routes,
        identity: IdentityFile,
        driver: Driver,
        readiness: Readiness,
    ) -> None:
        self._replica = replica
        self._raft = raft
        self._links = links
        self._routes = routes
        self._identity = identity
        self._driver = driver
        self._readiness = readiness

    @property
    def cluster_id(self) -> str:
        """The id that the first leader gave, empty before that."""
        return self._replica.cluster_id or self._identity.held.cluster_id

    def remember(self) -> None:
        """Keep the id of the cluster beside the data. Raises LogDamaged when the data is another one's."""
        held, name = self._identity.held.cluster_id, self._replica.cluster_id
        if name in ("", held):
            return
        if held:
            raise LogDamaged(f"the data is of cluster {held}, the log of cluster {name}")
        self._identity.remember_cluster(name)

    def send_away(self) -> None:
        """Close the connections of removed members, so that they dial again and are told.

        One that dialled between the entry of its removal and the commit of that was still listened to as a stranger.
        """
        if self._replica.membership:
            for peer in decode(self._replica.membership).removed:
                if peer not in self._raft.membership.seats:
                    self._routes.drop_peer(peer)

    def seated_at(self) -> int:
        """The entry up to which this node knows that it is a member, 0 when it does not."""
        held = self._replica.membership
        return self._raft.applied_index if held and self._raft.id in decode(held).seats else 0

    def was_removed(self, peer: str, seated_at: int = 0) -> bool:
        """Whether `peer` was a member once, and its removal is committed.

        seated_at: what `peer` says of itself. Whoever has not come as far knows of a removal after which it was added again, as a node
        that joins by an older snapshot does: that one is not told that it was sent away, for it would believe it.
        """
        held = self._replica.membership
        return bool(held) and peer in decode(held).removed and seated_at <= self._raft.applied_index

    def may_adopt(self, peer: str, seated_at: int = 0) -> bool:
        """Whether a peer that proved itself is listened to though this node does not know it.

        It may be a member, the leader even, that joined while this node was away: only its entries can say so.
        """
        return (
            not self.was_removed(peer, seated_at)
            and len(self._links.addresses) < len(self._raft.membership.seats) + _STRANGERS_MAX
        )

    def refused(self, peer: str, code: str, reason: str) -> None:
        """`peer` refused this node; the link has logged it and goes on trying, unless this node was removed or is too old."""
        if code == "level":
            self._driver.fail(NotUnderstood(f"{peer}: {reason}"))
        if code == "not_member":
            self._readiness.is_stranger = True
        if code == "removed" and self._identity.held.whole:
            self._driver.fail(
                NodeRemoved(
                    f"{peer}: {reason}; to join again, start with an empty data directory and add the member anew"
                )
            )

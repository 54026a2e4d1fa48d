"""What a node knows of itself and of its cluster, as callers see it; and whether it can serve, with the reason when it cannot.

Only views: nothing here decides anything for the consensus.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from cluster.identity import Probation
from cluster.raft import Raft


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


class PeerAddresses(Protocol):
    """What is known of the ways to the members (cluster/transport.py, and the simulation's)."""

    addresses: dict[str, str]

    def connected(self, peer: str) -> bool: ...


def members(raft: Raft, links: PeerAddresses) -> list[Member]:
    """All members of the membership in force, by id."""
    seen = []
    last = raft.journal.last_index
    for member, seat in sorted(raft.membership.seats.items()):
        mine = member == raft.id
        match = last if mine else raft.match_index(member)
        known = raft.is_leader and (mine or match > 0)
        seen.append(
            Member(
                id=member,
                address=links.addresses.get(member, seat.address),
                role=_role(raft, member, voter=seat.voter),
                voter=seat.voter,
                connected=mine or links.connected(member),
                match_index=match if known else None,
                lag=max(0, last - match) if known else None,
                self=mine,
            )
        )
    return seen


def _role(raft: Raft, member: str, *, voter: bool) -> str:
    if not voter:
        return "learner"
    if raft.leader is None:
        return "unknown"
    return "leader" if member == raft.leader else "follower"


class Readiness:
    """Whether a node can serve: it has caught up once since it started, and a leader was heard of lately.

    patience_s: for how long no leader at all is taken for an election under way.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._once = False
        self._leader_seen_at = float("-inf")

    def look(self, raft: Raft, now: float) -> None:
        """Take note of how things are."""
        if raft.leader_alive():
            self._leader_seen_at = now
            if not self._once and raft.caught_up():
                self._once = True

    def missing(self, raft: Raft, probation: Probation | None, looking: str, now: float) -> str:
        """Why this node cannot serve, empty when it can.

        looking: what the search for a cluster waits for, if it does.
        """
        if not self._once:
            if looking and not raft.membership_known:
                return f"no cluster yet: {looking}"
            silent = [] if probation is None else probation.missing(raft.peers)
            if silent and probation is not None and not probation.history:
                return f"first start: waiting for {', '.join(silent)}"
            return "catching up" if raft.leader else "no leader yet"
        return "no leader" if now - self._leader_seen_at > self._patience_s else ""

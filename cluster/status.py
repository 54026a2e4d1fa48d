"""What a node knows of itself and of its cluster, as callers see it; and whether it can serve, with the reason when it cannot.

Only views: nothing here decides anything for the consensus.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import msgspec

from quorumq.cluster.identity import Probation
from quorumq.cluster.levels import Announced
from quorumq.cluster.raft import Raft
from quorumq.cluster.version import VERSION


class Member(msgspec.Struct, frozen=True):
    """One member as this node sees it.

    role: leader, follower, learner or unknown.  match_index, lag (entries behind): known to the leader only.
    version, level (the highest feature level that it knows): None while it is not connected; an older version that says nothing of
    itself has an empty version.  doors: ports of its own that it told the others, by name.
    via: the member through which messages go to it, because there is no link (routes.py).
    clock_offset_ms: its wall clock less the log's clock; None while it is not known, and for a learner.
    """

    id: str
    address: str
    role: str
    voter: bool
    connected: bool
    match_index: int | None
    lag: int | None
    self: bool
    version: str | None = None
    level: int | None = None
    clock_offset_ms: int | None = None
    via: str | None = None
    doors: dict[str, int] = {}


class Status(msgspec.Struct, frozen=True):
    """What a node knows of itself and its cluster at this moment; a follower's may be stale.

    write_failed_since_ms: when writing the log began to fail, in milliseconds since the epoch, or None while it can be written.
    log_clock_ms: the log's clock, in milliseconds since the epoch, or None while this node does not know it.
    ready_reason: why it is not ready, empty when it is.
    apart: how its state differs from that of a majority which agrees, empty when it does not.  differing: members whose state
    differs from this node's.  agreed_index: the newest entry at which all that could be compared were equal; 0 for none.
    level: the feature level in force.  level_known: the highest that this node knows.
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
    apart: str = ""
    differing: list[str] = []
    agreed_index: int = 0
    version: str = VERSION
    level: int = 0
    level_known: int = 0
    log_clock_ms: int | None = None


class PeerAddresses(Protocol):
    """What is known of the ways to the members (cluster/links.py, and the simulation's)."""

    @property
    def addresses(self) -> dict[str, str]: ...
    def connected(self, peer: str) -> bool: ...
    def via(self, peer: str) -> str | None: ...


def members(
    raft: Raft, links: PeerAddresses, announced: Callable[[str], Announced | None], offsets: Mapping[str, int]
) -> list[Member]:
    """All members of the membership in force, by id."""
    seen = []
    last = raft.journal.last_index
    for member, seat in sorted(raft.membership.seats.items()):
        mine = member == raft.id
        match = last if mine else raft.match_index(member)
        known = raft.is_leader and (mine or match > 0)
        said = announced(member)
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
                version=None if said is None else said.version,
                level=None if said is None else said.level,
                clock_offset_ms=offsets.get(member),
                via=None if mine else links.via(member),
                doors={} if said is None else said.doors,
            )
        )
    return seen


def _role(raft: Raft, member: str, *, voter: bool) -> str:
    if not voter:
        return "learner"
    if raft.leader is None:
        return "unknown"
    return "leader" if member == raft.leader else "follower"


FAR = 10_000
"""Entries: a node that has been further behind than this for a while is not to serve."""
NEAR = 100
"""Entries: until it is no further behind than this."""


class Readiness:
    """Whether a node can serve: it has caught up once since it started, with a cluster that has its id, a leader was heard of lately,
    and it keeps up.

    patience_s: for how long no leader at all is taken for an election under way, and being far behind for something that passes.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._once = False
        self._leader_seen_at = float("-inf")
        self._kept_up_at = float("-inf")
        self._lags = False
        # Whether somebody who proved to be of this cluster has said that this node is not.
        self.is_stranger = False

    def look(self, raft: Raft, cluster_id: str, now: float) -> None:
        """Take note of how things are. cluster_id: as the entries say that are applied here; empty before they do."""
        if not raft.leader_alive():
            return
        if now - self._leader_seen_at > self._patience_s:
            # It was away from the cluster, which went on: what it missed comes first.
            self._lags = True
        self._leader_seen_at = now
        if not self._once and cluster_id and raft.caught_up():
            self._once = True
        behind = raft.behind
        if behind <= FAR:
            self._kept_up_at = now
        if behind <= NEAR:
            self._lags = False
        elif now - self._kept_up_at > self._patience_s:
            self._lags = True

    def missing(
        self, raft: Raft, probation: Probation | None, doubted: Collection[str], looking: str, now: float
    ) -> str:
        """Why this node cannot serve, empty when it can.

        doubted: members that may have lost what they promised.  looking: what the search for a cluster waits for, if it does.
        """
        if not self._once:
            if looking and not raft.membership_known:
                return f"no cluster yet: {looking}"
            silent = [] if probation is None else probation.missing(raft.peers)
            if silent and probation is not None and not probation.history:
                return f"first start: waiting for {', '.join(silent)}"
            if raft.leader:
                return "catching up"
            own = raft.membership.seats.get(raft.id)
            if self.is_stranger and own is not None:
                return f"not a member yet: `quorumq members add {raft.id} {own.address}` makes it one"
            return "no leader yet" + _without(raft, probation, doubted)
        if now - self._leader_seen_at > self._patience_s:
            return "no leader" + _without(raft, probation, doubted)
        return f"catching up: {raft.behind:,} entries behind" if self._lags else ""


def _without(raft: Raft, probation: Probation | None, doubted: Collection[str]) -> str:
    """Whose word counts for nothing where every one may be needed."""
    silent = [] if probation is None or not probation.history else probation.missing(raft.peers)
    said = (
        [f"; {', '.join(sorted(doubted))} may have lost what it promised and cannot help to elect"] if doubted else []
    )
    if silent:
        said.append(f"; this node may have lost what it promised and waits for {', '.join(silent)}")
    return "".join(said)

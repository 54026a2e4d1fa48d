"""The leader's care for push workers: which node serves which registration.

It looks at who is connected from time to time while there are registrations, and has the log say who serves what. Jobs do not
depend on it: what may be taken is decided where a pull is applied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from quorumq.node.batching import Batcher
from quorumq.node.engine import ReplicatedLog
from quorumq.node.leader.duty import TimedDuty
from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operation import Entry, Operation
from quorumq.node.machine.operations.pushers import AssignPushers, LeavePushing
from quorumq.node.machine.state.pusher import Pushers

# How often the leader looks who is there.
LOOK_S = 0.2
# A node that has been out of reach for so long is served by others.
LOST_S = 0.4
# One that has taken no entry for so long, though there were some, is as good as out of reach, connected or not.
STUCK_S = 0.8
# One that was lost gets registrations again when it has been there for so long: longer after each loss, and as at first when
# it has been there for STEADY_S.
BACK_S = 2.0
BACK_MAX_S = 60.0
STEADY_S = 120.0
# Registrations that change hands in one operation.
MOVES_MAX = 5_000
AGAIN_S = 0.2


class NodePresence:
    """What the leader knows of one node. Times are the loop's."""

    __slots__ = ("_match_index", "_moved_at", "connected", "losses", "since", "up")

    def __init__(self, connected: bool, now: float) -> None:
        self.connected = connected
        self.since = now
        # A leader that begins takes those for present that it sees, and gives the others the time to come.
        self.up = True
        self.losses = 0
        self._match_index: int | None = None
        self._moved_at = now

    def is_stuck(self, match_index: int | None, lag: int | None, now: float) -> bool:
        """Whether a node, by what the leader knows of its log, has stood still for a while."""
        if not lag or match_index != self._match_index:
            self._match_index, self._moved_at = match_index, now
        return now - self._moved_at >= STUCK_S

    def look(self, connected: bool, now: float) -> bool:
        """Take a look; return whether the node counts as up."""
        if connected != self.connected:
            self.connected, self.since = connected, now
        lasted = now - self.since
        if self.up and not connected and lasted >= LOST_S:
            self.up = False
            self.losses += 1
        elif not self.up and connected and lasted >= min(BACK_S * 2 ** (self.losses - 1), BACK_MAX_S):
            self.up = True
        elif self.up and connected and lasted >= STEADY_S:
            self.losses = 0
        return self.up


class AssignmentDuty(TimedDuty):
    """Spreads the registrations while this node leads."""

    again_s = AGAIN_S

    def __init__(self, engine: ReplicatedLog, machine: Machine, batcher: Batcher, clock: Callable[[], int]) -> None:
        super().__init__(engine, machine, batcher, clock)
        self._presences: dict[str, NodePresence] = {}
        self._seen: tuple[Pushers | None, int] = (None, -1)
        # For which registrations and which nodes there was nothing to do.
        self._settled: tuple[int, list[str]] = (-1, [])

    def _on_role_change(self, leads: bool) -> None:
        self._presences = {}
        self._settled = (-1, [])
        super()._on_role_change(leads)

    def _on_entry(self, entry: Entry) -> None:
        pushers = self._machine.state.pushers
        if self._leads and (self._seen[1] != pushers.version or self._seen[0] is not pushers):
            self.look()

    def _due(self) -> Operation | None:
        pushers = self._machine.state.pushers
        self._seen = pushers, pushers.version
        if not pushers.by_queue:
            self._sleep_until(0)
            return None
        self._sleep_for(LOOK_S)
        up, gone = self._present(pushers)
        if gone:
            return LeavePushing(gone[0])
        if self._settled != (pushers.version, up):
            moved = moves(pushers, up)
            if moved:
                return AssignPushers(moved)
            self._settled = pushers.version, up
        return None

    def _present(self, pushers: Pushers) -> tuple[list[str], list[str]]:
        """Return the nodes that call endpoints: those that are up, and those that are no members any more."""
        now = asyncio.get_running_loop().time()
        members = {member.id: member for member in self._engine.status().members}
        self._presences = {node: seen for node, seen in self._presences.items() if node in pushers.nodes}
        up: list[str] = []
        for node in pushers.nodes:
            member = members.get(node)
            if member is None:
                continue
            presence = self._presences.get(node)
            if presence is None:
                presence = self._presences[node] = NodePresence(member.connected, now)
            is_stuck = presence.is_stuck(member.match_index, member.lag, now)
            if presence.look(member.connected and not is_stuck, now):
                up.append(node)
        return up, [node for node in pushers.nodes if node not in members]


def moves(pushers: Pushers, up: Iterable[str], limit: int = MOVES_MAX) -> dict[str, list[str]]:
    """Return which registrations which node should take over, so that all are served and no node serves many more than another.

    Those that nobody serves, or a node that is not up, go to the nodes that have the fewest. Others move only when the
    difference is worth it: more than one, and more than a quarter of the fair share.
    """
    loads = {node: pushers.count_of(node) for node in sorted(up)}
    if not loads:
        return {}
    moved: dict[str, list[str]] = {}
    count = 0
    for pusher in pushers.by_queue.values():
        if count >= limit:
            return moved
        if pusher.node not in loads:
            to = least(loads)
            moved.setdefault(to, []).append(pusher.queue)
            loads[to] += 1
            count += 1
    share = len(pushers.by_queue) // len(loads)
    if max(loads.values()) - min(loads.values()) <= max(1, share // 4):
        return moved
    for node in loads:
        for pusher in list(pushers.of_node(node)):
            to = least(loads)
            if loads[node] - loads[to] <= 1 or count >= limit:
                break
            moved.setdefault(to, []).append(pusher.queue)
            loads[node] -= 1
            loads[to] += 1
            count += 1
    return moved


def least(loads: Mapping[str, int]) -> str:
    """Return the node that serves the fewest."""
    return min(loads, key=lambda node: (loads[node], node))

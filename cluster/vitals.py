"""What members send each other all the time, twice a second: how their clock and their disk are.

From the clocks comes what steers the log's clock (logclock.py), and the alarm about one that is wrong. From the disks a leader whose
own hangs learns whether others could go on without it. A member of a version that tells nothing is one of whom nothing is known.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from quorumq.cluster.frames import Message
from quorumq.cluster.health import DiskHealth
from quorumq.cluster.logclock import Bounds, LogClock, bounds
from quorumq.cluster.messages import TIME_MAX
from quorumq.cluster.raft import Raft
from quorumq.cluster.seams import Clock

log = logging.getLogger("quorumq.clock")

PERIOD_S = 0.5
_STEER_S = 0.02
_SAMPLES = 3
"""Of the last so many messages the one that took the shortest way counts."""
_SILENT_S = 3.0
"""A member that has been connected for so long and told nothing tells nothing."""
_ALARM_AGAIN_S = 600.0


def _bounded(ms: int) -> int:
    """A clock may say anything; a message must not."""
    return max(0, min(ms, TIME_MAX - 1))


class _Member:
    """What one member sent. walls: its wall clock less this node's monotonic one, in milliseconds."""

    __slots__ = ("disk_ms", "received_at", "up_at", "walls")

    def __init__(self, now: float) -> None:
        self.up_at = now
        self.walls: deque[float] = deque(maxlen=_SAMPLES)
        self.disk_ms = 0
        self.received_at: float | None = None


class Vitals:
    """This node's own, and what the connected members told of theirs.

    wall_ms: this node's wall clock.  asleep_s: for how long its machine was suspended.  alarm_ms: a clock that is off by more than
    this is worth a warning.  tells_nothing: whether a peer is known to be of a version that has no vitals.  reaches: the members that this
    node has links to; on_reaches: takes what another one says of that (routes.py).
    """

    def __init__(
        self,
        raft: Raft,
        clock: LogClock,
        disk: DiskHealth,
        *,
        wall_ms: Callable[[], int],
        asleep_s: Callable[[], float],
        alarm_ms: int,
        tells_nothing: Callable[[str], bool],
        reaches: Callable[[], tuple[str, ...]],
        on_reaches: Callable[[str, tuple[str, ...]], None],
    ) -> None:
        self._raft = raft
        self._clock = clock
        self._disk = disk
        self._wall_ms = wall_ms
        self._asleep_s = asleep_s
        self._alarm_ms = alarm_ms
        self._tells_nothing = tells_nothing
        self._reaches = reaches
        self._on_reaches = on_reaches
        self._members: dict[str, _Member] = {}
        self._sent_at = float("-inf")
        self._driven_at = float("-inf")
        self._led = False
        self._alarms: dict[str, float] = {}

    # -- between members ---------------------------------------------------------------------------------------------

    def peer_up(self, peer: str) -> None:
        """The link to `peer` stands: before anything else it is told how this node is."""
        if peer not in self._members:
            self._members[peer] = _Member(Clock.now())
        self._send(peer)

    def peer_down(self, peer: str) -> None:
        """What is known of `peer` may be past."""
        self._members.pop(peer, None)

    def _send(self, peer: str) -> None:
        self._raft.links.send(
            peer,
            {
                "type": "vitals",
                "wall_ms": _bounded(self._wall_ms()),
                "log_ms": _bounded(self._clock.read(Clock.now())) if self._clock.settled else None,
                "disk_ms": int(self._disk.waiting_s * 1000),
                "reaches": self._reaches(),
            },
        )

    def on_vitals(self, peer: str, message: Message) -> None:
        """`peer` sends how it is."""
        now = Clock.now()
        member = self._members.setdefault(peer, _Member(now))
        member.walls.append(message["wall_ms"] - now * 1000)
        member.disk_ms, member.received_at = message["disk_ms"], now
        self._on_reaches(peer, message.get("reaches", ()))
        log_ms = message["log_ms"]
        if log_ms is None or self._raft.is_leader or peer not in self._raft.peers:
            return
        if peer == self._raft.leader or not self._clock.settled:
            self._clock.synchronize(log_ms, now)

    # -- the clocks --------------------------------------------------------------------------------------------------

    def drive(self, applied_ms: int, now: float) -> None:
        """Do what is due. applied_ms: the time of the last entry applied."""
        raft, clock = self._raft, self._clock
        clock.applied(applied_ms, now)
        if clock.settled and 0 <= now - self._driven_at < _STEER_S and raft.is_leader == self._led:
            return
        self._driven_at, self._led = now, raft.is_leader
        if clock.slept(self._asleep_s()):
            # The others' clocks were compared with one that stood still meanwhile.
            self._members = {peer: _Member(now) for peer in self._members}
        if raft.is_leader:
            clock.lead(self._bounds(now), now)
        else:
            clock.follow(now)
        if now - self._sent_at >= PERIOD_S:
            self._sent_at = now
            for peer in raft.membership.seats:
                if peer != raft.id:
                    self._send(peer)
            self._watch(now)

    def _walls(self, now: float) -> dict[str, int]:
        """The wall clocks of the voters, as far as they are known."""
        walls = {
            peer: int(max(self._members[peer].walls) + now * 1000)
            for peer in self._raft.peers
            if peer in self._members and self._members[peer].walls
        }
        if self._raft.voter:
            walls[self._raft.id] = self._wall_ms()
        return walls

    def _bounds(self, now: float) -> Bounds | None:
        raft, walls = self._raft, list(self._walls(now).values())
        # Next to members of a version that tells nothing, this node's clock counts for theirs.
        lacking = raft.quorum - len(walls)
        if lacking > 0 and raft.voter and len(self._silent(now)) >= lacking:
            walls += [self._wall_ms()] * lacking
        return bounds(walls, len(raft.membership.voters))

    def _silent(self, now: float) -> list[str]:
        raft = self._raft
        return [
            peer
            for peer in raft.peers
            if (member := self._members.get(peer))
            and member.received_at is None
            and (now - member.up_at > _SILENT_S or self._tells_nothing(peer))
        ]

    def majority_ms(self) -> int | None:
        """The time by the wall clocks of a majority; None while they are not known, or do not agree."""
        found = self._bounds(Clock.now())
        return found.low if found is not None and found.agree else None

    def offsets(self) -> dict[str, int]:
        """Wall clock less the log's clock, in milliseconds, of this node and of the voters that told."""
        now = Clock.now()
        if not self._clock.settled:
            return {}
        log_ms = self._clock.read(now)
        return {peer: wall - log_ms for peer, wall in self._walls(now).items()}

    def _watch(self, now: float) -> None:
        """Warn of clocks that are off: the leader of all, another node of its own."""
        raft = self._raft
        offsets = self.offsets()
        for peer in sorted(offsets if raft.is_leader else offsets.keys() & {raft.id}):
            off = abs(offsets[peer]) > self._alarm_ms
            if off and now - self._alarms.get(peer, float("-inf")) > _ALARM_AGAIN_S:
                self._alarms[peer] = now
                log.warning(
                    "the clock of %s is %.1f s %s the log's clock", peer, abs(offsets[peer]) / 1000,
                    "ahead of" if offsets[peer] > 0 else "behind",
                )  # fmt: skip
            elif not off and peer in self._alarms and abs(offsets[peer]) < self._alarm_ms / 2:
                del self._alarms[peer]
                log.info("the clock of %s agrees with the log's clock again", peer)

    def tells(self, peer: str) -> bool:
        """Whether `peer` has told how it is: so it is of a version that does."""
        member = self._members.get(peer)
        return member is not None and member.received_at is not None

    # -- the disks ---------------------------------------------------------------------------------------------------

    def could_go_on(self) -> bool:
        """Whether a majority could be formed without this node: one other's disk is said to be well, and none needed hangs."""
        raft, well, unknown = self._raft, 0, 0
        for peer in raft.peers:
            member = self._members.get(peer)
            if member is None or not raft.links.connected(peer):
                continue
            if member.received_at is None:
                unknown += 1
            elif Clock.now() - member.received_at < 3 * PERIOD_S and self._disk.is_well(member.disk_ms):
                well += 1
        return bool(well) and well + unknown >= raft.quorum

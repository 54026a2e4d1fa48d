"""The log's clock: the time that a leader stamps into entries, and every other node's idea of it.

It goes on with this node's monotonic clock from where the leader before left it. A majority's wall clocks steer it, by a twentieth of
its speed at most, so that no wall clock that is wrong, or put right, moves locks and delays. Only where there is nothing to go on from,
after a start of all nodes or a suspension of this machine, is it what the majority's clocks say, at once. What the
others' clocks say is vitals.py's to know.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from datetime import UTC, datetime
from typing import NamedTuple

log = logging.getLogger("quorumq.clock")

SLEW_MAX = 0.05
"""How much faster or slower than time the log's clock may go."""
_HORIZON_S = 1.0
"""What the clock is off by is made up for within so long, as far as SLEW_MAX allows."""
_FOLLOW_MAX = 0.1
"""The same for a node that follows: fast enough to stay with a leader that makes up for something."""
_AGREE_MS = 1000
"""Wall clocks that are no further apart than this agree."""
SETTLE_S = 5.0
"""A leader that has no clock to go on from waits so long for members whose clocks decide between those that differ."""
_ASLEEP_S = 1.0
"""A machine that was suspended for less than this was not."""


class Bounds(NamedTuple):
    """What the voters' wall clocks say, in milliseconds since the epoch.

    low: a majority's have reached it.  high: a majority's have not passed it.  Equal where all of an odd number are known.
    whole: all of them are known.
    """

    low: int
    high: int
    whole: bool

    @property
    def agree(self) -> bool:
        """Whether it makes no difference which one counts."""
        return self.whole or self.high - self.low <= _AGREE_MS


def bounds(walls: Collection[int], voters: int) -> Bounds | None:
    """What so many of the voters' wall clocks say; None while those of no majority are known."""
    quorum = voters // 2 + 1
    if len(walls) < quorum or not voters:
        return None
    ordered = sorted(walls)
    return Bounds(ordered[-quorum], ordered[quorum - 1], len(ordered) == voters)


class LogClock:
    """One node's. Times of its own are monotonic seconds, those of the log milliseconds since the epoch.

    asleep_s: for how long the machine has been suspended by now, as far as the monotonic clock does not count it.
    """

    def __init__(self, now: float, asleep_s: float) -> None:
        self._ms = 0.0
        self._at = now
        self._rate = 0.0  # faster than time by this share, for _HORIZON_S
        self._asleep_s = asleep_s
        self._leads_since: float | None = None
        self._last_ms = 0
        self.settled = False
        """Whether this is the log's clock: a leader told it, or a majority's wall clocks."""
        self.jumps = 0
        """Times that it was set by the majority's clocks at once."""

    def read(self, now: float) -> int:
        """What it says."""
        return int(self._says(now))

    def _says(self, now: float) -> float:
        # Not rounded: what a step would lose to that, fifty times a second, is as much as the clock may be steered by.
        passed = now - self._at
        return self._ms + 1000 * (passed + self._rate * min(passed, _HORIZON_S))

    def stamp(self, now: float) -> int:
        """What the next entry is stamped with: never less than the one before."""
        self._last_ms = max(self._last_ms, self.read(now))
        return self._last_ms

    def _set(self, ms: float, now: float, rate: float = 0.0) -> None:
        self._ms, self._at, self._rate = ms, now, rate

    def synchronize(self, log_ms: int, now: float) -> None:
        """The leader, or a member that followed it while this node did not, says what the log's clock is."""
        ahead_ms = self._says(now) - log_ms
        if self.settled and ahead_ms > 0:
            # It came late, or the leader makes up for something: the clock does not go back.
            self._set(self._says(now), now, -_limited(ahead_ms, _FOLLOW_MAX))
        else:
            self._set(log_ms, now)
        self.settled = True

    def applied(self, now_ms: int, now: float) -> None:
        """An entry with this time was applied: the clock is not behind it."""
        if self._says(now) < now_ms:
            self._set(now_ms, now)

    def slept(self, asleep_s: float) -> bool:
        """Take note of how long the machine has been suspended; returns whether it was lately: then nothing is known any more."""
        was, self._asleep_s = self._asleep_s, asleep_s
        if asleep_s - was <= _ASLEEP_S:
            return False
        log.warning(
            "this machine was suspended for %.0f s: the log's clock is set anew by a majority's clocks", asleep_s - was
        )
        self.settled = False
        self._leads_since = None
        return True

    def follow(self, now: float) -> None:
        """This node does not lead."""
        self._leads_since = None

    def lead(self, walls: Bounds | None, now: float) -> None:
        """This node leads: go on, steered by what the wall clocks of a majority say, if that is known."""
        if self._leads_since is None:
            self._leads_since = now
        ms = self._says(now)
        if walls is None:
            self._set(ms, now)
            return
        if not self.settled and (walls.agree or now - self._leads_since > SETTLE_S):
            self.settled = True
            if walls.low > ms:
                self.jumps += 1
                at = datetime.fromtimestamp(walls.low / 1000, UTC).isoformat(timespec="milliseconds")
                log.info("the log's clock goes on at %s, what a majority's wall clocks say", at)
                ms = walls.low
        behind_ms = max(walls.low - ms, 0) + min(walls.high - ms, 0)
        self._set(ms, now, _limited(behind_ms, SLEW_MAX))


def _limited(ms: float, most: float) -> float:
    """The rate that makes up for `ms` within the horizon."""
    return max(-most, min(most, ms / 1000 / _HORIZON_S))

"""The log's clock by itself: what it goes on from, what steers it, how fast."""

from __future__ import annotations

import pytest

from quorumq.cluster.logclock import SETTLE_S, SLEW_MAX, Bounds, LogClock, bounds

HOUR_MS, YEAR_MS = 3_600_000, 365 * 24 * 3_600_000
EPOCH_MS = 1_700_000_000_000


class Led:
    """A clock that leads, looked after every 20 ms; the voters' wall clocks are right but for `off_ms`."""

    def __init__(self, voters: int = 3) -> None:
        self.now = 100.0
        self.clock = LogClock(self.now, 0.0)
        self.voters = voters
        self.off_ms = [0] * voters
        self.read: list[int] = []

    @property
    def true_ms(self) -> int:
        return EPOCH_MS + int(self.now * 1000)

    def walls(self) -> Bounds | None:
        return bounds([self.true_ms + off for off in self.off_ms], self.voters)

    def run(self, seconds: float) -> int:
        """Let time pass; returns how far the clock went, in milliseconds."""
        before = self.clock.read(self.now)
        for _ in range(round(seconds / 0.02)):
            self.clock.lead(self.walls(), self.now)
            self.read += [self.clock.read(self.now), self.clock.read(self.now + 0.019)]
            self.now += 0.02
        assert self.read == sorted(self.read), "it never goes back"
        return self.clock.read(self.now) - before


@pytest.mark.parametrize(
    ("walls", "voters", "low", "high"),
    [
        ([5], 1, 5, 5),
        ([1, 2, 9], 3, 2, 2),
        ([1, 9], 3, 1, 9),
        ([1, 2, 3, 4, 5], 5, 3, 3),
        ([1, 2, 9], 5, 1, 9),
        ([1, 9], 2, 1, 9),
        ([1, 2, 3, 9], 4, 2, 3),
    ],
)
def test_what_a_majority_has_reached_and_has_not_passed(walls: list[int], voters: int, low: int, high: int) -> None:
    assert bounds(walls, voters) == (low, high, len(walls) == voters)


def test_no_majority_says_nothing() -> None:
    assert bounds([5], 3) is None
    assert bounds([1, 2], 5) is None
    assert bounds([], 0) is None


def test_the_first_leader_begins_with_the_median_at_once() -> None:
    led = Led()
    led.off_ms = [YEAR_MS, 0, -5]
    led.run(0.02)
    assert abs(led.clock.read(led.now) - led.true_ms) < 50
    assert (led.clock.settled, led.clock.jumps) == (True, 1)


@pytest.mark.parametrize("step_ms", [HOUR_MS, -HOUR_MS, YEAR_MS, -YEAR_MS])
def test_a_step_of_the_only_clock_is_followed_by_a_twentieth(step_ms: int) -> None:
    led = Led(1)
    led.run(1)
    led.off_ms = [step_ms]
    went = led.run(100)
    assert went == pytest.approx(100_000 * (1 + (SLEW_MAX if step_ms > 0 else -SLEW_MAX)), abs=100)
    assert led.clock.jumps == 1
    led.off_ms = [0]
    led.run(120)
    assert abs(led.clock.read(led.now) - led.true_ms) < 20


def test_a_step_of_one_of_three_moves_nothing() -> None:
    led = Led()
    led.run(1)
    for off in (YEAR_MS, -YEAR_MS, HOUR_MS):
        led.off_ms = [off, 3, -3]
        assert led.run(20) == pytest.approx(20_000, abs=20)


def test_where_one_is_missing_the_other_two_do_not_steer_it_unless_both_say_the_same() -> None:
    led = Led()
    led.off_ms = [0, 0]
    led.run(1)
    led.off_ms = [0, HOUR_MS]
    assert led.run(20) == pytest.approx(20_000, abs=20)
    led.off_ms = [500, 700]
    assert led.run(20) == pytest.approx(20_500, abs=20)


def test_a_clock_is_settled_by_one_that_comes_late_or_when_none_comes() -> None:
    led = Led()
    led.off_ms = [0, -HOUR_MS]
    led.run(1)
    assert not led.clock.settled
    led.off_ms = [0, -HOUR_MS, 0]
    led.run(0.02)
    assert led.clock.settled
    assert abs(led.clock.read(led.now) - led.true_ms) < 50
    alone = Led()
    alone.off_ms = [0, HOUR_MS]
    alone.run(SETTLE_S + 0.1)
    assert alone.clock.settled
    assert abs(alone.clock.read(alone.now) - alone.true_ms) < 50


def test_it_is_never_before_the_last_entry_and_goes_on_from_there() -> None:
    led = Led(1)
    led.clock.applied(led.true_ms + HOUR_MS, led.now)
    assert led.run(10) == pytest.approx(9_500, abs=20)
    assert led.clock.jumps == 0


def test_a_follower_takes_the_leaders_and_goes_on_with_it() -> None:
    clock = LogClock(10.0, 0.0)
    clock.synchronize(5_000_000, 11.0)
    assert clock.settled
    assert clock.read(12.0) == 5_001_000
    # Late by a second: the follower does not go back, only a little slower until the leader is there.
    clock.synchronize(5_000_000, 12.0)
    assert clock.read(12.0) == 5_001_000
    assert clock.read(13.0) == 5_001_900
    clock.synchronize(5_500_000, 13.0)
    assert clock.read(13.0) == 5_500_000
    # It leads: what it goes on from is that, and not what the walls say.
    clock.lead(Bounds(9_000_000, 9_000_000, True), 13.0)
    assert clock.read(13.0) == 5_500_000
    assert clock.read(14.0) == 5_501_050


def test_a_stamp_is_never_before_the_one_before_also_where_the_clock_is_set_back() -> None:
    """A machine that was suspended is told an older time than the one it stamped with, by whoever led meanwhile."""
    clock = LogClock(10.0, 0.0)
    clock.synchronize(9_000_000, 10.0)
    assert clock.stamp(11.0) == 9_001_000
    assert clock.slept(3600.0)
    clock.synchronize(8_000_000, 11.0)
    assert clock.read(11.0) == 8_000_000
    assert clock.stamp(11.0) == clock.stamp(12.0) == 9_001_000
    clock.synchronize(9_500_000, 13.0)
    assert clock.stamp(13.0) == 9_500_000


def test_after_a_suspension_the_majority_says_the_time_at_once() -> None:
    led = Led()
    led.run(1)
    assert not led.clock.slept(0.9)
    assert led.clock.slept(3600.9)
    assert not led.clock.settled
    # Its monotonic clock stood still meanwhile; before the others' clocks are known again nothing is certain.
    led.clock.lead(None, led.now)
    assert not led.clock.settled
    led.off_ms = [HOUR_MS] * 3
    led.run(0.02)
    assert led.clock.settled
    assert led.clock.read(led.now) == pytest.approx(led.true_ms + HOUR_MS, abs=50)


def test_a_leader_that_stood_still_for_long_does_not_make_up_for_more_than_there_was() -> None:
    led = Led(1)
    led.run(1)
    led.off_ms = [1000]
    led.run(0.02)
    led.now += 3600
    led.run(5)
    assert led.clock.read(led.now) - led.true_ms <= 1000

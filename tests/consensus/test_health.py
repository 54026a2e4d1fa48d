"""Whether the disk answers, as it is told from how long a write has been under way."""

from __future__ import annotations

import pytest

from quorumq.cluster.health import DiskHealth, SlowWrites


def looked(health: DiskHealth, group: int, start: float, end: float) -> list[float]:
    """Look every 20 ms; returns when `hung` changed."""
    changed = []
    now = start
    while now < end:
        if health.look(group, now):
            changed.append(round(now, 2))
        now += 0.02
    return changed


def test_a_write_that_does_not_return() -> None:
    health = DiskHealth(1.8, 0.6)
    assert looked(health, 0, 0, 10) == []
    assert looked(health, 1, 10, 11) == []
    assert looked(health, 2, 11, 14) == [12.82]
    assert health.hung
    assert looked(health, 0, 14, 15) == [14.0]
    assert not health.hung
    assert 2.9 < health.lasted_s < 3.0


def test_many_writes_that_return_are_no_hanging_one() -> None:
    health = DiskHealth(1.8, 0.6)
    for group in range(20):
        assert looked(health, group + 1, group * 1.7, group * 1.7 + 1.7) == []


def test_time_in_which_the_process_stood_still_does_not_count() -> None:
    health = DiskHealth(1.8, 0.6)
    assert looked(health, 1, 0, 1) == []
    assert looked(health, 1, 61, 61.5) == []
    assert looked(health, 1, 61.5, 63) == [61.82]


def test_who_is_well() -> None:
    health = DiskHealth(1.8, 0.6)
    assert health.is_well(0)
    assert health.is_well(599)
    assert not health.is_well(600)


def test_slow_writes_are_told_and_no_more_than_one_a_second(caplog: pytest.LogCaptureFixture) -> None:
    slow = SlowWrites()
    for number in range(20):
        slow.took(0.1, number / 10)
        slow.took(0.3 + number / 100, number / 10)
    slow.took(0.9, 2.5)
    assert [record.getMessage() for record in caplog.records] == [
        "a write of the log took 300 ms",
        "a write of the log took 400 ms, and 9 before it took as long",
        "a write of the log took 900 ms, and 9 before it took as long",
    ]

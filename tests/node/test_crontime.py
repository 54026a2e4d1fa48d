"""When cron expressions fire, changes of the clocks included."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from quorumq.node.leader.crontime import InvalidSchedule, next_due_ms

NEW_YORK = "America/New_York"


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def times(expression: str, zone: str | None, after: str, count: int) -> list[str]:
    """Return the next due times as text, in UTC."""
    found, at = [], ms(after)
    for _ in range(count):
        at = next_due_ms(expression, zone, at)
        found.append(datetime.fromtimestamp(at / 1000, UTC).strftime("%m-%d %H:%M:%S"))
    return found


@pytest.mark.parametrize(
    ("expression", "zone", "after", "expected"),
    [
        ("0 2 * * *", None, "2026-11-22T05:00:00", ["11-23 02:00:00"]),
        ("0 2 * * *", NEW_YORK, "2026-11-22T08:00:00", ["11-23 07:00:00"]),
        ("0 2 * * *", NEW_YORK, "2026-06-22T08:00:00", ["06-23 06:00:00"]),
        ("0 0 2 * * *", None, "2026-11-22T05:00:00", ["11-23 02:00:00"]),
        ("*/20 * * * * *", None, "2026-11-22T05:00:01", ["11-22 05:00:20", "11-22 05:00:40", "11-22 05:01:00"]),
        ("@daily", None, "2026-11-22T05:00:00", ["11-23 00:00:00"]),
        ("@hourly", "Asia/Kolkata", "2026-11-22T05:00:00", ["11-22 05:30:00"]),
        ("0 0 29 2 *", None, "2026-11-22T05:00:00", ["02-29 00:00:00"]),
        ("0 9 * * MON-FRI", "Europe/Berlin", "2026-11-20T09:00:00", ["11-23 08:00:00"]),
    ],
)
def test_times(expression: str, zone: str | None, after: str, expected: list[str]) -> None:
    assert times(expression, zone, after, len(expected)) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 9-9 * * *", ["11-23 09:00:00", "11-24 09:00:00"]),
        ("30-30 * * * * *", ["11-22 12:00:30", "11-22 12:01:30"]),
        ("0 0 * * MON-MON", ["11-23 00:00:00", "11-30 00:00:00"]),
        ("0 8,9-9 * * *", ["11-23 08:00:00", "11-23 09:00:00", "11-24 08:00:00"]),
        ("0 9-9/2 * * *", ["11-23 09:00:00", "11-24 09:00:00"]),
        ("0 0 5-5 jan-jan *", ["01-05 00:00:00", "01-05 00:00:00"]),
        ("0 0 31-L * *", ["12-31 00:00:00", "01-31 00:00:00"]),
        ("0 0 * * mon-mon#1", ["12-07 00:00:00", "01-04 00:00:00"]),
    ],
)
def test_a_range_of_one_value_is_that_value(expression: str, expected: list[str]) -> None:
    assert times(expression, None, "2026-11-22T12:00:00", len(expected)) == expected


@pytest.mark.parametrize("weekday", ["7", "0", "7-7", "7-0", "0-0", "7/2", "7/1", "SUN-SUN", "sun", "0-7/7"])
def test_seven_and_zero_are_sunday(weekday: str) -> None:
    assert times(f"0 0 * * {weekday}", None, "2026-11-22T12:00:00", 2) == ["11-29 00:00:00", "12-06 00:00:00"]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 22-5/3 * * *", ["11-22 22:00:00", "11-23 01:00:00", "11-23 04:00:00", "11-23 22:00:00"]),
        ("50-10/7 * * * *", ["11-22 12:04:00", "11-22 12:50:00", "11-22 12:57:00", "11-22 13:04:00"]),
        ("0 0 * * FRI-TUE/3", ["11-23 00:00:00", "11-27 00:00:00", "11-30 00:00:00"]),
        ("0 20/3 * * *", ["11-22 20:00:00", "11-22 23:00:00", "11-23 20:00:00"]),
    ],
)
def test_a_step_counts_on_past_the_fields_end_and_a_start_runs_to_it(expression: str, expected: list[str]) -> None:
    assert times(expression, None, "2026-11-22T12:00:00", len(expected)) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        # 02:30 does not exist on that day: it fires when the clocks have moved.
        ("30 2 * * *", ["03-08 07:00:00", "03-09 06:30:00"]),
        ("0 3 * * *", ["03-08 07:00:00", "03-09 07:00:00"]),
        ("*/30 * * * *", ["03-08 06:30:00", "03-08 07:00:00", "03-08 07:30:00"]),
    ],
)
def test_the_hour_that_spring_skips(expression: str, expected: list[str]) -> None:
    assert times(expression, NEW_YORK, "2026-03-08T06:00:00", len(expected)) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        # 01:30 comes twice on that day: once is enough for what is meant to run once a day.
        ("30 1 * * *", ["11-01 05:30:00", "11-02 06:30:00"]),
        ("0 2 * * *", ["11-01 07:00:00", "11-02 07:00:00"]),
        ("*/30 * * * *", ["11-01 05:00:00", "11-01 05:30:00", "11-01 06:00:00", "11-01 06:30:00", "11-01 07:00:00"]),
        ("15 * * * *", ["11-01 05:15:00", "11-01 06:15:00", "11-01 07:15:00"]),
    ],
)
def test_the_hour_that_autumn_repeats(expression: str, expected: list[str]) -> None:
    assert times(expression, NEW_YORK, "2026-11-01T04:30:00", len(expected)) == expected


def test_a_moment_within_a_second_counts_as_that_second() -> None:
    at = ms("2026-11-22T05:00:00")
    assert next_due_ms("* * * * * *", None, at) == at + 1000
    assert next_due_ms("* * * * * *", None, at + 999) == at + 1000


@pytest.mark.parametrize(
    ("expression", "zone", "text"),
    [
        ("not a cron", None, "must have 5 fields"),
        ("* * * * * * *", None, "must have 5 fields"),
        ("", None, "must have 5 fields"),
        ("@reboot", None, "must have 5 fields"),
        ("99 2 * * *", None, "out of range"),
        ("*/0 * * * *", None, "out of range"),
        ("5-1-2 * * * *", None, "out of range"),
        ("0 0 0-0 * *", None, "out of range"),
        ("0 0 * 0-0 *", None, "out of range"),
        ("60-60 * * * *", None, "out of range"),
        ("0 0 * * 8/2", None, "out of range"),
        ("R * * * *", None, "out of range"),
        ("0 H(1-5) * * *", None, "out of range"),
        ("0 2 30 2 *", None, "never fires"),
        ("0 2 * * *", "Mars/Base", "unknown time zone 'Mars/Base'"),
        ("0 2 * * *", "../../etc/passwd", "unknown time zone"),
        ("0 2 * * *", "America", "unknown time zone"),
        ("1 " * 2000, None, "must have 5 fields"),
    ],
)
def test_what_cannot_be_used_is_said(expression: str, zone: str | None, text: str) -> None:
    with pytest.raises(InvalidSchedule, match=text):
        next_due_ms(expression, zone, ms("2026-11-22T05:00:00"))

"""When cron expressions fire, changes of the clocks included."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from node.crontime import InvalidSchedule, next_due_ms

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

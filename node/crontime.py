"""When a cron expression fires next, in a time zone: the only place that knows croniter and zoneinfo.

Used at the edge, which checks what clients send, and by the leader, which puts the times it works out into the log. The
state machine never computes such a time: replicas may have different time zone tables.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from zoneinfo import ZoneInfo

from croniter import croniter
from croniter.croniter import CroniterBadDateError, CroniterError

FIELDS_TEXT = "Cron expression must have 5 fields, or 6 fields with leading seconds"
RANGE_TEXT = "Invalid cron expression: value out of range for field"
NEVER_TEXT = "Cron expression never fires"
# Names of hours' shorthand that croniter takes, in either case.
SHORTHANDS = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
# A field may not begin with R or H: croniter would draw a random number for it, another one on each node.
CHANCE = re.compile(r"(?:^|[\s,])[hr](?:$|[\s,(/])", re.IGNORECASE)
EXPRESSION_CHARS_MAX = 200
# The field of the hours in croniter's own order: minute, hour, day, month, weekday, second.
HOUR = 1
HOURS = 24


class InvalidSchedule(ValueError):
    """An expression or a time zone that cannot be used; the message says why."""


@lru_cache(maxsize=256)
def zone(name: str | None) -> ZoneInfo:
    """Return a time zone by its IANA name, UTC for None. Raises InvalidSchedule."""
    try:
        return ZoneInfo(name or "UTC")
    except (KeyError, ValueError, OSError):
        raise InvalidSchedule(f"unknown time zone '{(name or '')[:100]}'") from None


def next_due_ms(expression: str, timezone: str | None, after_ms: int) -> int:
    """Return when an expression fires first after a moment. Raises InvalidSchedule.

    A local time that a change of the clocks skips fires when the skipped hour ends. One that comes twice fires at the
    first of the two, unless the expression names every hour: then elapsed time counts.
    """
    check_form(expression)
    where = zone(timezone)
    # Whole seconds: nothing fires between two of them, and "after" stays strictly after.
    start = datetime.fromtimestamp(after_ms // 1000, UTC).astimezone(where)
    try:
        times = croniter(expression, start, second_at_beginning=True)
        hourly = len(times.expanded[HOUR]) == HOURS or times.expanded[HOUR] == ["*"]
        while True:
            due_s = int(times.get_next(float))
            if hourly or datetime.fromtimestamp(due_s, where).fold == 0:
                return due_s * 1000
    except CroniterBadDateError:
        raise InvalidSchedule(NEVER_TEXT) from None
    except (CroniterError, ValueError, KeyError, OverflowError):
        raise InvalidSchedule(RANGE_TEXT) from None


def check_form(expression: str) -> None:
    """Refuse what is no cron expression at first sight. Raises InvalidSchedule."""
    text = expression.strip().lower()
    if text in SHORTHANDS:
        return
    if len(text) > EXPRESSION_CHARS_MAX or len(text.split()) not in (5, 6):
        raise InvalidSchedule(FIELDS_TEXT)
    if CHANCE.search(text):
        raise InvalidSchedule(RANGE_TEXT)

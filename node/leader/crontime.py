"""When a cron expression fires next, in a time zone: the only place that knows croniter and zoneinfo.

Used at the edge, which checks what clients send, and by the leader, which puts the times it works out into the log. The
state machine never computes such a time: replicas may have different time zone tables.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple
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
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
# The last day of a month, as the end of a range.
LAST = "l"
# Sunday by its other number, which only the field of the weekdays has.
SUNDAY = 7
FIELD = re.compile(r"\S+", re.ASCII)
# `from-to`, `from-to/step` and `from/step`, of numbers or names; `from-to#nth` of weekdays.
ITEM = re.compile(r"([a-z]+|\d+)(?:-([a-z]+|\d+))?(?:/(\d+)|#(\d+))?", re.ASCII)


class CronField(NamedTuple):
    """One field of an expression: its lowest and highest value, and the names of values from the lowest on."""

    low: int
    high: int
    names: tuple[str, ...] = ()


SECONDS = CronField(0, 59)
MONTH_DAYS = CronField(1, 31)
FIELDS = (
    CronField(0, 59),
    CronField(0, 23),
    MONTH_DAYS,
    CronField(1, 12, tuple(MONTHS)),
    CronField(0, 6, tuple(WEEKDAYS)),
)


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
    spelled = spelled_out(expression)
    where = zone(timezone)
    # Whole seconds: nothing fires between two of them, and "after" stays strictly after.
    start = datetime.fromtimestamp(after_ms // 1000, UTC).astimezone(where)
    try:
        times = croniter(spelled, start, second_at_beginning=True)
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


@lru_cache(maxsize=1024)
def spelled_out(expression: str) -> str:
    """Return an expression with its ranges as lists of their values. Raises InvalidSchedule.

    croniter takes a range of one value, `9-9` or `mon-mon`, for the whole field on purpose; counts a step anew where a range
    goes past the field's end, as `22-5/3` does; and 7 in the place of a start, as in `7/2`, for 0.
    """
    check_form(expression)
    text = expression.strip().lower()
    if text in SHORTHANDS:
        return text
    fields = FIELD.findall(text)
    if len(fields) not in (len(FIELDS), len(FIELDS) + 1):
        raise InvalidSchedule(FIELDS_TEXT)
    kinds = FIELDS if len(fields) == len(FIELDS) else (SECONDS, *FIELDS)
    return " ".join(map(_spelled_field, fields, kinds))


def _spelled_field(text: str, field: CronField) -> str:
    return ",".join(_spelled_item(item, field) for item in text.split(","))


def _spelled_item(item: str, field: CronField) -> str:
    """Return the values of a range or of a start with a step; anything else as it is. Raises InvalidSchedule."""
    found = ITEM.fullmatch(item)
    if found is None:
        return item
    first, last, step, nth = found.groups()
    if last is None and step is None:
        return item
    start, every = _value(first, field), int(step or 1)
    if last == LAST and field is MONTH_DAYS:
        last = str(field.high)
    # A start with a step runs to the field's end, which is there already for a Sunday that is called 7.
    end = max(field.high, start or 0) if last is None else _value(last, field)
    if start is None or end is None or every == 0:
        raise InvalidSchedule(RANGE_TEXT)
    size = field.high - field.low + 1
    span = end - start if end >= start else (end - start) % size
    values = dict.fromkeys(field.low + (start + passed - field.low) % size for passed in range(0, span + 1, every))
    return ",".join(str(value) if nth is None else f"{value}#{nth}" for value in values)


def _value(word: str, field: CronField) -> int | None:
    """Return what a number or a name stands for; None when it is out of the field."""
    if not word.isdigit():
        return field.low + field.names.index(word) if word in field.names else None
    value = int(word)
    highest = SUNDAY if field.names and field.low == 0 else field.high
    return value if field.low <= value <= highest else None

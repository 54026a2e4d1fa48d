"""Random cron expressions against a reading of them as plain as it can be: every value of every field is tried.

Ranges of one value, ranges past a field's end, steps, lists, names and Sunday's two numbers, in all fields.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import example, given
from hypothesis import strategies as st

from quorumq.node.leader.crontime import next_due_ms

MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
DAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN"]
# Lowest and highest value, how many different ones, and their names.
SECOND, MINUTE = (0, 59, 60, []), (0, 59, 60, [])
HOUR, DAY, MONTH, WEEKDAY = (0, 23, 24, []), (1, 31, 31, []), (1, 12, 12, MONTHS), (0, 7, 7, DAYS)
YEARS = 30

Item = tuple[str, set[int]]


@st.composite
def items(draw: st.DrawFn, field: tuple[int, int, int, list[str]]) -> Item:
    """Return one item of a field, and the values that it means."""
    low, high, size, names = field

    def spelled(value: int) -> str:
        if names and draw(st.booleans()):
            name = names[value - low]
            return name if draw(st.booleans()) else name.lower()
        return str(value)

    def wrapped(value: int) -> int:
        while value >= low + size:
            value -= size
        return value

    first, last = draw(st.integers(low, high)), draw(st.integers(low, high))
    if draw(st.integers(0, 3)) == 0:
        last = first
    step = draw(st.integers(1, size + 2))
    kind = draw(st.sampled_from(("one", "range", "range with step", "start with step")))
    if kind == "one":
        return spelled(first), {wrapped(first)}
    if kind == "start with step":
        # Saturday is the last day that a step reaches, for Sunday came first.
        end = max(low + size - 1, first)
        return f"{first}/{step}", {wrapped(value) for value in range(first, end + 1, step)}
    begin, end = spelled(first), spelled(last)
    if begin.upper() == "SUN":
        first = 0
    if end.upper() == "SUN":
        last = 0
    span = last - first
    while span < 0:
        span += size
    if kind == "range":
        return f"{begin}-{end}", {wrapped(first + passed) for passed in range(span + 1)}
    return f"{begin}-{end}/{step}", {wrapped(first + passed) for passed in range(0, span + 1, step)}


@st.composite
def fields(draw: st.DrawFn, field: tuple[int, int, int, list[str]]) -> Item:
    """Return a list of items, or a star, and what it means."""
    low, _, size, _ = field
    if draw(st.integers(0, 2)) == 0:
        return "*", set(range(low, low + size))
    chosen = draw(st.lists(items(field), min_size=1, max_size=3))
    return ",".join(text for text, _ in chosen), set().union(*(values for _, values in chosen))


def first_after(after: datetime, parts: list[Item]) -> datetime | None:
    """Return the first second after a moment that all fields allow; of the two fields of days one is enough."""
    (_, seconds), (_, minutes), (_, hours), (days_text, days), (_, months), (weekdays_text, weekdays) = parts
    either = days_text != "*" and weekdays_text != "*"
    day = after.replace(hour=0, minute=0, second=0)
    for _ in range(366 * YEARS):
        by_month_day, by_weekday = day.day in days, (day.weekday() + 1) % 7 in weekdays
        if day.month in months and (by_month_day or by_weekday if either else by_month_day and by_weekday):
            for hour in sorted(hours):
                if day.replace(hour=hour, minute=59, second=59) <= after:
                    continue
                for minute in sorted(minutes):
                    for second in sorted(seconds):
                        moment = day.replace(hour=hour, minute=minute, second=second)
                        if moment > after:
                            return moment
        day += timedelta(days=1)
    return None


START = datetime(2026, 11, 22, 5, 17, 31, tzinfo=UTC)


@given(
    st.tuples(fields(SECOND), fields(MINUTE), fields(HOUR), fields(DAY), fields(MONTH), fields(WEEKDAY)),
    st.booleans(),
    st.integers(0, 3 * 366 * 86_400),
)
@example(
    (("0", {0}), ("0", {0}), ("9-9", {9}), ("*", {*range(1, 32)}), ("*", {*range(1, 13)}), ("*", {*range(7)})), True, 0
)
def test_every_form_of_a_field_means_what_it_says(parts: tuple[Item, ...], short: bool, later_s: int) -> None:
    chosen = list(parts)
    if short:
        # Five fields: at second 0.
        chosen[0] = ("", {0})
    text = " ".join(text for text, _ in chosen).strip()
    at = START + timedelta(seconds=later_s)
    for _ in range(3):
        expected = first_after(at, chosen)
        if expected is None:
            # No such day, as the 31st of a month that has none.
            return
        due_ms = next_due_ms(text, None, int(at.timestamp()) * 1000)
        assert datetime.fromtimestamp(due_ms / 1000, UTC) == expected, text
        at = expected

"""Repeatable jobs: the `repeat` option of an add, and what repeats in a queue.

Times are worked out here for the first job and by the leader for those after it; each job is there from its time on, under the
id `repeat:KEY:MILLISECONDS`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from quorumq.api.errors import Invalid
from quorumq.api.reply import TEXT, Reply
from quorumq.api.request import CONSISTENCY, Call, Route, Wording
from quorumq.api.rows import Text, grouped, plain, success
from quorumq.node.leader import crontime
from quorumq.node.machine.operations.repeatables import GetRepeating, ListRepeating, Repetition, name_of
from quorumq.node.machine.operations.schedules import DeleteCron
from quorumq.node.machine.refusals import CronNotFound
from quorumq.node.machine.state import JobSpec
from quorumq.node.machine.state.schedule import Cron

from .job_object import options_text
from .values import MILLIS_MAX, boolean, integer, queue_of, shown, text

ENCODE = msgspec.json.Encoder().encode
KEY_CHARS_MAX = 256
# The latest date that JavaScript knows.
DATE_MAX = 8_640_000_000_000_000
# As far ahead as any time; patterns have no times in years beyond 9999.
START_MAX = 2 * MILLIS_MAX
NO_REPEATABLE = (404, "Repeatable job not found")
KEYS = frozenset({"every", "pattern", "cron", "tz", "limit", "immediately", "startDate", "endDate", "offset", "key"})


class RepeatRule(Struct, frozen=True):
    """How a job is to repeat. next_due_ms: its first time after now."""

    key: str
    next_due_ms: int
    every_ms: int | None
    pattern: str | None
    tz: str | None
    limit: int | None
    until_ms: int | None
    immediately: bool


class RepeatableShown(Struct, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """A repetition. next: when its next job comes.  count: jobs so far.  opts: of its jobs."""

    key: str
    name: str
    every: int | None
    pattern: str | None
    tz: str | None
    limit: int | UnsetType = UNSET
    end_date: int | None
    next: int | None
    count: int
    data: msgspec.Raw
    opts: msgspec.Raw


class Repeatables(Struct, forbid_unknown_fields=True):
    repeatables: list[RepeatableShown]
    count: int


def checked_repeat(name: str, value: Any, now: int) -> RepeatRule:
    """Return how a job repeats. now: by the log's clock, in milliseconds. Raises Invalid."""
    if not isinstance(value, dict):
        raise Invalid(f"Invalid repeat {shown(value)}, must be an object")
    for key in value:
        if key not in KEYS:
            raise Invalid(f"Unexpected field: opts.repeat.{shown(key)}")
    every, pattern = value.get("every"), value.get("pattern", value.get("cron"))
    if every is not None and pattern is not None:
        raise Invalid("Both .pattern and .every options are defined for this repeatable job")
    if every is None and pattern is None:
        raise Invalid("Either .pattern or .every options must be defined for this repeatable job")
    limit = integer("repeat.limit", value["limit"], 1) if "limit" in value else None
    zone = text("repeat.tz", value["tz"], KEY_CHARS_MAX) if value.get("tz") is not None else None
    immediately = boolean("repeat.immediately", value["immediately"]) if "immediately" in value else False
    begins = date("startDate", value.get("startDate"), START_MAX)
    until = date("endDate", value.get("endDate"), DATE_MAX)
    if immediately and begins is not None:
        raise Invalid("Invalid repeat, immediately and startDate cannot be used together")
    if until is not None and until <= now:
        raise Invalid("End date must be greater than current timestamp")
    # A time that is startDate itself is one of its times.
    after = max(now, (begins or 0) - 1)
    if every is not None:
        every = integer("repeat.every", every, 1, MILLIS_MAX)
        try:
            # An interval has no use for it, but one that is misspelt must not look like one that is not.
            crontime.zone(zone)
        except crontime.InvalidSchedule as error:
            raise Invalid(f"Invalid repeat.tz: {error}") from None
        offset = integer("repeat.offset", value["offset"], 0, MILLIS_MAX) % every if "offset" in value else 0
        # As BullMQ: the next place on a grid that begins with the epoch, so that it does not matter when it was asked for.
        due = (after - offset) // every * every + every + offset
        if immediately:
            due = now + every
    else:
        pattern = text("repeat.pattern", pattern, KEY_CHARS_MAX)
        try:
            due = crontime.next_due_ms(pattern, zone, after)
        except crontime.InvalidSchedule as error:
            raise Invalid(f"Invalid repeat pattern: {error}") from None
    if until is not None and due > until:
        if not immediately:
            raise Invalid("Invalid repeat, none of its times comes before endDate")
        due = 0
    key = text("repeat.key", value["key"], KEY_CHARS_MAX) if value.get("key") else ""
    return RepeatRule(
        key or key_of(name, until, zone, pattern or str(every)), due, every, pattern, zone, limit, until, immediately
    )


def key_of(name: str, until: int | None, zone: str | None, times: str) -> str:
    """Make the key of a repetition: jobs of one name that repeat alike are one repetition, as in BullMQ."""
    told = ENCODE([name, until, zone, times])
    return blake2b(told, digest_size=16).hexdigest()


def date(name: str, value: Any, high: int) -> int | None:
    """Read a time: milliseconds since the epoch, or an ISO date. Raises Invalid."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            parsed = datetime.fromisoformat(value)
        except ValueError:
            raise Invalid(f"Invalid repeat.{name} {shown(value)}") from None
        value = int((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp() * 1000)
    return integer(f"repeat.{name}", value, 0, high)


def repetition(repeat: RepeatRule, job: JobSpec) -> Repetition:
    """Make what goes into the log of a repetition."""
    return Repetition(
        repeat.key,
        job,
        repeat.next_due_ms,
        repeat.pattern,
        repeat.every_ms,
        repeat.tz,
        repeat.limit,
        repeat.until_ms,
        repeat.immediately,
    )


# -- What repeats ------------------------------------------------------------------------------------------------------


def cron_text(cron: Cron) -> bytes:
    name, opts = options_text(cron.job.opts)
    told: dict[str, Any] = {
        "key": cron.key,
        "name": msgspec.Raw(name),
        "every": cron.every_ms,
        "pattern": cron.schedule,
        "tz": cron.timezone,
        "endDate": cron.until,
        "next": cron.next_due or None,
        "count": cron.executions,
        "data": msgspec.Raw(cron.job.data),
        "opts": msgspec.Raw(opts + b"}"),
    }
    if cron.max_limit is not None:
        told["limit"] = cron.max_limit
    return ENCODE(told)


def crons_text(crons: list[Cron]) -> bytes:
    return b'{"repeatables":[%b],"count":%d}' % (b",".join(map(cron_text, crons)), len(crons))


async def list_repeatables(call: Call) -> Reply:
    """List what repeats in a queue."""
    return success(await call.node.ask(ListRepeating(queue_of(call)), crons_text, stale=call.stale))


async def get_repeatable(call: Call) -> Reply:
    """Show a repetition."""
    return success(await call.node.ask(GetRepeating(queue_of(call), call.path["key"]), cron_text, stale=call.stale))


async def remove_repeatable(call: Call) -> Reply:
    """Let a job repeat no more."""
    what = DeleteCron(name_of(queue_of(call), call.path["key"]))
    return Reply(200, await call.write(what, lambda reply: b"OK"), TEXT)


WORDED: Wording = {CronNotFound: NO_REPEATABLE}
ROUTES: tuple[Route, ...] = grouped(
    "BullMQ: repeatable jobs",
    plain("GET", "/queues/{queue}/repeatable", list_repeatables, what=ListRepeating, asks=(CONSISTENCY,),
          reply=Repeatables, right="read"),
    plain("GET", "/queues/{queue}/repeatable/{key}", get_repeatable, what=GetRepeating, asks=(CONSISTENCY,),
          reply=RepeatableShown, right="read", refusals=WORDED),
    plain("DELETE", "/queues/{queue}/repeatable/{key}", remove_repeatable, what=DeleteCron, reply=Text,
          right="manage:all", refusals=WORDED, about="Let a job repeat no more; jobs of it that are there stay."),
)  # fmt: skip

"""Crons: what clients send, the rules for it, how a cron is shown, and the rows.

The first time of a cron expression is worked out here, before the log; the later ones by the leader.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from quorumq.api.errors import Invalid
from quorumq.api.ids import new_id
from quorumq.api.request import Call
from quorumq.api.rows import ask, grouped, write
from quorumq.api.rules import says
from quorumq.api.scopes import its_cron, own_cron, own_crons
from quorumq.api.values import COUNT_MAX, KEY_CHARS_MAX, as_text
from quorumq.node.leader import crontime
from quorumq.node.machine.operations.schedules import AddCron, CronSet, DeleteCron, GetCron, ListCrons
from quorumq.node.machine.state.schedule import Cron

from . import pushing, replies
from .values import NAME_CHARS_MAX, given_data, integer, key, loosened, queue_name, read, truth, word

NEITHER = "Cron job must have either schedule or repeatEvery"
BAD_EVERY = "Cron repeatEvery must be a positive safe integer number of milliseconds"
ENCODE = msgspec.json.Encoder().encode


class CronShown(Struct, forbid_unknown_fields=True, rename="camel"):
    name: str
    job_name: str
    queue: str
    schedule: str | None
    repeat_every: int | None
    next_run: replies.Millis | None
    executions: int
    max_limit: int | None
    timezone: str
    priority: int


class OneCron(replies.Success):
    cron: CronShown


class Crons(replies.Success):
    crons: list[CronShown]


def check_every(name: str, every: Any) -> int:
    """Raises Invalid."""
    if isinstance(every, bool) or not isinstance(every, (int, float)) or every != every // 1:
        raise Invalid(BAD_EVERY)
    if not 0 < every < COUNT_MAX:
        raise Invalid(BAD_EVERY)
    return int(every)


class CronBody(Struct, gc=False, rename="camel"):
    """A cron: either `schedule` or `repeatEvery`. One with the name of another takes its place."""

    name: Annotated[str | None, key("Its name, unique in the cluster.", required=True)] = None
    queue: Annotated[str | None, queue_name("The queue its jobs go to.", required="Queue name is required")] = None
    data: Annotated[Raw | UnsetType, given_data("Data of each job: any JSON, up to 10 MB.")] = UNSET
    schedule: Annotated[str | None, word("5 fields, 6 with leading seconds, or @hourly and its like.")] = None
    repeat_every: Annotated[
        int | None, says("Milliseconds from one time to the next.", reads=check_every, low=1, high=COUNT_MAX)
    ] = None
    timezone: Annotated[str | None, word("An IANA time zone.", default="UTC")] = None
    # These three are checked with the other options of its jobs.
    priority: Annotated[int | None, says("Priority of its jobs.", default=0, low=-1_000_000, high=1_000_000)] = None
    max_limit: Annotated[int | None, integer("Times after which the cron is removed; 0 for no end.", 0, COUNT_MAX)] = (
        None
    )
    job_name: Annotated[str | None, says("Name of its jobs.", bound=NAME_CHARS_MAX, default="default")] = None
    unique_key: Annotated[str | None, says("uniqueKey of its jobs.", max_chars=KEY_CHARS_MAX)] = None
    prevent_overlap: Annotated[bool | None, truth("No new job while the last one is unfinished.", default=True)] = None
    immediately: Annotated[bool | None, truth("Push a job now, too.", default=False)] = None
    skip_missed_on_restart: Annotated[
        bool | None, truth("No job for times that passed while the cluster had no leader.", default=False)
    ] = None
    skip_if_no_worker: Annotated[
        bool | None, truth("No job while no worker is registered for the queue.", default=False)
    ] = None
    job_options: Annotated[dict[str, Raw] | None, says("Options of its jobs, as in a push.", bound=0)] = None


CRON = msgspec.json.Decoder(CronBody)


def add(call: Call) -> AddCron:
    body = read(CRON, call.body, required=True)
    if not body.name:
        raise Invalid("name is required")
    if not body.schedule and body.repeat_every is None:
        raise Invalid(NEITHER)
    if body.schedule and body.repeat_every is not None:
        raise Invalid(f"{NEITHER}, not both")
    zone = body.timezone or None
    next_due_ms = 0
    try:
        crontime.zone(zone)
        if body.schedule:
            next_due_ms = crontime.next_due_ms(body.schedule, zone, call.node.now_ms())
    except crontime.InvalidSchedule as error:
        raise Invalid(f"Invalid cron expression: {error}") from None
    missed: Literal["fire", "skip"] = "skip" if body.skip_missed_on_restart else "fire"
    return AddCron(
        body.name,
        body.queue,
        pushing.checked_spec(job_of(body), new_id(), body.data),
        body.schedule or None,
        body.repeat_every,
        zone,
        next_due_ms,
        body.max_limit or None,
        prevent_overlap=body.prevent_overlap is None or body.prevent_overlap,
        immediately=bool(body.immediately),
        on_missed=missed,
        needs_worker=bool(body.skip_if_no_worker),
    )


def job_of(body: CronBody) -> pushing.PushBody:
    """Return the options of a cron's jobs; those of the cron itself go before its jobOptions. Raises Invalid."""
    options: Any = body.job_options or {}
    if not isinstance(options, dict):
        raise Invalid("jobOptions must be an object")
    # A cron's jobs have ids of their own, depend on nothing and do not repeat by themselves.
    known = {name: raw_of(value) for name, value in options.items() if name not in NOT_FOR_CRONS}
    job: pushing.PushBody = loosened(pushing.PushBody, known)
    if body.priority is not None:
        job.priority = body.priority
    if body.job_name is not None:
        job.name = as_text(body.job_name)
    if body.unique_key is not None:
        job.unique_key = body.unique_key
    return job


NOT_FOR_CRONS = frozenset({"data", "jobId", "customId", "dependsOn", "repeat"})


def raw_of(value: Any) -> Raw:
    """Return the text of a value, which a body that did not fit the types holds decoded."""
    return value if isinstance(value, Raw) else Raw(ENCODE(value))


def shown(cron: Cron) -> CronShown:
    return CronShown(
        cron.name,
        cron.job.opts.name,
        cron.queue,
        cron.schedule,
        cron.every_ms,
        cron.next_due or None,
        cron.executions,
        cron.max_limit,
        cron.timezone or "UTC",
        cron.job.opts.priority,
    )


def added(reply: CronSet) -> bytes:
    return one(reply.cron)


def one(cron: Cron) -> bytes:
    return b'{"ok":true,"cron":%b}' % ENCODE(shown(cron))


def several(crons: list[Cron]) -> bytes:
    return b'{"ok":true,"crons":%b}' % ENCODE([shown(cron) for cron in crons])


def get(call: Call) -> GetCron:
    return GetCron(call.path["name"])


def delete(call: Call) -> DeleteCron:
    return DeleteCron(call.path["name"])


ROUTES = grouped(
    "Crons",
    ask("GET", "/crons", ListCrons, lambda call: ListCrons(), several, reply=Crons,
        scope="checked", narrow=own_crons, command="CronList"),
    write("POST", "/crons", AddCron, add, added, takes=CronBody, reply=OneCron, right="manage:all",
          body="data", scope="checked", check=its_cron, command="Cron"),
    ask("GET", "/crons/{name}", GetCron, get, one, reply=OneCron, scope="checked", narrow=own_cron, command="CronGet"),
    write("DELETE", "/crons/{name}", DeleteCron, delete, replies.ok, reply=replies.Ok, right="manage:all",
          scope="checked", check=its_cron, command="CronDelete"),
)  # fmt: skip

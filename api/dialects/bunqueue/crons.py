"""Crons: what clients send, the rules for it, how a cron is shown, and the rows.

The first time of a cron expression is worked out here, before the log; the later ones by the leader.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from api.http import Call, Invalid, ask, grouped, submit
from api.ids import new_id
from api.scopes import its_cron, own_cron, own_crons
from api.values import COUNT_MAX, KEY_CHARS_MAX, as_text, says
from node import crontime
from node.operations.schedules import AddCron, CronSet, DeleteCron, GetCron, ListCrons
from node.state.schedule import Cron

from . import bodies, render, replies
from .values import as_key, check_number, check_queue, checked_data, loosened, read

NEITHER = "Cron job must have either schedule or repeatEvery"
BAD_EVERY = "Cron repeatEvery must be a positive safe integer number of milliseconds"
ENCODE = msgspec.json.Encoder().encode


class CronBody(Struct, gc=False, rename="camel"):
    """A cron: either `schedule` or `repeatEvery`. One with the name of another takes its place."""

    name: Annotated[str | None, says("Its name, unique in the cluster.", required=True, max_chars=KEY_CHARS_MAX)] = None
    queue: Annotated[str | None, says("The queue its jobs go to.", required=True)] = None
    data: Annotated[Raw | UnsetType, says("Data of each job: any JSON, up to 10 MB.", required=True)] = UNSET
    schedule: Annotated[str | None, says("5 fields, 6 with leading seconds, or @hourly and its like.")] = None
    repeat_every: Annotated[int | None, says("Milliseconds from one time to the next.", low=1, high=COUNT_MAX)] = None
    timezone: Annotated[str | None, says("An IANA time zone.", default="UTC")] = None
    priority: Annotated[int | None, says("Priority of its jobs.", default=0, low=-1_000_000, high=1_000_000)] = None
    max_limit: Annotated[
        int | None, says("Times after which the cron is removed; 0 for no end.", low=0, high=COUNT_MAX)
    ] = None
    job_name: Annotated[str | None, says("Name of its jobs.", default="default")] = None
    unique_key: Annotated[str | None, says("uniqueKey of its jobs.", max_chars=KEY_CHARS_MAX)] = None
    prevent_overlap: Annotated[bool | None, says("No new job while the last one is unfinished.", default=True)] = None
    immediately: Annotated[bool | None, says("Push a job now, too.", default=False)] = None
    skip_missed_on_restart: Annotated[
        bool | None, says("No job for times that passed while the cluster had no leader.", default=False)
    ] = None
    skip_if_no_worker: Annotated[
        bool | None, says("No job while no worker is registered for the queue.", default=False)
    ] = None
    job_options: Annotated[dict[str, Raw] | None, says("Options of its jobs, as in a push.")] = None


CRON = msgspec.json.Decoder(CronBody)


def add(call: Call) -> AddCron:
    body = read(CRON, call.body, required=True)
    name = as_key("name", body.name)
    if name is None:
        raise Invalid("name is required")
    queue = check_queue(as_text(body.queue) or "")
    data = checked_data(body.data)
    schedule, every = as_text(body.schedule), body.repeat_every
    if not schedule and every is None:
        raise Invalid(NEITHER)
    if schedule and every is not None:
        raise Invalid(f"{NEITHER}, not both")
    if every is not None:
        check_every(every)
    zone = as_text(body.timezone) or None
    next_due_ms = 0
    try:
        crontime.zone(zone)
        if schedule:
            next_due_ms = crontime.next_due_ms(schedule, zone, time.time_ns() // 1_000_000)
    except crontime.InvalidSchedule as error:
        raise Invalid(f"Invalid cron expression: {error}") from None
    limit = None
    if body.max_limit is not None:
        check_number("maxLimit", body.max_limit, 0, COUNT_MAX, integer=True)
        limit = int(body.max_limit) or None
    missed: Literal["fire", "skip"] = "skip" if body.skip_missed_on_restart else "fire"
    return AddCron(
        name,
        queue,
        bodies.checked_spec(job_of(body), new_id(), data),
        schedule or None,
        None if every is None else int(every),
        zone,
        next_due_ms,
        limit,
        prevent_overlap=body.prevent_overlap is None or bool(body.prevent_overlap),
        immediately=bool(body.immediately),
        on_missed=missed,
        needs_worker=bool(body.skip_if_no_worker),
    )


def check_every(every: Any) -> None:
    if isinstance(every, bool) or not isinstance(every, (int, float)) or every != every // 1:
        raise Invalid(BAD_EVERY)
    if not 0 < every < COUNT_MAX:
        raise Invalid(BAD_EVERY)


def job_of(body: CronBody) -> bodies.PushBody:
    """Return the options of a cron's jobs; those of the cron itself go before its jobOptions. Raises Invalid."""
    options: Any = body.job_options or {}
    if not isinstance(options, dict):
        raise Invalid("jobOptions must be an object")
    # A cron's jobs have ids of their own, depend on nothing and do not repeat by themselves.
    known = {name: raw_of(value) for name, value in options.items() if name not in NOT_FOR_CRONS}
    job: bodies.PushBody = loosened(bodies.PushBody, known)
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


def shown(cron: Cron) -> dict[str, Any]:
    return {
        "name": cron.name,
        "jobName": cron.job.opts.name,
        "queue": cron.queue,
        "schedule": cron.schedule,
        "repeatEvery": cron.every_ms,
        "nextRun": cron.next_due or None,
        "executions": cron.executions,
        "maxLimit": cron.max_limit,
        "timezone": cron.timezone,
        "priority": cron.job.opts.priority,
    }


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
    ask("GET", "/crons", ListCrons, lambda call: ListCrons(), several, reply=replies.Crons,
        scope="checked", narrow=own_crons),
    submit("POST", "/crons", AddCron, add, added, takes=CronBody, reply=replies.OneCron, right="manage:all",
           body="data", scope="checked", check=its_cron),
    ask("GET", "/crons/{name}", GetCron, get, one, reply=replies.OneCron, scope="checked", narrow=own_cron),
    submit("DELETE", "/crons/{name}", DeleteCron, delete, render.ok, reply=replies.Ok, right="manage:all",
           scope="checked", check=its_cron),
)  # fmt: skip

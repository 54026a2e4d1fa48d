"""What can be done to a queue as a whole and to single jobs, by name: the "queue's actions" that the document's menu lists.

Names and rules are BullMQ's (`queue.pause()`, `job.retry()` and so on); paths are in the style of the document's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from quorumq.api.errors import Invalid
from quorumq.api.reply import TEXT, Reply
from quorumq.api.request import CONSISTENCY, Call, Parameter, Route, View
from quorumq.api.rows import Text, grouped, plain, success
from quorumq.api.scopes import its_descendants
from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.jobs import (
    ChangeDelay,
    ChangePriority,
    ClearLogs,
    PromoteJob,
    RemoveJob,
    RetryJob,
    UpdateJobData,
)
from quorumq.node.machine.operations.queue_reads import ListQueues, QueueCounts
from quorumq.node.machine.operations.queues import (
    CleanQueue,
    DrainQueue,
    ObliterateQueue,
    PauseQueue,
    PromoteJobs,
    ResumeQueue,
    RetryJobs,
)
from quorumq.node.machine.operations.settings import ClearConcurrency, GetQueueSettings, SetConcurrency, SetWindow

from . import errors, render, replies
from .adding import PRIORITY_MAX
from .lookup import job_of
from .values import MILLIS_MAX, Body, any_json, can_be_named, flag, number, one_of, parse_int, queue_of, read

# Jobs removed by one request, at most.
CLEAN_MAX = 10_000
CLEANED = {
    "completed": "completed",
    "failed": "failed",
    "wait": "unlowered",
    "waiting": "unlowered",
    "paused": "unlowered",
    "active": "unlocked",
    "delayed": "delayed",
    "prioritized": "lowered",
}
FINISHED: tuple[Literal["failed", "completed"], ...] = ("failed", "completed")
Word = TypeVar("Word", bound=str)
GROUP = "BullMQ: queue's actions"


class DrainBody(Body):
    """What to drain."""

    delayed: Annotated[bool | None, flag("Delayed jobs, too.", default=False)] = None


class CleanBody(Body):
    """Which jobs to remove."""

    CHECKED: ClassVar = ("type", "limit")

    grace: Annotated[int | None, number("Milliseconds a job must be old.", 0, MILLIS_MAX, default=0)] = None
    limit: Annotated[int | None, number("Jobs, at most; 0 and what is more count as 10,000.", default=0)] = None
    type: Annotated[
        str | None,
        one_of(
            "completed, failed, wait, paused, active (only without a lock), delayed or prioritized.", tuple(CLEANED)
        ),
    ] = None


class ObliterateBody(Body):
    """Whether active jobs may be destroyed."""

    force: Annotated[bool | None, flag("Active jobs, too.", default=False)] = None


class RetryManyBody(Body):
    """Which finished jobs are to run again."""

    state: Annotated[str | None, one_of("failed or completed.", FINISHED)] = None
    count: Annotated[int | None, number("Jobs, at most; left out, all.")] = None
    timestamp: Annotated[int | None, number("Only those that ended until then; milliseconds.", in_schema=False)] = None


class PromoteManyBody(Body):
    """How many delayed jobs are to wait no longer."""

    count: Annotated[int | None, number("Jobs, at most; left out, all.")] = None


class GlobalRateBody(Body):
    """How many jobs of a queue may start in a time, whoever takes them."""

    max: Annotated[int | None, number("Jobs.", 1, required=True)] = None
    duration: Annotated[int | None, number("Milliseconds from the first of them.", 1, MILLIS_MAX, required=True)] = None


class GlobalConcurrencyBody(Body):
    """How many jobs of a queue may be active at once, whoever works on them."""

    concurrency: Annotated[int | None, number("Jobs.", 1, required=True)] = None


class RetryBody(Body):
    """What a job must have come to, to run again."""

    state: Annotated[str | None, one_of("failed or completed.", FINISHED)] = None
    reset_attempts_made: Annotated[bool | None, flag("Its attempts count from zero.", default=False)] = None


class NewPriorityBody(Body):
    """New priority of a job."""

    priority: Annotated[int | None, number("Lower goes first; 0 for none.", 0, PRIORITY_MAX, required=True)] = None
    lifo: Annotated[bool | None, flag("First among those of its new priority, else last.", default=False)] = None


class NewDelayBody(Body):
    """How long a delayed job is to wait from now."""

    delay: Annotated[int | None, number("Milliseconds.", 0, MILLIS_MAX, required=True)] = None


class NewDataBody(Body):
    """New data of a job."""

    data: Annotated[Raw | UnsetType, any_json("Any JSON, up to 10 MB; takes the place of all data.", required=True)] = (
        UNSET
    )


DRAIN = msgspec.json.Decoder(DrainBody)
CLEAN = msgspec.json.Decoder(CleanBody)
OBLITERATE = msgspec.json.Decoder(ObliterateBody)
RETRY_MANY = msgspec.json.Decoder(RetryManyBody)
PROMOTE_MANY = msgspec.json.Decoder(PromoteManyBody)
RETRY = msgspec.json.Decoder(RetryBody)
GLOBAL_RATE = msgspec.json.Decoder(GlobalRateBody)
GLOBAL_CONCURRENCY = msgspec.json.Decoder(GlobalConcurrencyBody)
PRIORITY = msgspec.json.Decoder(NewPriorityBody)
DELAY = msgspec.json.Decoder(NewDelayBody)
DATA = msgspec.json.Decoder(NewDataBody)
KEEP_LOGS = Parameter("keepLogs", "The last lines that stay.", {"type": "integer", "minimum": 0, "default": 0})


def done(text: bytes) -> Reply:
    """Make the reply of what has nothing to say but that it is done."""
    return Reply(200, text, TEXT)


# -- Queues ------------------------------------------------------------------------------------------------------------


def drain(call: Call) -> DrainQueue:
    delayed = bool(read(DRAIN, call.body).delayed)
    return DrainQueue(queue_of(call), delayed=delayed, spare_repeating=call.level >= 1)


def clean(call: Call) -> CleanQueue:
    queue, body = queue_of(call), read(CLEAN, call.body)
    kind = CLEANED[body.type or next(iter(CLEANED))]
    limit = min(body.limit or CLEAN_MAX, CLEAN_MAX)
    return CleanQueue(queue, body.grace or 0, kind, limit, spare_repeating=call.level >= 1)


def obliterate(call: Call) -> ObliterateQueue:
    return ObliterateQueue(queue_of(call), only_idle=not read(OBLITERATE, call.body).force)


def retry_many(call: Call) -> RetryJobs:
    queue, body = queue_of(call), read(RETRY_MANY, call.body)
    return RetryJobs(queue, body.state or FINISHED[0], body.count, body.timestamp)


def promote_many(call: Call) -> PromoteJobs:
    return PromoteJobs(queue_of(call), read(PROMOTE_MANY, call.body).count)


async def clean_queue(call: Call) -> Reply:
    operation = clean(call)
    view = partial(render.cleaned, operation.queue)
    return success(await call.submit(operation, view))


def set_global_rate(call: Call) -> SetWindow:
    queue, body = queue_of(call), read(GLOBAL_RATE, call.body)
    return SetWindow(queue, body.max, body.duration)


def clear_global_rate(call: Call) -> SetWindow:
    return SetWindow(queue_of(call), None)


def set_global_concurrency(call: Call) -> SetConcurrency:
    return SetConcurrency(queue_of(call), read(GLOBAL_CONCURRENCY, call.body).concurrency)


def clear_global_concurrency(call: Call) -> ClearConcurrency:
    return ClearConcurrency(queue_of(call))


async def show_queue(call: Call) -> Reply:
    name = queue_of(call)
    counts = await call.node.ask(QueueCounts(name), stale=call.stale)
    # Of the same moment: this waits for nothing.
    return success(await call.node.ask(GetQueueSettings(name), partial(render.queue, name, counts), stale=True))


async def count_queue(call: Call) -> Reply:
    return success(await call.node.ask(QueueCounts(queue_of(call)), render.counts, stale=call.stale))


async def list_queues(call: Call) -> Reply:
    """List the queues that this dialect can name; others (with a colon, too short or too long) are left out."""
    covers = call.grant.covers

    def view(names: list[str]) -> bytes:
        return render.queues([name for name in names if can_be_named(name) and covers(name)])

    return success(await call.node.ask(ListQueues(), view, stale=call.stale))


# -- Jobs --------------------------------------------------------------------------------------------------------------


async def retry(call: Call) -> Operation:
    body = read(RETRY, call.body)
    return RetryJob(await job_of(call), body.state or FINISHED[0], bool(body.reset_attempts_made))


async def promote(call: Call) -> Operation:
    return PromoteJob(await job_of(call))


async def change_priority(call: Call) -> Operation:
    body = read(PRIORITY, call.body)
    return ChangePriority(await job_of(call), -body.priority, lifo=bool(body.lifo))


async def change_delay(call: Call) -> Operation:
    delay = read(DELAY, call.body).delay
    return ChangeDelay(await job_of(call), delay, only_delayed=True)


async def update_data(call: Call) -> Operation:
    data = read(DATA, call.body).data
    return UpdateJobData(await job_of(call), data)


async def remove(call: Call) -> Operation:
    operation = RemoveJob(await job_of(call), children=call.level >= 1)
    return operation if call.grant.every_queue else await its_descendants(call, operation)


async def clear_logs(call: Call) -> Operation:
    keep = parse_int(call.query.get("keepLogs"), 0)
    if keep is None or keep < 0:
        raise Invalid("Invalid keepLogs")
    return ClearLogs(await job_of(call), keep, known=call.level >= 1)


# -- The tables --------------------------------------------------------------------------------------------------------


def on_queue(path: str, what: type[Operation], decode: Callable[[Call], Operation], view: View, **more: Any) -> Route:
    """A row that does something to a whole queue."""

    async def handler(call: Call) -> Reply:
        return success(await call.submit(decode(call), view))

    return plain("POST", "/queues/{queue}/" + path, handler, what=what, right="manage:all", **more)


def on_job(
    method: str, path: str, what: type[Operation], decode: Callable[[Call], Awaitable[Operation]], **more: Any
) -> Route:
    """A row that does something to one job and answers OK."""

    async def handler(call: Call) -> Reply:
        return done(await call.submit(await decode(call), render.ok))

    target = "/queues/{queue}/jobs/{id}" + path
    return plain(method, target, handler, what=what, reply=Text, answers=errors.CONFLICTS, **more)


def settle(method: str, path: str, what: type[Operation], decode: Callable[[Call], Operation], **more: Any) -> Route:
    """A row that settles something of a queue and answers OK."""

    async def handler(call: Call) -> Reply:
        return done(await call.submit(decode(call), render.ok))

    return plain(method, "/queues/{queue}/" + path, handler, what=what, reply=Text, right="manage:all", **more)


def pause(call: Call) -> PauseQueue:
    return PauseQueue(queue_of(call))


def resume(call: Call) -> ResumeQueue:
    return ResumeQueue(queue_of(call))


QUEUES = grouped(
    GROUP,
    plain("GET", "/queues", list_queues, what=ListQueues, reply=replies.QueueNames, right="read", asks=(CONSISTENCY,),
          scope="checked", about="Names of the queues, in order of creation."),
    plain("GET", "/queues/{queue}", show_queue, what=QueueCounts, reply=replies.QueueShown, right="read",
          asks=(CONSISTENCY,), about="A queue: whether it is paused, and its jobs by status."),
    plain("GET", "/queues/{queue}/counts", count_queue, what=QueueCounts, reply=replies.QueueCountsShown, right="read",
          asks=(CONSISTENCY,), about="Jobs of a queue by status."),
    settle("POST", "pause", PauseQueue, pause, about="Give out no jobs of a queue any more; active ones go on."),
    settle("POST", "resume", ResumeQueue, resume, about="Give out jobs of a queue again."),
    on_queue("drain", DrainQueue, drain, render.counted, takes=DrainBody, reply=replies.CountShown,
             about="Remove all jobs of a queue that wait, and those that are delayed if asked to."),
    plain("POST", "/queues/{queue}/clean", clean_queue, what=CleanQueue, right="manage:all", takes=CleanBody,
          reply=replies.IdsShown, about="Remove the oldest jobs of a kind."),
    on_queue("obliterate", ObliterateQueue, obliterate, render.counted, takes=ObliterateBody, reply=replies.CountShown,
             answers=errors.CONFLICTS, about="Destroy a queue with all its jobs and settings."),
    on_queue("retry", RetryJobs, retry_many, render.counted, takes=RetryManyBody, reply=replies.CountShown,
             about="Let finished jobs of a queue run again, those that ended first first."),
    on_queue("promote", PromoteJobs, promote_many, render.counted, takes=PromoteManyBody, reply=replies.CountShown,
             about="Let delayed jobs of a queue wait no longer, those due first first."),
    settle("PUT", "global-rate-limit", SetWindow, set_global_rate, takes=GlobalRateBody,
           about="Let so many jobs of a queue start in a time, whoever takes them; a push worker's limiter takes its place."),
    settle("DELETE", "global-rate-limit", SetWindow, clear_global_rate, about="Take that limit away."),
    settle("PUT", "global-concurrency", SetConcurrency, set_global_concurrency, takes=GlobalConcurrencyBody,
           about="Let so many jobs of a queue be active at once, whoever works on them."),
    settle("DELETE", "global-concurrency", ClearConcurrency, clear_global_concurrency, about="Take that limit away."),
)  # fmt: skip

JOBS = grouped(
    GROUP,
    on_job("POST", "/retry", RetryJob, retry, takes=RetryBody, right="produce", refusals=errors.RETRYING,
           about="Let a finished job run again; its attempts made stay unless they are reset."),
    on_job("POST", "/promote", PromoteJob, promote, right="produce", refusals=errors.of_state("promote", "delayed")),
    on_job("POST", "/change-priority", ChangePriority, change_priority, takes=NewPriorityBody, right="produce",
           refusals=errors.of_state("changePriority", "waiting"), about="Give a job another priority, and its place there."),
    on_job("POST", "/change-delay", ChangeDelay, change_delay, takes=NewDelayBody, right="produce",
           refusals=errors.of_state("changeDelay", "delayed"), about="Let a delayed job wait for a time from now."),
    on_job("PUT", "/data", UpdateJobData, update_data, takes=NewDataBody, body="data", right="produce",
           refusals=errors.UPDATING, about="Replace the data of a job that is not finished."),
    on_job("DELETE", "", RemoveJob, remove, right="produce", refusals=errors.REMOVING),
    on_job("DELETE", "/logs", ClearLogs, clear_logs, asks=(KEEP_LOGS,), right="produce",
           about="Drop the lines attached to a job, but for the last ones if asked to."),
)  # fmt: skip

ROUTES: tuple[Route, ...] = (*QUEUES, *JOBS)

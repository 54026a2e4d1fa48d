"""Queues as a whole: what is asked of them and done to them, what is answered, and the rows.

Names and rules are BullMQ's (`queue.pause()`, `queue.drain()` and so on); paths are in the style of the document's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Struct

from quorumq.api.reply import Reply
from quorumq.api.request import CONSISTENCY, Call, Route, View
from quorumq.api.rows import Text, grouped, plain, success
from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.queue_reads import Counts, ListQueues, QueueCounts
from quorumq.node.machine.operations.queues import (
    Cleaned,
    CleanQueue,
    DrainQueue,
    ObliterateQueue,
    PauseQueue,
    PromoteJobs,
    ResumeQueue,
    RetryJobs,
)
from quorumq.node.machine.operations.settings import ClearConcurrency, GetQueueSettings, SetConcurrency, SetWindow
from quorumq.node.machine.state import QueueSettings

from . import errors, replies
from .values import MILLIS_MAX, Body, can_be_named, flag, number, one_of, queue_of, read

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


DRAIN = msgspec.json.Decoder(DrainBody)
CLEAN = msgspec.json.Decoder(CleanBody)
OBLITERATE = msgspec.json.Decoder(ObliterateBody)
RETRY_MANY = msgspec.json.Decoder(RetryManyBody)
PROMOTE_MANY = msgspec.json.Decoder(PromoteManyBody)
GLOBAL_RATE = msgspec.json.Decoder(GlobalRateBody)
GLOBAL_CONCURRENCY = msgspec.json.Decoder(GlobalConcurrencyBody)


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
    view = partial(cleaned, operation.queue)
    return success(await call.write(operation, view))


def set_global_rate(call: Call) -> SetWindow:
    queue, body = queue_of(call), read(GLOBAL_RATE, call.body)
    return SetWindow(queue, body.max, body.duration)


def clear_global_rate(call: Call) -> SetWindow:
    return SetWindow(queue_of(call), None)


def set_global_concurrency(call: Call) -> SetConcurrency:
    return SetConcurrency(queue_of(call), read(GLOBAL_CONCURRENCY, call.body).concurrency)


def clear_global_concurrency(call: Call) -> ClearConcurrency:
    return ClearConcurrency(queue_of(call))


def pause(call: Call) -> PauseQueue:
    return PauseQueue(queue_of(call))


def resume(call: Call) -> ResumeQueue:
    return ResumeQueue(queue_of(call))


# -- What is answered --------------------------------------------------------------------------------------------------


class IdsShown(replies.BullShown):
    """ids: of the jobs removed, oldest first."""

    count: int
    ids: list[str]


class QueueCountsShown(Struct, forbid_unknown_fields=True, rename="kebab"):
    """Jobs by status; those of a paused queue that have no priority are paused."""

    waiting: int
    active: int
    completed: int
    failed: int
    delayed: int
    prioritized: int
    paused: int
    waiting_children: int


class RateShown(replies.BullShown):
    """At most so many starts within a time of the first of them."""

    max: int
    duration: int


class QueueShown(replies.BullShown):
    """global_rate_limit: set here or by a push worker's limiter."""

    name: str
    is_paused: bool
    counts: QueueCountsShown
    global_rate_limit: RateShown | None
    global_concurrency: int | None


class QueueNames(replies.BullShown):
    queues: list[str]


def all_counts(reply: Counts) -> dict[str, int]:
    """Return the counts by status: jobs without a priority are paused where the queue is, those with one stay prioritized."""
    plain = reply.waiting - reply.lowered
    return {
        "waiting": 0 if reply.paused else plain,
        "active": reply.active,
        "completed": reply.completed,
        "failed": reply.failed,
        "delayed": reply.delayed,
        "prioritized": reply.lowered,
        "paused": plain if reply.paused else 0,
        "waiting-children": reply.waiting_children,
    }


def one_queue(name: str, counts: Counts, settings: QueueSettings) -> bytes:
    window = settings.window
    shown = {
        "name": name,
        "isPaused": counts.paused,
        "counts": all_counts(counts),
        "globalRateLimit": None if window is None else {"max": window.max, "duration": window.duration_ms},
        "globalConcurrency": settings.concurrency,
    }
    return replies.ENCODE(shown)


def counts(reply: Counts) -> bytes:
    return replies.ENCODE(all_counts(reply))


def names(found: list[str]) -> bytes:
    return replies.ENCODE({"queues": found})


def cleaned(queue: str, reply: Cleaned) -> bytes:
    return replies.ENCODE({"count": len(reply.job_ids), "ids": replies.own_ids(queue, reply.job_ids)})


async def show_queue(call: Call) -> Reply:
    name = queue_of(call)
    sizes = await call.node.ask(QueueCounts(name), stale=call.stale)
    # Of the same moment: this waits for nothing.
    return success(await call.node.ask(GetQueueSettings(name), partial(one_queue, name, sizes), stale=True))


async def count_queue(call: Call) -> Reply:
    return success(await call.node.ask(QueueCounts(queue_of(call)), counts, stale=call.stale))


async def list_queues(call: Call) -> Reply:
    """List the queues that this dialect can name; others (with a colon, too short or too long) are left out."""
    covers = call.grant.covers

    def view(found: list[str]) -> bytes:
        return names([name for name in found if can_be_named(name) and covers(name)])

    return success(await call.node.ask(ListQueues(), view, stale=call.stale))


# -- The rows ----------------------------------------------------------------------------------------------------------


def on_queue(path: str, what: type[Operation], decode: Callable[[Call], Operation], view: View, **more: Any) -> Route:
    """A row that does something to a whole queue."""

    async def handler(call: Call) -> Reply:
        return success(await call.write(decode(call), view))

    return plain("POST", "/queues/{queue}/" + path, handler, what=what, right="manage:all", **more)


def settle(method: str, path: str, what: type[Operation], decode: Callable[[Call], Operation], **more: Any) -> Route:
    """A row that settles something of a queue and answers OK."""

    async def handler(call: Call) -> Reply:
        return replies.done(await call.write(decode(call), replies.ok))

    return plain(method, "/queues/{queue}/" + path, handler, what=what, reply=Text, right="manage:all", **more)


ROUTES: tuple[Route, ...] = grouped(
    GROUP,
    plain("GET", "/queues", list_queues, what=ListQueues, reply=QueueNames, right="read", asks=(CONSISTENCY,),
          scope="checked", about="Names of the queues, in order of creation."),
    plain("GET", "/queues/{queue}", show_queue, what=QueueCounts, reply=QueueShown, right="read",
          asks=(CONSISTENCY,), about="A queue: whether it is paused, and its jobs by status."),
    plain("GET", "/queues/{queue}/counts", count_queue, what=QueueCounts, reply=QueueCountsShown, right="read",
          asks=(CONSISTENCY,), about="Jobs of a queue by status."),
    settle("POST", "pause", PauseQueue, pause, about="Give out no jobs of a queue any more; active ones go on."),
    settle("POST", "resume", ResumeQueue, resume, about="Give out jobs of a queue again."),
    on_queue("drain", DrainQueue, drain, replies.counted, takes=DrainBody, reply=replies.CountShown,
             about="Remove all jobs of a queue that wait, and those that are delayed if asked to."),
    plain("POST", "/queues/{queue}/clean", clean_queue, what=CleanQueue, right="manage:all", takes=CleanBody,
          reply=IdsShown, about="Remove the oldest jobs of a kind."),
    on_queue("obliterate", ObliterateQueue, obliterate, replies.counted, takes=ObliterateBody, reply=replies.CountShown,
             answers=errors.CONFLICTS, about="Destroy a queue with all its jobs and settings."),
    on_queue("retry", RetryJobs, retry_many, replies.counted, takes=RetryManyBody, reply=replies.CountShown,
             about="Let finished jobs of a queue run again, those that ended first first."),
    on_queue("promote", PromoteJobs, promote_many, replies.counted, takes=PromoteManyBody, reply=replies.CountShown,
             about="Let delayed jobs of a queue wait no longer, those due first first."),
    settle("PUT", "global-rate-limit", SetWindow, set_global_rate, takes=GlobalRateBody,
           about="Let so many jobs of a queue start in a time, whoever takes them; a push worker's limiter takes its place."),
    settle("DELETE", "global-rate-limit", SetWindow, clear_global_rate, about="Take that limit away."),
    settle("PUT", "global-concurrency", SetConcurrency, set_global_concurrency, takes=GlobalConcurrencyBody,
           about="Let so many jobs of a queue be active at once, whoever works on them."),
    settle("DELETE", "global-concurrency", ClearConcurrency, clear_global_concurrency, about="Take that limit away."),
)  # fmt: skip

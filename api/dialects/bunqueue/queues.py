"""Queues: what is asked of them and done to them, what is answered, and the rows."""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar

import msgspec
from msgspec import Struct

from quorumq.api.reply import Reply
from quorumq.api.request import CONSISTENCY, Call, Command, Parameter, Route
from quorumq.api.rows import ask, grouped, plain, success, write
from quorumq.api.scopes import own_names
from quorumq.api.values import BATCH_MAX, COUNT_MAX, Number
from quorumq.node.machine.operations.queue_reads import Counts as CountReply
from quorumq.node.machine.operations.queue_reads import IsPaused, ListJobs, ListQueues, PriorityCounts, QueueCounts
from quorumq.node.machine.operations.queues import Cleaned as CleanReply
from quorumq.node.machine.operations.queues import (
    CleanQueue,
    DrainQueue,
    ObliterateQueue,
    PauseQueue,
    PromoteJobs,
    ResumeQueue,
    RetryCompleted,
)
from quorumq.node.machine.state.job import Job

from . import job_object, replies
from .values import integer, number, of_queue, page, queue_of, read, word

# Jobs of one answer: some ten megabytes, written while the node does nothing else.
LISTED_MAX = 10_000
CLEAN_LIMIT = 1_000
COUNT = {"type": "integer", "minimum": 0}


class CleanBody(Struct, gc=False):
    """Which jobs to remove."""

    CHECKED: ClassVar = ("grace", "limit")

    grace: Annotated[Number | None, number("Milliseconds; only jobs at least this old.", 0, COUNT_MAX, default=0)] = (
        None
    )
    state: Annotated[str | None, word("waiting, delayed, completed or failed; left out, both waiting and delayed.")] = (
        None
    )
    limit: Annotated[
        Number | None,
        integer(f"Jobs to remove, at most; more than {BATCH_MAX:,} count as that.", 0, COUNT_MAX, in_schema=False,
                default=CLEAN_LIMIT),
    ] = None  # fmt: skip


class PromoteBody(Struct, gc=False):
    """How many delayed jobs."""

    count: Annotated[Number | None, integer("Jobs, at most; left out, all.", 0, COUNT_MAX, in_schema=False)] = None


class RetryCompletedBody(Struct, gc=False):
    """Which completed jobs."""

    id: Annotated[str | None, word("Id of a job; left out, all.")] = None
    count: Annotated[
        Number | None,
        integer("Jobs, at most, the first to have ended first; left out, all.", 0, COUNT_MAX, in_schema=False),
    ] = None
    timestamp: Annotated[
        Number | None, integer("Only jobs that ended until then; milliseconds since the epoch.", 0, COUNT_MAX)
    ] = None


class TrimBody(Struct, gc=False, rename="camel"):
    """How many events to keep."""

    max_length: Annotated[Number | None, integer("Events, at most.", 0, COUNT_MAX, required=True)] = None


CLEAN = msgspec.json.Decoder(CleanBody)
PROMOTE = msgspec.json.Decoder(PromoteBody)
RETRY_COMPLETED = msgspec.json.Decoder(RetryCompletedBody)
TRIM = msgspec.json.Decoder(TrimBody)


def list_jobs(call: Call) -> ListJobs:
    queue = queue_of(call)
    limit, offset = page(call, "limit")
    names = call.query.get("states") or call.query.get("state") or ""
    states = tuple(dict.fromkeys(name for name in names.split(",") if name))
    return ListJobs(queue, states if len(states) > 1 else names.strip(",") or None, at_most(limit), offset)


def at_most(limit: int | None) -> int:
    """Return how many jobs an answer may have; None asks for all."""
    return LISTED_MAX if limit is None else min(limit, LISTED_MAX)


def clean(call: Call) -> CleanQueue:
    queue = queue_of(call)
    body = read(CLEAN, call.body)
    limit = CLEAN_LIMIT if body.limit is None else body.limit
    return CleanQueue(queue, body.grace or 0, body.state, min(limit, BATCH_MAX))


def promote_jobs(call: Call) -> PromoteJobs:
    return PromoteJobs(queue_of(call), read(PROMOTE, call.body).count)


def retry_completed(call: Call) -> RetryCompleted:
    queue = queue_of(call)
    body = read(RETRY_COMPLETED, call.body)
    return RetryCompleted(queue, body.id, body.count, body.timestamp)


async def trim_events(call: Call) -> Reply:
    """Answer that no event had to go: they are told, and for those who come back later the cluster keeps the last of all queues
    together, in bounds of its own. There is no journal of a queue that could be too long."""
    queue_of(call)
    read(TRIM, call.body)
    return Reply(200, b'{"ok":true,"removed":0}')


class Jobs(replies.Success):
    jobs: list[job_object.JobShown]


class Cleaned(replies.Success):
    count: int
    ids: list[str]


class Queues(replies.Success):
    queues: list[str]


class CountsOf(Struct, forbid_unknown_fields=True, rename="kebab"):
    waiting: int
    prioritized: int
    delayed: int
    active: int
    completed: int
    failed: int
    waiting_children: int
    paused: int


class Counts(replies.Success):
    counts: CountsOf


class PriorityCountsOf(replies.Success):
    queue: str
    counts: dict[int, int]


class Paused(replies.Success):
    paused: bool


def cleaned(reply: CleanReply) -> bytes:
    return b'{"ok":true,"count":%d,"ids":%b}' % (len(reply.job_ids), replies.ENCODE(reply.job_ids))


def jobs_of(reply: list[Job]) -> bytes:
    return b'{"ok":true,"jobs":[%b]}' % b",".join(map(job_object.full_text, reply))


def names(names: list[str]) -> bytes:
    return b'{"ok":true,"queues":%b}' % replies.ENCODE(names)


def counts(reply: CountReply) -> bytes:
    """Render the counts: jobs that wait with a priority are waiting, and those of a paused queue are paused as well."""
    return (
        b'{"ok":true,"counts":{"waiting":%d,"prioritized":0,"delayed":%d,"active":%d,"completed":%d,"failed":%d,'
        b'"waiting-children":%d,"paused":%d}}'
        % (
            reply.waiting,
            reply.delayed,
            reply.active,
            reply.completed,
            reply.failed,
            reply.waiting_children,
            reply.waiting if reply.paused else 0,
        )
    )


def unfinished_count(reply: CountReply) -> bytes:
    """Render how many jobs are neither completed nor dead, as the document's example adds up."""
    return b'{"ok":true,"count":%d}' % (reply.waiting + reply.delayed + reply.active + reply.waiting_children)


def by_priority(queue: str, reply: dict[int, int]) -> bytes:
    return b'{"ok":true,"queue":%b,"counts":%b}' % (replies.ENCODE(queue), replies.ENCODE(reply))


def paused(reply: bool) -> bytes:
    return b'{"ok":true,"paused":true}' if reply else b'{"ok":true,"paused":false}'


STATE = Parameter(
    "state",
    "waiting, delayed, active, waiting-children, completed, failed, prioritized or paused, or several with commas; left out, all.",
    {"type": "string"},
)
STATES = Parameter("states", "The same as state.", {"type": "string"})
LIMIT = Parameter("limit", f"Jobs, at most; left out, all, of which one answer has {LISTED_MAX:,}.", COUNT)
OFFSET = Parameter("offset", "Jobs to skip.", {**COUNT, "default": 0})


async def priority_counts(call: Call) -> Reply:
    query = PriorityCounts(queue_of(call))
    return success(await call.node.ask(query, partial(by_priority, query.queue), stale=call.stale))


ROUTES: tuple[Route, ...] = grouped(
    "Queues",
    ask("GET", "/queues", ListQueues, lambda call: ListQueues(), names, reply=Queues,
        scope="checked", narrow=own_names, command="ListQueues"),
    ask("GET", "/queues/{queue}/jobs/list", ListJobs, list_jobs, jobs_of,
        asks=(STATE, STATES, LIMIT, OFFSET), reply=Jobs, command="GetJobs"),
    ask("GET", "/queues/{queue}/counts", QueueCounts, of_queue(QueueCounts), counts, reply=Counts,
        about="Jobs of a queue by state.", command="GetJobCounts"),
    ask("GET", "/queues/{queue}/count", QueueCounts, of_queue(QueueCounts), unfinished_count,
        reply=replies.Count, about="Jobs of a queue that are not finished.", command="Count"),
    plain("GET", "/queues/{queue}/priority-counts", priority_counts, what=PriorityCounts, asks=(CONSISTENCY,),
          reply=PriorityCountsOf, right="read", command="GetCountsPerPriority"),
    ask("GET", "/queues/{queue}/paused", IsPaused, of_queue(IsPaused), paused, reply=Paused, command="IsPaused"),
    write("POST", "/queues/{queue}/pause", PauseQueue, of_queue(PauseQueue), replies.ok,
          reply=replies.Ok, right="manage:all", about="Give out no jobs of a queue any more; active ones go on.",
          command="Pause"),
    write("POST", "/queues/{queue}/resume", ResumeQueue, of_queue(ResumeQueue), replies.ok,
          reply=replies.Ok, right="manage:all", about="Give out jobs of a queue again.", command="Resume"),
    write("POST", "/queues/{queue}/drain", DrainQueue, of_queue(DrainQueue), replies.counted,
          reply=replies.Count, right="manage:all", command="Drain"),
    write("POST", "/queues/{queue}/obliterate", ObliterateQueue, of_queue(ObliterateQueue), replies.ok,
          reply=replies.Ok, right="manage:all", command="Obliterate"),
    write("POST", "/queues/{queue}/clean", CleanQueue, clean, cleaned,
          takes=CleanBody, reply=Cleaned, right="manage:all",
          about="Remove the oldest jobs of a state.", command="Clean"),
    write("POST", "/queues/{queue}/promote-jobs", PromoteJobs, promote_jobs, replies.counted,
          takes=PromoteBody, reply=replies.Count, right="manage:all", command="PromoteJobs"),
    write("POST", "/queues/{queue}/retry-completed", RetryCompleted, retry_completed, replies.counted,
          takes=RetryCompletedBody, reply=replies.Count, right="manage:all", command="RetryCompleted"),
    plain("POST", "/queues/{queue}/events/trim", trim_events, takes=TrimBody,
          reply=replies.RemovedCount, right="manage:all",
          about="Have a queue keep no more than so many events; it keeps none, so none goes.",
          command=Command("TrimEvents", reply=replies.as_data)),
)  # fmt: skip

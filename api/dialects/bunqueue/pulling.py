"""Taking jobs: what workers ask for, what they are given, and the rows."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from quorumq.api.ids import new_token_seed
from quorumq.api.reply import Reply
from quorumq.api.request import Call, Parameter, Route
from quorumq.api.rows import grouped, plain, success
from quorumq.api.rules import says
from quorumq.api.values import Number
from quorumq.node.machine.operations.runs import Pulled, PullJobs

from . import job_object, pull_groups, replies
from .values import Millis, check_queue, key, lasting, number, query_number, read

PULL_WAIT_MS_MAX = 60_000
LOCK_MS = 30_000
PULL_COUNT_MAX = 1_000
NO_JOB = b'{"ok":true,"job":null}'


class PullBody(Struct, gc=False, rename="camel"):
    """How many jobs to take, and whether to lock them."""

    CHECKED: ClassVar = ("count", "timeout", "lock_ttl")

    count: Annotated[Number | None, number("Jobs to take, at most.", 1, PULL_COUNT_MAX, required=True)] = None
    timeout: Annotated[Millis, number("Milliseconds to wait for the first job.", 0, PULL_WAIT_MS_MAX, default=0)] = None
    owner: Annotated[str | None, key("Who takes them: locks the jobs, and the reply has their tokens.")] = None
    lock_ttl: Annotated[Millis, lasting("Milliseconds a lock lasts.", default=LOCK_MS)] = None
    group: Annotated[
        dict[str, Any] | None,
        says(
            '`{"concurrency"?: n, "limit"?: {"max": n, "duration": ms}}`: what holds from now on for groups of the queue without limits '
            "of their own, whoever takes their jobs.",
            bound=0,
        ),
    ] = None


PULL = msgspec.json.Decoder(PullBody)


def asked_for_one(call: Call) -> tuple[PullJobs, int]:
    """Return what to take and how long to wait for it, in milliseconds."""
    queue = check_queue(call.path["queue"])
    wait_ms = query_number("timeout", call.query.get("timeout"), 0, PULL_WAIT_MS_MAX) if call.query_text else 0
    return PullJobs(queue), math.ceil(wait_ms)


def asked_for_several(call: Call) -> tuple[PullJobs, int, Any]:
    """Return what to take, how long to wait for it, in milliseconds, and what is said of groups."""
    queue = check_queue(call.path["queue"])
    body = read(PULL, call.body)
    wait_ms = math.ceil(body.timeout or 0)
    if body.owner is None:
        return PullJobs(queue, int(body.count)), wait_ms, body.group
    lock_ms = LOCK_MS if body.lock_ttl is None else body.lock_ttl
    return PullJobs(queue, int(body.count), body.owner, lock_ms, new_token_seed()), wait_ms, body.group


class PulledJob(replies.Success):
    job: job_object.JobShown | None


class PulledJobs(replies.Success):
    jobs: list[job_object.JobShown]
    tokens: list[str] | UnsetType = UNSET


def pulled_one(reply: Pulled) -> bytes:
    return b'{"ok":true,"job":%b}' % job_object.taken_text(reply.jobs[0]) if reply.jobs else NO_JOB


def pulled_many(reply: Pulled) -> bytes:
    jobs = b",".join(map(job_object.taken_text, reply.jobs))
    if reply.tokens is None:
        return b'{"ok":true,"jobs":[%b]}' % jobs
    return b'{"ok":true,"jobs":[%b],"tokens":%b}' % (jobs, replies.ENCODE(reply.tokens))


TIMEOUT = Parameter(
    "timeout",
    "Milliseconds to wait for a job.",
    {"type": "number", "minimum": 0, "maximum": PULL_WAIT_MS_MAX, "default": 0},
)


async def pull(call: Call) -> Reply:
    """Take one job, waiting for it if asked to."""
    operation, wait_ms = asked_for_one(call)
    return success(await call.pull(operation, pulled_one, wait_ms))


async def pull_batch(call: Call) -> Reply:
    """Take several jobs, waiting for the first of them if asked to."""
    operation, wait_ms, group = asked_for_several(call)
    if group is not None:
        await pull_groups.keep_to(call, pull_groups.usual_of(operation.queue, group))
    return success(await call.pull(operation, pulled_many, wait_ms))


ROUTES: tuple[Route, ...] = grouped(
    "Jobs",
    plain("GET", "/queues/{queue}/jobs", pull, what=PullJobs, asks=(TIMEOUT,), reply=PulledJob,
          right="consume", about="Take the next job, waiting for it if asked to."),
    plain("POST", "/queues/{queue}/jobs/pull-batch", pull_batch, what=PullJobs, takes=PullBody,
          reply=PulledJobs, right="consume", command=("PULL", "PULLB")),
)  # fmt: skip

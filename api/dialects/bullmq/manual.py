"""Processing jobs by hand (BullMQ's pattern "Manually processing jobs"): take the next job under a token of one's own, say
how it ended, extend its lock, give it back.

Each of the worker's calls is one request; a lock is held by the token in its body. Moves may ask for the next job in the
same answer, as the loop of the document does.
"""

from __future__ import annotations

import random
import time
from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from api import surrogates
from api.http import CONSISTENCY, TEXT, Call, Handler, Invalid, Reply, Route, Text, grouped, plain, success
from api.values import KEY_CHARS_MAX, says
from node.operation import Operation
from node.operations.jobs import (
    AckJob,
    ExtendLock,
    FailJob,
    FinishAndPull,
    MoveToDelayed,
    MoveToWait,
    PullJobs,
)
from node.operations.queues import CheckStalled, GetHold, HoldQueue

from . import errors, render, replies
from .lookup import job_of, prefix_of
from .values import DAY_MS, MILLIS_MAX, Body, boolean, integer, note, opaque_field, queue_of, read, shown

LOCK_MS = 30_000
WAIT_MS_MAX = 60_000
UNRECOVERABLE = "UnrecoverableError"
# How much of its backoff's jitter a job is spared; nothing secret.
_random = random.Random()

Token = Annotated[
    str | None, says("Holds the lock: any text of your own, best a new one for each job.", max_chars=KEY_CHARS_MAX)
]
LockDuration = Annotated[int | None, says("Milliseconds the lock lasts.", default=LOCK_MS, low=1, high=DAY_MS)]
FetchNext = Annotated[bool | None, says("Take the next job, too, under the same token.", default=False)]


class NextBody(Body):
    """Who takes the next job, and whether to wait for one."""

    token: Annotated[Token, says(required=True)] = None
    lock_duration: LockDuration = None
    timeout: Annotated[int | None, says("Milliseconds to wait for a job.", default=0, low=0, high=WAIT_MS_MAX)] = None


class CompletedBody(Body):
    """How a job completed."""

    return_value: Annotated[Raw | UnsetType, says("Any JSON, up to 10 MB; left out, null.")] = UNSET
    token: Annotated[Token, says(required=True)] = None
    fetch_next: FetchNext = None
    lock_duration: LockDuration = None


class FailedBody(Body):
    """How a job failed."""

    error: Annotated[
        str | dict[str, Any] | None,
        says("The reason; or an Error as an object with `message`, `name`, `stack`.", required=True),
    ] = None
    token: Annotated[Token, says(required=True)] = None
    fetch_next: FetchNext = None
    lock_duration: LockDuration = None
    unrecoverable: Annotated[bool | None, says("No further run, whatever the attempts left.", default=False)] = None
    stack: Annotated[str | None, says("What the stacktrace shows of this run; left out, the reason.")] = None


class HeldBody(Body):
    """Who holds the job."""

    token: Annotated[Token, says(required=True)] = None


class DelayedBody(Body):
    """When the job is to run again."""

    timestamp: Annotated[int | None, says("Milliseconds since the epoch.", required=True, low=0)] = None
    token: Annotated[Token, says(required=True)] = None


class ExtendBody(Body):
    """How long a lock is to last from now."""

    token: Annotated[Token, says(required=True)] = None
    duration: Annotated[
        int | None, says("Milliseconds; left out, as long as it was given for.", low=1, high=DAY_MS)
    ] = None


class HoldBody(Body):
    """How long a queue is to give out no jobs."""

    duration: Annotated[int | None, says("Milliseconds.", required=True, low=0, high=MILLIS_MAX)] = None


NEXT = msgspec.json.Decoder(NextBody)
COMPLETED = msgspec.json.Decoder(CompletedBody)
FAILED = msgspec.json.Decoder(FailedBody)
HELD = msgspec.json.Decoder(HeldBody)
DELAYED = msgspec.json.Decoder(DelayedBody)
EXTEND = msgspec.json.Decoder(ExtendBody)
HOLD = msgspec.json.Decoder(HoldBody)


def token_of(value: Any) -> str:
    """Return the token that holds, or is to hold, a lock. Raises Invalid."""
    if value is None:
        raise Invalid("token is required")
    if not isinstance(value, str) or not 0 < len(value) <= KEY_CHARS_MAX:
        raise Invalid(f"Invalid token {shown(value)}, must be a string of 1 to {KEY_CHARS_MAX} characters")
    return value


def required(name: str, value: Any, low: int, high: int) -> int:
    if value is None:
        raise Invalid(f"{name} is required")
    return integer(name, value, low, high)


def pulling(queue: str, token: str, lock_duration: Any) -> PullJobs:
    """Make what takes one job under a token. Raises Invalid."""
    lock_ms = LOCK_MS if lock_duration is None else integer("lockDuration", lock_duration, 1, DAY_MS)
    return PullJobs(queue, lock_ms=lock_ms, token=token)


async def take_next(call: Call) -> Reply:
    """Take the next job of a queue under a lock, waiting for one if asked to; null when there is none."""
    queue = queue_of(call)
    body = read(NEXT, call.body)
    token = token_of(body.token)
    wait_ms = 0 if body.timeout is None else integer("timeout", body.timeout, 0, WAIT_MS_MAX)
    operation = pulling(queue, token, body.lock_duration)
    view = partial(render.pulled, prefix_of(call))
    return success(await call.pull(operation, view, wait_ms))


async def finish(call: Call, body: CompletedBody | FailedBody, what: AckJob | FailJob) -> Reply:
    """End a run, and take the next job if asked to."""
    prefix = prefix_of(call)
    assert what.token is not None
    pull = pulling(queue_of(call), what.token, body.lock_duration)
    if body.fetch_next is None or not boolean("fetchNext", body.fetch_next):
        return success(await call.submit(what, lambda reply: render.moved(prefix, reply.job)))
    both = FinishAndPull(what, pull)
    return success(await call.submit(both, partial(render.finished, prefix)))


async def move_to_completed(call: Call) -> Reply:
    """Mark an active job completed, with what it returned."""
    body = read(COMPLETED, call.body)
    token = token_of(body.token)
    value = None if body.return_value is UNSET else opaque_field("returnValue", body.return_value)
    return await finish(call, body, AckJob(await job_of(call), token, value))


async def move_to_failed(call: Call) -> Reply:
    """Mark a run of an active job failed: it is tried again after its backoff while it has attempts left."""
    body = read(FAILED, surrogates.replaced(call.body))
    token = token_of(body.token)
    error, stack, final = body.error, body.stack, body.unrecoverable
    if error is None:
        raise Invalid("error is required")
    if final is not None:
        boolean("unrecoverable", final)
    if isinstance(error, dict):
        final = final or error.get("name") == UNRECOVERABLE
        stack = error.get("stack") if stack is None else stack
        error = error.get("message", "")
    what = FailJob(
        await job_of(call),
        token,
        note(error),
        bool(final),
        _random.random(),
        stack=note(stack),
    )
    return await finish(call, body, what)


async def move_to_wait(call: Call) -> Reply:
    """Put an active job back in front of all that wait with its priority; its run counts for nothing."""
    token = token_of(read(HELD, call.body).token)
    answered = await moved(call, MoveToWait(await job_of(call), token))
    # As BullMQ: how long it is not worth asking for the next job. The state is that of the move, or later.
    until_ms = await call.node.ask(GetHold(queue_of(call)), stale=True)
    return success(answered[:-1] + b',"ttl":%d}' % left(until_ms))


async def move_to_delayed(call: Call) -> Reply:
    """Let an active job wait until a time; its run counts for nothing."""
    body = read(DELAYED, call.body)
    token = token_of(body.token)
    until_ms = required("timestamp", body.timestamp, 0, 2 * MILLIS_MAX)
    return success(await moved(call, MoveToDelayed(await job_of(call), 0, token, until_ms, only_active=True)))


async def moved(call: Call, what: MoveToWait | MoveToDelayed) -> bytes:
    prefix = prefix_of(call)
    return await call.submit(what, lambda reply: render.moved(prefix, reply.job))


async def extend_lock(call: Call) -> Reply:
    """Let the lock of an active job last for a while from now."""
    body = read(EXTEND, call.body)
    token = token_of(body.token)
    lasting = None if body.duration is None else integer("duration", body.duration, 1, DAY_MS)
    what = ExtendLock(await job_of(call), token, lasting)
    return success(await call.submit(what, render.renewed))


async def rate_limit(call: Call) -> Reply:
    """Give out no jobs of a queue for a while, whoever asks; 0 ends it."""
    queue = queue_of(call)
    duration = required("duration", read(HOLD, call.body).duration, 0, MILLIS_MAX)
    return Reply(200, await call.submit(HoldQueue(queue, duration), render.ok), TEXT)


def left(until_ms: int) -> int:
    """Return how many milliseconds are left until a time."""
    return max(until_ms - time.time_ns() // 1_000_000, 0)


async def show_rate_limit(call: Call) -> Reply:
    """Say for how long a queue gives out no jobs."""
    query = GetHold(queue_of(call))
    return success(await call.node.ask(query, lambda until_ms: b'{"ttl":%d}' % left(until_ms), stale=call.stale))


async def remove_rate_limit(call: Call) -> Reply:
    """Let a queue give out jobs again."""
    return Reply(200, await call.submit(HoldQueue(queue_of(call), 0), render.ok), TEXT)


async def stalled_check(call: Call) -> Reply:
    """Deal with the locks of a queue that have run out; it happens by itself, too."""
    what = CheckStalled(queue_of(call))
    return success(await call.submit(what, partial(render.stalled, what.queue)))


def on_lock(path: str, handler: Handler, what: type[Operation], command: str, **more: Any) -> Route:
    """A row for whoever holds a job's lock. command: BullMQ's name of it in errors."""
    target = "/queues/{queue}/jobs/{id}/" + path
    wording = errors.of_lock(command)
    return plain(
        "POST", target, handler, what=what, right="consume", refusals=wording, answers=errors.CONFLICTS, **more
    )


ROUTES = grouped(
    "BullMQ: manual processing",
    plain("POST", "/queues/{queue}/jobs/next", take_next, what=PullJobs, takes=NextBody, reply=replies.NextJob,
          right="consume", about="Take the next job of a queue under a lock, waiting for one if asked to."),
    on_lock("move-to-completed", move_to_completed, AckJob, "moveToFinished", takes=CompletedBody, body="data",
            reply=replies.Moved, about="Complete a job, and take the next one if asked to."),
    on_lock("move-to-failed", move_to_failed, FailJob, "moveToFinished", takes=FailedBody, reply=replies.Moved,
            about="Fail a run of a job, which is tried again while it has attempts left; and take the next one if asked to."),
    on_lock("move-to-wait", move_to_wait, MoveToWait, "moveToWait", takes=HeldBody, reply=replies.PutBack,
            about="Put a job back in front of all that wait with its priority; its run counts for nothing."),
    on_lock("move-to-delayed", move_to_delayed, MoveToDelayed, "moveToDelayed", takes=DelayedBody, reply=replies.Moved,
            about="Let a job wait until a time; its run counts for nothing."),
    on_lock("extend-lock", extend_lock, ExtendLock, "extendLock", takes=ExtendBody, reply=replies.Renewed,
            about="Let the lock of a job last for a while from now."),
    plain("POST", "/queues/{queue}/rate-limit", rate_limit, what=HoldQueue, takes=HoldBody, reply=Text, right="consume",
          about="Give out no jobs of a queue for a while; 0 ends it."),
    plain("GET", "/queues/{queue}/rate-limit", show_rate_limit, what=GetHold, reply=replies.Ttl, right="read",
          asks=(CONSISTENCY,), about="For how long a queue gives out no jobs because of a rate limit."),
    plain("DELETE", "/queues/{queue}/rate-limit", remove_rate_limit, what=HoldQueue, reply=Text, right="consume",
          about="End what POST began."),
    plain("POST", "/queues/{queue}/stalled-check", stalled_check, what=CheckStalled, reply=replies.StalledShown,
          right="consume", about="Deal with locks that ran out, which happens by itself, too."),
)  # fmt: skip

"""Processing jobs by hand (BullMQ's pattern "Manually processing jobs"): take the next job under a token of one's own, say
how it ended, extend its lock, give it back.

Each of the worker's calls is one request; a lock is held by the token in its body. Moves may ask for the next job in the
same answer, as the loop of the document does.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from quorumq.api import surrogates
from quorumq.api.errors import Invalid
from quorumq.api.reply import TEXT, Reply
from quorumq.api.request import CONSISTENCY, Call, Handler, Route
from quorumq.api.rows import Text, grouped, plain, success
from quorumq.api.rules import says
from quorumq.api.values import KEY_CHARS_MAX, NOTE_CHARS_MAX
from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.jobs import Changed, MoveToDelayed, MoveToWait
from quorumq.node.machine.operations.queues import Checked, CheckStalled
from quorumq.node.machine.operations.runs import AckJob, ExtendLock, FailJob, FinishAndPull, Finished, Pulled, PullJobs
from quorumq.node.machine.operations.settings import GetHold, HoldQueue
from quorumq.node.machine.state.job import Job

from . import errors, job_object, replies
from .lookup import job_of, prefix_of
from .values import DAY_MS, MILLIS_MAX, Body, any_json, as_note, flag, note, number, queue_of, read, shown

LOCK_MS = 30_000
WAIT_MS_MAX = 60_000
UNRECOVERABLE = "UnrecoverableError"
# How much of its backoff's jitter a job is spared; nothing secret.
_random = random.Random()


def as_token(name: str, value: Any) -> str:
    """Return the token that holds, or is to hold, a lock. Raises Invalid."""
    if not isinstance(value, str) or not 0 < len(value) <= KEY_CHARS_MAX:
        raise Invalid(f"Invalid token {shown(value)}, must be a string of 1 to {KEY_CHARS_MAX} characters")
    return value


Token = Annotated[
    str | None,
    says("Holds the lock: any text of your own, best a new one for each job.", reads=as_token, required=True,
         max_chars=KEY_CHARS_MAX),
]  # fmt: skip
LockDuration = Annotated[int | None, number("Milliseconds the lock lasts.", 1, DAY_MS, default=LOCK_MS)]
FetchNext = Annotated[bool | None, flag("Take the next job, too, under the same token.", default=False)]


def as_error(name: str, value: Any) -> Any:
    """Return the reason, or of an Error what is looked at, each cut to its bound."""
    if isinstance(value, dict):
        return {
            word: value[word] if value[word] is None else as_note(value[word])
            for word in ("name", "message", "stack")
            if word in value
        }
    return as_note(value)


class NextBody(Body):
    """Who takes the next job, and whether to wait for one."""

    CHECKED: ClassVar = ("token", "timeout")

    token: Token = None
    lock_duration: LockDuration = None
    timeout: Annotated[int | None, number("Milliseconds to wait for a job.", 0, WAIT_MS_MAX, default=0)] = None


class CompletedBody(Body):
    """How a job completed."""

    CHECKED: ClassVar = ("token", "return_value", "lock_duration")

    return_value: Annotated[Raw | UnsetType, any_json("Any JSON, up to 10 MB; left out, null.")] = UNSET
    token: Token = None
    fetch_next: FetchNext = None
    lock_duration: LockDuration = None


class FailedBody(Body):
    """How a job failed."""

    CHECKED: ClassVar = ("token", "error", "unrecoverable", "stack", "lock_duration")

    error: Annotated[
        str | dict[str, Any] | None,
        says("The reason; or an Error as an object with `message`, `name`, `stack`.", reads=as_error, bound=NOTE_CHARS_MAX,
             required=True),
    ] = None  # fmt: skip
    token: Token = None
    fetch_next: FetchNext = None
    lock_duration: LockDuration = None
    unrecoverable: Annotated[bool | None, flag("No further run, whatever the attempts left.", default=False)] = None
    stack: Annotated[str | None, note("What the stacktrace shows of this run; left out, the reason.")] = None


class HeldBody(Body):
    """Who holds the job."""

    token: Token = None


class DelayedBody(Body):
    """When the job is to run again."""

    CHECKED: ClassVar = ("token",)

    timestamp: Annotated[
        int | None, number("Milliseconds since the epoch.", 0, 2 * MILLIS_MAX, in_schema=False, required=True)
    ] = None
    token: Token = None


class ExtendBody(Body):
    """How long a lock is to last from now."""

    token: Token = None
    duration: Annotated[int | None, number("Milliseconds; left out, as long as it was given for.", 1, DAY_MS)] = None


class HoldQueueBody(Body):
    """How long a queue is to give out no jobs."""

    duration: Annotated[int | None, number("Milliseconds.", 0, MILLIS_MAX, required=True)] = None


NEXT = msgspec.json.Decoder(NextBody)
COMPLETED = msgspec.json.Decoder(CompletedBody)
FAILED = msgspec.json.Decoder(FailedBody)
HELD = msgspec.json.Decoder(HeldBody)
DELAYED = msgspec.json.Decoder(DelayedBody)
EXTEND = msgspec.json.Decoder(ExtendBody)
HOLD = msgspec.json.Decoder(HoldQueueBody)


NextJob = job_object.JobJson | None


class Moved(replies.BullShown):
    """state: what became of the job.  next: the next job, when it was asked for and there is one."""

    state: job_object.State
    next: job_object.JobJson | None


class PutBack(Moved):
    """ttl: milliseconds for which the queue gives out no jobs because of a rate limit."""

    ttl: int


class Ttl(replies.BullShown):
    """ttl: milliseconds for which the queue gives out no jobs; 0 when nothing holds it back."""

    ttl: int


class Renewed(replies.BullShown):
    """lock_until: when the lock runs out unless it is extended again."""

    lock_until: replies.Millis


class StalledShown(replies.BullShown):
    """stalled: ids of the jobs that wait again.  failed: of those that had stalled once too often."""

    stalled: list[str]
    failed: list[str]


def pulled(prefix: str, reply: Pulled) -> bytes:
    """Render the job taken; null when there was none."""
    return job_object.taken_text(reply.jobs[0], prefix) if reply.jobs else replies.NULL


def ended(prefix: str, job: Job, following: Pulled | None = None) -> bytes:
    """Render what became of a job, and the job that comes next."""
    taken = replies.NULL if following is None else pulled(prefix, following)
    return b'{"state":"%b","next":%b}' % (job_object.state_name(job).encode(), taken)


def finished(prefix: str, reply: Finished) -> bytes:
    return ended(prefix, reply.job, reply.next)


def renewed(reply: Changed) -> bytes:
    return b'{"lockUntil":%d}' % reply.job.lock_until


def stalled(queue: str, reply: Checked) -> bytes:
    return replies.ENCODE(
        {"stalled": replies.own_ids(queue, reply.waiting), "failed": replies.own_ids(queue, reply.failed)}
    )


def pulling(queue: str, body: Any) -> PullJobs:
    """Make what takes one job under a body's token."""
    return PullJobs(queue, lock_ms=LOCK_MS if body.lock_duration is None else body.lock_duration, token=body.token)


async def take_next(call: Call) -> Reply:
    """Take the next job of a queue under a lock, waiting for one if asked to; null when there is none."""
    queue, body = queue_of(call), read(NEXT, call.body)
    view = partial(pulled, prefix_of(call))
    return success(await call.pull(pulling(queue, body), view, body.timeout or 0))


async def finish(call: Call, body: Any, what: AckJob | FailJob) -> Reply:
    """End a run, and take the next job if asked to."""
    prefix = prefix_of(call)
    pull = pulling(queue_of(call), body)
    if not body.fetch_next:
        return success(await call.write(what, lambda reply: ended(prefix, reply.job)))
    both = FinishAndPull(what, pull)
    return success(await call.write(both, partial(finished, prefix)))


async def move_to_completed(call: Call) -> Reply:
    """Mark an active job completed, with what it returned."""
    body = read(COMPLETED, call.body)
    value = None if body.return_value is UNSET else body.return_value
    return await finish(call, body, AckJob(await job_of(call), body.token, value, must_hold=call.level >= 1))


async def move_to_failed(call: Call) -> Reply:
    """Mark a run of an active job failed: it is tried again after its backoff while it has attempts left."""
    body = read(FAILED, surrogates.replaced(call.body))
    error, stack, final = body.error, body.stack, body.unrecoverable
    if isinstance(error, dict):
        final = final or error.get("name") == UNRECOVERABLE
        stack = error.get("stack") if stack is None else stack
        error = error.get("message", "")
    what = FailJob(
        await job_of(call),
        body.token,
        error,
        bool(final),
        _random.random(),
        stack=stack,
        must_hold=call.level >= 1,
    )
    return await finish(call, body, what)


async def move_to_wait(call: Call) -> Reply:
    """Put an active job back in front of all that wait with its priority; its run counts for nothing."""
    token = read(HELD, call.body).token
    answered = await moved(call, MoveToWait(await job_of(call), token))
    # As BullMQ: how long it is not worth asking for the next job. The state is that of the move, or later.
    until_ms = await call.node.ask(GetHold(queue_of(call)), stale=True)
    return success(answered[:-1] + b',"ttl":%d}' % left(call, until_ms))


async def move_to_delayed(call: Call) -> Reply:
    """Let an active job wait until a time; its run counts for nothing."""
    body = read(DELAYED, call.body)
    what = MoveToDelayed(await job_of(call), 0, body.token, body.timestamp, only_active=True)
    return success(await moved(call, what))


async def moved(call: Call, what: MoveToWait | MoveToDelayed) -> bytes:
    prefix = prefix_of(call)
    return await call.write(what, lambda reply: ended(prefix, reply.job))


async def extend_lock(call: Call) -> Reply:
    """Let the lock of an active job last for a while from now."""
    body = read(EXTEND, call.body)
    what = ExtendLock(await job_of(call), body.token, body.duration)
    return success(await call.write(what, renewed))


async def rate_limit(call: Call) -> Reply:
    """Give out no jobs of a queue for a while, whoever asks; 0 ends it."""
    queue = queue_of(call)
    duration = read(HOLD, call.body).duration
    return Reply(200, await call.write(HoldQueue(queue, duration), replies.ok), TEXT)


def left(call: Call, until_ms: int) -> int:
    """Return how many milliseconds are left until a time."""
    return max(until_ms - call.node.now_ms(), 0)


async def show_rate_limit(call: Call) -> Reply:
    """Say for how long a queue gives out no jobs."""
    query = GetHold(queue_of(call))
    return success(await call.node.ask(query, lambda until_ms: b'{"ttl":%d}' % left(call, until_ms), stale=call.stale))


async def remove_rate_limit(call: Call) -> Reply:
    """Let a queue give out jobs again."""
    return Reply(200, await call.write(HoldQueue(queue_of(call), 0), replies.ok), TEXT)


async def stalled_check(call: Call) -> Reply:
    """Deal with the locks of a queue that have run out; it happens by itself, too."""
    what = CheckStalled(queue_of(call))
    return success(await call.write(what, partial(stalled, what.queue)))


def on_lock(path: str, handler: Handler, what: type[Operation], command: str, **more: Any) -> Route:
    """A row for whoever holds a job's lock. command: BullMQ's name of it in errors."""
    target = "/queues/{queue}/jobs/{id}/" + path
    wording = errors.of_lock(command)
    return plain(
        "POST", target, handler, what=what, right="consume", refusals=wording, answers=errors.CONFLICTS, **more
    )


ROUTES = grouped(
    "BullMQ: manual processing",
    plain("POST", "/queues/{queue}/jobs/next", take_next, what=PullJobs, takes=NextBody, reply=NextJob,
          right="consume", about="Take the next job of a queue under a lock, waiting for one if asked to."),
    on_lock("move-to-completed", move_to_completed, AckJob, "moveToFinished", takes=CompletedBody, body="data",
            reply=Moved, about="Complete a job, and take the next one if asked to."),
    on_lock("move-to-failed", move_to_failed, FailJob, "moveToFinished", takes=FailedBody, reply=Moved,
            about="Fail a run of a job, which is tried again while it has attempts left; and take the next one if asked to."),
    on_lock("move-to-wait", move_to_wait, MoveToWait, "moveToWait", takes=HeldBody, reply=PutBack,
            about="Put a job back in front of all that wait with its priority; its run counts for nothing."),
    on_lock("move-to-delayed", move_to_delayed, MoveToDelayed, "moveToDelayed", takes=DelayedBody, reply=Moved,
            about="Let a job wait until a time; its run counts for nothing."),
    on_lock("extend-lock", extend_lock, ExtendLock, "extendLock", takes=ExtendBody, reply=Renewed,
            about="Let the lock of a job last for a while from now."),
    plain("POST", "/queues/{queue}/rate-limit", rate_limit, what=HoldQueue, takes=HoldQueueBody, reply=Text, right="consume",
          about="Give out no jobs of a queue for a while; 0 ends it."),
    plain("GET", "/queues/{queue}/rate-limit", show_rate_limit, what=GetHold, reply=Ttl, right="read",
          asks=(CONSISTENCY,), about="For how long a queue gives out no jobs because of a rate limit."),
    plain("DELETE", "/queues/{queue}/rate-limit", remove_rate_limit, what=HoldQueue, reply=Text, right="consume",
          about="End what POST began."),
    plain("POST", "/queues/{queue}/stalled-check", stalled_check, what=CheckStalled, reply=StalledShown,
          right="consume", about="Deal with locks that ran out, which happens by itself, too."),
)  # fmt: skip

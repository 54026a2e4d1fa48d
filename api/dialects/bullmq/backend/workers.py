"""What workers do: take, end a run in one of its ways and take the next job in the same step, hold locks, look for stalls.

`metrics` of a take is not kept yet: the calls take it and leave no points.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from quorumq.api.errors import Invalid
from quorumq.api.values import NOTE_CHARS_MAX
from quorumq.node.machine.lifecycle.bullmq.running import NO_LOCK, Wish
from quorumq.node.machine.operations.bullmq.running import (
    AwaitNamedChildren,
    CheckNamedStalled,
    CompleteRun,
    DelayRun,
    Ended,
    ExtendNamedLocks,
    FailRun,
    GiveBack,
    RetryRun,
    TakeNext,
)

from ..values import DAY_MS, MILLIS_MAX
from .records import FailureFields, KeepArgs, Taking, job_keys, taken
from .rows import Args, Asked, Json, Key, Right, Row, Text, Word, json_text, nothing, write

CONSUME: Right = "consume"
REASON_CHARS_MAX = NOTE_CHARS_MAX
LOCKS_MAX = 10_000
COUNT_MAX = 1 << 50


class Take(Args):
    token: Word
    taking: Taking


class Completed(Args):
    job: Word
    token: Word
    value: Json
    keep: KeepArgs
    fetch: Taking | None = None


class FailedArgs(Args):
    job: Word
    token: Word
    reason: Text
    keep: KeepArgs
    fetch: Taking | None = None
    fields: FailureFields | None = None
    attempts: int | None = None


class Delayed(Args):
    job: Word
    token: Word
    timestamp: float
    delay: float
    skip_attempt: bool | None = None
    fields: FailureFields | None = None
    fetch: Taking | None = None


class RetriedArgs(Args):
    job: Word
    token: Word
    lifo: bool | None = None
    fields: FailureFields | None = None


class OfRun(Args):
    job: Word
    token: Word


class ToChildren(Args):
    job: Word
    token: Word
    child: Key | None = None


class Stalls(Args):
    most: int
    interval: float


class Lock(Args):
    job: Word
    token: Word
    duration: float


class Locks(Args):
    jobs: Annotated[list[Word], Meta(max_length=LOCKS_MAX)]
    tokens: Annotated[list[Word], Meta(max_length=LOCKS_MAX)]
    duration: float


def wish(token: str, taking: Taking | None) -> Wish | None:
    """Make what a worker takes the next job with. Raises Invalid."""
    if taking is None:
        return None
    limiter = taking.limiter
    return Wish(
        NO_LOCK if taking.lock <= 0 else token_of(token),
        lock_ms(taking.lock) if taking.lock > 0 else 1,
        taking.name,
        None if limiter is None else min(max(limiter.max, 0), COUNT_MAX),
        0 if limiter is None else int(min(abs(limiter.duration), MILLIS_MAX)),
    )


def token_of(token: str) -> str:
    """Return the token that holds, or is to hold, a lock. Raises Invalid."""
    if not token:
        raise Invalid("A token must not be empty")
    return token


def lock_ms(duration: float) -> int:
    return int(min(max(duration, 1), DAY_MS))


def reason_of(text: str | None) -> str | None:
    return None if text is None else text[:REASON_CHARS_MAX]


def take(asked: Asked, args: Take) -> TakeNext:
    found = wish(args.token, args.taking)
    assert found is not None
    return TakeNext(asked.queue, found)


def complete(asked: Asked, args: Completed) -> CompleteRun:
    value = json_text("returnvalue", args.value)
    return CompleteRun(asked.queue, args.job, args.token, value, args.keep.keep(), wish(args.token, args.fetch))


def fail(asked: Asked, args: FailedArgs) -> FailRun:
    reason = reason_of(args.reason) or ""
    stacks = None if args.fields is None else args.fields.stacks
    return FailRun(asked.queue, args.job, args.token, reason, stacks, args.keep.keep(), wish(args.token, args.fetch))


def ended(reply: Ended, prefix: str) -> list[Any]:
    return [reply.at_ms, None if reply.next is None else taken(reply.next, prefix)]


def delay(asked: Asked, args: Delayed) -> DelayRun:
    fields = args.fields or FailureFields()
    lasting = min(max(args.delay, 0), MILLIS_MAX)
    return DelayRun(
        asked.queue,
        args.job,
        args.token,
        lasting,
        bool(args.skip_attempt),
        reason_of(fields.failed_reason),
        fields.stacks,
        wish(args.token, args.fetch),
    )


def after_delay(reply: Ended, prefix: str) -> list[Any] | None:
    return None if reply.next is None else taken(reply.next, prefix)


def retry(asked: Asked, args: RetriedArgs) -> RetryRun:
    fields = args.fields or FailureFields()
    return RetryRun(asked.queue, args.job, args.token, reason_of(fields.failed_reason), fields.stacks)


def give_back(asked: Asked, args: OfRun) -> GiveBack:
    return GiveBack(asked.queue, args.job, args.token)


def to_children(asked: Asked, args: ToChildren) -> AwaitNamedChildren:
    return AwaitNamedChildren(asked.queue, args.job, args.token, job_keys(asked, args.child) if args.child else [])


def check_stalled(asked: Asked, args: Stalls) -> CheckNamedStalled:
    return CheckNamedStalled(asked.queue, args.most, int(min(max(args.interval, 0), MILLIS_MAX)))


def extend(asked: Asked, args: Lock) -> ExtendNamedLocks:
    return ExtendNamedLocks(asked.queue, [args.job], [args.token], lock_ms(args.duration))


def extended(reply: list[str]) -> int:
    return 0 if reply else 1


def extend_all(asked: Asked, args: Locks) -> ExtendNamedLocks:
    if len(args.jobs) != len(args.tokens):
        raise Invalid("A token for each job")
    return ExtendNamedLocks(asked.queue, args.jobs, args.tokens, lock_ms(args.duration))


ROWS: tuple[Row, ...] = (
    write("moveToActive", TakeNext, take, taken, right=CONSUME, takes=Take, prefixed=True),
    write("moveToCompleted", CompleteRun, complete, ended, right=CONSUME, takes=Completed, prefixed=True),
    write("moveToFailed", FailRun, fail, ended, right=CONSUME, takes=FailedArgs, prefixed=True),
    write("moveToDelayed", DelayRun, delay, after_delay, right=CONSUME, takes=Delayed, prefixed=True),
    write("retryJob", RetryRun, retry, nothing, right=CONSUME, takes=RetriedArgs),
    write("moveToWaitingChildren", AwaitNamedChildren, to_children, right=CONSUME, takes=ToChildren),
    write("moveJobFromActiveToWait", GiveBack, give_back, right=CONSUME, takes=OfRun),
    write("moveStalledJobsToWait", CheckNamedStalled, check_stalled, right=CONSUME, takes=Stalls),
    write("extendLock", ExtendNamedLocks, extend, extended, right=CONSUME, takes=Lock),
    write("extendLocks", ExtendNamedLocks, extend_all, right=CONSUME, takes=Locks),
)

"""What is done to a queue as a whole over the socket: emptying, cleaning, further runs, its rate limit."""

from __future__ import annotations

from typing import Literal

from quorumq.api.errors import Invalid
from quorumq.node.machine.operations.bullmq.changing import PromoteAllNamed, RetryAllNamed
from quorumq.node.machine.operations.bullmq.limits import LimitFor, LimitTtl, Unlimit
from quorumq.node.machine.operations.bullmq.removing import CleanedState, CleanNamed, Obliterated, ObliterateNamed
from quorumq.node.machine.operations.queues import DrainQueue

from ..values import MILLIS_MAX
from .rows import Args, Asked, NoArgs, Right, Row, nothing, read, write

MANAGE: Right = "manage:all"
LIMITS: tuple[Right, ...] = ("manage:all", "consume")
COUNT_MAX = (1 << 53) - 1


class Drain(Args):
    delayed: bool | None = None


class Clean(Args):
    state: CleanedState
    timestamp: float | None = None
    limit: int | None = None


class Obliterate(Args):
    force: bool | None = None
    count: int = 1_000


class RetryJobsArgs(Args):
    state: Literal["failed", "completed"] = "failed"
    count: int = 1_000
    timestamp: float | None = None


class CountArgs(Args):
    count: int = 1_000


class Most(Args):
    most: int | None = None


class Duration(Args):
    duration: float


def until(timestamp: float | None) -> int | None:
    return None if timestamp is None else int(min(max(timestamp, 0), 2 * MILLIS_MAX))


def drain(asked: Asked, args: Drain) -> DrainQueue:
    return DrainQueue(asked.queue, delayed=bool(args.delayed), spare_repeating=True)


def clean(asked: Asked, args: Clean) -> CleanNamed:
    return CleanNamed(asked.queue, args.state, until(args.timestamp), min(max(args.limit or 0, 0), COUNT_MAX))


def obliterate(asked: Asked, args: Obliterate) -> ObliterateNamed:
    return ObliterateNamed(asked.queue, args.count, bool(args.force))


def obliterated(reply: Obliterated) -> int:
    """Return 1 when there is more to do, 0 when nothing is left. Raises Invalid."""
    if reply.error:
        # In BullMQ's own words.
        what = "non-paused queue" if reply.error == -1 else "queue with active jobs"
        raise Invalid(f"Cannot obliterate {what}")
    return int(reply.more)


def retry(asked: Asked, args: RetryJobsArgs) -> RetryAllNamed:
    return RetryAllNamed(asked.queue, args.state, args.count, until(args.timestamp))


def promote(asked: Asked, args: CountArgs) -> PromoteAllNamed:
    return PromoteAllNamed(asked.queue, args.count)


def get_ttl(asked: Asked, args: Most) -> LimitTtl:
    return LimitTtl(asked.queue, asked.now_ms, args.most)


def limit_for(asked: Asked, args: Duration) -> LimitFor:
    return LimitFor(asked.queue, int(min(max(args.duration, 0), MILLIS_MAX)))


def unlimit(asked: Asked, args: NoArgs) -> Unlimit:
    return Unlimit(asked.queue)


ROWS: tuple[Row, ...] = (
    write("drain", DrainQueue, drain, nothing, right=MANAGE, takes=Drain),
    write("cleanJobsByState", CleanNamed, clean, right=MANAGE, takes=Clean),
    write("obliterate", ObliterateNamed, obliterate, obliterated, right=MANAGE, takes=Obliterate),
    write("retryFinishedJobs", RetryAllNamed, retry, int, right=MANAGE, takes=RetryJobsArgs),
    write("promoteJobs", PromoteAllNamed, promote, int, right=MANAGE, takes=CountArgs),
    read("getRateLimitTtl", LimitTtl, get_ttl, takes=Most),
    write("setRateLimit", LimitFor, limit_for, nothing, right=LIMITS, takes=Duration),
    write("removeRateLimitKey", Unlimit, unlimit, int, right=LIMITS),
)

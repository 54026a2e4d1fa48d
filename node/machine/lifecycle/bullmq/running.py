"""Runs of jobs by BullMQ's rules: taking the next one, and how a run ends, for workers that speak the backend protocol.

Their locks are strict: one that ran out ends nothing, and rings no alarm; the check of stalls, which workers ask for, puts the job back
(`check_stalled`). A run that was given to a worker of another dialect goes by that one's rules; either may end the other's with its token.
What was observed of BullMQ stands in its semantics; errors have its numbers.
"""

from __future__ import annotations

import msgspec

from quorumq.node.machine.events import JobStalled
from quorumq.node.machine.lifecycle import finishing, runs, stream_events, timing
from quorumq.node.machine.lifecycle.bullmq import adding
from quorumq.node.machine.lifecycle.stream_events import publish_of_queue as publish
from quorumq.node.machine.refusals import BullmqError
from quorumq.node.machine.state.bullmq.names import find
from quorumq.node.machine.state.job import (
    ACTIVE,
    EXPLICIT_FAIL,
    MAX_ATTEMPTS,
    STALLED_TOO_OFTEN,
    Job,
    Keep,
    ceil,
    own_id,
)
from quorumq.node.machine.state.queue import Queue
from quorumq.node.machine.state.state import State

NO_LOCK = "0"
"""The token that holds nothing, and is asked for nothing."""
MISSING_JOB, MISSING_LOCK, WRONG_STATE, CHILDREN_PENDING = -1, -2, -3, -4
MISSING_PARENT, OTHERS_LOCK, OTHERS_CHILD, SCHEDULED, CHILDREN_FAILED = -5, -6, -7, -8, -9
STALLED_MAX = 2_000
"""Jobs that one check of stalls puts back; the next check goes on."""
FOLLOW_MAX = 100
"""Jobs that were kept away and come with the end of a run; of others the next entry takes care."""
BLOCKED_FOR_ALL = (1 << 53) - 1
"""A count that no limit allows, for a queue that was told to wait."""


class Wish(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """What a worker takes a job with. name: its own.  limit_max, limit_ms: starts that it allows in the queue, and in which time."""

    token: str
    lock_ms: int = 30_000
    name: str | None = None
    limit_max: int | None = None
    limit_ms: int = 0


class Taken(msgspec.Struct, frozen=True, gc=False):
    """The job taken; else for how long a limit holds the queue, or when the next delayed job is due, each 0 for not at all."""

    job: Job | None = None
    ttl_ms: int = 0
    due_ms: int = 0


NOTHING = Taken()


# -- Looking up


def job_of(state: State, queue: str, own: str) -> Job:
    """Return a job. Raises BullmqError."""
    job = find(state, queue, own)
    if job is None:
        raise BullmqError(MISSING_JOB, own)
    return job


def holds(state: State, job: Job, token: str) -> bool:
    """Whether a token holds the run of a job under way, whose lock has not run out."""
    return job.state == ACTIVE and job.token == token and job.lock_until > state.now_ms


def is_locked(state: State, job: Job) -> bool:
    """Whether anybody holds the run of a job under way."""
    return job.state == ACTIVE and job.token is not None and job.lock_until > state.now_ms


def held(state: State, queue: str, own: str, token: str) -> Job:
    """Return the active job that a token may move. Raises BullmqError."""
    job = job_of(state, queue, own)
    check_held(state, job, token)
    return job


def check_held(state: State, job: Job, token: str) -> None:
    """Refuse a token that does not hold the run of a job, and a job without one. Raises BullmqError."""
    if token != NO_LOCK and not holds(state, job, token):
        raise BullmqError(OTHERS_LOCK if is_locked(state, job) else MISSING_LOCK, own_id(job))
    if job.state != ACTIVE:
        raise BullmqError(WRONG_STATE, own_id(job))


# -- Taking


def take(state: State, name: str, wish: Wish) -> Taken:
    """Make the next job of a queue active, if there is one and no limit holds it."""
    queue = state.queues.get(name)
    if queue is None:
        return NOTHING
    now_ms, settings = state.now_ms, queue.settings
    most = wish.limit_max if settings.window is None else settings.window.max
    ttl = 0 if most is None else limit_ttl(state, name, most, now_ms)
    if ttl:
        return Taken(None, ttl)
    jobs = runs.take(state, queue, 1, None, wish.lock_ms, "", None if wish.token == NO_LOCK else wish.token)
    if not jobs:
        return _nothing(queue, now_ms)
    job = jobs[0]
    record = job.named()
    record.fence = job.fence
    record.delay = 0
    if wish.name is not None:
        record.processed_by = wish.name
    # The alarm of a lock, or of silence, is the other dialects'.
    state.timers.set(job, timing.due_at(state, job))
    if most is not None and record.deferred is None:
        lasting = wish.limit_ms or (settings.window.duration_ms if settings.window is not None else 0)
        facts = state.bullmq.facts.of(name)
        if facts.limit_until <= now_ms:
            facts.limit_count, facts.limit_until = 0, now_ms + lasting
        facts.limit_count += 1
    return Taken(job)


def _nothing(queue: Queue, now_ms: int) -> Taken:
    """Say why a queue gives nothing."""
    if len(queue.ready):
        free_ms = queue.next_free_ms(now_ms)
        return NOTHING if free_ms is None else Taken(None, max(free_ms - now_ms, 1))
    settings = queue.settings
    is_maxed = settings.concurrency is not None and len(queue.active) >= settings.concurrency
    first = queue.delayed.first()
    return NOTHING if settings.paused or is_maxed or first is None else Taken(None, 0, first.run_at)


def limit_ttl(state: State, name: str, most: int, now_ms: int) -> int:
    """Return for how long a limit of `most` starts in a window holds a queue; 0 for not at all."""
    facts = state.bullmq.facts.find(name)
    if facts is None or facts.limit_count < most:
        return 0
    return max(facts.limit_until - now_ms, 0)


# -- Ends of runs


def complete(
    state: State, name: str, own: str, token: str, result: bytes | None, keep: Keep | None, wish: Wish | None
) -> tuple[Job, Taken | None]:
    """End a run well, and take the next job if asked to. Raises BullmqError."""
    job = job_of(state, name, own)
    links = job.flow
    if links is not None:
        if links.pending and not links.waived:
            raise BullmqError(CHILDREN_PENDING, own)
        if links.failed:
            raise BullmqError(CHILDREN_FAILED, own)
    check_held(state, job, token)
    # Nothing above changes state; nothing below refuses.
    finishing.complete(state, job, result, keep=keep, goes_on=True)
    return job, take_if_wished(state, name, wish)


def fail(
    state: State,
    name: str,
    own: str,
    token: str,
    reason: str,
    stacks: bytes | None,
    keep: Keep | None,
    wish: Wish | None,
) -> tuple[Job, Taken | None]:
    """Fail a job for good, and take the next one if asked to. Raises BullmqError."""
    job = held(state, name, own, token)
    record = job.named()
    record.deferred = None
    if stacks is not None:
        record.stacks = stacks
    is_last = job.attempts + 1 >= job.opts.max_attempts
    died_of = MAX_ATTEMPTS if is_last else EXPLICIT_FAIL
    runs.fail(state, job, reason, reason=died_of, final=True, keep=keep, goes_on=True)
    return job, take_if_wished(state, name, wish)


def take_if_wished(state: State, name: str, wish: Wish | None) -> Taken | None:
    """Take the next job after a run, if asked to; say so when that was the last one."""
    if state.bullmq.facts.released:
        adding.let_follow(state, FOLLOW_MAX)
    taken = None if wish is None else take(state, name, wish)
    queue = state.queues.get(name)
    if queue is not None and (taken is None or (taken == NOTHING and not queue.settings.paused)):
        stream_events.publish_if_drained(state, queue)
    return taken


def note_failure(job: Job, reason: str | None, stacks: bytes | None) -> None:
    """Keep what a worker says of a failed run."""
    if stacks is not None:
        job.named().stacks = stacks
    if reason is not None:
        job.error = reason


def retry(state: State, name: str, own: str, token: str, reason: str | None, stacks: bytes | None) -> Job:
    """Let a job whose run failed wait for the next one. Raises BullmqError."""
    job = held(state, name, own, token)
    note_failure(job, reason, stacks)
    runs.fail_and_wait(state, job, job.error, 0)
    return job


def delay(
    state: State,
    name: str,
    own: str,
    token: str,
    delay_ms: float,
    *,
    skip_attempt: bool,
    reason: str | None = None,
    stacks: bytes | None = None,
) -> Job:
    """Let an active job wait for a time. skip_attempt: its run is none that failed. Raises BullmqError."""
    job = held(state, name, own, token)
    note_failure(job, reason, stacks)
    delay_ms = ceil(max(delay_ms, 0))
    job.named().delay = delay_ms
    if skip_attempt:
        runs.delay(state, job, delay_ms, always=True)
    else:
        runs.fail_and_wait(state, job, job.error, delay_ms)
    return job


def give_back(state: State, name: str, own: str, token: str) -> int:
    """Put an active job in front of all that wait with its priority; return for how long a limit holds the queue. Raises BullmqError."""
    job = job_of(state, name, own)
    if token != NO_LOCK or job.state == ACTIVE:
        try:
            check_held(state, job, token)
        except BullmqError as error:
            if error.number != WRONG_STATE:
                raise
    if job.state == ACTIVE:
        runs.put_first(state, job)
    return window_left(state, name, state.now_ms)


def await_children(state: State, name: str, own: str, token: str, child: Job | None, *, one: bool) -> bool:
    """Let an active job wait for its children, if any is pending; say whether. one: only while this one is. Raises BullmqError."""
    job = job_of(state, name, own)
    links = job.flow
    if links is not None and links.failed:
        raise BullmqError(CHILDREN_FAILED, own)
    if links is None or not links.pending:
        return False
    if one and (child is None or links.children.get(child.id, links) is not None):
        return False
    check_held(state, job, token)
    runs.suspend(state, job)
    return True


# -- Locks


def extend(state: State, name: str, own: str, token: str, lock_ms: int) -> bool:
    """Let a lock last from now; say whether the token holds it."""
    job = find(state, name, own)
    if job is None or not holds(state, job, token):
        return False
    runs.beat(state, job, lock_ms)
    return True


def check_stalled(state: State, name: str, most: int, interval_ms: int) -> list[Job]:
    """Put the jobs back whose worker gave no sign of life between the last check and this one; return them.

    Nothing happens within interval_ms of the last check. A job that stalled more than `most` times is the next worker's to fail.
    """
    queue = state.queues.get(name)
    facts = state.bullmq.facts.of(name) if queue is not None else None
    if queue is None or facts is None or facts.checked_until > state.now_ms:
        return []
    facts.checked_until = state.now_ms + max(interval_ms, 0)
    stalled: list[Job] = []
    for job in queue.active.values():
        is_marked = job.fence <= facts.marked_fence and (job.last_heartbeat or 0) <= facts.marked_at
        if job.is_strict and is_marked and not is_locked(state, job):
            stalled.append(job)
            if len(stalled) >= STALLED_MAX:
                break
    for job in stalled:
        job.stalls += 1
        record = job.named()
        if job.stalls > most and not _has_scheduler(state, job):
            record.deferred = STALLED_TOO_OFTEN
        runs.put_first(state, job)
        state.stalled.append(job)
        state.emit(JobStalled(name, job.id))
        publish(state, name, "stalled", own_id(job))
    facts.marked_fence, facts.marked_at = state.fence, state.now_ms
    return stalled


def _has_scheduler(state: State, job: Job) -> bool:
    """Whether a scheduler that is still there made a job; schedulers of the backend protocol are not there yet."""
    return job.scheduled and any(cron.last_id == job.id for cron in state.schedule.crons.values())


# -- Limits


def window_left(state: State, name: str, now_ms: int) -> int:
    """Return how long the window of a queue's limit lasts yet; 0 when there is none."""
    facts = state.bullmq.facts.find(name)
    return 0 if facts is None else max(facts.limit_until - now_ms, 0)


def limit_for(state: State, name: str, duration_ms: int) -> None:
    """Let no worker that knows a limit take a job of a queue for a while."""
    facts = state.bullmq.facts.of(name)
    facts.limit_count, facts.limit_until = BLOCKED_FOR_ALL, state.now_ms + max(duration_ms, 0)


def unlimit(state: State, name: str) -> bool:
    """Let the limit's window begin anew; say whether one was under way."""
    left = window_left(state, name, state.now_ms) > 0
    facts = state.bullmq.facts.find(name)
    if facts is not None:
        facts.limit_count = facts.limit_until = 0
    if name in state.queues:
        state.woken[name] = None
    return left

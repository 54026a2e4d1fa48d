"""The runs of a job: taken, given back, failed, stalled, timed out, moved back by its worker."""

from __future__ import annotations

from quorumq.node.machine.events import JobActive, JobFailed, JobRetried, JobStalled, JobTimedOut, JobWaiting
from quorumq.node.machine.lifecycle import finishing, groups, indexes, locks, parents, stream_events, timing
from quorumq.node.machine.state import webhook as hook
from quorumq.node.machine.state.bullmq import streams
from quorumq.node.machine.state.job import (
    ACTIVE,
    DELAYED,
    EXPLICIT_FAIL,
    FAILED,
    MAX_ATTEMPTS,
    RUNS_CHARS_MAX,
    RUNS_MAX,
    STALLED,
    STALLED_TOO_OFTEN,
    STEP_CHARS_MAX,
    TIMED_OUT,
    TIMEOUT,
    Failures,
    Job,
    Keep,
    Moment,
    Run,
    ceil,
    rank_of,
    weight_of_run,
)
from quorumq.node.machine.state.limits import UNLIMITED
from quorumq.node.machine.state.queue import Queue, ready_since
from quorumq.node.machine.state.state import State


def take(
    state: State,
    queue: Queue,
    count: int,
    owner: str | None,
    lock_ms: int,
    token_seed: str,
    token: str | None = None,
    active_max: int | None = None,
) -> list[Job]:
    """Make the next `count` jobs active. With an owner each gets a lock: token `{token_seed}-{i}`, for lock_ms.

    token: locks them, too, in the place of all those.  active_max: the owner is to have no more of this queue.
    """
    now_ms = state.now_ms
    count = min(count, queue.claimable(now_ms))
    if count > 0 and active_max is not None:
        count = min(count, queue.room_for(owner, active_max))
    if count <= 0:
        return []
    taken = queue.ready.pop_first(count)
    if queue.settings.rate is not None:
        queue.spend(len(taken), now_ms)
    if queue.settings.window is not None:
        queue.count_starts(len(taken), now_ms)
    stall = queue.settings.stall
    silent = max(stall.interval_ms, stall.grace_ms)
    if not stall.enabled or stall.interval_ms <= 0:
        silent = 0
    is_locked = owner is not None or token is not None
    due = now_ms + lock_ms if is_locked else now_ms + silent if silent else 0
    fence, active, timers, events = state.fence, queue.active, state.timers, state.events
    listening, is_streaming = state.webhooks.listening, queue.name in state.streaming
    counters = queue.counters
    since, first = -1, 0
    for i, job in enumerate(taken):
        ready_at = job.run_at if job.dependencies is None else ready_since(job)
        if ready_at != since:
            # Jobs that were pushed together waited equally long, and are counted together.
            if i:
                counters.waited(now_ms - since, i - first)
            since, first = ready_at, i
        opts = job.opts
        if opts.priority:
            count_taken(queue, opts.priority)
        if job.group_id is not None:
            group = queue.groups[job.group_id]
            group.heads.remove(rank_of(job))
            group.active += 1
            if group.left != UNLIMITED:
                groups.count_starts(state, queue, job.group_id, 1)
        if job.due:
            timers.clear(job)
        fence += 1
        job.state = ACTIVE
        job.fence = fence
        job.started_at = job.last_heartbeat = now_ms
        active[job.id] = job
        if job.token is not None:
            locks.spend(state, job)
        if not is_locked:
            job.token = None
            job.lock_until = 0
        else:
            job.owner = owner
            job.token = f"{token_seed}-{i}" if token is None else token
            job.lock_ms = lock_ms
            job.lock_until = due
        if opts.timeout_ms:
            timers.set(job, timing.due_at(state, job))
        elif due:
            job.due = due
            timers.enter(job)
        if events is not None:
            events.append(JobActive(queue.name, job.id))
        if is_streaming:
            stream_events.publish(state, job, ACTIVE)
        if listening:
            state.webhooks.post(hook.STARTED, now_ms, job.id, queue.name)
    if owner is not None:
        state.count_work(owner, active=len(taken))
    state.mark += (fence - state.fence) * 17 + fence + taken[0].seq
    state.fence = fence
    counters.pulled += len(taken)
    counters.waited(now_ms - since, len(taken) - first)
    return taken


def count_taken(queue: Queue, priority: int) -> None:
    left = queue.priorities[priority] - 1
    if left:
        queue.priorities[priority] = left
    else:
        del queue.priorities[priority]
    if priority > 0:
        queue.prioritized -= 1
    else:
        queue.lowered -= 1


def release(state: State, job: Job) -> None:
    """Give an active job back as it was before it was taken: its place, its attempts."""
    queue = state.queues[job.queue]
    indexes.leave(state, queue, job)
    locks.unlock(state, job)
    if queue.settings.rate is not None:
        queue.spend(-1, state.now_ms)
    if queue.settings.window is not None:
        queue.count_starts(-1, state.now_ms)
    if job.group_id is not None and queue.group_uses:
        groups.take_start_back(state, queue, job.group_id, job.started_at or 0)
    job.started_at = job.last_heartbeat = None
    indexes.enter_waiting(state, queue, job)
    state.emit(JobWaiting(queue.name, job.id))


def beat(state: State, job: Job, lock_ms: int | None = None) -> None:
    """Note a sign of life of an active job; a lock lasts from now again, for lock_ms or as long as before."""
    job.last_heartbeat = state.now_ms
    if job.lock_until:
        if lock_ms is not None:
            job.lock_ms = lock_ms
        job.lock_until = state.now_ms + job.lock_ms
    state.timers.set(job, timing.due_at(state, job))
    state.mark += job.fence * 5


def report(state: State, job: Job, progress: float, message: str | None, value: bytes | None = None) -> None:
    """Note the progress of an active job, 0 to 100; it is a sign of life that leaves the lock as it is.

    value: JSON text of a progress that is more than a number.
    """
    job.progress = min(max(progress, 0), 100)
    if value is not None:
        job.with_extra().progress_json = value
    elif job.extra is not None:
        job.extra.progress_json = None
    if message is not None:
        job.progress_message = message
    job.last_heartbeat = state.now_ms
    state.timers.set(job, timing.due_at(state, job))
    state.mark += job.fence * 7
    if state.streaming:
        stream_events.publish(state, job, streams.PROGRESS, job.progress_json or str(job.progress))
    if state.webhooks.listening:
        state.webhooks.post(hook.PROGRESS, state.now_ms, job.id, job.queue, progress=job.progress)


def fail(
    state: State,
    job: Job,
    error: str | None,
    *,
    reason: str = MAX_ATTEMPTS,
    final: bool = False,
    chance: float | None = None,
    stack: str | None = None,
    keep: Keep | None = None,
    goes_on: bool = False,
) -> None:
    """End a run badly: the job is tried again after its backoff, or goes to the dead letter queue.

    reason: what the run died of.  final: no further run, whatever the attempts allowed.  chance: for its jitter.
    stack: where in the worker's program it failed.  keep: of a failure for good, which failed jobs stay, in the place of what the job
    and its queue say.  goes_on: as of `finishing.complete`.
    """
    queue = state.queues[job.queue]
    if job.owner is not None and reason in (MAX_ATTEMPTS, EXPLICIT_FAIL):
        state.count_work(job.owner, failed=1)
    indexes.leave(state, queue, job)
    end_run(state, job, error, reason, stack)
    if not final and job.attempts < job.opts.max_attempts:
        retry(state, queue, job, job.opts.retry_delay_ms(job.attempts, chance))
    else:
        fail_for_good(state, queue, job, reason, keep=keep, goes_on=goes_on)


def fail_for_good(
    state: State, queue: Queue, job: Job, reason: str, *, keep: Keep | None = None, goes_on: bool = False
) -> None:
    """Let a job fail for good whose run has ended. goes_on: as of `finishing.complete`."""
    finishing.enter_dlq(state, queue, job, reason, keep=keep)
    if state.streaming and not goes_on:
        stream_events.publish_if_drained(state, queue)


def fail_and_wait(state: State, job: Job, error: str | None, delay_ms: int) -> None:
    """End a run badly and let the job wait for the next one, delay_ms from now, whatever its attempts and its backoff."""
    queue = state.queues[job.queue]
    if job.owner is not None:
        state.count_work(job.owner, failed=1)
    indexes.leave(state, queue, job)
    end_run(state, job, error, MAX_ATTEMPTS)
    retry(state, queue, job, delay_ms)


def time_out(state: State, job: Job) -> None:
    """End a run that took longer than it may: a failed run and a stall, too many of which fail the job for good.

    That has nothing to do with stall detection, which may be switched off.
    """
    state.emit(JobTimedOut(job.queue, job.id))
    final = False
    if state.level >= 1:
        state.stalled.append(job)
        job.stalls += 1
        allowed = stalls_allowed(state, job)
        final = (
            job.stalls >= state.queues[job.queue].settings.stall.max_stalls if allowed is None else job.stalls > allowed
        )
        state.emit(JobStalled(job.queue, job.id))
        publish_stalled(state, job)
    fail(state, job, TIMED_OUT, reason=TIMEOUT, final=final)


def stalls_allowed(state: State, job: Job) -> int | None:
    """Return how often a job may stall that counts this for itself; None for the others, for which the queue says it."""
    own, default = job.opts.stalls_allowed, state.queues[job.queue].settings.default_stalls_allowed
    return own if own is None or default is None else default


def stall(state: State, job: Job, delay_ms: int) -> None:
    """Take an active job from a worker that gave no sign of life; it waits for another, delay_ms later.

    The token of a lock that ran out stays with the job, and completes it until somebody else takes it. A job that
    counts its stalls for themselves goes to the front.
    """
    state.stalled.append(job)
    allowed = stalls_allowed(state, job)
    if allowed is not None:
        stall_apart(state, job, allowed)
        return
    queue = state.queues[job.queue]
    stall = queue.settings.stall
    token = job.token
    indexes.leave(state, queue, job)
    job.stalls += 1
    is_last = job.stalls >= stall.max_stalls or job.attempts + 1 >= job.opts.max_attempts
    end_run(state, job, f"Job stalled {job.stalls} times" if is_last else job.error, STALLED)
    state.emit(JobStalled(queue.name, job.id))
    publish_stalled(state, job)
    if is_last:
        fail_for_good(state, queue, job, STALLED if job.stalls >= stall.max_stalls else MAX_ATTEMPTS)
    else:
        job.token = token
        retry(state, queue, job, delay_ms)


def stall_apart(state: State, job: Job, allowed: int) -> None:
    """Put a job whose worker is lost first, without a failed run, as long as it has not stalled too often.

    Its token completes it until somebody else takes it, as that of any lock that ran out.
    """
    queue = state.queues[job.queue]
    job.stalls += 1
    state.emit(JobStalled(queue.name, job.id))
    publish_stalled(state, job)
    if job.stalls > allowed and not job.scheduled:
        indexes.leave(state, queue, job)
        end_run(state, job, STALLED_TOO_OFTEN, STALLED)
        fail_for_good(state, queue, job, STALLED)
    else:
        token = job.token
        put_first(state, job)
        job.token = token


def publish_stalled(state: State, job: Job) -> None:
    if state.streaming:
        stream_events.publish(state, job, streams.STALLED)


def end_run(state: State, job: Job, error: str | None, reason: str, stack: str | None = None) -> None:
    started_at = job.started_at
    if started_at is not None:
        state.queues[job.queue].counters.ran(state.now_ms - started_at)
    job.attempts += 1
    job.error = error
    if job.failures is None:
        job.failures = Failures()
    job.failures.runs.append(Run(job.attempts, started_at, state.now_ms, reason, error, stack))
    del job.failures.runs[:-RUNS_MAX]
    told = error
    if state.level >= 1:
        forget_long_runs(job.failures.runs)
        told = error if error is None else error[:STEP_CHARS_MAX]
    if started_at is not None:
        job.remember_step(Moment(ACTIVE, started_at))
    job.remember_step(Moment(FAILED, state.now_ms, told, job.attempts))
    locks.unlock(state, job)


def forget_long_runs(runs: list[Run]) -> None:
    """Forget the oldest failed runs of a job beyond RUNS_CHARS_MAX of errors and stacks; the newest one stays."""
    left, size = len(runs) - 1, weight_of_run(runs[-1])
    while left > 0 and (size := size + weight_of_run(runs[left - 1])) <= RUNS_CHARS_MAX:
        left -= 1
    del runs[:left]


def retry(state: State, queue: Queue, job: Job, delay_ms: int) -> None:
    job.with_extra().processed_at = job.started_at
    job.started_at = job.last_heartbeat = None
    job.run_at = state.now_ms + delay_ms
    indexes.rejoin_by_options(state, job)
    indexes.enqueue(state, queue, job)
    job.remember_step(Moment(job.shown_state, state.now_ms))
    if state.events is not None:
        state.events.append(JobFailed(queue.name, job.id, job.error))
        state.events.append(JobRetried(queue.name, job.id))
    finishing.post_failure(state, job)


def put_first(state: State, job: Job) -> None:
    """Put an active job back in front of all waiting jobs of its priority; its run counts for nothing."""
    queue = state.queues[job.queue]
    indexes.leave(state, queue, job)
    locks.unlock(state, job)
    note_start(state, job)
    indexes.rejoin(state, job, first=True)
    job.run_at = state.now_ms
    indexes.enter_waiting(state, queue, job)
    state.emit(JobWaiting(queue.name, job.id))


def suspend(state: State, job: Job) -> None:
    """Let an active job wait for its children; its run counts for nothing."""
    indexes.leave(state, state.queues[job.queue], job)
    locks.unlock(state, job)
    note_start(state, job)
    parents.park(state, job)


def note_start(state: State, job: Job) -> None:
    """Remember a start that leads to no end, before it is forgotten."""
    if job.started_at is not None:
        extra = job.with_extra()
        extra.starts += 1
        extra.processed_at = job.started_at
        job.started_at = job.last_heartbeat = None


def delay(state: State, job: Job, delay_ms: float, *, always: bool = False) -> None:
    """Make a waiting, delayed or active job wait from now; its run, if one was under way, counts for nothing.

    always: it is delayed also for no time at all, until the next entry.
    """
    queue = state.queues[job.queue]
    was_delayed = job.state == DELAYED
    indexes.leave(state, queue, job)
    locks.unlock(state, job)
    note_start(state, job)
    job.run_at = state.now_ms + ceil(max(delay_ms, 0))
    indexes.rejoin_by_options(state, job)
    if always:
        indexes.enter_delayed(state, queue, job)
    else:
        indexes.enqueue(state, queue, job)
    if job.state == DELAYED:
        if was_delayed and state.streaming:
            stream_events.publish(state, job, DELAYED, job.run_at)
        job.with_extra().delayed_at = state.now_ms

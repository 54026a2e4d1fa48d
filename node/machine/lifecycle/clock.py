"""The passing of time: what an entry's clock brings before its operations."""

from __future__ import annotations

from quorumq.node.machine.events import JobLockExpired, WorkerRemovedStale
from quorumq.node.machine.lifecycle import (
    dependencies,
    finishing,
    groups,
    indexes,
    removal,
    retention,
    revival,
    runs,
    timing,
    unique_keys,
)
from quorumq.node.machine.lifecycle.bullmq import adding
from quorumq.node.machine.state.job import ACTIVE, DELAYED, FAILED, Job, ceil
from quorumq.node.machine.state.queue import Queue
from quorumq.node.machine.state.state import State

# Jobs moved by time in one entry; what is left moves with the next, so that no entry holds a node up for long.
ADVANCE_MAX = 2_000
# Jobs that one entry tells of the end of another one that they wait for: a tenth of a second's work.
RELEASED_MAX = 10_000


def advance(state: State, now_ms: int, limit: int = ADVANCE_MAX) -> int:
    """Move the clock, and the jobs whose timer is due, oldest first; at most `limit`. Returns how many."""
    state.now_ms = max(now_ms, state.now_ms)
    return settle(state, limit)


def settle(state: State, limit: int = ADVANCE_MAX) -> int:
    """Do what is due by the time that it is; as `advance`."""
    now_ms = state.now_ms
    moved = 0
    while moved < limit:
        job = state.timers.pop_due(now_ms)
        if job is None:
            break
        moved += 1
        fire_timer(state, job)
    if state.throttles:
        unique_keys.free_due(state, limit)
    for queue, group_id in state.group_limits.fire_due(state.queues, now_ms):
        groups.fit(state, queue, group_id)
    state.release_budget = RELEASED_MAX
    if state.unreleased:
        dependencies.release_more(state, ADVANCE_MAX)
    if state.failing:
        finishing.fail_parents(state, ADVANCE_MAX)
    if state.overfull:
        retention.trim_more(state)
    if state.retiming:
        timing.retime_more(state)
    if state.bullmq.facts.released:
        adding.let_follow(state, limit)
    if state.workers.by_id:
        for worker in state.workers.age(now_ms):
            state.mark += 101
            state.emit(WorkerRemovedStale(worker.id, worker.name, worker.queues))
    return moved


def set_by_client(state: State, now_ms: int) -> None:
    """Make it the time that a client says, earlier or later than it was, and do what is due by it."""
    state.now_ms = now_ms
    settle(state)


def spare(state: State, job: Job) -> None:
    """Let a run whose time is up, or whose lock, go on to the end of the grace."""
    if 0 < job.lock_until < state.grace_until:
        job.lock_until = state.grace_until
    state.timers.set(job, state.grace_until)
    state.mark += job.fence * 103


def fire_timer(state: State, job: Job) -> None:
    """Do what a job's timer was set for: it stands for the earliest of several reasons, and which one it was shows in the record."""
    now_ms = state.now_ms
    if (job.queue, job.state) in state.retiming and not 0 < (due := timing.due_at(state, job)) <= now_ms:
        # It is the timer of settings that hold no more.
        state.timers.set(job, due)
        return
    if job.state == ACTIVE and now_ms < state.grace_until:
        spare(state, job)
    elif job.state == ACTIVE:
        timeout = job.opts.timeout_ms
        if timeout and job.started_at is not None and job.started_at + ceil(timeout) <= now_ms:
            runs.time_out(state, job)
        elif job.lock_until:
            state.emit(JobLockExpired(job.queue, job.id))
            runs.stall(state, job, 0)
        else:
            runs.stall(state, job, job.opts.retry_delay_ms(job.attempts + 1))
    elif job.state == FAILED:
        revival.age(state, job)
    elif job.expires_at and job.expires_at <= now_ms:
        removal.expire(state, job)
    elif job.state == DELAYED:
        indexes.undelay(state, job)


def check_stalled(state: State, queue: Queue) -> None:
    """Deal with the locks of a queue that have run out, which `advance` may have left for later; ADVANCE_MAX at most."""
    now_ms = state.now_ms
    out = [job for job in queue.active.values() if 0 < job.lock_until <= now_ms and not job.is_strict]
    for job in out if state.level < 1 else out[:ADVANCE_MAX]:
        fire_timer(state, job)

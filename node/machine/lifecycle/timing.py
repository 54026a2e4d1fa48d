"""When a job has to be looked at again: one timer a job, for the earliest of its reasons, worked out from its record alone."""

from __future__ import annotations

from itertools import islice

from quorumq.node.machine.state.job import ACTIVE, COMPLETED, DELAYED, FAILED, Job, ceil
from quorumq.node.machine.state.queue import Queue
from quorumq.node.machine.state.state import State

# Jobs that get the timers of other settings of their queue in one entry.
RETIMED_MAX = 10_000


def due_at(state: State, job: Job) -> int:
    """Work out when a job has to be looked at again, from its state alone; 0 for never."""
    opts = job.opts
    if job.state == ACTIVE:
        if job.extra is not None and job.is_strict:
            due = 0
        elif job.lock_until:
            due = job.lock_until
        else:
            stall = state.queues[job.queue].settings.stall
            due = 0
            if stall.enabled and stall.interval_ms > 0:
                started = job.started_at or 0
                due = max((job.last_heartbeat or started) + stall.interval_ms, started + stall.grace_ms)
        if opts.timeout_ms and job.started_at is not None:
            ends = job.started_at + ceil(opts.timeout_ms)
            due = min(due, ends) if due else ends
        return due
    if job.state == FAILED:
        return dlq_due_at(state, job)
    if job.state == COMPLETED:
        return 0
    due = job.expires_at
    if job.state == DELAYED:
        due = min(due, job.run_at) if due else job.run_at
    return due


def dlq_due_at(state: State, job: Job) -> int:
    """Work out when a dead letter is retried or dropped, and note when it is retried; 0 for never."""
    dlq = state.queues[job.queue].settings.dlq
    entered = job.finished_at or 0
    due = 0 if dlq.max_age_ms is None else entered + dlq.max_age_ms
    failures = job.failures
    assert failures is not None
    failures.next_retry_at = None
    if dlq.auto_retry and failures.retries < dlq.max_auto_retries:
        failures.next_retry_at = again = entered + dlq.auto_retry_interval_ms
        due = min(due, again) if due else again
    return due


def retime(state: State, queue: Queue, job_state: str) -> None:
    """Give the jobs of a state the timers that follow from other settings; those of very many come with time."""
    key = (queue.name, job_state)
    state.retiming.pop(key, None)
    if state.level >= 1 and queue.count(job_state) > RETIMED_MAX:
        state.retiming[key] = 0
        return
    for job in list(queue.active.values()) if job_state == ACTIVE else queue.failed:
        state.timers.set(job, due_at(state, job))


def retime_more(state: State) -> None:
    """Go on with one queue and state whose jobs are to get the timers of other settings."""
    # By name, because in which order they came an image does not keep; by fence and end, because jobs come and go.
    key = min(state.retiming)
    queue, done = state.queues[key[0]], state.retiming[key]
    if key[1] == ACTIVE:
        part = list(islice((job for job in queue.active.values() if job.fence > done), RETIMED_MAX))
    else:
        part = [job for _, job in queue.failed.after(done, RETIMED_MAX)]
    for job in part:
        state.timers.set(job, due_at(state, job))
    if len(part) < RETIMED_MAX:
        del state.retiming[key]
    else:
        state.retiming[key] = part[-1].fence if key[1] == ACTIVE else part[-1].ending

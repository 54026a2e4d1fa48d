"""Finished jobs that run again."""

from __future__ import annotations

import msgspec

from quorumq.node.machine.events import DlqExpired, DlqRetried, JobWaiting
from quorumq.node.machine.lifecycle import indexes, parents, removal, unique_keys
from quorumq.node.machine.state.job import ACTIVE, COMPLETED, FAILED, WAITING, Job, Moment, holds_for_a_time
from quorumq.node.machine.state.queue import Queue
from quorumq.node.machine.state.state import State


def age(state: State, job: Job) -> None:
    """Drop a dead letter whose time is over, or let it run again because its queue retries them."""
    queue = state.queues[job.queue]
    dlq = queue.settings.dlq
    if dlq.max_age_ms is not None and (job.finished_at or 0) + dlq.max_age_ms <= state.now_ms:
        indexes.leave(state, queue, job)
        removal.delete_record(state, queue, job)
        state.emit(DlqExpired(queue.name, job.id))
    else:
        revive(state, job)
        state.emit(DlqRetried(queue.name, job.id))


def revive(state: State, job: Job) -> None:
    """Let a finished job start anew: from the dead letter queue or from the completed ones, attempts from zero."""
    queue = state.queues[job.queue]
    reopen(state, queue, job)
    job.attempts = job.stalls = 0
    job.progress = 0
    job.progress_message = None
    job.forget_past()
    if job.opts.lifo:
        indexes.rejoin_by_options(state, job)
    enter_again(state, queue, job)
    job.remember_step(Moment(job.shown_state, state.now_ms))


def enter_again(state: State, queue: Queue, job: Job) -> None:
    """Put a job that runs again among the waiting ones, or let it wait for its children."""
    if job.pending_children:
        parents.park(state, job)
    else:
        indexes.enter_waiting(state, queue, job)


def rerun(state: State, job: Job, *, reset_attempts: bool = False) -> None:
    """Let a finished job wait once more as BullMQ does: behind all others, or first (lifo), its attempts as they are."""
    queue = state.queues[job.queue]
    if job.state == COMPLETED:
        job.attempts += 1
    reopen(state, queue, job)
    job.error = None
    if reset_attempts and job.attempts:
        job.with_extra().starts += job.attempts
        job.attempts = 0
    if job.extra is not None:
        job.extra.processed_at = None
    state.seq += 1
    job.order = -state.seq if job.opts.lifo else state.seq
    enter_again(state, queue, job)
    job.remember_step(Moment(job.shown_state, state.now_ms))
    if job.state == WAITING:
        state.emit(JobWaiting(queue.name, job.id))


def reopen(state: State, queue: Queue, job: Job) -> None:
    """Take a finished job out of its index, and its end out of the record."""
    was = job.state
    if was == COMPLETED:
        if job.started_at is not None:
            job.remember_step(Moment(ACTIVE, job.started_at))
        job.remember_step(Moment(COMPLETED, job.finished_at or state.now_ms))
        if job.lock_ms and state.level >= 1:
            # The token that completed it was not kept, nor were others before: from now on none is believed.
            state.spent.add(job.id, None)
    indexes.leave(state, queue, job)
    if was == FAILED:
        assert job.failures is not None
        job.failures.retries += 1
        job.failures.last_retry_at = state.now_ms
        job.failures.next_retry_at = None
        removal.take_back_id(state, job)
    if job.flow is not None:
        parents.revived(state, job, was)
    record = job.record
    if record is not None:
        record.deferred = None
    job.ending = 0
    job.result = job.started_at = job.finished_at = job.last_heartbeat = None
    job.run_at = state.now_ms
    if job.unique_key is not None and not holds_for_a_time(job):
        if unique_keys.holder_of(state, queue, job.unique_key) not in (None, job.id):
            # Another job took the key meanwhile and keeps it.
            job.unique_key = None
        else:
            unique_keys.free_key(state, queue, job.unique_key)
            queue.unique[job.unique_key] = job.id
    if job.opts.ttl_ms is not None and job.expires_at <= state.now_ms:
        # Its time to live has passed; whoever revives it wants it run all the same.
        job.opts = state.shared(msgspec.structs.replace(job.opts, ttl_ms=None))

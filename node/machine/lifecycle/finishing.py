"""How a job finishes: completed, or failed for good, and what that means for those that wait for it.

A failure that fails more than CASCADE_MAX parents goes on with the entries that follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from quorumq.node.machine.events import DlqAdded, FlowFailed, JobCompleted, JobFailed
from quorumq.node.machine.lifecycle import (
    dependencies,
    indexes,
    locks,
    parents,
    removal,
    repetition,
    retention,
    stream_events,
    timing,
    unique_keys,
)
from quorumq.node.machine.state import webhook as hook
from quorumq.node.machine.state.bullmq import streams
from quorumq.node.machine.state.bullmq.names import failure_text
from quorumq.node.machine.state.job import (
    ACTIVE,
    COMPLETED,
    CONTINUE,
    CONTINUED,
    DELAYED,
    FAIL,
    FAILED,
    IGNORE,
    IGNORED,
    REMOVE,
    UNKNOWN,
    UNSUCCESSFUL,
    WAITING,
    WAITING_CHILDREN,
    ChildEnd,
    Failures,
    Job,
    Keep,
    Moment,
    weight_of_failed,
)
from quorumq.node.machine.state.queue import Queue
from quorumq.node.machine.state.state import State

CASCADE_MAX = 1_000
"""Parents that fail in one entry because a child did."""


def complete(
    state: State, job: Job, result: bytes | None, *, alone: bool = True, keep: Keep | None = None, goes_on: bool = False
) -> None:
    """End a job well. alone: count its run and keep to the bounds on completed jobs; else the caller does, after several.

    keep: which completed jobs stay, in the place of what the job and its queue say.  goes_on: the caller tells of a queue that is
    drained, after the next job was asked for.
    """
    queue = state.queues[job.queue]
    opts, settings = job.opts, queue.settings
    if job.state == ACTIVE and job.group_id is None:
        # The usual way out, without the general steps of indexes.leave.
        del queue.active[job.id]
        if job.owner is not None:
            state.count_work(job.owner, active=-1, processed=1)
        if job.due:
            state.timers.clear(job)
        if settings.concurrency is not None:
            state.woken[queue.name] = None
    else:
        if job.state != ACTIVE:
            # Its old token completes it after all: the start that seemed lost has led to this.
            job.with_extra().starts -= 1
        elif job.owner is not None:
            state.count_work(job.owner, processed=1)
        indexes.leave(state, queue, job)
    if job.unique_key is not None:
        unique_keys.release_key(state, queue, job)
    if job.token is not None or job.owner is not None:
        job.token = job.owner = None
        job.lock_until = 0
    job.result = result
    job.finished_at = state.now_ms
    job.state = COMPLETED
    queue.counters.completed += 1
    state.endings = ending = state.endings + 1
    state.mark += ending + job.seq * 11
    if state.events is not None:
        state.events.append(JobCompleted(queue.name, job.id))
    if state.streaming:
        stream_events.publish(state, job, COMPLETED, b"null" if result is None else result)
    if state.webhooks.listening:
        state.webhooks.post(hook.COMPLETED, state.now_ms, job.id, queue.name, result)
    if job.id in state.watched:
        state.ended.append(job)
    if job.dependencies is not None:
        parents.completed(state, job)
    if keep is None:
        keep = settings.default_keep_completed if opts.keep_completed is None else opts.keep_completed
    if opts.remove_on_complete or (keep is not None and keep.count == 0):
        removal.delete_record(state, queue, job)
        state.remembered.add((job.id,))
    else:
        job.ending = ending
        queue.completed.add(ending, job)
        queue.completed_bytes += len(job.data) if result is None else len(job.data) + len(result)
        if keep is not None:
            surplus = retention.surplus_of(state, queue.completed, keep)
            if surplus:
                removal.drop_completed(state, queue, queue.completed.pop_first(surplus))
        if alone:
            retention.trim_completed(state, queue)
    if alone:
        count_runs(state, queue.name, job.started_at, 1)
    if state.dependents.by_id and job.id in state.dependents:
        dependencies.release_dependents(state, job)
    if opts.repeat is not None:
        repetition.repeat_job(state, queue, job, opts.repeat)
    if state.streaming and not goes_on:
        stream_events.publish_if_drained(state, queue)


def count_runs(state: State, name: str, started_at: int | None, count: int) -> None:
    """Count completed runs of a queue that began at the same moment; without one they were counted when they stalled."""
    if not count:
        return
    queue = state.queues[name]
    if started_at is not None:
        queue.counters.ran(state.now_ms - started_at, count)
    if state.level >= 1:
        queue.note_completed(count, state.now_ms)


def post_failure(state: State, job: Job) -> None:
    if state.webhooks.listening:
        state.webhooks.post(hook.FAILED, state.now_ms, job.id, job.queue, job.data, job.error)


def dead_letter(state: State, job: Job, reason: str, *, always: bool = False) -> None:
    """Send an unfinished job to the dead letter queue without another run. always: whatever remove_on_fail says."""
    queue = state.queues[job.queue]
    if job.state == ACTIVE and job.started_at is not None:
        queue.counters.ran(state.now_ms - job.started_at)
        job.with_extra().starts += 1
    indexes.leave(state, queue, job)
    locks.unlock(state, job)
    job.remember_step(Moment(FAILED, state.now_ms, None, job.attempts))
    enter_dlq(state, queue, job, reason, always=always)


def enter_dlq(
    state: State, queue: Queue, job: Job, reason: str, *, always: bool = False, keep: Keep | None = None
) -> None:
    if job.unique_key is not None:
        unique_keys.release_key(state, queue, job)
    if job.failures is None:
        job.failures = Failures()
    job.failures.reason = reason
    job.finished_at = state.now_ms
    job.state = FAILED
    queue.counters.failed += 1
    if state.level >= 1:
        queue.note_failed(state.now_ms)
    state.endings = ending = state.endings + 1
    state.mark += ending + job.seq * 13
    state.emit(JobFailed(queue.name, job.id, job.error, final=True))
    for waiting in state.dependents.of(job.id) if state.events is not None else ():
        state.emit(FlowFailed(waiting.id, job.id, waiting.queue, job.error))
    if state.streaming:
        stream_events.publish(state, job, FAILED, reason if job.error is None else job.error)
        if job.attempts >= job.opts.max_attempts:
            stream_events.publish(state, job, streams.RETRIES_EXHAUSTED, job.attempts)
    post_failure(state, job)
    if job.dependencies is not None:
        child_failed(state, job)
    if keep is None:
        keep = queue.settings.default_keep_failed if job.opts.keep_failed is None else job.opts.keep_failed
    if (job.opts.remove_on_fail and not always) or (keep is not None and keep.count == 0):
        removal.delete_record(state, queue, job)
        return
    job.ending = ending
    queue.failed.add(ending, job)
    queue.failed_bytes += weight_of_failed(job)
    state.timers.set(job, timing.due_at(state, job))
    state.emit(DlqAdded(queue.name, job.id, reason))
    if keep is not None:
        removal.drop_failed(state, queue, retention.surplus_of(state, queue.failed, keep))
    retention.trim_dlq(state, queue)


def child_failed(state: State, child: Job) -> None:
    """Tell the parent of a job that failed for good."""
    parent = parents.awaiting(state, child)
    if parent is None:
        return
    assert child.flow is not None and parent.flow is not None
    policy, flow = child.flow.on_failure, parent.flow
    state.emit(FlowFailed(parent.id, child.id, parent.queue, child.error))
    if policy == CONTINUE:
        parents.note_end(parent, child, ChildEnd(CONTINUED, child.queue, reason=child.error))
        # BullMQ has such a parent let go of the other children itself.
        flow.waived = not parent.opts.rejoin_last
        parents.release_if_ready(state, parent, at_once=True)
    elif policy == IGNORE:
        parents.note_end(parent, child, ChildEnd(IGNORED, child.queue, reason=child.error))
        parents.release_if_ready(state, parent)
    elif policy == REMOVE:
        child.flow.parent = None
        parents.drop_child(state, child.id, parent)
    elif policy == FAIL:
        parents.note_end(parent, child, ChildEnd(UNSUCCESSFUL, child.queue, reason=child.error))
        flow.failed += 1
        if parent.record is not None:
            _leave_to_worker(state, parent, child)
        elif parent.state in (WAITING_CHILDREN, WAITING, DELAYED):
            state.failing[parent.id] = _reason(parent, child)
            fail_parents(state, CASCADE_MAX)


def _leave_to_worker(state: State, parent: Job, child: Job) -> None:
    """Let the next worker fail a parent that a client of the backend protocol named: as BullMQ, whose worker does that."""
    if parent.state == FAILED:
        return
    record = parent.named()
    record.deferred = failure_text(child, parent.tied().prefix)
    if parent.state == DELAYED:
        record.delay = 0
        indexes.undelay(state, parent)
    elif parent.state == WAITING_CHILDREN and not parents.waits_for_others(parent):
        parents.release(state, parent)


@contextmanager
def failing_parents_later(state: State) -> Iterator[None]:
    """Let parents fail for their children only when jobs that are being added have their places."""
    state.is_cascading = True
    try:
        yield
    finally:
        state.is_cascading = False
    fail_parents(state, CASCADE_MAX)


def fail_parents(state: State, limit: int) -> None:
    """Let parents fail whose child did, and theirs by their own policies; at most `limit` jobs."""
    if state.is_cascading:
        # The outermost call goes on with what this one noted.
        return
    state.is_cascading = True
    try:
        while state.failing and limit > 0:
            job_id = next(iter(state.failing))
            reason = state.failing.pop(job_id)
            job = state.jobs.get(job_id)
            if job is not None and job.state in (WAITING_CHILDREN, WAITING, DELAYED):
                job.error = reason
                dead_letter(state, job, UNKNOWN)
                limit -= 1
    finally:
        state.is_cascading = False


def _reason(parent: Job, child: Job) -> str:
    """Return why a parent failed, as its dialect says it."""
    if parent.opts.rejoin_last:
        return failure_text(child, parent.tied().prefix)
    return f"Child job {child.id} failed: {child.error or 'unknown error'}"

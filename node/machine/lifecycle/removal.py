"""Jobs that go, or get another id: out of every table, and their ties with them."""

from __future__ import annotations

from quorumq.node.machine.events import DlqExpired, JobExpired, JobRemoved
from quorumq.node.machine.lifecycle import indexes, parents, repetition, stream_events, unique_keys
from quorumq.node.machine.state.job import REMOVED, WAITING_CHILDREN, Job
from quorumq.node.machine.state.queue import Queue
from quorumq.node.machine.state.state import State


def rename(state: State, job: Job, job_id: str) -> None:
    """Give a finished job, or one that is in no index, another id; it is the youngest of its queue then."""
    queue, due = state.queues[job.queue], job.due
    state.timers.clear(job)
    before = job.id
    del state.jobs[before], queue.jobs[before]
    if job.called is not None:
        not_aside(queue, job)
    if job.unique_key is not None and queue.unique.get(job.unique_key) == job.id:
        queue.unique[job.unique_key] = job_id
    state.logs.rename(job.id, job_id)
    state.spent.copy(job.id, job_id)
    state.spent.forget(job.id)
    state.seq += 1
    job.id, job.seq = job_id, state.seq
    state.jobs[job_id] = queue.jobs[job_id] = job
    if job.flow is not None:
        parents.renamed(state, job, before)
    state.timers.set(job, due)
    state.mark += job.seq * 127


def not_aside(queue: Queue, job: Job) -> None:
    """Find a job no more by the id that it had before a new job took it."""
    called = job.called
    assert called is not None
    others = queue.aside[called]
    others.remove(job.id)
    if not others:
        del queue.aside[called]


def take_back_id(state: State, job: Job) -> None:
    """Give a dead letter that runs again the id that it had, if that is free and nobody waits for it under its present one."""
    called = job.called
    if called is not None and called not in state.jobs and job.id not in state.dependents:
        rename(state, job, called)
        job.custom = True


def drop_completed(state: State, queue: Queue, dropped: list[Job]) -> None:
    """Let completed jobs go that are in no index any more; their ids are remembered."""
    jobs, own, size = state.jobs, queue.jobs, 0
    for job in dropped:
        size += len(job.data) if job.result is None else len(job.data) + len(job.result)
        job_id = job.id
        if queue.aside and job.called is not None:
            not_aside(queue, job)
        if job.dependencies is not None:
            untie(state, job)
        del jobs[job_id], own[job_id]
        if state.logs.by_job:
            state.logs.forget(job_id)
        if state.spent.by_job:
            state.spent.forget(job_id)
    queue.completed_bytes -= size
    state.remembered.add([job.id for job in dropped])


def drop_failed(state: State, queue: Queue, count: int) -> None:
    """Let the oldest dead letters of a queue go."""
    for oldest in queue.failed.slice(0, count) if count > 0 else ():
        indexes.leave(state, queue, oldest)
        delete_record(state, queue, oldest)
        state.emit(DlqExpired(queue.name, oldest.id))


def expire(state: State, job: Job) -> None:
    """Drop a job that nobody took within its time to live."""
    age, prev = state.now_ms - job.created_at, job.state
    ttl = job.opts.ttl_ms or 0
    if ttl and job.opts.repeat is not None:
        # This run is over, and not the repetition. One that never lives is none.
        repetition.skip_run(state, job)
    delete(state, job)
    state.emit(JobExpired(job.queue, job.id, ttl, age))
    if state.streaming:
        stream_events.publish_removed(state, job, prev)


def remove(state: State, job: Job) -> None:
    """Delete a job because somebody asked for it."""
    prev = job.state
    delete(state, job)
    state.emit(JobRemoved(job.queue, job.id, prev))
    if state.streaming:
        stream_events.publish_removed(state, job, prev)


def delete(state: State, job: Job, *, hard: bool = False) -> None:
    """Take a job out of every table, in any state. hard: with a parent in its queue that waited for nothing else."""
    queue = state.queues[job.queue]
    indexes.leave(state, queue, job)
    unique_keys.release_key(state, queue, job, removed=True)
    delete_record(state, queue, job, hard=hard)
    state.mark += job.seq * 19


def delete_record(state: State, queue: Queue, job: Job, *, hard: bool = False) -> None:
    """Take a job that is in no index, and has no key, out of all other tables."""
    if job.called is not None:
        not_aside(queue, job)
    if job.dependencies is not None:
        untie(state, job, hard=hard)
    del state.jobs[job.id], queue.jobs[job.id]
    if state.logs.by_job:
        state.logs.forget(job.id)
    if state.spent.by_job:
        state.spent.forget(job.id)
    if hard or not job.finished:
        job.state = REMOVED


def untie(state: State, job: Job, *, hard: bool = False) -> None:
    """Untie a job whose record goes. A parent waits no more for a child that goes before its end; children lose their parent.

    hard: a parent in the same queue that waited for nothing else goes with its child, as a whole queue's removal has it.
    """
    links = job.flow
    if links is None:
        return
    for child_id in links.children:
        child = state.jobs.get(child_id)
        if child is not None and child.flow is not None and child.flow.parent == job.id:
            child.flow.parent = None
    state.failing.pop(job.id, None)
    parent = state.jobs.get(links.parent) if links.parent is not None else None
    if parent is None or parent.flow is None or not parents.is_pending(parent, job.id):
        return
    last = parent.flow.pending == 1 and parent.state == WAITING_CHILDREN and not parents.waits_for_others(parent)
    if hard and last and parent.queue == job.queue:
        del parent.flow.children[job.id]
        parent.flow.pending = 0
        remove(state, parent)
    else:
        parents.drop_child(state, job.id, parent)

"""The indexes of a queue by state: every unfinished job is in one, and every way into one and out of one is here."""

from __future__ import annotations

from quorumq.node.machine.events import JobDelayed, JobPromoted, JobWaiting
from quorumq.node.machine.lifecycle import groups, stream_events, timing
from quorumq.node.machine.state.job import (
    ACTIVE,
    COMPLETED,
    DEFAULT,
    DELAYED,
    FAILED,
    WAITING,
    WAITING_CHILDREN,
    Job,
    due_rank_of,
    holds_for_a_time,
    rank_of,
    weight,
    weight_of_failed,
)
from quorumq.node.machine.state.queue import Queue
from quorumq.node.machine.state.state import State


def stop_waiting(state: State, job: Job) -> None:
    """Let a job that leaves before all it depends on is completed be told of none of that."""
    dependencies = job.dependencies
    if dependencies is not None:
        for job_id in dependencies.remaining:
            state.dependents.remove(job_id, job)
        dependencies.remaining = []


def enqueue(state: State, queue: Queue, job: Job) -> None:
    """Put a job among the delayed or the waiting, by its run_at."""
    if job.run_at > state.now_ms:
        enter_delayed(state, queue, job)
    else:
        enter_waiting(state, queue, job)


def enter_waiting(state: State, queue: Queue, job: Job) -> None:
    """Put a job that is in no index among the waiting ones."""
    priority = job.opts.priority
    if state.streaming:
        stream_events.publish_waiting(state, job, job.state)
    job.state = WAITING
    state.mark += job.seq * 3
    if priority:
        queue.priorities[priority] = queue.priorities.get(priority, 0) + 1
        if priority > 0:
            queue.prioritized += 1
        else:
            queue.lowered += 1
    if job.group_id is None:
        queue.ready.add(rank_of(job) if priority else job.order, job)
    else:
        groups.enter(state, queue, job)
    if job.due or job.opts.ttl_ms is not None:
        state.timers.set(job, job.expires_at)
    state.woken[queue.name] = None


def enter_delayed(state: State, queue: Queue, job: Job) -> None:
    """Put a job that is in no index among the delayed ones."""
    priority = job.opts.priority
    if state.streaming and job.state != DELAYED:
        stream_events.publish(state, job, DELAYED, job.run_at)
    job.state = DELAYED
    state.mark += job.run_at + job.seq * 23
    if priority:
        queue.priorities[priority] = queue.priorities.get(priority, 0) + 1
    queue.delayed.add(due_rank_of(job), job)
    state.timers.set(job, timing.due_at(state, job))
    state.emit(JobDelayed(queue.name, job.id, job.run_at - state.now_ms))


def leave(state: State, queue: Queue, job: Job) -> None:
    """Take a job out of the index of its state, and its timer away. It must enter another one or be forgotten."""
    job_state = job.state
    state.timers.clear(job)
    if job_state == ACTIVE:
        del queue.active[job.id]
        if job.owner is not None:
            state.count_work(job.owner, active=-1)
        if job.group_id is not None:
            group = queue.groups[job.group_id]
            group.active -= 1
            groups.fill(state, queue, job.group_id, group)
        if queue.settings.concurrency is not None:
            state.woken[queue.name] = None
    elif job_state == COMPLETED:
        queue.completed.remove(job.ending)
        queue.completed_bytes -= weight(job)
    elif job_state == FAILED:
        queue.failed.remove(job.ending)
        queue.failed_bytes -= weight_of_failed(job)
    elif job_state == WAITING_CHILDREN:
        del queue.waiting_children[job.id]
        stop_waiting(state, job)
    else:
        priority = job.opts.priority
        if priority:
            left = queue.priorities[priority] - 1
            if left:
                queue.priorities[priority] = left
            else:
                del queue.priorities[priority]
        if job_state == DELAYED:
            queue.delayed.remove(due_rank_of(job))
        else:
            if priority > 0:
                queue.prioritized -= 1
            elif priority:
                queue.lowered -= 1
            if job.group_id is None:
                queue.ready.remove(rank_of(job))
            else:
                groups.leave(state, queue, job)


def undelay(state: State, job: Job) -> None:
    """Let a delayed job wait no longer."""
    queue = state.queues[job.queue]
    leave(state, queue, job)
    rejoin_by_options(state, job)
    enter_waiting(state, queue, job)
    state.emit(JobWaiting(queue.name, job.id))


def promote(state: State, job: Job) -> None:
    """Let a delayed job wait no longer though its time has not come."""
    undelay(state, job)
    job.run_at = state.now_ms
    state.emit(JobPromoted(job.queue, job.id))


def rejoin_by_options(state: State, job: Job) -> None:
    """Give a job that comes back, and is in no index, its place: the first of its priority (lifo), or the last if it wants that."""
    if job.opts.lifo:
        if state.level >= 1:
            rejoin(state, job, first=True)
    elif job.opts.rejoin_last:
        state.seq += 1
        job.order = state.seq


def rejoin(state: State, job: Job, *, first: bool) -> None:
    """Give a job that is in no index the first place of its priority, or the last."""
    # A number that no job had as its order: above all, or below those of earlier creations and earlier returns.
    state.seq += 1
    job.order = -state.seq if first else state.seq


def restore(state: State, queue: Queue, job: Job) -> None:
    """Put a job that comes from an image where its record says it is."""
    job_state = job.state
    if job.opts is not DEFAULT:
        job.opts = state.shared(job.opts)
    state.jobs[job.id] = queue.jobs[job.id] = job
    if job.called is not None:
        queue.aside.setdefault(job.called, []).append(job.id)
    priority = job.opts.priority
    if job_state == WAITING:
        if priority > 0:
            queue.prioritized += 1
        elif priority:
            queue.lowered += 1
        if job.group_id is None:
            queue.ready.add(rank_of(job), job)
        else:
            groups.enter(state, queue, job)
    elif job_state == DELAYED:
        queue.delayed.add(due_rank_of(job), job)
    elif job_state == ACTIVE:
        queue.active[job.id] = job
        if job.group_id is not None:
            queue.group(job.group_id).active += 1
    elif job_state == WAITING_CHILDREN:
        queue.waiting_children[job.id] = job
        for job_id in job.dependencies.remaining if job.dependencies is not None else ():
            state.dependents.add(job_id, job)
    elif job_state == COMPLETED:
        queue.completed.add(job.ending, job)
        queue.completed_bytes += weight(job)
    else:
        queue.failed.add(job.ending, job)
        queue.failed_bytes += weight_of_failed(job)
    if priority and job_state in (WAITING, DELAYED):
        queue.priorities[priority] = queue.priorities.get(priority, 0) + 1
    if job.unique_key is not None and not job.finished and not holds_for_a_time(job):
        queue.unique[job.unique_key] = job.id
    if job.due:
        state.timers.enter(job)

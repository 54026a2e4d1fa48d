"""Jobs that wait for the completion of others (`depends_on`), which need be no children of theirs."""

from __future__ import annotations

from quorumq.node.machine.events import FlowCompleted, JobWaiting
from quorumq.node.machine.lifecycle import indexes, parents
from quorumq.node.machine.state.job import COMPLETED, WAITING, WAITING_CHILDREN, Dependencies, Job
from quorumq.node.machine.state.state import State


def wait_for(state: State, job: Job, ids: tuple[str, ...]) -> None:
    """Note what a new job depends on, and park it when something of that is not completed yet."""
    dependencies = job.dependencies
    if dependencies is None:
        dependencies = job.dependencies = Dependencies(ids)
    else:
        dependencies.ids, dependencies.remaining, dependencies.values = ids, [], {}
    for job_id in dict.fromkeys(ids):
        if job_id in state.unreleased:
            dependencies.values[job_id] = state.unreleased[job_id]
            continue
        other = state.jobs.get(job_id)
        if other is not None and other.state == COMPLETED:
            dependencies.values[job_id] = other.result
        elif other is not None:
            dependencies.remaining.append(job_id)
            state.dependents.add(job_id, job)
    if dependencies.remaining:
        parents.park(state, job)


def release_dependents(state: State, done: Job) -> None:
    """Release all jobs that wait for a completed one; what is beyond the entry's bound is left to later entries."""
    count = state.dependents.count(done.id)
    if state.level >= 1:
        cost = sum(map(_cost_of_release, state.dependents.of(done.id))) if count <= state.release_budget else count
        if cost > state.release_budget:
            state.unreleased[done.id] = done.result
            return
        state.release_budget -= cost
    release(state, done.id, done.result, state.dependents.take(done.id, count))


def release_more(state: State, room: int) -> None:
    """Go on with completed jobs whose dependents were too many for one entry; `room` at most."""
    while room > 0 and state.unreleased:
        done_id, result = next(iter(state.unreleased.items()))
        count = 0
        for job in state.dependents.of(done_id):
            room -= _cost_of_release(job)
            count += 1
            if room <= 0:
                break
        part = state.dependents.take(done_id, count)
        if done_id not in state.dependents:
            del state.unreleased[done_id]
        release(state, done_id, result, part)


def release(state: State, done_id: str, result: bytes | None, waiting: list[Job]) -> None:
    for job in waiting:
        dependencies = job.dependencies
        assert dependencies is not None and job.state == WAITING_CHILDREN
        dependencies.remaining.remove(done_id)
        dependencies.values[done_id] = result
        if not dependencies.remaining and not job.pending_children:
            dependencies.done_at = state.now_ms
            queue = state.queues[job.queue]
            state.emit(FlowCompleted(job.id, queue.name, len(set(dependencies.ids))))
            indexes.leave(state, queue, job)
            if job.opts.lifo and state.level >= 1:
                indexes.rejoin(state, job, first=True)
            indexes.enqueue(state, queue, job)
            if job.state == WAITING:
                state.emit(JobWaiting(queue.name, job.id))


def _cost_of_release(job: Job) -> int:
    """Return what it costs to tell a job of the end of one that it waits for: looking for that one among many counts as more."""
    dependencies = job.dependencies
    return 1 if dependencies is None else 1 + len(dependencies.remaining) // 200

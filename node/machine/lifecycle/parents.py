"""A parent of a flow and what becomes of it as its children end, come back or go.

A parent is `waiting-children` while a child of its is pending, and takes its place in its queue when none is. A child completes, and
its parent keeps the result; it fails for good, and its parent goes by what the child says (`OnChildFailure`, finishing.py); it is retried,
and is pending again; it is removed before its end, and its parent waits for it no more. Rules: BullMQ's parents and children (semantics,
section 9), with this of our own: a parent that fails with its child goes to the dead letter queue at once, and its own parent by its own
policy.

Every step here takes as long as one job, whatever the number of children.
"""

from __future__ import annotations

from quorumq.node.machine.events import FlowCompleted, JobWaiting, JobWaitingChildren
from quorumq.node.machine.lifecycle import indexes, stream_events, timing
from quorumq.node.machine.state.job import (
    DELAYED,
    FAILED,
    IGNORED,
    PROCESSED,
    UNSUCCESSFUL,
    WAITING,
    WAITING_CHILDREN,
    ChildEnd,
    Job,
    ceil,
)
from quorumq.node.machine.state.state import State


def parent_of(state: State, child: Job) -> Job | None:
    """Return the job that waits, or waited, for this one, if it still is its parent."""
    links = child.flow
    parent = state.jobs.get(links.parent) if links is not None and links.parent is not None else None
    return parent if parent is not None and parent.flow is not None and child.id in parent.flow.children else None


def completed(state: State, child: Job) -> None:
    """Tell the parent of a job that completed."""
    parent = awaiting(state, child)
    if parent is not None:
        note_end(parent, child, ChildEnd(PROCESSED, child.queue, child.result))
        release_if_ready(state, parent)


def awaiting(state: State, child: Job) -> Job | None:
    """Return the parent for which a child is pending, if there is one."""
    links = child.flow
    parent = state.jobs.get(links.parent) if links is not None and links.parent is not None else None
    return parent if parent is not None and is_pending(parent, child.id) else None


def is_pending(parent: Job, child_id: str) -> bool:
    """Whether a parent waits for this child."""
    flow = parent.flow
    return flow is not None and child_id in flow.children and flow.children[child_id] is None


def note_end(parent: Job, child: Job, end: ChildEnd) -> None:
    """Note how a pending child ended."""
    flow = parent.flow
    assert flow is not None
    flow.children[child.id] = end
    flow.pending -= 1


def drop_child(state: State, child_id: str, parent: Job) -> None:
    """Let a parent wait for a pending child no more."""
    flow = parent.flow
    assert flow is not None
    del flow.children[child_id]
    flow.pending -= 1
    release_if_ready(state, parent)


def release_if_ready(state: State, parent: Job, *, at_once: bool = False) -> None:
    """Give a parent that waits for nothing any more its place; at_once: though children are pending."""
    flow = parent.flow
    assert flow is not None
    if parent.state == WAITING_CHILDREN and (at_once or not flow.pending) and not waits_for_others(parent):
        release(state, parent)


def waits_for_others(job: Job) -> bool:
    """Whether jobs that are no children have to complete first."""
    return job.dependencies is not None and bool(job.dependencies.remaining)


def release(state: State, parent: Job) -> None:
    """Let a parent wait for its children no longer."""
    queue, flow, opts = state.queues[parent.queue], parent.flow, parent.opts
    if flow is not None and all(end is not None and end.how == PROCESSED for end in flow.children.values()):
        state.emit(FlowCompleted(parent.id, parent.queue, len(flow.children)))
    indexes.leave(state, queue, parent)
    parent.run_at = max(parent.run_at, state.now_ms)
    if opts.rejoin_last:
        # BullMQ: its delay counts from now; without a delay and a priority it comes first.
        parent.run_at = state.now_ms + ceil(opts.delay_ms)
        indexes.rejoin(state, parent, first=not opts.priority)
    elif opts.lifo:
        indexes.rejoin(state, parent, first=True)
    indexes.enqueue(state, queue, parent)
    if parent.state == WAITING:
        state.emit(JobWaiting(queue.name, parent.id))


def park(state: State, job: Job) -> None:
    """Let a job that is in no index wait for its children."""
    queue = state.queues[job.queue]
    if state.streaming:
        stream_events.publish_waiting_children(state, job, job.state)
    job.state = WAITING_CHILDREN
    queue.waiting_children[job.id] = job
    state.timers.set(job, timing.due_at(state, job))
    state.emit(JobWaitingChildren(queue.name, job.id))


def revived(state: State, job: Job, was: str) -> None:
    """Let a finished job that runs again be pending for its parent; failed children of its own hold it back no more."""
    links = job.flow
    assert links is not None
    if was == FAILED and links.failed:
        links.children = {
            child_id: ChildEnd(IGNORED, end.queue, reason=end.reason)
            if end is not None and end.how == UNSUCCESSFUL
            else end
            for child_id, end in links.children.items()
        }
        links.failed = 0
    links.waived = False
    parent = parent_of(state, job)
    if parent is None or parent.flow is None:
        return
    flow, end = parent.flow, parent.flow.children[job.id]
    if end is not None:
        flow.failed -= end.how == UNSUCCESSFUL
        flow.children[job.id] = None
        flow.pending += 1
        if parent.state in (WAITING, DELAYED) and not parent.opts.rejoin_last:
            indexes.leave(state, state.queues[parent.queue], parent)
            park(state, parent)


def untie_queue(state: State, name: str) -> None:
    """Let children and parents of one queue that goes as a whole mean nothing to each other."""
    for job in state.queues[name].jobs.values():
        links = job.flow
        if links is not None and links.parent is not None and links.parent_queue == name:
            links.parent = None


def renamed(state: State, job: Job, before: str) -> None:
    """Tie a job that has another id now as it was tied before."""
    links = job.flow
    assert links is not None
    for child_id in links.children:
        child = state.jobs.get(child_id)
        if child is not None and child.flow is not None and child.flow.parent == before:
            child.flow.parent = job.id
    parent = state.jobs.get(links.parent) if links.parent is not None else None
    if parent is not None and parent.flow is not None and before in parent.flow.children:
        flow = parent.flow
        flow.children = {job.id if child_id == before else child_id: end for child_id, end in flow.children.items()}

"""Events of the transitions of jobs, for the streams of events, by BullMQ's kinds (state/bullmq/streams.py).

Callers look at `state.streaming` first, which is empty while no queue has a stream, so that other queues pay nothing.
"""

from __future__ import annotations

from quorumq.node.machine.state.bullmq import streams
from quorumq.node.machine.state.job import WAITING, WAITING_CHILDREN, Job, own_id
from quorumq.node.machine.state.queue import Queue
from quorumq.node.machine.state.state import State


def publish(state: State, job: Job, kind: str, *values: streams.Value) -> None:
    """Append an event of a job to the stream of its queue, if that has one."""
    if job.queue in state.streaming:
        state.bullmq.streams.add(state.now_ms, job.queue, kind, own_id(job), *values)


def publish_of_queue(state: State, queue: str, kind: str, *values: streams.Value) -> None:
    """Append an event of a queue to its stream, if it has one."""
    if queue in state.streaming:
        state.bullmq.streams.add(state.now_ms, queue, kind, *values)


def publish_if_drained(state: State, queue: Queue) -> None:
    """Publish `drained` after a run if the queue has nothing left to do and no other job is about to follow."""
    name = queue.name
    if (
        name in state.streaming
        and not queue.active
        and not queue.waiting_count
        and name not in state.bullmq.facts.released
    ):
        state.bullmq.streams.add(state.now_ms, name, streams.DRAINED)


def publish_added(state: State, job: Job) -> None:
    """A job is new; its place follows."""
    publish(state, job, streams.ADDED, job.opts.name)


def publish_first_state(state: State, job: Job) -> None:
    """Publish that a new job waits. That it is delayed, or waits for others, was published where it entered that index."""
    if job.state == WAITING:
        publish(state, job, WAITING)


def publish_waiting(state: State, job: Job, before: str) -> None:
    """A job that was elsewhere before waits now."""
    if before != WAITING:
        publish(state, job, WAITING, before)


def publish_waiting_children(state: State, job: Job, before: str) -> None:
    """A job waits for others; before: as new jobs are `waiting` until they have a place, that is told of none."""
    publish(state, job, WAITING_CHILDREN, None if before in (WAITING, WAITING_CHILDREN) else before)


def publish_removed(state: State, job: Job, before: str) -> None:
    """A job is gone; one that waited is named by its place: `wait`, or `prioritized` with a priority."""
    if before == WAITING:
        before = "prioritized" if job.opts.priority < 0 else "wait"
    publish(state, job, streams.REMOVED, before)

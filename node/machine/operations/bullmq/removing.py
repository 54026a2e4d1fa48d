"""Removing jobs over the backend protocol: one, with its children, by state and age, or a queue as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice
from operator import attrgetter
from typing import Literal

import msgspec

from quorumq.node.machine import events as happened
from quorumq.node.machine.bounds import JobId, QueueName
from quorumq.node.machine.lifecycle import crons, flows, parents, queues, removal, repetition
from quorumq.node.machine.lifecycle.bullmq import running
from quorumq.node.machine.lifecycle.stream_events import publish_of_queue as publish
from quorumq.node.machine.operation import Entry, Operation, operation
from quorumq.node.machine.operations.jobs import GOES_ON
from quorumq.node.machine.refusals import BullmqError, FlowTooLarge
from quorumq.node.machine.state import State
from quorumq.node.machine.state.bullmq.names import find
from quorumq.node.machine.state.job import ACTIVE, COMPLETED, FAILED, Job, own_id
from quorumq.node.machine.state.queue import Queue

CLEANED_MAX = 10_000
"""Jobs that one operation cleans; BullMQ asks for no more at once."""
NOT_PAUSED, HAS_ACTIVE = -1, -2


@operation(emits=(happened.JobRemoved, *GOES_ON), refuses=(FlowTooLarge,), since=1)
class RemoveNamed(Operation, frozen=True, tag="bullmq.remove"):
    """Remove a job in any state; True when it is gone. Not one that a worker holds under a lock.

    children: with all jobs below it, of which none may be held either.
    """

    queue: QueueName
    job_id: JobId
    children: bool = False

    def apply(self, state: State, entry: Entry) -> bool:
        job = find(state, self.queue, self.job_id)
        if job is None:
            return True
        below = flows.descendants(state, job) if self.children else []
        if any(running.is_locked(state, each) for each in (job, *below)):
            return False
        for each in (*reversed(below), job):
            removal.remove(state, each)
        return True


@operation(emits=(happened.JobRemoved, *GOES_ON), refuses=(FlowTooLarge,), since=1)
class RemoveUnprocessed(Operation, frozen=True, tag="bullmq.remove_unprocessed"):
    """Remove the jobs below a job that neither ended nor are being worked on; it waits for them no more."""

    queue: QueueName
    job_id: JobId

    def apply(self, state: State, entry: Entry) -> None:
        job = find(state, self.queue, self.job_id)
        for child in [] if job is None else reversed(flows.descendants(state, job, unprocessed=True)):
            removal.remove(state, child)


@operation(emits=GOES_ON, refuses=(BullmqError,), since=1)
class RemoveDependency(Operation, frozen=True, tag="bullmq.remove_dependency"):
    """Let a parent wait for a job no more that is its pending child; True when it was one.

    parents: queue and id; the parent is the first that is there.
    """

    queue: QueueName
    job_id: JobId
    parents: list[tuple[QueueName, JobId]] = []

    def apply(self, state: State, entry: Entry) -> bool:
        job = running.job_of(state, self.queue, self.job_id)
        parent = next(filter(None, (find(state, *each) for each in self.parents)), None)
        if parent is None:
            raise BullmqError(running.MISSING_PARENT, self.job_id)
        if parents.parent_of(state, job) is not parent or not flows.detach(state, job):
            return False
        record = job.named()
        record.parent_key = record.parent = None
        return True


CleanedState = Literal["completed", "failed", "delayed", "wait", "active", "paused", "prioritized", "waiting-children"]


@operation(emits=(happened.QueueCleaned, happened.JobRemoved, *GOES_ON), since=1)
class CleanNamed(Operation, frozen=True, tag="bullmq.clean"):
    """Remove jobs in a state that are of until_ms or before, oldest first; at most `limit`, 0 for CLEANED_MAX. Answers their ids.

    Finished ones by their end, active ones that nobody holds by their start, others by their creation. What repeats keeps its next job.
    """

    queue: QueueName
    state: CleanedState = COMPLETED
    until_ms: int | None = None
    limit: int = 0

    def apply(self, state: State, entry: Entry) -> list[str]:
        queue = state.queues.get(self.queue)
        if queue is None:
            return []
        limit = min(self.limit, CLEANED_MAX) if self.limit > 0 else CLEANED_MAX
        until = state.now_ms if self.until_ms is None else self.until_ms
        is_pending = repetition.pending(state, queue)
        old = (job for job in self.candidates(state, queue) if self.since(job) <= until and not is_pending(job))
        found = list(islice(old, limit))
        for job in found:
            if job.state != "removed":
                removal.delete(state, job, hard=True)
        state.emit(happened.QueueCleaned(queue.name, self.state, len(found)))
        publish(state, queue.name, "cleaned", len(found))
        return [own_id(job) for job in found]

    def candidates(self, state: State, queue: Queue) -> Iterable[Job]:
        """Return the jobs of the state, those first that it means to remove first."""
        if self.state in (COMPLETED, FAILED):
            return queue.completed if self.state == COMPLETED else queue.failed
        if self.state == "delayed":
            return queue.delayed
        if self.state == ACTIVE:
            return (job for job in queue.active.values() if not running.is_locked(state, job))
        if self.state == "waiting-children":
            return queue.waiting_children.values()
        if self.state == "paused":
            return ()
        wants_priority = self.state == "prioritized"
        waiting = [job for job in queue.waiting() if (job.opts.priority != 0) == wants_priority]
        return sorted(waiting, key=attrgetter("seq"))

    def since(self, job: Job) -> int:
        """Return what a job's age is counted from."""
        if self.state in (COMPLETED, FAILED):
            return job.finished_at or 0
        record = job.record
        made = job.created_at if record is None or self.state == ACTIVE else min(job.created_at, record.timestamp)
        return (job.processed_at or made) if self.state != "prioritized" else made


class Obliterated(msgspec.Struct, frozen=True, gc=False):
    """error: 0, -1 for a queue that is not paused, -2 for one with active jobs.  more: whether there are jobs left."""

    error: int = 0
    more: bool = False


@operation(emits=(happened.QueueObliterated, happened.CronDeleted, happened.JobRemoved, *GOES_ON), since=1)
class ObliterateNamed(Operation, frozen=True, tag="bullmq.obliterate"):
    """Destroy a paused queue with all its jobs, `count` of them at most; when none is left, with its settings and counters.

    force: also while jobs are active.
    """

    queue: QueueName
    count: int = 1_000
    force: bool = False

    def apply(self, state: State, entry: Entry) -> Obliterated:
        queue = state.queues.get(self.queue)
        if queue is None or not queue.settings.paused:
            return Obliterated(NOT_PAUSED)
        if queue.active and not self.force:
            return Obliterated(HAS_ACTIVE)
        left = min(max(self.count, 1), CLEANED_MAX)
        order = chain(
            queue.active.values(), queue.delayed, queue.completed, queue.waiting(), queue.failed,
            queue.waiting_children.values(),
        )  # fmt: skip
        for job in list(islice(order, left)):
            if job.state != "removed":
                removal.delete(state, job, hard=True)
        if queue.jobs:
            return Obliterated(0, more=True)
        crons.stop_repeating(state, self.queue)
        queues.obliterate(state, queue)
        state.emit(happened.QueueObliterated(self.queue))
        return Obliterated()

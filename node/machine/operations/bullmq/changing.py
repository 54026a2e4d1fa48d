"""Changing a job, or many, over the backend protocol: data, progress, delay, priority, further runs, and who keeps others away."""

from __future__ import annotations

from itertools import takewhile
from typing import Literal

from quorumq.node.machine import events as happened
from quorumq.node.machine.bounds import JobId, Key, QueueName, RawJson
from quorumq.node.machine.lifecycle import changes, indexes, revival, runs, unique_keys
from quorumq.node.machine.lifecycle.bullmq import running
from quorumq.node.machine.lifecycle.stream_events import publish_of_queue as publish
from quorumq.node.machine.operation import Entry, Operation, Query, operation, query
from quorumq.node.machine.refusals import BullmqError
from quorumq.node.machine.state import State
from quorumq.node.machine.state.bullmq.names import find
from quorumq.node.machine.state.job import DELAYED, FAILED, Job, ceil, own_id, unscoped

STEP_MAX = 5_000
"""Jobs that one operation promotes or retries; whoever asks for more is told to go on."""


@operation(emits=(happened.JobDataUpdated,), refuses=(BullmqError,), since=1)
class UpdateNamedData(Operation, frozen=True, tag="bullmq.update_data"):
    """Replace the data of a job in any state."""

    queue: QueueName
    job_id: JobId
    data: RawJson

    def apply(self, state: State, entry: Entry) -> None:
        job = running.job_of(state, self.queue, self.job_id)
        changes.replace_data(state, job, self.data)
        state.emit(happened.JobDataUpdated(job.queue, job.id))


@operation(emits=(happened.JobProgressed,), refuses=(BullmqError,), since=1)
class UpdateNamedProgress(Operation, frozen=True, tag="bullmq.update_progress"):
    """Note how far a job has come, in any state. value: any JSON.  number: the same as a number, if it is one."""

    queue: QueueName
    job_id: JobId
    value: RawJson
    number: int | float | None = None

    def apply(self, state: State, entry: Entry) -> None:
        job = running.job_of(state, self.queue, self.job_id)
        if self.number is not None:
            job.progress = min(max(self.number, 0), 100)
        job.named().progress_json = self.value
        state.emit(happened.JobProgressed(job.queue, job.id, job.progress))
        publish(state, job.queue, "progress", own_id(job), self.value)


@operation(emits=(happened.JobDelayed, happened.JobDelayChanged), refuses=(BullmqError,), since=1)
class ChangeNamedDelay(Operation, frozen=True, tag="bullmq.change_delay"):
    """Let a delayed job become ready delay_ms from now."""

    queue: QueueName
    job_id: JobId
    delay_ms: int | float

    def apply(self, state: State, entry: Entry) -> None:
        job = running.job_of(state, self.queue, self.job_id)
        if job.state != DELAYED:
            raise BullmqError(running.WRONG_STATE, self.job_id)
        job.named().delay = ceil(max(self.delay_ms, 0))
        runs.delay(state, job, self.delay_ms, always=True)
        state.emit(happened.JobDelayChanged(job.queue, job.id, self.delay_ms))


@operation(emits=(happened.JobPriorityChanged, happened.JobDelayed), refuses=(BullmqError,), since=1)
class ChangeNamedPriority(Operation, frozen=True, tag="bullmq.change_priority"):
    """Give a job another priority, the lower the sooner, 0 for before all; one that waits moves there. lifo: in front of its equals."""

    queue: QueueName
    job_id: JobId
    priority: int = 0
    lifo: bool = False

    def apply(self, state: State, entry: Entry) -> None:
        job = running.job_of(state, self.queue, self.job_id)
        changes.change_priority(state, job, -self.priority, first=self.lifo)
        state.emit(happened.JobPriorityChanged(job.queue, job.id, -self.priority))


@operation(emits=(happened.JobWaiting, happened.JobPromoted), refuses=(BullmqError,), since=1)
class PromoteNamed(Operation, frozen=True, tag="bullmq.promote"):
    """Let a delayed job wait no longer."""

    queue: QueueName
    job_id: JobId

    def apply(self, state: State, entry: Entry) -> None:
        job = find(state, self.queue, self.job_id)
        if job is None or job.state != DELAYED:
            raise BullmqError(running.WRONG_STATE, self.job_id)
        indexes.promote(state, job)


@operation(emits=(happened.JobWaiting, happened.JobPromoted), since=1)
class PromoteAllNamed(Operation, frozen=True, tag="bullmq.promote_jobs"):
    """Let delayed jobs wait no longer, those due first first. Answers whether there are more."""

    queue: QueueName
    count: int = 1_000

    def apply(self, state: State, entry: Entry) -> bool:
        queue = state.queues.get(self.queue)
        if queue is None:
            return False
        for job in queue.delayed.slice(0, min(max(self.count, 1), STEP_MAX)):
            indexes.promote(state, job)
        return len(queue.delayed) > 0


@operation(emits=(happened.JobWaiting, happened.JobWaitingChildren), refuses=(BullmqError,), since=1)
class RetryNamed(Operation, frozen=True, tag="bullmq.retry"):
    """Let a finished job wait once more: behind the others of its priority, or first if it is lifo; its parent waits for it again.

    reset_made, reset_started: its runs, or starts, are counted from zero.
    """

    queue: QueueName
    job_id: JobId
    state: Literal["failed", "completed"] = FAILED
    reset_made: bool = False
    reset_started: bool = False

    def apply(self, state: State, entry: Entry) -> None:
        job = running.job_of(state, self.queue, self.job_id)
        if job.state != self.state:
            raise BullmqError(running.WRONG_STATE, self.job_id)
        revival.rerun(state, job, reset_attempts=self.reset_made)
        if self.reset_started:
            job.named().starts -= job.starts


@operation(emits=(happened.JobWaiting, happened.JobWaitingChildren), since=1)
class RetryAllNamed(Operation, frozen=True, tag="bullmq.retry_jobs"):
    """Let finished jobs wait once more that ended by until_ms (None: now), oldest first. Answers whether there are more."""

    queue: QueueName
    state: Literal["failed", "completed"] = FAILED
    count: int = 1_000
    until_ms: int | None = None

    def apply(self, state: State, entry: Entry) -> bool:
        queue = state.queues.get(self.queue)
        if queue is None:
            return False
        count = min(max(self.count, 1), STEP_MAX)
        until = state.now_ms if self.until_ms is None else self.until_ms
        # One more than is done says whether there are more.
        ended = (queue.failed if self.state == FAILED else queue.completed).slice(0, count + 1)
        found = list(takewhile(lambda job: (job.finished_at or 0) <= until, ended))
        for job in found[:count]:
            revival.rerun(state, job)
        return len(found) > count


@operation(since=1)
class FreeNamedKey(Operation, frozen=True, tag="bullmq.free_key"):
    """Give a deduplication id back, so that the next add with it adds a job. job_id: only if that job holds it. True when it was held."""

    queue: QueueName
    key: Key
    job_id: JobId | None = None

    def apply(self, state: State, entry: Entry) -> bool:
        queue = state.queues.get(self.queue)
        holder = None if queue is None else unique_keys.holder_of(state, queue, self.key)
        if queue is None or holder is None:
            return False
        job = state.jobs.get(holder)
        if self.job_id is not None and (job is None or job is not find(state, self.queue, self.job_id)):
            return False
        unique_keys.free_key(state, queue, self.key)
        state.bullmq.facts.release(self.queue, self.key, drop=True)
        if job is not None and job.unique_key == self.key:
            job.unique_key = None
        return True


# -- Questions


@query
class FindNamed(Query, frozen=True):
    """The record of a job by its queue and its id there; None for no job."""

    queue: QueueName
    job_id: JobId

    def answer(self, state: State) -> Job | None:
        return find(state, self.queue, self.job_id)


@query
class NamedKeyHolder(Query, frozen=True):
    """The id, within its queue, of the job that holds a deduplication id; None when none does."""

    queue: QueueName
    key: Key

    def answer(self, state: State) -> str | None:
        queue = state.queues.get(self.queue)
        holder = None if queue is None else unique_keys.holder_of(state, queue, self.key)
        return None if holder is None else unscoped(self.queue, holder)

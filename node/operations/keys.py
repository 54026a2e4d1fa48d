"""Unique keys of a queue's unfinished jobs: whose they are, and how to give one back before its job has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from node.operation import Operation, Query, operation, query
from node.operations.jobs import Counted, JobId, QueueName

if TYPE_CHECKING:
    from node.machine import Entry
    from node.state import State

UniqueKey = Annotated[str, Meta(description="A job's uniqueKey.")]


@query
class GetKeyHolder(Query, frozen=True):
    """The id of the unfinished job that has a unique key; None when none has."""

    queue: QueueName
    key: UniqueKey

    def answer(self, state: State) -> str | None:
        queue = state.queues.get(self.queue)
        return None if queue is None else state.holder_of(queue, self.key)


@operation()
class FreeKey(Operation, frozen=True, tag="key.free"):
    """Give a unique key back, so that the next push with it adds a job; the job that has it goes on without."""

    queue: QueueName
    key: UniqueKey

    def apply(self, state: State, entry: Entry) -> Counted:
        return Counted(free(state, self.queue, self.key))


@operation()
class FreeKeyOfJob(Operation, frozen=True, tag="key.free_of_job"):
    """Give the unique key of a job back, if it has one."""

    job_id: JobId

    def apply(self, state: State, entry: Entry) -> Counted:
        job = state.jobs.get(self.job_id)
        if job is None or job.unique_key is None or state.queues[job.queue].unique.get(job.unique_key) != job.id:
            return Counted(0)
        return Counted(free(state, job.queue, job.unique_key))


def free(state: State, name: str, key: str) -> int:
    """Take a unique key from whoever has it. Returns how many keys that were."""
    queue = state.queues.get(name)
    holder = None if queue is None else state.holder_of(queue, key)
    if queue is None or holder is None:
        return 0
    state.free_key(queue, key)
    job = state.jobs.get(holder)
    if job is not None and job.queue == name and job.unique_key == key:
        job.unique_key = None
    state.mark += 107
    return 1

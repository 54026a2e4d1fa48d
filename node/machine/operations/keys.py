"""Unique keys of a queue's unfinished jobs: whose they are, and how to give one back before its job has ended."""

from __future__ import annotations

from typing import Annotated

from quorumq.node.machine.bounds import PATH_CHARS_MAX, JobId, QueueName, bounded
from quorumq.node.machine.lifecycle import unique_keys
from quorumq.node.machine.operation import Entry, Operation, Query, operation, query
from quorumq.node.machine.operations.jobs import Counted
from quorumq.node.machine.refusals import JobNotFound
from quorumq.node.machine.state import State

UniqueKey = Annotated[str, bounded(PATH_CHARS_MAX, "A job's uniqueKey.")]


@query
class GetKeyHolder(Query, frozen=True):
    """The id of the unfinished job that has a unique key; None when none has."""

    queue: QueueName
    key: UniqueKey

    def answer(self, state: State) -> str | None:
        queue = state.queues.get(self.queue)
        return None if queue is None else unique_keys.holder_of(state, queue, self.key)


@operation()
class FreeKey(Operation, frozen=True, tag="key.free"):
    """Give a unique key back, so that the next push with it adds a job; the job that has it goes on without."""

    queue: QueueName
    key: UniqueKey

    def apply(self, state: State, entry: Entry) -> Counted:
        return Counted(unique_keys.take_back(state, self.queue, self.key))


@operation(refuses=(JobNotFound,), newer={"known": 1})
class FreeKeyOfJob(Operation, frozen=True, tag="key.free_of_job"):
    """Give the unique key of a job back, if it has one.

    known: refused for an unknown job.
    """

    job_id: JobId
    known: bool = False

    def apply(self, state: State, entry: Entry) -> Counted:
        if self.known and state.level >= 1:
            state.job(self.job_id)
        job = state.jobs.get(self.job_id)
        if job is None or job.unique_key is None or state.queues[job.queue].unique.get(job.unique_key) != job.id:
            return Counted(0)
        return Counted(unique_keys.take_back(state, job.queue, job.unique_key))

"""Adding jobs by BullMQ's rules: a job is called by a number of its queue or by a name of the client's, unique in the queue.

The table of jobs knows it as `bull:{queue}:{own}`; whoever asks by queue and own id finds jobs of the other dialects, too.
"""

from __future__ import annotations

import msgspec

from quorumq.node.machine import events as happened
from quorumq.node.machine.bounds import JobId, QueueName
from quorumq.node.machine.lifecycle import creation
from quorumq.node.machine.operation import Entry, Operation, Query, operation, query
from quorumq.node.machine.operations.jobs import GOES_ON
from quorumq.node.machine.refusals import JobNotFound, TooManyQueues
from quorumq.node.machine.state import State
from quorumq.node.machine.state.job import Job, JobSpec, scoped_id


class Added(msgspec.Struct, frozen=True, gc=False):
    """Ids within the queue, in the order of the jobs added; for a duplicate the id of the job that stands for it.

    duplicates: beside ids, whether nothing was added.  at_ms: when it happened.
    """

    ids: list[str]
    duplicates: list[bool]
    at_ms: int


@operation(
    emits=(
        happened.QueueCreated,
        happened.JobPushed,
        happened.JobDuplicated,
        happened.JobRemoved,
        happened.JobExpired,
        *GOES_ON,
    ),
    refuses=(TooManyQueues,),
)
class AddJobs(Operation, frozen=True, tag="job.add"):
    """Add jobs to a queue, all of them. A spec's id is its id within the queue; empty for the queue's next number.

    A job of the same id keeps a new one away whatever its state, and so does one that holds its unique key by the rules of
    the new one's `Options.dedup`. Every job added consumes a number, duplicates and those with an id of their own too.
    """

    queue: QueueName
    jobs: list[JobSpec]

    def apply(self, state: State, entry: Entry) -> Added:
        ids, duplicates = creation.add(state, self.queue, self.jobs)
        prefix = scoped_id(self.queue, "")
        return Added([job_id.removeprefix(prefix) for job_id in ids], duplicates, state.now_ms)


def resolve(state: State, queue: str, own: str) -> Job:
    """Return the job that is called `own` in a queue, else the one of that queue whose whole id it is. Raises JobNotFound."""
    job = state.jobs.get(scoped_id(queue, own))
    if job is None:
        job = state.jobs.get(own)
        if job is None or job.queue != queue:
            raise JobNotFound(own)
    return job


@query
class FindJob(Query, frozen=True):
    """The record of a job by its queue and its id there."""

    queue: QueueName
    own: JobId

    def answer(self, state: State) -> Job:
        return resolve(state, self.queue, self.own)

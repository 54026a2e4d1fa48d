"""Dead letter queues: what is in one, and what is retried, dropped or removed of it."""

from __future__ import annotations

from itertools import islice

import msgspec

from quorumq.node.machine import events as happened
from quorumq.node.machine.bounds import JobId, QueueName
from quorumq.node.machine.lifecycle import removal, revival
from quorumq.node.machine.operation import Entry, Operation, Query, operation, query
from quorumq.node.machine.operations.dlq_filter import DlqFilter
from quorumq.node.machine.operations.jobs import GOES_ON, Counted
from quorumq.node.machine.operations.queues import finished_jobs
from quorumq.node.machine.state import State
from quorumq.node.machine.state.job import FAILED, Job


@operation(
    emits=(happened.DlqRetried, happened.DlqRetriedAll, happened.JobWaitingChildren),
    newer={"filter": 1},
)
class RetryDlq(Operation, frozen=True, tag="dlq.retry"):
    """Let one job of a dead letter queue, or all of them, run again with their attempts from zero; the oldest first.

    count: at most so many.  so_far: jobs that entries before this one revived, which reply and event count as well.
    part: such an entry, of which no event tells.  filter: only those that meet its conditions; job_id counts for nothing then.
    """

    queue: QueueName
    job_id: JobId | None = None
    count: int | None = None
    so_far: int = 0
    part: bool = False
    filter: DlqFilter | None = None

    def apply(self, state: State, entry: Entry) -> Counted:
        jobs = self.jobs(state)
        for job in jobs:
            revival.revive(state, job)
        count = self.so_far + len(jobs)
        if self.part:
            return Counted(count)
        if self.job_id is None or self.filter is not None:
            state.emit(happened.DlqRetriedAll(self.queue, count))
        elif jobs:
            state.emit(happened.DlqRetried(self.queue, jobs[0].id))
        return Counted(count)

    def jobs(self, state: State) -> list[Job]:
        if self.filter is None or state.level < 1:
            return finished_jobs(state, self.queue, FAILED, self.job_id, self.count)
        queue = state.queues.get(self.queue)
        if queue is None or (self.count is not None and self.count <= 0):
            return []
        return list(islice(self.filter.chosen(queue, state.now_ms), self.count))


@operation(emits=(happened.DlqPurged, *GOES_ON))
class PurgeDlq(Operation, frozen=True, tag="dlq.purge"):
    """Remove all jobs of a dead letter queue for good.

    count, so_far, part: as for dlq.retry.
    """

    queue: QueueName
    count: int | None = None
    so_far: int = 0
    part: bool = False

    def apply(self, state: State, entry: Entry) -> Counted:
        jobs = finished_jobs(state, self.queue, FAILED, None, self.count)
        for job in jobs:
            removal.delete(state, job)
        count = self.so_far + len(jobs)
        if not self.part:
            state.emit(happened.DlqPurged(self.queue, count))
        return Counted(count)


@operation(emits=(happened.JobRemoved, *GOES_ON))
class RemoveDeadJob(Operation, frozen=True, tag="dlq.remove"):
    """Remove one job of a dead letter queue for good."""

    queue: QueueName
    job_id: JobId

    def apply(self, state: State, entry: Entry) -> Counted:
        jobs = finished_jobs(state, self.queue, FAILED, self.job_id)
        for job in jobs:
            removal.remove(state, job)
        return Counted(len(jobs))


class DlqPage(msgspec.Struct, frozen=True, gc=False):
    """Jobs of a dead letter queue, oldest first. total: all it holds.  max_age_ms: how long it keeps one, None for ever."""

    jobs: list[Job]
    total: int
    max_age_ms: int | None


@query
class ListDlq(Query, frozen=True):
    """Jobs of a queue's dead letter queue, oldest first. filter: only those that meet its conditions, which the total counts then."""

    queue: QueueName
    limit: int | None = 100
    offset: int = 0
    filter: DlqFilter | None = None

    def answer(self, state: State) -> DlqPage:
        queue = state.queues.get(self.queue)
        if queue is None:
            return DlqPage([], 0, None)
        if self.filter is not None:
            found = list(self.filter.chosen(queue, state.now_ms))
            begin = max(self.offset, 0)
            page = found[begin : None if self.limit is None else begin + max(self.limit, 0)]
            return DlqPage(page, len(found), queue.settings.dlq.max_age_ms)
        jobs = [] if self.limit is not None and self.limit <= 0 else queue.failed.slice(max(self.offset, 0), self.limit)
        return DlqPage(jobs, len(queue.failed), queue.settings.dlq.max_age_ms)

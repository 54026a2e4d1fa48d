"""Log lines of jobs by BullMQ's rules: as many as there are bytes for, and pages of them from either end."""

from __future__ import annotations

import msgspec

from quorumq.node.machine.bounds import JobId, LongText, QueueName
from quorumq.node.machine.operation import Entry, Operation, Query, operation, query
from quorumq.node.machine.operations.adding import resolve
from quorumq.node.machine.operations.bullmq.lists import found
from quorumq.node.machine.operations.jobs import Counted
from quorumq.node.machine.refusals import JobNotFound
from quorumq.node.machine.state import State
from quorumq.node.machine.state.job import LogLine


@operation(refuses=(JobNotFound,), since=1)
class AppendLog(Operation, frozen=True, tag="bullmq.add_log"):
    """Attach a line to a job, of which the last `keep` stay. Answers how many it has: 10,000 at most, of a megabyte together."""

    queue: QueueName
    own: JobId
    message: LongText
    keep: int | None = None

    def apply(self, state: State, entry: Entry) -> Counted:
        job = resolve(state, self.queue, self.own)
        return Counted(state.logs.add_long(job.id, LogLine(state.now_ms, "info", self.message), self.keep))


@operation(since=1)
class CutLog(Operation, frozen=True, tag="bullmq.clear_logs"):
    """Drop a job's lines but for the last `keep`; nothing happens where there is no such job."""

    queue: QueueName
    own: JobId
    keep: int = 0

    def apply(self, state: State, entry: Entry) -> None:
        job = found(state, self.queue, self.own)
        if job is not None:
            state.logs.clear(job.id, self.keep)


class LogPage(msgspec.Struct, frozen=True, gc=False):
    """Some lines of a job. count: how many it has."""

    lines: list[str]
    count: int


@query
class ListLog(Query, frozen=True):
    """Lines of a job from place `start` to `end`, both included, negative ones from the end: counted from the oldest, or the newest (asc).

    A page that counts from the newest begins with that.
    """

    queue: QueueName
    own: JobId
    start: int = 0
    end: int = -1
    asc: bool = True

    def answer(self, state: State) -> LogPage:
        job = found(state, self.queue, self.own)
        lines = [] if job is None else state.logs.by_job.get(job.id, [])
        size = len(lines)
        first, last = (place + size if place < 0 else place for place in (self.start, self.end))
        first, last = max(first, 0), min(last, size - 1)
        if first > last:
            return LogPage([], size)
        page = lines[first : last + 1] if self.asc else lines[size - 1 - last : size - first][::-1]
        return LogPage([line.message for line in page], size)

"""What a queue did minute by minute."""

from __future__ import annotations

from typing import Literal

import msgspec

from quorumq.node.machine.bounds import QueueName
from quorumq.node.machine.operation import Query, query
from quorumq.node.machine.state import State
from quorumq.node.machine.state.job import COMPLETED


class Series(msgspec.Struct, frozen=True, gc=False):
    """Ends of jobs. total: since the queue is there.  last_at, last_count: of the last minute in which there were any.

    counts: of each minute, the last one first.
    """

    total: int = 0
    last_at: int = 0
    last_count: int = 0
    counts: list[int] = []


@query
class GetSeries(Query, frozen=True):
    """How many jobs of a queue completed, or failed for good, in each minute; nothing for an unknown queue."""

    queue: QueueName
    kind: Literal["completed", "failed"]

    def answer(self, state: State) -> Series:
        queue = state.queues.get(self.queue)
        if queue is None:
            return Series()
        completed = self.kind == COMPLETED
        minutes = queue.completions if completed else queue.failures
        total = queue.counters.completed if completed else queue.counters.failed
        if minutes is None:
            return Series(total)
        return Series(total, minutes.last_at, minutes.last_count, minutes.series())

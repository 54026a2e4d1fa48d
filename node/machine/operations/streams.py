"""What streams of events need of the state: that nodes without a listener keep events too, and figures to warn of."""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

from quorumq.node.machine.operation import Entry, Operation, Query, operation, query
from quorumq.node.machine.state import State


@operation()
class KeepEvents(Operation, frozen=True, tag="stream.keep"):
    """Have every node collect events for a while, because one of them has a client that may go on at another.

    for_ms: how long, from now.
    """

    for_ms: int

    def apply(self, state: State, entry: Entry) -> None:
        state.events_until = max(state.events_until, state.now_ms + self.for_ms)


class Load(NamedTuple):
    """How full a queue is. queued: jobs that wait or are delayed.  moves: how many pushes, starts and ends it has seen."""

    name: str
    queued: int
    active: int
    moves: int


@query
class QueueLoads(Query, frozen=True):
    """How full the queues are, the oldest first, up to `limit` of them."""

    limit: int

    def answer(self, state: State) -> list[Load]:
        loads: list[Load] = []
        for queue in islice(state.listed_queues(), max(self.limit, 0)):
            seen = queue.counters
            moves = seen.pushed + seen.pulled + seen.completed + seen.failed
            loads.append(Load(queue.name, queue.waiting_count + len(queue.delayed), len(queue.active), moves))
        return loads

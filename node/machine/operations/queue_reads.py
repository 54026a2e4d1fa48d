"""What can be asked about queues: figures, and lists of their jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import merge
from itertools import chain, islice

import msgspec

from quorumq.node.machine.bounds import Key, QueueName
from quorumq.node.machine.operation import Query, query
from quorumq.node.machine.state import State
from quorumq.node.machine.state.job import ACTIVE, COMPLETED, DELAYED, FAILED, WAITING, WAITING_CHILDREN, Job, rank_of
from quorumq.node.machine.state.queue import Queue, QueueCounters
from quorumq.node.machine.state.ranked import Ranked

# Jobs that one question sorts: some fifty milliseconds of the asked node.
SORTED_MAX = 50_000


class Counts(msgspec.Struct, gc=False):
    """Jobs of a queue by state. waiting: all that may be taken, prioritized: those of them with a priority above zero.

    lowered: those with one below zero, which BullMQ calls prioritized.
    paused: whether the queue is; how its waiting jobs are shown then is the dialect's affair.
    """

    waiting: int = 0
    prioritized: int = 0
    delayed: int = 0
    active: int = 0
    waiting_children: int = 0
    completed: int = 0
    failed: int = 0
    paused: bool = False
    lowered: int = 0

    def add(self, queue: Queue) -> None:
        """Add a queue's jobs to the sums."""
        self.waiting += queue.waiting_count
        self.prioritized += queue.prioritized
        self.lowered += queue.lowered
        self.delayed += len(queue.delayed)
        self.active += len(queue.active)
        self.waiting_children += len(queue.waiting_children)
        self.completed += len(queue.completed)
        self.failed += len(queue.failed)


class Total(msgspec.Struct, gc=False):
    """Sums over all queues: jobs by state, and how many went through since the beginning, also those that are no more."""

    queues: int
    counts: Counts
    pushed: int = 0
    pulled: int = 0
    completed: int = 0
    failed: int = 0


class QueueFigure(msgspec.Struct, frozen=True, gc=False):
    """What there is to say of a queue in numbers. ready_at: since when the job is ready that has been so longest."""

    name: str
    counts: Counts
    counters: QueueCounters
    ready_at: int | None


@query
class QueueCounts(Query, frozen=True):
    """Jobs of a queue by state; all zero for an unknown queue."""

    queue: QueueName

    def answer(self, state: State) -> Counts:
        counts = Counts()
        queue = state.queues.get(self.queue)
        if queue is not None:
            counts.add(queue)
            counts.paused = queue.settings.paused
        return counts


@query
class PriorityCounts(Query, frozen=True):
    """Waiting and delayed jobs of a queue by priority, lowest first."""

    queue: QueueName

    def answer(self, state: State) -> dict[int, int]:
        queue = state.queues.get(self.queue)
        return {} if queue is None else queue.priority_counts()


@query
class ListQueues(Query, frozen=True):
    """Names of all queues that have had a job, in order of creation."""

    def answer(self, state: State) -> list[str]:
        return [queue.name for queue in state.listed_queues()]


@query
class IsPaused(Query, frozen=True):
    """Whether a queue gives out no jobs."""

    queue: QueueName

    def answer(self, state: State) -> bool:
        queue = state.queues.get(self.queue)
        return queue is not None and queue.settings.paused


@query
class ListJobs(Query, frozen=True):
    """Jobs of a queue, highest priority first, oldest first among equals; completed and failed ones oldest first.

    state: waiting, prioritized, delayed, active, waiting-children, completed, failed or paused, or several of them; None for
    every state. More than SORTED_MAX that would have to be sorted come as they stand: state by state, delayed ones in the order
    in which they are due, active ones as they were taken.
    """

    queue: QueueName
    state: Key | tuple[Key, ...] | None = None
    limit: int | None = None
    offset: int = 0

    def answer(self, state: State) -> list[Job]:
        queue = state.queues.get(self.queue)
        if queue is None or (self.limit is not None and self.limit <= 0):
            return []
        return self.of(queue)

    def of(self, queue: Queue) -> list[Job]:
        limit, offset = self.limit, max(self.offset, 0)
        if self.state is None or isinstance(self.state, tuple):
            others = (
                (DELAYED, queue.delayed),
                (ACTIVE, queue.active.values()),
                (WAITING_CHILDREN, queue.waiting_children.values()),
                (COMPLETED, queue.completed),
                (FAILED, queue.failed),
            )
            if sum(queue.count(name) for name, _ in others if self.wants(name)) > SORTED_MAX:
                return self.unsorted(queue)
            # The waiting jobs may be a million and are in order already; the others are few.
            rest = sorted(chain.from_iterable(jobs for name, jobs in others if self.wants(name)), key=rank_of)
            waiting: Iterable[Job] = ()
            if self.wants(WAITING) or (queue.settings.paused and self.wants("paused")):
                waiting = queue.waiting()
            elif self.wants("prioritized"):
                waiting = islice(queue.waiting(), queue.prioritized)
            return list(islice(merge(waiting, rest, key=rank_of), offset, limit and offset + limit))
        if self.state == "paused":
            return self.page(list(queue.waiting())) if queue.settings.paused else []
        if self.state == "prioritized":
            return list(islice(islice(queue.waiting(), queue.prioritized), offset, limit and offset + limit))
        if self.state == WAITING and not queue.parked:
            return queue.ready.slice(offset, limit)
        if self.state == COMPLETED:
            return queue.completed.slice(offset, limit)
        if self.state == FAILED:
            return queue.failed.slice(offset, limit)
        if self.state == WAITING:
            return list(islice(queue.waiting(), offset, limit and offset + limit))
        if self.state not in (DELAYED, ACTIVE, WAITING_CHILDREN):
            return []
        if queue.count(self.state) > SORTED_MAX:
            return self.unsorted(queue)
        return self.page(sorted(STATUSES[self.state](queue), key=rank_of))

    def unsorted(self, queue: Queue) -> list[Job]:
        """Return jobs as they stand: state by state, and in each in the order of its index. Sorting very many would take long."""
        found: list[Job] = []
        offset, left = max(self.offset, 0), self.limit
        for name in (WAITING, DELAYED, ACTIVE, WAITING_CHILDREN, COMPLETED, FAILED):
            index, count = STATUSES[name](queue), queue.count(name)
            if name == WAITING and not (self.wants(WAITING) or (queue.settings.paused and self.wants("paused"))):
                count = queue.prioritized if self.wants("prioritized") else 0
            elif not self.wants(name) and name != WAITING:
                count = 0
            if name == WAITING and queue.parked:
                index = queue.waiting()
            most = count - offset if left is None else min(left, count - offset)
            if most > 0:
                found += (
                    index.slice(offset, most) if isinstance(index, Ranked) else islice(index, offset, offset + most)
                )
                left = None if left is None else left - most
            offset = max(offset - count, 0)
        return found

    def wants(self, name: str) -> bool:
        return self.state is None or name == self.state or (isinstance(self.state, tuple) and name in self.state)

    def page(self, jobs: list[Job]) -> list[Job]:
        offset = max(self.offset, 0)
        return jobs[offset : None if self.limit is None else offset + self.limit]


@query
class ListStatus(Query, frozen=True):
    """Jobs of a queue in a status as BullMQ divides them, in the order in which they run or came there.

    status: waiting (without those of a priority below zero, which are prioritized), prioritized, delayed, active, completed,
    failed, waiting-children; paused: waiting ones of a paused queue.  newest: in the opposite order.
    """

    queue: QueueName
    status: Key
    offset: int = 0
    limit: int | None = None
    newest: bool = False

    def answer(self, state: State) -> list[Job]:
        queue = state.queues.get(self.queue)
        if queue is None or self.status not in STATUSES or (self.status == "paused" and not queue.settings.paused):
            return []
        index: Iterable[Job]
        begin = 0
        if self.status in (WAITING, "paused", "prioritized"):
            index, size = queue.waiting() if queue.parked else queue.ready, queue.waiting_count
            if self.status == "prioritized":
                begin = size - queue.lowered
            else:
                size -= queue.lowered
        else:
            index = STATUSES[self.status](queue)
            size = queue.count(self.status)
        offset = max(self.offset, 0)
        count = size - begin - offset if self.limit is None else min(self.limit, size - begin - offset)
        if count <= 0:
            return []
        first = size - offset - count if self.newest else begin + offset
        page = index.slice(first, count) if isinstance(index, Ranked) else list(islice(index, first, first + count))
        return page[::-1] if self.newest else page


STATUSES: dict[str, Callable[[Queue], Iterable[Job]]] = {
    WAITING: lambda queue: queue.ready,
    "paused": lambda queue: queue.ready,
    "prioritized": lambda queue: queue.ready,
    DELAYED: lambda queue: queue.delayed,
    ACTIVE: lambda queue: queue.active.values(),
    WAITING_CHILDREN: lambda queue: queue.waiting_children.values(),
    COMPLETED: lambda queue: queue.completed,
    FAILED: lambda queue: queue.failed,
}


@query
class QueueFigures(Query, frozen=True):
    """Figures of the queues, the oldest first, of up to `limit` of them."""

    limit: int

    def answer(self, state: State) -> list[QueueFigure]:
        found: list[QueueFigure] = []
        for queue in islice(state.listed_queues(), max(self.limit, 0)):
            counts = Counts(paused=queue.settings.paused)
            counts.add(queue)
            found.append(QueueFigure(queue.name, counts, queue.counters, queue.oldest_ready_at()))
        return found


@query
class Totals(Query, frozen=True):
    """Sums over all queues."""

    def answer(self, state: State) -> Total:
        gone = state.gone
        total = Total(0, Counts(), gone.pushed, gone.pulled, gone.completed, gone.failed)
        for queue in state.queues.values():
            total.queues += queue.is_listed
            total.counts.add(queue)
            counters: QueueCounters = queue.counters
            total.pushed += counters.pushed
            total.pulled += counters.pulled
            total.completed += counters.completed
            total.failed += counters.failed
        return total

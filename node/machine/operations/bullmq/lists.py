"""Counts and lists of jobs as BullMQ's getters ask for them: by types, by BullMQ's places of lists and sets, by ids within the queue."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from quorumq.node.machine.bounds import JobId, Key, QueueName
from quorumq.node.machine.operation import Query, query
from quorumq.node.machine.operations.adding import resolve
from quorumq.node.machine.operations.queue_reads import STATUSES
from quorumq.node.machine.refusals import JobNotFound, TooLong
from quorumq.node.machine.state.job import (
    ACTIVE,
    COMPLETED,
    DELAYED,
    FAILED,
    ORDER_BITS,
    WAITING,
    WAITING_CHILDREN,
    Job,
    own_id,
)
from quorumq.node.machine.state.ranked import Ranked

if TYPE_CHECKING:
    from collections.abc import Iterable

    from quorumq.node.machine.state import State
    from quorumq.node.machine.state.queue import Queue

RANGE_MAX = 250_000
"""Ids that one answer holds."""
WAIT = "wait"
PAUSED = "paused"
PRIORITIZED = "prioritized"
REPEAT = "repeat"
LISTS = (WAIT, WAITING, ACTIVE, PAUSED)
"""Types that BullMQ keeps in lists, what would come next being the last; the others are sets in order of a score."""
TYPES = (*LISTS, DELAYED, PRIORITIZED, COMPLETED, FAILED, WAITING_CHILDREN, REPEAT)


def type_of(job: Job) -> str:
    """Return the state of a job by BullMQ's names: one that waits with a priority is prioritized, also while the queue is paused."""
    return PRIORITIZED if job.state == WAITING and job.opts.priority < 0 else job.state


def count_of(queue: Queue, kind: str) -> int:
    """Return how many jobs are of a type. `paused` is a list that BullMQ fills no more, and schedulers (`repeat`) are no jobs."""
    if kind in (WAIT, WAITING):
        return queue.waiting_count - queue.lowered
    if kind == PRIORITIZED:
        return queue.lowered
    return 0 if kind in (PAUSED, REPEAT) else queue.count(kind)


@query
class CountTypes(Query, frozen=True):
    """How many jobs of a queue are of each type, in the order asked. due_before: of the delayed ones those due earlier, in ms."""

    queue: QueueName
    kinds: tuple[Key, ...]
    due_before: int | None = None

    def answer(self, state: State) -> list[int]:
        queue = state.queues.get(self.queue)
        if queue is None:
            return [0] * len(self.kinds)
        return [
            count_of(queue, kind)
            if kind != DELAYED or self.due_before is None
            else queue.delayed.below(self.due_before << ORDER_BITS)
            for kind in self.kinds
        ]


@query
class CountPriorities(Query, frozen=True):
    """How many jobs wait with each of some priorities, in the order asked; 0 stands for those without. Delayed ones do not count."""

    queue: QueueName
    priorities: tuple[int, ...]

    def answer(self, state: State) -> list[int]:
        queue = state.queues.get(self.queue)
        if queue is None:
            return [0] * len(self.priorities)
        indexes = [queue.ready, *(group.parked for group in queue.groups.values())]
        return [
            sum(_waiting_at(index, priority) for index in indexes) if priority else count_of(queue, WAIT)
            for priority in self.priorities
        ]


def _waiting_at(index: Ranked, priority: int) -> int:
    # Orders are on both sides of the place of their priority: those of lifo jobs, and of jobs put first, below it.
    place, half = priority << ORDER_BITS, 1 << ORDER_BITS - 1
    return index.below(place + half) - index.below(place - half)


@query
class ListRanges(Query, frozen=True):
    """Ids within the queue by type, in the order asked; each from place `start` to `end`, both included, negative ones from the end.

    Lists come newest first. asc counts places from the oldest, and that page comes newest first too: BullMQ's client turns it.
    Sets come by their score, downwards without asc. Raises TooLong.
    """

    queue: QueueName
    kinds: tuple[Key, ...]
    start: int = 0
    end: int = 1
    asc: bool = False

    def answer(self, state: State) -> list[list[str]]:
        queue = state.queues.get(self.queue)
        if queue is None:
            return [[] for _ in self.kinds]
        spans = [self._span(kind, count_of(queue, kind)) for kind in self.kinds]
        if sum(count for _, count in spans) > RANGE_MAX:
            raise TooLong(RANGE_MAX)
        return [self._ids(queue, kind, *span) for kind, span in zip(self.kinds, spans, strict=True)]

    def _span(self, kind: str, size: int) -> tuple[int, int]:
        """Where the page begins, counted from the oldest or lowest, and how long it is."""
        if kind in LISTS and self.asc:
            # As Redis has it: the same places from the other end.
            first, last = (0 if place == -1 else -(place + 1) for place in (self.end, self.start))
        else:
            first, last = self.start, self.end
        first, last = (place + size if place < 0 else place for place in (first, last))
        first, last = max(first, 0), min(last, size - 1)
        count = max(last - first + 1, 0)
        return (first if kind not in LISTS and self.asc else size - first - count), count

    def _ids(self, queue: Queue, kind: str, first: int, count: int) -> list[str]:
        if not count:
            return []
        if kind == PRIORITIZED:
            first += queue.waiting_count - queue.lowered
        index: Iterable[Job] = STATUSES[WAITING if kind == WAIT else kind](queue)
        if queue.parked and index is queue.ready:
            index = queue.waiting()
        page = index.slice(first, count) if isinstance(index, Ranked) else islice(index, first, first + count)
        ids = [own_id(job) for job in page]
        return ids if kind not in LISTS and self.asc else ids[::-1]


@query
class GetType(Query, frozen=True):
    """The state of a job by BullMQ's names; `unknown` for no such job."""

    queue: QueueName
    own: JobId

    def answer(self, state: State) -> str:
        job = found(state, self.queue, self.own)
        return "unknown" if job is None else type_of(job)


@query
class IsOfType(Query, frozen=True):
    """Whether a job is of a type; False for no such job."""

    queue: QueueName
    own: JobId
    kind: Key

    def answer(self, state: State) -> bool:
        job = found(state, self.queue, self.own)
        return job is not None and type_of(job) == (WAITING if self.kind == WAIT else self.kind)


@query
class GetEnd(Query, frozen=True):
    """How a job ended: 1 with its result, 2 with why it failed, 0 when it has not, -1 for no such job."""

    queue: QueueName
    own: JobId

    def answer(self, state: State) -> tuple[int, bytes | str | None]:
        job = found(state, self.queue, self.own)
        if job is None:
            return -1, None
        if job.state == COMPLETED:
            return 1, b"null" if job.result is None else job.result
        if job.state != FAILED:
            return 0, None
        return 2, job.error if job.error is not None or job.failures is None else job.failures.reason


@query
class IsMaxed(Query, frozen=True):
    """Whether as many jobs of a queue are active as may be."""

    queue: QueueName

    def answer(self, state: State) -> bool:
        queue = state.queues.get(self.queue)
        if queue is None or queue.settings.concurrency is None:
            return False
        return len(queue.active) >= queue.settings.concurrency


def found(state: State, queue: str, own: str) -> Job | None:
    """Return the job that is called `own` in a queue; None when there is none."""
    try:
        return resolve(state, queue, own)
    except JobNotFound:
        return None

"""Questions about many queues at once, and about one queue from several sides, as dashboards ask them."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from node.operation import Query, query
from node.operations.jobs import QueueName
from node.operations.queues import Counts
from node.state.queue import QueueCounters, QueueSettings

if TYPE_CHECKING:
    from node.state import State


class Brief(msgspec.Struct, frozen=True, gc=False):
    """A queue in numbers."""

    name: str
    counts: Counts


class Page(msgspec.Struct, frozen=True, gc=False):
    """Some queues in order of creation. total: how many there are."""

    queues: list[Brief]
    total: int


class Limits(msgspec.Struct, frozen=True, gc=False):
    """What holds a queue back. rate_ends_in_ms: until its rate limit ends, None for never.

    maxed: whether as many jobs are active as may be, or no token of the rate limit is left.
    """

    settings: QueueSettings
    rate_ends_in_ms: int | None
    maxed: bool


class Portrait(msgspec.Struct, frozen=True, gc=False):
    """One queue in numbers: now, and since it was created."""

    counts: Counts
    counters: QueueCounters


@query
class ListBriefs(Query, frozen=True):
    """Queues in numbers, the oldest first."""

    limit: int
    offset: int = 0

    def answer(self, state: State) -> Page:
        start = max(self.offset, 0)
        found: list[Brief] = []
        for queue in islice(state.queues.values(), start, start + max(self.limit, 0)):
            counts = Counts(paused=queue.settings.paused)
            counts.add(queue)
            found.append(Brief(queue.name, counts))
        return Page(found, len(state.queues))


@query
class GetPortrait(Query, frozen=True):
    """One queue in numbers; all zero for an unknown one."""

    queue: QueueName

    def answer(self, state: State) -> Portrait:
        counts, queue = Counts(), state.queues.get(self.queue)
        if queue is None:
            return Portrait(counts, QueueCounters())
        counts.add(queue)
        counts.paused = queue.settings.paused
        return Portrait(counts, queue.counters)


@query
class GetLimits(Query, frozen=True):
    """What holds a queue back, as of the log's time or now_ms if that is later."""

    queue: QueueName
    now_ms: int = 0

    def answer(self, state: State) -> Limits:
        queue = state.queues.get(self.queue)
        if queue is None:
            return Limits(QueueSettings(), None, False)
        now_ms = max(self.now_ms, state.now_ms)
        settings = queue.settings
        rate = settings.rate
        if rate is not None and rate.is_over(now_ms):
            rate = None
            settings = msgspec.structs.replace(settings, rate=None)
        maxed = (settings.concurrency is not None and len(queue.active) >= settings.concurrency) or (
            rate is not None and queue.tokens(now_ms) <= 0
        )
        return Limits(settings, rate.until_ms - now_ms if rate is not None and rate.until_ms else None, maxed)

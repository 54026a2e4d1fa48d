"""Questions about many queues at once, and about one queue from several sides, as dashboards ask them."""

from __future__ import annotations

from itertools import islice

import msgspec

from quorumq.node.machine.bounds import QueueName
from quorumq.node.machine.operation import Query, query
from quorumq.node.machine.operations.queue_reads import Counts
from quorumq.node.machine.state import State
from quorumq.node.machine.state.queue import Limit, QueueCounters, QueueSettings


class Brief(msgspec.Struct, frozen=True, gc=False):
    """A queue in numbers. blocked_by: limits of none, that let no job start."""

    name: str
    counts: Counts
    blocked_by: tuple[Limit, ...] = ()


class QueuePage(msgspec.Struct, frozen=True, gc=False):
    """Some queues in order of creation. total: how many there are."""

    queues: list[Brief]
    total: int


class Limits(msgspec.Struct, frozen=True, gc=False):
    """What holds a queue back. rate_ends_in_ms: until its rate limit ends, None for never.

    maxed: whether as many jobs are active as may be, or no token of the rate limit is left.  blocked_by: limits of none, that let
    no job start, whatever ends.  limited_groups: groups with limits of their own, or paused or held.
    """

    settings: QueueSettings
    rate_ends_in_ms: int | None
    maxed: bool
    blocked_by: tuple[Limit, ...] = ()
    limited_groups: int = 0


class Portrait(msgspec.Struct, frozen=True, gc=False):
    """One queue in numbers: now, and since it was created."""

    counts: Counts
    counters: QueueCounters
    blocked_by: tuple[Limit, ...] = ()
    limited_groups: int = 0


@query
class ListBlocked(Query, frozen=True):
    """Queues that limits of none hold back altogether, the oldest first, at most `limit`; total says how many there are."""

    limit: int

    def answer(self, state: State) -> QueuePage:
        found: list[Brief] = []
        total = 0
        for queue in state.queues.values():
            blocked_by = queue.blocked_by(state.now_ms)
            total += bool(blocked_by)
            if blocked_by and len(found) < self.limit:
                counts = Counts(paused=queue.settings.paused)
                counts.add(queue)
                found.append(Brief(queue.name, counts, blocked_by))
        return QueuePage(found, total)


@query
class ListBriefs(Query, frozen=True):
    """Queues in numbers, the oldest first."""

    limit: int
    offset: int = 0

    def answer(self, state: State) -> QueuePage:
        start = max(self.offset, 0)
        found: list[Brief] = []
        listed = list(state.listed_queues())
        for queue in islice(listed, start, start + max(self.limit, 0)):
            counts = Counts(paused=queue.settings.paused)
            counts.add(queue)
            found.append(Brief(queue.name, counts, queue.blocked_by(state.now_ms)))
        return QueuePage(found, len(listed))


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
        return Portrait(counts, queue.counters, queue.blocked_by(state.now_ms), queue.limited_groups)


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
        ends_in_ms = rate.until_ms - now_ms if rate is not None and rate.until_ms else None
        return Limits(settings, ends_in_ms, maxed, queue.blocked_by(now_ms), queue.limited_groups)

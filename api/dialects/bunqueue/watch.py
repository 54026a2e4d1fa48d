"""Events of thresholds: queues that lie idle or grow too long, workers that are always full, a node that grows too large.

Each node watches its own copy of the state, so all report the same within the time between two looks. Nothing of it is
replicated: such an event has no id, like the figures.
"""

from __future__ import annotations

import time

from msgspec import Struct

from quorumq.api.events.feed import Feed, Payload
from quorumq.api.host import Host
from quorumq.node.machine.operations.queue_reads import Total, Totals
from quorumq.node.machine.operations.streams import Load, QueueLoads
from quorumq.node.machine.operations.workers import ListWorkers, WorkerList

from . import payloads
from .figures import memory

MIB = 1 << 20
# Queues that are watched, the oldest.
QUEUES_MAX = 2_000
# Seconds between two looks; less where a threshold is short.
LOOK_S = 5.0
LOOK_MIN_S = 0.02
# While a node is too large it says so again after so many seconds.
AGAIN_S = 30.0
# The folder is not measured more often than this.
MEASURE_S = 10.0
# Rates are of the time since somebody last asked for them, and of this long at least.
SAMPLE_S = 1.0


class Idle:
    """Since when a queue has had nothing to do. moves: its count then; another one means that something happened."""

    __slots__ = ("is_told", "moves", "since")

    def __init__(self, since: float, moves: int) -> None:
        self.since = since
        self.moves = moves
        self.is_told = False


class Full:
    """Since when a worker has been full."""

    __slots__ = ("is_told", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.is_told = False


class Throughput(Struct, forbid_unknown_fields=True, rename="camel"):
    """Jobs in a second since this node was last asked for them; zeros at first."""

    push_per_sec: float
    pull_per_sec: float
    complete_per_sec: float
    fail_per_sec: float


class Watch:
    """The thresholds of one node, and what is beyond them."""

    def __init__(self, host: Host, feed: Feed) -> None:
        config = host.config
        self._host = host
        self._feed = feed
        self.idle_s = config.queue_idle_threshold_ms / 1000
        self.size = config.queue_size_threshold
        self.overload_s = config.worker_overload_threshold_ms / 1000
        self.memory_mb = config.memory_warning_mb
        self.storage_mb = config.storage_warning_mb
        self._idle: dict[str, Idle] = {}
        self._over: dict[str, None] = {}
        self._full: dict[str, Full] = {}
        # When each warning of this node may be told again.
        self._again: dict[str, float] = {}
        self._measure_at = 0.0
        # What had gone through all queues when somebody last asked, and the rates that he was told.
        self._seen: tuple[float, tuple[int, ...] | None] = (0.0, None)
        self._rates = Throughput(0.0, 0.0, 0.0, 0.0)

    @property
    def interval_s(self) -> float:
        """Seconds until the next look."""
        waits = [wait / 5 for wait in (self.idle_s, self.overload_s) if wait]
        return max(LOOK_MIN_S, min([LOOK_S, *waits]))

    async def rates(self) -> Throughput:
        """Return how many jobs were pushed, taken, completed and failed in a second since this was last asked; at first zeros."""
        total: Total = await self._host.node.ask(Totals(), stale=True)
        now, sums = time.monotonic(), (total.pushed, total.pulled, total.completed, total.failed)
        seen_at, seen = self._seen
        if seen is None or now - seen_at >= SAMPLE_S:
            self._seen = (now, sums)
            if seen is not None:
                passed = now - seen_at
                rates = (round((after - before) / passed, 2) for before, after in zip(seen, sums, strict=True))
                self._rates = Throughput(*rates)
        return self._rates

    async def look(self) -> None:
        """Look at everything once, and tell what is new."""
        node, now = self._host.node, time.monotonic()
        if self.idle_s or self.size:
            loads: list[Load] = await node.ask(QueueLoads(QUEUES_MAX), stale=True)
            if self.idle_s:
                self.look_for_idle(loads, now)
            if self.size:
                self._over = {load.name: None for load in loads if load.queued > self.size and load.name in self._over}
                for load in loads:
                    self.sized(load.name, load.queued)
        if self.overload_s:
            found: WorkerList = await node.ask(ListWorkers(), stale=True)
            self.look_for_overloaded(found, now)
        if self.memory_mb:
            used = memory()
            too_much = used.heap_used > self.memory_mb
            self.warn(now, too_much, payloads.MemoryWarning(used.heap_used, self.memory_mb, used.rss))
        if self.storage_mb and now >= self._measure_at:
            self._measure_at = now + MEASURE_S
            held = await self._host.disk.held_bytes()
            if held is not None:
                warning = payloads.StorageWarning(round(held / MIB, 1), self.storage_mb)
                self.warn(now, held > self.storage_mb * MIB, warning)

    def look_for_idle(self, loads: list[Load], now: float) -> None:
        """Tell of queues that hold nothing to do and have seen nothing happen for long enough; once each time."""
        idle: dict[str, Idle] = {}
        for load in loads:
            if load.queued or load.active:
                continue
            one = self._idle.get(load.name)
            if one is None or one.moves != load.moves:
                one = Idle(now, load.moves)
            idle[load.name] = one
            if not one.is_told and now - one.since >= self.idle_s:
                one.is_told = True
                self._feed.publish(payloads.QueueIdle(load.name, int(now - one.since)), queue=load.name)
        self._idle = idle

    def sized(self, queue: str, size: int) -> None:
        """Tell of a queue that has grown beyond the threshold; again only after it was below."""
        if not self.size or size <= self.size:
            self._over.pop(queue, None)
        elif queue not in self._over:
            self._over[queue] = None
            self._feed.publish(payloads.QueueThreshold(queue, size, self.size), queue=queue)

    def look_for_overloaded(self, found: WorkerList, now: float) -> None:
        """Tell of workers that have been full for long enough; again only after they were not."""
        full: dict[str, Full] = {}
        for worker in found.workers:
            if worker.stale or not 0 < worker.concurrency <= worker.active_jobs:
                continue
            one = full[worker.id] = self._full.get(worker.id) or Full(now)
            if not one.is_told and now - one.since >= self.overload_s:
                one.is_told = True
                overloaded = payloads.WorkerOverloaded(
                    worker.id, worker.name, worker.active_jobs, worker.concurrency, int(now - one.since)
                )
                self._feed.publish(overloaded, queues=worker.queues)
        self._full = full

    def warn(self, now: float, is_beyond: bool, warning: Payload) -> None:
        """Tell that this node is too large: at once, and now and then while it stays so."""
        if not is_beyond:
            self._again.pop(warning.EVENT, None)
        elif now >= self._again.get(warning.EVENT, 0.0):
            self._again[warning.EVENT] = now + AGAIN_S
            self._feed.publish(warning)

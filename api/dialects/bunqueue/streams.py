"""The streams of a node: its feed, who reads it, and the figures told from time to time."""

from __future__ import annotations

import asyncio
import logging
import time

from quorumq.api.events.feed import Feed
from quorumq.api.host import Host
from quorumq.cluster.errors import ClusterError
from quorumq.cluster.version import VERSION
from quorumq.node.machine.operations.queue_reads import ListQueues, QueueCounts, Total, Totals
from quorumq.node.machine.operations.schedules import ListCrons
from quorumq.node.machine.operations.streams import KeepEvents
from quorumq.node.machine.operations.workers import ListWorkers
from quorumq.node.machine.refusals import Refusal

from . import figures, payloads
from .commands import Commands
from .events import counts, messages_of
from .figures import memory, summed
from .watch import Watch

log = logging.getLogger(__name__)

STATS_S = 5
HEALTH_S = 10
STORAGE_S = 30
# Nodes keep events for so long after a node with clients last asked for it.
KEEP_S = 90
KEEP_AGAIN_S = 20
# Queues in one snapshot; those of the rest are to be asked for.
QUEUES_SHOWN = 500


class LiveStreams:
    """The streams of one node, commands that WebSockets and TCP take among them. clients: open SSE streams."""

    def __init__(self, host: Host, commands: Commands) -> None:
        self.host = host
        self.feed = Feed(host.node.machine, messages_of, counts, self.changed)
        self.watch = Watch(host, self.feed)
        self.commands = commands
        self.clients = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._pushed = self._pulled = 0
        self._looked_at = 0.0
        self._keep_again_at = 0.0
        self._keeping: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to tell figures."""
        self._tasks = [asyncio.create_task(self._tick()), asyncio.create_task(self._watch())]
        self.feed.publish(payloads.Started(VERSION, time.time_ns() // 1_000_000))

    def close(self) -> None:
        """Say goodbye to everybody."""
        for task in self._tasks:
            task.cancel()
        self._tasks = []
        self.feed.publish(payloads.Shutdown("the node is stopping"))
        self.feed.close()

    def keep_events(self) -> None:
        """Have all nodes keep events, so that the clients of this one can go on at another; asked for now and then."""
        now = time.monotonic()
        if now < self._keep_again_at:
            return
        self._keep_again_at = now + KEEP_AGAIN_S
        task = asyncio.create_task(self._keep_events())
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)

    async def _keep_events(self) -> None:
        try:
            await self.host.node.submit(KeepEvents(KEEP_S * 1000))
        except (ClusterError, Refusal):
            # Without a quorum nothing happens that could be missed.
            self._keep_again_at = 0.0

    async def _tick(self) -> None:
        """Tell figures in their intervals, as long as anybody listens."""
        seconds = 0
        while True:
            await asyncio.sleep(STATS_S)
            seconds = (seconds + STATS_S) % (HEALTH_S * STORAGE_S)
            if not self.feed.listened_to:
                continue
            if self.clients:
                self.keep_events()
            try:
                self.feed.publish(await self.stats())
                if seconds % HEALTH_S == 0:
                    self.feed.publish(self.health())
                if seconds % STORAGE_S == 0:
                    self.feed.publish(await self.storage())
            except Exception:
                # Figures are not worth an end of all figures.
                log.exception("the figures could not be told")

    async def _watch(self) -> None:
        """Look for what is beyond its threshold, from time to time."""
        while True:
            await asyncio.sleep(self.watch.interval_s)
            if not self.host.node_started:
                continue
            try:
                await self.watch.look()
            except Exception:
                log.exception("the thresholds could not be looked at")

    def changed(self, queue: str) -> None:
        """Check the size of a queue whose jobs have changed their states; called while there are listeners."""
        if self.watch.size:
            found = QueueCounts(queue).answer(self.host.node.machine.state)
            self.watch.sized(queue, found.waiting + found.delayed)

    async def stats(self) -> payloads.Snapshot:
        """Return sums over all queues, and each queue's own."""
        node = self.host.node
        total: Total = await node.ask(Totals(), stale=True)
        names: list[str] = await node.ask(ListQueues(), stale=True)
        now = time.monotonic()
        passed = now - self._looked_at
        is_rate = 0 < passed < 2 * STATS_S
        pushed, pulled = total.pushed - self._pushed, total.pulled - self._pulled
        self._pushed, self._pulled, self._looked_at = total.pushed, total.pulled, now
        queues = {}
        for name in names[:QUEUES_SHOWN]:
            one = await node.ask(QueueCounts(name), stale=True)
            queues[name] = payloads.QueueState(one.waiting, one.active, one.delayed, one.failed, one.paused)
        return figures.sums(
            payloads.Snapshot,
            total,
            self.uptime_s(),
            push_per_sec=round(pushed / passed, 2) if is_rate else 0,
            pull_per_sec=round(pulled / passed, 2) if is_rate else 0,
            queues=queues,
            workers=len((await node.ask(ListWorkers(), stale=True)).workers),
            cron_jobs=len(await node.ask(ListCrons(), stale=True)),
        )

    def health(self) -> payloads.HealthStatus:
        """Return how this node is."""
        used, host = memory(), self.host
        return payloads.HealthStatus(
            host.readiness()[0],
            self.uptime_s(),
            payloads.MemoryUsed(used.rss, used.heap_used),
            payloads.ConnectionCounts(host.tcp_connections, host.websockets, self.clients, host.http_connections),
        )

    async def storage(self) -> payloads.StorageStatus:
        """Return what the collections hold, and whether this node can write."""
        total: Total = await self.host.node.ask(Totals(), stale=True)
        disk = await self.host.disk.look(self.host.node)
        return payloads.StorageStatus(summed(total), disk.full)

    def uptime_s(self) -> int:
        return int(time.monotonic() - self.host.started_at)

"""All streams of a listener: its feed, who reads it, the figures told from time to time, and the rows."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

import msgspec

from api.dialects.bunqueue import Bunqueue
from api.dialects.bunqueue.commands import Commands
from api.dialects.bunqueue.events import counts, told
from api.dialects.bunqueue.monitoring import memory, summed
from api.http import Parameter, Route, Socket, Stream, grouped, plain
from api.version import VERSION
from cluster.errors import ClusterError
from node.operations.queues import ListQueues, QueueCounts, Total, Totals
from node.operations.schedules import ListCrons
from node.operations.streams import KeepEvents
from node.operations.workers import ListWorkers
from node.refusals import Refusal

from .feed import Feed
from .sse import events
from .watch import Watch
from .websocket import websocket

if TYPE_CHECKING:
    from api.server import Server

log = logging.getLogger(__name__)

STATS_S = 5
HEALTH_S = 10
STORAGE_S = 30
# Nodes keep events for so long after a node with clients last asked for it.
KEEP_S = 90
KEEP_AGAIN_S = 20
# Queues in one snapshot; those of the rest are to be asked for.
QUEUES_SHOWN = 500
ENCODE = msgspec.json.Encoder().encode


class Streams:
    """The streams of one listener. sockets, clients: open WebSockets and SSE streams."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.watch = Watch(server)
        self.feed = Feed(server.node.machine, told, counts, self.changed)
        self.commands = Commands(Bunqueue.routes)
        self.sockets = 0
        self.clients = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._pushed = self._pulled = 0
        self._looked_at = 0.0
        self._keep_again_at = 0.0
        self._keeping: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to tell figures."""
        self._tasks = [asyncio.create_task(self._tick()), asyncio.create_task(self._watch())]
        self.feed.publish("server:started", ENCODE({"version": VERSION, "startedAt": time.time_ns() // 1_000_000}))

    def close(self) -> None:
        """Say goodbye to everybody."""
        for task in self._tasks:
            task.cancel()
        self._tasks = []
        self.feed.publish("server:shutdown", b'{"reason":"the node is stopping"}')
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
            await self.server.node.submit(KeepEvents(KEEP_S * 1000))
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
                self.feed.publish("stats:snapshot", ENCODE(await self.stats()))
                if seconds % HEALTH_S == 0:
                    self.feed.publish("health:status", ENCODE(self.health()))
                if seconds % STORAGE_S == 0:
                    self.feed.publish("storage:status", ENCODE(await self.storage()))
            except Exception:
                # Figures are not worth an end of all figures.
                log.exception("the figures could not be told")

    async def _watch(self) -> None:
        """Look for what is beyond its threshold, from time to time."""
        while True:
            await asyncio.sleep(self.watch.interval_s)
            if not self.server.node_started:
                continue
            try:
                await self.watch.look()
            except Exception:
                log.exception("the thresholds could not be looked at")

    def changed(self, queue: str) -> None:
        """Hear that jobs of a queue have changed their states, as long as somebody listens."""
        if self.watch.size:
            found = QueueCounts(queue).answer(self.server.node.machine.state)
            self.watch.sized(queue, found.waiting + found.delayed)

    async def stats(self) -> dict[str, Any]:
        """Return sums over all queues, and each queue's own."""
        node = self.server.node
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
            queues[name] = {
                "waiting": one.waiting,
                "active": one.active,
                "delayed": one.delayed,
                "dlq": one.failed,
                "paused": one.paused,
            }
        found = total.counts
        return {
            "waiting": found.waiting,
            "active": found.active,
            "delayed": found.delayed,
            "completed": found.completed,
            "dlq": found.failed,
            "totalPushed": total.pushed,
            "totalPulled": total.pulled,
            "totalCompleted": total.completed,
            "totalFailed": total.failed,
            "pushPerSec": round(pushed / passed, 2) if is_rate else 0,
            "pullPerSec": round(pulled / passed, 2) if is_rate else 0,
            "uptime": self.uptime_s(),
            "queues": queues,
            "workers": len((await node.ask(ListWorkers(), stale=True)).workers),
            "cronJobs": len(await node.ask(ListCrons(), stale=True)),
        }

    def health(self) -> dict[str, Any]:
        """Return how this node is."""
        used = memory()
        return {
            "ok": self.server.readiness()[0],
            "uptime": self.uptime_s(),
            "memory": {"rss": used.rss, "heapUsed": used.heap_used},
            "connections": {"tcp": 0, "ws": self.sockets, "sse": self.clients, "http": self.server.connections},
        }

    async def storage(self) -> dict[str, Any]:
        """Return what the collections hold, and whether this node can write."""
        total: Total = await self.server.node.ask(Totals(), stale=True)
        disk = await self.server.disk.look(self.server.node)
        return {"collections": summed(total), "diskFull": disk.full}

    def uptime_s(self) -> int:
        return int(time.monotonic() - self.server.started_at)


EVENTS = Parameter(
    "events",
    "Names and patterns, separated by commas, such as `job:*,queue:counts`: those events, each under its name. "
    "Left out: the events of jobs in the form `{eventType, queue, jobId, …}`, without names.",
    {"type": "string"},
)
LAST = Parameter("lastEventId", "The same as the header `Last-Event-ID`: go on after this message.", {"type": "string"})
HANDSHAKE = {
    400: "The handshake is malformed, or the queue's name cannot be one.",
    401: "The handshake has a token that is not known.",
    426: "This is no handshake of a WebSocket.",
    429: "Too many requests of this client; `Retry-After` says when to come back.",
    503: "The node is stopping, not ready, or has too many connections; `Retry-After` says when to come back.",
}
ROUTES: tuple[Route, ...] = grouped(
    "Events",
    plain("GET", "/ws", websocket, reply=Socket, right="open", answers=HANDSHAKE,
          about="A WebSocket: commands with their replies, and events."),
    plain("GET", "/ws/queues/{queue}", websocket, reply=Socket, right="open", answers=HANDSHAKE,
          about="The same, with the events of jobs of one queue only."),
    plain("GET", "/events", events, asks=(EVENTS, LAST), reply=Stream, right="read", scope="checked",
          about="Server-sent events."),
    plain("GET", "/events/queues/{queue}", events, asks=(EVENTS, LAST), reply=Stream, right="read",
          about="The same, with the events of jobs of one queue only."),
)  # fmt: skip


class EventStreams(Bunqueue):
    """The streams as the request path sees them: they speak as the bunqueue dialect does."""

    routes = ROUTES

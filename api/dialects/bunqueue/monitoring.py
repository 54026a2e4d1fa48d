"""Probes and figures of a node, in the shapes that the bunqueue dialect documents.

The probes answer from this node alone: what a balancer or a kubelet asks must not wait for a quorum.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys
import time
from collections import Counter
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from quorumq.api.host import REPLAYING, Host
from quorumq.api.reply import TEXT, Reply
from quorumq.api.request import CONSISTENCY, Call, Command, Route
from quorumq.api.rows import NotReady, Text, grouped, plain
from quorumq.cluster.version import VERSION
from quorumq.node.machine.operations.queue_reads import Totals
from quorumq.node.machine.operations.schedules import ListCrons
from quorumq.node.machine.operations.webhooks import ListWebhooks
from quorumq.node.machine.operations.workers import ListWorkers, WorkerList
from quorumq.node.machine.state.schedule import Cron

from . import figures, prometheus, replies
from .figures import memory, summed, totals, uptime_s
from .streams import LiveStreams

# After how long without a tick the consensus is taken to be dead; it ticks fifty times a second.
SILENT_S = 10.0
MOMENT_S = 0.25
TYPES_SHOWN = 20
ENCODE = msgspec.json.Encoder().encode


class Connections(Struct, forbid_unknown_fields=True):
    tcp: int
    ws: int
    sse: int
    http: int


class HealthQueues(Struct, forbid_unknown_fields=True):
    waiting: int
    active: int
    delayed: int
    completed: int
    dlq: int


class HealthCluster(Struct, forbid_unknown_fields=True, rename="camel"):
    version: Annotated[str, Meta(description="Of this node's program, whatever is told as `version`.")]
    node_id: str
    role: str
    leader: str | None
    term: int
    has_quorum: bool
    members: int
    connected: int
    applied_index: int
    ready: bool
    reason: str | UnsetType = UNSET


class Health(replies.Success):
    status: Literal["healthy", "degraded"]
    uptime: int
    version: str
    queues: HealthQueues
    connections: Connections
    memory: figures.Megabytes
    cluster: HealthCluster


class Ready(replies.Success):
    ready: Literal[True]


class PongData(Struct, forbid_unknown_fields=True):
    pong: Literal[True]
    time: replies.Millis


class Pong(replies.Success):
    data: PongData


class TotalsShown(Struct, forbid_unknown_fields=True, rename="camel"):
    total_pushed: int
    total_pulled: int
    total_completed: int
    total_failed: int


class Metrics(replies.Success):
    metrics: TotalsShown


class StatsOf(Struct, forbid_unknown_fields=True, rename="camel"):
    waiting: int
    delayed: int
    active: int
    completed: int
    dlq: int
    prioritized: int
    waiting_children: int = field(name="waiting-children")
    total_pushed: int
    total_pulled: int
    total_completed: int
    total_failed: int
    queues: int
    workers: int
    cron_jobs: int
    cron_pending: int
    webhooks: int
    uptime: int
    push_per_sec: float
    pull_per_sec: float
    complete_per_sec: float
    fail_per_sec: float


class Stats(replies.Success):
    stats: StatsOf
    memory: figures.Megabytes
    collections: figures.Collections


class StorageData(Struct, forbid_unknown_fields=True, rename="camel"):
    disk_full: bool
    error: str | None
    since: replies.Millis | None
    free_bytes: int | None
    log_bytes: int


class Storage(replies.Success):
    disk_full: bool
    data: StorageData


class Collected(replies.Success):
    before: figures.Megabytes
    after: figures.Megabytes


class HeapCounts(Struct, forbid_unknown_fields=True, rename="camel"):
    """object_count: blocks of memory.  protected_count: objects set apart at the start.  global_count: tracked ones."""

    object_count: int
    protected_count: int
    global_count: int


class ObjectCount(Struct, forbid_unknown_fields=True):
    type: str
    count: int


class HeapStats(replies.Success):
    memory: figures.Megabytes
    heap: HeapCounts
    collections: figures.Collections
    top_object_types: list[ObjectCount]


async def ready(call: Call) -> Reply:
    is_ready, why = call.server.service(Host).readiness()
    if is_ready:
        return Reply(200, ENCODE(Ready(ok=True, ready=True)))
    return Reply(503, ENCODE(NotReady(ok=False, ready=False, error=why)))


async def alive(call: Call) -> Reply:
    """Answer as long as the event loop turns, whatever the cluster is doing."""
    return Reply(200, b"OK", TEXT)


async def lively(call: Call) -> Reply:
    """Answer as long as the event loop turns and the consensus looks at the time; nothing of the cluster, and nothing of the disk.

    A process that was suspended is asked before its timers have run, so it gets a moment.
    """
    if call.node.engine.silent_s > SILENT_S:
        await asyncio.sleep(MOMENT_S)
        if (silent_s := call.node.engine.silent_s) > SILENT_S:
            why = f"the consensus has done nothing for {silent_s:.0f} s"
            return Reply(503, ENCODE(NotReady(ok=False, ready=False, error=why)))
    return Reply(200, b"OK", TEXT)


async def started(call: Call) -> Reply:
    """Answer whether the log has been replayed."""
    if call.server.service(Host).node_started:
        return Reply(200, b"OK", TEXT)
    return Reply(503, ENCODE(NotReady(ok=False, ready=False, error=REPLAYING)))


async def health(call: Call) -> Reply:
    host, streams = call.server.service(Host), call.server.service(LiveStreams)
    is_ready, why = host.readiness()
    total = await totals(call, stale=True)
    status = call.node.status()
    counts = total.counts
    shown = Health(
        ok=True,
        status="healthy" if is_ready else "degraded",
        uptime=uptime_s(call),
        version=call.server.config.bunqueue_version or VERSION,
        queues=HealthQueues(
            waiting=counts.waiting,
            active=counts.active,
            delayed=counts.delayed,
            completed=counts.completed,
            dlq=counts.failed,
        ),
        connections=Connections(
            tcp=host.tcp_connections,
            ws=host.websockets,
            sse=streams.clients,
            http=host.http_connections,
        ),
        memory=memory(),
        cluster=HealthCluster(
            version=VERSION,
            node_id=status.node_id,
            role=status.role,
            leader=status.leader,
            term=status.term,
            has_quorum=status.has_quorum,
            members=len(status.members),
            connected=sum(member.connected or member.self for member in status.members),
            applied_index=status.applied_index,
            ready=is_ready,
            reason=UNSET if is_ready else why,
        ),
    )
    return Reply(200, ENCODE(shown))


async def ping(call: Call) -> Reply:
    return Reply(200, ENCODE(Pong(ok=True, data=PongData(pong=True, time=time.time_ns() // 1_000_000))))


async def stats(call: Call) -> Reply:
    total = await figures.totals(call, stale=call.stale)
    used = figures.memory()
    # Kinds of memory that this runtime does not have.
    used.external = used.array_buffers = 0
    rates = await call.server.service(LiveStreams).watch.rates()
    # The totals were as fresh as was asked for; what is asked of the same copy after them is no older.
    workers = await call.node.ask(ListWorkers(), registered, stale=True)
    crons, pending = await call.node.ask(ListCrons(), all_and_pending, stale=True)
    webhooks = await call.node.ask(ListWebhooks(), figures.many, stale=True)
    sums = figures.sums(
        StatsOf,
        total,
        figures.uptime_s(call),
        prioritized=0,
        waiting_children=total.counts.waiting_children,
        queues=total.queues,
        workers=workers,
        cron_jobs=crons,
        cron_pending=pending,
        webhooks=webhooks,
        push_per_sec=rates.push_per_sec,
        pull_per_sec=rates.pull_per_sec,
        complete_per_sec=rates.complete_per_sec,
        fail_per_sec=rates.fail_per_sec,
    )
    shown = Stats(ok=True, stats=sums, memory=used, collections=figures.summed(total))
    return Reply(200, ENCODE(shown))


def all_and_pending(crons: list[Cron]) -> tuple[int, int]:
    """Return how many crons there are, and how many of them have a next time."""
    return len(crons), sum(cron.next_due > 0 for cron in crons)


def registered(found: WorkerList) -> int:
    return len(found.workers)


async def metrics(call: Call) -> Reply:
    total = await totals(call, stale=call.stale)
    shown = TotalsShown(
        total_pushed=total.pushed,
        total_pulled=total.pulled,
        total_completed=total.completed,
        total_failed=total.failed,
    )
    return Reply(200, ENCODE(Metrics(ok=True, metrics=shown)))


async def storage(call: Call) -> Reply:
    """Say whether this node can write, from its log and its file system."""
    state = await call.server.service(Host).disk.look(call.node)
    data = StorageData(
        disk_full=state.full,
        error=state.error,
        since=state.since_ms,
        free_bytes=state.free_bytes,
        log_bytes=state.log_bytes,
    )
    return Reply(200, ENCODE(Storage(ok=True, disk_full=state.full, data=data)))


async def collect(call: Call) -> Reply:
    """Collect garbage and give free memory back to the system."""
    before = memory()
    gc.collect()
    await asyncio.to_thread(give_back)
    return Reply(200, ENCODE(Collected(ok=True, before=before, after=memory())))


def give_back() -> None:
    """Have the C library return what is free; other libraries than GNU's have no such call and need none."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


async def heap(call: Call) -> Reply:
    """Count the objects of this process."""
    total = await totals(call, stale=True)
    collections = summed(total)
    tracked = gc.get_objects()
    kinds = Counter(type(one).__name__ for one in tracked)
    # The garbage collector does not track records; these are most of what there is.
    kinds["Job"] += collections.job_index
    shown = HeapStats(
        ok=True,
        memory=memory(),
        heap=HeapCounts(
            object_count=sys.getallocatedblocks(),
            protected_count=gc.get_freeze_count(),
            global_count=len(tracked),
        ),
        collections=collections,
        top_object_types=[ObjectCount(type=name, count=count) for name, count in kinds.most_common(TYPES_SHOWN)],
    )
    return Reply(200, ENCODE(shown))


ROUTES: tuple[Route, ...] = grouped(
    "Monitoring",
    plain("GET", "/health", health, what=Totals, reply=Health, right="open", limited=False,
          about="How the node, its queues and its cluster are; always 200."),
    plain("GET", "/healthz", alive, reply=Text, right="open", limited=False, about="Whether the process runs."),
    plain("GET", "/live", alive, reply=Text, right="open", limited=False, about="Whether the process runs."),
    plain("GET", "/livez", lively, reply=Text, right="open", limited=False,
          about="Whether the process is alive: its loop turns and its consensus ticks. If not, it should be started again."),
    plain("GET", "/ready", ready, reply=Ready, right="open", limited=False,
          about="Whether requests should be sent to this node: 200, or 503 with the reason."),
    plain("GET", "/readyz", ready, reply=Ready, right="open", limited=False, about="The same as /ready."),
    plain("GET", "/startupz", started, reply=Text, right="open", limited=False,
          about="Whether the log has been replayed."),
    plain("GET", "/ping", ping, reply=Pong, right="read", scope="nothing", about="Answer with this node's time.",
          command="Ping"),
    plain("GET", "/stats", stats, what=Totals, asks=(CONSISTENCY,), reply=Stats, right="read",
          about="Sums over all queues, memory and collections.", command="Stats"),
    plain("GET", "/metrics", metrics, what=Totals, asks=(CONSISTENCY,), reply=Metrics, right="read",
          about="How many jobs went through, as JSON.", command="Metrics"),
    plain("GET", "/prometheus", prometheus.figures_page, what=Totals, reply=Text, right="metrics",
          about="Figures for Prometheus.", command=Command("Prometheus", reply=replies.as_metrics)),
    plain("GET", "/storage", storage, reply=Storage, right="read", scope="nothing",
          about="Whether this node can write to its disk.", command="StorageStatus"),
    plain("POST", "/gc", collect, reply=Collected, right="manage:all", limited=False,
          about="Collect garbage and give free memory back; figures in MB.",
          command=Command("CompactMemory", reply=replies.only_ok)),
    plain("GET", "/heapstats", heap, reply=HeapStats, right="read", limited=False,
          about="Objects of this process by type."),
)  # fmt: skip

"""Probes and figures of a node, in the shapes that the bunqueue dialect documents.

The probes answer from this node alone: what a balancer or a kubelet asks must not wait for a quorum.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import resource
import sys
import time
from collections import Counter
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET

from api.http import CONSISTENCY, REPLAYING, TEXT, Call, NotReady, Reply, Route, Text, grouped, plain
from api.metrics import CONTENT_TYPE, Labels, Page
from api.version import VERSION
from cluster.metrics import Metrics as Replication
from node.operations.queues import QueueFigure, QueueFigures, Total, Totals
from node.operations.schedules import ListCrons
from node.operations.webhooks import ListWebhooks, WebhookShown
from node.operations.workers import ListWorkers, WorkerList
from node.state.queue import BUCKETS
from node.state.schedule import Cron

from .replies import (
    Collected,
    Collections,
    Connections,
    Health,
    HealthCluster,
    HealthQueues,
    HeapCounts,
    HeapStats,
    Megabytes,
    Metrics,
    ObjectCount,
    Pong,
    PongData,
    Ready,
    Stats,
    StatsOf,
    Storage,
    StorageData,
    TotalsShown,
)

MIB = 1 << 20
TYPES_SHOWN = 20
QUEUES_SHOWN = 500
# A histogram takes twenty lines, so those of fewer queues are shown.
TIMED_QUEUES_SHOWN = 100
ENCODE = msgspec.json.Encoder().encode


def memory() -> Megabytes:
    """Return what this process holds of memory: its own (the heap, as far as this runtime can tell) and all that is resident."""
    try:
        pages = [int(word) for word in Path("/proc/self/statm").read_text("ascii").split()]
        page = resource.getpagesize()
        resident, own, total = pages[1] * page, (pages[1] - pages[2]) * page, pages[5] * page
    except (OSError, IndexError, ValueError):
        # Not Linux: the peak is the nearest there is.
        unit = 1 if sys.platform == "darwin" else 1024
        resident = own = total = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return Megabytes(heap_used=own // MIB, heap_total=max(own, total) // MIB, rss=resident // MIB)


def whole(total: Total) -> Total:
    return total


async def totals(call: Call, *, stale: bool) -> Total:
    total: Total = await call.node.ask(Totals(), whole, stale=stale)
    return total


async def ready(call: Call) -> Reply:
    is_ready, why = call.server.readiness()
    if is_ready:
        return Reply(200, ENCODE(Ready(ok=True, ready=True)))
    return Reply(503, ENCODE(NotReady(ok=False, ready=False, error=why)))


async def alive(call: Call) -> Reply:
    """Answer as long as the event loop turns, whatever the cluster is doing."""
    return Reply(200, b"OK", TEXT)


async def started(call: Call) -> Reply:
    """Answer whether the log has been replayed."""
    if call.server.node_started:
        return Reply(200, b"OK", TEXT)
    return Reply(503, ENCODE(NotReady(ok=False, ready=False, error=REPLAYING)))


async def health(call: Call) -> Reply:
    is_ready, why = call.server.readiness()
    total = await totals(call, stale=True)
    status = call.node.status()
    counts = total.counts
    shown = Health(
        ok=True,
        status="healthy" if is_ready else "degraded",
        uptime=uptime_s(call),
        version=VERSION,
        queues=HealthQueues(
            waiting=counts.waiting,
            active=counts.active,
            delayed=counts.delayed,
            completed=counts.completed,
            dlq=counts.failed,
        ),
        connections=Connections(
            tcp=0, ws=call.server.streams.sockets, sse=call.server.streams.clients, http=call.server.connections
        ),
        memory=memory(),
        cluster=HealthCluster(
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


def uptime_s(call: Call) -> int:
    return int(time.monotonic() - call.server.started_at)


async def ping(call: Call) -> Reply:
    return Reply(200, ENCODE(Pong(ok=True, data=PongData(pong=True, time=time.time_ns() // 1_000_000))))


async def stats(call: Call) -> Reply:
    total = await totals(call, stale=call.stale)
    used = memory()
    # Kinds of memory that this runtime does not have.
    used.external = used.array_buffers = 0
    counts = total.counts
    rates = await call.server.streams.watch.rates()
    # The totals were as fresh as was asked for; what is asked of the same copy after them is no older.
    workers = await call.node.ask(ListWorkers(), registered, stale=True)
    crons, pending = await call.node.ask(ListCrons(), all_and_pending, stale=True)
    webhooks = await call.node.ask(ListWebhooks(), many, stale=True)
    shown = Stats(
        ok=True,
        stats=StatsOf(
            waiting=counts.waiting,
            delayed=counts.delayed,
            active=counts.active,
            completed=counts.completed,
            dlq=counts.failed,
            prioritized=0,
            waiting_children=counts.waiting_children,
            total_pushed=total.pushed,
            total_pulled=total.pulled,
            total_completed=total.completed,
            total_failed=total.failed,
            queues=total.queues,
            workers=workers,
            cron_jobs=crons,
            cron_pending=pending,
            webhooks=webhooks,
            uptime=uptime_s(call),
            push_per_sec=rates["pushPerSec"],
            pull_per_sec=rates["pullPerSec"],
            complete_per_sec=rates["completePerSec"],
            fail_per_sec=rates["failPerSec"],
        ),
        memory=used,
        collections=summed(total),
    )
    return Reply(200, ENCODE(shown))


def many(records: list[Any]) -> int:
    return len(records)


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


def summed(total: Total) -> Collections:
    """Return how many records the collections hold."""
    counts = total.counts
    queued = counts.waiting + counts.delayed
    return Collections(
        job_index=queued + counts.active + counts.waiting_children + counts.completed + counts.failed,
        completed_jobs=counts.completed,
        processing_total=counts.active,
        queued_total=queued,
        waiting_deps_total=counts.waiting_children,
        temporal_index_total=queued,
    )


async def storage(call: Call) -> Reply:
    """Say whether this node can write, from its log and its file system."""
    state = await call.server.disk.look(call.node)
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


async def prometheus(call: Call) -> Reply:
    """Write the figures of the queues and of this node, without waiting for the cluster."""
    total = await totals(call, stale=True)
    page = Page()
    write_jobs(page, total)
    page.gauge("bunqueue_uptime_seconds", "Server uptime in seconds", uptime_s(call))
    page.gauge(
        "bunqueue_cron_jobs_registered", "Number of cron jobs", await call.node.ask(ListCrons(), many, stale=True)
    )
    await call.node.ask(ListWorkers(), partial(write_workers, page), stale=True)
    await call.node.ask(ListWebhooks(), partial(write_webhooks, page), stale=True)
    page.gauge("quorumq_queues", "Number of queues", total.queues)
    # Of very many queues only the oldest, so that a page stays readable.
    await call.node.ask(QueueFigures(QUEUES_SHOWN), partial(write_queues, page), stale=True)
    write_pushers(page, call)
    await write_node(page, call)
    return Reply(200, page.text(), CONTENT_TYPE)


def write_jobs(page: Page, total: Total) -> None:
    """Write the sums over all queues, under the documented server's names."""
    counts = total.counts
    page.gauge("bunqueue_jobs_waiting", "Number of jobs waiting in queue", counts.waiting)
    page.gauge("bunqueue_jobs_prioritized", "Number of waiting jobs with a priority above 0", counts.prioritized)
    page.gauge("bunqueue_jobs_delayed", "Number of delayed jobs", counts.delayed)
    page.gauge("bunqueue_jobs_active", "Number of jobs being processed", counts.active)
    page.gauge("bunqueue_jobs_waiting_children", "Number of jobs waiting for other jobs", counts.waiting_children)
    page.gauge("bunqueue_jobs_dlq", "Number of jobs in dead letter queue", counts.failed)
    page.gauge("bunqueue_jobs_completed", "Number of completed jobs kept", counts.completed)
    page.counter("bunqueue_jobs_pushed_total", "Total jobs pushed", total.pushed)
    page.counter("bunqueue_jobs_pulled_total", "Total jobs pulled", total.pulled)
    page.counter("bunqueue_jobs_completed_total", "Total jobs completed", total.completed)
    page.counter("bunqueue_jobs_failed_total", "Total jobs failed", total.failed)


def write_workers(page: Page, found: WorkerList) -> None:
    page.gauge("bunqueue_workers_registered", "Number of registered workers", len(found.workers))
    page.gauge("bunqueue_workers_active", "Number of workers heard of lately", found.active)
    page.gauge("bunqueue_worker_active_jobs", "Number of jobs that workers say they work on", found.active_jobs)
    page.gauge("bunqueue_worker_concurrency_slots", "Jobs that workers say they can work on at once", found.slots)
    page.counter("bunqueue_workers_processed_total", "Total jobs that workers say they completed", found.processed)
    page.counter("bunqueue_workers_failed_total", "Total jobs that workers say they failed", found.failed)


def write_webhooks(page: Page, found: list[WebhookShown]) -> None:
    hooks = [one.webhook for one in found]
    page.gauge("bunqueue_webhooks_registered", "Number of webhooks", len(hooks))
    page.gauge("bunqueue_webhooks_enabled", "Number of enabled webhooks", sum(hook.enabled for hook in hooks))
    waiting = sum(one.waiting for one in found)
    page.gauge("quorumq_webhook_deliveries_waiting", "Deliveries that have neither arrived nor been given up", waiting)
    outcomes = [
        ({"outcome": "delivered"}, float(sum(hook.succeeded for hook in hooks))),
        ({"outcome": "failed"}, float(sum(hook.failed for hook in hooks))),
        ({"outcome": "dropped"}, float(sum(hook.dropped for hook in hooks))),
    ]
    text = "Deliveries of the present webhooks by what became of them"
    page.write("quorumq_webhook_deliveries", "gauge", text, outcomes)


def write_pushers(page: Page, call: Call) -> None:
    pushers, pushing = call.node.machine.state.pushers, call.node.pushing
    page.gauge("quorumq_push_registered", "Number of push workers in the cluster", len(pushers.by_queue))
    if pushing is None:
        return
    page.gauge("quorumq_push_served", "Push workers that this node serves", pushing.served)
    page.gauge("quorumq_push_in_flight", "Jobs that this node's push workers hold", pushing.under_way)
    page.gauge("quorumq_push_open_circuits", "Endpoints that this node knows to be down", pushing.open_circuits)
    page.gauge("quorumq_push_connections", "Connections of this node to endpoints", pushing.connections)
    found = pushing.figures
    page.counter("quorumq_push_deliveries_total", "Jobs that this node has delivered to endpoints", found.deliveries)
    outcomes = [
        ({"outcome": "completed"}, float(found.completed)),
        ({"outcome": "failed"}, float(found.failed)),
        ({"outcome": "put_back"}, float(found.put_back)),
    ]
    page.write("quorumq_push_outcomes_total", "counter", "What became of those deliveries", outcomes)
    text = "Results that came too late, because the job's lock had been lost"
    page.counter("quorumq_push_results_lost_total", text, found.lost)
    seconds = found.seconds
    text = "Time from taking a job to the end of its call"
    page.buckets("quorumq_push_seconds", text, seconds.bounds, seconds.counts, seconds.sum)


# Every second bucket of the state's histograms: bucket n ends with the last millisecond before 2 to the nth.
BOUNDS = tuple(((1 << bits) - 1) / 1000 for bits in range(0, BUCKETS - 1, 2))
# Name, the field of the counters that it shows, and what it says.
FLOWS = (
    ("pushed", "pushed", "Jobs pushed per queue"),
    ("pulled", "pulled", "Jobs taken per queue"),
    ("completed", "completed", "Jobs completed per queue"),
    ("failed", "failed", "Jobs sent to the dead letter queue per queue"),
)
# Name, the fields of the counters with the histogram and its sum, and what it says.
TIMES = (
    ("wait", "waits", "wait_ms", "Time from when a job could be taken until it was"),
    ("run", "runs", "run_ms", "Time that a run took until it completed, failed or was given up"),
)
# Name, the field of the counts that it shows, and what it says.
GAUGES = (
    ("waiting", "waiting", "Number of waiting jobs per queue"),
    ("prioritized", "prioritized", "Number of waiting jobs with a priority above 0 per queue"),
    ("delayed", "delayed", "Number of delayed jobs per queue"),
    ("active", "active", "Number of active jobs per queue"),
    ("waiting_children", "waiting_children", "Number of jobs waiting for other jobs per queue"),
    ("completed", "completed", "Number of completed jobs kept per queue"),
    ("dlq", "failed", "Number of jobs in dead letter queue per queue"),
)


def write_queues(page: Page, figures: list[QueueFigure]) -> None:
    """Write the figures of each queue."""
    labelled: list[tuple[Labels, QueueFigure]] = [({"queue": one.name}, one) for one in figures]
    for word, field, text in GAUGES:
        values = [(labels, float(getattr(one.counts, field))) for labels, one in labelled]
        page.write(f"bunqueue_queue_jobs_{word}", "gauge", text, values)
    paused = [(labels, int(one.counts.paused)) for labels, one in labelled]
    page.write("quorumq_queue_paused", "gauge", "Whether a queue is paused", paused)
    now_ms = time.time_ns() // 1_000_000
    ages = [(labels, 0 if one.ready_at is None else max(0, now_ms - one.ready_at) / 1000) for labels, one in labelled]
    text = "Seconds for which the job has been ready that was ready first and that nobody took, 0 without one"
    page.write("quorumq_queue_oldest_claimable_age_seconds", "gauge", text, ages)
    for word, field, text in FLOWS:
        flows = [(labels, float(getattr(one.counters, field))) for labels, one in labelled]
        page.write(f"quorumq_queue_jobs_{word}_total", "counter", text, flows)
    for word, counts, total, text in TIMES:
        found = [
            (labels, shown_buckets(getattr(one.counters, counts)), getattr(one.counters, total) / 1000)
            for labels, one in labelled[:TIMED_QUEUES_SHOWN]
        ]
        page.series(f"quorumq_queue_{word}_seconds", text, BOUNDS, found)


def shown_buckets(counts: list[int]) -> list[int]:
    """Return how many durations are within each of BOUNDS, and how many there are."""
    below = list(accumulate(counts))
    return [*below[: BUCKETS - 1 : 2], below[-1]]


async def write_node(page: Page, call: Call) -> None:
    """Write what concerns this node and its place in the cluster."""
    server, status = call.server, call.node.status()
    is_ready, _ = server.readiness()
    labels = {"node": status.node_id, "version": VERSION, "cluster": status.cluster_name}
    page.write("quorumq_node_info", "gauge", "This node; always 1", [(labels, 1)])
    page.gauge("quorumq_ready", "Whether requests should be sent to this node", is_ready)
    page.gauge("quorumq_leader", "Whether this node leads", status.role == "leader")
    page.gauge("quorumq_quorum", "Whether this node sees a majority", status.has_quorum)
    page.gauge("quorumq_term", "Term of the cluster as this node knows it", status.term)
    page.gauge("quorumq_commit_index", "Last log entry known to be committed", status.commit_index)
    page.gauge("quorumq_applied_index", "Last log entry applied here", status.applied_index)
    page.gauge("quorumq_last_index", "Last log entry here", status.last_index)
    page.gauge("quorumq_durable_index", "Last log entry on this node's disk", status.durable_index)
    page.gauge("quorumq_snapshot_index", "Last log entry in the newest snapshot", status.snapshot_index)
    page.gauge(
        "quorumq_apply_lag_entries", "Committed entries not applied here", status.commit_index - status.applied_index
    )
    others = [(member, {"peer": member.id}) for member in status.members if not member.self]
    connected = [(labels, float(member.connected)) for member, labels in others]
    page.write("quorumq_peer_connected", "gauge", "Whether this node is connected to another", connected)
    behind = [(labels, float(member.lag)) for member, labels in others if member.lag is not None]
    page.write(
        "quorumq_replication_lag_entries", "gauge", "Entries a follower misses; known to the leader only", behind
    )
    page.counter("quorumq_apply_errors_total", "Operations skipped because of a bug", call.node.machine.errors)
    metrics = getattr(call.node.engine, "metrics", None)
    if metrics is not None:
        write_replication(page, metrics)
    disk = await server.disk.look(call.node)
    page.gauge("quorumq_disk_full", "Whether this node cannot write for want of space", disk.full)
    page.gauge("quorumq_log_bytes", "Bytes of the log on disk", disk.log_bytes)
    if disk.free_bytes is not None:
        page.gauge("quorumq_disk_free_bytes", "Bytes free where the data lies", disk.free_bytes)
    used = memory()
    page.gauge("quorumq_memory_resident_bytes", "Resident memory, to the megabyte", used.rss * MIB)
    page.gauge("quorumq_http_connections", "Open connections", server.connections)
    page.gauge("quorumq_http_requests_under_way", "Requests under way, long polls included", server.under_way)
    replies = [({"status": f"{kind}xx"}, float(count)) for kind, count in enumerate(server.replies) if kind]
    page.write("quorumq_http_replies_total", "counter", "Replies by kind of status", replies)
    refused = [({"status": str(status)}, float(count)) for status, count in sorted(server.audit.refusals.items())]
    page.write("quorumq_http_refused_total", "counter", "Requests refused for want of a token or a right", refused)
    page.gauge("quorumq_tokens", "Tokens that this node knows", server.access.count)
    if server.access.file is not None:
        page.gauge("quorumq_tokens_file_ok", "Whether AUTH_TOKENS_FILE could be used last", not server.access.trouble)
        text = "Times that AUTH_TOKENS_FILE could not be used"
        page.counter("quorumq_tokens_file_failures_total", text, server.access.failures)
    page.histogram("quorumq_write_seconds", "Time from an operation's request to its local apply", server.writes)


# Name, the field of the engine's metrics that it shows, and what it says.
HISTOGRAMS = (
    ("log_sync_seconds", "sync_seconds", "Time to write and sync a group of the log"),
    ("commit_seconds", "commit_seconds", "Time from proposing an entry to applying it, on the leader"),
    ("apply_seconds", "apply_seconds", "Time to apply an entry"),
    ("entry_bytes", "entry_bytes", "Bytes of an entry"),
    ("entry_batches", "entry_batches", "Batches that shared an entry, on the leader"),
    ("loop_delay_seconds", "loop_seconds", "How late the event loop came to what was due, looked at 50 times a second"),
)
COUNTERS = (
    ("elections_total", "elections", "Elections that this node stood in"),
    ("leader_changes_total", "leader_changes", "Times that this node saw a new leader"),
    ("batches_resent_total", "batches_resent", "Batches of this node that were sent again"),
    ("loop_stalls_total", "loop_stalls", "Times that the event loop stood still for more than a quarter of a second"),
    ("log_failures_total", "log_failures", "Times that the log could not be written"),
    ("snapshots_total", "snapshots", "Snapshots written"),
    ("snapshot_failures_total", "snapshot_failures", "Snapshots that could not be written"),
)


def write_replication(page: Page, found: Replication) -> None:
    """Write what the replication counts of itself."""
    for name, field, text in HISTOGRAMS:
        one = getattr(found, field)
        page.buckets(f"quorumq_{name}", text, one.bounds, one.counts, one.sum)
    for name, field, text in COUNTERS:
        page.counter(f"quorumq_{name}", text, getattr(found, field))
    page.gauge("quorumq_loop_longest_delay_seconds", "The latest that it came so far", found.loop_longest_seconds)
    page.gauge("quorumq_snapshot_bytes", "Bytes of the newest snapshot of this process", found.snapshot_bytes)
    page.gauge("quorumq_snapshot_timestamp_seconds", "When it was finished, 0 for never", found.snapshot_at)
    if found.snapshot_at:
        age = max(0.0, time.time() - found.snapshot_at)
        page.gauge("quorumq_snapshot_age_seconds", "Seconds since it was finished", age)
    text = "Seconds for which the loop stood still for the last snapshot's fork"
    page.gauge("quorumq_snapshot_fork_seconds", text, found.snapshot_fork_seconds)


ROUTES: tuple[Route, ...] = grouped(
    "Monitoring",
    plain("GET", "/health", health, what=Totals, reply=Health, right="open", limited=False,
          about="How the node, its queues and its cluster are; always 200."),
    plain("GET", "/healthz", alive, reply=Text, right="open", limited=False, about="Whether the process runs."),
    plain("GET", "/live", alive, reply=Text, right="open", limited=False, about="Whether the process runs."),
    plain("GET", "/livez", alive, reply=Text, right="open", limited=False, about="Whether the process runs."),
    plain("GET", "/ready", ready, reply=Ready, right="open", limited=False,
          about="Whether requests should be sent to this node: 200, or 503 with the reason."),
    plain("GET", "/readyz", ready, reply=Ready, right="open", limited=False, about="The same as /ready."),
    plain("GET", "/startupz", started, reply=Text, right="open", limited=False,
          about="Whether the log has been replayed."),
    plain("GET", "/ping", ping, reply=Pong, right="read", scope="nothing", about="Answer with this node's time."),
    plain("GET", "/stats", stats, what=Totals, asks=(CONSISTENCY,), reply=Stats, right="read",
          about="Sums over all queues, memory and collections."),
    plain("GET", "/metrics", metrics, what=Totals, asks=(CONSISTENCY,), reply=Metrics, right="read",
          about="How many jobs went through, as JSON."),
    plain("GET", "/prometheus", prometheus, what=Totals, reply=Text, right="metrics",
          about="Figures for Prometheus; needs a token when METRICS_AUTH is true."),
    plain("GET", "/storage", storage, reply=Storage, right="read", scope="nothing",
          about="Whether this node can write to its disk."),
    plain("POST", "/gc", collect, reply=Collected, right="manage:all", limited=False,
          about="Collect garbage and give free memory back; figures in MB."),
    plain("GET", "/heapstats", heap, reply=HeapStats, right="read", limited=False,
          about="Objects of this process by type."),
)  # fmt: skip

"""The page that Prometheus reads: figures of the queues and of this node."""

from __future__ import annotations

import time
from functools import partial
from itertools import accumulate
from typing import get_args

from quorumq.api.door import TURNED_AWAY, Ended
from quorumq.api.host import Host
from quorumq.api.metrics import CONTENT_TYPE, Labels, MetricsPage
from quorumq.api.outgoing.services import Outgoing
from quorumq.api.reply import Reply
from quorumq.api.request import Call
from quorumq.cluster.metrics import ReplicationMetrics
from quorumq.cluster.version import VERSION
from quorumq.node.machine.operations.queue_reads import QueueFigure, QueueFigures, Total
from quorumq.node.machine.operations.schedules import ListCrons
from quorumq.node.machine.operations.webhooks import ListWebhooks, WebhookShown
from quorumq.node.machine.operations.workers import ListWorkers, WorkerList
from quorumq.node.machine.state.outcomes import Outcomes
from quorumq.node.machine.state.queue import BUCKETS

from . import figures
from .figures import MIB, memory, totals, uptime_s

QUEUES_SHOWN = 500
# A histogram takes twenty lines, so those of fewer queues are shown.
TIMED_QUEUES_SHOWN = 100
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
    ("peers_refused_total", "peers_refused", "Connections at the peer port that were refused"),
    ("peer_messages_refused_total", "peer_messages_refused", "Messages of proven peers that ended their connection"),
    ("relayed_total", "relayed", "Messages passed on between members that have no link"),
    ("relay_drops_total", "relay_drops", "Messages that could not be passed on between members that have no link"),
    ("log_failures_total", "log_failures", "Times that the log could not be written"),
    (
        "entries_refused_total",
        "entries_refused",
        "Messages with entries passed over because too much waits to be written",
    ),
    ("disk_hangs_total", "disk_hangs", "Times that a write of the log did not return for long"),
    ("log_clock_jumps_total", "clock_jumps", "Times that the log's clock was set by a majority's clocks at once"),
    ("snapshots_total", "snapshots", "Snapshots written"),
    ("snapshot_failures_total", "snapshot_failures", "Snapshots that could not be written"),
    ("snapshot_stalls_total", "snapshot_stalls", "Snapshots whose writer made no progress and was ended"),
)


async def figures_page(call: Call) -> Reply:
    """Write the figures of the queues and of this node, without waiting for the cluster."""
    total = await totals(call, stale=True)
    page = MetricsPage()
    write_jobs(page, total)
    page.gauge("bunqueue_uptime_seconds", "Server uptime in seconds", uptime_s(call))
    page.gauge(
        "bunqueue_cron_jobs_registered",
        "Number of cron jobs",
        await call.node.ask(ListCrons(), figures.many, stale=True),
    )
    await call.node.ask(ListWorkers(), partial(write_workers, page), stale=True)
    await call.node.ask(ListWebhooks(), partial(write_webhooks, page), stale=True)
    page.gauge("quorumq_queues", "Number of queues", total.queues)
    # Of very many queues only the oldest, so that a page stays readable.
    await call.node.ask(QueueFigures(QUEUES_SHOWN), partial(write_queues, page, call.node.now_ms()), stale=True)
    write_keys(page, call.node.machine.state.outcomes)
    write_pushers(page, call)
    await write_node(page, call)
    return Reply(200, page.text(), CONTENT_TYPE)


def write_jobs(page: MetricsPage, total: Total) -> None:
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


def write_workers(page: MetricsPage, found: WorkerList) -> None:
    page.gauge("bunqueue_workers_registered", "Number of registered workers", len(found.workers))
    page.gauge("bunqueue_workers_active", "Number of workers heard of lately", found.active)
    page.gauge("bunqueue_worker_active_jobs", "Number of jobs that workers say they work on", found.active_jobs)
    page.gauge("bunqueue_worker_concurrency_slots", "Jobs that workers say they can work on at once", found.slots)
    page.counter("bunqueue_workers_processed_total", "Total jobs that workers say they completed", found.processed)
    page.counter("bunqueue_workers_failed_total", "Total jobs that workers say they failed", found.failed)


def write_webhooks(page: MetricsPage, found: list[WebhookShown]) -> None:
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


def write_keys(page: MetricsPage, outcomes: Outcomes) -> None:
    page.gauge("quorumq_idempotency_keys", "Idempotency keys whose answers are kept", len(outcomes))
    page.gauge("quorumq_idempotency_bytes", "Bytes that those answers count for", outcomes.size)
    text = "Idempotency keys of which only a digest is kept: a repeat is refused as key_forgotten"
    page.gauge("quorumq_idempotency_digests", text, outcomes.digests)
    text = "Idempotency keys whose answers had to go before their day was over"
    page.counter("quorumq_idempotency_evicted_total", text, outcomes.evicted)
    text = "Idempotency keys that were forgotten altogether before their day was over: a repeat is done again"
    page.counter("quorumq_idempotency_lost_total", text, outcomes.lost)


def write_pushers(page: MetricsPage, call: Call) -> None:
    pushers, pushing = call.node.machine.state.pushers, call.server.service(Outgoing).push_workers
    page.gauge("quorumq_push_registered", "Number of push workers in the cluster", len(pushers.by_queue))
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


def write_queues(page: MetricsPage, now_ms: int, figures: list[QueueFigure]) -> None:
    """Write the figures of each queue."""
    labelled: list[tuple[Labels, QueueFigure]] = [({"queue": one.name}, one) for one in figures]
    for word, field, text in GAUGES:
        values = [(labels, float(getattr(one.counts, field))) for labels, one in labelled]
        page.write(f"bunqueue_queue_jobs_{word}", "gauge", text, values)
    paused = [(labels, int(one.counts.paused)) for labels, one in labelled]
    page.write("quorumq_queue_paused", "gauge", "Whether a queue is paused", paused)
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


async def write_node(page: MetricsPage, call: Call) -> None:
    """Write what concerns this node and its place in the cluster."""
    host, status = call.server.service(Host), call.node.status()
    is_ready, _ = host.readiness()
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
    clocks = [
        ({"node": member.id}, member.clock_offset_ms / 1000)
        for member in status.members
        if member.clock_offset_ms is not None
    ]
    page.write("quorumq_clock_offset_seconds", "gauge", "A node's wall clock less the log's clock", clocks)
    page.counter("quorumq_apply_errors_total", "Operations skipped because of a bug", call.node.machine.errors)
    page.gauge(
        "quorumq_apart", "Whether this node's state differs from that of a majority that agrees", bool(status.apart)
    )
    page.gauge("quorumq_members_differing", "Members whose state differs from this node's", len(status.differing))
    page.gauge("quorumq_agreed_index", "Newest entry at which the members' states were equal", status.agreed_index)
    metrics = getattr(call.node.engine, "metrics", None)
    if metrics is not None:
        write_replication(page, metrics)
    disk = await host.disk.look(call.node)
    page.gauge("quorumq_disk_full", "Whether this node cannot write for want of space", disk.full)
    page.gauge("quorumq_log_bytes", "Bytes of the log on disk", disk.log_bytes)
    if disk.free_bytes is not None:
        page.gauge("quorumq_disk_free_bytes", "Bytes free where the data lies", disk.free_bytes)
    used = memory()
    page.gauge("quorumq_memory_resident_bytes", "Resident memory, to the megabyte", used.rss * MIB)
    page.gauge("quorumq_http_connections", "Open connections of HTTP", host.http_connections)
    page.gauge("quorumq_tcp_connections", "Open connections of bunqueue's own protocol", host.tcp_connections)
    text = "Requests, and commands over TCP, under way, long polls included"
    page.gauge("quorumq_http_requests_under_way", text, host.under_way)
    if host.tcp is not None:
        page.counter("quorumq_tcp_commands_total", "Commands over TCP", host.tcp.commands)
        page.counter(
            "quorumq_tcp_polls_total", "Polls among them that were known to find nothing", host.tcp.polls_known
        )
    replies = [({"status": f"{kind}xx"}, float(count)) for kind, count in enumerate(host.replies) if kind]
    page.write("quorumq_http_replies_total", "counter", "Replies by kind of status", replies)
    refused = [({"status": str(status)}, float(count)) for status, count in sorted(host.audit.refusals.items())]
    page.write("quorumq_http_refused_total", "counter", "Requests refused for want of a token or a right", refused)
    door = host.door
    page.gauge("quorumq_http_connections_max", "Open connections that clients may have", door.connections_max)
    page.gauge(
        "quorumq_http_unfinished_heads",
        "Connections whose next request has begun and is not whole",
        len(door.unfinished),
    )
    turned = [({"why": why}, float(door.counts[why])) for why in TURNED_AWAY]
    page.write("quorumq_http_turned_away_total", "counter", "Connections beyond a bound, by which bound", turned)
    cut_off = [({"why": why}, float(door.counts[why])) for why in get_args(Ended)]
    text = "Connections ended for what took too long or was too much, or to make room"
    page.write("quorumq_http_cut_off_total", "counter", text, cut_off)
    if host.certificate is not None:
        host.certificate.write_figures(page, door)
    page.gauge("quorumq_http_body_bytes", "Bytes of bodies that are under way", host.bodies.pending_bytes)
    page.gauge("quorumq_http_large_bodies_waiting", "Large bodies that wait for their turn", host.bodies.waiting)
    page.gauge("quorumq_tokens", "Tokens that this node knows", host.access.count)
    if host.access.file is not None:
        page.gauge("quorumq_tokens_file_ok", "Whether AUTH_TOKENS_FILE could be used last", not host.access.trouble)
        text = "Times that AUTH_TOKENS_FILE could not be used"
        page.counter("quorumq_tokens_file_failures_total", text, host.access.failures)
    page.histogram("quorumq_write_seconds", "Time from an operation's request to its local apply", host.writes)


def write_replication(page: MetricsPage, found: ReplicationMetrics) -> None:
    """Write what the replication counts of itself."""
    for name, field, text in HISTOGRAMS:
        one = getattr(found, field)
        page.buckets(f"quorumq_{name}", text, one.bounds, one.counts, one.sum)
    for name, field, text in COUNTERS:
        page.counter(f"quorumq_{name}", text, getattr(found, field))
    text = "For how long the write of the log that is under way has been, 0 without one"
    page.gauge("quorumq_disk_waiting_seconds", text, found.disk_waiting_seconds)
    page.gauge(
        "quorumq_peers_by_relay", "Members that this node reaches through another one only", found.peers_by_relay
    )
    page.gauge("quorumq_loop_longest_delay_seconds", "The latest that it came so far", found.loop_longest_seconds)
    page.gauge("quorumq_log_unwritten_bytes", "Bytes that wait to be written to the log", found.log_unwritten_bytes)
    page.gauge("quorumq_whole", "0 while this node may have lost what it promised, else 1", int(found.whole))
    page.gauge("quorumq_snapshot_waits", "Whether a snapshot is due that waits for its turn", found.snapshot_waits)
    page.gauge("quorumq_snapshot_bytes", "Bytes of the newest snapshot of this process", found.snapshot_bytes)
    page.gauge("quorumq_snapshot_timestamp_seconds", "When it was finished, 0 for never", found.snapshot_at)
    if found.snapshot_at:
        age = max(0.0, time.time() - found.snapshot_at)
        page.gauge("quorumq_snapshot_age_seconds", "Seconds since it was finished", age)
    text = "Seconds for which the loop stood still for the last snapshot's fork"
    page.gauge("quorumq_snapshot_fork_seconds", text, found.snapshot_fork_seconds)

"""What dashboards ask of the documented server beyond its document: everything on one page, queues in numbers, limits, keys."""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated, Any, cast

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from quorumq.api.errors import Invalid
from quorumq.api.host import Host
from quorumq.api.latency import Latency
from quorumq.api.reply import Reply
from quorumq.api.request import CONSISTENCY, Call, Command, Parameter
from quorumq.api.rows import ask, grouped, plain, write
from quorumq.api.values import COUNT_MAX
from quorumq.node.machine.operations.dlq import ListDlq, RemoveDeadJob
from quorumq.node.machine.operations.jobs import Counted
from quorumq.node.machine.operations.keys import FreeKey, FreeKeyOfJob, GetKeyHolder
from quorumq.node.machine.operations.minutes import GetSeries, Series
from quorumq.node.machine.operations.overview import (
    GetLimits,
    GetPortrait,
    Limits,
    ListBlocked,
    ListBriefs,
    Portrait,
    QueuePage,
)
from quorumq.node.machine.operations.queue_reads import ListJobs, PriorityCounts, Totals
from quorumq.node.machine.operations.schedules import ListCrons
from quorumq.node.machine.operations.workers import ListWorkers, WorkerList
from quorumq.node.machine.state.queue import Limit

from . import crons, figures, job_object, queues, replies, workers
from .streams import LiveStreams
from .values import page, query_number, queue_of
from .watch import Throughput

ENCODE = msgspec.json.Encoder().encode
# Queues, workers and crons on one page; further ones are to be asked for.
SHOWN_MAX = 10_000
LISTED_MAX = 50
PREVIEW = 10
JOBS_SHOWN = 100
SHARES = (0.5, 0.95, 0.99)
COUNT = {"type": "integer", "minimum": 0}
START = Parameter("start", "Minutes to skip, from the last one back.", {**COUNT, "default": 0})
END = Parameter("end", "The last minute to show, counted from 0; -1 for all.", {"type": "integer", "default": -1})
LIMIT = Parameter("limit", f"Queues, at most; left out, {SHOWN_MAX:,}.", COUNT)
OFFSET = Parameter("offset", "Queues to skip.", {**COUNT, "default": 0})
WITH_JOBS = Parameter("includeJobs", "Whether jobs are listed, too.", {"type": "boolean", "default": False})
JOBS_LIMIT = Parameter("jobsLimit", "Those jobs, at most.", {**COUNT, "default": JOBS_SHOWN})


class SummaryCounts(Struct, forbid_unknown_fields=True):
    waiting: int
    prioritized: int
    active: int
    completed: int
    failed: int
    delayed: int


class QueueSummary(Struct, forbid_unknown_fields=True):
    name: str
    paused: bool
    counts: SummaryCounts


BlockedBy = Annotated[
    tuple[Limit, ...],
    Meta(description="Limits of 0, which let no job start; `groups`: those of some groups, for their jobs."),
]
LimitedGroups = Annotated[int, Meta(description="Groups with limits of their own, or that are paused or held.")]


class DashboardStats(Struct, forbid_unknown_fields=True, rename="camel"):
    waiting: int
    active: int
    delayed: int
    completed: int
    dlq: int
    total_pushed: int
    total_pulled: int
    total_completed: int
    total_failed: int
    uptime: int


class Percentiles(Struct, forbid_unknown_fields=True):
    """Milliseconds within which a share of the operations were done: half of them, 95 and 99 of a hundred."""

    p50: float
    p95: float
    p99: float


class Averages(Struct, forbid_unknown_fields=True, rename="camel"):
    """Milliseconds that the operations took."""

    push_ms: float
    pull_ms: float
    ack_ms: float


class Operations(Struct, forbid_unknown_fields=True):
    push: Percentiles
    pull: Percentiles
    ack: Percentiles


class LatencyShown(Struct, forbid_unknown_fields=True):
    """How long this node took for pushes, for pulls that did not wait, and for acknowledgements, since it was started."""

    averages: Averages
    percentiles: Operations


class WorkersListed(Struct, forbid_unknown_fields=True):
    total: int
    active: int
    listed: list[workers.WorkerShown] = field(name="list")
    truncated: bool


class CronsListed(Struct, forbid_unknown_fields=True):
    total: int
    listed: list[crons.CronShown] = field(name="list")
    truncated: bool


class StorageBrief(Struct, forbid_unknown_fields=True, rename="camel"):
    disk_full: bool
    error: str | None
    since: replies.Millis | None


class BlockedShown(Struct, forbid_unknown_fields=True, rename="camel"):
    queue: str
    blocked_by: BlockedBy


class BlockedListed(Struct, forbid_unknown_fields=True):
    """Queues that stand still because a limit of theirs is 0."""

    total: int
    listed: list[BlockedShown] = field(name="list")
    truncated: bool


class Dashboard(replies.Success):
    stats: DashboardStats
    throughput: Throughput
    latency: LatencyShown
    memory: figures.Megabytes
    collections: figures.Collections
    workers: WorkersListed
    crons: CronsListed
    blocked: BlockedListed
    storage: StorageBrief
    timestamp: replies.Millis


class DashboardQueueShown(Struct, forbid_unknown_fields=True, rename="camel"):
    name: str
    waiting: int
    prioritized: int
    delayed: int
    active: int
    dlq: int
    paused: bool
    blocked_by: BlockedBy


class DashboardQueues(replies.Success):
    queues: list[DashboardQueueShown]
    total: int
    limit: int
    offset: int
    timestamp: replies.Millis


class DashboardCounts(Struct, forbid_unknown_fields=True):
    waiting: int
    prioritized: int
    delayed: int
    active: int
    completed: int
    failed: int
    waiting_children: int = field(name="waiting-children")
    paused: int
    total_completed: Annotated[int, Meta(description="Since the queue was created.")] = field(name="totalCompleted")
    total_failed: Annotated[int, Meta(description="Since the queue was created.")] = field(name="totalFailed")


class DashboardHead(replies.Success):
    """What is there of a queue beside its jobs."""

    name: str
    counts: DashboardCounts
    paused: bool
    blocked_by: BlockedBy
    limited_groups: LimitedGroups
    priority_counts: dict[int, int]
    timestamp: replies.Millis


class DashboardQueue(DashboardHead):
    dlq_preview: list[job_object.JobShown]
    jobs: list[job_object.JobShown] | UnsetType = UNSET


class RateShown(Struct, forbid_unknown_fields=True):
    max: int
    duration: replies.Millis


GroupTtl = Annotated[
    int,
    Meta(
        description="Milliseconds left of a hold, else of the window under way; -2 without either, 0 while `maxJobs` have not started."
    ),
]


class LimitsShown(Struct, forbid_unknown_fields=True, rename="camel"):
    rate_limit: RateShown | None
    rate_limit_ttl: Annotated[int, Meta(description="Milliseconds left of it; -1 without an end, -2 without a limit.")]
    concurrency_limit: int | None
    maxed: Annotated[bool, Meta(description="Whether one of them holds jobs back at this moment.")]
    blocked_by: BlockedBy
    limited_groups: LimitedGroups


class SeriesMeta(Struct, forbid_unknown_fields=True, rename={"prev_ts": "prevTS", "prev_count": "prevCount"}):
    count: Annotated[int, Meta(description="Jobs that ended so since the queue is there.")]
    prev_ts: Annotated[int, Meta(description="When the last one did, milliseconds since the epoch; 0 for never.")]
    prev_count: Annotated[int, Meta(description="How many did in the last minute in which any did.")]


class QueueMetrics(replies.Success):
    meta: SeriesMeta
    data: Annotated[list[int], Meta(description="Jobs of each minute, from the last one in which any ended so back.")]
    count: Annotated[int, Meta(description="Minutes that there are.")]


class LimitsOf(replies.Success):
    limits: LimitsShown


class KeyHolder(replies.Success):
    job_id: str | None


def now_ms() -> int:
    return time.time_ns() // 1_000_000


# -- Queues ------------------------------------------------------------------------------------------------------------


def summed(found: QueuePage) -> bytes:
    """Render all queues in numbers, as the plain list that the documented server gives."""
    return ENCODE(
        [
            QueueSummary(
                one.name,
                one.counts.paused,
                SummaryCounts(
                    waiting=one.counts.waiting,
                    prioritized=0,
                    active=one.counts.active,
                    completed=one.counts.completed,
                    failed=one.counts.failed,
                    delayed=one.counts.delayed,
                ),
            )
            for one in found.queues
        ]
    )


async def dashboard_queues(call: Call) -> Reply:
    """Answer with a page of queues."""
    limit, offset = page(call, "limit")
    limit = SHOWN_MAX if limit is None else min(limit, SHOWN_MAX)

    def view(found: QueuePage) -> bytes:
        shown = [
            DashboardQueueShown(
                name=one.name,
                waiting=one.counts.waiting,
                prioritized=0,
                delayed=one.counts.delayed,
                active=one.counts.active,
                dlq=one.counts.failed,
                paused=one.counts.paused,
                blocked_by=one.blocked_by,
            )
            for one in found.queues
        ]
        return ENCODE(DashboardQueues(True, shown, found.total, limit, offset, now_ms()))

    return Reply(200, await call.node.ask(ListBriefs(limit, offset), view, stale=call.stale))


async def dashboard_queue(call: Call) -> Reply:
    """Answer with one queue from all sides. The first question is as fresh as was asked for, the others of the same copy."""
    name = queue_of(call)
    limit = int(query_number("jobsLimit", call.query.get("jobsLimit") or str(JOBS_SHOWN), 0, COUNT_MAX))
    node = call.node
    found: Portrait = await node.ask(GetPortrait(name), stale=call.stale)
    shown = DashboardHead(
        ok=True,
        name=name,
        counts=counted(found),
        paused=found.counts.paused,
        blocked_by=found.blocked_by,
        limited_groups=found.limited_groups,
        priority_counts=await node.ask(PriorityCounts(name), stale=True),
        timestamp=now_ms(),
    )
    dead = await node.ask(
        ListDlq(name, PREVIEW), lambda reply: [job_object.full_text(job) for job in reply.jobs], stale=True
    )
    text = b'%b,"dlqPreview":[%b]' % (ENCODE(shown)[:-1], b",".join(dead))
    if call.query.get("includeJobs") in ("true", "1"):
        jobs = await node.ask(
            ListJobs(name, None, queues.at_most(limit)),
            lambda jobs: [job_object.full_text(job) for job in jobs],
            stale=True,
        )
        text += b',"jobs":[%b]' % b",".join(jobs)
    return Reply(200, text + b"}")


def counted(found: Portrait) -> DashboardCounts:
    counts = found.counts
    return DashboardCounts(
        waiting=counts.waiting,
        prioritized=0,
        delayed=counts.delayed,
        active=counts.active,
        completed=counts.completed,
        failed=counts.failed,
        waiting_children=counts.waiting_children,
        paused=counts.waiting if counts.paused else 0,
        total_completed=found.counters.completed,
        total_failed=found.counters.failed,
    )


def series(found: Series, start: int, end: int | None) -> bytes:
    """Render ends minute by minute, as BullMQ does: the last minute first, `count` says how many minutes there are."""
    counts = found.counts
    meta = SeriesMeta(found.total, found.last_at, found.last_count)
    return ENCODE(QueueMetrics(True, meta, counts[start:end], len(counts)))


async def queue_metrics(call: Call) -> Reply:
    """Answer with how many jobs of a queue ended in each minute."""
    queue, kind = queue_of(call), call.path["type"]
    if kind not in ("completed", "failed"):
        raise Invalid("Metrics type must be 'completed' or 'failed'")
    start = int(query_number("start", call.query.get("start"), 0, COUNT_MAX))
    last = int(query_number("end", call.query.get("end", "-1"), -1, COUNT_MAX))
    view = partial(series, start=start, end=None if last == -1 else last + 1)
    return Reply(200, await call.node.ask(GetSeries(queue, cast(Any, kind)), view, stale=call.stale))


# -- Everything --------------------------------------------------------------------------------------------------------


def latency_shown(found: Latency) -> LatencyShown:
    """Return averages and percentiles in milliseconds, to the microsecond."""
    push, pull, ack = (found.kinds[kind] for kind in ("push", "pull", "ack"))
    return LatencyShown(
        Averages(*(round(one.average_ms(), 3) for one in (push, pull, ack))),
        Operations(*(Percentiles(*map(one.percentile_ms, SHARES)) for one in (push, pull, ack))),
    )


async def dashboard(call: Call) -> Reply:
    """Answer with everything there is on one page."""
    node, host = call.node, call.server.service(Host)
    total = await node.ask(Totals(), stale=call.stale)
    found: WorkerList = await node.ask(ListWorkers(), stale=True)
    every = await node.ask(
        ListCrons(), lambda known: [crons.shown(cron) for cron in known[: LISTED_MAX + 1]], stale=True
    )
    cron_count = await node.ask(ListCrons(), len, stale=True)
    blocked: QueuePage = await node.ask(ListBlocked(LISTED_MAX), stale=True)
    disk = await host.disk.look(node)
    shown = Dashboard(
        ok=True,
        stats=figures.sums(DashboardStats, total, figures.uptime_s(call)),
        throughput=await call.server.service(LiveStreams).watch.rates(),
        latency=latency_shown(host.latency),
        memory=figures.memory(),
        collections=figures.summed(total),
        workers=WorkersListed(
            len(found.workers),
            found.active,
            # Of another struct, which has the recorded order.
            cast(Any, workers.listed(found)[:LISTED_MAX]),
            len(found.workers) > LISTED_MAX,
        ),
        crons=CronsListed(cron_count, every[:LISTED_MAX], cron_count > LISTED_MAX),
        blocked=BlockedListed(
            blocked.total,
            [BlockedShown(one.name, one.blocked_by) for one in blocked.queues],
            blocked.total > LISTED_MAX,
        ),
        storage=StorageBrief(disk.full, disk.error, disk.since_ms),
        timestamp=now_ms(),
    )
    return Reply(200, ENCODE(shown))


# -- Limits and keys ---------------------------------------------------------------------------------------------------


def limits(found: Limits) -> bytes:
    """Render the limits of a queue; the time left of a rate limit as Redis does: -1 without an end, -2 without a limit."""
    rate = found.settings.rate
    ttl = -2 if rate is None else -1 if found.rate_ends_in_ms is None else max(found.rate_ends_in_ms, 0)
    shown = LimitsShown(
        rate_limit=None if rate is None else RateShown(rate.limit, rate.duration_ms),
        rate_limit_ttl=ttl,
        concurrency_limit=found.settings.concurrency,
        maxed=found.maxed,
        blocked_by=found.blocked_by,
        limited_groups=found.limited_groups,
    )
    return ENCODE(LimitsOf(True, shown))


def get_limits(call: Call) -> GetLimits:
    return GetLimits(queue_of(call), call.node.now_ms())


def remove_dead(call: Call) -> RemoveDeadJob:
    return RemoveDeadJob(queue_of(call), call.path["id"])


def free_key_of_job(call: Call) -> FreeKeyOfJob:
    return FreeKeyOfJob(call.path["id"], known=call.over_http and call.level >= 1)


def get_holder(call: Call) -> GetKeyHolder:
    return GetKeyHolder(queue_of(call), call.path["unique_key"])


def free_key(call: Call) -> FreeKey:
    return FreeKey(queue_of(call), call.path["unique_key"])


def removed(reply: Counted) -> bytes:
    return b'{"ok":true,"removed":%b}' % (b"true" if reply.count else b"false")


def holder(job_id: str | None) -> bytes:
    return b'{"ok":true,"jobId":%b}' % ENCODE(job_id)


ROUTES = grouped(
    "Overview",
    ask("GET", "/queues/summary", ListBriefs, lambda call: ListBriefs(SHOWN_MAX), summed,
        reply=list[QueueSummary], about=f"The first {SHOWN_MAX:,} queues in numbers."),
    plain("GET", "/dashboard", dashboard, what=Totals, asks=(CONSISTENCY,), reply=Dashboard, right="read",
          about="Everything on one page.", command=Command("DashboardOverview", reply=replies.as_data)),
    plain("GET", "/dashboard/queues", dashboard_queues, what=ListBriefs, asks=(LIMIT, OFFSET, CONSISTENCY),
          reply=DashboardQueues, right="read", about="Queues in numbers, page by page.",
          command=Command("DashboardQueues", reply=replies.as_data)),
    plain("GET", "/dashboard/queues/{queue}", dashboard_queue, what=GetPortrait,
          asks=(WITH_JOBS, JOBS_LIMIT, CONSISTENCY), reply=DashboardQueue, right="read",
          about="One queue from all sides.", command=Command("DashboardQueue", reply=replies.as_data)),
    plain("GET", "/queues/{queue}/metrics/{type}", queue_metrics, what=GetSeries, asks=(START, END, CONSISTENCY),
          reply=QueueMetrics, right="read",
          about="How many jobs of a queue completed, or failed for good, in each minute of the last day.",
          command=Command("Metrics of a queue", reply=replies.as_data)),
    ask("GET", "/queues/{queue}/limits", GetLimits, get_limits, limits, reply=LimitsOf,
        about="What holds a queue back.", command=Command("GetQueueLimits", reply=replies.in_data)),
    write("DELETE", "/queues/{queue}/dlq/{id}", RemoveDeadJob,
          remove_dead, removed, reply=replies.WasRemoved,
          right="manage:all", command=Command("RemoveDlqJob", {"id": "jobId"}, replies.in_data)),
    ask("GET", "/queues/{queue}/unique/{unique_key}", GetKeyHolder, get_holder,
        holder, reply=KeyHolder, command=Command("GetDeduplicationJobId", reply=replies.in_data)),
    write("DELETE", "/queues/{queue}/unique/{unique_key}", FreeKey, free_key,
          replies.counted, reply=replies.Count, right="produce",
          command=Command("RemoveDeduplicationKey", reply=replies.in_data)),
    write("DELETE", "/jobs/{id}/unique", FreeKeyOfJob, free_key_of_job, removed,
          reply=replies.WasRemoved, right="produce",
          command=Command("RemoveJobDeduplicationKey", reply=replies.in_data)),
)  # fmt: skip

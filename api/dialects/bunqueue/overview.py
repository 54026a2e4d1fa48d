"""What dashboards ask of the documented server beyond its document: everything on one page, queues in numbers, limits, keys."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from api.http import CONSISTENCY, Call, Parameter, Reply, ask, grouped, plain, submit
from api.values import COUNT_MAX
from node.operations.jobs import Counted
from node.operations.keys import FreeKey, FreeKeyOfJob, GetKeyHolder
from node.operations.overview import GetLimits, GetPortrait, Limits, ListBriefs, Page, Portrait
from node.operations.queues import Counts, ListDlq, ListJobs, PriorityCounts, RemoveDeadJob, Totals
from node.operations.schedules import ListCrons
from node.operations.workers import ListWorkers, WorkerList

from . import crons, monitoring, replies, workers
from .bodies import of_job
from .queue_bodies import at_most, queue_of
from .render import counted as counted_reply
from .render import full_text
from .values import page, query_number

ENCODE = msgspec.json.Encoder().encode
# Queues, workers and crons on one page; further ones are to be asked for.
SHOWN_MAX = 10_000
LISTED_MAX = 50
PREVIEW = 10
JOBS_SHOWN = 100
COUNT = {"type": "integer", "minimum": 0}
LIMIT = Parameter("limit", f"Queues, at most; left out, {SHOWN_MAX:,}.", COUNT)
OFFSET = Parameter("offset", "Queues to skip.", {**COUNT, "default": 0})
WITH_JOBS = Parameter("includeJobs", "Whether jobs are listed, too.", {"type": "boolean", "default": False})
JOBS_LIMIT = Parameter("jobsLimit", "Those jobs, at most.", {**COUNT, "default": JOBS_SHOWN})


def now_ms() -> int:
    return time.time_ns() // 1_000_000


# -- Queues ------------------------------------------------------------------------------------------------------------


def summed(found: Page) -> bytes:
    """Render all queues in numbers, as the plain list that the documented server gives."""
    return ENCODE(
        [
            {
                "name": one.name,
                "paused": one.counts.paused,
                "counts": {
                    "waiting": one.counts.waiting,
                    "prioritized": 0,
                    "active": one.counts.active,
                    "completed": one.counts.completed,
                    "failed": one.counts.failed,
                    "delayed": one.counts.delayed,
                },
            }
            for one in found.queues
        ]
    )


async def dashboard_queues(call: Call) -> Reply:
    """Answer with a page of queues."""
    limit, offset = page(call, "limit")
    limit = SHOWN_MAX if limit is None else min(limit, SHOWN_MAX)

    def view(found: Page) -> bytes:
        shown = [
            {
                "name": one.name,
                "waiting": one.counts.waiting,
                "prioritized": 0,
                "delayed": one.counts.delayed,
                "active": one.counts.active,
                "dlq": one.counts.failed,
                "paused": one.counts.paused,
            }
            for one in found.queues
        ]
        more = {"total": found.total, "limit": limit, "offset": offset, "timestamp": now_ms()}
        return ENCODE({"ok": True, "queues": shown, **more})

    return Reply(200, await call.node.ask(ListBriefs(limit, offset), view, stale=call.stale))


async def dashboard_queue(call: Call) -> Reply:
    """Answer with one queue from all sides. The first question is as fresh as was asked for, the others of the same copy."""
    name = queue_of(call)
    limit = int(query_number("jobsLimit", call.query.get("jobsLimit") or str(JOBS_SHOWN), 0, COUNT_MAX))
    node = call.node
    found: Portrait = await node.ask(GetPortrait(name), stale=call.stale)
    shown: dict[str, Any] = {
        "ok": True,
        "name": name,
        "counts": counted(found.counts)
        | {"totalCompleted": found.counters.completed, "totalFailed": found.counters.failed},
        "paused": found.counts.paused,
        "priorityCounts": await node.ask(PriorityCounts(name), stale=True),
        "timestamp": now_ms(),
    }
    dead = await node.ask(ListDlq(name, PREVIEW), lambda reply: [full_text(job) for job in reply.jobs], stale=True)
    text = b'%b,"dlqPreview":[%b]' % (ENCODE(shown)[:-1], b",".join(dead))
    if call.query.get("includeJobs") in ("true", "1"):
        jobs = await node.ask(
            ListJobs(name, None, at_most(limit)), lambda jobs: [full_text(job) for job in jobs], stale=True
        )
        text += b',"jobs":[%b]' % b",".join(jobs)
    return Reply(200, text + b"}")


def counted(counts: Counts) -> dict[str, int]:
    return {
        "waiting": counts.waiting,
        "prioritized": 0,
        "delayed": counts.delayed,
        "active": counts.active,
        "completed": counts.completed,
        "failed": counts.failed,
        "waiting-children": counts.waiting_children,
        "paused": counts.waiting if counts.paused else 0,
    }


# -- Everything --------------------------------------------------------------------------------------------------------


async def dashboard(call: Call) -> Reply:
    """Answer with everything there is on one page."""
    node, server = call.node, call.server
    total = await node.ask(Totals(), stale=call.stale)
    found: WorkerList = await node.ask(ListWorkers(), stale=True)
    every = await node.ask(
        ListCrons(), lambda known: [crons.shown(cron) for cron in known[: LISTED_MAX + 1]], stale=True
    )
    cron_count = await node.ask(ListCrons(), len, stale=True)
    disk = await server.disk.look(node)
    counts = total.counts
    shown = {
        "ok": True,
        "stats": {
            "waiting": counts.waiting,
            "active": counts.active,
            "delayed": counts.delayed,
            "completed": counts.completed,
            "dlq": counts.failed,
            "totalPushed": total.pushed,
            "totalPulled": total.pulled,
            "totalCompleted": total.completed,
            "totalFailed": total.failed,
            "uptime": monitoring.uptime_s(call),
        },
        "throughput": await server.streams.watch.rates(),
        "memory": monitoring.memory(),
        "collections": monitoring.summed(total),
        "workers": {
            "total": len(found.workers),
            "active": found.active,
            "list": workers.listed(found)[:LISTED_MAX],
            "truncated": len(found.workers) > LISTED_MAX,
        },
        "crons": {"total": cron_count, "list": every[:LISTED_MAX], "truncated": cron_count > LISTED_MAX},
        "storage": {"diskFull": disk.full, "error": disk.error, "since": disk.since_ms},
        "timestamp": now_ms(),
    }
    return Reply(200, ENCODE(shown))


# -- Limits and keys ---------------------------------------------------------------------------------------------------


def limits(found: Limits) -> bytes:
    """Render the limits of a queue; the time left of a rate limit as Redis does: -1 without an end, -2 without a limit."""
    rate = found.settings.rate
    ttl = -2 if rate is None else -1 if found.rate_ends_in_ms is None else max(found.rate_ends_in_ms, 0)
    shown = {
        "rateLimit": None if rate is None else {"max": rate.limit, "duration": rate.duration_ms},
        "rateLimitTtl": ttl,
        "concurrencyLimit": found.settings.concurrency,
        "maxed": found.maxed,
    }
    return b'{"ok":true,"limits":%b}' % ENCODE(shown)


def get_limits(call: Call) -> GetLimits:
    return GetLimits(queue_of(call), now_ms())


def remove_dead(call: Call) -> RemoveDeadJob:
    return RemoveDeadJob(queue_of(call), call.path["id"])


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
        reply=list[replies.QueueSummary], about=f"The first {SHOWN_MAX:,} queues in numbers."),
    plain("GET", "/dashboard", dashboard, what=Totals, asks=(CONSISTENCY,), reply=replies.Dashboard, right="read",
          about="Everything on one page."),
    plain("GET", "/dashboard/queues", dashboard_queues, what=ListBriefs, asks=(LIMIT, OFFSET, CONSISTENCY),
          reply=replies.DashboardQueues, right="read", about="Queues in numbers, page by page."),
    plain("GET", "/dashboard/queues/{queue}", dashboard_queue, what=GetPortrait,
          asks=(WITH_JOBS, JOBS_LIMIT, CONSISTENCY), reply=replies.DashboardQueue, right="read",
          about="One queue from all sides."),
    ask("GET", "/queues/{queue}/limits", GetLimits, get_limits, limits, reply=replies.LimitsOf,
        about="What holds a queue back."),
    submit("DELETE", "/queues/{queue}/dlq/{id}", RemoveDeadJob,
           remove_dead, removed, reply=replies.WasRemoved,
           right="manage:all"),
    ask("GET", "/queues/{queue}/unique/{unique_key}", GetKeyHolder, get_holder,
        holder, reply=replies.KeyHolder),
    submit("DELETE", "/queues/{queue}/unique/{unique_key}", FreeKey, free_key,
           counted_reply, reply=replies.Count, right="produce"),
    submit("DELETE", "/jobs/{id}/unique", FreeKeyOfJob, of_job(FreeKeyOfJob), removed,
           reply=replies.WasRemoved, right="produce"),
)  # fmt: skip

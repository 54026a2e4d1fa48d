"""The table of the Open Archiver dialect, and how its two requests are read: pages as JavaScript's parseInt reads them."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl

from quorumq.api.errors import Invalid
from quorumq.api.reply import Pieced, Reply
from quorumq.api.request import CONSISTENCY, Call, Parameter, Route
from quorumq.api.rows import grouped, plain
from quorumq.node.machine.operations.queue_reads import Counts, ListQueues, ListStatus, QueueCounts
from quorumq.node.machine.state.job import Job

from . import render

STATUS = Parameter(
    "status",
    "active, completed, failed, delayed, waiting or paused; also prioritized and waiting-children.",
    {"type": "string", "default": "failed"},
)
PAGE_DEFAULT = 1
LIMIT_DEFAULT = 10
# The original has no maximum; a page of a million jobs would hold up everybody else. All that it ever keeps fits.
LIMIT_MAX = 10_000
PAGE = Parameter("page", "Which page; those below 0 count from the end.", {"type": "integer", "default": PAGE_DEFAULT})
LIMIT = Parameter(
    "limit",
    "Jobs of a page; more than 10,000 count as 10,000 where there are more.",
    {"type": "integer", "default": LIMIT_DEFAULT},
)
PARSED_INT = re.compile(r"\s*([+-]?\d{1,15})", re.ASCII)
# What the original's other words mean here.
SPELLINGS = {"wait": "waiting"}


async def queues(call: Call) -> Reply:
    """List the queues that the token is for, with their counts."""
    names: list[str] = await call.node.ask(ListQueues(), stale=call.stale)
    # All of one moment: these wait for nothing.
    found = [(name, await counted(call, name)) for name in names if call.grant.covers(name)]
    return Reply(200, render.overview(found))


async def queue_jobs(call: Call) -> Reply:
    """Show a page of the jobs of a queue in one state, oldest first."""
    name = call.path["queue"]
    status, page, limit = wanted(call)
    names: list[str] = await call.node.ask(ListQueues(), stale=call.stale)
    if name not in names:
        raise Invalid("Queue not found", 404, "queue_not_found")
    counts = await counted(call, name)
    total = total_of(counts, status)
    if total > LIMIT_MAX:
        limit = min(limit, LIMIT_MAX)
    offset, count = window(total, page, limit)
    jobs = await listed(call, name, status, offset, count) if count else []
    pagination = render.ArchiverPagination(page, -(-total // limit) if limit > 0 else 0, total, limit)
    return Pieced(200, list(render.page(name, render.shown_counts(counts), jobs, status, pagination)))


async def counted(call: Call, name: str) -> Counts:
    found: Counts = await call.node.ask(QueueCounts(name), stale=True)
    return found


def wanted(call: Call) -> tuple[str, int, int]:
    """Return status, page and limit; a status given twice is none, as to the original."""
    given: dict[str, list[str]] = {}
    for key, value in parse_qsl(call.query_text, keep_blank_values=True):
        given.setdefault(key, []).append(value)
    statuses = given.get("status", [""])
    status = "" if len(statuses) > 1 else statuses[0] or "failed"
    page = parse_int(given.get("page")) or PAGE_DEFAULT
    limit = parse_int(given.get("limit")) or LIMIT_DEFAULT
    return SPELLINGS.get(status, status), page, limit


def parse_int(values: list[str] | None) -> int:
    """Read a number as JavaScript's parseInt does; 0 where that is not a number."""
    found = PARSED_INT.match(values[0]) if values else None
    return int(found[1]) if found else 0


def total_of(counts: Counts, status: str) -> int:
    """Return how many jobs a status has; a paused queue has its waiting jobs under `paused`."""
    totals = {
        "active": counts.active,
        "completed": counts.completed,
        "failed": counts.failed,
        "delayed": counts.delayed,
        "waiting": 0 if counts.paused else counts.waiting,
        "paused": counts.waiting if counts.paused else 0,
        "prioritized": counts.lowered,
        "waiting-children": counts.waiting_children,
    }
    return totals.get(status, 0)


def window(total: int, page: int, limit: int) -> tuple[int, int]:
    """Return where a page begins and how many jobs it has; ends below 0 count from the end, as Redis counts."""
    first, last = (page - 1) * limit, page * limit - 1
    if limit < 0:
        return 0, 0
    first = max(first + total, 0) if first < 0 else first
    last = last + total if last < 0 else min(last, total - 1)
    return (first, last - first + 1) if first <= last else (0, 0)


async def listed(call: Call, name: str, status: str, offset: int, count: int) -> list[Job]:
    """Return jobs of a status in order: those that wait with a priority behind the others, as they will run."""
    statuses = ("waiting", "prioritized") if status in ("waiting", "paused") else (status,)
    jobs: list[Job] = []
    for one in statuses:
        jobs += await call.node.ask(ListStatus(name, one, offset, count - len(jobs)), stale=True)
        if len(jobs) >= count:
            break
        if not jobs:
            # All of this status come before the page.
            offset -= await size_of(call, name, one)
        else:
            offset = 0
    return jobs


async def size_of(call: Call, name: str, status: str) -> int:
    """Return how many jobs wait without a priority, or have another status."""
    counts = await counted(call, name)
    return counts.waiting - counts.lowered if status == "waiting" else total_of(counts, status)


STATUSES = "Jobs of a queue in one state, oldest first, in pages; an unknown queue is 404."
ROUTES: tuple[Route, ...] = grouped(
    "Open Archiver",
    plain("GET", "/queues", queues, what=ListQueues, asks=(CONSISTENCY,), reply=render.ArchiverQueues, right="manage:all",
          scope="checked", about="All queues with their counts."),
    plain("GET", "/queues/{queue}", queue_jobs, what=ListStatus, asks=(STATUS, PAGE, LIMIT, CONSISTENCY),
          reply=render.ArchiverPage, right="manage:all", about=STATUSES),
)  # fmt: skip

"""Figures that several rows and events show: sums over all queues, what collections hold, memory, and how long this node has run."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from msgspec import UNSET, Struct, UnsetType

from quorumq.api.host import Host
from quorumq.api.request import Call
from quorumq.node.machine.operations.queue_reads import Total, Totals

MIB = 1 << 20
S = TypeVar("S")


class Megabytes(Struct, forbid_unknown_fields=True, rename="camel"):
    heap_used: int
    heap_total: int
    rss: int
    external: int | UnsetType = UNSET
    array_buffers: int | UnsetType = UNSET


class Collections(Struct, forbid_unknown_fields=True, rename="camel"):
    job_index: int
    completed_jobs: int
    processing_total: int
    queued_total: int
    waiting_deps_total: int
    temporal_index_total: int


def sums(kind: Callable[..., S], total: Total, uptime_s: int, **more: Any) -> S:
    """Make what shows the sums over all queues under their documented names, whatever else it shows."""
    counts = total.counts
    return kind(
        waiting=counts.waiting,
        delayed=counts.delayed,
        active=counts.active,
        completed=counts.completed,
        dlq=counts.failed,
        total_pushed=total.pushed,
        total_pulled=total.pulled,
        total_completed=total.completed,
        total_failed=total.failed,
        uptime=uptime_s,
        **more,
    )


def many(records: list[Any]) -> int:
    return len(records)


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


def uptime_s(call: Call) -> int:
    return int(time.monotonic() - call.server.service(Host).started_at)


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

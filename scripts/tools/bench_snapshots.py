"""What snapshots cost those who are served meanwhile: cycles of push, pull and ack, in windows with and without one being written.

One cluster, one load, one run: the log grows until snapshots are due, members write theirs one after the other, and then nobody writes
for a while. Every stretch of windows in which somebody wrote is compared with the quiet stretches just before and after it,
because what else the machine does changes from minute to minute by more than what is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.tools.load import Cycle, run
from tests.support.local_cluster import PATIENCE, ClusterTrouble, LocalCluster, LocalNode

if TYPE_CHECKING:
    from scripts.tools.bench import Bench

# Jobs that are held, so that a snapshot takes some seconds to write.
HELD = 200_000
# One load run. A window in which a writer began or ended is of neither kind.
WINDOW_S = 2.0
LOOK_S = 0.1
# Stretches with a snapshot that are wanted, and for how long they are waited for.
PAIRS = 8
LONGEST_S = 900.0
LOSS_MAX = 0.05


@dataclass(frozen=True)
class Window:
    """One load run. writing: whether a snapshot was being written all the time, or never; None for in between."""

    jobs_per_s: float
    writing: bool | None


@dataclass(frozen=True)
class Pair:
    """A stretch with a snapshot, and the two quiet ones around it; rates are medians of their windows."""

    without: float
    during: float

    @property
    def ratio(self) -> float:
        return self.during / self.without


def pairs(windows: list[Window]) -> list[Pair]:
    """Return the comparisons that windows, in the order in which they were measured, allow."""
    stretches: list[tuple[bool, list[float]]] = []
    for window in windows:
        if window.writing is None:
            continue
        if not stretches or stretches[-1][0] != window.writing:
            stretches.append((window.writing, []))
        stretches[-1][1].append(window.jobs_per_s)
    found = []
    for before, (writing, rates), after in zip(stretches, stretches[1:], stretches[2:], strict=False):
        if writing:
            found.append(Pair(statistics.median([*before[1], *after[1]]), statistics.median(rates)))
    return found


def writes(node: LocalNode) -> bool:
    """Whether a process of this node's writes a snapshot: it has no other children."""
    with contextlib.suppress(OSError):
        return any(path.read_text().strip() for path in Path(f"/proc/{node.pid}/task").glob("*/children"))
    return False


async def window(bench: Bench, cluster: LocalCluster, node: LocalNode, script: Cycle) -> Window:
    """Measure once."""
    seen: set[bool] = set()

    async def look() -> None:
        while True:
            seen.add(any(map(writes, cluster.nodes)))
            await asyncio.sleep(LOOK_S)

    looking = asyncio.create_task(look())
    found = await run(script, node.url, WINDOW_S, use_wrk=bench.use_wrk)
    looking.cancel()
    if found.errors:
        raise ClusterTrouble(f"{found.errors} requests failed")
    return Window(found.jobs_per_s, seen.pop() if len(seen) == 1 else None)


async def snapshots(bench: Bench) -> None:
    """Cycles while snapshots of 200,000 jobs are written, beside cycles while none is."""
    from scripts.tools.bench import fill, settle

    held = min(bench.held, HELD)
    async with LocalCluster(SNAPSHOT_LOG_BYTES=str(8 << 20), SNAPSHOT_LOG_ENTRIES="1000000", **PATIENCE) as cluster:
        leader = await cluster.leader()
        await fill(leader, "held", held, bench.data)
        await settle(cluster)
        script = Cycle("cycle", bench.data)
        windows: list[Window] = []
        ends = time.monotonic() + LONGEST_S
        while len(pairs(windows)) < PAIRS and time.monotonic() < ends:
            windows.append(await window(bench, cluster, leader, script))
    found = pairs(windows)
    if not found:
        raise ClusterTrouble("no snapshot was written between two stretches without one: try fewer jobs (--held)")
    ratios = sorted(pair.ratio for pair in found)
    middle = statistics.median(ratios)
    rates = [statistics.median(one.jobs_per_s for one in windows if one.writing is kind) for kind in (False, True)]
    value = f"{rates[1]:,.0f} beside {rates[0]:,.0f} jobs/s"
    detail = f"ratio of {len(found)} pairs: median {middle:.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}"
    bench.row(
        f"cycles, {held:,} held, snapshot", "leader", value, detail, f"{1 - LOSS_MAX:.2f}", middle >= 1 - LOSS_MAX
    )
    bench.figures["snapshots"] = {
        "pairs": [asdict(pair) | {"ratio": pair.ratio} for pair in found],
        "windows": [asdict(one) for one in windows],
    }

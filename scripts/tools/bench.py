"""What a cluster of three nodes does on this machine: rates, latencies, memory, start-up; beside the targets.

All three nodes and the load share the machine's cores, every commit is synced to disk, and each part starts with an
empty cluster, so that parts can be run alone.  Figures move with what else runs: compare only within one run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from rich.console import Console
from rich.table import Table

from scripts.tools.bench_snapshots import snapshots
from scripts.tools.bench_trees import trees
from scripts.tools.bench_workers import workers
from scripts.tools.load import Ack, Cycle, Measured, Pull, Push, Script, has_wrk, run
from tests.support.local_cluster import ClusterTrouble, LocalCluster, LocalNode

KB = 1024
# Jobs a second that the filling before a pull or an ack must provide for.
PULL_SUPPLY = 100_000
ACK_SUPPLY = 60_000


@dataclass
class Row:
    """One line of the result. target: a text for people; met is None where there is no target."""

    what: str
    where: str
    value: str
    latency: str = ""
    target: str = ""
    met: bool | None = None


@dataclass
class Bench:
    """Options of a run, and what it has found so far."""

    seconds: float
    held: int
    data: str
    use_wrk: bool
    console: Console
    rows: list[Row]
    figures: dict[str, Any]

    def add(self, row: Row) -> None:
        self.rows.append(row)
        met = "" if row.met is None else (" met" if row.met else " MISSED")
        target = f" (target {row.target}:{met})" if row.target else ""
        self.console.print(f"{row.what}, {row.where}: {row.value} {row.latency}{target}", highlight=False)

    def row(
        self, what: str, where: str, value: str, detail: str = "", target: str = "", met: bool | None = None
    ) -> None:
        self.add(Row(what, where, value, detail, target, met))

    async def measure(
        self,
        what: str,
        node: LocalNode,
        where: str,
        script: Script,
        *,
        rate: int = 0,
        p99_ms: float = 0,
    ) -> Measured:
        """Run one script against one node and add its row.

        rate: jobs a second that are the target, p99_ms: the longest 99th percentile; 0 for none.
        """
        found = await run(script, node.url, self.seconds, use_wrk=self.use_wrk)
        met = None
        if rate or p99_ms:
            met = found.errors == 0 and found.jobs_per_s >= rate and (not p99_ms or found.p99_ms <= p99_ms)
        targets = [f"{rate:,} jobs/s"] * bool(rate) + [f"p99 {p99_ms:.0f} ms"] * bool(p99_ms)
        value = f"{found.jobs_per_s:,.0f} jobs/s" + (f", {found.errors} errors" if found.errors else "")
        latency = f"p50 {found.p50_ms:.1f} p99 {found.p99_ms:.1f} max {found.max_ms:.0f} ms"
        self.add(Row(what, where, value, latency, ", ".join(targets), met))
        self.figures[f"{what}, {where}"] = asdict(found) | {"jobs_per_s": found.jobs_per_s}
        return found


async def both_roles(cluster: LocalCluster) -> list[tuple[str, LocalNode]]:
    leader = await cluster.leader()
    return [("leader", leader), ("follower", (await cluster.followers())[0])]


async def post(session: aiohttp.ClientSession, url: str, body: Any) -> Any:
    async with session.post(url, json=body) as reply:
        answer = await reply.json()
        if reply.status != 200:
            raise ClusterTrouble(f"POST {url} answered {reply.status}: {answer}")
        return answer


async def fill(node: LocalNode, queue: str, jobs: int, data: str) -> float:
    """Push `jobs` jobs in bulks of 1,000 over a few connections; return the seconds it took."""
    began, left = time.monotonic(), iter(range(0, jobs, 1000))
    async with aiohttp.ClientSession() as session:

        async def connection() -> None:
            for start in left:
                size = min(1000, jobs - start)
                body = f'{{"jobs":[{",".join([f"""{{"data":{data}}}"""] * size)}]}}'
                headers = {"Content-Type": "application/json"}
                async with session.post(f"{node.url}/queues/{queue}/jobs/bulk", data=body, headers=headers) as reply:
                    if reply.status != 200:
                        raise ClusterTrouble(f"filling answered {reply.status}: {await reply.text()}")

        await asyncio.gather(*(connection() for _ in range(4)))
    return time.monotonic() - began


async def activate(node: LocalNode, queue: str, path: Path) -> None:
    """Pull everything in the queue and write the ids to `path`, one a line."""
    async with aiohttp.ClientSession() as session:
        with path.open("w") as out:

            async def connection() -> None:
                while jobs := (await post(session, f"{node.url}/queues/{queue}/jobs/pull-batch", {"count": 1000}))[
                    "jobs"
                ]:
                    out.writelines(job["id"] + "\n" for job in jobs)

            await asyncio.gather(*(connection() for _ in range(4)))


async def counts(node: LocalNode, queue: str) -> dict[str, int]:
    _, body = await node.ask(f"/queues/{queue}/counts")
    found: dict[str, int] = body["counts"]
    return found


async def push(bench: Bench) -> None:
    """Single push at 32 connections."""
    async with LocalCluster() as cluster:
        for where, node in await both_roles(cluster):
            await bench.measure("single push", node, where, Push("push", bench.data), rate=4_500, p99_ms=30)


async def bulk(bench: Bench) -> None:
    """Pushes in bulks of 100 and of 1,000."""
    for size, rate in ((100, 60_000), (1000, 0)):
        for role in (0, 1):
            async with LocalCluster() as cluster:
                where, node = (await both_roles(cluster))[role]
                await bench.measure(f"bulk push of {size:,}", node, where, Push("bulk", bench.data, size), rate=rate)


async def pull(bench: Bench) -> None:
    """Pulls in batches of 100."""
    for role in (0, 1):
        async with LocalCluster() as cluster:
            where, node = (await both_roles(cluster))[role]
            await fill(node, "pull", int(bench.seconds * PULL_SUPPLY), bench.data)
            found = await bench.measure("batch pull of 100", node, where, Pull("pull", 100), rate=60_000)
            check("pulled jobs that are active", found.jobs, (await counts(node, "pull"))["active"], 100 * 32)


async def ack(bench: Bench) -> None:
    """Acknowledgements in batches of 100."""
    for role in (0, 1):
        async with LocalCluster() as cluster:
            where, node = (await both_roles(cluster))[role]
            ids = cluster.folder / "ids"
            await fill(node, "ack", int(bench.seconds * ACK_SUPPLY), bench.data)
            await activate(node, "ack", ids)
            active = (await counts(node, "ack"))["active"]
            found = await bench.measure("batch ack of 100", node, where, Ack(ids, 100))
            check("acknowledged jobs", found.jobs, active - (await counts(node, "ack"))["active"], 100 * 32)


async def cycle(bench: Bench) -> None:
    """Push, pull and ack of one job, a request each; a job counts when it is acknowledged."""
    async with LocalCluster() as cluster:
        for where, node in await both_roles(cluster):
            await bench.measure("cycle push, pull, ack", node, where, Cycle(f"cycle-{where}", bench.data))


def check(what: str, said: int, found: int, slack: int) -> None:
    """Compare what a client counted with what the cluster counts: requests cut off at the end may differ, no more."""
    if abs(said - found) > slack:
        raise ClusterTrouble(f"{what}: the client counted {said:,}, the cluster {found:,}")


async def held(bench: Bench) -> None:
    """Memory per waiting job; start-up, and single push, with all of them held; single push while snapshots are written."""
    async with LocalCluster() as cluster:
        leader = await cluster.leader()
        await settle(cluster)
        empty = {node.id: node.rss_bytes() for node in cluster.nodes}
        took = await fill(leader, "held", bench.held, bench.data)
        bench.add(Row(f"filling with {bench.held:,} jobs", "leader", f"{bench.held / took:,.0f} jobs/s"))
        await settle(cluster)
        await memory(bench, cluster, empty)
        for where, node in await both_roles(cluster):
            await bench.measure(f"single push, {bench.held:,} held", node, where, Push("more", bench.data), p99_ms=30)
        await restart(bench, cluster)
        await snapshot(bench, cluster)


async def settle(cluster: LocalCluster) -> None:
    """Wait until nothing is under way any more."""
    await cluster.converged(timeout_s=120)


async def memory(bench: Bench, cluster: LocalCluster, empty: dict[str, int]) -> None:
    each = {node.id: (node.rss_bytes() - empty[node.id]) / bench.held for node in cluster.nodes}
    worst = max(each.values())
    detail = ", ".join(f"{node_id} {size:,.0f}" for node_id, size in each.items())
    target, met = f"{1.2 * KB:,.0f} B", worst < 1.2 * KB
    bench.add(Row("memory per waiting job", "worst node", f"{worst:,.0f} B", f"({detail})", target, met))
    bench.figures["memory per waiting job"] = each


async def restart(bench: Bench, cluster: LocalCluster) -> None:
    """All three are stopped and started at once: the worst case, as they share the machine's cores."""
    await asyncio.gather(*(node.stop(120) for node in cluster.nodes))
    began = time.monotonic()
    times: dict[str, float] = {}

    async def one(node: LocalNode) -> None:
        await node.start()
        await cluster.ready([node], timeout_s=300)
        times[node.id] = time.monotonic() - began

    await asyncio.gather(*(one(node) for node in cluster.nodes))
    waiting = (await counts(cluster.nodes[0], "held"))["waiting"]
    if waiting != bench.held:
        raise ClusterTrouble(f"{waiting:,} of {bench.held:,} jobs are there after the restart")
    worst = max(times.values())
    detail = ", ".join(f"{node_id} {seconds:.1f}" for node_id, seconds in sorted(times.items()))
    what = f"start with {bench.held:,} waiting"
    bench.add(Row(what, "all three at once", f"{worst:.1f} s", f"({detail})", "20 s", worst < 20))
    bench.figures[what] = times


async def snapshot(bench: Bench, cluster: LocalCluster) -> None:
    """Single pushes while snapshots of the whole state are written, one after the other."""
    for node in cluster.nodes:
        node.settings |= {"SNAPSHOT_LOG_BYTES": str(1 << 20), "SNAPSHOT_LOG_ENTRIES": "1000"}
        await node.stop(120)
        await node.start()
        await cluster.ready(timeout_s=300)
    for where, node in await both_roles(cluster):
        before = {one["node_id"]: one["snapshot_index"] for one in [await n.cluster() for n in cluster.nodes]}
        script = Push("snapshots", bench.data)
        found = await bench.measure(f"single push, {bench.held:,} held, snapshot", node, where, script, p99_ms=30)
        after = {one["node_id"]: one["snapshot_index"] for one in [await n.cluster() for n in cluster.nodes]}
        taken = [node_id for node_id in after if after[node_id] > before[node_id]]
        written = f"snapshots finished meanwhile on {', '.join(taken) or 'no node'}; longest {found.max_ms:.0f} ms"
        bench.console.print(written, highlight=False)


PARTS: dict[str, Callable[[Bench], Awaitable[None]]] = {
    "push": push,
    "bulk": bulk,
    "pull": pull,
    "ack": ack,
    "cycle": cycle,
    "held": held,
    "snapshots": snapshots,
    "trees": trees,
    "workers": workers,
}


def result_table(bench: Bench) -> Table:
    client = "wrk" if bench.use_wrk else "own client"
    title = f"three nodes and the load on {os.cpu_count()} cores, {client}, {len(bench.data)} bytes of data a job"
    table = Table(title=title, title_justify="left")
    for heading in ("measure", "where", "value", "latency", "target", "met"):
        table.add_column(heading, justify="right" if heading == "value" else "left")
    for row in bench.rows:
        met = "" if row.met is None else ("yes" if row.met else "[red]NO[/red]")
        table.add_row(row.what, row.where, row.value, row.latency, row.target, met)
    return table


def a_text_of(size: int) -> str:
    """Return job data of exactly `size` bytes of JSON."""
    frame = '{"to":"user@example.com","text":""}'
    return frame.replace('""', '"' + "x" * max(size - len(frame), 0) + '"')


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measure a cluster of three nodes on this machine."
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"what to measure: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=5, help="length of each load run (default: 5)")
    parser.add_argument(
        "--held", type=int, default=1_000_000, help="waiting jobs in the part `held` (default: 1,000,000)"
    )
    parser.add_argument("--data-bytes", type=int, default=200, help="size of a job's data (default: 200)")
    parser.add_argument("--own-client", action="store_true", help="do not use wrk, even if it is installed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE too")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    use_wrk = has_wrk() and not options.own_client
    # A wide table keeps each row on one line when the output goes to a file.
    console = Console(width=None if sys.stdout.isatty() else 180)
    bench = Bench(options.seconds, options.held, a_text_of(options.data_bytes), use_wrk, console, [], {})
    status = 0
    try:
        uvloop.run(run_parts(bench, options.parts or list(PARTS)))
    except ClusterTrouble as error:
        print(f"bench: {error}", file=sys.stderr)
        status = 1
    console.print(result_table(bench))
    if options.json:
        options.json.write_text(json.dumps(bench.figures, indent=2) + "\n")
    return status


async def run_parts(bench: Bench, names: list[str]) -> None:
    for name in names:
        await PARTS[name](bench)


if __name__ == "__main__":
    sys.exit(main())

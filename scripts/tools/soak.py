"""A long run in a steady state: what is pushed is pulled and acknowledged, so log and memory must stop growing.

Once a minute prints each node's log size, data on disk, resident memory and snapshots.  Fails when log or memory of a
node passes its bound, or still grows after the first part of the run, or when a job is left over at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import defaultdict
from typing import Any

import aiohttp
import msgspec
import uvloop

from quorumq.cluster.config import ClusterConfig
from scripts.tools.bench import a_text_of, counts, post
from tests.support.local_cluster import ClusterTrouble, LocalCluster, LocalNode

MB = 1 << 20
QUEUE = "soak"
BATCH = 50
# After this part of the run everything that has a bound has reached it.
WARM_UP = 0.4
GROWTH_MAX = 1.25
DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(ClusterConfig)}


def log_bound(snapshot_log_bytes: int) -> int:
    """Return what a log may grow to: what starts a snapshot, as much again while that is written, the tail, two segments."""
    return 2 * snapshot_log_bytes + int(DEFAULTS["tail_bytes"]) + 2 * int(DEFAULTS["segment_bytes"])


class Load:
    """Clients in pairs: one pushes batches, one pulls and acknowledges them; what waits is kept below a bound."""

    def __init__(self, cluster: LocalCluster, data: str) -> None:
        self.cluster = cluster
        self.data = data
        self.pushed = self.acked = self.errors = 0
        self.stopping = False

    async def producer(self, session: aiohttp.ClientSession, node: LocalNode) -> None:
        body = {"jobs": [{"data": self.data, "removeOnComplete": i % 2 == 0} for i in range(BATCH)]}
        while not self.stopping:
            if self.pushed - self.acked > 20 * BATCH:
                await asyncio.sleep(0.01)
                continue
            if await self.attempt(post(session, f"{node.url}/queues/{QUEUE}/jobs/bulk", body)):
                self.pushed += BATCH

    async def consumer(self, session: aiohttp.ClientSession, node: LocalNode) -> None:
        pull = {"count": BATCH, "timeout": 1000, "owner": f"soak-{node.id}", "lockTtl": 10_000}
        while not (self.stopping and self.acked >= self.pushed):
            taken = await self.attempt(post(session, f"{node.url}/queues/{QUEUE}/jobs/pull-batch", pull))
            if not taken or not taken["jobs"]:
                continue
            ids = [job["id"] for job in taken["jobs"]]
            ack = {"ids": ids, "tokens": taken["tokens"], "results": [{"ok": True}] * len(ids)}
            if await self.attempt(post(session, f"{node.url}/jobs/ack-batch", ack)):
                self.acked += len(ids)

    async def attempt(self, request: Any) -> Any:
        try:
            return await request
        except (aiohttp.ClientError, ClusterTrouble, TimeoutError) as error:
            self.errors += 1
            print(f"  error: {error}", flush=True)
            return None


class Watch:
    """Figures of every node over time, and their bounds."""

    def __init__(self, cluster: LocalCluster, log_bytes: int) -> None:
        self.cluster = cluster
        self.log_bytes = log_bytes
        self.log: dict[str, list[int]] = defaultdict(list)
        self.rss: dict[str, list[int]] = defaultdict(list)

    async def look(self, minutes: float, load: Load) -> None:
        print(f"{minutes:6.1f} min  {load.acked:,} jobs done, {load.errors} errors", flush=True)
        for node in self.cluster.nodes:
            status = await node.cluster()
            log, rss = node.data_bytes("log"), node.rss_bytes()
            self.log[node.id].append(log)
            self.rss[node.id].append(rss)
            print(
                f"    {node.id} {status['role']:9} log {log / MB:7.1f} MB  data {node.data_bytes() / MB:7.1f} MB  "
                f"rss {rss / MB:7.1f} MB  snapshot {status['snapshot_index']:,} of {status['applied_index']:,}",
                flush=True,
            )

    def troubles(self) -> list[str]:
        """Say which bound was passed."""
        found = []
        for node in self.cluster.nodes:
            log, rss = self.log[node.id], self.rss[node.id]
            if max(log) > log_bound(self.log_bytes):
                found.append(f"the log of {node.id} grew to {max(log) / MB:.0f} MB")
            settled = rss[int(len(rss) * WARM_UP) :]
            middle = len(settled) // 2
            if middle and max(settled[middle:]) > GROWTH_MAX * max(settled[:middle]):
                found.append(f"the memory of {node.id} still grows: {[size // MB for size in rss]} MB")
        return found


async def soak(minutes: float, every_s: float, log_bytes: int) -> int:
    async with LocalCluster(SNAPSHOT_LOG_BYTES=str(log_bytes)) as cluster, aiohttp.ClientSession() as session:
        load, watch = Load(cluster, a_text_of(200)), Watch(cluster, log_bytes)
        producers = [asyncio.create_task(load.producer(session, node)) for node in cluster.nodes]
        consumers = [asyncio.create_task(load.consumer(session, node)) for node in cluster.nodes]
        began = time.monotonic()
        while (now := time.monotonic() - began) < minutes * 60:
            await asyncio.sleep(min(every_s, minutes * 60 - now))
            await watch.look((time.monotonic() - began) / 60, load)
        load.stopping = True
        await asyncio.gather(*producers)
        await asyncio.wait_for(asyncio.gather(*consumers), 60)
        left = await counts(cluster.nodes[0], QUEUE)
        digest = await cluster.converged()
    troubles = watch.troubles()
    if left["waiting"] or left["active"] or left["failed"] or left["delayed"]:
        troubles.append(f"jobs are left over: {left}")
    if load.errors:
        troubles.append(f"{load.errors} requests failed")
    for trouble in troubles:
        print(f"soak: {trouble}")
    print(f"{load.acked:,} jobs in {minutes:g} minutes; digest {digest}; {'FAILED' if troubles else 'passed'}")
    return 1 if troubles else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/soak", description="Load a cluster in a steady state; log and memory must stay bounded."
    )
    parser.add_argument("--minutes", type=float, default=30, help="length of the run (default: 30)")
    parser.add_argument(
        "--every", type=float, default=60, metavar="SECONDS", help="time between two measurements (default: 60)"
    )
    parser.add_argument(
        "--snapshot-log-bytes", type=int, default=32 * MB, help="log growth that starts a snapshot (default: 32 MB)"
    )
    options = parser.parse_args()
    try:
        return uvloop.run(soak(options.minutes, options.every, options.snapshot_log_bytes))
    except ClusterTrouble as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""The main job on real input: hash the standard library with three nodes, kill the leader on the way, check everything.

One job per `.py` file is pushed to the first node in bulks; four worker processes, each with a node of its own, do the
work; the leader gets kill -9 in the middle and is started again; at the end the results are read from the third node and
compared with what this process computes itself.  Exit status 1 when a result is missing, wrong, or there twice.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from scripts.tools.demo_worker import hash_file
from tests.support.local_cluster import ClusterTrouble, LocalCluster, LocalNode

QUEUE = "files"
BULK = 100
WORKERS = 4
BATCH = 5
LOCK_MS = 2_000
LIMIT_S = 120.0


@dataclass
class Tally:
    """What the workers reported, and what happened to the leader."""

    done: dict[int, int] = field(default_factory=dict)
    moments: list[float] = field(default_factory=list)
    errors: list[tuple[float, str, str]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    victim: LocalNode | None = None
    killed_at: float = 0.0
    back_at: float = 0.0

    def take(self, event: dict[str, Any]) -> None:
        if "done" in event:
            self.moments.append(event["at"])
            for index in event["done"]:
                self.done[index] = self.done.get(index, 0) + 1
        elif "error" in event:
            self.errors.append((event["at"], event["node"], event["error"]))
        else:
            self.refused.append(event["refused"])

    def unexpected(self) -> list[tuple[float, str, str]]:
        """Return the errors that clients saw at nodes that were up."""
        return [
            (at, node, text)
            for at, node, text in self.errors
            if not (self.victim and node == self.victim.url and self.killed_at <= at <= self.back_at)
        ]

    def longest_gap(self, began: float) -> float:
        moments = [began, *sorted(self.moments)]
        return max((later - earlier for earlier, later in itertools.pairwise(moments)), default=0.0)


def library_files() -> list[Path]:
    """Return every source file of the running Python's standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "dist-packages"}
    return sorted(path for path in root.rglob("*.py") if not skipped & set(path.relative_to(root).parts))


async def push(session: aiohttp.ClientSession, node: LocalNode, files: list[Path]) -> list[str]:
    """Push one job per file in bulks; return the ids in order."""
    ids: list[str] = []
    for start in range(0, len(files), BULK):
        part = files[start : start + BULK]
        jobs = [{"data": {"path": str(path), "index": start + i}} for i, path in enumerate(part)]
        async with session.post(f"{node.url}/queues/{QUEUE}/jobs/bulk", json={"jobs": jobs}) as reply:
            if reply.status != 200:
                raise ClusterTrouble(f"bulk push answered {reply.status}: {await reply.text()}")
            ids += (await reply.json())["ids"]
    return ids


async def run_worker(number: int, cluster: LocalCluster, tally: Tally) -> None:
    """Run one worker process until cancelled and take in what it reports."""
    home = number % len(cluster.nodes)
    urls = [node.url for node in cluster.nodes[home:] + cluster.nodes[:home]]
    arguments = {"urls": urls, "queue": QUEUE, "name": f"worker-{number + 1}", "batch": BATCH, "lock_ms": LOCK_MS}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scripts.tools.demo_worker", json.dumps(arguments)), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async for line in process.stdout:
            tally.take(json.loads(line))
        raise ClusterTrouble(f"worker {number + 1} ended by itself with status {await process.wait()}")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def kill_leader(cluster: LocalCluster, tally: Tally, half: int) -> None:
    """Kill the leader once half of the work is done, and start it again at once."""
    while len(tally.done) < half:
        await asyncio.sleep(0.005)
    leader = await cluster.leader()
    tally.victim, tally.killed_at, tally.back_at = leader, time.monotonic(), float("inf")
    await leader.kill()
    print(f"killed the leader {leader.id} (kill -9) after {len(tally.done):,} results", flush=True)
    await leader.start()
    successor = await cluster.leader()
    print(f"{successor.id} is seen to lead {time.monotonic() - tally.killed_at:.2f} s later", flush=True)
    await cluster.ready([leader])
    tally.back_at = time.monotonic()
    print(f"{leader.id} is back after {tally.back_at - tally.killed_at:.2f} s", flush=True)


async def completed(session: aiohttp.ClientSession, node: LocalNode) -> int:
    """Return how many `node` counts; 0 when it cannot be asked: it may be the one that is being killed."""
    try:
        async with session.get(f"{node.url}/queues/{QUEUE}/counts") as reply:
            return int((await reply.json())["counts"]["completed"]) if reply.status == 200 else 0
    except aiohttp.ClientError:
        return 0


async def read_results(session: aiohttp.ClientSession, node: LocalNode, ids: list[str]) -> dict[str, dict[str, Any]]:
    """Read every job from `node`, a few at a time."""
    gate = asyncio.Semaphore(16)

    async def one(job_id: str) -> tuple[str, dict[str, Any]]:
        async with gate, session.get(f"{node.url}/jobs/{job_id}") as reply:
            job = (await reply.json()).get("job") or {}
        async with gate, session.get(f"{node.url}/jobs/{job_id}/result") as reply:
            return job_id, job | {"result": (await reply.json()).get("result")}

    return dict(await asyncio.gather(*(one(job_id) for job_id in ids)))


def compare(files: list[Path], ids: list[str], jobs: dict[str, dict[str, Any]]) -> tuple[int, list[str]]:
    """Return how many files have exactly one result and that the right one, and what is wrong with the others."""
    results: dict[int, list[dict[str, Any]]] = {}
    for job_id in set(ids):
        job = jobs[job_id]
        if job.get("state") == "completed":
            results.setdefault(job["data"]["index"], []).append(job)
    correct, wrong = 0, []
    for index, path in enumerate(files):
        found = results.get(index, [])
        if len(found) != 1:
            wrong.append(f"{path}: {len(found)} results")
        elif found[0]["data"]["path"] != str(path) or found[0]["result"] != hash_file(path):
            wrong.append(f"{path}: the result is {found[0]['result']}")
        else:
            correct += 1
    return correct, wrong


async def demo(nodes: int) -> int:
    files = library_files()
    tally = Tally()
    async with LocalCluster(nodes) as cluster, aiohttp.ClientSession() as session:
        leader = await cluster.leader()
        print(f"{len(files):,} files, {nodes} nodes, {leader.id} leads, {WORKERS} workers", flush=True)
        began = time.monotonic()
        background = [asyncio.create_task(run_worker(i, cluster, tally)) for i in range(WORKERS)]
        try:
            ids = await push(session, cluster.nodes[0], files)
            pushed = time.monotonic()
            killing = asyncio.create_task(kill_leader(cluster, tally, len(files) // 2))
            background.append(killing)
            await finished(session, cluster, tally, len(files), background)
            ended = max(tally.moments)
            await killing
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
        await cluster.ready()
        jobs = await read_results(session, cluster.nodes[2 % nodes], ids)
        correct, wrong = compare(files, ids, jobs)
        digest = await cluster.converged()
    deliveries = sum(tally.done.values())
    unexpected = tally.unexpected()
    print(f"pushed in {pushed - began:.2f} s; all done after {ended - began:.2f} s")
    print(f"longest gap in progress: {tally.longest_gap(began):.2f} s")
    print(f"HTTP errors that clients of surviving nodes saw: {len(unexpected)}")
    print(f"requests that moved away from the killed node: {len(tally.errors) - len(unexpected)}")
    print(f"acknowledged {deliveries:,} times for {len(tally.done):,} files, refused {len(tally.refused)} times")
    print(f"digest on all nodes: {digest}")
    for line in [*wrong[:20], *(f"error at {node}: {text}" for _, node, text in unexpected[:20]), *tally.refused[:20]]:
        print(f"  {line}")
    print(f"{correct:,} of {len(files):,} files correct")
    return 0 if correct == len(files) and not unexpected else 1


async def finished(
    session: aiohttp.ClientSession, cluster: LocalCluster, tally: Tally, total: int, tasks: list[asyncio.Task[None]]
) -> None:
    """Wait until a surviving node counts every job as completed. Raises what a worker or the killing raised."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        for task in tasks:
            if task.done():
                task.result()
        node = next(node for node in cluster.nodes if node is not tally.victim)
        if len(tally.done) >= total or await completed(session, node) >= total:
            return
        await asyncio.sleep(0.02)
    raise ClusterTrouble(f"only {len(tally.done):,} of {total:,} done after {LIMIT_S:.0f} s\n{cluster.tails()}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description="Hash the standard library while the leader is killed; check every result."
    )
    parser.add_argument(
        "--nodes",
        type=int,
        default=3,
        help="nodes of the cluster; with fewer than 3 work waits for the killed one (default: 3)",
    )
    arguments = parser.parse_args()
    try:
        return asyncio.run(demo(arguments.nodes))
    except ClusterTrouble as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""`scripts/bench workers`: what push workers do on this machine, with an endpoint that answers at once.

Three nodes, the endpoint and the load share the machine's cores. The documented server delivered 4,700 jobs a second from one
process to such an endpoint, on a machine of this kind, with Redis syncing every write.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.support.local_cluster import ClusterTrouble, LocalCluster, LocalNode

if TYPE_CHECKING:
    from scripts.tools.bench import Bench

TOKEN = "bench"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
REGISTRATIONS = 200
CONCURRENCY = 50
RATE = 4_700
# What the documented server did with 40 registrations at once is why this is measured: it served three of them.
BULK = 1_000
LOCK_MS = 3_000


class EndpointProcess:
    """The endpoint; an async context manager."""

    async def __aenter__(self) -> EndpointProcess:
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(Path(__file__).with_name("bench_endpoint.py"))),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self.url = f"http://127.0.0.1:{int(await self._line())}/work"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        await self.process.wait()

    async def _line(self) -> bytes:
        assert self.process.stdout is not None
        return await self.process.stdout.readline()

    async def counts(self, *, clear: bool = False) -> dict[str, Any]:
        """Return what has come since the last clearing."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"clear\n" if clear else b"tell\n")
        found: dict[str, Any] = json.loads(await self._line())
        return found

    async def until(self, jobs: int, timeout_s: float) -> dict[str, Any]:
        """Wait until so many jobs have come."""
        deadline = time.monotonic() + timeout_s
        while (found := await self.counts())["jobs"] < jobs:
            if time.monotonic() > deadline:
                raise ClusterTrouble(f"{found['jobs']:,} of {jobs:,} jobs were delivered within {timeout_s:.0f} s")
            await asyncio.sleep(0.05)
        return found


def cluster() -> LocalCluster:
    return LocalCluster(AUTH_TOKENS=TOKEN, WORKER_LOCK_MS=str(LOCK_MS), LOG_LEVEL="warning")


async def ask(session: aiohttp.ClientSession, method: str, node: LocalNode, path: str, body: Any = None) -> Any:
    async with session.request(method, node.bullmq_url + path, json=body, headers=HEADERS) as reply:
        text = await reply.text()
        if reply.status != 200:
            raise ClusterTrouble(f"{method} {path} answered {reply.status}: {text}")
        return json.loads(text) if text[:1] in "[{" else text


async def register(
    session: aiohttp.ClientSession, node: LocalNode, queue: str, url: str, concurrency: int = CONCURRENCY
) -> None:
    endpoint = {"url": url, "method": "POST", "headers": {"Content-Type": "application/json"}}
    body = {"queue": queue, "endpoint": endpoint, "opts": {"concurrency": concurrency}}
    await ask(session, "POST", node, "/workers", body)


async def add(session: aiohttp.ClientSession, node: LocalNode, queue: str, jobs: int, data: str) -> None:
    """Add jobs in bulks over a few connections."""
    left = iter(range(0, jobs, BULK))
    value = json.loads(data)

    async def connection() -> None:
        for start in left:
            bulk = [{"name": "job", "data": value}] * min(BULK, jobs - start)
            await ask(session, "POST", node, f"/queues/{queue}/jobs", bulk)

    await asyncio.gather(*(connection() for _ in range(4)))


async def completed(session: aiohttp.ClientSession, node: LocalNode, queue: str) -> dict[str, int]:
    found = await ask(session, "GET", node, f"/queues/{queue}/jobs?statuses=waiting,active,completed,failed&length=1")
    counts: dict[str, int] = found["counts"]
    return counts


async def settled(session: aiohttp.ClientSession, node: LocalNode, queue: str) -> dict[str, int]:
    """Wait until nothing of a queue waits or is under way."""
    deadline = time.monotonic() + 60
    while True:
        counts = await completed(session, node, queue)
        if not counts["waiting"] and not counts["active"]:
            return counts
        if time.monotonic() > deadline:
            raise ClusterTrouble(f"queue {queue} is not worked off: {counts}")
        await asyncio.sleep(0.05)


async def workers(bench: Bench) -> None:
    """Registrations at once; deliveries of one queue and of three; deliveries while the leader is killed."""
    async with EndpointProcess() as endpoint:
        await at_once(bench, endpoint)
        await rates(bench, endpoint)
        await kill(bench, endpoint)


async def at_once(bench: Bench, endpoint: EndpointProcess) -> None:
    async with cluster() as nodes, aiohttp.ClientSession() as session:
        names = [f"queue-{n}" for n in range(REGISTRATIONS)]
        for n, name in enumerate(names):
            await add(session, nodes.nodes[n % 3], name, 1, bench.data)
        began = time.monotonic()
        await asyncio.gather(
            *(register(session, nodes.nodes[n % 3], name, endpoint.url, 1) for n, name in enumerate(names))
        )
        accepted = time.monotonic() - began
        found = await endpoint.until(REGISTRATIONS, 30)
        took = time.monotonic() - began
        shown = [await ask(session, "GET", nodes.nodes[0], f"/workers/{name}") for name in names]
        by_node = {node.id: sum(one["node"] == node.id for one in shown) for node in nodes.nodes}
        spread = " ".join(f"{node} {count}" for node, count in by_node.items())
        found = await endpoint.counts(clear=True)
        value = f"{found['queues']} served, {found['twice']} twice"
        detail = f"accepted in {accepted:.2f} s, all called after {took:.2f} s ({spread})"
        met = found["queues"] == REGISTRATIONS and not found["twice"]
        bench.row(f"{REGISTRATIONS} registrations at once", "three nodes", value, detail, "each once", met)
        bench.figures["registrations at once"] = {"accepted_s": accepted, "served_s": took, **found, "nodes": by_node}


async def rates(bench: Bench, endpoint: EndpointProcess) -> None:
    jobs = int(bench.seconds * 6_000)
    for queues in (1, 3):
        async with cluster() as nodes, aiohttp.ClientSession() as session:
            leader = await nodes.leader()
            names = [f"deliver-{n}" for n in range(queues)]
            for name in names:
                await add(session, leader, name, jobs // queues, bench.data)
            for name in names:
                await register(session, leader, name, endpoint.url)
            await endpoint.until(jobs // queues * queues, 120)
            for name in names:
                await settled(session, leader, name)
            shown = [await ask(session, "GET", leader, f"/workers/{name}") for name in names]
            where = ", ".join(sorted(f"{one['node']}{'*' if one['node'] == leader.id else ''}" for one in shown))
            found = await endpoint.counts(clear=True)
            rate = found["calls"] / found["seconds"]
            what = f"deliveries, {queues} queue{'s' * (queues > 1)}, concurrency {CONCURRENCY}"
            detail = f"{found['jobs']:,} jobs, {found['twice']} twice (* leads)"
            target = {"target": f"{RATE:,} jobs/s", "met": rate >= RATE and not found["twice"]}
            bench.row(what, where, f"{rate:,.0f} jobs/s", detail, **target)
            bench.figures[what] = found | {"jobs_per_s": rate}


async def kill(bench: Bench, endpoint: EndpointProcess) -> None:
    jobs = int(bench.seconds * 3_000)
    async with cluster() as nodes, aiohttp.ClientSession() as session:
        leader = await nodes.leader()
        names = [f"kill-{n}" for n in range(3)]
        for name in names:
            await add(session, leader, name, jobs // 3, bench.data)
        for name in names:
            await register(session, leader, name, endpoint.url)
        await endpoint.until(jobs // 10, 60)
        await leader.kill()
        other = nodes.running()[0]
        await endpoint.until(jobs // 3 * 3, 120)
        counts = [await settled(session, other, name) for name in names]
        done, failed = (sum(one[state] for one in counts) for state in ("completed", "failed"))
        found = await endpoint.counts(clear=True)
        lost = jobs // 3 * 3 - done
        value = f"{lost} lost, {failed} failed"
        detail = f"{found['jobs']:,} jobs in {found['seconds']:.1f} s, {found['twice']} came twice (lock {LOCK_MS} ms)"
        bench.row("deliveries while the leader is killed", "three queues", value, detail, "none lost", not lost)
        bench.figures["deliveries while the leader is killed"] = found | {"completed": done, "failed": failed}

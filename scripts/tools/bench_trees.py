"""How long others wait while trees of 10,000 jobs are added, each in one entry: at each node in turn, in both dialects.

Somebody pushes one job at a time at each node meanwhile, and the longest of these requests counts. Three nodes apply the entry at
the same time; where they share two cores with each other and with this script, each takes twice as long as on a machine of its own.
A node alone is measured for that reason, too: what it holds up others is what each of three machines does, but for the network.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.support.local_cluster import ClusterTrouble, LocalCluster, LocalNode

if TYPE_CHECKING:
    from scripts.tools.bench import Bench

JOBS = 10_000
QUEUES = 10
TREES = 6
WAIT_MAX_S = 0.2
# BullMQ's dialect asks for one.
TOKEN = "bench-trees-token"
HEADERS = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
# Others are measured for so long before a tree and after it.
BESIDE_S = 1.0


def bunqueue_tree(name: str) -> Any:
    """Return a parent and its children as bunqueue's clients plan them."""
    ids = [f"{name}-{number}" for number in range(JOBS - 1)]
    edges = {"childrenIds": ids, "dependsOn": ids}
    jobs: list[Any] = [{"id": name, "queue": "parents", "input": {"data": {"__childrenIds": ids}, **edges}}]
    for number, job_id in enumerate(ids):
        data = {"n": number, "__parentId": name, "__parentQueue": "parents"}
        jobs.append({"id": job_id, "queue": f"kids-{number % QUEUES}", "input": {"data": data, "parentId": name}})
    return {"jobs": jobs}


def bullmq_tree(name: str) -> Any:
    """Return a parent and its children as BullMQ's FlowProducer takes them."""
    kids = [{"name": "kid", "queueName": f"kids-{n % QUEUES}", "data": {"n": n}} for n in range(JOBS - 1)]
    return {"name": name, "queueName": "parents", "data": {}, "children": kids}


def post(url: str, body: bytes) -> None:
    """Send a tree, and read the whole answer."""
    request = urllib.request.Request(url, body, HEADERS)
    with urllib.request.urlopen(request, timeout=60) as reply:
        if reply.status != 200 or len(reply.read()) < JOBS:
            raise ClusterTrouble(f"POST {url} answered {reply.status}")


class Others:
    """Pushes one job at a time at a node."""

    def __init__(self, session: aiohttp.ClientSession, node: LocalNode) -> None:
        self.longest_s = 0.0
        self._session = session
        self._url = f"{node.url}/queues/others/jobs"
        self._task = asyncio.create_task(self._push())

    async def _push(self) -> None:
        while True:
            began = time.perf_counter()
            async with self._session.post(self._url, json={"data": 1}) as reply:
                if reply.status != 200:
                    raise ClusterTrouble(f"a push answered {reply.status}: {await reply.text()}")
                await reply.read()
            self.longest_s = max(self.longest_s, time.perf_counter() - began)

    def check(self) -> None:
        """Raise what ended it, if anything did."""
        if self._task.done():
            self._task.result()

    def end(self) -> None:
        self._task.cancel()


async def trees(bench: Bench) -> None:
    """The longest wait of others, for each tree, at three nodes and at one."""
    for nodes in (3, 1):
        await trees_at(bench, nodes)


async def trees_at(bench: Bench, nodes: int) -> None:
    """The same at so many nodes."""
    async with LocalCluster(nodes, AUTH_TOKENS=TOKEN) as cluster, aiohttp.ClientSession(headers=HEADERS) as session:
        others = {node.id: Others(session, node) for node in cluster.nodes}
        for dialect, plan in (("bunqueue", bunqueue_tree), ("BullMQ", bullmq_tree)):
            waits: list[dict[str, float]] = []
            beside: list[float] = []
            # Before anything is measured, since this loop does nothing else meanwhile.
            bodies = [json.dumps(plan(f"{dialect}-{turn}")).encode() for turn in range(TREES)]
            await asyncio.sleep(BESIDE_S)
            for turn, body in enumerate(bodies):
                node = cluster.nodes[turn % nodes]
                beside.append(max((await longest(others, BESIDE_S)).values()))
                tree = asyncio.to_thread(post, f"{node.bullmq_url if dialect == 'BullMQ' else node.url}/flows", body)
                waits.append(await longest(others, BESIDE_S, tree))
            each = [max(wait.values()) for wait in waits]
            detail = f"(each of {len(each)}: {', '.join(f'{s * 1000:.0f}' for s in each)}; beside them up to "
            detail += f"{max(beside) * 1000:.0f} ms)"
            where = "all of three nodes" if nodes > 1 else "one node alone"
            what, target = f"longest wait, a tree of {JOBS:,}", f"{WAIT_MAX_S * 1000:.0f} ms"
            bench.row(f"{what}, {dialect}", where, f"{max(each) * 1000:.0f} ms", detail, target, max(each) < WAIT_MAX_S)
            bench.figures[f"{what}, {dialect}, {where}"] = {"waits": waits, "beside": beside}
        for one in others.values():
            one.end()


async def longest(others: dict[str, Others], seconds: float, doing: Any = None) -> dict[str, float]:
    """Return the longest wait at each node while something is done and for some time after it."""
    for one in others.values():
        one.longest_s = 0.0
    if doing is not None:
        await doing
    await asyncio.sleep(seconds)
    for one in others.values():
        one.check()
    return {node_id: one.longest_s for node_id, one in others.items()}

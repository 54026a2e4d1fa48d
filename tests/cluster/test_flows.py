"""A wide flow over ten queues, worked on by many workers at all nodes while leaders are killed: it completes, each child once."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
from collections import Counter
from typing import Any

import aiohttp
import pytest

from tests.support.local_cluster import LocalCluster, LocalNode

QUEUES = 10
WORKERS = 20
LOCK_MS = 3_000


def flow(children: int) -> dict[str, Any]:
    """Return a flow of one parent, as a client plans it."""
    ids = [f"child-{i}" for i in range(children)]
    tie = {"__parentId": "parent", "__parentQueue": "parents"}
    jobs = [
        {"id": job_id, "queue": f"children-{i % QUEUES}", "input": {"data": {"n": i, **tie}, "parentId": "parent"}}
        for i, job_id in enumerate(ids)
    ]
    above = {"data": {"__childrenIds": ids}, "childrenIds": ids, "dependsOn": ids}
    return {"jobs": [*jobs, {"id": "parent", "queue": "parents", "input": above}]}


class Work:
    """Workers at every node. answered: how often each job's completion was answered with success; a lost answer is none."""

    def __init__(self, cluster: LocalCluster, session: aiohttp.ClientSession) -> None:
        self.cluster = cluster
        self.session = session
        self.answered: Counter[str] = Counter()
        self.done = asyncio.Event()

    async def post(self, node: LocalNode, path: str, body: Any) -> Any:
        """POST to a node; None when it did not answer with success."""
        try:
            async with self.session.post(node.url + path, json=body) as reply:
                return await reply.json() if reply.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, ValueError):
            await asyncio.sleep(0.1)
            return None

    async def work(self, number: int) -> None:
        names = [f"children-{(number + i) % QUEUES}" for i in range(QUEUES)] + ["parents"]
        nodes = self.cluster.nodes
        for turn in itertools.count():
            if self.done.is_set():
                return
            node, queue = nodes[(number + turn) % len(nodes)], names[turn % len(names)]
            pull = {"count": 20, "owner": f"worker {number}", "lockTtl": LOCK_MS}
            taken = await self.post(node, f"/queues/{queue}/jobs/pull-batch", pull)
            if not taken or not taken["jobs"]:
                await asyncio.sleep(0.02)
                continue
            ids = [job["id"] for job in taken["jobs"]]
            body = {"ids": ids, "tokens": taken["tokens"], "results": [{"of": job_id} for job_id in ids]}
            if await self.post(node, "/jobs/ack-batch", body):
                self.answered.update(ids)
            if "parent" in self.answered:
                self.done.set()

    async def kill_leaders(self, every_s: float) -> None:
        while not self.done.is_set():
            leader = await self.cluster.leader()
            await leader.kill()
            await asyncio.sleep(every_s / 2)
            await leader.start()
            await self.cluster.ready([leader])
            await asyncio.sleep(every_s / 2)


async def run(children: int, every_s: float, timeout_s: float) -> None:
    async with LocalCluster(3) as cluster, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        work = Work(cluster, session)

        async def raised() -> bool:
            return all([(await node.cluster())["level"] >= 1 for node in cluster.nodes])

        await cluster.until("the feature level of a new cluster", raised, 60)
        # A file, because aiohttp's client warns of large bodies in one piece.
        body = io.BytesIO(json.dumps(flow(children)).encode())
        async with session.post(cluster.nodes[1].url + "/flows", data=body) as reply:
            assert reply.status == 200, await reply.text()
        async with asyncio.timeout(timeout_s):
            killing = asyncio.create_task(work.kill_leaders(every_s))
            await asyncio.gather(*(work.work(number) for number in range(WORKERS)))
            await killing
        assert {job_id: times for job_id, times in work.answered.items() if times > 1} == {}
        await cluster.ready()
        await cluster.converged()
        for node in cluster.nodes:
            async with session.get(f"{node.url}/jobs/parent/children?consistency=stale") as reply:
                values = (await reply.json())["values"]
            assert values == {f"children-{i % QUEUES}:child-{i}": {"of": f"child-{i}"} for i in range(children)}
            async with session.get(f"{node.url}/jobs/parent?consistency=stale") as reply:
                parent = (await reply.json())["job"]
            assert (parent["state"], parent["childrenCompleted"]) == ("completed", children)


async def test_a_wide_flow_completes_while_leaders_are_killed() -> None:
    await run(children=1_000, every_s=2, timeout_s=150)


@pytest.mark.long
async def test_a_flow_of_ten_thousand_jobs_completes_while_leaders_are_killed() -> None:
    await run(children=9_999, every_s=10, timeout_s=1_200)

"""Clients that load a cluster and remember what it promised them, and the check that every promise was kept.

A push or an acknowledgement is a promise from the moment its 200 arrives; one without an answer may have happened or not.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.support.local_cluster import LocalCluster, LocalNode

QUEUE = "traffic"
BULK = 5
BATCH = 4
LOCK_MS = 3_000
# Pushers wait while so many jobs are not done: what they push beyond, workers never reach, and each job is looked at in the end.
BACKLOG = 100
# Jobs of one answer.
PAGE = 1_000


@dataclass
class Promises:
    """What clients were told. Ids are the clients' own numbers, carried in the jobs' data, beside the ids of the jobs."""

    pushed: dict[str, int] = field(default_factory=dict)
    acked: set[str] = field(default_factory=set)
    ack_unknown: set[str] = field(default_factory=set)
    delivered_after_ack: list[str] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)

    def errors_at(self, nodes: list[LocalNode]) -> list[tuple[str, str]]:
        ids = {node.id for node in nodes}
        return [(node_id, text) for node_id, text in self.errors if node_id in ids]


class Traffic:
    """Pushers and workers against every node; an async context manager that stops them on the way out."""

    def __init__(self, cluster: LocalCluster, pushers: int = 3, workers: int = 3) -> None:
        self.cluster = cluster
        self.promises = Promises()
        self.numbers = itertools.count()
        self.progress = asyncio.Condition()
        self.stopping = False
        self.counts = (pushers, workers)
        self.tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Traffic:
        known = aiohttp.TCPConnector(ssl=self.cluster.nodes[0].tls or True)
        self.session = aiohttp.ClientSession(connector=known, timeout=aiohttp.ClientTimeout(total=30))
        nodes = self.cluster.nodes
        self.tasks = [asyncio.create_task(self.push(nodes[i % len(nodes)])) for i in range(self.counts[0])]
        self.tasks += [asyncio.create_task(self.work(nodes[i % len(nodes)])) for i in range(self.counts[1])]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        self.stopping = True
        async with self.progress:
            self.progress.notify_all()
        # A request under way ends with its answer or with its connection; only long polls could last.
        _, late = await asyncio.wait(self.tasks, timeout=20)
        for task in late:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.session.close()
        for task in self.tasks:
            if not task.cancelled():
                task.result()

    async def until(self, acked: int, timeout_s: float = 60.0) -> None:
        """Wait until so many more acknowledgements have been answered than now."""
        goal = len(self.promises.acked) + acked
        async with asyncio.timeout(timeout_s), self.progress:
            await self.progress.wait_for(lambda: len(self.promises.acked) >= goal)

    async def post(self, node: LocalNode, path: str, body: Any) -> Any:
        """POST to the node; None when there was no answer of success, and then the error is noted."""
        try:
            async with self.session.post(node.url + path, json=body) as reply:
                answer = await reply.json()
                if reply.status == 200:
                    return answer
                text = f"{reply.status} {answer}"
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            text = f"{type(error).__name__} {error}"
        self.promises.errors.append((node.id, text))
        if not self.stopping:
            # The node is away: come back when it answers, rather than in a busy loop.
            await asyncio.sleep(0.05)
        return None

    def wanted(self) -> bool:
        """Whether there is a reason to push more, or to stop."""
        promises = self.promises
        return self.stopping or len(promises.pushed) - len(promises.acked) - len(promises.ack_unknown) < BACKLOG

    async def push(self, node: LocalNode) -> None:
        while not self.stopping:
            async with self.progress:
                await self.progress.wait_for(self.wanted)
            numbers = [next(self.numbers) for _ in range(BULK)]
            body = {"jobs": [{"data": {"number": number, "text": "x" * 100}} for number in numbers]}
            if answer := await self.post(node, f"/queues/{QUEUE}/jobs/bulk", body):
                self.promises.pushed.update(zip(answer["ids"], numbers, strict=True))

    async def work(self, node: LocalNode) -> None:
        pull = {"count": BATCH, "timeout": 200, "owner": f"worker at {node.id}", "lockTtl": LOCK_MS}
        while not self.stopping:
            taken = await self.post(node, f"/queues/{QUEUE}/jobs/pull-batch", pull)
            for job, token in zip(taken["jobs"], taken["tokens"], strict=True) if taken and taken["jobs"] else ():
                await self.ack(node, job["id"], job["data"]["number"], token)

    async def ack(self, node: LocalNode, job_id: str, number: int, token: str) -> None:
        if job_id in self.promises.acked:
            self.promises.delivered_after_ack.append(job_id)
        answer = await self.post(node, f"/jobs/{job_id}/ack", {"token": token, "result": {"number": number}})
        async with self.progress:
            (self.promises.ack_unknown if answer is None else self.promises.acked).add(job_id)
            self.progress.notify_all()


async def states(node: LocalNode, ids: list[str]) -> dict[str, tuple[str, Any]]:
    """Ask `node` for the state and the result of every job."""
    found: dict[str, tuple[str, Any]] = {}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=node.tls or True)) as session:
        jobs, offset = [None], 0
        while jobs:
            page = {"limit": PAGE, "offset": offset}
            async with session.get(f"{node.url}/queues/{QUEUE}/jobs/list", params=page) as reply:
                jobs = (await reply.json())["jobs"]
            found |= {job["id"]: (job["state"], job.get("returnvalue")) for job in jobs}
            offset += len(jobs)
        # One that changes its place between two pages is in neither of them.
        for job_id in set(ids) - found.keys():
            async with session.get(f"{node.url}/jobs/{job_id}/state") as reply:
                state = (await reply.json())["state"]
            async with session.get(f"{node.url}/jobs/{job_id}/result") as reply:
                found[job_id] = state, (await reply.json()).get("result")
    return found


async def broken(promises: Promises, node: LocalNode) -> list[str]:
    """Compare what clients were told with what `node` says now; return every difference, in words."""
    found = await states(node, sorted(promises.pushed))
    wrong = [f"{job_id} was delivered again after its ack was answered" for job_id in promises.delivered_after_ack]
    for job_id, number in promises.pushed.items():
        state, result = found[job_id]
        if state == "unknown":
            wrong.append(f"{job_id} is lost: its push was answered")
        elif job_id in promises.acked and (state != "completed" or result != {"number": number}):
            wrong.append(f"{job_id} was acknowledged, and is {state} with result {result}")
        elif state == "completed" and job_id not in promises.acked | promises.ack_unknown:
            wrong.append(f"{job_id} is completed, and nobody acknowledged it")
    return wrong

"""Crons and webhooks while leaders are killed: each due time makes one job, and each acknowledged push is reported in order."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import aiohttp
from aiohttp import web

from tests.support.local_cluster import HOST, LocalCluster, LocalNode

EVERY_MS = 300
PAUSE_S = 0.01
KILLS = 2


class Receiver:
    """What a webhook calls: keeps the number and the job of every delivery. An async context manager."""

    def __init__(self) -> None:
        self.deliveries: list[tuple[int, str]] = []
        self.arrived = asyncio.Condition()
        self.url = ""

    async def __aenter__(self) -> Receiver:
        self.runner = web.ServerRunner(web.Server(self.receive))
        await self.runner.setup()
        site = web.TCPSite(self.runner, HOST, 0)
        await site.start()
        self.url = f"http://{HOST}:{self.runner.addresses[0][1]}/"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.runner.cleanup()

    async def receive(self, request: web.BaseRequest) -> web.Response:
        number = int(request.headers["X-Webhook-Delivery"].rpartition("-")[2])
        async with self.arrived:
            self.deliveries.append((number, json.loads(await request.read())["jobId"]))
            self.arrived.notify_all()
        return web.Response()

    async def until(self, job_id: str, timeout_s: float = 30.0) -> None:
        """Wait until the push of a job has been reported."""
        async with asyncio.timeout(timeout_s), self.arrived:
            await self.arrived.wait_for(lambda: any(job == job_id for _, job in self.deliveries))


class Pusher:
    """Pushes one job after the other, to each node in turn, and keeps the ids it was told."""

    def __init__(self, nodes: list[LocalNode], session: aiohttp.ClientSession) -> None:
        self.nodes = nodes
        self.session = session
        self.acknowledged: list[str] = []
        self.stopping = False

    async def run(self) -> None:
        for number, node in zip(itertools.count(), itertools.cycle(self.nodes)):
            if self.stopping:
                return
            try:
                async with self.session.post(f"{node.url}/queues/told/jobs", json={"data": number}) as reply:
                    if reply.status == 200:
                        self.acknowledged.append((await reply.json())["id"])
            except (aiohttp.ClientError, TimeoutError):
                # It may have happened or not, and was not acknowledged.
                pass
            await asyncio.sleep(PAUSE_S)


async def set_up(leader: LocalNode, receiver: Receiver, session: aiohttp.ClientSession) -> int:
    """Create the webhook and the cron; return the cron's first due time."""
    hook = {"url": receiver.url, "events": ["pushed"], "queue": "told"}
    async with session.post(f"{leader.url}/webhooks", json=hook) as reply:
        assert reply.status == 200, await reply.text()
    cron = {"name": "often", "queue": "ticks", "data": 1, "repeatEvery": EVERY_MS, "preventOverlap": False}
    async with session.post(f"{leader.url}/crons", json=cron) as reply:
        assert reply.status == 200, await reply.text()
        first: int = (await reply.json())["cron"]["nextRun"]
        return first


async def cron_of(node: LocalNode) -> dict[str, Any]:
    status, answer = await node.ask("/crons/often")
    assert status == 200, answer
    found: dict[str, Any] = answer["cron"]
    return found


async def more_ticks(cluster: LocalCluster, count: int) -> None:
    """Wait until the cron has fired so many times more."""
    goal = (await cron_of(await cluster.leader()))["executions"] + count

    async def fired() -> bool:
        status, answer = await cluster.running()[0].ask("/crons/often")
        return status == 200 and bool(answer["cron"]["executions"] >= goal)

    await cluster.until(f"the cron fired {count} times", fired, 30.0)


def due_time(job_id: str) -> int:
    """Return the due time for which a cron's job was made: its id begins with it."""
    return int(job_id.replace("-", "")[:12], 16)


async def test_nothing_is_skipped_or_repeated_while_leaders_are_killed() -> None:
    timeout = aiohttp.ClientTimeout(total=10)
    async with (
        Receiver() as receiver,
        LocalCluster(3, WEBHOOK_ALLOW_PRIVATE="true") as cluster,
        aiohttp.ClientSession(timeout=timeout) as session,
    ):
        first_due = await set_up(await cluster.leader(), receiver, session)
        pusher = Pusher(cluster.nodes, session)
        pushing = asyncio.create_task(pusher.run())
        for _ in range(KILLS):
            await more_ticks(cluster, 3)
            leader = await cluster.leader()
            await leader.kill()
            await more_ticks(cluster, 3)
            await receiver.until(pusher.acknowledged[-1])
            await leader.start()
            await cluster.ready()
        await more_ticks(cluster, 3)
        # However slow the machine is.
        while len(pusher.acknowledged) <= 100:
            await more_ticks(cluster, 1)
        pusher.stopping = True
        await pushing
        await receiver.until(pusher.acknowledged[-1])

        # Each due time made one job: none is missing, none was made twice. The cron goes on meanwhile.
        leader = await cluster.leader()
        executions = (await cron_of(leader))["executions"]
        _, listed = await leader.ask("/queues/ticks/jobs/list?limit=1000")
        dues = sorted(due_time(job["id"]) for job in listed["jobs"])
        assert len(dues) >= executions >= 3 * (2 * KILLS + 1)
        assert dues == [first_due + i * EVERY_MS for i in range(len(dues))]
        after = await cron_of(leader)
        assert after["nextRun"] == first_due + after["executions"] * EVERY_MS

        # Whatever came more than once came in order the first time, and nothing that was acknowledged is missing.
        deliveries = dict.fromkeys(receiver.deliveries)
        numbers = [number for number, _ in deliveries]
        assert numbers == [*range(numbers[0], numbers[0] + len(numbers))]
        told = [job_id for _, job_id in deliveries]
        acknowledged = set(pusher.acknowledged)
        assert [job_id for job_id in told if job_id in acknowledged] == pusher.acknowledged
        await cluster.converged()

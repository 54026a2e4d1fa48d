"""Push workers over three real nodes: registrations at once, the serving node and the leader killed, stops in order."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import aiohttp
from aiohttp import web

from tests.support.endpoint import Endpoint, Said
from tests.support.local_cluster import LocalCluster, LocalNode

TOKEN = "tok"
LOCK_MS = 2_000
SETTINGS = {"AUTH_TOKENS": TOKEN, "WORKER_LOCK_MS": str(LOCK_MS)}


class Asking:
    """Requests to the BullMQ dialect of any node; an async context manager."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster

    async def __aenter__(self) -> Asking:
        self.session = aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"})
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def ask(self, node: LocalNode, method: str, path: str, body: Any = None) -> Any:
        async with self.session.request(method, node.bullmq_url + path, json=body) as reply:
            text = await reply.text()
            assert reply.status == 200, (method, path, reply.status, text)
            return await reply.json() if text[:1] in "[{" else text

    async def register(self, node: LocalNode, queue: str, endpoint: Endpoint, **opts: Any) -> None:
        body = {"queue": queue, "endpoint": {"url": endpoint.url, "method": "POST", "timeout": 20_000}, "opts": opts}
        await self.ask(node, "POST", "/workers", body)

    async def add(self, node: LocalNode, queue: str, count: int, name: str = "job") -> list[str]:
        jobs = [{"name": f"{name}-{n}", "data": {"n": n}} for n in range(count)]
        return [job["id"] for job in await self.ask(node, "POST", f"/queues/{queue}/jobs", jobs)]

    async def counts(self, node: LocalNode, queue: str) -> dict[str, int]:
        page = await self.ask(node, "GET", f"/queues/{queue}/jobs?length=1")
        found: dict[str, int] = page["counts"]
        return found

    async def serving(self, queue: str) -> LocalNode:
        """Return the node that serves a registration, once there is one that runs."""

        async def served() -> LocalNode | None:
            node = self.cluster.running()[0]
            shown = await self.ask(node, "GET", f"/workers/{queue}")
            return next((one for one in self.cluster.running() if one.id == shown["node"]), None)

        found: LocalNode = await self.cluster.until(f"a node that runs serves {queue}", served, 20)
        return found

    async def completed(self, queue: str, count: int, timeout_s: float = 60) -> None:
        """Wait until so many jobs of a queue have completed."""

        async def all_done() -> bool:
            try:
                return (await self.counts(self.cluster.running()[0], queue))["completed"] >= count
            except (aiohttp.ClientError, AssertionError):
                return False

        await self.cluster.until(f"{count} jobs of {queue} completed", all_done, timeout_s)


async def test_two_hundred_registrations_at_once_are_all_served_each_once() -> None:
    async with LocalCluster(3, **SETTINGS) as cluster, Asking(cluster) as asking, Endpoint() as endpoint:
        names = [f"queue-{n}" for n in range(200)]
        nodes = cluster.nodes
        await asyncio.gather(*(asking.add(nodes[n % 3], name, 2) for n, name in enumerate(names)))
        await asyncio.gather(*(asking.register(nodes[n % 3], name, endpoint) for n, name in enumerate(names)))
        await endpoint.until(400, 40)
        for name in names:
            await asking.completed(name, 2)
        # Each job came once, the jobs of a queue one at a time and in order.
        came = Counter(said.job["queueQualifiedName"] for said in endpoint.said)
        assert len(came) == 200 and set(came.values()) == {2} and endpoint.overlaps == []
        for name in names[:10]:
            order = [said.job["name"] for said in endpoint.said if said.job["queueQualifiedName"] == f"bull:{name}"]
            assert order == ["job-0", "job-1"]
        # The nodes have about the same share, and what any of them says is the same.
        shares = Counter([(await asking.ask(nodes[0], "GET", f"/workers/{name}"))["node"] for name in names])
        assert sorted(shares.values()) == [66, 67, 67]
        assert len(await asking.ask(nodes[1], "GET", "/workers")) == 200
        await cluster.converged()


async def kill_while_delivering(which: str) -> None:
    """Kill the node that serves a queue, or the leader, in the middle of deliveries."""
    loop = asyncio.get_running_loop()
    started: dict[str, list[float]] = {}

    async def answer(said: Said) -> web.StreamResponse:
        started.setdefault(said.job["id"], []).append(loop.time())
        await asyncio.sleep(0.02)
        return web.json_response(said.job["data"]["n"])

    async with LocalCluster(3, **SETTINGS) as cluster, Asking(cluster) as asking, Endpoint(answer) as endpoint:
        node = cluster.nodes[0]
        ids = await asking.add(node, "kill", 600)
        await asking.register(node, "kill", endpoint, concurrency=8)
        await endpoint.until(100)
        victim = await (asking.serving("kill") if which == "serving" else cluster.leader())
        await victim.kill()
        killed_at = loop.time()
        await asking.completed("kill", 600)
        assert endpoint.most_at_once <= 8
        counts = await asking.counts(cluster.running()[0], "kill")
        assert (counts["completed"], counts["failed"], counts["waiting"], counts["active"]) == (600, 0, 0, 0)
        # Only what was under way at the kill can come twice, and not before its lock has run out.
        twice = {own: times for own, times in started.items() if len(times) > 1}
        assert set(started) == set(ids) and len(twice) <= 16
        for times in twice.values():
            assert len(times) == 2 and times[0] <= killed_at + 1
            assert times[1] - times[0] >= LOCK_MS / 1000 / 2
        if which == "serving":
            again = [times[1] for times in twice.values()]
            assert all(at - killed_at <= LOCK_MS / 1000 + 10 for at in again)
            assert (await asking.serving("kill")) is not victim
        await victim.start()
        await cluster.ready()
        await cluster.converged()


async def test_the_serving_node_is_killed_and_no_job_is_lost() -> None:
    await kill_while_delivering("serving")


async def test_the_leader_is_killed_and_no_job_is_lost() -> None:
    await kill_while_delivering("leader")


async def test_a_node_that_stops_finishes_its_calls_and_hands_over_at_once() -> None:
    go = asyncio.Event()

    async def answer(said: Said) -> web.StreamResponse:
        if said.job["name"] == "job-0":
            await go.wait()
        return web.json_response("done")

    async with LocalCluster(3, **SETTINGS) as cluster, Asking(cluster) as asking, Endpoint(answer) as endpoint:
        node = cluster.nodes[0]
        await asking.add(node, "stop", 1)
        await asking.register(node, "stop", endpoint, concurrency=2)
        await endpoint.until(1)
        serving = await asking.serving("stop")
        stopping = asyncio.create_task(serving.stop())
        other = next(one for one in cluster.nodes if one is not serving)

        async def handed_over() -> bool:
            return (await asking.ask(other, "GET", "/workers/stop"))["node"] not in (None, serving.id)

        await cluster.until("another node serves", handed_over, 20)
        # Its call goes on meanwhile; what comes now is delivered by the other node, in the place that is left.
        await asking.add(other, "stop", 3, "later")
        await endpoint.until(4)
        go.set()
        assert await stopping == 0
        await asking.completed("stop", 4)
        assert sorted(endpoint.names) == ["job-0", "later-0", "later-1", "later-2"] and endpoint.overlaps == []


async def test_a_registration_outlives_all_nodes() -> None:
    async with LocalCluster(3, **SETTINGS) as cluster, Asking(cluster) as asking, Endpoint() as endpoint:
        await asking.register(cluster.nodes[0], "outlives", endpoint)
        for node in cluster.nodes:
            await node.kill()
        await cluster.start()
        await asking.add(cluster.nodes[1], "outlives", 1)
        await asking.completed("outlives", 1)
        assert len(endpoint.said) == 1

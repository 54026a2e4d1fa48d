"""SIGTERM: a node that is told to stop hands leadership over, answers what is under way, and leaves with status 0."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from tests.cluster.traffic import Traffic, broken
from tests.support.local_cluster import PATIENCE, LocalCluster


async def test_a_rolling_restart_fails_no_request_at_the_other_nodes() -> None:
    async with LocalCluster(3) as cluster:
        async with Traffic(cluster) as traffic:
            for node in cluster.nodes:
                await traffic.until(acked=20)
                already = len(traffic.promises.errors)
                assert await node.stop() == 0
                await traffic.until(acked=20)
                await node.start()
                await cluster.ready([node])
                fresh = traffic.promises.errors[already:]
                assert [error for error in fresh if error[0] != node.id] == []
                # Its own clients are turned away when its listener closes, never with an answer that it failed.
                assert [text for _, text in fresh if text.startswith("5")] == []
        await cluster.converged()
        assert await broken(traffic.promises, cluster.nodes[0]) == []


async def test_a_stopping_leader_hands_over_before_it_leaves() -> None:
    async with LocalCluster(3, **PATIENCE) as cluster, aiohttp.ClientSession() as session:
        leader = await cluster.leader()
        term = (await leader.cluster())["term"]
        assert await leader.stop() == 0
        successor = await cluster.leader()
        answer = await successor.cluster()
        assert answer["term"] == term + 1, "one election by transfer, no waiting for a time-out and no split vote"
        async with session.post(f"{successor.url}/queues/after/jobs", json={"data": 1}) as reply:
            assert reply.status == 200


async def test_a_long_poll_is_answered_when_its_node_stops() -> None:
    async with LocalCluster(1) as cluster, aiohttp.ClientSession() as session:
        (node,) = cluster.nodes

        async def poll() -> tuple[int, object]:
            async with session.get(f"{node.url}/queues/nothing/jobs?timeout=60000") as reply:
                return reply.status, await reply.json()

        polling = asyncio.create_task(poll())
        # A request behind it on the same node has been answered, so that it has been taken in too.
        async with session.post(f"{node.url}/queues/other/jobs", json={"data": 1}) as reply:
            assert reply.status == 200
        async with asyncio.timeout(30):
            assert await node.stop() == 0
            status, body = await polling
        assert (status, body) == (200, {"ok": True, "job": None})


@pytest.mark.parametrize("nodes", [1, 3])
async def test_all_nodes_stop_at_once_and_come_back_with_everything(nodes: int) -> None:
    async with LocalCluster(nodes) as cluster:
        async with Traffic(cluster) as traffic:
            await traffic.until(acked=60)
        async with asyncio.timeout(60):
            assert await asyncio.gather(*(node.stop() for node in cluster.nodes)) == [0] * nodes
        await cluster.start()
        await cluster.converged()
        assert await broken(traffic.promises, cluster.nodes[-1]) == []

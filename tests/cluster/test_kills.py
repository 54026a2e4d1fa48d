"""kill -9 of real processes under load: nothing that a client was promised is lost, and the survivors go on."""

from __future__ import annotations

import random

import pytest

from tests.cluster.traffic import QUEUE, Traffic, broken
from tests.support.local_cluster import LocalCluster


async def test_the_leader_is_killed_and_writes_go_on() -> None:
    async with LocalCluster(3) as cluster:
        async with Traffic(cluster) as traffic:
            await traffic.until(acked=50)
            leader = await cluster.leader()
            survivors = [node for node in cluster.nodes if node is not leader]
            await leader.kill()
            await traffic.until(acked=50)
            successor = await cluster.leader()
            assert successor is not leader
            await leader.start()
            await cluster.ready([leader])
            await traffic.until(acked=20)
        assert traffic.promises.errors_at(survivors) == []
        await cluster.converged()
        for node in cluster.nodes:
            assert await broken(traffic.promises, node) == []


async def test_all_nodes_are_killed_at_once_and_every_promise_is_kept() -> None:
    async with LocalCluster(3) as cluster:
        async with Traffic(cluster) as traffic:
            await traffic.until(acked=100)
            for node in cluster.nodes:
                await node.kill()
        await cluster.start()
        await cluster.converged()
        for node in cluster.nodes:
            assert await broken(traffic.promises, node) == []
        # And it is a cluster like any other: what was left is worked off.
        async with Traffic(cluster) as after:
            await after.until(acked=50)
        after.promises.pushed |= traffic.promises.pushed
        after.promises.acked |= traffic.promises.acked
        after.promises.ack_unknown |= traffic.promises.ack_unknown
        assert await broken(after.promises, cluster.nodes[0]) == []


async def kill_at_random_moments(rounds: int, seed: int) -> None:
    chance = random.Random(seed)
    print(f"seed {seed}")
    async with LocalCluster(3) as cluster:
        async with Traffic(cluster) as traffic:
            # A long run completes more than a queue keeps by default, and what has gone would count as lost.
            kept = traffic.session.put(
                f"{cluster.nodes[0].url}/admin/queues/{QUEUE}/retention", json={"completed": 1_000_000}
            )
            async with kept as reply:
                assert reply.status == 200
            for _ in range(rounds):
                await traffic.until(acked=chance.randint(1, 60))
                victim = chance.choice(cluster.nodes)
                already = len(traffic.promises.errors)
                survivors = [node for node in cluster.nodes if node is not victim]
                await victim.kill()
                await traffic.until(acked=chance.randint(1, 40))
                await victim.start()
                await cluster.ready()
                fresh = traffic.promises.errors[already:]
                assert [error for error in fresh if error[0] in {node.id for node in survivors}] == []
        await cluster.converged()
        for node in cluster.nodes:
            assert await broken(traffic.promises, node) == []


async def test_one_node_is_killed_at_random_moments() -> None:
    await kill_at_random_moments(rounds=3, seed=random.randrange(1 << 32))


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_one_node_is_killed_at_random_moments_many_times() -> None:
    await kill_at_random_moments(rounds=25, seed=random.randrange(1 << 32))


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_all_nodes_are_killed_at_once_many_times() -> None:
    async with LocalCluster(3) as cluster:
        chance = random.Random()
        async with Traffic(cluster) as traffic:
            for _ in range(10):
                await traffic.until(acked=chance.randint(20, 200))
                for node in cluster.nodes:
                    await node.kill()
                await cluster.start()
        await cluster.converged()
        assert await broken(traffic.promises, cluster.nodes[0]) == []


async def test_a_single_node_that_is_killed_keeps_its_promises_too() -> None:
    async with LocalCluster(1) as cluster:
        async with Traffic(cluster) as traffic:
            await traffic.until(acked=100)
            await cluster.nodes[0].kill()
        await cluster.start()
        assert await broken(traffic.promises, cluster.nodes[0]) == []

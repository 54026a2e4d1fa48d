"""Two versions in one cluster: the previous one, from its wheel, and this one, under load, forwards and backwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quorumq.cluster.version import VERSION
from tests.cluster.test_leaving import DELAY_MS
from tests.cluster.traffic import Traffic, broken
from tests.support.balancer import Balancer
from tests.support.local_cluster import LocalCluster, LocalNode
from tests.support.rolling import Client, Load, lost
from tests.support.versions import run_present, run_previous

# What a node that is older than the level says and how it ends.
TOO_OLD_FORMAT = "has format 2; this version reads 1"


async def restarted(cluster: LocalCluster, node: LocalNode, traffic: Traffic) -> None:
    """Stop and start one node under load; no request at the others may fail."""
    staying = [other for other in cluster.nodes if other is not node]
    already = len(traffic.promises.errors)
    assert await node.stop() == 0
    await traffic.until(acked=20)
    await node.start()
    await cluster.ready([node])
    await traffic.until(acked=20)
    fresh = traffic.promises.errors[already:]
    assert [error for error in fresh if error[0] in {other.id for other in staying}] == []


async def seen(cluster: LocalCluster) -> dict[str, Any]:
    """What a node of this version says of the versions of all."""

    async def all_told() -> dict[str, Any] | None:
        for node in cluster.nodes:
            answer = await node.cluster()
            if "level" in answer and all(one["version"] is not None for one in answer["members"]):
                return {"level": answer["level"], **{one["id"]: one["version"] for one in answer["members"]}}
        return None

    found: dict[str, Any] = await cluster.until("all versions are known", all_told, 30)
    return found


@pytest.mark.timeout(300)
async def test_a_roll_forwards_backwards_and_forwards_loses_nothing_and_parts_no_replicas(tmp_path: Path) -> None:
    cluster = LocalCluster(3)
    for node in cluster.nodes:
        run_previous(node, tmp_path)
    async with cluster, Traffic(cluster, pushers=2, workers=3) as traffic:
        await traffic.until(acked=30)
        first, second, third = cluster.nodes
        for node in (first, second):
            run_present(node)
            await restarted(cluster, node, traffic)
        assert await seen(cluster) == {"level": 0, "n1": VERSION, "n2": VERSION, "n3": ""}
        # One back again, and all on: each version has led and followed the other.
        run_previous(first, tmp_path)
        await restarted(cluster, first, traffic)
        for node in (third, first):
            run_present(node)
            await restarted(cluster, node, traffic)
        await traffic.stop()
        assert await seen(cluster) == {"level": 0, "n1": VERSION, "n2": VERSION, "n3": VERSION}
        await cluster.converged()
        assert await broken(traffic.promises, first) == []


@pytest.mark.timeout(400)
async def test_the_way_from_the_version_before_and_back_behind_a_balancer_fails_no_request(tmp_path: Path) -> None:
    cluster = LocalCluster(3, SHUTDOWN_DELAY_MS=str(DELAY_MS))
    for node in cluster.nodes:
        run_previous(node, tmp_path)
    async with cluster, Balancer(cluster.nodes) as balancer, Load(Client(balancer.url)) as client:
        for to_present in (True, False):
            for node in cluster.nodes:
                await client.until(15)
                if to_present:
                    # Version 0.1.0 closes as soon as it is told to stop, so it is taken out first.
                    await balancer.take_out(node)
                assert await node.stop() == 0
                await client.until(15)
                if to_present:
                    run_present(node)
                else:
                    run_previous(node, tmp_path)
                await node.start()
                await cluster.ready([node])
                balancer.aside.discard(node.id)
            await client.until(15)
            if to_present:
                assert await seen(cluster) == {"level": 0, "n1": VERSION, "n2": VERSION, "n3": VERSION}
        assert client.failed == [] and client.doubled == [] and balancer.repeated == 0
        assert client.acked <= client.pushed
        assert await lost(client, cluster.nodes[0]) == []


@pytest.mark.timeout(300)
async def test_above_the_level_the_previous_version_says_so_and_stops(tmp_path: Path) -> None:
    cluster = LocalCluster(3)
    first, _, third = cluster.nodes
    run_previous(third, tmp_path)
    async with cluster, Traffic(cluster, pushers=2, workers=3) as traffic:
        await traffic.until(acked=20)
        status, said = await traffic_post(traffic, first, "/admin/cluster/level")
        assert (status, said["code"]) == (409, "change_refused")
        assert "n3 runs a version before 0.2.0, which knows 0" in said["error"]
        run_present(third)
        await restarted(cluster, third, traffic)
        await seen(cluster)
        leader = await cluster.leader()
        follower = next(node for node in cluster.nodes if node is not leader)

        async def raised() -> bool:
            # A leader that is new, or has not heard from everybody yet, refuses for a moment.
            status, said = await traffic_post(traffic, follower, "/admin/cluster/level")
            assert status in (200, 409, 503), said
            return status == 200 and said["level"] == 1

        await cluster.until("the level is raised", raised, 30)
        await traffic.until(acked=20)
        assert await third.stop() == 0
        run_previous(third, tmp_path)
        await third.start()
        assert await third.exited() == 1
        assert TOO_OLD_FORMAT in third.log_text()
        await traffic.until(acked=20)
        run_present(third)
        await third.start()
        await cluster.ready()
        await traffic.stop()
        await cluster.converged()
        assert await broken(traffic.promises, third) == []


async def traffic_post(traffic: Traffic, node: LocalNode, path: str) -> tuple[int, Any]:
    async with traffic.session.post(node.url + path) as reply:
        return reply.status, await reply.json()


async def test_two_versions_in_one_cluster_have_the_same_digest(tmp_path: Path) -> None:
    cluster = LocalCluster(3)
    run_previous(cluster.nodes[-1], tmp_path)
    async with cluster:
        async with Traffic(cluster) as traffic:
            await traffic.until(acked=100)

        async def at_rest() -> list[dict[str, Any]] | None:
            answers = [await node.cluster() for node in cluster.nodes]
            return answers if len({answer["applied_index"] for answer in answers}) == 1 else None

        answers = await cluster.until("all have applied the same entries", at_rest, 60)
        assert len({answer["digest"] for answer in answers}) == 1, answers
        assert [answer.get("level") for answer in answers] == [0, 0, None]

"""The secret of a cluster that serves is introduced and changed by rolling restarts, and nobody at the nodes that stay notices."""

from __future__ import annotations

import asyncio
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.test_strangers import logged
from tests.cluster.traffic import Traffic, broken
from tests.support.local_cluster import PATIENCE, LocalCluster, LocalNode

pytestmark = pytest.mark.timeout(600)
WHEEL = Path(__file__).parents[1] / "versions" / "quorumq-0.1.0-py3-none-any.whl"
# Takes the place of `python -m quorumq`, which are the three words after it.
OLD_MAIN = "import sys; sys.path[:0] = [{!r}]; sys.argv[1:4] = []; from cli.main import main; main()"


class Gentle(Traffic):
    """Few jobs: what counts is when they are pushed, and each is looked at in the end."""

    async def post(self, node: LocalNode, path: str, body: Any) -> Any:
        await asyncio.sleep(0.05)
        return await super().post(node, path, body)


def as_before(node: LocalNode, directory: Path) -> None:
    """Have the node run version 0.1.0 from now on."""
    if not directory.exists():
        zipfile.ZipFile(WHEEL).extractall(directory)
    node.within = (sys.executable, "-c", OLD_MAIN.format(str(directory)))


def as_now(node: LocalNode) -> None:
    node.within = ()


async def roll(
    cluster: LocalCluster, traffic: Traffic, own: dict[str, dict[str, str]] | None = None, **settings: str
) -> None:
    """Restart one node after the other with these settings, as docs/operations.md says; an empty one is taken away.

    own: those of each node.
    """
    for node in cluster.nodes:
        before = len(traffic.promises.errors)
        assert await node.stop() == 0
        node.settings |= settings | (own or {}).get(node.id, {})
        as_now(node)
        await node.start()
        await cluster.ready([node])
        await traffic.until(acked=20)
        others = {each.id for each in cluster.nodes if each is not node}
        # What a node that stays answers is 200, whoever else is away.
        assert [error for error in traffic.promises.errors[before:] if error[0] in others] == []


async def kept(cluster: LocalCluster, traffic: Traffic) -> None:
    await cluster.converged()
    for node in cluster.nodes:
        # Everybody is connected with everybody.
        assert all(member["connected"] for member in (await node.cluster())["members"])
    assert await broken(traffic.promises, cluster.nodes[0]) == []


async def refused_without(cluster: LocalCluster, secret: str) -> None:
    """One node with another secret is let in by nobody."""
    node = cluster.nodes[2]
    assert await node.stop() == 0
    right = dict(node.settings)
    node.settings |= {"CLUSTER_SECRET": secret, "CLUSTER_SECRET_PREVIOUS": ""}
    await node.start()
    await logged(cluster, node, "refused this node: wrong cluster secret")

    async def not_ready() -> bool:
        return (await node.ask("/ready"))[0] == 503

    await cluster.until("n3 says that it is not ready", not_ready, 30)
    await node.stop()
    node.settings = right
    await node.start()
    await cluster.ready()


async def test_a_secret_is_introduced_and_changed_while_the_cluster_serves() -> None:
    async with LocalCluster(3, **PATIENCE, CLUSTER_SECRET="") as cluster:
        async with Gentle(cluster) as traffic:
            await traffic.until(acked=20)
            await roll(cluster, traffic, CLUSTER_SECRET="opensesame-1", CLUSTER_SECRET_PREVIOUS="none")
            await roll(cluster, traffic, CLUSTER_SECRET="opensesame-2", CLUSTER_SECRET_PREVIOUS="opensesame-1")
            await roll(cluster, traffic, CLUSTER_SECRET_PREVIOUS="")
        await refused_without(cluster, "opensesame-1")
        await kept(cluster, traffic)
        assert not any(word in node.log_text() for node in cluster.nodes for word in ("opensesame-1", "opensesame-2"))


async def test_the_version_before_is_rolled_to_this_one_and_to_a_new_secret_at_once(tmp_path: Path) -> None:
    cluster = LocalCluster(3, **PATIENCE)
    for node in cluster.nodes:
        as_before(node, tmp_path / "0.1.0")
    async with cluster, Gentle(cluster) as traffic:
        await traffic.until(acked=20)
        old = cluster.nodes[0].settings["CLUSTER_SECRET"]
        await roll(cluster, traffic, CLUSTER_SECRET="new", CLUSTER_SECRET_PREVIOUS=old)
        # One goes back, when it has been told the new one only: it looks at the first proof alone.
        (last,) = cluster.nodes[2:]
        assert await last.stop() == 0
        as_before(last, tmp_path / "0.1.0")
        last.settings |= {"CLUSTER_SECRET": "new", "CLUSTER_SECRET_PREVIOUS": ""}
        await last.start()
        await cluster.ready()
        await traffic.until(acked=20)
        await roll(cluster, traffic, CLUSTER_SECRET_PREVIOUS="")
        await traffic.stop()
        await kept(cluster, traffic)

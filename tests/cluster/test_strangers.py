"""Nodes that do not belong: another cluster's name, another secret, a damaged log, a folder in use. Each says so clearly."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.cluster.traffic import Traffic
from tests.support.local_cluster import PATIENCE, LocalCluster, LocalNode


@asynccontextmanager
async def not_started(nodes: int, **settings: str) -> AsyncIterator[LocalCluster]:
    cluster = LocalCluster(nodes, **settings)
    try:
        yield cluster
    finally:
        await cluster.close()


async def logged(cluster: LocalCluster, node: LocalNode, *words: str) -> str:
    """Wait until one line of the node's log has all the words; return it."""

    async def look() -> str:
        lines = node.log_text().splitlines()
        return next((line for line in lines if all(word in line for word in words)), "")

    line: str = await cluster.until(f"{node.id} logs {words}", look, timeout_s=30)
    return line


@pytest.mark.parametrize(
    ("setting", "value", "word"), [("CLUSTER_NAME", "another", "another"), ("CLUSTER_SECRET", "guessed", "secret")]
)
async def test_a_node_of_another_cluster_is_refused_with_a_message_on_both_sides(
    setting: str, value: str, word: str
) -> None:
    async with LocalCluster(3, **PATIENCE) as cluster:
        n1, n2, stranger = cluster.nodes
        # The stranger has the address of n3 and no data: a node of another installation, started in the wrong place.
        assert await stranger.stop() == 0
        stranger.settings |= {setting: value, "DATA_PATH": str(cluster.folder / "stranger")}
        await cluster.leader()
        term = (await n1.cluster())["term"]
        await stranger.start()
        for node in (n1, n2):
            line = await logged(cluster, node, "n3", word)
            assert "guessed" not in line
            assert "a secret of this run" not in line
        line = await logged(cluster, stranger, "n1", word)
        assert "guessed" not in line or setting == "CLUSTER_NAME"
        status, _ = await stranger.ask("/ready")
        assert status == 503
        async with Traffic(cluster, pushers=2, workers=2) as traffic:
            await traffic.until(acked=20)
        assert traffic.promises.errors_at([n1, n2]) == []
        assert (await n1.cluster())["term"] == term


async def test_a_damaged_log_is_refused_with_the_file_and_the_offset() -> None:
    async with LocalCluster(1) as cluster:
        (node,) = cluster.nodes
        async with Traffic(cluster) as traffic:
            await traffic.until(acked=200)
        assert await node.stop() == 0
        segment = max((node.data / "log").iterdir(), key=lambda path: path.stat().st_size)
        with segment.open("r+b") as file:
            file.seek(os.path.getsize(segment) // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 0xFF]))
        await node.start()
        assert await node.exited() == 1
        said = node.log_text().splitlines()[-1]
        assert segment.name in said
        assert any(part.strip(".,:;()").isdecimal() for part in said.split()), said


async def test_a_second_process_on_the_same_data_is_refused() -> None:
    async with LocalCluster(1) as cluster, not_started(1, DATA_PATH=str(cluster.nodes[0].data)) as other:
        (node,), (twin,) = cluster.nodes, other.nodes
        await twin.start()
        assert await twin.exited() == 1
        assert "in use" in twin.log_text()
        assert (await node.ask("/ready"))[0] == 200


async def test_a_port_that_is_taken_ends_the_node_with_one_clear_line() -> None:
    async with LocalCluster(1) as cluster, not_started(1, HTTP_PORT=str(cluster.nodes[0].http_port)) as other:
        (node,), (twin,) = cluster.nodes, other.nodes
        await twin.start()
        assert await twin.exited() == 1
        said = twin.log_text().splitlines()[-1]
        assert str(node.http_port) in said
        assert "Traceback" not in twin.log_text()


async def test_a_node_keeps_its_name_and_its_cluster() -> None:
    async with LocalCluster(1) as cluster:
        (node,) = cluster.nodes
        assert await node.stop() == 0
        for changed in ({"CLUSTER_NAME": "renamed"}, {"NODE_ID": "n9", "PEERS": f"n9=127.0.0.1:{node.peer_port}"}):
            kept = dict(node.settings)
            node.settings |= changed
            await node.start()
            assert await node.exited() == 1
            assert "belongs to" in node.log_text().splitlines()[-1]
            node.settings = kept

"""TLS between the nodes of a cluster that serves is turned on, and off again, by rolling restarts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cluster.test_changing_secrets import Gentle, as_before, kept, roll
from tests.cluster.test_tls import settings
from tests.consensus.test_tls import Authority
from tests.support.local_cluster import PATIENCE, LocalCluster, LocalNode

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by the openssl command"),
]
OFF = {"PEER_TLS_CERT": "", "PEER_TLS_KEY": "", "PEER_TLS_CA": "", "PEER_TLS": ""}


def links(node: LocalNode, since: int) -> list[str]:
    """What the node has said of connections that it dialled, from a place of its log on."""
    return [line for line in node.log_text()[since:].splitlines() if " connected to " in line]


async def test_tls_is_turned_on_and_off_while_the_cluster_serves(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    cluster = LocalCluster(3, **PATIENCE)
    for node in cluster.nodes:
        as_before(node, tmp_path / "0.1.0")
    certificates = {node.id: settings(authority, node.id) for node in cluster.nodes}
    async with cluster, Gentle(cluster) as traffic:
        await traffic.until(acked=20)
        places = [len(node.log_text()) for node in cluster.nodes]
        await roll(cluster, traffic, certificates, PEER_TLS="optional")
        # The last one dialled nodes that had certificates already.
        assert all(line.endswith("over TLS") for line in links(cluster.nodes[2], places[2])[-2:])
        places = [len(node.log_text()) for node in cluster.nodes]
        await roll(cluster, traffic, certificates, PEER_TLS="required")
        for node, place in zip(cluster.nodes, places, strict=True):
            assert links(node, place)
            assert all(line.endswith("over TLS") for line in links(node, place))
        await roll(cluster, traffic, certificates, PEER_TLS="optional")
        await roll(cluster, traffic, **OFF)
        await traffic.stop()
        await kept(cluster, traffic)

"""Mutual TLS between real processes, on the event loop that they really run on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cluster.test_strangers import logged, not_started
from tests.cluster.traffic import Traffic, broken
from tests.consensus.test_tls import Authority
from tests.support.local_cluster import LocalCluster

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by the openssl command")


def settings(authority: Authority, node: str) -> dict[str, str]:
    cert, key = authority.issue(node)
    return {"PEER_TLS_CERT": str(cert), "PEER_TLS_KEY": str(key), "PEER_TLS_CA": str(authority.cert)}


async def test_a_cluster_speaks_tls_survives_a_kill_and_renews_its_certificates(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    async with not_started(3) as cluster:
        for node in cluster.nodes:
            node.settings |= settings(authority, node.id)
        await cluster.start()
        async with Traffic(cluster) as traffic:
            await traffic.until(acked=30)
            for node in cluster.nodes:
                authority.issue(node.id)
            for node in cluster.nodes:
                await logged(cluster, node, "new peer certificates are in use")
            before = [node.log_text().count("lost the connection") for node in cluster.nodes]
            await traffic.until(acked=30)
            assert [node.log_text().count("lost the connection") for node in cluster.nodes] == before
            assert traffic.promises.errors == []
            victim = await cluster.leader()
            await victim.kill()
            await traffic.until(acked=30)
            await victim.start()
            await cluster.ready()
            # One without certificates in its place is let in by nobody, and everybody says so.
            await victim.kill()
            with_certificates = dict(victim.settings)
            for name in ("PEER_TLS_CERT", "PEER_TLS_KEY", "PEER_TLS_CA"):
                del victim.settings[name]
            await victim.start()
            await logged(cluster, victim, "speaks TLS")
            for node in cluster.nodes:
                if node is not victim:
                    await logged(cluster, node, "refused somebody at 127.0.0.1", "TLS")
            assert (await victim.ask("/ready"))[0] == 503
            await victim.kill()
            victim.settings = with_certificates
            await victim.start()
            await cluster.ready()
        await cluster.converged()
        for node in cluster.nodes:
            assert await broken(traffic.promises, node) == []


async def test_certificates_that_cannot_be_used_end_the_node_with_one_clear_line(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    async with not_started(1, **settings(authority, "n1")) as cluster:
        (node,) = cluster.nodes
        Path(node.settings["PEER_TLS_CERT"]).write_text("nothing")
        await node.start()
        assert await node.exited() == 2
        last = node.log_text().splitlines()[-1]
        assert "cannot be used" in last and "PEER_TLS_CERT from the environment" in last
        assert "Traceback" not in node.log_text()
        del node.settings["PEER_TLS_KEY"]
        await node.start()
        assert await node.exited() == 2
        assert "PEER_TLS_KEY" in node.log_text().splitlines()[-1]
        assert isinstance(cluster, LocalCluster)

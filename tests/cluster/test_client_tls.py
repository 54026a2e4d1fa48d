"""TLS for clients on real nodes: certificates renewed under load, turned on while the cluster serves, and the command line against it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from tests.cluster.test_leaving import DELAY_MS
from tests.cluster.traffic import Traffic, broken
from tests.consensus.test_tls import Authority
from tests.support.balancer import Balancer
from tests.support.local_cluster import LocalCluster, LocalNode, free_ports
from tests.support.rolling import Client, Load, lost
from tests.support.rolling import roll as rolled

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by the openssl command"),
]
NAMES = "IP:127.0.0.1,DNS:localhost"


def certified(cluster: LocalCluster, authority: Authority) -> None:
    """Give each node a certificate, and tests what to know it by."""
    for node in cluster.nodes:
        cert, key = authority.issue(node.id, NAMES)
        node.settings |= {"TLS_CERT": str(cert), "TLS_KEY": str(key)}
        node.tls = ssl.create_default_context(cafile=authority.cert)


def count(node: LocalNode, line: str) -> int:
    return node.log_text().count(line)


async def test_certificates_are_renewed_under_load_and_no_request_fails(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    cluster = LocalCluster(3)
    certified(cluster, authority)
    renewed, kept = "a new certificate is in use for clients", "what was read before stays in use"
    async with cluster, Traffic(cluster) as traffic:
        await traffic.until(acked=20)
        asked = 0
        for turn in range(4):
            for node in cluster.nodes:
                authority.issue(node.id, NAMES)
                if turn == 1:
                    Path(node.settings["TLS_CERT"]).write_text("half of")

            async def all_took(
                line: str = kept if turn == 1 else renewed, times: int = 1 if turn == 1 else turn
            ) -> bool:
                return all(count(node, line) >= max(times, 1) for node in cluster.nodes)

            await cluster.until("all nodes have looked at their files", all_took, 30)
            # Connections that stand, and new ones.
            await traffic.until(acked=20)
            for node in cluster.nodes:
                status, _ = await node.ask("/readyz")
                asked += status == 200
        assert asked == 12
        await traffic.stop()
        assert traffic.promises.errors == []
        await cluster.converged()
        assert await broken(traffic.promises, cluster.nodes[0]) == []


async def test_tls_is_turned_on_and_off_behind_a_balancer_and_no_request_fails(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    cluster = LocalCluster(3, SHUTDOWN_DELAY_MS=str(DELAY_MS))
    plain = {node.id: dict(node.settings) for node in cluster.nodes}
    known = ssl.create_default_context(cafile=authority.cert)

    def with_tls(word: str) -> Callable[[LocalNode], None]:
        def change(node: LocalNode) -> None:
            node.settings = plain[node.id] | ({**certificates[node.id], "TLS": word} if word else {})

        return change

    certified(cluster, authority)
    certificates = {node.id: {key: node.settings[key] for key in ("TLS_CERT", "TLS_KEY")} for node in cluster.nodes}
    for node in cluster.nodes:
        node.settings = plain[node.id]
    async with cluster, Balancer(cluster.nodes) as balancer, Load(Client(balancer.url)) as client:
        await rolled(cluster, client, 10, with_tls("optional"))
        balancer.tls = known
        await rolled(cluster, client, 10, with_tls("required"))
        await rolled(cluster, client, 10, with_tls("optional"))
        balancer.tls = None
        await rolled(cluster, client, 10, with_tls(""))
        await client.until(10)
        assert client.failed == [] and client.doubled == [] and balancer.repeated == 0
        assert client.acked <= client.pushed
        assert await lost(client, cluster.nodes[0]) == []


# -- The command line --------------------------------------------------------------------------------------------------


def quorumq(*arguments: str, **environment: str) -> tuple[int, str]:
    """Run a command; return its status and all that it said."""
    done = subprocess.run(
        [sys.executable, "-m", "quorumq", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "COLUMNS": "200", **environment},
    )
    return done.returncode, done.stdout + done.stderr


async def test_commands_know_nodes_by_their_authority_and_say_why_not(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    cluster = LocalCluster(1)
    certified(cluster, authority)
    ca = str(authority.cert)
    async with cluster:
        (node,) = cluster.nodes
        where = ("--url", node.url, "--ca", ca)
        for command in (
            ("status", *where),
            ("members", "list", *where),
            ("level", "show", *where),
            ("backup", "--output", str(tmp_path / "image"), *where),
        ):
            status, said = await asyncio.to_thread(quorumq, *command)
            assert status == 0, said
        assert (await asyncio.to_thread(quorumq, "status", QUORUMQ_URL=node.url, QUORUMQ_CA=ca))[0] == 0
        other = str(Authority(tmp_path, "other").cert)
        for arguments, words in (
            (("--url", node.url), "--ca or QUORUMQ_CA"),
            (("--url", node.url, "--ca", other), "certificate is not accepted"),
            (("--url", node.url, "--ca", str(tmp_path / "none")), "No such file"),
            (("--url", node.url, "--ca", str(tmp_path / "image")), "--ca"),
            (("--url", node.url.replace("https", "http")), "use https://"),
            (("--url", f"https://127.0.0.1:{node.peer_port}", "--ca", ca), "speaks no TLS"),
        ):
            for command in (("status",), ("members", "list"), ("backup", "--output", str(tmp_path / "other"))):
                status, said = await asyncio.to_thread(quorumq, *command, *arguments)
                assert status == 1 and words in said and "Traceback" not in said, said
                assert len(said.strip().splitlines()) == 1, said


async def test_files_that_cannot_be_used_end_the_node_with_one_clear_line(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    cluster = LocalCluster(1)
    certified(cluster, authority)
    try:
        (node,) = cluster.nodes
        Path(node.settings["TLS_CERT"]).write_text("nothing")
        await node.start()
        assert await node.exited() == 2
        last = node.log_text().splitlines()[-1]
        assert "cannot be used" in last and "TLS_CERT from the environment" in last
        del node.settings["TLS_KEY"]
        await node.start()
        assert await node.exited() == 2
        assert "TLS_CERT and TLS_KEY belong together" in node.log_text().splitlines()[-1]
        assert "Traceback" not in node.log_text()
    finally:
        await cluster.close()


async def test_a_cluster_to_try_things_out_speaks_tls_as_well(tmp_path: Path) -> None:
    # For nobody in particular, and of an authority that no system knows: it is the command's own.
    cert, key = Authority(tmp_path, "authority").issue("dev")
    http, bullmq, peer = free_ports(3)
    ports = ("--http-port", str(http), "--bullmq-port", str(bullmq), "--peer-port", str(peer))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "quorumq", "dev", "--nodes", "1", "--data", str(tmp_path / "dev"), *ports),
        env={**os.environ, "TLS_CERT": str(cert), "TLS_KEY": str(key), "COLUMNS": "200"},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        said = ""
        while "Ctrl-C" not in said:
            line = await process.stdout.readline()
            assert line, said
            said += line.decode()
        assert f"https://127.0.0.1:{http}/docs" in said
        known = ssl.create_default_context()
        known.check_hostname, known.verify_mode = False, ssl.CERT_NONE
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"https://127.0.0.1:{http}/readyz", ssl=known) as answer,
        ):
            assert answer.status == 200
    finally:
        process.send_signal(signal.SIGINT)
        await process.wait()

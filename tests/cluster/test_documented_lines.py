"""What docs/operations.md quotes of logs, and the exit statuses that it names, as real processes have them.

Every line that it quotes must be one that the program can write; those that only the library or the system words, and what
is easily changed by accident, are provoked here.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from quorumq.cli.admin import fetch
from tests.cluster.test_strangers import logged, not_started
from tests.cluster.test_tls import settings
from tests.consensus.test_tls import Authority
from tests.documentation.quoted import OPERATIONS, rows, section
from tests.support.local_cluster import PATIENCE, LocalCluster, LocalNode, free_ports


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("QUORUMQ_", "AUTH_", "CONFIG_"))}
    return subprocess.run(
        [sys.executable, "-m", "quorumq", *arguments],
        capture_output=True,
        text=True,
        env=kept | environment,
        timeout=60,
        check=False,
    )


# -- Certificates ------------------------------------------------------------------------------------------------------


def expired(authority: Authority, node: str) -> dict[str, str]:
    """A certificate that was over before it was issued."""
    found = settings(authority, node)
    cert = authority.directory / "expired.pem"
    authority._openssl(
        *("x509", "-req", "-in", str(authority.directory / f"{node}.csr"), "-CA", str(authority.cert)),
        *("-CAkey", str(authority._key), "-CAcreateserial", "-days", "-1", "-out", str(cert)),
    )
    return found | {"PEER_TLS_CERT": str(cert)}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by the openssl command")
async def test_certificates_that_are_not_accepted(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    (tmp_path / "elsewhere").mkdir()
    foreign = Authority(tmp_path / "elsewhere", "foreign")
    async with not_started(3, **PATIENCE) as cluster:
        for node in cluster.nodes:
            node.settings |= settings(authority, node.id)
        await cluster.start()
        n1, _, n3 = cluster.nodes
        plain = {key: value for key, value in n3.settings.items() if not key.startswith("PEER_TLS_")}
        others = settings(foreign, "n3")
        for shown, theirs, own in (
            (expired(authority, "n3"), "TLS: certificate has expired", "certificate expired"),
            (
                others | {"PEER_TLS_CA": str(authority.cert)},
                "TLS: unable to get local issuer certificate",
                "refused this node",
            ),
            (
                others,
                "TLS: self-signed certificate in certificate chain",
                "TLS: self-signed certificate in certificate chain",
            ),
            ({}, "TLS: wrong version number", "it speaks TLS, and this node has no certificates"),
        ):
            await n3.kill()
            for node in cluster.nodes:
                node.log.write_text("") if node is n3 else os.truncate(node.log, 0)
            n3.settings = plain | shown
            await n3.start()
            await logged(cluster, n1, theirs)
            await logged(cluster, n3, own)
            for quoted in {theirs, own if own.startswith(("TLS", "it speaks")) else theirs}:
                assert f"`{quoted}`" in section("What can go wrong")


# -- Strangers, and who is ready ---------------------------------------------------------------------------------------


async def test_a_node_that_was_never_a_member_says_how_to_make_it_one() -> None:
    async with LocalCluster(3) as cluster, not_started(1) as apart:
        (n4,) = apart.nodes
        peers = cluster.nodes[0].settings["PEERS"]
        address = f"127.0.0.1:{n4.peer_port}"
        n4.settings |= {"NODE_ID": "n4", "PEERS": f"{peers},n4={address}"}
        await n4.start()
        line = await logged(apart, n4, "not ready: not a member yet: ")
        added = re.search(r"`quorumq (members add n4 \S+)`", line)
        assert added and added[1] == f"members add n4 {address}"
        result = command(*added[1].split(), QUORUMQ_URL=cluster.nodes[0].url)
        assert result.returncode == 0, result.stderr
        await apart.ready([n4])


async def test_a_node_without_a_quorum_is_not_ready_after_a_while() -> None:
    async with LocalCluster(3) as cluster:
        left, *others = cluster.nodes
        for node in others:
            await node.kill()
        began = time.monotonic()

        async def not_ready() -> bool:
            return (await left.ask("/ready"))[0] == 503

        await cluster.until("the last node is not ready", not_ready, 30)
        # Three times ELECTION_MAX_MS is 3.6 s, of a leader that is missed after up to 1.2 s. Only the lower bound is sure here.
        assert time.monotonic() - began > 3
        assert "4 to 5 s after the last one was lost" in OPERATIONS


# -- Exit statuses -----------------------------------------------------------------------------------------------------


def statuses(title: str, head: str) -> dict[int, str]:
    table = section(title).partition(f"| {head} | meaning |\n")[2].partition("\n\n")[0]
    return {int(status): meaning for status, meaning in rows(table)}


def test_the_exit_statuses_of_serve_are_told() -> None:
    found = statuses("Starting and stopping", "exit status of `quorumq serve`")
    assert list(found) == [0, 1, 2, 3, 4]


async def test_serve_ends_as_it_is_told(tmp_path: Path) -> None:
    async with not_started(3) as cluster:
        await cluster.start()
        leader = await cluster.leader()
        gone, other = await cluster.followers()
        # 3: removed.
        result = command("members", "remove", gone.id, "--url", leader.url)
        assert result.returncode == 0, result.stderr
        assert await gone.exited() == 3
        # 0: told to stop.
        assert await other.stop() == 0
        # 1: it cannot go on, and the last line says why.
        taken = LocalNode("n9", leader.http_port, *free_ports(2), tmp_path)
        taken.settings = {"HOST": "127.0.0.1", "HTTP_PORT": str(taken.http_port), "DATA_PATH": str(tmp_path / "n9")}
        taken.settings |= {"BULLMQ_PORT": "off", "TCP_PORT": "off", "PEER_PORT": str(taken.peer_port)}
        await taken.start()
        assert await taken.exited() == 1
        assert "cannot listen on" in taken.log_text().splitlines()[-1]
        # 2: a setting cannot be used.
        taken.settings["HOST"] = "203.0.113.9"
        await taken.start()
        assert await taken.exited() == 2
        assert "HOST '203.0.113.9' (from the environment) cannot be listened on: " in taken.log_text().splitlines()[-1]


OUTCOMES: list[tuple[list[str], int]] = [
    (["--version"], 0),
    (["tokens", "list", "--file", "FOLDER/none"], 1),
    (["tokens", "list"], 2),
    (["tokens", "create", "a", "--right", "root", "--file", "FOLDER/none"], 2),
    (["status", "--url", "http://127.0.0.1:1"], 1),
    (["status", "--nope"], 2),
    (["members", "list", "--url", "ftp://h"], 1),
    (["members", "add", "n4"], 2),
    (["level", "show", "--url", "http://127.0.0.1:1"], 1),
    (["backup", "--url", "http://127.0.0.1:1", "--output", "FOLDER/image"], 1),
    (["backup"], 2),
    (["restore", "FOLDER/none", "--data", "FOLDER/data", "--node-id", "n1"], 1),
    (["restore"], 2),
    (["recover", "FOLDER/none", "--dry-run"], 1),
    (["log", "verify", "FOLDER/none"], 1),
    (["log", "verify"], 2),
    (["nonsense"], 2),
]


@pytest.mark.parametrize(("arguments", "status"), OUTCOMES, ids=[" ".join(one[0][:3]) for one in OUTCOMES])
def test_commands_end_as_the_document_says(tmp_path: Path, arguments: list[str], status: int) -> None:
    found = statuses("Commands", "exit status of all other commands")
    assert list(found) == [0, 1, 2]
    result = command(*(argument.replace("FOLDER", str(tmp_path)) for argument in arguments))
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    if status == 1:
        assert result.stderr.startswith("quorumq: ") and result.stderr.count("\n") == 1


async def test_commands_find_their_node_in_the_environment() -> None:
    async with LocalCluster(1, AUTH_TOKENS="secret") as cluster:
        (node,) = cluster.nodes
        for arguments in (["status"], ["members", "list"], ["level", "show"]):
            asked = {"QUORUMQ_URL": node.url, "QUORUMQ_TOKEN": "secret"}
            assert (await asyncio.to_thread(command, *arguments, **asked)).returncode == 0
            del asked["QUORUMQ_TOKEN"]
            refused = await asyncio.to_thread(command, *arguments, **asked)
            assert refused.returncode == 1 and "QUORUMQ_TOKEN" in refused.stderr
        assert (await asyncio.to_thread(fetch, f"{node.url}/livez"))[0] == 200


def test_what_verify_says_of_a_write_that_was_cut_off(tmp_path: Path) -> None:
    """It changes nothing, and does not say that it has cut anything."""

    async def make() -> Path:
        async with not_started(1) as cluster:
            (node,) = cluster.nodes
            await cluster.start()
            assert await node.stop() == 0
            target = tmp_path / "data"
            shutil.copytree(node.data, target)
            return target

    data = asyncio.run(make())
    segment = max((data / "log").glob("*.log"))
    with segment.open("ab") as file:
        # The file has grown, and what was to be written into it has not arrived.
        file.write(bytes(66))
    before = segment.read_bytes()
    result = command("log", "verify", str(data))
    assert result.returncode == 0, result.stderr
    assert "66 bytes of an unfinished write at the end, which the next start cuts off" in result.stdout
    assert "cut 66" not in result.stdout + result.stderr and result.stderr == ""
    assert segment.read_bytes() == before


def quoted_statuses() -> Iterator[str]:
    yield from re.findall(r"exit status (\d)", OPERATIONS)


def test_no_other_exit_status_is_named() -> None:
    assert set(quoted_statuses()) <= {"0", "1", "2", "3", "4"}

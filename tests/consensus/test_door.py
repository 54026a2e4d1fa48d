"""Strangers at the peer port that prove nothing: they are bounded in number and time, and keep no member away."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from quorumq.cluster import handshake, tls
from quorumq.cluster import links as links_module
from tests.consensus.test_engine import PATIENCE, Cluster, running, until
from tests.consensus.test_tls import Authority

needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="certificates are made by the openssl command"
)
MODES = ["plain", pytest.param("tls", marks=needs_openssl), pytest.param("optional", marks=needs_openssl)]


class Opened(Cluster):
    """A cluster with TLS, without, or with both."""

    def __init__(self, directory: Path, mode: str, **settings: Any) -> None:
        super().__init__(directory, secret="known", **PATIENCE, **settings)
        self.tls = {} if mode == "plain" else {"tls_optional": mode == "optional"}
        authority = None if mode == "plain" else Authority(directory, "authority")
        self.certificates = {node: authority.settings(node) if authority else {} for node in self.peers}

    def config(self, node: str, **changes: Any) -> Any:
        return super().config(node, **{**self.certificates[node], **self.tls, **changes})

    async def dial(self, node: str, source: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.peers[node].rpartition(":")
        return await asyncio.open_connection(host, int(port), local_addr=(source, 0))


@contextlib.asynccontextmanager
async def crowd(cluster: Opened, node: str, count: int, source: str) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Connections that say nothing."""
    opened = [await cluster.dial(node, source) for _ in range(count)]
    try:
        yield [reader for reader, _ in opened]
    finally:
        for _, writer in opened:
            writer.close()


async def redial(cluster: Cluster) -> None:
    """Cut the way of n2 to n1, and wait until there is another one."""
    links = cluster.engines["n2"]._links
    before = links._links["n1"].connection
    assert before is not None and before.transport is not None
    before.transport.abort()
    await until(lambda: links.connected("n1") and links._links["n1"].connection is not before)


@pytest.mark.parametrize("mode", MODES)
async def test_connections_that_prove_nothing_are_bounded_and_keep_no_member_away(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 8
    monkeypatch.setattr(links_module, "_UNPROVEN_MAX", most)
    async with running(Opened(tmp_path, mode)) as cluster:
        await cluster.write("n1", b"a")
        links = cluster.engines["n1"]._links
        refused = cluster.engines["n1"].metrics.peers_refused
        await until(lambda: not links._unproven)
        # One from elsewhere came first, and is not the one that has to go.
        quiet, writer = await cluster.dial("n1", "127.0.0.2")
        await until(lambda: len(links._unproven) == 1)
        async with crowd(cluster, "n1", 3 * most, "127.0.0.3") as readers:
            await until(lambda: cluster.engines["n1"].metrics.peers_refused - refused > 2 * most)
            assert len(links._unproven) == most
            assert not quiet.at_eof()
            # A member dials as many times as it likes.
            for _ in range(3):
                await redial(cluster)
            await cluster.write("n2", b"b")
            assert len(readers) == 3 * most
        writer.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("said", [b"", b"\0", b"\x16"])
async def test_whoever_says_too_little_is_sent_away_in_time(
    tmp_path: Path, mode: str, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Opened(tmp_path, mode)) as cluster:
        await cluster.write("n1", b"a")
        monkeypatch.setattr(tls, "_HANDSHAKE_S", 0.2)
        for module in (handshake, links_module):
            monkeypatch.setattr(module, "HANDSHAKE_S", 0.2)
        links = cluster.engines["n1"]._links
        reader, writer = await cluster.dial("n1")
        writer.write(said)
        try:
            async with asyncio.timeout(10):
                # A byte now and then wins no time.
                while not reader.at_eof():
                    with contextlib.suppress(TimeoutError, ConnectionError):
                        await asyncio.wait_for(reader.read(100), 0.05)
                    if said:
                        writer.write(said)
        finally:
            writer.close()
        await until(lambda: not links._unproven)


async def test_a_frame_before_the_proof_is_small(tmp_path: Path) -> None:
    async with running(Opened(tmp_path, "plain")) as cluster:
        await cluster.write("n1", b"a")
        reader, writer = await cluster.dial("n1")
        writer.write((5000).to_bytes(4, "big"))
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()

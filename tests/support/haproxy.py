"""HAProxy in front of a local cluster, for tests and scripts; an async context manager."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from tests.support.local_cluster import HOST, LocalNode, free_ports

PROGRAM = shutil.which("haproxy")
# docs/operations.md has the same, with machines in place of ports.
CONFIG = """\
global
    maxconn 2000

defaults
    mode http
    {retries}
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    option httpchk GET /readyz
    http-check expect status 200
    default-server check inter {inter_ms}ms fall 2 rise 2

frontend clients
    bind {host}:{port}
    default_backend nodes

backend nodes
    balance roundrobin
{servers}
"""


class Haproxy:
    """inter_ms: how often it asks each node.  retries: of its own on failed connections; None: as it does by default (3)."""

    def __init__(self, nodes: Sequence[LocalNode], *, inter_ms: int = 250, retries: int | None = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="haproxy-"))
        (port,) = free_ports(1)
        self.url = f"http://{HOST}:{port}"
        servers = "\n".join(f"    server {node.id} {HOST}:{node.http_port}" for node in nodes)
        again = "" if retries is None else f"retries {retries}"
        self._config = CONFIG.format(retries=again, inter_ms=inter_ms, host=HOST, port=port, servers=servers)
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Haproxy:
        file = self._folder / "haproxy.cfg"
        file.write_text(self._config, "utf-8")
        assert PROGRAM is not None, "haproxy is not there"
        with (self._folder / "log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                PROGRAM, "-db", "-f", str(file), stdout=log, stderr=log
            )
        async with asyncio.timeout(60), aiohttp.ClientSession() as session:
            while not await self._answers(session):
                assert self._process.returncode is None, (self._folder / "log").read_text()
                await asyncio.sleep(0.05)
        return self

    async def _answers(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(self.url + "/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

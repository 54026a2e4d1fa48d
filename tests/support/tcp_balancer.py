"""HAProxy in TCP mode before the nodes of a cluster, as deploy/docker/haproxy.cfg has it: an async context manager."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.support.local_cluster import HOST, LocalNode

CONFIGURATION = """
defaults
    mode tcp
    option redispatch
    retries 3
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    option httpchk GET /readyz
    http-check expect status 200
    default-server check inter 1s fastinter 200ms downinter 500ms fall 2 rise 2 on-marked-down shutdown-sessions
"""


class TcpBalancer:
    """Listens on some ports. ports: each with which port of a node it stands for."""

    def __init__(self, folder: Path, ports: Mapping[int, str], nodes: Sequence[LocalNode]) -> None:
        self._file = folder / "haproxy.cfg"
        self._log = folder / "haproxy.log"
        self.ports = dict(ports)
        self._nodes = list(nodes)
        self._process: asyncio.subprocess.Process | None = None

    def _configuration(self) -> str:
        text = CONFIGURATION
        for port, kind in self.ports.items():
            text += f"\nlisten of_{kind}\n    bind {HOST}:{port}\n    balance leastconn\n"
            for node in self._nodes:
                text += f"    server {node.id} {node.host}:{getattr(node, kind)} port {node.http_port}\n"
        return text

    async def __aenter__(self) -> Self:
        self._file.write_text(self._configuration(), "utf-8")
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                "haproxy", "-f", str(self._file), "-db", stdout=log, stderr=log
            )
        ends = time.monotonic() + 30
        for port in self.ports:
            while not await self._listens(port):
                if time.monotonic() > ends or self._process.returncode is not None:
                    raise RuntimeError(f"HAProxy does not listen: {self._log.read_text('utf-8', 'replace')[-500:]}")
                await asyncio.sleep(0.05)
        return self

    async def _listens(self, port: int) -> bool:
        try:
            _, writer = await asyncio.open_connection(HOST, port)
        except OSError:
            return False
        writer.close()
        return True

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            if self._process.returncode is None:
                self._process.terminate()
            await self._process.wait()

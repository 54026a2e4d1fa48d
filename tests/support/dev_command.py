"""The command `quorumq dev` as a test runs it: its process, what it has said so far, and where its nodes listen."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.local_cluster import free_ports


def ports_in_a_row(count: int) -> int:
    """Return the first of `count` free ports that follow each other."""
    while True:
        (first,) = free_ports(1)
        try:
            taken = [port for port in range(first, first + count) if not is_free(port)]
        except OverflowError:
            continue
        if not taken:
            return first


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


class Dev:
    """The command, its output so far, and where its nodes listen."""

    def __init__(self, process: asyncio.subprocess.Process, http_port: int) -> None:
        self.process = process
        self.http_port = http_port
        self.output = ""

    def url(self, number: int) -> str:
        return f"http://127.0.0.1:{self.http_port + number - 1}"

    async def says(self, pattern: str, timeout_s: float = 60) -> re.Match[str]:
        """Read on until the output matches."""
        assert self.process.stdout is not None
        async with asyncio.timeout(timeout_s):
            while not (match := re.search(pattern, self.output)):
                line = await self.process.stdout.readline()
                assert line, f"it ended without saying {pattern!r}:\n{self.output}"
                self.output += line.decode()
        return match

    async def ends(self, timeout_s: float = 30) -> int:
        assert self.process.stdout is not None
        async with asyncio.timeout(timeout_s):
            self.output += (await self.process.stdout.read()).decode()
            return await self.process.wait()


@asynccontextmanager
async def dev(folder: Path, *options: str, settings: Mapping[str, str] | None = None) -> AsyncIterator[Dev]:
    """Run the command with its data in `folder`: HTTP on the first of nine ports in a row, BullMQ on the fourth, peers on the seventh.

    settings: environment variables for its nodes.
    """
    first = ports_in_a_row(9)
    ports = ["--http-port", str(first), "--bullmq-port", str(first + 3), "--peer-port", str(first + 6)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "quorumq", "dev", "--data", str(folder), *ports, *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | {"COLUMNS": "200"} | dict(settings or {}),
    )
    try:
        yield Dev(process, first)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()

"""`quorumq dev` as a user runs it: ready, a node dies, Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cli.admin import NoAnswer, fetch
from scripts.tools.local_cluster import free_ports


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
    import socket

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
async def dev(folder: Path, *options: str) -> AsyncIterator[Dev]:
    first = ports_in_a_row(9)
    ports = ["--http-port", str(first), "--bullmq-port", str(first + 3), "--peer-port", str(first + 6)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.main", "dev", "--data", str(folder), *ports, *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | {"COLUMNS": "200"},
    )
    try:
        yield Dev(process, first)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_it_becomes_ready_says_when_a_node_dies_and_stops_on_ctrl_c(tmp_path: Path) -> None:
    async with dev(tmp_path) as running:
        await running.says(r"ready: 3 nodes")
        pids = [int((await running.says(rf"n{i} .*pid (\d+)"))[1]) for i in (1, 2, 3)]
        for number in (1, 2, 3):
            assert (await asyncio.to_thread(fetch, running.url(number) + "/ready"))[0] == 200
            bullmq = f"http://127.0.0.1:{running.http_port + 2 + number}"
            assert f"BullMQ {bullmq}" in running.output
            assert (await asyncio.to_thread(fetch, bullmq + "/readyz"))[0] == 200
        os.kill(pids[1], signal.SIGKILL)
        await running.says(r"n2 was killed \(SIGKILL\); 2 of 3 nodes are left")
        await running.says(r"quorumq serve --config \S+n2.toml")
        running.process.send_signal(signal.SIGINT)
        assert await running.ends() == 0
        assert not any(alive(pid) for pid in pids)
        with pytest.raises(NoAnswer):
            await asyncio.to_thread(fetch, running.url(1) + "/ready")


async def test_data_is_kept_unless_it_is_to_be_fresh(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not ours")
    cluster_ids = []
    for options in ((), (), ("--fresh",)):
        async with dev(tmp_path, "--nodes", "1", *options) as running:
            await running.says(r"ready: 1 node ")
            _, body = await asyncio.to_thread(fetch, running.url(1) + "/admin/cluster")
            cluster_ids.append(body["cluster_id"])
            running.process.send_signal(signal.SIGTERM)
            assert await running.ends() == 0
    assert cluster_ids[0] == cluster_ids[1] != cluster_ids[2]
    assert (tmp_path / "notes.txt").read_text() == "not ours"


async def test_a_port_that_is_taken_is_said_at_once(tmp_path: Path) -> None:
    async with dev(tmp_path / "a", "--nodes", "1") as first:
        await first.says(r"ready")
        second = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cli.main", "dev", "--nodes", "1", "--data", str(tmp_path / "b")),
            *("--http-port", str(first.http_port), "--peer-port", str(first.http_port + 8)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(30):
            output = (await second.communicate())[0].decode()
        assert second.returncode == 1
        assert f"the HTTP port of n1, {first.http_port}, cannot be had" in output
        assert "ready:" not in output


async def test_nodes_do_not_outlive_the_command_even_when_it_is_killed(tmp_path: Path) -> None:
    async with dev(tmp_path, "--nodes", "1") as running:
        await running.says(r"ready")
        pid = int((await running.says(r"pid (\d+)"))[1])
        running.process.kill()
        await running.process.communicate()
        async with asyncio.timeout(20):
            while alive(pid):
                await asyncio.sleep(0.05)

"""`quorumq dev` as a user runs it: ready, a node dies, Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from quorumq.cli.admin import NoAnswer, fetch
from tests.support.dev_command import dev


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


async def test_a_token_is_made_printed_and_needed(tmp_path: Path) -> None:
    async with dev(tmp_path, "--nodes", "1", "--with-token") as running:
        await running.says(r"ready: 1 node ")
        token = (await running.says(r"token: (\S{20,})\n"))[1]
        assert f"{running.url(1)}/docs" in running.output
        bullmq = f"http://127.0.0.1:{running.http_port + 3}/queues/mail/jobs"
        for url in (bullmq, running.url(1) + "/queues"):
            assert (await asyncio.to_thread(fetch, url))[0] == 401
            assert (await asyncio.to_thread(fetch, url, token=token))[0] == 200
        # It is for this run: no file has it.
        assert not [file for file in tmp_path.rglob("*") if file.is_file() and token.encode() in file.read_bytes()]
        running.process.send_signal(signal.SIGINT)
        assert await running.ends() == 0


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
            *(sys.executable, "-m", "quorumq", "dev", "--nodes", "1", "--data", str(tmp_path / "b")),
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

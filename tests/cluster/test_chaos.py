"""A short run of scripts/chaos with every fault that needs no root, and what it says when it is asked for something else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from scripts.tools.chaos import faults
from scripts.tools.chaos.history import load
from tests.support import namespaces

ROOT = Path(__file__).parents[2]


@contextlib.asynccontextmanager
async def running(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """scripts/chaos as a process that does not outlive the test, whatever happens to it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scripts.tools.chaos", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()


async def chaos(*arguments: str) -> tuple[int, str]:
    async with running(*arguments) as process:
        output, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode()


@pytest.mark.timeout(400)
async def test_every_fault_once_breaks_no_promise(tmp_path: Path) -> None:
    status, output = await chaos("--brief", "--no-namespaces", "--report", str(tmp_path))
    print(output)
    assert status == 0, output
    assert "VIOLATED" not in output and "passed" in output
    # What needs root is left out, and says so; everything else was inflicted.
    assert f"left out: {faults.FULL}" in output
    (told,) = [line for line in output.splitlines() if line.startswith("faults: ")]
    for name in faults.ABOUT.keys() - faults.ROOT_ONLY.keys():
        assert f" {name}" in told, (name, told)
    requests = list(load(tmp_path / "history.jsonl"))
    assert {each.dialect for each in requests if each.op == "push"} == {"bunqueue", "bullmq", "websocket"}
    assert {each.outcome for each in requests} >= {"done", "failed"}
    assert "contents equal at 1 of 1" in output or "contents equal at 2 of 2" in output
    assert "Passed." in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.timeout(240)
@pytest.mark.skipif(namespaces.missing() is not None, reason="needs namespaces")
async def test_where_namespaces_can_be_had_a_disk_is_filled(tmp_path: Path) -> None:
    status, output = await chaos(
        *("--minutes", "0.1", "--longest", "1", "--faults", "full disk", "--report", str(tmp_path), "--seed", "7")
    )
    assert status == 0, output
    assert "the disk of n1 is full" in output and "left out" not in output
    assert "seed 7" in output


async def test_a_fault_that_there_is_not_is_named() -> None:
    status, output = await chaos("--faults", "kill -9,earthquake")
    assert status == 2
    assert "'earthquake'" in output and "kill -9 of all" in output


async def test_a_history_that_breaks_a_promise_is_no_pass(tmp_path: Path) -> None:
    common = {"number": 1, "client": "c", "dialect": "bunqueue", "node": "n1", "queue": "q", "outcome": "done"}
    push = {**common, "op": "push", "key": "k", "start": 0, "end": 1, "args": {"id": "j"}, "result": {"id": "j"}}
    row = {"key": "k", "id": "j", "state": "unknown"}
    listed = {**common, "op": "list", "key": "", "start": 2, "end": 3, "result": [row]}
    file = tmp_path / "history.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in (push, listed)))
    status, output = await chaos("--check", str(file))
    assert status == 1
    assert "VIOLATED: k: an acknowledged job is lost" in output

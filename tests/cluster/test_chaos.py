"""A short run of scripts/chaos, and the proof that its check notices what it is there to notice."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from scripts.tools import namespaces
from scripts.tools.history import History, Load, Told
from scripts.tools.local_cluster import LocalCluster

ROOT = Path(__file__).parents[2]


@contextlib.asynccontextmanager
async def running(*arguments: str):  # type: ignore[no-untyped-def]
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
        return process.returncode, output.decode()


@pytest.mark.timeout(240)
async def test_half_a_minute_of_chaos_breaks_no_promise() -> None:
    status, output = await chaos("--minutes", "0.5", "--longest", "3")
    print(output)
    assert status == 0, output
    assert "VIOLATED" not in output and "passed" in output and "all digests equal" in output
    assert "kill -9" in output and "freeze" in output
    if namespaces.missing() is None:
        assert "full disk" in output and "cut one way" in output


@pytest.mark.timeout(240)
async def test_without_namespaces_it_says_what_it_leaves_out() -> None:
    status, output = await chaos("--minutes", "0.1", "--longest", "1", "--no-namespaces", "--seed", "7")
    assert status == 0, output
    assert "links are not cut" in output
    assert "seed 7" in output


async def test_the_check_notices_jobs_that_are_lost_done_over_or_strange() -> None:
    async with LocalCluster(1) as cluster:
        (node,) = cluster.nodes
        async with Load(cluster, random.Random(1)) as load:
            async with asyncio.timeout(30):
                while len(load.history.answers) < 4 or load.history.answers["POST ack"] < 20:
                    load.check_alive()
                    await asyncio.sleep(0.01)
            await load.drain()
            await load.verify(node)
            assert load.history.wrong == []
            jobs = load.history.jobs
            # As if the cluster had promised other things than it did.
            one, other = [job_id for job_id, told in jobs.items() if told.acked is not None][:2]
            jobs["job-never"] = Told("chaos-0", pushed=True)
            jobs[one].acked = 10**9
            del jobs[other]
            await load.verify(node)
            said = "\n".join(load.history.wrong)
            assert "job-never is lost" in said
            assert f"{one} was completed with token 1000000000" in said
            assert f"{other} is there, and nobody pushed it" in said
            load.history.wrong.clear()
            async with (
                aiohttp.ClientSession() as session,
                session.post(f"{node.url}/queues/chaos-0/obliterate") as reply,
            ):
                assert reply.status == 200
            await load.verify(node)
            assert len(load.history.wrong) >= len(jobs) - 1


def test_the_history_notices_tokens_given_twice_and_completions_that_were_not_final() -> None:
    history = History(jobs={"a": Told("q"), "b": Told("q")})
    history.delivered("a", 1, 0)
    history.delivered("b", 2, 1)
    assert history.wrong == []
    history.delivered("b", 1, 0)
    assert "token 1 was given twice" in history.wrong.pop()
    history.delivered("b", 3, 4)
    assert "not above 4" in history.wrong.pop()
    history.completed("a", 1)
    history.delivered("a", 5, 2)
    assert "delivered again" in history.wrong.pop()
    history.completed("a", 5)
    assert "completed twice" in history.wrong.pop()
    history.completed("b", 2)
    assert "delivered again with 3" in history.wrong.pop()

"""Real nodes on machines whose wall clock jumps, or whose disk hangs without an error (tests/support/faulty.py)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.faulty import ALLOWED_BY, Machine
from tests.support.local_cluster import LocalCluster, LocalNode

HOUR_MS = 3_600_000
ROOT = Path(__file__).parents[2]


class Machines(LocalCluster):
    """A cluster each of whose nodes has a machine that can go wrong."""

    def __init__(self, nodes: int = 3, **settings: str) -> None:
        super().__init__(nodes, **settings)
        self.machines = {node.id: Machine(self.folder / f"{node.id}.faults") for node in self.nodes}
        for node in self.nodes:
            node.program = self.machines[node.id].program
            node.settings |= self.machines[node.id].settings

    def faults(self, node: LocalNode) -> Path:
        return self.machines[node.id].folder

    def set_clock(self, node: LocalNode, off_ms: int) -> None:
        self.machines[node.id].set_clock(off_ms)

    def hang(self, *nodes: LocalNode) -> None:
        for node in nodes:
            self.machines[node.id].hang()

    def answer(self, *nodes: LocalNode) -> None:
        for node in nodes:
            self.machines[node.id].answer()


@contextlib.asynccontextmanager
async def machines(nodes: int = 3, **settings: str) -> AsyncIterator[tuple[Machines, aiohttp.ClientSession]]:
    async with Machines(nodes, **settings) as cluster, aiohttp.ClientSession() as session:
        yield cluster, session


async def call(session: aiohttp.ClientSession, method: str, url: str, body: Any = None) -> Any:
    async with session.request(method, url, json=body) as reply:
        answer = await reply.json()
        assert reply.status == 200, answer
        return answer


async def offsets(node: LocalNode) -> dict[str, int | None]:
    return {member["id"]: member["clock_offset_ms"] for member in (await node.cluster())["members"]}


async def executions(session: aiohttp.ClientSession, node: LocalNode) -> int:
    (cron,) = (await call(session, "GET", f"{node.url}/crons"))["crons"]
    return int(cron["executions"])


async def test_a_leaders_clock_jumps_an_hour_ahead_and_back() -> None:
    async with machines() as (cluster, session):
        leader, (other, _) = await cluster.leader(), await cluster.followers()
        url = other.url
        await call(session, "POST", f"{url}/queues/locked/jobs", {"data": 1})
        pull = {"count": 1, "owner": "w", "lockTtl": 600_000}
        taken = await call(session, "POST", f"{url}/queues/locked/jobs/pull-batch", pull)
        await call(session, "POST", f"{url}/queues/later/jobs", {"data": 1, "delay": 1_800_000})
        cron = {"name": "c", "queue": "tick", "data": 1, "repeatEvery": 200, "preventOverlap": False}
        await call(session, "POST", f"{url}/crons", cron)

        cluster.set_clock(leader, HOUR_MS)

        async def noticed() -> bool:
            return ((await offsets(other))[leader.id] or 0) > HOUR_MS - 2000

        async def warned() -> bool:
            return f"the clock of {leader.id} is 3600" in leader.log_text()

        await cluster.until("the others know", noticed, 30)
        await cluster.until("the log says so", warned, 30)
        await call(session, "POST", f"{url}/queues/other/jobs", {"data": 1})
        again = await call(session, "POST", f"{url}/queues/locked/jobs/pull-batch", pull)
        assert again["jobs"] == []
        assert (await call(session, "GET", f"{url}/queues/later/jobs"))["job"] is None
        assert abs((await offsets(other))[other.id] or 0) < 2000

        cluster.set_clock(leader, 0)
        before = await executions(session, other)
        await call(session, "POST", f"{url}/queues/soon/jobs", {"data": 1, "delay": 500})
        assert (await call(session, "GET", f"{url}/queues/soon/jobs?timeout=20000"))["job"] is not None

        async def fires() -> bool:
            return await executions(session, other) >= before + 5

        await cluster.until("the cron fires", fires, 20)
        await call(session, "POST", f"{url}/jobs/{taken['jobs'][0]['id']}/ack", {"token": taken["tokens"][0]})


async def test_a_lone_node_follows_its_own_clock_slowly_and_a_restart_at_once() -> None:
    async with machines(1) as (cluster, session):
        (node,) = cluster.nodes
        await call(session, "POST", f"{node.url}/queues/later/jobs", {"data": 1, "delay": 1_800_000})
        cluster.set_clock(node, HOUR_MS)

        async def noticed() -> bool:
            return ((await offsets(node))[node.id] or 0) > HOUR_MS - 5000

        await cluster.until("it knows", noticed, 30)
        assert (await call(session, "GET", f"{node.url}/queues/later/jobs"))["job"] is None
        assert await node.stop() == 0
        await cluster.start()

        async def right() -> bool:
            # It may be 0, and None until it is known.
            offset = (await offsets(node))[node.id]
            return offset is not None and abs(offset) < 1000

        await cluster.until("its clock counts", right, 30)
        assert (await call(session, "GET", f"{node.url}/queues/later/jobs?timeout=20000"))["job"] is not None


async def not_ready(node: LocalNode) -> bool:
    status, body = await node.ask("/ready")
    return status == 503 and "the disk does not answer" in body["error"]


async def test_a_leader_whose_disk_hangs_lets_another_lead_and_comes_back() -> None:
    async with machines() as (cluster, session):
        leader, (other, _) = await cluster.leader(), await cluster.followers()
        term = (await leader.cluster())["term"]
        cluster.hang(leader)
        async with asyncio.timeout(15):
            # The write that its disk holds up is taken by the next leader.
            await call(session, "POST", f"{other.url}/queues/q/jobs", {"data": 1})
        await cluster.until("it says so", lambda: not_ready(leader), 30)
        assert (await other.cluster())["leader"] != leader.id
        answer = await leader.cluster()
        assert answer["write_failed_since_ms"] is not None
        async with session.get(f"{leader.url}/prometheus") as reply:
            page = await reply.text()
        assert "quorumq_disk_hangs_total 1" in page
        assert f"{leader.id} quorumq.cluster: the disk does not answer" in leader.log_text()
        cluster.answer(leader)
        await cluster.ready()
        assert (await leader.cluster())["write_failed_since_ms"] is None
        await cluster.converged()
        assert (await other.cluster())["term"] <= term + 2


async def test_all_disks_hang_and_answer_again() -> None:
    async with machines() as (cluster, session):
        _, (other, _) = await cluster.leader(), await cluster.followers()
        term = (await other.cluster())["term"]
        cluster.hang(*cluster.nodes)
        writing = asyncio.create_task(call(session, "POST", f"{other.url}/queues/q/jobs", {"data": 1}))

        async def all_say_so() -> bool:
            return all([await not_ready(node) for node in cluster.nodes])

        await cluster.until("all say so", all_say_so, 60)
        terms = [(await node.cluster())["term"] for node in cluster.nodes]
        assert max(terms) <= term + 2, "no storm of elections"
        cluster.answer(*cluster.nodes)
        await cluster.ready()
        # Given up after a while, or applied: what counts is that there is an end, and that writes go on.
        await asyncio.wait([writing], timeout=30)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await call(session, "POST", f"{other.url}/queues/q/jobs", {"data": 2})


async def test_a_node_whose_disk_hangs_can_be_stopped() -> None:
    async with machines(1) as (cluster, session):
        (node,) = cluster.nodes
        cluster.hang(node)
        writing = asyncio.create_task(call(session, "POST", f"{node.url}/queues/q/jobs", {"data": 1}))
        await cluster.until("it says so", lambda: not_ready(node), 60)
        node.settings["SHUTDOWN_TIMEOUT_MS"] = "100"
        assert await node.stop(60) == 0
        assert "what it was given last is left to it" in node.log_text()
        await asyncio.gather(writing, return_exceptions=True)
        cluster.answer(node)
        await cluster.start()
        await call(session, "POST", f"{node.url}/queues/q/jobs", {"data": 1})


async def test_a_snapshot_whose_disk_hangs_is_given_up_and_tried_again() -> None:
    async with machines(1, SNAPSHOT_LOG_BYTES=str(1 << 20), SNAPSHOT_STALL_MS="1000") as (cluster, session):
        (node,) = cluster.nodes
        hang = cluster.faults(node) / "hang-child"
        hang.touch()

        async def figure(name: str) -> float:
            async with session.get(f"{node.url}/prometheus") as reply:
                page = await reply.text()
            return float(next(line for line in page.splitlines() if line.startswith(f"{name} ")).split()[1])

        async def given_up() -> bool:
            # The log grows by some megabytes before one is due.
            await call(session, "POST", f"{node.url}/queues/q/jobs", {"data": "x" * 200_000})
            return await figure("quorumq_snapshot_stalls_total") > 0

        await cluster.until("one was given up", given_up, 120)
        assert "the process that writes a snapshot has made no progress for 1 s" in node.log_text()
        assert await figure("quorumq_snapshots_total") == 0
        hang.unlink()

        async def written() -> bool:
            return await figure("quorumq_snapshots_total") > 0

        await cluster.until("one is written", written, 60)


async def test_a_disk_that_is_slow_slows_writes_and_no_more() -> None:
    async with machines(1) as (cluster, session):
        (node,) = cluster.nodes
        loop = asyncio.get_running_loop()
        cluster.machines[node.id].slow(400)
        began = loop.time()
        await call(session, "POST", f"{node.url}/queues/q/jobs", {"data": 1})
        assert loop.time() - began > 0.4
        status, _ = await node.ask("/ready")
        assert status == 200


@pytest.mark.parametrize("words", [None, "", "1", "true"])
def test_faults_cannot_be_turned_on_by_accident(tmp_path: Path, words: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != ALLOWED_BY}
    if words is not None:
        environment[ALLOWED_BY] = words
    machine = Machine(tmp_path / "faults")
    done = subprocess.run(
        [*machine.program, "--version"], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and ALLOWED_BY in done.stderr and done.stdout == ""


def test_a_node_with_faults_says_so_and_the_package_has_none(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "faults")
    done = subprocess.run(
        [*machine.program, "--version"],
        env=os.environ | machine.settings,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "FAULTS ARE ON" in done.stderr and str(machine.folder) in done.stderr
    # There is nothing to turn on where there is no faulty.py, and it is not in what is installed.
    for package in ("cluster", "node", "api", "cli"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text("utf-8")
            assert ALLOWED_BY not in text and "tests.support" not in text, path

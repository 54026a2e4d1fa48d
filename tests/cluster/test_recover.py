"""Real nodes that lost their majority, or whose term or time ran away: what one of them held is served again, by three."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import time
from typing import Any

import pytest

from quorumq.cli.admin import NoAnswer
from quorumq.cluster.disk import Disk
from quorumq.cluster.log import Log
from tests.cluster.test_changing_secrets import Gentle
from tests.cluster.traffic import broken, states
from tests.support.local_cluster import LocalCluster, LocalNode

pytestmark = pytest.mark.timeout(300)


class Noted(Gentle):
    """Remembers which node answered a push."""

    def __init__(self, cluster: LocalCluster) -> None:
        super().__init__(cluster)
        self.answered: dict[str, set[str]] = {node.id: set() for node in cluster.nodes}

    async def post(self, node: LocalNode, path: str, body: Any) -> Any:
        answer = await super().post(node, path, body)
        if answer and path.endswith("/bulk"):
            self.answered[node.id].update(answer["ids"])
        return answer


async def command(*arguments: str) -> tuple[int, str]:
    """Run `quorumq` with these arguments; its exit status, and all that it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "quorumq", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode()


async def changed(cluster: LocalCluster, *arguments: str) -> None:
    """Change the members, as soon as that can be."""

    async def done() -> bool:
        return (await command("members", *arguments))[0] == 0

    await cluster.until(" ".join(arguments), done, 30)


async def lose(cluster: LocalCluster, lost: list[LocalNode]) -> None:
    """Their machines burn down."""
    for node in lost:
        await node.kill()
    for node in lost:
        shutil.rmtree(node.data)


async def test_a_cluster_that_lost_its_majority_goes_on_from_the_node_that_is_left() -> None:
    async with LocalCluster(3, WRITE_TIMEOUT_MS="2000") as cluster:
        async with Gentle(cluster) as traffic:
            await traffic.until(acked=50)
        await cluster.converged()
        n1, n2, n3 = cluster.nodes
        await lose(cluster, [n1, n2])
        backup = cluster.folder / "backup"
        status, said = await command("backup", "-o", str(backup), "--url", n3.url)
        assert status == 1 and "503" in said and "--stale" in said
        # Without the others this node's copy can still be had, and becomes a new cluster as any backup does.
        status, said = await command("backup", "--stale", "-o", str(backup), "--url", n3.url)
        assert status == 0, said
        status, said = await command("restore", str(backup), "--data", str(cluster.folder / "copy"), "--node-id", "n1")
        assert status == 0, said
        status, said = await command("recover", str(n3.data), "--yes")
        assert status == 1 and "stop its node first" in said
        assert await n3.stop() == 0
        status, said = await command("recover", str(n3.data), "--yes")
        assert status == 0, said
        await n3.start()
        await cluster.ready([n3])
        assert await broken(traffic.promises, n3) == []
        for node in (n1, n2):
            await changed(cluster, "add", node.id, f"{node.host}:{node.peer_port}", "--url", n3.url)
            await node.start()
            await cluster.ready([node])
            await changed(cluster, "promote", node.id, "--url", n3.url)
        await cluster.converged()
        # Any one of the three may be away again, the one that all came from as well.
        await n3.kill()
        await cluster.leader()
        for node in (n1, n2):
            assert await broken(traffic.promises, node) == []
        async with Gentle(cluster) as more:
            await more.until(acked=20)


async def test_what_the_survivor_held_at_the_moment_of_the_loss_is_there() -> None:
    async with LocalCluster(3, WRITE_TIMEOUT_MS="2000") as cluster:
        n1, n2, n3 = cluster.nodes
        async with Noted(cluster) as traffic:
            await traffic.until(acked=30)
            await lose(cluster, [n1, n2])
        assert await n3.stop() == 0
        status, said = await command("recover", str(n3.data), "--yes")
        assert status == 0, said
        await n3.start()
        await cluster.ready([n3])
        found = await states(n3, sorted(traffic.promises.pushed))
        lost = {job_id for job_id, (state, _) in found.items() if state == "unknown"}
        # What n3 answered itself it had applied. What the others answered in the last moment may never have got there.
        assert len(traffic.answered["n3"]) > 10 and not lost & traffic.answered["n3"]


async def go_on_from(cluster: LocalCluster, survivor: LocalNode) -> str:
    """Recover from one node's folder and have the others join, as docs/operations.md says; return what the command said."""
    status, dry = await command("recover", str(survivor.data), "--dry-run")
    assert status == 0, dry
    status, said = await command("recover", str(survivor.data), "--yes")
    assert status == 0, said
    await survivor.start()
    await cluster.ready([survivor])
    for node in cluster.nodes:
        if node is not survivor:
            shutil.rmtree(node.data)
            await changed(cluster, "add", node.id, f"{node.host}:{node.peer_port}", "--url", survivor.url)
            await node.start()
            await cluster.ready([node])
            await changed(cluster, "promote", node.id, "--url", survivor.url)
    await cluster.converged()
    return dry


async def test_a_cluster_whose_term_ran_away_goes_on() -> None:
    last = 2**62 - 1
    async with LocalCluster(3, WRITE_TIMEOUT_MS="2000") as cluster:
        async with Gentle(cluster) as traffic:
            await traffic.until(acked=30)
        await cluster.converged()
        for node in cluster.nodes:
            assert await node.stop() == 0
            # What one message did to a node of 0.1.0, for good.
            disk = Disk(node.data / "log")
            log = Log(disk, 32 << 20)
            log.setCurrentTerm(last, None)
            log.flush()
            async with asyncio.timeout(30):
                while log.durable != log.appended:
                    await asyncio.sleep(0.01)
            log.close()
            disk.close()
        for node in cluster.nodes:
            await node.start()

        async def all_say_why() -> bool:
            with contextlib.suppress(NoAnswer):
                told = [str((await node.ask("/ready"))[1]) for node in cluster.nodes]
                return all("the term has run away" in one for one in told)
            return False

        await cluster.until("all nodes to say that the term has run away", all_say_why, 60)
        for node in cluster.nodes:
            assert await node.stop() == 0
        n2 = cluster.nodes[1]
        assert f"was {last} (it had run away)" in await go_on_from(cluster, n2)
        assert (await n2.cluster())["term"] < 100
        for node in cluster.nodes:
            assert await broken(traffic.promises, node) == []
        async with Gentle(cluster) as more:
            await more.until(acked=20)


YEAR_S = 365 * 24 * 3600
# The program on a machine whose wall clock is a year ahead.
AHEAD = f"""
from quorumq.cluster.environment import NodeEnvironment
right = NodeEnvironment.wall_ms
NodeEnvironment.wall_ms = lambda self: right(self) + {YEAR_S} * 1000
from quorumq.cli.main import main
main()
"""


async def test_a_cluster_whose_time_ran_away_goes_on() -> None:
    async with LocalCluster(3) as cluster:
        for node in cluster.nodes:
            assert await node.stop() == 0
            shutil.rmtree(node.data)
            usual, node.program = node.program, (sys.executable, "-c", AHEAD)
        for node in cluster.nodes:
            await node.start()
        await cluster.ready()
        n1 = cluster.nodes[0]
        async with Gentle(cluster) as traffic:
            await traffic.until(acked=20)

            async def asked(method: str, path: str, body: Any) -> Any:
                async with traffic.session.request(method, n1.url + path, json=body) as answer:
                    assert answer.status == 200, await answer.text()
                    return await answer.json()

            soon = (await asked("POST", "/queues/later/jobs", {"data": 1, "delay": 20_000}))["id"]
        await cluster.converged()
        for node in cluster.nodes:
            assert await node.stop() == 0
            node.program = usual
        assert "is set back to" in await go_on_from(cluster, n1)
        assert await broken(traffic.promises, n1) == []
        for node in cluster.nodes:
            told = (await node.cluster())["log_clock_ms"]
            assert abs(told / 1000 - time.time()) < 300

        async def comes() -> bool:
            return bool((await n1.ask(f"/jobs/{soon}/state"))[1]["state"] == "waiting")

        # A delay of twenty seconds is that, and not a year and twenty seconds.
        await cluster.until("the delayed job to come", comes, 60)

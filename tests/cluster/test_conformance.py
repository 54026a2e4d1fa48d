"""The recorded cases, replayed against three real nodes: a leader, a follower, all in turn, and while the leader is killed.

The cases are not part of this repository: QUORUMQ_CONFORMANCE names their folder, else ../shared/conformance is used, and
without either these tests are skipped.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

from scripts.tools.local_cluster import LocalCluster
from tests.cluster.balancer import Balancer

ROOT = Path(__file__).parent.parent.parent
FOLDER = Path(os.environ.get("QUORUMQ_CONFORMANCE") or ROOT.parent / "shared" / "conformance")
# What is not served yet.
NOT_YET = {"websocket", "sse"}
# What a node says of itself, which is another thing when its leader has just been killed.
OF_A_NODE = {"monitoring"}
TOKEN = "t-conformance"
# Cases at once: most of them wait for something.
AT_ONCE = 12

pytestmark = pytest.mark.skipif(not (FOLDER / "replay.py").exists(), reason="the recorded cases are not there")


def runner() -> Any:
    spec = importlib.util.spec_from_file_location("recorded_cases", FOLDER / "replay.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cases() -> list[dict[str, Any]]:
    """What was recorded and agrees with the document, then what only the document says; the longest first."""
    load = runner().load
    found: list[dict[str, Any]] = load(FOLDER / "bunqueue.jsonl", set(), None)
    found += load(FOLDER / "bunqueue-seed.jsonl", set(), None)
    served = [spec for spec in found if spec["group"] not in NOT_YET]
    assert len(served) > 200
    return sorted(served, key=lambda spec: -sum(step.get("sleep", 0) for step in spec["steps"]))


def unhurried(node: Any) -> Any:
    """Take the upper bounds on times out of a case: while there is no leader everything takes longer."""
    if isinstance(node, dict):
        return {
            key: [value[0], 60_000] if key == "ms" else value + 10 if key == "retry" else unhurried(value)
            for key, value in node.items()
        }
    return [unhurried(item) for item in node] if isinstance(node, list) else node


async def replay(base: str, specs: list[dict[str, Any]], token: str | None = None) -> list[str]:
    results = await runner().replay(specs, base, token, AT_ONCE)
    assert len(results) == len(specs)
    return [f"{item['group']}/{item['id']}: {item['error']}" for item in results if item["result"] == "fail"]


async def test_cases_pass_on_the_leader_a_follower_and_all_in_turn() -> None:
    async with LocalCluster(3) as cluster:
        leader, followers = await cluster.leader(), await cluster.followers()
        async with Balancer(cluster.nodes) as balancer:
            # Side by side, because most of the time passes in cases that wait.
            urls = (leader.url, followers[0].url, balancer.url)
            assert await asyncio.gather(*(replay(url, cases()) for url in urls)) == [[], [], []]
        await cluster.converged()


async def test_cases_pass_with_a_token() -> None:
    async with LocalCluster(3, AUTH_TOKENS=TOKEN) as cluster, Balancer(cluster.nodes) as balancer:
        assert await replay(balancer.url, cases(), TOKEN) == []


async def test_cases_pass_while_the_leader_is_killed() -> None:
    """The balancer repeats what was lost with the leader, under the same key: nothing may happen twice."""
    specs = [unhurried(spec) for spec in cases() if spec["group"] not in OF_A_NODE]
    async with LocalCluster(3) as cluster, Balancer(cluster.nodes, repeats=True) as balancer:
        leader = await cluster.leader()
        replaying = asyncio.create_task(replay(balancer.url, specs))
        # Once something is under way.
        async with asyncio.timeout(30):
            while (await leader.cluster())["applied_index"] < 50:
                await asyncio.sleep(0.02)
        await leader.kill()
        await cluster.leader()
        await leader.start()
        assert await replaying == []
        assert balancer.repeated > 0
        await cluster.ready()
        await cluster.converged()

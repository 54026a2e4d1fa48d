"""The recorded cases of the real server, replayed against a leader, a follower, and while the leader is killed.

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

ROOT = Path(__file__).parent.parent.parent
FOLDER = Path(os.environ.get("QUORUMQ_CONFORMANCE") or ROOT.parent / "shared" / "conformance")
GROUPS = {"push", "bulk", "pull", "ack", "fail", "identity", "http"}
TOKEN = "t-conformance"

pytestmark = pytest.mark.skipif(not (FOLDER / "replay.py").exists(), reason="the recorded cases are not there")


def runner() -> Any:
    spec = importlib.util.spec_from_file_location("recorded_cases", FOLDER / "replay.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cases() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = runner().load(FOLDER / "bunqueue.jsonl", GROUPS, None)
    assert len(found) > 50
    return found


def unhurried(node: Any) -> Any:
    """Take the upper bounds on times out of a case: while there is no leader everything takes longer."""
    if isinstance(node, dict):
        return {
            key: [value[0], 60_000] if key == "ms" else value + 10 if key == "retry" else unhurried(value)
            for key, value in node.items()
        }
    return [unhurried(item) for item in node] if isinstance(node, list) else node


async def replay(base: str, specs: list[dict[str, Any]], token: str | None = None) -> list[str]:
    results = await runner().replay(specs, base, token, 8)
    assert len(results) == len(specs)
    return [f"{item['group']}/{item['id']}: {item['error']}" for item in results if item["result"] == "fail"]


async def test_cases_pass_on_the_leader_and_on_a_follower() -> None:
    async with LocalCluster(3) as cluster:
        leader, followers = await cluster.leader(), await cluster.followers()
        assert await replay(leader.url, cases()) == []
        assert await replay(followers[0].url, cases()) == []
        await cluster.converged()


async def test_cases_pass_with_a_token() -> None:
    async with LocalCluster(3, AUTH_TOKENS=TOKEN) as cluster:
        assert await replay(cluster.nodes[2].url, cases(), TOKEN) == []


async def test_cases_pass_while_the_leader_is_killed() -> None:
    async with LocalCluster(3) as cluster:
        leader, followers = await cluster.leader(), await cluster.followers()
        replaying = asyncio.create_task(replay(followers[0].url, unhurried(cases())))
        await leader.kill()
        await cluster.leader()
        await leader.start()
        assert await replaying == []
        await cluster.ready()
        await cluster.converged()

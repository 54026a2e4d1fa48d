"""Leaving in two steps: a rolling restart behind a balancer that follows readiness fails no request; what signals and prestop do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from typing import Any

import aiohttp
import pytest

from tests.support.balancer import LOOK_S, Balancer
from tests.support.haproxy import PROGRAM, Haproxy
from tests.support.local_cluster import LocalCluster, LocalNode
from tests.support.rolling import Client, Load, lost, roll

# Longer than the balancer takes to notice: some looks, on a busy machine.
DELAY_MS = int(8 * LOOK_S * 1000)


def behind(cluster: LocalCluster, balancer: str) -> Any:
    """A balancer that asks /readyz, none of which repeats what a node has seen."""
    if balancer == "plain":
        return Balancer(cluster.nodes)
    if PROGRAM is None:
        pytest.skip("haproxy is not there")
    return Haproxy(cluster.nodes, inter_ms=int(LOOK_S * 1000), retries=0 if balancer == "haproxy, retries 0" else None)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("balancer", ["plain", "haproxy, retries 0", "haproxy"])
async def test_a_rolling_restart_behind_a_balancer_fails_no_request_and_none_is_repeated(balancer: str) -> None:
    # The long form of this is scripts/roll.
    async with LocalCluster(3, SHUTDOWN_DELAY_MS=str(DELAY_MS)) as cluster, behind(cluster, balancer) as before:
        async with Load(Client(before.url)) as client:
            await roll(cluster, client, acked=40)
        assert client.failed == [] and client.doubled == []
        assert getattr(before, "repeated", 0) == 0
        assert client.acked <= client.pushed
        await cluster.converged()
        assert await lost(client, cluster.nodes[0]) == []


async def ready(node: LocalNode) -> int:
    return (await node.ask("/ready"))[0]


@contextlib.asynccontextmanager
async def leaving(signals: tuple[signal.Signals, ...], **settings: str) -> Any:
    """A lone node that has been sent the signals and does not leave soon, and whose listener is open."""
    async with LocalCluster(1, SHUTDOWN_DELAY_MS="60000", **settings) as cluster:
        (node,) = cluster.nodes
        for number in signals:
            node.signal(number)

        async def left() -> bool:
            return await ready(node) == 503

        await cluster.until("the node is not ready", left, 20)
        yield node


async def test_a_node_that_leaves_is_not_ready_serves_on_and_ends_each_connection() -> None:
    async with leaving((signal.SIGTERM,)) as node, aiohttp.ClientSession() as session:
        for _ in range(3):
            async with session.post(f"{node.url}/queues/q/jobs", json={"data": 1}) as reply:
                assert reply.status == 200 and reply.headers["Connection"] == "close"
        async with session.get(f"{node.url}/queues/q/jobs?timeout=30000") as reply:
            assert (await reply.json())["job"] is not None
        assert node.running
        # A second signal ends the waiting, and not what is under way.
        node.signal(signal.SIGTERM)
        assert await node.exited(20) == 0


async def test_the_third_signal_ends_the_process_at_once() -> None:
    async with leaving((signal.SIGTERM,)) as node:
        # Whatever the node still waits for, it is told three times before it can have left.
        node.signal(signal.SIGSTOP)
        node.signal(signal.SIGTERM)
        node.signal(signal.SIGINT)
        node.signal(signal.SIGCONT)
        assert await node.exited(20) in (0, 1)


def prestop(node: LocalNode) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quorumq", "prestop", "--data-path", str(node.data), "--host", "127.0.0.1"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


async def test_prestop_waits_for_the_first_half_and_the_end_does_not_wait_again() -> None:
    async with LocalCluster(3, SHUTDOWN_DELAY_MS="1500") as cluster, aiohttp.ClientSession() as session:
        leader = await cluster.leader()
        done = await asyncio.to_thread(prestop, leader)
        assert done.returncode == 0 and "it has left" in done.stdout, done
        assert await ready(leader) == 503
        assert (await cluster.leader()) is not leader
        async with session.post(f"{leader.url}/queues/q/jobs", json={"data": 1}) as reply:
            assert reply.status == 200
        assert (leader.data / "process.json").stat().st_mode & 0o777 == 0o600
        assert json.loads((leader.data / "process.json").read_bytes())["phase"] == "left"
        assert await leader.stop() == 0
        assert "serving for" in leader.log_text() and leader.log_text().count("serving for") == 1
        # Nobody is there any more.
        done = await asyncio.to_thread(prestop, leader)
        assert done.returncode == 1 and "no node runs on" in done.stderr

"""Memory that a burst of connections leaves: what Python has free goes back though something small lies in every arena of it."""

from __future__ import annotations

import asyncio
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quorumq.cli.memory import BLOCK_BYTES, POOL_BYTES, pages, pool_bytes, resident_bytes
from scripts.tools.attack import RAISED, TOKEN, Attack, Bystander
from tests.support.local_cluster import PATIENCE, LocalCluster

PAGE = mmap.PAGESIZE

# Objects that go, and between them a few that stay: 100 MB in arenas of which none becomes free as a whole.
SCATTERED = """
import asyncio, gc
from quorumq.cli.memory import Claim, resident_bytes

async def main():
    begun = resident_bytes()
    stay, go = [], []
    for number in range(400_000):
        go.append([number, str(number) * 3, {}])
        if number % 400 == 0:
            stay.append([number, str(number), {}])
    go.clear()
    gc.collect()
    freed = resident_bytes()
    claim = Claim()
    await claim.take()
    claimed = resident_bytes()
    assert stay == [[number, str(number), {}] for number in range(0, 400_000, 400)]
    await claim.let_go()
    again = [[number, str(number) * 3, {}] for number in range(200_000)]
    assert all(one == [number, str(number) * 3, {}] for number, one in enumerate(again))
    print(begun, freed, claimed, resident_bytes(), claim.bytes)

asyncio.run(main())
"""


def test_pages_are_those_that_lie_wholly_within_neighbouring_blocks() -> None:
    at = 10 * PAGE
    run = [at + 48 + number * BLOCK_BYTES for number in range(31)]
    assert pages(run) == [(at + PAGE, 2 * PAGE)]
    assert pages(run[:7]) == []
    # One that is somebody else's.
    assert pages(run[:12] + run[13:]) == [(at + 2 * PAGE, PAGE)]
    assert pages([]) == []
    assert pages([at + number * BLOCK_BYTES for number in range(PAGE // BLOCK_BYTES)]) == [(at, PAGE)]


def test_what_a_pool_has_left_at_its_end_goes_back_with_its_last_page() -> None:
    """Only where the blocks show that a pool ends there: in a larger one another block would begin there, and be somebody's."""
    pool = 100 * POOL_BYTES
    blocks = [pool + 48 + number * BLOCK_BYTES for number in range(31)]
    assert pages(blocks, ends_at=POOL_BYTES) == [(pool + PAGE, POOL_BYTES - PAGE)]
    assert pages(blocks[:-1], ends_at=POOL_BYTES) == pages(blocks[:-1]) == [(pool + PAGE, 2 * PAGE)]
    many = [first + number * POOL_BYTES for number in range(4) for first in blocks]
    assert pool_bytes(sorted(many)) == 0, "too few to say"
    many += [first + 4 * POOL_BYTES for first in blocks]
    assert pool_bytes(sorted(many)) == POOL_BYTES
    larger = [pool + 48 + number * BLOCK_BYTES for number in range(128)]
    assert pool_bytes(larger) == 0
    spaced = [pool + 16 + number * (BLOCK_BYTES + 16) for number in range(128)]
    assert pool_bytes(spaced) == 0, "of another allocator"


@pytest.mark.skipif(not resident_bytes(), reason="the system does not say how much memory is in RAM")
def test_what_is_free_goes_back_and_can_be_used_again() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    found = subprocess.run(
        [sys.executable, "-c", SCATTERED], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    begun, freed, claimed, used_again, left = map(int, found.stdout.split())
    burst = freed - begun
    assert burst > 50 << 20, "something frees it by itself: there is no need for any of this"
    assert freed - claimed > 0.4 * burst
    assert used_again < freed + 0.1 * burst
    assert left == 0


async def test_memory_is_back_when_many_connections_have_gone() -> None:
    """As scripts/attack demands it of 10,000 connections; jobs are pushed meanwhile, which stay."""
    async with LocalCluster(1, AUTH_TOKENS=TOKEN, **(RAISED | PATIENCE)) as cluster:
        node = await cluster.leader()
        before = node.rss_bytes()
        bystander = Bystander(node.url)
        under = Attack(node, share=0.5)
        await under.begin("sockets")
        await under.begin("polls")
        peak = node.rss_bytes()
        # Or they were not all there at once.
        assert peak - before > 24 << 20
        await under.end()
        await bystander.end()
        async with asyncio.timeout(120):
            while "memory went back" not in node.log_text():
                await asyncio.sleep(0.1)
        assert node.rss_bytes() - before < 0.7 * (peak - before)

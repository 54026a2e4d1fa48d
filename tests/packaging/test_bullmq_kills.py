"""Leaders that are killed while BullMQ's tests or workers run: a node that does not come back ends what waits for the next kill."""

from __future__ import annotations

import asyncio
import types
from typing import Any

import pytest

from scripts.tools.bullmq import FILES, Kill, exempt, leaders_killed, longest_after
from tests.support.local_cluster import ClusterTrouble


class Dying:
    """A cluster of which a killed node does not come back."""

    async def leader(self) -> Any:
        async def done() -> None: ...

        return types.SimpleNamespace(id="n1", kill=done, start=done)

    async def ready(self, *, timeout_s: float) -> None:
        raise ClusterTrouble("n1 is not ready")


async def test_a_node_that_does_not_come_back_ends_the_run() -> None:
    with pytest.raises(ExceptionGroup) as raised:
        async with leaders_killed(Dying(), every_s=0.001, down_s=0.0) as killed:  # type: ignore[arg-type]
            await asyncio.Event().wait()
    assert raised.group_contains(ClusterTrouble, match="n1 is not ready")
    assert [kill.node for kill in killed] == ["n1"]


async def test_a_node_that_is_down_when_the_run_ends_is_started_again() -> None:
    """The next run would have two nodes else, and nobody who leads once one of these is killed."""
    up, down = {"n1"}, asyncio.Event()

    class Cluster:
        async def leader(self) -> Any:
            async def kill() -> None:
                up.clear()
                down.set()

            async def start() -> None:
                up.add("n1")

            return types.SimpleNamespace(id="n1", kill=kill, start=start)

        async def ready(self, *, timeout_s: float) -> None:
            assert up

    async with leaders_killed(Cluster(), every_s=0.001, down_s=3_600) as killed:  # type: ignore[arg-type]
        await down.wait()
    assert ([kill.node for kill in killed], up) == (["n1"], {"n1"})


async def test_nobody_is_killed_where_no_kills_are_asked_for() -> None:
    async with leaders_killed(Dying(), every_s=0) as killed:  # type: ignore[arg-type]
        pass
    assert killed == []


def test_a_pause_is_that_of_the_kill_before_it() -> None:
    first, second = Kill("n1", 1_000), Kill("n2", 2_000)
    pauses = [[900, 50], [1_000, 120], [1_300, 300], [1_999, 200], [2_000, 400], [9_000, 350]]
    assert longest_after(first, pauses, second) == (300, 1_300)
    assert longest_after(second, pauses, None) == (400, 2_000)
    assert longest_after(Kill("n3", 9_001), pauses, None) == (0, 0)


def test_who_need_not_pass_is_named_by_how_the_tests_are_run() -> None:
    def spared(**how: bool) -> set[tuple[str, str]]:
        return set(exempt(**{"client_clock": False, "kills": False, "published": False} | how))

    usual = spared()
    assert {file for file, _ in usual} < FILES.keys()
    assert ("clean", "when job scheduler is present") in usual
    assert ("queue", "retries all completed jobs") in spared(kills=True) - usual
    assert {file for file, _ in spared(published=True) - usual} == {"child-pool", "worker"}
    assert {file for file, _ in usual - spared(client_clock=True)} == {"worker"}

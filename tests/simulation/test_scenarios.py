"""Named scenarios: what a seed once found, or what is hard to meet by chance, written down step by step."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cluster.engine import Engine
from cluster.membership import ChangeRefused
from node.operations.jobs import PushJobs
from node.state.job import JobSpec
from tests.simulation.checks import Violation
from tests.simulation.profiles import CALM
from tests.simulation.world import QUICK, World


class Scenario(World):
    """A world in which happens what a script says, and nothing by chance; at its end everything is checked as for a seed."""

    def __init__(self, script: Callable[[Scenario], Awaitable[None]], *, nodes: int = 3, by_name: bool = False) -> None:
        super().__init__(1, nodes, CALM)
        self.discovers = by_name
        self._script = script

    async def _live(self) -> None:
        self._quiet = True
        await self._script(self)
        await self._heal()

    async def all_start(self) -> None:
        for name in self.founders:
            await self.start(name)

    async def until(self, what: str, condition: Callable[[], Any], seconds: float = 30.0) -> Any:
        deadline = self.loop.now + seconds
        while not (found := condition()):
            self._check_alive()
            if self.loop.now > deadline:
                raise Violation("the script goes on", what)
            await asyncio.sleep(0.01)
        return found

    def leading(self) -> Engine | None:
        return next((engine for engine in self.engines() if engine.is_leader), None)

    async def leader(self) -> Engine:
        """The one leader, once it can take a change of the membership."""

        def settled() -> Engine | None:
            leader = self.leading()
            return leader if leader is not None and leader._raft.membership_settled and leader.cluster_id() else None

        found: Engine = await self.until("a leader", settled)
        return found

    async def push(self, name: str, count: int = 1) -> None:
        """Push jobs at a node; they are acknowledged when this returns."""
        host = self.hosts[name]
        assert host.node is not None
        for _ in range(count):
            self._jobs += 1
            job = f"j{self._jobs}"
            self.checks.pushed(job, known=False)
            pushing = host.node.submit(PushJobs("q", [JobSpec(job, b"1", QUICK)]))
            await self.loop.create_task(pushing, context=host.process.context())
            self.checks.pushed(job, known=True)

    async def change(self, by: Engine, action: str, target: str) -> None:
        context = self.hosts[by.node_id].process.context()
        await self.loop.create_task(by.change_members(action, target, f"{target}:7790"), context=context)

    def cut_off(self, name: str) -> None:
        for other in self.hosts:
            if other != name:
                self.network.cut(name, other)
                self.network.cut(other, name)

    def join_again(self, name: str) -> None:
        for other in self.hosts:
            if other != name:
                self.network.heal(name, other)
                self.network.heal(other, name)


def test_a_removed_node_comes_again_while_another_knows_only_of_its_removal() -> None:
    async def script(world: Scenario) -> None:
        await world.all_start()
        leader = await world.leader()
        gone, behind = (name for name in world.founders if name != leader.node_id)
        world.crash(gone)
        await world.change(leader, "remove", gone)
        await world.until("the removal is known", lambda: world.hosts[behind].engine.was_removed(gone))  # type: ignore[union-attr]
        world.cut_off(behind)
        for disk in world.hosts[gone].disks.values():
            disk.wipe()
        world.checks.wiped(gone)
        await world.start(gone)
        adding = world.loop.create_task(world.change(leader, "add", gone))
        await world.until("the addition is in the log", lambda: gone in leader._raft.membership.seats)
        world.join_again(behind)
        await adding
        await world.push(leader.node_id, 3)

    Scenario(script).run()


def test_a_disk_that_says_all_is_well_after_a_failed_sync_loses_nothing_promised() -> None:
    """Linux drops what it could not write, and reports success for the next sync of the same file."""

    async def script(world: Scenario) -> None:
        await world.all_start()
        leader = await world.leader()
        await world.push(leader.node_id, 5)
        for round_ in range(6):
            name = world.founders[round_ % 3]
            for disk in world.hosts[name].disks.values():
                disk.fail_syncs, disk.garbage = 5, True
            # A leader notices at this write, and another one takes over what it could not promise.
            await world.push(next(other for other in world.founders if other != name), 3)
            engine = world.hosts[name].engine
            assert engine is not None
            await world.until("it is noticed", lambda: engine.status().write_failed_since_ms is not None)  # noqa: B023
            assert engine.status().ready_reason.startswith("the log cannot be written")
            for disk in world.hosts[name].disks.values():
                disk.fail_syncs = None
            await world.until("it goes on", lambda: engine.status().write_failed_since_ms is None)  # noqa: B023
            await world.push(name, 3)
            world.crash(name)
            await world.start(name)

    Scenario(script).run()


@pytest.mark.parametrize("seed", range(12))
def test_a_founding_that_is_cut_short_anywhere_makes_one_cluster(seed: int) -> None:
    async def script(world: Scenario) -> None:
        rng = random.Random(seed)
        # The machine that no settings count comes later, and joins nothing unasked.
        for name in rng.sample(world.founders, 3):
            await world.start(name)
            await asyncio.sleep(rng.uniform(0, 1.5))
        for _ in range(rng.randint(1, 6)):
            await asyncio.sleep(rng.uniform(0, 0.7))
            name = rng.choice(world.founders)
            if rng.random() < 0.3:
                world.cut_off(name)
                world.loop.call_later(rng.uniform(0.1, 2.0), world.join_again, name)
            else:
                world.crash(name)
                await asyncio.sleep(rng.uniform(0, 1.0))
                await world.start(name)
        await world.until("a leader", world.leading, 60)
        await world.start("n4")
        await world.leader()
        await world.push(world.founders[0], 3)
        await world.until("it is known of which cluster it could be", lambda: world.hosts["n4"].engine.cluster_id())  # type: ignore[union-attr]
        assert len({engine.cluster_id() for engine in world.engines()}) == 1
        world.retire("n4")

    Scenario(script, by_name=True).run()


def test_a_node_that_installs_a_snapshot_is_not_ready_before_it_has_what_came_after() -> None:
    async def script(world: Scenario) -> None:
        await world.all_start()
        leader = await world.leader()
        behind = next(name for name in world.founders if name != leader.node_id)
        world.crash(behind)
        await world.push(leader.node_id, 250)
        await world.until("the log is gone", lambda: leader.status().first_index > 100)
        term = leader.status().term
        await world.start(behind)
        engine = world.hosts[behind].engine
        assert engine is not None
        while not engine.status().ready:
            assert leader.is_leader
            await asyncio.sleep(0.005)
        assert engine.status().snapshot_index > 100
        assert engine.applied_index >= 250
        assert (leader.is_leader, leader.status().term) == (True, term)

    Scenario(script).run()


def test_a_removal_is_refused_when_one_of_those_left_has_lost_its_disk_unheard() -> None:
    """Hell's seed 420: two voters would have been left, one of them with nothing, and the log between them undecidable."""

    async def script(world: Scenario) -> None:
        await world.all_start()
        leader = await world.leader()
        gone, lost = (name for name in world.founders if name != leader.node_id)
        await world.until("all are whole", lambda: {gone, lost} <= leader._presence.whole)
        world.cut_off(lost)
        world.crash(lost, wipe=True)
        world.hosts[lost].whole = False
        await asyncio.sleep(0.35)
        assert leader._links.connected(lost)
        with pytest.raises(ChangeRefused, match="only 1 of the 2 voters left can be reached"):
            await world.change(leader, "remove", gone)
        await world.push(gone, 3)
        world.join_again(lost)
        await world.start(lost)

    Scenario(script).run()

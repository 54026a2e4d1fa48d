"""Named scenarios: what a seed once found, or what is hard to meet by chance, written down step by step."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from quorumq.cluster.config import ClusterConfig
from quorumq.cluster.engine import Engine
from quorumq.cluster.errors import NotApplied, OutcomeUnknown, Unavailable
from quorumq.cluster.membership import ChangeRefused
from quorumq.cluster.replica import encode_batches
from quorumq.node.machine.operations.job_reads import GetJobState
from quorumq.node.machine.operations.jobs import PushJobs
from quorumq.node.machine.operations.runs import PullJobs
from quorumq.node.machine.state.job import JobSpec, Options
from tests.simulation.breaks import broken
from tests.simulation.checks import Violation
from tests.simulation.damage import DAMAGES, LATER_QUEUE
from tests.simulation.profiles import CALM
from tests.simulation.world import QUICK, YEAR_MS, World


class Scenario(World):
    """A world in which happens what a script says, and nothing by chance; at its end everything is checked as for a seed."""

    def __init__(
        self, script: Callable[[Scenario], Awaitable[None]], *, nodes: int = 3, by_name: bool = False, **settings: Any
    ) -> None:
        super().__init__(1, nodes, CALM)
        self.discovers = by_name
        self._script = script
        self._settings = settings

    def config(self, name: str) -> ClusterConfig:
        return msgspec.structs.replace(super().config(name), **self._settings)

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

    async def pushed(self, name: str, count: int = 1, queue: str = "q", opts: Options = QUICK) -> None:
        """Push jobs at a node; they are acknowledged when this returns."""
        host = self.hosts[name]
        assert host.node is not None
        for _ in range(count):
            self._jobs += 1
            job = f"j{self._jobs}"
            self.checks.pushed(job, known=False)
            pushing = host.node.submit(PushJobs(queue, [JobSpec(job, b"1", opts)]))
            await self.loop.create_task(pushing, context=host.process.context())
            self.checks.pushed(job, known=True)

    async def locked(self, name: str) -> None:
        """Push a job at a node, and take it for longer than anything here lasts."""
        host = self.hosts[name]
        assert host.node is not None
        await self.loop.create_task(self._lock(host.node, self.rng), context=host.process.context())

    async def changed(self, by: Engine, action: str, target: str) -> None:
        context = self.hosts[by.node_id].process.context()
        await self.loop.create_task(by.change_members(action, target, f"{target}:7790"), context=context)

    def pushing(self, name: str) -> asyncio.Task[None]:
        """Push a job at a node without waiting for the answer."""
        return self.loop.create_task(self.pushed(name))

    def cut_off(self, name: str, *others: str) -> None:
        """Nothing passes any more between `name` and `others`, all when none are named."""
        for other in others or self.hosts:
            if other != name:
                self.network.cut(name, other)
                self.network.cut(other, name)

    def join_again(self, name: str, *others: str) -> None:
        for other in others or self.hosts:
            if other != name:
                self.network.heal(name, other)
                self.network.heal(other, name)

    def lose_disk(self, name: str) -> None:
        self.crash(name, wipe=True)
        self.hosts[name].whole = False

    def engine(self, name: str) -> Engine:
        engine = self.hosts[name].engine
        assert engine is not None
        return engine

    async def deposed_unaware(self) -> tuple[str, str, str]:
        """One that was the leader and does not know better, the one that leads now, and the third, which elected it."""
        await self.all_start()
        old = (await self.leader()).node_id
        await self.pushed(old, 3)
        await self.until("all are whole", lambda: all(self._whole(self.hosts[each]) for each in self.founders))
        new, third = (name for name in self.founders if name != old)
        for name in (new, third):
            self.network.reset(name, old)
            self.network.reset(old, name)
        self.cut_off(old)

        def taken_over() -> bool:
            return any(self.engine(name)._raft.committed_own_term for name in (new, third))

        await self.until("another one leads", taken_over)
        if not self.engine(new).is_leader:
            new, third = third, new
        assert self.engine(old).is_leader
        return old, new, third


def test_a_removed_node_comes_again_while_another_knows_only_of_its_removal() -> None:
    async def script(world: Scenario) -> None:
        await world.all_start()
        leader = await world.leader()
        gone, behind = (name for name in world.founders if name != leader.node_id)
        world.crash(gone)
        await world.changed(leader, "remove", gone)
        await world.until("the removal is known", lambda: world.hosts[behind].engine.was_removed(gone))  # type: ignore[union-attr]
        world.cut_off(behind)
        for disk in world.hosts[gone].disks.values():
            disk.wipe()
        world.checks.wiped(gone)
        await world.start(gone)
        adding = world.loop.create_task(world.changed(leader, "add", gone))
        await world.until("the addition is in the log", lambda: gone in leader._raft.membership.seats)
        world.join_again(behind)
        await adding
        await world.pushed(leader.node_id, 3)

    Scenario(script).run()


def test_one_that_came_back_is_not_sent_away_by_whoever_is_given_a_state_of_before() -> None:
    """Two are replaced under their names one after the other, and the second gets a snapshot in which the first is a removed one."""

    async def script(world: Scenario) -> None:
        await world.all_start()
        old = await world.leader()
        first, second = (name for name in world.founders if name != old.node_id)

        async def replaced(by: Engine, name: str) -> None:
            world.crash(name)
            await world.changed(by, "remove", name)
            await world.pushed(by.node_id, 3)
            if by is old:
                await world.loop.create_task(by.snapshot(5.0), context=world.hosts[by.node_id].process.context())
            await world.start_empty(name)
            await world.changed(by, "add", name)
            await world.pushed(by.node_id, 3)
            await world.until(f"{name} is whole", lambda: world._whole(world.hosts[name]))
            await world.until(f"{name} has caught up", lambda: by._raft.match_index(name) == by._log.last_index)
            await world.changed(by, "promote", name)

        await replaced(old, first)
        new = world.engine(first)
        assert new._snapshots.index
        handing = old.transfer_leadership(first)
        await world.loop.create_task(handing, context=world.hosts[old.node_id].process.context())
        await world.until("it leads", lambda: new.is_leader and new._raft.membership_settled)
        await replaced(new, second)
        # What it was given had the other one as removed.
        assert world.engine(second)._snapshots.name == new._snapshots.name

    Scenario(script, snapshot_log_entries=10**9, tail_entries=0).run()


def test_a_disk_that_says_all_is_well_after_a_failed_sync_loses_nothing_promised() -> None:
    """Linux drops what it could not write, and reports success for the next sync of the same file."""

    async def script(world: Scenario) -> None:
        await world.all_start()
        leader = await world.leader()
        await world.pushed(leader.node_id, 5)
        for round_ in range(6):
            name = world.founders[round_ % 3]
            for disk in world.hosts[name].disks.values():
                disk.fail_syncs, disk.garbage = 5, True
            # A leader notices at this write, and another one takes over what it could not promise.
            await world.pushed(next(other for other in world.founders if other != name), 3)
            engine = world.hosts[name].engine
            assert engine is not None
            await world.until("it is noticed", lambda: engine.status().write_failed_since_ms is not None)  # noqa: B023
            assert engine.status().ready_reason.startswith("the log cannot be written")
            for disk in world.hosts[name].disks.values():
                disk.fail_syncs = None
            await world.until("it goes on", lambda: engine.status().write_failed_since_ms is None)  # noqa: B023
            await world.pushed(name, 3)
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
        await world.pushed(world.founders[0], 3)
        # n4 too is told of which cluster it could be.
        await world.until("all know their cluster", lambda: all(engine.cluster_id() for engine in world.engines()))
        assert len({engine.cluster_id() for engine in world.engines()}) == 1
        world.retire("n4")

    Scenario(script, by_name=True).run()


def test_a_node_that_installs_a_snapshot_is_not_ready_before_it_has_what_came_after() -> None:
    async def script(world: Scenario) -> None:
        await world.all_start()
        leader = await world.leader()
        behind = next(name for name in world.founders if name != leader.node_id)
        world.crash(behind)
        await world.pushed(leader.node_id, 250)
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
        await world.until("all are whole", lambda: {gone, lost} <= leader._probations.whole)
        world.cut_off(lost)
        world.crash(lost, wipe=True)
        world.hosts[lost].whole = False
        await asyncio.sleep(0.35)
        assert leader._links.connected(lost)
        with pytest.raises(ChangeRefused, match="only 1 of the 2 voters left can be reached"):
            await world.changed(leader, "remove", gone)
        await world.pushed(gone, 3)
        world.join_again(lost)
        await world.start(lost)

    Scenario(script).run()


@pytest.mark.parametrize("leads", [True, False], ids=["the leader", "a follower"])
@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_a_damaged_replica_is_noticed_and_leaves(damage: str, leads: bool) -> None:
    async def script(world: Scenario) -> None:
        await world.all_start()
        leader = await world.leader()
        await world.pushed(leader.node_id, 5)
        await world.pushed(leader.node_id, 1, LATER_QUEUE, Options(delay_ms=1_800_000))
        await world.locked(leader.node_id)
        bad = leader.node_id if leads else next(name for name in world.founders if name != leader.node_id)
        engine = world.hosts[bad].engine
        assert engine is not None
        await world.until("it has the jobs", lambda: engine.applied_index >= leader.applied_index)
        world.damaged = True
        DAMAGES[damage](engine.machine.state)  # type: ignore[attr-defined]
        good = [name for name in world.founders if name != bad]
        while not engine.status().apart:
            assert world.loop.now < 1000 + 120, f"{damage} was not noticed"
            await world.pushed(good[0], 1)
            await asyncio.sleep(0.1)
        status = engine.status()
        assert (status.ready, status.ready_reason) == (False, status.apart)
        assert all(name in status.apart for name in good)
        assert status.differing == good
        for name in good:
            other = world.hosts[name].engine
            assert other is not None
            await world.until(f"{name} knows who it is", lambda: other.status().differing == [bad])  # noqa: B023
            assert other.status().ready and not other.status().apart
        await world.until("it leads no more", lambda: world.leading() is not None and not engine.is_leader)
        leader = await world.leader()
        handing = leader.transfer_leadership(bad)
        context = world.hosts[leader.node_id].process.context()
        assert not await world.loop.create_task(handing, context=context)
        assert leader.is_leader
        # Nothing of its state is kept or given away.
        held = engine.status().snapshot_index
        with pytest.raises(Unavailable, match="differs from that of the others"):
            await engine.snapshot(5.0)
        await world.pushed(good[0], 130)
        await world.until(
            "the others wrote snapshots", lambda: world.hosts[good[0]].engine.status().snapshot_index > held
        )  # type: ignore[union-attr]
        assert engine.status().snapshot_index == held
        # Nor does it lead when the leader goes: the other sound node takes over, though both could stand.
        leader = await world.leader()
        world.crash(leader.node_id)
        other = await world.until("the other one leads", world.leading)
        assert other.node_id in good
        await world.start(leader.node_id)
        # Its remedy.
        world.crash(bad, wipe=True)
        world.hosts[bad].whole = False
        await world.start(bad)
        await world.until("it is ready again", lambda: world.hosts[bad].engine.status().ready)  # type: ignore[union-attr]
        await world.until("nobody differs", lambda: not any(each.status().differing for each in world.engines()))

    Scenario(script).run()


def test_two_that_differ_both_say_so_and_both_go_on() -> None:
    async def script(world: Scenario) -> None:
        await world.all_start()
        leader = await world.leader()
        gone, bad = (name for name in world.founders if name != leader.node_id)
        await world.pushed(leader.node_id, 5)
        world.crash(gone)
        engine = world.hosts[bad].engine
        assert engine is not None
        world.damaged = True
        DAMAGES["data"](engine.machine.state)  # type: ignore[attr-defined]
        while not (engine.status().differing and leader.status().differing):
            assert world.loop.now < 1000 + 120
            await world.pushed(leader.node_id, 1)
            await asyncio.sleep(0.1)
        for each in (engine, leader):
            assert each.status().ready and not each.status().apart
        # The third one comes back and tells who is right.
        await world.start(gone)
        while not engine.status().apart:
            assert world.loop.now < 1000 + 240
            await world.pushed(leader.node_id, 1)
            await asyncio.sleep(0.1)
        assert not leader.status().apart
        world.crash(bad, wipe=True)
        world.hosts[bad].whole = False
        await world.start(bad)

    Scenario(script).run()


def test_the_only_node_with_the_whole_log_leads_at_last_though_it_is_apart_and_hands_over() -> None:
    async def script(world: Scenario) -> None:
        await world.all_start()
        leader = await world.leader()
        behind, bad = (name for name in world.founders if name != leader.node_id)
        engine = world.hosts[bad].engine
        assert engine is not None
        await world.pushed(leader.node_id, 5)
        world.damaged = True
        DAMAGES["data"](engine.machine.state)  # type: ignore[attr-defined]
        while not engine.status().apart:
            await world.pushed(leader.node_id, 1)
            await asyncio.sleep(0.1)
        world.cut_off(behind)
        await world.pushed(leader.node_id, 3)
        world.crash(leader.node_id)
        world.join_again(behind)
        began = world.loop.now
        other = await world.until(
            "the one that was behind leads",
            lambda: (found := world.leading()) and found.node_id == behind and found,
            60,
        )
        assert world.loop.now - began > 5
        await world.pushed(other.node_id, 1)
        await world.start(leader.node_id)
        await world.until("all are there", lambda: world.hosts[leader.node_id].engine.status().ready)  # type: ignore[union-attr]
        world.crash(bad, wipe=True)
        world.hosts[bad].whole = False
        await world.start(bad)

    Scenario(script).run()


def test_snapshots_are_written_one_node_at_a_time() -> None:
    async def script(world: Scenario) -> None:
        await world.all_start()
        leader = await world.leader()
        at_once, waited = 0, False
        for _ in range(500):
            await world.pushed(leader.node_id, 1)
            for _ in range(3):
                at_once = max(at_once, len(world.writing))
                waited = waited or any(engine.metrics.snapshot_waits for engine in world.engines())
                await asyncio.sleep(0.01)
        assert (at_once, waited) == (1, True)
        for engine in world.engines():
            assert engine.metrics.snapshots >= 3
            assert engine.status().snapshot_index > 300
        # A node that dies while it is its turn holds nobody up, and neither does one that is stopped.
        writer = leader.node_id
        engine = world.hosts[writer].engine
        assert engine is not None
        engine._snapshots._turns.take(world.loop.now)
        world.hosts[writer].process.paused = True
        others = [name for name in world.founders if name != writer]
        leader = await world.until(
            "another one leads",
            lambda: next((each for each in world.engines() if each.is_leader and each.node_id in others), None),
        )
        before = {name: world.hosts[name].engine.metrics.snapshots for name in others}  # type: ignore[union-attr]
        for _ in range(400):
            await world.pushed(leader.node_id, 1)
            await asyncio.sleep(0.03)
        assert all(world.hosts[name].engine.metrics.snapshots > before[name] for name in others)  # type: ignore[union-attr]
        world.hosts[writer].process.resume(world.loop)

    Scenario(script).run()


def test_a_log_that_grows_fast_waits_for_nobodys_turn() -> None:
    async def script(world: Scenario) -> None:
        await world.all_start()
        leader = await world.leader()
        other = next(engine for engine in world.engines() if engine is not leader)
        while leader.status().snapshot_index < 150:
            # Somebody says again and again that it writes, and never does.
            other._snapshots._turns._say(world.loop.now, taken=True)
            await world.pushed(leader.node_id, 1)
            assert leader.status().applied_index < 1000
        assert leader.status().applied_index < 350

    Scenario(script).run()


async def _wiped_and_the_deposed(world: Scenario) -> None:
    """The wiped node forgot that it elected another leader, and all it hears is the one that was deposed."""
    old, new, third = await world.deposed_unaware()
    await world.pushed(new)
    world.cut_off(new)
    world.lose_disk(third)
    world.join_again(old, third)
    await world.start(third)
    pushing = world.pushing(old)
    held = world.engine(third)
    await world.until("it has the entries", lambda: held._log.last_index >= world.engine(old)._log.last_index)
    await asyncio.sleep(1.0)
    assert world.engine(old).is_leader
    world.join_again(new)
    await world.until("the push is answered", pushing.done)


async def _read_from_the_deposed(world: Scenario) -> None:
    """The same, and somebody reads at the deposed leader."""
    old, new, third = await world.deposed_unaware()
    await world.pushed(new)
    job = f"j{world._jobs}"
    world.cut_off(new)
    world.lose_disk(third)
    world.join_again(old, third)
    await world.start(third)
    node = world.hosts[old].node
    assert node is not None
    reading = world.loop.create_task(node.ask(GetJobState(job)), context=world.hosts[old].process.context())
    await asyncio.sleep(1.5)
    world.join_again(new)
    await world.until("the reader is answered", reading.done)
    world.checks.read(job, reading.result(), pushed_before=True, acked_before=False)


async def _caught_up_with_the_deposed(world: Scenario) -> None:
    """The wiped node knows every member's term, and the deposed leader confirms that it has all that this one committed."""
    old, new, third = await world.deposed_unaware()
    await world.pushed(new)
    world.lose_disk(third)
    links = world.network.nodes[new]
    send = links.send
    # That there is a later term is all that the present leader gets to say.
    links.send = lambda peer, message: message["type"] != "present" or send(peer, message)  # type: ignore[method-assign]
    world.join_again(old, third)
    await world.start(third)
    engine = world.engine(third)
    await world.until("it has the entries", lambda: engine._log.last_index >= world.engine(old)._log.last_index)
    await asyncio.sleep(1.0)
    world.crash(new)
    world.join_again(old)
    pushing = world.pushing(old)
    await asyncio.sleep(3.0)
    await world.start(new)
    await world.until("the push is answered", pushing.done)


async def _caught_up_in_memory_only(world: Scenario) -> None:
    """The wiped node has all that was committed again, and loses power before any of it is on its disk."""
    await world.all_start()
    leader = (await world.leader()).node_id
    behind, third = (name for name in world.founders if name != leader)
    await world.until("all are whole", lambda: all(world._whole(world.hosts[each]) for each in world.founders))
    world.cut_off(leader, behind)
    await world.pushed(leader, 3)
    world.lose_disk(third)
    await world.start(third)
    engine, disk = world.engine(third), world.hosts[third].disks["log"]
    add = engine._log.add

    def slowly(command: bytes, idx: int, term: int) -> None:
        disk.latency = (9.0, 9.0)
        add(command, idx, term)

    engine._log.add = slowly  # type: ignore[method-assign]
    await world.until("it has caught up", lambda: engine._raft.verified_term and engine.applied_index > 4)
    await asyncio.sleep(0.5)
    disk._queue.clear()  # the write had not begun
    world.crash(third)
    world.crash(leader)
    await world.start(third)
    world.join_again(behind)
    pushing = world.pushing(behind)
    await asyncio.sleep(5.0)
    await world.start(leader)
    await world.until("the push is answered", pushing.done)


PROBATION = {
    "probation-acks": _wiped_and_the_deposed,
    "probation-reads": _read_from_the_deposed,
    "probation-terms": _caught_up_with_the_deposed,
    "probation-durability": _caught_up_in_memory_only,
}


@pytest.mark.parametrize("name", sorted(PROBATION))
def test_what_a_wiped_node_forgot_is_not_held_against_the_others(name: str) -> None:
    """While several things go wrong at once, nothing acknowledged is lost; without the protection of that name it is."""
    Scenario(PROBATION[name], quorum_loss_ms=4000).run()
    with broken(name), pytest.raises(Violation):
        Scenario(PROBATION[name], quorum_loss_ms=4000).run()


def test_one_gone_and_one_wiped_of_three_stand_still_and_say_why() -> None:
    """What is committed may be on the one that is away alone: nobody goes on without it, and with it all do."""

    async def script(world: Scenario) -> None:
        await world.all_start()
        leader = (await world.leader()).node_id
        away, wiped = (name for name in world.founders if name != leader)
        await world.pushed(leader, 3)
        await world.until("all are whole", lambda: all(world._whole(world.hosts[each]) for each in world.founders))
        world.crash(away)
        world.lose_disk(wiped)
        await world.start(wiped)
        left, empty = world.engine(leader), world.engine(wiped)
        await world.until("nobody leads", lambda: not left.is_leader)
        pushing = world.pushing(leader)
        await asyncio.sleep(8.0)
        assert not pushing.done() or pushing.exception() is not None
        assert not left.is_leader and not empty.is_leader
        assert (
            left.status().ready_reason == f"no leader; {wiped} may have lost what it promised and cannot help to elect"
        )
        assert empty.status().ready_reason.endswith(f"; this node may have lost what it promised and waits for {away}")
        assert (left.metrics.whole, empty.metrics.whole) == (True, False)
        await world.start(away)
        await world.until("it is answered", pushing.done)
        await world.until("the wiped one is whole", lambda: empty.metrics.whole)
        await world.pushed(wiped, 3)


async def _delivered(world: Scenario, name: str, delay_ms: int) -> float:
    """Push a job for later and take it; returns how long that took, in seconds."""
    host = world.hosts[name]
    assert host.node is not None
    world._jobs += 1
    job = f"j{world._jobs}"
    world.checks.pushed(job, known=False)
    began = world.loop.now
    node, context = host.node, host.process.context()
    push = PushJobs(f"later-{job}", [JobSpec(job, b"1", Options(delay_ms=delay_ms))])
    await world.loop.create_task(node.submit(push), context=context)
    world.checks.pushed(job, known=True)
    pull = PullJobs(f"later-{job}", 1, "w", lock_ms=600_000, token_seed=job)
    taken = await world.loop.create_task(
        node.pull(pull, lambda pulled: len(pulled.jobs), wait_ms=30_000), context=context
    )
    assert taken == 1
    return world.loop.now - began


def test_timers_go_on_in_a_cluster_whose_time_had_run_away_before() -> None:
    """What an older version left: the log's clock is a year ahead of everybody's, and stays so, but it goes on."""

    async def script(world: Scenario) -> None:
        world.true_clock = False
        await world.all_start()
        leader = await world.leader()
        ahead_ms = leader.now_ms() + YEAR_MS
        leader._raft.propose(encode_batches(ahead_ms, []))
        leader._poke()
        await world.until("all are there", lambda: all(each.now_ms() >= ahead_ms for each in world.engines()))
        for _ in range(2):
            leader = await world.leader()
            name = next(name for name in world.founders if name != leader.node_id)
            assert 5.0 <= await _delivered(world, name, 5000) < 5.0 / 0.95 + 0.2
            offsets = {member.clock_offset_ms for member in leader.status().members}
            assert all(offset is not None and -YEAR_MS <= offset < -YEAR_MS + 60_000 for offset in offsets)
            for name in world.founders:
                world.crash(name)
            await world.all_start()
            await world.until("it goes on", lambda: all(each.status().ready for each in world.engines()))

    Scenario(script).run()


def _all_written(engine: Engine) -> bool:
    return engine._log.durable == engine._log.appended


async def _a_disk_that_takes_nothing(world: Scenario) -> None:
    """What a follower cannot write stays in its memory: a bounded part of it, and the rest is with the others."""
    await world.all_start()
    leader = (await world.leader()).node_id
    full = next(name for name in world.founders if name != leader)
    await world.until("all are whole", lambda: all(world._whole(world.hosts[each]) for each in world.founders))
    engine = world.engine(full)
    bound, disk = engine.config.unwritten_bytes_max, world.hosts[full].disks["log"]
    for trouble in ("full", "hanging"):
        await world.until("all is written", lambda: _all_written(world.engine(full)))
        if trouble == "full":
            disk.fail_writes = 28
        else:
            disk.latency = (600.0, 600.0)
        for _ in range(20):
            await world.pushed(leader, 10)
            # One message may come on top, and there is one heartbeat after the other.
            if engine._log.unwritten_bytes > 2 * bound or len(engine._raft._SyncObj__transport._held) > 200:
                world.checks.fail("memory is bounded", f"{engine._log.unwritten_bytes} bytes wait")
        await asyncio.sleep(30.0)
        assert engine._raft.full and engine.metrics.entries_refused and engine.metrics.log_unwritten_bytes > bound
        assert engine.applied_index < world.engine(leader).applied_index - 50
        assert not engine.status().ready and not engine.is_leader
        assert len(engine._raft._SyncObj__transport._held) < 200
        if trouble == "full":
            disk.fail_writes = None
        else:
            assert engine.status().ready_reason.startswith("the log is written too slowly")
            world.crash(full)
            disk.latency = (0.0002, 0.002)
            await world.start(full)
            engine = world.engine(full)
        await world.until(
            "it has all again", lambda: world.engine(full).applied_index == world.engine(leader).applied_index
        )
        assert not engine._raft.full
    assert engine.status().snapshot_index > 100


def test_a_follower_that_cannot_write_keeps_a_bounded_part_in_memory() -> None:
    Scenario(_a_disk_that_takes_nothing, unwritten_bytes_max=3000).run()
    with broken("unwritten-bound"), pytest.raises(Violation, match="memory is bounded"):
        Scenario(_a_disk_that_takes_nothing, unwritten_bytes_max=3000).run()


def test_a_lone_node_whose_disk_hangs_is_not_ready_until_it_answers() -> None:
    async def script(world: Scenario) -> None:
        await world.all_start()
        engine = await world.leader()
        await world.pushed("n1", 1)
        term = engine.status().term
        disk = world.hosts["n1"].disks["log"]
        disk.hang()
        pushing = world.loop.create_task(world.pushed("n1", 1))
        await world.until("it says so", lambda: engine.status().ready_reason.endswith("the disk does not answer"))
        await asyncio.sleep(10)
        assert (engine.is_leader, engine.status().term, engine.metrics.disk_hangs) == (True, term, 1)
        assert engine.status().write_failed_since_ms is not None
        disk.answer()
        await pushing
        await world.until("it is ready", lambda: engine.status().ready)
        assert engine.status().write_failed_since_ms is None

    Scenario(script, nodes=1).run()


async def _a_leader_whose_disk_hangs(world: Scenario) -> None:
    await world.all_start()
    leader = await world.leader()
    gone, other = (name for name in world.founders if name != leader.node_id)
    world.crash(gone)
    term = leader.status().term
    disk = world.hosts[leader.node_id].disks["log"]
    disk.hang()
    pushing = world.loop.create_task(world.pushed(other, 1))
    await world.until("it says so", lambda: not leader.status().ready)
    await asyncio.sleep(5)
    assert (leader.is_leader, leader.status().term) == (True, term)
    # With a third one a majority can be formed again: now it makes room.
    await world.start(gone)
    await world.until("another leads", lambda: (world.leading() or leader) is not leader)
    await pushing
    disk.answer()
    await world.until("it is ready", lambda: leader.status().ready)


def test_a_leader_whose_disk_hangs_stays_where_nobody_could_take_over_and_makes_room_where_somebody_can() -> None:
    Scenario(_a_leader_whose_disk_hangs).run()
    with broken("hung-disk"), pytest.raises(Violation):
        Scenario(_a_leader_whose_disk_hangs).run()


CUTS = {"from the leader": (True, False), "to the leader": (False, True), "both ways": (True, True)}


def cut_from_the_leader(world: Scenario, leader: str, name: str, ways: tuple[bool, bool]) -> None:
    if ways[0]:
        world.network.cut(leader, name)
    if ways[1]:
        world.network.cut(name, leader)


async def asked(world: Scenario, name: str, job: str) -> str:
    """A strict read at a node."""
    host = world.hosts[name]
    assert host.node is not None
    asking = host.node.ask(GetJobState(job))
    state: str = await world.loop.create_task(asking, context=host.process.context())
    return state


@pytest.mark.parametrize("nodes", [3, 5])
@pytest.mark.parametrize("ways", CUTS.values(), ids=CUTS)
def test_a_node_whose_link_to_the_leader_alone_is_cut_serves_through_another(
    ways: tuple[bool, bool], nodes: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="quorumq.peers")

    async def script(world: Scenario) -> None:
        await world.all_start()
        leader = (await world.leader()).node_id
        name = next(each for each in world.founders if each != leader)
        await world.pushed(name, 3)
        term = world.engine(leader).status().term
        cut_from_the_leader(world, leader, name, ways)
        # Nothing is answered 503 while the cut is being noticed, and nothing waits afterwards.
        began = world.loop.now
        await world.pushed(name)
        assert world.loop.now - began < 8
        while world.loop.now < began + 60:
            before = world.loop.now
            await world.pushed(name)
            assert await asked(world, name, f"j{world._jobs}") == "waiting"
            await world.pushed(leader)
            assert await asked(world, name, f"j{world._jobs}") == "waiting"
            assert world.loop.now - before < 2.5
            await asyncio.sleep(1)
        seen = {member.id: member for member in world.engine(name).status().members}
        assert (seen[leader].connected, world.engine(name).status().ready) == (True, True)
        assert seen[leader].via not in (None, leader, name)
        assert world.engine(leader).is_leader and world.engine(leader).status().term == term
        assert world.engine(name).metrics.peers_by_relay == 1
        assert sum(world.engine(each).metrics.relayed for each in world.founders) > 20
        world.join_again(name, leader)
        await world.until("it is reached directly", lambda: world.engine(name)._routes.via(leader) is None)
        await world.pushed(name, 3)

    Scenario(script, nodes=nodes).run()
    told = [record.getMessage() for record in caplog.records if record.name == "quorumq.peers"]
    # Each end says so once, and so does the one that passes things on.
    assert sum("cannot be reached directly" in text for text in told) == 2
    assert sum("is reached directly again" in text for text in told) == 2
    assert 1 <= sum("passes on what" in text for text in told) <= 2


def test_the_member_that_passes_things_on_may_go() -> None:
    async def script(world: Scenario) -> None:
        await world.all_start()
        leader = (await world.leader()).node_id
        name = next(each for each in world.founders if each != leader)
        world.cut_off(name, leader)
        await world.pushed(name, 2)
        for _ in range(2):
            through = world.engine(name)._routes.via(leader)
            assert through is not None
            world.crash(through)
            await world.pushed(name, 2)
            await world.start(through)
            await world.pushed(name)
        world.join_again(name, leader)

    Scenario(script, nodes=5).run()


@pytest.mark.parametrize("ways", CUTS.values(), ids=CUTS)
def test_without_a_way_round_such_a_node_serves_nobody(ways: tuple[bool, bool]) -> None:
    async def script(world: Scenario) -> None:
        await world.all_start()
        leader = (await world.leader()).node_id
        name = next(each for each in world.founders if each != leader)
        await world.pushed(name, 3)
        cut_from_the_leader(world, leader, name, ways)
        await asyncio.sleep(5)
        with pytest.raises(Unavailable):
            await world.pushed(name)
        world.join_again(name, leader)

    with broken("relay"):
        Scenario(script).run()


def test_what_was_handed_to_a_route_may_have_been_applied_and_what_was_not_cannot() -> None:
    async def script(world: Scenario) -> None:
        await world.all_start()
        leader = (await world.leader()).node_id
        name, through = (each for each in world.founders if each != leader)
        world.cut_off(name, leader)
        await world.pushed(name, 2)
        assert world.engine(name)._routes.via(leader) == through
        pushing = world.pushing(name)
        await asyncio.sleep(0.0005)
        for gone in (leader, through):
            world.crash(gone)
        with pytest.raises(OutcomeUnknown):
            await pushing
        with pytest.raises(NotApplied):
            await world.pushed(name)
        world.join_again(name, leader)

    Scenario(script).run()


def test_what_an_earlier_process_sent_by_a_route_is_not_believed() -> None:
    """A wiped node is reached directly, and then comes, late, what it sent round the cut before: that it holds everything."""

    async def script(world: Scenario) -> None:
        await world.all_start()
        leader = await world.leader()
        name, through = (each for each in world.founders if each != leader.node_id)
        await world.pushed(name, 3)
        await world.until("all are whole", lambda: all(world._whole(world.hosts[each]) for each in world.founders))
        world.cut_off(name, leader.node_id)
        await world.until("it has a way", lambda: world.engine(name)._routes.via(leader.node_id))
        await world.pushed(name)
        raft = leader._raft
        late = {
            "type": "relay", "to": leader.node_id, "from": name, "token": leader._routes._granted[name],
            "message": {
                "type": "next_node_idx", "term": raft.term, "next_node_idx": raft.journal.last_index + 1,
                "reset": False, "success": True, "whole": True,
            },
        }  # fmt: skip
        world.lose_disk(name)
        world.join_again(name, leader.node_id)
        world.network.cut(leader.node_id, name)
        await world.start(name)
        await world.until("it says that it lost its disk", lambda: name in leader._probations.doubted)
        assert not raft.counts(name)
        world.hosts[leader.node_id].process.run(leader.message_received, through, late)
        counts = raft.counts(name)
        world.join_again(name, leader.node_id)
        if counts:
            raise Violation("the word of a wiped node counts for nothing", name)

    Scenario(script).run()
    with broken("relay-token"), pytest.raises(Violation, match="wiped node counts for nothing"):
        Scenario(script).run()

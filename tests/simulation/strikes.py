"""Faults aimed at the moment that matters: just after an append, between a write and its sync, just after a vote.

Each waits for its moment, strikes, and sees to it that what was cut comes together again. One whose moment does not come does nothing.
What they do by chance, tests/simulation/test_scenarios.py does step by step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from quorumq.cluster.engine import Engine

if TYPE_CHECKING:
    from tests.simulation.world import World

_MOMENT_S = 0.3


def _leader(world: World) -> Engine | None:
    """The leader with the highest term, when there is one that can commit."""
    leaders = [engine for engine in world.engines() if engine._raft.committed_own_term]
    return max(leaders, key=lambda engine: engine._raft.term, default=None)


async def _moment(condition: Callable[[], object], seconds: float = _MOMENT_S) -> bool:
    """Wait for it, look every millisecond; returns whether it came."""
    for _ in range(int(seconds * 1000)):
        if condition():
            return True
        await asyncio.sleep(0.001)
    return False


def _others(world: World, name: str) -> list[str]:
    return [each for each in world.members() if each != name]


def _cut_off(world: World, name: str, heals_s: tuple[float, float] = (1.0, 4.0)) -> None:
    for other in sorted(set(world.hosts) - {name}):
        world.apart(name, other, world.rng.uniform(*heals_s))


async def cut_after_append(world: World) -> None:
    """The leader has a new entry in its log that nobody else has, and is cut off; sometimes it crashes as well."""
    leader = _leader(world)
    if leader is None:
        return
    log, name, at = leader._log, leader.node_id, leader._log.last_index
    if not await _moment(lambda: log.last_index > max(at, leader._raft.commit_index)):
        return
    _cut_off(world, name)
    world.say(f"{name} is cut off with entry {log.last_index}, {leader._raft.commit_index} being committed")
    host = world.hosts[name]
    if world.rng.random() < 0.5 and host.engine is leader:
        await asyncio.sleep(world.rng.choice((0.0, 0.3)))
        world.crash(name)
        world.later(world.rng.uniform(0.05, 2.0), name)


async def crash_after_answer(world: World) -> None:
    """Somebody was told that a write is done, and the power fails on a majority."""
    leader = _leader(world)
    if leader is None:
        return
    answered = world.inside.answered
    if not await _moment(lambda: world.inside.answered > answered):
        return
    victims = [leader.node_id, *_others(world, leader.node_id)][: world.rng.choice((1, 2, 2, 3))]
    world.say(f"power fails on {', '.join(victims)}")
    for name in victims:
        world.crash(name)
        world.later(world.rng.uniform(0.05, 3.0), name)


async def crash_before_sync(world: World) -> None:
    """A follower and the leader have written an entry, and the power fails before the disk has it."""
    leader = _leader(world)
    if leader is None or not _others(world, leader.node_id):
        return
    other = world.rng.choice(_others(world, leader.node_id))
    engine = world.hosts[other].engine
    if engine is None:
        return
    for name in (other, leader.node_id):
        disk = world.hosts[name].disks["log"]
        before, disk.latency = disk.latency, (0.05, 0.2)
        world.loop.call_later(1.0, setattr, disk, "latency", before)
    if not await _moment(lambda: engine._log.durable_index < engine._log.last_index == leader._log.last_index, 1.0):
        return
    await asyncio.sleep(world.rng.uniform(0.0, 0.08))
    for name in (other, leader.node_id):
        world.crash(name)
        world.later(world.rng.uniform(0.05, 1.0), name)


async def read_at_the_deposed(world: World) -> None:
    """A leader is cut off and does not know that another one leads; what that one was told is read at the old one."""
    old = _leader(world)
    if old is None:
        return
    for other in _others(world, old.node_id):
        world.network.reset(other, old.node_id)
        world.network.reset(old.node_id, other)
    _cut_off(world, old.node_id, (1.5, 4.0))
    term, answered = old._raft.term, world.inside.answered

    def moved_on() -> bool:
        new = _leader(world)
        return new is not None and new._raft.term > term and world.inside.answered > answered

    if not await _moment(moved_on, 2.0):
        return
    world.say(f"{old.node_id} is asked, and was deposed: {old.is_leader}")
    # One that confirms any leader is asked as well: what it hears from the old one gets through again.
    if world.rng.random() < 0.5:
        for other in _others(world, old.node_id):
            new = _leader(world)
            if new is None or other != new.node_id:
                world.heal_pair(old.node_id, other)
    host = world.hosts[old.node_id]
    for _ in range(10):
        if host.node is None:
            return
        world.spawn(host, world.read(host.node, world.rng))
        await asyncio.sleep(0.02)


async def wipe_after_vote(world: World) -> None:
    """A node has voted, and loses its disk; the one that it elected is cut off, and others ask for its vote."""
    old = _leader(world)
    if old is None or not world.may_lose(old.node_id):
        return
    cast = len(world.inside.cast)
    for other in _others(world, old.node_id):
        world.network.reset(other, old.node_id)
        world.network.reset(old.node_id, other)
    if not await _moment(lambda: len(world.inside.cast) > cast, 1.0):
        return
    voter, candidate, term = world.inside.cast[-1]
    await asyncio.sleep(world.rng.choice((0.0, 0.001, 0.05)))
    if voter == candidate or not world.may_lose(voter):
        return
    world.say(f"{voter} voted for {candidate} in {term}")
    world.crash(voter, wipe=True)
    world.has_lost(voter)
    if world.rng.random() < 0.7:
        world.apart(candidate, voter, world.rng.uniform(0.5, 4.0))
        for other in _others(world, candidate):
            world.apart(candidate, other, world.rng.uniform(0.5, 4.0))
    await asyncio.sleep(world.rng.uniform(0.0, 0.1))
    await world.start_checked(voter)
    # Whoever stood in the same term, and had no answer, asks again.
    for _ in range(60):
        await asyncio.sleep(0.1)
        engine = world.hosts[voter].engine
        if engine is None or engine._raft.term > term:
            return
        if engine._raft.may_vote and engine._raft.term == term:
            _ask_for_vote(world, term, voter, candidate)
            return


def _ask_for_vote(world: World, term: int, voter: str, candidate: str) -> None:
    engine = world.hosts[voter].engine
    third = next((each for each in _others(world, voter) if each != candidate), None)
    links = world.network.nodes.get(third or "")
    if engine is None or links is None:
        return
    message = {
        "type": "request_vote",
        "term": term,
        "last_log_index": engine._log.last_index + 1,
        "last_log_term": term,
        "transfer": True,
    }
    links.process.run(links.send, voter, message)


async def strangers_vote(world: World) -> None:
    """A machine that is no member answers whoever stands for election, and acknowledges whatever is sent."""
    outside = next((each for each in sorted(world.hosts) if each not in world.members()), None)
    old = _leader(world)
    if outside is None or old is None or any(outside in each._raft.membership.seats for each in world.engines()):
        return

    def answer(name: str, peer: str, message: dict[str, object]) -> None:
        links = world.network.nodes.get(name)
        if message["type"] == "request_vote" and links is not None:
            vote = {"type": "response_vote", "term": message["term"]}
            links.process.run(links.listener.message_received, outside, vote)

    world.network.overheard = answer
    world.loop.call_later(3.0, setattr, world.network, "overheard", None)
    _cut_off(world, old.node_id, (0.5, 2.0))
    await asyncio.sleep(1.5)


async def changes_at_once(world: World) -> None:
    """A new leader is asked for changes of the membership before it has committed anything, and then for two at once."""
    old = _leader(world)
    if old is None:
        return
    seats = old._raft.membership.seats
    added = next((name for name in sorted(world.hosts) if name not in seats and not world.hosts[name].up), None)
    if added is None or added in world.members() or len(seats) > len(world.founders):
        return
    await world.start_empty(added)
    for other in _others(world, old.node_id):
        world.network.reset(other, old.node_id)
        world.network.reset(old.node_id, other)
    term = old._raft.term
    _cut_off(world, old.node_id, (0.5, 2.0))

    def fresh() -> Engine | None:
        return next((each for each in world.engines() if each.is_leader and each._raft.term > term), None)

    # Between its election and the first answer of a follower a leader has committed nothing.
    if not await _moment(fresh, 2.0):
        return
    new = fresh()
    assert new is not None
    for _ in range(8):
        if world.hosts[new.node_id].engine is new:
            action = "remove" if added in new._raft.membership.seats else "add"
            world.spawn(world.hosts[new.node_id], world.change(new, action, added))
        await asyncio.sleep(world.rng.choice((0.001, 0.002, 0.02)))


async def hang_the_leader(world: World) -> None:
    """The leader's disk hangs while all else is well."""
    leader = _leader(world)
    if leader is None:
        return
    disk = world.hosts[leader.node_id].disks["log"]
    disk.hang()
    world.say(f"the disk of {leader.node_id} hangs")
    await asyncio.sleep(7.0)
    disk.answer()


async def hang_most(world: World) -> None:
    """The disks of a majority hang, and whoever leads loses its connections again and again."""
    members = world.members()
    hung = world.rng.sample(members, len(members) // 2 + 1)
    for name in hung:
        for disk in world.hosts[name].disks.values():
            disk.hang()
    world.say(f"the disks of {', '.join(hung)} hang, and connections break")
    for _ in range(16):
        await asyncio.sleep(0.5)
        for engine in world.engines():
            for other in _others(world, engine.node_id) if engine.is_leader else ():
                world.network.reset(engine.node_id, other)
                world.network.reset(other, engine.node_id)
    for name in hung:
        for disk in world.hosts[name].disks.values():
            disk.answer()


async def fill_a_disk(world: World) -> None:
    """A follower's disk takes nothing for long, and the others go on."""
    leader = _leader(world)
    others = [each for each in _others(world, leader.node_id) if world.hosts[each].up] if leader is not None else []
    if not others:
        return
    disk = world.hosts[world.rng.choice(others)].disks["log"]
    if world.rng.random() < 0.5:
        disk.fail_writes = 28
    else:
        disk.latency = (4.0, 4.0)
    await asyncio.sleep(6.0)
    disk.fail_writes, disk.latency = None, world.profile.disk_s


async def _deposed_unaware(world: World) -> tuple[str, str, str] | None:
    """One that was the leader and does not know better, the one that leads now, and the third, which elected it."""
    old = _leader(world)
    others = _others(world, old.node_id) if old is not None else []
    if old is None or len(others) != 2 or not world.may_lose(others[0]):
        return None
    name = old.node_id
    for other in others:
        world.network.reset(other, name)
        world.network.reset(name, other)
    _cut_off(world, name, (9.0, 9.0))

    def taken_over() -> Engine | None:
        return next((each for each in world.engines() if each is not old and each._raft.committed_own_term), None)

    if not await _moment(taken_over, 3.0):
        return None
    new = taken_over()
    assert new is not None
    third = next(each for each in others if each != new.node_id)
    return (name, new.node_id, third) if old.is_leader and world.may_lose(third) else None


async def _answered(world: World, seconds: float = 1.0) -> bool:
    answered = world.inside.answered
    return await _moment(lambda: world.inside.answered > answered, seconds)


async def _lose_and_start(world: World, name: str) -> Engine | None:
    world.crash(name, wipe=True)
    world.has_lost(name)
    await world.start_checked(name)
    return world.hosts[name].engine


async def wipe_the_elector(world: World) -> None:
    """The wiped node forgot that it elected another leader, and all it hears is the one that was deposed."""
    found = await _deposed_unaware(world)
    if found is None:
        return
    old, new, third = found
    if not await _answered(world):
        return
    for other in (old, third):
        world.apart(new, other, 5.0)
    world.say(f"{third} forgets that it elected {new}, and hears {old}")
    held = await _lose_and_start(world, third)
    world.heal_pair(old, third)
    if held is None:
        return
    # Somebody reads and writes at the deposed one meanwhile.
    for _ in range(20):
        await asyncio.sleep(0.1)
        host = world.hosts[old]
        if host.node is None:
            return
        world.spawn(host, world.read(host.node, world.rng))


async def tell_terms_and_no_more(world: World) -> None:
    """The wiped node knows every member's term, and a deposed leader confirms that it has all that this one committed."""
    found = await _deposed_unaware(world)
    if found is None:
        return
    old, new, third = found
    if not await _answered(world):
        return
    links = world.network.nodes[new]
    send = links.send
    # That there is a later term is all that the present leader gets to say.
    links.send = lambda peer, message: message["type"] != "present" or send(peer, message)  # type: ignore[method-assign]
    world.say(f"{third} is told its term by {new}, and follows {old}")
    held = await _lose_and_start(world, third)
    world.heal_pair(old, third)
    await asyncio.sleep(2.0)
    host = world.hosts[new]
    if held is not None and host.up:
        world.crash(new)
        world.heal_pair(old, third)
        world.later(3.0, new)
        await asyncio.sleep(3.0)
    elif world.network.nodes.get(new) is links:
        links.send = send  # type: ignore[method-assign]


async def crash_at_the_end_of_probation(world: World) -> None:
    """A wiped node has all that was committed again, and loses power before any of it is on its disk."""
    leader = _leader(world)
    others = _others(world, leader.node_id) if leader is not None else []
    if leader is None or len(others) != 2 or not world.may_lose(others[0]):
        return
    behind, third = others
    world.apart(leader.node_id, behind, 9.0)
    if not await _answered(world) or not world.may_lose(third):
        return
    engine = await _lose_and_start(world, third)
    if engine is None:
        return
    disk = world.hosts[third].disks["log"]
    disk.latency = (0.6, 1.5)
    world.say(f"{third} catches up in memory")
    ended = await _moment(lambda: engine._probations.probation is None or world.hosts[third].engine is not engine, 4.0)
    if world.hosts[third].engine is engine and (ended or engine._log.durable < engine._log.appended):
        world.crash(third)
        world.crash(leader.node_id)
        disk.latency = world.profile.disk_s
        world.heal_pair(leader.node_id, behind)
        await world.start_checked(third)
        world.later(4.0, leader.node_id)
        await asyncio.sleep(4.0)
    disk.latency = world.profile.disk_s


async def _two_terms(world: World, writes: int) -> tuple[Engine, Engine, str] | None:
    """A leader that is cut off writes on, and another one is elected; returns the two, and the third node."""
    old = _leader(world)
    others = _others(world, old.node_id) if old is not None else []
    if old is None or len(others) != 2:
        return None
    name, host = old.node_id, world.hosts[old.node_id]
    for other in others:
        world.network.reset(other, name)
        world.network.reset(name, other)
    _cut_off(world, name, (4.0, 4.0))
    for _ in range(writes):
        if host.node is not None:
            world.spawn(host, world.push(host.node, world.rng))
        await asyncio.sleep(0.01)

    def taken_over() -> Engine | None:
        return next((each for each in world.engines() if each is not old and each._raft.committed_own_term), None)

    if not await _moment(taken_over, 2.0):
        return None
    new = taken_over()
    assert new is not None
    return old, new, next(each for each in others if each != new.node_id)


async def write_in_two_terms(world: World) -> None:
    """A deposed leader holds entries that contradict those of the next one, and gets a snapshot that ends among them."""
    leader = _leader(world)
    others = [world.hosts[name] for name in _others(world, leader.node_id)] if leader is not None else []
    # Clients write at the deposed one alone, so that the snapshot of the next one ends before that log does.
    for host in others:
        host.shunned = True
    found = await _two_terms(world, 4)
    if found is not None:
        old, new, _ = found
        index = new._snapshots.index
        if world.hosts[new.node_id].engine is new:
            world.spawn(world.hosts[new.node_id], world.snapshot(new))
        await _moment(lambda: new._snapshots.index > index, 1.0)
        for host in others:
            world.heal_pair(old.node_id, host.name)
    for host in others:
        host.shunned = False
    await asyncio.sleep(1.0)


async def leave_two_that_contradict(world: World) -> None:
    """Of three there are left a leader and one whose log contradicts its own, and neither goes on without the other."""
    found = await _two_terms(world, 5)
    if found is None:
        return
    old, new, third = found
    # What it is sent begins with a contradiction and goes on behind the end of its log.
    await _moment(lambda: new._log.last_index > old._log.last_index + 4, 1.5)
    world.crash(third)
    world.later(12.0, third)
    host = world.hosts[new.node_id]
    for _ in range(3):
        if host.node is not None:
            world.spawn(host, world.push(host.node, world.rng))
        await asyncio.sleep(0.05)
    world.heal_pair(old.node_id, new.node_id)
    await asyncio.sleep(11.0)


async def snapshot_in_an_election(world: World) -> None:
    """Somebody asks for an image while the term has risen and nothing of it has been applied yet."""
    old = _leader(world)
    if old is None:
        return
    world.network.delay, before = (lambda rng: rng.uniform(0.01, 0.03)), world.network.delay
    for other in _others(world, old.node_id):
        world.network.reset(other, old.node_id)
        world.network.reset(old.node_id, other)
    _cut_off(world, old.node_id, (0.5, 1.5))

    def between() -> Engine | None:
        return next(
            (each for each in world.engines() if each._raft.term != each._log.term_at(each.applied_index)), None
        )

    if await _moment(between, 1.5):
        engine = between()
        assert engine is not None
        world.spawn(world.hosts[engine.node_id], world.snapshot(engine))
    await asyncio.sleep(0.5)
    world.network.delay = before


async def lose_what_is_under_way(world: World) -> None:
    """On a long way the leader's connection breaks with messages on it: what follows arrives without them, and asks for them again."""
    leader = _leader(world)
    others = [each for each in _others(world, leader.node_id) if world.hosts[each].up] if leader is not None else []
    if leader is None or not others:
        return
    name, other, network = leader.node_id, world.rng.choice(others), world.network
    network.delay = lambda rng: rng.uniform(0.02, 0.06)
    world.loop.call_later(2.0, setattr, network, "delay", world.profile.delay)
    for _ in range(8):
        follower = world.hosts[other].engine
        links = world.network.nodes.get(name)
        if follower is None or links is None or world.hosts[name].engine is not leader:
            return
        if await _moment(lambda: leader._log.last_index > follower._log.last_index, 0.1):  # noqa: B023 awaited here
            world.network.reset(name, other)
            links.process.run(links.dial, other)
        await asyncio.sleep(world.rng.uniform(0.0, 0.05))


async def lead_with_a_wrong_clock(world: World) -> None:
    """All start anew, none of them knows the time of the log, and the one whose wall clock is ahead is among the first two."""
    members = world.members()
    name = next((each for each in sorted(world.wrong_clocks) if each in members), world.rng.choice(members or [""]))
    if len(members) < 3:
        return
    for other in sorted(world.hosts):
        world.set_clock(other, 3_600_000 if other == name else 0, 0.0)
    first, *late = world.rng.sample(_others(world, name), len(members) - 1)
    for each in world.up():
        world.crash(each)
        if each in late:
            world.later(world.rng.uniform(1.0, 3.0), each)
    for each in (name, first):
        await world.start_checked(each)
    await asyncio.sleep(4.0)
    world.set_clock(name, 0, 0.0)


STRIKES: dict[str, Callable[[World], Awaitable[None]]] = {
    "cut_after_append": cut_after_append,
    "crash_after_answer": crash_after_answer,
    "crash_before_sync": crash_before_sync,
    "read_at_the_deposed": read_at_the_deposed,
    "wipe_after_vote": wipe_after_vote,
    "strangers_vote": strangers_vote,
    "changes_at_once": changes_at_once,
    "hang_the_leader": hang_the_leader,
    "hang_most": hang_most,
    "fill_a_disk": fill_a_disk,
    "wipe_the_elector": wipe_the_elector,
    "tell_terms_and_no_more": tell_terms_and_no_more,
    "crash_at_the_end_of_probation": crash_at_the_end_of_probation,
    "write_in_two_terms": write_in_two_terms,
    "leave_two_that_contradict": leave_two_that_contradict,
    "snapshot_in_an_election": snapshot_in_an_election,
    "lose_what_is_under_way": lose_what_is_under_way,
    "lead_with_a_wrong_clock": lead_with_a_wrong_clock,
}

"""Spreading registrations over nodes: who counts as up, what moves, and what the leader does about it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorumq.node.batching import Batcher
from quorumq.node.leader import assignment
from quorumq.node.leader.assignment import (
    BACK_MAX_S,
    BACK_S,
    LOST_S,
    STEADY_S,
    STUCK_S,
    AssignmentDuty,
    NodePresence,
    moves,
)
from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.pushers import JoinPushing, LeavePushing, PutPusher, RemovePusher
from quorumq.node.machine.state.pusher import Pusher, Pushers
from tests.support.local import LocalEngine
from tests.support.waiting import after_entries


def some(nodes: list[str | None]) -> Pushers:
    """Make registrations that these nodes serve."""
    pushers = Pushers()
    for number, node in enumerate(nodes):
        pushers.put(Pusher(f"q-{number}", "http://h/", "POST", (), 3, 1, None, None, None, None, 0, number, node))
    return pushers


def after(pushers: Pushers, moved: dict[str, list[str]]) -> Counter[str | None]:
    for node, queues in moved.items():
        for name in queues:
            assert pushers.by_queue[name].node != node
            pushers.assign(pushers.by_queue[name], node)
    return Counter(pusher.node for pusher in pushers.by_queue.values())


# -- What moves


def test_new_registrations_go_to_those_with_the_fewest() -> None:
    assert after(some([None] * 200), moves(some([None] * 200), ["n1", "n2", "n3"])) == {"n1": 67, "n2": 67, "n3": 66}
    assert moves(some(["n1", "n1", None]), ["n1", "n2"]) == {"n2": ["q-2"]}


def test_those_of_a_lost_node_go_to_the_others_and_no_other_moves() -> None:
    pushers = some(["n1", "n2", "n3"] * 10)
    moved = moves(pushers, ["n1", "n3"])
    assert sorted(name for names in moved.values() for name in names) == sorted(
        pusher.queue for pusher in pushers.of_node("n2")
    )
    assert after(pushers, moved) == {"n1": 15, "n3": 15}


def test_a_node_that_is_back_gets_its_share() -> None:
    pushers = some(["n1", "n3"] * 15)
    assert after(pushers, moves(pushers, ["n1", "n2", "n3"])) == {"n1": 10, "n2": 10, "n3": 10}


def test_small_differences_move_nothing() -> None:
    assert moves(some(["n1"] * 12 + ["n2"] * 10), ["n1", "n2"]) == {}
    assert moves(some(["n1"] * 2 + ["n2"]), ["n1", "n2"]) == {}
    assert moves(some([]), ["n1"]) == {}


def test_without_anybody_there_everything_stays() -> None:
    assert moves(some(["n1", None]), []) == {}


@given(
    st.lists(st.sampled_from([None, "n1", "n2", "n3", "n4"]), max_size=60),
    st.sets(st.sampled_from(["n1", "n2", "n3", "n4", "n5"]), min_size=1),
)
def test_afterwards_all_are_served_and_nothing_is_left_to_do(nodes: list[str | None], up: set[str]) -> None:
    pushers = some(nodes)
    counts = after(pushers, moves(pushers, up))
    assert set(counts) <= up
    if nodes:
        loads = [counts[node] for node in up]
        assert max(loads) - min(loads) <= max(1, len(nodes) // len(up) // 4)
    assert moves(pushers, up) == {}


def test_moves_are_bounded() -> None:
    pushers = some([None] * 30)
    assert sum(map(len, moves(pushers, ["n1", "n2"], limit=7).values())) == 7


# -- Who is up


def test_a_short_absence_is_none() -> None:
    seen = NodePresence(True, 0.0)
    assert seen.look(False, 10.0)
    assert seen.look(False, 10.0 + LOST_S / 2)
    assert seen.look(True, 10.0 + LOST_S)
    assert seen.losses == 0


def test_a_node_that_was_lost_comes_back_later_each_time() -> None:
    now, seen = 0.0, NodePresence(True, 0.0)
    for wait_s in (BACK_S, BACK_S * 2, BACK_S * 4):
        seen.look(False, now)
        now += LOST_S + 0.001
        assert not seen.look(False, now)
        seen.look(True, now)
        assert not seen.look(True, now + wait_s - 0.01)
        now += wait_s + 0.001
        assert seen.look(True, now)
    for _ in range(20):
        seen.look(False, now)
        seen.look(False, now + LOST_S + 0.001)
        now += 1.0
    seen.look(True, now)
    assert not seen.look(True, now + BACK_S * 4)
    assert seen.look(True, now + BACK_MAX_S)
    assert seen.look(True, now + BACK_MAX_S + STEADY_S) and seen.losses == 0


def test_a_leader_that_begins_gives_absent_nodes_a_moment() -> None:
    seen = NodePresence(False, 0.0)
    assert seen.look(False, LOST_S / 2)
    assert not seen.look(False, LOST_S)


def test_a_node_whose_log_stands_still_is_as_good_as_gone() -> None:
    seen = NodePresence(True, 0.0)
    assert not seen.is_stuck(7, 0, 5.0)
    # There is something to take from here on.
    assert not seen.is_stuck(7, 1, 5.0 + STUCK_S / 2)
    assert seen.is_stuck(7, 30, 5.01 + STUCK_S)
    # It goes on, however far behind; or nothing is known.
    assert not seen.is_stuck(8, 30, 6.0 + STUCK_S)
    assert not seen.is_stuck(None, None, 60.0)


# -- The leader


class Members(LocalEngine):
    """An engine that sees the members that it is told to see."""

    there: dict[str, bool] = {"n1": True, "n2": True, "n3": True}
    # Those that are there and take no entries.
    stuck: frozenset[str] = frozenset()

    def status(self) -> Any:
        status = super().status()
        mine = status.members[0]
        members = [
            msgspec.structs.replace(
                mine, id=node, connected=connected, lag=9 if node in self.stuck else 0, match_index=1
            )
            for node, connected in self.there.items()
        ]
        return msgspec.structs.replace(status, members=members)


class Leader:
    def __init__(self) -> None:
        self.machine = Machine()
        self.engine = Members(self.machine)
        self.batcher = Batcher(self.engine)
        self.assignment_duty = AssignmentDuty(self.engine, self.machine, self.batcher, self.engine.clock)

    async def do(self, *operations: Operation) -> None:
        await asyncio.gather(*(self.batcher.add(one, lambda reply: reply, 5) for one in operations))

    def served(self) -> Counter[str | None]:
        return Counter(pusher.node for pusher in self.machine.state.pushers.by_queue.values())

    async def until(self, wanted: dict[str | None, int]) -> None:
        await after_entries(self.machine, lambda: self.served() == wanted)


async def test_the_leader_spreads_loses_and_takes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LOOK_S", 0.01), ("LOST_S", 0.02), ("STUCK_S", 0.02), ("BACK_S", 0.02)):
        monkeypatch.setattr(assignment, name, value)
    leader = Leader()
    leader.engine.there = {"n1": True, "n2": True, "n3": True}
    await leader.engine.start()
    leader.assignment_duty.start()
    await leader.do(*(JoinPushing(node) for node in ("n1", "n2", "n3")))
    await leader.do(*(PutPusher(f"queue-{n}", "http://127.0.0.1/") for n in range(30)))
    await leader.until({"n1": 10, "n2": 10, "n3": 10})
    leader.engine.there["n2"] = False
    await leader.until({"n1": 15, "n3": 15})
    leader.engine.there["n2"] = True
    await leader.until({"n1": 10, "n2": 10, "n3": 10})
    leader.engine.stuck = frozenset({"n2"})
    await leader.until({"n1": 15, "n3": 15})
    leader.engine.stuck = frozenset()
    await leader.until({"n1": 10, "n2": 10, "n3": 10})
    # One that leaves in order is served by others at once, one that is no member any more is forgotten.
    await leader.do(LeavePushing("n3"))
    await leader.until({"n1": 15, "n2": 15})
    del leader.engine.there["n2"]
    await leader.until({"n1": 30})
    assert list(leader.machine.state.pushers.nodes) == ["n1"]
    # Who does not lead does nothing.
    leader.engine.become_leader(False)
    await leader.do(RemovePusher("queue-0"), PutPusher("another", "http://127.0.0.1/"))
    assert leader.served() == {"n1": 29, None: 1}
    leader.engine.become_leader(True)
    await leader.until({"n1": 30})
    leader.assignment_duty.stop()
    await leader.engine.stop()
    assert leader.machine.errors == 0

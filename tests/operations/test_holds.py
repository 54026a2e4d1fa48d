"""queue.get_hold's question: until when a hold or a spent window keeps a queue from giving out jobs."""

from __future__ import annotations

from quorumq.node.machine.operations.settings import GetHold, HoldQueue, SetWindow
from tests.support.world import START_MS, World


def test_a_hold_lasts_until_its_end() -> None:
    world = World()
    assert world.ask(GetHold("q")) == 0
    world.push()
    assert world.ask(GetHold("q")) == 0
    world.do(HoldQueue("q", 500))
    assert world.ask(GetHold("q")) == START_MS + 500
    assert world.pull() == []
    world.wait(500)
    assert world.ask(GetHold("q")) == 0
    assert len(world.pull()) == 1


def test_a_spent_window_holds_until_the_next_begins() -> None:
    world = World()
    world.do(SetWindow("q", 1, 1000))
    world.push()
    world.push()
    assert world.ask(GetHold("q")) == 0
    assert len(world.pull()) == 1
    assert world.ask(GetHold("q")) == START_MS + 1000
    world.do(HoldQueue("q", 5000))
    assert world.ask(GetHold("q")) == START_MS + 5000


def test_a_window_that_lets_nothing_through_has_no_end() -> None:
    world = World()
    world.do(SetWindow("q", 0, 1000))
    assert world.ask(GetHold("q")) == 0

"""Groups with limits of their own, and groups that are paused."""

from __future__ import annotations

import pytest

from quorumq.node.machine.operations import groups
from quorumq.node.machine.operations.groups import (
    CountGrouped,
    GetGroup,
    PauseGroup,
    ResumeGroup,
    SetGroupConcurrency,
    SetGroupRateLimit,
    SetUsualGroup,
)
from quorumq.node.machine.operations.queues import DrainQueue
from quorumq.node.machine.operations.runs import AckJob
from quorumq.node.machine.refusals import TooManyGroups
from quorumq.node.machine.state.group import GroupSettings
from quorumq.node.machine.state.limits import Window
from tests.support.world import World


def test_a_group_may_have_more_active_jobs(world: World) -> None:
    jobs = [world.push(group_id="g") for _ in range(4)]
    other = world.push(group_id="h")
    assert world.pull_ids("q", 9) == [jobs[0], other]
    world.woken.clear()
    assert world.do(SetGroupConcurrency("q", "g", 3)) is True
    assert world.woken == ["q"]
    assert world.do(SetGroupConcurrency("q", "g", 3)) is False
    assert world.pull_ids("q", 9) == jobs[1:3]
    shown = world.ask(GetGroup("q", "g"))
    assert (shown.waiting, shown.active, shown.settings) == (1, 3, GroupSettings(3))
    assert world.ask(CountGrouped("q")) == 1
    # Fewer again: those that are active go on, and no other starts before they are fewer.
    world.do(SetGroupConcurrency("q", "g"))
    for job in jobs[:2]:
        world.do(AckJob(job))
        assert world.pull_ids("q", 9) == []
    world.do(AckJob(jobs[2]))
    assert world.pull_ids("q", 9) == jobs[3:]


def test_ready_jobs_step_back_when_the_limit_falls(world: World) -> None:
    world.do(SetGroupConcurrency("q", "g", 3))
    jobs = [world.push(group_id="g") for _ in range(4)]
    world.do(SetGroupConcurrency("q", "g", 2))
    assert world.pull_ids("q", 9) == jobs[:2]
    world.do(SetGroupConcurrency("q", "g", 0))
    world.do(AckJob(jobs[0]))
    world.do(AckJob(jobs[1]))
    assert world.pull_ids("q", 9) == []
    assert world.ask(GetGroup("q", "g")).waiting == 2
    world.do(SetGroupConcurrency("q", "g", 1))
    assert world.pull_ids("q", 9) == jobs[2:3]


def test_a_paused_group_is_overtaken(world: World) -> None:
    assert world.do(PauseGroup("q", "g")) is True
    assert world.do(PauseGroup("q", "g")) is False
    first, second = world.push(group_id="g"), world.push(group_id="g")
    other = world.push()
    assert world.pull_ids("q", 9) == [other]
    assert world.ask(GetGroup("q", "g")).settings.paused
    assert world.do(ResumeGroup("q", "g")) is True
    assert world.do(ResumeGroup("q", "g")) is world.do(ResumeGroup("none", "g")) is False
    assert world.pull_ids("q", 9) == [first]
    # While one is active as well: it goes on, and may be given back.
    world.do(PauseGroup("q", "g"))
    world.do(AckJob(first))
    assert world.pull_ids("q", 9) == []
    world.do(DrainQueue("q"))
    assert world.state_of(second) == "unknown"
    assert world.ask(GetGroup("q", "g")).waiting == world.ask(CountGrouped("q")) == 0
    assert world.ask(CountGrouped("none")) == world.ask(GetGroup("none", "g")).active == 0


def test_settings_are_in_the_image(world: World) -> None:
    world.do(SetGroupConcurrency("q", "b", 2))
    world.do(PauseGroup("q", "a"))
    world.push(group_id="a")
    jobs = [world.push(group_id="b") for _ in range(3)]
    other = World()
    other.machine.restore(world.machine.image())
    other.now_ms = world.now_ms
    assert other.pull_ids("q", 9) == jobs[:2]
    assert other.machine.state.queues["q"].group_settings == {"a": GroupSettings(1, True), "b": GroupSettings(2)}


def test_settings_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "GROUPS_MAX", 1)
    world.do(PauseGroup("q", "a"))
    with pytest.raises(TooManyGroups):
        world.do(PauseGroup("q", "b"))
    # The usual settings need no room.
    world.do(SetGroupConcurrency("q", "b", 1))
    world.do(ResumeGroup("q", "a"))
    world.do(PauseGroup("q", "b"))


# -- What holds for groups without settings of their own -----------------------------------------------------------------


def test_what_holds_for_groups_holds_for_those_that_are_there_and_those_that_come(world: World) -> None:
    jobs = {name: [world.push(group_id=name) for _ in range(4)] for name in ("a", "own")}
    world.do(SetGroupConcurrency("q", "own", 2))
    assert len(world.pull_ids("q", 9)) == 3
    world.woken.clear()
    assert world.do(SetUsualGroup("q", 3)) is True
    assert world.woken == ["q"] and world.do(SetUsualGroup("q", 3)) is False
    assert world.pull_ids("q", 9) == jobs["a"][1:3]
    late = [world.push(group_id="late") for _ in range(4)]
    assert world.pull_ids("q", 9) == late[:3]
    # Fewer again: who is active goes on.
    assert world.do(SetUsualGroup("q")) is True
    assert world.machine.state.queues["q"].settings.groups is None
    for job in jobs["a"][:2]:
        world.do(AckJob(job))
    assert world.pull_ids("q", 9) == []
    world.do(AckJob(jobs["a"][2]))
    assert world.pull_ids("q", 9) == jobs["a"][3:]


def test_a_rate_that_holds_for_groups(world: World) -> None:
    world.do(SetGroupRateLimit("q", "own", 1, 500))
    world.do(SetUsualGroup("q", 10, 2, 1000))
    jobs = {name: [world.push(group_id=name) for _ in range(3)] for name in ("a", "b", "own")}
    assert sorted(world.pull_ids("q", 9)) == sorted([*jobs["a"][:2], *jobs["b"][:2], jobs["own"][0]])
    assert world.ask(GetGroup("q", "a")).in_force == GroupSettings(10, rate=Window(2, 1000))
    assert world.ask(GetGroup("q", "a")).settings == GroupSettings()
    world.wait(500)
    assert world.pull_ids("q", 9) == [jobs["own"][1]]
    world.wait(500)
    assert sorted(world.pull_ids("q", 9)) == sorted([jobs["a"][2], jobs["b"][2], jobs["own"][2]])
    # Nothing is left of it when it ends.
    world.do(SetUsualGroup("q", 10))
    assert world.machine.state.queues["q"].group_uses.keys() == {"own"}
    assert world.pull_ids("q", 9) == []
    more = [world.push(group_id="a") for _ in range(5)]
    assert world.pull_ids("q", 9) == more


def test_too_many_groups_to_be_looked_at_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "GROUPS_MAX", 2)
    for name in "abc":
        world.push(group_id=name)
    with pytest.raises(TooManyGroups):
        world.do(SetUsualGroup("q", 3))


def test_what_holds_for_groups_is_in_the_image_and_goes_with_the_queue(world: World) -> None:
    world.do(SetUsualGroup("q", 2, 5, 1000))
    for _ in range(3):
        world.push(group_id="g")
    world.pull("q", 1)
    other = World()
    other.machine = world.restored()
    assert other.pull_ids("q", 9) == world.pull_ids("q", 9) != []
    world.check()

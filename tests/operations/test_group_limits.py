"""Groups with a rate limit, and groups that are held: whichever way jobs are taken, no more start than may."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from quorumq.node.machine.operations import groups
from quorumq.node.machine.operations.clock import AdvanceClock
from quorumq.node.machine.operations.groups import (
    GetGroup,
    HoldGroup,
    ListLimitedGroups,
    PauseGroup,
    SetGroupConcurrency,
    SetGroupRateLimit,
)
from quorumq.node.machine.operations.jobs import CancelJob, MoveToWait, PushJobs
from quorumq.node.machine.operations.overview import GetLimits, GetPortrait
from quorumq.node.machine.operations.pushers import AssignPushers, JoinPushing, PullForPusher, PutPusher
from quorumq.node.machine.operations.queues import DrainQueue, ObliterateQueue
from quorumq.node.machine.operations.runs import AckJob, FailJob, FinishAndPull, PullJobs, ReleaseJobs
from quorumq.node.machine.refusals import TooManyGroups
from quorumq.node.machine.state import job_spec
from quorumq.node.machine.state.group import GroupUse
from quorumq.node.machine.state.group_limits import FIRED_MAX
from tests.support.world import World


def a_limited_group(world: World, most: int = 2, duration_ms: int = 1000, jobs: int = 6) -> list[str]:
    """Push jobs of a group, of which as many may be active as like, but only so many start in the window."""
    world.do(SetGroupConcurrency("q", "g", 100))
    assert world.do(SetGroupRateLimit("q", "g", most, duration_ms)) is True
    return [world.push(group_id="g") for _ in range(jobs)]


def finish_and_pull(world: World) -> list[str]:
    active = world.machine.state.queues["q"].active
    if not active:
        return world.pull_ids()
    finished = world.do(FinishAndPull(AckJob(next(iter(active))), PullJobs("q")))
    return [job.id for job in finished.next.jobs]


def pull_for_endpoint(world: World) -> list[str]:
    if "q" not in world.machine.state.pushers.by_queue:
        world.do(JoinPushing("n"))
        world.do(PutPusher("q", "https://example.com/", concurrency=50))
        world.do(AssignPushers({"n": ["q"]}))
    return [job.id for job in world.do(PullForPusher("q", "n", 1, 60_000, "t")).jobs]


WAYS: dict[str, Callable[[World], list[str]]] = {
    "one by one": lambda world: world.pull_ids(),
    "many at once": lambda world: world.pull_ids("q", 9),
    "with a lock": lambda world: world.pull_ids("q", 9, owner="w", token_seed="s", lock_ms=60_000),
    "as many as the owner may have": lambda world: world.pull_ids("q", 9, owner="w", token_seed="s", active_max=50),
    "when another ends": finish_and_pull,
    "for an endpoint": pull_for_endpoint,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_no_more_start_in_a_window_however_they_are_taken(way: Callable[[World], list[str]], world: World) -> None:
    jobs = a_limited_group(world)
    for window in range(3):
        taken = [job for _ in range(5) for job in way(world)]
        assert taken == jobs[2 * window : 2 * window + 2]
        world.now_ms += 999
        assert way(world) == []
        world.now_ms += 1
    assert world.state_of(jobs[-1]) in ("active", "completed")


def test_the_window_begins_with_the_first_start(world: World) -> None:
    jobs = a_limited_group(world)
    world.wait(700)
    assert world.pull_ids() == jobs[:1]
    world.wait(600)
    assert world.pull_ids("q", 9) == jobs[1:2]
    world.wait(399)
    assert world.pull_ids("q", 9) == []
    world.wait(1)
    assert world.pull_ids("q", 9) == jobs[2:4]


def test_others_overtake_and_the_end_wakes_whoever_waits(world: World) -> None:
    jobs = a_limited_group(world, 1, jobs=2)
    other, free = world.push(group_id="h"), world.push()
    assert world.pull_ids("q", 9) == [jobs[0], other, free]
    assert world.machine.state.next_due_ms(world.now_ms) == world.now_ms + 1000
    world.woken.clear()
    world.wait(999)
    assert world.woken == []
    world.now_ms += 1
    world.do(AdvanceClock())
    assert world.woken == ["q"]
    assert world.pull_ids("q", 9) == jobs[1:]


def test_a_limit_goes_and_comes_with_a_fresh_window(world: World) -> None:
    jobs = a_limited_group(world)
    assert world.pull_ids("q", 9) == jobs[:2]
    world.woken.clear()
    assert world.do(SetGroupRateLimit("q", "g", 2, 1000)) is False
    assert world.woken == ["q"]
    assert world.pull_ids("q", 9) == jobs[2:4]
    assert world.do(SetGroupRateLimit("q", "g", 0)) is True
    assert world.pull_ids("q", 9) == []
    assert world.do(SetGroupRateLimit("q", "g")) is True
    assert world.do(SetGroupRateLimit("q", "g")) is world.do(SetGroupRateLimit("none", "g")) is False
    assert "none" not in world.machine.state.queues
    assert world.pull_ids("q", 9) == jobs[4:]
    assert world.ask(GetGroup("q", "g")).settings.rate is None
    assert world.machine.state.queues["q"].group_uses == {}


def test_the_limit_holds_beside_concurrency_and_pause(world: World) -> None:
    jobs = a_limited_group(world, 3)
    world.do(SetGroupConcurrency("q", "g"))
    assert world.pull_ids("q", 9) == jobs[:1]
    world.do(AckJob(jobs[0]))
    assert world.pull_ids("q", 9) == jobs[1:2]
    world.do(PauseGroup("q", "g"))
    world.do(AckJob(jobs[1]))
    world.wait(5000)
    assert world.pull_ids("q", 9) == []


def test_what_comes_back_uses_up_the_window_only_when_it_ran(world: World) -> None:
    jobs = a_limited_group(world)
    first, second = world.pull("q", 2)
    world.do(ReleaseJobs([(first.id, first.fence)]))
    assert world.ask(GetGroup("q", "g")).use.started == 1
    assert world.pull_ids("q", 9) == jobs[:1]
    world.do(MoveToWait(second.id))
    world.do(FailJob(first.id))
    assert world.pull_ids("q", 9) == []
    # Given back after its window: nothing is owed for it.
    world.wait(1000)
    [again] = world.pull()
    world.wait(1000)
    taken = world.pull("q", 1)
    world.do(ReleaseJobs([(again.id, again.fence)]))
    assert world.ask(GetGroup("q", "g")).use.started == len(taken) == 1


def test_a_job_given_back_does_not_pass_those_before_it(world: World) -> None:
    a_limited_group(world, 1, jobs=1)
    [taken] = world.pull()
    first = world.push(group_id="g", priority=5)
    world.do(ReleaseJobs([(taken.id, taken.fence)]))
    assert world.pull_ids("q", 9) == [first]


def test_a_held_group_waits(world: World) -> None:
    jobs = [world.push(group_id="g") for _ in range(3)]
    other = world.push(group_id="h")
    assert world.pull_ids("q", 1) == jobs[:1]
    world.do(HoldGroup("q", "g", 500))
    world.do(AckJob(jobs[0]))
    assert world.pull_ids("q", 9) == [other]
    world.wait(200)
    # A later word counts, also a shorter one.
    world.do(HoldGroup("q", "g", 100))
    world.wait(99)
    assert world.pull_ids("q", 9) == []
    world.woken.clear()
    world.wait(1)
    assert world.woken == ["q"]
    assert world.pull_ids("q", 9) == jobs[1:2]
    world.do(AckJob(jobs[1]))
    world.do(HoldGroup("q", "g", 10_000))
    assert world.pull_ids("q", 9) == []
    world.do(HoldGroup("q", "g", 0))
    assert world.pull_ids("q", 9) == jobs[2:]
    assert world.machine.state.group_limits.timers() == []


def test_a_hold_and_a_window_end_each_at_its_time(world: World) -> None:
    jobs = a_limited_group(world, 1)
    assert world.pull_ids("q", 9) == jobs[:1]
    world.do(HoldGroup("q", "g", 300))
    assert world.ask(GetGroup("q", "g")).free_at_ms() == world.now_ms + 300
    world.wait(300)
    assert world.pull_ids("q", 9) == []
    assert world.ask(GetGroup("q", "g")).free_at_ms() == world.now_ms + 700
    assert world.ask(GetGroup("q", "g")).free_at_ms(1) == world.now_ms + 700
    assert world.ask(GetGroup("q", "g")).free_at_ms(2) == 0
    world.wait(700)
    assert world.ask(GetGroup("q", "g")).free_at_ms() is None
    assert world.pull_ids("q", 9) == jobs[1:2]


def test_a_hold_outlives_a_window(world: World) -> None:
    jobs = a_limited_group(world, 1)
    assert world.pull_ids("q", 9) == jobs[:1]
    world.do(HoldGroup("q", "g", 1500))
    world.wait(1499)
    assert world.pull_ids("q", 9) == []
    world.wait(1)
    assert world.pull_ids("q", 9) == jobs[1:2]


def test_groups_that_differ_are_listed(world: World) -> None:
    world.do(SetGroupRateLimit("q", "b", 2, 1000))
    world.do(PauseGroup("q", "a"))
    world.do(HoldGroup("q", "c", 500))
    world.push(group_id="b")
    world.push(group_id="usual")
    listed = world.ask(ListLimitedGroups("q"))
    assert [(name, shown.waiting) for name, shown in listed.groups] == [("a", 0), ("b", 1), ("c", 0)]
    page = world.ask(ListLimitedGroups("q", 1, 1))
    assert ([name for name, _ in page.groups], page.total) == (["b"], 3)
    assert world.ask(ListLimitedGroups("none")).total == 0
    assert world.ask(GetLimits("q")).limited_groups == world.ask(GetPortrait("q")).limited_groups == 3
    world.wait(500)
    assert world.ask(GetLimits("q")).limited_groups == 2


@pytest.mark.parametrize("held", [False, True])
def test_it_is_in_the_image(held: bool, world: World) -> None:
    jobs = a_limited_group(world)
    assert world.pull_ids() == jobs[:1]
    if held:
        world.do(HoldGroup("q", "g", 1500))
    other = World()
    other.machine.restore(world.machine.image())
    other.now_ms = world.now_ms
    assert other.machine.full_digest() == world.machine.full_digest()
    for _ in range(4):
        assert other.pull_ids("q", 9) == world.pull_ids("q", 9)
        assert other.machine.full_digest() == world.machine.full_digest()
        other.wait(500)
        world.wait(500)
    assert world.state_of(jobs[2]) == "active"


def test_obliterate_and_drain(world: World) -> None:
    a_limited_group(world)
    world.pull("q", 2)
    world.do(HoldGroup("q", "h", 500))
    world.do(DrainQueue("q"))
    job = world.push(group_id="g")
    assert world.pull_ids("q", 9) == []
    world.do(CancelJob(job))
    world.do(ObliterateQueue("q"))
    assert world.machine.state.group_limits.timers() == []
    world.wait(2000)
    fresh = [world.push(group_id="g") for _ in range(2)]
    assert world.pull_ids("q", 9) == fresh[:1]
    assert world.ask(GetGroup("q", "g")).settings.rate is None


def test_holds_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "GROUPS_MAX", 1)
    world.do(HoldGroup("q", "a", 100))
    world.do(HoldGroup("q", "a", 200))
    with pytest.raises(TooManyGroups):
        world.do(HoldGroup("q", "b", 100))
    world.do(SetGroupRateLimit("q", "a", 1))
    with pytest.raises(TooManyGroups):
        world.do(SetGroupRateLimit("q", "b", 1))
    world.wait(200)
    world.do(HoldGroup("q", "b", 100))


def test_an_entry_opens_no_more_groups_than_it_may(world: World) -> None:
    names = [f"g{number}" for number in range(FIRED_MAX + 5)]
    world.do(PushJobs("q", [job_spec(name, b"1", group_id=name) for name in names]))
    for name in names:
        world.do(HoldGroup("q", name, 100_000))
    due = world.machine.state.next_due_ms(world.now_ms)
    assert due is not None
    world.now_ms = due
    world.tick()
    assert len(world.machine.state.group_limits.timers()) == 5
    # Some are over by the clock and still shut: a state made from the image says the same.
    other = World()
    other.machine.restore(world.machine.image())
    assert other.machine.full_digest() == world.machine.full_digest()
    world.tick()
    assert len(world.pull_ids("q", FIRED_MAX + 9)) == FIRED_MAX + 5
    assert world.machine.state.queues["q"].group_uses == {}


def test_a_group_with_very_many_that_may_start_is_held_and_freed_quickly(world: World) -> None:
    world.do(SetGroupConcurrency("q", "g", 10**6))
    world.do(PushJobs("q", [job_spec(f"j{number}", b"1", group_id="g") for number in range(30_000)]))
    world.do(HoldGroup("q", "g", 1000))
    assert world.pull_ids() == []
    world.do(SetGroupConcurrency("q", "g", 1))
    world.wait(1000)
    assert world.pull_ids("q", 9) == ["j0"]
    assert world.machine.state.queues["q"].group_uses.get("g", GroupUse()) == GroupUse()

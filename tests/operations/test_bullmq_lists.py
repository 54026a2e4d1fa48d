"""Counts and lists as BullMQ's getters ask for them."""

import pytest

from quorumq.node.machine.operations.bullmq import lists
from quorumq.node.machine.operations.bullmq.lists import (
    CountPriorities,
    CountTypes,
    GetEnd,
    GetType,
    IsMaxed,
    IsOfType,
    ListRanges,
)
from quorumq.node.machine.operations.queues import PauseQueue
from quorumq.node.machine.operations.runs import AckJob, FailJob
from quorumq.node.machine.operations.settings import SetConcurrency
from quorumq.node.machine.refusals import TooLong
from tests.support.world import START_MS, World


def ranges(world: World, kind: str, start: int = 0, end: int = -1, *, asc: bool = False) -> list[str]:
    (found,) = world.ask(ListRanges("q", (kind,), start, end, asc))
    return found


@pytest.fixture
def five(world: World) -> World:
    """Five waiting jobs, 1 to 5."""
    for _ in range(5):
        world.add()
    return world


@pytest.mark.parametrize(
    ("start", "end", "asc", "expected"),
    [
        # What Redis answers for five jobs (backend-contract, getRanges).
        (0, 1, True, "21"),
        (0, -1, True, "54321"),
        (0, -1, False, "54321"),
        (3, 9, True, "54"),
        (0, 1, False, "54"),
        (3, 9, False, "21"),
        (-2, -1, False, "21"),
        (1, 2, True, "32"),
        (5, 9, False, ""),
        (2, 1, False, ""),
        (-9, 0, False, "5"),
    ],
)
def test_lists_come_newest_first(five: World, start: int, end: int, asc: bool, expected: str) -> None:
    assert "".join(ranges(five, "wait", start, end, asc=asc)) == expected
    five.do(PauseQueue("q"))
    assert "".join(ranges(five, "waiting", start, end, asc=asc)) == expected
    assert ranges(five, "paused") == []


def test_what_comes_next_is_the_last_of_the_list(five: World) -> None:
    five.add(lifo=True)
    assert "".join(ranges(five, "wait")) == "543216"
    assert "".join(ranges(five, "wait", 0, 1, asc=True)) == "16"
    assert [job.id for job in five.pull()] == ["bull:q:6"]


def test_active_jobs_are_a_list_too(five: World) -> None:
    five.pull(count=3)
    assert "".join(ranges(five, "active")) == "321"
    assert "".join(ranges(five, "active", 0, 0, asc=True)) == "1"


def test_sets_come_by_their_score(world: World) -> None:
    for delay_ms in (300, 100, 200):
        world.add(delay_ms=delay_ms)
    for priority in (3, 1, 1):
        world.add(priority=-priority)
    assert ranges(world, "delayed", asc=True) == ["2", "3", "1"]
    assert ranges(world, "delayed") == ["1", "3", "2"]
    assert ranges(world, "delayed", 0, 0) == ["1"]
    assert ranges(world, "delayed", 1, -1, asc=True) == ["3", "1"]
    assert ranges(world, "prioritized", asc=True) == ["5", "6", "4"]
    assert ranges(world, "prioritized", 0, 1) == ["4", "6"]
    for job in world.pull(count=3):
        world.do(AckJob(job.id) if job.id != "bull:q:6" else FailJob(job.id))
        world.wait(1)
    assert ranges(world, "completed", asc=True) == ["5", "4"]
    assert ranges(world, "completed") == ["4", "5"]
    assert ranges(world, "failed") == ["6"]
    assert world.ask(ListRanges("none", ("wait", "failed"))) == [[], []]


def test_counts_go_by_type(five: World) -> None:
    five.add(priority=-2)
    five.add(priority=-2, delay_ms=1000)
    five.add(delay_ms=500)
    five.pull()
    kinds = ("wait", "waiting", "paused", "prioritized", "delayed", "active", "completed", "repeat")
    assert five.ask(CountTypes("q", kinds)) == [4, 4, 0, 1, 2, 1, 0, 0]
    five.do(PauseQueue("q"))
    assert five.ask(CountTypes("q", kinds)) == [4, 4, 0, 1, 2, 1, 0, 0]
    for due_before, count in ((START_MS + 500, 0), (START_MS + 501, 1), (START_MS + 1001, 2)):
        assert five.ask(CountTypes("q", ("delayed",), due_before)) == [count]
    assert five.ask(CountPriorities("q", (0, 1, 2, 3))) == [4, 0, 1, 0]
    assert five.ask(CountPriorities("none", (0, 1))) == [0, 0]


def test_priorities_count_where_groups_hold_jobs_back_and_for_jobs_put_first(world: World) -> None:
    for _ in range(3):
        world.push(group_id="g", priority=-1)
    world.add(priority=-1, lifo=True)
    world.pull()
    assert world.ask(CountPriorities("q", (0, 1))) == [0, 3]


def test_states_are_bullmqs(world: World) -> None:
    plain, first = world.add(), world.add(priority=-1)
    assert [world.ask(GetType("q", own)) for own in ("1", "2", "3")] == ["waiting", "prioritized", "unknown"]
    assert [world.ask(IsOfType("q", "1", kind)) for kind in ("wait", "waiting", "prioritized")] == [True, True, False]
    assert world.ask(IsOfType("q", "3", "wait")) is False
    assert [world.ask(GetEnd("q", own)) for own in ("1", "3")] == [(0, None), (-1, None)]
    world.pull(count=2)
    world.do(AckJob(plain.id, result=b"5"))
    world.do(FailJob(first.id, error="broken"))
    assert [world.ask(GetEnd("q", own)) for own in ("1", "2")] == [(1, b"5"), (2, "broken")]
    assert [world.ask(GetType("q", own)) for own in ("1", "2")] == ["completed", "failed"]


def test_a_queue_is_maxed_when_as_many_are_active_as_may_be(five: World) -> None:
    assert not five.ask(IsMaxed("q"))
    five.do(SetConcurrency("q", 2))
    five.pull()
    assert not five.ask(IsMaxed("q"))
    five.pull()
    assert five.ask(IsMaxed("q"))


def test_an_answer_is_bounded(five: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "RANGE_MAX", 4)
    assert len(ranges(five, "wait", 0, 3)) == 4
    with pytest.raises(TooLong):
        ranges(five, "wait")

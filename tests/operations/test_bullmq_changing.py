"""Changing and removing jobs by the backend protocol, one or many."""

import pytest

from quorumq.node.machine.operations.bullmq.changing import (
    ChangeNamedDelay,
    ChangeNamedPriority,
    PromoteAllNamed,
    PromoteNamed,
    RetryAllNamed,
    RetryNamed,
    UpdateNamedData,
    UpdateNamedProgress,
)
from quorumq.node.machine.operations.bullmq.metas import Pause
from quorumq.node.machine.operations.bullmq.removing import CleanNamed, Obliterated, ObliterateNamed
from quorumq.node.machine.operations.bullmq.running import RetryRun
from tests.support.bullmq import add, complete, fail, job, number_of, take
from tests.support.world import World

SECOND = 1_000


def order(world: World) -> list[str]:
    return [job.id.rpartition(":")[2] for job in world.machine.state.queues["q"].waiting()]


CHANGES = {
    "data": UpdateNamedData("q", "9", b"1"),
    "progress": UpdateNamedProgress("q", "9", b"1"),
    "priority": ChangeNamedPriority("q", "9"),
    "delay": ChangeNamedDelay("q", "9", 1),
    "retry": RetryNamed("q", "9"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_only_a_job_that_is_there_changes(world: World, change: object) -> None:
    assert number_of(world, change) == -1


def test_data_and_progress_change_in_any_state(world: World) -> None:
    add(world)
    for state in ("waiting", "active", "completed"):
        assert job(world, "1").state == state
        world.do(UpdateNamedData("q", "1", b'"%d"' % len(state)))
        world.do(UpdateNamedProgress("q", "1", b'{"at":1}'))
        if state == "waiting":
            take(world)
        elif state == "active":
            complete(world, "1")
    world.do(UpdateNamedProgress("q", "1", b"42", 42))
    one = job(world, "1")
    assert (one.data, one.progress, one.progress_json) == (b'"9"', 42, b"42")


def test_a_delay_changes_of_a_delayed_job_only(world: World) -> None:
    add(world, delay_ms=SECOND)
    add(world)
    assert number_of(world, ChangeNamedDelay("q", "2", 1)) == -3
    world.do(ChangeNamedDelay("q", "1", 3 * SECOND))
    assert (job(world, "1").run_at, job(world, "1").delay_left) == (world.now_ms + 3 * SECOND, 3 * SECOND)
    assert number_of(world, PromoteNamed("q", "2")) == number_of(world, PromoteNamed("q", "9")) == -3
    world.do(PromoteNamed("q", "1"))
    assert order(world) == ["2", "1"]


def test_a_priority_moves_a_job_that_waits_and_is_kept_by_the_others(world: World) -> None:
    for _ in range(4):
        add(world, priority=-5)
    world.do(ChangeNamedPriority("q", "3", 2))
    world.do(ChangeNamedPriority("q", "1", 5, lifo=False))
    world.do(ChangeNamedPriority("q", "4", 5, lifo=True))
    assert order(world) == ["3", "4", "2", "1"]
    world.do(ChangeNamedPriority("q", "2", 0))
    take(world)
    world.do(ChangeNamedPriority("q", "2", 7))
    world.do(RetryRun("q", "2", "t"))
    assert order(world) == ["3", "4", "1", "2"]


def test_finished_jobs_run_again_and_are_counted_as_asked(world: World) -> None:
    for _ in range(2):
        add(world)
        take(world)
    complete(world, "1", result=b"1")
    fail(world, "2", reason="broken")
    assert number_of(world, RetryNamed("q", "1", "failed")) == -3
    world.do(RetryNamed("q", "1", "completed"))
    world.do(RetryNamed("q", "2", "failed", reset_made=True, reset_started=True))
    one, two = job(world, "1"), job(world, "2")
    assert (one.state, one.starts, one.attempts, one.result, one.finished_at, one.processed_at) == (
        "waiting",
        1,
        1,
        None,
        None,
        None,
    )
    assert (two.state, two.starts, two.attempts, two.error) == ("waiting", 0, 0, None)
    take(world)
    take(world)
    assert (one.starts, two.starts) == (2, 1)


def test_many_finished_jobs_run_again_bit_by_bit(world: World) -> None:
    for _ in range(3):
        add(world)
        take(world)
    for own in ("1", "2", "3"):
        fail(world, own)
        world.wait(SECOND)
    until_ms = world.now_ms - 2 * SECOND
    assert world.do(RetryAllNamed("q", "failed", 1, until_ms)) is True
    # Nobody has to ask once more to hear that there is nothing.
    assert world.do(RetryAllNamed("q", "failed", 1, until_ms)) is False
    assert order(world) == ["1", "2"]
    assert world.do(RetryAllNamed("q", "failed", 9)) is False
    assert order(world) == ["1", "2", "3"]
    assert world.do(RetryAllNamed("other")) is False


def test_delayed_jobs_are_promoted_bit_by_bit(world: World) -> None:
    for delay in (3, 1, 2):
        add(world, delay_ms=delay * SECOND)
    assert world.do(PromoteAllNamed("q", 2)) is True
    assert order(world) == ["2", "3"]
    assert world.do(PromoteAllNamed("q", 1)) is False
    assert order(world) == ["2", "3", "1"]
    assert world.do(PromoteAllNamed("other")) is False


def test_jobs_are_cleaned_by_state_and_age(world: World) -> None:
    for _ in range(3):
        add(world)
        take(world)
        world.wait(SECOND)
    complete(world, "1")
    world.wait(SECOND)
    fail(world, "2")
    world.wait(40 * SECOND)
    add(world, delay_ms=SECOND)
    add(world, priority=-1)
    add(world)
    add(world)
    add(world, to_children=True)
    now_ms = world.now_ms
    assert world.do(CleanNamed("q", "completed", now_ms - 60 * SECOND)) == []
    assert world.do(CleanNamed("q", "completed", now_ms - 41 * SECOND)) == ["1"]
    assert world.do(CleanNamed("q", "failed")) == ["2"]
    # Its lock has run out.
    assert world.do(CleanNamed("q", "active")) == ["3"]
    assert world.do(CleanNamed("q", "delayed")) == ["4"]
    assert world.do(CleanNamed("q", "prioritized")) == ["5"]
    assert world.do(CleanNamed("q", "wait", None, 1)) == ["6"]
    assert world.do(CleanNamed("q", "paused")) == []
    assert world.do(CleanNamed("q", "wait")) == ["7"]
    assert world.do(CleanNamed("q", "waiting-children")) == ["8"]
    assert not world.machine.state.jobs and world.do(CleanNamed("other")) == []


def test_a_parent_goes_with_its_last_child_that_is_cleaned(world: World) -> None:
    add(world, "p", to_children=True)
    add(world, "far", "r", to_children=True)
    add(world, parent=("q", "p"))
    add(world, parent=("r", "far"))
    world.do(CleanNamed("q", "wait"))
    assert list(world.machine.state.jobs) == ["bull:r:far"] and job(world, "far", "r").state == "waiting"


def test_a_queue_is_destroyed_bit_by_bit_once_it_is_paused(world: World) -> None:
    for _ in range(3):
        add(world)
    take(world)
    assert world.do(ObliterateNamed("q")) == Obliterated(-1)
    world.do(Pause("q", paused=True))
    assert world.do(ObliterateNamed("q")) == Obliterated(-2)
    assert world.do(ObliterateNamed("q", 2, force=True)) == Obliterated(0, more=True)
    assert world.do(ObliterateNamed("q", 2, force=True)) == Obliterated()
    assert not world.machine.state.queues and add(world) == "1"

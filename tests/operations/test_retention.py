"""The default of all queues for how many finished jobs they keep, and settings of one queue that go before it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operation import Operation, level_needed
from quorumq.node.machine.operations.jobs import PushJobs
from quorumq.node.machine.operations.queue_reads import QueueCounts
from quorumq.node.machine.operations.queues import ObliterateQueue
from quorumq.node.machine.operations.retention import FollowRetention, GetRetention, SetDefaultRetention, ThinFinished
from quorumq.node.machine.operations.runs import AckJobs, FailJob
from quorumq.node.machine.operations.settings import GetQueueSettings, SetDlqConfig, SetRetention, SetStallConfig
from quorumq.node.machine.state import job_spec
from quorumq.node.machine.state.queue import Retention
from tests.support.world import World

HOUR_MS = 3_600_000


def complete(world: World, queue: str, count: int) -> list[str]:
    """Have a queue complete some jobs; return their ids."""
    ids = [world.new_id() for _ in range(count)]
    world.do(PushJobs(queue, [job_spec(job_id, b"1") for job_id in ids]))
    world.pull(queue, count)
    world.do(AckJobs(ids))
    return ids


def fail(world: World, queue: str, count: int) -> None:
    for _ in range(count):
        job_id = world.push(queue, max_attempts=1)
        world.pull(queue)
        world.do(FailJob(job_id))


def kept(world: World, queue: str) -> tuple[int, int]:
    counts = world.ask(QueueCounts(queue))
    return counts.completed, counts.failed


def test_all_queues_follow_a_default_old_and_new_ones(world: World) -> None:
    for queue in ("a", "b"):
        complete(world, queue, 5)
        fail(world, queue, 4)
    world.do(SetDefaultRetention(completed=3, failed=2, failed_age_ms=HOUR_MS))
    assert [kept(world, queue) for queue in ("a", "b")] == [(3, 2), (3, 2)]
    complete(world, "new", 5)
    fail(world, "new", 3)
    assert kept(world, "new") == (3, 2)
    assert world.ask(GetRetention()).retention == Retention(3, 256 << 20, 2, HOUR_MS)
    assert world.ask(GetRetention("never")).retention.completed == 3
    assert world.ask(GetQueueSettings("never")).keep_completed == 3
    world.wait(HOUR_MS)
    assert kept(world, "a") == (3, 0)
    # What is not given stays; the default can grow again, and 0 keeps dead letters for good.
    world.do(SetDefaultRetention(completed=10, failed_age_ms=0))
    complete(world, "a", 9)
    fail(world, "b", 1)
    world.wait(1000 * HOUR_MS)
    assert (kept(world, "a"), kept(world, "b")) == ((10, 0), (3, 1))


OWN: dict[str, tuple[Callable[[], Operation], str]] = {
    "completed": (lambda: SetRetention("q", keep_completed=10_000), "completed"),
    "bytes": (lambda: SetRetention("q", keep_completed_bytes=256 << 20), "completed_bytes"),
    "failed": (lambda: SetDlqConfig("q", max_entries=10_000), "failed"),
    "age": (lambda: SetDlqConfig("q", max_age_ms=604_800_000), "failed_age_ms"),
    "failed bytes": (lambda: SetRetention("q", keep_failed_bytes=256 << 20), "failed_bytes"),
    "no age": (lambda: SetDlqConfig("q", max_age_ms=0), "failed_age_ms"),
}


@pytest.mark.parametrize("what", OWN)
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_a_queues_own_setting_wins(world: World, what: str, first: bool) -> None:
    """Also one that is what is built in, whether it was set before the default or after; only what was set is its own."""
    make, name = OWN[what]
    default = SetDefaultRetention(3, 100, 2, HOUR_MS, 50)
    for operation in (make(), default) if first else (default, make()):
        world.do(operation)
    found = world.ask(GetRetention("q"))
    assert found.own == (name,)
    expected = {"completed": 3, "completed_bytes": 100, "failed": 2, "failed_age_ms": HOUR_MS, "failed_bytes": 50}
    own = None if what == "no age" else getattr(Retention(), name)
    assert {field: getattr(found.retention, field) for field in expected} == expected | {name: own}
    world.machine = world.restored()
    world.do(SetDefaultRetention(completed=4, failed=5))
    assert world.ask(GetRetention("q")).own == (name,)
    world.do(FollowRetention("q"))
    assert world.ask(GetRetention("q")) == world.ask(GetRetention("other"))


def test_other_settings_of_the_same_kind_make_nothing_a_queues_own(world: World) -> None:
    world.do(SetDlqConfig("q", auto_retry=True))
    world.do(SetStallConfig("q", max_stalls=9))
    assert world.ask(GetRetention("q")).own == ()
    world.do(SetDefaultRetention(failed=5))
    assert world.ask(GetQueueSettings("q")).dlq.max_entries == 5
    assert world.ask(GetQueueSettings("q")).dlq.auto_retry is True


def test_what_was_set_before_there_was_a_default_is_the_queues_own(world: World) -> None:
    world.machine.state.level = 0
    world.do(SetRetention("q", keep_completed=77))
    world.machine.state.level = 1
    world.do(SetDefaultRetention(completed=5, failed=6))
    found = world.ask(GetRetention("q"))
    assert (found.own, found.retention.completed, found.retention.failed) == (("completed",), 77, 6)


def test_an_obliterated_queue_comes_back_with_the_default(world: World) -> None:
    world.do(SetRetention("q", keep_completed=77))
    world.do(SetDefaultRetention(completed=5))
    world.do(ObliterateQueue("q"))
    world.push("q")
    assert world.ask(GetRetention("q")).retention.completed == 5


def test_some_go_before_the_default_is_set(world: World) -> None:
    complete(world, "a", 6)
    fail(world, "a", 4)
    complete(world, "b", 6)
    world.do(SetRetention("b", keep_completed=6))
    thin = ThinFinished(2, 1, 5)
    assert [world.do(thin).count, kept(world, "a")] == [5, (2, 3)]
    assert [world.do(thin).count, world.do(thin).count] == [2, 0]
    assert (kept(world, "a"), kept(world, "b")) == ((2, 1), (6, 0))


@pytest.mark.parametrize("operation", [SetDefaultRetention(5), ThinFinished(1, 1, 5), FollowRetention("q")])
def test_it_comes_with_level_1(operation: Operation) -> None:
    assert level_needed(operation) == 1


def test_an_image_without_a_default_has_the_one_that_is_built_in() -> None:
    assert Machine().state.retention == Retention()

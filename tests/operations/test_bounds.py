"""Bounds on what one entry does and on what the state holds; below level 1 there are none of these."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from quorumq.node.machine.lifecycle import clock, timing
from quorumq.node.machine.operations import adding, dlq, groups, jobs, queues, repeatables, runs, schedules, settings
from quorumq.node.machine.operations.bullmq.changing import UpdateNamedData
from quorumq.node.machine.refusals import DependencyNotFound, TooManyDependencies, TooManyQueues
from quorumq.node.machine.state import Repeat, job_spec
from tests.golden.test_golden import records
from tests.support.world import START_MS, World, encode

CREATING: list[Any] = [
    jobs.PushJobs("new", [job_spec("a", b"1")]),
    adding.AddJobs("new", [job_spec("", b"1")]),
    repeatables.AddRepeating(
        adding.AddJobs("new", []), [repeatables.Repetition("r", job_spec("", b"7"), START_MS + 500, every_ms=500)]
    ),
    schedules.AddCron("c", "new", job_spec("-", b"1"), every_ms=1000),
    queues.PauseQueue("new"),
    settings.SetRateLimit("new", 1),
    settings.ClearRateLimit("new"),
    settings.SetConcurrency("new", 1),
    settings.ClearConcurrency("new"),
    settings.SetWindow("new", 1),
    settings.HoldQueue("new", 5),
    settings.SetDefaults("new"),
    settings.SetStallConfig("new", enabled=False),
    settings.SetDlqConfig("new", max_entries=1),
    settings.SetRetention("new", 5),
    groups.SetGroupConcurrency("new", "g", 2),
    groups.PauseGroup("new", "g"),
]


@pytest.fixture(autouse=True)
def few_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorumq.node.machine.state.state.QUEUES_MAX", 2)


def full_world() -> World:
    world = World()
    world.push("one")
    world.push("two")
    return world


@pytest.mark.parametrize("operation", CREATING, ids=lambda operation: operation.__struct_config__.tag)
def test_a_queue_too_many_is_refused_and_nothing_changes(operation: Any) -> None:
    world = full_world()
    with pytest.raises(TooManyQueues):
        world.do(operation)
    assert world.machine.state.schedule.crons == {}
    assert list(world.machine.state.queues) == ["one", "two"]
    assert world.machine.state.seq == 2
    # The same at the queues that are there, and once one of them is gone.
    world.do(queues.ObliterateQueue("one"))
    world.do(operation)
    assert len(world.machine.state.queues) <= 2
    world.check()


@pytest.mark.parametrize("operation", CREATING, ids=lambda operation: operation.__struct_config__.tag)
def test_below_level_1_there_is_no_such_bound(operation: Any) -> None:
    world = full_world()
    world.machine.state.level = 0
    world.do(operation)


def test_no_record_creates_a_queue_too_many() -> None:
    world = full_world()
    for record in records():
        world.apply(record)
        assert list(world.machine.state.queues) in (["one", "two"], ["two"], ["one"]), record
        assert world.machine.errors == 0


def test_what_time_brings_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cron whose queue was obliterated, and a repeating job: both were let in once."""
    world = World()
    world.do(schedules.AddCron("c", "cron", job_spec("-", b"1"), every_ms=1000))
    world.push("own", "a", repeat=Repeat(every_ms=500))
    world.push("two")
    world.pull("own")
    world.do(schedules.FireCrons([schedules.CronFire("c", START_MS + 1000, START_MS + 2000)]))
    world.now_ms += 1000
    cron = world.machine.state.schedule.crons["c"]
    world.do(schedules.FireCrons([schedules.CronFire("c", cron.next_due, cron.next_due + 1000, set_by=cron.set_by)]))
    assert "cron" in world.machine.state.queues
    assert world.machine.errors == 0


def test_bounds_that_shrink_let_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million finished jobs at once would hold every node up; with time they go all the same."""
    monkeypatch.setattr("quorumq.node.machine.lifecycle.retention.TRIM_STEP", 10)
    world = World()
    for queue in ("b", "a"):
        for state in ("completed", "failed"):
            for _ in range(35):
                world.a_job(state, queue)
    changes = [settings.SetRetention(queue, 3) for queue in "ba"]
    world.apply(*changes, *(settings.SetDlqConfig(queue, max_entries=3) for queue in "ba"))

    def left() -> list[int]:
        found = (world.machine.state.queues[name] for name in "ab")
        return [size for queue in found for size in (len(queue.completed), len(queue.failed))]

    # Each change, and what comes with time in the entries after it, lets ten go.
    assert left() == [15, 25, 15, 25]
    seen = [left()]
    other = world.restored()
    while world.machine.state.next_due_ms(world.now_ms) == world.now_ms:
        assert other.state.next_due_ms(world.now_ms) == world.now_ms
        world.tick()
        other.apply(other.index + 1, world.now_ms, [])
        assert other.digest() == world.machine.digest()
        assert other.full_digest() == world.machine.full_digest()
        assert all(before - after <= 10 for before, after in zip(seen[-1], left(), strict=True))
        seen.append(left())
    assert left() == [3, 3, 3, 3]
    assert world.machine.state.overfull == {}
    world.check()


def test_failed_jobs_that_weigh_too_much_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they weigh: their data, and the reasons and stacks of their runs."""
    monkeypatch.setattr("quorumq.node.machine.lifecycle.retention.TRIM_STEP", 10)
    world = World()

    def fail(queue: str = "q") -> None:
        world.do(
            runs.FailJob(
                world.a_job("active", queue, max_attempts=1, data=b"x" * 60).id, error="y" * 10, stack="z" * 20
            )
        )

    for _ in range(35):
        fail()
    queue = world.machine.state.queues["q"]
    # The reason counts twice: as the job's, and as that of its run.
    assert queue.failed_bytes == 3500
    world.do(settings.SetRetention("q", keep_failed_bytes=500))
    assert len(queue.failed) == 25
    world.wait(1000)
    assert (len(queue.failed), queue.failed_bytes, world.machine.state.overfull) == (5, 500, {})
    fail()
    assert len(queue.failed) == 5
    world.do(settings.SetRetention("q", keep_failed_bytes=0))
    # One always stays, and one that is given other data weighs what these do.
    (job,) = queue.failed
    world.do(UpdateNamedData("q", job.id, b"12"))
    assert queue.failed_bytes == 42
    world.check()
    world.machine = world.restored()
    world.do(dlq.RetryDlq("q"))
    assert world.machine.state.queues["q"].failed_bytes == 0


def test_below_level_1_failed_jobs_may_weigh_anything(leveled: World) -> None:
    state = leveled.machine.state
    leveled.push("q")
    state.queues["q"].settings = msgspec.structs.replace(state.queues["q"].settings, keep_failed_bytes=1)
    for _ in range(3):
        leveled.a_job("failed", "other")
    state.queues["other"].settings = state.queues["q"].settings
    leveled.a_job("failed", "other")
    assert len(state.queues["other"].failed) == (1 if state.level >= 1 else 4)


def test_what_a_job_that_fails_again_and_again_keeps_is_bounded(
    leveled: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quorumq.node.machine.lifecycle.runs.RUNS_CHARS_MAX", 100)
    is_bounded = leveled.machine.state.level >= 1
    job = leveled.a_job("active", max_attempts=50, backoff=0)

    def fail(error: str, stack: str | None = None) -> None:
        leveled.do(runs.FailJob(job.id, error=error, stack=stack))
        leveled.pull("q")

    for number in range(5):
        fail(str(number) * 10, "s" * 20)
    assert job.failures is not None
    assert [run.attempt for run in job.failures.runs] == ([3, 4, 5] if is_bounded else [1, 2, 3, 4, 5])
    # The newest one stays, whatever it has.
    fail("e" * 5000)
    assert [run.attempt for run in job.failures.runs] == ([6] if is_bounded else [1, 2, 3, 4, 5, 6])
    assert job.failures.runs[-1].error == job.error == "e" * 5000
    told = [step.error for step in job.timeline if step.error is not None]
    assert len(told[-1]) == (1024 if is_bounded else 5000)


def test_completed_jobs_that_weigh_too_much_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorumq.node.machine.lifecycle.retention.TRIM_STEP", 10)
    world = World()
    for _ in range(35):
        world.a_job("completed", data=b"x" * 100)
    world.do(settings.SetRetention("q", keep_completed_bytes=500))
    assert len(world.machine.state.queues["q"].completed) == 25
    world.wait(1000)
    assert len(world.machine.state.queues["q"].completed) == 5
    # A queue that is no more is not looked after.
    world.do(settings.SetRetention("q", keep_completed=5))
    world.do(settings.SetDlqConfig("q", max_entries=0))
    world.machine.state.overfull["q"] = None
    world.do(queues.ObliterateQueue("q"))
    world.tick()
    assert world.machine.errors == 0


def test_below_level_1_they_go_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorumq.node.machine.lifecycle.retention.TRIM_STEP", 10)
    world = World()
    world.machine.state.level = 0
    for state in ("completed", "failed"):
        for _ in range(35):
            world.a_job(state)
    world.do(settings.SetRetention("q", 3))
    world.do(settings.SetDlqConfig("q", max_entries=3))
    queue = world.machine.state.queues["q"]
    assert (len(queue.completed), len(queue.failed)) == (3, 3)


@pytest.mark.parametrize(("level", "waiting"), [(0, 30), (1, 20)])
def test_a_check_of_stalls_takes_no_more_than_time_does(
    monkeypatch: pytest.MonkeyPatch, level: int, waiting: int
) -> None:
    monkeypatch.setattr("quorumq.node.machine.lifecycle.clock.ADVANCE_MAX", 10)
    monkeypatch.setattr(clock.advance, "__defaults__", (10,))
    world = World()
    world.machine.state.level = level
    for _ in range(30):
        world.a_job("locked", backoff=0)
    world.now_ms += 60_000
    # Ten by the passing of time, and ten by the check.
    assert world.do(queues.CheckStalled("q")).count == waiting
    world.wait(1000)
    assert len(world.machine.state.queues["q"].active) == 0


@pytest.mark.parametrize("state", ["active", "failed"])
def test_the_alarms_of_other_settings_come_in_parts(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    monkeypatch.setattr("quorumq.node.machine.lifecycle.timing.RETIMED_MAX", 10)
    world = World()
    for _ in range(35):
        world.a_job(state)
    later: list[Any] = [settings.SetStallConfig("q", interval_ms=10**7), settings.SetDlqConfig("q", max_age_ms=10**9)]
    world.apply(*later)
    index = {"active": world.machine.state.queues["q"].active, "failed": world.machine.state.queues["q"].failed}[state]
    found = list(index.values() if isinstance(index, dict) else index)

    def timed() -> int:
        return sum(job.due == timing.due_at(world.machine.state, job) for job in found)

    assert timed() == 0
    other = world.restored()
    # An alarm of the settings before that rings meanwhile means nothing.
    world.now_ms += 10**6 if state == "active" else 605_000_000
    for _ in range(5):
        world.tick()
        other.apply(other.index + 1, world.now_ms, [])
        assert other.full_digest() == world.machine.full_digest()
    assert len(index) == 35
    assert (timed(), world.machine.state.retiming) == (35, {})
    world.check()
    # A queue that is no more is not looked after, and jobs may go meanwhile.
    world.do(settings.SetStallConfig("q", interval_ms=10**8))
    world.do(settings.SetDlqConfig("q", max_age_ms=10**10))
    for job in found[5:25]:
        world.do(jobs.RemoveJob(job.id)) if state == "failed" else world.do(runs.AckJob(job.id))
    world.do(queues.ObliterateQueue("q"))
    world.tick()
    assert (world.machine.errors, world.machine.state.retiming) == (0, {})


def test_below_level_1_all_alarms_are_set_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorumq.node.machine.lifecycle.timing.RETIMED_MAX", 10)
    world = World()
    world.machine.state.level = 0
    for _ in range(35):
        world.a_job("active")
    world.do(settings.SetStallConfig("q", interval_ms=10**7))
    state = world.machine.state
    assert all(job.due == timing.due_at(state, job) for job in state.queues["q"].active.values())


@pytest.mark.parametrize("listed", [4, 500])
def test_those_that_wait_for_a_job_come_and_go_in_any_order(monkeypatch: pytest.MonkeyPatch, listed: int) -> None:
    monkeypatch.setattr("quorumq.node.machine.state.dependents.LISTED_MAX", listed)
    monkeypatch.setattr("quorumq.node.machine.state.state.QUEUES_MAX", 9)
    world = World()
    many_that_wait(world)
    waiting = world.machine.state.dependents
    for machine in (world.machine, world.restored()):
        seqs = [job.seq for job in machine.state.dependents.of("one")]
        assert seqs == sorted(seqs) and len(seqs) == machine.state.dependents.count("one") == 35
    for number in (34, 0, 17, 5, 33):
        world.do(jobs.CancelJob(f"d{number}"))
        assert f"d{number}" not in [job.id for job in waiting.of("one")]
    assert (waiting.count("one"), waiting.count("two"), "two" in waiting) == (30, 0, False)
    assert [job.id for job in waiting.take("one", 3)] == ["d1", "d2", "d3"]
    assert waiting.take("nobody", 3) == []


def many_that_wait(world: World) -> None:
    """35 jobs that depend on one, of two queues in turn, and on another one; the first job is pulled."""
    for job_id in ("one", "two"):
        world.push("first", job_id)
    for number in range(35):
        world.push(f"q{number % 2}", f"d{number}", depends_on=("one",) if number else ("one", "two"))
    world.pull("first", count=2)


def test_very_many_that_wait_for_a_job_are_told_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorumq.node.machine.state.state.QUEUES_MAX", 9)
    monkeypatch.setattr("quorumq.node.machine.lifecycle.clock.RELEASED_MAX", 30)
    monkeypatch.setattr("quorumq.node.machine.lifecycle.clock.ADVANCE_MAX", 10)
    world = World()
    many_that_wait(world)
    other = world.restored()
    payload = encode([runs.AckJob("one", result=b"1"), jobs.RemoveJob("one"), jobs.CancelJob("d3")])
    for machine in (world.machine, other):
        machine.apply(machine.index + 1, world.now_ms, [payload])
    # A job that comes meanwhile knows the result, and waits for nothing.
    world.push("q1", "late", depends_on=("two",))
    other.apply(
        other.index + 1,
        world.now_ms,
        [encode([jobs.PushJobs("q1", [job_spec("late", b"{}", depends_on=("two",), custom=True)])])],
    )
    told = []
    while world.machine.state.next_due_ms(world.now_ms) == world.now_ms:
        again = world.restored()
        for machine in (world.machine, other, again):
            machine.apply(machine.index + 1, world.now_ms, [])
        # Which are told first is the same on a node that began from an image before, or in the middle.
        assert world.machine.full_digest() == other.full_digest() == again.full_digest()
        told.append(sum(len(world.machine.state.queues[name].ready) for name in ("q0", "q1")))
    assert told == sorted(told) and told[-1] == 33
    assert all(after - before <= 10 for before, after in zip([10, *told], told, strict=False))
    assert world.state_of("d0") == "waiting-children"
    world.do(runs.AckJob("two"))
    assert world.state_of("d0") == world.state_of("late") == "waiting"
    assert (world.machine.state.unreleased, len(world.machine.state.dependents)) == ({}, 0)
    assert world.machine.state.jobs["d5"].dependencies.values == {"one": b"1"}
    world.check()


def test_telling_jobs_that_wait_for_very_many_counts_as_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorumq.node.machine.state.state.QUEUES_MAX", 9)
    monkeypatch.setattr("quorumq.node.machine.lifecycle.clock.RELEASED_MAX", 30)
    monkeypatch.setattr("quorumq.node.machine.lifecycle.clock.ADVANCE_MAX", 20)
    world = World()
    ids = tuple(f"j{number}" for number in range(1000))
    world.do(jobs.PushJobs("first", [job_spec(job_id, b"1") for job_id in ids]))
    world.do(jobs.PushJobs("q", [job_spec(f"d{number}", b"1", depends_on=ids) for number in range(3)]))
    world.do(runs.PullJobs("first", 1000))
    world.do(runs.AckJobs(list(ids)))
    state = world.machine.state
    # Six for each of three: one job's end, or two.
    assert len(state.unreleased) in (998, 999)
    left = len(state.unreleased)
    while state.unreleased:
        assert state.next_due_ms(world.now_ms) == world.now_ms
        world.tick()
        assert left - len(state.unreleased) <= 20
        left = len(state.unreleased)
    assert len(state.queues["q"].ready) == 3
    world.check()


def test_one_that_comes_while_others_are_told_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorumq.node.machine.state.state.QUEUES_MAX", 9)
    monkeypatch.setattr("quorumq.node.machine.lifecycle.clock.RELEASED_MAX", 3)
    world = World()
    many_that_wait(world)
    payload = [runs.AckJob("one", result=b"1"), jobs.RemoveJob("one"), jobs.PushJobs("first", [job_spec("one", b"2")])]
    replies = world.apply(*payload, jobs.PushJobs("q0", [job_spec("late", b"3", depends_on=("one",))]))
    assert not any(isinstance(reply, Exception) for reply in replies)
    assert world.state_of("late") == "waiting"
    assert world.machine.state.jobs["late"].dependencies.values == {"one": b"1"}
    # Those that wait may all go before they are told.
    world.apply(*(jobs.CancelJob(f"d{number}") for number in range(35)))
    world.tick()
    assert world.machine.state.unreleased == {}
    world.check()


def test_below_level_1_all_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorumq.node.machine.state.state.QUEUES_MAX", 9)
    monkeypatch.setattr("quorumq.node.machine.lifecycle.clock.RELEASED_MAX", 3)
    world = World()
    world.machine.state.level = 0
    many_that_wait(world)
    world.do(runs.AckJob("one"))
    assert sum(len(world.machine.state.queues[name].ready) for name in ("q0", "q1")) == 34


def test_the_dependencies_of_a_push_are_bounded_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorumq.node.machine.operations.jobs.DEPENDENCIES_MAX", 6)
    world = World()
    world.push("q", "a")
    world.push("q", "b")
    specs = [job_spec(f"d{n}", b"1", depends_on=("a", "b")) for n in range(4)]
    with pytest.raises(TooManyDependencies):
        world.do(jobs.PushJobs("q", specs))
    assert len(world.machine.state.jobs) == 2
    world.do(jobs.PushJobs("q", specs[:3]))
    world.machine.state.level = 0
    world.do(jobs.PushJobs("q", [job_spec(f"e{n}", b"1", depends_on=("a", "b")) for n in range(4)]))


def test_a_long_chain_in_one_push() -> None:
    world = World()
    specs = [job_spec(f"j{n}", b"1", depends_on=(f"j{n - 1}",) if n else ()) for n in range(10_000)]
    world.do(jobs.PushJobs("q", specs))
    assert len(world.machine.state.queues["q"].waiting_children) == 9_999
    with pytest.raises(DependencyNotFound) as caught:
        world.do(jobs.PushJobs("q", [job_spec("x", b"1", depends_on=("x",))]))
    assert (caught.value.position, caught.value.dependency_id) == (0, "x")

"""job.add_repeating: repetitions of a queue, what fires them, and what stays when one is added again."""

from __future__ import annotations

from typing import Any

import pytest

from quorumq.node.machine.operations.adding import AddJobs
from quorumq.node.machine.operations.jobs import MoveToWait
from quorumq.node.machine.operations.queue_reads import QueueCounts
from quorumq.node.machine.operations.repeatables import AddRepeating, GetRepeating, ListRepeating, Repetition
from quorumq.node.machine.operations.runs import FailJob
from quorumq.node.machine.operations.schedules import CronFire, DeleteCron, FireCrons
from quorumq.node.machine.refusals import CronNotFound, TooManyCrons
from quorumq.node.machine.state import job_spec
from quorumq.node.machine.state.schedule import CRONS_MAX
from tests.support.world import START_MS, World

EVERY_MS = 1000


def repetition(key: str = "k", **how: Any) -> Repetition:
    how.setdefault("every_ms", EVERY_MS)
    how.setdefault("next_due_ms", START_MS + EVERY_MS)
    return Repetition(key, job_spec("", b"1", name="tick"), **how)


def add(world: World, *repetitions: Repetition, jobs: int = 0) -> Any:
    specs = [job_spec("", b"{}") for _ in range(jobs)]
    return world.do(AddRepeating(AddJobs("q", specs), list(repetitions)))


def fire(world: World, due_ms: int, next_ms: int) -> None:
    """Do as the leader does at a due time."""
    world.now_ms = max(world.now_ms, due_ms)
    world.do(FireCrons([CronFire("bull:q:k", due_ms, next_ms)]))


@pytest.fixture
def world() -> World:
    return World()


def test_jobs_and_repetitions_are_added_together(world: World) -> None:
    reply = add(world, repetition(), repetition("other", immediately=True), jobs=2)
    assert (reply.added.ids, reply.next_due_ms) == (["1", "2"], [START_MS + EVERY_MS, START_MS])
    assert [cron.key for cron in world.ask(ListRepeating("q"))] == ["k", "other"]
    assert list(world.machine.state.jobs) == ["bull:q:1", "bull:q:2", f"bull:q:repeat:other:{START_MS}"]
    world.check()


def test_too_many_add_nothing(world: World) -> None:
    with pytest.raises(TooManyCrons):
        add(world, *(repetition(str(number)) for number in range(CRONS_MAX + 1)), jobs=1)
    assert world.machine.state.jobs == {} and world.machine.state.schedule.crons == {}


def test_one_job_waits_and_others_may_be_active(world: World) -> None:
    add(world, repetition())
    times = [START_MS + EVERY_MS * number for number in range(1, 6)]
    fire(world, times[0], times[1])
    first = f"bull:q:repeat:k:{times[0]}"
    fire(world, times[1], times[2])
    assert list(world.machine.state.jobs) == [first]
    assert world.pull_ids() == [first]
    fire(world, times[2], times[3])
    assert world.state_of(f"bull:q:repeat:k:{times[2]}") == "waiting"
    assert world.ask(GetRepeating("q", "k")).executions == 2
    world.check()


def test_a_job_that_waits_for_another_run_holds_up_no_other(world: World) -> None:
    world.do(
        AddRepeating(AddJobs("q", []), [Repetition("k", job_spec("", b"1", max_attempts=9), START_MS, every_ms=1000)])
    )
    world.now_ms = START_MS
    fire(world, START_MS, START_MS + EVERY_MS)
    [first] = world.pull()
    world.do(FailJob(first.id))
    assert first.state == "delayed"
    fire(world, START_MS + EVERY_MS, START_MS + 2 * EVERY_MS)
    assert len(world.machine.state.jobs) == 2
    # Neither the retry nor the stalls of a job change when the next one comes.
    assert world.ask(GetRepeating("q", "k")).next_due == START_MS + 2 * EVERY_MS
    world.check()


def test_the_limit_counts_jobs_and_not_times(world: World) -> None:
    add(world, repetition(limit=2))
    times = [START_MS + EVERY_MS * number for number in range(1, 6)]
    fire(world, times[0], times[1])
    fire(world, times[1], times[2])
    world.pull()
    fire(world, times[2], times[3])
    with pytest.raises(CronNotFound):
        world.ask(GetRepeating("q", "k"))
    assert len(world.machine.state.jobs) == 2


def test_the_end(world: World) -> None:
    add(world, repetition(until_ms=START_MS + EVERY_MS))
    fire(world, START_MS + EVERY_MS, 0)
    assert world.ask(ListRepeating("q")) == []
    assert len(world.machine.state.jobs) == 1
    world.check()


def again(data: bytes, **how: Any) -> Repetition:
    how = {"every_ms": EVERY_MS, "next_due_ms": START_MS + 9 * EVERY_MS, **how}
    return Repetition("k", job_spec("", data, name="tock", priority=-5), **how)


def test_the_same_again_renews_the_job_that_waits(world: World) -> None:
    """BullMQ, job schedulers: an upsert leaves the pending job its id and gives it the new data."""
    add(world, repetition())
    due = START_MS + EVERY_MS
    fire(world, due, due + EVERY_MS)
    assert add(world, again(b"2")).next_due_ms == [due]
    job = world.job(f"bull:q:repeat:k:{due}")
    assert (job.data, job.opts.name, job.opts.priority, job.state) == (b"2", "tock", -5, "waiting")
    assert world.ask(QueueCounts("q")).lowered == 1
    fire(world, due + EVERY_MS, due + 2 * EVERY_MS)
    assert list(world.machine.state.jobs) == [job.id]
    world.check()
    # What is being worked on stays as it was taken, and so does what ran before.
    assert world.pull_ids() == [job.id]
    assert add(world, again(b"3")).next_due_ms == [due + 2 * EVERY_MS]
    world.do(MoveToWait(job.id))
    assert add(world, again(b"4")).next_due_ms == [due + 2 * EVERY_MS]
    assert job.data == b"2"
    world.check()


def test_other_times_replace_the_job_that_waits(world: World) -> None:
    add(world, repetition())
    due = START_MS + EVERY_MS
    fire(world, due, due + EVERY_MS)
    assert add(world, again(b"2", every_ms=5, immediately=True)).next_due_ms == [due]
    (job,) = world.machine.state.jobs.values()
    assert (job.id, job.data) == (f"bull:q:repeat:k:{due}", b"2")
    assert add(world, again(b"3", every_ms=7, next_due_ms=due + 7)).next_due_ms == [due + 7]
    assert world.machine.state.jobs == {}
    world.check()


def test_what_has_no_time_left_is_not_kept(world: World) -> None:
    add(world, repetition("now", immediately=True, next_due_ms=0, until_ms=START_MS + 1))
    assert world.ask(ListRepeating("q")) == []
    assert list(world.machine.state.jobs) == [f"bull:q:repeat:now:{START_MS}"]
    # Added again with an end before its next time, or with a limit that it has reached.
    add(world, repetition())
    assert add(world, repetition(until_ms=START_MS + 1, next_due_ms=0)).next_due_ms == [0]
    assert world.ask(ListRepeating("q")) == []
    add(world, repetition())
    fire(world, START_MS + EVERY_MS, START_MS + 2 * EVERY_MS)
    add(world, repetition(limit=1))
    assert world.ask(ListRepeating("q")) == []
    assert len(world.machine.state.jobs) == 2
    world.check()


def test_the_same_again_goes_on(world: World) -> None:
    add(world, repetition())
    fire(world, START_MS + EVERY_MS, START_MS + 2 * EVERY_MS)
    add(world, repetition(limit=9, immediately=True, next_due_ms=START_MS + 99 * EVERY_MS))
    cron = world.ask(GetRepeating("q", "k"))
    assert (cron.next_due, cron.executions, cron.max_limit) == (START_MS + 2 * EVERY_MS, 1, 9)
    assert len(world.machine.state.jobs) == 1
    add(world, repetition(every_ms=5, next_due_ms=START_MS + 3 * EVERY_MS))
    cron = world.ask(GetRepeating("q", "k"))
    assert (cron.next_due, cron.executions) == (START_MS + 3 * EVERY_MS, 0)
    world.do(DeleteCron("bull:q:k"))
    assert world.ask(ListRepeating("q")) == []
    world.check()

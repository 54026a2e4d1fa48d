"""Dead letters whose id a new job takes: they stay, with data, reason and history, and are found by either id."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from quorumq.node.machine.operations.adding import FindJob
from quorumq.node.machine.operations.dlq import ListDlq, PurgeDlq, RemoveDeadJob, RetryDlq
from quorumq.node.machine.operations.job_reads import GetJobByCustomId, GetLogs
from quorumq.node.machine.operations.jobs import AddLog, CancelJob, PushJobs, RetryJob
from quorumq.node.machine.operations.keys import GetKeyHolder
from quorumq.node.machine.operations.queues import CleanQueue, ObliterateQueue
from quorumq.node.machine.operations.runs import AckJob, FailJob
from quorumq.node.machine.operations.settings import SetDlqConfig
from quorumq.node.machine.refusals import JobNotFound
from quorumq.node.machine.state import Dedup, Job, job_spec
from tests.support.world import World


def a_dead_letter(world: World, job_id: str = "x", data: bytes = b'"first"', **options: object) -> Job:
    job = world.job(world.push("q", job_id, data, **{"max_attempts": 1} | options))
    assert world.pull("q") == [job]
    world.do(AddLog(job.id, "a line"))
    world.do(FailJob(job.id, error="broken"))
    assert job.state == "failed"
    return job


def dead(world: World, queue: str = "q") -> list[Job]:
    return world.ask(ListDlq(queue)).jobs


PUSHES: dict[str, Callable[[], PushJobs]] = {
    "push": lambda: PushJobs("q", [job_spec("x", b"2", custom=True)]),
    "from another queue": lambda: PushJobs("other", [job_spec("x", b"2", custom=True)]),
    "bulk": lambda: PushJobs("q", [job_spec("y", b"1"), job_spec("x", b"2", custom=True), job_spec("x", b"3")]),
    "with an option": lambda: PushJobs("q", [job_spec("x", b"2", custom=True, priority=3, delay_ms=50)]),
    "with dependencies": lambda: PushJobs("q", [job_spec("y", b"1"), job_spec("x", b"2", depends_on=("y",))]),
}


@pytest.mark.parametrize("how", PUSHES)
def test_a_dead_letter_stays_when_a_new_job_takes_its_id(leveled: World, how: str) -> None:
    world = leveled
    old = a_dead_letter(world)
    fence = old.fence
    world.wait(1000)
    push = PUSHES[how]()
    assert "x" in world.do(push).ids
    new = world.job("x")
    assert (new.queue, new.data, new.attempts, new.failures) == (push.queue, b"2", 0, None)
    if world.machine.state.level < 1:
        assert dead(world) == []
        return
    assert dead(world) == [old] and old.id != "x" and world.job(old.id) is old
    assert (old.custom_id, old.data, old.error, old.attempts, old.fence) == ("x", b'"first"', "broken", 1, fence)
    assert old.failures is not None and (old.failures.reason, len(old.failures.runs)) == ("max_attempts_exceeded", 1)
    assert [line.message for line in world.ask(GetLogs(old.id))] == ["a line"]
    assert world.ask(GetLogs("x")) == []
    # Its own id is none that a client chose.
    assert world.ask(GetJobByCustomId("x")) is new if new.custom else True
    with pytest.raises(JobNotFound):
        world.ask(GetJobByCustomId(old.id))


@pytest.mark.parametrize("level", [0, 1])
def test_a_completed_job_makes_room_for_a_new_generation(level: int) -> None:
    world = World(level=level)
    world.push("q", "x")
    world.pull()
    world.do(AckJob("x"))
    world.push("other", "x", b"2")
    assert [(job.queue, job.data) for job in world.machine.state.jobs.values()] == [("other", b"2")]
    world.check()


@pytest.mark.parametrize("by", ["its old id", "its own"])
def test_it_is_retried_and_removed_by_either_id(world: World, by: str) -> None:
    for act, left in ((RetryDlq, 0), (RemoveDeadJob, 0), (lambda queue, job_id: RetryDlq(queue, job_id, 0), 1)):
        old = a_dead_letter(world, "x")
        new = world.push("q", "x")
        assert world.do(act("q", "x" if by == "its old id" else old.id)).count == 1 - left
        assert (old in dead(world)) == bool(left)
        world.do(ObliterateQueue("q"))
        assert new == "x"


def test_the_youngest_of_several_is_found_by_their_old_id_and_one_that_has_it_before_them(world: World) -> None:
    letters = [a_dead_letter(world, "x") for _ in range(3)]
    assert dead(world) == letters and [job.custom_id for job in letters] == ["x"] * 3
    assert letters[2].id == "x" and len({job.id for job in letters}) == 3
    world.do(RemoveDeadJob("q", "x"))
    assert dead(world) == letters[:2]
    world.do(RemoveDeadJob("q", "x"))
    assert dead(world) == letters[:1]
    world.do(PurgeDlq("q"))
    assert dead(world) == [] and world.machine.state.queues["q"].aside == {}


@pytest.mark.parametrize("how", ["dlq.retry", "job.retry", "by itself"])
@pytest.mark.parametrize("taken", [True, False])
def test_one_that_runs_again_takes_its_id_back_when_that_is_free(world: World, how: str, taken: bool) -> None:
    if how == "by itself":
        world.do(SetDlqConfig("q", auto_retry=True, auto_retry_interval_ms=60_000))
    old = a_dead_letter(world, "x")
    world.push("q", "x", delay_ms=120_000)
    own = old.id
    if not taken:
        world.do(CancelJob("x"))
    if how == "dlq.retry":
        world.do(RetryDlq("q"))
    elif how == "job.retry":
        world.do(RetryJob(own))
    else:
        world.wait(60_000)
    assert (old.state, old.id, old.custom_id) == ("waiting", own if taken else "x", "x")
    assert world.pull() == [old]
    world.do(AckJob(old.id))
    assert world.job(old.id) is old and old.state == "completed"
    # A push under its id is what it was before.
    assert world.push("q", "x", delay_ms=5) == "x"


def test_who_waits_for_its_id_waits_for_the_new_job(world: World) -> None:
    old = a_dead_letter(world, "x")
    waiting = world.job(world.push("q", depends_on=("x",)))
    world.push("q", "x", priority=9)
    late = world.job(world.push("q", depends_on=(old.id,)))
    world.pull(count=1)
    world.do(AckJob("x", result=b"1"))
    assert (waiting.state, late.state) == ("waiting", "waiting-children")
    # Somebody waits for it under its own id, so it keeps that.
    world.do(CleanQueue("q", state="completed"))
    world.do(RetryDlq("q", old.id))
    assert "x" not in world.machine.state.jobs
    while late.state != "waiting":
        (job,) = world.pull()
        world.do(AckJob(job.id))


def test_a_key_that_it_still_holds_stays_with_it(world: World) -> None:
    old = a_dead_letter(world, "x", unique_key="k", dedup=Dedup(ttl_ms=60_000))
    world.push("other", "x")
    assert world.ask(GetKeyHolder("q", "k")) == old.id
    assert world.push("q", unique_key="k") == old.id
    world.wait(60_000)
    assert world.ask(GetKeyHolder("q", "k")) is None


def test_a_job_of_the_bullmq_dialect_stays_in_its_queue(world: World) -> None:
    job = world.add("q", "x")
    world.pull("q")
    world.do(FailJob(job.id))
    world.do(PushJobs("other", [job_spec(job.id, b"2", custom=True)]))
    assert job.id.startswith("bull:q:") and world.ask(FindJob("q", job.id.removeprefix("bull:q:"))) is job
    assert job.custom_id == "bull:q:x"


def test_dead_letters_set_aside_keep_to_the_bounds(world: World) -> None:
    world.do(SetDlqConfig("q", max_entries=2, max_age_ms=5000))
    letters = [a_dead_letter(world, "x") for _ in range(4)]
    assert dead(world) == letters[2:]
    world.wait(5000)
    assert dead(world) == [] and world.machine.state.queues["q"].aside == {}

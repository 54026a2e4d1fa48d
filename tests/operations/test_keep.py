"""Which finished jobs stay (section 11 of the BullMQ rules): by the job's option, else the queue's, when another one ends."""

import pytest

from quorumq.node.machine.lifecycle import retention
from quorumq.node.machine.operations.queue_reads import ListStatus
from quorumq.node.machine.operations.runs import AckJob, AckJobs, FailJob
from quorumq.node.machine.operations.settings import SetDefaults
from quorumq.node.machine.state import Job, Keep, own_id
from tests.support.world import World

ENDS = [("completed", AckJob), ("failed", FailJob)]


def end(world: World, job: Job, act: type = AckJob) -> None:
    assert world.pull() == [job]
    world.do(act(job.id))


def left(world: World, kind: str) -> list[str]:
    return [own_id(job) for job in world.ask(ListStatus("q", kind))]


@pytest.mark.parametrize(("kind", "act"), ENDS)
def test_a_count_keeps_the_newest(world: World, kind: str, act: type) -> None:
    for _ in range(7):
        end(world, world.add(**{f"keep_{kind}": Keep(count=2)}), act)
    assert left(world, kind) == ["6", "7"]


@pytest.mark.parametrize(("kind", "act"), ENDS)
def test_a_count_of_zero_removes_the_job_and_no_other(world: World, kind: str, act: type) -> None:
    end(world, world.add(), act)
    job = world.add(**{f"keep_{kind}": Keep(count=0)})
    end(world, job, act)
    assert left(world, kind) == ["1"] and world.state_of(job.id) == "unknown"


@pytest.mark.parametrize(("kind", "act"), ENDS)
def test_an_age_counts_only_when_another_one_ends(world: World, kind: str, act: type) -> None:
    options = {f"keep_{kind}": Keep(age_ms=1000)}
    for _ in range(2):
        end(world, world.add(**options), act)
        world.wait(600)
    assert left(world, kind) == ["1", "2"]
    world.wait(1000)
    assert left(world, kind) == ["1", "2"]
    end(world, world.add(**options), act)
    assert left(world, kind) == ["3"]


def test_age_goes_first_then_count(world: World) -> None:
    keep = Keep(age_ms=1000, count=2)
    end(world, world.add())
    world.wait(1000)
    for _ in range(2):
        end(world, world.add())
    end(world, world.add(keep_completed=keep))
    assert left(world, "completed") == ["3", "4"]
    world.wait(1000)
    end(world, world.add(keep_completed=keep))
    assert left(world, "completed") == ["5"]


def test_a_run_that_failed_but_is_tried_again_is_no_end(world: World) -> None:
    job = world.add(max_attempts=2, keep_failed=Keep(count=0))
    end(world, job, FailJob)
    assert job.state == "waiting"
    end(world, job, FailJob)
    assert world.state_of(job.id) == "unknown"


def test_the_queue_says_it_for_jobs_that_do_not(world: World) -> None:
    world.do(SetDefaults("q", keep_completed=Keep(count=1), keep_failed=Keep(count=2)))
    for _ in range(3):
        end(world, world.add())
        end(world, world.add(), FailJob)
    assert (left(world, "completed"), left(world, "failed")) == (["5"], ["4", "6"])
    # The job's own word goes first.
    end(world, world.add(keep_completed=Keep(count=3)))
    end(world, world.add(keep_completed=Keep(count=3)))
    assert left(world, "completed") == ["5", "7", "8"]
    world.do(SetDefaults("q"))
    for _ in range(3):
        end(world, world.add())
    assert len(left(world, "completed")) == 6


def test_a_batch_of_acks_keeps_to_it(world: World) -> None:
    ids = [world.add(keep_completed=Keep(count=2)).id for _ in range(5)]
    world.pull(count=5)
    assert world.do(AckJobs(ids)).job_ids == ids
    assert left(world, "completed") == ["4", "5"]
    queue = world.machine.state.queue("q")
    assert queue.completed_bytes == sum(len(job.data) for job in queue.completed)


def test_one_end_lets_only_so_many_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "KEEP_STEP", 3)
    for _ in range(8):
        end(world, world.add())
    end(world, world.add(keep_completed=Keep(count=1)))
    assert left(world, "completed") == ["4", "5", "6", "7", "8", "9"]
    end(world, world.add(keep_completed=Keep(age_ms=0)))
    assert left(world, "completed") == ["7", "8", "9", "10"]


def test_keeping_frees_no_throttled_key_and_is_remembered(world: World) -> None:
    job = world.add(keep_completed=Keep(count=0))
    end(world, job)
    # A job that depends on it is not made to wait.
    assert world.state_of(world.push(depends_on=(job.id,))) == "waiting"

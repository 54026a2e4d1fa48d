"""What a queue did minute by minute."""

from __future__ import annotations

import pytest

from quorumq.node.machine.operations.jobs import DiscardJob
from quorumq.node.machine.operations.minutes import GetSeries, Series
from quorumq.node.machine.operations.queues import ObliterateQueue
from quorumq.node.machine.operations.runs import AckJob, AckJobs, FailJob, FinishAndPull, PullJobs
from quorumq.node.machine.state.minutes import MINUTE_MS, MINUTES_KEPT, Minutes
from tests.support.world import START_MS, World

assert START_MS % MINUTE_MS == 0


def complete(world: World, count: int = 1) -> None:
    for _ in range(count):
        world.push()
    world.do(AckJobs([job.id for job in world.pull("q", count)]))


def test_completions_are_counted_by_minute(world: World) -> None:
    complete(world, 3)
    world.now_ms += 59_999
    complete(world)
    world.now_ms += 1
    world.do(AckJob(world.a_job("active").id))
    world.now_ms += 2 * MINUTE_MS
    first, second = world.push(), world.push()
    assert world.pull_ids() == [first]
    world.do(FinishAndPull(AckJob(first), PullJobs("q")))
    world.do(AckJob(second))
    assert world.ask(GetSeries("q", "completed")) == Series(7, world.now_ms, 2, [2, 0, 1, 4])
    assert world.ask(GetSeries("q", "failed")) == world.ask(GetSeries("none", "completed")) == Series()


def test_only_what_failed_for_good_is_counted_as_failed(world: World) -> None:
    world.push(max_attempts=2)
    for _ in range(2):
        [job] = world.pull()
        world.do(FailJob(job.id))
        world.wait(MINUTE_MS)
    world.do(DiscardJob(world.push()))
    assert world.ask(GetSeries("q", "failed")) == Series(2, world.now_ms, 1, [1, 1])


def test_jobs_of_several_queues_in_one_batch(world: World) -> None:
    jobs = [world.a_job("active", queue).id for queue in ("a", "b", "a")]
    world.do(AckJobs(jobs))
    assert [world.ask(GetSeries(queue, "completed")).counts for queue in "ab"] == [[2], [1]]


def test_a_run_that_seemed_lost_counts_when_it_completes(world: World) -> None:
    world.push()
    [job] = world.pull(owner="w", token_seed="t", lock_ms=1000)
    world.wait(1000)
    assert job.state == "waiting"
    world.do(AckJob(job.id, "t-0"))
    assert world.ask(GetSeries("q", "completed")).counts == [1]


def test_a_day_is_kept(world: World) -> None:
    complete(world)
    world.now_ms += MINUTE_MS
    complete(world, 2)
    world.now_ms += (MINUTES_KEPT - 1) * MINUTE_MS
    complete(world)
    counts = world.ask(GetSeries("q", "completed")).counts
    assert (len(counts), counts[0], counts[-1], sum(counts)) == (MINUTES_KEPT, 1, 2, 3)
    assert world.ask(GetSeries("q", "completed")).total == 4


def test_it_goes_with_the_queue_and_is_in_the_image(world: World) -> None:
    complete(world, 2)
    world.a_job("failed")
    other = World()
    other.machine.restore(world.machine.image())
    assert other.ask(GetSeries("q", "completed")) == Series(2, START_MS, 2, [2])
    assert other.ask(GetSeries("q", "failed")).counts == [1]
    assert other.machine.full_digest() == world.machine.full_digest()
    world.do(ObliterateQueue("q"))
    complete(world)
    assert world.ask(GetSeries("q", "completed")).counts == [1]


def test_below_level_1_nothing_is_counted() -> None:
    world = World(level=0)
    complete(world, 2)
    world.a_job("failed")
    assert world.ask(GetSeries("q", "completed")) == Series(2)
    assert world.ask(GetSeries("q", "failed")) == Series(1)


@pytest.mark.parametrize("back_ms", [1, MINUTE_MS, 5 * MINUTE_MS])
def test_a_clock_that_goes_back_takes_no_count_away(back_ms: int) -> None:
    minutes = Minutes()
    minutes.note(START_MS, 2)
    minutes.note(START_MS - back_ms)
    minutes.note(START_MS + MINUTE_MS)
    assert minutes.series() == [1, 3]
    assert (
        minutes.moved(lambda at: at - 3 * MINUTE_MS).packed
        == Minutes(0, minutes.packed).moved(lambda at: at - 3 * MINUTE_MS).packed
    )
    # Two minutes that become one are one.
    assert minutes.moved(lambda at: START_MS).series() == [4]

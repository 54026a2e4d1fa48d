"""Figures of queues: how long jobs waited and ran, and since when the oldest of them could have been taken."""

import random

import msgspec

from quorumq.node.machine.image import QueuePiece
from quorumq.node.machine.operations.jobs import DiscardJob, PromoteJob
from quorumq.node.machine.operations.queue_reads import QueueFigure, QueueFigures
from quorumq.node.machine.operations.runs import AckJob, AckJobs, FailJob, ReleaseJobs
from quorumq.node.machine.state.queue import BUCKETS, QueueCounters, bucket_of, ready_since
from tests.support.world import START_MS, World


def figure(world: World, queue: str = "q") -> QueueFigure:
    return next(one for one in world.ask(QueueFigures(100)) if one.name == queue)


def filled(counts: list[int]) -> dict[int, int]:
    """Return the buckets of a histogram that hold something."""
    assert len(counts) == BUCKETS
    return {bucket: count for bucket, count in enumerate(counts) if count}


def test_a_bucket_is_the_number_of_binary_digits() -> None:
    assert [bucket_of(ms) for ms in (0, 1, 2, 3, 4, 1023, 1024)] == [0, 1, 2, 2, 3, 10, 11]
    assert bucket_of(1 << 60) == BUCKETS - 1


def test_waits_count_from_when_a_job_could_be_taken(world: World) -> None:
    world.push()
    world.push()
    world.wait(100)
    world.push()
    world.push(delay_ms=50)
    world.wait(60)
    assert len(world.pull(count=10)) == 4
    counters = figure(world).counters
    # Two waited 160 ms, one 60, and the delayed one 10.
    assert filled(counters.waits) == {8: 2, 6: 1, 4: 1}
    assert counters.wait_ms == 160 * 2 + 60 + 10


def test_a_wait_begins_when_the_last_dependency_is_completed(world: World) -> None:
    first = world.push("others")
    world.push(depends_on=(first,))
    world.wait(1000)
    world.pull("others")
    world.do(AckJob(first))
    world.wait(5)
    assert figure(world).ready_at == world.now_ms - 5
    world.pull()
    assert (filled(figure(world).counters.waits), figure(world).counters.wait_ms) == ({3: 1}, 5)


def test_a_promoted_job_waits_from_then_on(world: World) -> None:
    job = world.push(delay_ms=60_000)
    world.wait(100)
    world.do(PromoteJob(job))
    world.wait(7)
    world.pull()
    assert figure(world).counters.wait_ms == 7


def test_runs_count_when_they_complete_fail_or_are_given_up(world: World) -> None:
    for _ in range(6):
        world.push(max_attempts=1)
    jobs = world.pull_ids(count=4)
    world.wait(20)
    jobs += world.pull_ids(count=2)
    world.wait(10)
    # Of the same queue, begun at two moments; one that is not there counts for nothing.
    world.do(AckJobs([jobs[0], "nobody", jobs[1], jobs[4]]))
    world.do(AckJob(jobs[5]))
    world.wait(100)
    world.do(FailJob(jobs[2], error="broken"))
    world.do(DiscardJob(jobs[3]))
    counters = figure(world).counters
    assert filled(counters.runs) == {5: 2, 4: 2, 8: 2}
    assert counters.run_ms == 30 * 2 + 10 * 2 + 130 * 2
    assert sum(counters.waits) == counters.pulled == 6


def test_a_run_that_is_given_back_counts_for_nothing_and_a_stalled_one_once(world: World) -> None:
    job = world.a_job("active")
    world.do(ReleaseJobs([(job.id, job.fence)]))
    assert filled(figure(world).counters.runs) == {}
    world.pull(owner="w", lock_ms=1000, token_seed="t")
    world.wait(1000)
    assert (job.state, filled(figure(world).counters.runs)) == ("waiting", {10: 1})
    # Its old token still completes it; that run has been counted.
    world.do(AckJob(job.id, "t-0"))
    assert (job.state, filled(figure(world).counters.runs)) == ("completed", {10: 1})


def test_acknowledgements_of_several_queues_are_counted_with_their_own(world: World) -> None:
    jobs = [world.a_job("active", queue).id for queue in ("a", "b", "a")]
    world.wait(3)
    world.do(AckJobs(jobs))
    assert [figure(world, queue).counters.run_ms for queue in ("a", "b")] == [6, 3]


def test_counters_of_old_images_have_no_histograms() -> None:
    old = {"type": "queue", "name": "q", "settings": {}, "counters": {"pushed": 3, "pulled": 2, "failed": 1}}
    piece = msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=QueuePiece)
    assert piece.counters == QueueCounters(3, 2, 0, 1)
    assert filled(piece.counters.waits) == filled(piece.counters.runs) == {}


def test_the_oldest_ready_job(world: World) -> None:
    world.push("empty", delay_ms=60_000)
    assert figure(world, "empty").ready_at is None
    world.push(priority=-3)
    world.wait(10)
    world.push(lifo=True)
    world.push(priority=9, lifo=True)
    world.wait(10)
    for _ in range(600):
        world.push(priority=9, lifo=True)
        world.push()
    assert figure(world).ready_at == START_MS
    # The one that waits longest is taken last.
    while len(world.machine.state.queues["q"].ready) > 1:
        assert figure(world).ready_at == START_MS
        world.pull(count=100 if len(world.machine.state.queues["q"].ready) > 100 else 1)
    world.pull()
    assert figure(world).ready_at is None


def test_the_oldest_ready_job_among_all_kinds(world: World) -> None:
    chance = random.Random(7)
    queue = None
    for _ in range(400):
        world.wait(chance.randrange(20))
        if chance.random() < 0.6:
            world.push(priority=chance.choice((0, 0, 0, 2, -1)), lifo=chance.random() < 0.2)
        else:
            world.pull(count=chance.randrange(3))
        queue = world.machine.state.queues.get("q")
        if queue is not None:
            assert figure(world).ready_at == min(map(ready_since, queue.ready), default=None)
    assert queue is not None and queue.counters.pulled > 50


def test_figures_are_of_the_oldest_queues(world: World) -> None:
    for name in ("b", "c", "a"):
        world.push(name)
    assert [one.name for one in world.ask(QueueFigures(2))] == ["b", "c"]
    assert world.ask(QueueFigures(-1)) == []

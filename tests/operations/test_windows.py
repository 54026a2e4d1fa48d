"""Limits of starts and of active jobs (section 8 of the BullMQ rules): fixed windows, holds, so many for one owner."""

from quorumq.node.machine.operations.jobs import MoveToWait
from quorumq.node.machine.operations.queues import PauseQueue
from quorumq.node.machine.operations.runs import AckJob, PullJobs, ReleaseJobs
from quorumq.node.machine.operations.settings import HoldQueue, SetConcurrency, SetRateLimit, SetWindow
from quorumq.node.machine.state.queue import Queue
from tests.support.world import World


def queue_of(world: World) -> Queue:
    return world.machine.state.queue("q")


def fill(world: World, count: int = 10) -> None:
    for _ in range(count):
        world.add()


def test_a_window_counts_starts_from_the_first_one(world: World) -> None:
    fill(world)
    world.do(SetWindow("q", 2, 500))
    starts = []
    for _ in range(11):
        starts += [world.now_ms for _ in world.pull(count=1)] + [world.now_ms for _ in world.pull(count=5)]
        world.wait(100)
    begin = starts[0]
    assert [at - begin for at in starts] == [0, 0, 500, 500, 1000, 1000]


def test_a_window_begins_with_a_start_and_is_fixed(world: World) -> None:
    fill(world)
    world.do(SetWindow("q", 2, 500))
    world.wait(10_000)
    assert len(world.pull()) == 1
    world.wait(499)
    assert len(world.pull(count=5)) == 1
    assert queue_of(world).next_free_ms(world.now_ms) == world.now_ms + 1
    world.wait(1)
    assert len(world.pull(count=5)) == 2


def test_what_does_not_get_through_waits_in_its_place(world: World) -> None:
    fill(world, 3)
    world.do(SetWindow("q", 1, 500))
    [job] = world.pull()
    world.do(MoveToWait(job.id))
    assert world.pull() == []
    world.wait(500)
    assert world.pull() == [job]


def test_a_job_given_back_unseen_gives_its_start_back(world: World) -> None:
    fill(world)
    world.do(SetWindow("q", 1, 500))
    [job] = world.pull()
    world.do(ReleaseJobs([(job.id, job.fence)]))
    assert world.pull() == [job]
    world.wait(500)
    world.do(ReleaseJobs([(job.id, job.fence)]))
    assert len(world.pull(count=2)) == 1


def test_a_rate_counts_what_was_taken_and_saves_up_no_more_than_its_limit(world: World) -> None:
    fill(world)
    world.do(SetRateLimit("q", 1, 500))
    [job] = world.pull(count=5)
    world.do(ReleaseJobs([(job.id, job.fence)]))
    assert world.pull(count=5) == [job]
    world.wait(5_000)
    assert len(world.pull(count=5)) == 1


def test_what_is_given_back_when_its_window_is_over_begins_none(world: World) -> None:
    fill(world)
    world.do(SetWindow("q", 1, 500))
    [job] = world.pull()
    world.wait(500)
    world.do(ReleaseJobs([(job.id, job.fence)]))
    world.wait(300)
    assert len(world.pull()) == 1
    # The one under way began just now.
    world.wait(499)
    assert world.pull() == []
    world.wait(1)
    assert len(world.pull()) == 1


def test_another_window_goes_on_with_what_has_started(world: World) -> None:
    fill(world)
    world.do(SetWindow("q", 3, 500))
    assert len(world.pull(count=2)) == 2
    world.do(SetWindow("q", 3, 500))
    assert len(world.pull(count=5)) == 1
    world.do(SetWindow("q", None))
    assert len(world.pull(count=5)) == 5 and queue_of(world).settings.window is None


def test_a_hold_gives_nothing_out_until_it_ends(world: World) -> None:
    fill(world)
    world.do(HoldQueue("q", 700))
    assert world.pull() == [] and queue_of(world).next_free_ms(world.now_ms) == world.now_ms + 700
    world.wait(699)
    assert world.pull() == []
    world.wait(1)
    assert len(world.pull()) == 1


def test_the_last_hold_counts_and_none_ends_it(world: World) -> None:
    fill(world)
    world.do(HoldQueue("q", 9000))
    world.do(HoldQueue("q", 100))
    world.woken.clear()
    world.do(HoldQueue("q", 0))
    assert world.woken == ["q"] and len(world.pull()) == 1


def test_an_owner_has_so_many_active_jobs(world: World) -> None:
    fill(world)
    assert len(world.pull(count=5, owner="w", token_seed="s", active_max=3)) == 3
    assert world.pull(count=5, owner="w", token_seed="s", active_max=3) == []
    assert len(world.pull(count=2, owner="other", token_seed="s", active_max=2)) == 2
    world.do(AckJob("bull:q:1", "s-0"))
    assert len(world.pull(count=5, owner="w", token_seed="u", active_max=3)) == 1
    assert world.pull(owner="new", active_max=0) == []


def test_time_alone_opens_a_queue_only_where_nothing_else_is_needed(world: World) -> None:
    queue, now_ms = queue_of(world), world.now_ms
    assert queue.next_free_ms(now_ms) is None
    fill(world)
    assert queue.next_free_ms(now_ms) == now_ms
    world.do(SetWindow("q", 1, 500))
    world.do(SetRateLimit("q", 1, 2000))
    [job] = world.pull()
    assert queue.next_free_ms(now_ms) == now_ms + 2000
    world.do(HoldQueue("q", 3000))
    assert queue.next_free_ms(now_ms) == now_ms + 3000
    world.do(SetConcurrency("q", 1))
    assert queue.next_free_ms(now_ms) is None
    world.do(AckJob(job.id))
    assert queue.next_free_ms(now_ms) == now_ms + 3000
    world.do(SetWindow("q", 0, 500))
    assert queue.next_free_ms(now_ms) is None
    world.do(SetWindow("q", 1, 500))
    world.do(PauseQueue("q"))
    assert queue.next_free_ms(now_ms) is None


def test_limits_are_part_of_the_image(world: World) -> None:
    fill(world)
    world.do(SetWindow("q", 2, 500))
    world.do(PullJobs("q"))
    world.do(HoldQueue("other", 500))
    restored = world.restored().state
    queue = restored.queues["q"]
    assert (queue.window_at, queue.window_count, queue.number) == (world.now_ms, 1, 10)
    assert restored.queues["other"].held_until == world.now_ms + 500
    assert queue.claimable(world.now_ms) == 1

"""Processing by hand and what goes wrong with it: locks, moves, stalls, the next job in the same step, retries.

Sections are those of the BullMQ rules that were observed in its own runs: states (1), manual processing (2), stalled (3).
"""

import pytest

from quorumq.node.machine.lifecycle import clock
from quorumq.node.machine.operations.job_reads import GetLogs
from quorumq.node.machine.operations.jobs import AddLog, MoveToDelayed, MoveToWait, RemoveJob, RetryJob
from quorumq.node.machine.operations.queue_reads import ListStatus
from quorumq.node.machine.operations.queues import CheckStalled, RetryJobs
from quorumq.node.machine.operations.runs import (
    AckJob,
    ExtendLock,
    FailJob,
    FinishAndPull,
    ProgressJob,
    PullJobs,
    ReleaseJobs,
)
from quorumq.node.machine.operations.settings import SetDefaults
from quorumq.node.machine.refusals import JobInWrongState, JobLocked, JobNotActive, JobNotFound, LockLost
from quorumq.node.machine.state import Job, own_id
from quorumq.node.machine.state.job import STALLED_TOO_OFTEN
from tests.support.world import World


def take(world: World, token: str = "t", lock_ms: int = 30_000, count: int = 1) -> list[Job]:
    return world.pull(count=count, token=token, lock_ms=lock_ms)


def names(jobs: list[Job]) -> list[str]:
    return [own_id(job) for job in jobs]


def waiting(world: World) -> list[str]:
    return names(world.ask(ListStatus("q", "waiting")))


# -- Locks (section 2)


def test_a_clients_token_holds_many_jobs(world: World) -> None:
    one, two = world.add(), world.add()
    reply = world.do(PullJobs("q", 5, token="mine", lock_ms=1000))
    assert (reply.jobs, reply.tokens) == ([one, two], ["mine", "mine"])
    assert {one.lock_until, two.lock_until} == {world.now_ms + 1000} and one.locked
    with pytest.raises(LockLost):
        world.do(AckJob(one.id, "other"))
    world.do(AckJob(one.id, "mine"))
    world.do(ExtendLock(two.id, "mine", 9000))
    world.wait(5000)
    world.do(AckJob(two.id, "mine"))


def test_a_lock_that_ran_out_holds_nothing_once_somebody_else_has_the_job(world: World) -> None:
    job = world.add()
    take(world, lock_ms=1000)
    world.wait(1000)
    for act in (FailJob(job.id, "t"), MoveToWait(job.id, "t"), ExtendLock(job.id, "t")):
        with pytest.raises(JobNotActive):
            world.do(act)
    assert take(world, "other") == [job]
    for act in (AckJob(job.id, "t"), FailJob(job.id, "t"), MoveToWait(job.id, "t"), ExtendLock(job.id, "t")):
        with pytest.raises(LockLost):
            world.do(act)
    world.do(AckJob(job.id, "other"))
    with pytest.raises(JobNotActive):
        world.do(AckJob(job.id, "other"))


def test_a_result_that_comes_after_the_lock_is_not_lost_while_nobody_else_has_the_job(world: World) -> None:
    job = world.add()
    take(world, lock_ms=1000)
    world.wait(1000)
    world.do(AckJob(job.id, "t", b"1"))
    assert (job.state, job.result, job.starts, job.attempts, job.stalls) == ("completed", b"1", 1, 0, 1)


def test_back_to_wait_is_first_and_counts_no_run(world: World) -> None:
    first = world.add(own="a", max_attempts=2)
    world.add(own="b")
    take(world)
    began = world.now_ms
    world.wait(10)
    world.do(MoveToWait(first.id, "t"))
    assert (waiting(world), first.attempts, first.starts, first.processed_at) == (["a", "b"], 0, 1, began)
    assert take(world) == [first]
    world.do(AckJob(first.id, "t"))
    assert (first.attempts, first.starts) == (0, 2)


def test_back_to_wait_is_first_of_its_priority(world: World) -> None:
    low = [world.add(own=f"p{n}", priority=-5) for n in range(2)]
    assert take(world) == low[:1]
    world.add(own="plain")
    world.do(MoveToWait(low[0].id, "t"))
    assert names(take(world, count=3)) == ["plain", "p0", "p1"]


def test_moved_to_delayed_until_a_time_and_then_behind_the_others(world: World) -> None:
    job = world.add(own="a")
    world.add(own="b")
    take(world)
    world.do(MoveToDelayed(job.id, token="t", until_ms=world.now_ms + 400))
    assert (job.state, job.delay_left, job.attempts, job.starts) == ("delayed", 400, 0, 1)
    world.wait(399)
    assert job.state == "delayed" and job.delay_left == 400
    world.wait(1)
    assert (waiting(world), job.delay_left) == (["b", "a"], 0)


def test_a_time_that_is_over_delays_nothing(world: World) -> None:
    job = world.add()
    take(world)
    world.do(MoveToDelayed(job.id, token="t", until_ms=5))
    assert job.state == "waiting"


def test_a_job_given_back_unseen_was_never_started(world: World) -> None:
    job = world.add()
    take(world)
    world.do(ReleaseJobs([(job.id, job.fence)]))
    assert (job.state, job.starts, job.processed_at) == ("waiting", 0, None)


def test_progress_may_be_any_json(world: World) -> None:
    job = world.add()
    take(world)
    world.do(ProgressJob(job.id, 0, token="t", value=b'{"pct":70}'))
    assert (job.progress, job.progress_json) == (0, b'{"pct":70}')
    world.do(ProgressJob(job.id, 50, token="t"))
    assert (job.progress, job.progress_json) == (50, None)


def test_the_newest_lines_are_kept(world: World) -> None:
    job = world.add()
    counts = [world.do(AddLog(job.id, f"line {n}", keep=2)).count for n in range(3)]
    assert counts == [1, 2, 2]
    assert [line.message for line in world.ask(GetLogs(job.id))] == ["line 1", "line 2"]
    assert world.do(AddLog(job.id, "more", keep=100_000)).count == 3


# -- Removing (section 2)


def test_a_job_under_a_lock_cannot_be_removed(world: World) -> None:
    job = world.add()
    take(world, lock_ms=1000)
    with pytest.raises(JobLocked):
        world.do(RemoveJob(job.id))
    world.do(AckJob(job.id, "t"))
    world.do(RemoveJob(job.id))
    with pytest.raises(JobNotFound):
        world.do(RemoveJob(job.id))


@pytest.mark.parametrize("state", ["waiting", "delayed", "active", "waiting-children", "completed", "failed"])
def test_a_job_without_a_lock_can_be_removed_in_any_state(world: World, state: str) -> None:
    job = world.a_job(state)
    world.event_names()
    world.do(RemoveJob(job.id))
    assert world.state_of(job.id) == "unknown"
    assert world.event_names() == ["job:removed"]


# -- The next one in the same step (section 2)


def test_completing_takes_the_next_one(world: World) -> None:
    first, second = world.add(), world.add()
    take(world)
    reply = world.do(FinishAndPull(AckJob(first.id, "t", b"1"), PullJobs("q", token="t2", lock_ms=1000)))
    assert (reply.job, reply.next.jobs, reply.next.tokens) == (first, [second], ["t2"])
    assert (first.state, second.state, second.token) == ("completed", "active", "t2")
    empty = world.do(FinishAndPull(AckJob(second.id, "t2"), PullJobs("q", token="t3")))
    assert (empty.job.state, empty.next.jobs, empty.next.tokens) == ("completed", [], [])


def test_failing_takes_the_next_one_which_may_be_the_same(world: World) -> None:
    job = world.add(max_attempts=2)
    take(world)
    reply = world.do(FinishAndPull(FailJob(job.id, "t", "e"), PullJobs("q", token="t")))
    assert (reply.next.jobs, job.state, job.attempts, job.starts) == ([job], "active", 1, 2)


def test_a_refused_end_takes_nothing(world: World) -> None:
    first, second = world.add(), world.add()
    take(world)
    with pytest.raises(LockLost):
        world.do(FinishAndPull(AckJob(first.id, "wrong"), PullJobs("q", token="t")))
    assert (first.state, second.state) == ("active", "waiting")


# -- Stalls (section 3)


def test_a_lost_worker_puts_the_job_first_without_a_failed_run(world: World) -> None:
    job = world.add(own="a", max_attempts=5)
    world.add(own="b")
    take(world, lock_ms=1000)
    world.event_names()
    world.wait(1000)
    assert (waiting(world), job.stalls, job.attempts, job.starts) == (["a", "b"], 1, 0, 1)
    assert world.event_names() == ["job:lock-expired", "job:stalled", "job:waiting"]


def test_stalling_more_often_than_allowed_fails_for_good(world: World) -> None:
    job = world.add(max_attempts=5, stalls_allowed=1)
    for stalls in (1, 2):
        assert take(world, lock_ms=1000) == [job]
        world.wait(1000)
        assert job.stalls == stalls
    assert (job.state, job.error, job.attempts, job.starts) == ("failed", STALLED_TOO_OFTEN, 1, 2)


def test_the_queue_may_say_how_many_stalls_are_allowed(world: World) -> None:
    world.do(SetDefaults("q", stalls_allowed=0))
    job, other = world.add(stalls_allowed=1), world.push("q")
    take(world, lock_ms=1000, count=2)
    world.wait(1000)
    assert (job.state, world.job(other).state) == ("failed", "waiting")
    world.do(SetDefaults("q"))
    job = world.add(stalls_allowed=1)
    take(world, lock_ms=1000, count=2)
    world.wait(1000)
    assert job.state == "waiting"


def test_a_schedulers_job_may_stall_for_ever(world: World) -> None:
    job = world.add(own="repeat:nightly:1", stalls_allowed=0)
    for _ in range(3):
        assert take(world, lock_ms=1000) == [job]
        world.wait(1000)
    assert (job.state, job.stalls) == ("waiting", 3)


def test_stalls_of_jobs_without_a_rule_of_their_own_are_failed_runs(world: World) -> None:
    job = world.job(world.push("q", max_attempts=5))
    world.pull(owner="w", token_seed="t", lock_ms=1000)
    world.wait(1000)
    assert (job.attempts, job.stalls, job.token) == (1, 1, "t-0")


def test_silence_without_a_lock_is_the_same_stall(world: World) -> None:
    job = world.add()
    assert world.pull() == [job]
    world.wait(30_000)
    assert (job.state, job.stalls, job.attempts) == ("waiting", 1, 0)


def test_the_check_reports_what_is_dealt_with_in_its_entry(world: World) -> None:
    again, last = world.add(stalls_allowed=1), world.add(stalls_allowed=0)
    other = world.add("other", stalls_allowed=1)
    take(world, lock_ms=1000, count=2)
    world.pull("other", token="t", lock_ms=1000)
    assert world.do(CheckStalled("q")).count == 0
    world.now_ms += 1000
    checked = world.do(CheckStalled("q"))
    assert (checked.waiting, checked.failed, checked.count) == ([again.id], [last.id], 2)
    assert other.state == "waiting" and world.do(CheckStalled("q")).count == 0
    assert world.do(CheckStalled("unknown")).count == 0


def test_the_check_reaches_locks_that_time_has_left_for_later(world: World) -> None:
    world.add()
    take(world, lock_ms=1000)
    state = world.machine.state
    clock.advance(state, world.now_ms + 1000, limit=0)
    clock.check_stalled(state, state.queues["q"])
    assert waiting(world) == ["1"]
    world.now_ms += 1000


# -- Retrying (section 1)


def test_a_failed_job_is_retried_with_its_attempts_as_they_are(world: World) -> None:
    job = world.add(own="a", max_attempts=2)
    world.add(own="b")
    for _ in range(2):
        assert job in take(world, count=2)
        world.do(FailJob(job.id, "t", "boom"))
    assert job.state == "failed"
    world.event_names()
    world.do(RetryJob(job.id, "failed"))
    assert world.event_names() == ["job:waiting"]
    assert (job.state, job.attempts, job.starts, job.error) == ("waiting", 2, 2, None)
    assert (job.started_at, job.finished_at, job.processed_at) == (None, None, None)
    # Its attempts are used up, so one more failure is the last.
    assert take(world) == [job]
    world.do(FailJob(job.id, "t"))
    assert (job.state, job.attempts) == ("failed", 3)


def test_a_completed_job_is_retried_without_its_result(world: World) -> None:
    job = world.add()
    take(world)
    world.do(AckJob(job.id, "t", b"1"))
    world.do(RetryJob(job.id))
    assert (job.state, job.result, job.attempts, job.starts) == ("waiting", None, 1, 1)
    assert world.machine.state.queue("q").completed_bytes == 0


def test_attempts_may_begin_anew(world: World) -> None:
    job = world.add()
    take(world)
    world.do(FailJob(job.id, "t"))
    world.do(RetryJob(job.id, reset_attempts=True))
    assert (job.attempts, job.starts) == (0, 1)


@pytest.mark.parametrize(("lifo", "order"), [(False, ["a", "b"]), (True, ["b", "a"])])
def test_a_retried_job_goes_to_the_back_or_first(world: World, lifo: bool, order: list[str]) -> None:
    job = world.add(own="b", lifo=lifo)
    take(world)
    world.do(FailJob(job.id, "t"))
    world.add(own="a")
    world.do(RetryJob(job.id))
    assert waiting(world) == order


@pytest.mark.parametrize("state", ["waiting", "delayed", "active", "waiting-children"])
def test_only_a_finished_job_is_retried(world: World, state: str) -> None:
    job = world.a_job(state)
    with pytest.raises(JobInWrongState):
        world.do(RetryJob(job.id))


@pytest.mark.parametrize(("state", "wanted"), [("completed", "failed"), ("failed", "completed")])
def test_only_a_job_of_the_end_asked_for_is_retried(world: World, state: str, wanted: str) -> None:
    job = world.a_job(state)
    with pytest.raises(JobInWrongState):
        world.do(RetryJob(job.id, wanted))
    with pytest.raises(JobNotFound):
        world.do(RetryJob("nope"))


def test_many_are_retried_oldest_end_first(world: World) -> None:
    jobs = [world.add(own=own) for own in "abcd"]
    ends = []
    for job in reversed(jobs):
        world.wait(10)
        ends.append(world.now_ms)
        world.pull(count=4)
        world.do(FailJob(job.id))
    assert world.do(RetryJobs("q", until_ms=ends[2], count=2)).count == 2
    assert waiting(world) == ["d", "c"]
    assert world.do(RetryJobs("q", until_ms=ends[2], so_far=5)).count == 6
    assert world.do(RetryJobs("q")).count == 1
    assert waiting(world) == ["d", "c", "b", "a"]
    assert world.do(RetryJobs("q", "completed")).count == world.do(RetryJobs("unknown")).count == 0


def test_many_completed_jobs_are_retried(world: World) -> None:
    job = world.add()
    take(world)
    world.do(AckJob(job.id, "t"))
    assert world.do(RetryJobs("q", "completed")).count == 1 and job.state == "waiting"

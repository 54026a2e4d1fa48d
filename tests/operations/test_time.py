"""What time does: delays, time to live, timeouts, stalls, expired locks, and the fences that decide who is late."""

from typing import Any

import pytest

from quorumq.node.machine.lifecycle.clock import ADVANCE_MAX
from quorumq.node.machine.operations.job_reads import GetProgress
from quorumq.node.machine.operations.jobs import CancelJob, PromoteJob
from quorumq.node.machine.operations.queue_reads import QueueCounts
from quorumq.node.machine.operations.runs import (
    AckJob,
    ExtendLock,
    ExtendLocks,
    FailJob,
    HeartbeatJob,
    HeartbeatJobs,
    ProgressJob,
)
from quorumq.node.machine.operations.settings import SetStallConfig
from quorumq.node.machine.refusals import JobInWrongState, JobNotActive, JobNotFound, JobNotLocked, LockLost
from quorumq.node.machine.state.state import GRACE_MS
from tests.support.world import World


def test_due_jobs_move_oldest_first_and_a_bounded_number_at_a_time(world: World) -> None:
    for i in range(ADVANCE_MAX + 10):
        world.push("q", f"j{i}", delay_ms=1000 + i % 3)
    world.now_ms += 5000
    world.tick()
    assert world.ask(QueueCounts("q")).waiting == ADVANCE_MAX
    assert world.machine.state.next_due_ms(world.now_ms) is not None
    world.tick()
    counts = world.ask(QueueCounts("q"))
    assert (counts.waiting, counts.delayed) == (ADVANCE_MAX + 10, 0)


def test_the_clock_never_goes_back(world: World) -> None:
    job = world.job(world.push())
    world.now_ms -= 10_000
    later = world.job(world.push())
    assert later.created_at == job.created_at


def test_a_waiting_job_without_wishes_has_no_alarm(world: World) -> None:
    job = world.a_job()
    assert job.due == 0
    assert world.machine.state.next_due_ms(world.now_ms) is None


def test_promote_lets_a_delayed_job_wait_no_longer(world: World) -> None:
    job = world.a_job("delayed")
    world.woken.clear()
    world.do(PromoteJob(job.id))
    assert (job.state, job.run_at, world.woken) == ("waiting", world.now_ms, ["q"])
    with pytest.raises(JobInWrongState):
        world.do(PromoteJob(job.id))
    with pytest.raises(JobNotFound):
        world.do(PromoteJob("nope"))


# -- Time to live


@pytest.mark.parametrize("state", ["waiting", "delayed", "waiting-children"])
def test_a_job_that_nobody_took_in_time_vanishes(world: World, state: str) -> None:
    job = world.a_job(state, ttl_ms=500, unique_key="k")
    world.wait(499)
    assert world.state_of(job.id) == state
    world.event_names()
    world.wait(1)
    assert world.state_of(job.id) == "unknown"
    assert world.event_names()[-1] == "job:expired"
    assert world.push(unique_key="k") != job.id


def test_a_job_taken_in_time_may_be_acknowledged_late(world: World) -> None:
    job = world.a_job("active", ttl_ms=500)
    world.wait(1000)
    world.do(AckJob(job.id))
    assert job.state == "completed"


def test_a_time_to_live_of_nothing_is_over_at_once(world: World) -> None:
    job_id = world.push(ttl_ms=0)
    assert world.state_of(job_id) == "unknown"
    assert world.pull() == []


# -- Timeouts


def test_a_run_that_takes_too_long_has_failed(world: World) -> None:
    job = world.a_job("active", timeout_ms=300, max_attempts=2, backoff=0)
    world.wait(299)
    assert job.state == "active"
    world.wait(1)
    assert (job.state, job.attempts, job.error) == ("waiting", 1, "Job timeout exceeded")
    world.pull()
    world.wait(300)
    assert job.state == "failed"
    assert job.failures is not None and job.failures.reason == "timeout"
    with pytest.raises(JobNotActive):
        world.do(AckJob(job.id))


@pytest.mark.parametrize("lock", [{}, {"owner": "w", "lock_ms": 60_000}], ids=["unlocked", "locked"])
@pytest.mark.parametrize("detection", [True, False], ids=["with stall detection", "without"])
def test_a_timeout_is_a_failed_run_and_a_stall(leveled: World, detection: bool, lock: dict[str, Any]) -> None:
    """Two stalls are too many, whatever the attempts; the error, the reason and the backoff are those of a failure."""
    world, new = leveled, leveled.machine.state.level >= 1
    world.do(SetStallConfig("q", enabled=detection, max_stalls=2))
    job = world.job(world.push(timeout_ms=300, max_attempts=5, backoff=100))
    for run in (1, 2):
        assert world.pull(**lock) == [job]
        world.event_names()
        world.wait(299)
        assert job.state == "active"
        world.wait(1)
        told = world.event_names()
        final = new and run == 2
        assert (job.state, job.attempts, job.error) == ("failed" if final else "delayed", run, "Job timeout exceeded")
        assert (job.stalls, told.count("job:stalled"), told.count("job:timeout")) == (run * new, int(new), 1)
        assert final or job.run_at == world.now_ms + 100 * run
        world.wait(100 * run)
    assert job.failures is not None and [run.reason for run in job.failures.runs] == ["timeout", "timeout"]
    assert job.failures.reason == ("timeout" if new else None)


def test_a_heartbeat_does_not_stop_a_timeout(world: World) -> None:
    job = world.a_job("active", timeout_ms=300, max_attempts=1)
    world.wait(200)
    world.do(HeartbeatJob(job.id))
    world.wait(100)
    assert job.state == "failed"


def test_a_timeout_of_nothing_is_none(world: World) -> None:
    job = world.a_job("active", timeout_ms=0)
    world.wait(1000)
    assert job.state == "active"


# -- Stalls


def test_a_silent_job_is_taken_from_its_worker(world: World) -> None:
    job = world.a_job("active", backoff=10)
    world.wait(29_999)
    assert job.state == "active"
    world.event_names()
    world.wait(1)
    assert (job.state, job.attempts, job.stalls) == ("delayed", 1, 1)
    assert job.run_at == world.now_ms + 10
    assert "job:stalled" in world.event_names()
    world.wait(10)
    assert world.pull() == [job]


def test_heartbeats_and_progress_are_signs_of_life(world: World) -> None:
    job = world.a_job("active")
    for sign in (HeartbeatJob(job.id), ProgressJob(job.id, 5), HeartbeatJobs([job.id])):
        world.wait(29_000)
        world.do(sign)
    assert (job.state, job.last_heartbeat) == ("active", world.now_ms)
    world.wait(30_000)
    assert job.stalls == 1


def test_too_many_stalls_end_in_the_dead_letter_queue(world: World) -> None:
    job = world.job(world.push(max_attempts=9, backoff=0))
    for _ in range(3):
        assert world.pull() == [job]
        world.wait(30_000)
    assert (job.state, job.stalls) == ("failed", 3)
    assert job.failures is not None and job.failures.reason == "stalled"
    assert [run.error for run in job.failures.runs] == [None, None, "Job stalled 3 times"]
    assert job.error == "Job stalled 3 times"


def test_a_stall_uses_up_the_attempts(world: World) -> None:
    job = world.a_job("active", max_attempts=1)
    world.wait(30_000)
    assert job.state == "failed"
    assert job.failures is not None and job.failures.reason == "max_attempts_exceeded"


# -- Locks


def test_an_expired_lock_puts_the_job_back_without_backoff(world: World) -> None:
    first, second = world.push(), world.push()
    job = world.pull(owner="w", lock_ms=1000, token_seed="s")[0]
    world.wait(1000)
    assert (job.state, job.attempts, job.stalls, job.locked) == ("waiting", 1, 1, False)
    assert {"job:lock-expired", "job:stalled"} <= set(world.event_names())
    assert world.pull_ids(count=2) == [first, second]


def test_a_locked_job_is_silent_as_long_as_its_lock_lasts(world: World) -> None:
    job = world.job(world.push())
    world.pull(owner="w", lock_ms=300_000, token_seed="s")
    world.wait(299_999)
    assert job.state == "active"


def test_an_old_token_completes_a_job_that_nobody_took(world: World) -> None:
    job = world.a_job("locked")
    token = job.token
    world.wait(30_000)
    assert job.state == "waiting"
    with pytest.raises(JobNotActive):
        world.do(AckJob(job.id))
    with pytest.raises(JobNotActive):
        world.do(AckJob(job.id, "wrong"))
    with pytest.raises(JobNotActive):
        world.do(FailJob(job.id, token))
    world.do(AckJob(job.id, token, b"1"))
    assert (job.state, job.result) == ("completed", b"1")
    assert world.pull() == []
    with pytest.raises(JobNotActive):
        world.do(AckJob(job.id, token))


@pytest.mark.parametrize("owner", ["w2", None])
def test_an_old_token_is_worth_nothing_once_somebody_took_the_job(world: World, owner: str | None) -> None:
    job = world.a_job("locked")
    token, fence = job.token, job.fence
    world.wait(30_000)
    world.pull(owner=owner, token_seed="new")
    assert job.fence > fence
    if owner is not None:
        with pytest.raises(LockLost):
            world.do(AckJob(job.id, token))
        assert job.state == "active"
    assert job.token == (None if owner is None else "new-0")


def test_a_lock_lasts_from_its_last_heartbeat(world: World) -> None:
    job = world.job(world.push())
    world.pull(owner="w", lock_ms=1000, token_seed="s")
    world.wait(900)
    world.do(HeartbeatJob(job.id, "s-0"))
    assert job.lock_until == world.now_ms + 1000
    world.do(HeartbeatJob(job.id, "s-0", 5000))
    assert job.lock_until == world.now_ms + 5000
    world.do(HeartbeatJob(job.id))
    assert job.lock_until == world.now_ms + 5000
    with pytest.raises(LockLost):
        world.do(HeartbeatJob(job.id, "bad"))


def test_heartbeat_refusals(world: World) -> None:
    active, waiting = world.a_job("active"), world.a_job("delayed")
    with pytest.raises(LockLost):
        world.do(HeartbeatJob(active.id, "bogus"))
    with pytest.raises(JobNotActive):
        world.do(HeartbeatJob(waiting.id))
    with pytest.raises(JobNotFound):
        world.do(HeartbeatJob("nope"))
    assert world.do(HeartbeatJobs([active.id, "nope", waiting.id])).count == 1
    assert world.do(HeartbeatJobs([active.id], ["bogus"])).count == 0


def test_extending_locks(world: World) -> None:
    locked, unlocked = world.a_job("locked"), world.a_job("active")
    world.do(ExtendLock(locked.id, locked.token, 60_000))
    assert locked.lock_until == world.now_ms + 60_000
    world.do(ExtendLock(locked.id))
    assert locked.lock_until == world.now_ms + 60_000
    with pytest.raises(LockLost):
        world.do(ExtendLock(locked.id, "bad", 60_000))
    with pytest.raises(JobNotLocked):
        world.do(ExtendLock(unlocked.id, None, 60_000))
    with pytest.raises(JobNotFound):
        world.do(ExtendLock("nope"))
    batch = ExtendLocks([locked.id, "nope", unlocked.id], [locked.token, "x", None], [10_000, 10_000, 10_000])
    assert world.do(batch).count == 1
    assert locked.lock_until == world.now_ms + 10_000


# -- Progress and cancelling


def test_progress_is_clamped_and_its_message_stays(world: World) -> None:
    job = world.a_job("active")
    for given, kept in ((75, 75), (150, 100), (-5, 0), (12.5, 12.5)):
        world.do(ProgressJob(job.id, given, "working" if given == 75 else None))
        progress = world.ask(GetProgress(job.id))
        assert (progress.progress, progress.message) == (kept, "working")
    with pytest.raises(JobNotActive):
        world.do(ProgressJob(world.a_job("delayed").id, 5))


@pytest.mark.parametrize("state", ["waiting", "delayed", "active", "locked", "waiting-children"])
def test_an_unfinished_job_can_be_cancelled(world: World, state: str) -> None:
    job = world.a_job(state, unique_key="k", priority=3)
    world.do(CancelJob(job.id))
    assert world.state_of(job.id) == "unknown"
    assert world.event_names()[-1] == "job:removed"
    for act in (AckJob(job.id, "any"), HeartbeatJob(job.id)):
        with pytest.raises(JobNotFound):
            world.do(act)
    counts = world.ask(QueueCounts("q"))
    assert (counts.waiting, counts.prioritized, counts.active, counts.waiting_children) == (0, 0, 0, 0)


@pytest.mark.parametrize("state", ["completed", "failed"])
def test_a_finished_job_cannot_be_cancelled(world: World, state: str) -> None:
    job = world.a_job(state)
    with pytest.raises(JobInWrongState):
        world.do(CancelJob(job.id))
    assert job.state == state


# -- When nobody led for a while


@pytest.mark.parametrize(
    ("options", "lock"),
    [({}, {"owner": "w", "lock_ms": 1500}), ({}, {}), ({"timeout_ms": 1500}, {"owner": "w", "lock_ms": 60_000})],
    ids=["lock", "silence", "timeout"],
)
def test_a_worker_that_nobody_could_hear_keeps_its_run(
    world: World, options: dict[str, int], lock: dict[str, object]
) -> None:
    world.push("q", "j", **options)
    (job,) = world.pull(**lock)
    world.now_ms += 40_000
    # The entry that brings the worker's word comes first of all, or a moment later.
    assert world.resume() == []
    assert job.state == "active"
    world.wait(GRACE_MS - 1)
    world.do(AckJob("j", job.token))
    assert (job.state, job.attempts, job.stalls) == ("completed", 0, 0)


def test_a_worker_that_says_nothing_then_either_loses_it(world: World) -> None:
    world.push("q", "j")
    (job,) = world.pull(owner="w", lock_ms=1500)
    world.now_ms += 40_000
    world.resume()
    world.wait(GRACE_MS)
    assert (job.state, job.stalls) == ("waiting", 1)


def test_a_sign_of_life_within_the_grace_counts_in_full(world: World) -> None:
    world.push("q", "j")
    (job,) = world.pull(owner="w", lock_ms=1500)
    world.now_ms += 40_000
    world.resume(HeartbeatJob("j", job.token))
    world.wait(1499)
    assert job.state == "active"
    world.wait(1)
    assert job.stalls == 1


def test_the_grace_is_part_of_the_state(world: World) -> None:
    world.push("q", "j")
    world.pull(owner="w", lock_ms=GRACE_MS // 2)
    world.resume()
    copy = world.restored()
    world.wait(GRACE_MS - 1)
    copy.apply(world.machine.index, world.now_ms, [])
    assert copy.state.jobs["j"].state == world.machine.state.jobs["j"].state == "active"

"""Managing jobs and queues: data, priority, delay, logs, cleaning, the dead letter queue, limits, settings, repeats."""

from __future__ import annotations

import pytest

from quorumq.node.machine.operations.dlq import ListDlq, PurgeDlq, RetryDlq
from quorumq.node.machine.operations.job_reads import GetLogs, GetResult
from quorumq.node.machine.operations.jobs import (
    AddLog,
    CancelJob,
    ChangeDelay,
    ChangePriority,
    ClearLogs,
    DiscardJob,
    MoveToDelayed,
    MoveToWait,
    PushJobs,
    UpdateJobData,
)
from quorumq.node.machine.operations.queue_reads import ListJobs, ListQueues, QueueCounts
from quorumq.node.machine.operations.queues import (
    CleanQueue,
    DrainQueue,
    ObliterateQueue,
    PauseQueue,
    PromoteJobs,
    RetryCompleted,
)
from quorumq.node.machine.operations.runs import AckJob, FailJob, ReleaseJobs
from quorumq.node.machine.operations.settings import (
    ClearConcurrency,
    ClearRateLimit,
    GetQueueSettings,
    SetConcurrency,
    SetDlqConfig,
    SetRateLimit,
    SetRetention,
    SetStallConfig,
)
from quorumq.node.machine.refusals import JobInWrongState, JobNotActive, JobNotFound, LockLost, LockRequired
from quorumq.node.machine.state import Repeat, job_spec, logs
from quorumq.node.machine.state.logs import LOG_LINES_MAX, LOGGED_JOBS_MAX
from tests.support.world import World, encode

UNFINISHED = ["waiting", "delayed", "active", "locked", "waiting-children"]
FINISHED = ["completed", "failed"]

# -- One job


@pytest.mark.parametrize("state", UNFINISHED)
def test_data_of_an_unfinished_job_can_be_replaced(world: World, state: str) -> None:
    job = world.a_job(state)
    world.do(UpdateJobData(job.id, b'{"new":1}'))
    assert job.data == b'{"new":1}'
    assert world.event_names()[-1] == "job:data-updated"


@pytest.mark.parametrize("state", FINISHED)
@pytest.mark.parametrize(
    "act", [lambda i: UpdateJobData(i, b"1"), lambda i: ChangePriority(i, 1), DiscardJob, CancelJob]
)
def test_a_finished_job_stays_as_it_is(world: World, state: str, act: object) -> None:
    job = world.a_job(state)
    with pytest.raises(JobInWrongState):
        world.do(act(job.id))  # type: ignore[operator]
    assert world.state_of(job.id) == state


@pytest.mark.parametrize(
    "operation",
    [
        UpdateJobData("nope", b"1"),
        ChangePriority("nope", 1),
        MoveToDelayed("nope", 1),
        ChangeDelay("nope", 1),
        DiscardJob("nope"),
        AddLog("nope", "m"),
        MoveToWait("nope"),
    ],
)
def test_an_unknown_job_is_not_found(world: World, operation: object) -> None:
    with pytest.raises(JobNotFound):
        world.do(operation)  # type: ignore[arg-type]


def test_a_changed_priority_changes_the_place(world: World) -> None:
    first, second, delayed = world.push(), world.push(), world.push(delay_ms=50)
    world.do(ChangePriority(second, 100))
    world.do(ChangePriority(delayed, 200))
    assert world.event_names()[-1] == "job:priority-changed"
    assert (world.state_of(first), world.state_of(second)) == ("waiting", "prioritized")
    world.wait(50)
    assert world.pull_ids(count=3) == [delayed, second, first]
    with pytest.raises(JobInWrongState):
        world.do(ChangePriority(first, 1))


def test_a_job_put_back_comes_first_and_its_run_counts_for_nothing(world: World) -> None:
    first, second, third = (world.push() for _ in range(3))
    world.pull()
    token = world.pull(owner="w", token_seed="t")[0].token
    with pytest.raises(LockRequired):
        world.do(MoveToWait(second))
    with pytest.raises(LockLost):
        world.do(MoveToWait(second, "bad"))
    with pytest.raises(JobNotActive):
        world.do(MoveToWait(third))
    world.do(MoveToWait(second, token))
    world.do(MoveToWait(first))
    assert world.job(second).attempts == 0
    assert world.pull_ids(count=3) == [first, second, third]


@pytest.mark.parametrize("act", [MoveToDelayed, ChangeDelay])
@pytest.mark.parametrize("state", ["waiting", "delayed", "active", "locked"])
def test_a_job_can_be_made_to_wait(world: World, act: type, state: str) -> None:
    job = world.a_job(state)
    world.do(act(job.id, 60_000, token=job.token))
    assert (job.state, job.run_at, job.token, job.attempts) == ("delayed", world.now_ms + 60_000, None, 0)
    with pytest.raises(JobNotActive):
        world.do(AckJob(job.id))
    world.do(act(job.id, 0))
    assert job.state == "waiting"
    world.do(act(job.id, -5))
    assert world.pull() == [job]


def test_only_the_holder_delays_a_locked_job_when_a_token_is_shown(world: World) -> None:
    job = world.a_job("locked")
    with pytest.raises(LockLost):
        world.do(MoveToDelayed(job.id, 10, "bad"))
    world.do(MoveToDelayed(job.id, 10, job.token))
    assert job.state == "delayed"


@pytest.mark.parametrize("state", UNFINISHED)
def test_a_discarded_job_is_in_the_dead_letter_queue(world: World, state: str) -> None:
    job = world.a_job(state, unique_key="k")
    world.do(DiscardJob(job.id))
    assert (job.state, job.attempts) == ("failed", 0)
    assert job.failures is not None and (job.failures.reason, job.failures.runs) == ("unknown", [])
    assert world.ask(ListDlq("q")).jobs == [job]
    assert world.push(unique_key="k") != job.id
    assert world.event_names().count("job:discarded") == 1


# -- Logs


def test_logs_are_kept_within_bounds(world: World) -> None:
    job = world.a_job()
    assert world.do(AddLog(job.id, "Connecting", "warn")).count == 1
    for i in range(LOG_LINES_MAX + 4):
        world.do(AddLog(job.id, f"m{i}"))
    lines = world.ask(GetLogs(job.id))
    assert [line.message for line in lines] == [f"m{i}" for i in range(4, LOG_LINES_MAX + 4)]
    assert (lines[0].at, lines[0].level) == (world.now_ms, "info")
    world.do(ClearLogs(job.id, keep=2))
    assert len(world.ask(GetLogs(job.id))) == 2
    world.do(ClearLogs(job.id))
    assert world.ask(GetLogs(job.id)) == []
    world.do(ClearLogs("nope"))
    assert world.ask(GetLogs("nope")) == []


def test_lines_of_an_unknown_job_are_refused_to_whoever_asks_for_a_known_one(leveled: World) -> None:
    (outcome,) = leveled.apply(ClearLogs("nope", known=True))
    assert isinstance(outcome, JobNotFound) == (leveled.machine.state.level >= 1)
    with pytest.raises(JobNotFound):
        leveled.ask(GetLogs("nope", known=True))


def test_logs_leave_with_their_job(world: World) -> None:
    job = world.a_job("active", remove_on_complete=True)
    world.do(AddLog(job.id, "m"))
    world.do(AckJob(job.id))
    assert world.ask(GetLogs(job.id)) == []


def test_logs_are_bounded_in_bytes_from_level_1_on(leveled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = logs.LINE_BYTES + 1
    monkeypatch.setattr(logs, "JOB_BYTES_MAX", 3 * weight)
    monkeypatch.setattr(logs, "ALL_BYTES_MAX", 5 * weight)
    jobs = [leveled.a_job(queue=name) for name in "pqr"]
    for job in jobs:
        for message in "abcd":
            leveled.do(AddLog(job.id, message))
    left = ["".join(line.message for line in leveled.ask(GetLogs(job.id))) for job in jobs]
    # All together have room for five lines: with the third job's first two lines the first one's go, with its third the second one's.
    assert left == (["", "", "bcd"] if leveled.machine.state.level >= 1 else ["abcd"] * 3)
    found = leveled.machine.state.logs
    assert found.size == sum(found.sizes.values()) == weight * sum(map(len, left))
    assert leveled.restored().state.logs.sizes == found.sizes


def test_the_logs_of_the_job_logged_to_longest_ago_go_first() -> None:
    world = World()
    jobs = [world.a_job(queue=f"q{i % 100}") for i in range(LOGGED_JOBS_MAX + 1)]
    for job in jobs[:-1]:
        world.do(AddLog(job.id, "m"))
    world.do(AddLog(jobs[0].id, "again"))
    world.do(AddLog(jobs[-1].id, "m"))
    assert world.ask(GetLogs(jobs[1].id)) == []
    assert [line.message for line in world.ask(GetLogs(jobs[0].id))] == ["m", "again"]
    world.check()


# -- Whole queues


def test_drain_removes_what_waits(world: World) -> None:
    stays = [world.a_job(state) for state in ("active", "completed", "failed")]
    gone = [world.push(priority=3, unique_key="k", ttl_ms=1000), world.push(delay_ms=99), world.push(group_id="g")]
    gone.append(world.push(group_id="g"))
    world.event_names()
    assert world.do(DrainQueue("q")).count == 4
    assert [world.state_of(job_id) for job_id in gone] == ["unknown"] * 4
    assert [job.state for job in stays] == ["active", "completed", "failed"]
    assert world.event_names() == ["queue:drained"]
    assert world.do(DrainQueue("q")).count == world.do(DrainQueue("never")).count == 0
    assert world.push(unique_key="k") not in gone
    assert world.ask(ListQueues()) == ["q"]


def test_drain_leaves_a_group_that_is_worked_on(world: World) -> None:
    active, parked = world.push(group_id="g"), world.push(group_id="g")
    world.pull()
    assert world.do(DrainQueue("q")).count == 1
    later = world.push(group_id="g")
    assert world.pull() == []
    world.do(AckJob(active))
    assert world.pull_ids() == [later]
    assert world.state_of(parked) == "unknown"


def test_obliterate_leaves_nothing(world: World) -> None:
    jobs = [world.a_job(state) for state in [*FINISHED, *reversed(UNFINISHED)]]
    world.do(PauseQueue("q"))
    world.do(ObliterateQueue("q"))
    assert world.ask(ListQueues()) == []
    assert [world.state_of(job.id) for job in jobs] == ["unknown"] * len(jobs)
    assert world.machine.state.jobs == {}
    assert world.machine.state.next_due_ms(world.now_ms) is None
    with pytest.raises(JobNotFound):
        world.do(AckJob(jobs[-3].id))
    world.do(ObliterateQueue("never"))
    assert not world.ask(GetQueueSettings("q")).paused


def test_clean_removes_the_oldest_of_its_kind(world: World) -> None:
    old = [world.push(), world.push(delay_ms=99_000), world.push(priority=4)]
    world.wait(1000)
    young = world.push()
    assert world.do(CleanQueue("q", 1001)).job_ids == []
    assert world.do(CleanQueue("q", 1000, "prioritized")).job_ids == [old[2]]
    assert world.do(CleanQueue("q", 1000, "delayed")).job_ids == [old[1]]
    assert world.do(CleanQueue("q", 500)).job_ids == [old[0]]
    assert world.do(CleanQueue("q", 0, "waiting", 0)).job_ids == []
    assert world.do(CleanQueue("q", 0, "zzz")).job_ids == []
    assert world.do(CleanQueue("never")).job_ids == []
    assert world.do(CleanQueue("q")).job_ids == [young]
    assert world.event_names()[-1] == "queue:cleaned"


@pytest.mark.parametrize("many", ["waiting", "delayed", "neither"])
def test_cleaning_finds_the_oldest_of_a_state_however_few_they_are(world: World, many: str) -> None:
    """Few of them are not looked for among all jobs of the queue; the answer is the same."""
    waiting = [world.push(priority=priority) for priority in (-1, 3, 0, -2, 5)]
    delayed = [world.push(delay_ms=delay) for delay in (9000, 7000, 8000)]
    for _ in range(80 if many != "neither" else 0):
        world.push("q", delay_ms=99_000 if many == "delayed" else 0)
    world.wait(1000)
    young = [world.push(delay_ms=6000), world.push(priority=9), world.push(priority=-9)]
    found = {}
    for state in ("prioritized", "lowered", "unlowered", "waiting", "delayed", "active", "nonsense"):
        copy = world.restored()
        reply = copy.apply(copy.index + 1, world.now_ms, [encode([CleanQueue("q", 1000, state, 3)])])[0][0]
        found[state] = reply.job_ids
        assert not set(young) & set(reply.job_ids)
    assert found["prioritized"] == [waiting[1], waiting[4]]
    assert found["lowered"] == [waiting[0], waiting[3]]
    assert found["unlowered"][:2] == [waiting[1], waiting[2]]
    assert found["waiting"] == waiting[:3]
    assert found["delayed"] == delayed
    assert found["active"] == found["nonsense"] == []


def test_cleaning_does_not_walk_over_all_that_wait(world: World) -> None:
    world.push(delay_ms=60_000)
    world.do(PushJobs("q", [job_spec(f"j{i}", b"1") for i in range(200)]))
    queue = world.machine.state.queues["q"]
    for state in ("delayed", "prioritized", "lowered"):
        assert len(list(CleanQueue("q", 0, state).in_creation_order(queue))) <= 1


@pytest.mark.parametrize("state", FINISHED)
def test_clean_counts_the_age_of_finished_jobs_from_their_end(world: World, state: str) -> None:
    jobs = []
    for _ in range(3):
        jobs.append(world.a_job(state))
        world.wait(1000)
    active = world.a_job("active")
    assert world.do(CleanQueue("q", 2000, state)).job_ids == [jobs[0].id, jobs[1].id]
    assert world.do(CleanQueue("q", 0, "active")).job_ids == []
    assert active.state == "active"


def test_promoting_many(world: World) -> None:
    late, soon, later = (world.push(delay_ms=ms) for ms in (3000, 1000, 4000))
    assert world.do(PromoteJobs("q", 2)).count == 2
    assert [world.state_of(i) for i in (late, soon, later)] == ["waiting", "waiting", "delayed"]
    assert world.do(PromoteJobs("q")).count == 1
    assert world.do(PromoteJobs("q", -1)).count == world.do(PromoteJobs("never")).count == 0


def test_retrying_completed_jobs(world: World) -> None:
    first, second = world.a_job("completed"), world.a_job("completed")
    assert world.do(RetryCompleted("q", "nope")).count == world.do(RetryCompleted("other", first.id)).count == 0
    assert world.do(RetryCompleted("q", first.id)).count == 1
    assert (first.state, first.result, first.finished_at) == ("waiting", None, None)
    assert [step.state for step in first.timeline] == ["waiting", "active", "completed", "waiting"]
    assert world.ask(GetResult(first.id)) is None
    assert world.do(RetryCompleted("q")).count == 1
    assert world.ask(QueueCounts("q")).completed == 0
    assert world.pull_ids(count=2) == [first.id, second.id]


# -- The dead letter queue


def test_retrying_dead_letters(world: World) -> None:
    jobs = [world.a_job("failed") for _ in range(3)]
    assert world.do(RetryDlq("q", "nope")).count == 0
    assert world.do(RetryDlq("q", jobs[1].id)).count == 1
    job = jobs[1]
    assert (job.state, job.attempts, job.error) == ("waiting", 0, "broken")
    assert job.failures is not None
    assert (job.failures.retries, job.failures.last_retry_at) == (1, world.now_ms)
    assert [step.state for step in job.timeline] == ["waiting", "active", "failed", "waiting"]
    assert world.event_names()[-1] == "dlq:retried"
    assert world.do(RetryDlq("q", count=1)).count == 1
    assert jobs[0].state == "waiting"
    assert world.do(RetryDlq("q")).count == 1
    assert world.event_names()[-1] == "dlq:retry-all"
    assert world.ask(ListDlq("q")).total == 0


def test_a_revived_job_takes_its_unique_key_unless_another_has_it(world: World) -> None:
    first = world.a_job("failed", unique_key="k")
    second = world.a_job("failed", unique_key="other")
    holder = world.push(unique_key="k")
    world.do(RetryDlq("q"))
    assert world.push(unique_key="k") == holder
    assert world.push(unique_key="other") == second.id
    assert first.unique_key is None
    world.pull(count=9)
    world.do(AckJob(first.id))
    assert world.push(unique_key="k") == holder


def test_a_revived_job_runs_though_its_time_to_live_is_over(world: World) -> None:
    job = world.a_job("failed", ttl_ms=100)
    world.wait(1000)
    world.do(RetryDlq("q"))
    world.wait(1000)
    assert world.pull() == [job]


def test_purging_dead_letters(world: World) -> None:
    jobs = [world.a_job("failed") for _ in range(3)]
    assert world.do(PurgeDlq("q")).count == 3
    assert [world.state_of(job.id) for job in jobs] == ["unknown"] * 3
    assert world.do(PurgeDlq("q")).count == world.do(PurgeDlq("never")).count == 0
    assert world.event_names()[-1] == "dlq:purged"


def test_the_dead_letter_queue_is_bounded_in_number(world: World) -> None:
    world.do(SetDlqConfig("q", max_entries=2))
    jobs = [world.a_job("failed") for _ in range(3)]
    assert world.ask(ListDlq("q")).jobs == jobs[1:]
    assert world.state_of(jobs[0].id) == "unknown"
    world.do(SetDlqConfig("q", max_entries=1))
    assert world.ask(ListDlq("q")).jobs == jobs[2:]


def test_dead_letters_retry_by_themselves(world: World) -> None:
    early = world.a_job("failed")
    world.do(SetDlqConfig("q", auto_retry=True, auto_retry_interval_ms=1000, max_auto_retries=2))
    assert early.failures is not None and early.failures.next_retry_at == world.now_ms + 1000
    for _ in range(2):
        world.wait(1000)
        assert early.state == "waiting"
        world.pull()
        world.do(FailJob(early.id))
    assert early.failures.next_retry_at is None
    world.wait(600_000)
    assert early.state == "failed"


def test_the_age_of_dead_letters_is_a_setting(world: World) -> None:
    job = world.a_job("failed")
    assert world.do(SetDlqConfig("q", max_age_ms=1000)).max_entries == 10_000
    world.wait(1000)
    assert world.state_of(job.id) == "unknown"
    world.do(SetDlqConfig("q", max_age_ms=0))
    kept = world.a_job("failed")
    world.wait(10 * 365 * 24 * 3600 * 1000)
    assert kept.state == "failed"


# -- Limits


def test_a_rate_limit_is_a_bucket_that_refills(world: World) -> None:
    ids = [world.push() for _ in range(8)]
    world.do(SetRateLimit("q", 3))
    assert world.pull_ids(count=10) == ids[:3]
    assert world.pull() == []
    queue = world.machine.state.queues["q"]
    assert queue.next_token_ms(world.now_ms) == world.now_ms + 334
    world.wait(333)
    assert world.pull() == []
    world.wait(1)
    assert world.pull_ids(count=10) == ids[3:4]
    world.wait(5000)
    assert len(world.pull(count=10)) == 3
    world.do(ClearRateLimit("q"))
    assert world.pull_ids() == ids[7:]
    assert queue.next_token_ms(world.now_ms) == world.now_ms


def test_a_released_job_gives_its_token_back(world: World) -> None:
    world.push()
    world.do(SetRateLimit("q", 1))
    job = world.pull()[0]
    world.do(ReleaseJobs([(job.id, job.fence)]))
    assert world.pull() == [job]


def test_a_rate_limit_of_nothing_blocks(world: World) -> None:
    world.push()
    world.do(SetRateLimit("q", 0))
    world.wait(60_000)
    assert world.pull() == []
    assert world.machine.state.queues["q"].next_token_ms(world.now_ms) is None


def test_a_concurrency_limit_counts_active_jobs(world: World) -> None:
    ids = [world.push(backoff=0) for _ in range(5)]
    world.do(SetConcurrency("q", 2))
    assert world.pull_ids(count=5) == ids[:2]
    world.woken.clear()
    for leave in (AckJob(ids[0]), FailJob(ids[1])):
        world.do(leave)
        assert "q" in world.woken
        world.woken.clear()
        assert len(world.pull(count=5)) == 1
        assert world.pull() == []
    world.do(ClearConcurrency("q"))
    assert world.woken == ["q"]
    assert len(world.pull(count=5)) == 2
    world.do(SetConcurrency("q", 0))
    world.push()
    assert world.pull() == []


# -- Settings


def test_stall_detection_is_a_setting_of_the_queue(world: World) -> None:
    job, other = world.a_job("active"), world.a_job("active", queue="other")
    config = world.do(SetStallConfig("q", interval_ms=500, grace_ms=100))
    assert (config.interval_ms, config.max_stalls, config.grace_ms, config.enabled) == (500, 3, 100, True)
    world.wait(500)
    assert (job.state, other.state) == ("delayed", "active")
    assert world.ask(GetQueueSettings("q")).stall == config
    assert world.ask(GetQueueSettings("never")).stall.interval_ms == 30_000


def test_stall_detection_can_be_switched_off(world: World) -> None:
    job = world.a_job("active")
    world.do(SetStallConfig("q", enabled=False))
    assert job.due == 0
    later = world.a_job("active")
    world.wait(3_600_000)
    assert (job.state, later.state) == ("active", "active")
    world.do(SetStallConfig("q", enabled=True))
    world.wait(0)
    assert job.state == "delayed"


def test_the_grace_period_holds_off_a_short_interval(world: World) -> None:
    world.do(SetStallConfig("q", interval_ms=100))
    job = world.a_job("active")
    world.wait(4999)
    assert job.state == "active"
    world.wait(1)
    assert job.stalls == 1


def test_retention_is_a_setting(world: World) -> None:
    jobs = [world.a_job("completed") for _ in range(4)]
    world.do(SetRetention("q", keep_completed=2))
    assert [job.id for job in world.ask(ListJobs("q", "completed"))] == [job.id for job in jobs[2:]]
    world.do(SetRetention("q", keep_completed_bytes=1))
    assert world.count("q") == 1


# -- Repeats


def test_a_repeated_job_is_followed_by_another(world: World) -> None:
    first = world.push(data=b'"r"', repeat=Repeat(every_ms=200, limit=2), tags=("t",), unique_key="k", group_id="g")
    ids = [first]
    for count in (1, 2):
        job = world.pull()[0]
        world.wait(50)
        world.do(AckJob(job.id))
        following = [job for job in world.machine.state.queues["q"].jobs.values() if not job.finished]
        assert len(following) == 1
        after = following[0]
        assert after.id not in ids
        ids.append(after.id)
        assert (after.data, after.opts.tags, after.state, after.run_at) == (b'"r"', ("t",), "delayed", job.run_at + 200)
        assert after.opts.repeat is not None and after.opts.repeat.count == count
        assert world.push(unique_key="k") == after.id
        world.wait(150)
    assert world.pull_ids() == [ids[-1]]
    world.do(AckJob(ids[-1]))
    assert world.ask(QueueCounts("q")).completed == 3
    assert world.count("q") == 3
    assert all(len(job_id) == 36 and job_id[14] == "7" for job_id in ids[1:])


def test_a_failure_ends_a_chain_of_repeats(world: World) -> None:
    world.push(repeat=Repeat(every_ms=200), max_attempts=1)
    job = world.pull()[0]
    world.do(FailJob(job.id))
    assert world.count("q") == 1


def test_a_late_repeat_is_due_at_once(world: World) -> None:
    world.push(repeat=Repeat(every_ms=200))
    job = world.pull()[0]
    world.wait(1000)
    world.do(AckJob(job.id))
    assert len(world.pull()) == 1

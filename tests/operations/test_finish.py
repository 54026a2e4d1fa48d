"""Acknowledging and failing: locks, results, retries, backoff, the dead letter queue."""

import msgspec
import pytest

from quorumq.node.machine.operations.dlq import ListDlq
from quorumq.node.machine.operations.job_reads import GetJob, GetJobByCustomId, GetJobState, GetResult
from quorumq.node.machine.operations.jobs import RemoveJob
from quorumq.node.machine.operations.queue_reads import QueueCounts
from quorumq.node.machine.operations.runs import AckJob, AckJobs, FailJob
from quorumq.node.machine.refusals import JobNotActive, JobNotFound, LockLost, LockRequired
from quorumq.node.machine.state import Backoff
from quorumq.node.machine.state.dependents import REMEMBERED_MAX
from tests.support.world import START_MS, World


def test_an_acknowledged_job_is_completed(world: World) -> None:
    job = world.a_job("active")
    world.event_names()
    world.wait(250)
    world.do(AckJob(job.id, result=b'{"sent":true}'))
    assert (job.state, job.finished_at, job.result) == ("completed", START_MS + 250, b'{"sent":true}')
    assert world.ask(GetResult(job.id)) == b'{"sent":true}'
    assert world.ask(GetJobState(job.id)) == "completed"
    assert [step.state for step in job.timeline] == ["waiting", "active", "completed"]
    assert world.event_names() == ["job:completed"]


@pytest.mark.parametrize("act", [AckJob, FailJob])
@pytest.mark.parametrize("state", ["waiting", "delayed", "waiting-children", "completed", "failed"])
def test_only_an_active_job_can_be_finished(world: World, act: type, state: str) -> None:
    job = world.a_job(state)
    with pytest.raises(JobNotActive) as refused:
        world.do(act(job.id))
    assert (refused.value.job_id, refused.value.state) == (job.id, state)
    assert job.state == state


@pytest.mark.parametrize("act", [AckJob, FailJob])
def test_an_unknown_job_is_not_found(world: World, act: type) -> None:
    with pytest.raises(JobNotFound):
        world.do(act("nope"))


@pytest.mark.parametrize("act", [AckJob, FailJob])
def test_a_locked_job_needs_its_token(world: World, act: type) -> None:
    job = world.a_job("locked", max_attempts=1)
    with pytest.raises(LockRequired, match=f"Lock token required for job {job.id}"):
        world.do(act(job.id))
    with pytest.raises(LockLost, match=f"Invalid or expired lock token for job {job.id}"):
        world.do(act(job.id, token="bogus"))
    assert job.state == "active"
    world.do(act(job.id, token=job.token))
    assert job.finished
    assert (job.token, job.locked) == (None, False)


@pytest.mark.parametrize("act", [AckJob, FailJob])
def test_a_token_is_ignored_on_a_job_without_a_lock(world: World, act: type) -> None:
    job = world.a_job("active", max_attempts=1)
    world.do(act(job.id, token="bogus"))
    assert job.finished


def test_a_batch_completes_what_it_can(world: World) -> None:
    first, second, third = (world.push() for _ in range(3))
    world.pull(count=2)
    world.pull(owner="w", token_seed="t")
    reply = world.do(AckJobs([first, "nope", second, second, third], results=[b"1", b"2", None, b"4", b"5"]))
    assert reply.job_ids == [first, second]
    assert [type(refusal) for refusal in reply.refused] == [JobNotFound, JobNotActive, LockRequired]
    assert (world.job(first).result, world.job(second).result) == (b"1", None)
    assert world.do(AckJobs([third], tokens=["t-0"])).job_ids == [third]


def test_remove_on_complete_leaves_nothing(world: World) -> None:
    job = world.a_job("active", remove_on_complete=True)
    world.do(AckJob(job.id, result=b"1"))
    assert world.ask(GetJobState(job.id)) == "unknown"
    assert world.ask(QueueCounts("q")).completed == 0
    with pytest.raises(JobNotFound):
        world.ask(GetJob(job.id))


def test_a_custom_id_is_found_as_long_as_the_job_is_there(world: World) -> None:
    world.push("q", "mine")
    assert world.ask(GetJobByCustomId("mine")).id == "mine"
    world.pull()
    world.do(AckJob("mine"))
    assert world.ask(GetJobByCustomId("mine")).state == "completed"
    world.do(RemoveJob("mine"))
    with pytest.raises(JobNotFound):
        world.ask(GetJobByCustomId("mine"))
    with pytest.raises(JobNotFound):
        world.ask(GetJobByCustomId(world.push()))


def test_completed_jobs_are_kept_within_a_bound(world: World) -> None:
    queue = world.machine.state.queue("q")
    keep = queue.settings.keep_completed
    ids = [world.push() for _ in range(keep + 3)]
    world.pull(count=keep + 3)
    world.do(AckJobs(ids))
    assert len(queue.completed) == keep
    assert [world.state_of(i) for i in ids[:4]] == ["unknown"] * 3 + ["completed"]
    # A job that depends on one of those is not made to wait for ever.
    assert world.state_of(world.push(depends_on=(ids[0],))) == "waiting"


def test_completed_jobs_are_kept_within_a_bound_of_bytes(world: World) -> None:
    queue = world.machine.state.queue("q")
    queue.settings = msgspec.structs.replace(queue.settings, keep_completed_bytes=1000)
    big = b'"' + b"x" * 400 + b'"'
    ids = [world.push(data=b"1") for _ in range(4)]
    world.pull(count=4)
    for job_id in ids:
        world.do(AckJob(job_id, result=big))
    assert [world.state_of(i) for i in ids] == ["unknown"] * 2 + ["completed"] * 2
    assert queue.completed_bytes == sum(len(job.data) + len(job.result or b"") for job in queue.completed)


def test_remembered_ids_are_bounded(world: World) -> None:
    remembered = world.machine.state.remembered
    for i in range(REMEMBERED_MAX + 5):
        remembered.add((str(i),))
    assert len(remembered.ids()) == REMEMBERED_MAX
    assert "4" not in remembered and "5" in remembered


# -- Failing


def test_a_failed_run_is_tried_again_after_its_backoff(world: World) -> None:
    job = world.a_job("active", backoff=1000)
    world.event_names()
    world.do(FailJob(job.id, error="SMTP refused"))
    assert (job.state, job.attempts, job.error, job.started_at) == ("delayed", 1, "SMTP refused", None)
    assert job.run_at == world.now_ms + 1000
    assert [step.state for step in job.timeline] == ["waiting", "active", "failed", "delayed"]
    assert world.event_names() == ["job:delayed", "job:failed", "job:retried"]
    world.wait(1000)
    assert world.pull() == [job]
    world.do(FailJob(job.id))
    assert job.run_at == world.now_ms + 2000


def test_the_last_attempt_ends_in_the_dead_letter_queue(world: World) -> None:
    job = world.job(world.push(backoff=0, max_attempts=2, unique_key="k"))
    for _ in range(2):
        assert world.pull() == [job]
        world.do(FailJob(job.id, error="boom"))
    assert (job.state, job.attempts, job.finished_at) == ("failed", 2, world.now_ms)
    assert job.failures is not None
    assert job.failures.reason == "max_attempts_exceeded"
    assert [(run.attempt, run.reason, run.error) for run in job.failures.runs] == [
        (1, "max_attempts_exceeded", "boom"),
        (2, "max_attempts_exceeded", "boom"),
    ]
    page = world.ask(ListDlq("q"))
    assert (page.jobs, page.total) == ([job], 1)
    assert world.event_names()[-2:] == ["job:failed", "dlq:added"]


def test_unrecoverable_skips_the_retries(world: World) -> None:
    job = world.a_job("active")
    world.do(FailJob(job.id, unrecoverable=True))
    assert job.state == "failed"
    assert job.failures is not None and job.failures.reason == "explicit_fail"


def test_remove_on_fail_applies_to_the_last_failure_only(world: World) -> None:
    job = world.a_job("active", backoff=0, max_attempts=2, remove_on_fail=True)
    world.do(FailJob(job.id))
    assert job.state == "waiting"
    world.pull()
    world.do(FailJob(job.id))
    assert world.ask(GetJobState(job.id)) == "unknown"
    assert world.ask(QueueCounts("q")).failed == 0


@pytest.mark.parametrize(
    ("backoff", "delays"),
    [
        (1000, [1000, 2000, 4000]),
        (0, [0, 0, 0]),
        (0.5, [1, 1, 2]),
        (50_000_000, [50_000_000, 86_400_000, 86_400_000]),
        (Backoff("fixed", 300), [300, 300, 300]),
        (Backoff("exponential", 300), [300, 600, 1200]),
        (Backoff("linear", 300), [300, 600, 900]),
    ],
)
def test_backoffs(world: World, backoff: float | Backoff, delays: list[int]) -> None:
    job = world.job(world.push(backoff=backoff, max_attempts=9))
    for delay in delays:
        assert world.pull() == [job]
        world.do(FailJob(job.id))
        assert job.run_at - world.now_ms == delay
        assert job.state == ("delayed" if delay else "waiting")
        world.wait(delay)


def test_a_thousand_failures_have_a_bounded_history(world: World) -> None:
    job = world.job(world.push(backoff=1, max_attempts=1000))
    for _ in range(999):
        assert world.pull() == [job]
        world.do(FailJob(job.id, error="again"))
        world.wait(86_400_000)
    assert job.attempts == 999
    assert job.failures is not None and len(job.failures.runs) == 20
    assert len(job.timeline) <= 42


def test_a_retried_job_keeps_its_place(world: World) -> None:
    first, second = world.push(backoff=0), world.push()
    world.pull()
    world.do(FailJob(first))
    assert world.pull_ids(count=2) == [first, second]


def test_the_dead_letter_queue_is_bounded_by_age(world: World) -> None:
    job = world.a_job("failed")
    world.wait(604_800_000 - 1)
    assert job.state == "failed" and world.ask(ListDlq("q")).total == 1
    world.wait(1)
    assert world.ask(ListDlq("q")).total == 0
    assert world.state_of(job.id) == "unknown"
    assert world.event_names()[-1] == "dlq:expired"


@pytest.mark.parametrize(("chance", "waits"), [(None, 1000), (0.0, 600), (0.5, 800), (1.0, 1000)])
def test_jitter_is_taken_off_by_a_chance_that_came_with_the_failure(
    world: World, chance: float | None, waits: int
) -> None:
    job = world.a_job("active", backoff=Backoff("fixed", 1000, 0.4))
    world.do(FailJob(job.id, chance=chance))
    assert job.run_at - world.now_ms == waits

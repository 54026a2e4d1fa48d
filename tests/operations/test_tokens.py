"""Tokens and the deliveries that they belong to: none of an earlier delivery ends a later one, whoever took the job how.

A run that never had a lock takes any other token in the bunqueue dialect, as recorded, and none in BullMQ's.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from quorumq.api.ids import new_token_seed
from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.dlq import RetryDlq
from quorumq.node.machine.operations.jobs import CancelJob, ChangeDelay, MoveToDelayed, MoveToWait, PushJobs, RetryJob
from quorumq.node.machine.operations.queues import ObliterateQueue, RetryCompleted
from quorumq.node.machine.operations.runs import (
    AckJob,
    AckJobs,
    FailJob,
    FinishAndPull,
    ProgressJob,
    PullJobs,
    ReleaseJobs,
)
from quorumq.node.machine.refusals import LockLost, LockRequired, Refusal
from quorumq.node.machine.state import job_spec
from quorumq.node.machine.state.spent import SPENT_MAX
from tests.support.world import World

OLD = "t-0"
ENDS: dict[str, Callable[[str, str], Operation]] = {
    "ack": AckJob,
    "ack batch": lambda job_id, token: AckJobs([job_id], [token]),
    "fail": FailJob,
    "ack and pull": lambda job_id, token: FinishAndPull(AckJob(job_id, token), PullJobs("q")),
    "move to delayed": lambda job_id, token: MoveToDelayed(job_id, 5, token),
    "change delay": lambda job_id, token: ChangeDelay(job_id, 5, token=token),
    "move to wait": MoveToWait,
    "progress": lambda job_id, token: ProgressJob(job_id, 7, None, token),
}
BULLMQ: dict[str, Callable[[str, str], Operation]] = {
    "move-to-completed": lambda job_id, token: AckJob(job_id, token, must_hold=True),
    "move-to-failed": lambda job_id, token: FailJob(job_id, token, must_hold=True),
    "move-to-completed, fetch": lambda job_id, token: FinishAndPull(
        AckJob(job_id, token, must_hold=True), PullJobs("q", token=token)
    ),
    "move-to-wait": MoveToWait,
    "move-to-delayed": lambda job_id, token: MoveToDelayed(job_id, 0, token, until_ms=1, only_active=True),
}


def refusal_of(world: World, operation: Operation) -> type[Refusal] | None:
    """Apply an operation; return what it was refused for, a batch of one too."""
    (outcome,) = world.apply(operation)
    if isinstance(operation, AckJobs):
        outcome = outcome.refused[0] if outcome.refused else outcome
    return type(outcome) if isinstance(outcome, Refusal) else None


def lose(world: World, how: str) -> str:
    """Have a job taken under a lock, and be ready for another delivery; return its id."""
    job_id = world.push("q", "x", backoff=0, max_attempts=1 if how in ("dlq.retry", "new generation after") else 3)
    (job,) = world.pull(owner="first", lock_ms=1000, token_seed="t")
    assert job.token == OLD
    if how == "lock ran out":
        world.wait(1000)
    elif how in ("failed", "dlq.retry", "new generation after"):
        world.do(FailJob(job_id, OLD))
    elif how == "moved to delayed":
        world.do(MoveToDelayed(job_id, 0, OLD))
    elif how == "moved to wait":
        world.do(MoveToWait(job_id, OLD))
    elif how == "released":
        world.do(ReleaseJobs([(job_id, job.fence)]))
    else:
        world.do(AckJob(job_id, OLD))
    if how == "retry-completed":
        world.do(RetryCompleted("q", job_id))
    elif how == "job.retry":
        world.do(RetryJob(job_id))
    elif how == "dlq.retry":
        world.do(RetryDlq("q", job_id))
    elif how.startswith("new generation"):
        world.do(PushJobs("q", [job_spec("x", b"2", custom=True)]))
    return job_id


LOST = (
    "lock ran out",
    "failed",
    "moved to delayed",
    "moved to wait",
    "released",
    "retry-completed",
    "job.retry",
    "dlq.retry",
    "new generation",
    "new generation after",
)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("how", LOST)
def test_a_token_of_an_earlier_delivery_ends_no_later_one(leveled: World, how: str, end: str) -> None:
    world = leveled
    job_id = lose(world, how)
    (job,) = world.pull()
    refused = refusal_of(world, ENDS[end](job_id, OLD))
    if world.machine.state.level >= 1:
        assert (refused, job.state, job.progress) == (LockLost, "active", 0)
        # Its own worker needs no token.
        world.do(AckJob(job_id))
        assert job.state == "completed"
    else:
        assert refused is None


@pytest.mark.parametrize("end", {**ENDS, **BULLMQ})
@pytest.mark.parametrize("how", LOST)
def test_nor_one_that_has_a_lock(leveled: World, how: str, end: str) -> None:
    world = leveled
    job_id = lose(world, how)
    (job,) = world.pull(owner="second", token_seed="other")
    refused = refusal_of(world, {**ENDS, **BULLMQ}[end](job_id, OLD))
    # ChangeDelay took no notice of tokens.
    expected = None if end == "change delay" and world.machine.state.level < 1 else LockLost
    assert (refused, job.state == "active") == (expected, expected is not None)


@pytest.mark.parametrize("end", ENDS)
def test_a_run_that_never_had_a_lock_takes_a_token_that_is_none(leveled: World, end: str) -> None:
    world = leveled
    job = world.a_job("active")
    strict = end == "move to wait" and world.machine.state.level >= 1
    assert refusal_of(world, ENDS[end](job.id, "bogus")) == (LockLost if strict else None)


@pytest.mark.parametrize("end", BULLMQ)
def test_bullmq_takes_no_token_for_a_run_that_never_had_a_lock(leveled: World, end: str) -> None:
    world = leveled
    job = world.job(world.push("q", "x"))
    for earlier in (False, True):
        assert world.pull() == [job]
        refused = refusal_of(world, BULLMQ[end](job.id, "bogus"))
        if world.machine.state.level < 1:
            assert refused is None
            break
        assert (refused, job.state) == (LockLost, "active")
        if not earlier:
            world.do(ReleaseJobs([(job.id, job.fence)]))


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("how", ["forgotten once completed", "cancelled", "obliterated", "another job's"])
def test_a_token_made_for_a_lock_ends_no_run_without_one(leveled: World, how: str, end: str) -> None:
    """What was pushed under the id of a job that is gone, with all that was known of it, is not ended by that job's worker."""
    world, seed = leveled, new_token_seed()
    first_id = world.push(
        "q", "other" if how == "another job's" else "x", remove_on_complete=how == "forgotten once completed"
    )
    (first,) = world.pull(owner="first", token_seed=seed)
    assert first.token == f"{seed}-0"
    if how == "forgotten once completed":
        world.do(AckJob(first_id, first.token))
    elif how == "cancelled":
        world.do(CancelJob(first_id))
    elif how == "obliterated":
        world.do(ObliterateQueue("q"))
    job = world.job(world.push("q", "x"))
    assert world.pull() == [job]
    refused = refusal_of(world, ENDS[end](job.id, f"{seed}-0"))
    if world.machine.state.level >= 1:
        assert (refused, job.state, job.progress) == (LockLost, "active", 0)
        world.do(AckJob(job.id))
        assert job.state == "completed"
    else:
        assert refused is None


def test_tokens_that_nobody_remembers_are_not_believed(world: World) -> None:
    job = world.job(world.push("q", "x"))
    for nth in range(SPENT_MAX + 5):
        world.pull(owner="w", token_seed=f"seed {nth}")
        world.do(ReleaseJobs([(job.id, job.fence)]))
    assert len(world.machine.state.spent.by_job[job.id]) == SPENT_MAX
    world.pull()
    for nth in (0, 1, SPENT_MAX + 4):
        assert refusal_of(world, AckJob(job.id, f"seed {nth}-0")) is LockLost
    # An image remembers them, too.
    world.machine = world.restored()
    assert refusal_of(world, AckJob(job.id, "seed 0-0")) is LockLost


def test_a_locked_run_is_delayed_by_its_token_only(leveled: World) -> None:
    """A wrong token is always refused; without one changing the delay is, and moving to delayed is not."""
    world, new = leveled, leveled.machine.state.level >= 1
    for operation, token, refused in (
        (ChangeDelay, None, LockRequired if new else None),
        (ChangeDelay, "wrong", LockLost if new else None),
        (ChangeDelay, OLD, None),
        (MoveToDelayed, None, None),
        (MoveToDelayed, "wrong", LockLost),
        (MoveToDelayed, OLD, None),
    ):
        job_id = world.push("q")
        (job,) = world.pull(owner="w", token_seed="t")
        assert refusal_of(world, operation(job_id, 5000, token=token)) is refused, (operation, token)
        assert job.state == ("active" if refused else "delayed")
        world.do(AckJob(job_id, OLD)) if refused else world.wait(0)


@pytest.mark.parametrize("operation", [ChangeDelay, MoveToDelayed])
def test_a_job_whose_lock_ran_out_is_not_delayed_by_a_wrong_token(world: World, operation: type) -> None:
    job_id = world.push("q")
    world.pull(owner="w", lock_ms=1000, token_seed="t")
    world.wait(1000)
    assert world.state_of(job_id) == "waiting"
    assert refusal_of(world, operation(job_id, 5000, token="wrong")) is LockLost
    assert refusal_of(world, operation(job_id, 5000, token=OLD)) is None


@pytest.mark.parametrize("end", ENDS)
def test_a_token_that_was_lost_below_level_1_ends_no_run_after_it_was_raised(end: str) -> None:
    world = World(level=0)
    job_id = lose(world, "lock ran out")
    world.machine.state.level = 1
    world.pull()
    assert refusal_of(world, ENDS[end](job_id, OLD)) is LockLost
    world.check()

"""A job that is to wait again, whatever it does at present."""

from __future__ import annotations

import pytest

from quorumq.node.machine.operations.requeue import RequeueJob
from quorumq.node.machine.refusals import JobInWrongState, JobNotFound, LockLost, LockRequired
from tests.support.world import World


@pytest.mark.parametrize("state", ["active", "delayed", "failed", "waiting"])
def test_it_waits(state: str, world: World) -> None:
    job = world.a_job(state)
    world.woken.clear()
    assert world.do(RequeueJob(job.id)).job is job
    assert job.state == "waiting"
    assert ("q" in world.woken) == (state != "waiting")
    assert world.pull_ids() == [job.id]


def test_an_active_one_goes_before_its_equals_and_keeps_its_attempts(world: World) -> None:
    first = world.push()
    world.push()
    [job] = world.pull()
    world.do(RequeueJob(first))
    assert (job.attempts, world.pull_ids()) == (0, [first])


def test_a_locked_one_asks_for_its_token(world: World) -> None:
    job = world.a_job("locked")
    token = job.token
    with pytest.raises(LockRequired):
        world.do(RequeueJob(job.id))
    with pytest.raises(LockLost):
        world.do(RequeueJob(job.id, "wrong"))
    world.do(RequeueJob(job.id, token))
    assert job.state == "waiting"


def test_who_has_no_token_forces_it(world: World) -> None:
    job = world.a_job("locked")
    with pytest.raises(LockLost):
        world.do(RequeueJob(job.id, "wrong", forced=True))
    world.do(RequeueJob(job.id, forced=True))
    assert job.state == "waiting"
    with pytest.raises(JobInWrongState):
        world.do(RequeueJob(job.id, forced=True))


def test_a_completed_one_does_not_and_neither_does_one_that_waits_for_others(world: World) -> None:
    for state in ("completed", "waiting-children"):
        with pytest.raises(JobInWrongState):
            world.do(RequeueJob(world.a_job(state).id))
    with pytest.raises(JobNotFound):
        world.do(RequeueJob("none"))

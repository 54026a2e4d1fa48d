"""Large queues are emptied, destroyed and promoted in parts; the answer counts all of them."""

from __future__ import annotations

import pytest

from node import slices
from node.node import Once
from node.operation import Operation
from node.operations.jobs import AckJobs, FailJob, PushJobs
from node.operations.queues import DrainQueue, ObliterateQueue, PauseQueue, PromoteJobs, RetryJobs, ThinQueue
from node.refusals import QueueBusy
from node.state import job_spec
from tests.node.conftest import Local
from tests.support.world import World


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE_JOBS", 10)


async def fill(local: Local, count: int, **options: object) -> None:
    await local.node.submit(PushJobs("q", [job_spec(f"n{local.ids}-{i}", b"1", **options) for i in range(count)]))
    local.ids += 1


async def entries_of(local: Local, op: Operation, once: Once | None = None) -> tuple[int, int]:
    """Return what an operation counted, and how many entries it took."""
    before = len(local.engine.entries)
    count = await local.node.submit(op, lambda reply: reply.count, once=once)
    return count, len(local.engine.entries) - before


async def test_a_small_queue_takes_one_entry(local: Local) -> None:
    await fill(local, 10)
    assert await entries_of(local, DrainQueue("q")) == (10, 1)
    assert await entries_of(local, DrainQueue("nope")) == (0, 1)


async def test_draining_leaves_what_is_being_worked_on(local: Local) -> None:
    await fill(local, 20)
    await local.pull(count=3)
    await fill(local, 15, delay_ms=1000)
    assert await entries_of(local, DrainQueue("q")) == (32, 5)
    assert len(local.machine.state.queues["q"].jobs) == 3


async def test_obliterating_takes_everything(local: Local) -> None:
    await fill(local, 25)
    await local.pull(count=12)
    assert await entries_of(local, ObliterateQueue("q")) == (25, 4)
    assert (local.machine.state.queues, local.machine.state.jobs) == ({}, {})


async def test_draining_may_spare_what_is_delayed(local: Local) -> None:
    await fill(local, 20)
    await fill(local, 15, delay_ms=1000)
    assert await entries_of(local, DrainQueue("q", delayed=False)) == (20, 4)
    assert len(local.machine.state.queues["q"].delayed) == 15


async def test_obliterating_an_idle_queue_only(local: Local) -> None:
    await fill(local, 25)
    [job_id] = await local.pull()
    with pytest.raises(QueueBusy):
        await local.node.submit(ObliterateQueue("q", only_idle=True))
    queue = local.machine.state.queues["q"]
    assert len(queue.jobs) == 25 and not queue.settings.paused
    await local.node.submit(AckJobs([job_id]))
    assert (await entries_of(local, ObliterateQueue("q", only_idle=True)))[0] == 25
    assert not local.machine.state.queues


@pytest.mark.parametrize("was_paused", [True, False])
async def test_a_job_taken_in_the_last_moment_saves_the_queue(local: Local, was_paused: bool) -> None:
    await fill(local, 25)
    if was_paused:
        await local.node.submit(PauseQueue("q"))
    queue = local.machine.state.queues["q"]
    submit = local.node._submit_part

    async def submit_late(op: Operation) -> object:
        # Another node's pull, as it were, comes just before.
        if isinstance(op, PauseQueue) and not queue.active:
            queue.settings = type(queue.settings)()
            local.machine.state.take(queue, 1, None, 0, "")
            if was_paused:
                await submit(op)
        return await submit(op)

    local.node._submit_part = submit_late  # type: ignore[method-assign]
    with pytest.raises(QueueBusy):
        await local.node.submit(ObliterateQueue("q", only_idle=True))
    assert len(queue.jobs) == 25 and queue.settings.paused == was_paused


@pytest.mark.parametrize(("count", "retried"), [(None, 35), (23, 23), (10, 10), (40, 35)])
async def test_retrying_counts_all_and_no_more_than_asked(local: Local, count: int | None, retried: int) -> None:
    await fill(local, 35, max_attempts=1)
    for job_id in await local.pull(count=35):
        await local.node.submit(FailJob(job_id))
    assert (await entries_of(local, RetryJobs("q", "failed", count)))[0] == retried
    assert len(local.machine.state.queues["q"].failed) == 35 - retried


@pytest.mark.parametrize(("count", "promoted"), [(None, 35), (23, 23), (10, 10), (40, 35)])
async def test_promoting_counts_all_and_no_more_than_asked(local: Local, count: int | None, promoted: int) -> None:
    await fill(local, 35, delay_ms=1000)
    assert (await entries_of(local, PromoteJobs("q", count)))[0] == promoted
    assert len(local.machine.state.queues["q"].delayed) == 35 - promoted


async def test_a_repeat_of_a_long_drain_is_answered_and_does_nothing(local: Local) -> None:
    await fill(local, 25)
    assert await entries_of(local, DrainQueue("q"), Once("k", b"f")) == (25, 4)
    await fill(local, 25)
    assert await entries_of(local, DrainQueue("q"), Once("k", b"f")) == (25, 1)
    assert len(local.machine.state.queues["q"].jobs) == 25


def test_thinning_leaves_younger_jobs_and_stays_within_its_limit() -> None:
    world = World()
    for _ in range(6):
        world.push()
    assert world.do(ThinQueue("q", 4, 3)).count == 3
    assert world.do(ThinQueue("q", 4, 3)).count == 1
    assert world.do(ThinQueue("q", 4, 3)).count == 0
    assert world.do(ThinQueue("nope", 4, 3)).count == 0
    assert world.pull_ids(count=9) == ["job-5", "job-6"]
    world.check()

"""Large queues are emptied, destroyed and promoted in parts; the answer counts all of them."""

from __future__ import annotations

import pytest

from quorumq.node import split_large
from quorumq.node.machine.events import DlqPurged, DlqRetriedAll, Event
from quorumq.node.machine.lifecycle import runs
from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.dlq import PurgeDlq, RetryDlq
from quorumq.node.machine.operations.jobs import PushJobs
from quorumq.node.machine.operations.queues import (
    DrainQueue,
    ObliterateQueue,
    PauseQueue,
    PromoteJobs,
    RetryCompleted,
    RetryJobs,
    ThinQueue,
)
from quorumq.node.machine.operations.retention import SetDefaultRetention
from quorumq.node.machine.operations.runs import AckJobs, FailJob
from quorumq.node.machine.refusals import QueueBusy
from quorumq.node.machine.state import Repeat, job_spec
from quorumq.node.node import IdempotencyKey, Keyed
from tests.node.conftest import Local
from tests.support.world import World


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_large, "SLICE_JOBS", 10)


async def fill(local: Local, count: int, **options: object) -> None:
    await local.node.submit(PushJobs("q", [job_spec(f"n{local.ids}-{i}", b"1", **options) for i in range(count)]))
    local.ids += 1


async def entries_of(local: Local, op: Operation, once: IdempotencyKey | None = None) -> tuple[int, int]:
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


async def test_draining_in_parts_spares_what_a_repetition_waits_with(local: Local) -> None:
    await fill(local, 15)
    await fill(local, 1, repeat=Repeat(every_ms=1000))
    await fill(local, 15)
    assert await entries_of(local, DrainQueue("q", spare_repeating=True)) == (30, 5)
    (job,) = local.machine.state.queues["q"].jobs.values()
    assert job.opts.repeat is not None
    await fill(local, 15)
    assert (await entries_of(local, DrainQueue("q")))[0] == 16
    assert len(local.machine.state.schedule.held) == 1


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
            runs.take(local.machine.state, queue, 1, None, 0, "")
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


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize(("count", "retried"), [(None, 35), (23, 23), (10, 10), (40, 35)])
async def test_retrying_dead_letters_counts_all_and_tells_it_once(
    local: Local, count: int | None, retried: int, level: int
) -> None:
    await bury(local, 35)
    local.machine.state.level = level
    told = tell(local)
    done, entries = await entries_of(local, RetryDlq("q", None, count))
    # Below level 1 nobody else would know the parts for what they are.
    assert (done, entries > 1) == (retried, level == 1 and retried > 10)
    assert len(local.machine.state.queues["q"].failed) == 35 - retried
    assert [event.count for event in told if isinstance(event, DlqRetriedAll)] == [retried]


async def test_purging_dead_letters_counts_all_and_tells_it_once(local: Local) -> None:
    await bury(local, 35)
    told = tell(local)
    assert await entries_of(local, PurgeDlq("q")) == (35, 4)
    assert (len(local.machine.state.jobs), len(local.machine.state.queues["q"].failed)) == (0, 0)
    assert [event.count for event in told if isinstance(event, DlqPurged)] == [35]
    assert await entries_of(local, PurgeDlq("q")) == (0, 1)


@pytest.mark.parametrize(("count", "retried"), [(None, 35), (23, 23), (40, 35)])
async def test_reviving_completed_jobs_counts_all(local: Local, count: int | None, retried: int) -> None:
    await fill(local, 35)
    await local.node.submit(AckJobs(await local.pull(count=35)))
    done, entries = await entries_of(local, RetryCompleted("q", None, count))
    assert (done, entries > 1) == (retried, True)
    assert len(local.machine.state.queues["q"].completed) == 35 - retried


async def test_one_job_of_a_large_queue_takes_one_entry(local: Local) -> None:
    [first, *_] = await bury(local, 35)
    assert await entries_of(local, RetryDlq("q", first)) == (1, 1)
    assert await entries_of(local, RetryDlq("q", "nope")) == (0, 1)


async def bury(local: Local, count: int) -> list[str]:
    """Send jobs to the dead letter queue."""
    await fill(local, count, max_attempts=1)
    ids = await local.pull(count=count)
    for job_id in ids:
        await local.node.submit(FailJob(job_id))
    return ids


def tell(local: Local) -> list[Event]:
    """Collect all events from now on."""
    told: list[Event] = []
    local.machine.events_wanted = True
    local.machine.listen(lambda entry: told.extend(entry.events or ()))
    return told


async def test_a_repeat_of_a_long_drain_is_answered_and_does_nothing(local: Local) -> None:
    await fill(local, 25)
    assert await entries_of(local, DrainQueue("q"), IdempotencyKey("k", b"f", "", "e")) == (25, 4)
    await fill(local, 25)
    assert await entries_of(local, DrainQueue("q"), IdempotencyKey("k", b"f", "", "e")) == (25, 1)
    assert len(local.machine.state.queues["q"].jobs) == 25


async def test_a_long_drain_that_a_session_sends_again_is_answered_and_does_nothing(local: Local) -> None:
    await fill(local, 25)
    call = Keyed("s", 1, 0)
    assert await local.node.begin(DrainQueue("q"), lambda reply: reply.count, call) == 25
    await fill(local, 25)
    assert await local.node.begin(DrainQueue("q"), lambda reply: reply.count, call) == 25
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


async def test_a_default_for_finished_jobs_is_set_in_parts(local: Local) -> None:
    for queue in ("a", "b"):
        ids = [f"{queue}{at}" for at in range(25)]
        await local.node.submit(PushJobs(queue, [job_spec(job_id, b"1") for job_id in ids]))
        await local.pull(queue=queue, count=25)
        await local.node.submit(AckJobs(ids))
    before = len(local.engine.entries)
    await local.node.submit(SetDefaultRetention(completed=5))
    queues = local.machine.state.queues
    assert [len(queues[name].completed) for name in ("a", "b")] == [5, 5]
    # Four full parts, an empty one, and the operation itself.
    assert len(local.engine.entries) - before == 6
    await local.node.submit(SetDefaultRetention(completed=1))
    assert len(local.engine.entries) - before == 7

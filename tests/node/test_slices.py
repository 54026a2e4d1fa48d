"""Large queues are emptied, destroyed and promoted in parts; the answer counts all of them."""

from __future__ import annotations

import pytest

from node import slices
from node.node import Once
from node.operation import Operation
from node.operations.jobs import PushJobs
from node.operations.queues import DrainQueue, ObliterateQueue, PromoteJobs, ThinQueue
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

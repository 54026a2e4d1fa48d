"""Batches: what travels together, what is split, who gets which outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from quorumq.cluster.errors import ClusterError, NotApplied
from quorumq.node.batching import Batcher
from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.job_reads import GetJob
from quorumq.node.machine.operations.jobs import PushJobs
from quorumq.node.machine.operations.runs import AckJob
from quorumq.node.machine.refusals import JobNotFound, OperationNotKnown
from quorumq.node.machine.state import job_spec
from tests.node.conftest import Local


class Unheard(Operation, frozen=True, tag="test.unheard"):
    """An operation that no member knows."""


async def test_what_arrives_together_travels_together(local: Local) -> None:
    ids = await asyncio.gather(*(local.push() for _ in range(50)))
    assert ids == [f"job-{i}" for i in range(1, 51)]
    assert len(local.engine.entries) == 1
    assert len(local.engine.entries[0][2]) == 1


async def test_each_caller_gets_its_own_outcome(local: Local) -> None:
    outcomes = await asyncio.gather(
        local.push(), local.node.submit(AckJob("nope")), local.push(), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [str, JobNotFound, str]


async def test_an_unreadable_operation_harms_only_its_caller(local: Local) -> None:
    outcomes = await asyncio.gather(local.push(), local.node.submit(Unheard()), local.push(), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [str, OperationNotKnown, str]


async def test_a_view_sees_the_moment_of_its_apply(local: Local) -> None:
    def view(reply: object) -> int:
        return len(local.machine.state.jobs)

    pushes = [PushJobs("q", [job_spec(f"j{i}", b"1")]) for i in range(3)]
    seen = [await local.node.submit(push, view) for push in pushes]
    assert seen == [1, 2, 3]


async def test_a_view_that_fails_fails_its_caller_only(local: Local) -> None:
    def view(reply: object) -> str:
        raise ValueError("bad view")

    broken = local.node.submit(PushJobs("q", [job_spec("a", b"1")]), view)
    outcomes = await asyncio.gather(broken, local.push(), return_exceptions=True)
    assert isinstance(outcomes[0], ValueError) and outcomes[1] == "job-1"
    assert (await local.node.ask(GetJob("a"))).state == "waiting"


async def test_a_batch_closes_at_its_size_and_few_are_under_way(local: Local) -> None:
    batcher = Batcher(local.engine, batch_bytes=1000, under_way_max=2)
    futures = [
        batcher.add(PushJobs("q", [job_spec(f"j{i}", b"x" * 400)]), lambda reply: reply.ids[0], 5.0) for i in range(10)
    ]
    assert await asyncio.gather(*futures) == [f"j{i}" for i in range(10)]
    sizes = [len(payload) for _, _, batches in local.engine.entries for payload in batches]
    assert len(sizes) == 5 and max(sizes) <= 1000
    assert max(len(batches) for _, _, batches in local.engine.entries) == 2


async def test_one_operation_may_be_larger_than_a_batch(local: Local) -> None:
    batcher = Batcher(local.engine, batch_bytes=1000)
    small = batcher.add(PushJobs("q", [job_spec("s", b"1")]), len, 5.0)
    large = batcher.add(PushJobs("q", [job_spec("l", b"x" * 5000)]), lambda reply: reply.ids, 5.0)
    assert await large == ["l"]
    with pytest.raises(TypeError):
        await small
    assert [len(batches) for _, _, batches in local.engine.entries] == [2]


async def test_without_a_quorum_callers_hear_that_nothing_happened(local: Local) -> None:
    local.engine.available = False
    outcomes = await asyncio.gather(local.push(), local.push(), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [NotApplied, NotApplied]
    # Each has an error of its own: one that is shared would gather the tracebacks of all.
    assert outcomes[0] is not outcomes[1]
    assert local.machine.state.jobs == {}


async def test_a_write_that_nobody_waits_for_is_not_sent(local: Local) -> None:
    task = asyncio.get_running_loop().create_task(local.push())
    await asyncio.sleep(0)
    task.cancel()
    await local.settle()
    assert local.engine.entries == []


async def test_a_write_past_its_deadline_is_not_sent(local: Local) -> None:
    with pytest.raises(NotApplied):
        await local.node.submit(PushJobs("q", [job_spec("a", b"1")]), timeout_s=-1)
    assert local.engine.entries == []


async def test_a_batch_is_given_the_time_of_its_most_patient_caller(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadlines: list[float] = []
    propose = local.engine.propose

    def noted(payload: bytes, deadline: float, done: Callable[[Any, ClusterError | None], None]) -> None:
        deadlines.append(deadline)
        propose(payload, deadline, done)

    monkeypatch.setattr(local.engine, "propose", noted)
    began = asyncio.get_running_loop().time()
    pushes = [PushJobs("q", [job_spec(each, b"1")]) for each in ("a", "b", "c")]
    waits = [local.node.submit(op, timeout_s=wait) for op, wait in zip(pushes, (100, 900, 100), strict=True)]
    await asyncio.gather(*waits)
    assert len(deadlines) == 1 and deadlines[0] >= began + 900


@pytest.mark.parametrize("count", [15, 16, 300])
async def test_batches_of_any_length_are_read(local: Local, count: int) -> None:
    assert len(set(await asyncio.gather(*(local.push() for _ in range(count))))) == count
    assert len(local.engine.entries) == 1


async def test_idle_returns_when_everything_is_answered(local: Local) -> None:
    push = asyncio.get_running_loop().create_task(local.push())
    await asyncio.sleep(0)
    await local.node.batcher.idle()
    assert local.node.batcher.backlog == 0
    assert await push == "job-1"

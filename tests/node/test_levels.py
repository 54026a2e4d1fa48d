"""What is of a higher feature level than the cluster's does not get into the log, whole or in part."""

from __future__ import annotations

import asyncio

import pytest

from quorumq.node.machine import operation
from quorumq.node.machine.operation import CATALOGUE, OperationInfo, level_needed
from quorumq.node.machine.operations.jobs import PushJobs
from quorumq.node.machine.operations.queues import PauseQueue
from quorumq.node.machine.operations.runs import FailJob, PullJobs
from quorumq.node.machine.refusals import LevelTooLow
from quorumq.node.machine.state import job_spec
from quorumq.node.machine.state.outcomes import scope_of
from quorumq.node.node import IdempotencyKey
from tests.node.conftest import Local


@pytest.fixture(autouse=True)
def _newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if pausing, pulling and the token of a failure had come with level 1."""
    newer = {PauseQueue: (1, ()), PullJobs: (1, ()), FailJob: (0, (("token", 1),))}
    for record, (since, fields) in newer.items():
        old = CATALOGUE[str(record.__struct_config__.tag)]
        info = OperationInfo(old.name, record, old.emits, old.refuses, since, fields)
        monkeypatch.setitem(operation.LEVELLED, record, info)


@pytest.mark.parametrize("once", [None, IdempotencyKey("key", b"f", "", "earlier")])
async def test_a_newer_operation_is_refused_below_its_level(local: Local, once: IdempotencyKey | None) -> None:
    local.machine.level = 0
    before = local.engine.applied_index
    with pytest.raises(LevelTooLow, match=r"queue\.pause needs feature level 1, and this cluster is at 0"):
        await local.node.submit(PauseQueue("q"), once=once)
    assert local.engine.applied_index == before
    local.machine.level = 1
    await local.node.submit(PauseQueue("q"), once=once)
    assert local.machine.state.queues["q"].settings.paused


async def test_a_newer_pull_is_refused_below_its_level(local: Local) -> None:
    await local.push()
    local.machine.level = 0
    with pytest.raises(LevelTooLow):
        await local.node.pull(PullJobs("q"), len)
    assert local.machine.state.queues["q"].active == {}


def test_a_newer_field_counts_only_when_it_is_used() -> None:
    assert level_needed(FailJob("j")) == 0
    assert level_needed(FailJob("j", token="t")) == 1


async def test_a_key_that_was_sent_just_before_the_level_is_sent_again_with_its_scope(local: Local) -> None:
    local.machine.level = 0
    push = PushJobs("q", [job_spec("a", b"1")])
    pending = asyncio.ensure_future(
        local.node.submit(push, lambda reply: reply.ids, once=IdempotencyKey("new", b"f", "mailer", "old"))
    )
    # It has been handed over and is not applied yet.
    await asyncio.sleep(0)
    local.machine.level = 1
    assert await pending == ["a"]
    outcomes = local.machine.state.outcomes
    assert [(key, scope_of(outcome)) for key, outcome in outcomes.items()] == [("new", "mailer")]
    assert len(local.machine.state.jobs) == 1


async def test_below_level_1_a_key_is_what_the_version_before_calls_it(local: Local) -> None:
    local.machine.level = 0
    push = PushJobs("q", [job_spec("a", b"1")])
    once = IdempotencyKey("new", b"f", "mailer", "old")
    assert await local.node.submit(push, lambda reply: reply.ids, once=once) == ["a"]
    assert [key for key, _ in local.machine.state.outcomes.items()] == ["old"]
    local.machine.level = 1
    again = PushJobs("q", [job_spec("b", b"1")])
    assert await local.node.submit(again, lambda reply: reply.ids, once=once) == ["a"]

"""Saying something to the log: once, or until it was heard."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from quorumq.cluster.errors import ClusterError, EntryTooLarge
from quorumq.node.machine.operations.jobs import PushJobs
from quorumq.node.machine.operations.runs import AckJob
from quorumq.node.machine.refusals import JobNotFound
from quorumq.node.machine.state import job_spec
from quorumq.node.proposals import propose_once, propose_until_answered
from tests.node.conftest import Local

PUSH = PushJobs("q", [job_spec("a", b"1")])


def same(reply: Any) -> Any:
    return reply


async def test_what_is_insisted_on_is_said_until_it_was_heard(local: Local) -> None:
    local.engine.available = False
    tries, submit = 0, local.engine.propose

    def counted(*given: Any) -> None:
        nonlocal tries
        tries += 1
        if tries == 3:
            local.engine.available = True
        submit(*given)

    local.engine.propose = counted  # type: ignore[method-assign]
    reply = await propose_until_answered(local.node.batcher, PUSH, same, 5, lambda: True, again_s=0.001)
    assert (tries, reply.ids, local.state_of("a")) == (3, ["a"], "waiting")


async def test_what_is_not_wanted_any_more_is_not_said_again(local: Local) -> None:
    local.engine.available = False
    wanted = [True, True, False]
    with pytest.raises(ClusterError):
        await propose_until_answered(local.node.batcher, PUSH, same, 5, lambda: wanted.pop(0), again_s=0.001)
    assert wanted == []


async def test_a_refusal_and_a_size_that_never_fits_are_answers(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(JobNotFound):
        await propose_until_answered(local.node.batcher, AckJob("nobody"), same, 5, lambda: True)

    def too_large(payload: bytes, deadline: float, done: Any) -> None:
        done(None, EntryTooLarge("too large"))

    monkeypatch.setattr(local.engine, "propose", too_large)
    with pytest.raises(EntryTooLarge):
        await propose_until_answered(local.node.batcher, PUSH, same, 5, lambda: True)


async def test_what_is_mentioned_is_said_once(local: Local) -> None:
    said = propose_once(local.node.batcher, PUSH, 5)
    assert said is not None and (await said).ids == ["a"]
    # Whoever refuses it is not heard by anybody, and nothing is reported.
    again = propose_once(local.node.batcher, AckJob("nobody"), 5)
    assert again is not None
    await asyncio.wait([again])
    local.engine.available = False
    vain = propose_once(local.node.batcher, PUSH, 5)
    assert vain is None or await asyncio.wait([vain])

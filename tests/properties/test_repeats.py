"""Random requests with idempotency keys, each sent any number of times: repeats change nothing and are answered alike."""

from __future__ import annotations

from typing import Any
from unittest import mock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.adding import AddJobs
from quorumq.node.machine.operations.dlq import RetryDlq
from quorumq.node.machine.operations.jobs import CancelJob, PromoteJob, PushJobs, RemoveJob, RetryJob
from quorumq.node.machine.operations.queues import (
    CheckStalled,
    CleanQueue,
    DrainQueue,
    ObliterateQueue,
    PauseQueue,
    RetryJobs,
)
from quorumq.node.machine.operations.requests import Idempotent
from quorumq.node.machine.operations.runs import AckJob, AckJobs, FailJob, FinishAndPull, ProgressJob, PullJobs
from quorumq.node.machine.operations.settings import HoldQueue, SetDlqConfig, SetWindow
from quorumq.node.machine.operations.webhooks import AddWebhook
from quorumq.node.machine.operations.workers import HeartbeatWorker, RegisterWorker
from quorumq.node.machine.refusals import KeyForgotten, Refusal
from quorumq.node.machine.state import Dedup, forgotten, job_spec, outcomes
from tests.support.world import World, encode

IDS = st.sampled_from(["a", "b", "c", "d", "bull:q:1", "bull:q:2", "bull:q:x"])
REQUESTS: st.SearchStrategy[Operation] = st.one_of(
    st.builds(lambda i, p: PushJobs("q", [job_spec(i, b"1", priority=p, max_attempts=2)]), IDS, st.integers(-1, 1)),
    st.builds(lambda i, on: PushJobs("q", [job_spec(i, b"2", depends_on=(on,))]), IDS, IDS),
    st.builds(lambda count: PullJobs("q", count), st.integers(1, 3)),
    st.builds(
        lambda own, key: AddJobs("q", [job_spec(own, b"1", unique_key=key, dedup=Dedup(1000), rejoin_last=True)]),
        st.sampled_from(["", "x"]),
        st.sampled_from([None, "k"]),
    ),
    st.builds(lambda i: FinishAndPull(AckJob(i, "t"), PullJobs("q", token="t")), IDS),
    st.builds(RetryJob, IDS),
    st.builds(RemoveJob, IDS),
    st.just(RetryJobs("q")),
    st.just(CheckStalled("q")),
    st.just(HoldQueue("q", 500)),
    st.just(SetWindow("q", 1, 500)),
    st.just(ObliterateQueue("q", only_idle=True)),
    st.just(PullJobs("q", token="t", lock_ms=700)),
    st.builds(AckJob, IDS, result=st.sampled_from([None, b"7"])),
    st.builds(lambda one, other: AckJobs([one, other]), IDS, IDS),
    st.builds(FailJob, IDS, error=st.just("e"), chance=st.sampled_from([None, 0.5])),
    st.builds(ProgressJob, IDS, st.integers(0, 100)),
    st.builds(PromoteJob, IDS),
    st.builds(CancelJob, IDS),
    st.just(DrainQueue("q")),
    st.just(CleanQueue("q")),
    st.just(PauseQueue("other")),
    st.just(RetryDlq("q")),
    st.just(SetDlqConfig("q", True, 1000)),
    st.just(RegisterWorker("w")),
    st.just(HeartbeatWorker("w", 1)),
    st.just(AddWebhook("h", "https://example.com/", ("pushed",))),
)


def shown(outcome: Any) -> Any:
    """Return an outcome so that two can be compared."""
    if isinstance(outcome, Refusal):
        return (outcome.code, outcome.args)
    hook = {"enc_hook": lambda refusal: [refusal.code, list(refusal.args)]}
    return msgspec.msgpack.encode(outcome, **hook)


@pytest.mark.timeout(600)
@given(st.lists(st.tuples(REQUESTS, st.integers(1, 3), st.integers(0, 2000)), max_size=30), st.data())
def test_repeats_are_answered_and_change_nothing(
    history: list[tuple[Operation, int, int]], data: st.DataObject
) -> None:
    plain, repeated = World(), World()
    said: dict[str, Any] = {}
    sent: list[Idempotent] = []
    for number, (operation, times, passes) in enumerate(history):
        for world in (plain, repeated):
            world.wait(passes)
        request = Idempotent(f"k{number}", b"f", encode(operation), "")
        first = shown(plain.apply(operation)[0])
        assert shown(repeated.apply(request)[0]) == first
        if request.key in dict(repeated.machine.state.outcomes.items()):
            said[request.key] = first
            sent.append(request)
        for _ in range(times - 1 if sent else 0):
            again = data.draw(st.sampled_from(sent))
            if data.draw(st.booleans()):
                # The answer does not depend on where it is given.
                image = list(repeated.machine.image())
                repeated.machine = Machine()
                repeated.machine.restore(image)
            assert shown(repeated.apply(again)[0]) == said[again.key]
    assert contents(plain) == contents(repeated)
    repeated.check()


def contents(world: World) -> bytes:
    """Return every job, queue, worker and webhook as bytes."""
    state = world.machine.state
    queues = [(queue.name, queue.settings, queue.counters) for queue in state.queues.values()]
    jobs = sorted(state.jobs.values(), key=lambda job: job.seq)
    hooks = [list(outbox.deliveries) for outbox in state.webhooks.outboxes.values()]
    numbers = (state.seq, state.fence, state.endings)
    return msgspec.msgpack.encode((queues, jobs, list(state.workers.by_id.values()), hooks, numbers))


@pytest.mark.timeout(600)
@given(
    st.lists(st.tuples(REQUESTS, st.sampled_from(["", "loud", "quiet"]), st.integers(0, 2000)), max_size=30),
    st.lists(st.integers(0, 29), max_size=20),
)
def test_repeats_of_what_had_to_go_change_nothing_either(
    history: list[tuple[Operation, str, int]], repeats: list[int]
) -> None:
    with mock.patch.object(outcomes, "KEYS_MAX", 4), mock.patch.object(forgotten, "SLICE_MAX", 3):
        plain, repeated = World(), World()
        sent: list[Idempotent] = []
        said: dict[str, Any] = {}
        for number, (operation, scope, passes) in enumerate(history):
            for world in (plain, repeated):
                world.wait(passes)
            request = Idempotent(f"k{number}", b"f", encode(operation), scope)
            first = shown(plain.apply(operation)[0])
            assert shown(repeated.apply(request)[0]) == first
            table = repeated.machine.state.outcomes
            if request.key in dict(table.items()):
                said[request.key] = first
                sent.append(request)
            for at in repeats[number : number + 2] if sent else ():
                again = sent[at % len(sent)]
                answer = repeated.apply(again)[0]
                if again.key in dict(table.items()):
                    assert shown(answer) == said[again.key]
                else:
                    assert isinstance(answer, KeyForgotten)
            assert len(table) <= 4 and table.evicted == table.digests
        image = list(repeated.machine.image())
        other = Machine()
        other.restore(image)
        assert other.full_digest() == repeated.machine.full_digest()
        assert contents(plain) == contents(repeated)

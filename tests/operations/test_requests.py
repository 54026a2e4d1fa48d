"""Requests with an idempotency key: applied once, answered alike, remembered within bounds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from node.operation import Operation
from node.operations.jobs import AckJob, AckJobs, FailJob, PullJobs, PushJobs, ReleaseJobs, UpdateJobData
from node.operations.queues import PauseQueue, QueueCount, SetDlqConfig
from node.operations.requests import GetOutcome, Idempotent
from node.refusals import (
    DependencyNotFound,
    IdempotencyKeyReused,
    JobNotFound,
    OperationNotKnown,
    ReplyForgotten,
)
from node.state import job_spec
from node.state import outcomes as bounds
from tests.support.world import World, encode

DAY_MS = 24 * 3600 * 1000


def once(operation: Operation, key: str = "k", fingerprint: bytes = b"f") -> Idempotent:
    return Idempotent(key, fingerprint, encode(operation))


def a_push(job_id: str, **options: Any) -> PushJobs:
    return PushJobs("q", [job_spec(job_id, b"{}", **options)])


def test_a_repeat_is_answered_and_not_applied(world: World) -> None:
    assert world.do(once(a_push("a"))).ids == ["a"]
    # The edge makes another id for the repeat; the first one's counts.
    assert world.do(once(a_push("b"))).ids == ["a"]
    assert world.ask(QueueCount("q")) == 1
    assert world.ask(GetOutcome("k", b"f")).ids == ["a"]
    assert world.ask(GetOutcome("other", b"f")) is None


def test_a_key_belongs_to_one_request(world: World) -> None:
    world.do(once(a_push("a")))
    with pytest.raises(IdempotencyKeyReused):
        world.do(once(a_push("b"), fingerprint=b"g"))
    with pytest.raises(IdempotencyKeyReused):
        world.ask(GetOutcome("k", b"g"))
    assert world.ask(QueueCount("q")) == 1


def test_a_refusal_is_an_answer_too(world: World) -> None:
    with pytest.raises(DependencyNotFound):
        world.do(once(a_push("a", depends_on=("b",))))
    world.push(job_id="b")
    with pytest.raises(DependencyNotFound) as again:
        world.do(once(a_push("a", depends_on=("b",))))
    assert (again.value.position, again.value.dependency_id) == (0, "b")


def test_jobs_in_a_reply_are_those_of_that_moment(world: World) -> None:
    world.push(data=b"1", priority=4)
    first = world.do(once(PullJobs("q", 1, "w", 1000, "seed")))
    world.do(UpdateJobData(first.jobs[0].id, b"2"))
    world.do(AckJob(first.jobs[0].id, "seed-0", b"9"))
    again = world.do(once(PullJobs("q", 1, "w", 1000, "other")))
    job = again.jobs[0]
    assert again.tokens == ["seed-0"]
    assert (job.state, job.data, job.result, job.opts.priority, job.queue) == ("active", b"1", None, 4, "q")


def test_refusals_inside_a_reply_come_back(world: World) -> None:
    world.push(job_id="a")
    world.pull()
    first = world.do(once(AckJobs(["a", "nope"])))
    again = world.do(once(AckJobs(["a", "nope"])))
    assert again.job_ids == first.job_ids == ["a"]
    assert isinstance(again.refused[0], JobNotFound) and again.refused[0].job_id == "nope"


@pytest.mark.parametrize("operation", [PauseQueue("q"), SetDlqConfig("q", True), FailJob("a", error="e")])
def test_replies_of_all_kinds_are_kept(world: World, operation: Operation) -> None:
    world.push(job_id="a")
    world.pull()
    first, again = world.apply(once(operation))[0], world.apply(once(operation))[0]
    # Jobs are compared by identity, their bytes are not.
    assert msgspec.msgpack.encode(again) == msgspec.msgpack.encode(first)


def test_a_pull_that_took_nothing_may_be_repeated(world: World) -> None:
    assert world.do(once(PullJobs("q"))).jobs == []
    world.push(job_id="a")
    assert [job.id for job in world.do(once(PullJobs("q"))).jobs] == ["a"]


def test_jobs_given_back_are_no_answer_any_more(world: World) -> None:
    world.push(job_id="a")
    taken = world.do(once(PullJobs("q"))).jobs[0]
    fence = taken.fence
    world.do(ReleaseJobs([("a", fence)], "k"))
    assert world.do(once(PullJobs("q"))).jobs[0].fence > fence
    # A release that comes too late leaves the key with the delivery that it has now.
    world.do(ReleaseJobs([("a", fence)], "k"))
    assert len(world.do(once(PullJobs("q"))).jobs) == 1


def test_keys_are_forgotten_after_a_day_and_survive_an_image(world: World) -> None:
    world.do(once(a_push("a")))
    world.wait(DAY_MS - 1)
    assert world.do(once(a_push("b"))).ids == ["a"]
    other = world.restored()
    assert GetOutcome("k", b"f").answer(other.state).ids == ["a"]
    world.wait(1)
    assert world.do(once(a_push("b"))).ids == ["b"]
    assert len(world.machine.state.outcomes) == 1


def test_keys_are_bounded_in_number_and_bytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "KEYS_MAX", 3)
    for i in range(5):
        world.do(once(a_push(f"j{i}"), f"k{i}"))
    table = world.machine.state.outcomes
    assert [key for key, _ in table.items()] == ["k2", "k3", "k4"]
    assert table.size == sum(bounds.weight_of(key, outcome) for key, outcome in table.items())
    monkeypatch.setattr(bounds, "BYTES_MAX", 300)
    world.do(once(a_push("last"), "last"))
    assert [key for key, _ in table.items()] == ["last"]


def test_a_reply_too_large_is_said_to_be_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.operations.requests.REPLY_BYTES_MAX", 10)
    for _ in range(2):
        world.push(data=b'"123456789"')
    assert len(world.do(once(PullJobs("q", 2))).jobs) == 2
    with pytest.raises(ReplyForgotten):
        world.do(once(PullJobs("q", 2)))


def test_an_operation_nobody_knows_is_refused(world: World) -> None:
    with pytest.raises(OperationNotKnown):
        world.do(Idempotent("k", b"f", b"\x81\xa2op\xa4nope"))


def test_what_is_remembered_shows_in_the_digest() -> None:
    one, other = World(), World()
    one.do(a_push("a"))
    other.do(once(a_push("a")))
    assert one.machine.digest() != other.machine.digest()

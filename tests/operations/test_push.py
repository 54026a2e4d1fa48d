"""Pushing: identity, uniqueness, atomicity, options, where a new job stands."""

import pytest

from quorumq.node.machine.operations.jobs import CancelJob, PushJobs
from quorumq.node.machine.operations.queue_reads import ListQueues
from quorumq.node.machine.operations.runs import AckJob, FailJob
from quorumq.node.machine.refusals import DependencyNotFound
from quorumq.node.machine.state import DEFAULT, JobSpec, job_spec
from tests.support.world import START_MS, World


def test_a_pushed_job_waits_with_the_defaults(world: World) -> None:
    job = world.job(world.push(data=b'{"to":"u"}'))
    assert (job.state, job.queue, job.data) == ("waiting", "q", b'{"to":"u"}')
    assert (job.created_at, job.run_at, job.attempts, job.started_at) == (START_MS, START_MS, 0, None)
    assert job.opts is DEFAULT
    assert world.event_names() == ["queue:created", "job:pushed"]
    assert world.woken == ["q"]


def test_ids_come_back_in_order(world: World) -> None:
    specs = [JobSpec(f"j{i}", b"1") for i in range(5)]
    assert world.do(PushJobs("q", specs)).ids == [f"j{i}" for i in range(5)]


def test_equal_options_are_one_object(world: World) -> None:
    first, second = world.job(world.push(priority=4)), world.job(world.push(priority=4))
    assert first.opts is second.opts
    assert world.job(world.push(priority=0)).opts is DEFAULT


@pytest.mark.parametrize("state", ["waiting", "delayed", "active", "locked", "waiting-children"])
def test_an_unfinished_custom_id_stands_for_the_new_job(world: World, state: str) -> None:
    job = world.a_job(state, job_id="order-1", data=b"1")
    world.event_names()
    assert world.push("other", "order-1", data=b"2") == "order-1"
    assert job.data == b"1"
    assert world.count("other") == 0
    assert "job:duplicated" in world.event_names()


@pytest.mark.parametrize("state", ["completed", "failed"])
def test_a_finished_custom_id_starts_a_new_generation(world: World, state: str) -> None:
    old = world.a_job(state, job_id="order-1", data=b"1")
    assert world.push("other", "order-1", data=b"2") == "order-1"
    new = world.job("order-1")
    assert new is not old
    assert (new.queue, new.data, new.state, new.attempts, new.result) == ("other", b"2", "waiting", 0, None)
    # A dead letter stays, under an id of its own.
    assert world.count("q") == (1 if state == "failed" else 0)


@pytest.mark.parametrize("state", ["waiting", "delayed", "active", "locked", "waiting-children"])
def test_a_unique_key_in_use_returns_its_holder(world: World, state: str) -> None:
    job = world.a_job(state, unique_key="k")
    assert world.push(unique_key="k") == job.id
    assert world.push("elsewhere", unique_key="k") != job.id


def test_a_unique_key_is_held_through_a_retry(world: World) -> None:
    job = world.a_job("active", unique_key="k")
    world.do(FailJob(job.id))
    assert job.state == "delayed"
    assert world.push(unique_key="k") == job.id


def test_a_unique_key_is_free_after_the_end(world: World) -> None:
    for end in (AckJob, CancelJob):
        job = world.a_job("active", unique_key="k")
        world.do(end(job.id))
        assert world.push(unique_key="k") != job.id
        assert [held.id for held in world.pull()] and world.do(CancelJob(world.machine.state.queues["q"].unique["k"]))
    job = world.a_job("failed", unique_key="k")
    assert world.push(unique_key="k") != job.id


def test_duplicates_inside_one_push(world: World) -> None:
    specs = [job_spec("a", b"1", unique_key="u"), job_spec("b", b"2", unique_key="u"), job_spec("a", b"3")]
    assert world.do(PushJobs("q", specs)).ids == ["a", "a", "a"]
    assert world.count("q") == 1


def test_a_push_is_all_or_nothing(world: World) -> None:
    specs = [job_spec("a", b"1"), job_spec("b", b"1", depends_on=("nope",))]
    with pytest.raises(DependencyNotFound) as refused:
        world.do(PushJobs("q", specs))
    assert (refused.value.position, refused.value.dependency_id) == (1, "nope")
    assert world.ask(ListQueues()) == []
    assert world.machine.state.jobs == {}


def test_a_delayed_job_is_delayed_until_its_time(world: World) -> None:
    job = world.job(world.push(delay_ms=500))
    assert (job.state, job.run_at) == ("delayed", START_MS + 500)
    world.wait(499)
    assert world.pull() == []
    world.wait(1)
    assert job.state == "waiting"
    assert world.pull() == [job]


def test_a_fraction_of_a_delay_is_never_early(world: World) -> None:
    assert world.job(world.push(delay_ms=0.5)).run_at == START_MS + 1


def test_an_empty_push_adds_nothing(world: World) -> None:
    assert world.do(PushJobs("q", [])).ids == []


def test_the_timeline_begins_as_the_job_did(world: World) -> None:
    cases: list[tuple[dict[str, object], str]] = [
        ({}, "waiting"),
        ({"priority": 2}, "prioritized"),
        ({"priority": -2}, "waiting"),
        ({"delay_ms": 5}, "delayed"),
    ]
    for options, first in cases:
        job = world.job(world.push(**options))
        assert [step.state for step in job.timeline] == [first]

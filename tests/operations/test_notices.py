"""Events that follow from the state at the end of an entry, and those of flows."""

from __future__ import annotations

from quorumq.node.machine.events import FlowCompleted, FlowFailed, JobFailed, RateLimitHit
from quorumq.node.machine.operations.jobs import PushJobs
from quorumq.node.machine.operations.queues import PauseQueue
from quorumq.node.machine.operations.runs import AckJob, FailJob
from quorumq.node.machine.operations.settings import SetConcurrency, SetRateLimit
from quorumq.node.machine.state import job_spec
from tests.support.world import World


def hits(world: World) -> list[RateLimitHit]:
    """Return the hits so far, and forget all events."""
    found = [event for event in world.events if isinstance(event, RateLimitHit)]
    world.events.clear()
    return found


def test_the_job_that_comes_to_the_front_without_a_token_is_named_once(world: World) -> None:
    world.do(SetRateLimit("q", 2))
    ids = [world.push() for _ in range(4)]
    assert world.pull_ids() == ids[:1]
    assert hits(world) == []
    assert world.pull_ids() == ids[1:2]
    assert hits(world) == [RateLimitHit("q", ids[2])]
    # Workers that ask meanwhile get nothing, and others behind it change nothing.
    assert world.pull_ids() == []
    world.push()
    assert hits(world) == []
    world.wait(500)
    assert world.pull_ids() == [ids[2]]
    assert hits(world) == [RateLimitHit("q", ids[3])]


def test_a_job_pushed_while_there_is_no_token_is_named(world: World) -> None:
    world.do(SetRateLimit("q", 1))
    world.push()
    world.pull()
    assert hits(world) == []
    job = world.push()
    assert hits(world) == [RateLimitHit("q", job)]
    better = world.push(priority=5)
    assert hits(world) == [RateLimitHit("q", better)]


def test_a_job_that_something_else_holds_up_is_not_named(world: World) -> None:
    world.do(SetRateLimit("q", 1))
    world.do(SetConcurrency("q", 1))
    world.push()
    world.push()
    world.pull()
    assert hits(world) == []
    world.do(PauseQueue("p"))
    world.do(SetRateLimit("p", 0))
    world.push("p")
    assert hits(world) == []


def test_bulk_pushes_and_pulls_name_one_job(world: World) -> None:
    world.do(SetRateLimit("q", 3))
    world.do(PushJobs("q", [job_spec(f"j{i}", b"1") for i in range(6)]))
    assert world.pull_ids("q", 6) == ["j0", "j1", "j2"]
    assert hits(world) == [RateLimitHit("q", "j3")]


def test_a_flow_is_completed_with_its_last_child(world: World) -> None:
    first, second = world.push(), world.push("other")
    parent = world.push("parents", depends_on=(first, second, first))
    world.pull()
    world.do(AckJob(first))
    assert not any(isinstance(event, FlowCompleted) for event in world.events)
    world.pull("other")
    world.do(AckJob(second))
    assert [e for e in world.events if isinstance(e, FlowCompleted)] == [FlowCompleted(parent, "parents", 2)]


def test_a_flow_fails_with_each_child_that_fails_for_good(world: World) -> None:
    child = world.push(max_attempts=2)
    parents = [world.push(depends_on=(child,)), world.push("other", depends_on=(child,))]
    world.pull()
    world.do(FailJob(child, error="once"))
    assert not any(isinstance(event, FlowFailed) for event in world.events)
    world.wait(60_000)
    world.pull()
    world.do(FailJob(child, error="twice"))
    assert [e for e in world.events if isinstance(e, FlowFailed)] == [
        FlowFailed(parents[0], child, "q", "twice"),
        FlowFailed(parents[1], child, "other", "twice"),
    ]
    assert any(isinstance(event, JobFailed) and event.final for event in world.events)

"""Flows: what a child's end, return and removal mean for its parent, over queues, by either dialect's rules."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import msgspec
import pytest

from quorumq.node.machine import contents
from quorumq.node.machine.lifecycle.finishing import CASCADE_MAX
from quorumq.node.machine.lifecycle.flows import JOBS_MAX, LEVELS_MAX
from quorumq.node.machine.operations.dlq import PurgeDlq, RetryDlq
from quorumq.node.machine.operations.flows import (
    AddFlow,
    AttachChild,
    AwaitChildren,
    DetachChild,
    FlowJob,
    GetChildrenFailures,
    ListDependencies,
    RemoveUnprocessedChildren,
)
from quorumq.node.machine.operations.job_reads import GetChildrenValues
from quorumq.node.machine.operations.jobs import CancelJob, DiscardJob, JobTies, PushJobs, RemoveJob, RetryJob
from quorumq.node.machine.operations.queues import CleanQueue, DrainQueue, ObliterateQueue, RetryCompleted
from quorumq.node.machine.operations.requests import Idempotent
from quorumq.node.machine.operations.runs import AckJob, AckJobs, FailJob, FinishAndPull, PullJobs
from quorumq.node.machine.operations.settings import SetRetention
from quorumq.node.machine.refusals import (
    ChildrenFailed,
    ChildrenPending,
    FlowCycle,
    FlowTooDeep,
    FlowTooLarge,
    JobExists,
    JobInWrongState,
    JobLocked,
    JobNotActive,
    JobNotFound,
    LockLost,
    NoParent,
    ParentNotFound,
    ParentNotReplaceable,
    TooManyQueues,
)
from quorumq.node.machine.state import Job, job_spec
from tests.support.world import World

BULL = {"rejoin_last": True, "backoff": 0, "stalls_allowed": 1}
RULES = [False, True]
rules = pytest.mark.parametrize("bull", RULES, ids=["bunqueue", "bullmq"])


def node(
    queue: str, name: str, parent: int | str = -1, on_failure: Any = "wait", *, bull: bool, **options: Any
) -> FlowJob:
    """Return a job of a flow. parent: its parent's position in the flow, or the id of one that is there."""
    options = {"max_attempts": 1, **(BULL if bull else {}), **options}
    spec = job_spec(name, b"{}", custom=True, **options)
    if isinstance(parent, str):
        return FlowJob(queue, spec, -1, parent, on_failure)
    return FlowJob(queue, spec, parent, None, on_failure)


def family(
    world: World, on_failure: Any = "wait", *, bull: bool = False, children: int = 2, queue: str = "c", **options: Any
) -> tuple[Job, list[Job]]:
    """Add a parent in queue p with children in another queue; return them."""
    jobs = [node("p", "parent", bull=bull, **options)]
    jobs += [node(queue, f"child-{i}", 0, on_failure, bull=bull) for i in range(children)]
    parent, *others = world.do(AddFlow(jobs, numbered=bull)).jobs
    return parent, others


def run(world: World, job: Job, *, ends: str = "completed", result: bytes | None = b"1") -> None:
    """Work on a waiting job, whatever else waits in its queue."""
    while world.state_of(job.id) not in ("active", "unknown"):
        [taken] = world.pull(job.queue)
        if taken is not job:
            world.job(taken.id)
    if ends == "completed":
        world.do(AckJob(job.id, None, result))
    else:
        world.do(FailJob(job.id, error="broken"))


def keys(world: World, job: Job, *kinds: Any) -> dict[str, list[str]]:
    """Return the children of a job by kind."""
    found = world.ask(ListDependencies(job.id, dict.fromkeys(kinds, (0, 100))))
    return {kind: [child.job_id.rpartition(":")[2] for child in page] for kind, page in found.pages.items()}


# -- A parent waits for all of its children


@rules
def test_a_parent_runs_when_all_its_children_are_done(world: World, bull: bool) -> None:
    parent, [first, second] = family(world, bull=bull)
    assert (parent.state, first.state) == ("waiting-children", "waiting")
    assert world.pull("p") == []
    run(world, first, result=b'"a"')
    assert parent.state == "waiting-children"
    run(world, second, result=b'"b"')
    assert parent.state == "waiting"
    world.check()
    names = ["bull:c:child-0", "bull:c:child-1"] if bull else ["c:child-0", "c:child-1"]
    assert world.ask(GetChildrenValues(parent.id)) == dict(zip(names, [b'"a"', b'"b"'], strict=True))
    run(world, parent)
    assert parent.state == "completed"
    world.check()


@rules
def test_a_tree_runs_from_its_leaves_to_its_root(world: World, bull: bool) -> None:
    reply = world.do(
        AddFlow(
            [
                node("a", "root", bull=bull),
                node("b", "left", 0, bull=bull),
                node("b", "right", 0, bull=bull),
                node("c", "leaf", 1, bull=bull),
            ],
            numbered=bull,
        )
    )
    root, left, right, leaf = reply.jobs
    assert [job.state for job in reply.jobs] == ["waiting-children", "waiting-children", "waiting", "waiting"]
    run(world, right)
    run(world, leaf)
    assert (left.state, root.state) == ("waiting", "waiting-children")
    run(world, left)
    assert root.state == "waiting"
    world.check()


def test_a_parents_own_delay_and_priority_hold_when_it_is_released(world: World) -> None:
    parent, children = family(world, bull=True, delay_ms=500)
    world.wait(1000)
    for child in children:
        run(world, child)
    assert parent.state == "delayed" and parent.run_at == world.now_ms + 500, (
        "BullMQ: the delay counts from the release"
    )
    world.wait(500)
    assert parent.state == "waiting"


def test_a_released_parent_of_bullmq_comes_first_and_one_with_a_priority_by_that(world: World) -> None:
    parent, children = family(world, bull=True)
    world.add("p", "earlier")
    for child in children:
        run(world, child)
    assert world.pull("p") == [parent]
    late, children = family(World(), bull=True, priority=-3)
    assert late.state == "waiting-children" and children


def test_a_bunqueue_parent_keeps_its_place_by_birth(world: World) -> None:
    parent, children = family(world)
    later = world.push("p", "later")
    for child in children:
        run(world, child)
    assert world.pull_ids("p", 2) == [parent.id, later]


def test_who_also_depends_on_others_waits_for_them_too(world: World) -> None:
    world.push("d", "other")
    spec = job_spec("parent", b"{}", custom=True, depends_on=("other",))
    parent, child = world.do(AddFlow([FlowJob("p", spec), node("c", "child", 0, bull=False)])).jobs
    run(world, child)
    assert parent.state == "waiting-children"
    world.check()
    run(world, world.job("other"))
    assert parent.state == "waiting"
    assert world.ask(GetChildrenValues(parent.id)) == {"other": b"1", "c:child": b"1"}
    world.check()


def test_who_depends_on_others_that_end_first_waits_for_its_children(world: World) -> None:
    world.push("d", "other")
    spec = job_spec("parent", b"{}", custom=True, depends_on=("other",))
    parent, child = world.do(AddFlow([FlowJob("p", spec), node("c", "child", 0, bull=False)])).jobs
    run(world, world.job("other"))
    assert parent.state == "waiting-children"
    run(world, child)
    assert parent.state == "waiting"


# -- Failures, by policy, in every order of the children's ends

# What a parent of three is when the first child failed, then when all have ended; and what it knows of the failed one.
POLICIES = {
    "wait": ("waiting-children", "waiting-children", "unprocessed"),
    "fail": ("failed", "failed", "failed"),
    "continue": ("waiting", "waiting", "ignored"),
    "ignore": ("waiting-children", "waiting", "ignored"),
    "remove": ("waiting-children", "waiting", None),
}


@rules
@pytest.mark.parametrize("order", list(permutations(range(3))), ids=lambda order: "".join(map(str, order)))
@pytest.mark.parametrize("policy", POLICIES)
def test_each_policy_in_each_order_of_ends(world: World, policy: str, order: tuple[int, ...], bull: bool) -> None:
    early, late, known = POLICIES[policy]
    parent, children = family(world, policy, bull=bull, children=3)
    has_failed = False
    for place, number in enumerate(order):
        is_bad = number == 1
        run(world, children[number], ends="failed" if is_bad else "completed")
        has_failed |= is_bad
        is_last = place == 2
        expected = (late if is_last else early) if has_failed else "waiting-children"
        assert parent.state == expected
        world.check()
    found = keys(world, parent, "processed", "unprocessed", "ignored", "failed")
    assert sorted(found["processed"]) == ["child-0", "child-2"]
    assert found["unprocessed"] == (["child-1"] if known == "unprocessed" else [])
    assert found["ignored"] == (["child-1"] if known == "ignored" else [])
    assert found["failed"] == (["child-1"] if known == "failed" else [])
    counts = world.ask(ListDependencies(parent.id, {})).counts
    assert sum(counts.values()) == (2 if policy == "remove" else 3)


@rules
def test_a_failed_parent_says_why(world: World, bull: bool) -> None:
    parent, [child, _] = family(world, "fail", bull=bull)
    run(world, child, ends="failed")
    assert parent.error == ("child bull:c:child-0 failed" if bull else "Child job child-0 failed: broken")
    assert parent.failures is not None and parent.failures.reason == "unknown"


def test_the_reasons_of_failures_that_were_recorded(world: World) -> None:
    ignoring, [first, _] = family(world, "ignore")
    run(world, first, ends="failed")
    assert world.ask(GetChildrenFailures(ignoring.id)) == {"c:child-0": "broken"}
    assert world.ask(GetChildrenFailures(ignoring.id, "ignored")) == {"c:child-0": "broken"}
    assert world.ask(GetChildrenFailures(ignoring.id, "continued")) == {}
    other = World()
    going_on, [first, _] = family(other, "continue")
    run(other, first, ends="failed")
    assert other.ask(GetChildrenFailures(going_on.id, "continued")) == {"c:child-0": "broken"}
    assert other.ask(GetChildrenFailures("unknown")) == {}


def chain(length: int, on_failure: Any, *, bull: bool = False) -> list[FlowJob]:
    return [node(f"q{i % 3}", f"job-{i}", i - 1, on_failure, bull=bull) for i in range(length)]


@rules
def test_a_failure_climbs_as_far_as_the_policies_say(world: World, bull: bool) -> None:
    jobs = chain(5, "fail", bull=bull)
    # The third's parent waits for it in spite of all.
    jobs[2] = node("q2", "job-2", 1, "wait", bull=bull)
    reply = world.do(AddFlow(jobs, numbered=bull)).jobs
    run(world, reply[4], ends="failed")
    assert [job.state for job in reply] == ["waiting-children", "waiting-children", "failed", "failed", "failed"]
    world.check()


def test_a_failure_that_climbs_far_goes_on_with_the_entries_that_follow(world: World) -> None:
    # A chain is built from its leaf, so that it may be deeper than a flow may be added.
    world.push("q", "job-0", max_attempts=1)
    depth = CASCADE_MAX + 500
    for i in range(1, depth):
        world.push("q", f"job-{i}", max_attempts=1)
        world.do(AttachChild(f"job-{i - 1}", f"job-{i}"))
        links = world.job(f"job-{i - 1}").flow
        assert links is not None
        links.on_failure = "fail"
    leaf = world.job("job-0")
    run(world, leaf, ends="failed")
    failed = sum(job.state == "failed" for job in world.machine.state.jobs.values())
    assert 1000 <= failed < depth
    assert world.machine.state.next_due_ms(world.now_ms) == world.now_ms
    world.check()
    restored = world.restored()
    world.tick()
    assert {job.state for job in world.machine.state.jobs.values()} == {"failed"}
    restored.apply(world.machine.index, world.now_ms, [])
    assert restored.full_digest() == world.machine.full_digest()


STATES = ["waiting", "delayed", "active", "completed", "failed"]


def parent_in(world: World, state: str, *, bull: bool) -> Job:
    """A job that became a parent only when it was in that state already."""
    options: dict[str, Any] = {"delay_ms": 60_000} if state == "delayed" else {}
    options |= {"max_attempts": 1, **(BULL if bull else {})}
    parent = world.add("p", "parent", **options) if bull else world.job(world.push("p", "parent", **options))
    if state in ("active", "completed", "failed"):
        assert world.pull("p") == [parent]
    if state == "completed":
        world.do(AckJob(parent.id))
    if state == "failed":
        world.do(FailJob(parent.id, error="own"))
    return parent


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("policy", ["wait", "continue", "ignore", "remove"])
@rules
def test_a_parent_in_any_state_stays_there_when_a_child_fails_that_does_not_fail_it(
    world: World, policy: str, state: str, bull: bool
) -> None:
    """The failure is known to it as its policy says, and only a child that it still waits for keeps it from its completion."""
    parent = parent_in(world, state, bull=bull)
    child = world.do(AddFlow([node("c", "child", parent.id, policy, bull=bull)], numbered=bull)).jobs[0]
    run(world, child, ends="failed")
    assert parent.state == state
    known = POLICIES[policy][2]
    kinds = ("processed", "unprocessed", "ignored", "failed")
    assert keys(world, parent, *kinds) == {kind: ["child"] if kind == known else [] for kind in kinds}
    world.check()
    if state == "active" and policy == "wait":
        with pytest.raises(ChildrenPending):
            world.do(AckJob(parent.id))
    elif state == "active":
        world.do(AckJob(parent.id))
        assert parent.state == "completed"
    world.check()


@pytest.mark.parametrize("state", STATES)
@rules
def test_a_child_of_a_parent_in_any_state_that_fails_with_it(world: World, state: str, bull: bool) -> None:
    """Only who is not being worked on and has not ended fails with its child; a run under way is refused its completion."""
    parent = parent_in(world, state, bull=bull)
    child = world.do(AddFlow([node("c", "child", parent.id, "fail", bull=bull)], numbered=bull)).jobs[0]
    assert parent.state == state
    run(world, child, ends="failed")
    assert parent.state == (state if state in ("active", "completed", "failed") else "failed")
    assert keys(world, parent, "failed") == {"failed": ["child"]}
    world.check()
    if state == "active":
        with pytest.raises(ChildrenFailed):
            world.do(AckJob(parent.id))
        with pytest.raises(ChildrenFailed):
            world.do(AwaitChildren(parent.id))
        world.do(FailJob(parent.id, error="gave up"))
        assert parent.state == "failed"


def test_a_failure_that_is_retried_is_none(world: World) -> None:
    parent, [child, _] = family(world, "fail")
    child.opts = world.machine.state.shared(job_spec("x", b"", max_attempts=2, backoff=0).opts)
    run(world, child, ends="failed")
    assert (child.state, parent.state) == ("waiting", "waiting-children")


@pytest.mark.parametrize("how", ["discarded", "stalled", "timeout", "expired"])
def test_every_way_to_fail_for_good_counts(world: World, how: str) -> None:
    options = {"timeout": {"timeout_ms": 100}, "expired": {"ttl_ms": 100}, "stalled": {"stalls_allowed": 0}}.get(
        how, {}
    )
    jobs = [node("p", "parent", bull=False), node("c", "child", 0, "fail", bull=False, **options)]
    parent, child = world.do(AddFlow(jobs)).jobs
    if how == "discarded":
        world.do(DiscardJob(child.id))
    elif how != "expired":
        world.pull("c", owner="w", lock_ms=200)
    world.wait(1000)
    # What nobody took in time is removed, which is no failure.
    assert parent.state == ("waiting" if how == "expired" else "failed")
    world.check()


# -- Retries


@rules
@pytest.mark.parametrize("policy", POLICIES)
def test_a_failed_child_that_is_retried_is_pending_again(world: World, policy: str, bull: bool) -> None:
    parent, [child, other] = family(world, policy, bull=bull)
    run(world, child, ends="failed")
    before = parent.state
    world.do(RetryJob(child.id) if bull else RetryDlq("c", child.id))
    if policy == "remove":
        assert keys(world, parent, "unprocessed") == {"unprocessed": ["child-1"]}
        return
    assert keys(world, parent, "unprocessed", "ignored", "failed") == {
        "unprocessed": ["child-0", "child-1"],
        "ignored": [],
        "failed": [],
    }
    # A parent of bunqueue that nobody has taken waits for it once more.
    assert parent.state == ("waiting-children" if before == "waiting" and not bull else before)
    world.check()
    run(world, other)
    run(world, child)
    assert parent.state == ("failed" if policy == "fail" else "waiting")
    world.check()


@rules
def test_a_completed_child_that_is_retried_is_pending_again(world: World, bull: bool) -> None:
    parent, [child, other] = family(world, bull=bull)
    run(world, child)
    world.do(RetryJob(child.id) if bull else RetryCompleted("c"))
    assert keys(world, parent, "unprocessed") == {"unprocessed": ["child-0", "child-1"]}
    run(world, other)
    assert parent.state == "waiting-children"
    run(world, child)
    assert parent.state == "waiting"
    world.check()


@rules
def test_a_parent_that_is_retried_waits_for_those_that_are_pending_and_no_more_for_those_that_failed(
    world: World, bull: bool
) -> None:
    parent, [child, other] = family(world, "fail", bull=bull)
    run(world, child, ends="failed")
    world.do(RetryJob(parent.id) if bull else RetryDlq("p", parent.id))
    assert parent.state == "waiting-children"
    assert keys(world, parent, "ignored", "failed") == {"ignored": ["child-0"], "failed": []}
    run(world, other)
    run(world, parent)
    assert parent.state == "completed"
    world.check()


# -- Completing


@rules
def test_a_parent_with_pending_children_cannot_complete(world: World, bull: bool) -> None:
    parent = world.add("p", "parent") if bull else world.job(world.push("p", "parent"))
    assert world.pull("p") == [parent]
    world.do(AddFlow([node("c", "child", parent.id, bull=bull)], numbered=bull))
    with pytest.raises(ChildrenPending):
        world.do(AckJob(parent.id))
    with pytest.raises(ChildrenPending):
        world.do(FinishAndPull(AckJob(parent.id), PullJobs("p")))
    [refused] = world.do(AckJobs([parent.id])).refused
    assert isinstance(refused, ChildrenPending)
    assert parent.state == "active"
    run(world, world.pull("c")[0])
    world.do(AckJob(parent.id))
    world.check()


def test_a_bunqueue_parent_that_went_on_may_complete_though_others_are_pending(world: World) -> None:
    parent, [child, other] = family(world, "continue")
    run(world, child, ends="failed")
    run(world, parent)
    assert (parent.state, other.state) == ("completed", "waiting")
    run(world, other)
    world.check()


def test_a_bullmq_parent_that_went_on_lets_go_of_the_others_itself(world: World) -> None:
    parent, [child, other] = family(world, "continue", bull=True)
    run(world, child, ends="failed")
    assert world.pull("p") == [parent]
    with pytest.raises(ChildrenPending):
        world.do(AckJob(parent.id))
    assert world.do(RemoveUnprocessedChildren(parent.id)).count == 1
    assert world.state_of(other.id) == "unknown"
    world.do(AckJob(parent.id))
    world.check()


# -- Waiting for children that are added while the parent runs


@rules
def test_an_active_job_waits_for_children_that_it_added(world: World, bull: bool) -> None:
    parent = world.add("p", "parent") if bull else world.job(world.push("p", "parent"))
    [_] = world.pull("p", owner="w", token_seed="t")
    assert not world.do(AwaitChildren(parent.id, "t-0")).moved, "nothing is pending"
    child = world.do(AddFlow([node("c", "child", parent.id, bull=bull)], numbered=bull)).jobs[0]
    with pytest.raises(LockLost):
        world.do(AwaitChildren(parent.id, "other"))
    assert not world.do(AwaitChildren(parent.id, "t-0", "stranger")).moved
    assert world.do(AwaitChildren(parent.id, "t-0", child.id)).moved
    assert (parent.state, parent.attempts, parent.locked) == ("waiting-children", 0, False)
    world.check()
    with pytest.raises(JobNotActive):
        world.do(AwaitChildren(parent.id, "t-0"))
    run(world, child)
    assert parent.state == "waiting"
    assert world.pull("p") == [parent]
    assert not world.do(AwaitChildren(parent.id)).moved, "none is pending any more"
    world.do(AckJob(parent.id))
    world.check()


# -- Adding: all or nothing


@rules
def test_nothing_is_added_when_something_cannot_be(world: World, bull: bool) -> None:
    taken = world.add("c", "taken") if bull else world.job(world.push("c", "taken"))
    world.do(AddFlow([node("p", "its-parent", bull=bull)], numbered=bull))
    if bull:
        world.do(AddFlow([node("c", "taken", "bull:p:its-parent", bull=True)], numbered=True))
    before = world.machine.full_digest()
    flow = [node("p", "parent", bull=bull), node("new", "child", 0, bull=bull), node("c", "taken", 0, bull=bull)]
    deep = [node("q", f"deep-{i}", i, bull=bull) for i in range(LEVELS_MAX - 1)]
    cases: list[tuple[AddFlow, type[Exception]]] = [
        (AddFlow(flow, numbered=bull), ParentNotReplaceable if bull else JobExists),
        (AddFlow([flow[0], node("new", "child", "nobody", bull=bull)], numbered=bull), ParentNotFound),
        (AddFlow([flow[0], flow[1], flow[1]], numbered=bull), JobExists),
        (AddFlow(chain(LEVELS_MAX + 1, "wait", bull=bull), numbered=bull), FlowTooDeep),
        (AddFlow([node("t", "top", taken.id, bull=bull), *deep], numbered=bull), FlowTooDeep),
        (AddFlow([node("p", "", bull=True)] * (JOBS_MAX + 1), numbered=True), FlowTooLarge),
    ]
    for operation, refusal in cases:
        with pytest.raises(refusal):
            operation.apply(world.machine.state, None)  # type: ignore[arg-type]
    assert world.machine.full_digest() == before


def test_a_flow_over_more_queues_than_there_may_be(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorumq.node.machine.state.state.QUEUES_MAX", 3)
    world.push("a")
    world.do(AddFlow([node("a", "x", bull=False), node("b", "y", 0, bull=False), node("c", "z", 0, bull=False)]))
    with pytest.raises(TooManyQueues):
        world.do(AddFlow([node("a", "v", bull=False), node("d", "w", 0, bull=False)]))
    assert list(world.machine.state.queues) == ["a", "b", "c"] and world.state_of("v") == "unknown"


def test_the_deepest_and_the_largest_flow_are_taken(world: World) -> None:
    jobs = world.do(AddFlow(chain(LEVELS_MAX, "fail"))).jobs
    run(world, jobs[-1], ends="failed")
    assert {job.state for job in jobs} == {"failed"}
    world.do(
        AddFlow(
            [node("p", "big", bull=False), *(node(f"c{i % 10}", f"n{i}", 0, bull=False) for i in range(JOBS_MAX - 1))]
        )
    )
    assert world.job("big").pending_children == JOBS_MAX - 1
    world.check()


def test_bullmq_numbers_jobs_and_lets_one_that_is_there_stand_for_a_new_one(world: World) -> None:
    world.add("c")
    done = world.add("c", "done")
    run(world, done, result=b"7")
    waiting = world.add("c", "known")
    reply = world.do(
        AddFlow(
            [
                node("p", "", bull=True),
                node("c", "", 0, bull=True),
                node("c", "known", 0, bull=True),
                node("c", "done", 0, bull=True),
            ],
            numbered=True,
        )
    )
    assert [job.id for job in reply.jobs] == ["bull:p:1", "bull:c:4", "bull:c:known", "bull:c:done"]
    assert reply.duplicates == [False, False, True, True]
    parent = reply.jobs[0]
    assert keys(world, parent, "processed", "unprocessed") == {"processed": ["done"], "unprocessed": ["4", "known"]}
    run(world, reply.jobs[1])
    run(world, waiting)
    assert parent.state == "waiting"
    world.check()


def test_a_parent_whose_children_all_are_completed_already_waits_for_none(world: World) -> None:
    run(world, world.add("c", "done"))
    parent, _ = world.do(AddFlow([node("p", "parent", bull=True), node("c", "done", 0, bull=True)], numbered=True)).jobs
    assert parent.state == "waiting"
    world.check()


def test_a_failed_job_that_becomes_a_child_counts_by_its_policy(world: World) -> None:
    for policy, state in {
        "wait": "waiting-children",
        "fail": "failed",
        "ignore": "waiting",
        "continue": "waiting",
    }.items():
        other = World()
        child = other.add("c", "dead", max_attempts=1)
        run(other, child, ends="failed")
        flow = [node("p", "parent", bull=True), node("c", "dead", 0, policy, bull=True)]
        parent = other.do(AddFlow(flow, numbered=True)).jobs[0]
        assert parent.state == state, policy
        other.check()


def test_nobody_waits_for_itself(world: World) -> None:
    top, middle, leaf = world.do(AddFlow(chain(3, "wait", bull=True), numbered=True)).jobs
    with pytest.raises(FlowCycle):
        world.do(AttachChild(top.id, leaf.id))
    with pytest.raises(FlowCycle):
        world.do(AttachChild(top.id, top.id))
    with pytest.raises(FlowCycle):
        world.do(AddFlow([node("q0", "job-0", leaf.id, bull=True)], numbered=True))
    with pytest.raises(FlowCycle):
        flow = [node("q2", "job-2", bull=True), node("x", "between", 0, bull=True), node("q0", "job-0", 1, bull=True)]
        world.do(AddFlow(flow, numbered=True))
    assert middle.flow is not None and middle.flow.parent == top.id
    world.check()


# -- Attaching and detaching


@pytest.mark.parametrize("state", ["waiting", "delayed", "active", "completed", "failed", "waiting-children"])
def test_a_job_in_any_state_becomes_a_child(world: World, state: str) -> None:
    child = world.a_job(state, "c")
    parent = world.job(world.push("p", "parent"))
    world.do(AttachChild(child.id, parent.id))
    assert parent.state == ("waiting" if state == "completed" else "waiting-children")
    assert parent.flow is not None and list(parent.flow.children) == [child.id]
    world.do(AttachChild(child.id, parent.id))
    assert world.ask(ListDependencies(parent.id, {})).counts["unprocessed"] == (state != "completed")
    world.check()
    other = world.job(world.push("p", "other"))
    with pytest.raises(ParentNotReplaceable):
        world.do(AttachChild(child.id, other.id))
    world.do(CancelJob(parent.id) if not parent.finished else RemoveJob(parent.id))
    world.do(AttachChild(child.id, other.id))
    world.check()


@pytest.mark.parametrize("state", ["active", "completed", "failed"])
def test_a_job_that_was_taken_becomes_no_parent_by_attaching(world: World, state: str) -> None:
    child, parent = world.a_job("waiting", "c"), world.a_job(state, "p")
    with pytest.raises(JobInWrongState):
        world.do(AttachChild(child.id, parent.id))
    with pytest.raises(ParentNotFound):
        world.do(AttachChild(child.id, "nobody"))
    assert child.flow is None


@rules
def test_a_parent_waits_no_more_for_a_child_that_is_detached(world: World, bull: bool) -> None:
    parent, [first, second] = family(world, bull=bull)
    assert world.do(DetachChild(first.id)).count == 1
    with pytest.raises(NoParent):
        world.do(DetachChild(first.id))
    run(world, second)
    assert parent.state == "waiting"
    assert world.do(DetachChild(second.id)).count == 0, "it has ended"
    assert not first.finished
    world.check()


# -- Removal

ENDS_OF_A_CHILD = {
    "cancel": lambda child: CancelJob(child.id),
    "remove": lambda child: RemoveJob(child.id),
    "drain": lambda child: DrainQueue(child.queue),
    "clean": lambda child: CleanQueue(child.queue, 0, "waiting", 1),
    "obliterate": lambda child: ObliterateQueue(child.queue),
}


@rules
@pytest.mark.parametrize("way", ENDS_OF_A_CHILD)
def test_a_parent_waits_no_more_for_a_child_that_is_removed(world: World, way: str, bull: bool) -> None:
    jobs = [node("p", "parent", bull=bull), node("c", "gone", 0, bull=bull), node("d", "stays", 0, bull=bull)]
    parent, child, other = world.do(AddFlow(jobs, numbered=bull)).jobs
    world.do(ENDS_OF_A_CHILD[way](child))
    assert world.state_of(child.id) == "unknown"
    assert keys(world, parent, "unprocessed") == {"unprocessed": ["stays"]}
    assert parent.state == "waiting-children"
    run(world, other)
    assert parent.state == "waiting"
    world.check()


@rules
def test_a_parent_in_the_queue_that_is_drained_goes_with_its_last_child(world: World, bull: bool) -> None:
    parent, _ = family(world, bull=bull, queue="p")
    world.do(DrainQueue("p"))
    assert world.state_of(parent.id) == "unknown"
    assert world.machine.state.jobs == {}
    world.check()


@rules
def test_a_queue_is_obliterated_with_whole_flows_in_it(world: World, bull: bool) -> None:
    outside = world.add("o", "outside") if bull else world.job(world.push("o", "outside"))
    world.pull("o")
    jobs = [node("q", "job-0", outside.id, bull=bull), *(node("q", f"job-{i}", i - 1, bull=bull) for i in range(1, 5))]
    world.do(AddFlow(jobs, numbered=bull))
    world.do(ObliterateQueue("q"))
    assert list(world.machine.state.jobs) == [outside.id]
    assert outside.pending_children == 0
    world.do(AckJob(outside.id))
    world.check()


@rules
def test_children_of_a_removed_parent_are_nobodys_or_go_with_it(world: World, bull: bool) -> None:
    parent, children = family(world, bull=bull)
    world.do(RemoveJob(parent.id))
    assert [child.state for child in children] == ["waiting", "waiting"]
    for child in children:
        run(world, child)
    world.check()
    other = World()
    parent, children = family(other, bull=bull)
    run(other, children[0])
    other.do(RemoveJob(parent.id, children=True))
    assert other.machine.state.jobs == {}
    other.check()


def test_a_job_is_not_removed_with_children_while_one_of_them_is_held(world: World) -> None:
    parent, _ = family(world)
    world.pull("c", owner="w", token_seed="t")
    with pytest.raises(JobLocked):
        world.do(RemoveJob(parent.id, children=True))
    assert len(world.machine.state.jobs) == 3


def test_unprocessed_children_go_with_what_is_below_them_and_the_others_stay(world: World) -> None:
    flow = [
        node("p", "parent", bull=False),
        node("c", "done", 0, bull=False),
        node("c", "running", 0, bull=False),
        node("c", "waits", 0, bull=False),
        node("d", "below", 3, bull=False),
    ]
    parent, done, running, _, _ = world.do(AddFlow(flow)).jobs
    assert world.pull("c", 2) == [done, running]
    world.do(AckJob(done.id))
    assert world.do(RemoveUnprocessedChildren(parent.id)).count == 2
    assert sorted(world.machine.state.jobs) == ["done", "parent", "running"]
    world.do(AckJob(running.id))
    assert parent.state == "waiting"
    assert world.do(RemoveUnprocessedChildren("unknown")).count == 0
    assert isinstance(world.apply(RemoveUnprocessedChildren("unknown", known=True))[0], JobNotFound)
    world.check()


@pytest.mark.parametrize("end", ["completed", "failed"])
def test_a_parent_keeps_what_it_knows_of_a_child_whose_record_goes(world: World, end: str) -> None:
    parent, [child, other] = family(world, "ignore")
    run(world, child, ends=end, result=b"5")
    if end == "completed":
        world.do(SetRetention("c", keep_completed=0))
        world.push("c", "later")
        world.tick()
    else:
        world.do(PurgeDlq("c"))
    run(world, other, result=b"6")
    values = {"c:child-0": b"5"} if end == "completed" else {}
    assert world.ask(GetChildrenValues(parent.id)) == values | {"c:child-1": b"6"}
    assert world.ask(GetChildrenFailures(parent.id)) == ({} if values else {"c:child-0": "broken"})
    world.check()


@pytest.mark.parametrize("option", ["remove_on_complete", "remove_on_fail"])
def test_a_child_that_goes_with_its_end(world: World, option: str) -> None:
    flow = [node("p", "parent", bull=False), node("c", "child", 0, bull=False, **{option: True})]
    parent, child = world.do(AddFlow(flow)).jobs
    run(world, child, ends="completed" if option == "remove_on_complete" else "failed", result=b"9")
    assert world.state_of(child.id) == "unknown" and parent.state == "waiting"
    expected = {"c:child": b"9"} if option == "remove_on_complete" else {}
    assert world.ask(GetChildrenValues(parent.id)) == expected
    world.check()


def test_purging_a_dead_child_that_its_parent_waits_for_lets_that_go_on(world: World) -> None:
    parent, [child, other] = family(world, "wait")
    run(world, child, ends="failed")
    run(world, other)
    assert parent.state == "waiting-children"
    world.do(PurgeDlq("c"))
    assert parent.state == "waiting"
    world.check()


def test_a_dead_letter_of_a_flow_that_gives_up_its_id_stays_in_the_flow(world: World) -> None:
    parent, [child, other] = family(world, "wait")
    run(world, child, ends="failed")
    world.do(PushJobs("c", [job_spec("child-0", b"new", custom=True)]))
    assert child.id != "child-0"
    run(world, world.job("child-0"))
    run(world, other)
    assert parent.state == "waiting-children", "the new job is nobody's child"
    world.check()
    world.do(RetryDlq("c", child.id))
    run(world, child)
    assert parent.state == "waiting"
    world.check()


# -- Events


def test_what_a_flow_says_of_itself(world: World) -> None:
    _, [first, second] = family(world)
    assert world.event_names() == [
        "queue:created",
        "job:pushed",
        "queue:created",
        "job:pushed",
        "job:pushed",
        "job:waiting-children",
    ]
    run(world, first)
    run(world, second)
    assert [name for name in world.event_names() if name.startswith(("flow:", "job:waiting"))] == [
        "flow:completed",
        "job:waiting",
    ]
    other = World()
    _, [first, second] = family(other, "ignore")
    run(other, first, ends="failed")
    run(other, second)
    assert [name for name in other.event_names() if name.startswith("flow:")] == ["flow:failed"]


# -- Cost


def test_a_child_among_very_many_ends_as_fast_as_one_among_few(world: World) -> None:
    """Steps are counted, not seconds: the table of a parent's children is asked for one of them, never walked through."""
    parent, children = family(world, children=5_000)
    assert parent.flow is not None

    class Counted(dict[str, Any]):
        walks = 0

        def __iter__(self) -> Any:
            Counted.walks += 1
            return super().__iter__()

        def items(self) -> Any:
            Counted.walks += 1
            return super().items()

        def values(self) -> Any:
            Counted.walks += 1
            return super().values()

    parent.flow.children = Counted(parent.flow.children)
    for child in children[:-1]:
        run(world, child)
    assert Counted.walks == 0
    run(world, children[-1])
    assert parent.state == "waiting" and Counted.walks <= 2


@pytest.mark.parametrize("late", [False, True])
def test_a_child_that_the_parent_depends_on_as_well_is_told_once(late: bool, world: World) -> None:
    """Clients of old make a flow of jobs that depend on each other, and tie them together afterwards."""
    first, second = world.push(), world.push()
    parent = world.push(depends_on=(first, second))
    if not late:
        for child in (first, second):
            world.do(AttachChild(child, parent))
    for job in world.pull("q", 2):
        world.do(AckJob(job.id, result=b"1"))
    if late:
        world.do(AttachChild(first, parent))
    values = world.ask(GetChildrenValues(parent))
    assert sorted(key.removeprefix("q:") for key in values) == sorted((first, second))
    assert set(values.values()) == {b"1"}


# -- Families that are told by a push ------------------------------------------------------------------------------------


def pushed(world: World, queue: str, name: str, **ties: Any) -> Job:
    """Push a job that says whose parent or child it is."""
    options = {"max_attempts": 1, **ties.pop("options", {})}
    world.do(PushJobs(queue, [job_spec(name, b"{}", custom=True, **options)], (JobTies(0, **ties),)))
    return world.machine.state.jobs[name]


def children_of(job: Job) -> set[str]:
    return set() if job.flow is None else set(job.flow.children)


@pytest.mark.parametrize("delay_ms", [0, 60_000])
def test_a_push_with_a_parent_lets_that_wait(world: World, delay_ms: int) -> None:
    parent = pushed(world, "par", "parent", options={"delay_ms": delay_ms})
    child = pushed(world, "kid", "child", parent_id="parent", on_failure="fail")
    assert (parent.state, children_of(parent)) == ("waiting-children", {"child"})
    assert child.flow is not None and child.flow.parent == "parent"
    assert world.do(PullJobs("par", 1)).jobs == []
    world.do(PullJobs("kid", 1))
    world.do(AckJob("child", None, b"7"))
    assert parent.state == ("delayed" if delay_ms else "waiting")
    assert world.ask(GetChildrenValues("parent")) == {"kid:child": b"7"}


def test_a_push_with_children_waits_for_those_that_are_there(world: World) -> None:
    for name in ("a", "b"):
        pushed(world, "kid", name)
    done = pushed(world, "kid2", "done")
    world.do(PullJobs("kid2", 1))
    world.do(AckJob("done", None, b"1"))
    parent = pushed(world, "par", "parent", children_ids=("a", "b", "done", "nobody", "parent"))
    assert (parent.state, children_of(parent), done.state) == ("waiting-children", {"a", "b", "done"}, "completed")
    world.do(PullJobs("kid", 2))
    world.do(AckJobs(["a", "b"], [None, None]))
    assert parent.state == "waiting"
    assert world.do(PullJobs("par", 1)).jobs == [parent]


@pytest.mark.parametrize(
    ("policy", "state"),
    [("fail", "failed"), ("ignore", "waiting"), ("remove", "waiting"), ("wait", "waiting-children")],
)
def test_what_a_child_said_when_it_was_pushed_holds_for_the_parent_that_it_gets(
    world: World, policy: Any, state: str
) -> None:
    pushed(world, "kid", "child", on_failure=policy)
    parent = pushed(world, "par", "parent", children_ids=("child",))
    world.do(PullJobs("kid", 1))
    world.do(FailJob("child", error="e"))
    assert parent.state == state


def test_what_cannot_be_tied_is_pushed_all_the_same(world: World) -> None:
    for name in ("free", "taken"):
        pushed(world, "kid", name)
    first = pushed(world, "par", "first", children_ids=("taken",))
    second = pushed(world, "par", "second", children_ids=("taken", "free"))
    assert (children_of(first), children_of(second)) == ({"taken"}, {"free"})
    # A circle: the parent is below the child.
    top = pushed(world, "par", "top", parent_id="free", children_ids=("second",))
    assert children_of(top) == {"second"} and children_of(world.machine.state.jobs["free"]) == set()
    # A parent that somebody works on, or that has ended, would not wait.
    active = pushed(world, "act", "active")
    world.do(PullJobs("act", 1))
    late = pushed(world, "kid", "late", parent_id="active")
    assert active.state == "active" and late.flow is None
    world.do(AckJob("active"))
    assert pushed(world, "kid", "later", parent_id="active").flow is None
    # A job that stands for a new one keeps its family.
    again = pushed(world, "kid", "late", parent_id="top")
    assert again is late and late.flow is None


def test_of_jobs_pushed_together_each_has_its_family(world: World) -> None:
    pushed(world, "par", "parent")
    specs = [job_spec(name, b"{}", custom=True) for name in ("a", "a", "b", "c")]
    ties = (JobTies(0, "parent"), JobTies(1, None, ("b",)), JobTies(3, None, ("a", "b")))
    world.do(PushJobs("kid", specs, ties))
    jobs = world.machine.state.jobs
    assert children_of(jobs["parent"]) == {"a"} and children_of(jobs["a"]) == set() and children_of(jobs["c"]) == {"b"}


def test_below_the_level_nobody_is_tied() -> None:
    world = World(level=0)
    world.do(PushJobs("par", [job_spec("p", b"{}", custom=True)]))
    world.do(PushJobs("kid", [job_spec("c", b"{}", custom=True)], (JobTies(0, "p"),)))
    assert world.machine.state.jobs["p"].state == "waiting" and world.machine.state.jobs["c"].flow is None


def test_digests_take_the_jobs_of_a_flow_by_their_ids(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sealed: list[Any] = []
    encode = contents.encode
    monkeypatch.setattr(contents, "encode", lambda entry: sealed.append(entry) or encode(entry))
    flow = AddFlow([node("p", "top", bull=False), node("c", "kid", 0, bull=False)])
    world.do(flow)
    world.do(Idempotent("key", b"1", msgspec.msgpack.encode(AddFlow([node("p", "other", bull=False)])), ""))
    outcomes = [entry[-1] for entry in sealed if isinstance(entry, tuple)]
    assert outcomes == [[[(["top", "kid"], [False, False], world.now_ms)]], [[(["other"], [False], world.now_ms)]]]

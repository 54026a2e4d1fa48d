"""What the stream of a queue hears of the backend protocol's operations: each thing once, in BullMQ's order and with its fields."""

from collections.abc import Callable

import pytest

from quorumq.node.machine.lifecycle.bullmq.running import Wish
from quorumq.node.machine.operations.bullmq.changing import (
    ChangeNamedDelay,
    PromoteNamed,
    RetryNamed,
    UpdateNamedProgress,
)
from quorumq.node.machine.operations.bullmq.removing import CleanNamed, RemoveNamed
from quorumq.node.machine.operations.bullmq.running import (
    AwaitNamedChildren,
    CheckNamedStalled,
    DelayRun,
    GiveBack,
    RetryRun,
)
from quorumq.node.machine.operations.runs import AckJob, AckJobs, FailJob
from quorumq.node.machine.state.job import Dedup
from tests.support.bullmq import add, complete, fail, take, told
from tests.support.world import START_MS, World

SECOND = 1_000


def run(world: World) -> None:
    add(world)
    take(world)
    told(world)


def delayed(world: World) -> None:
    add(world, delay_ms=SECOND)
    told(world)


def stall(world: World) -> None:
    add(world)
    take(world, lock_ms=1)
    world.do(CheckNamedStalled("q", 1, 0))
    world.wait(1)
    told(world)


def kept_away(world: World) -> None:
    add(world, key="k", dedup=Dedup(replace=True), delay_ms=SECOND)
    told(world)


def family(world: World) -> None:
    add(world, "p")
    take(world)
    add(world, parent=("q", "p"))
    told(world)


def finished(world: World) -> None:
    run(world)
    complete(world, "1")
    told(world)


ADDED = "added jobId 1 name default"
CASES: dict[str, tuple[Callable[[World], object], Callable[[World], object], list[str]]] = {
    "add": (lambda world: None, add, [ADDED, "waiting jobId 1"]),
    "add with a priority": (lambda world: None, lambda world: add(world, priority=-1), [ADDED, "waiting jobId 1"]),
    "add delayed": (
        lambda world: None, lambda world: add(world, delay_ms=SECOND), [ADDED, f"delayed jobId 1 delay {START_MS + SECOND}"],
    ),
    "add a parent": (
        lambda world: None, lambda world: add(world, to_children=True), [ADDED, "waiting-children jobId 1"],
    ),
    "add again": (lambda world: add(world, "a") and told(world), lambda world: add(world, "a"), ["duplicated jobId a"]),
    "replace": (
        kept_away, lambda world: add(world, key="k", dedup=Dedup(replace=True)),
        ["removed jobId 1 prev delayed", "deduplicated jobId 2 deduplicationId k deduplicatedJobId 1",
         "added jobId 2 name default", "waiting jobId 2"],
    ),
    "replace what is not delayed": (
        lambda world: (kept_away(world), world.do(PromoteNamed("q", "1")), told(world)),
        lambda world: add(world, key="k", dedup=Dedup(replace=True)), [],
    ),
    "keep away": (
        kept_away, lambda world: add(world, key="k", dedup=Dedup()), ["deduplicated jobId 1 deduplicationId k deduplicatedJobId 2"],
    ),
    "take": (lambda world: add(world) and told(world), take, ["active jobId 1 prev waiting"]),
    "complete": (run, lambda world: complete(world, "1", result=b"7"), ["completed jobId 1 returnvalue 7 prev active", "drained"]),
    "complete and take": (
        lambda world: (run(world), add(world), told(world)), lambda world: complete(world, "1", result=b"7", next=Wish("t")),
        ["completed jobId 1 returnvalue 7 prev active", "active jobId 2 prev waiting"],
    ),
    "fail": (
        run, lambda world: fail(world, "1", reason="broken"),
        ["failed jobId 1 failedReason broken prev active", "retries-exhausted jobId 1 attemptsMade 1", "drained"],
    ),
    "retry a run": (run, lambda world: world.do(RetryRun("q", "1", "t")), ["waiting jobId 1 prev active"]),
    "give back": (run, lambda world: world.do(GiveBack("q", "1", "t")), ["waiting jobId 1 prev active"]),
    "delay a run": (run, lambda world: world.do(DelayRun("q", "1", "t", SECOND)), [f"delayed jobId 1 delay {START_MS + SECOND}"]),
    "delay a run that counts for none": (
        run, lambda world: world.do(DelayRun("q", "1", "t", SECOND, skip_attempt=True)), [f"delayed jobId 1 delay {START_MS + SECOND}"],
    ),
    "wait for children": (
        family, lambda world: world.do(AwaitNamedChildren("q", "p", "t")), ["waiting-children jobId p prev active"],
    ),
    "stall": (stall, lambda world: world.do(CheckNamedStalled("q", 1, 0)), ["waiting jobId 1 prev active", "stalled jobId 1"]),
    "progress": (run, lambda world: world.do(UpdateNamedProgress("q", "1", b"7")), ["progress jobId 1 data 7"]),
    "change a delay": (delayed, lambda world: world.do(ChangeNamedDelay("q", "1", 7)), [f"delayed jobId 1 delay {START_MS + 7}"]),
    "promote": (delayed, lambda world: world.do(PromoteNamed("q", "1")), ["waiting jobId 1 prev delayed"]),
    "the time of a delay": (delayed, lambda world: world.wait(SECOND), ["waiting jobId 1 prev delayed"]),
    "retry": (finished, lambda world: world.do(RetryNamed("q", "1", "completed")), ["waiting jobId 1 prev completed"]),
    "remove": (finished, lambda world: world.do(RemoveNamed("q", "1")), ["removed jobId 1 prev completed"]),
    "clean": (finished, lambda world: world.do(CleanNamed("q")), ["cleaned count 1"]),
}  # fmt: skip


# How workers of the other dialects end the same runs.
ELSEWHERE: dict[str, tuple[Callable[[World], object], list[str]]] = {
    "acknowledged": (
        lambda world: world.do(AckJob("bull:q:1", "t", b"7")), ["completed jobId 1 returnvalue 7 prev active", "drained"],
    ),
    "acknowledged in a batch": (
        lambda world: world.do(AckJobs(["bull:q:1"], ["t"], [b"7"])), ["completed jobId 1 returnvalue 7 prev active", "drained"],
    ),
    "failed": (
        lambda world: world.do(FailJob("bull:q:1", "t", "broken")),
        ["failed jobId 1 failedReason broken prev active", "retries-exhausted jobId 1 attemptsMade 1", "drained"],
    ),
    "failed for good": (
        lambda world: world.do(FailJob("bull:q:1", "t", "broken", unrecoverable=True)),
        ["failed jobId 1 failedReason broken prev active", "retries-exhausted jobId 1 attemptsMade 1", "drained"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("end", "heard"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_stream_hears_the_same_of_other_workers(
    world: World, end: Callable[[World], object], heard: list[str]
) -> None:
    run(world)
    end(world)
    assert told(world) == heard
    for _ in range(2):
        add(world, max_attempts=5)
        take(world)
    told(world)
    # Of a queue that has more to do, and of a job that may have more runs, less is told.
    world.do(FailJob("bull:q:2", "t", "broken", unrecoverable=True))
    assert told(world) == ["failed jobId 2 failedReason broken prev active"]
    world.do(AckJob("bull:q:3", "t", b"7"))
    assert told(world) == ["completed jobId 3 returnvalue 7 prev active", "drained"]


def test_a_queue_is_not_drained_where_a_job_is_about_to_follow(world: World) -> None:
    keeps = {"key": "k", "dedup": Dedup(keep_last=True)}
    add(world, **keeps)
    take(world)
    add(world, **keeps)
    told(world)
    world.do(AckJob("bull:q:1", "t", b"7"))
    assert told(world)[:1] == ["completed jobId 1 returnvalue 7 prev active"]
    world.tick()
    take(world)
    complete(world, "2")
    assert told(world)[-1] == "drained"


@pytest.mark.parametrize(("before", "act", "heard"), CASES.values(), ids=CASES)
def test_a_stream_hears_of_each_step(
    world: World, before: Callable[[World], object], act: Callable[[World], object], heard: list[str]
) -> None:
    before(world)
    act(world)
    assert told(world) == heard


def test_a_parent_is_heard_of_in_its_own_queue(world: World) -> None:
    add(world, "p", to_children=True)
    add(world, queue="c", parent=("q", "p"))
    told(world)
    take(world, queue="c")
    complete(world, "1", queue="c")
    assert told(world) == ["waiting jobId p prev waiting-children"]

"""Random histories of flows: what parents and children say of each other agrees, no parent is released early, none is forgotten."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.dlq import PurgeDlq, RetryDlq
from quorumq.node.machine.operations.flows import (
    AddFlow,
    AttachChild,
    AwaitChildren,
    DetachChild,
    FlowJob,
    RemoveUnprocessedChildren,
)
from quorumq.node.machine.operations.jobs import CancelJob, DiscardJob, JobTies, PushJobs, RemoveJob, RetryJob
from quorumq.node.machine.operations.queues import CleanQueue, DrainQueue, ObliterateQueue, RetryCompleted
from quorumq.node.machine.operations.runs import AckJob, FailJob, PullJobs
from quorumq.node.machine.operations.settings import SetRetention
from quorumq.node.machine.refusals import ChildrenFailed, ChildrenPending, InternalError
from quorumq.node.machine.state import job_spec
from tests.support.world import World

QUEUES = ("a", "b", "c")
IDS = tuple(f"j{number}" for number in range(12))
POLICIES = ("wait", "fail", "continue", "ignore", "remove")
STEPS = 250
SEEDS = int(os.environ.get("FLOW_HISTORIES", "12"))


class History:
    """Random operations over few ids, so that families meet, grow into each other and lose members."""

    def __init__(self, seed: int) -> None:
        self.pick = random.Random(seed)

    def job(self, *, bull: bool) -> tuple[str, Any]:
        pick = self.pick
        chosen: dict[str, Any] = {"max_attempts": pick.choice([1, 1, 2]), "backoff": 0}
        if bull:
            chosen |= {"rejoin_last": True, "stalls_allowed": 1}
        for name, value in (("delay_ms", 300), ("ttl_ms", 900), ("priority", pick.choice([-2, 3])), ("lifo", True)):
            if pick.random() < 0.1:
                chosen[name] = value
        for name in ("remove_on_complete", "remove_on_fail"):
            chosen[name] = pick.random() < 0.1
        if pick.random() < 0.15:
            chosen["depends_on"] = (pick.choice(IDS),)
        return pick.choice(QUEUES), job_spec(pick.choice(IDS), b"{}", custom=True, **chosen)

    def flow(self) -> AddFlow:
        pick, bull = self.pick, self.pick.random() < 0.5
        jobs = []
        for place in range(pick.choice([1, 2, 3, 4])):
            queue, spec = self.job(bull=bull)
            parent = pick.randrange(place) if place and pick.random() < 0.8 else -1
            outside = self.anybody() if parent < 0 and pick.random() < 0.3 else None
            jobs.append(FlowJob(queue, spec, parent, outside, pick.choice(POLICIES)))
        return AddFlow(jobs, bull)

    def tied(self) -> PushJobs:
        pick = self.pick
        queue = pick.choice(QUEUES)
        jobs = [self.job(bull=False)[1] for _ in range(pick.choice([1, 2]))]
        ties = [
            JobTies(
                position,
                self.anybody() if pick.random() < 0.6 else None,
                tuple(self.anybody() for _ in range(pick.choice([0, 0, 1, 2]))),
                pick.choice(POLICIES),
            )
            for position in range(len(jobs))
        ]
        return PushJobs(queue, jobs, tuple(ties))

    def anybody(self) -> str:
        job_id = self.pick.choice(IDS)
        return self.pick.choice([job_id, f"bull:{self.pick.choice(QUEUES)}:{job_id}"])

    def operation(self) -> Operation:
        pick, queue, one = self.pick, self.pick.choice(QUEUES), self.anybody()
        makes: list[tuple[int, Any]] = [
            (12, self.flow),
            (3, lambda: PushJobs(*(lambda queue, spec: (queue, [spec]))(*self.job(bull=False)))),
            (5, self.tied),
            (20, lambda: PullJobs(queue, 2)),
            (14, lambda: AckJob(one, None, b"1")),
            (12, lambda: FailJob(one, error="e", unrecoverable=pick.random() < 0.3)),
            (4, lambda: pick.choice([CancelJob, RetryJob, DiscardJob, DetachChild, RemoveUnprocessedChildren])(one)),
            (3, lambda: RemoveJob(one, pick.random() < 0.5)),
            (4, lambda: AttachChild(one, self.anybody())),
            (4, lambda: AwaitChildren(one)),
            (2, lambda: RetryDlq(queue)),
            (1, lambda: RetryCompleted(queue)),
            (1, lambda: pick.choice([PurgeDlq, DrainQueue, ObliterateQueue])(queue)),
            (1, lambda: CleanQueue(queue, 0, pick.choice(["waiting", "completed", "failed"]), 3)),
            (1, lambda: SetRetention(queue, pick.choice([0, 2, 1000]))),
        ]
        made: Operation = pick.choices([make for _, make in makes], [weight for weight, _ in makes])[0]()
        return made


def waits(machine: Machine) -> set[str]:
    return {job.id for job in machine.state.jobs.values() if job.state == "waiting-children"}


def check_released(world: World, before: set[str]) -> None:
    """A parent that waits for its children no more has none that is pending, unless a failed one let it go on."""
    for job_id in before - waits(world.machine):
        job = world.machine.state.jobs.get(job_id)
        if job is None or job.finished or job.flow is None or not job.flow.pending:
            continue
        ends = [end.how for end in job.flow.children.values() if end is not None]
        assert "continued" in ends, (job_id, job.state, job.flow)


def work_off(world: World) -> None:
    """Let workers complete whatever can be taken, until nothing can."""
    for _ in range(400):
        world.wait(2_000)
        taken = [job for queue in QUEUES for job in world.pull(queue, 20)]
        active = [job for job in world.machine.state.jobs.values() if job.state == "active"]
        if not taken and not active:
            return
        for job in active:
            refused = world.apply(AckJob(job.id))[0]
            if isinstance(refused, ChildrenPending):
                assert job.flow is not None
                if job.flow.failed:
                    world.do(FailJob(job.id, unrecoverable=True))
                else:
                    assert world.do(AwaitChildren(job.id)).moved, job.id
            elif isinstance(refused, ChildrenFailed):
                world.do(FailJob(job.id, unrecoverable=True))
    raise AssertionError("there is no end to it")


@pytest.mark.parametrize("seed", range(SEEDS))
def test_parents_and_children_agree_whatever_happens(seed: int) -> None:
    history, world = History(seed), World()
    for step in range(STEPS):
        before = waits(world.machine)
        outcome = world.apply(history.operation())[0]
        assert not isinstance(outcome, InternalError), outcome
        check_released(world, before)
        if step % 5 == 0:
            before = waits(world.machine)
            world.wait(history.pick.choice([0, 50, 400]))
            check_released(world, before)
        if step % 10 == 0:
            world.check()
    world.check()
    work_off(world)
    world.check()
    state = world.machine.state
    for job_id in waits(world.machine):
        job = state.jobs[job_id]
        # What still waits, waits for a child that failed with no policy, or for something that failed or waits itself.
        others = [*(job.dependencies.remaining if job.dependencies else ())]
        children = job.flow.children.items() if job.flow is not None else ()
        blockers = [
            state.jobs[one] for one in [*others, *(one for one, end in children if end is None)] if one in state.jobs
        ]
        assert (blockers and all(one.state in ("failed", "waiting-children") for one in blockers)) or others, job_id

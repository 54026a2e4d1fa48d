"""Flows under faults: parents and children over two queues, as clients add and work on them, and what must come of it.

No parent is delivered before each of its children has ended in a way that lets it go on, none waits once they all have, and what a
parent counts of its children is what they are. That no child is completed, or delivered after its completion, twice, holds as for every
job (checks.py).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from dataclasses import dataclass

from quorumq.node.machine.operations.flows import AddFlow, FlowJob
from quorumq.node.machine.operations.runs import AckJob, FailJob, Pulled, PullJobs
from quorumq.node.machine.state import State
from quorumq.node.machine.state.job import COMPLETED, FAILED, WAITING_CHILDREN, Job, JobSpec, OnChildFailure, Options
from quorumq.node.node import Node
from tests.simulation.checks import Checks
from tests.support.indexes import check_indexes

PARENTS, CHILDREN = "parents", "children"
QUEUES = (PARENTS, CHILDREN)
OPTIONS = Options(max_attempts=50, backoff=10, stalls_allowed=50)
POLICIES: tuple[OnChildFailure, ...] = ("wait", "wait", "continue", "ignore", "remove", "fail")


@dataclass
class Child:
    """As its clients know it. fails: whether somebody may have failed it for good."""

    job_id: str
    on_failure: OnChildFailure
    fails: bool = False


class Families:
    """What was added, and how far clients have come with it. `checks` takes the violations."""

    def __init__(self, checks: Checks) -> None:
        self._checks = checks
        self._children: dict[str, list[Child]] = {}
        self._as_child: dict[str, Child] = {}
        self._continued: set[str] = set()
        self._added = 0

    # -- clients -----------------------------------------------------------------------------------------------------

    async def add(self, node: Node, rng: random.Random) -> None:
        """A root with children, one of which may have children of its own, in one request."""
        root = self._job(PARENTS, -1, "wait")
        jobs = [root, *(self._job(CHILDREN, 0, rng.choice(POLICIES)) for _ in range(rng.choice((1, 2, 3))))]
        if rng.random() < 0.3:
            jobs[-1] = self._job(PARENTS, 0, rng.choice(POLICIES))
            jobs += [self._job(CHILDREN, len(jobs) - 1, rng.choice(POLICIES)) for _ in range(2)]
        for each in jobs:
            self._checks.pushed(each.job.id, known=False)
            if each.parent >= 0:
                child = self._as_child[each.job.id] = Child(each.job.id, each.on_failure)
                self._children.setdefault(jobs[each.parent].job.id, []).append(child)
        await node.submit(AddFlow(jobs), lambda added: None)
        for each in jobs:
            self._checks.pushed(each.job.id, known=True)

    def _job(self, queue: str, parent: int, on_failure: OnChildFailure) -> FlowJob:
        self._added += 1
        return FlowJob(queue, JobSpec(f"f{self._added}", b"1", OPTIONS, custom=True), parent, None, on_failure)

    async def work(self, node: Node, rng: random.Random) -> None:
        """Take jobs of one of the two queues; most complete, some fail for now, some for good."""
        lock_ms, seed = rng.choice((300, 3000)), f"{rng.getrandbits(40):x}"
        pull = PullJobs(rng.choice((PARENTS, CHILDREN, CHILDREN)), 3, "w", lock_ms=lock_ms, token_seed=seed)
        for job_id, token, fence in await node.pull(pull, _taken, wait_ms=rng.choice((0, 500))):
            self._checks.delivered(job_id, fence)
            self._delivered(job_id)
            await asyncio.sleep(rng.choice((0.0, 0.0, 0.1)))
            if rng.random() < 0.2:
                for_good = rng.random() < 0.5
                if for_good and job_id in self._as_child:
                    self._as_child[job_id].fails = True
                await node.submit(FailJob(job_id, token, "failed", unrecoverable=for_good), lambda changed: None)
                continue
            known = self._checks.completing(job_id)
            await node.submit(AckJob(job_id, token), lambda changed: None)
            self._checks.completed(job_id, fence, known)

    def _delivered(self, job_id: str) -> None:
        """A parent is released by its last child, or by the first one that fails and lets it go on at once."""
        children = self._children.get(job_id, [])
        if any(self._fails(child) and child.on_failure == "continue" for child in children):
            return
        for child in children:
            ended = self._checks.job(child.job_id).maybe_acked or (self._fails(child) and child.on_failure != "wait")
            if not ended:
                self._checks.fail(
                    "no parent is released early", f"{job_id} was delivered, and nobody ended {child.job_id}"
                )

    def _fails(self, child: Child) -> bool:
        """Whether it may have failed for good, by itself or by a child of its own."""
        below = self._children.get(child.job_id, [])
        return child.fails or any(self._fails(each) and each.on_failure == "fail" for each in below)

    # -- the end -----------------------------------------------------------------------------------------------------

    def at_the_end(self, state: State) -> None:
        """All faults are over, and nothing is under way any more."""
        try:
            check_indexes(state)
        except AssertionError as error:
            self._checks.fail("what parents and children say of each other agrees", str(error).split("\n")[0])
        for parent_id, children in self._children.items():
            parent = state.jobs.get(parent_id)
            if parent is None:
                # It was not added, or its request was not acknowledged; then nothing of it was.
                present = [child.job_id for child in children if child.job_id in state.jobs]
                if present:
                    self._checks.fail("a flow is added whole or not at all", f"{present} without {parent_id}")
                continue
            self._counts(state, parent, children)

    def _counts(self, state: State, parent: Job, children: list[Child]) -> None:
        links = parent.flow
        told = links.children if links is not None else {}
        for child in children:
            job = state.jobs.get(child.job_id)
            if job is None:
                self._checks.fail("a flow is added whole or not at all", f"{parent.id} without {child.job_id}")
            assert job is not None
            end = told.get(job.id)
            how = "pending" if job.id in told and end is None else "forgotten" if end is None else end.how
            if how not in _fitting(job, child.on_failure):
                self._checks.fail(
                    "a parent knows what its children are", f"{job.id} is {job.state}, and {how} for {parent.id}"
                )
        ends = [end.how if end is not None else "pending" for end in told.values()]
        goes_on = "pending" not in ends or "continued" in ends
        if parent.state == WAITING_CHILDREN and goes_on and parent.id not in state.failing:
            self._checks.fail("no parent waits for nobody", f"{parent.id} waits, and of its children it knows {ends}")


def _fitting(job: Job, on_failure: OnChildFailure) -> Iterable[str]:
    """As what a parent may know a child in this state."""
    if job.state == COMPLETED:
        return ("processed",)
    if job.state != FAILED:
        return ("pending",)
    return {
        "wait": ("pending",),
        "fail": ("failed",),
        "continue": ("continued",),
        "ignore": ("ignored",),
        "remove": ("forgotten",),
    }[on_failure]


def _taken(reply: Pulled) -> list[tuple[str, str | None, int]]:
    return [(job.id, job.token, job.fence) for job in reply.jobs]

"""Replies of very many jobs: no turn of the loop renders more than a few, and what is shown is the state of the client's own entry."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from quorumq.api.dialects.bullmq import adding
from quorumq.api.dialects.bullmq import job_object as bullmq
from quorumq.api.dialects.bunqueue import job_object as bunqueue
from quorumq.api.steps import STEP_JOBS, Copies, in_steps
from quorumq.node.machine.operations.flows import AddFlow, FlowJob
from quorumq.node.machine.operations.jobs import ChangePriority
from quorumq.node.machine.operations.runs import AckJob, PullJobs
from quorumq.node.machine.state import job_spec
from tests.api.bullmq import TOKEN
from tests.api.conftest import Serve
from tests.api.test_flows import node
from tests.support.world import World

KIDS = 3 * STEP_JOBS


def planned() -> Any:
    return {"jobs": node("top", "par", *(node(f"kid-{n}", "kid") for n in range(KIDS)))}


def tree() -> Any:
    kids = [{"name": "kid", "queueName": "kid", "children": [{"name": "leaf", "queueName": "leaf"}]}] * KIDS
    return {"name": "top", "queueName": "par", "children": kids}


class Turns:
    """Counts the turns of the loop, and how often something is called in each."""

    def __init__(self) -> None:
        self.calls: Counter[int] = Counter()
        self._turn = 0
        self._next()

    def _next(self) -> None:
        self._turn += 1
        self._handle = asyncio.get_running_loop().call_soon(self._next)

    def counting(self, text: Callable[..., bytes]) -> Callable[..., bytes]:
        def counted(*args: Any, **more: Any) -> bytes:
            self.calls[self._turn] += 1
            return text(*args, **more)

        return counted

    def end(self) -> None:
        self._handle.cancel()


@pytest.mark.parametrize(
    ("path", "body", "module", "name", "jobs"),
    [
        ("/flows", planned(), bunqueue, "full_text", KIDS + 1),
        ("/bullmq/flows", tree(), bullmq, "job_text", 2 * KIDS + 1),
        ("/bullmq/flows", [tree(), tree()], bullmq, "job_text", 2 * (2 * KIDS + 1)),
        ("/bullmq/queues/kid/jobs", [{"name": "a", "data": 1}] * KIDS, adding, "added_text", KIDS),
        (
            "/bullmq/queues/kid/jobs",
            [{"name": "a", "data": 1, "opts": {"parent": {"id": "p", "queue": "par"}}}] * KIDS,
            adding,
            "added_text",
            KIDS,
        ),
    ],
    ids=["bunqueue", "bullmq", "several trees", "bulk", "bulk of children"],
)
async def test_no_turn_of_the_loop_renders_many_jobs(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, path: str, body: Any, module: Any, name: str, jobs: int
) -> None:
    client, headers = await serve(auth_tokens=(TOKEN,)), {"Authorization": f"Bearer {TOKEN}"}
    await client.post("/bullmq/queues/par/jobs", [{"name": "p", "data": 1, "opts": {"jobId": "p"}}], headers=headers)
    turns = Turns()
    monkeypatch.setattr(module, name, turns.counting(getattr(module, name)))
    answer = await client.post(path, body, headers=headers)
    turns.end()
    assert answer.status == 200, answer.body
    assert turns.calls.total() == jobs
    assert max(turns.calls.values()) <= STEP_JOBS


async def test_copies_show_jobs_as_they_were() -> None:
    world = World()
    kids = [FlowJob("kid", job_spec(f"kid-{n}", b"{}", custom=True), 0) for n in range(2 * STEP_JOBS)]
    jobs = world.do(AddFlow([FlowJob("par", job_spec("top", b"[1]", custom=True)), *kids])).jobs
    texts: list[Callable[..., bytes]] = [bunqueue.full_text, partial(bullmq.job_text, prefix="bull")]
    before = [[text(job) for job in jobs] for text in texts]
    copies = Copies(jobs)
    world.do(PullJobs("kid", 1))
    world.do(AckJob("kid-0", result=b'"done"'))
    world.do(ChangePriority("kid-1", 7))
    assert [[text(job) for job in jobs] for text in texts] != before
    assert [await copies.texts(text) for text in texts] == before


async def test_copies_of_nothing() -> None:
    assert await Copies([]).texts(bunqueue.full_text) == []


async def test_between_two_turns_the_loop_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that goes on at once keeps the interpreter from the disk's thread, and all writes wait until the reply is made."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert await in_steps(b"%d".__mod__, range(2 * STEP_JOBS + 1)) == [b"%d" % n for n in range(2 * STEP_JOBS + 1)]
    assert len(waits) == 2
    assert min(waits) > 0

"""Jobs that leave for good, whatever way: of none is anything left beside the jobs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.dlq import PurgeDlq, RemoveDeadJob
from quorumq.node.machine.operations.flows import AddFlow, FlowJob
from quorumq.node.machine.operations.jobs import AddLog, CancelJob, RemoveJob
from quorumq.node.machine.operations.queues import CleanQueue, DrainQueue, ObliterateQueue, ThinQueue
from quorumq.node.machine.operations.retention import SetDefaultRetention, ThinFinished
from quorumq.node.machine.operations.runs import AckJob, AckJobs, FailJob
from quorumq.node.machine.operations.settings import SetDlqConfig, SetRetention
from quorumq.node.machine.state import job_spec
from quorumq.node.machine.state.job import Keep
from tests.support.world import World

HOUR_MS = 3_600_000
Step = Callable[[World, str], object]


def do(operation: Operation) -> Step:
    """Apply an operation that does not name the job."""
    return lambda world, job_id: world.do(operation)


def to_job(operation: Callable[[str], Operation]) -> Step:
    return lambda world, job_id: world.do(operation(job_id))


def pull(world: World, job_id: str) -> None:
    assert world.pull_ids() == [job_id]


def another_completes(world: World, job_id: str) -> None:
    other = world.push()
    world.pull()
    world.do(AckJob(other))


def hours(world: World, job_id: str) -> None:
    world.wait(2 * HOUR_MS)


completed = [pull, to_job(AckJob)]
failed = [pull, to_job(lambda job_id: FailJob(job_id, unrecoverable=True))]

WAYS: dict[str, tuple[dict[str, object], list[Step]]] = {
    "removed on completion": ({"remove_on_complete": True}, completed),
    "removed on completion, in a batch": (
        {"remove_on_complete": True},
        [pull, to_job(lambda job_id: AckJobs([job_id]))],
    ),
    "removed on failure": ({"remove_on_fail": True}, failed),
    "no completed job is to be kept": ({"keep_completed": Keep(count=0)}, completed),
    "no failed job is to be kept": ({"keep_failed": Keep(count=0)}, failed),
    "completed, past the number": ({}, [*completed, do(SetRetention("q", keep_completed=0))]),
    "completed, past the bytes": ({}, [*completed, another_completes, do(SetRetention("q", keep_completed_bytes=2))]),
    "completed, past the default": ({}, [*completed, do(SetDefaultRetention(completed=0))]),
    "completed, dropped in parts": ({}, [*completed, do(ThinFinished(completed=0, failed=0, limit=10))]),
    "dead, past the number": ({}, [*failed, do(SetDlqConfig("q", max_entries=0))]),
    "dead, past the age": ({}, [*failed, do(SetDlqConfig("q", max_age_ms=HOUR_MS)), hours]),
    "dead, dropped in parts": ({}, [*failed, do(ThinFinished(completed=0, failed=0, limit=10))]),
    "purged": ({}, [*failed, do(PurgeDlq("q"))]),
    "dead, removed": ({}, [*failed, to_job(lambda job_id: RemoveDeadJob("q", job_id))]),
    "cancelled": ({}, [to_job(CancelJob)]),
    "removed": ({}, [to_job(RemoveJob)]),
    "completed, removed": ({}, [*completed, to_job(RemoveJob)]),
    "past its time to live": ({"ttl_ms": HOUR_MS}, [hours]),
    "drained": ({}, [do(DrainQueue("q"))]),
    "thinned": ({}, [do(ThinQueue("q", 1 << 40, 10, everything=True))]),
    "cleaned": ({}, [do(CleanQueue("q", state="waiting"))]),
    "completed, cleaned": ({}, [*completed, do(CleanQueue("q", state="completed"))]),
    "obliterated": ({}, [do(ObliterateQueue("q"))]),
    "obliterated while it runs": ({}, [pull, do(ObliterateQueue("q"))]),
}


@pytest.mark.parametrize("way", WAYS)
def test_nothing_stays_beside_the_jobs_of_one_that_leaves(world: World, way: str) -> None:
    """Its log, the tokens of its runs, its timers and its key; and its children have no parent any more."""
    options, steps = WAYS[way]
    parent = job_spec("parent", b"{}", unique_key="k", **options)
    world.do(AddFlow([FlowJob("q", parent), FlowJob("other", job_spec("child", b"{}"), 0)]))
    world.pull("other")
    world.do(AckJob("child"))
    job_id = "parent"
    (job,) = world.pull(owner="worker", token_seed="a")
    world.do(FailJob(job_id, job.token, error="once"))
    world.wait(HOUR_MS // 2)
    world.do(AddLog(job_id, "a line"))
    state = world.machine.state
    assert state.spent.by_job and state.logs.by_job and state.queues["q"].unique
    for step in steps:
        step(world, job_id)
    queue = state.queues.get("q")
    assert job_id not in state.jobs
    assert (state.logs.by_job, state.logs.size, state.spent.by_job, len(state.timers)) == ({}, 0, {}, 0)
    assert queue is None or queue.unique == {}
    child = state.jobs.get("child")
    assert child is None or child.flow is None or child.flow.parent is None

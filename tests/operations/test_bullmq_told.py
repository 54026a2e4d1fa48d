"""What the stream of a queue is told of its jobs' transitions, whichever dialect made them; fields are compared as BullMQ has them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from quorumq.node.machine.operations.adding import AddJobs
from quorumq.node.machine.operations.bullmq.streams import OpenStream, ReadEvents
from quorumq.node.machine.operations.dlq import RetryDlq
from quorumq.node.machine.operations.flows import AddFlow, FlowJob
from quorumq.node.machine.operations.jobs import (
    ChangeDelay,
    ChangePriority,
    MoveToDelayed,
    MoveToWait,
    PromoteJob,
    PushJobs,
    RemoveJob,
    RetryJob,
)
from quorumq.node.machine.operations.queues import CleanQueue, DrainQueue, PauseQueue, ResumeQueue
from quorumq.node.machine.operations.runs import AckJob, FailJob, ProgressJob, ReleaseJobs
from quorumq.node.machine.state import Dedup, job_spec
from tests.support.world import START_MS, World


@pytest.fixture
def told(world: World) -> Callable[[], list[str]]:
    """Return what the stream of q was told since it was asked last: kind, values of the fields but their names."""
    world.do(OpenStream("q"))
    place = [0]

    def read() -> list[str]:
        reading = world.ask(ReadEvents("q", place[0]))
        place[0] = reading.last
        return [" ".join(event.fields[1::2]) for event in reading.events]

    return read


Told = Callable[[], list[str]]


def test_a_job_from_its_birth_to_its_end(world: World, told: Told) -> None:
    world.add()
    assert told() == ["added 1 default", "waiting 1"]
    job = world.pull()[0]
    world.do(ProgressJob(job.id, 5))
    world.do(AckJob(job.id, result=b'{"a":1}'))
    assert told() == ["active 1 waiting", "progress 1 5", 'completed 1 {"a":1} active', "drained"]
    world.do(RetryJob(job.id, "completed"))
    world.pull()
    world.do(AckJob(job.id))
    assert told() == ["waiting 1 completed", "active 1 waiting", "completed 1 null active", "drained"]
    world.do(RemoveJob(job.id))
    assert told() == ["removed 1 completed"]


def test_pushed_jobs_are_told_by_their_ids(world: World, told: Told) -> None:
    world.push(job_id="mine", name="paint")
    world.push(job_id="rich", priority=2)
    world.push(job_id="late", delay_ms=50)
    assert told() == [
        "added mine paint", "waiting mine", "added rich default", "waiting rich", "added late default",
        f"delayed late {START_MS + 50}",
    ]  # fmt: skip


def test_delays(world: World, told: Told) -> None:
    job = world.add(delay_ms=100)
    assert told() == ["added 1 default", f"delayed 1 {START_MS + 100}"]
    world.do(ChangeDelay(job.id, 200))
    assert told() == [f"delayed 1 {START_MS + 200}"]
    world.do(ChangePriority(job.id, -3))
    assert told() == []
    world.wait(200)
    assert told() == ["waiting 1 delayed"]
    world.pull()
    world.do(MoveToDelayed(job.id, 30))
    assert told() == ["active 1 waiting", f"delayed 1 {START_MS + 230}"]
    world.do(PromoteJob(job.id))
    assert told() == ["waiting 1 delayed"]
    world.do(ChangePriority(job.id, -2))
    assert told() == []


def test_failures(world: World, told: Told) -> None:
    job = world.add(max_attempts=3, backoff=0)
    world.pull()
    world.do(FailJob(job.id, error="e"))
    assert told() == ["added 1 default", "waiting 1", "active 1 waiting", "waiting 1 active"]
    world.pull()
    world.do(FailJob(job.id, error="e", unrecoverable=True))
    assert told() == ["active 1 waiting", "failed 1 e active", "drained"]
    world.do(RetryJob(job.id, "failed"))
    assert told() == ["waiting 1 failed"]
    other = world.add(max_attempts=2, backoff=100)
    world.pull(count=2)
    world.do(FailJob(other.id))
    assert told()[-1] == f"delayed 2 {START_MS + 100}"
    world.do(FailJob(job.id))
    world.do(RetryDlq("q"))
    assert told()[-1] == "waiting 1 failed"


def test_jobs_that_are_given_back(world: World, told: Told) -> None:
    job = world.add()
    world.pull()
    world.do(MoveToWait(job.id))
    world.pull()
    world.do(ReleaseJobs([(job.id, job.fence)]))
    assert told()[2:] == ["active 1 waiting", "waiting 1 active"] * 2


def test_stalls(world: World, told: Told) -> None:
    world.add()
    world.pull(owner="w", lock_ms=100, token_seed="t")
    told()
    world.wait(100)
    assert sorted(told()) == ["stalled 1", "waiting 1 active"]


def test_families(world: World, told: Told) -> None:
    children = [FlowJob("q", job_spec(f"c{number}", b"1", custom=True, rejoin_last=True), 0) for number in (1, 2)]
    world.do(AddFlow([FlowJob("q", job_spec("top", b"1", custom=True, rejoin_last=True)), *children], True))
    assert sorted(told()) == [
        "added c1 default", "added c2 default", "added top default", "waiting c1", "waiting c2", "waiting-children top",
    ]  # fmt: skip
    for job in world.pull(count=2):
        world.do(AckJob(job.id))
    assert "waiting top waiting-children" in told()
    world.push(job_id="later", depends_on=("bull:q:top",))
    assert told() == ["added later default", "waiting-children later"]
    world.pull()
    world.do(AckJob("bull:q:top"))
    assert told()[-1] == "waiting later waiting-children"


def test_duplicates(world: World, told: Told) -> None:
    world.do(AddJobs("q", [job_spec("own", b"1"), job_spec("own", b"2")]))
    assert told() == ["added own default", "waiting own", "duplicated own"]
    spec = job_spec("", b"1", unique_key="k", dedup=Dedup())
    world.do(AddJobs("q", [spec, spec]))
    assert told() == ["added 3 default", "waiting 3", "deduplicated 3 k 4"]


def test_queues(world: World, told: Told) -> None:
    for _ in range(3):
        world.add()
    world.add(priority=-1)
    world.add(ttl_ms=10)
    told()
    world.do(PauseQueue("q"))
    world.do(PauseQueue("q"))
    world.do(ResumeQueue("q"))
    assert told() == ["paused", "resumed"]
    world.do(CleanQueue("q", 0, "waiting", 1))
    assert told() == ["cleaned 1"]
    world.do(RemoveJob("bull:q:4"))
    world.do(RemoveJob("bull:q:3"))
    world.wait(10)
    assert told() == ["removed 4 prioritized", "removed 3 wait", "removed 5 wait"]
    world.do(DrainQueue("q"))
    assert told() == []


def test_queues_without_a_stream_keep_none(world: World, told: Told) -> None:
    job = world.job(world.push("other"))
    world.pull("other")
    world.do(AckJob(job.id))
    world.do(PushJobs("other", [job_spec(job.id, b"1", priority=1)]))
    assert list(world.machine.state.bullmq.streams.by_queue) == ["q"]
    assert world.restored().state.streaming.keys() == {"q"}

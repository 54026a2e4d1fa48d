"""The registry of workers: registration, signs of life, silence."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.jobs import CancelJob, DiscardJob, MoveToDelayed, MoveToWait
from quorumq.node.machine.operations.queues import ObliterateQueue
from quorumq.node.machine.operations.runs import AckJob, AckJobs, FailJob, ReleaseJobs
from quorumq.node.machine.operations.workers import HeartbeatWorker, ListWorkers, RegisterWorker, UnregisterWorker
from quorumq.node.machine.refusals import TooManyWorkers, WorkerNotFound
from quorumq.node.machine.state import Job
from tests.support.world import START_MS, World


def states(world: World) -> dict[str, str]:
    return {worker.id: "stale" if worker.stale else "active" for worker in world.ask(ListWorkers()).workers}


def test_a_worker_registers_and_is_listed(world: World) -> None:
    made = world.do(RegisterWorker("w", "mailer", ("emails", "sms"), 4, "host", 17)).worker
    assert (made.name, made.queues, made.concurrency, made.hostname, made.pid) == (
        "mailer",
        ("emails", "sms"),
        4,
        "host",
        17,
    )
    reply = world.ask(ListWorkers())
    assert (reply.workers, reply.active, reply.slots, reply.now_ms) == ([made], 1, 4, START_MS)
    assert world.ask(ListWorkers("sms")).workers == [made]
    assert world.ask(ListWorkers("other")).workers == []
    assert world.event_names() == ["worker:connected"]


def test_registering_again_keeps_name_and_counts(world: World) -> None:
    world.do(RegisterWorker("w", "first", ("a",)))
    world.do(HeartbeatWorker("w", 1, 10, 2))
    world.wait(1000)
    again = world.do(RegisterWorker("w", "second", ("b",), 3)).worker
    assert (again.name, again.queues, again.concurrency, again.processed) == ("first", ("b",), 3, 10)
    assert (again.registered_at, again.last_seen) == (START_MS, START_MS + 1000)
    assert world.machine.state.workers.queues == {"b": 1}


def test_a_heartbeat_changes_what_it_says(world: World) -> None:
    world.do(RegisterWorker("w"))
    world.do(HeartbeatWorker("w", 2, 10, 1, "job-7"))
    worker = world.do(HeartbeatWorker("w")).worker
    assert (worker.active_jobs, worker.processed, worker.failed, worker.current_job) == (2, 10, 1, "job-7")
    with pytest.raises(WorkerNotFound):
        world.do(HeartbeatWorker("nope"))


def test_totals_stay_within_what_an_image_holds(world: World) -> None:
    world.machine.state.workers.gone.processed = 2**63 - 5
    world.do(RegisterWorker("w"))
    world.do(HeartbeatWorker("w", 0, 2**53, 2**53))
    world.do(UnregisterWorker("w"))
    other = World()
    other.machine.restore(world.machine.image())
    gone = other.machine.state.workers.gone
    assert (gone.processed, gone.failed) == (2**63 - 1, 2**53)


def test_silence_makes_stale_and_then_forgotten_by_itself(world: World) -> None:
    world.do(RegisterWorker("quiet", "q"))
    world.do(RegisterWorker("alive"))
    for _ in range(9):
        world.wait(10_000)
        if world.now_ms - START_MS == 30_000:
            assert states(world) == {"quiet": "stale", "alive": "active"}
        world.do(HeartbeatWorker("alive"))
    assert states(world) == {"alive": "active"}
    assert world.event_names().count("worker:removed-stale") == 1


def test_a_stale_worker_that_is_heard_of_is_active_again(world: World) -> None:
    world.do(RegisterWorker("w", queues=("q",)))
    world.wait(30_000)
    assert (states(world), world.machine.state.workers.queues) == ({"w": "stale"}, {})
    world.do(HeartbeatWorker("w"))
    assert (states(world), world.machine.state.workers.queues) == ({"w": "active"}, {"q": 1})
    world.wait(29_999)
    assert states(world) == {"w": "active"}


def test_what_a_worker_did_stays_in_the_totals(world: World) -> None:
    world.do(RegisterWorker("w"))
    world.do(RegisterWorker("v"))
    world.do(HeartbeatWorker("w", 1, 10, 2))
    world.do(HeartbeatWorker("v", 3, 5, 0))
    world.do(UnregisterWorker("w"))
    reply = world.ask(ListWorkers())
    assert (reply.processed, reply.failed, reply.active_jobs, len(reply.workers)) == (15, 2, 3, 1)
    with pytest.raises(WorkerNotFound):
        world.do(UnregisterWorker("w"))


def test_many_failures_are_reported_at_thresholds(world: World) -> None:
    world.do(RegisterWorker("w"))
    for failed in (4, 5, 6, 30, 31, 100, 5000):
        world.do(HeartbeatWorker("w", failed=failed, processed=100))
    assert world.event_names().count("worker:error") == 3


def test_registrations_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorumq.node.machine.operations.workers.WORKERS_MAX", 1)
    world.do(RegisterWorker("w"))
    world.do(RegisterWorker("w"))
    with pytest.raises(TooManyWorkers):
        world.do(RegisterWorker("v"))


def test_a_restored_registry_ages_alike(world: World) -> None:
    for i in range(4):
        world.do(RegisterWorker(f"w{i}", queues=("q", "q")))
        world.wait(12_000)
    world.do(HeartbeatWorker("w0"))
    other = world.restored()
    for after in (10_000, 50_000, 100_000):
        for machine in (other, world.machine):
            machine.apply(machine.index + 1, world.now_ms + after, [])
        assert other.full_digest() == world.machine.full_digest()
        assert other.state.workers.queues == world.machine.state.workers.queues
    assert other.state.workers.by_id == {}


WAYS: dict[str, tuple[Callable[[Job], Operation] | None, int, int]] = {
    "ack": (lambda job: AckJob(job.id, job.token), 1, 0),
    "ack batch": (lambda job: AckJobs([job.id], [job.token]), 1, 0),
    "fail": (lambda job: FailJob(job.id, job.token), 0, 1),
    "fail for good": (lambda job: FailJob(job.id, job.token, unrecoverable=True), 0, 1),
    "lock ran out": (None, 0, 0),
    "timeout": (None, 0, 0),
    "move to delayed": (lambda job: MoveToDelayed(job.id, 5, job.token), 0, 0),
    "move to wait": (lambda job: MoveToWait(job.id, job.token), 0, 0),
    "release": (lambda job: ReleaseJobs([(job.id, job.fence)]), 0, 0),
    "discard": (lambda job: DiscardJob(job.id), 0, 0),
    "cancel": (lambda job: CancelJob(job.id), 0, 0),
    "obliterate": (lambda job: ObliterateQueue("q"), 0, 0),
}


@pytest.mark.parametrize("grouped", [False, True], ids=["", "group"])
@pytest.mark.parametrize("way", WAYS)
def test_figures_of_a_worker_follow_what_it_takes_and_finishes(leveled: World, way: str, grouped: bool) -> None:
    world, counts = leveled, leveled.machine.state.level >= 1
    world.do(RegisterWorker("w", "mailer", ("q",), 4))
    worker = world.machine.state.workers.by_id["w"]
    options = {"group_id": "g"} if grouped else {}
    world.push("q", timeout_ms=1000 if way == "timeout" else None, **options)
    other = world.push("other")
    (job,) = world.pull("q", owner="w", lock_ms=2000)
    assert world.pull_ids("other", owner="w", lock_ms=9000) == [other]
    assert world.pull("q", owner="somebody else") == []
    assert worker.active_jobs == 2 * counts
    operation, processed, failed = WAYS[way]
    if operation is None:
        world.wait(2000)
    else:
        world.do(operation(job))
    assert (worker.active_jobs, worker.processed, worker.failed) == (counts, processed * counts, failed * counts)


def test_a_heartbeats_own_figures_win_and_count_on(world: World) -> None:
    world.do(RegisterWorker("w"))
    worker = world.machine.state.workers.by_id["w"]
    first, _ = world.push(), world.push()
    world.pull(count=2, owner="w", token_seed="t")
    world.do(HeartbeatWorker("w", 7, 100, 10))
    assert (worker.active_jobs, worker.processed, worker.failed) == (7, 100, 10)
    world.do(AckJob(first, "t-0"))
    assert (worker.active_jobs, worker.processed) == (6, 101)
    world.do(HeartbeatWorker("w", 0))
    world.do(ReleaseJobs([(job.id, job.fence) for job in world.machine.state.queues["q"].active.values()]))
    # Never below nothing.
    assert (worker.active_jobs, worker.processed) == (0, 101)


def test_failures_that_are_counted_are_told_as_those_of_heartbeats(world: World) -> None:
    world.do(RegisterWorker("w"))
    for _ in range(5):
        job_id = world.push()
        world.pull(owner="w", token_seed="t")
        assert "worker:error" not in world.event_names()
        world.do(FailJob(job_id, "t-0", unrecoverable=True))
    assert "worker:error" in world.event_names()
    world.do(HeartbeatWorker("w", failed=5))
    assert "worker:error" not in world.event_names()


def test_what_a_lost_connection_says_counts_only_until_the_worker_is_heard_of_again(world: World) -> None:
    heard_at = world.do(RegisterWorker("w", "mailer")).worker.last_seen
    world.wait(1000)
    again = world.do(RegisterWorker("w", "mailer")).worker.last_seen
    world.do(UnregisterWorker("w", heard_at))
    assert states(world) == {"w": "active"}
    world.wait(1000)
    world.do(HeartbeatWorker("w"))
    world.do(UnregisterWorker("w", again))
    assert states(world) == {"w": "active"}
    world.do(UnregisterWorker("w", again + 1000))
    assert states(world) == {}

"""The registry of workers: registration, signs of life, silence."""

from __future__ import annotations

import pytest

from node.operations.workers import HeartbeatWorker, ListWorkers, RegisterWorker, UnregisterWorker
from node.refusals import TooManyWorkers, WorkerNotFound
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
    monkeypatch.setattr("node.operations.workers.WORKERS_MAX", 1)
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

"""Push workers in the log: registrations, who serves them, what is taken for them, and that all of it outlives an image."""

from __future__ import annotations

import pytest

from quorumq.node.machine.operations.adding import AddJobs
from quorumq.node.machine.operations.pushers import (
    AssignPushers,
    CircuitNote,
    GetPusher,
    JoinPushing,
    LeavePushing,
    ListPushers,
    NoteCircuits,
    PullForPusher,
    PutPusher,
    RemovePusher,
)
from quorumq.node.machine.operations.queues import ObliterateQueue
from quorumq.node.machine.operations.runs import AckJob
from quorumq.node.machine.operations.settings import SetWindow
from quorumq.node.machine.refusals import PusherNotFound, TooManyPushers
from quorumq.node.machine.state import JobSpec, Keep, Options
from quorumq.node.machine.state import pusher as records
from quorumq.node.machine.state.limits import Window
from quorumq.node.machine.state.pusher import CLOSED, PUSH_OWNER, Circuit
from tests.support.world import World

Q = "emails"
URL = "http://127.0.0.1/work"
HEADERS = (("Authorization", "Bearer secret"),)


def register(world: World, queue: str = Q, **more: object) -> None:
    world.do(PutPusher(queue, URL, **more))  # type: ignore[arg-type]


def serve(world: World, node: str = "n1", *queues: str) -> None:
    world.do(JoinPushing(node))
    world.do(AssignPushers({node: list(queues or (Q,))}))


def add(world: World, count: int, queue: str = Q) -> list[str]:
    specs = [JobSpec("", b"1", Options(max_attempts=1, backoff=0, stalls_allowed=1))] * count
    return list(world.do(AddJobs(queue, specs)).ids)


def pull(world: World, count: int = 100, *, node: str = "n1", token: str = "t:0", lock_ms: int = 30_000) -> list[str]:
    reply = world.do(PullForPusher(Q, node, count, lock_ms, token))
    assert reply.tokens == [token] * len(reply.jobs)
    return [job.id for job in reply.jobs]


def node_of(world: World, queue: str = Q) -> str | None:
    node: str | None = world.ask(GetPusher(queue)).pusher.node
    return node


def test_a_registration_is_kept_with_all_it_says(world: World) -> None:
    register(
        world,
        method="PUT",
        headers=HEADERS,
        timeout_ms=5_000,
        concurrency=7,
        limit=Window(5, 1_000),
        max_stalls=2,
        keep_completed=Keep(60_000, 5),
        keep_failed=Keep(None, 1),
    )
    shown = world.ask(GetPusher(Q))
    pusher = shown.pusher
    assert (pusher.url, pusher.method, pusher.headers, pusher.timeout_ms) == (URL, "PUT", HEADERS, 5_000)
    assert (pusher.concurrency, pusher.registered_at, pusher.node, shown.active) == (7, world.now_ms, None, 0)
    assert world.ask(ListPushers()) == [pusher]
    # The queue is not there yet, and goes by the registration from its beginning.
    add(world, 1)
    settings = world.machine.state.queues[Q].settings
    assert settings.window == Window(5, 1_000) and settings.default_stalls_allowed == 2
    assert (settings.default_keep_completed, settings.default_keep_failed) == (Keep(60_000, 5), Keep(None, 1))


def test_a_queue_that_is_there_goes_by_its_registration_too(world: World) -> None:
    add(world, 1)
    register(world, limit=Window(1, 500), max_stalls=3)
    settings = world.machine.state.queues[Q].settings
    assert (settings.window, settings.default_stalls_allowed) == (Window(1, 500), 3)
    world.do(ObliterateQueue(Q))
    add(world, 1)
    assert world.machine.state.queues[Q].settings == settings


def test_removing_takes_back_what_the_registration_set_and_nothing_else(world: World) -> None:
    add(world, 1)
    world.do(SetWindow(Q, 9, 900))
    before = world.machine.state.queues[Q].settings
    register(world, max_stalls=3)
    assert world.machine.state.queues[Q].settings.window == Window(9, 900)
    world.do(RemovePusher(Q))
    assert world.machine.state.queues[Q].settings == before
    register(world, limit=Window(1, 500))
    register(world)
    assert world.machine.state.queues[Q].settings.window is None
    with pytest.raises(PusherNotFound):
        world.do(RemovePusher("other"))
    with pytest.raises(PusherNotFound):
        world.ask(GetPusher("other"))


def test_registrations_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorumq.node.machine.operations.pushers.PUSHERS_MAX", 2)
    assert records.PUSHERS_MAX == 10_000
    register(world, "a-queue")
    register(world, "b-queue")
    with pytest.raises(TooManyPushers):
        register(world, "c-queue")
    # One that is there can still be replaced.
    register(world, "a-queue", method="PUT")


def test_only_the_node_that_serves_a_registration_takes_its_jobs(world: World) -> None:
    add(world, 3)
    assert pull(world) == []
    register(world, concurrency=2)
    assert pull(world) == []
    # A node that has not said that it calls endpoints gets none.
    assert world.do(AssignPushers({"n1": [Q]})).count == 0
    serve(world)
    assert node_of(world) == "n1"
    assert pull(world, node="n2") == []
    assert pull(world) == [f"bull:{Q}:1", f"bull:{Q}:2"]
    job = world.job(f"bull:{Q}:1")
    assert (job.owner, job.token, job.lock_until) == (PUSH_OWNER, "t:0", world.now_ms + 30_000)


def test_concurrency_holds_over_nodes_registrations_and_tokens(world: World) -> None:
    add(world, 9)
    register(world, concurrency=3)
    serve(world)
    first = pull(world, 2)
    assert len(first) == 2
    # Another node takes over: the calls of the first one still count.
    serve(world, "n2")
    assert len(pull(world, node="n2", token="u:0")) == 1
    assert pull(world, node="n2", token="u:1") == []
    # Replaced: nothing more before all but one of them have ended.
    register(world, concurrency=2)
    assert node_of(world) == "n2"
    world.do(AckJob(first[0], "t:0"))
    assert pull(world, node="n2", token="u:2") == []
    world.do(AckJob(first[1], "t:0"))
    assert len(pull(world, node="n2", token="u:3")) == 1
    assert world.ask(GetPusher(Q)).active == 2


def test_other_workers_of_the_queue_do_not_count(world: World) -> None:
    add(world, 4)
    register(world, concurrency=2)
    serve(world)
    assert len(world.pull(Q, 2, owner="somebody", token_seed="s")) == 2
    assert len(pull(world)) == 2


def test_nothing_is_taken_after_a_removal_and_what_is_under_way_ends(world: World) -> None:
    add(world, 2)
    register(world)
    serve(world)
    [taken] = pull(world)
    world.do(RemovePusher(Q))
    assert pull(world) == []
    assert world.do(AckJob(taken, "t:0", b"1")).job.state == "completed"


def test_a_job_whose_node_is_gone_comes_back_with_its_lock(world: World) -> None:
    add(world, 1)
    register(world)
    serve(world)
    [taken] = pull(world, lock_ms=3_000)
    serve(world, "n2")
    world.wait(2_999)
    assert pull(world, node="n2") == []
    world.wait(1)
    assert pull(world, node="n2", token="u:0") == [taken]
    job = world.job(taken)
    assert (job.stalls, job.attempts, job.starts) == (1, 0, 2)


def test_the_limit_of_a_registration_counts_starts(world: World) -> None:
    add(world, 5)
    register(world, concurrency=5, limit=Window(2, 1_000))
    serve(world)
    assert len(pull(world)) == 2
    world.wait(999)
    assert pull(world, token="t:1") == []
    world.wait(1)
    assert len(pull(world, token="t:2")) == 2


def test_a_node_that_leaves_serves_nothing_more(world: World) -> None:
    for name in ("a-queue", "b-queue", "c-queue"):
        register(world, name)
    serve(world, "n1", "a-queue", "b-queue")
    serve(world, "n2", "c-queue", "unknown")
    assert world.do(LeavePushing("n1")).count == 2
    assert [pusher.node for pusher in world.ask(ListPushers())] == [None, None, "n2"]
    assert world.do(AssignPushers({"n1": ["a-queue"]})).count == 0
    assert world.do(LeavePushing("never-joined")).count == 0
    assert world.do(AssignPushers({"n2": ["a-queue", "b-queue", "c-queue"]})).count == 2
    pushers = world.machine.state.pushers
    assert pushers.count_of("n2") == 3 and pushers.count_of("n1") == 0
    assert [pusher.queue for pusher in pushers.of_node("n2")] == ["c-queue", "a-queue", "b-queue"]


def test_a_circuit_is_noted_for_the_endpoint_it_is_about(world: World) -> None:
    register(world)
    generation = world.ask(GetPusher(Q)).pusher.generation
    broken = Circuit(5, world.now_ms + 1_000, "nobody there")
    assert world.do(NoteCircuits([CircuitNote(Q, generation, broken), CircuitNote("x", 1, broken)])).count == 1
    assert world.ask(GetPusher(Q)).pusher.circuit == broken
    # Registered again: another endpoint, of which nothing is known.
    register(world)
    assert world.ask(GetPusher(Q)).pusher.circuit == CLOSED
    assert world.do(NoteCircuits([CircuitNote(Q, generation, broken)])).count == 0
    assert world.do(NoteCircuits([CircuitNote(Q, generation + 1)])).count == 1


def test_all_of_it_outlives_an_image(world: World) -> None:
    register(world, headers=HEADERS, limit=Window(2, 10), keep_failed=Keep(1, 2))
    register(world, "other-queue")
    serve(world, "n2", Q)
    world.do(JoinPushing("n3"))
    generation = world.ask(GetPusher(Q)).pusher.generation
    world.do(NoteCircuits([CircuitNote(Q, generation, Circuit(5, 77, "x"))]))
    add(world, 2)
    world.check()
    pushers, again = world.machine.state.pushers, world.restored().state.pushers
    assert again.by_queue == pushers.by_queue and list(again.by_queue) == [Q, "other-queue"]
    assert (again.nodes, again.generation) == ({"n2": None, "n3": None}, 2)
    assert [pusher.queue for pusher in again.of_node("n2")] == [Q]
    assert again.version != 0


def test_a_change_wakes_whoever_serves(world: World) -> None:
    add(world, 1)
    register(world)
    version = world.machine.state.pushers.version
    world.woken.clear()
    register(world, concurrency=2)
    assert world.woken == [Q] and world.machine.state.pushers.version != version

"""The machine as a whole: totality, digests, events, images and what is wrong with damaged ones."""

from __future__ import annotations

import logging

import msgspec
import pytest

from node.image import ImageDamaged
from node.machine import Machine
from node.operations.clock import AdvanceClock
from node.operations.jobs import AckJob, PullJobs, PushJobs
from node.refusals import InternalError, JobNotFound, OperationNotKnown
from node.state import JobSpec, State
from tests.support.world import START_MS, World, encode


def test_a_refusal_is_a_value_beside_the_replies(world: World) -> None:
    replies = world.apply(AckJob("nope"), PushJobs("q", [JobSpec("a", b"1")]), AdvanceClock())
    assert isinstance(replies[0], JobNotFound)
    assert replies[0].__traceback__ is None
    assert (replies[1].ids, replies[2]) == (["a"], None)


def test_unreadable_batches_are_refused_and_the_others_applied() -> None:
    machine = Machine()
    good = encode([PushJobs("q", [JobSpec("a", b"1")])])
    unknown = msgspec.msgpack.encode([{"op": "job.teleport"}, {"op": "job.ack", "job_id": "nope"}, {"op": "job.ack"}])
    outcomes = machine.apply(1, START_MS, [b"\xc1", good, b"", unknown, b"\x01"])
    assert [type(outcome) for outcome in outcomes] == [
        OperationNotKnown,
        list,
        OperationNotKnown,
        list,
        OperationNotKnown,
    ]
    assert [type(reply) for reply in outcomes[3]] == [OperationNotKnown, JobNotFound, OperationNotKnown]
    assert list(machine.state.jobs) == ["a"]


def test_a_bug_is_refused_counted_and_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(self: State, *args: object) -> None:
        raise ZeroDivisionError

    machine = Machine()
    monkeypatch.setattr(State, "take", broken)
    machine.apply(1, START_MS, [encode([PushJobs("q", [JobSpec("a", b"1")])])])
    with caplog.at_level(logging.ERROR):
        outcomes = machine.apply(7, START_MS, [encode([PullJobs("q"), AckJob("nope")])])
    assert [type(reply) for reply in outcomes[0]] == [InternalError, JobNotFound]
    assert (outcomes[0][0].index, machine.errors) == (7, 1)
    assert "entry 7: job.pull failed" in caplog.text


def test_a_bug_in_the_passing_of_time_does_not_stop_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: State, job: object) -> None:
        raise ZeroDivisionError

    world = World()
    world.push(delay_ms=5)
    monkeypatch.setattr(State, "undelay", broken)
    world.wait(5)
    assert world.machine.errors == 1
    assert world.push() == "job-2"


def test_running_out_of_memory_is_not_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: State, *args: object) -> None:
        raise MemoryError

    machine = Machine()
    monkeypatch.setattr(State, "push", full)
    with pytest.raises(MemoryError):
        machine.apply(1, START_MS, [encode([PushJobs("q", [JobSpec("a", b"1")])])])


def test_equal_histories_have_equal_digests() -> None:
    worlds = [World(), World()]
    for world in worlds:
        world.push(priority=2)
        world.push(delay_ms=10)
        world.pull(owner="w", token_seed="t")
        world.wait(10)
    first, second = (world.machine for world in worlds)
    assert first.digest() == second.digest()
    assert first.full_digest() == second.full_digest()
    worlds[0].push(data=b"1")
    worlds[1].push(data=b"2")
    assert first.full_digest() != second.full_digest()


def test_a_different_state_shows_in_the_next_digest() -> None:
    first, second = World(), World()
    for world in (first, second):
        world.a_job("active")
    # A replica on which something was lost, though its log is the same.
    second.machine.state.complete(second.job("job-1"), None)
    for world in (first, second):
        world.tick()
    assert first.machine.digest() != second.machine.digest()


def test_events_are_collected_only_when_wanted() -> None:
    world = World()
    world.machine.events_wanted = False
    world.a_job("completed")
    assert world.events == []
    world.machine.events_wanted = True
    world.a_job("completed")
    assert world.event_names() == ["job:pushed", "job:active", "job:completed"]


def test_events_are_named_and_worded_as_the_api_does(world: World) -> None:
    world.push("emails", "order-1")
    raw = msgspec.json.encode(world.events[1])
    assert msgspec.json.decode(raw) == {"type": "job:pushed", "queue": "emails", "jobId": "order-1"}


def test_a_listener_that_fails_disturbs_nobody() -> None:
    world = World()

    def broken(entry: object) -> None:
        raise ZeroDivisionError

    world.machine.listen(broken)
    assert world.push() == "job-1"


# -- Images


def full_world() -> World:
    world = World()
    for state in ("completed", "failed", "active", "waiting-children", "delayed", "waiting", "locked"):
        world.a_job(state, queue=f"queue-{state}", priority=1, tags=("t",), unique_key="u", group_id="g")
    world.push("queue-waiting", group_id="g")
    return world


def test_an_image_is_the_whole_state() -> None:
    world = full_world()
    world.check()
    other = World(now_ms=world.now_ms)
    other.machine.restore(world.machine.image())
    assert list(other.machine.state.queues) == list(world.machine.state.queues)
    for side in (world, other):
        side.wait(3_600_000)
        side.push("queue-waiting", "last")
    assert other.machine.full_digest() == world.machine.full_digest()


def test_an_image_comes_in_pieces_of_about_a_megabyte() -> None:
    world = World()
    for _ in range(30):
        world.push(data=b'"' + b"x" * 200_000 + b'"')
    sizes = [len(piece) for piece in world.machine.image()]
    assert max(sizes) < 1_400_000
    assert len(sizes) >= 6
    world.check()


def test_an_empty_state_has_an_image() -> None:
    World().check()


@pytest.mark.parametrize("cut", [0, 3, 20, -1, -20])
def test_a_cut_image_is_refused(cut: int) -> None:
    whole = b"".join(full_world().machine.image())
    with pytest.raises(ImageDamaged):
        Machine().restore([whole[:cut]])


def test_pieces_out_of_order_are_refused() -> None:
    header, queue, jobs, *rest = full_world().machine.image()
    for pieces in ([queue, header], [header, jobs, queue, *rest], [header, queue, *rest], [b"\x00\x00\x00\x01\xc1"]):
        with pytest.raises(ImageDamaged):
            Machine().restore(pieces)


def test_an_image_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = list(full_world().machine.image())
    monkeypatch.setattr("node.image.VERSION", 99)
    with pytest.raises(ImageDamaged, match="version 1, this program reads version 99"):
        Machine().restore(pieces)


def test_a_failed_restore_leaves_an_empty_state_not_half_of_one() -> None:
    world = full_world()
    with pytest.raises(ImageDamaged):
        world.machine.restore(list(world.machine.image())[:-1])
    assert world.machine.state.jobs == {}


def test_restored_records_share_what_living_ones_share() -> None:
    world = World()
    for _ in range(2):
        world.push("some-queue", priority=3)
        world.push("some-queue")
    jobs = world.restored().state.jobs
    first, second, third, fourth = (jobs[f"job-{i}"] for i in range(1, 5))
    assert first.queue is second.queue
    assert first.state is second.state
    assert (first.opts is third.opts) and (second.opts is fourth.opts)
    assert first.created_at is second.created_at

"""The machine as a whole: totality, digests, events, images and what is wrong with damaged ones."""

from __future__ import annotations

import logging
import typing

import msgspec
import pytest

from quorumq.cluster.errors import NotUnderstood
from quorumq.node.machine import levels
from quorumq.node.machine.image import ImageDamaged
from quorumq.node.machine.lifecycle import creation, indexes, runs
from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operation import CATALOGUE
from quorumq.node.machine.operations.clock import AdvanceClock
from quorumq.node.machine.operations.jobs import PushJobs
from quorumq.node.machine.operations.runs import AckJob, PullJobs
from quorumq.node.machine.refusals import InternalError, JobNotFound
from quorumq.node.machine.state import JobSpec, State
from tests.support.world import START_MS, World, encode


def test_a_refusal_is_a_value_beside_the_replies(world: World) -> None:
    replies = world.apply(AckJob("nope"), PushJobs("q", [JobSpec("a", b"1")]), AdvanceClock())
    assert isinstance(replies[0], JobNotFound)
    assert replies[0].__traceback__ is None
    assert (replies[1].ids, replies[2]) == (["a"], None)


SPEC = {"id": "a", "data": b"1"}


@pytest.mark.parametrize("level", [0, levels.KNOWN])
@pytest.mark.parametrize(
    "batch",
    [
        pytest.param([{"op": "job.teleport"}], id="operation"),
        pytest.param([{"op": "job.ack", "job_id": "nope", "mood": 1}], id="field"),
        pytest.param([{"op": "job.ack"}], id="missing field"),
        pytest.param([{"op": "job.ack", "job_id": 7}], id="type"),
        pytest.param([{"op": "job.push", "queue": "q", "jobs": [SPEC | {"mood": 1}]}], id="field of a job"),
        pytest.param(
            [{"op": "job.push", "queue": "q", "jobs": [SPEC | {"opts": {"mood": 1}}]}], id="field of its options"
        ),
        pytest.param(
            [{"op": "request.once", "key": "k", "fingerprint": b"f", "operation": b"\x81\xa2op\xa4nope", "scope": "s"}],
            id="in a key",
        ),
        pytest.param(7, id="no batch"),
    ],
)
def test_what_a_newer_version_wrote_is_not_skipped(batch: object, level: int) -> None:
    machine = Machine()
    machine.level = level
    good = encode([PushJobs("q", [JobSpec("b", b"1")])])
    payload = msgspec.msgpack.encode(batch)
    assert not machine.understands(payload) and machine.understands(good)
    # The entry stops the node whatever stands beside it.
    with pytest.raises(NotUnderstood, match="version"):
        machine.apply(1, START_MS, [good, payload])


def records_of(kind: object, found: set[type]) -> set[type]:
    """Return every struct that a record may hold."""
    for part in typing.get_args(kind):
        records_of(part, found)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in found:
        found.add(kind)
        for hint in typing.get_type_hints(kind).values():
            records_of(hint, found)
    return found


def test_no_record_takes_a_field_that_it_does_not_know() -> None:
    found: set[type] = set()
    for info in CATALOGUE.values():
        records_of(info.record, found)
    assert len(found) > len(CATALOGUE)
    assert [kind.__name__ for kind in found if not kind.__struct_config__.forbid_unknown_fields] == []  # type: ignore[attr-defined]


def test_a_bug_is_refused_counted_and_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(self: State, *args: object) -> None:
        raise ZeroDivisionError

    machine = Machine()
    monkeypatch.setattr(runs, "take", broken)
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
    monkeypatch.setattr(indexes, "undelay", broken)
    world.wait(5)
    assert world.machine.errors == 1
    assert world.push() == "job-2"


def test_running_out_of_memory_is_not_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: State, *args: object) -> None:
        raise MemoryError

    machine = Machine()
    monkeypatch.setattr(creation, "push", full)
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


def test_an_image_of_a_newer_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = list(full_world().machine.image())
    monkeypatch.setattr("quorumq.node.machine.image.VERSION", 1)
    with pytest.raises(NotUnderstood, match="version 2, this program reads versions up to 1"):
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

"""A state whose clock ran ahead, set back: what was still to come comes after the same time as it would have."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quorumq.node.machine import image
from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operations.runs import PullJobs
from quorumq.node.machine.operations.schedules import AddCron
from quorumq.node.machine.state import job_spec
from quorumq.node.machine.state.job import Dependencies, Extra
from quorumq.node.machine.state.outcomes import Outcome
from quorumq.node.machine.state.schedule import Cron
from quorumq.node.rewinding import TIMES, rewound
from tests.golden.test_fields import present_pieces, samples
from tests.golden.test_golden import IMAGES, world_of_everything
from tests.support.world import START_MS, World

YEAR_MS = 365 * 24 * 3600 * 1000
TIME_WORDS = re.compile(
    r"(^|_)(at|until|due|heartbeat|triggered|fired|seen)($|_ms$)|^(after_ms|at_ms|began_ms|now_ms|read_ms|until_ms)$"
)
MADE_ID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")


def back(machine: Machine, to_ms: int) -> World:
    """A world of the same state with its clock set back."""
    world = World(now_ms=to_ms)
    world.machine.restore(rewound(machine.image(), to_ms))
    return world


def held(machine: Machine) -> list[bytes]:
    """The image without what tells the history."""
    pieces = list(image.unframe(machine.image()))
    header = pieces[0]
    assert isinstance(header, image.Header)
    pieces[0] = msgspec.structs.replace(header, digest=b"", index=0, mark=0, under_way=msgspec.UNSET)
    # Ids that were made on the way have the time in them; those of events rise for ever.
    for piece in pieces:
        if isinstance(piece, image.EventsPiece):
            piece.last, piece.entries = 0, [(0, *entry[1:]) for entry in piece.entries]
    return [MADE_ID.sub(b"made", msgspec.msgpack.encode(piece)) for piece in pieces]


@pytest.mark.parametrize("wait_ms", [0, 600, 45_000, 3 * 3600 * 1000, 8 * 24 * 3600 * 1000])
def test_everything_happens_after_the_same_time(wait_ms: int) -> None:
    ahead = world_of_everything()
    # Its expression would be looked up in the calendar, which is another test.
    for cron in ahead.machine.state.schedule.crons.values():
        if cron.schedule is not None:
            cron.schedule, cron.every_ms = None, 1000
    right = back(ahead.machine, ahead.now_ms - YEAR_MS)
    assert right.machine.state.now_ms == right.now_ms
    for world in (ahead, right):
        world.wait(wait_ms)
        world.apply(PullJobs("q", 3, "w", 1000, "late"))
        world.check()
    assert held(right.machine) == held(back(ahead.machine, ahead.now_ms - YEAR_MS).machine)
    assert ahead.machine.errors == right.machine.errors == 0


def test_what_waited_for_a_wrong_clock_goes_on() -> None:
    world = World(now_ms=START_MS + YEAR_MS)
    soon = world.push(delay_ms=1_000)
    locked = world.push("locked")
    world.do(PullJobs("locked", 1, "w", 30_000, "t"))
    # With its clock merely right again, nothing happens for a year.
    stuck = World(now_ms=START_MS)
    stuck.machine.restore(world.machine.image())
    stuck.now_ms = START_MS + 60_000
    stuck.tick()
    assert (stuck.state_of(soon), stuck.state_of(locked)) == ("delayed", "active")
    right = back(world.machine, START_MS)
    right.wait(60_000)
    assert (right.state_of(soon), right.state_of(locked)) == ("waiting", "waiting")
    right.check()


def test_times_of_the_past_stay() -> None:
    world = World()
    old = world.push()
    later = world.push(delay_ms=10_000)
    world.wait(5_000)
    right = back(world.machine, START_MS + 2_000)
    assert right.job(old).created_at == right.job(later).created_at == START_MS
    # It still has five of its ten seconds to wait.
    assert right.job(later).run_at == START_MS + 7_000


@pytest.mark.parametrize("ahead_ms", [0, -1, -YEAR_MS])
def test_a_clock_that_is_not_ahead_stays_as_it_is(ahead_ms: int) -> None:
    world = world_of_everything()
    whole = b"".join(world.machine.image())
    assert b"".join(rewound(world.machine.image(), world.now_ms - ahead_ms)) == whole


def test_a_cron_goes_by_the_calendar_again() -> None:
    day, world = 24 * 3600 * 1000, World(now_ms=START_MS + YEAR_MS)
    midnight = START_MS - START_MS % day + day
    for name, tz in (("nightly", None), ("no such zone", "Mars/Base")):
        world.do(
            AddCron(name, "q", job_spec("", b"1"), schedule="0 0 * * *", timezone=tz, next_due_ms=midnight + YEAR_MS)
        )
    crons = back(world.machine, START_MS).machine.state.schedule.crons
    assert crons["nightly"].next_due == midnight
    assert crons["no such zone"].next_due == midnight


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_old_images_are_set_back(path: Path) -> None:
    machine = Machine()
    machine.restore(rewound([path.read_bytes()], START_MS - YEAR_MS))
    assert machine.state.now_ms == START_MS - YEAR_MS
    again = Machine()
    again.restore(machine.image())
    assert again.full_digest() == machine.full_digest()


def records(value: Any) -> Iterator[msgspec.Struct]:
    """Every record in `value`, itself among them."""
    if isinstance(value, msgspec.Struct):
        yield value
        value = [getattr(value, name) for name in value.__struct_fields__]
    elif isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from records(one)


def test_every_time_is_set_back_wherever_it_is() -> None:
    """In whichever piece of an image, and however deep."""
    header, *others = samples(present_pieces())
    # All samples are small, and so times of just after the one that it is set back to.
    header.now_ms = YEAR_MS
    pieces = list(image.unframe(rewound(map(image.frame, [header, *others]), 0)))
    found = [(type(one), name, getattr(one, name)) for one in records(pieces) for name in TIMES.get(type(one), ())]
    assert [each for each in found if each[2] is not None and each[2] > 0] == []
    assert {kind for kind, _, _ in found} >= set(TIMES) - {Dependencies, Extra, Outcome}


def structs(kind: Any, seen: set[Any]) -> Iterator[type[msgspec.Struct]]:
    """Every record that can be in `kind`."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in seen:
        seen.add(kind)
        yield kind
        for field in msgspec.structs.fields(kind):
            yield from structs(field.type, seen)
    for part in typing.get_args(kind):
        yield from structs(part, seen)


def test_every_time_of_an_image_is_known() -> None:
    """A field that looks like a time and is not listed would stay in the future; the wrong one would be falsified."""
    found = {
        (kind, field.name)
        for kind in structs(image.Piece, set())
        for field in msgspec.structs.fields(kind)
        if TIME_WORDS.search(field.name)
        and int in (field.type, *(typing.get_args(field.type) if isinstance(field.type, types.UnionType) else ()))
    }
    listed = {(kind, name) for kind, names in TIMES.items() for name in names}
    # Records are read as the longer form of what a job depends on, or has to remember, and most are the shorter one.
    shorter = {(kind, name) for kind in (Dependencies, Extra) for name in TIMES[kind]}
    assert found == (listed - shorter) | {(Cron, "until")}

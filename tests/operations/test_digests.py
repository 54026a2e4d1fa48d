"""The digests of entries, outcomes and contents: each kind of damage to a replica shows, and nothing else does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quorumq.node.machine import contents
from quorumq.node.machine.contents import STEP_RECORDS
from quorumq.node.machine.machine import READ_ENTRIES, READ_MS, ROUND_MS, Machine
from quorumq.node.machine.operations.clock import AdvanceClock
from quorumq.node.machine.operations.jobs import PushJobs
from quorumq.node.machine.operations.queues import PauseQueue
from quorumq.node.machine.operations.runs import AckJob, PullJobs
from quorumq.node.machine.state import JobSpec, RateLimit, State, job_spec
from quorumq.node.machine.state.digests import START
from quorumq.node.machine.state.group import GroupSettings, GroupUse
from quorumq.node.machine.state.job import rank_of
from quorumq.node.machine.state.queue import Retention
from tests.golden.test_golden import world_of_everything
from tests.support.world import START_MS, World, encode

WHEEL = next((Path(__file__).parents[1] / "versions").glob("quorumq-0.1.0-*.whl"))


def a_step(world: World) -> None:
    """Let so many entries and so much time pass that one more step is read."""
    for _ in range(READ_ENTRIES):
        world.now_ms += READ_MS
        world.tick()


def two_worlds() -> tuple[World, World]:
    """The same history twice, with a queue of each kind in it."""
    pair = world_of_everything(), world_of_everything()
    for world in pair:
        for number in range(3):
            world.push("plain", f"plain-{number}", data=b'{"n":1}')
            world.push("keyed", f"keyed-{number}", unique_key=f"key-{number}", ttl_ms=10**9)
            world.push("grouped", f"grouped-{number}", group_id="g", delay_ms=number)
        world.do(PullJobs("keyed", 1, "worker", 10**9, token_seed="t"))
        world.wait(10)
        a_step(world)
    assert pair[0].machine.points == pair[1].machine.points != {}
    return pair


def pause(state: State) -> None:
    queue = state.queues["plain"]
    queue.settings = msgspec.structs.replace(queue.settings, paused=True)


def limit(state: State) -> None:
    queue = state.queues["plain"]
    queue.settings = msgspec.structs.replace(queue.settings, rate=RateLimit(5))


def shift(state: State) -> None:
    queue = state.queues["plain"]
    queue.ready._jobs[0][:2] = reversed(queue.ready._jobs[0][:2])


DAMAGES: dict[str, Callable[[State], Any]] = {
    "the data of a job": lambda state: setattr(state.jobs["plain-1"], "data", b'{"n":2}'),
    "a pause": pause,
    "a rate limit": limit,
    "a job missing in an index": lambda state: state.queues["plain"].ready.remove(rank_of(state.jobs["plain-1"])),
    "the order of an index": shift,
    "a job missing in the table": lambda state: state.jobs.pop("plain-1"),
    "a parked job": lambda state: setattr(state.jobs["grouped-2"], "data", b"9"),
    "a job missing among the parked": lambda state: (
        state.queues["grouped"].groups["g"].parked.remove(rank_of(state.jobs["grouped-2"]))
    ),
    "the holder of a key": lambda state: state.queues["keyed"].unique.update({"key-1": "nobody"}),
    "a lock": lambda state: setattr(state.jobs["keyed-0"], "token", "mine"),
    "an alarm that is gone": lambda state: state.timers._far.clear(),
    "what a queue was given": lambda state: setattr(state.queues["plain"].counters, "pushed", 9),
    "the level of a token bucket": lambda state: setattr(state.queues["plain"], "rate_level", 7),
    "what a group has started": lambda state: state.queues["plain"].group_uses.update({"x": GroupUse(1, 1, 0, 2)}),
    "the settings of a group": lambda state: state.queues["plain"].group_settings.update({"x": GroupSettings(2)}),
    "a line of log": lambda state: next(iter(state.logs.by_job.values())).pop(),
    "the next time of a cron": lambda state: setattr(state.schedule.crons["nightly"], "next_due", 5),
    "a job that is to follow": lambda state: state.schedule.following.clear(),
    "a job that is held": lambda state: state.schedule.held.clear(),
    "executions that made no job": lambda state: state.schedule.skipped.update(nightly=3),
    "a spent token": lambda state: next(iter(state.spent.by_job.values())).append(7),
    "the default of what is kept": lambda state: setattr(state, "retention", Retention(5)),
    "a worker": lambda state: setattr(state.workers.by_id["w1"], "processed", 99),
    "a webhook": lambda state: setattr(state.webhooks.by_id["h1"], "url", "https://example.org/"),
    "a delivery": lambda state: state.webhooks.outboxes["h1"].deliveries.pop(),
    "an endpoint": lambda state: setattr(state.pushers.by_queue["bull"], "url", "https://example.org/"),
    "the answer of a request": lambda state: state.outcomes._by_key.popitem(),
    "the scope of an answer": lambda state: state.outcomes._by_key.update(
        key=msgspec.structs.replace(state.outcomes._by_key["key"], scope="other")
    ),
    "a digest of a forgotten key": lambda state: state.outcomes._scopes["mailer"].forgotten.slices[0].add(9),
    "a key with a time of its own": lambda state: state.throttles.pop(),
    "the number of the next job": lambda state: setattr(state, "seq", state.seq + 1),
    "an id that is remembered": lambda state: state.remembered.add(("x",)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_kind_of_damage_shows(damage: str) -> None:
    sound, damaged = two_worlds()
    DAMAGES[damage](damaged.machine.state)
    for world in (sound, damaged):
        a_step(world)
    (mine, theirs), index = (world.machine.points for world in (sound, damaged)), sound.machine.index
    last = max(mine)
    assert last == max(theirs) > index - READ_ENTRIES
    assert mine[last][1] != theirs[last][1]


def test_damaged_data_shows_in_the_history_when_it_is_delivered() -> None:
    sound, damaged = two_worlds()
    DAMAGES["the data of a job"](damaged.machine.state)
    for world in (sound, damaged):
        world.pull("plain")
    assert sound.machine.digest() == damaged.machine.digest()
    for world in (sound, damaged):
        world.pull("plain")
    assert sound.machine.digest() != damaged.machine.digest()


def test_histograms_may_differ() -> None:
    first, second = two_worlds()
    counters = second.machine.state.queues["keyed"].counters
    counters.waits[0], counters.wait_ms, counters.runs[3], counters.run_ms = 9, 9, 9, 9
    for world in (first, second):
        a_step(world)
    assert first.machine.points == second.machine.points


def test_a_replica_from_an_image_goes_on_with_the_same_digests() -> None:
    world = world_of_everything()
    for number in range(STEP_RECORDS):
        world.push("many", group_id=f"g{number % 7}", priority=number % 3)
    steps: set[Any] = set()
    for _ in range(4):
        other = world.restored()
        assert (other.points, other.digest()) == ({}, world.machine.digest())
        for _ in range(READ_ENTRIES):
            world.now_ms += READ_MS
            for machine in (world.machine, other):
                machine.apply(machine.index + 1, world.now_ms, [encode([AdvanceClock()])])
        assert other.points
        assert other.points == {index: world.machine.points[index] for index in other.points}
        steps.add(world.machine.state.digests.place)
    assert len(steps) > 1  # in the middle of a round, too


def test_no_step_reads_more_than_it_may() -> None:
    world = World()
    for queue in ("one", "two"):
        world.do(
            PushJobs(queue, [job_spec(f"{queue}-{n}", b"1", group_id="g" if n % 2 else None) for n in range(3000)])
        )
    world.push("large", data=b"1" * (contents.STEP_BYTES * 2))
    world.push("large")
    place, read = START, []
    while True:
        piece, place = contents.read(world.machine.state, place)
        read.append(len(msgspec.msgpack.decode(piece)))
        if place == START:
            break
    assert max(read) <= STEP_RECORDS
    # Every job once, the heads of three queues, and what belongs to none.
    assert sum(read) == 6002 + 3 + 1
    assert len(read) >= 6002 // STEP_RECORDS + 1


def test_a_round_begins_anew_and_covers_everything() -> None:
    world = World()
    world.push("q", "a")
    a_step(world)
    digests = world.machine.state.digests
    began = digests.began_ms
    while digests.began_ms == began:
        assert world.now_ms - began <= ROUND_MS + READ_ENTRIES * READ_MS
        assert digests.contents != bytes(16)
        world.now_ms += READ_MS
        world.tick()
    assert (digests.contents, digests.place, digests.entries) == (bytes(16), START, 1)
    assert world.machine.digest() != bytes(16).hex()


def test_nodes_whose_records_differ_are_not_compared_before_the_next_round(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.push("q", "a")
    a_step(world)
    image = list(world.machine.image())
    assert world.machine.points
    monkeypatch.setattr(contents, "shape", lambda: b"newer")
    newer = Machine()
    newer.restore(image)
    assert newer.shape == b"newer".hex() != ""
    began = newer.state.digests.began_ms
    while newer.state.digests.began_ms == began:
        world.now_ms += READ_MS
        newer.apply(newer.index + 1, world.now_ms, [])
        assert newer.points == {}
    for _ in range(READ_ENTRIES):
        world.now_ms += READ_MS
        newer.apply(newer.index + 1, world.now_ms, [])
    assert newer.points


def test_the_shape_follows_the_fields_of_records() -> None:
    class Small(msgspec.Struct):
        number: int = 0

    class Large(msgspec.Struct):
        number: int = 0
        more: str = ""

    described = [contents._described(kind, set()).partition("(")[2] for kind in (Small, Large)]
    assert described[0] != described[1]
    assert len(contents.shape()) == 8
    contents.shape.cache_clear()
    assert contents.shape() == contents.shape()


def test_a_damaged_state_that_cannot_be_read_is_no_bug_of_an_operation() -> None:
    sound, damaged = two_worlds()
    del damaged.machine.state.queues["grouped"].groups["g"]
    for world in (sound, damaged):
        a_step(world)
        assert world.machine.errors == 0
    assert sound.machine.points != damaged.machine.points


# -- Below level 1


def entries() -> list[list[Any]]:
    """Some entries of all that the digest below level 1 looks at."""
    return [
        [PushJobs("q", [JobSpec("a", b"1"), JobSpec("b", b"2")])],
        [PullJobs("q", 1, "w", 1000, token_seed="t"), PauseQueue("q")],
        [AckJob("a", "t-0", b"3"), AdvanceClock()],
    ]


OLD = """
import sys
sys.path.insert(0, sys.argv[1])
from node.machine import Machine
machine = Machine()
for index, payload in enumerate(sys.argv[2:], 1):
    machine.apply(index, 1_800_000_000_000 + index * 5_000, [bytes.fromhex(payload)])
    print(machine.digest())
"""


def test_below_level_1_the_digest_is_that_of_the_version_before() -> None:
    machine = Machine()
    machine.state.level = 0
    payloads = [encode(entry) for entry in entries()]
    digests = []
    for index, payload in enumerate(payloads, 1):
        machine.apply(index, START_MS + index * 5_000, [payload])
        digests.append(machine.digest())
    old = subprocess.run(
        [sys.executable, "-c", OLD, str(WHEEL), *(payload.hex() for payload in payloads)],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert old.stdout.split() == digests
    assert (machine.shape, machine.points) == ("", {})


def test_the_chain_starts_where_the_level_is_raised() -> None:
    """Whatever the digests were before, which nodes of other versions may have made differently."""

    def raised(before: bytes) -> Machine:
        machine = Machine()
        machine.level = 0
        machine.apply(1, START_MS, [encode(entries()[0])])
        machine._digest = before
        machine.level = 1
        for index in range(2, READ_ENTRIES + 2):
            machine.apply(index, START_MS + index * READ_MS, [encode([PushJobs("q", [JobSpec(f"c{index}", b"1")])])])
        return machine

    first, second = raised(b"a" * 16), raised(b"b" * 16)
    assert first.digest() == second.digest()
    assert first.points == second.points != {}
    assert first.state.digests.shape == contents.shape()

"""Random histories of crons: leaders that come and go, clocks that jump, entries that come twice or late, images.

Whatever happens, each due time makes exactly one job or is reported as missed, and none comes before its time.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from quorumq.node.leader.crons import LATE_MS, fires_of
from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operations.schedules import AddCron, FireCrons
from quorumq.node.machine.state import job_spec
from quorumq.node.machine.state.job import next_id
from tests.support.world import START_MS, World, encode

EVERY_MS = {"a": 700, "b": 11_000, "c": 90_000}

STEPS = st.lists(
    st.one_of(
        # Time passes, on the log's clock; a leader's own clock may be ahead or behind.
        st.tuples(st.just("pass"), st.integers(1, 3 * LATE_MS)),
        # A leader looks and submits what it sees.
        st.tuples(st.just("look"), st.integers(-20_000, 20_000)),
        # What some leader submitted before comes again.
        st.tuples(st.just("again"), st.integers(0, 100)),
        # Everything restarts from the image.
        st.tuples(st.just("restart"), st.just(0)),
    ),
    max_size=40,
)


def added(world: World) -> None:
    for name, every_ms in EVERY_MS.items():
        skips = "skip" if name == "c" else "fire"
        world.do(AddCron(name, "q", job_spec("", b"1"), every_ms=every_ms, prevent_overlap=False, on_missed=skips))


def looked(world: World, ahead_ms: int) -> FireCrons:
    """Return what a leader submits whose clock is ahead by so much, as the clockwork works it out."""
    state = world.machine.state
    now_ms = max(world.now_ms + ahead_ms, state.now_ms)
    return FireCrons([fire for cron in state.schedule.upcoming() for fire in fires_of(cron, now_ms, 200)])


@given(STEPS)
def test_each_due_time_happens_once(steps: list[tuple[str, int]]) -> None:
    world = World()
    added(world)
    sent: list[FireCrons] = []
    for step, number in steps:
        if step == "pass":
            world.now_ms += number
            world.tick()
        elif step == "look":
            sent.append(looked(world, number))
            world.do(sent[-1])
        elif step == "again" and sent:
            world.do(sent[number % len(sent)])
        elif step == "restart":
            image = list(world.machine.image())
            world.machine = Machine()
            world.machine.restore(image)
        check(world)
    world.check()


def check(world: World) -> None:
    state = world.machine.state
    ids: list[str] = []
    for cron in state.schedule.crons.values():
        every_ms = EVERY_MS[cron.name]
        made = cron.executions + cron.missed
        # The grid has no holes: every due time before the next one was fired or reported.
        assert cron.next_due == START_MS + (made + 1) * every_ms
        mine = [job for job in state.jobs.values() if job.id in ids_of(cron.name, every_ms, made)]
        assert len(mine) == cron.executions
        assert all(job.created_at >= START_MS + every_ms for job in mine)
        ids += [job.id for job in mine]
    assert len(ids) == len(set(ids)) == len(state.jobs)


def ids_of(name: str, every_ms: int, count: int) -> dict[str, Any]:
    return {next_id(f"cron:{name}", START_MS + i * every_ms): i for i in range(1, count + 1)}


def test_a_job_never_comes_before_its_time() -> None:
    world = World()
    added(world)
    world.do(looked(world, 10**9))
    assert world.machine.state.jobs == {}
    batch = encode([looked(world, 10**9)])
    world.machine.apply(world.machine.index + 1, START_MS + 700, [batch])
    assert [job.created_at for job in world.machine.state.jobs.values()] == [START_MS + 700]

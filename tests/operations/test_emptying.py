"""What draining, cleaning and obliterating leave of a queue whose jobs repeat: the repetition, or nothing at all."""

from __future__ import annotations

from typing import Any

import pytest

from quorumq.node.machine.lifecycle import runs
from quorumq.node.machine.operations.adding import AddJobs
from quorumq.node.machine.operations.groups import SetGroupConcurrency
from quorumq.node.machine.operations.jobs import AddLog, PushJobs
from quorumq.node.machine.operations.keys import GetKeyHolder
from quorumq.node.machine.operations.queues import CleanQueue, DrainQueue, ObliterateQueue, ThinQueue
from quorumq.node.machine.operations.repeatables import AddRepeating, ListRepeating, Repetition
from quorumq.node.machine.operations.runs import AckJob
from quorumq.node.machine.operations.schedules import AddCron, CronFire, FireCrons, FollowJobs, ListCrons
from quorumq.node.machine.operations.settings import GetQueueSettings, SetConcurrency, SetRateLimit, SetWindow
from quorumq.node.machine.state import Dedup, Repeat, job_spec
from quorumq.node.machine.state.queue import QueueSettings
from tests.support.world import START_MS, World

HOUR_MS = 3_600_000
CRON = "c"
REPETITION = "bull:q:k"


def add_cron(world: World) -> str:
    """Add a cron whose job waits; return the job's id."""
    world.do(AddCron(CRON, "q", job_spec("", b"1"), every_ms=HOUR_MS, immediately=True))
    return list(world.machine.state.queues["q"].jobs)[-1]


def add_repetition(world: World, **options: Any) -> str:
    """Add a repetition of the BullMQ dialect whose job waits; return the job's id."""
    job = job_spec("", b"1", name="tick", **options)
    every = Repetition("k", job, world.now_ms + HOUR_MS, every_ms=HOUR_MS, immediately=True)
    world.do(AddRepeating(AddJobs("q", []), [every]))
    return f"bull:q:repeat:k:{world.now_ms}"


def add_chain(world: World, **how: Any) -> str:
    """Add a job that repeats after each completion and is to come in a minute; return its id."""
    how = {"every_ms": HOUR_MS} | how
    return world.push("q", repeat=Repeat(**how), delay_ms=60_000, unique_key="chain")


def fire(world: World, name: str, due_ms: int) -> None:
    """Do as the leader does at a due time."""
    world.now_ms = max(world.now_ms, due_ms)
    world.do(FireCrons([CronFire(name, due_ms, due_ms + HOUR_MS)]))


def held(world: World) -> dict[str, int]:
    """Return the jobs that are to come, and when."""
    return {job_id: job.at_ms for job_id, job in world.machine.state.schedule.held.items()}


ADDS = {"repetition": add_repetition, "prioritized repetition": lambda world: add_repetition(world, priority=-3)}
ADDS |= {"cron": add_cron, "chain": add_chain}
EMPTIES = {
    "drain": lambda: DrainQueue("q", spare_repeating=True),
    "clean wait": lambda: CleanQueue("q", 0, "unlowered", 100, spare_repeating=True),
    "clean prioritized": lambda: CleanQueue("q", 0, "lowered", 100, spare_repeating=True),
    "clean delayed": lambda: CleanQueue("q", 0, "delayed", 100, spare_repeating=True),
    "thin": lambda: ThinQueue("q", 1 << 40, 100, spare_repeating=True),
}


@pytest.mark.parametrize("empty", EMPTIES)
@pytest.mark.parametrize("kind", ADDS)
def test_bullmqs_drain_and_clean_spare_the_pending_job_of_a_repetition(leveled: World, kind: str, empty: str) -> None:
    world = leveled
    others = [world.push("q"), world.push("q", priority=-3), world.push("q", delay_ms=90_000)]
    pending = ADDS[kind](world)
    others.append(world.push("q", lifo=True))
    state = world.job(pending).state
    world.do(EMPTIES[empty]())
    left = set(world.machine.state.queues["q"].jobs)
    if world.machine.state.level >= 1:
        assert pending in left and world.job(pending).state == state
    elif empty in ("drain", "thin"):
        assert left == set()
    if empty in ("drain", "thin"):
        assert left & set(others) == set()


def test_what_is_spared_keeps_its_place_and_is_not_counted(world: World) -> None:
    first, second = world.push("q"), add_repetition(world)
    assert world.do(DrainQueue("q", spare_repeating=True)).count == 1
    third = world.push("q")
    assert first not in world.machine.state.jobs
    assert world.pull_ids(count=9) == [second, third]


def test_a_job_of_a_repetition_that_ran_already_is_drained(world: World) -> None:
    """It is not the one that the repetition waits with."""
    world.do(AddJobs("q", []))
    pending = add_repetition(world, max_attempts=3, backoff=5000)
    (job,) = world.pull()
    runs.stall(world.machine.state, job, 5000)
    assert (job.id, job.state) == (pending, "delayed")
    assert world.do(DrainQueue("q", spare_repeating=True)).count == 1


@pytest.mark.parametrize(
    "empty",
    [
        DrainQueue("q"),
        CleanQueue("q", 0, None, 100),
        CleanQueue("q", 0, "waiting", 100),
        ThinQueue("q", 1 << 40, 100),
    ],
    ids=["drain", "clean", "clean waiting", "thin"],
)
@pytest.mark.parametrize("name", [CRON, REPETITION])
def test_bunqueues_drain_takes_all_and_a_cron_fires_at_its_next_time(leveled: World, name: str, empty: Any) -> None:
    world = leveled
    pending = add_cron(world) if name == CRON else add_repetition(world)
    world.do(empty)
    assert world.machine.state.queues["q"].jobs == {}
    fire(world, name, START_MS + HOUR_MS)
    (job,) = world.pull()
    assert job.id != pending


@pytest.mark.parametrize("drained_after_ms", [0, 60_000, 2 * HOUR_MS + 60_000])
@pytest.mark.parametrize("empty", [DrainQueue("q"), CleanQueue("q", 0, None, 100), ThinQueue("q", 1 << 40, 100)])
def test_a_job_that_repeats_and_is_drained_comes_at_its_next_time(
    leveled: World, empty: Any, drained_after_ms: int
) -> None:
    """Nothing of it is in the queue before."""
    world = leveled
    chain = add_chain(world, limit=5)
    due_ms = world.job(chain).run_at
    world.wait(drained_after_ms)
    world.do(empty)
    assert world.machine.state.queues["q"].jobs == {}
    if world.machine.state.level < 1:
        assert held(world) == {}
        return
    ((coming, at_ms),) = held(world).items()
    assert at_ms > max(due_ms, world.now_ms) and at_ms <= max(due_ms, world.now_ms) + HOUR_MS
    assert (at_ms - due_ms) % HOUR_MS == 0
    # Neither too early nor for another time.
    assert world.do(FollowJobs([(coming, at_ms)])).count == 0
    world.now_ms = at_ms
    assert world.do(FollowJobs([(coming, at_ms - 1), (coming, 0)])).count == 0
    world.machine = world.restored()
    assert world.do(FollowJobs([(coming, at_ms), (coming, at_ms)])).count == 1
    (job,) = world.pull()
    assert (job.run_at, job.unique_key, job.opts.repeat) == (at_ms, "chain", Repeat(every_ms=HOUR_MS, limit=5))
    world.do(AckJob(job.id))
    ((_, following),) = ((job.id, job) for job in world.machine.state.queues["q"].delayed)
    assert following.run_at == at_ms + HOUR_MS and held(world) == {}


@pytest.mark.parametrize("ttl_ms", [0, 90_000])
def test_a_job_that_repeats_and_is_not_taken_in_time_comes_at_its_next_time(leveled: World, ttl_ms: int) -> None:
    world = leveled
    chain = world.push("q", repeat=Repeat(every_ms=HOUR_MS), delay_ms=60_000, ttl_ms=ttl_ms)
    world.wait(90_000)
    assert chain not in world.machine.state.jobs
    if not ttl_ms or world.machine.state.level < 1:
        assert held(world) == {}
        return
    ((coming, at_ms),) = held(world).items()
    assert at_ms == START_MS + 60_000 + HOUR_MS
    for _ in range(2):
        world.now_ms = at_ms
        assert world.do(FollowJobs([(coming, at_ms)])).count == 1
        assert world.state_of(coming) == "waiting"
        world.wait(ttl_ms)
        # Its time to live began when it came.
        ((coming, at_ms),) = held(world).items()
    assert world.machine.state.queues["q"].jobs == {}


def test_a_job_that_repeats_by_a_pattern_and_is_drained_comes_when_the_leader_says(world: World) -> None:
    chain = add_chain(world, every_ms=None, pattern="0 * * * *")
    due_ms = world.job(chain).run_at
    world.do(DrainQueue("q"))
    ((coming, waiting),) = world.machine.state.schedule.held.items()
    assert (waiting.at_ms, waiting.job.after_ms) == (0, due_ms)
    world.machine = world.restored()
    at_ms = due_ms + 7
    assert world.do(FollowJobs([(coming, at_ms)])).count == 1
    assert (held(world), world.machine.state.jobs) == ({coming: at_ms}, {})
    world.now_ms = at_ms
    assert world.do(FollowJobs([(coming, at_ms)])).count == 1
    assert world.pull_ids() == [coming]


def test_a_pattern_that_has_no_next_time_ends_with_the_drain(world: World) -> None:
    add_chain(world, every_ms=None, pattern="0 0 1 1 *")
    world.do(DrainQueue("q"))
    (coming,) = held(world)
    assert world.do(FollowJobs([(coming, 0)])).count == 1
    assert (world.machine.state.schedule.untimed, held(world)) == ({}, {})


def test_a_held_job_whose_key_is_taken_comes_at_the_time_after(world: World) -> None:
    add_chain(world)
    world.do(DrainQueue("q"))
    holder = world.push("q", unique_key="chain")
    ((coming, at_ms),) = held(world).items()
    world.now_ms = at_ms
    assert world.do(FollowJobs([(coming, at_ms)])).count == 1
    assert held(world) == {coming: at_ms + HOUR_MS}
    assert list(world.machine.state.jobs) == [holder]


def test_nothing_of_an_obliterated_queue_is_left(leveled: World) -> None:
    """And nothing that would bring it back; what listens to a name or works on one is not the queue's."""
    world = leveled
    add_cron(world)
    add_repetition(world)
    world.do(AddCron("elsewhere", "other", job_spec("", b"1"), every_ms=HOUR_MS))
    chain = add_chain(world)
    world.do(DrainQueue("q"))
    world.push("q", repeat=Repeat(pattern="0 * * * *"))
    (job,) = world.pull()
    world.do(AddLog(job.id, "a line"))
    world.do(AckJob(job.id))
    world.push("q", unique_key="k", dedup=Dedup(ttl_ms=HOUR_MS))
    world.do(SetRateLimit("q", 5))
    world.do(SetConcurrency("q", 5))
    world.do(SetWindow("q", 5))
    world.do(SetGroupConcurrency("q", "g", 3))
    world.do(ObliterateQueue("q"))
    state = world.machine.state
    assert chain not in state.jobs and state.jobs == {} and state.logs.by_job == {} and list(state.throttles) == []
    assert "q" not in state.queues
    assert world.ask(GetQueueSettings("q")) == QueueSettings() and world.ask(GetKeyHolder("q", "k")) is None
    left = [cron.name for cron in world.ask(ListCrons())]
    if state.level < 1:
        assert left == [CRON, REPETITION, "elsewhere"]
        return
    assert left == ["elsewhere"] and world.ask(ListRepeating("q")) == []
    assert (state.schedule.following, held(world)) == ({}, {})
    assert world.machine.state.schedule.first_due == START_MS + HOUR_MS
    for name in (CRON, REPETITION):
        fire(world, name, START_MS + HOUR_MS)
    assert "q" not in state.queues
    assert world.event_names().count("cron:deleted") == 2


def test_a_cron_of_a_queue_that_is_not_there_goes_with_it(leveled: World) -> None:
    world = leveled
    world.do(AddCron(CRON, "q", job_spec("", b"1"), every_ms=HOUR_MS))
    assert "q" not in world.machine.state.queues
    world.do(ObliterateQueue("q"))
    assert bool(world.ask(ListCrons())) == (world.machine.state.level < 1)


def test_obliterating_under_way_does_not_let_repetitions_go_on(world: World) -> None:
    add_chain(world)
    assert world.do(ThinQueue("q", 1 << 40, 100, everything=True)).count == 1
    assert held(world) == {}
    world.do(PushJobs("q", [job_spec("after", b"1")]))

"""Crons and repeating jobs in the replicated state: each due time happens once, whatever is sent twice."""

from __future__ import annotations

from typing import Any

import pytest

from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operations.jobs import CancelJob
from quorumq.node.machine.operations.queues import ObliterateQueue, PauseQueue
from quorumq.node.machine.operations.runs import AckJob, FailJob
from quorumq.node.machine.operations.schedules import (
    AddCron,
    CronFire,
    CronSet,
    DeleteCron,
    FireCrons,
    FollowJobs,
    GetCron,
    ListCrons,
)
from quorumq.node.machine.operations.workers import RegisterWorker
from quorumq.node.machine.refusals import CronNotFound, TooManyCrons
from quorumq.node.machine.state import Options, Repeat, job_spec
from quorumq.node.machine.state.schedule import Cron
from tests.support.world import START_MS, World, encode

EVERY_MS = 1000


def add(world: World, name: str = "c", **more: Any) -> CronSet:
    options = more.pop("opts", {})
    given = {"every_ms": EVERY_MS} | more
    return world.do(AddCron(name, "q", job_spec("", b'{"n":1}', **options), **given))


def fire(world: World, due_ms: int, next_ms: int | None = None, name: str = "c", **more: Any) -> int:
    """Let a due time come, and send what the leader would; return how many fires counted."""
    world.now_ms = max(world.now_ms, due_ms)
    return world.do(
        FireCrons([CronFire(name, due_ms, due_ms + EVERY_MS if next_ms is None else next_ms, **more)])
    ).count


def cron(world: World, name: str = "c") -> Cron:
    return world.ask(GetCron(name))


def test_an_interval_starts_now_and_makes_jobs_with_what_was_given(world: World) -> None:
    made = add(world, opts={"priority": 3, "name": "named"})
    assert (made.created, made.cron.next_due, made.cron.executions) == (True, START_MS + EVERY_MS, 0)
    assert fire(world, START_MS + EVERY_MS) == 1
    job = world.pull()[0]
    assert (job.data, job.opts.priority, job.opts.name, job.unique_key) == (b'{"n":1}', 3, "named", "cron:c")
    assert (cron(world).executions, cron(world).next_due) == (1, START_MS + 2 * EVERY_MS)
    assert [name for name in world.event_names() if name.startswith("cron")] == ["cron:created", "cron:fired"]


def test_a_due_time_fires_once_however_often_it_is_sent(world: World) -> None:
    add(world, prevent_overlap=False)
    due = START_MS + EVERY_MS
    world.now_ms = due
    twice = FireCrons([CronFire("c", due, due + EVERY_MS), CronFire("c", due, due + EVERY_MS)])
    assert world.do(twice).count == 1
    assert world.do(twice).count == 0
    assert len(world.pull(count=10)) == 1


def test_a_due_time_worked_out_for_the_cron_before_it_was_changed_is_passed_over(world: World) -> None:
    """Both have the same next time, and differ in the one after it."""
    due, later = START_MS + EVERY_MS, START_MS + 60 * EVERY_MS
    before = add(world, every_ms=None, schedule="0 * * * *", next_due_ms=due).cron.set_by
    after = add(world, every_ms=None, schedule="* * * * * *", next_due_ms=due).cron.set_by
    assert fire(world, due, later, set_by=before) == 0
    assert (cron(world).next_due, world.pull()) == (due, [])
    assert fire(world, due, set_by=after) == 1
    assert cron(world).next_due == due + EVERY_MS


def test_a_due_time_of_a_leader_that_does_not_say_for_which_cron_is_taken(world: World) -> None:
    """One that runs the program of before."""
    due = add(world).cron.next_due
    assert fire(world, due, set_by=0) == 1


def test_a_due_time_that_the_log_has_not_reached_waits(world: World) -> None:
    add(world)
    assert world.do(FireCrons([CronFire("c", START_MS + EVERY_MS, START_MS + 2 * EVERY_MS)])).count == 0
    assert cron(world).next_due == START_MS + EVERY_MS


def test_several_due_times_in_one_entry(world: World) -> None:
    add(world, prevent_overlap=False)
    world.now_ms += 3 * EVERY_MS
    dues = [START_MS + i * EVERY_MS for i in range(1, 5)]
    assert world.do(FireCrons([CronFire("c", dues[i], dues[i + 1]) for i in range(3)])).count == 3
    assert len({job.id for job in world.pull(count=10)}) == 3


def test_jobs_do_not_pile_up_while_the_last_is_unfinished(world: World) -> None:
    add(world)
    for i in range(1, 4):
        fire(world, START_MS + i * EVERY_MS)
    assert (cron(world).executions, world.machine.state.schedule.runs(cron(world))) == (3, 1)
    jobs = world.pull(count=10)
    assert len(jobs) == 1
    assert world.event_names().count("cron:skipped") == 2
    world.do(AckJob(jobs[0].id))
    fire(world, START_MS + 4 * EVERY_MS)
    assert len(world.pull(count=10)) == 1


@pytest.mark.parametrize("ends", [lambda job: FailJob(job.id, unrecoverable=True), lambda job: CancelJob(job.id)])
def test_a_job_that_ends_badly_makes_room_for_the_next(world: World, ends: Any) -> None:
    add(world)
    fire(world, START_MS + EVERY_MS)
    world.do(ends(world.pull()[0]))
    fire(world, START_MS + 2 * EVERY_MS)
    assert len(world.pull()) == 1


def test_a_limit_removes_the_cron(world: World) -> None:
    add(world, max_limit=2, prevent_overlap=False)
    fire(world, START_MS + EVERY_MS)
    fire(world, START_MS + 2 * EVERY_MS)
    with pytest.raises(CronNotFound):
        cron(world)
    assert world.machine.state.schedule.first_due == 0
    assert len(world.pull(count=5)) == 2
    assert world.event_names()[-1] != "cron:fired"


def test_immediately_fires_at_once_too(world: World) -> None:
    add(world, immediately=True)
    assert len(world.pull()) == 1
    assert (cron(world).executions, cron(world).next_due) == (1, START_MS + EVERY_MS)
    add(world, "once", immediately=True, max_limit=1)
    with pytest.raises(CronNotFound):
        cron(world, "once")


def test_a_name_used_again_replaces_the_cron_and_starts_from_zero(world: World) -> None:
    add(world, "first")
    add(world, "second")
    fire(world, START_MS + EVERY_MS, name="first")
    changed = add(world, "first", every_ms=5000)
    assert (changed.created, changed.cron.executions, changed.cron.next_due) == (False, 0, world.now_ms + 5000)
    assert [item.name for item in world.ask(ListCrons())] == ["first", "second"]
    # What an old leader still sends for the old time does nothing.
    assert fire(world, START_MS + 2 * EVERY_MS, name="first") == 0
    assert "cron:updated" in world.event_names()


def test_a_schedule_carries_the_time_that_the_edge_worked_out(world: World) -> None:
    made = add(world, every_ms=None, schedule="0 2 * * *", next_due_ms=START_MS + 7000, timezone="UTC")
    assert (made.cron.next_due, made.cron.schedule) == (START_MS + 7000, "0 2 * * *")
    # Both given: the schedule wins.
    both = add(world, "both", schedule="0 2 * * *", next_due_ms=START_MS + 9000)
    assert both.cron.next_due == START_MS + 9000


def test_missed_times_are_fired_once_or_skipped_and_reported(world: World) -> None:
    add(world, prevent_overlap=False)
    add(world, "skips", on_missed="skip", prevent_overlap=False)
    hour = START_MS + 3_600_000
    world.now_ms = hour
    first = START_MS + EVERY_MS
    world.do(
        FireCrons([CronFire("c", first, hour + EVERY_MS, 3599), CronFire("skips", first, hour + EVERY_MS, 3600, False)])
    )
    assert len(world.pull(count=10)) == 1
    assert (cron(world).missed, cron(world, "skips").missed) == (3599, 3600)
    assert (cron(world).executions, cron(world, "skips").executions) == (1, 0)
    assert world.event_names().count("cron:missed") == 2


def test_a_cron_may_want_a_worker(world: World) -> None:
    add(world, needs_worker=True)
    fire(world, START_MS + EVERY_MS)
    assert world.pull() == []
    world.do(RegisterWorker("w", queues=("q",)))
    fire(world, START_MS + 2 * EVERY_MS)
    assert len(world.pull()) == 1


def test_a_cron_without_a_next_time_stays_and_fires_no_more(world: World) -> None:
    add(world)
    fire(world, START_MS + EVERY_MS, 0)
    assert cron(world).next_due == 0
    assert fire(world, 0) == 0


def test_deleting(world: World) -> None:
    add(world)
    world.do(DeleteCron("c"))
    with pytest.raises(CronNotFound):
        world.do(DeleteCron("c"))
    assert fire(world, START_MS + EVERY_MS) == 0
    assert world.pull() == []


def test_crons_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorumq.node.machine.operations.schedules.CRONS_MAX", 1)
    add(world)
    with pytest.raises(TooManyCrons):
        add(world, "another")
    assert not add(world).created


def test_crons_fire_into_a_paused_queue(world: World) -> None:
    add(world)
    world.do(PauseQueue("q"))
    fire(world, START_MS + EVERY_MS)
    assert len(world.machine.state.queues["q"].jobs) == 1


def test_a_restored_machine_fires_the_same_times(world: World) -> None:
    add(world)
    add(world, "b", every_ms=500)
    fire(world, START_MS + 500, START_MS + EVERY_MS, name="b")
    other: Machine = world.restored()
    assert [item.name for item in other.state.schedule.upcoming()] == ["b", "c"]
    due = START_MS + EVERY_MS
    batch = encode([FireCrons([CronFire("c", due, due + 1), CronFire("b", due, due + 2)])])
    for machine in (other, world.machine):
        machine.apply(machine.index + 1, due, [batch])
    assert other.full_digest() == world.machine.full_digest()


# -- Jobs that repeat by a pattern


def a_repeating_job(world: World, **more: Any) -> str:
    repeat = Repeat(pattern="* * * * * *", **more)
    return world.push(priority=2, repeat=repeat)


def test_a_repeating_job_is_followed_when_its_time_is_known(world: World) -> None:
    first = a_repeating_job(world, limit=1)
    world.pull()
    world.do(AckJob(first))
    follows = list(world.machine.state.schedule.following)
    assert len(follows) == 1 and world.pull() == []
    assert world.do(FollowJobs([(follows[0], START_MS + 700)])).count == 1
    job = world.job(follows[0])
    assert (job.state, job.run_at, job.opts.priority, job.opts.repeat) == (
        "delayed",
        START_MS + 700,
        2,
        Repeat(pattern="* * * * * *", limit=1, count=1),
    )
    # A second answer to the same question does nothing.
    assert world.do(FollowJobs([(follows[0], START_MS + 900)])).count == 0
    world.wait(700)
    world.do(AckJob(world.pull()[0].id))
    assert world.machine.state.schedule.following == {}


def test_a_pattern_that_never_fires_again_ends_the_repetition(world: World) -> None:
    first = a_repeating_job(world)
    world.pull()
    world.do(AckJob(first))
    follows = list(world.machine.state.schedule.following)
    assert world.do(FollowJobs([(follows[0], 0)])).count == 0
    assert world.machine.state.schedule.following == {}


def test_obliterating_a_queue_ends_its_repetitions(world: World) -> None:
    first = a_repeating_job(world)
    world.pull()
    world.do(AckJob(first))
    world.do(ObliterateQueue("q"))
    assert world.machine.state.schedule.following == {}


def test_what_is_to_follow_survives_an_image(world: World) -> None:
    first = a_repeating_job(world)
    world.pull()
    world.do(AckJob(first))
    other = world.restored()
    assert list(other.state.schedule.following) == list(world.machine.state.schedule.following)


def test_options_of_a_cron_are_shared_with_its_jobs(world: World) -> None:
    add(world, prevent_overlap=False, opts={"priority": 7})
    for i in range(1, 3):
        fire(world, START_MS + i * EVERY_MS)
    one, other = world.pull(count=2)
    assert one.opts is other.opts and one.opts == Options(priority=7)


def test_overlaps_that_are_skipped_use_up_no_limit(leveled: World) -> None:
    """Three runs are asked for, and the first is still under way at the next two due times."""
    world, fired = leveled, 0

    def next_time() -> list[str]:
        nonlocal fired
        fired += 1
        fire(world, START_MS + fired * EVERY_MS)
        return world.pull_ids(count=10)

    add(world, max_limit=3)
    (first,) = next_time()
    assert (next_time(), next_time()) == ([], [])
    ended = not world.ask(ListCrons())
    assert ended == (world.machine.state.level < 1)
    world.do(AckJob(first))
    if not ended:
        for _ in range(2):
            (job_id,) = next_time()
            world.do(AckJob(job_id))
        assert not world.ask(ListCrons())
    assert world.machine.state.queues["q"].counters.pushed == (1 if ended else 3)
    assert not world.machine.state.schedule.skipped


def test_a_cron_that_is_set_anew_has_skipped_nothing(world: World) -> None:
    add(world)
    for number in (1, 2):
        fire(world, START_MS + number * EVERY_MS)
    assert world.machine.state.schedule.skipped == {"c": 1}
    due = add(world, max_limit=1).cron.next_due
    (first,) = world.pull_ids(count=10)
    world.do(AckJob(first))
    fire(world, due)
    assert world.ask(ListCrons()) == []


def test_a_cron_that_moves_to_another_queue_is_told_to_both(world: World) -> None:
    """Whoever follows, or may see, the queue that it left hears that it is gone from there."""
    add(world)
    world.events.clear()
    world.do(AddCron("c", "other", job_spec("", b"1"), every_ms=EVERY_MS))
    gone, updated = world.events
    assert (gone.name, gone.about) == ("cron:deleted", ("q",))  # type: ignore[attr-defined]
    assert (updated.name, updated.queue) == ("cron:updated", "other")  # type: ignore[attr-defined]
    world.do(AddCron("c", "other", job_spec("", b"2"), every_ms=EVERY_MS))
    assert world.event_names() == ["cron:deleted", "cron:updated", "cron:updated"]
    before = World(level=0)
    add(before)
    before.do(AddCron("c", "other", job_spec("", b"1"), every_ms=EVERY_MS))
    assert before.event_names() == ["cron:created", "cron:updated"]

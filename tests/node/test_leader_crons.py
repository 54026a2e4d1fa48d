"""The leader's clockwork over a log: each due time once, over changes of leader, jumps of the clock and lost entries."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from quorumq.node.leader import crons
from quorumq.node.leader.crons import fires_of
from quorumq.node.leader.crontime import InvalidSchedule, next_due_ms
from quorumq.node.machine.operations.jobs import PushJobs
from quorumq.node.machine.operations.queues import DrainQueue
from quorumq.node.machine.operations.runs import AckJob
from quorumq.node.machine.operations.schedules import AddCron, CronFire, FireCrons, GetCron
from quorumq.node.machine.state import Repeat, job_spec
from quorumq.node.machine.state.schedule import Cron
from tests.node.conftest import Local
from tests.support.waiting import after_entries
from tests.support.world import START_MS

SECOND = 1000


async def add(local: Local, name: str = "c", **more: Any) -> Cron:
    options = {"prevent_overlap": False} | more
    made = await local.node.submit(AddCron(name, "q", job_spec("", b"1"), **options))
    return made.cron


def jobs(local: Local) -> int:
    queue = local.machine.state.queues.get("q")
    return 0 if queue is None else len(queue.jobs)


def wake(local: Local) -> None:
    """Have the clockwork look at the clock, as its timer would."""
    local.node.cron_duty.look()


async def test_a_cron_fires_by_itself(local: Local) -> None:
    await add(local, every_ms=30)
    local.now_ms += 30
    await after_entries(local.machine, lambda: jobs(local) == 1)
    assert local.machine.state.schedule.first_due == START_MS + 60


async def test_a_schedule_fires_on_the_second_and_goes_on(local: Local) -> None:
    due = next_due_ms("* * * * * *", None, START_MS)
    cron = await add(local, schedule="* * * * * *", next_due_ms=due)
    for i in range(3):
        local.now_ms = due + i * SECOND
        wake(local)
        await local.settle()
    assert (cron.executions, cron.next_due, jobs(local)) == (3, due + 3 * SECOND, 3)


async def test_late_times_fire_each_and_missed_ones_once(local: Local) -> None:
    cron = await add(local, every_ms=10 * SECOND)
    local.now_ms += 45 * SECOND
    wake(local)
    await local.settle()
    assert (jobs(local), cron.missed) == (4, 0)
    local.now_ms += 1000 * SECOND
    wake(local)
    await local.settle()
    # The last four: one stands for all that were missed, and the clock goes on from now.
    assert (jobs(local), cron.missed) == (5, 99)
    assert cron.next_due == START_MS + 1050 * SECOND


async def test_missed_times_are_skipped_when_the_cron_says_so(local: Local) -> None:
    cron = await add(local, every_ms=10 * SECOND, on_missed="skip")
    local.now_ms += 1000 * SECOND
    wake(local)
    await local.settle()
    assert (jobs(local), cron.missed, cron.next_due) == (0, 100, START_MS + 1010 * SECOND)


async def test_a_new_leader_goes_on_where_the_old_one_stopped(local: Local) -> None:
    cron = await add(local, every_ms=10 * SECOND)
    local.engine.become_leader(False)
    local.now_ms += 25 * SECOND
    wake(local)
    await local.settle()
    assert jobs(local) == 0
    local.engine.become_leader(True)
    await local.settle()
    assert (jobs(local), cron.executions, cron.next_due) == (2, 2, START_MS + 30 * SECOND)


async def test_two_leaders_fire_a_time_once(local: Local) -> None:
    await add(local, every_ms=10 * SECOND)
    local.now_ms += 10 * SECOND
    due = START_MS + 10 * SECOND
    # What a leader sends that does not know yet that it is none.
    other = local.node.submit(FireCrons([CronFire("c", due, due + 10 * SECOND)]))
    task = asyncio.get_running_loop().create_task(other)
    wake(local)
    await task
    await local.settle()
    assert jobs(local) == 1


async def test_a_clock_that_jumps_back_fires_nothing_twice(local: Local) -> None:
    cron = await add(local, every_ms=10 * SECOND)
    local.now_ms += 10 * SECOND
    wake(local)
    await local.settle()
    local.now_ms -= 3600 * SECOND
    wake(local)
    await local.settle()
    assert (jobs(local), cron.next_due) == (1, START_MS + 20 * SECOND)
    local.now_ms = START_MS + 20 * SECOND
    wake(local)
    await local.settle()
    assert jobs(local) == 2


async def test_a_log_whose_clock_is_behind_is_not_flooded(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    # Long enough that it is not over while this test looks.
    monkeypatch.setattr(crons, "BEHIND_S", 0.5)
    cron = await add(local, every_ms=10 * SECOND)
    behind = local.now_ms
    local.engine.clock = lambda: behind
    local.now_ms += 10 * SECOND
    entries = len(local.engine.entries)
    wake(local)
    await local.settle()
    assert (jobs(local), len(local.engine.entries) - entries) == (0, 1)
    local.engine.clock = lambda: local.now_ms
    await after_entries(local.machine, lambda: cron.executions == 1)


async def test_without_a_quorum_it_is_tried_again(local: Local) -> None:
    await add(local, every_ms=10 * SECOND)
    local.engine.available = False
    local.now_ms += 10 * SECOND
    wake(local)
    await local.settle()
    local.engine.available = True
    await after_entries(local.machine, lambda: jobs(local) == 1)


async def test_a_cron_that_cannot_be_worked_out_holds_up_no_other(
    local: Local, caplog: pytest.LogCaptureFixture
) -> None:
    await add(local, "broken", schedule="nonsense", next_due_ms=START_MS + SECOND)
    await add(local, "sound", every_ms=2 * SECOND)
    local.now_ms += 2 * SECOND
    wake(local)
    await local.settle()
    assert jobs(local) == 1
    assert "'broken' cannot be worked out" in caplog.text
    assert (await local.node.ask(GetCron("broken"))).next_due == START_MS + SECOND


async def test_a_leader_that_is_one_again_tries_anew_what_it_could_not_work_out(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: Any) -> int:
        raise InvalidSchedule("not known here yet")

    cron = await add(local, schedule="* * * * * *", next_due_ms=START_MS + SECOND)
    local.now_ms += SECOND
    with monkeypatch.context() as patched:
        patched.setattr(crons, "next_due_ms", unknown)
        wake(local)
        await local.settle()
    assert cron.executions == 0
    for leads in (False, True):
        local.engine.become_leader(leads)
    await local.settle()
    assert cron.executions == 1


async def test_an_edge_whose_clock_is_behind_makes_nothing_fire_early(local: Local) -> None:
    cron = await add(local, schedule="* * * * * *", next_due_ms=START_MS - 5 * SECOND)
    await local.settle()
    assert (jobs(local), cron.next_due) == (0, START_MS + SECOND)


async def test_a_job_that_repeats_by_a_pattern_is_followed(local: Local) -> None:
    first = await local.push(repeat=Repeat(pattern="0 2 * * *", tz="America/New_York"))
    await local.pull()
    await local.node.submit(AckJob(first))
    await after_entries(local.machine, lambda: not local.machine.state.schedule.following)
    delayed = local.machine.state.queues["q"].delayed.first()
    assert delayed is not None
    assert delayed.run_at == next_due_ms("0 2 * * *", "America/New_York", START_MS)


async def test_a_pattern_that_cannot_be_worked_out_ends_it(local: Local) -> None:
    first = await local.push(repeat=Repeat(pattern="nonsense"))
    await local.pull()
    await local.node.submit(AckJob(first))
    await after_entries(local.machine, lambda: not local.machine.state.schedule.following)
    assert jobs(local) == 1


async def test_many_due_times_take_several_entries(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crons, "FIRES_MAX", 10)
    cron = await add(local, every_ms=SECOND)
    local.now_ms += 25 * SECOND
    entries = len(local.engine.entries)
    wake(local)
    await after_entries(local.machine, lambda: jobs(local) == 25)
    assert (cron.executions, len(local.engine.entries) - entries) == (25, 3)


def test_due_times_of_a_cron_are_worked_out_in_order() -> None:
    cron = Cron("c", "q", job_spec("", b"1"), None, 1000, None, 5000, 4000)
    assert list(fires_of(cron, 7500, 9)) == [
        CronFire("c", 5000, 6000),
        CronFire("c", 6000, 7000),
        CronFire("c", 7000, 8000),
    ]
    assert list(fires_of(cron, 7500, 1)) == [CronFire("c", 5000, 6000)]
    assert list(fires_of(cron, 4999, 9)) == []
    cron.schedule = "* * * * *"
    cron.next_due = 60_000
    assert list(fires_of(cron, 400_000, 9)) == [CronFire("c", 60_000, 420_000, 5)]


@pytest.mark.parametrize(
    ("set_at", "now_ms"), [(4000, 5000), (6000, 7000), (4000, 90_000)], ids=["due", "set later", "missed"]
)
def test_a_due_time_names_the_setting_that_it_is_of(set_at: int, now_ms: int) -> None:
    cron = Cron("c", "q", job_spec("", b"1"), None, 1000, None, 5000, set_at, set_by=7)
    assert {fire.set_by for fire in fires_of(cron, now_ms, 9)} == {7}


def test_a_time_that_passed_while_a_repetition_was_added_fires() -> None:
    """Its job's id was in the answer."""
    cron = Cron("c", "q", job_spec("", b"1"), None, 1000, None, 5000, 5003)
    assert list(fires_of(cron, 5100, 9)) == [CronFire("c", 5000, 6000, push=False)]
    cron.key = "k"
    assert list(fires_of(cron, 5100, 9)) == [CronFire("c", 5000, 6000)]


@pytest.mark.parametrize("how", [{"every_ms": 10 * SECOND}, {"pattern": "*/10 * * * * *"}], ids=["every", "pattern"])
async def test_a_job_that_repeats_and_was_drained_comes_at_its_next_time(local: Local, how: Any) -> None:
    await local.node.submit(PushJobs("q", [job_spec("first", b"1", repeat=Repeat(**how), delay_ms=10 * SECOND)]))
    await local.node.submit(DrainQueue("q"))
    await local.settle()
    schedule = local.machine.state.schedule
    assert (jobs(local), schedule.first_due) == (0, START_MS + 20 * SECOND)
    entries = len(local.engine.entries)
    await local.node.submit(DrainQueue("q"))
    await local.settle()
    assert len(local.engine.entries) == entries + 1
    for at_ms, there in ((START_MS + 20 * SECOND - 1, 0), (START_MS + 20 * SECOND, 1)):
        local.now_ms = at_ms
        wake(local)
        await local.settle()
        assert jobs(local) == there
    assert (schedule.first_due, schedule.held) == (0, {})
    (job_id,) = await local.pull()
    await local.node.submit(AckJob(job_id))
    await local.settle()
    (following,) = local.machine.state.queues["q"].delayed
    assert following.run_at == START_MS + 30 * SECOND

"""The leader's pulse: it beats when something is due, and only then."""

from __future__ import annotations

import asyncio

import pytest

from quorumq.node.leader import clock
from quorumq.node.machine.operations.jobs import RemoveJob
from quorumq.node.machine.operations.runs import HeartbeatJob
from tests.node.conftest import Local
from tests.support.waiting import after_entries


async def moved(local: Local, job_id: str, state: str) -> None:
    """Return when a job is in a state, as the entries bring it there."""
    await after_entries(local.machine, lambda: local.state_of(job_id) == state)


async def test_a_delayed_job_becomes_ready_by_itself(local: Local) -> None:
    job_id = await local.push(delay_ms=30)
    assert local.node.clock_duty.beats == 0
    local.now_ms += 30
    await moved(local, job_id, "waiting")
    assert local.node.clock_duty.beats == 1


async def test_what_is_due_before_all_else_is_not_slept_past(local: Local) -> None:
    """Also where it comes while the pulse already sleeps until something later, or what it sleeps for goes."""
    late = await local.push(delay_ms=3_600_000)
    for delay_ms in (1_000, 30):
        soon = await local.push(delay_ms=delay_ms)
        local.now_ms += delay_ms
        # By itself: nothing else is asked of the node, which would make it look.
        await moved(local, soon, "waiting")
        assert local.state_of(late) == "delayed"
    await local.node.submit(RemoveJob(late))
    assert local.node.clock_duty._timer is None


async def test_nothing_due_nothing_beats(local: Local) -> None:
    await local.push()
    await local.pull()
    await local.settle()
    assert local.node.clock_duty.beats == 0
    assert len(local.engine.entries) == 2


async def test_an_alarm_that_moved_costs_no_entry(local: Local) -> None:
    job_id = await local.push()
    await local.pull()
    local.now_ms += 20_000
    await local.node.submit(HeartbeatJob(job_id))
    local.now_ms += 20_000
    await local.push()
    await local.settle()
    assert local.node.clock_duty.beats == 0
    assert local.state_of(job_id) == "active"


async def test_a_follower_does_not_beat(local: Local) -> None:
    local.engine.become_leader(False)
    job_id = await local.push(delay_ms=5)
    local.now_ms += 10
    await local.settle()
    assert (local.node.clock_duty.beats, local.state_of(job_id)) == (0, "delayed")
    local.engine.become_leader(True)
    await moved(local, job_id, "waiting")
    assert local.node.clock_duty.beats == 1


async def test_a_pull_finds_a_job_that_is_due_before_any_beat(local: Local) -> None:
    local.engine.become_leader(False)
    job_id = await local.push(delay_ms=5)
    assert await local.pull() == []
    local.now_ms += 5
    assert await local.pull() == [job_id]
    assert local.node.clock_duty.beats == 0


async def test_much_due_work_takes_several_beats(local: Local) -> None:
    for _ in range(50):
        await asyncio.gather(*(local.push(delay_ms=10) for _ in range(100)))
    local.now_ms += 10
    await moved(local, "job-5000", "waiting")
    assert local.node.clock_duty.beats == 3


async def test_a_beat_without_a_quorum_is_tried_again(local: Local) -> None:
    job_id = await local.push(delay_ms=20)
    local.engine.available = False
    local.now_ms += 20
    while local.node.clock_duty.beats == 0:
        await asyncio.sleep(0.001)
    await local.settle()
    local.engine.available = True
    await moved(local, job_id, "waiting")
    assert local.node.clock_duty.beats >= 2


async def test_a_log_whose_clock_is_behind_is_not_flooded(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    # Long enough that it is not over while this test looks.
    monkeypatch.setattr(clock, "BEHIND_S", 0.5)
    now_ms = local.now_ms
    job_id = await local.push(delay_ms=20)
    local.engine.clock = lambda: now_ms
    local.now_ms += 60_000
    while local.node.clock_duty.beats < 2:
        await asyncio.sleep(0.001)
    await local.settle()
    assert (local.node.clock_duty.beats, local.state_of(job_id)) == (2, "delayed")
    local.engine.clock = lambda: local.now_ms
    await moved(local, job_id, "waiting")


async def test_a_stopped_node_beats_no_more(local: Local) -> None:
    job_id = await local.push(delay_ms=20)
    await local.node.stop()
    local.now_ms += 20
    await local.settle()
    assert (local.node.clock_duty.beats, local.state_of(job_id)) == (0, "delayed")

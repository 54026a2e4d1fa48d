"""Dead letters by why and when they came: listed, and retried."""

from __future__ import annotations

import pytest

from quorumq.node.machine import events as happened
from quorumq.node.machine.operations.dlq import ListDlq, RetryDlq
from quorumq.node.machine.operations.dlq_filter import DlqFilter
from quorumq.node.machine.operations.jobs import DiscardJob
from quorumq.node.machine.operations.runs import FailJob
from quorumq.node.machine.operations.settings import SetDlqConfig
from tests.support.world import START_MS, World


@pytest.fixture
def dead(world: World) -> list[str]:
    """Five dead letters, a second apart: the second was discarded, the fourth failed for good at once."""
    found = []
    for number in range(5):
        job = world.push("q", f"j{number}", max_attempts=1)
        if number == 1:
            world.do(DiscardJob(job))
        else:
            world.pull()
            world.do(FailJob(job, unrecoverable=number == 3))
        found.append(job)
        world.now_ms += 1000
    return found


def listed(world: World, chosen: DlqFilter, **more: int) -> list[str]:
    return [job.id for job in world.ask(ListDlq("q", filter=chosen, **more)).jobs]


CASES = {
    "no condition": (DlqFilter(), "01234"),
    "by reason": (DlqFilter("max_attempts_exceeded"), "024"),
    "discarded": (DlqFilter("unknown"), "1"),
    "failed for good": (DlqFilter("explicit_fail"), "3"),
    "a reason that nobody has": (DlqFilter("worker_lost"), ""),
    "until": (DlqFilter(until_ms=START_MS + 2000), "012"),
    "since": (DlqFilter(since_ms=START_MS + 2000), "234"),
    "between": (DlqFilter(since_ms=START_MS + 1000, until_ms=START_MS + 3000), "123"),
    "all together": (DlqFilter("max_attempts_exceeded", START_MS + 3999, START_MS + 1), "2"),
    "passed over": (DlqFilter("max_attempts_exceeded", offset=1), "24"),
    "passed over, all": (DlqFilter(offset=9), ""),
    "too old": (DlqFilter(expired=True), ""),
    "to be retried": (DlqFilter(retriable=True), ""),
}


@pytest.mark.parametrize(("chosen", "wanted"), CASES.values(), ids=CASES)
def test_the_same_are_listed_and_retried(chosen: DlqFilter, wanted: str, dead: list[str], world: World) -> None:
    ids = [f"j{number}" for number in wanted]
    assert listed(world, chosen) == ids
    page = world.ask(ListDlq("q", 1, 1, chosen))
    assert ([job.id for job in page.jobs], page.total) == (ids[1:2], len(ids))
    world.event_names()
    assert world.do(RetryDlq("q", filter=chosen)).count == len(ids)
    assert happened.DlqRetriedAll("q", len(ids)) in world.events
    assert [job for job in dead if world.state_of(job) == "waiting"] == ids


def test_a_count_bounds_it_and_parts_add_up(dead: list[str], world: World) -> None:
    chosen = DlqFilter("max_attempts_exceeded")
    assert world.do(RetryDlq("q", None, 0, filter=chosen)).count == 0
    assert world.do(RetryDlq("q", None, 1, part=True, filter=chosen)).count == 1
    assert world.do(RetryDlq("q", None, 1, 1, filter=chosen)).count == 2
    assert [job for job in dead if world.state_of(job) == "failed"] == ["j1", "j3", "j4"]
    assert world.do(RetryDlq("none", filter=chosen)).count == 0


def test_those_whose_retry_is_due(world: World) -> None:
    world.do(SetDlqConfig("q", auto_retry=True, auto_retry_interval_ms=500, max_auto_retries=1))
    job = world.push(max_attempts=1)
    world.pull()
    world.do(FailJob(job))
    # Due by the clock of the question, and dealt with by the next entry.
    world.machine.state.now_ms += 500
    assert listed(world, DlqFilter(retriable=True)) == [job]
    world.machine.state.now_ms -= 1
    assert listed(world, DlqFilter(retriable=True)) == []


def test_those_that_are_too_old(dead: list[str], world: World) -> None:
    world.do(SetDlqConfig("q", max_age_ms=60_000))
    world.machine.state.now_ms = START_MS + 61_000
    assert listed(world, DlqFilter(expired=True)) == ["j0", "j1"]

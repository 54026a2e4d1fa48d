"""Questions about queues: lists, pages, counts, sums."""

from typing import Any

import pytest

from quorumq.node.machine.operations import groups, queues, settings
from quorumq.node.machine.operations.dlq import ListDlq
from quorumq.node.machine.operations.queue_reads import (
    IsPaused,
    ListJobs,
    ListQueues,
    PriorityCounts,
    QueueCounts,
    Totals,
)
from quorumq.node.machine.operations.queues import ObliterateQueue, PauseQueue, ResumeQueue
from quorumq.node.machine.operations.runs import AckJob, FailJob
from tests.support.world import World


def test_questions_about_an_unknown_queue(world: World) -> None:
    counts = world.ask(QueueCounts("never"))
    assert (counts.waiting, counts.active, counts.completed, counts.paused) == (0, 0, 0, False)
    assert world.count("never") == 0
    assert world.ask(PriorityCounts("never")) == {}
    assert world.ask(ListJobs("never")) == []
    assert world.ask(ListDlq("never")).jobs == []
    assert world.ask(IsPaused("never")) is False
    assert world.ask(ListQueues()) == []


def test_queues_are_listed_in_order_of_creation(world: World) -> None:
    for name in ("b", "a", "c"):
        world.push(name)
    world.do(PauseQueue("never-pushed"))
    assert world.ask(ListQueues()) == ["b", "a", "c"]
    assert world.ask(IsPaused("never-pushed")) is True
    world.push("never-pushed")
    assert world.ask(ListQueues()) == ["b", "a", "c", "never-pushed"]
    world.do(ResumeQueue("never-pushed"))
    assert world.ask(IsPaused("never-pushed")) is False


def test_counts_by_state(world: World) -> None:
    for state in ("completed", "failed", "active", "waiting-children", "delayed"):
        world.a_job(state)
    world.push(priority=3)
    world.push()
    counts = world.ask(QueueCounts("q"))
    assert (counts.waiting, counts.prioritized, counts.active, counts.waiting_children) == (2, 1, 1, 1)
    assert (counts.delayed, counts.completed, counts.failed) == (2, 1, 1)
    # The documented count is over all states.
    assert world.count("q") == 8
    assert world.ask(PriorityCounts("q")) == {0: 3, 3: 1}
    totals = world.ask(Totals())
    assert (totals.queues, totals.counts.waiting, totals.counts.failed) == (1, 2, 1)
    assert (totals.pushed, totals.pulled, totals.completed, totals.failed) == (8, 3, 1, 1)


def test_lists_are_in_order_of_priority_over_all_states(world: World) -> None:
    low = world.push(priority=-1)
    active = world.push(priority=9)
    world.pull()
    normal, delayed = world.push(), world.push(delay_ms=1000, priority=5)
    assert [job.id for job in world.ask(ListJobs("q"))] == [active, delayed, normal, low]
    assert [job.id for job in world.ask(ListJobs("q", limit=2, offset=1))] == [delayed, normal]


@pytest.mark.parametrize(
    ("state", "limit", "offset", "found"),
    [
        ("waiting", None, 0, [0, 1, 2, 3]),
        ("waiting", 2, 1, [1, 2]),
        ("waiting", 0, 0, []),
        ("waiting", None, 3, [3]),
        ("waiting", 5, 9, []),
        ("waiting", None, -3, [0, 1, 2, 3]),
        ("paused", None, 0, []),
        ("zzz", None, 0, []),
        (None, 3, 0, [0, 1, 2]),
    ],
)
def test_pages(world: World, state: str | None, limit: int | None, offset: int, found: list[int]) -> None:
    ids = [world.push() for _ in range(4)]
    page = world.ask(ListJobs("q", state, limit, offset))
    assert [job.id for job in page] == [ids[i] for i in found]


@pytest.mark.parametrize("state", ["delayed", "active", "waiting-children", "completed", "failed"])
def test_lists_by_state(world: World, state: str) -> None:
    jobs = [world.a_job(state) for _ in range(3)]
    found = world.ask(ListJobs("q", state))
    # The jobs that those in waiting-children wait for are delayed.
    assert [job for job in found if job in jobs] == jobs
    assert world.ask(ListJobs("q", state, 1, 1))[0] == found[1]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (None, ["high", "low", "g1", "g2", "late", "later", "a0", "a1", "wc", "done", "dead"]),
        ("delayed", ["late", "later"]),
        ("active", ["a0", "a1"]),
        ("waiting-children", ["wc"]),
        (("waiting", "delayed"), ["high", "low", "g1", "g2", "late", "later"]),
        (("prioritized", "delayed", "failed"), ["high", "late", "later", "dead"]),
        (("paused", "delayed"), ["late", "later"]),
    ],
)
def test_very_many_are_listed_as_they_stand(
    world: World, monkeypatch: pytest.MonkeyPatch, state: Any, expected: list[str]
) -> None:
    """Not sorted, and each of them on one page."""
    for job_id, ending in (("done", AckJob("done")), ("dead", FailJob("dead"))):
        world.push("q", job_id, max_attempts=1)
        world.pull()
        world.do(ending)
    for job_id in ("a0", "a1"):
        world.push("q", job_id)
    world.pull(count=2)
    world.push("q", "later", delay_ms=2000, priority=9)
    world.push("q", "late", delay_ms=1000)
    world.push("q", "wc", depends_on=("late",))
    for job_id, more in (("low", {}), ("g1", {"group_id": "g"}), ("g2", {"group_id": "g"}), ("high", {"priority": 5})):
        world.push("q", job_id, **more)
    monkeypatch.setattr("quorumq.node.machine.operations.queue_reads.SORTED_MAX", 0)
    assert [job.id for job in world.ask(ListJobs("q", state))] == expected
    for size in (1, 2, 3, 20):
        pages = [world.ask(ListJobs("q", state, size, at)) for at in range(0, len(expected) + size, size)]
        assert [job.id for page in pages for job in page] == expected
        assert max(map(len, pages)) <= size
    world.do(PauseQueue("q"))
    if isinstance(state, tuple) and "paused" in state:
        assert [job.id for job in world.ask(ListJobs("q", state))] == ["high", "low", "g1", "g2", *expected]


def test_a_paused_queue_lists_its_waiting_jobs_as_paused(world: World) -> None:
    job_id = world.push()
    world.do(PauseQueue("q"))
    assert [job.id for job in world.ask(ListJobs("q", "paused"))] == [job_id]


def test_waiting_lists_include_those_parked_behind_their_group(world: World) -> None:
    ids = [world.push(group_id="g") for _ in range(3)] + [world.push()]
    assert [job.id for job in world.ask(ListJobs("q", "waiting"))] == ids
    world.pull()
    assert [job.id for job in world.ask(ListJobs("q", "waiting"))] == ids[1:]


def test_pages_of_the_dead_letter_queue(world: World) -> None:
    jobs = [world.a_job("failed") for _ in range(3)]
    page = world.ask(ListDlq("q", 1, 1))
    assert (page.jobs, page.total, page.max_age_ms) == ([jobs[1]], 3, 604_800_000)
    assert world.ask(ListDlq("q", 0)).jobs == []


def test_a_finished_queue_keeps_its_name(world: World) -> None:
    job = world.a_job("active", remove_on_complete=True)
    world.do(AckJob(job.id))
    assert world.ask(ListQueues()) == ["q"]


def test_totals_never_go_back(world: World) -> None:
    world.a_job("completed")
    world.a_job("failed")
    world.a_job("waiting")
    before = world.ask(Totals())
    world.do(ObliterateQueue("q"))
    for state in (world.machine.state, world.restored().state):
        found = Totals().answer(state)
        assert (found.pushed, found.pulled, found.completed, found.failed) == (3, 2, 1, 1)
        assert (found.pushed, found.pulled) == (before.pushed, before.pulled)
        assert (found.queues, found.counts.completed) == (0, 0)
    world.push()
    assert world.ask(Totals()).pushed == 4


def test_a_queue_is_created_by_its_first_job(world: World) -> None:
    """One that was only paused, limited or configured is in no list of queues, and nobody is told of it."""
    for operation in (
        queues.PauseQueue("q"),
        settings.SetRateLimit("q", 5),
        settings.SetConcurrency("q", 5),
        settings.SetStallConfig("q", True, 1000, 2, 500),
        groups.SetGroupConcurrency("q", "g", 3),
    ):
        world.do(operation)
    assert "queue:created" not in world.event_names()
    world.push("q")
    assert world.event_names() == ["queue:created", "job:pushed"]
    world.push("q")
    world.add("b")
    assert world.event_names() == ["job:pushed", "queue:created", "job:pushed"]
    world.do(queues.ObliterateQueue("q"))
    world.event_names()
    world.push("q")
    assert world.event_names() == ["queue:created", "job:pushed"]


def test_below_level_1_whatever_makes_a_queue_creates_it() -> None:
    world = World(level=0)
    world.do(queues.PauseQueue("q"))
    assert world.event_names() == ["queue:created", "queue:paused"]
    world.push("q")
    assert world.event_names() == ["job:pushed"]

"""Questions about queues: lists, pages, counts, sums."""

import pytest

from node.operations.jobs import AckJob
from node.operations.queues import (
    IsPaused,
    ListDlq,
    ListJobs,
    ListQueues,
    ObliterateQueue,
    PauseQueue,
    PriorityCounts,
    QueueCount,
    QueueCounts,
    ResumeQueue,
    Totals,
)
from tests.support.world import World


def test_questions_about_an_unknown_queue(world: World) -> None:
    counts = world.ask(QueueCounts("never"))
    assert (counts.waiting, counts.active, counts.completed, counts.paused) == (0, 0, 0, False)
    assert world.ask(QueueCount("never")) == 0
    assert world.ask(PriorityCounts("never")) == {}
    assert world.ask(ListJobs("never")) == []
    assert world.ask(ListDlq("never")).jobs == []
    assert world.ask(IsPaused("never")) is False
    assert world.ask(ListQueues()) == []


def test_queues_are_listed_in_order_of_creation(world: World) -> None:
    for name in ("b", "a", "c"):
        world.push(name)
    world.do(PauseQueue("never-pushed"))
    assert world.ask(ListQueues()) == ["b", "a", "c", "never-pushed"]
    assert world.ask(IsPaused("never-pushed")) is True
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
    assert world.ask(QueueCount("q")) == 8
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

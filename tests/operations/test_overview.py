"""Queues in numbers, limits and their ends, unique keys that are given back, single dead letters removed."""

from __future__ import annotations

from quorumq.node.machine.operations.dlq import RemoveDeadJob
from quorumq.node.machine.operations.keys import FreeKey, FreeKeyOfJob, GetKeyHolder
from quorumq.node.machine.operations.overview import GetLimits, GetPortrait, ListBlocked, ListBriefs
from quorumq.node.machine.operations.queues import PauseQueue
from quorumq.node.machine.operations.runs import FailJob
from quorumq.node.machine.operations.settings import SetConcurrency, SetRateLimit, SetWindow
from quorumq.node.machine.operations.streams import Load, QueueLoads
from quorumq.node.machine.refusals import JobNotFound
from quorumq.node.machine.state import RateLimit
from tests.support.world import World


def test_queues_in_numbers(world: World) -> None:
    world.a_job("waiting", "a")
    world.a_job("delayed", "b")
    world.a_job("failed", "b")
    world.do(PauseQueue("a"))
    page = world.ask(ListBriefs(10))
    assert [(one.name, one.counts.waiting, one.counts.delayed, one.counts.failed) for one in page.queues] == [
        ("a", 1, 0, 0),
        ("b", 0, 1, 1),
    ]
    assert page.total == 2 and page.queues[0].counts.paused
    assert [one.name for one in world.ask(ListBriefs(1, 1)).queues] == ["b"]
    assert world.ask(ListBriefs(0)).queues == [] and world.ask(ListBriefs(-1, -1)).total == 2
    portrait = world.ask(GetPortrait("b"))
    assert (portrait.counts.delayed, portrait.counters.failed) == (1, 1)
    assert world.ask(GetPortrait("none")).counters.pushed == 0
    assert world.ask(QueueLoads(10)) == [Load("a", 1, 0, 1), Load("b", 1, 0, 4)]


def test_queues_that_limits_of_none_hold_back_are_found(world: World) -> None:
    """By which limit, and not by one that is over, is used up, or lets one job start."""
    world.do(SetRateLimit("rate", 0))
    world.do(SetRateLimit("over", 0, ttl_ms=100))
    world.do(SetRateLimit("used up", 1))
    world.do(SetConcurrency("both", 0))
    world.do(SetWindow("both", 0))
    world.a_job("active", "used up")
    world.wait(100)
    page = world.ask(ListBlocked(10))
    assert {one.name: one.blocked_by for one in page.queues} == {
        "rate": ("rateLimit",),
        "both": ("concurrency", "globalRateLimit"),
    }
    assert (page.total, len(world.ask(ListBlocked(1)).queues)) == (2, 1)
    assert world.ask(GetLimits("both")).blocked_by == ("concurrency", "globalRateLimit")
    assert world.ask(GetPortrait("rate")).blocked_by == ("rateLimit",)


def test_a_rate_limit_ends_with_its_time(world: World) -> None:
    world.do(SetRateLimit("q", 1, 1000, ttl_ms=300))
    jobs = [world.push() for _ in range(4)]
    assert world.pull_ids("q", 4) == jobs[:1]
    limits = world.ask(GetLimits("q"))
    assert limits.settings.rate == RateLimit(1, 1000, world.now_ms + 300)
    assert (limits.rate_ends_in_ms, limits.maxed) == (300, True)
    queue = world.machine.state.queues["q"]
    # The next token would come later than the end.
    assert queue.next_token_ms(world.now_ms) == world.now_ms + 300
    world.wait(299)
    assert world.pull_ids("q", 4) == []
    world.wait(1)
    assert queue.next_token_ms(world.now_ms) == world.now_ms
    ended = world.ask(GetLimits("q"))
    assert (ended.settings.rate, ended.rate_ends_in_ms, ended.maxed) == (None, None, False)
    assert world.pull_ids("q", 4) == jobs[1:]


def test_a_limit_of_nothing_ends_too(world: World) -> None:
    world.do(SetRateLimit("q", 0, ttl_ms=50))
    job = world.push()
    queue = world.machine.state.queues["q"]
    assert queue.next_token_ms(world.now_ms) == world.now_ms + 50
    assert world.pull_ids() == []
    world.wait(50)
    assert world.pull_ids() == [job]


def test_what_holds_a_queue_back(world: World) -> None:
    assert world.ask(GetLimits("none")).maxed is False
    world.do(SetConcurrency("q", 1))
    world.push()
    assert world.ask(GetLimits("q")).maxed is False
    world.pull()
    assert world.ask(GetLimits("q")).maxed is True
    world.do(SetRateLimit("r", 5))
    assert world.ask(GetLimits("r", world.now_ms + 1)).rate_ends_in_ms is None


def test_a_unique_key_is_given_back(world: World) -> None:
    first = world.push(unique_key="k")
    assert world.ask(GetKeyHolder("q", "k")) == first
    assert world.push(unique_key="k") == first
    assert world.do(FreeKey("q", "k")).count == 1
    assert world.ask(GetKeyHolder("q", "k")) is None
    assert world.do(FreeKey("q", "k")).count == world.do(FreeKey("none", "k")).count == 0
    second = world.push(unique_key="k")
    assert second != first
    assert world.do(FreeKeyOfJob(first)).count == 0
    assert world.do(FreeKeyOfJob(second)).count == 1
    assert world.do(FreeKeyOfJob("none")).count == 0
    # The jobs themselves go on.
    assert world.pull_ids("q", 2) == [first, second]


def test_the_key_of_an_unknown_job_is_refused_to_whoever_asks_for_a_known_one(leveled: World) -> None:
    (outcome,) = leveled.apply(FreeKeyOfJob("nope", known=True))
    assert isinstance(outcome, JobNotFound) == (leveled.machine.state.level >= 1)


def test_one_dead_letter_is_removed(world: World) -> None:
    job, kept = world.a_job("failed"), world.a_job("failed")
    assert world.do(RemoveDeadJob("q", job.id)).count == 1
    assert world.do(RemoveDeadJob("q", job.id)).count == world.do(RemoveDeadJob("none", kept.id)).count == 0
    assert world.state_of(job.id) == "unknown" and world.state_of(kept.id) == "failed"
    active = world.a_job("active")
    assert world.do(RemoveDeadJob("q", active.id)).count == 0
    world.do(FailJob(active.id, error="e"))

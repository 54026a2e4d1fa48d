"""Adding jobs by BullMQ's rules: ids within the queue, the order of jobs, what comes back where, backoff.

Sections are those of the BullMQ rules that were observed in its own runs: states (1), attempts (4), order (5), ids (6).
"""

import pytest

from quorumq.node.machine.lifecycle import removal
from quorumq.node.machine.operations.adding import AddJobs, FindJob
from quorumq.node.machine.operations.dlq import RetryDlq
from quorumq.node.machine.operations.jobs import ChangePriority, MoveToDelayed, PromoteJob
from quorumq.node.machine.operations.queue_reads import ListStatus, QueueCounts
from quorumq.node.machine.operations.queues import ObliterateQueue
from quorumq.node.machine.operations.runs import AckJob, FailJob, PullJobs
from quorumq.node.machine.refusals import JobNotFound
from quorumq.node.machine.state import Backoff, job_spec, own_id, scoped_id
from quorumq.node.machine.state.job import FAR_MS
from tests.support.world import World


def own_ids(world: World, status: str = "waiting", **page: object) -> list[str]:
    return [own_id(job) for job in world.ask(ListStatus("q", status, **page))]


def taken(world: World, count: int = 1) -> list[str]:
    return [own_id(job) for job in world.pull(count=count)]


# -- Ids (section 6)


def test_ids_are_numbers_of_the_queue(world: World) -> None:
    reply = world.do(AddJobs("q", [job_spec("", b"1"), job_spec("", b"2")]))
    assert (reply.ids, reply.duplicates, reply.at_ms) == (["1", "2"], [False, False], world.now_ms)
    assert world.do(AddJobs("other", [job_spec("", b"3")])).ids == ["1"]
    assert sorted(world.machine.state.jobs) == ["bull:other:1", "bull:q:1", "bull:q:2"]
    job = world.ask(FindJob("q", "2"))
    assert (job.id, own_id(job), job.data, job.custom) == (scoped_id("q", "2"), "2", b"2", False)


def test_an_id_of_the_clients_own_consumes_a_number_too(world: World) -> None:
    reply = world.do(
        AddJobs("q", [job_spec("mine", b"1"), job_spec("", b"2"), job_spec("mine", b"3"), job_spec("", b"4")])
    )
    assert (reply.ids, reply.duplicates) == (["mine", "2", "mine", "4"], [False, False, True, False])
    assert world.ask(FindJob("q", "mine")).custom


@pytest.mark.parametrize("state", ["waiting", "delayed", "active", "completed", "failed"])
def test_a_job_in_any_state_keeps_another_one_of_its_id_away(world: World, state: str) -> None:
    job = world.add(own="dup", delay_ms=5000 if state == "delayed" else 0)
    if state in ("active", "completed", "failed"):
        assert world.pull() == [job]
    if state == "completed":
        world.do(AckJob(job.id))
    if state == "failed":
        world.do(FailJob(job.id))
    assert job.state == state
    world.event_names()
    reply = world.do(AddJobs("q", [job_spec("dup", b"other")]))
    assert (reply.ids, reply.duplicates) == (["dup"], [True])
    assert job.data == b"{}" and len(world.machine.state.jobs) == 1
    assert world.event_names() == ["job:duplicated"]


def test_removal_frees_an_id(world: World) -> None:
    first = world.add(own="dup")
    removal.remove(world.machine.state, first)
    assert world.add(own="dup") is not first


def test_a_number_that_somebody_chose_is_passed_over(world: World) -> None:
    world.push("q", "bull:q:1")
    world.push("q", "bull:q:2")
    assert world.do(AddJobs("q", [job_spec("", b"1")])).ids == ["3"]


def test_obliterating_a_queue_lets_its_numbers_begin_anew(world: World) -> None:
    world.add()
    world.do(ObliterateQueue("q"))
    assert own_id(world.add()) == "1"


def test_jobs_of_other_dialects_are_found_by_their_whole_id_in_their_queue(world: World) -> None:
    pushed = world.push("q")
    assert world.ask(FindJob("q", pushed)).id == pushed
    for queue, own in (("other", pushed), ("q", "nope")):
        with pytest.raises(JobNotFound):
            world.ask(FindJob(queue, own))
    # A job's own name goes before another one's whole id.
    job = world.add(own=pushed)
    assert world.ask(FindJob("q", pushed)) is job


# -- Order (section 5)


def test_lifo_then_first_come_then_the_lower_number(world: World) -> None:
    for own, options in {
        "f1": {}, "f2": {}, "p5a": {"priority": -5}, "p1": {"priority": -1}, "p5b": {"priority": -5},
        "l1": {"lifo": True}, "l2": {"lifo": True}, "p5l": {"priority": -5},
    }.items():  # fmt: skip
        world.add(own=own, **options)
    counts = world.ask(QueueCounts("q"))
    assert (counts.waiting, counts.lowered, counts.prioritized) == (8, 4, 0)
    assert own_ids(world) == ["l2", "l1", "f1", "f2"]
    assert own_ids(world, "prioritized") == ["p1", "p5a", "p5b", "p5l"]
    assert taken(world, 9) == ["l2", "l1", "f1", "f2", "p1", "p5a", "p5b", "p5l"]
    assert world.ask(QueueCounts("q")).lowered == 0


def test_a_delayed_job_that_is_due_goes_to_the_back(world: World) -> None:
    world.add(own="late", delay_ms=100)
    world.add(own="later", delay_ms=100, priority=-1)
    world.wait(50)
    world.add(own="plain")
    world.add(own="low", priority=-1)
    world.wait(50)
    assert own_ids(world) == ["plain", "late"]
    assert own_ids(world, "prioritized") == ["low", "later"]


def test_those_due_together_come_in_the_order_of_their_times_and_births(world: World) -> None:
    for own, delay_ms in (("a", 30), ("b", 10), ("c", 30), ("d", 20)):
        world.add(own=own, delay_ms=delay_ms)
    world.now_ms += 40
    world.tick()
    assert own_ids(world) == ["b", "d", "a", "c"]


def test_a_promoted_job_goes_to_the_back(world: World) -> None:
    job = world.add(own="late", delay_ms=9000)
    world.add(own="plain")
    world.do(PromoteJob(job.id))
    assert (own_ids(world), job.delay_left) == (["plain", "late"], 0)


def test_a_new_priority_puts_behind_its_equals_or_in_front(world: World) -> None:
    jobs = {own: world.add(own=own, priority=priority) for own, priority in (("a", -3), ("b", -1), ("c", -1))}
    world.do(ChangePriority(jobs["a"].id, -1))
    assert own_ids(world, "prioritized") == ["b", "c", "a"]
    world.do(ChangePriority(jobs["c"].id, -1, lifo=True))
    assert own_ids(world, "prioritized") == ["c", "b", "a"]
    world.do(ChangePriority(jobs["b"].id, 0))
    assert own_ids(world) == ["b"]


def test_pages_go_both_ways(world: World) -> None:
    for own in "abcde":
        world.add(own=own)
    world.add(own="low", priority=-1)
    assert own_ids(world, offset=1, limit=2) == ["b", "c"]
    assert own_ids(world, newest=True) == ["e", "d", "c", "b", "a"]
    assert own_ids(world, newest=True, offset=3, limit=9) == ["b", "a"]
    assert own_ids(world, newest=True, offset=5) == own_ids(world, limit=0) == own_ids(world, offset=9) == []
    assert own_ids(world, "prioritized", offset=0, limit=1, newest=True) == ["low"]
    assert own_ids(world, "paused") == own_ids(world, "nonsense") == []
    for _ in range(3):
        world.wait(1)
        world.do(AckJob(world.pull()[0].id))
    assert own_ids(world, "completed") == ["a", "b", "c"]
    assert own_ids(world, "completed", newest=True, limit=2) == ["c", "b"]


def test_pages_see_jobs_that_stand_behind_others_of_their_group(world: World) -> None:
    for own, priority in (("a", 0), ("b", 0), ("c", -2)):
        world.add(own=own, group_id="g", priority=priority)
    assert own_ids(world) == ["a", "b"] and own_ids(world, newest=True) == ["b", "a"]
    assert own_ids(world, "prioritized") == ["c"]


# -- Attempts and backoff (section 4)


def test_one_run_without_attempts(world: World) -> None:
    job = world.add()
    world.pull()
    world.do(FailJob(job.id, error="boom", stack="Error: boom\n at x"))
    assert (job.state, job.attempts, job.starts, job.error) == ("failed", 1, 1, "boom")
    assert job.stacks == ["Error: boom\n at x"]


def test_a_failed_run_without_backoff_goes_to_the_back(world: World) -> None:
    a, _, _ = (world.add(own=own, max_attempts=2) for own in "abc")
    assert world.pull() == [a]
    world.do(FailJob(a.id))
    assert taken(world, 3) == ["b", "c", "a"]


def test_a_lifo_job_comes_back_to_the_front(world: World) -> None:
    a, _, _ = (world.add(own=own, max_attempts=2, lifo=own == "a") for own in "abc")
    assert world.pull() == [a]
    world.do(FailJob(a.id))
    assert taken(world, 3) == ["a", "b", "c"]


@pytest.mark.parametrize("backoff", [0, 50], ids=["at once", "after a backoff"])
@pytest.mark.parametrize("bullmq", [False, True], ids=["bunqueue", "BullMQ"])
@pytest.mark.parametrize("how", ["fail", "stall", "timeout", "move to delayed", "dlq.retry"])
def test_a_lifo_job_that_comes_back_comes_first_again(leveled: World, how: str, bullmq: bool, backoff: int) -> None:
    """Before the lifo jobs that were added while it was worked on, and while it waited for its retry."""
    world = leveled
    options = {"lifo": True, "max_attempts": 1 if how == "dlq.retry" else 3, "backoff": backoff, "rejoin_last": bullmq}
    options |= {"timeout_ms": 10} if how == "timeout" else {}
    job_id = world.push(**options)
    assert world.pull_ids(owner="w", lock_ms=20, token_seed="t") == [job_id]
    newer = [world.push(lifo=True)]
    if how in ("fail", "dlq.retry"):
        world.do(FailJob(job_id, "t-0"))
    elif how == "move to delayed":
        world.do(MoveToDelayed(job_id, backoff, "t-0"))
    else:
        world.wait(20)
    if world.job(job_id).state != "waiting":
        newer.append(world.push(lifo=True))
    if how == "dlq.retry":
        world.do(RetryDlq("q"))
    world.wait(backoff)
    newer.reverse()
    assert world.pull_ids(count=9) == ([job_id, *newer] if world.machine.state.level >= 1 else [*newer, job_id])


@pytest.mark.parametrize("delay_ms", [0, 50], ids=["at once", "delayed, too"])
def test_a_lifo_job_that_waited_for_others_comes_first(leveled: World, delay_ms: int) -> None:
    """Before the lifo jobs that were added while it waited; of several that one job held up the last first, as they were added."""
    world = leveled
    first = world.push("other")
    held = [world.push(lifo=True, delay_ms=delay_ms, depends_on=(first,)) for _ in range(2)]
    plain, newer = world.push(), world.push(lifo=True)
    world.pull("other")
    world.wait(delay_ms)
    world.do(AckJob(first))
    last, last_but_one = held[::-1]
    assert world.pull_ids(count=9) == (
        [last, last_but_one, newer, plain] if world.machine.state.level >= 1 else [newer, last, last_but_one, plain]
    )


def test_attempts_are_counted_and_times_kept(world: World) -> None:
    job = world.add(max_attempts=3, backoff=Backoff("fixed", 400))
    assert (job.starts, job.processed_at) == (0, None)
    for run in (1, 2):
        world.wait(400)
        [taken_job] = world.pull()
        began = world.now_ms
        assert (taken_job.starts, taken_job.attempts) == (run, run - 1)
        world.wait(5)
        world.do(FailJob(job.id, error=f"e{run}"))
        assert (job.state, job.starts, job.attempts, job.delay_left) == ("delayed", run, run, 400)
        assert (job.processed_at, job.finished_at) == (began, None)
    world.wait(400)
    world.pull()
    world.do(AckJob(job.id, result=b"1"))
    assert (job.starts, job.attempts, job.error) == (3, 2, "e2")


@pytest.mark.parametrize(
    ("backoff", "delays"),
    [
        (Backoff("fixed", 90_000_000), [90_000_000, 90_000_000]),
        (Backoff("exponential", 60_000_000), [60_000_000, 120_000_000, 240_000_000]),
        (Backoff("linear", 100_000_000), [100_000_000, 200_000_000]),
    ],
)
def test_a_backoff_has_no_bound_of_a_day(world: World, backoff: Backoff, delays: list[int]) -> None:
    job = world.add(max_attempts=9, backoff=backoff)
    for delay in delays:
        assert world.pull() == [job]
        world.do(FailJob(job.id))
        assert job.run_at - world.now_ms == delay
        world.wait(delay)


def test_a_backoff_beyond_all_times_can_still_be_written(world: World) -> None:
    job = world.add(max_attempts=9, backoff=Backoff("exponential", 1e300))
    world.pull()
    world.do(FailJob(job.id))
    assert job.run_at == world.now_ms + FAR_MS and job.state == "delayed"


def test_delay_left_is_what_the_job_was_told(world: World) -> None:
    job = world.add(delay_ms=700)
    world.wait(300)
    assert job.delay_left == 700
    world.wait(400)
    assert (job.state, job.delay_left) == ("waiting", 0)


def test_a_pull_of_bullmq_takes_jobs_of_every_dialect(world: World) -> None:
    pushed, added = world.push("q"), world.add()
    reply = world.do(PullJobs("q", 2, token="mine", lock_ms=1000))
    assert ([job.id for job in reply.jobs], reply.tokens) == ([pushed, added.id], ["mine", "mine"])

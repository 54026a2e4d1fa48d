"""Runs by the backend protocol: taking, locks, ends, limits, stalls. Sections are those of BullMQ's observed rules (2, 3, 8)."""

import pytest

from quorumq.node.machine.lifecycle.bullmq.running import Taken, Wish
from quorumq.node.machine.operations.bullmq.limits import LimitFor, LimitTtl, Unlimit
from quorumq.node.machine.operations.bullmq.metas import Pause
from quorumq.node.machine.operations.bullmq.running import (
    AwaitNamedChildren,
    CheckNamedStalled,
    CompleteRun,
    DelayRun,
    ExtendNamedLocks,
    FailRun,
    GiveBack,
    RetryRun,
    TakeNext,
)
from quorumq.node.machine.operations.queues import CheckStalled
from quorumq.node.machine.operations.runs import AckJob, FailJob
from quorumq.node.machine.operations.settings import HoldQueue, SetConcurrency, SetWindow
from quorumq.node.machine.state.job import Keep
from tests.support.bullmq import add, complete, fail, job, number_of, take
from tests.support.world import World

SECOND = 1_000


# -- Taking


def test_jobs_are_numbered_and_taken_in_order(world: World) -> None:
    assert [add(world) for _ in range(3)] == ["1", "2", "3"]
    taken = take(world, name="w")
    assert taken.job is job(world, "1") and (taken.ttl_ms, taken.due_ms) == (0, 0)
    assert (taken.job.token, taken.job.lock_until) == ("t", world.now_ms + 30_000)
    assert taken.job.record is not None and taken.job.record.processed_by == "w"
    # The lock rings no alarm.
    assert taken.job.due == 0
    assert (take(world, "0").job, job(world, "2").token) == (job(world, "2"), None)


def test_jobs_without_a_priority_come_first_and_then_the_lower_number(world: World) -> None:
    for priority in (5, 1, 0, 5, 0):
        add(world, priority=-priority)
    add(world, lifo=True)
    assert [taken.job.id[-1] for taken in (take(world) for _ in range(6)) if taken.job] == list("635214")


def test_what_holds_a_queue_up_is_said(world: World) -> None:
    assert take(world) == world.do(TakeNext("nowhere")) == Taken()
    add(world, delay_ms=5 * SECOND)
    due_ms = world.now_ms + 5 * SECOND
    assert take(world) == Taken(None, 0, due_ms)
    world.do(Pause("q", paused=True))
    assert take(world) == Taken()
    add(world)
    assert take(world) == Taken()
    world.do(Pause("q", paused=False))
    world.do(SetConcurrency("q", 1))
    assert take(world).job is job(world, "2")
    assert take(world) == Taken()
    complete(world, "2")
    world.do(HoldQueue("q", 700))
    add(world)
    assert take(world) == Taken(None, 700)
    world.wait(5 * SECOND)
    assert take(world).job is job(world, "3")


# -- Ends


ENDS = {
    "complete": lambda own, token: CompleteRun("q", own, token),
    "fail": lambda own, token: FailRun("q", own, token),
    "delay": lambda own, token: DelayRun("q", own, token, 100),
    "retry": lambda own, token: RetryRun("q", own, token),
    "give back": lambda own, token: GiveBack("q", own, token),
}
ends = pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)


@ends
def test_a_strict_lock_ends_with_its_time_and_belongs_to_its_token(world: World, end: object) -> None:
    assert callable(end)
    for _ in range(3):
        add(world)
    assert number_of(world, end("9", "t")) == -1
    take(world, lock_ms=SECOND)
    assert number_of(world, end("1", "other")) == -6
    assert number_of(world, end("2", "t")) == -2
    assert number_of(world, end("1", "t")) == 0
    take(world, lock_ms=SECOND)
    own = next(iter(world.machine.state.queues["q"].active.values())).id[-1]
    world.wait(SECOND)
    # Nobody has taken it, and still its token ends nothing.
    assert job(world, own).state == "active"
    assert number_of(world, end(own, "t")) == -2


@ends
def test_the_token_of_none_asks_for_no_lock(world: World, end: object) -> None:
    assert callable(end)
    add(world)
    take(world)
    assert number_of(world, end("1", "0")) == 0
    assert job(world, "1").state != "active"


def test_a_job_that_is_not_active_is_in_the_wrong_state(world: World) -> None:
    add(world)
    for kind, end in ENDS.items():
        assert number_of(world, end("1", "0")) == (0 if kind == "give back" else -3), kind
    assert job(world, "1").state == "waiting"


def test_a_run_ends_and_the_next_begins_in_one_step(world: World) -> None:
    add(world)
    add(world)
    take(world)
    ended = complete(world, "1", result=b"1", next=Wish("t"))
    assert (ended.at_ms, ended.next.job) == (world.now_ms, job(world, "2"))
    assert (job(world, "1").state, job(world, "1").result) == ("completed", b"1")
    ended = fail(world, "2", reason="broken", stacks=b'["s"]', next=Wish("t"))
    assert ended.next == Taken()
    failed = job(world, "2")
    assert (failed.state, failed.error) == ("failed", "broken")
    assert failed.record is not None and failed.record.stacks == b'["s"]'
    add(world, delay_ms=SECOND)
    add(world)
    take(world)
    ended = world.do(DelayRun("q", "4", "t", 2 * SECOND, next=Wish("t")))
    assert ended.next == Taken(None, 0, world.now_ms + SECOND)
    add(world)
    take(world)
    assert complete(world, "5").next is None


def test_attempts_and_starts_are_counted_as_bullmq_does(world: World) -> None:
    own = add(world, max_attempts=9)
    one = job(world, own)

    def counts() -> tuple[int, int]:
        """Starts, and attempts made."""
        return one.starts, one.attempts + (one.state == "completed")

    take(world)
    assert counts() == (1, 0)
    world.do(RetryRun("q", own, "t", "broken", b"[]"))
    assert counts() == (1, 1) and one.error == "broken"
    take(world)
    world.do(DelayRun("q", own, "t", SECOND))
    assert counts() == (2, 2) and one.state == "delayed"
    world.wait(SECOND)
    take(world)
    world.do(DelayRun("q", own, "t", 0, skip_attempt=True))
    assert counts() == (3, 2) and one.state == "delayed"
    world.wait(1)
    take(world)
    world.do(GiveBack("q", own, "t"))
    assert counts() == (4, 2)
    take(world)
    complete(world, own)
    assert counts() == (5, 3)


def test_a_job_that_comes_back_goes_last_and_one_given_back_first(world: World) -> None:
    for _ in range(3):
        add(world, max_attempts=2)
    take(world)
    world.do(RetryRun("q", "1", "t"))
    assert take(world).job is job(world, "2")
    world.do(GiveBack("q", "2", "t"))
    order = [taken.job.id[-1] for taken in (take(world) for _ in range(3)) if taken.job]
    assert order == ["2", "3", "1"]


KEEPS = {
    "all": (Keep(None, None), ["1", "2", "3"]),
    "none": (Keep(None, 0), []),
    "two": (Keep(None, 2), ["2", "3"]),
    "young": (Keep(SECOND, None), ["3"]),
}


@pytest.mark.parametrize(("keep", "left"), KEEPS.values(), ids=KEEPS)
@pytest.mark.parametrize("end", ["complete", "fail"])
def test_the_call_says_what_is_kept(world: World, end: str, keep: Keep, left: list[str]) -> None:
    for _ in range(3):
        own = add(world, keep_completed=Keep(None, 1), keep_failed=Keep(None, 1))
        take(world)
        world.do(ENDS[end](own, "t").__class__("q", own, "t", keep=keep))
        world.wait(SECOND)
    assert [job.id[-1] for job in world.machine.state.queues["q"].jobs.values()] == left


@pytest.mark.parametrize("end", ["complete", "fail"])
def test_those_too_old_go_so_many_at_a_time(world: World, end: str) -> None:
    """The limit is of those too old; how many stay at all is a bound of its own."""

    def ended(count: int, keep: Keep) -> int:
        for _ in range(count):
            own = add(world)
            take(world)
            world.do(ENDS[end](own, "t").__class__("q", own, "t", keep=keep))
        return len(world.machine.state.queues["q"].jobs)

    assert ended(10, Keep()) == 10
    world.wait(2 * SECOND)
    assert [ended(1, Keep(SECOND, None, 3)) for _ in range(4)] == [8, 6, 4, 4]
    world.wait(2 * SECOND)
    assert ended(1, Keep(SECOND, 2, 1)) == 2


def test_a_job_without_children_does_not_wait_for_them(world: World) -> None:
    add(world)
    take(world)
    assert world.do(AwaitNamedChildren("q", "1", "t")) is False
    assert job(world, "1").lock_until > world.now_ms
    assert number_of(world, AwaitNamedChildren("q", "9", "t")) == -1


# -- Locks and stalls


def test_locks_are_extended_by_their_tokens(world: World) -> None:
    for _ in range(3):
        add(world)
    take(world, "a", lock_ms=SECOND)
    take(world, "b", lock_ms=SECOND)
    assert world.do(ExtendNamedLocks("q", ["1", "2", "3", "9"], ["a", "x", "c", "d"], 5 * SECOND)) == ["2", "3", "9"]
    world.wait(SECOND)
    assert world.do(ExtendNamedLocks("q", ["1", "2"], ["a", "b"])) == ["2"]
    assert job(world, "1").due == 0


def test_stalls_are_found_by_the_second_check(world: World) -> None:
    add(world)
    add(world)
    take(world, lock_ms=SECOND)
    take(world, "kept", lock_ms=SECOND)
    check = CheckNamedStalled("q", 1, SECOND)
    assert world.do(check) == []
    world.do(ExtendNamedLocks("q", ["2"], ["kept"], 9 * SECOND))
    world.wait(SECOND - 1)
    # It is not its time yet.
    assert world.do(check) == []
    world.wait(1)
    assert world.do(check) == ["1"]
    one = job(world, "1")
    assert (one.state, one.stalls, one.starts, one.attempts) == ("waiting", 1, 1, 0)
    assert one.record is not None and one.record.deferred is None
    # One more is too many: the next worker is to fail it.
    for stalls in (2, 3):
        assert take(world, "u", lock_ms=SECOND).job is one
        world.wait(SECOND)
        assert world.do(check) == []
        world.wait(SECOND)
        assert world.do(check) == ["1"]
        assert (one.stalls, one.record and one.record.deferred) == (stalls, "job stalled more than allowable limit")
    assert take(world, "v").job is one
    fail(world, "1", "v", reason="job stalled more than allowable limit")
    assert (one.state, one.record.deferred) == ("failed", None)


def test_of_all_workers_that_check_one_does_in_an_interval(world: World) -> None:
    add(world)
    take(world, lock_ms=SECOND // 2)
    check = CheckNamedStalled("q", 1, SECOND)
    assert world.do(check) == []
    world.wait(SECOND - 1)
    assert job(world, "1").lock_until < world.now_ms and world.do(check) == []
    world.wait(1)
    assert world.do(check) == ["1"]


def test_a_sign_of_life_since_the_last_check_puts_a_stall_off(world: World) -> None:
    add(world)
    take(world, lock_ms=SECOND)
    check = CheckNamedStalled("q", 1, SECOND)
    assert world.do(check) == []
    world.wait(SECOND // 2)
    assert world.do(ExtendNamedLocks("q", ["1"], ["t"], 100)) == []
    world.wait(SECOND // 2)
    assert world.do(check) == []
    world.wait(SECOND)
    assert world.do(check) == ["1"]


def test_the_check_leaves_runs_of_the_other_dialects_alone(world: World) -> None:
    pushed = world.push(queue="q")
    world.pull()
    check = CheckNamedStalled("q", 1, SECOND)
    for _ in range(3):
        assert world.do(check) == []
        world.wait(SECOND)
    assert world.job(pushed).state == "active"


# -- Limits


def test_a_workers_limit_is_a_window_that_begins_with_its_first_start(world: World) -> None:
    for _ in range(5):
        add(world)
    limit = {"limit_max": 2, "limit_ms": 500}
    assert take(world, **limit).job and take(world, **limit).job
    world.wait(100)
    assert take(world, **limit) == Taken(None, 400)
    assert (
        world.ask(LimitTtl("q", world.now_ms, 2)) == 400
        and world.ask(LimitTtl("q", world.now_ms, 3)) == 0
        and world.ask(LimitTtl("q", world.now_ms)) == 400
    )
    # Whoever knows no limit is held by none.
    assert take(world).job is job(world, "3")
    world.wait(400)
    assert world.ask(LimitTtl("q", world.now_ms)) == -2
    assert take(world, **limit).job is job(world, "4")
    # Which counts anew.
    assert take(world, **limit).job is job(world, "5")
    add(world)
    assert take(world, **limit) == Taken(None, 500)


def test_a_queue_that_was_told_to_wait_holds_workers_that_know_a_limit(world: World) -> None:
    add(world)
    world.do(LimitFor("q", 700))
    assert take(world, limit_max=9, limit_ms=1) == Taken(None, 700)
    assert world.do(Unlimit("q")) is True and world.do(Unlimit("q")) is False
    assert take(world, limit_max=9, limit_ms=1).job is job(world, "1")
    world.do(LimitFor("q", 700))
    assert world.do(GiveBack("q", "1", "t")) == 700
    assert take(world).job is job(world, "1")


def test_the_limit_of_the_queue_goes_before_the_workers(world: World) -> None:
    for _ in range(3):
        add(world)
    world.do(SetWindow("q", 1, SECOND))
    assert take(world, limit_max=9, limit_ms=SECOND).job
    assert take(world, limit_max=9, limit_ms=SECOND) == Taken(None, SECOND)
    assert take(world) == Taken(None, SECOND)
    assert world.ask(LimitTtl("q", world.now_ms)) == SECOND
    world.wait(SECOND)
    assert take(world).job is job(world, "2")


# -- One queue for every language


def test_a_queue_is_served_by_both_dialects(world: World) -> None:
    plain = world.add()
    own = add(world)
    assert (plain.id, own) == ("bull:q:1", "2")
    assert take(world).job is plain and plain.record is not None
    # Either dialect ends the other's runs with their tokens.
    world.do(AckJob(plain.id, "t"))
    [other] = world.pull(token="u", lock_ms=SECOND)
    assert other is job(world, own) and not other.is_strict and other.due
    complete(world, own, "u")
    assert (plain.state, other.state) == ("completed", "completed")
    pushed = world.push(max_attempts=2)
    assert take(world).job is world.job(pushed)
    world.do(FailJob(pushed, "t", "broken"))
    assert (world.job(pushed).attempts, world.job(pushed).state) == (1, "delayed")


def test_the_other_dialects_checks_leave_strict_locks_alone(world: World) -> None:
    add(world)
    take(world, lock_ms=SECOND)
    world.wait(2 * SECOND)
    world.do(CheckStalled("q"))
    assert job(world, "1").state == "active" and job(world, "1").stalls == 0
    # With its token the other dialects still end it: their rule is the lenient one.
    world.do(AckJob("bull:q:1", "t"))
    assert job(world, "1").state == "completed"


def test_a_strict_run_ends_with_its_delivery(world: World) -> None:
    add(world)
    take(world, lock_ms=SECOND)
    world.do(GiveBack("q", "1", "t"))
    [one] = world.pull(token="u", lock_ms=SECOND)
    world.wait(SECOND)
    assert one.state == "waiting" and one.stalls == 1


def test_records_survive_an_image(world: World) -> None:
    add(world, "a", timestamp=5)
    add(world)
    take(world, name="w", limit_max=2, limit_ms=9_000)
    world.add()
    world.push()
    world.pull(count=2)
    image = list(world.machine.image())
    restored = world.restored()
    assert list(restored.image()) == image
    one = restored.state.jobs["bull:q:a"]
    assert one.is_strict and one.record is not None and one.record.timestamp == 5
    assert restored.state.bullmq.facts.by_queue["q"].limit_count == 1

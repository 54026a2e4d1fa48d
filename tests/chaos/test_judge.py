"""The judge finds each kind of broken promise that is planted, names it, and lets pass what is legal however little was heard."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from scripts.tools.chaos import judge as kinds
from scripts.tools.chaos.__main__ import check
from scripts.tools.chaos.events import Event, Reader, Segment
from scripts.tools.chaos.history import DONE, FAILED, REFUSED, UNKNOWN, History, Request, by_epoch, load
from scripts.tools.chaos.judge import Violation, judge

QUEUE, LOCK_S = "q", 4.0


class Story:
    """Requests of a history, a second each and one after the other unless something else is said."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.at = 0.0

    def tell(
        self, op: str, key: str = "k", told: Any = None, *, outcome: str = DONE, at: float | None = None, **args: Any
    ) -> Request:
        start = self.at + 1 if at is None else at
        self.at = max(self.at, start)
        dialect = args.pop("dialect", "bunqueue")
        request = Request(
            len(self.requests), "c", dialect, "n1", op, QUEUE, key, start, start + 0.5, outcome, args, told
        )
        self.requests.append(request)
        return request

    def push(self, key: str = "k", job_id: str = "j", **how: Any) -> Request:
        return self.tell("push", key, {"id": job_id}, **{"id": job_id, **how})

    def pull(
        self, token: str = "a", key: str = "k", job_id: str = "j", fence: int | None = None, **how: Any
    ) -> Request:
        fence = len(self.requests) + 1 if fence is None else fence
        taken = [{"key": key, "id": job_id, "token": token, "fence": fence}]
        return self.tell("pull", "", taken, lock_s=LOCK_S, **how)

    def ack(self, token: str = "a", key: str = "k", **how: Any) -> Request:
        return self.tell("ack", key, token=token, result=f"by {token}", id="j", **how)

    def fail(self, token: str = "a", *, final: bool = False, **how: Any) -> Request:
        return self.tell("fail", token=token, final=final, **how)

    def read(self, state: str, result: str | None = None, **how: Any) -> Request:
        seen = {"state": state} | ({"result": result} if result else {})
        return self.tell("read", "k", seen, id="j", **how)

    def listed(self, *rows: dict[str, str]) -> Request:
        return self.tell("list", "", list(rows))

    def violations(self) -> list[Violation]:
        found = judge(self.requests)
        assert not found.undecided
        return found.violations

    def found(self) -> set[str]:
        return {each.kind for each in self.violations()}


def story(*, done: bool = True) -> Story:
    """A job that is pushed, taken and completed."""
    told = Story()
    told.push()
    told.pull()
    if done:
        told.ack()
    return told


def row(state: str, result: str = "", *, key: str = "k", job_id: str = "j") -> dict[str, str]:
    return {"key": key, "id": job_id, "state": state} | ({"result": result} if result else {})


def test_what_is_as_it_should_be_passes() -> None:
    told = story()
    told.read("completed")
    told.listed(row("completed", "by a"))
    assert told.found() == set()


def test_a_job_that_is_gone_is_lost() -> None:
    told = story(done=False)
    told.listed(row("unknown"))
    assert told.found() == {kinds.LOST}


def test_an_acknowledged_completion_that_is_gone_with_its_job_is_lost() -> None:
    told = story()
    told.listed(row("unknown"))
    assert told.found() == {kinds.LOST}


def test_a_push_that_was_repeated_under_its_key_and_made_two_jobs() -> None:
    told = Story()
    told.push()
    told.pull("a", job_id="j")
    told.pull("b", job_id="other")
    assert told.found() == {kinds.TWICE}
    listed = Story()
    listed.push()
    listed.listed(row("waiting"), row("waiting", job_id="other"))
    assert listed.found() == {kinds.TWICE}


def test_a_second_worker_while_the_first_ones_lock_is_valid() -> None:
    told = Story()
    told.push()
    told.pull("a", at=10)
    told.pull("b", at=12)
    assert told.found() == {kinds.LOCKS}
    # Not once the first has given the job up, or may have.
    for outcome in (DONE, UNKNOWN):
        fine = Story()
        fine.push()
        fine.pull("a", at=10)
        fine.fail("a", at=11, outcome=outcome)
        fine.pull("b", at=12)
        assert fine.found() == set()


@pytest.mark.parametrize("final", ["ack", "fail"])
def test_what_ended_for_good_and_is_handed_out_again(final: str) -> None:
    told = story(done=False)
    told.ack() if final == "ack" else told.fail(final=True)
    told.pull("b", at=20)
    assert told.found() == {kinds.UNDONE}


def test_a_final_ack_that_another_one_overwrote() -> None:
    told = story()
    told.listed(row("completed", "by somebody else"))
    assert told.found() == {kinds.UNDONE}


def test_two_workers_that_both_completed_it() -> None:
    told = Story()
    told.push()
    told.pull("a", at=10)
    told.pull("b", at=20)
    told.ack("a", at=21)
    told.ack("b", at=22)
    assert told.found() == {kinds.UNDONE}


def test_a_delayed_job_that_comes_before_its_time() -> None:
    told = Story()
    told.push(at=0, delay_s=5.0)
    told.pull(at=2)
    assert told.found() == {kinds.EARLY}
    fine = Story()
    fine.push(at=0, delay_s=5.0)
    fine.pull(at=5)
    assert fine.found() == set()


@pytest.mark.parametrize("what", ["ack", "fail", "extend"])
def test_an_old_token_that_still_counts(what: str) -> None:
    told = Story()
    told.push()
    told.pull("a", at=10)
    told.pull("b", at=20)
    match what:
        case "ack":
            told.ack("a", at=21)
        case "fail":
            told.fail("a", at=21)
        case "extend":
            told.tell("extend", token="a", lock_s=LOCK_S, at=21)
    assert told.found() == {kinds.OUTDATED}


def test_a_read_that_is_behind() -> None:
    told = story()
    told.read("active")
    told.read("completed")
    assert told.found() == {kinds.STALE}
    unknown = Story()
    unknown.push()
    unknown.read("unknown")
    unknown.read("waiting")
    assert unknown.found() == {kinds.STALE}


def test_several_reads_that_are_behind() -> None:
    told = story()
    for state in ("active", "waiting", "completed"):
        told.read(state)
    told.listed(row("completed", "by a"))
    assert told.found() == {kinds.STALE}


def test_a_read_that_overlaps_may_tell_either() -> None:
    for state in ("active", "completed"):
        told = story()
        told.read(state, at=told.at + 0.2)
        assert told.found() == set()


@pytest.mark.parametrize("done", [True, False])
def test_an_unknown_outcome_may_be_either_but_not_both(done: bool) -> None:
    told = story(done=False)
    told.ack(outcome=UNKNOWN)
    if done:
        told.read("completed", "by a")
        told.ack(outcome=REFUSED)
    else:
        told.read("active")
        told.ack()
    told.listed(row("completed", "by a"))
    assert told.found() == set()
    both = story(done=False)
    both.ack(outcome=UNKNOWN)
    both.read("completed")
    both.read("active")
    assert both.found() != set()


def test_what_nobody_heard_of_may_happen_long_after_its_client_gave_up() -> None:
    told = story(done=False)
    told.ack(outcome=UNKNOWN)
    told.read("active", at=20)
    told.read("completed", at=22)
    assert told.found() == set()


def test_a_cron_that_ran_twice_for_one_due_time() -> None:
    told = Story()
    told.tell("cron", "often", every_ms=1000)
    key = "cron:often:5000"
    told.pull("a", key, "5000-x")
    told.ack("a", key)
    told.pull("b", key, "5000-x", at=20)
    assert told.found() == {kinds.CRON_TWICE}


def test_a_cron_that_fired_between_two_due_times() -> None:
    told = Story()
    told.tell("cron", "often", every_ms=1000)
    for due in (5000, 6000, 6400):
        told.pull(f"t{due}", f"cron:often:{due}", f"{due}-x")
    assert told.found() == {kinds.CRON_TWICE}


def test_a_due_time_of_a_cron_that_made_no_job() -> None:
    told = Story()
    told.tell("cron", "often", every_ms=1000)
    for due in (5000, 6000, 8000):
        told.pull(f"t{due}", f"cron:often:{due}", f"{due}-x")
    assert told.found() == {kinds.CRON_LOST}


def test_fencing_tokens_that_were_given_twice_or_fell() -> None:
    told = Story()
    for key in ("k", "l"):
        told.push(key, key)
    told.pull("a", "k", "k", fence=7)
    told.pull("b", "l", "l", fence=7)
    assert kinds.FENCES in told.found()
    # Also where neither can have known of the other.
    at_once = Story()
    for key in ("k", "l"):
        at_once.push(key, key)
    at_once.pull("a", "k", "k", fence=7, at=10)
    at_once.pull("b", "l", "l", fence=7, at=10)
    assert at_once.found() == {kinds.FENCES}
    fell = Story()
    for key in ("k", "l"):
        fell.push(key, key)
    fell.pull("a", "k", "k", fence=7)
    fell.pull("b", "l", "l", fence=6)
    assert fell.found() == {kinds.FENCES}


def test_what_was_certainly_not_done_is_no_part_of_it() -> None:
    told = story()
    told.push(outcome=FAILED)
    told.ack("z", outcome=FAILED)
    assert told.found() == set()


def test_a_job_that_nobody_pushed() -> None:
    told = Story()
    told.listed(row("waiting", key="strange"))
    assert [each.job for each in told.violations()] == ["strange"]


def test_jobs_that_a_websocket_held_come_back_when_it_ends_and_not_before() -> None:
    told = Story()
    told.push()
    told.pull("a", at=10)
    told.tell("leave", "", at=11, outcome=UNKNOWN, held=[{"key": "k", "token": "a"}])
    told.pull("b", at=12)
    assert told.found() == set()
    early = Story()
    early.push()
    early.pull("a", at=10)
    early.pull("b", at=12)
    early.tell("leave", "", at=13, outcome=UNKNOWN, held=[{"key": "k", "token": "a"}])
    assert early.found() == {kinds.LOCKS}


# -- Streams of events


def reader(name: str, *segments: Segment) -> Reader:
    found = Reader(name, list, None, lambda: 0.0)  # type: ignore[arg-type]
    found.segments = list(segments)
    return found


def segment(name: str, places: list[int], *, began: float = 0.0, begins: int = 0) -> Segment:
    events = [Event((place, 0), "job:pushed", f"{QUEUE}/j{place}") for place in places]
    return Segment(name, (begins, 0), began, events)


def pushes(count: int) -> Story:
    told = Story()
    for number in range(1, count + 1):
        told.push(f"k{number}", f"j{number}")
    return told


def test_streams_that_are_whole_pass() -> None:
    told = pushes(4)
    found = judge(
        told.requests,
        [reader("r1", segment("r1", [1, 2, 3, 4])), reader("r2", segment("r2", [3, 4], began=2.6, begins=2))],
    )
    assert found.passed and found.events_compared == 2 and found.events_expected >= 3


def test_what_one_reader_lacks_and_another_one_has() -> None:
    readers = [reader("r1", segment("r1", [1, 2, 4])), reader("r2", segment("r2", [1, 2, 3, 4]))]
    found = judge([], readers)
    assert {each.kind for each in found.violations} == {kinds.GAP}
    # Not when it was told that it missed something.
    told = [reader("r1", segment("r1", [1, 2]), segment("r1", [4], begins=3)), readers[1]]
    assert judge([], told).passed and judge([], told).gaps_told == 1


def test_what_was_acknowledged_and_no_reader_has() -> None:
    found = judge(pushes(4).requests, [reader("r1", segment("r1", [1, 2, 4]))])
    assert [each.kind for each in found.violations] == [kinds.GAP]
    assert "j3 0 times" in found.violations[0].text


def test_what_came_twice_or_backwards() -> None:
    assert not judge([], [reader("r1", segment("r1", [1, 2, 2]))]).passed
    assert not judge([], [reader("r1", segment("r1", [1, 3, 2]))]).passed


def test_what_may_still_be_on_its_way_is_not_missed() -> None:
    # The stream broke off: nothing in it was asked for after the third push had been answered.
    assert judge(pushes(4).requests, [reader("r1", segment("r1", [1, 2]))]).passed


# -- The file


def test_a_history_that_was_kept_is_judged_as_the_one_in_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = story()
    told.pull("b", at=20)
    told.requests.append(dataclasses.replace(told.ack(outcome=UNKNOWN), number=99, end=math.inf))
    history = History(tmp_path / "history.jsonl")
    for request in told.requests:
        history.add(request)
    history.close()
    assert list(load(tmp_path / "history.jsonl")) == told.requests
    assert check(tmp_path / "history.jsonl") == 1
    assert kinds.UNDONE in capsys.readouterr().out


def test_clusters_that_came_after_each_other_are_judged_apart() -> None:
    told = Story()
    for number in range(2):
        told.tell("epoch", str(number))
        told.push()
        told.pull(f"t{number}", fence=1)
    assert [len(part) for part in by_epoch(told.requests)] == [3, 3]
    assert all(judge(part).passed for part in by_epoch(told.requests))
    assert not judge(told.requests).passed

"""The checker: on tiny histories it says what trying every order says, and a history that a real job made is always legal."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.tools.chaos.linear import ILLEGAL, LEGAL, UNDECIDED, examine, search
from scripts.tools.chaos.model import (
    ABSENT,
    ACK,
    ACTIVE,
    COMPLETED,
    DONE,
    EXTEND,
    FAIL,
    FAILED,
    FAST,
    LEAVE,
    PUSH,
    READ,
    REFUSED,
    TAKE,
    UNKNOWN,
    WAITING,
    Job,
    Op,
    State,
)

LOCK_S = 4.0


def brute(job: Job, ops: list[Op]) -> bool:
    """Try every order of every choice of the unknown ones: no search, no memory, no bound."""
    known = [op for op in ops if op.is_known]
    unknown = [op for op in ops if not op.is_known]
    for count in range(len(unknown) + 1):
        for chosen in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *chosen]):
                if in_time(order) and explains(job, order):
                    return True
    return False


def in_time(order: tuple[Op, ...]) -> bool:
    """Whether no request comes before one that had ended when it began."""
    return all(later.end >= one.start for one, later in itertools.combinations(order, 2))


def explains(job: Job, order: tuple[Op, ...]) -> bool:
    states: set[State] = {job.first()}
    for op in order:
        after = {job.apply(op, each) for state in states for each in job.reachable(state)}
        states = {each for each in after if each is not None and each.at <= op.end}
    return bool(states)


times = st.integers(0, 12).map(float)
tokens = st.sampled_from(["a", "b"])


@st.composite
def tiny_ops(draw: st.DrawFn) -> list[Op]:
    """Up to six requests that may or may not fit together."""
    found = []
    for number in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from([PUSH, TAKE, TAKE, ACK, FAIL, EXTEND, LEAVE, READ]))
        start = draw(times)
        end = start + draw(st.integers(0, 6))
        outcomes = {
            PUSH: [DONE, UNKNOWN],
            TAKE: [DONE],
            LEAVE: [UNKNOWN],
            READ: [DONE],
        }.get(kind, [DONE, REFUSED, UNKNOWN])
        outcome = draw(st.sampled_from(outcomes))
        found.append(
            Op(
                kind,
                start,
                math.inf if outcome == UNKNOWN else end,
                outcome,
                job_id="j" if kind in (PUSH, TAKE) else None,
                token=draw(tokens) if kind not in (PUSH, READ) else "",
                lock_s=LOCK_S,
                delay_s=draw(st.sampled_from([0.0, 0.0, 3.0])) if kind == PUSH else 0.0,
                seen=draw(st.sampled_from(["waiting", "active", "completed", "failed", "unknown"]))
                if kind == READ
                else "",
                final=kind == FAIL and draw(st.booleans()),
                request=number,
            )
        )
    return found


jobs = st.builds(
    Job,
    taken_from=st.sampled_from([math.inf, 0.0, 5.0]),
    taken_for_s=st.sampled_from([0.0, 2.0]),
    stalls_max=st.sampled_from([None, 1]),
    scheduled=st.booleans(),
)


@settings(max_examples=400, deadline=None)
@given(jobs, tiny_ops())
def test_it_says_what_trying_every_order_says(job: Job, ops: list[Op]) -> None:
    found = search(job, ops)
    assert found.verdict == (LEGAL if brute(job, ops) else ILLEGAL)
    if found.verdict == LEGAL:
        # And its order is one.
        assert in_time(tuple(found.order)) and explains(job, tuple(found.order))


class RealJob:
    """A job that lives through a random life by a clock: what its requests told, when, and how much of it was heard."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.ops: list[Op] = []
        self.phase, self.token, self.until, self.result = ABSENT, "", 0.0, None
        self.ready = 0.0
        self.tokens: list[str] = []

    def told(self, kind: str, outcome: str, **what: object) -> None:
        """A request that took effect now: it began before and was answered after, or nobody heard."""
        start = self.now - self.rng.uniform(0, 3)
        end = self.now + self.rng.uniform(0, 3)
        heard = kind in (READ, TAKE) or self.rng.random() < 0.75
        if kind == LEAVE or not heard:
            outcome, end = UNKNOWN, math.inf
        self.ops.append(Op(kind, start, end, outcome, request=len(self.ops), **what))  # type: ignore[arg-type]

    def live(self, steps: int) -> list[Op]:
        for _ in range(steps):
            self.now += self.rng.uniform(0, 2)
            if self.phase == ACTIVE and self.now >= self.until and self.rng.random() < 0.7:
                self.phase = WAITING
            self.rng.choice(
                [self.push, self.take, self.take, self.finish, self.finish, self.extend, self.leave, self.read]
            )()
        # What nobody heard of may also never have happened, and still be on its way.
        for number in range(self.rng.randint(0, 2)):
            self.ops.append(Op(ACK, self.now, math.inf, UNKNOWN, token="x", request=1000 + number))
        return self.ops

    def push(self) -> None:
        if self.phase == ABSENT:
            self.phase = WAITING
            delay_s = self.rng.choice([0.0, 0.0, 2.0])
            self.ready = self.now + delay_s
            self.told(PUSH, DONE, job_id="j", delay_s=delay_s)

    def take(self) -> None:
        if self.phase == WAITING and self.now >= self.ready:
            self.phase, self.token = ACTIVE, f"t{len(self.tokens)}"
            self.tokens.append(self.token)
            self.until = self.now + LOCK_S
            self.told(TAKE, DONE, job_id="j", token=self.token, lock_s=LOCK_S)

    def finish(self) -> None:
        if not self.tokens:
            return
        token = self.rng.choice(self.tokens[-2:])
        if self.rng.random() < 0.6:
            good = token == self.token and self.phase in (ACTIVE, WAITING)
            if good:
                self.phase, self.token, self.result = COMPLETED, "", token
            self.told(ACK, DONE if good else REFUSED, token=token, result=token)
        else:
            good, final = token == self.token and self.phase == ACTIVE, self.rng.random() < 0.2
            if good:
                self.phase, self.token = (FAILED if final else WAITING), ""
            self.told(FAIL, DONE if good else REFUSED, token=token, final=final)

    def extend(self) -> None:
        if self.tokens:
            token = self.tokens[-1]
            good = token == self.token and self.phase == ACTIVE
            if good:
                self.until = self.now + LOCK_S
            self.told(EXTEND, DONE if good else REFUSED, token=token, lock_s=LOCK_S)

    def leave(self) -> None:
        if self.phase == ACTIVE and self.rng.random() < 0.3:
            self.told(LEAVE, UNKNOWN, token=self.token)
            self.phase, self.token = WAITING, ""

    def read(self) -> None:
        seen = {ABSENT: "unknown"}.get(self.phase, self.phase)
        self.told(READ, DONE, seen=seen, result=self.result if self.phase == COMPLETED else None)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 25))
def test_what_really_happened_is_legal_however_little_was_heard(seed: int, steps: int) -> None:
    ops = RealJob(seed).live(steps)
    assert search(Job(), ops).verdict == LEGAL


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_a_lie_about_the_end_is_found(seed: int) -> None:
    real = RealJob(seed)
    ops = real.live(20)
    real.now += 10
    final = {ABSENT: "unknown"}.get(real.phase, real.phase)
    unsure = [op for op in ops if not op.is_known]
    if final != "completed" or unsure:
        return
    for lie in ("waiting", "active", "failed", "unknown"):
        assert search(Job(), [*ops, Op(READ, real.now, real.now, seen=lie)]).verdict == ILLEGAL


def test_a_search_that_gives_up_says_so() -> None:
    # Reads that all overlap, none of which can be explained: every order of them would have to be looked at.
    ops = [Op(PUSH, 0, 50, job_id="j")]
    ops += [Op(TAKE, 0, 50, job_id="j", token=f"t{number}", lock_s=1) for number in range(12)]
    ops += [Op(FAIL, 0, 50, token=f"t{number}") for number in range(12)]
    ops.append(Op(READ, 0, 50, seen="completed"))
    assert search(Job(), ops, steps_max=500).verdict == UNDECIDED


def test_a_long_history_without_overlaps_takes_one_step_each() -> None:
    ops = [Op(PUSH, 0, 1, job_id="j")]
    for number in range(1000):
        at = 2.0 + 4 * number
        ops.append(Op(TAKE, at, at + 1, job_id="j", token=f"t{number}", lock_s=LOCK_S))
        ops.append(Op(FAIL, at + 2, at + 3, token=f"t{number}"))
    found = search(Job(), ops)
    assert found.verdict == LEGAL and found.steps <= 2 * len(ops)


# -- Locks and the clock: what is legal to the second


def locks(gap_s: float) -> list[Op]:
    """Two workers, the second of whom gets the job so long after the first."""
    return [
        Op(PUSH, 0, 1, job_id="j", request=0),
        Op(TAKE, 10, 10, job_id="j", token="a", lock_s=LOCK_S, request=1),
        Op(TAKE, 10 + gap_s, 10 + gap_s, job_id="j", token="b", lock_s=LOCK_S, request=2),
    ]


@pytest.mark.parametrize("gap_s, verdict", [(LOCK_S / (1 + FAST) - 0.01, ILLEGAL), (LOCK_S / (1 + FAST) + 0.01, LEGAL)])
def test_a_lock_lasts(gap_s: float, verdict: str) -> None:
    assert search(Job(), locks(gap_s)).verdict == verdict


@pytest.mark.parametrize("gap_s, verdict", [(3.0, ILLEGAL), (3.6, LEGAL)])
def test_a_delay_lasts_from_the_push_however_long_that_took(gap_s: float, verdict: str) -> None:
    ops = [Op(PUSH, 0, 5, job_id="j", delay_s=LOCK_S), Op(TAKE, gap_s - 1, gap_s, job_id="j", token="a", lock_s=1)]
    assert search(Job(), ops).verdict == verdict
    assert search(Job(taken_from=0), [ops[0], Op(READ, 1, 2, seen="active")]).verdict == ILLEGAL


def test_a_lock_that_was_extended_lasts_longer() -> None:
    ops = [*locks(5.0), Op(EXTEND, 12, 12, token="a", lock_s=LOCK_S)]
    assert search(Job(), ops).verdict == ILLEGAL
    # Not if nobody knows that it was.
    unsure = dataclasses.replace(ops[-1], outcome=UNKNOWN, end=math.inf)
    assert search(Job(), [*ops[:-1], unsure]).verdict == LEGAL


def test_an_old_token_completes_until_somebody_else_has_the_job() -> None:
    late = Op(ACK, 20, 20, token="a", result="r")
    one = locks(5.0)[:2]
    assert search(Job(), [*one, late]).verdict == LEGAL
    assert search(Job(), [*locks(5.0), late]).verdict == ILLEGAL
    refused = dataclasses.replace(late, outcome=REFUSED)
    assert search(Job(), [*one, refused]).verdict == ILLEGAL
    assert search(Job(), [*locks(5.0), refused]).verdict == LEGAL


def test_somebody_unknown_may_have_taken_it_but_not_before_he_asked() -> None:
    ops = [Op(PUSH, 0, 1, job_id="j"), Op(READ, 5, 6, seen="active")]
    assert search(Job(), ops).verdict == ILLEGAL
    assert search(Job(taken_from=4.0), ops).verdict == LEGAL
    assert search(Job(taken_from=7.0), ops).verdict == ILLEGAL


def test_somebody_unknown_lets_it_stall_only_as_often_as_there_is_time_for() -> None:
    job = Job(taken_from=0.0, taken_for_s=LOCK_S, stalls_max=1)
    twice_s = 2 * LOCK_S / (1 + FAST)
    for at, verdict in ((twice_s - 0.1, ILLEGAL), (twice_s + 0.1, LEGAL)):
        assert search(job, [Op(PUSH, 0, 0, job_id="j"), Op(READ, at, at, seen="failed")]).verdict == verdict


def test_a_job_that_stalls_too_often_fails() -> None:
    ops = [*locks(5.0), Op(READ, 30, 31, seen="failed")]
    assert search(Job(), ops).verdict == ILLEGAL
    assert search(Job(stalls_max=1), ops).verdict == LEGAL
    assert search(Job(stalls_max=2), ops).verdict == ILLEGAL


def test_culprits_are_those_without_which_the_rest_is_explained() -> None:
    ops = [*locks(5.0), Op(ACK, 16, 17, token="b", result="r", request=3), Op(READ, 18, 19, seen="waiting", request=4)]
    found = examine(Job(), ops)
    assert found.verdict == ILLEGAL
    assert {op.request for op in found.culprits} == {3, 4}


def test_where_no_single_request_is_to_blame_the_fewest_of_a_kind_are() -> None:
    ops = [Op(PUSH, 0, 1, job_id="j", request=0)]
    ops += [
        Op(READ, at, at, seen=seen, request=at)
        for at, seen in ((2, "waiting"), (3, "unknown"), (4, "unknown"), (5, "waiting"))
    ]
    assert {op.request for op in examine(Job(), ops).culprits} == {3, 4}

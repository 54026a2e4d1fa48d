"""Whether requests that overlapped can have happened one after the other, each at some moment between its start and its end.

The search of Wing and Gong (Testing and Verifying Concurrent Objects, 1993): of the requests that are left, each that began before
the first of them ended may be the next one; go on from the state that it leads to, or go back. With Lowe's memoisation (Testing for
Linearizability, 2017) no pair of requests done and state reached is looked at twice. What nobody knows the outcome of may be left out.
States carry the earliest moment at which they can be reached, so that locks count by the clock: a step beyond the end of a
request that is left leads nowhere.

The search is bounded; what it did not come to an end with is called undecided, and is no pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from scripts.tools.chaos.model import Job, Op, State

STEPS_MAX = 200_000
"""Pairs of requests and states looked at for one job."""

LEGAL, ILLEGAL, UNDECIDED = "legal", "illegal", "undecided"


@dataclass
class Finding:
    """verdict: one of the three.  order: an order that explains all, or the longest beginning of one.  steps: pairs looked at.

    culprits: of an illegal history, those without any one of which it would be legal; where there is none, some of one kind without
    all of which it would be.
    """

    verdict: str
    order: list[Op] = field(default_factory=list)
    culprits: list[Op] = field(default_factory=list)
    steps: int = 0


def examine(job: Job, ops: Sequence[Op], steps_max: int = STEPS_MAX) -> Finding:
    """Judge the requests of one job; of an illegal history, say what breaks it: one request, or else all of a kind."""
    found = search(job, ops, steps_max)
    if found.verdict != ILLEGAL:
        return found
    for left_out in ops:
        if left_out.is_known and _explained_without(job, ops, [left_out], steps_max):
            found.culprits.append(left_out)
    for kind in sorted({op.kind for op in ops}):
        if not found.culprits:
            group = [op for op in ops if op.kind == kind and op.is_known]
            if _explained_without(job, ops, group, steps_max):
                found.culprits = _fewest(job, ops, group, steps_max)
    return found


def _fewest(job: Job, ops: Sequence[Op], left_out: list[Op], steps_max: int) -> list[Op]:
    """Put back those that the rest can be explained with."""
    for op in tuple(left_out):
        fewer = [each for each in left_out if each is not op]
        if _explained_without(job, ops, fewer, steps_max):
            left_out = fewer
    return left_out


def _explained_without(job: Job, ops: Sequence[Op], left_out: Sequence[Op], steps_max: int) -> bool:
    rest = [op for op in ops if not any(op is each for each in left_out)]
    return search(job, rest, steps_max // 10).verdict == LEGAL


def search(job: Job, ops: Sequence[Op], steps_max: int = STEPS_MAX) -> Finding:
    """Look for an order that explains every request whose outcome is known."""
    # In the order of their ends, so that what is likely is tried first; what is unknown comes last.
    ops = sorted(ops, key=lambda op: (op.end, op.start))
    known = sum(1 << number for number, op in enumerate(ops) if op.is_known)
    best: tuple[int, tuple[int, ...]] = (-1, ())
    seen: set[tuple[int, State]] = set()
    stack: list[tuple[int, State, tuple[int, ...]]] = [(0, job.first(), ())]
    while stack:
        done, state, order = stack.pop()
        left = known & ~done
        if (progress := (known & done).bit_count()) > best[0]:
            best = (progress, order)
        if not left:
            return Finding(LEGAL, [ops[number] for number in order], steps=len(seen))
        if len(seen) >= steps_max:
            return Finding(UNDECIDED, [ops[number] for number in best[1]], steps=len(seen))
        # The first of them to end, for they are sorted by that.
        until = ops[(left & -left).bit_length() - 1].end
        further = []
        states = [each for each in job.reachable(state) if each.at <= until]
        for number, op in enumerate(ops):
            if done >> number & 1 or op.start > until:
                continue
            for each in states:
                after = job.apply(op, each)
                if after is None or after.at > until:
                    continue
                pair = (done | 1 << number, after)
                if pair not in seen:
                    seen.add(pair)
                    further.append((*pair, (*order, number)))
        stack.extend(reversed(further))
    return Finding(ILLEGAL, [ops[number] for number in best[1]], steps=len(seen))

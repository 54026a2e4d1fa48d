"""What one job may do: the sequential specification against which histories are judged.

A job is pushed once, is taken under a lock, ends for good by an acknowledgement or a failure that says so, or comes back. Time counts
for two things only: a lock lasts, and so does a delay. So a state carries the earliest moment at which it can have been reached, and
a lock and a delay the earliest moment at which they can have run out. What the cluster does by itself, or for a request of which
nobody knows what came of it, is a silent step: it may happen, and never has to.

Nothing here knows of files, networks or search (linear.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

ABSENT, WAITING, ACTIVE, COMPLETED, FAILED = "absent", "waiting", "active", "completed", "failed"
PUSH, TAKE, LEAVE, ACK, FAIL, EXTEND, READ = "push", "take", "leave", "ack", "fail", "extend", "read"
DONE, REFUSED, UNKNOWN = "done", "refused", "unknown"
"""Outcomes. What is known not to have happened is not part of a history."""

SOMEBODY = "?"
"""Holds a job that a request took of which nobody knows what came of it."""
FAST = 0.15
"""How much faster than time the log's clock may go, and more: it is steered by a twentieth, and a follower's by a tenth."""
# How reads call the states.
SHOWN = {
    "waiting": WAITING,
    "prioritized": WAITING,
    "delayed": WAITING,
    "active": ACTIVE,
    "completed": COMPLETED,
    "failed": FAILED,
    "unknown": ABSENT,
}


@dataclass(frozen=True, slots=True)
class Op:
    """One request as far as it concerns one job. Times in seconds since the run began.

    end: infinite when nobody knows whether it has happened, or will.  job_id: the id that it was told or used, None for one unknown.
    token: holds the lock.  lock_s: how long it was given for.  delay_s: before it may be taken.
    result: what an acknowledgement stored, or a read saw; None: nothing.
    seen: the state that a read told.  final: a failure after which the job does not come back.  request: its number in the history.
    """

    kind: str
    start: float
    end: float
    outcome: str = DONE
    job_id: str | None = None
    token: str = ""
    lock_s: float = 0.0
    delay_s: float = 0.0
    result: str | None = None
    seen: str = ""
    final: bool = False
    request: int = -1

    @property
    def is_known(self) -> bool:
        """Whether it has to have happened."""
        return self.outcome != UNKNOWN


class State(NamedTuple):
    """at: the earliest moment at which the job can be in this state.  until: the earliest one at which its lock can run out.

    ready: the earliest one at which it can be taken.
    """

    phase: str
    at: float = -math.inf
    job_id: str | None = None
    token: str = ""
    until: float = -math.inf
    result: str | None = None
    stalls: int = 0
    ready: float = -math.inf


@dataclass(frozen=True, slots=True)
class Job:
    """What is true of one job besides its requests.

    taken_from: from when on somebody may have taken it unknown to us: the start of the first pull of its queue whose outcome is
    unknown.  taken_for_s: for how long such a lock would be, at least.  stalls_max: so many locks may run out, and with one more it
    has failed for good; None for no bound.  scheduled: the cluster pushes it itself, once.
    """

    taken_from: float = math.inf
    taken_for_s: float = 0.0
    stalls_max: int | None = None
    scheduled: bool = False

    def first(self) -> State:
        return State(ABSENT)

    def silent(self, state: State) -> Iterator[State]:
        """What the job may do without a request that we know of."""
        if state.phase == ACTIVE:
            yield from self._let_go(state)
        elif state.phase == WAITING and self.taken_from < math.inf:
            at = max(state.at, self.taken_from, state.ready)
            until = at + self.taken_for_s / (1 + FAST)
            yield state._replace(phase=ACTIVE, at=at, token=SOMEBODY, until=until, ready=-math.inf)
        elif state.phase == ABSENT and self.scheduled and state.job_id is None:
            yield state._replace(phase=WAITING)

    def _let_go(self, state: State) -> Iterator[State]:
        """Its lock runs out, which is a stall; or somebody who left gives it back, which is none."""
        somebody = state.token == SOMEBODY
        if somebody:
            yield state._replace(phase=WAITING, token="", until=-math.inf)
            if self.stalls_max is None:
                # A stall would be the same, only later.
                return
        at, stalls = max(state.at, state.until), state.stalls
        if self.stalls_max is not None:
            stalls += 1
            if stalls > self.stalls_max:
                yield state._replace(phase=FAILED, at=at, token="", until=-math.inf, stalls=stalls)
                return
        # Its token completes it until somebody else takes it.
        yield state._replace(
            phase=WAITING, at=at, token="" if somebody else state.token, until=-math.inf, stalls=stalls
        )

    def reachable(self, state: State) -> list[State]:
        """The state, and all that silent steps lead to."""
        found = [state]
        seen = {state}
        for each in found:
            for further in self.silent(each):
                if further not in seen:
                    seen.add(further)
                    found.append(further)
        return found

    def apply(self, op: Op, state: State) -> State | None:
        """The state after a request, with its answer; None when it cannot have been answered so."""
        state = state._replace(at=max(state.at, op.start))
        if op.kind == READ:
            return self._read(op, state)
        if op.outcome == REFUSED:
            return None if self._holds(op, state, finishes=op.kind == ACK) else state
        match op.kind:
            case "push":
                if state.phase != ABSENT:
                    return None
                ready = state.at + op.delay_s / (1 + FAST) if op.delay_s else -math.inf
                return state._replace(phase=WAITING, job_id=op.job_id, ready=ready)
            case "take":
                if state.phase != WAITING or state.job_id not in (None, op.job_id):
                    return None
                at, lock_s = max(state.at, state.ready), op.lock_s / (1 + FAST)
                return state._replace(
                    phase=ACTIVE, at=at, job_id=op.job_id, token=op.token, until=at + lock_s, ready=-math.inf
                )
            case "ack" if self._holds(op, state, finishes=True):
                return state._replace(phase=COMPLETED, token="", until=-math.inf, result=op.result)
            case "fail" if self._holds(op, state):
                return state._replace(phase=FAILED if op.final else WAITING, token="", until=-math.inf)
            case "leave" if self._holds(op, state):
                return state._replace(phase=WAITING, token="", until=-math.inf)
            case "extend" if self._holds(op, state):
                return state._replace(until=state.at + op.lock_s / (1 + FAST))
        return None

    @staticmethod
    def _holds(op: Op, state: State, *, finishes: bool = False) -> bool:
        """Whether the request's token is good; one whose lock ran out still completes the job while nobody else has it."""
        return state.token == op.token and (state.phase == ACTIVE or (finishes and state.phase == WAITING))

    @staticmethod
    def _read(op: Op, state: State) -> State | None:
        if state.phase != SHOWN[op.seen]:
            return None
        if state.phase == ABSENT:
            return state
        if op.job_id is not None and state.job_id not in (None, op.job_id):
            return None
        if state.phase == COMPLETED and op.result is not None and op.result != state.result:
            return None
        return state if op.job_id is None else state._replace(job_id=op.job_id)

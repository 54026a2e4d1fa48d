"""Where calls of clients say what time it is, for tests: forwards, backwards, and by nothing else."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.bullmq.presence import ListClients, NotePresence
from quorumq.node.machine.operations.bullmq.sessions import CallOnce
from quorumq.node.machine.operations.clock import AdvanceClock
from quorumq.node.machine.operations.jobs import PushJobs
from quorumq.node.machine.refusals import Refusal
from quorumq.node.machine.state import job_spec
from quorumq.node.machine.state.bullmq.presence import LEASE_MS, Client
from quorumq.node.machine.state.bullmq.sessions import FORGET_MS
from tests.support.world import START_MS, encode

YEAR_MS = 365 * 24 * 3600 * 1000


class Told:
    """A machine that is told the time, and the log's clock, which goes on beside it."""

    def __init__(self) -> None:
        self.machine = Machine(timed_by_clients=True)
        self.log_ms = START_MS
        self.numbers = itertools.count(1)

    def apply(self, operation: Operation) -> Any:
        self.log_ms += 1_000
        (outcome,) = self.machine.apply(self.machine.index + 1, self.log_ms, [encode([operation])])[0]
        if isinstance(outcome, Refusal):
            raise outcome
        return outcome

    def at(self, now_ms: int, operation: Operation) -> Any:
        return self.apply(CallOnce("s", next(self.numbers), 0, encode(operation), now_ms))

    def push(self, now_ms: int, job_id: str, **options: Any) -> None:
        self.at(now_ms, PushJobs("q", [job_spec(job_id, b"1", **options)]))

    @property
    def now_ms(self) -> int:
        return self.machine.state.now_ms


@pytest.fixture
def told() -> Told:
    return Told()


def test_time_is_what_the_last_call_says(told: Told) -> None:
    for number, now_ms in enumerate((5_000, 5_000 + 9 * YEAR_MS, 0, 4_000)):
        told.push(now_ms, f"j{number}")
        assert told.machine.state.jobs[f"j{number}"].created_at == told.now_ms == now_ms
    told.apply(AdvanceClock())
    assert told.now_ms == 4_000


def test_what_is_delayed_is_due_when_a_call_says_so(told: Told) -> None:
    told.push(10_000, "later", delay_ms=500)
    told.push(10_499, "a")
    told.apply(AdvanceClock())
    assert told.machine.state.jobs["later"].state == "delayed"
    told.push(10_500, "b")
    assert told.machine.state.jobs["later"].state == "waiting"


def test_a_call_that_is_sent_again_does_not_move_time(told: Told) -> None:
    call = CallOnce("s", 1, 0, encode(PushJobs("q", [job_spec("a", b"1")])), 1_000)
    told.apply(call)
    next(told.numbers)
    told.push(2_000, "b")
    assert told.apply(call).ids == ["a"]
    assert told.now_ms == 2_000


def test_neither_sessions_nor_clients_end_by_what_a_call_says(told: Told) -> None:
    told.apply(NotePresence("n1", [Client("c", "q", "worker", "h:1")]))
    told.push(max(FORGET_MS, LEASE_MS) * 2 + YEAR_MS, "a")
    told.at(YEAR_MS * 9, NotePresence("n2", [Client("d", "q", "worker", "h:2")]))
    clients, _ = ListClients("q").answer(told.machine.state)
    assert [one.id for one in clients] == ["c", "d"]
    assert list(told.machine.state.bullmq.sessions.by_id) == ["s"]


def test_it_stays_so_after_an_image(told: Told) -> None:
    told.push(YEAR_MS, "a")
    image = list(told.machine.image())
    other = Told()
    other.numbers = told.numbers
    other.machine.restore(image)
    other.push(5, "b")
    assert other.now_ms == 5
    assert other.machine.state.bullmq.presence.lasting and other.machine.state.bullmq.sessions.lasting

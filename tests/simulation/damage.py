"""Ways in which the memory of one replica goes wrong while its log stays right."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from quorumq.node.machine.state import RateLimit, State
from quorumq.node.machine.state.job import ACTIVE, DELAYED, WAITING, rank_of

QUEUE, HELD_QUEUE, LATER_QUEUE = "q", "held", "later"
LONG_MS = 60_000


def _waiting(state: State) -> str:
    return next(job.id for job in state.queues[QUEUE].jobs.values() if job.state == WAITING)


def _data(state: State) -> None:
    state.jobs[_waiting(state)].data = b'{"n":2}'


def _held(state: State) -> None:
    """Of a job that nobody else gets: no later answer shows it."""
    next(job for job in state.queues[HELD_QUEUE].jobs.values() if job.state == ACTIVE).data = b"2"


def _later(state: State) -> None:
    """Of a job whose time does not come."""
    jobs = state.queues[LATER_QUEUE].jobs.values()
    next(job for job in jobs if job.state == DELAYED and job.opts.delay_ms > LONG_MS).data = b"2"


def _pause(state: State) -> None:
    queue = state.queues[QUEUE]
    queue.settings = msgspec.structs.replace(queue.settings, paused=True)


def _rate(state: State) -> None:
    queue = state.queues[QUEUE]
    queue.settings = msgspec.structs.replace(queue.settings, rate=RateLimit(1000))


def _index(state: State) -> None:
    state.queues[QUEUE].ready.remove(rank_of(state.jobs[_waiting(state)]))


DAMAGES: dict[str, Callable[[State], None]] = {
    "data": _data,
    "held": _held,
    "later": _later,
    "pause": _pause,
    "rate-limit": _rate,
    "index": _index,
}

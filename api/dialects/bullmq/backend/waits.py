"""Waiting for something to take: workers that have nothing to do.

Nothing is taken by waiting. Whoever is woken keeps its place among those who are after the same jobs until it has asked for one, or a
moment has passed: so one job wakes one worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from quorumq.node.long_polls import Waiter
from quorumq.node.machine.operations.runs import PullJobs

from .rows import Args, Asked, Row, own

WAIT_MS_MAX = 3_600_000
# How long a worker that was woken may take to ask for a job before another one is.
HOLD_S = 0.05
# Where clients say what time it is, how often it is looked whether a job was delayed until before the end.
LOOK_S = 0.02


class Wait(Args):
    """ms: how long, an hour at most."""

    ms: float


async def wait(asked: Asked, args: Wait) -> int | None:
    """Return 0 as soon as there is something to take, as far as this node knows; None when the time is over.

    Where clients say what time it is, no job becomes due by itself: then the time of the first one is returned that will be due before.
    """
    node = asked.server.node
    if node.draining:
        return None
    waiter = node.waiters.join(PullJobs(asked.queue))
    is_woken, due_ms = False, None
    try:
        left_s = min(args.ms, WAIT_MS_MAX) / 1000
        if asked.said_ms is None:
            is_woken = await waiter.sleep(left_s)
        while asked.said_ms is not None and not is_woken and due_ms is None and left_s > 0 and not node.draining:
            is_woken = await waiter.sleep(min(left_s, LOOK_S))
            due_ms = first_due_ms(asked, asked.said_ms + int(args.ms))
            left_s -= LOOK_S
    finally:
        if is_woken and not node.draining:
            asked.connection.holds.add(waiter)
        else:
            node.waiters.leave(waiter)
    return 0 if is_woken else due_ms


def first_due_ms(asked: Asked, before_ms: int) -> int | None:
    """Return when the first delayed job of a queue is due, if that is before a time."""
    queue = asked.server.node.machine.state.queues.get(asked.queue)
    first = None if queue is None else queue.delayed.first()
    return None if first is None or first.run_at >= before_ms else first.run_at


class Holds:
    """Waiters of one connection that were woken and have not asked for a job yet, by queue, the oldest first."""

    def __init__(self, leave: Callable[[Waiter], None]) -> None:
        self._leave = leave
        self._of_queue: dict[str, dict[Waiter, asyncio.TimerHandle]] = {}

    def add(self, waiter: Waiter) -> None:
        """Keep a waiter's place."""
        timer = asyncio.get_running_loop().call_later(HOLD_S, self._end, waiter)
        self._of_queue.setdefault(waiter.queue, {})[waiter] = timer

    def asked(self, queue: str) -> None:
        """Somebody of the connection has asked for a job of a queue."""
        waiters = self._of_queue.get(queue)
        if waiters:
            self._end(next(iter(waiters)))

    def end(self) -> None:
        """The connection is gone."""
        for waiters in list(self._of_queue.values()):
            for waiter in list(waiters):
                self._end(waiter)

    def _end(self, waiter: Waiter) -> None:
        waiters = self._of_queue[waiter.queue]
        waiters.pop(waiter).cancel()
        if not waiters:
            del self._of_queue[waiter.queue]
        self._leave(waiter)


ROWS: tuple[Row, ...] = (own("wait", wait, right="consume", takes=Wait),)

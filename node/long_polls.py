"""Those who wait on this node: for a job of a queue (long polls, first come first served), or for a job's end.

They are woken by what the local apply reports. Waiters of several nodes may go for the same job; whoever loses goes on
waiting at its old place. Nothing of this is replicated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from quorumq.cluster.errors import NotApplied
from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operation import Entry
from quorumq.node.machine.operations.runs import PullJobs
from quorumq.node.machine.state.job import Job
from quorumq.node.machine.state.queue import Queue

T = TypeVar("T")

WAITERS_MAX = 50_000
# A queue that time alone will open is looked at again no sooner than this.
LOOK_AGAIN_S = 0.005
# And no later than this: the log's clock may go a little faster than the loop's, and may be set.
LOOK_AGAIN_S_MAX = 1.0


class Waiter:
    """One long poll. It sleeps, is woken to try, and sleeps again when others were faster."""

    __slots__ = ("_future", "active_max", "count", "owner", "queue", "trying")

    def __init__(self, op: PullJobs) -> None:
        self.queue = op.queue
        self.count = op.count
        self.owner = op.owner
        self.active_max = op.active_max
        self.trying = False
        self._future: asyncio.Future[bool] | None = None

    def wake(self, worth_trying: bool) -> None:
        """End the sleep; False means there is no point in going on."""
        if self._future is not None and not self._future.done():
            self._future.set_result(worth_trying)

    def has_room(self, queue: Queue) -> bool:
        """Whether its owner may have one more job of the queue."""
        return self.active_max is None or queue.room_for(self.owner, self.active_max) > 0

    async def sleep(self, timeout_s: float) -> bool:
        """Return True when it is this waiter's turn to try, False when the time is over."""
        if self.trying:
            return True
        if timeout_s <= 0:
            return False
        loop = asyncio.get_running_loop()
        self._future = loop.create_future()
        timer = loop.call_later(timeout_s, self.wake, False)
        try:
            return await self._future
        finally:
            timer.cancel()
            self._future = None


class _Line:
    """The waiters of one queue in order of arrival."""

    __slots__ = ("bounded", "timer", "trying", "waiters")

    def __init__(self) -> None:
        # Waiters whose owners may have only so many jobs: any entry may make room for them.
        self.bounded = 0
        # A dictionary for its order and its quick removal; the values say nothing.
        self.waiters: dict[Waiter, None] = {}
        # Jobs that woken waiters are on their way to take.
        self.trying = 0
        self.timer: asyncio.TimerHandle | None = None


class Waiters:
    """All waiters of this node."""

    def __init__(self, machine: Machine, clock: Callable[[], int]) -> None:
        self._machine = machine
        self._clock = clock
        self._lines: dict[str, _Line] = {}
        # Those of them with somebody who may have only so many jobs.
        self._bounded: dict[str, _Line] = {}
        self._count = 0
        self._closed = False
        self._ends: dict[str, list[tuple[asyncio.Future[Any], Callable[[Job], Any]]]] = {}
        machine.listen(self._on_entry)

    @property
    def count(self) -> int:
        """How many long polls wait."""
        return self._count

    def waiting_for(self, queue: str) -> bool:
        """Whether somebody waits for jobs of this queue."""
        return queue in self._lines

    def close(self) -> None:
        """Send everybody away with nothing, now and from now on: the node is about to stop."""
        self._closed = True
        for line in self._lines.values():
            for waiter in line.waiters:
                waiter.wake(False)
        for waiting in self._ends.values():
            for future, _ in waiting:
                if not future.done():
                    future.cancel()

    # -- For a job of a queue

    def join(self, op: PullJobs) -> Waiter:
        """Stand in line for what a pull would take. Raises NotApplied when too many do."""
        if self._count >= WAITERS_MAX or self._closed:
            raise NotApplied("this node cannot hold more waiting requests")
        self._count += 1
        line = self._lines.setdefault(op.queue, _Line())
        waiter = Waiter(op)
        line.waiters[waiter] = None
        if op.active_max is not None:
            line.bounded += 1
            self._bounded[op.queue] = line
        self._serve(op.queue, line)
        return waiter

    def tried(self, waiter: Waiter) -> None:
        """Note that a woken waiter has been at the queue."""
        line = self._lines[waiter.queue]
        if waiter.trying:
            waiter.trying = False
            line.trying -= waiter.count

    def leave(self, waiter: Waiter) -> None:
        """Step out of line."""
        line = self._lines[waiter.queue]
        self.tried(waiter)
        self._count -= 1
        del line.waiters[waiter]
        if waiter.active_max is not None:
            line.bounded -= 1
            if not line.bounded:
                del self._bounded[waiter.queue]
        if line.waiters:
            # What it was woken for may be there for the next.
            self._serve(waiter.queue, line)
        else:
            if line.timer is not None:
                line.timer.cancel()
            del self._lines[waiter.queue]

    def look(self, waiter: Waiter) -> None:
        """Look whether there is something for anybody in the line of a waiter that found nothing.

        What only this node's clock says can be had was not to be had by the log's clock a moment ago: to ask again at once
        would fill the log.
        """
        name, line = waiter.queue, self._lines[waiter.queue]
        queue = self._machine.state.queues.get(name)
        if queue is None:
            return
        if queue.claimable(self._machine.state.now_ms) > 0:
            self._serve(name, line)
        else:
            self._look_later(name, line, queue, self._now_ms())

    def _now_ms(self) -> int:
        return max(self._clock(), self._machine.state.now_ms)

    def _serve(self, name: str, line: _Line) -> None:
        """Wake as many waiters as there are jobs, the longest waiting first."""
        queue = self._machine.state.queues.get(name)
        if queue is None:
            return
        now_ms = self._now_ms()
        free = queue.claimable(now_ms) - line.trying
        if free > 0:
            for waiter in line.waiters:
                if waiter.trying or not waiter.has_room(queue):
                    continue
                waiter.trying = True
                line.trying += waiter.count
                waiter.wake(True)
                free -= waiter.count
                if free <= 0:
                    break
        elif not line.trying:
            self._look_later(name, line, queue, now_ms)

    def _look_later(self, name: str, line: _Line, queue: Queue, now_ms: int) -> None:
        """Serve a line again when a limit ends: nothing happens in the log then, so the clock has to tell."""
        at_ms = queue.next_free_ms(now_ms) if line.timer is None else None
        if at_ms is not None:
            after_s = min(max((at_ms - now_ms) / 1000, LOOK_AGAIN_S), LOOK_AGAIN_S_MAX)
            line.timer = asyncio.get_running_loop().call_later(after_s, self._limit_over, name)

    def _limit_over(self, name: str) -> None:
        line = self._lines.get(name)
        if line is not None:
            line.timer = None
            self._serve(name, line)

    # -- For a job's end

    def on_end(self, job_id: str, view: Callable[[Job], T]) -> asyncio.Future[T]:
        """Return a future that gets `view(job)` when the job completes; forget it with `off_end`."""
        if self._count >= WAITERS_MAX or self._closed:
            raise NotApplied("this node cannot hold more waiting requests")
        self._count += 1
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._ends.setdefault(job_id, []).append((future, view))
        self._machine.watch(job_id)
        return future

    def off_end(self, job_id: str, future: asyncio.Future[Any]) -> None:
        """Wait no longer for a job's end."""
        self._count -= 1
        waiting = [item for item in self._ends[job_id] if item[0] is not future]
        if waiting:
            self._ends[job_id] = waiting
        else:
            del self._ends[job_id]
        self._machine.unwatch(job_id)

    # -- What the log brings

    def _on_entry(self, entry: Entry) -> None:
        if self._lines:
            for name in entry.woken:
                line = self._lines.get(name)
                if line is not None:
                    self._serve(name, line)
            for name, line in self._bounded.items():
                if name not in entry.woken:
                    self._serve(name, line)
        for job in entry.ended:
            for future, view in self._ends.get(job.id, ()):
                if not future.done():
                    try:
                        future.set_result(view(job))
                    except Exception as problem:
                        future.set_exception(problem)

"""When a node does something: one step soon after anything happened, and from a timer; long work a few milliseconds at a time.

It knows nothing of what the step does. An exception inside any of it ends the node: half-done consensus is worse than a node less.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Protocol, TypeVar

from quorumq.cluster.errors import NodeRemoved, NotUnderstood
from quorumq.cluster.metrics import ReplicationMetrics
from quorumq.cluster.seams import Clock

T = TypeVar("T")
log = logging.getLogger("quorumq.cluster")

_STALL_S = 0.25


class DriverEnvironment(Protocol):
    """How fast (cluster/environment.py)."""

    tick_s: float
    slice_s: float

    def pause_s(self) -> float: ...


class Driver:
    """One node's turns on the event loop.

    step: the one step.  stalled: called when the event loop stood still for more than a quarter of a second.
    """

    loop: asyncio.AbstractEventLoop
    failed: asyncio.Future[None]
    """Gets the error that ended this node."""

    def __init__(
        self,
        pace: DriverEnvironment,
        metrics: ReplicationMetrics,
        step: Callable[[], None],
        stalled: Callable[[], None],
    ) -> None:
        self._pace = pace
        self._metrics = metrics
        self._step = step
        self._stalled = stalled
        self._scheduled = False
        self._ticked_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.stopped = False

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Everything happens on `loop`."""
        self.loop = loop
        self.failed = loop.create_future()

    def tick(self) -> None:
        """Have a step done, and again at every tick from now on."""
        if self.stopped:
            return
        now, metrics = Clock.now(), self._metrics
        if self._ticked_at:
            late = max(0.0, now - self._ticked_at - self._pace.tick_s)
            metrics.loop_seconds.observe(late)
            metrics.loop_longest_seconds = max(metrics.loop_longest_seconds, late)
            if late > _STALL_S:
                metrics.loop_stalls += 1
                try:
                    self._stalled()
                except Exception as error:
                    # Else no tick would follow, and nobody would notice.
                    self.fail(error)
                    return
                log.warning("the event loop stood still for %.0f ms", late * 1000)
        self._ticked_at = now
        self.poke()
        self._timer = self.loop.call_later(self._pace.tick_s, self.tick)

    @property
    def silent_s(self) -> float:
        """For how long no tick has come; 0 before the first one and after this node has ended."""
        return 0.0 if self.stopped or not self._ticked_at else Clock.now() - self._ticked_at

    def poke(self) -> None:
        """Something happened: have a step done soon."""
        if not self._scheduled and not self.stopped:
            self._scheduled = True
            self.loop.call_soon(self.drive)

    def drive(self) -> None:
        """Do a step now."""
        self._scheduled = False
        if self.stopped:
            return
        try:
            self._step()
        except Exception as error:
            # Whatever is half done in the engine cannot be trusted any more; another node takes over.
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """This node cannot go on: it does nothing more, and `failed` says why."""
        if not self.failed.done():
            # A node that was removed, or is too old, has nothing wrong with it: whoever runs it says why it ends.
            if not isinstance(error, (NodeRemoved, NotUnderstood)):
                log.critical("this node cannot go on: %s: %s", type(error).__name__, error, exc_info=error)
            self.failed.set_exception(error)
        self._end()

    def stop(self) -> None:
        """Do nothing more, and end what runs in the background."""
        self._end()
        for task in self._tasks:
            task.cancel()

    def _end(self) -> None:
        self.stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work` in the background; it ends with this node."""
        self._tasks.add(task := self.loop.create_task(work))
        task.add_done_callback(self._tasks.discard)

    def step_by_step(self, steps: Generator[None, None, T], done: Callable[[T], None]) -> None:
        """Run `steps` to their end, a few milliseconds at a time, and then call `done` with what they return."""
        if self.stopped:
            return
        began = self.loop.time()
        try:
            while self.loop.time() - began <= self._pace.slice_s:
                next(steps)
                if not self._pace.slice_s:
                    break
            self.loop.call_later(self._pace.pause_s(), self.step_by_step, steps, done)
            return
        except StopIteration as end:
            result = end.value
        except Exception as error:
            self.fail(error)
            return
        try:
            done(result)
        except Exception as error:
            self.fail(error)

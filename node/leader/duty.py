"""What only the leader does: how such a duty follows the node's role, sleeps until something is due, and submits it.

Every node has every duty, and only the leader's do anything. A node may lead no more without knowing it yet, so what a duty
submits must do no harm then: that is decided where the operation is applied.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from quorumq.cluster.errors import ClusterError
from quorumq.node.batching import Batcher, same
from quorumq.node.engine import ReplicatedLog
from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operation import Entry, Operation
from quorumq.node.machine.refusals import Refusal

log = logging.getLogger("quorumq.leading")

# An operation of a duty waits this long for a quorum.
TIMEOUT_S = 5.0
# The log's clock may go a little faster than the loop's, and may be set: no sleep until a time is longer than this.
SLEEP_S_MAX = 1.0


class LeaderDuty(ABC):
    """Looks for something to do when this node begins to lead, and after each entry while it leads."""

    def __init__(self, engine: ReplicatedLog, machine: Machine, batcher: Batcher) -> None:
        self._engine = engine
        self._machine = machine
        self._batcher = batcher
        self._leads = False
        self._stopped = False

    def start(self) -> None:
        """Follow the node's role from now on."""
        self._machine.listen(self._on_entry)
        self._engine.on_role_change(self._on_role_change)
        self._on_role_change(self._engine.is_leader)

    @abstractmethod
    def look(self) -> None:
        """Do what there is to do, if this node leads and has not been stopped."""

    def _on_role_change(self, leads: bool) -> None:
        self._leads = leads
        if leads:
            self.look()

    def _on_entry(self, entry: Entry) -> None:
        # Runs after every entry: a duty that can tell quickly that nothing is new asks for that first.
        if self._leads:
            self.look()


class TimedDuty(LeaderDuty):
    """Submits what is due, one operation at a time, and sleeps in between.

    again_s: seconds until an operation that did not get through is tried again.
    """

    again_s: float

    def __init__(self, engine: ReplicatedLog, machine: Machine, batcher: Batcher, clock: Callable[[], int]) -> None:
        super().__init__(engine, machine, batcher)
        self._clock = clock
        self._under_way: asyncio.Future[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        # The time that the timer stands for, in ms; 0 when there is no timer, or one for a number of seconds.
        self._timer_ms = 0

    def stop(self) -> None:
        """Submit nothing more."""
        self._stopped = True
        self._sleep_until(0)

    def look(self) -> None:
        """Submit what is due, unless something is under way, which is looked after when it comes back."""
        if not self._leads or self._stopped or self._under_way is not None:
            return
        operation = self._due()
        if operation is None:
            return
        self._sleep_until(0)
        try:
            self._under_way = self._batcher.add(operation, same, TIMEOUT_S)
        except ClusterError as error:
            self._failed(error)
            return
        self._under_way.add_done_callback(self._done)

    @abstractmethod
    def _due(self) -> Operation | None:
        """Return what is to be submitted now; or nothing, after `_sleep_until` or `_sleep_for` the next look."""

    def _applied(self, reply: Any) -> None:
        """Go on after an operation was applied."""
        self.look()

    def _now_ms(self) -> int:
        return max(self._clock(), self._machine.state.now_ms)

    def _on_role_change(self, leads: bool) -> None:
        if not leads:
            self._sleep_until(0)
        super()._on_role_change(leads)

    def _done(self, future: asyncio.Future[Any]) -> None:
        self._under_way = None
        if future.cancelled():
            self._sleep_for(self.again_s)
            return
        error = future.exception()
        if error is None:
            self._applied(future.result())
        else:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, ClusterError | Refusal):
            log.debug("%s did not get through: %s", type(self).__name__, error)
        else:
            log.error("%s failed", type(self).__name__, exc_info=error)
        self._sleep_for(self.again_s)

    # -- The timer

    def _sleep_until(self, due_ms: int) -> None:
        """Look again at a time in ms; 0 for not before something happens."""
        if self._timer is not None:
            if due_ms and due_ms == self._timer_ms:
                return
            self._timer.cancel()
            self._timer = None
        self._timer_ms = due_ms
        if due_ms and not self._stopped:
            wait_ms = max(due_ms - self._clock(), 1)
            self._timer = asyncio.get_running_loop().call_later(min(wait_ms / 1000, SLEEP_S_MAX), self._wake)

    def _sleep_for(self, after_s: float) -> None:
        """Look again after so many seconds, or earlier when something happens."""
        self._sleep_until(0)
        if self._leads and not self._stopped:
            self._timer = asyncio.get_running_loop().call_later(after_s, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.look()

"""The leader's pulse: when something is due and no other entry did it, an entry that does.

It sleeps until the first alarm of the state and submits `clock.advance`; nothing is due, nothing runs. Every node has
one, only the leader's beats.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from cluster.errors import ClusterError
from node.batching import Batcher
from node.engine import Engine
from node.machine import Entry, Machine
from node.operations.clock import AdvanceClock

log = logging.getLogger("quorumq.pulse")

# A beat that could not be replicated, or that the log's clock has not reached yet, is tried again after this long.
AGAIN_S = 0.05
LATE_MS = 5
TIMEOUT_S = 5.0


class Pulse:
    """Beats while this node leads."""

    def __init__(self, engine: Engine, machine: Machine, batcher: Batcher, clock: Callable[[], int]) -> None:
        self._engine = engine
        self._machine = machine
        self._batcher = batcher
        self._clock = clock
        self._leads = False
        self._stopped = False
        self._beating: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms = 0
        self.beats = 0

    def start(self) -> None:
        """Follow the node's role from now on."""
        self._machine.listen(self._on_entry)
        self._engine.on_role_change(self._on_role_change)
        self._on_role_change(self._engine.is_leader)

    def stop(self) -> None:
        """Beat no more."""
        self._stopped = True
        self._set_timer(None)

    def _on_role_change(self, leads: bool) -> None:
        self._leads = leads
        if leads:
            self._look()
        else:
            self._set_timer(None)

    def _on_entry(self, entry: Entry) -> None:
        if self._leads:
            self._look()

    def _look(self) -> None:
        """Beat if something is due, else sleep until it is."""
        if not self._leads or self._stopped or self._beating is not None:
            return
        state = self._machine.state
        now_ms = max(self._clock(), state.now_ms)
        due_ms = state.next_due_ms(now_ms)
        if due_ms is not None and due_ms <= now_ms:
            self._set_timer(None)
            self._beat()
        else:
            self._set_timer(due_ms)

    def _set_timer(self, due_ms: int | None) -> None:
        if self._timer is not None:
            if due_ms == self._timer_ms:
                return
            self._timer.cancel()
            self._timer = None
        if due_ms is not None:
            wait_ms = max(due_ms - self._clock(), 1)
            self._timer_ms = due_ms
            self._timer = asyncio.get_running_loop().call_later(wait_ms / 1000, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._look()

    def _beat(self) -> None:
        self.beats += 1
        try:
            self._beating = self._batcher.submit(AdvanceClock(), _nothing, TIMEOUT_S)
        except ClusterError:
            self._again(AGAIN_S)
            return
        self._beating.add_done_callback(self._beaten)

    def _beaten(self, beat: asyncio.Future[None]) -> None:
        self._beating = None
        error = None if beat.cancelled() else beat.exception()
        if error is not None:
            log.debug("a beat did not get through: %s", error)
            self._again(AGAIN_S)
            return
        state = self._machine.state
        now_ms = self._clock()
        due_ms = state.next_due_ms(now_ms)
        if due_ms is not None and state.now_ms < due_ms <= now_ms:
            # The log's clock is behind this one; beating on would only fill the log.
            self._again(LATE_MS / 1000)
        else:
            self._look()

    def _again(self, after_s: float) -> None:
        if not self._stopped:
            self._set_timer(None)
            self._timer_ms = 0
            self._timer = asyncio.get_running_loop().call_later(after_s, self._wake)


def _nothing(reply: object) -> None:
    return None

"""The log's clock: when something is due and no other entry did it, an entry that does.

It sleeps until the first timer of the state and submits `clock.advance`; nothing is due, nothing runs. Every node has
one, only the leader's beats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quorumq.node.batching import Batcher
from quorumq.node.engine import ReplicatedLog
from quorumq.node.leader.duty import TimedDuty
from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.clock import AdvanceClock

# A beat that did not get through, or one that the log's clock was behind for, is tried again after this long.
AGAIN_S = 0.05
BEHIND_S = 0.005


class ClockDuty(TimedDuty):
    """Beats while this node leads."""

    again_s = AGAIN_S

    def __init__(self, engine: ReplicatedLog, machine: Machine, batcher: Batcher, clock: Callable[[], int]) -> None:
        super().__init__(engine, machine, batcher, clock)
        self.beats = 0

    def _due(self) -> Operation | None:
        now_ms = self._now_ms()
        due_ms = self._machine.state.next_due_ms(now_ms)
        if due_ms is None or due_ms > now_ms:
            self._sleep_until(due_ms or 0)
            return None
        self.beats += 1
        return AdvanceClock()

    def _applied(self, reply: Any) -> None:
        state = self._machine.state
        now_ms = self._clock()
        due_ms = state.next_due_ms(now_ms)
        if due_ms is not None and state.now_ms < due_ms <= now_ms:
            # The log's clock is behind this one; beating on would only fill the log.
            self._sleep_for(BEHIND_S)
        else:
            self.look()

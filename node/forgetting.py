"""Says in the log that answers of idempotency keys had to go before their day was over, and whose were most of them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from quorumq.node.engine import ReplicatedLog
from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operation import Entry

if TYPE_CHECKING:
    from quorumq.node.machine.state.outcomes import Outcomes

log = logging.getLogger("quorumq.keys")

TELL_AFTER_MS = 60_000


class Forgetting:
    """Looks at the state after every entry; the leader tells, once a minute of the log's clock at most."""

    def __init__(self, engine: ReplicatedLog, machine: Machine) -> None:
        self._engine = engine
        self._machine = machine
        self._told = (0, 0)
        self._tell_at = 0
        machine.listen(self._on_entry)

    def _on_entry(self, entry: Entry) -> None:
        outcomes = self._machine.state.outcomes
        found = (outcomes.evicted, outcomes.lost)
        if found == self._told or entry.now_ms < self._tell_at:
            return
        if self._engine.is_leader and found > self._told:
            self._tell(outcomes)
        self._told, self._tell_at = found, entry.now_ms + TELL_AFTER_MS

    def _tell(self, outcomes: Outcomes) -> None:
        evicted, lost = outcomes.evicted - self._told[0], outcomes.lost - self._told[1]
        whose = outcomes.largest() or "clients without a token"
        if lost > 0:
            log.error(
                "%d idempotency keys are forgotten altogether before their day was over, most are of %s: "
                "a repeat of such a request is done again", lost, whose,
            )  # fmt: skip
        elif evicted > 0:
            log.warning(
                "the answers of %d idempotency keys had to go before their day was over, most are of %s: "
                "a repeat of such a request is refused as key_forgotten", evicted, whose,
            )  # fmt: skip

"""The passing of time as a log entry of its own, for when nothing else happens."""

from __future__ import annotations

from quorumq.node.machine.operation import Entry, Operation, operation
from quorumq.node.machine.state import State


@operation()
class AdvanceClock(Operation, frozen=True, tag="clock.advance"):
    """Do what has become due. Every entry does that before its operations; this one has nothing else to do."""

    def apply(self, state: State, entry: Entry) -> None:
        return None

"""What streams of events need of all nodes: that those without a listener keep events too, for clients that come over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.operation import Operation, operation

if TYPE_CHECKING:
    from node.machine import Entry
    from node.state import State


@operation()
class KeepEvents(Operation, frozen=True, tag="stream.keep"):
    """Have every node collect events for a while, because one of them has a client that may go on at another.

    for_ms: how long, from now.
    """

    for_ms: int

    def apply(self, state: State, entry: Entry) -> None:
        state.events_until = max(state.events_until, state.now_ms + self.for_ms)

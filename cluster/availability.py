"""Whether writes were possible before an entry: after a time when they were not, the state machine gives clients time to be heard first.

They are not possible while there is no leader, or while the leader stands still. The entry after that says so. But an entry that comes
when a leader could have taken one for a while already has nothing to make up for: whoever had something to say would have made one.
"""

from __future__ import annotations

RESUMED_S = 1.0
"""For so long a leader has to be able to take writes: enough to connect to another node and repeat a request."""


class Availability:
    """One node's memory of it, as long as it leads."""

    def __init__(self) -> None:
        self._lost = False
        self._again_at: float | None = None

    def lost(self) -> None:
        """Writes were not possible until now."""
        self._lost, self._again_at = True, None

    def not_leading(self) -> None:
        """This node leads no more: it is not its affair."""
        self._lost = False

    def look(self, now: float, *, able: bool) -> None:
        """able: whether a write that comes now can become an entry, and that be committed."""
        if self._lost and self._again_at is None and able:
            self._again_at = now

    def resumed(self, now: float) -> bool:
        """Whether writes were not possible just before the entry that is made now. The next one says nothing of it."""
        just, self._lost = self._lost, False
        return just and (self._again_at is None or now - self._again_at < RESUMED_S)

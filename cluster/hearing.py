"""Whether what clients say could be heard before an entry: the state machine then gives them time to be heard first.

Nobody is heard while there is no leader, or while the leader stands still. The entry after that says so. But an entry that comes when
a leader could have taken one for a while already has nothing to make up for: whoever had something to say would have made one.
"""

from __future__ import annotations

HEARD_S = 1.0
"""For so long a leader has to be able to take writes: enough to connect to another node and repeat a request."""


class Hearing:
    """One node's memory of it, as long as it leads."""

    def __init__(self) -> None:
        self._lost = False
        self._again_at: float | None = None

    def lost(self) -> None:
        """Nobody could be heard until now."""
        self._lost, self._again_at = True, None

    def none_of_ours(self) -> None:
        """This node leads no more: it is not its affair."""
        self._lost = False

    def look(self, now: float, *, able: bool) -> None:
        """able: whether a write that comes now can become an entry, and that be committed."""
        if self._lost and self._again_at is None and able:
            self._again_at = now

    def say(self, now: float) -> bool:
        """What the entry that is made now has to say: whether nobody could be heard just before. The next one says nothing."""
        just, self._lost = self._lost, False
        return just and (self._again_at is None or now - self._again_at < HEARD_S)

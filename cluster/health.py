"""Whether the disk under the log answers: it may hang without an error, and then nothing else says so."""

from __future__ import annotations

import logging

log = logging.getLogger("quorumq.log")

_SLOW_S, _SLOW_AGAIN_S = 0.25, 1.0
"""A write of the log that took longer is worth a line, one in so many seconds at most."""
_STILL_S = 0.25
"""A step that comes later than this after the one before shows that the process stood still, and its disk's thread with it."""


class DiskHealth:
    """Watches the group of the log that is being written.

    hung_s: a disk on which one has been under way for so long hangs.  well_s: one on which none has for this long is well.
    """

    def __init__(self, hung_s: float, well_s: float) -> None:
        self._hung_s = hung_s
        self._well_s = well_s
        self._group = 0
        self._since = 0.0
        self._looked_at: float | None = None
        self.waiting_s = 0.0
        """For how long the group has been under way, 0 when none is."""
        self.hung = False
        self.hung_since: float | None = None
        """When the group that hangs was begun, in monotonic seconds."""
        self.lasted_s = 0.0
        """For how long the disk hung the last time."""

    def look(self, group: int, now: float) -> bool:
        """Take note of the group that is under way now, 0 for none; returns whether `hung` has changed."""
        looked_at, self._looked_at = self._looked_at, now
        if group != self._group:
            self._group, self._since = group, now
        elif looked_at is not None and now - looked_at > _STILL_S:
            self._since += now - looked_at
        self.waiting_s = now - self._since if group else 0.0
        was, self.hung = self.hung, self.waiting_s >= self._hung_s
        if self.hung:
            self.lasted_s, self.hung_since = self.waiting_s, self._since
        else:
            self.hung_since = None
        return was != self.hung

    def is_well(self, waiting_ms: int) -> bool:
        """Whether a member is well whose group has been under way for so many milliseconds."""
        return waiting_ms < self._well_s * 1000


class SlowWrites:
    """Says so when writes of the log take long: whoever waits for a write, or an election, waits for them."""

    def __init__(self) -> None:
        self._said_at = float("-inf")
        self._more = 0

    def took(self, seconds: float, now: float) -> None:
        """A group was written and synced in so many seconds."""
        if seconds < _SLOW_S:
            return
        if now - self._said_at < _SLOW_AGAIN_S:
            self._more += 1
            return
        more = f", and {self._more} before it took as long" if self._more else ""
        log.warning("a write of the log took %.0f ms%s", seconds * 1000, more)
        self._said_at, self._more = now, 0

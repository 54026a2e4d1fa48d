"""The records of rate limits: so many jobs in so much time."""

from __future__ import annotations

import msgspec

# More tokens than a queue can have jobs: those of a limit that is over.
UNLIMITED = 1 << 62


class RateLimit(msgspec.Struct, frozen=True, gc=False):
    """A token bucket that holds `limit` tokens and refills by `limit` every `duration_ms`, continuously.

    until_ms: when the limit is over, milliseconds since the epoch; 0 for never.
    """

    limit: int
    duration_ms: int = 1000
    until_ms: int = 0

    def is_over(self, now_ms: int) -> bool:
        """Whether the limit's time has passed, so that it holds nothing back any more."""
        return 0 < self.until_ms <= now_ms


class Window(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """At most `max` starts within duration_ms of the first one; then the next window begins with the next start."""

    max: int
    duration_ms: int

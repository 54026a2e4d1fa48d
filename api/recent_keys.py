"""What was done a short while ago, so that it is not done again at once."""

from __future__ import annotations

import time
from collections.abc import Callable


class RecentKeys:
    """Remembers keys for `seconds`, at most `most` of them: beyond that, all are forgotten."""

    def __init__(self, seconds: float, most: int = 10_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._most = most
        self._clock = clock
        self._done: dict[str, float] = {}

    def first(self, key: str) -> bool:
        """Note a key; say whether it was not noted lately."""
        now = self._clock()
        if now < self._done.get(key, 0.0):
            return False
        if len(self._done) >= self._most:
            self._done.clear()
        self._done[key] = now + self._seconds
        return True

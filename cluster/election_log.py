"""The lines about elections in a node's log file, so that a pause can be explained: a few for each, not one a try."""

from __future__ import annotations

import logging
import math

log = logging.getLogger("quorumq.raft")


class ElectionLog:
    """How often, and since when, this node has asked who would vote for it, with no leader heard meanwhile."""

    def __init__(self) -> None:
        self._since = 0.0
        self._times = 0

    def asks(self, term: int, leader: str | None, silent_s: float, now: float, *, reset: bool) -> None:
        """It asks for `term`. leader: the last one known, silent for so long; reset: that one cut its connection."""
        self._times += 1
        if self._times > 1:
            return
        self._since = now
        if leader is None or math.isinf(silent_s):
            why = "no leader is known"
        elif reset:
            why = f"its leader {leader} cut the connection or stepped down"
        else:
            why = f"nothing was heard of its leader {leader} for {silent_s * 1000:.0f} ms"
        log.info("asks who would vote for it in term %d: %s", term, why)

    def stands(self, term: int, now: float, *, asked: bool) -> None:
        """It stands in `term`; asked: because it asked, and not because the leader told it to."""
        if asked and self._times:
            log.info(
                "stands in term %d, %.0f ms and %d tries after it asked first",
                term,
                (now - self._since) * 1000,
                self._times,
            )
        else:
            log.info("stands in term %d", term)

    def over(self) -> None:
        """There is a leader."""
        self._times = 0

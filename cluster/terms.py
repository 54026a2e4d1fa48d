"""How far the word of a peer may raise this node's term.

Terms only rise, and the largest that a message can hold would be the last one: nobody could be elected any more, also after restarts.
So the way there is made longer than any cluster lives, for a peer that lies as well as for one that is broken. What an honest peer
says is far below: a term is one election, and even an election storm holds no more than eight a second.
"""

from __future__ import annotations

from quorumq.cluster.messages import FIELDS, Malformed, Message

STEP = 1 << 10
"""A term so far above this node's is believed at once, as often as it is said."""
LEAP = 1 << 32
"""The largest raise: seventeen years of elections without a pause, for a node that was away or is new."""
LEAP_EVERY_S = 10.0
"""Raises above STEP are this far apart: the bound of terms is then a thousand years of lies away."""
RUN_AWAY = 1 << 61
"""No cluster got here by elections."""


class Terms:
    """What one node believes of the terms that it is told."""

    def __init__(self) -> None:
        self._height = 0
        self._leapt_at = float("-inf")

    def check(self, message: Message, mine: int, now: float) -> None:
        """Raise Malformed when a message holds a term that is too far above `mine`, this node's own; now: in seconds."""
        term = message.get("term")
        kind = message["type"]
        if type(term) is not int or "term" not in FIELDS.get(kind, ()):
            return
        # A term that was told, and not taken over yet, is no second leap.
        above = term - max(mine, self._height)
        if above <= STEP:
            return
        if above > LEAP:
            raise Malformed(
                f"{kind} with a term that is {above} above this node's: no honest peer can be that far ahead"
            )
        if now - self._leapt_at < LEAP_EVERY_S:
            raise Malformed(f"{kind} with a term that is {above} above this node's, right after another such raise")
        self._height, self._leapt_at = term, now

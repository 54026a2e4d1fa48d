"""Whose turn it is to write a snapshot: one member at a time, because all at once take disk and processor from everybody.

Each says that it is about to write, and again every second while it does; the others wait. Nobody asks for permission, so a member that
is gone, or of a version that knows nothing of this, holds nobody up.
"""

from __future__ import annotations

from quorumq.cluster.frames import Message
from quorumq.cluster.raft import Raft

SETTLE_S = 0.5
"""From saying so to writing: for so long another one that said so at the same time may have the right of way."""
RENEW_S = 1.0
EXPIRES_S = 5.0
"""What a member said counts for so long."""


class Turns:
    """One node's part in it."""

    def __init__(self, raft: Raft) -> None:
        self._raft = raft
        self._others: dict[str, float] = {}
        self._since: float | None = None
        self._said_at = float("-inf")

    def mine(self, now: float) -> bool:
        """Whether this node, which wants to write, may begin; to be asked again and again until it may."""
        others = [peer for peer, said_at in self._others.items() if now - said_at < EXPIRES_S]
        if self._since is None:
            if not others:
                self._since = now
                self._say(now, taken=True)
            return False
        if now - self._since < SETTLE_S:
            if any(peer < self._raft.id for peer in others):
                self.over(now)
            return False
        return True

    def take(self, now: float) -> None:
        """This node writes, whoever else does: it cannot wait."""
        if self._since is None:
            self._since = now
            self._say(now, taken=True)

    def drive(self, now: float) -> None:
        """Say again what still holds."""
        if self._since is not None and now - self._said_at >= RENEW_S:
            self._say(now, taken=True)

    def over(self, now: float) -> None:
        """This node does not write any more, or not now."""
        if self._since is not None:
            self._since = None
            self._say(now, taken=False)

    def on_turn(self, peer: str, message: Message, now: float) -> None:
        """`peer` writes, or is about to; or does not any more."""
        if message["taken"]:
            self._others[peer] = now
        else:
            self._others.pop(peer, None)

    def peer_down(self, peer: str) -> None:
        """The link to `peer` is gone, and perhaps `peer` itself."""
        self._others.pop(peer, None)

    def _say(self, now: float, *, taken: bool) -> None:
        self._said_at = now
        for peer in self._raft.membership.seats:
            if peer != self._raft.id:
                self._raft.links.send(peer, {"type": "snapshot_turn", "taken": taken})

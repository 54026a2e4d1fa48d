"""What members tell each other when they meet, and what a node makes of it that began with an empty disk: when it may vote.

Such a node may have lost what it promised (finding 15). It says so, the others do not count on it meanwhile, and its probation
ends when nobody has a history, or when it has caught up and knows every member's term.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from cluster.driver import Driver
from cluster.identity import IdentityFile, Probation
from cluster.raft import Message, Raft

log = logging.getLogger("quorumq.cluster")

_WRITE_RETRY_S = 0.5


class Presence:
    """This node's own probation, and which of the others are whole.

    belongs: whether this node knows the members.  has_history: whether it holds entries or a snapshot.
    changed: called when its probation has ended.
    """

    def __init__(
        self,
        raft: Raft,
        driver: Driver,
        identity: IdentityFile,
        probation: Probation | None,
        *,
        belongs: Callable[[], bool],
        has_history: Callable[[], bool],
        changed: Callable[[], None],
    ) -> None:
        self._raft = raft
        self._driver = driver
        self._identity = identity
        self._belongs = belongs
        self._has_history = has_history
        self._changed = changed
        self.probation = probation
        """Until this node is whole."""
        self.whole: set[str] = set()
        """Connected members that hold all they promised."""

    def peer_up(self, peer: str) -> None:
        """Tell `peer` where this node stands."""
        self._raft.links.send(
            peer,
            {
                "type": "present",
                "term": self._raft.term,
                "history": self._has_history(),
                "whole": self.probation is None,
            },
        )

    def peer_down(self, peer: str) -> None:
        """What is known of `peer` may be past."""
        self.whole.discard(peer)

    def on_present(self, peer: str, message: Message) -> None:
        """`peer` tells where it stands."""
        (self.whole.add if message["whole"] else self.whole.discard)(peer)
        if self.probation is not None:
            self.probation.present(peer, message["term"], message["history"])

    def drive(self) -> None:
        """End the probation if that can be."""
        probation = self.probation
        if probation is None or probation.ending or not self._belongs() or probation.missing(self._raft.peers):
            return
        if not probation.history or self._raft.verified:
            # Only once it is on disk that this node is whole: else a crash would begin the probation again, and the
            # promises made meanwhile would not count.
            probation.ending = True
            self._identity.write(self._written, whole=True)

    def _written(self, error: Exception | None) -> None:
        probation = self.probation
        assert probation is not None
        if error is not None:
            self._driver.loop.call_later(_WRITE_RETRY_S, setattr, probation, "ending", False)
            return
        self.probation = None
        self._raft.forbid_votes(probation.term if probation.history else 0)
        self._changed()
        if probation.history:
            log.info("caught up after starting with an empty disk: this node votes again")
        for peer in self._raft.membership.seats:
            if peer != self._raft.id:
                self.peer_up(peer)
        self._driver.poke()

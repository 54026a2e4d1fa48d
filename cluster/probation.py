"""What members tell each other when they meet, and what a node makes of it that began with an empty disk: when it may vote.

Such a node may have lost what it promised (finding 15). It says so, the others do not count on it meanwhile, and its probation
ends when nobody has a history, or when it knows every member's term and has caught up with a leader that none of them outdates.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from quorumq.cluster.driver import Driver
from quorumq.cluster.frames import Message
from quorumq.cluster.identity import IdentityFile, Probation
from quorumq.cluster.levels import Announced, Levels
from quorumq.cluster.raft import Raft
from quorumq.cluster.seams import Clock

log = logging.getLogger("quorumq.cluster")

_WRITE_RETRY_S = 0.5


class Probations:
    """This node's own, and which of the others are on one or whole.

    belongs: whether this node knows the members.  has_history: whether it holds entries or a snapshot.
    changed: called when its probation has ended.
    """

    def __init__(
        self,
        raft: Raft,
        driver: Driver,
        identity: IdentityFile,
        probation: Probation | None,
        levels: Levels,
        *,
        belongs: Callable[[], bool],
        has_history: Callable[[], bool],
        changed: Callable[[], None],
    ) -> None:
        self._raft = raft
        self._driver = driver
        self._identity = identity
        self._levels = levels
        self._belongs = belongs
        self._has_history = has_history
        self._changed = changed
        self.probation = probation
        """Until this node is whole."""
        self.whole: set[str] = set()
        """Connected members that hold all they promised."""
        self.doubted: set[str] = set()
        """Connected members that may not."""

    def peer_up(self, peer: str) -> None:
        """Tell `peer` where this node stands, and have it say the same of itself.

        Each direction has a connection of its own, and what is known of a peer is forgotten with the one to it: where that alone
        broke, the peer has no reason of its own to say it again.
        """
        self._tell(peer, answers=False)

    def _tell(self, peer: str, *, answers: bool) -> None:
        self._raft.links.send(
            peer,
            {
                "type": "present",
                "answers": answers,
                "term": self._raft.term,
                "history": self._has_history(),
                "whole": self.probation is None,
                "version": self._levels.mine.version,
                "level": self._levels.mine.level,
                "doors": self._levels.mine.doors,
            },
        )

    def peer_down(self, peer: str) -> None:
        """What is known of `peer` may be past."""
        self.whole.discard(peer)
        self.doubted.discard(peer)
        self._levels.lost(peer)

    def on_present(self, peer: str, message: Message) -> None:
        """`peer` tells where it stands."""
        if not message.get("answers", True):
            self._tell(peer, answers=True)
        if message["whole"]:
            self.whole.add(peer)
            self.doubted.discard(peer)
        else:
            if peer not in self.doubted and self._has_history():
                log.warning(
                    "%s may have lost what it promised: its word counts for nothing until it has caught up", peer
                )
            self.whole.discard(peer)
            self.doubted.add(peer)
            self._raft.discount(peer)
        said = Announced(message.get("version", ""), message.get("level", 0), message.get("doors", {}))
        self._levels.on_announced(peer, said)
        if self.probation is not None:
            if message["history"] and not self.probation.history and not self._raft.peers:
                log.error(
                    "%s counts this node among the members of its cluster: it joins that as one that was wiped, and founds none. "
                    "Set PEERS to all its members",
                    peer,
                )
            self.probation.present(peer, message["term"], message["history"])

    def drive(self) -> None:
        """End the probation if that can be."""
        probation, raft = self.probation, self._raft
        if probation is None or probation.writing or not self._belongs() or probation.missing(raft.peers):
            return
        if not probation.history and Clock.now() < probation.not_before:
            return
        if probation.ends_at is None:
            # A leader of an earlier term than some member knows of may have been deposed by this node's own vote: what it
            # calls committed is not all that this node promised.
            term = probation.term(raft.peers)
            if probation.history and raft.verified_term < max(term, 1):
                return
            if probation.history:
                raft.forbid_votes(term)
            probation.ends_at = raft.journal.appended
        if raft.journal.durable >= probation.ends_at:
            # Only now, when what was caught up with is on disk: a crash would make it a whole node that lacks it. And only
            # once it is on disk that this node is whole: else a crash would begin the probation again, and the promises
            # made meanwhile would not count.
            probation.writing = True
            self._identity.write(self._written, whole=True, doubted=False)

    def _written(self, error: Exception | None) -> None:
        probation = self.probation
        assert probation is not None
        if error is not None:
            self._driver.loop.call_later(_WRITE_RETRY_S, setattr, probation, "writing", False)
            return
        self.probation = None
        self._changed()
        if probation.history:
            log.info("caught up with what this node may have promised before: its vote and its word count again")
        for peer in self._raft.membership.seats:
            if peer != self._raft.id:
                self.peer_up(peer)
        self._driver.poke()

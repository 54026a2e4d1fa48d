"""Whether this node's state is that of the others: members send each other their digests all the time, and each draws its conclusions.

A node that differs from a majority of the voters which agree with each other is apart: it is not ready, leads no more and writes no
snapshots. Where no such majority is known, all say that they differ and go on, for nobody can tell who is right. What the
digests are made of is the state machine's business; here they are equal or not, at the same entry.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from quorumq.cluster.frames import Message
from quorumq.cluster.raft import Raft

log = logging.getLogger("quorumq.cluster")

SEND_S = 1.0
SENT_AT_ONCE = 32
"""Digests in one message, the newest. A node makes five a second at most."""
REMEMBERED = 256
"""Digests of each member that are kept for when this node has come as far."""

Point = tuple[bytes, bytes]


class Digesting(Protocol):
    """The part of the state machine that this module asks."""

    @property
    def shape(self) -> str:
        """What the digests are made of; only those of equal shape can be compared. Empty for nothing to compare."""
        ...

    @property
    def points(self) -> dict[int, Point]:
        """Digests of history and contents after some entries of late, the same entries on every node, in order."""
        ...


class _PeerDigests:
    """The digests that one life of a member has sent. A restart, or a state from a snapshot, begins another one."""

    def __init__(self, life: str, shape: str) -> None:
        self.life = life
        self.shape = shape
        self.points: dict[int, Point] = {}
        self.differs_at = 0
        self.logged = ""


class Agreement:
    """One node's comparison with the others.

    life: names this process.  changed: called when `apart` has changed.
    """

    def __init__(self, raft: Raft, machine: Digesting, life: str, changed: Callable[[], None]) -> None:
        self._raft = raft
        self._machine = machine
        self._name = life
        self._changed = changed
        self._states = 0
        self._peers: dict[str, _PeerDigests] = {}
        self._seen = 0
        self._sent_up_to = 0
        self._send_at = float("-inf")
        self.apart = ""
        """How this node differs from a majority that agrees; empty while it does not, as far as is known."""
        self._trusted: list[str] = []
        self._alone = False

    @property
    def agreed(self) -> int:
        """The newest entry at which all members that can be compared had the same digests as this node; 0 for none."""
        for index in reversed(self._machine.points):
            known = [each for each in self._peers.values() if index in each.points]
            if known:
                mine = self._machine.points[index]
                return index if all(each.points[index] == mine for each in known) else 0
        return 0

    @property
    def differing(self) -> list[str]:
        """Members whose digests are known to differ from this node's, sorted."""
        seats = self._raft.membership.seats
        return sorted(peer for peer, theirs in self._peers.items() if theirs.differs_at and peer in seats)

    @property
    def suspects(self) -> list[str]:
        """Members that differ from a majority that agrees."""
        if self.apart:
            return [peer for peer in self._raft.peers if peer not in self._trusted]
        return [] if self._alone else self.differing

    def drive(self, now: float) -> None:
        """Judge what this node has come to, and send it to the others."""
        points = self._machine.points
        newest = next(reversed(points), 0) if points else 0
        if newest != self._seen:
            for index in [index for index in points if index > self._seen]:
                self._judge(index)
            self._seen = newest
        if newest > self._sent_up_to and now >= self._send_at:
            self._send_at = now + SEND_S
            message = self._message(self._sent_up_to)
            self._sent_up_to = newest
            for peer in self._raft.membership.seats:
                if peer != self._raft.id:
                    self._raft.links.send(peer, message)

    def _message(self, above: int) -> Message:
        points = [(index, *point) for index, point in self._machine.points.items() if index > above]
        return {"type": "digests", "shape": self._machine.shape, "life": self._life, "points": points[-SENT_AT_ONCE:]}

    @property
    def _life(self) -> str:
        return f"{self._name}-{self._states}"

    def peer_up(self, peer: str) -> None:
        """Send `peer` what others have got already; if it is nothing, that this is another life."""
        self._raft.links.send(peer, self._message(0))

    def replaced(self) -> None:
        """The state is another one now, that of a snapshot."""
        self._states += 1
        self._seen = self._sent_up_to = 0
        for theirs in self._peers.values():
            theirs.differs_at, theirs.logged = 0, ""
        if self.apart:
            log.info("the state that differed has been replaced")
            self.apart, self._trusted = "", []
            self._changed()

    def on_digests(self, peer: str, message: Message) -> None:
        """`peer` sends what it has come to."""
        theirs = self._peers.get(peer)
        if theirs is None or (theirs.life, theirs.shape) != (message["life"], message["shape"]):
            theirs = self._peers[peer] = _PeerDigests(message["life"], message["shape"])
        mine = self._machine.points
        for index, history, contents in message["points"]:
            theirs.points[index] = (history, contents)
            if index in mine:
                self._judge(index)
        while len(theirs.points) > REMEMBERED:
            del theirs.points[next(iter(theirs.points))]

    def _judge(self, index: int) -> None:
        """Compare all digests that are known at one entry."""
        shape, mine = self._machine.shape, self._machine.points[index]
        groups: dict[Point, list[str]] = {mine: [self._raft.id]}
        seats = self._raft.membership.seats
        for peer, theirs in self._peers.items():
            if theirs.shape == shape and index in theirs.points and peer in seats:
                groups.setdefault(theirs.points[index], []).append(peer)
        if len(groups) == 1:
            return
        voters = set(self._raft.membership.voters)
        many = len(voters) // 2 + 1
        trusted = next((peers for peers in groups.values() if len(voters.intersection(peers)) >= many), [])
        for point, peers in groups.items():
            if point != mine:
                what = "contents" if point[1] != mine[1] else "answers"
                for peer in peers:
                    self._differs(peer, index, what, trusted)
        if trusted and self._raft.id not in trusted and not self.apart:
            self._conclude(trusted, index)

    def _conclude(self, trusted: list[str], index: int) -> None:
        """Others agree, and this node is not among them."""
        self._trusted = trusted
        self.apart = f"its state differs from that of {', '.join(trusted)}, which agree, at entry {index}"
        log.critical(
            "this node serves no more: %s; stop it, keep its data folder for whoever looks into it, and start it with an empty one",
            self.apart,
        )
        self._changed()

    def _differs(self, peer: str, index: int, what: str, trusted: list[str]) -> None:
        theirs = self._peers[peer]
        theirs.differs_at = theirs.differs_at or index
        self._alone = not trusted
        verdict = "alone" if not trusted else "apart" if peer not in trusted else "trusted"
        if verdict == theirs.logged or theirs.logged == "apart":
            return
        theirs.logged = verdict
        if verdict == "alone":
            log.critical(
                "the %s of %s differ from this node's at entry %d, and no majority is known that could tell which are right: "
                "nobody stops; compare them and replace the wrong one",
                what,
                peer,
                index,
            )
        elif verdict == "apart":
            log.critical("the %s of %s differ from those of %s at entry %d", what, peer, ", ".join(trusted), index)

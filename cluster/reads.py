"""Linearizable reads without a log entry: the read index (Raft thesis 6.4).

A node asks the leader for its commit index; the leader answers after a quorum has confirmed, in a round begun after the question
arrived, that it still follows this leader's term. All waiting questions share one round, and all readers of a node share one
question.
"""

from __future__ import annotations

from collections.abc import Callable

Reply = Callable[[int | None], None]
"""Called with the index to wait for, or None when this node cannot tell (it does not lead)."""

ROUND_S = 0.3
"""A round that has no quorum after this long is begun again: a message may have been lost with a connection."""


class Rounds:
    """The leader's side: numbered confirmations of leadership."""

    def __init__(self, broadcast: Callable[[int], None]) -> None:
        self._broadcast = broadcast
        self._number = 0
        self._running = False
        self._began_at = 0.0
        self._index = 0
        self._confirmed: set[str] = set()
        self._asked: list[Reply] = []
        self._answering: list[Reply] = []

    def ask(self, reply: Reply) -> None:
        """Queue a question for the next round."""
        self._asked.append(reply)

    def drive(self, *, leads: bool, ready: bool, commit_index: int, quorum: int, now: float) -> None:
        """Begin a round when questions wait and none runs.

        ready: this leader has committed an entry of its own term, so that its commit index is the cluster's.
        """
        if not leads:
            self.abandon()
        elif self._running and now - self._began_at > ROUND_S:
            self._asked, self._answering = self._answering + self._asked, []
            self._running = False
        if not leads or not ready or self._running or not self._asked:
            return
        self._asked, self._answering = [], self._asked
        self._number += 1
        self._index = commit_index
        self._began_at = now
        self._confirmed = set()
        if quorum <= 1:
            self._answer(self._index)
            return
        self._running = True
        self._broadcast(self._number)

    def confirmed(self, peer: str, number: int, quorum: int) -> None:
        """`peer` confirmed round `number`; earlier rounds prove nothing."""
        if self._running and number == self._number:
            self._confirmed.add(peer)
            if len(self._confirmed) + 1 >= quorum:
                self._running = False
                self._answer(self._index)

    def abandon(self) -> None:
        """This node does not lead: none of the questions can be answered here."""
        self._running = False
        waiting = self._answering + self._asked
        self._asked, self._answering = [], []
        for reply in waiting:
            reply(None)

    def _answer(self, index: int) -> None:
        replies, self._answering = self._answering, []
        for reply in replies:
            reply(index)


class Readers:
    """A node's own side: readers that wait, the one question under way, and those that wait for the apply."""

    def __init__(self, ask: Callable[[str, int], bool]) -> None:
        self._ask = ask
        self._question = 0
        self._asked_at = float("-inf")
        self._asked_of: tuple[str, int] | None = None
        self._waiting: list[tuple[float, Callable[[bool], None]]] = []
        self._in_question: list[tuple[float, Callable[[bool], None]]] = []
        self._applying: list[tuple[int, float, Callable[[bool], None]]] = []

    def wait(self, deadline: float, done: Callable[[bool], None]) -> None:
        """`done(True)` once the local state is fresh, `done(False)` when the deadline passes before."""
        self._waiting.append((deadline, done))

    def drive(self, leader: str | None, term: int, now: float) -> None:
        """Put the next question, or put it again when the leader changed or does not answer."""
        if self._asked_of is not None and (self._asked_of != (leader, term) or now - self._asked_at > 2 * ROUND_S):
            self._requeue()
        if any(deadline <= now for deadline, _ in self._waiting):
            late = [done for deadline, done in self._waiting if deadline <= now]
            self._waiting = [item for item in self._waiting if item[0] > now]
            for done in late:
                done(False)
        if any(deadline <= now for _, deadline, _ in self._applying):
            late = [done for _, deadline, done in self._applying if deadline <= now]
            self._applying = [item for item in self._applying if item[1] > now]
            for done in late:
                done(False)
        if self._asked_of is None and self._waiting and leader is not None:
            self._question += 1
            if self._ask(leader, self._question):
                self._waiting, self._in_question = [], self._waiting
                self._asked_of, self._asked_at = (leader, term), now

    @property
    def asked(self) -> str | None:
        """The node that the question under way was put to, None when there is none."""
        return self._asked_of[0] if self._asked_of is not None else None

    def _requeue(self) -> None:
        self._waiting, self._in_question = self._in_question + self._waiting, []
        self._asked_of = None

    def answered(self, question: int, index: int | None, applied_index: int) -> None:
        """The leader's answer to a question; an old one is ignored."""
        if question != self._question or self._asked_of is None:
            return
        if index is None:
            self._requeue()
            return
        self._asked_of = None
        readers, self._in_question = self._in_question, []
        if index <= applied_index:
            for _, done in readers:
                done(True)
        else:
            self._applying += [(index, deadline, done) for deadline, done in readers]

    def applied(self, applied_index: int) -> None:
        """The local state moved on."""
        if self._applying:
            ready = [done for index, _, done in self._applying if index <= applied_index]
            self._applying = [item for item in self._applying if item[0] > applied_index]
            for done in ready:
                done(True)

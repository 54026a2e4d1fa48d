"""Sessions of the backend protocol: what calls were answered whose answers the client has not acknowledged.

A client names its session and numbers its calls; one that it sends again, here or at another node, is answered as it was the first time.
What is kept is bounded by the client's window and by bytes, and forgotten when nothing is heard of a session for FORGET_MS: a client
does not send again what it has sent so long ago.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from quorumq.node.machine.refusals import AnswerForgotten, TooManySessions
from quorumq.node.machine.state.bullmq.shares import share_of

SESSIONS_MAX = 50_000
ANSWERS_MAX = 1_024
"""Unacknowledged answers of one session; as many calls may be unanswered."""
SESSION_BYTES_MAX = 8 << 20
BYTES_MAX = 256 << 20
"""Of the answers of all sessions, by their weight."""
ANSWER_BYTES = 150
FORGET_MS = 600_000
SEEN_MS = 10_000
"""A session's last sign of life is noted no more often than this."""


class Answer(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a call was answered. operation: the name of what was asked.  reply: its bytes; None when there are too many, or it was refused.

    refusal: code and facts of a refusal.
    """

    operation: str
    reply: bytes | None = None
    refusal: tuple[str, list[Any]] | None = None


class Session:
    """One session. answers: by number.  floor: calls up to it are answered no more: acknowledged, or their answers had to go.

    size: of the answers, by their weight.  seen_ms: when it was heard of last, late by SEEN_MS at most.
    """

    __slots__ = ("answers", "floor", "seen_ms", "size")

    def __init__(self, seen_ms: int, floor: int = 0) -> None:
        self.answers: dict[int, Answer] = {}
        self.floor = floor
        self.seen_ms = seen_ms
        self.size = 0

    def find(self, number: int) -> Answer | None:
        """Return what a call was answered; None when it has not been made. Raises AnswerForgotten."""
        answer = self.answers.get(number)
        if answer is None and number <= self.floor:
            raise AnswerForgotten(number)
        return answer

    def drop_oldest(self) -> None:
        """Let the answer that is kept longest go: a repeat of its call will be told so."""
        number = next(iter(self.answers))
        self.size -= weight_of(self.answers.pop(number))
        self.floor = max(self.floor, number)


class Sessions:
    """All sessions by name, the one not heard of for longest first. size: of all answers, by their weight.

    lasting: not replicated: sessions are never forgotten, for a node whose clock is set by its clients.
    """

    __slots__ = ("by_id", "lasting", "size")

    def __init__(self) -> None:
        self.by_id: dict[str, Session] = {}
        self.size = 0
        self.lasting = False

    def enter(self, session_id: str, acknowledged: int, now_ms: int) -> Session:
        """Return a session for another call of it, its answers up to `acknowledged` dropped; one that is not known begins there.

        Raises TooManySessions.
        """
        self.age(now_ms)
        session = self.by_id.get(session_id)
        if session is None:
            if len(self.by_id) >= SESSIONS_MAX:
                raise TooManySessions(SESSIONS_MAX)
            session = self.by_id[session_id] = Session(now_ms, acknowledged)
        else:
            self._see(session_id, session, now_ms)
        if acknowledged > session.floor:
            self._acknowledge(session, acknowledged)
        return session

    def keep(self, session: Session, number: int, answer: Answer) -> None:
        """Keep what a call was answered, and let go of what is too much."""
        session.answers[number] = answer
        weight = weight_of(answer)
        session.size += weight
        self.size += weight
        if len(session.answers) > ANSWERS_MAX or session.size > SESSION_BYTES_MAX:
            before = session.size
            while len(session.answers) > ANSWERS_MAX or (session.size > SESSION_BYTES_MAX and len(session.answers) > 1):
                session.drop_oldest()
            self.size -= before - session.size
        if self.size > BYTES_MAX:
            self._shorten()

    def see(self, session_ids: Iterable[str], now_ms: int) -> None:
        """Note that sessions have a connection; those that are not known need none."""
        self.age(now_ms)
        for session_id in session_ids:
            session = self.by_id.get(session_id)
            if session is not None:
                self._see(session_id, session, now_ms)

    def age(self, now_ms: int) -> None:
        """Forget sessions that nothing was heard of for long."""
        if self.lasting:
            return
        while self.by_id:
            session_id = next(iter(self.by_id))
            session = self.by_id[session_id]
            if session.seen_ms + FORGET_MS > now_ms:
                break
            self.size -= session.size
            del self.by_id[session_id]

    def restore(self, session_id: str, seen_ms: int, floor: int, answers: Iterable[tuple[int, Answer]]) -> None:
        """Add a session from an image, or more of its answers, in its order."""
        session = self.by_id.setdefault(session_id, Session(seen_ms, floor))
        for number, answer in answers:
            session.answers[number] = answer
            session.size += weight_of(answer)
            self.size += weight_of(answer)

    def _see(self, session_id: str, session: Session, now_ms: int) -> None:
        if now_ms - session.seen_ms >= SEEN_MS:
            session.seen_ms = now_ms
            self.by_id[session_id] = self.by_id.pop(session_id)

    def _acknowledge(self, session: Session, number: int) -> None:
        session.floor = number
        answers, before = session.answers, session.size
        while answers:
            # Nearly in order: one that was lost and sent again comes behind those that were not.
            first = next(iter(answers))
            if first > number:
                break
            session.size -= weight_of(answers.pop(first))
        self.size -= before - session.size

    def _shorten(self) -> None:
        """Drop the oldest answers of those that have most, until a sixteenth of the room is free."""
        share = share_of([session.size for session in self.by_id.values()], BYTES_MAX - BYTES_MAX // 16)
        for session in self.by_id.values():
            before = session.size
            while session.size > share and session.answers:
                session.drop_oldest()
            self.size -= before - session.size


def weight_of(answer: Answer) -> int:
    """Return the bytes that an answer counts for."""
    if answer.refusal is not None:
        return ANSWER_BYTES + sum(len(fact) for fact in answer.refusal[1] if isinstance(fact, str | bytes))
    return ANSWER_BYTES + len(answer.reply or b"")

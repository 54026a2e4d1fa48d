"""Calls of a session: each is made once, however often it is sent, and answered alike each time."""

from __future__ import annotations

from typing import Any

from quorumq.node.machine.bounds import Key, Record
from quorumq.node.machine.lifecycle import clock
from quorumq.node.machine.operation import Entry, Operation, Query, operation, query, read_operation
from quorumq.node.machine.operations.requests import reply_decoder, stored
from quorumq.node.machine.refusals import (
    AnswerForgotten,
    Refusal,
    ReplyForgotten,
    TooManySessions,
    known_refusals,
)
from quorumq.node.machine.state import State
from quorumq.node.machine.state.bullmq.sessions import Answer


@operation(refuses=(AnswerForgotten, TooManySessions, ReplyForgotten), since=1)
class CallOnce(Operation, frozen=True, tag="bullmq.once"):
    """Apply an operation as a call of a session; sent again it gets the first reply or refusal.

    number: the call's, 1 or more, rising.  acknowledged: up to which call the client has its answers, so that they need not be kept.
    operation: the record's bytes.  now_ms: what time it is, as the client says; only where CLOCK=clients.
    """

    session: Key
    number: int
    acknowledged: int
    operation: Record
    now_ms: int | None = None

    def inner(self) -> Operation:
        """Return the operation. Raises NotUnderstood."""
        return read_operation(self.operation)

    def apply(self, state: State, entry: Entry) -> Any:
        sessions = state.bullmq.sessions
        session = sessions.enter(self.session, self.acknowledged, state.now_ms)
        known = session.find(self.number)
        if known is not None:
            return answer_again(self.number, known)
        if self.now_ms is not None and state.timed_by_clients:
            clock.set_by_client(state, self.now_ms)
            entry.now_ms = state.now_ms
        inner = self.inner()
        name = str(inner.__struct_config__.tag)
        try:
            reply = inner.apply(state, entry)
        except Refusal as refusal:
            sessions.keep(session, self.number, Answer(name, None, (refusal.code, list(refusal.args))))
            raise
        sessions.keep(session, self.number, Answer(name, stored(reply)))
        return reply


@query
class IsAnswered(Query, frozen=True):
    """Whether a call of a session has been made."""

    session: Key
    number: int

    def answer(self, state: State) -> bool:
        session = state.bullmq.sessions.by_id.get(self.session)
        return session is not None and (self.number in session.answers or self.number <= session.floor)


def answer_again(number: int, known: Answer) -> Any:
    """Return or raise what a call was answered first."""
    if known.refusal is not None:
        code, facts = known.refusal
        raise known_refusals()[code](*facts)
    if known.reply is None:
        raise ReplyForgotten(f"number {number}")
    return reply_decoder(known.operation).decode(known.reply)

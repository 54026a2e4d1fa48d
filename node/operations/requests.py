"""Requests that a client may repeat: an operation under an idempotency key is applied once and answered alike each time.

The first outcome is kept in the replicated state as bytes of its reply, live records included as they were, so that a
repeat on any node is rendered by the same view into the same answer.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from node.operation import CATALOGUE, Operation, Query, any_operation, operation, query, reply_type
from node.operations.jobs import Finished, Pulled
from node.refusals import IdempotencyKeyReused, OperationNotKnown, Refusal, ReplyForgotten, known_refusals
from node.state.outcomes import Outcome
from node.state.state import weight

if TYPE_CHECKING:
    from node.machine import Entry
    from node.state import State

# Jobs of a reply may hold this much data and results together; a larger reply is not kept.
REPLY_BYTES_MAX = 24 << 20

IdempotencyKey = Annotated[str, Meta(description="The client's name for one request; a repeat carries the same.")]


@operation(refuses=(IdempotencyKeyReused, ReplyForgotten, OperationNotKnown))
class Idempotent(Operation, frozen=True, tag="request.once"):
    """Apply an operation once for a key; every repeat within a day gets the first reply or refusal.

    fingerprint: of the whole request as the client sent it.  operation: the record's bytes.  A pull that took nothing is
    not remembered, for nothing happened.  The last 100,000 keys and 64 MB of replies are kept.
    """

    key: IdempotencyKey
    fingerprint: bytes
    operation: bytes

    def apply(self, state: State, entry: Entry) -> Any:
        known = state.outcomes.find(self.key, state.now_ms)
        if known is not None:
            return answer_again(self.key, self.fingerprint, known)
        try:
            inner: Operation = decoder().decode(self.operation)
        except msgspec.DecodeError as error:
            raise OperationNotKnown(str(error)) from None
        name = str(inner.__struct_config__.tag)
        try:
            reply = inner.apply(state, entry)
        except Refusal as refusal:
            state.remember_outcome(
                self.key,
                Outcome(self.fingerprint, state.now_ms, name, refusal=(refusal.code, list(refusal.args))),
            )
            raise
        if not (isinstance(reply, Pulled) and not reply.jobs):
            state.remember_outcome(self.key, Outcome(self.fingerprint, state.now_ms, name, stored(reply)))
        return reply


@query
class GetOutcome(Query, frozen=True):
    """The first reply of a key, as a copy of what it was then; None for an unknown key. Raises its refusal."""

    key: IdempotencyKey
    fingerprint: bytes

    def answer(self, state: State) -> Any:
        known = state.outcomes.find(self.key, state.now_ms)
        return None if known is None else answer_again(self.key, self.fingerprint, known)


def answer_again(key: str, fingerprint: bytes, known: Outcome) -> Any:
    """Return or raise what a key was answered first."""
    if known.fingerprint != fingerprint:
        raise IdempotencyKeyReused(key)
    if known.refusal is not None:
        code, facts = known.refusal
        raise known_refusals()[code](*facts)
    if known.reply is None:
        raise ReplyForgotten(key)
    return reply_decoder(known.operation).decode(known.reply)


def stored(reply: Any) -> bytes | None:
    """Return the bytes of a reply; None when its jobs hold too much."""
    jobs = [reply.job, *reply.next.jobs] if isinstance(reply, Finished) else getattr(reply, "jobs", None) or ()
    if len(jobs) > 1 and sum(map(weight, jobs)) > REPLY_BYTES_MAX:
        return None
    return _encode(reply)


def _encode_refusal(value: Any) -> Any:
    if isinstance(value, Refusal):
        return [value.code, list(value.args)]
    raise NotImplementedError(type(value))


def _decode_refusal(kind: type, value: Any) -> Any:
    if issubclass(kind, Refusal):
        code, facts = value
        return known_refusals()[code](*facts)
    raise NotImplementedError(kind)


_encode = msgspec.msgpack.Encoder(enc_hook=_encode_refusal).encode


@cache
def decoder() -> msgspec.msgpack.Decoder[Any]:
    """Return what reads the record of any operation."""
    return msgspec.msgpack.Decoder(any_operation())


@cache
def reply_decoder(name: str) -> msgspec.msgpack.Decoder[Any]:
    """Return what reads the stored reply of an operation."""
    return msgspec.msgpack.Decoder(reply_type(CATALOGUE[name].record), dec_hook=_decode_refusal)

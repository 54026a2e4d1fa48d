"""Requests that a client may repeat: an operation under an idempotency key is applied once and answered alike each time.

The first outcome is kept in the replicated state as bytes of its reply, live records included as they were, so that a
repeat on any node is rendered by the same view into the same answer.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

import msgspec

from quorumq.node.machine.bounds import KEY_CHARS_MAX, PATH_CHARS_MAX, PathKey, Record, bounded
from quorumq.node.machine.operation import (
    CATALOGUE,
    Entry,
    Operation,
    Query,
    operation,
    query,
    read_operation,
    reply_type,
)
from quorumq.node.machine.operations.runs import Finished, Pulled
from quorumq.node.machine.refusals import (
    IdempotencyKeyReused,
    KeyForgotten,
    KeyNeedsScope,
    Refusal,
    ReplyForgotten,
    known_refusals,
)
from quorumq.node.machine.state import State
from quorumq.node.machine.state.job import Job, weight
from quorumq.node.machine.state.outcomes import UNSCOPED, Outcome, ScopedOutcome

# Jobs of a reply may hold this much data and results together; a larger reply is not kept.
REPLY_BYTES_MAX = 24 << 20

IdempotencyKey = Annotated[
    str, bounded(PATH_CHARS_MAX, "The client's name for one request; a repeat carries the same.")
]
Digest = Annotated[bytes, bounded(64, "A digest.")]
Scope = Annotated[
    str | None, bounded(KEY_CHARS_MAX, "Whose key it is: the name of the sender's token, empty without tokens.")
]


@operation(
    refuses=(IdempotencyKeyReused, ReplyForgotten, KeyForgotten, KeyNeedsScope), newer={"scope": 1, "earlier": 1}
)
class Idempotent(Operation, frozen=True, tag="request.once"):
    """Apply an operation once for a key; every repeat within a day gets the first reply or refusal.

    fingerprint: of the whole request as the client sent it.  operation: the record's bytes.  scope, earlier: from level 1 on: whose
    key it is, and what the key was below level 1, under which it may be known for a day still.  A pull that took nothing is
    not remembered, for nothing happened.  100,000 keys and 64 MB of replies are kept; who has most of them loses the
    oldest, and is refused its repeat.
    """

    key: IdempotencyKey
    fingerprint: Digest
    operation: Record
    scope: Scope = None
    earlier: PathKey | None = None

    def inner(self) -> Operation:
        """Return the operation. Raises NotUnderstood."""
        return read_operation(self.operation)

    def apply(self, state: State, entry: Entry) -> Any:
        if self.scope is None and state.level >= 1:
            # What this sender calls the key is not what those call it that have seen the level.
            raise KeyNeedsScope(self.key)
        known = look_up(state, self.key, self.scope, self.earlier)
        if known is not None:
            return answer_again(self.key, self.fingerprint, known)
        inner = self.inner()
        name = str(inner.__struct_config__.tag)
        try:
            reply = inner.apply(state, entry)
        except Refusal as refusal:
            state.remember_outcome(self.key, self._outcome(state, name, None, (refusal.code, list(refusal.args))))
            raise
        if not (isinstance(reply, Pulled) and not reply.jobs):
            state.remember_outcome(self.key, self._outcome(state, name, stored(reply)))
        return reply

    def _outcome(
        self, state: State, name: str, reply: bytes | None, refusal: tuple[str, list[Any]] | None = None
    ) -> Outcome:
        if self.scope is None:
            return Outcome(self.fingerprint, state.now_ms, name, reply, refusal)
        return ScopedOutcome(self.fingerprint, state.now_ms, name, reply, refusal, self.scope)


@query
class GetOutcome(Query, frozen=True):
    """The first reply of a key, as a copy of what it was then; None for an unknown key. Raises its refusal, KeyForgotten."""

    key: IdempotencyKey
    fingerprint: Digest
    scope: Scope = None
    earlier: PathKey | None = None

    def answer(self, state: State) -> Any:
        known = look_up(state, self.key, self.scope, self.earlier)
        return None if known is None else answer_again(self.key, self.fingerprint, known)


def look_up(state: State, key: str, scope: str | None, earlier: str | None) -> Outcome | None:
    """Return what a key, or what it was called earlier, was answered. Raises KeyForgotten."""
    outcomes, now_ms = state.outcomes, state.now_ms
    known = outcomes.find(key, now_ms)
    if known is None and earlier is not None:
        known = outcomes.find(earlier, now_ms)
    if known is None and outcomes.digests:
        mine = UNSCOPED if scope is None else scope
        if outcomes.was_forgotten(mine, key, now_ms) or (
            earlier is not None and outcomes.was_forgotten(UNSCOPED, earlier, now_ms)
        ):
            raise KeyForgotten(key)
    return known


def answer_again(key: str, fingerprint: bytes, known: Outcome) -> Any:
    """Return or raise what a key was answered first."""
    if known.fingerprint != fingerprint:
        raise IdempotencyKeyReused(key)
    if known.refusal is not None:
        code, facts = known.refusal
        raise known_refusals()[code](*facts)
    if known.reply is None:
        raise ReplyForgotten(key)
    reply = reply_decoder(known.operation).decode(known.reply)
    for job in jobs_of(reply):
        job.settle_form()
    return reply


def jobs_of(reply: Any) -> list[Job]:
    """Return the jobs that a reply holds."""
    found = [getattr(reply, "job", None), *(getattr(reply, "jobs", None) or ())]
    following = getattr(reply, "next", None)
    if following is not None:
        found += jobs_of(following)
    return [job for job in found if isinstance(job, Job)]


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
def reply_decoder(name: str) -> msgspec.msgpack.Decoder[Any]:
    """Return what reads the stored reply of an operation."""
    return msgspec.msgpack.Decoder(reply_type(CATALOGUE[name].record), dec_hook=_decode_refusal)

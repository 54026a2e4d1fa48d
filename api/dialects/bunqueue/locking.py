"""Locks and heartbeats of jobs: what is sent, what is answered, and the rows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Struct

from quorumq.api.request import Call, Route
from quorumq.api.rows import grouped, write
from quorumq.api.rules import says
from quorumq.api.scopes import its_jobs
from quorumq.api.values import Number
from quorumq.node.machine.operations.jobs import Counted
from quorumq.node.machine.operations.runs import ExtendLock, ExtendLocks, HeartbeatJob, HeartbeatJobs

from . import errors, replies
from .values import BeatToken, Ids, Millis, as_many, beside_ids, duration, lasting, read, token_of


def duration_of(name: str, value: Any) -> int | None:
    return None if value is None else duration(name, value)


def duration_if_any(name: str, value: Any) -> int | None:
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return duration("duration", value) if known else None


class LockBody(Struct, gc=False):
    """Which lock, and how long it is to last from now."""

    token: BeatToken = None
    duration: Annotated[Millis, lasting("Milliseconds; left out, as long as it was given for.")] = None


class LooseLockBody(Struct, gc=False):
    """The same for a heartbeat, which must not fail for a duration that is none: the documented server takes no notice of it."""

    token: BeatToken = None
    duration: Annotated[Any, says(reads=duration_if_any, bound=0)] = None


class BeatsBody(Struct, gc=False):
    """Jobs that are being worked on."""

    ids: Ids = None
    tokens: Annotated[list[str | None] | None, beside_ids("As many as ids.", token_of)] = None


class LocksBody(Struct, gc=False):
    """Locks to extend."""

    ids: Ids = None
    tokens: Annotated[
        list[str | None] | None, beside_ids("As many as ids.", token_of, required="tokens must be an array")
    ] = None
    durations: Annotated[
        list[Number | None] | None,
        beside_ids("Milliseconds, as many as ids.", duration_of),
    ] = None


LOCK = msgspec.json.Decoder(LockBody)
LOOSE_LOCK = msgspec.json.Decoder(LooseLockBody)
BEATS = msgspec.json.Decoder(BeatsBody)
LOCKS = msgspec.json.Decoder(LocksBody)


def heartbeat(call: Call) -> HeartbeatJob:
    body = read(LOOSE_LOCK, call.body)
    return HeartbeatJob(call.path["id"], body.token, body.duration)


def heartbeat_batch(call: Call) -> HeartbeatJobs:
    body = read(BEATS, call.body)
    return HeartbeatJobs(body.ids, as_many("JobHeartbeatB", "tokens", body.tokens, body.ids))


def extend_lock(call: Call) -> ExtendLock:
    body = read(LOCK, call.body)
    return ExtendLock(call.path["id"], body.token, body.duration)


def extend_locks(call: Call) -> ExtendLocks:
    body = read(LOCKS, call.body)
    tokens = as_many("ExtendLocks", "tokens", body.tokens, body.ids)
    return ExtendLocks(body.ids, tokens, as_many("ExtendLocks", "durations", body.durations, body.ids))


class BeatData(Struct, forbid_unknown_fields=True):
    ok: Literal[True]


class Beat(replies.Success):
    data: BeatData


class BeatsData(Struct, forbid_unknown_fields=True):
    ok: Literal[True]
    count: int


class Beats(replies.Success):
    data: BeatsData


def beat(reply: Any) -> bytes:
    return b'{"ok":true,"data":{"ok":true}}'


def beats(reply: Counted) -> bytes:
    return b'{"ok":true,"data":{"ok":true,"count":%d}}' % reply.count


ROUTES: tuple[Route, ...] = grouped(
    "Jobs",
    write("POST", "/jobs/{id}/heartbeat", HeartbeatJob, heartbeat, beat, takes=LockBody,
          reply=Beat, right="consume", refusals=errors.BEATING, command="JobHeartbeat"),
    write("POST", "/jobs/heartbeat-batch", HeartbeatJobs, heartbeat_batch, beats,
          takes=BeatsBody, reply=Beats, right="consume", scope="checked", check=its_jobs, command="JobHeartbeatB"),
    write("POST", "/jobs/{id}/extend-lock", ExtendLock, extend_lock, replies.ok, takes=LockBody,
          reply=replies.Ok, right="consume", refusals=errors.EXTENDING, command="ExtendLock"),
    write("POST", "/jobs/extend-locks", ExtendLocks, extend_locks, replies.counted,
          takes=LocksBody, reply=replies.Count, right="consume", scope="checked", check=its_jobs,
          command="ExtendLocks"),
)  # fmt: skip

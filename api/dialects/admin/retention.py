"""/admin/retention: how many finished jobs queues keep, whichever dialect they came by; /admin/queues/{queue}/retention: one of
them, where it is set for itself.

What a job's own options say about keeping it holds besides; these are the bounds of its queue.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from quorumq.api.errors import Invalid
from quorumq.api.once import part_of
from quorumq.api.reply import Reply
from quorumq.api.request import CONSISTENCY, Call
from quorumq.api.rows import grouped, plain, success
from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.retention import FollowRetention, GetRetention, RetentionFound, SetDefaultRetention
from quorumq.node.machine.operations.settings import SetDlqConfig, SetRetention

from .reading import read

QUEUE_CHARS_MAX = 256
COUNT_MAX = 1_000_000_000
BYTES_MAX = 1 << 50
AGE_MS_MAX = 3_155_760_000_000
ENCODE = msgspec.json.Encoder().encode
Own = Literal["completed", "completedBytes", "failed", "failedAgeMs", "failedBytes"]
OWN: dict[str, Own] = {
    "completed": "completed",
    "completed_bytes": "completedBytes",
    "failed": "failed",
    "failed_age_ms": "failedAgeMs",
    "failed_bytes": "failedBytes",
}


class DefaultRetention(Struct, forbid_unknown_fields=True, kw_only=True, rename="camel"):
    """What queues keep that have no setting of their own for it. completed, failed: the last so many.  completedBytes: of their
    data and results.  failedAgeMs: null for as long as there is room.  failedBytes: of their data, reasons and stack traces."""

    ok: Literal[True] = True
    completed: int
    completed_bytes: int
    failed: int
    failed_age_ms: int | None
    failed_bytes: int


class Retention(DefaultRetention, forbid_unknown_fields=True, kw_only=True, rename="camel"):
    """What a queue keeps. own: what was set for it itself; the rest is the default of all queues."""

    queue: str
    own: list[Own]


Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
Bytes = Annotated[int, Meta(ge=0, le=BYTES_MAX)]
Age = Annotated[int, Meta(ge=1, le=AGE_MS_MAX)]


class RetentionBody(Struct, forbid_unknown_fields=True, rename="camel"):
    """What is to be kept; what is not given stays as it is."""

    completed: Annotated[
        Count | UnsetType, Meta(description="The last so many completed jobs; 10,000 where nothing is set.")
    ] = UNSET
    completed_bytes: Annotated[
        Bytes | UnsetType, Meta(description="Bytes of their data and results; 256 MB where nothing is set.")
    ] = UNSET
    failed: Annotated[
        Count | UnsetType, Meta(description="The last so many failed jobs; 10,000 where nothing is set.")
    ] = UNSET
    failed_age_ms: Annotated[
        Age | UnsetType | None,
        Meta(description="Milliseconds that a failed job is kept, null for no bound; 7 days where nothing is set."),
    ] = UNSET
    failed_bytes: Annotated[
        Bytes | UnsetType,
        Meta(description="Bytes of their data, reasons and stack traces; 256 MB where nothing is set."),
    ] = UNSET


BODY = msgspec.json.Decoder(RetentionBody)


def queue_of(call: Call) -> str:
    """Return the queue that the path names; every dialect has rules of its own, and what one of them takes is taken here."""
    name = call.path["queue"]
    if not 0 < len(name) <= QUEUE_CHARS_MAX or not name.isprintable():
        raise Invalid("queue must be 1 to 256 printable characters")
    return name


async def get(call: Call) -> Reply:
    name = queue_of(call)
    return success(await call.node.ask(GetRetention(name), lambda found: shown(name, found), stale=call.stale))


async def put(call: Call) -> Reply:
    name = queue_of(call)
    once = call.once
    for at, operation in enumerate(changes(name, read(call, BODY))):
        # Two operations at most, each of which a repeat finds done.
        await call.node.submit(operation, once=once and part_of(once, at))
    # What this node has applied is as new as what it was just told of.
    return success(await call.node.ask(GetRetention(name), lambda found: shown(name, found), stale=True))


async def follow(call: Call) -> Reply:
    """Have a queue keep what all do."""
    name = queue_of(call)
    await call.write(FollowRetention(name), lambda reply: b"")
    return success(await call.node.ask(GetRetention(name), lambda found: shown(name, found), stale=True))


async def get_default(call: Call) -> Reply:
    return success(await call.node.ask(GetRetention(), default_shown, stale=call.stale))


async def put_default(call: Call) -> Reply:
    body = read(call, BODY)
    # The operation's word for keeping jobs for good is 0.
    age_ms = 0 if body.failed_age_ms is None else given(body.failed_age_ms)
    wanted = SetDefaultRetention(
        given(body.completed), given(body.completed_bytes), given(body.failed), age_ms, given(body.failed_bytes)
    )
    return success(await call.write(wanted, default_shown))


def changes(name: str, body: RetentionBody) -> list[Operation]:
    """Return what has to be set."""
    made: list[Operation] = []
    wanted = SetRetention(name, given(body.completed), given(body.completed_bytes), given(body.failed_bytes))
    if wanted != SetRetention(name):
        made.append(wanted)
    if body.failed is not UNSET or body.failed_age_ms is not UNSET:
        # The operation's word for keeping jobs for good is 0.
        age_ms = 0 if body.failed_age_ms is None else given(body.failed_age_ms)
        made.append(SetDlqConfig(name, max_age_ms=age_ms, max_entries=given(body.failed)))
    return made


def given(value: int | UnsetType) -> int | None:
    return None if isinstance(value, UnsetType) else value


def shown(name: str, found: RetentionFound) -> bytes:
    kept = found.retention
    return ENCODE(
        Retention(
            queue=name,
            completed=kept.completed,
            completed_bytes=kept.completed_bytes,
            failed=kept.failed,
            failed_age_ms=kept.failed_age_ms,
            failed_bytes=kept.failed_bytes,
            own=[OWN[name] for name in found.own],
        )
    )


def default_shown(found: RetentionFound) -> bytes:
    kept = found.retention
    return ENCODE(
        DefaultRetention(
            completed=kept.completed,
            completed_bytes=kept.completed_bytes,
            failed=kept.failed,
            failed_age_ms=kept.failed_age_ms,
            failed_bytes=kept.failed_bytes,
        )
    )


ROUTES = grouped(
    "Administration",
    plain("GET", "/retention", get_default, what=GetRetention, asks=(CONSISTENCY,), reply=DefaultRetention, right="admin",
          about="How many finished jobs queues keep that have no setting of their own for it."),
    plain("PUT", "/retention", put_default, what=SetDefaultRetention, takes=RetentionBody, reply=DefaultRetention,
          right="admin", about="Set how many finished jobs queues keep that have no setting of their own for it, new ones too; "
          "those beyond go at once."),
    plain("GET", "/queues/{queue}/retention", get, what=GetRetention, asks=(CONSISTENCY,), reply=Retention,
          right="admin", about="How many finished jobs of a queue are kept."),
    plain("PUT", "/queues/{queue}/retention", put, what=SetRetention, takes=RetentionBody, reply=Retention,
          right="admin", about="Set how many finished jobs of a queue are kept, whatever all others keep; those beyond go at once."),
    plain("DELETE", "/queues/{queue}/retention", follow, what=FollowRetention, reply=Retention, right="admin",
          about="Have a queue keep what all do that have no setting of their own."),
)  # fmt: skip

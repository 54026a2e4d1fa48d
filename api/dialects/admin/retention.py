"""/admin/queues/{queue}/retention: how many finished jobs of a queue are kept, whichever dialect they came by.

What a job's own options say about keeping it holds besides; these are the bounds of its queue.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from api.http import CONSISTENCY, Call, Invalid, Reply, grouped, plain, success
from node.node import Once
from node.operation import Operation
from node.operations.queues import GetQueueSettings, SetDlqConfig, SetRetention
from node.state.queue import QueueSettings

from .reading import read

QUEUE_CHARS_MAX = 256
COUNT_MAX = 1_000_000_000
BYTES_MAX = 1 << 50
AGE_MS_MAX = 3_155_760_000_000
ENCODE = msgspec.json.Encoder().encode


class Retention(Struct, forbid_unknown_fields=True, kw_only=True, rename="camel"):
    """What is kept. completed, failed: the last so many.  completedBytes: of their data and results.  failedAgeMs: null for
    as long as there is room."""

    ok: Literal[True] = True
    queue: str
    completed: int
    completed_bytes: int
    failed: int
    failed_age_ms: int | None


Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
Bytes = Annotated[int, Meta(ge=0, le=BYTES_MAX)]
Age = Annotated[int, Meta(ge=1, le=AGE_MS_MAX)]


class RetentionBody(Struct, forbid_unknown_fields=True, rename="camel"):
    """What is to be kept; what is not given stays as it is."""

    completed: Annotated[Count | UnsetType, Meta(description="The last so many completed jobs; 10,000 by default.")] = (
        UNSET
    )
    completed_bytes: Annotated[
        Bytes | UnsetType, Meta(description="Bytes of their data and results; 256 MB by default.")
    ] = UNSET
    failed: Annotated[Count | UnsetType, Meta(description="The last so many failed jobs; 10,000 by default.")] = UNSET
    failed_age_ms: Annotated[
        Age | UnsetType | None,
        Meta(description="Milliseconds that a failed job is kept, null for no bound; 7 days by default."),
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
    return success(await call.node.ask(GetQueueSettings(name), lambda found: shown(name, found), stale=call.stale))


async def put(call: Call) -> Reply:
    name = queue_of(call)
    once = call.once
    for at, operation in enumerate(changes(name, read(call, BODY))):
        # Two operations at most, each of which a repeat finds done.
        await call.node.submit(operation, once=once and Once(f"{once.key}:{at}", once.fingerprint))
    # What this node has applied is as new as what it was just told of.
    return success(await call.node.ask(GetQueueSettings(name), lambda found: shown(name, found), stale=True))


def changes(name: str, body: RetentionBody) -> list[Operation]:
    """Return what has to be set."""
    made: list[Operation] = []
    if body.completed is not UNSET or body.completed_bytes is not UNSET:
        made.append(SetRetention(name, given(body.completed), given(body.completed_bytes)))
    if body.failed is not UNSET or body.failed_age_ms is not UNSET:
        # The operation's word for keeping jobs for good is 0.
        age_ms = 0 if body.failed_age_ms is None else given(body.failed_age_ms)
        made.append(SetDlqConfig(name, max_age_ms=age_ms, max_entries=given(body.failed)))
    return made


def given(value: int | UnsetType) -> int | None:
    return None if isinstance(value, UnsetType) else value


def shown(name: str, settings: QueueSettings) -> bytes:
    return ENCODE(
        Retention(
            queue=name,
            completed=settings.keep_completed,
            completed_bytes=settings.keep_completed_bytes,
            failed=settings.dlq.max_entries,
            failed_age_ms=settings.dlq.max_age_ms,
        )
    )


ROUTES = grouped(
    "Administration",
    plain("GET", "/queues/{queue}/retention", get, what=GetQueueSettings, asks=(CONSISTENCY,), reply=Retention,
          right="admin", about="How many finished jobs of a queue are kept."),
    plain("PUT", "/queues/{queue}/retention", put, what=SetRetention, takes=RetentionBody, reply=Retention,
          right="admin", about="Set how many finished jobs of a queue are kept; those beyond go at once."),
)  # fmt: skip

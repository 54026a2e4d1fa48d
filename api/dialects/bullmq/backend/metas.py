"""Fields that clients keep with a queue, and its pause."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from quorumq.api.auth import Forbidden
from quorumq.api.errors import Invalid
from quorumq.node.machine.operations.bullmq.metas import GetMeta, GetMetaFields, Pause, RemoveMeta, SetMeta
from quorumq.node.machine.state.bullmq.metas import FIELDS_MAX, MAX_LEN_EVENTS

from .lifecycle import ANY
from .rows import Args, Asked, NoArgs, Row, Text, Word, nothing, read, write

# What BullMQ's Queue writes whenever one is made, whatever its token may do.
WRITTEN_BY_ALL = frozenset(("version", MAX_LEN_EVENTS))
NAME_CHARS_MAX = 256


class MetaFields(Args):
    fields: Annotated[dict[Word, Text], Meta(max_length=FIELDS_MAX)]


class Names(Args):
    fields: Annotated[list[Word], Meta(max_length=FIELDS_MAX)]


class PausedArgs(Args):
    paused: bool


def set_meta(asked: Asked, args: MetaFields) -> SetMeta:
    fields, grant = args.fields, asked.grant
    if not (WRITTEN_BY_ALL.issuperset(fields) or grant.unlimited or grant.may("manage:all")):
        raise Forbidden("Forbidden: the token does not have the right manage:all")
    if any(not 0 < len(name) <= NAME_CHARS_MAX for name in fields):
        raise Invalid(f"The name of a field must have 1 to {NAME_CHARS_MAX} characters")
    return SetMeta(asked.queue, fields)


def count_of(reply: Any) -> int:
    return int(reply.count)


ROWS: tuple[Row, ...] = (
    write("setQueueMeta", SetMeta, set_meta, count_of, right=ANY, takes=MetaFields),
    write(
        "removeQueueMetaFields",
        RemoveMeta,
        lambda asked, args: RemoveMeta(asked.queue, args.fields),
        count_of,
        right="manage:all",
        takes=Names,
    ),
    read("getQueueMeta", GetMeta, lambda asked, args: GetMeta(asked.queue), takes=NoArgs),
    read(
        "getQueueMetaFields",
        GetMetaFields,
        lambda asked, args: GetMetaFields(asked.queue, tuple(args.fields)),
        takes=Names,
    ),
    write(
        "pause",
        Pause,
        lambda asked, args: Pause(asked.queue, args.paused),
        nothing,
        right="manage:all",
        takes=PausedArgs,
    ),
)

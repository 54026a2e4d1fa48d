"""Fields that clients keep with a queue, and its pause."""

from __future__ import annotations

from typing import Any

from quorumq.api.auth import Forbidden
from quorumq.api.errors import Invalid
from quorumq.node.machine.operations.bullmq.metas import GetMeta, GetMetaFields, Pause, RemoveMeta, SetMeta
from quorumq.node.machine.state.bullmq.metas import FIELDS_MAX, MAX_LEN_EVENTS

from .lifecycle import ANY
from .rows import Args, Asked, NoArgs, Row, nothing, read, write

# What BullMQ's Queue writes whenever one is made, whatever its token may do.
WRITTEN_BY_ALL = frozenset(("version", MAX_LEN_EVENTS))
NAME_CHARS_MAX = 256


class Fields(Args):
    fields: dict[str, str]


class Names(Args):
    fields: list[str]


class Paused(Args):
    paused: bool


def set_meta(asked: Asked, args: Fields) -> SetMeta:
    fields, grant = args.fields, asked.grant
    if not (WRITTEN_BY_ALL.issuperset(fields) or grant.unlimited or grant.may("manage:all")):
        raise Forbidden("Forbidden: the token does not have the right manage:all")
    if len(fields) > FIELDS_MAX or any(not 0 < len(name) <= NAME_CHARS_MAX for name in fields):
        raise Invalid(f"At most {FIELDS_MAX} fields, with names of 1 to {NAME_CHARS_MAX} characters")
    return SetMeta(asked.queue, fields)


def names_of(args: Names) -> list[str]:
    if len(args.fields) > FIELDS_MAX:
        raise Invalid(f"At most {FIELDS_MAX} fields in one call")
    return args.fields


def count_of(reply: Any) -> int:
    return int(reply.count)


ROWS: tuple[Row, ...] = (
    write("setQueueMeta", SetMeta, set_meta, count_of, right=ANY, takes=Fields),
    write(
        "removeQueueMetaFields",
        RemoveMeta,
        lambda asked, args: RemoveMeta(asked.queue, names_of(args)),
        count_of,
        right="manage:all",
        takes=Names,
    ),
    read("getQueueMeta", GetMeta, lambda asked, args: GetMeta(asked.queue), takes=NoArgs),
    read(
        "getQueueMetaFields",
        GetMetaFields,
        lambda asked, args: GetMetaFields(asked.queue, tuple(names_of(args))),
        takes=Names,
    ),
    write(
        "pause", Pause, lambda asked, args: Pause(asked.queue, args.paused), nothing, right="manage:all", takes=Paused
    ),
)

"""The declared type of each reply of the bunqueue dialect: the document's, and what the tests hold every reply against.

Rendering does not go through these types (see job_object.py); that the two agree is what the tests are for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from quorumq.node.machine.operations.jobs import Counted

Millis = int
Number = int | float
ENCODE = msgspec.json.Encoder().encode
OK = b'{"ok":true}'


def ok(reply: Any) -> bytes:
    return OK


def counted(reply: Counted) -> bytes:
    return b'{"ok":true,"count":%d}' % reply.count


# -- What commands make of the replies of their rows -----------------------------------------------------------------------


def in_data(body: bytes) -> bytes:
    """Put a reply's keys into `data` as well, where commands have them."""
    rest = body.removeprefix(b'{"ok":true,')[:-1]
    return b'{"ok":true,"data":{%b},%b}' % (rest, rest)


def as_data(body: bytes) -> bytes:
    """Put a reply's keys into `data` alone: a page is long enough once."""
    return b'{"ok":true,"data":{%b}}' % body.removeprefix(b'{"ok":true,')[:-1]


def one_of(key: str, name: str = "") -> Callable[[bytes], bytes]:
    """Return what puts one of a reply's keys into `data`, under another name if one is given."""

    def reply(body: bytes) -> bytes:
        return b'{"ok":true,"data":%b}' % ENCODE({name or key: msgspec.json.decode(body)[key]})

    return reply


def as_removed(body: bytes) -> bytes:
    """Say how many settings were taken away."""
    return b'{"ok":true,"data":{"removed":%d}}' % (b'"changed":true' in body)


def only_ok(body: bytes) -> bytes:
    return OK


def as_metrics(body: bytes) -> bytes:
    return b'{"ok":true,"data":{"metrics":%b}}' % ENCODE(body.decode("utf-8"))


# -- Declared types ------------------------------------------------------------------------------------------------------


class Success(Struct, forbid_unknown_fields=True, rename="camel"):
    """Base of all replies: nothing that is not declared may appear."""

    ok: Literal[True]


class Failure(Struct, forbid_unknown_fields=True):
    """Every error. code: for programs, where the text alone does not tell what to do."""

    ok: Literal[False]
    error: str
    code: str | UnsetType = UNSET


class Ok(Success):
    pass


class Count(Success):
    count: int


class RemovedData(Struct, forbid_unknown_fields=True):
    removed: Literal[True]


class Removed(Success):
    data: RemovedData


class RemovedCount(Success):
    removed: int


class WasRemoved(Success):
    removed: bool


class WasChanged(Success):
    changed: bool

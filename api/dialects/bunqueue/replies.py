"""The declared type of each reply of the bunqueue dialect: the document's, and what the tests hold every reply against.

Rendering does not go through these types (see render.py); that the two agree is what the tests are for.
"""

from __future__ import annotations

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


class Body(Struct, forbid_unknown_fields=True, rename="camel"):
    """Base of all replies: nothing that is not declared may appear."""

    ok: Literal[True]


class Failure(Struct, forbid_unknown_fields=True):
    """Every error. code: for programs, where the text alone does not tell what to do."""

    ok: Literal[False]
    error: str
    code: str | UnsetType = UNSET


class Ok(Body):
    pass


class Count(Body):
    count: int


class RemovedData(Struct, forbid_unknown_fields=True):
    removed: Literal[True]


class Removed(Body):
    data: RemovedData


class RemovedCount(Body):
    removed: int


class WasRemoved(Body):
    removed: bool


class WasChanged(Body):
    changed: bool

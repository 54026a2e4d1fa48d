"""What several subjects of the dialect answer, and what their declared types begin with.

Replies are not made through their types; that the two agree is what the tests are for, which hold every reply against its type.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from quorumq.api.reply import TEXT, Reply
from quorumq.node.machine.operations.jobs import Counted
from quorumq.node.machine.state import scoped_id

ENCODE = msgspec.json.Encoder().encode
OK = b"OK"
NULL = b"null"
Millis = int


def number(value: float) -> bytes:
    """Write a number, whole ones without a fraction."""
    whole = int(value)
    return b"%d" % whole if whole == value else ENCODE(value)


def ok(reply: Any) -> bytes:
    return OK


def counted(reply: Counted) -> bytes:
    return b'{"count":%d}' % reply.count


def done(text: bytes) -> Reply:
    """Make the reply of what has nothing to say but that it is done."""
    return Reply(200, text, TEXT)


class BullShown(Struct, forbid_unknown_fields=True, rename="camel"):
    """Base of all replies: nothing that is not declared may appear."""


class CountShown(BullShown):
    count: int


def own_ids(queue: str, job_ids: list[str]) -> list[str]:
    """Return ids as the queue knows them."""
    scope = scoped_id(queue, "")
    return [job_id.removeprefix(scope) for job_id in job_ids]

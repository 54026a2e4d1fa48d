"""How long what an operation carries may be, as types: `JobId`, `QueueName` and the like, each with its bound.

The edge keeps the bounds (api/rules.py). Reading a record does not look at them: the log of an older version may hold more, and a record
that one version reads and another refuses would part their states. Tests hold every operation that they apply against its types.
"""

from __future__ import annotations

import typing
from functools import cache
from typing import Annotated, Any

import msgspec
from msgspec import Meta

# Not documented by anybody; one request must not keep every node busy for a noticeable time.
KEY_CHARS_MAX = 1_024
NOTE_CHARS_MAX = 65_536
QUEUE_NAME_CHARS_MAX = 256
DATA_BYTES_MAX = 10 << 20
# What a request's path can hold, and what it becomes where an id is unique in its queue only.
PATH_CHARS_MAX = 33_024


def bounded(most: int, text: str | None = None) -> Meta:
    """What a type says of a text, or of bytes: how many characters, or bytes, it has at most."""
    return Meta(description=text, extra={"at_most": most})


JobId = Annotated[str, bounded(PATH_CHARS_MAX, "Id of a job: made by the server, or the client's own.")]
QueueName = Annotated[
    str, bounded(QUEUE_NAME_CHARS_MAX, "Name of a queue: 1 to 256 of the characters a-z A-Z 0-9 - _ . :")
]
LockToken = Annotated[str, bounded(PATH_CHARS_MAX, "Token that holds a job's lock, as handed out when it was pulled.")]
RawJson = Annotated[bytes, bounded(DATA_BYTES_MAX, "JSON text, opaque to the server.")]
Key = Annotated[str, bounded(KEY_CHARS_MAX + 1, "A name or a key; what is one character too long is nobody's.")]
PathKey = Annotated[str, bounded(PATH_CHARS_MAX, "The same where it stands in a path.")]
Note = Annotated[str, bounded(NOTE_CHARS_MAX, "For people to read.")]
LongText = Annotated[
    str, bounded(DATA_BYTES_MAX, "A text of a client, long as data may be; what it says is nobody's affair.")
]
# A record inside another one.
Record = Annotated[bytes, bounded(2 << 30, "An operation's record.")]


@cache
def bounds_of(kind: type[msgspec.Struct]) -> tuple[tuple[str, int], ...]:
    """Return the fields of a record that are texts or bytes, or hold some, with their bounds; -1 for one that has none."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return tuple((name, most) for name in kind.__struct_fields__ for most in [_most(hints[name])] if most is not None)


def _most(hint: Any) -> int | None:
    for meta in getattr(hint, "__metadata__", ()):
        if meta.extra and "at_most" in meta.extra:
            found: int = meta.extra["at_most"]
            return found
    if hint in (str, bytes):
        return -1
    if typing.get_origin(hint) is typing.Literal:
        return None
    parts = [most for part in typing.get_args(hint) if (most := _most(part)) is not None]
    return None if not parts else -1 if -1 in parts else max(parts)


def exceeding(record: msgspec.Struct) -> list[str]:
    """Return the fields of a record that hold more than their types say."""
    return [name for name, most in bounds_of(type(record)) if most >= 0 and _longest(getattr(record, name)) > most]


def _longest(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    items = value.items() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return max(map(_longest, items), default=0)

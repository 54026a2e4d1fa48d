"""What this dialect lets pass: numbers, texts, ids, queue names, lists of them.

A body that does not fit its types is looked at field by field, to find either the documented message or a value that the
documented server tolerates. Each rule's text is the documented one; statuses are 400 throughout.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import msgspec
from msgspec import Raw, Struct, UnsetType

from api.http import Call, Invalid
from api.limits import DATA_BYTES_MAX
from api.values import (
    BAD_JSON,
    BATCH_MAX,
    COUNT_MAX,
    DAY_MS,
    KEY_CHARS_MAX,
    NOTE_CHARS_MAX,
    as_text,
    check_text,
    decoded,
    members,
    value_of,
)

# Not documented.
NAME_CHARS_MAX = 256
TAGS_MAX = 1_000

QUEUE_NAME = re.compile(r"[a-zA-Z0-9_.:-]+")
QUEUE_NAME_CHARS_MAX = 256
S = TypeVar("S", bound=Struct)


# -- Reading bodies ----------------------------------------------------------------------------------------------------


def read(decoder: msgspec.json.Decoder[S], body: bytes, *, required: bool = False) -> S:
    """Decode a body; where it does not fit the types, keep each field that does and loosen the others.

    An empty body counts as an empty object unless it is required. Raises Invalid.
    """
    if not body:
        if required:
            raise Invalid(BAD_JSON)
        return decoder.type()
    check_text(body)
    return decoded(body, decoder.decode, lambda text: cast(S, loosened(decoder.type, members(text))))


def loosened(kind: Any, found: dict[str, Raw]) -> Any:
    """Make a struct whose fields hold what the client sent, of whatever type; the checks below sort it out."""
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        raw = found.get(field.encode_name)
        if raw is None:
            continue
        if field.name in ("data", "result"):
            values[field.name] = raw
        elif field.name == "results":
            values[field.name] = raw_items(raw)
        else:
            values[field.name] = value_of(raw)
    return kind(**values)


def raw_items(raw: Raw) -> Any:
    try:
        return msgspec.json.decode(raw, type=list[Raw])
    except msgspec.ValidationError:
        return value_of(raw)


# -- Checking values ---------------------------------------------------------------------------------------------------


def check_number(name: str, value: Any, low: int, high: int, *, integer: bool = False) -> None:
    """Raises Invalid with the documented text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Invalid(f"{name} must be a number")
    if not math.isfinite(value):
        raise Invalid(f"{name} must be a finite number")
    if integer and value != math.floor(value):
        raise Invalid(f"{name} must be an integer")
    if value < low:
        raise Invalid(f"{name} must be at least {low}")
    if value > high:
        raise Invalid(f"{name} must be at most {high}")


def query_number(name: str, text: str | None, low: int, high: int) -> float:
    """Read a number out of a query as JavaScript's Number() does: nothing is 0. Raises Invalid."""
    text = (text or "").strip()
    if not text:
        return 0
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text, re.ASCII):
        raise Invalid(f"{name} must be a finite number")
    value = float(text)
    check_number(name, value, low, high)
    return value


def check_queue(name: str) -> str:
    """Return the queue's name. Raises Invalid."""
    if len(name) > QUEUE_NAME_CHARS_MAX:
        raise Invalid(f"Queue name too long (max {QUEUE_NAME_CHARS_MAX} characters)")
    if not QUEUE_NAME.fullmatch(name):
        raise Invalid("Queue name contains invalid characters" if name else "Queue name is required")
    return name


def checked_data(data: Raw | UnsetType) -> bytes:
    """Return the text of the data as it was sent. Raises Invalid."""
    if isinstance(data, UnsetType):
        raise Invalid("data is required")
    text = bytes(data)
    if len(text) > DATA_BYTES_MAX:
        raise Invalid("Job data too large (max 10MB)")
    return text


def checked_result(result: Raw | UnsetType) -> bytes | None:
    if isinstance(result, UnsetType):
        return None
    text = bytes(result)
    if len(text) > DATA_BYTES_MAX:
        raise Invalid("Job result too large (max 10MB)")
    return text


def as_note(value: Any) -> str | None:
    """Read what is kept for people to read, cut to its bound."""
    text = as_text(value)
    return None if text is None else text[:NOTE_CHARS_MAX]


def as_texts(value: Any) -> list[str]:
    """Turn what should have been a list of strings into one; anything but a list holds nothing."""
    return [as_text(item) or "" for item in value] if isinstance(value, list) else []


def as_key(name: str, value: Any) -> str | None:
    """Read an id or a key; an empty one counts as none. Raises Invalid."""
    text = as_text(value)
    if not text:
        return None
    if len(text) > KEY_CHARS_MAX:
        raise Invalid(f"{name} too long (max {KEY_CHARS_MAX} characters)")
    return text


def checked_ids(value: Any) -> list[str]:
    """Return the ids of a batch. Raises Invalid."""
    if not isinstance(value, list):
        raise Invalid("ids must be an array")
    if len(value) > BATCH_MAX:
        raise Invalid(f"ids must have at most {BATCH_MAX} items")
    return [item if isinstance(item, str) else as_text(item) or "" for item in value]


def check_length(command: str, name: str, values: Sequence[Any], ids: Sequence[str]) -> None:
    if len(values) != len(ids):
        raise Invalid(f"{command} {name} length must match ids length")


def duration(name: str, value: Any) -> int:
    """Return how long a lock is to last, in milliseconds. Raises Invalid."""
    check_number(name, value, 1, DAY_MS)
    lasting: int = math.ceil(value)
    return lasting


def checked_list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise Invalid(f"{name} must be an array")
    return value


def page(call: Call, *names: str) -> tuple[int | None, int]:
    """Return limit (None when none was asked for) and offset. names: what the limit is called, the first one wins."""
    limit: int | None = None
    for name in names:
        if name in call.query:
            limit = int(query_number(name, call.query[name], 0, COUNT_MAX))
            break
    return limit, int(query_number("offset", call.query.get("offset"), 0, COUNT_MAX))

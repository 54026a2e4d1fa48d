"""How values that clients send are read and checked, whatever they mean: bodies, numbers, texts, ids, queue names.

A body is decoded once, into a typed struct in which job data stays raw bytes. Only a body that does not fit the types
is looked at a second time, field by field, to find either the documented message or a value that the documented
server tolerates. Each rule's text is the documented one; statuses are 400 throughout.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import msgspec
from msgspec import Meta, Raw, Struct, UnsetType

from api import surrogates
from api.http import Call, Invalid
from api.limits import DATA_BYTES_MAX

YEAR_MS = 31_536_000_000
DAY_MS = 86_400_000
# Not documented; one request must not keep every node busy for a noticeable time.
BATCH_MAX = 10_000
KEY_CHARS_MAX = 1_024
NAME_CHARS_MAX = 256
TAGS_MAX = 1_000
NOTE_CHARS_MAX = 65_536
COUNT_MAX = 2**53

QUEUE_NAME = re.compile(r"[a-zA-Z0-9_.:-]+")
QUEUE_NAME_CHARS_MAX = 256
BAD_JSON = "Invalid JSON body"
NOT_AN_OBJECT = "Request body must be a JSON object"
Number = int | float
S = TypeVar("S", bound=Struct)
T = TypeVar("T")

MEMBERS = msgspec.json.Decoder(dict[str, Raw])
ANYTHING = msgspec.json.Decoder()


def says(
    text: str = "",
    *,
    required: bool = False,
    default: Any = None,
    low: int | None = None,
    high: int | None = None,
    max_chars: int | None = None,
    max_items: int | None = None,
) -> Meta:
    """Describe a field for the OpenAPI document; decoding takes no notice, the checks below do the work."""
    words = {
        "x-default": default,
        "minimum": low,
        "maximum": high,
        "maxLength": max_chars,
        "maxItems": max_items,
        "x-required": required or None,
    }
    known = {word: value for word, value in words.items() if value is not None}
    return Meta(description=text or None, extra_json_schema=known or None)


# -- Reading bodies ----------------------------------------------------------------------------------------------------


def check_text(body: bytes) -> None:
    """Raises Invalid when the body is not UTF-8; the decoder looks only at the strings it makes."""
    if not body.isascii():
        try:
            body.decode("utf-8")
        except UnicodeDecodeError:
            raise Invalid(BAD_JSON) from None


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


def decoded(body: bytes, strictly: Callable[[bytes], T], loosely: Callable[[bytes], T]) -> T:
    """Decode a body that is UTF-8. loosely: what to do with one that does not fit the types.  Raises Invalid."""
    try:
        return strictly(body)
    except msgspec.ValidationError:
        return loosely(body)
    except RecursionError:
        raise Invalid(BAD_JSON) from None
    except msgspec.DecodeError:
        covered = surrogates.cover(body)
        if covered is None:
            raise Invalid(BAD_JSON) from None
    text, count = covered
    found = decoded(text, strictly, loosely)
    if surrogates.uncover(found) != count:
        raise Invalid(BAD_JSON)
    return found


def members(body: bytes | Raw) -> dict[str, Raw]:
    """Decode an object, leaving its values as they are. Raises Invalid."""
    try:
        return MEMBERS.decode(body)
    except msgspec.ValidationError:
        raise Invalid(NOT_AN_OBJECT) from None
    except (msgspec.DecodeError, RecursionError):
        raise Invalid(BAD_JSON) from None


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


def value_of(raw: Raw) -> Any:
    """Decode a value generically. Raises Invalid."""
    try:
        return ANYTHING.decode(raw)
    except msgspec.ValidationError:
        # A number that is too large for a float; the checks call it not finite.
        return math.inf
    except (msgspec.DecodeError, RecursionError):
        raise Invalid(BAD_JSON) from None


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


def as_text(value: Any) -> str | None:
    """Turn what should have been a string into one, as it would be written in JSON; null is none."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


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


def whole(value: Number) -> Number:
    """Write 5.0 as 5."""
    return int(value) if value == math.floor(value) else value


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

"""How what clients send is read, in whatever dialect: JSON that is decoded once, and bounds on single values.

A body is decoded into a typed struct in which job data stays raw bytes. Only a body that does not fit the types is looked at
a second time, field by field, and then it is the dialect that knows what to say of it, or what to put up with.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec import Raw

from quorumq.api import surrogates
from quorumq.api.errors import Invalid
from quorumq.node.machine import bounds

YEAR_MS = 31_536_000_000
DAY_MS = 86_400_000
# Not documented; one request must not keep every node busy for a noticeable time.
BATCH_MAX = 10_000
KEY_CHARS_MAX = bounds.KEY_CHARS_MAX
NOTE_CHARS_MAX = bounds.NOTE_CHARS_MAX
COUNT_MAX = 2**53

BAD_JSON = "Invalid JSON body"
NOT_AN_OBJECT = "Request body must be a JSON object"
Number = int | float
T = TypeVar("T")

MEMBERS = msgspec.json.Decoder(dict[str, Raw])
ANYTHING = msgspec.json.Decoder()


def check_text(body: bytes) -> None:
    """Raises Invalid when the body is not UTF-8; the decoder looks only at the strings it makes."""
    if not body.isascii():
        try:
            body.decode("utf-8")
        except UnicodeDecodeError:
            raise Invalid(BAD_JSON) from None


def decoded(body: bytes, strictly: Callable[[bytes], T], loosely: Callable[[bytes], T]) -> T:
    """Decode a body that is UTF-8. loosely: what to do with one that does not fit the types.  Raises Invalid."""
    try:
        return strictly(body)
    except msgspec.ValidationError:
        # A type that does not fit may come before half a surrogate pair, at which decoding would have stopped.
        covered = cover(body)
        if covered is None:
            return loosely_decoded(body, loosely)
    except RecursionError:
        raise Invalid(BAD_JSON) from None
    except msgspec.DecodeError:
        covered = cover(body)
        if covered is None:
            raise Invalid(BAD_JSON) from None
    text, count = covered
    try:
        found = strictly(text)
    except msgspec.ValidationError:
        found = loosely_decoded(text, loosely)
    except (msgspec.DecodeError, RecursionError):
        raise Invalid(BAD_JSON) from None
    if surrogates.uncover(found) != count:
        raise Invalid(BAD_JSON)
    return found


def cover(body: bytes) -> tuple[bytes, int] | None:
    """Cover half surrogate pairs. Raises Invalid when there are too many."""
    try:
        return surrogates.cover(body)
    except surrogates.TooManyHalves:
        raise Invalid(f"Too many halves of surrogate pairs (max {surrogates.HALVES_MAX})") from None


def loosely_decoded(body: bytes, loosely: Callable[[bytes], T]) -> T:
    """Decode a body whose types are known not to fit. Raises Invalid."""
    try:
        return loosely(body)
    except (msgspec.DecodeError, RecursionError):
        raise Invalid(BAD_JSON) from None


def members(body: bytes | Raw) -> dict[str, Raw]:
    """Decode an object, leaving its values as they are. Raises Invalid."""
    try:
        return MEMBERS.decode(body)
    except msgspec.ValidationError:
        raise Invalid(NOT_AN_OBJECT) from None
    except (msgspec.DecodeError, RecursionError):
        raise Invalid(BAD_JSON) from None


@functools.cache
def fields_of(kind: type[msgspec.Struct]) -> tuple[tuple[str, str], ...]:
    """Return the fields of a struct, as clients spell them and as it names them. Working that out takes longer than a body."""
    return tuple((field.encode_name, field.name) for field in msgspec.structs.fields(kind))


def value_of(raw: Raw) -> Any:
    """Decode a value generically. Raises Invalid."""
    try:
        return ANYTHING.decode(raw)
    except msgspec.ValidationError:
        # A number that is too large for a float; the checks call it not finite.
        return math.inf
    except (msgspec.DecodeError, RecursionError):
        raise Invalid(BAD_JSON) from None


def as_text(value: Any) -> str | None:
    """Turn what should have been a string into one, as it would be written in JSON; null is none."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def is_finite(value: Number) -> bool:
    """Say whether a number is one where clients count in floats: neither infinite nor a whole one that no float can hold."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def whole(value: Number) -> Number:
    """Write 5.0 as 5."""
    return int(value) if value == math.floor(value) else value

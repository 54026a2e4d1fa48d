"""MessagePack as bunqueue's clients speak it, and JSON as jobs are kept in it: one is made of the other and comes back as it was.

What JSON has no word for is kept in the form of MongoDB's Extended JSON (v2, relaxed), which is what HTTP and WebSockets show of it:

    a timestamp (JavaScript's Date)   {"$date": "2026-11-27T10:00:00.000Z"}
    binary (Uint8Array, Buffer)       {"$binary": {"base64": "aGk=", "subType": "00"}}
    NaN, Infinity                     {"$numberDouble": "NaN"}
    a map that itself looks so        {"$literal": {"$date": 1}}

A number beyond 32 bits goes out as float64, because JavaScript's decoder makes a BigInt of a longer integer. `undefined` (extension 0)
is absent from a map, and null in a list. Other extensions, and keys that are no text, numbers or booleans, are refused.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from datetime import UTC, datetime
from typing import Any

import msgpack
import msgspec

from quorumq.api import surrogates

# Of one frame: values, keys included. What takes one byte in a frame takes sixty as an object.
VALUES_MAX = 1_000_000
# A frame up to this size is decoded in an unnoticeable time, whatever it holds.
UNCOUNTED_BYTES = 256 << 10
# Integers that leave as such; JavaScript reads all of them as numbers.
LOW, HIGH = -(1 << 31), (1 << 32) - 1
# What may be something that JSON has no word for: binary, an extension, a float that is no finite number.
ODD = re.compile(rb"[\xc4-\xc9\xd4-\xd8]|\xca[\x7f\xff][\x80-\xff]|\xcb[\x7f\xff][\xf0-\xff]")
# What may be the beginning of one of the forms above.
FORM = b'"$'
DATE, BINARY, DOUBLE, LITERAL = "$date", "$binary", "$numberDouble", "$literal"
FORMS = frozenset({DATE, BINARY, DOUBLE, LITERAL})
DOUBLES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
# Where the number of a command is looked for in a frame that was not taken.
END_BYTES = 1024
NUMBER = re.compile(rb"\xa5reqId([\xa1-\xb4])([0-9]{1,20})\Z")
ENCODE = msgspec.msgpack.Encoder().encode
TO_JSON = msgspec.json.Encoder().encode
FROM_JSON = msgspec.json.Decoder().decode


class BadFrame(Exception):
    """A frame that is no command; the message is for the client."""


class Undefined:
    """JavaScript's `undefined`, while a frame is decoded."""


UNDEFINED = Undefined()


def extension(code: int, data: memoryview) -> Any:
    if code == 0 and len(data) == 1:
        return UNDEFINED
    raise BadFrame(f"Invalid command: MessagePack's extension {code} is not known")


DECODE = msgspec.msgpack.Decoder(ext_hook=extension).decode


# -- From a client -----------------------------------------------------------------------------------------------------


def decoded(frame: bytes | bytearray) -> dict[str, Any]:
    """Decode a frame into what can be written as JSON. Raises BadFrame."""
    if len(frame) > UNCOUNTED_BYTES:
        count(frame)
    try:
        found = DECODE(frame)
        if not isinstance(found, dict):
            raise BadFrame("Invalid command")
        if ODD.search(frame) is not None:
            replace_odd(found)
        elif b"$" in frame:
            wrap_forms(found)
    except msgspec.ValidationError as error:
        # Only a timestamp can be right in its form and none all the same.
        raise BadFrame(f"Invalid command: {str(error).partition(' - at ')[0].strip()}") from error
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise BadFrame("Invalid command format") from error
    return found


def encoded_json(found: dict[str, Any]) -> bytes:
    """Write what was decoded as JSON. Raises BadFrame."""
    try:
        return TO_JSON(found)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadFrame("Invalid command format") from error


def replace_odd(found: dict[str, Any]) -> None:
    """Put what JSON has a word for in the place of what it has none for, and wrap maps that look like that."""
    stack: list[Any] = [found]
    while stack:
        node = stack.pop()
        if type(node) is dict:
            absent = []
            for key, value in node.items():
                kind = type(value)
                if kind is str or kind is int or kind is bool:
                    continue
                if value is UNDEFINED:
                    absent.append(key)
                elif (made := written(value)) is not value:
                    node[key] = made
                if kind is dict or kind is list:
                    stack.append(value)
            for key in absent:
                del node[key]
        else:
            for at, value in enumerate(node):
                kind = type(value)
                if kind is str or kind is int or kind is bool:
                    continue
                if value is UNDEFINED:
                    node[at] = None
                elif (made := written(value)) is not value:
                    node[at] = made
                if kind is dict or kind is list:
                    stack.append(value)


def written(value: Any) -> Any:
    """Return what stands in JSON for a value, itself if it can stand there. What is within is not looked at."""
    match value:
        case dict() if len(value) == 1 and next(iter(value)) in FORMS:
            return {LITERAL: value}
        case bytes():
            return {BINARY: {"base64": base64.b64encode(value).decode(), "subType": "00"}}
        case datetime():
            text = value.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00")
            return {DATE: f"{text[:-3] if text.endswith('000') else text}Z"}
        case float() if not math.isfinite(value):
            return {DOUBLE: "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    return value


def wrap_forms(found: dict[str, Any]) -> None:
    """Wrap maps that look like what stands for something else."""
    stack: list[Any] = [found]
    while stack:
        node = stack.pop()
        for at, value in node.items() if type(node) is dict else enumerate(node):
            if type(value) is list:
                stack.append(value)
            elif type(value) is dict:
                stack.append(value)
                if len(value) == 1 and next(iter(value)) in FORMS:
                    node[at] = {LITERAL: value}


# The length of what follows a first byte, and how many values are within, by the first byte: -1 where its length says so.
WIDTHS = [0] * 256
for _byte, _width in {
    0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
    0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17,
}.items():  # fmt: skip
    WIDTHS[_byte] = _width
for _byte in range(0xA0, 0xC0):
    WIDTHS[_byte] = _byte & 0x1F
# Strings, binary, extensions, lists, maps: bytes of their length, bytes besides, values for each.
LONG = {
    0xC4: (1, 0, 0), 0xC5: (2, 0, 0), 0xC6: (4, 0, 0), 0xC7: (1, 1, 0), 0xC8: (2, 1, 0), 0xC9: (4, 1, 0),
    0xD9: (1, 0, 0), 0xDA: (2, 0, 0), 0xDB: (4, 0, 0), 0xDC: (2, 0, 1), 0xDD: (4, 0, 1), 0xDE: (2, 0, 2), 0xDF: (4, 0, 2),
}  # fmt: skip


def count(frame: bytes | bytearray) -> int:
    """Count the values of a large frame, in steps of Python's: not for the loop. Raises BadFrame at more than VALUES_MAX."""
    at, end, left, counted = 0, len(frame), 1, 0
    widths, long = WIDTHS, LONG
    while left > 0:
        if at >= end or left > end - at:
            raise BadFrame("Invalid command format")
        counted += 1
        if counted > VALUES_MAX:
            raise BadFrame(f"A command must hold at most {VALUES_MAX} values")
        left -= 1
        first = frame[at]
        at += 1
        if 0x80 <= first < 0xA0:
            left += (first & 0xF) << (first < 0x90)
        elif (more := long.get(first)) is not None:
            size, besides, within = more
            length = int.from_bytes(frame[at : at + size], "big")
            at += size + besides
            if within:
                left += length * within
            else:
                at += length
        else:
            at += widths[first]
    return counted


def number_of(first: bytes, last: bytes) -> str | None:
    """Find the `reqId` of a command that was not taken, in the ends of its frame: among its first fields, or as the last."""
    reader = msgpack.Unpacker(raw=False, strict_map_key=True, ext_hook=lambda code, data: None)
    reader.feed(first)
    try:
        for _ in range(reader.read_map_header()):
            key, value = reader.unpack(), reader.unpack()
            if key == "reqId":
                return value if isinstance(value, str) else None
    except Exception:  # noqa: S110 - whatever is wrong with it, the beginning tells nothing more
        pass
    found = NUMBER.search(last)
    return found[2].decode() if found is not None and found[1][0] & 0x1F == len(found[2]) else None


# -- To a client -------------------------------------------------------------------------------------------------------


# What is answered most.
CONSTANT = {
    reply: ENCODE(FROM_JSON(reply))
    for reply in (
        b'{"ok":true}',
        b'{"ok":true,"job":null}',
        b'{"ok":true,"job":null,"token":null}',
        b'{"ok":true,"jobs":[]}',
        b'{"ok":true,"jobs":[],"tokens":[]}',
    )
}


def encoded(reply: bytes, number: Any = None) -> bytes:
    """Write a reply, or an event, as MessagePack. number: what it repeats as `reqId`, if anything."""
    constant = CONSTANT.get(reply)
    if constant is not None:
        if number is None:
            return constant
        # One more key in a short map.
        return b"%c%b\xa5reqId%b" % (constant[0] + 1, constant[1:], ENCODE(number))
    try:
        found = FROM_JSON(reply)
    except (msgspec.MsgspecError, RecursionError):
        # Half surrogate pairs, and numbers that are none to a float: kept as they came over HTTP.
        found = json.loads(surrogates.replaced(reply), parse_int=as_int)
    if FORM in reply:
        revive(found)
    else:
        widen(found)
    if number is not None:
        found["reqId"] = number
    packed: bytes = ENCODE(found)
    return packed


def as_int(text: str) -> int | float:
    return int(text) if len(text) < 20 else float(text)


def widen(found: Any) -> None:
    """Make floats of integers that are beyond 32 bits."""
    stack: list[Any] = [found]
    while stack:
        node = stack.pop()
        for at, value in node.items() if type(node) is dict else enumerate(node):
            kind = type(value)
            if kind is int:
                if not LOW <= value <= HIGH:
                    node[at] = widened(value)
            elif kind is dict or kind is list:
                stack.append(value)


def widened(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def revive(found: Any) -> None:
    """The same, and put what was meant in the place of what stands for it in JSON."""
    stack: list[Any] = [found]
    while stack:
        node = stack.pop()
        for at, value in node.items() if type(node) is dict else enumerate(node):
            kind = type(value)
            if kind is int:
                if not LOW <= value <= HIGH:
                    node[at] = widened(value)
            elif kind is list:
                stack.append(value)
            elif kind is dict:
                if len(value) == 1:
                    node[at] = value = revived(value)
                    if type(value) is not dict:
                        continue
                stack.append(value)


def revived(value: dict[str, Any]) -> Any:
    """Return what a map with one key stands for: itself, as a rule."""
    ((key, inner),) = value.items()
    try:
        match key, inner:
            case "$literal", dict():
                return inner
            case "$date", str():
                found = datetime.fromisoformat(inner)
                return value if found.tzinfo is None else found
            case "$binary", {"base64": str(text), "subType": "00"} if len(inner) == 2:
                return base64.b64decode(text, validate=True)
            case "$numberDouble", str():
                return DOUBLES.get(inner, value)
    except (ValueError, binascii.Error):
        pass
    return value

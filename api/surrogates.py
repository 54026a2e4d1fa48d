r"""Half surrogate pairs (`"\ud83d"`) in JSON: its grammar allows them, JavaScript writes them, the decoder refuses them.

They are covered by characters of the private use area while a body is decoded and uncovered in the opaque values, which
nobody parses. In texts that only people read something else takes their place; anywhere else (ids, keys, names) they cannot be
stored, and the body is refused.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Raw

# Pairs are matched, too, so that the second half of one is not taken for a half.
HALF = re.compile(
    rb"\\u(?:[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|([dD][89a-fA-F][0-9a-fA-F]{2}))", re.DOTALL
)
# A backslash that is itself escaped is not the start of an escape; what stands for it meanwhile cannot be in JSON.
ESCAPED, MARK = rb"\\", b"\0\0"
# Each takes a call of a function. Who cuts texts in the middle of a pair has one half for each of them.
HALVES_MAX = 20_000
COVERED = re.compile(rb"\\u[eE][0-7][0-9a-fA-F]{2}")
OFFSET = 0xE000 - 0xD800


class TooManyHalves(Exception):
    """A body has more half pairs than are looked at."""


def cover(body: bytes) -> tuple[bytes, int] | None:
    """Return the body with its half pairs covered, and how many there were; None when that is no help.

    Raises TooManyHalves.
    """
    if b"\\u" not in body or b"\0" in body or COVERED.search(body):
        return None
    count = 0

    def replace(match: re.Match[bytes]) -> bytes:
        nonlocal count
        half = match[1]
        if half is None:
            return match[0]
        count += 1
        if count > HALVES_MAX:
            raise TooManyHalves
        return b"\\u%04x" % (int(half, 16) + OFFSET)

    covered = HALF.sub(replace, body.replace(ESCAPED, MARK)).replace(MARK, ESCAPED)
    return (covered, count) if count else None


def replaced(body: bytes) -> bytes:
    """Return the body with the replacement character where half pairs are: a report of a failure must not fail for its text."""
    if b"\\u" not in body or b"\0" in body:
        return body
    marked = body.replace(ESCAPED, MARK)
    return HALF.sub(lambda match: match[0] if match[1] is None else b"\\ufffd", marked).replace(MARK, ESCAPED)


def uncover(value: Any) -> int:
    """Put the half pairs back into the opaque values of a decoded body, in place; return how many there were."""
    count = 0
    if isinstance(value, list):
        for position, item in enumerate(value):
            if isinstance(item, Raw):
                value[position], found = uncovered(item)
                count += found
            else:
                count += uncover(item)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            item = getattr(value, name)
            if isinstance(item, Raw):
                item, found = uncovered(item)
                setattr(value, name, item)
                count += found
            elif isinstance(item, list):
                count += uncover(item)
    return count


def uncovered(raw: Raw) -> tuple[Raw, int]:
    text, count = COVERED.subn(lambda match: b"\\u%04x" % (int(match[0][2:], 16) - OFFSET), bytes(raw))
    return Raw(text), count

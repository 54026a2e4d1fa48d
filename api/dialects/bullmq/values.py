"""How the BullMQ dialect reads values: names of queues, numbers as JavaScript reads them, values as it would print them.

The texts are those of the recorded server, which prints the value that it refuses. What is common to all bodies (UTF-8,
half surrogate pairs, one decode) comes from the bunqueue dialect's values.py.
"""

from __future__ import annotations

import math
import re
from typing import Any, TypedDict, Unpack

import msgspec
from msgspec import Meta, Raw, Struct, UnsetType

from quorumq.api import surrogates
from quorumq.api.errors import Invalid
from quorumq.api.limits import DATA_BYTES_MAX
from quorumq.api.request import Call
from quorumq.api.rules import apply, says
from quorumq.api.values import (
    BAD_JSON,
    COUNT_MAX,
    KEY_CHARS_MAX,
    NOTE_CHARS_MAX,
    check_text,
    decoded,
    fields_of,
    is_finite,
    members,
    value_of,
    whole,
)

QUEUE_CHARS_MIN = 3
QUEUE_CHARS_MAX = 100
# A hundred years; beyond it a time is a mistake.
MILLIS_MAX = 3_155_760_000_000
DAY_MS = 86_400_000
PAGE_MAX = 100
PAGE = 10
# A refused value is shown up to here.
SHOWN_CHARS_MAX = 200
PARSED_INT = re.compile(r"\s*([+-]?\d+)", re.ASCII)
INTEGER = re.compile(r"-?(?:0|[1-9]\d*)", re.ASCII)
# What a number begins with in JSON.
NUMBERS = frozenset(bytes([one]) for one in b"-0123456789")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Fields of bodies whose value is nobody's affair but the client's.
OPAQUE_FIELDS = frozenset({"data", "return_value"})
EMPTY_BODY = "Unexpected end of JSON input"

Number = int | float


def shown(value: Any) -> str:
    """Write a value as JavaScript's String() does."""
    return plain(value)[:SHOWN_CHARS_MAX]


def plain(value: Any) -> str:
    if isinstance(value, UnsetType):
        return "undefined"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)) and not is_finite(value):
        return "Infinity"
    if isinstance(value, float):
        # Larger ones have an exponent there, too.
        return repr(int(value) if value == math.floor(value) and abs(value) < 1e21 else value)
    if isinstance(value, list):
        return ",".join("" if item is None else plain(item) for item in value[:SHOWN_CHARS_MAX])
    return "[object Object]" if isinstance(value, dict) else str(value)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and is_finite(value)


def is_integer(value: Any, low: int, high: int) -> bool:
    """Say whether a value is a whole number within its bounds; 5.0 is 5."""
    return is_number(value) and low <= value <= high and value == math.floor(value)


def integer(name: str, value: Any, low: int = 0, high: int = COUNT_MAX) -> int:
    """Return a whole number. Raises Invalid in the recorded words."""
    if not is_integer(value, low, high):
        raise Invalid(f"Invalid {name} {shown(value)}")
    return int(value)


def boolean(name: str, value: Any) -> bool:
    """Return a truth value. Raises Invalid in the recorded words."""
    if not isinstance(value, bool):
        raise Invalid(f"Invalid {name} {shown(value)}, must be a boolean")
    return value


def text(name: str, value: Any, chars_max: int = KEY_CHARS_MAX) -> str:
    """Return a text. Raises Invalid in the recorded words."""
    if not isinstance(value, str):
        raise Invalid(f"Invalid {name} {shown(value)}, must be a string")
    if len(value) > chars_max:
        raise Invalid(f"Invalid {name}, must be at most {chars_max} characters long")
    return value


def queue_of(call: Call) -> str:
    """Return the queue that the path names. Raises Invalid."""
    return check_name(call.path["queue"])


def can_be_named(name: str) -> bool:
    """Say whether this dialect can name a queue."""
    return QUEUE_CHARS_MIN <= len(name) <= QUEUE_CHARS_MAX and ":" not in name and not CONTROL.search(name)


def check_name(name: str) -> str:
    """Return the name of a queue. Raises Invalid in the recorded words."""
    if len(name) < QUEUE_CHARS_MIN:
        raise Invalid(f"queue name must be at least {QUEUE_CHARS_MIN} characters long")
    if len(name) > QUEUE_CHARS_MAX:
        raise Invalid(f"queue name must be at most {QUEUE_CHARS_MAX} characters long")
    if ":" in name:
        raise Invalid("Queue name cannot contain :")
    if CONTROL.search(name):
        raise Invalid("Queue name cannot contain control characters")
    return name


def parse_int(text: str | None, absent: int) -> int | None:
    """Read a number as JavaScript's parseInt does; None where that is not a number. absent: what nothing stands for."""
    if not text:
        return absent
    found = PARSED_INT.match(text)
    if found is None:
        return None
    digits = found[1]
    # More digits than any count has are as good as the largest.
    number = int(digits) if len(digits) < 18 else COUNT_MAX
    return -number if number == COUNT_MAX and digits.startswith("-") else number


def page(call: Call) -> tuple[int, int]:
    """Return start and length of the page asked for; length 0 means all. Raises Invalid."""
    start = parse_int(call.query.get("start"), 0)
    length = parse_int(call.query.get("length"), PAGE)
    if start is None or length is None:
        raise Invalid("Invalid start or length")
    if start < 0 or length < 0:
        raise Invalid("Start and length must be positive")
    if length > PAGE_MAX:
        raise Invalid(f"Length must be less than or equal to {PAGE_MAX}")
    return start, length


def read(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    """Decode an object and have its fields hold what their rules make of them; an empty body counts as an empty object. Raises Invalid."""
    if not body:
        return apply(decoder.type())
    check_text(body)
    return apply(decoded(body, decoder.decode, lambda text: loosened(decoder.type, text)))


def loosened(kind: Any, body: bytes) -> Any:
    """Make a struct whose fields hold what the client sent, of whatever type; the checks sort it out. Raises Invalid."""
    fields = dict(fields_of(kind))
    values: dict[str, Any] = {}
    for key, raw in members(body).items():
        name = fields.get(key)
        if name is None:
            raise Invalid(f"Unexpected field: {shown(key)}")
        values[name] = raw if name in OPAQUE_FIELDS else value_of(raw)
    return kind(**values)


class Body(Struct, forbid_unknown_fields=True, rename="camel"):
    """Base of bodies that are objects: what a client spells in another way must not be lost in silence."""


def opaque(body: bytes) -> bytes:
    """Return a body that is any one JSON value, as it was sent. Raises Invalid."""
    if not body:
        raise Invalid(EMPTY_BODY)
    check_text(body)
    # As the only item of a list, so that what is more than one value cannot pass for one.
    found = decoded(b"[%b]" % body, ITEMS.decode, _not_one)
    if len(found) != 1:
        raise Invalid(BAD_JSON)
    if len(found[0]) > DATA_BYTES_MAX:
        raise Invalid("Value too large (max 10MB)")
    return bytes(found[0])


ITEMS = msgspec.json.Decoder(list[Raw])


def _not_one(body: bytes) -> list[Raw]:
    raise Invalid(BAD_JSON)


def opaque_field(name: str, value: Raw | UnsetType) -> bytes:
    """Return the text of a field that is any JSON. Raises Invalid."""
    if isinstance(value, UnsetType):
        raise Invalid(f"{name} is required")
    if len(value) > DATA_BYTES_MAX:
        raise Invalid(f"{name} too large (max 10MB)")
    return bytes(value)


def as_note(value: Any) -> str | None:
    """Read what is kept for people to read, cut to its bound; what is no text is written as JavaScript would."""
    if value is None or isinstance(value, UnsetType):
        return None
    return (value if isinstance(value, str) else plain(value))[:NOTE_CHARS_MAX]


def progress_of(raw: bytes) -> float | None:
    """Return the number that a progress is, None when it is something else."""
    value: Any = value_of(Raw(raw)) if raw[:1] in NUMBERS else None
    return whole(value) if is_number(value) else None


def line(body: bytes) -> str:
    """Return the line of log that a body is: a string; the `log` of an object; of anything else its JSON. Raises Invalid."""
    raw = surrogates.replaced(opaque(body))
    value = value_of(Raw(raw))
    if isinstance(value, dict) and isinstance(value.get("log"), str):
        value = value["log"]
    return (value if isinstance(value, str) else raw.decode("utf-8"))[:NOTE_CHARS_MAX]


# -- Rules of fields ---------------------------------------------------------------------------------------------------


class RuleOptions(TypedDict, total=False):
    """What a rule says besides."""

    required: bool
    default: Any


def number(
    text: str, low: int = 0, high: int = COUNT_MAX, *, in_schema: bool = True, **more: Unpack[RuleOptions]
) -> Meta:
    """A whole number between two bounds. in_schema: whether the document names the upper one."""
    return says(
        text,
        reads=lambda name, value: integer(name, value, low, high),
        low=low,
        high=high if in_schema else None,
        **more,
    )


def flag(text: str, **more: Unpack[RuleOptions]) -> Meta:
    """Whether."""
    return says(text, reads=boolean, **more)


def one_of(text: str, allowed: tuple[str, ...]) -> Meta:
    """One of some words; the first is the default."""

    def reads(name: str, value: Any) -> str:
        if value not in allowed:
            raise Invalid(f"Invalid {name} {shown(value)}")
        return allowed[allowed.index(value)]

    return says(text, reads=reads, bound=max(map(len, allowed)), default=allowed[0])


def note(what: str, **more: Unpack[RuleOptions]) -> Meta:
    """What is kept for people to read, cut to its bound."""
    return says(what, reads=lambda name, value: as_note(value), bound=NOTE_CHARS_MAX, **more)


def key(what: str, chars_max: int = KEY_CHARS_MAX, **more: Unpack[RuleOptions]) -> Meta:
    """A text that names something."""
    return says(what, reads=lambda name, value: text(name, value, chars_max), max_chars=chars_max, **more)


def any_json(text: str, **more: Unpack[RuleOptions]) -> Meta:
    """Any JSON, as it was sent."""
    return says(text, reads=opaque_field, bound=DATA_BYTES_MAX, **more)

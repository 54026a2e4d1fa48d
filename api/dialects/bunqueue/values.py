"""What this dialect lets pass: numbers, texts, ids, queue names, lists of them.

A body that does not fit its types is looked at field by field, to find either the documented message or a value that the
documented server tolerates. Each rule's text is the documented one; statuses are 400 throughout.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypedDict, TypeVar, Unpack, cast

import msgspec
from msgspec import Meta, Raw, Struct, UnsetType

from quorumq.api.errors import Invalid
from quorumq.api.limits import DATA_BYTES_MAX
from quorumq.api.request import Call
from quorumq.api.rules import apply, says
from quorumq.api.values import (
    BAD_JSON,
    BATCH_MAX,
    COUNT_MAX,
    DAY_MS,
    KEY_CHARS_MAX,
    NOTE_CHARS_MAX,
    Number,
    as_text,
    check_text,
    decoded,
    fields_of,
    is_finite,
    members,
    value_of,
    whole,
)
from quorumq.node.machine.bounds import QUEUE_NAME_CHARS_MAX

# Not documented.
NAME_CHARS_MAX = 256
TAGS_MAX = 1_000

QUEUE_NAME = re.compile(r"[a-zA-Z0-9_.:-]+")
S = TypeVar("S", bound=Struct)


class RuleOptions(TypedDict, total=False):
    """What a rule says besides."""

    required: bool | str
    default: Any
    instead_of: str
    only_with: str


# -- Reading bodies ----------------------------------------------------------------------------------------------------


def read(decoder: msgspec.json.Decoder[Any], body: bytes, *, required: bool = False) -> Any:
    """Decode a body and have its fields hold what their rules make of them. Raises Invalid."""
    return apply(read_unchecked(decoder, body, required=required))


def read_unchecked(decoder: msgspec.json.Decoder[S], body: bytes, *, required: bool = False) -> S:
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
    for spelled, name in fields_of(kind):
        raw = found.get(spelled)
        if raw is None:
            continue
        if name in ("data", "result"):
            values[name] = raw
        elif name == "results":
            values[name] = raw_items(raw)
        else:
            values[name] = value_of(raw)
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
    if not is_finite(value):
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
    return [item if type(item) is str and len(item) <= KEY_CHARS_MAX else cut(item) for item in value]


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


# -- Rules of fields ---------------------------------------------------------------------------------------------------


def number(text: str, low: int, high: int, **more: Unpack[RuleOptions]) -> Meta:
    """A number between two bounds."""

    def reads(name: str, value: Any) -> Number:
        if type(value) is int and low <= value <= high:
            return value
        check_number(name, value, low, high)
        return whole(value)

    return says(text, reads=reads, low=low, high=high, **more)


def integer(text: str, low: int, high: int, *, in_schema: bool = True, **more: Unpack[RuleOptions]) -> Meta:
    """A whole number between two bounds. in_schema: whether the document names the upper one."""

    def reads(name: str, value: Any) -> int:
        if type(value) is int and low <= value <= high:
            return value
        check_number(name, value, low, high, integer=True)
        return int(value)

    return says(text, reads=reads, low=low, high=high if in_schema else None, **more)


def lasting(text: str, **more: Unpack[RuleOptions]) -> Meta:
    """Milliseconds that a lock lasts."""
    return says(text, reads=duration, low=1, high=DAY_MS, **more)


def key(text: str = "", *, in_schema: bool = True, **more: Unpack[RuleOptions]) -> Meta:
    """An id or a key; an empty one counts as none."""
    return says(text, reads=as_key, bound=KEY_CHARS_MAX, max_chars=KEY_CHARS_MAX if in_schema else None, **more)


def note(text: str, **more: Unpack[RuleOptions]) -> Meta:
    """What is kept for people to read, cut to its bound."""
    return says(text, reads=lambda name, value: as_note(value), bound=NOTE_CHARS_MAX, **more)


def word(text: str, chars_max: int = KEY_CHARS_MAX, **more: Unpack[RuleOptions]) -> Meta:
    """A text that is looked up, or compared: none that is longer than its bound could be found, so it is cut just behind it."""

    def reads(name: str, value: Any) -> str:
        return value if type(value) is str and len(value) <= chars_max else cut(value, chars_max)

    return says(text, reads=reads, bound=chars_max + 1, **more)


def cut(value: Any, chars_max: int = KEY_CHARS_MAX) -> str:
    return (as_text(value) or "")[: chars_max + 1]


def flag(text: str, **more: Unpack[RuleOptions]) -> Meta:
    """Whether; anything but a flag is refused."""
    return says(text, reads=checked_flag, **more)


def checked_flag(name: str, value: Any) -> bool:
    """Return a flag. Raises Invalid."""
    if not isinstance(value, bool):
        raise Invalid(f"{name} must be a boolean")
    return value


def truth(text: str, **more: Unpack[RuleOptions]) -> Meta:
    """Whether; anything counts for what it is in JavaScript's eyes."""
    return says(text, reads=lambda name, value: bool(value), **more)


def names_of_jobs(text: str) -> Meta:
    """Ids of a batch."""
    return says(
        text, reads=lambda name, value: checked_ids(value), max_items=BATCH_MAX, required="ids must be an array"
    )


def beside_ids(text: str, item: Callable[[str, Any], Any], **more: Unpack[RuleOptions]) -> Meta:
    """A list as long as the ids beside it, whose length is compared with theirs. item: reads one of it."""

    def reads(name: str, value: Any) -> list[Any]:
        # One more than there are ids ever: what is longer is refused for its length.
        return [item(name, one) for one in checked_list(name, value)[: BATCH_MAX + 1]]

    return says(text, reads=reads, bound=BATCH_MAX + 1, **more)


def given_data(text: str) -> Meta:
    """Data of a job: any JSON, as it was sent."""
    return says(text, reads=lambda name, value: checked_data(value), bound=DATA_BYTES_MAX, required="data is required")


def given_result(text: str) -> Meta:
    """The result of a run: any JSON, as it was sent."""
    return says(text, reads=lambda name, value: checked_result(value), bound=DATA_BYTES_MAX)


def queue_name(text: str, **more: Unpack[RuleOptions]) -> Meta:
    """The name of a queue."""
    return says(text, reads=lambda name, value: check_queue(as_text(value) or ""), bound=QUEUE_NAME_CHARS_MAX, **more)


def page(call: Call, *names: str) -> tuple[int | None, int]:
    """Return limit (None when none was asked for) and offset. names: what the limit is called, the first one wins."""
    limit: int | None = None
    for name in names:
        if name in call.query:
            limit = int(query_number(name, call.query[name], 0, COUNT_MAX))
            break
    return limit, int(query_number("offset", call.query.get("offset"), 0, COUNT_MAX))


T = TypeVar("T")
Millis = Number | None
Token = Annotated[str | None, word("The job's lock token, as it came with the job; a locked job needs it.")]
BeatToken = Annotated[str | None, word("The job's lock token; may be left out, but a wrong one is refused.")]
DelayToken = Annotated[
    str | None,
    word("The job's lock token; a wrong one is refused, and so is `PUT …/delay` of a locked job without one."),
]
Ids = Annotated[list[str] | None, names_of_jobs("Ids of jobs.")]


def token_of(name: str, value: Any) -> str | None:
    return None if value is None else cut(value)


def of_job(what: Callable[[str], T]) -> Callable[[Call], T]:
    """Decode a request that says nothing but which job."""
    return lambda call: what(call.path["id"])


def of_known_job(what: Callable[[str, bool], T]) -> Callable[[Call], T]:
    """Decode a question about a job: over HTTP one that there is, in a command any, as the server has it."""
    return lambda call: what(call.path["id"], call.over_http)


def as_many(command: str, name: str, values: list[Any] | None, ids: Sequence[str]) -> list[Any]:
    """Return what stands beside the ids; nothing at all when nothing was sent. Raises Invalid."""
    if values is None:
        return []
    check_length(command, name, values, ids)
    return values


def queue_of(call: Call) -> str:
    """Return the queue that the path names. Raises Invalid."""
    return check_queue(call.path["queue"])


def of_queue(what: Callable[[str], T]) -> Callable[[Call], T]:
    """Decode a request that says nothing but which queue."""
    return lambda call: what(check_queue(call.path["queue"]))

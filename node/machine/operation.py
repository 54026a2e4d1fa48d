"""What an operation and a query are, and the catalogue of all of them.

An operation is a frozen struct with an `apply`: the struct is the log record, `apply` is its meaning. Its name
(`noun.verb`) is the struct's tag, given once in the class line. A query is the same for reads, with `answer`.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from functools import cache, reduce
from operator import or_
from typing import Any, TypeVar

import msgspec

from quorumq.cluster.errors import NotUnderstood
from quorumq.cluster.version import VERSION
from quorumq.node.machine.events import Event
from quorumq.node.machine.refusals import Refusal
from quorumq.node.machine.state import State
from quorumq.node.machine.state.job import Job


class Entry(msgspec.Struct, gc=False):
    """One log entry while and after it is applied.

    woken: queues that may have something to give now.  ended: watched jobs that completed.  events: None unless wanted.
    added_flow: whether a flow was added.
    """

    index: int
    now_ms: int
    events: list[Event] | None
    woken: dict[str, None]
    ended: list[Job]
    added_flow: bool = False


EntryListener = Callable[[Entry], None]


class Operation(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="op", forbid_unknown_fields=True):
    """A change to the replicated state. Fields are the log record; `apply` is pure, synchronous and total."""

    def apply(self, state: State, entry: Entry) -> Any:
        """Check, then change. Raises a Refusal before the first change, never after it."""
        raise NotImplementedError


class Query(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A question to the local copy of the state."""

    def answer(self, state: State) -> Any:
        """Answer from `state` without changing it. Raises a Refusal when there is nothing to answer about."""
        raise NotImplementedError


class OperationInfo(msgspec.Struct, frozen=True):
    """What the catalogue knows of an operation: its name, what it may emit and refuse, and from which feature level on it exists.

    newer: fields that came later than the operation, with the level from which on they may differ from their defaults.
    """

    name: str
    record: type[Operation]
    emits: tuple[type, ...]
    refuses: tuple[type[Refusal], ...]
    since: int = 0
    newer: tuple[tuple[str, int], ...] = ()


CATALOGUE: dict[str, OperationInfo] = {}
QUERIES: dict[str, type[Query]] = {}

T = TypeVar("T", bound=type[Operation])
Q = TypeVar("Q", bound=type[Query])


# Operations that not every level has, or not with all their fields.
LEVELLED: dict[type[Operation], OperationInfo] = {}


def operation(
    *,
    emits: tuple[type, ...] = (),
    refuses: tuple[type[Refusal], ...] = (),
    since: int = 0,
    newer: dict[str, int] | None = None,
) -> Callable[[T], T]:
    """Enter an operation in the catalogue under its tag.

    since: the feature level from which on it may be used.  newer: the same for fields that were added later.
    """

    def enter(cls: T) -> T:
        name = cls.__struct_config__.tag
        assert isinstance(name, str) and name not in CATALOGUE, name
        CATALOGUE[name] = info = OperationInfo(name, cls, emits, refuses, since, tuple((newer or {}).items()))
        if since or newer:
            LEVELLED[cls] = info
        return cls

    return enter


def level_needed(op: Operation) -> int:
    """Return the feature level that an operation needs, with the fields that it uses."""
    info = LEVELLED.get(type(op))
    if info is None:
        return 0
    defaults = _defaults(type(op))
    used = [level for field, level in info.newer if getattr(op, field) != defaults.get(field)]
    return max([info.since, *used])


@cache
def _defaults(record: type[Operation]) -> dict[str, Any]:
    return dict(zip(reversed(record.__struct_fields__), reversed(record.__struct_defaults__), strict=False))


@cache
def any_operation() -> Any:
    """Return the type of a record of any operation; asked for once the catalogue is full."""
    records: Any = reduce(or_, (info.record for info in CATALOGUE.values()))
    return records


@cache
def _decoder() -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(any_operation())


def read_operation(record: bytes) -> Operation:
    """Decode one record. Raises NotUnderstood for what this version does not know: an operation, or a field of it."""
    try:
        operation: Operation = _decoder().decode(record)
    except msgspec.DecodeError as error:
        raise NotUnderstood(f"version {VERSION} does not understand an operation: {error}") from None
    return operation


@cache
def reply_type(record: type[Operation]) -> Any:
    """Return what an operation's `apply` says that it returns."""
    # The state and the entry are known to type checkers only.
    hints = typing.get_type_hints(record.apply, localns={"State": Any, "Entry": Any})
    return hints["return"]


def query(cls: Q) -> Q:
    """Enter a query in the catalogue under its class's name."""
    assert cls.__name__ not in QUERIES, cls.__name__
    QUERIES[cls.__name__] = cls
    return cls

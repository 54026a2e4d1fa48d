"""What an operation and a query are, and the catalogue of all of them.

An operation is a frozen struct with an `apply`: the struct is the log record, `apply` is its meaning. Its name
(`noun.verb`) is the struct's tag, given once in the class line. A query is the same for reads, with `answer`.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from functools import cache, reduce
from operator import or_
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

if TYPE_CHECKING:
    from node.machine import Entry
    from node.refusals import Refusal
    from node.state import State


class Operation(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="op"):
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
    """What the catalogue knows of an operation: its name, and what it may emit and refuse."""

    name: str
    record: type[Operation]
    emits: tuple[type, ...]
    refuses: tuple[type[Refusal], ...]


CATALOGUE: dict[str, OperationInfo] = {}
QUERIES: dict[str, type[Query]] = {}

T = TypeVar("T", bound=type[Operation])
Q = TypeVar("Q", bound=type[Query])


def operation(*, emits: tuple[type, ...] = (), refuses: tuple[type[Refusal], ...] = ()) -> Callable[[T], T]:
    """Enter an operation in the catalogue under its tag."""

    def enter(cls: T) -> T:
        name = cls.__struct_config__.tag
        assert isinstance(name, str) and name not in CATALOGUE, name
        CATALOGUE[name] = OperationInfo(name, cls, emits, refuses)
        return cls

    return enter


@cache
def any_operation() -> Any:
    """Return the type of a record of any operation; asked for once the catalogue is full."""
    records: Any = reduce(or_, (info.record for info in CATALOGUE.values()))
    return records


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

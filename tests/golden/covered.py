"""Which fields of records and images the golden bytes hold: a field that none of them ever held can be changed unnoticed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import inspect

Field = tuple[str, str]


def fields_of(kinds: Iterable[type]) -> set[Field]:
    """Return (struct, field) of all structs that values of `kinds` can hold, directly or further down."""
    found: set[Field] = set()
    seen: set[type] = set()

    def walk(kind: Any) -> None:
        if isinstance(kind, inspect.StructType):
            if kind.cls in seen:
                return
            seen.add(kind.cls)
            for field in kind.fields:
                found.add((kind.cls.__name__, field.name))
                walk(field.type)
            return
        for inner in ("type", "item_type", "key_type", "value_type"):
            if hasattr(kind, inner):
                walk(getattr(kind, inner))
        for several in ("types", "item_types"):
            for one in getattr(kind, several, ()):
                walk(one)

    for kind in inspect.multi_type_info(kinds):
        walk(kind)
    return found


def held(values: Iterable[Any]) -> set[Field]:
    """Return (struct, field) of all fields of structs in `values`, or further down, that differ from their defaults somewhere."""
    return set(_held(values))


def _held(value: Any) -> Iterator[Field]:
    if isinstance(value, msgspec.Struct):
        for field in msgspec.structs.fields(value):
            inner = getattr(value, field.name)
            default = field.default
            if default is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
                default = field.default_factory()
            if default is msgspec.NODEFAULT or inner != default:
                yield type(value).__name__, field.name
            yield from _held(inner)
    elif isinstance(value, dict):
        yield from _held([*value, *value.values()])
    elif isinstance(value, list | tuple | set):
        for one in value:
            yield from _held(one)

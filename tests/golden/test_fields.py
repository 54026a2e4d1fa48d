"""Bytes of every field of every record and of every piece of an image, as some version wrote them first.

`test_golden.py` tells a story with records that fit together; here each operation and each piece is written once with a value
in each of its fields, made from the field's name, so that one which changes its place, its name or its type is found. A field, an
operation or a piece that no file holds fails the test: add a file by `python -m tests.golden.test_fields N`. Files of versions that
were given out are never changed; until a version is, its own may be written anew.
"""

from __future__ import annotations

import sys
import typing
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import pytest
from msgspec import inspect

from quorumq.node.machine import image
from quorumq.node.machine import machine as machine  # fills the catalogue
from quorumq.node.machine.operation import CATALOGUE, any_operation
from tests.golden.covered import Field, fields_of, held

HERE = Path(__file__).parent
RECORDS = sorted(HERE.glob("fields-records-*.bin"))
PIECES = sorted(HERE.glob("fields-pieces-*.bin"))


def sample(kind: Any, where: str, default: Any = None, number: int = 0) -> Any:
    """Return a value of a type, made from the name of its field; another one than the default."""
    seed = crc32(f"{where} {number}".encode())
    match kind:
        case inspect.Metadata():
            return sample(kind.type, where, default, number)
        case inspect.BoolType():
            return default is not True
        case inspect.IntType():
            least = kind.ge if kind.ge is not None else 1
            most = min(kind.le if kind.le is not None else least + 100, least + 100)
            value: Any = least + seed % (most - least + 1)
        case inspect.FloatType():
            value = 0.25 + seed % 3
        case inspect.StrType():
            value = f"{where}-{number}"
        case inspect.BytesType():
            value = f"{where}-{number}".encode()
        case inspect.RawType():
            return msgspec.Raw(msgspec.msgpack.encode([]))
        case inspect.LiteralType():
            value = next(one for one in kind.values if one != default)
        case inspect.UnionType():
            kinds = [one for one in kind.types if not isinstance(one, inspect.NoneType)]
            structs = [one for one in kinds if isinstance(one, inspect.StructType)]
            value = sample([*structs, *kinds][0], where, default)
        case inspect.ListType() | inspect.VarTupleType():
            items = [sample(kind.item_type, where, number=1), sample(kind.item_type, where, number=2)]
            value = items if isinstance(kind, inspect.ListType) else tuple(items)
        case inspect.TupleType():
            value = tuple(sample(one, where, number=at) for at, one in enumerate(kind.item_types))
        case inspect.DictType():
            value = {sample(kind.key_type, where, number=1): sample(kind.value_type, where, number=2)}
        case inspect.StructType():
            value = of_struct(kind)
        case inspect.AnyType():
            value = where
        case _:
            raise AssertionError(f"no sample of {kind} for {where}")
    return sample(kind, where, default, number + 1) if value == default and number < 9 else value


def of_struct(kind: inspect.StructType) -> Any:
    values = {
        field.name: sample(
            field.type, f"{kind.cls.__name__}.{field.name}", None if field.required else default_of(field)
        )
        for field in kind.fields
    }
    return kind.cls(**values)


def default_of(field: inspect.Field) -> Any:
    return field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default


def samples(kinds: list[type]) -> list[Any]:
    return [of_struct(typing.cast(inspect.StructType, kind)) for kind in inspect.multi_type_info(kinds)]


def present_records() -> list[type]:
    return [info.record for info in CATALOGUE.values()]


def present_pieces() -> list[type]:
    return list(typing.get_args(image.Piece))


def read_records(path: Path) -> list[Any]:
    found: list[Any] = msgspec.msgpack.decode(path.read_bytes(), type=list[any_operation()])  # type: ignore[misc]
    return found


def read_pieces(path: Path) -> list[Any]:
    return list(image.unframe([path.read_bytes()]))


def differing(values: list[Any]) -> list[Field]:
    """Return the fields whose values are none that `sample` makes, and not their defaults either."""
    wrong = []
    for value in values:
        kind = typing.cast(inspect.StructType, inspect.type_info(type(value)))
        for field in kind.fields:
            default = None if field.required else default_of(field)
            found = getattr(value, field.name)
            made = sample(field.type, f"{kind.cls.__name__}.{field.name}", default)
            if not fits(found, made) and (field.required or found != default):
                wrong.append((kind.cls.__name__, field.name))
    return wrong


def fits(found: Any, made: Any) -> bool:
    """Whether a value is one that `sample` made; what is within it may have got more fields since, which have their defaults."""
    if isinstance(made, msgspec.Struct) and type(found) is type(made):
        return all(
            fits(value := getattr(found, field.name), getattr(made, field.name))
            or (not field.required and value == default_of(field))
            for field in typing.cast(inspect.StructType, inspect.type_info(type(made))).fields
        )
    if isinstance(made, list | tuple) and isinstance(found, list | tuple):
        return len(found) == len(made) and all(map(fits, found, made))
    if isinstance(made, dict) and isinstance(found, dict):
        return found.keys() == made.keys() and all(fits(found[key], made[key]) for key in made)
    return encoded(found) == encoded(made)


def encoded(value: Any) -> bytes:
    return msgspec.msgpack.encode(None if value is msgspec.UNSET else value)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_records_are_read_as_they_were_written(path: Path) -> None:
    assert differing(read_records(path)) == []


@pytest.mark.parametrize("path", PIECES, ids=lambda path: path.stem)
def test_pieces_of_images_are_read_as_they_were_written(path: Path) -> None:
    assert differing(read_pieces(path)) == []


def test_each_field_of_each_operation_has_golden_bytes() -> None:
    values = [value for path in RECORDS for value in read_records(path)]
    assert {type(value) for value in values} == set(present_records())
    assert fields_of(present_records()) - held(values) == set()


def test_each_field_of_each_piece_of_an_image_has_golden_bytes() -> None:
    values = [value for path in PIECES for value in read_pieces(path)]
    assert {type(value) for value in values} == set(present_pieces())
    assert fields_of(present_pieces()) - held(values) == set()


class Inner(msgspec.Struct, array_like=True):
    kept: int = 0
    lost: str = ""


class Outer(msgspec.Struct):
    inners: dict[str, list[Inner]] = {}
    other: Inner | None = None


def test_what_is_not_held_is_told() -> None:
    assert fields_of([Outer]) == {("Outer", "inners"), ("Outer", "other"), ("Inner", "kept"), ("Inner", "lost")}
    assert held([Outer({"a": [Inner(5)]})]) == {("Outer", "inners"), ("Inner", "kept")}
    (whole,) = samples([Outer])
    assert fields_of([Outer]) == held([whole])
    assert differing([whole]) == []
    # What is within a value may lack a field that came later, and nothing else.
    later = msgspec.structs.replace(whole, other=msgspec.structs.replace(whole.other, lost=""))
    assert differing([later]) == []
    whole.other.lost = "moved"
    assert differing([whole]) == [("Outer", "other")]
    assert differing([Inner(sample(inspect.type_info(int), "Inner.kept", 0), "Inner.kept-0")]) == [("Inner", "lost")]


if __name__ == "__main__":
    (HERE / f"fields-records-{sys.argv[1]}.bin").write_bytes(msgspec.msgpack.encode(samples(present_records())))
    written = b"".join(image.frame(piece) for piece in samples(present_pieces()))
    (HERE / f"fields-pieces-{sys.argv[1]}.bin").write_bytes(written)

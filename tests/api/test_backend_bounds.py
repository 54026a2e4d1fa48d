"""Each argument of a call over the backend's socket that could be long says how long it may be, and the decoder keeps to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta, inspect

from quorumq.api.dialects.bullmq.backend.rows import Args
from quorumq.api.dialects.bullmq.backend.table import DECODERS, ROWS
from tests.api.backend import Failed, connect
from tests.api.conftest import Client

LONG = (inspect.StrType, inspect.BytesType, inspect.ListType, inspect.VarTupleType, inspect.DictType)


def unbounded(kind: inspect.Type, where: str) -> Iterator[str]:
    """Give the places within a type whose values have no bound on how long they are."""
    match kind:
        case inspect.Metadata():
            yield from unbounded(kind.type, where)
        case inspect.StructType():
            for field in kind.fields:
                yield from unbounded(field.type, f"{where}.{field.name}")
        case inspect.UnionType():
            for one in kind.types:
                yield from unbounded(one, where)
        case inspect.TupleType():
            for one in kind.item_types:
                yield from unbounded(one, where)
        case inspect.ListType() | inspect.VarTupleType():
            yield from unbounded(kind.item_type, f"{where}[]")
        case inspect.DictType():
            yield from unbounded(kind.key_type, f"{where} (key)")
            yield from unbounded(kind.value_type, f"{where}[]")
        case inspect.AnyType() | inspect.RawType():
            yield where
    if isinstance(kind, LONG) and kind.max_length is None:
        yield where


@pytest.mark.parametrize("name", sorted(ROWS))
def test_what_can_be_long_has_a_bound(name: str) -> None:
    assert list(unbounded(inspect.type_info(ROWS[name].takes), name)) == []


class Inner(msgspec.Struct):
    text: str
    word: Annotated[str, Meta(max_length=5)]


class Loose(Args):
    inner: Inner
    words: list[Annotated[str, Meta(max_length=5)]]
    named: Annotated[dict[str, bytes | None], Meta(max_length=5)]
    raw: msgspec.Raw
    count: int = 0


def test_what_has_none_is_found() -> None:
    assert list(unbounded(inspect.type_info(Loose), "x")) == [
        "x.inner.text", "x.words", "x.named (key)", "x.named[]", "x.raw",
    ]  # fmt: skip


async def test_what_is_longer_is_refused(client: Client) -> None:
    backend = await connect(client)
    job: dict[str, Any] = {"name": "n", "data": b"1", "opts": b"{}"}
    long = "x" * 5_000
    wrong: list[tuple[str, list[Any]]] = [
        ("addJob", [job | {"id": long}]),
        ("addJob", [job | {"repeatJobKey": long}]),
        ("addJob", [job | {"parent": {"id": long, "queue": "bull:q"}}]),
        ("getJobData", [long]),
        ("extendLocks", [["a"] * 10_001, ["t"] * 10_001, 5]),
        ("extendLocks", [[long], ["t"], 5]),
        ("addJobs", [[job] * 10_001]),
        ("register", [long, "w"]),
    ]
    for name, args in wrong:
        with pytest.raises(Failed) as refused:
            await backend.call(name, "bull:q", *args)
        assert refused.value.code == 2 and "length" in refused.value.text, (name, refused.value)
    assert client.server.node.machine.state.jobs == {}
    assert DECODERS.keys() == ROWS.keys()
    await backend.close()

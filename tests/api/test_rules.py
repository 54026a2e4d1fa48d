"""Every field of whatever clients send has a rule, and a bound where it could be long."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import pytest
from msgspec import Raw

import quorumq.api.dialects
from quorumq.api.dialects.bullmq.backend.table import ROWS as SOCKET_ROWS
from quorumq.api.errors import Invalid
from quorumq.api.mounts import main_dialects
from quorumq.api.request import Route
from quorumq.api.rules import apply, fields_with_rules, hints_of, says
from quorumq.node.machine.operation import Operation
from quorumq.node.node import Node
from tests.api.conftest import Client

# Types whose values can be long.
LONG = (str, bytes, list, dict, tuple, msgspec.Raw)
# What a request is that carries neither data nor results: ten times its longest text.
SMALL_BYTES = 1 << 19
LARGE = "x" * (1 << 20)
# Fields that carry what workers get or give: up to 10 MB.
DATA = ("data", "result", "results", "returnValue")


def kinds_in(kind: Any) -> Iterator[Any]:
    """Give the types that a type is made of."""
    yield kind
    for part in get_args(kind):
        yield from kinds_in(part)


def structs_in(kind: Any) -> list[Any]:
    return [part for part in kinds_in(kind) if isinstance(part, type) and issubclass(part, msgspec.Struct)]


def bodies_in(kind: Any) -> set[Any]:
    """Return the structs that a type is made of, those inside of them, too."""
    found: set[Any] = set()
    left = structs_in(kind)
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            left += [inner for hint in get_type_hints(one).values() for inner in structs_in(hint)]
    return found


def every_body() -> dict[str, Any]:
    """Return what rows say that they take, and what modules of dialects have decoders for, which commands use as well."""
    found: dict[str, Any] = {}
    for dialect, _ in main_dialects():
        for route in dialect.routes:
            for one in bodies_in(route.takes):
                found[f"{one.__module__}.{one.__name__}"] = one
    for module in pkgutil.walk_packages(quorumq.api.dialects.__path__, "quorumq.api.dialects."):
        for value in vars(importlib.import_module(module.name)).values():
            # What Open Archiver's rows decode is data of jobs, which they show.
            if isinstance(value, msgspec.json.Decoder) and ".openarchiver." not in module.name:
                for one in bodies_in(value.type):
                    found[f"{one.__module__}.{one.__name__}"] = one
    return found


BODIES = every_body()
# Read by `convert` under types of their own, whose bounds msgspec itself keeps.
ADMIN = {name: body for name, body in BODIES.items() if ".admin." in name}


def unbounded(body: Any) -> list[str]:
    """Return the fields of a body that could be long and have no rule with a bound."""
    rules = {field.name: field.rule for field in fields_with_rules(body)}
    hints = get_type_hints(body)
    return [
        field.name
        for field in msgspec.structs.fields(body)
        if can_be_long(hints[field.name]) and (field.name not in rules or rules[field.name].bound is None)
    ]


def can_be_long(hint: Any) -> bool:
    if hint is Any:
        return True
    parts = [getattr(part, "__origin__", part) for part in kinds_in(hint)]
    if structs_in(hint) and list not in parts:
        # What is in it has rules of its own.
        return False
    return any(part in LONG for part in parts)


def test_there_are_bodies_of_every_kind() -> None:
    modules = {name.rpartition(".")[0].removeprefix("quorumq.api.dialects.") for name in BODIES}
    assert {"bunqueue.crons", "bunqueue.flows", "bullmq.adding", "bullmq.manual", "bullmq.workers"} <= modules
    assert len(BODIES) > 60


@pytest.mark.parametrize("name", sorted(BODIES.keys() - ADMIN.keys()))
def test_what_can_be_long_has_a_bound(name: str) -> None:
    assert unbounded(BODIES[name]) == []


def socket_args() -> set[Any]:
    """Return what calls of BullMQ's backend protocol take."""
    return set().union(*(bodies_in(row.takes) for row in SOCKET_ROWS.values()))


def is_loose(hint: Any) -> bool:
    """Whether a type that msgspec itself reads may hold a text, bytes or a collection of any length."""
    metas = [meta for meta in getattr(hint, "__metadata__", ()) if isinstance(meta, msgspec.Meta)]
    inner = hint.__origin__ if hasattr(hint, "__metadata__") else hint
    kind, parts = get_origin(inner) or inner, get_args(inner)
    if kind is Literal:
        return False
    if kind in (*LONG, Any) and not (kind is tuple and parts and Ellipsis not in parts):
        return all(meta.max_length is None for meta in metas) or any(map(is_loose, parts))
    return any(map(is_loose, parts))


def loose_fields(body: Any) -> list[str]:
    hints = get_type_hints(body, include_extras=True)
    return [name for name in body.__struct_fields__ if is_loose(hints[name])]


@pytest.mark.parametrize(
    "body",
    sorted([*socket_args(), *ADMIN.values()], key=lambda body: f"{body.__module__}.{body.__name__}"),
    ids=lambda body: f"{body.__module__.rpartition('.')[2]}.{body.__name__}",
)
def test_what_msgspec_reads_has_its_bound_in_its_type(body: Any) -> None:
    assert loose_fields(body) == []


def test_a_type_without_a_bound_is_found() -> None:
    class Args(msgspec.Struct):
        text: str | None
        names: Annotated[list[str], msgspec.Meta(max_length=5)]
        many: list[Annotated[str, msgspec.Meta(max_length=5)]]
        raw: msgspec.Raw
        fine: tuple[Annotated[str, msgspec.Meta(max_length=5)], int] | Literal["x"] | None

    assert loose_fields(Args) == ["text", "names", "many", "raw"]


def test_a_field_without_a_bound_is_found() -> None:
    class Body(msgspec.Struct):
        note: str | None = None
        tags: list[str] | None = None
        count: int = 0

    assert unbounded(Body) == ["note", "tags"]


def test_rules_are_applied_in_order_and_once() -> None:
    def refuse(name: str, value: Any) -> Any:
        raise Invalid(f"{name}: {value}")

    assert says("A text.", low=1, default=5).extra_json_schema == {"x-default": 5, "minimum": 1}
    body = BODIES["quorumq.api.dialects.bunqueue.pulling.PullBody"](count=0, timeout=-1)
    with pytest.raises(Invalid, match="count must be at least 1"):
        apply(body)
    with pytest.raises(Invalid, match="count is required"):
        apply(type(body)())
    assert apply(type(body)(count=2.0, owner="")).owner is None


class Noted(msgspec.Struct):
    """A rule that is written into the annotation, and calls something that has the name of the field."""

    shout: Annotated[str | None, says(reads=lambda name, value: shout(value), bound=9)] = None


class NotedTwice(Noted):
    again: Annotated[str | None, says(reads=lambda name, value: shout(value), bound=9)] = None


def shout(value: str) -> str:
    return value.upper()


def test_a_rule_calls_what_its_module_knows_whatever_the_fields_are_called() -> None:
    assert apply(NotedTwice(shout="a", again="b")) == NotedTwice(shout="A", again="B")
    assert list(hints_of(NotedTwice)) == ["shout", "again"]


VALUES: tuple[Any, ...] = (
    "", "x", "2000-01-01T00:00:00Z", 0, -1, 1.5, 1e308, 10**400, math.inf, True, [], ["x"], [None], [[]], [{"id": "x"}], {},
    {"id": "x"}, {"message": 1}, {"x": None}, Raw(b"1"), Raw(b"{}"), Raw(b"[]"),
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(BODIES))
def test_a_rule_reads_or_refuses_whatever_is_sent(name: str) -> None:
    """What a rule raises that is no refusal is a 500 to the client."""
    for field in fields_with_rules(BODIES[name]):
        for value in VALUES:
            # A field whose type is JSON as it was sent holds nothing else.
            if field.rule.reads is not None and (Raw in kinds_in(get_type_hints(BODIES[name])[field.name])) == (
                isinstance(value, Raw)
            ):
                try:
                    field.rule.reads(field.spelled, value)
                except Invalid:
                    continue


def fields(route: Route) -> Iterator[tuple[str, Any]]:
    """Give a row's fields that could be long, and a large value for each that fits its types."""
    kinds = structs_in(route.takes)
    if not kinds:
        return
    hints = get_type_hints(kinds[0])
    for field in msgspec.structs.fields(kinds[0]):
        if field.encode_name in DATA or not can_be_long(hints[field.name]):
            continue
        yield field.encode_name, LARGE
        yield field.encode_name, [LARGE]
        yield field.encode_name, {"tz": LARGE, "id": LARGE, "type": LARGE, "message": LARGE, "every": 5, "delay": 1}


BASE = {
    "data": 1, "count": 1, "limit": 1, "ids": ["1"], "tokens": ["1"], "progress": 1, "priority": 1, "delay": 1, "message": "m",
    "error": "e", "token": "t", "name": "n", "queue": "qqq", "schedule": "* * * * *", "parentId": "p", "duration": 5,
    "concurrency": 1, "max": 1,
    "timestamp": 5, "maxLength": 1, "jobs": [], "url": "https://93.184.216.34/", "events": ["completed"],
}  # fmt: skip


async def test_nothing_long_comes_into_the_log(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send a text of a megabyte in each field that could hold it, and weigh the operation that is made of it."""
    sizes: list[int] = []
    submit, pull = Node.submit, Node.pull

    async def weighed(node: Node, operation: Operation, *args: Any, **named: Any) -> Any:
        sizes.append(len(msgspec.msgpack.encode(operation)))
        return await submit(node, operation, *args, **named)

    async def pulled(node: Node, operation: Any, *args: Any, **named: Any) -> Any:
        sizes.append(len(msgspec.msgpack.encode(operation)))
        return await pull(node, operation, *args, **named)

    monkeypatch.setattr(Node, "submit", weighed)
    monkeypatch.setattr(Node, "pull", pulled)
    tried = 0
    for dialect, prefix in main_dialects():
        for route in dialect.routes:
            if route.takes is None or dialect.name == "admin":
                continue
            target = (prefix + route.path).replace("{queue}", "qqq").replace("{group}", "g")
            for name, value in fields(route):
                kind = next(
                    one for one in kinds_in(route.takes) if isinstance(one, type) and issubclass(one, msgspec.Struct)
                )
                known = {field.encode_name for field in msgspec.structs.fields(kind)}
                body: Any = {key: value for key, value in BASE.items() if key in known} | {name: value}
                if name == "events":
                    body.pop("queue", None)
                if not isinstance(route.takes, type):
                    body = [body]
                before = len(sizes)
                answer = await client.send(route.method, target.replace("{id}", "1"), body)
                assert answer.status < 500, (target, name, answer.body[:200])
                assert max(sizes[before:], default=0) < SMALL_BYTES, (target, name, type(value), sizes[before:])
                tried += 1
    assert tried > 150 and len(sizes) > 30

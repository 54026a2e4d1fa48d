"""Each operation and query of the catalogue is documented, described truthfully and exercised."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

import quorumq.node.machine.operations  # noqa: F401 - fills the catalogue
from quorumq.api.mounts import main_dialects
from quorumq.api.openapi import served
from quorumq.node.machine.bounds import KEY_CHARS_MAX, NOTE_CHARS_MAX, Key, Note, bounds_of, exceeding
from quorumq.node.machine.operation import CATALOGUE, QUERIES, OperationInfo, Query
from quorumq.node.machine.refusals import Refusal
from tests.support.source import parsed

TESTS = Path(__file__).parent
NAME = re.compile(r"[a-z]+\.[a-z_]+")


def used_in_tests() -> set[str]:
    """Return every name that a test file mentions, this one apart."""
    return {
        node.id
        for path in TESTS.rglob("test_*.py")
        if path != Path(__file__)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Name)
    }


# What clients of BullMQ's backend protocol ask for over their connection.
OVER_SOCKET = {
    record
    for record in [*(info.record for info in CATALOGUE.values()), *QUERIES.values()]
    if record.__module__.startswith("quorumq.node.machine.operations.bullmq.")
}
USED = used_in_tests()
operations = pytest.mark.parametrize("info", CATALOGUE.values(), ids=CATALOGUE)
queries = pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)


@operations
def test_an_operation_is_documented_and_named(info: OperationInfo) -> None:
    assert NAME.fullmatch(info.name)
    assert info.record.__doc__
    assert info.record.apply.__annotations__["return"]
    assert info.record.__struct_config__.frozen
    for event in info.emits:
        assert event.__doc__
    for refusal in info.refuses:
        assert issubclass(refusal, Refusal) and refusal.__doc__ and refusal.code != Refusal.code


def a_value(kind: Any) -> Any:
    """Return some value of a field's type."""
    inner = (
        {"op": "job.ack", "job_id": "x"},
        {"op": "job.pull", "queue": "x"},
        {"op": "job.add", "queue": "x", "jobs": []},
    )
    for value in ("x", b"x", 1, True, [], {"id": "x", "data": b"x"}, *inner, {}):
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError:
            continue
    raise AssertionError(kind)


@operations
def test_an_operation_survives_its_bytes(info: OperationInfo) -> None:
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(info.record):
        if field.required:
            values[field.encode_name] = a_value(field.type)
    operation = msgspec.convert(values | {"op": info.name}, info.record)
    raw = msgspec.msgpack.encode(operation)
    again = msgspec.msgpack.decode(raw, type=info.record)
    assert again == operation
    # Absent fields mean the defaults, so that a log of today is read by a program of tomorrow.
    assert set(msgspec.msgpack.decode(raw)) == set(values) | {"op"}


@operations
def test_a_text_of_an_operation_has_a_bound(info: OperationInfo) -> None:
    assert [name for name, most in bounds_of(info.record) if most < 0] == []


@queries
def test_a_text_of_a_query_has_a_bound(query: type[Query]) -> None:
    assert [name for name, most in bounds_of(query) if most < 0] == []


def test_what_is_longer_than_its_type_says_is_found() -> None:
    class Noted(msgspec.Struct):
        bare: str
        note: Note | None = None
        ids: list[tuple[Key, int]] = []

    assert dict(bounds_of(Noted)) == {"bare": -1, "note": NOTE_CHARS_MAX, "ids": KEY_CHARS_MAX + 1}
    assert exceeding(Noted("x" * 99, "x" * NOTE_CHARS_MAX, [("x" * KEY_CHARS_MAX, 1)])) == []
    assert exceeding(Noted("", "x" * (NOTE_CHARS_MAX + 1), [("x", 1), ("x" * (KEY_CHARS_MAX + 2), 2)])) == [
        "note",
        "ids",
    ]


@operations
def test_an_operation_is_exercised(info: OperationInfo) -> None:
    assert info.record.__name__ in USED or info.name == "clock.advance"


# What no client asks for: time, the scheduler, deliveries, the page of figures, what stands behind another request.
INTERNAL = {
    "clock.advance",
    "cron.fire",
    "job.add_repeating",
    "job.finish_and_pull",
    "job.follow",
    "job.release",
    "pusher.assign",
    "pusher.join",
    "pusher.leave",
    "pusher.note_circuits",
    "pusher.pull",
    "queue.thin",
    "group.set_usual",
    "request.once",
    "retention.thin",
    "stream.keep",
    "webhook.delivered",
    "webhook.failed",
    "GetOutcome",
    "ListBlocked",
    "QueueFigures",
    "QueueLoads",
}
# What other dialects will ask for.
NOT_ROUTED_YET = {"queue.set_defaults"}
ROUTED = {row.route.what for row in served(main_dialects())}


def test_everything_is_routed_or_internal() -> None:
    unrouted = {info.name for info in CATALOGUE.values() if info.record not in ROUTED | OVER_SOCKET}
    unrouted |= {name for name, query in QUERIES.items() if query not in ROUTED | OVER_SOCKET}
    assert unrouted == INTERNAL | NOT_ROUTED_YET


@queries
def test_a_query_is_documented_and_exercised(query: type[Query]) -> None:
    assert query.__doc__
    assert query.answer.__annotations__["return"]
    assert query.__name__ in USED


def test_refusals_have_codes_of_their_own() -> None:
    codes = [refusal.code for refusal in Refusal.__subclasses__()]
    assert len(codes) == len(set(codes))

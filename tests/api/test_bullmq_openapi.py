"""What the OpenAPI document says of the BullMQ dialect: what it forbids is refused, and errors are the text that it promises."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from quorumq.api.mounts import bullmq_dialects, main_dialects
from quorumq.api.openapi import document
from tests.api.bullmq import STATUSES, Bull

DOCUMENT = document(main_dialects(), "1")
SCHEMAS = DOCUMENT["components"]["schemas"]
PREFIX = "/bullmq"


@pytest.fixture
async def bull(serve: Any) -> Bull:
    return Bull(await serve(auth_tokens=("tok1",)), PREFIX)


def operations() -> Iterator[tuple[str, str, Any]]:
    for path, methods in DOCUMENT["paths"].items():
        if path.startswith(PREFIX):
            for method, one in methods.items():
                yield method, path, one


def test_both_listeners_serve_the_same() -> None:
    alone = document(bullmq_dialects(), "1")["paths"]
    shown = {path.removeprefix(PREFIX): methods.keys() for path, methods in DOCUMENT["paths"].items() if PREFIX in path}
    assert {path: methods.keys() for path, methods in alone.items() if path in shown} == shown
    assert len(shown) > 25


@pytest.mark.parametrize(("method", "path", "one"), list(operations()), ids=lambda x: x if isinstance(x, str) else "")
def test_errors_are_text(method: str, path: str, one: Any) -> None:
    for status, answer in one["responses"].items():
        assert int(status) in STATUSES | {500} | ({101, 426} if path.endswith("/socket") else set())
        if status not in ("200", "101"):
            assert list(answer["content"]) == ["text/plain"]
            assert answer["description"].endswith(".")


def test_an_add_is_documented_as_an_array() -> None:
    add = DOCUMENT["paths"]["/bullmq/queues/{queue}/jobs"]["post"]
    schema = add["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"type": "array", "items": {"$ref": "#/components/schemas/NewJob"}}
    assert sorted(SCHEMAS["NewJob"]["required"]) == ["data", "name"]
    priority = SCHEMAS["JobOpts"]["properties"]["priority"]
    assert (priority["minimum"], priority["maximum"]) == (1, 2_097_152)
    assert set(SCHEMAS["JobOpts"]["properties"]) == {
        "attempts",
        "backoff",
        "delay",
        "priority",
        "lifo",
        "jobId",
        "deduplication",
        "removeOnComplete",
        "removeOnFail",
        "repeat",
        "parent",
        "failParentOnFailure",
        "continueParentOnFailure",
        "ignoreDependencyOnFailure",
        "removeDependencyOnFailure",
    }


def beyond(schema: Any) -> Iterator[Any]:
    """Yield values of the wrong type or beyond their bound, made of what the document says of a field."""
    if "maximum" in schema:
        yield schema["maximum"] + 1
    if "minimum" in schema:
        yield schema["minimum"] - 1
    if "maxLength" in schema:
        yield "x" * (schema["maxLength"] + 1)


GIVEN = {"token": "t1", "error": "x", "timestamp": 1, "duration": 1, "priority": 1, "delay": 1, "data": 1}


async def test_bounds_are_kept(bull: Bull) -> None:
    tried = 0
    for method, path, one in operations():
        schema = one.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
        if "$ref" not in schema or "/workers" in path:
            continue
        await bull.add()
        job = await bull.next()
        target = path.removeprefix(PREFIX).replace("{queue}", "que").replace("{id}", job["id"])
        properties = SCHEMAS[schema["$ref"].rpartition("/")[2]]["properties"]
        for name, field in properties.items():
            for value in beyond(field):
                body = {key: GIVEN[key] for key in properties if key in GIVEN} | {name: value}
                answer = await bull.send(method.upper(), target, body)
                assert answer.status == 400, (method, path, name, value, answer.body)
                tried += 1
    assert tried > 25


async def test_bounds_of_options_are_kept(bull: Bull) -> None:
    tried = 0
    for name, field in SCHEMAS["JobOpts"]["properties"].items():
        for value in beyond(field):
            answer = await bull.post("/queues/que/jobs", [{"name": "a", "data": 1, "opts": {name: value}}])
            assert answer.status == 400, (name, value, answer.body)
            tried += 1
    assert tried == 6
    assert json.dumps(SCHEMAS["JobOpts"]).count("x-") == 0

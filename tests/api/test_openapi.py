"""The OpenAPI document, the page that shows it, and the reference: complete, consistent and true to the routes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from api.openapi import ERRORS, document, reference
from api.server import DIALECTS
from tests.api.conftest import Client

DOCUMENT = document(DIALECTS, "1")
METHODS = ("get", "post", "put", "delete")


def operations() -> Iterator[tuple[str, str, Any]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, one in methods.items():
            yield method, path, one


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_route_is_in_it_once(client: Client) -> None:
    served = {(mount.route.method, path_of(mount)) for mount in client.server.router.mounts()}
    assert {(method.upper(), path) for method, path, _ in operations()} == served
    names = [one["operationId"] for _, _, one in operations()]
    assert len(names) == len(set(names))


def path_of(mount: Any) -> str:
    prefix = next(prefix for dialect, prefix in DIALECTS if dialect is mount.dialect)
    return str(prefix + mount.route.path)


def test_every_reference_leads_somewhere() -> None:
    json.loads(json.dumps(DOCUMENT))
    found = set(references(DOCUMENT))
    assert found
    for one in found:
        node = DOCUMENT
        for part in one.removeprefix("#/").split("/"):
            node = node[part]
        assert node


@pytest.mark.parametrize(
    ("method", "path", "one"), list(operations()), ids=lambda part: part if isinstance(part, str) else ""
)
def test_a_route_says_all_there_is_to_say(method: str, path: str, one: Any) -> None:
    assert method in METHODS
    assert one["summary"].endswith(".") and one["tags"][0]
    given = {item["name"] for item in one.get("parameters", []) if item["in"] == "path"}
    assert given == set(re.findall(r"\{(\w+)\}", path))
    assert ("requestBody" in one) <= (method in ("post", "put"))
    assert ("101" if path.startswith("/ws") else "200") in one["responses"]
    is_open = one.get("security") == [{}]
    assert is_open or {"401", "500", "503"} <= set(one["responses"])


def test_a_stream_has_no_schema_that_one_of_its_events_could_break() -> None:
    for path in ("/events", "/events/queues/{queue}"):
        assert DOCUMENT["paths"][path]["get"]["responses"]["200"]["content"] == {"text/event-stream": {}}


def test_bodies_say_what_is_required_and_what_is_left_out() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert schemas["PushBody"]["required"] == ["data"]
    priority = schemas["PushBody"]["properties"]["priority"]
    assert (priority["minimum"], priority["maximum"], priority["default"]) == (-1_000_000, 1_000_000, 0)
    assert "x-" not in json.dumps(schemas)
    assert {str(status) for status in ERRORS} == set(DOCUMENT["components"]["responses"])


# A value of the wrong type or beyond its bound, made of what the document says of a field.
def beyond(schema: Any) -> Iterator[Any]:
    if "maximum" in schema:
        yield schema["maximum"] + 1
    if "minimum" in schema:
        yield schema["minimum"] - 1
    if "maxLength" in schema and "null" in json.dumps(schema):
        yield "x" * (schema["maxLength"] + 1)


async def test_bounds_are_kept(client: Client) -> None:
    """What the document forbids is refused, for every number and text that it bounds."""
    schemas, tried = DOCUMENT["components"]["schemas"], 0
    base = {"data": 1, "count": 1, "limit": 1, "ids": [], "tokens": [], "progress": 1, "priority": 1, "delay": 1}
    for method, path, one in operations():
        if "requestBody" not in one or path.startswith("/bullmq"):
            continue
        body = schemas[one["requestBody"]["content"]["application/json"]["schema"]["$ref"].split("/")[-1]]
        job, _ = await client.take("q2") if await client.push("q2") else (None, None)
        target = path.replace("{queue}", "q").replace("{id}", job["id"])
        for name, field in body["properties"].items():
            for value in beyond(field):
                given = {key: base[key] for key in body["properties"] if key in base} | {name: value}
                if name == "lockTtl":
                    given["owner"] = "w"
                if name == "attempts":
                    given.pop("maxAttempts", None)
                if name == "concurrency":
                    given.pop("limit", None)
                answer = await client.send(method.upper(), target, given)
                assert answer.status == 400, (method, path, name, value, answer.body)
                tried += 1
    assert tried > 50


async def test_it_is_served(client: Client) -> None:
    answer = await client.get("/openapi.json")
    assert answer.json["openapi"] == "3.1.0"
    assert set(answer.json["paths"]) == set(DOCUMENT["paths"])


async def test_the_page_needs_nothing_from_elsewhere(client: Client) -> None:
    answer = await client.get("/docs")
    page = answer.body.decode()
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert not re.findall(r"(?:src|href)=\"?https?:|@import|url\(|//[a-z]+\.[a-z]", page)
    assert 'fetch("openapi.json")' in page
    assert "innerHTML" not in page


def test_the_reference_has_every_route() -> None:
    text = reference(DIALECTS)
    for method, path, _ in operations():
        assert text.count(f"\n### {method.upper()} {path}\n") == 1

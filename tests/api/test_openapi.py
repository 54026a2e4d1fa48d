"""The OpenAPI document, the page that shows it, and the reference: complete, consistent and true to the routes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from quorumq.api.dialects.bunqueue import payloads
from quorumq.api.mounts import main_dialects
from quorumq.api.openapi import ERRORS, document, reference
from tests.api.conftest import Client, Serve

DOCUMENT = document(main_dialects(), "1")
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
    prefix = next(prefix for dialect, prefix in main_dialects() if type(dialect) is type(mount.dialect))
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
    assert ("101" if path.startswith("/ws") or path.endswith("/socket") else "200") in one["responses"]
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


async def test_the_page_can_be_searched_fits_a_phone_and_shows_no_backticks(client: Client) -> None:
    page = (await client.get("/docs")).body.decode()
    assert 'type: "search"' in page and 'name="viewport"' in page and "@media (max-width: 50rem)" in page
    # Every text of the description goes through what makes code of backticks; the search alone takes it as it is.
    script = page.partition("function words(")[0]
    assert "prose(one.summary)" in script and "prose(found.description)" in script
    assert "prose(one.description || one.summary)" in script and "prose(api.info.description)" in script
    assert "prose(cell)" in script


def descriptions(part: Any) -> list[str]:
    """Return every text of the document that is for people."""
    if isinstance(part, list):
        return [text for one in part for text in descriptions(one)]
    if not isinstance(part, dict):
        return []
    own = [part[name] for name in ("summary", "description") if isinstance(part.get(name), str)]
    return own + [text for one in part.values() for text in descriptions(one)]


def test_clients_are_told_in_their_own_words() -> None:
    texts = descriptions(DOCUMENT)
    assert len(texts) > 500
    assert [text for text in texts if re.search(r"\b(None|True|False|str|int|dict)\b", text)] == []
    # The page makes code of what is between backticks.
    assert [text for text in texts if text.count("`") % 2] == []
    assert any("`null`" in text for text in texts)


def test_the_reference_has_every_route() -> None:
    text = reference(main_dialects(), payloads.shapes())
    for method, path, _ in operations():
        assert text.count(f"\n### {method.upper()} {path}\n") == 1


async def test_what_it_says_of_lock_tokens_is_so(client: Client) -> None:
    """Of a job that is locked: which requests are refused without its token, and all of them with a wrong one."""
    bodies: dict[str, Any] = {
        "fail": {"error": "x"},
        "progress": {"progress": 5},
        "delay": {"delay": 9},
        "move-to-delayed": {"delay": 9},
    }
    tried = []
    for section in reference(main_dialects(), payloads.shapes()).split("\n### "):
        title = re.match(r"(POST|PUT) (/jobs/\{id\}/(\S+))\n", section)
        said = re.search(r"^\| `token` \| body .*$", section, re.MULTILINE)
        if title is None or said is None:
            continue
        method, path, last = title.groups()
        body = bodies.get(last, {})
        job_id = await client.push(last)
        pulled = (await client.post(f"/queues/{last}/jobs/pull-batch", {"count": 1, "owner": "w"})).json
        assert (await client.send(method, path.replace("{id}", job_id), {**body, "token": "wrong"})).status == 400
        needed = "a locked job needs it" in said[0] or (last == "delay" and "so is `PUT …/delay`" in said[0])
        assert (await client.send(method, path.replace("{id}", job_id), body)).status == (400 if needed else 200), last
        if needed:
            token = pulled["tokens"][0]
            assert (await client.send(method, path.replace("{id}", job_id), {**body, "token": token})).status == 200
        tried.append(last)
    assert sorted(tried) == [
        "ack",
        "delay",
        "extend-lock",
        "fail",
        "heartbeat",
        "move-to-delayed",
        "move-to-wait",
        "move-to-waiting-children",
        "progress",
        "requeue",
    ]


def resolved(node: Any) -> Any:
    """Follow a reference into the document."""
    while isinstance(node, dict) and "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        node = DOCUMENT["components"]["schemas"][name]
    return node


def bodies_with(schema: Any, value: Any, depth: int = 3) -> Iterator[Any]:
    """Give bodies of a schema in which one thing, at whatever place, is `value`."""
    schema = resolved(schema)
    yield value
    if not isinstance(schema, dict) or not depth:
        return
    for other in (*schema.get("anyOf", ()), *schema.get("allOf", ()), *schema.get("oneOf", ())):
        yield from bodies_with(other, value, depth)
    if "items" in schema:
        yield from ([item] for item in bodies_with(schema["items"], value, depth - 1))
    for name, one in schema.get("properties", {}).items():
        for inner in bodies_with(one, value, depth - 1):
            yield {"data": 1, "name": "n", name: inner}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("value", [10**400, -(10**400), 10**20, [], {}, "x"], ids=lambda value: str(type(value)))
async def test_no_field_can_hold_what_the_server_is_at_a_loss_with(serve: Serve, value: Any) -> None:
    client = await serve(auth_tokens=("t",))
    sent = 0
    for method, path, one in operations():
        where = re.sub(r"\{[^}]*\}", "some", path)
        for parameter in map(resolved, one.get("parameters", ())):
            if (
                parameter["in"] == "query"
                and parameter["name"] != "timeout"
                and "event" not in path
                and "/ws" not in path
            ):
                text = str(value) if isinstance(value, int) else "x"
                answer = await client.send(
                    method.upper(), f"{where}?{parameter['name']}={text}", headers={"Authorization": "Bearer t"}
                )
                assert answer.status != 500, (method, path, parameter["name"])
                sent += 1
        for content in one.get("requestBody", {}).get("content", {}).values():
            for body in bodies_with(content["schema"], value):
                answer = await client.send(method.upper(), where, body, headers={"Authorization": "Bearer t"})
                assert answer.status != 500, (method, path, str(body)[:200])
                sent += 1
    assert sent > 300

"""Push workers over HTTP: every rule for a registration in the recorded words, what is shown of it, and what an endpoint is sent."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.api.bullmq import TOKEN, Bull
from tests.api.conftest import Serve
from tests.api.test_permissions import Keys
from tests.support.endpoint import Endpoint, Said

GOOD = {"url": "http://127.0.0.1:9/x", "method": "POST"}


@pytest.fixture
async def bull(serve: Serve) -> Bull:
    return Bull(await serve(auth_tokens=(TOKEN,)))


def body(endpoint: Any = None, **more: Any) -> dict[str, Any]:
    return {"queue": "que", "endpoint": endpoint or GOOD, **more}


def opts(**options: Any) -> dict[str, Any]:
    return body(opts=options)


REFUSED: list[tuple[Any, str]] = [
    ({}, "queue is required"),
    ([], "queue is required"),
    (5, "queue is required"),
    ("str", "queue is required"),
    ({"queue": "que"}, "endpoint is required"),
    ({"endpoint": GOOD}, "queue is required"),
    ({"queue": "", "endpoint": GOOD}, "queue is required"),
    ({"queue": "ab", "endpoint": GOOD}, "queue name must be at least 3 characters long"),
    ({"queue": "q" * 101, "endpoint": GOOD}, "queue name must be at most 100 characters long"),
    ({"queue": "a:bc", "endpoint": GOOD}, "Queue name cannot contain :"),
    ({"queue": 5, "endpoint": GOOD}, "queue must be a string"),
    (body(foo=1), "Invalid field: foo"),
    (body("x"), "url is required"),
    (body({"url": "http://h"}), "method is required"),
    (body({"method": "POST"}), "url is required"),
    (body({"url": "nope", "method": "POST"}), "Invalid URL"),
    (body({"url": "ftp://x", "method": "POST"}), "Invalid URL"),
    (body({"url": 5, "method": "POST"}), "Invalid URL"),
    (body({"url": "http://h", "method": "GET"}), "Invalid HTTP method GET"),
    (body({"url": "http://h", "method": "DELETE"}), "Invalid HTTP method DELETE"),
    (body({"url": "http://h", "method": 5}), "Invalid HTTP method 5"),
    (body(GOOD | {"foo": 1}), "Invalid field: foo"),
    (body(GOOD | {"timeout": -1}), "Invalid timeout"),
    (body(GOOD | {"timeout": 1.5}), "Invalid timeout"),
    (body(GOOD | {"timeout": "5"}), "Invalid timeout"),
    (body(GOOD | {"timeout": 86_400_001}), "Invalid timeout"),
    (body(GOOD | {"headers": "x"}), "Invalid headers"),
    (body(GOOD | {"headers": {"X": ["1"]}}), "Invalid headers"),
    (body(GOOD | {"headers": {"X": "1\r\nY: 2"}}), "Invalid headers"),
    (body(GOOD | {"headers": {"X\r\nY": "1"}}), "Invalid headers"),
    (body(GOOD | {"headers": {"X": "1" * 40_000}}), "Invalid headers"),
    (body(opts="ab"), "Invalid field: 0"),
    (opts(foo=1), "Invalid field: foo"),
    (opts(lockDuration=1000), "Invalid field: lockDuration"),
    (opts(concurrency=0.5), "Invalid concurrency"),
    (opts(concurrency=-1), "Invalid concurrency"),
    (opts(concurrency=0), "Invalid concurrency"),
    (opts(concurrency="3"), "Invalid concurrency"),
    (opts(concurrency=100_001), "Invalid concurrency"),
    (opts(limiter={}), "Invalid limiter.max"),
    (opts(limiter="x"), "Invalid limiter.max"),
    (opts(limiter={"max": 1}), "Invalid limiter.duration"),
    (opts(limiter={"max": 0, "duration": 1}), "Invalid limiter.max"),
    (opts(limiter={"max": 1, "duration": 0}), "Invalid limiter.duration"),
    (opts(limiter={"max": 1, "duration": -1}), "Invalid limiter.duration"),
    (opts(limiter={"max": 1, "duration": 1, "foo": 1}), "Invalid field: limiter.foo"),
    (opts(maxStalledCount=-1), "Invalid maxStalledCount"),
    (opts(maxStalledCount=1.5), "Invalid maxStalledCount"),
    (opts(removeOnComplete={"foo": 1}), "Invalid field: removeOnComplete.foo"),
    (opts(removeOnComplete={"count": -1}), "Invalid removeOnComplete.count"),
    (opts(removeOnComplete={"count": 1.5}), "Invalid removeOnComplete.count"),
    (opts(removeOnComplete={"age": -1}), "Invalid removeOnComplete.age"),
    (opts(removeOnComplete="abc"), "Invalid field: removeOnComplete.0"),
    (opts(removeOnComplete=1.5), "Invalid removeOnComplete"),
    (opts(removeOnComplete=[]), "Invalid removeOnComplete"),
    (opts(removeOnFail=-2), "Invalid removeOnFail"),
    (opts(removeOnFail={"age": 1.5}), "Invalid removeOnFail.age"),
    (opts(removeOnFail={"zz": 1.5}), "Invalid field: removeOnFail.zz"),
]


@pytest.mark.parametrize(("sent", "text"), REFUSED)
async def test_what_is_refused_and_why(bull: Bull, sent: Any, text: str) -> None:
    answer = await bull.post("/workers", sent)
    assert (answer.status, answer.body.decode()) == (400, text)
    assert (await bull.get("/workers")).json == {}


@pytest.mark.parametrize("raw", [b"", b"{nope", b"\xff", b"null", b"{} {}"])
async def test_what_is_no_json_is_the_clients_error(bull: Bull, raw: bytes) -> None:
    assert (await bull.post("/workers", raw=raw)).status == 400


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://169.254.169.254/latest", "cloud metadata"),
        ("http://[fd00:ec2::254]/", "cloud metadata"),
        ("http://METADATA.google.internal./", "cloud metadata"),
        ("http://0xA9FEA9FE/", "cloud metadata"),
        ("http://100.100.100.200/", "cloud metadata"),
        ("http://192.0.0.192/", "cloud metadata"),
    ],
)
async def test_cloud_metadata_is_refused_at_once(bull: Bull, url: str, reason: str) -> None:
    answer = await bull.post("/workers", body({"url": url, "method": "POST"}))
    assert (answer.status, answer.body.decode()) == (400, f"Invalid URL: this address must not be called ({reason})")


async def test_the_setting_says_which_addresses_there_are(serve: Serve) -> None:
    bull = Bull(await serve(auth_tokens=(TOKEN,), worker_endpoints=("public", "10.1.0.0/16", ".workers.test")))
    for url, status in (
        ("http://127.0.0.1/", 400),
        ("http://10.2.0.1/", 400),
        ("http://10.1.0.1/", 200),
        ("http://a.workers.test/", 200),
        ("http://example.com/", 200),
    ):
        assert (await bull.post("/workers", body({"url": url, "method": "POST"}))).status == status, url


async def test_a_registration_is_shown_without_its_secrets(bull: Bull, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    endpoint = {
        "url": "http://user:hidden@127.0.0.1:9/x?y=1",
        "method": "put",
        "timeout": 5_000,
        "headers": {"X-Api-Key": "hidden", "Content-Type": "application/json", "X-Number": 5},
    }
    options = {
        "concurrency": 4,
        "limiter": {"max": 5, "duration": 1000},
        "maxStalledCount": 2,
        "removeOnComplete": {"count": 5, "age": 60},
        "removeOnFail": {"count": 1},
    }
    answer = await bull.post("/workers", body(endpoint, opts=options))
    assert (answer.status, answer.body) == (200, b"OK")
    assert (await bull.get("/workers")).json == {"que": "http://user:***@127.0.0.1:9/x?y=1"}
    shown = (await bull.get("/workers/que")).json
    assert isinstance(shown.pop("registeredOn"), int)
    assert shown.pop("node") in (None, "n1")
    assert shown == {
        "queue": "que",
        "endpoint": {
            "url": "http://user:***@127.0.0.1:9/x?y=1",
            "method": "PUT",
            "timeout": 5000,
            "headers": ["X-Api-Key", "Content-Type", "X-Number"],
        },
        "opts": options,
        "circuit": "closed",
        "failures": 0,
        "nextTryAt": None,
        "error": None,
        "active": 0,
    }
    [own] = await bull.add_many("a")
    while "failedReason" not in await bull.job(own):
        pass
    assert "hidden" not in caplog.text


async def test_short_forms_of_what_is_kept(bull: Bull) -> None:
    for sent, shown in ((5, {"count": 5}), (-1, {}), (True, {"count": 0}), ({}, {}), (False, None), (None, None)):
        assert (await bull.post("/workers", opts(removeOnComplete=sent))).status == 200
        assert (await bull.get("/workers/que")).json["opts"].get("removeOnComplete") == shown


async def test_one_that_is_not_there(bull: Bull) -> None:
    for method in ("GET", "DELETE"):
        # A name that no queue can have is in no operation either: each one is held against its types where it is applied.
        for name in ("nobody", "x" * 5_000, "a:b", "no"):
            answer = await bull.send(method, f"/workers/{name}")
            assert (answer.status, answer.body) == (404, b"Worker not found")
    assert (await bull.post("/workers", body() | {"queue": "a b{c}"})).status == 200
    assert (await bull.get("/workers/a%20b%7Bc%7D")).json["queue"] == "a b{c}"
    assert (await bull.delete("/workers/a%20b%7Bc%7D")).body == b"OK"
    assert (await bull.delete("/workers/a%20b%7Bc%7D")).status == 404


async def test_what_the_endpoint_is_sent_is_the_recorded_body(bull: Bull) -> None:
    async with Endpoint() as endpoint:
        headers = {"Content-Type": "application/json"}
        sent = {"url": endpoint.url, "method": "POST", "headers": headers}
        own = await bull.add("jobname", {"k": "v"}, priority=3, attempts=2)
        assert (await bull.post("/workers", body(sent))).status == 200
        [said] = await endpoint.until(1)
        assert list(said.body) == ["job", "token"]
        job = said.job
        assert {key: type(job[key]) for key in ("timestamp", "processedOn")} == {"timestamp": int, "processedOn": int}
        del job["timestamp"], job["processedOn"]
        assert job == {
            "name": "jobname",
            "data": {"k": "v"},
            "opts": {"priority": 3, "attempts": 2},
            "id": own,
            "progress": 0,
            "returnvalue": None,
            "stacktrace": [],
            "delay": 0,
            "priority": 3,
            "attemptsStarted": 1,
            "attemptsMade": 0,
            "stalledCounter": 0,
            "queueQualifiedName": "bull:que",
            "token": said.token,
        }


async def test_the_token_of_the_call_reports_progress_and_dies_with_the_job(bull: Bull) -> None:
    async def answer(said: Said) -> web.StreamResponse:
        path = f"/queues/que/jobs/{said.job['id']}"
        assert (await bull.post(f"{path}/progress", {"pct": 70}, token=said.token)).status == 200
        assert (await bull.post(f"{path}/logs", "a line", token=said.token)).status == 200
        assert (await bull.post(f"{path}/progress", 1, token="wrong")).status == 401
        return web.json_response({"ok": True})

    async with Endpoint(answer) as endpoint:
        await bull.post("/workers", body({"url": endpoint.url, "method": "POST"}))
        own = await bull.add("a")
        while "finishedOn" not in (job := await bull.job(own)):
            pass
        assert (job["returnvalue"], job["progress"]) == ({"ok": True}, {"pct": 70})
        assert (await bull.get(f"/queues/que/jobs/{own}/logs")).json == {"logs": ["a line"], "count": 1}
        token = endpoint.said[0].token
        assert (await bull.post(f"/queues/que/jobs/{own}/progress", 1, token=token)).status == 401


async def test_an_open_circuit_is_shown(bull: Bull) -> None:
    await bull.add_many(*"abcdefg")
    await bull.post("/workers", body({"url": "http://127.0.0.1:1/", "method": "POST"}))
    while (shown := (await bull.get("/workers/que")).json)["circuit"] == "closed":
        pass
    assert shown["failures"] >= 5 and shown["nextTryAt"] > shown["registeredOn"] and shown["node"] == "n1"
    assert shown["error"] == "ECONNREFUSED: Unable to connect. Is the computer able to access the url?"


async def test_rights_and_queues_of_tokens(serve: Serve, tmp_path: Path) -> None:
    keys = Keys(tmp_path / "tokens.jsonl")
    keys.add("mine", "manage:all read", "mine-*")
    keys.add("reader", "read")
    bull = Bull(await serve(auth_tokens=(TOKEN,), auth_tokens_file=keys.path))
    assert (await bull.post("/workers", body() | {"queue": "theirs"})).status == 200
    assert (await bull.post("/workers", body() | {"queue": "mine-1"}, token="mine")).status == 200
    assert (await bull.post("/workers", body() | {"queue": "theirs"}, token="mine")).status == 403
    assert (await bull.post("/workers", body() | {"queue": "mine-2"}, token="reader")).status == 403
    assert list((await bull.get("/workers", token="mine")).json) == ["mine-1"]
    assert list((await bull.get("/workers", token="reader")).json) == ["theirs", "mine-1"]
    assert (await bull.get("/workers/theirs", token="mine")).status == 403
    assert (await bull.delete("/workers/theirs", token="mine")).status == 403
    assert (await bull.delete("/workers/mine-1", token="reader")).status == 403
    assert (await bull.delete("/workers/mine-1", token="mine")).status == 200
    assert (await bull.get("/workers", token=None)).status == 401


async def test_a_repeat_with_the_same_key_is_the_same_registration(bull: Bull) -> None:
    key = {"Idempotency-Key": "k1"}
    assert (await bull.post("/workers", body(), headers=key)).body == b"OK"
    generation = bull.server.node.machine.state.pushers.generation
    assert (await bull.post("/workers", body(), headers=key)).body == b"OK"
    assert bull.server.node.machine.state.pushers.generation == generation
    assert (await bull.delete("/workers/que", headers={"Idempotency-Key": "k2"})).body == b"OK"
    assert (await bull.delete("/workers/que", headers={"Idempotency-Key": "k2"})).body == b"OK"


async def test_figures_of_push_workers(bull: Bull) -> None:
    async with Endpoint() as endpoint:
        await bull.post("/workers", body({"url": endpoint.url, "method": "POST"}))
        own = await bull.add("a")
        while "finishedOn" not in await bull.job(own):
            pass
        page = (
            await bull.client.send("GET", "/prometheus", headers={"Authorization": f"Bearer {TOKEN}"})
        ).body.decode()
        found = dict(line.rsplit(" ", 1) for line in page.splitlines() if line.startswith("quorumq_push_"))
        assert found["quorumq_push_registered"] == found["quorumq_push_served"] == "1"
        assert (
            found["quorumq_push_deliveries_total"] == found['quorumq_push_outcomes_total{outcome="completed"}'] == "1"
        )
        assert found["quorumq_push_seconds_count"] == found["quorumq_push_connections"] == "1"
        assert found["quorumq_push_in_flight"] == found["quorumq_push_open_circuits"] == "0"

"""Pushing one job and many: every documented rule with its text, what is tolerated, and what is kept."""

from __future__ import annotations

import re
from typing import Any

import pytest

from quorumq.api.dialects.bunqueue.dialect import Bunqueue, Events
from quorumq.api.request import Route
from tests.api.conftest import Client

LIMITS = [
    ({"priority": 1.5}, "priority must be an integer"),
    ({"priority": "5"}, "priority must be a number"),
    ({"priority": True}, "priority must be a number"),
    ({"priority": 1_000_001}, "priority must be at most 1000000"),
    ({"priority": -1_000_001}, "priority must be at least -1000000"),
    ({"delay": -1}, "delay must be at least 0"),
    ({"delay": "5"}, "delay must be a number"),
    ({"delay": 31_536_000_001}, "delay must be at most 31536000000"),
    ({"maxAttempts": 0}, "maxAttempts must be at least 1"),
    ({"maxAttempts": -1}, "maxAttempts must be at least 1"),
    ({"maxAttempts": 1001}, "maxAttempts must be at most 1000"),
    ({"maxAttempts": 2.5}, "maxAttempts must be an integer"),
    ({"maxAttempts": "3"}, "maxAttempts must be a number"),
    ({"backoff": -1}, "backoff must be at least 0"),
    ({"backoff": 86_400_001}, "backoff must be at most 86400000"),
    ({"backoff": "x"}, "backoff must be a number"),
    ({"backoff": {"type": "zzz", "delay": 1}}, "backoff.type must be 'fixed' or 'exponential'"),
    ({"backoff": {"type": "fixed"}}, "backoff.delay is required"),
    ({"backoff": {"type": "fixed", "delay": "1"}}, "backoff.delay must be a number"),
    ({"ttl": -1}, "ttl must be at least 0"),
    ({"ttl": 31_536_000_001}, "ttl must be at most 31536000000"),
    ({"ttl": "x"}, "ttl must be a number"),
    ({"timeout": -1}, "timeout must be at least 0"),
    ({"timeout": 86_400_001}, "timeout must be at most 86400000"),
    ({"timeout": "x"}, "timeout must be a number"),
    ({"stallTimeout": -1}, "stallTimeout must be at least 0"),
    ({"groupId": ""}, "groupId must be a non-empty string"),
    ({"groupId": 5}, "groupId must be a string"),
    ({"name": ""}, "Job name must be a non-empty string of at most 256 characters"),
    ({"name": "n" * 257}, "Job name must be a non-empty string of at most 256 characters"),
    ({"dependsOn": ["nope"]}, "Dependency job not found: nope"),
    ({"dependsOn": "nope"}, "Dependency job not found: nope"),
    ({"repeat": {}}, "repeat requires exactly one of every or pattern"),
    ({"repeat": {"every": 1000, "pattern": "* * * * *"}}, "repeat requires exactly one of every or pattern"),
    ({"repeat": {"every": -5}}, "repeat.every must be a positive finite number"),
    ({"repeat": {"every": 10**20}}, "repeat.every must be at most 3153600000000"),
    ({"repeat": {"every": 1e300}}, "repeat.every must be at most 3153600000000"),
    ({"repeat": {"every": 1000}, "jobId": "x"}, "repeat cannot be combined with jobId or dependsOn"),
    ({"repeat": {"every": 1000}, "customId": "x"}, "repeat cannot be combined with jobId or dependsOn"),
    ({"repeat": {"every": 1000}, "dependsOn": ["x"]}, "repeat cannot be combined with jobId or dependsOn"),
    (
        {"repeat": {"pattern": "bad"}},
        "Invalid repeat pattern: Cron expression must have 5 fields, or 6 fields with leading seconds",
    ),
    (
        {"repeat": {"pattern": "99 * * * *"}},
        "Invalid repeat pattern: Invalid cron expression: value out of range for field",
    ),
    ({"jobId": "x" * 1025}, "jobId too long (max 1024 characters)"),
]


@pytest.mark.parametrize(("options", "error"), LIMITS, ids=lambda value: str(value)[:60])
async def test_limits(client: Client, options: dict[str, Any], error: str) -> None:
    answer = await client.post("/queues/q/jobs", {"data": 1, **options})
    assert (answer.status, answer.error) == (400, error)
    bulk = await client.post("/queues/q/jobs/bulk", {"jobs": [{"data": 0}, {"data": 1, **options}]})
    assert (bulk.status, bulk.error) == (400, f"jobs[1]: {error}")
    assert (await client.get("/queues/q/count")).json["count"] == 0


ACCEPTED = [
    {"priority": 1_000_000},
    {"priority": -1_000_000},
    {"priority": 5.0},
    {"priority": None, "delay": None, "ttl": None, "timeout": None, "backoff": None, "maxAttempts": None},
    {"delay": 1.5},
    {"delay": 31_536_000_000},
    {"maxAttempts": 1},
    {"maxAttempts": 1000},
    {"attempts": 7},
    {"backoff": 0},
    {"backoff": 86_400_000},
    {"backoff": {"type": "fixed", "delay": 100}},
    {"backoff": {"type": "exponential", "delay": 100}},
    {"ttl": 31_536_000_000},
    {"timeout": 0},
    {"timeout": 86_400_000},
    {"tags": "notarray"},
    {"tags": [1, 2]},
    {"groupId": "g"},
    {"uniqueKey": ""},
    {"uniqueKey": 5},
    {"jobId": ""},
    {"jobId": 5},
    {"lifo": "yes"},
    {"removeOnComplete": "x"},
    {"durable": True},
    {"dependsOn": []},
    {"repeat": {"every": 1000, "limit": 2}},
    {"repeat": {"cron": "* * * * *"}},
    {"repeat": {"pattern": "*/5 * * * * *"}},
    {"name": "nm"},
    {"name": 5},
    {"unheardOf": {"x": [1]}},
]


@pytest.mark.parametrize("options", ACCEPTED, ids=str)
async def test_accepted(client: Client, options: dict[str, Any]) -> None:
    job_id = await client.push(data={"v": 1}, **options)
    job = (await client.get(f"/jobs/{job_id}")).json["job"]
    assert job["data"] == {"v": 1}
    bulk = await client.post("/queues/b/jobs/bulk", {"jobs": [{"data": 1, **options}]})
    assert bulk.status == 200


async def test_the_first_of_several_mistakes_is_told_in_the_documented_order(client: Client) -> None:
    body = {"data": 1, "ttl": "x", "backoff": "x", "maxAttempts": 0, "timeout": -1, "delay": -1, "priority": "x"}
    expected = ["priority", "delay", "timeout", "maxAttempts", "backoff", "ttl"]
    for name in expected:
        answer = await client.post("/queues/q/jobs", body)
        assert answer.error.startswith(f"{name} must be")
        del body[name]
    bad_queue = await client.post("/queues/b%20d/jobs", {"data": 1, "priority": "x"})
    assert bad_queue.error == "Queue name contains invalid characters"


async def test_an_id_is_a_uuid_of_version_7(client: Client) -> None:
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", await client.push())


async def test_data_is_required(client: Client) -> None:
    answer = await client.post("/queues/q/jobs", {})
    assert (answer.status, answer.error) == (400, "data is required")
    answer = await client.post("/queues/q/jobs/bulk", {"jobs": [{"data": 1}, {"priority": 2}]})
    assert (answer.status, answer.error) == (400, "jobs[1]: data is required")
    assert await client.pull() is None


@pytest.mark.parametrize("text", ["null", '"str"', "0", "[1, 2]", "1e400", "12345678901234567890123", '{"a" : 1.50 }'])
async def test_data_is_kept_byte_for_byte(client: Client, text: str) -> None:
    answer = await client.post("/queues/q/jobs", raw=b'{ "data" : %b }' % text.encode())
    assert answer.status == 200
    shown = await client.get(f"/jobs/{answer.json['id']}")
    assert b'"data":%b,' % text.encode() in shown.body


async def test_unicode_data_is_kept(client: Client) -> None:
    job_id = await client.push(data="héllo ✓ 日本 \x00 \ud83d\ude00")
    raw = '{"data":"héllo ✓ 日本 😀"}'.encode()
    other = await client.post("/queues/q/jobs", raw=raw)
    assert (await client.get(f"/jobs/{job_id}")).json["job"]["data"] == "héllo ✓ 日本 \x00 \U0001f600"
    assert raw[8:-1] in (await client.get(f"/jobs/{other.json['id']}")).body


@pytest.mark.parametrize(
    ("job", "error"),
    [
        (rb'{"lifo":1,"data":"\ud83d"}', None),
        (rb'{"data":"\ud83d","tags":"x","priority":3.0}', None),
        (rb'{"priority":"5","data":"\ud83d"}', "priority must be a number"),
        (rb'{"lifo":1,"data":1,"priority":"\ud83d"}', "Invalid JSON body"),
        (rb'{"lifo":1,"data":1,"groupId":["\ud83d"]}', "Invalid JSON body"),
        (rb'{"lifo":1,"data":"\ud83d}', "Invalid JSON body"),
    ],
    ids=["flag", "list", "priority", "number", "group", "broken"],
)
async def test_half_a_surrogate_pair_behind_a_type_that_does_not_fit(
    client: Client, job: bytes, error: str | None
) -> None:
    one = await client.post("/queues/q/jobs", raw=job)
    many = await client.post("/queues/q/jobs/bulk", raw=b'{"jobs":[{"data":1},%b]}' % job)
    if error is None:
        assert (one.status, many.status) == (200, 200)
        for job_id in (one.json["id"], many.json["ids"][1]):
            assert rb'"data":"\ud83d"' in (await client.get(f"/jobs/{job_id}")).body
    else:
        assert (one.status, one.error) == (400, error)
        assert (many.status, many.error.removeprefix("jobs[1]: ")) == (400, error)


async def test_half_a_surrogate_pair_is_kept(client: Client) -> None:
    # JSON.stringify writes a string that was cut inside a pair this way, and JSON's grammar allows it.
    body = rb'{"data":{"cut":"a\ud83d","whole":"\uD83D\uDE00","not":"\\ud83d"},"priority":3}'
    pushed = await client.post("/queues/q/jobs", raw=body)
    assert pushed.status == 200
    assert (
        rb'"data":{"cut":"a\ud83d","whole":"\uD83D\uDE00","not":"\\ud83d"},'
        in (await client.get("/queues/q/jobs")).body
    )
    key = await client.post("/queues/q/jobs", raw=rb'{"data":1,"uniqueKey":"\ud83d"}')
    assert (key.status, key.error) == (400, "Invalid JSON body")


BROKEN = [
    b"{bad",
    b"",
    b"{",
    b'{"data":01}',
    b'{"data":NaN}',
    b'{"data":Infinity}',
    b'{"data":-}',
    b'{"data":1,}',
    b"{'data':1}",
    b'{"data":"\xff"}',
    b'{"data":"\xed\xa0\x80"}',
    b'{"data":"\x01"}',
    b'{"data":"\\x"}',
    b'{"data":1}{}',
    b'{"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
]


ONE_AFTER_THE_OTHER: list[dict[str, Any]] = [
    {},
    {"name": "n", "priority": 1},
    {"name": "n", "priority": 1},
    {"name": "n", "priority": 1, "groupId": "g"},
    {"name": "n", "priority": 1, "groupId": "g"},
    {"tags": ["x"]},
    {"tags": ["x"]},
    {"uniqueKey": "k"},
    {"uniqueKey": "k2"},
    {"jobId": "mine"},
    {"jobId": "mine-too"},
    {"backoff": {"type": "fixed", "delay": 5}},
    {"backoff": {"type": "fixed", "delay": 5}},
    {"removeOnComplete": True},
    {},
]


async def test_jobs_that_say_the_same_become_what_each_would_be_alone(client: Client) -> None:
    told = ("name", "priority", "groupId", "tags", "uniqueKey", "customId", "backoff", "removeOnComplete", "data")

    async def kept(job_id: str) -> dict[str, Any]:
        job = (await client.get(f"/jobs/{job_id}")).json["job"]
        return {field: job.get(field) for field in told}

    alone = []
    for number, options in enumerate(ONE_AFTER_THE_OTHER):
        pushed = await client.post("/queues/alone/jobs", {"data": number, **options})
        alone.append(await kept(pushed.json["id"]))
        await client.delete(f"/jobs/{pushed.json['id']}")
    for _ in range(2):
        jobs = [{"data": number, **options} for number, options in enumerate(ONE_AFTER_THE_OTHER)]
        ids = (await client.post("/queues/together/jobs/bulk", {"jobs": jobs})).json["ids"]
        assert len(set(ids)) == len(jobs)
        assert [await kept(one) for one in ids] == alone
        for one in ids:
            await client.delete(f"/jobs/{one}")


@pytest.mark.parametrize(
    ("good", "bad", "error"),
    [
        ({"priority": 1}, {"priority": True}, "priority must be a number"),
        ({"delay": 0}, {"delay": False}, "delay must be a number"),
        ({"backoff": {"type": "fixed", "delay": 1}}, {"backoff": {"type": "fixed", "delay": True}}, "backoff.delay must be a number"),
        ({"name": "n"}, {"name": "n", "failParentOnFailure": 1}, "failParentOnFailure must be a boolean"),
    ],
)  # fmt: skip
async def test_what_only_looks_the_same_is_checked(
    client: Client, good: dict[str, Any], bad: dict[str, Any], error: str
) -> None:
    for _ in range(2):
        assert (await client.post("/queues/q/jobs/bulk", {"jobs": [{"data": 1, **good}] * 2})).status == 200
        answer = await client.post("/queues/q/jobs/bulk", {"jobs": [{"data": 1, **good}, {"data": 2, **bad}]})
        assert (answer.status, answer.error) == (400, f"jobs[1]: {error}")
    missing = await client.post("/queues/q/jobs/bulk", {"jobs": [{"data": 1, **good}, good]})
    assert (missing.status, missing.error) == (400, "jobs[1]: data is required")


@pytest.mark.parametrize("body", BROKEN, ids=lambda body: repr(body[:20]))
@pytest.mark.parametrize("path", ["/queues/q/jobs", "/queues/q/jobs/bulk"])
async def test_broken_json(client: Client, path: str, body: bytes) -> None:
    answer = await client.post(path, raw=body)
    assert (answer.status, answer.error) == (400, "Invalid JSON body")


@pytest.mark.parametrize("body", [b"null", b"[]", b'"x"', b"5", b"true"])
@pytest.mark.parametrize("path", ["/queues/q/jobs", "/queues/q/jobs/bulk", "/jobs/x/ack", "/jobs/x/wait"])
async def test_a_body_that_is_no_object(client: Client, path: str, body: bytes) -> None:
    answer = await client.post(path, raw=body)
    assert (answer.status, answer.error) == (400, "Request body must be a JSON object")


async def test_the_content_type_of_a_request_does_not_matter(client: Client) -> None:
    answer = await client.post("/queues/q/jobs", {"data": 1}, headers={"Content-Type": "text/plain"})
    assert answer.status == 200


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("bad%20name", "Queue name contains invalid characters"),
        ("%E2%82%AC", "Queue name contains invalid characters"),
        ("a%2Fb", "Queue name contains invalid characters"),
        ("a%0A", "Queue name contains invalid characters"),
        ("a" * 257, "Queue name too long (max 256 characters)"),
        ("%zz", "Malformed percent-encoding in the path"),
        ("%ff", "Malformed percent-encoding in the path"),
    ],
)
async def test_queue_names(client: Client, name: str, error: str) -> None:
    for method, path in (
        ("POST", f"/queues/{name}/jobs"),
        ("POST", f"/queues/{name}/jobs/bulk"),
        ("GET", f"/queues/{name}/jobs"),
        ("POST", f"/queues/{name}/jobs/pull-batch"),
    ):
        body = {"data": 1, "jobs": [], "count": 1} if method == "POST" else None
        answer = await client.send(method, path, body)
        assert (answer.status, answer.error) == (400, error), path


OF_A_QUEUE = [route for dialect in (Bunqueue(), Events()) for route in dialect.routes if "{queue}" in route.path]


@pytest.mark.parametrize("route", OF_A_QUEUE, ids=lambda route: f"{route.method} {route.path}")
async def test_a_queue_without_a_name(client: Client, route: Route) -> None:
    path = re.sub(r"\{\w+\}", "x", route.path.replace("{queue}", ""))
    body = None if route.body == "none" else {"data": 1, "jobs": [], "count": 1}
    answer = await client.send(route.method, path, body)
    assert (answer.status, answer.error) == (400, "Queue name is required")


@pytest.mark.parametrize("name", ["a-b_c.d:e", "a" * 256, "%61bc"])
async def test_legal_queue_names(client: Client, name: str) -> None:
    await client.push(name)
    assert (await client.pull(name.replace("%61", "a"))) is not None


async def test_options_are_kept(client: Client) -> None:
    asked = {
        "priority": 7,
        "maxAttempts": 9,
        "backoff": 250,
        "tags": ["a", "b"],
        "removeOnComplete": True,
        "removeOnFail": True,
        "lifo": True,
        "durable": True,
        "ttl": 60_000,
        "timeout": 5_000,
        "uniqueKey": "k",
        "groupId": "g",
        "name": "mail",
    }
    job_id = await client.push(**asked)
    job = (await client.get(f"/jobs/{job_id}")).json["job"]
    assert {name: job[name] for name in asked} == asked


async def test_a_custom_id_is_idempotent_over_all_queues(client: Client) -> None:
    assert await client.push("q", {"v": 1}, jobId="order-1") == "order-1"
    assert await client.push("q", {"v": 2}, jobId="order-1") == "order-1"
    assert await client.push("other", {"v": 3}, jobId="order-1") == "order-1"
    assert (await client.get("/queues/other/count")).json["count"] == 0
    found = (await client.get("/jobs/custom/order-1")).json["job"]
    assert (found["data"], found["customId"], found["queue"]) == ({"v": 1}, "order-1", "q")


async def test_a_custom_id_in_a_path(client: Client) -> None:
    await client.push(jobId="a b/ü")
    assert (await client.get("/jobs/custom/a%20b%2F%C3%BC")).json["job"]["id"] == "a b/ü"
    assert (await client.get("/jobs/custom/none")).error == "Job not found"


async def test_a_unique_key_returns_the_job_that_holds_it(client: Client) -> None:
    first = await client.push(data=1, uniqueKey="k")
    assert await client.push(data=2, uniqueKey="k") == first
    assert await client.push("other", data=2, uniqueKey="k") != first
    bulk = await client.post("/queues/q/jobs/bulk", {"jobs": [{"data": 3, "uniqueKey": "k"}, {"data": 4}]})
    assert bulk.json["ids"][0] == first
    assert (await client.get("/queues/q/count")).json["count"] == 2


class TestBulk:
    async def test_ids_come_in_order(self, client: Client) -> None:
        jobs = [{"data": 1, "priority": 5}, {"data": 2}, {"data": 3, "delay": 60_000}]
        answer = await client.post("/queues/q/jobs/bulk", {"jobs": jobs})
        ids = answer.json["ids"]
        assert [(await client.get(f"/jobs/{job_id}")).json["job"]["data"] for job_id in ids] == [1, 2, 3]
        assert ids == sorted(ids)
        assert await client.state(ids[2]) == "delayed"

    async def test_nothing_to_push(self, client: Client) -> None:
        answer = await client.post("/queues/q/jobs/bulk", {"jobs": []})
        assert (answer.status, answer.json) == (200, {"ok": True, "ids": []})

    @pytest.mark.parametrize("body", [{}, {"jobs": None}, {"job": [{"data": 1}]}, {"jobs": None, "x": 1}])
    async def test_a_list_of_jobs_that_is_missing(self, client: Client, body: Any) -> None:
        answer = await client.post("/queues/q/jobs/bulk", body)
        assert (answer.status, answer.error) == (400, "jobs must be an array")

    @pytest.mark.parametrize(
        ("jobs", "error"),
        [
            ("x", "jobs must be an array"),
            ({"data": 1}, "jobs must be an array"),
            ([{"data": 1}, 5], "jobs[1]: must be an object"),
            ([None], "jobs[0]: must be an object"),
            ([{"data": 1}] * 10_001, "jobs must have at most 10000 items"),
        ],
        ids=lambda value: str(value)[:30],
    )
    async def test_what_is_no_list_of_jobs(self, client: Client, jobs: Any, error: str) -> None:
        answer = await client.post("/queues/q/jobs/bulk", {"jobs": jobs})
        assert (answer.status, answer.error) == (400, error)

    async def test_custom_ids_by_both_names(self, client: Client) -> None:
        jobs = [{"data": 1, "jobId": "a"}, {"data": 2, "customId": "b"}]
        assert (await client.post("/queues/q/jobs/bulk", {"jobs": jobs})).json["ids"] == ["a", "b"]

    async def test_a_thousand(self, client: Client) -> None:
        answer = await client.post("/queues/q/jobs/bulk", {"jobs": [{"data": n} for n in range(1000)]})
        assert len(set(answer.json["ids"])) == 1000
        assert (await client.counts())["waiting"] == 1000

    async def test_odd_items_do_not_spoil_their_neighbours(self, client: Client) -> None:
        jobs = [{"data": {"n": 1}}, {"data": 2, "tags": "odd"}, {"data": 3, "priority": 9.0}]
        ids = (await client.post("/queues/q/jobs/bulk", {"jobs": jobs})).json["ids"]
        shown = [(await client.get(f"/jobs/{job_id}")).json["job"] for job_id in ids]
        assert [job["data"] for job in shown] == [{"n": 1}, 2, 3]
        assert shown[2]["priority"] == 9

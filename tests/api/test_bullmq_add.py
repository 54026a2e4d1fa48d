"""Adding jobs in the BullMQ dialect: every option, its bounds and the words of its refusals; what is echoed and what is stored."""

from __future__ import annotations

import json
from typing import Any

import pytest

from quorumq.api.limits import DATA_BYTES_MAX
from tests.api.bullmq import Bull

JOBS = "/queues/que/jobs"


@pytest.fixture
async def bull(serve: Any) -> Bull:
    return Bull(await serve(auth_tokens=("tok1", "tok2")))


async def refused(bull: Bull, body: Any, *, raw: bytes | None = None) -> tuple[int, str]:
    """Add what cannot be added; nothing is stored."""
    answer = await bull.post(JOBS, body, raw=raw)
    assert (await bull.get(JOBS)).json["jobs"] == []
    return answer.status, answer.body.decode()


BODIES = [
    ({"name": "a", "data": 1}, "Body must be an array"),
    ("job", "Body must be an array"),
    (5, "Body must be an array"),
    ([5], "name is required"),
    ([None], "name is required"),
    (["job"], "name is required"),
    ([[]], "name is required"),
    ([{"data": 1}], "name is required"),
    ([{"name": "", "data": 1}], "name is required"),
    ([{"name": 0, "data": 1}], "name is required"),
    ([{"name": 5, "data": 1}], "Invalid name 5, must be a string"),
    ([{"name": "x" * 1025, "data": 1}], "Invalid name, must be at most 1024 characters long"),
    ([{"name": "a"}], "data is required"),
    ([{"name": "a", "data": 1, "foo": 1}], "Unexpected field: foo"),
    ([{"name": "a", "data": 1}, {"name": "b"}], "data is required"),
]


@pytest.mark.parametrize(("body", "text"), BODIES)
async def test_bodies_that_are_refused(bull: Bull, body: Any, text: str) -> None:
    assert await refused(bull, body) == (400, text)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", "Unexpected end of JSON input"),
        (b"{nope", "Invalid JSON body"),
        (b"[", "Invalid JSON body"),
        (b'[{"name":"a","data":1}] x', "Invalid JSON body"),
        (b'[{"name":"a","data":"\xff"}]', "Invalid JSON body"),
        (b'[{"name":"\\ud83d","data":1}]', "Invalid JSON body"),
        (b'[{"name":"a","data":1,"opts":{"jobId":"\\ud83d"}}]', "Invalid JSON body"),
        (b"[" * 100_000, "Invalid JSON body"),
        (b'[{"name":"a","data":1,"opts":{"attempts":2,"delay":1e400}}]', "Invalid delay Infinity"),
        (
            b'[{"name":"a","data":1,"opts":{"backoff":{"type":"fixed","delay":1e400}}}]',
            "Invalid backoff Infinity, must be a number or an object",
        ),
        (b'[{"name":"a","data":1,"opts":{"delay":1%b}}]' % (b"0" * 400), "Invalid delay Infinity"),
        (b'[{"name":"a","data":1,"opts":1e400}]', "opts must be an object"),
    ],
)
async def test_what_is_no_json_is_the_clients_mistake(bull: Bull, raw: bytes, text: str) -> None:
    assert await refused(bull, None, raw=raw) == (400, text)


OPTIONS = [
    ({"foo": 1}, "Unexpected field: opts.foo"),
    ({"timestamp": 1}, "Unexpected field: opts.timestamp"),
    ({"parent": {"id": "1", "queue": "que", "x": 1}}, "Unexpected field: opts.parent.x"),
    ("string", "Unexpected field: opts.0"),
    ([1], "Unexpected field: opts.0"),
    (5, "opts must be an object"),
    ({"delay": -1}, "Invalid delay -1"),
    ({"delay": 1.5}, "Invalid delay 1.5"),
    ({"delay": "10"}, "Invalid delay 10"),
    ({"delay": True}, "Invalid delay true"),
    ({"delay": None}, "Invalid delay null"),
    ({"delay": 1e300}, "Invalid delay 1e+300"),
    ({"priority": 0}, "Invalid priority 0"),
    ({"priority": -1}, "Invalid priority -1"),
    ({"priority": 2097153}, "Invalid priority 2097153"),
    ({"priority": 1.5}, "Invalid priority 1.5"),
    ({"priority": "1"}, "Invalid priority 1"),
    ({"priority": None}, "Invalid priority null"),
    ({"attempts": -1}, "Invalid attempts -1"),
    ({"attempts": 1.5}, "Invalid attempts 1.5"),
    ({"attempts": "3"}, "Invalid attempts 3"),
    ({"backoff": -1}, "Invalid backoff delay -1, must be greater than 0"),
    ({"backoff": "x"}, "Invalid backoff x, must be a number or an object"),
    ({"backoff": []}, "Invalid backoff , must be a number or an object"),
    ({"backoff": {}}, "Invalid backoff {}, must be a number or an object with at least the type field"),
    ({"backoff": {"type": "fixed", "delay": -5}}, "Invalid backoff delay -5, must be greater than 0"),
    ({"backoff": {"type": "fixed", "delay": "5"}}, "Invalid backoff delay 5, must be a number"),
    ({"backoff": {"type": "fixed", "delay": 5, "max": 1}}, "Unexpected field: opts.max"),
    (
        {"backoff": {"delay": 5}},
        'Invalid backoff type undefined, must be "fixed" or "exponential" if delay is provided',
    ),
    ({"backoff": {"type": "mine"}}, 'Invalid backoff type mine, must be "fixed", "exponential" or "linear"'),
    (
        {"backoff": {"type": "fixed", "delay": 5, "jitter": 2}},
        "Invalid backoff jitter 2, must be a number from 0 to 1",
    ),
    ({"lifo": "x"}, "Invalid lifo x, must be a boolean"),
    ({"jobId": 5}, "Invalid jobId 5, must be a string"),
    ({"jobId": "5"}, "Custom Id cannot be integers"),
    ({"jobId": "0"}, "Custom Id cannot be integers"),
    ({"jobId": "a:b"}, "Custom Id cannot contain :"),
    ({"jobId": "x" * 1025}, "Invalid jobId, must be at most 1024 characters long"),
    ({"deduplication": "d"}, "Invalid deduplication d, must be an object"),
    ({"deduplication": {"ttl": 5}}, "Invalid deduplication.id undefined, must be a string"),
    ({"deduplication": {"id": 5}}, "Invalid deduplication.id 5, must be a string"),
    ({"deduplication": {"id": ""}}, "deduplication.id is required"),
    ({"deduplication": {"id": "d", "ttl": -1}}, "Invalid deduplication.ttl -1, must be greater than 0"),
    ({"deduplication": {"id": "d", "ttl": "1"}}, "Invalid deduplication.ttl 1, must be a number"),
    ({"deduplication": {"id": "d", "extend": 1}}, "Invalid deduplication.extend 1, must be a boolean"),
    ({"deduplication": {"id": "d", "keepLastIfActive": True}}, "Unexpected field: opts.keepLastIfActive"),
    ({"removeOnComplete": "x"}, "Invalid removeOnComplete x, must be a boolean, a number or an object"),
    ({"removeOnFail": {"zzz": 1}}, "Unexpected field: opts.removeOnFail.zzz"),
    ({"removeOnFail": {"age": -1}}, "Invalid removeOnFail.age -1"),
    ({"removeOnComplete": {"count": 1.5}}, "Invalid removeOnComplete.count 1.5"),
]


@pytest.mark.parametrize(("opts", "text"), OPTIONS)
async def test_options_that_are_refused(bull: Bull, opts: Any, text: str) -> None:
    assert await refused(bull, [{"name": "a", "data": 1, "opts": opts}]) == (400, text)


TAKEN = [
    None,
    {},
    {"delay": 0},
    {"priority": 1},
    {"priority": 2_097_152},
    {"attempts": 0},
    {"attempts": 2.0},
    {"backoff": 1000},
    {"backoff": {"type": "linear"}},
    {"backoff": {"type": "linear", "delay": 100}},
    {"backoff": {"type": "fixed", "delay": 5, "jitter": 0.5}},
    {"backoff": {"type": "exponential", "delay": 100}},
    {"lifo": True},
    {"lifo": True, "priority": 5},
    {"jobId": "a:b:c"},
    {"jobId": ""},
    {"jobId": "007"},
    {"jobId": "ü/ö?#%"},
    {"deduplication": {"id": "d1"}},
    {"deduplication": {"id": "d2", "ttl": 1000, "extend": True, "replace": True}},
    {"removeOnComplete": True, "removeOnFail": False},
    {"removeOnComplete": 5, "removeOnFail": {"age": 1, "count": 2}},
]


@pytest.mark.parametrize("opts", TAKEN)
async def test_options_are_echoed_and_stored(bull: Bull, opts: Any) -> None:
    shown = {"attempts": 0, **(opts or {})}
    (added,) = (await bull.post(JOBS, [{"name": "a", "data": {"k": "v"}, "opts": opts}])).json
    assert added["opts"] == shown
    assert ("delay" in added) == ("delay" in shown)
    (stored,) = (await bull.get(JOBS)).json["jobs"]
    assert stored["opts"] == shown
    assert {key: stored[key] for key in added if key not in ("opts", "stacktrace", "delay")} == {
        key: value for key, value in added.items() if key not in ("opts", "stacktrace", "delay")
    }
    assert stored["stacktrace"] == [] and stored["delay"] == shown.get("delay", 0)
    assert added["queueQualifiedName"] == "bull:que"


async def test_the_prefix_is_shown_only(serve: Any) -> None:
    bull = Bull(await serve(auth_tokens=("tok1",), queue_prefix="pre"))
    assert (await bull.job(await bull.add()))["queueQualifiedName"] == "pre:que"


@pytest.mark.parametrize(
    "data", [0, "", False, None, 1.0, "x", [], {}, {"k": [None]}, 9007199254740993, "žluť 🐎\u0000\ud83d"]
)
async def test_data_is_any_json_and_kept_as_it_was_sent(bull: Bull, data: Any) -> None:
    """What BullMQ Proxy calls missing (0, an empty string, false, null) is data."""
    text = json.dumps(data).encode()
    answer = await bull.post(JOBS, raw=b'[{"name":"a", "data": %b }]' % text)
    assert b'"data":%b,' % text in answer.body
    assert b'"data":%b,' % text in (await bull.get(f"{JOBS}/1")).body


async def test_ids_are_counted_per_queue_and_a_custom_one_takes_a_number(bull: Bull) -> None:
    ids = await bull.add_many("a", {"opts": {"jobId": "mine"}}, "b")
    assert ids == ["1", "mine", "3"]
    assert await bull.add(queue="other") == "1"


async def test_a_duplicate_echoes_the_request_and_stores_nothing(bull: Bull) -> None:
    await bull.add("first", {"v": 1}, jobId="dup")
    (again,) = (await bull.post(JOBS, [{"name": "second", "data": {"v": 2}, "opts": {"jobId": "dup"}}])).json
    assert (again["id"], again["name"], again["data"]) == ("dup", "second", {"v": 2})
    stored = await bull.job("dup")
    assert (stored["name"], stored["data"]) == ("first", {"v": 1})
    assert (await bull.counts())["waiting"] == 1


async def test_an_id_is_taken_until_its_job_is_removed(bull: Bull) -> None:
    await bull.add("first", jobId="dup")
    await bull.complete(await bull.next())
    await bull.add("second", jobId="dup")
    assert (await bull.job("dup"))["name"] == "first"
    await bull.delete(f"{JOBS}/dup")
    await bull.add("third", jobId="dup")
    assert (await bull.job("dup"))["name"] == "third"


async def test_deduplication_answers_with_the_job_there_is(bull: Bull) -> None:
    one = {"opts": {"deduplication": {"id": "k"}}}
    first, second = (await bull.post(JOBS, [{"name": "a", "data": 1} | one, {"name": "b", "data": 2} | one])).json
    assert (first["id"], second["id"], second["name"]) == ("1", "1", "b")
    assert first["deduplicationId"] == second["deduplicationId"] == "k"
    assert (await bull.job("1"))["deduplicationId"] == "k"
    await bull.complete(await bull.next())
    assert await bull.add(deduplication={"id": "k"}) != "1"


async def test_deduplication_replaces_what_is_still_delayed(bull: Bull) -> None:
    rule = {"deduplication": {"id": "k", "ttl": 60_000, "extend": True, "replace": True}, "delay": 30_000}
    first = await bull.add("a", 1, **rule)
    second = await bull.add("b", 2, **rule)
    assert second != first
    assert (await bull.get(f"{JOBS}/{first}")).status == 404
    assert (await bull.job(second))["data"] == 2


async def test_deduplication_for_a_time_holds_after_the_end(bull: Bull) -> None:
    first = await bull.add(deduplication={"id": "k", "ttl": 60_000})
    await bull.complete(await bull.next())
    assert await bull.add(deduplication={"id": "k", "ttl": 60_000}) == first


@pytest.mark.parametrize("kind", ["Complete", "Fail"])
async def test_finished_jobs_are_removed_as_they_ask(bull: Bull, kind: str) -> None:
    async def end(**opts: Any) -> str:
        job_id = await bull.add(**opts)
        job = await bull.next()
        await (bull.complete(job) if kind == "Complete" else bull.fail(job))
        return job_id

    gone = await end(**{f"removeOn{kind}": True})
    assert (await bull.get(f"{JOBS}/{gone}")).status == 404
    ended = [await end(**{f"removeOn{kind}": 2}) for _ in range(4)]
    kept = [job["id"] for job in (await bull.get(f"{JOBS}?statuses=completed,failed")).json["jobs"]]
    assert kept == [ended[3], ended[2]]


async def test_queue_names(bull: Bull) -> None:
    for name, text in (
        ("ab", "queue name must be at least 3 characters long"),
        ("x" * 101, "queue name must be at most 100 characters long"),
        ("abc:def", "Queue name cannot contain :"),
        ("abc%00", "Queue name cannot contain control characters"),
    ):
        answer = await bull.post(f"/queues/{name}/jobs", [{"name": "a", "data": 1}])
        assert (answer.status, answer.body.decode()) == (400, text)
    for name in ("abc%20def", "%7Babc%7D", "x" * 100, "a%22b%5Cc", "%C3%BC%C3%B6%C3%A4"):
        assert await bull.add(queue=name) == "1"
        assert (await bull.next(queue=name))["id"] == "1"
    assert (await bull.get("/queues")).json["queues"] == ["abc def", "{abc}", "x" * 100, 'a"b\\c', "üöä"]


async def test_an_empty_array_adds_nothing(bull: Bull) -> None:
    assert (await bull.post(JOBS, [])).json == []
    assert (await bull.get("/queues")).json["queues"] == []


async def test_bounds(bull: Bull) -> None:
    assert (await refused(bull, [{"name": "a", "data": 1}] * 10_001))[1] == "Body must have at most 10000 items"
    big = b'[{"name":"a","data":"%b"}]' % (b"x" * DATA_BYTES_MAX)
    assert await refused(bull, None, raw=big) == (400, "Job data too large (max 10MB)")


async def test_a_body_beyond_its_bound(serve: Any) -> None:
    bull = Bull(await serve(auth_tokens=("tok1",), body_bytes_max=1 << 16))
    answer = await bull.post(JOBS, [{"name": "a", "data": "x" * (1 << 16)}])
    assert (answer.status, answer.body) == (413, b"Request body too large (max 64KB)")


async def test_an_add_under_a_key_is_done_once(bull: Bull) -> None:
    body, headers = [{"name": "a", "data": 1}, {"name": "b", "data": 2}], {"Idempotency-Key": "k"}
    first = await bull.post(JOBS, body, headers=headers)
    await bull.run()
    assert (await bull.post(JOBS, body, headers=headers)).body == first.body
    assert (await bull.counts())["waiting"] == 0
    other = await bull.post(JOBS, body[:1], headers=headers)
    assert (other.status, other.body) == (422, b"Idempotency-Key was used for a different request")
    empty = await bull.post(JOBS, body, headers={"Idempotency-Key": ""})
    assert (empty.status, empty.body) == (400, b"Idempotency-Key must not be empty")


async def test_without_a_quorum_nothing_is_half_done(bull: Bull) -> None:
    bull.engine.available = False
    answer = await bull.post(JOBS, [{"name": "a", "data": 1}])
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) >= 1
    stale = await bull.get(f"{JOBS}?consistency=stale")
    assert (stale.status, stale.json["jobs"]) == (200, [])
    assert (await bull.get(JOBS)).status == 503

"""What can be done to queues and jobs in the BullMQ dialect: pause, drain, clean, obliterate, retry, promote, remove, change."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.bullmq import Bull

JOBS = "/queues/que/jobs"


@pytest.fixture
async def bull(serve: Any) -> Bull:
    return Bull(await serve(auth_tokens=("tok1",)))


async def one_of_each(bull: Bull) -> None:
    """Jobs named for their status."""
    await bull.add_many("completed", "failed", "active")
    await bull.complete(await bull.next())
    await bull.fail(await bull.next())
    await bull.next()
    await bull.add_many("waiting", {"name": "delayed", "opts": {"delay": 60_000}})
    await bull.add("prioritized", priority=1)


async def left(bull: Bull) -> set[str]:
    return {job["name"] for job in (await bull.get(JOBS)).json["jobs"]}


EVERY = {"completed", "failed", "active", "waiting", "delayed", "prioritized"}


async def test_a_queue_in_numbers(bull: Bull) -> None:
    await one_of_each(bull)
    counts = dict.fromkeys(EVERY, 1) | {"paused": 0, "waiting-children": 0}
    assert (await bull.get("/queues/que/counts")).json == counts
    none = {"globalRateLimit": None, "globalConcurrency": None}
    assert (await bull.get("/queues/que")).json == {"name": "que", "isPaused": False, "counts": counts} | none
    await bull.post("/queues/que/pause")
    found = (await bull.get("/queues/que")).json
    assert (found["isPaused"], found["counts"]["waiting"], found["counts"]["paused"]) == (True, 0, 1)
    assert (await bull.get("/queues/none/counts")).json == dict.fromkeys(counts, 0)


async def test_names_of_queues_leave_out_what_cannot_be_named(bull: Bull) -> None:
    await bull.add(queue="one")
    for name in ("q", "a:b"):
        await bull.client.send("POST", f"/queues/{name}/jobs", {"data": 1}, headers={"Authorization": "tok1"})
    await bull.add(queue="two")
    assert (await bull.get("/queues")).json == {"queues": ["one", "two"]}


async def test_a_paused_queue_takes_jobs_and_lets_active_ones_end(bull: Bull) -> None:
    await bull.add()
    job = await bull.next()
    assert (await bull.post("/queues/que/pause")).body == b"OK"
    await bull.add()
    assert await bull.next() is None
    assert await bull.complete(job, fetchNext=True) == {"state": "completed", "next": None}
    assert (await bull.post("/queues/que/resume")).body == b"OK"
    assert await bull.next() is not None


@pytest.mark.parametrize(("body", "gone"), [(None, 2), ({}, 2), ({"delayed": False}, 2), ({"delayed": True}, 3)])
async def test_drain(bull: Bull, body: Any, gone: int) -> None:
    await one_of_each(bull)
    assert (await bull.post("/queues/que/drain", body)).json == {"count": gone}
    assert await left(bull) == {"completed", "failed", "active", *(["delayed"] if gone == 2 else [])}


@pytest.mark.parametrize(
    ("kind", "gone"),
    [
        (None, "completed"),
        ("completed", "completed"),
        ("failed", "failed"),
        ("wait", "waiting"),
        ("delayed", "delayed"),
        ("prioritized", "prioritized"),
    ],
)
async def test_clean(bull: Bull, kind: str | None, gone: str) -> None:
    await one_of_each(bull)
    (job,) = [job for job in (await bull.get(JOBS)).json["jobs"] if job["name"] == gone]
    body = {"grace": 0, "limit": 0} | ({} if kind is None else {"type": kind})
    assert (await bull.post("/queues/que/clean", body)).json == {"count": 1, "ids": [job["id"]]}
    assert await left(bull) == EVERY - {gone}


async def test_clean_spares_what_is_locked_or_young(bull: Bull) -> None:
    await one_of_each(bull)
    assert (await bull.post("/queues/que/clean", {"type": "active"})).json["count"] == 0
    assert (await bull.post("/queues/que/clean", {"grace": 60_000})).json["count"] == 0
    assert await left(bull) == EVERY


async def test_clean_keeps_to_its_limit(bull: Bull) -> None:
    await bull.add_many("a", "b", "c")
    assert (await bull.post("/queues/que/clean", {"type": "wait", "limit": 2})).json["ids"] == ["1", "2"]


async def test_obliterate(bull: Bull) -> None:
    await one_of_each(bull)
    answer = await bull.post("/queues/que/obliterate")
    assert (answer.status, answer.body) == (409, b"Cannot obliterate queue with active jobs")
    assert await left(bull) == EVERY
    assert (await bull.post("/queues/que/obliterate", {"force": True})).json == {"count": 6}
    assert (await bull.get("/queues")).json["queues"] == []
    # Numbers begin anew.
    assert await bull.add() == "1"


async def test_retry_of_many(bull: Bull) -> None:
    await bull.add_many("a", "b", "c")
    for _ in range(3):
        await bull.fail(await bull.next())
    assert (await bull.post("/queues/que/retry", {"count": 1})).json == {"count": 1}
    assert await bull.names("waiting") == ["a"]
    assert (await bull.post("/queues/que/retry", {"timestamp": 1})).json == {"count": 0}
    assert (await bull.post("/queues/que/retry")).json == {"count": 2}
    assert await bull.run() == ["a", "b", "c"]
    assert (await bull.post("/queues/que/retry", {"state": "completed"})).json == {"count": 3}


async def test_promote_of_many(bull: Bull) -> None:
    await bull.add_many(*({"name": name, "opts": {"delay": delay}} for name, delay in (("b", 2000), ("a", 1000))))
    assert (await bull.post("/queues/que/promote", {"count": 1})).json == {"count": 1}
    assert await bull.names("waiting") == ["a"]
    assert (await bull.post("/queues/que/promote")).json == {"count": 1}


async def test_changing_a_job(bull: Bull) -> None:
    job = await bull.add(data={"old": 1}, delay=60_000)
    assert (await bull.send("PUT", f"{JOBS}/{job}/data", raw=b'{"data": {"new": 1.0} }')).body == b"OK"
    assert b'"data":{"new": 1.0},' in (await bull.get(f"{JOBS}/{job}")).body
    assert (await bull.post(f"{JOBS}/{job}/change-delay", {"delay": 30_000})).body == b"OK"
    assert (await bull.job(job))["delay"] == 30_000
    assert (await bull.post(f"{JOBS}/{job}/change-priority", {"priority": 4})).body == b"OK"
    assert (await bull.job(job))["priority"] == 4
    await bull.post(f"{JOBS}/{job}/promote")
    assert await bull.state(job) == "prioritized"


async def test_jobs_are_removed(bull: Bull) -> None:
    for opts in ({}, {"delay": 60_000}, {"priority": 1}):
        job = await bull.add(**opts)
        assert (await bull.delete(f"{JOBS}/{job}")).body == b"OK"
        assert await bull.state(job) == "unknown"
    answer = await bull.delete(f"{JOBS}/{job}")
    assert (answer.status, answer.body) == (404, b"Job not found")


CHANGES = [
    ("POST", "retry", None, 404, "Missing key for job nope. reprocessJob"),
    ("POST", "promote", None, 404, "Missing key for job nope. promote"),
    ("POST", "change-priority", {"priority": 1}, 404, "Missing key for job nope. changePriority"),
    ("POST", "change-delay", {"delay": 1}, 404, "Missing key for job nope. changeDelay"),
    ("PUT", "data", {"data": 1}, 404, "Missing key for job nope. updateData"),
    ("DELETE", "logs", None, 404, "Job not found"),
]


@pytest.mark.parametrize(("method", "what", "body", "status", "text"), CHANGES)
async def test_a_job_that_is_not_there(bull: Bull, method: str, what: str, body: Any, status: int, text: str) -> None:
    answer = await bull.send(method, f"{JOBS}/nope/{what}", body)
    assert (answer.status, answer.body.decode()) == (status, text)


async def test_a_state_that_does_not_allow_it(bull: Bull) -> None:
    job = await bull.add()
    for what, body, text in (
        ("change-delay", {"delay": 1}, "Job 1 is not in the delayed state. changeDelay"),
        ("promote", None, "Job 1 is not in the delayed state. promote"),
        ("retry", {"state": "completed"}, "Job 1 is not in the completed state. reprocessJob"),
        ("move-to-delayed", {"token": "t", "timestamp": 1}, "Missing lock for job 1. moveToDelayed"),
        ("move-to-wait", {"token": "t"}, "Missing lock for job 1. moveToWait"),
        ("extend-lock", {"token": "t"}, "Missing lock for job 1. extendLock"),
    ):
        answer = await bull.post(f"{JOBS}/{job}/{what}", body)
        assert (answer.status, answer.body.decode()) == (409, text)
    await bull.complete(await bull.next())
    answer = await bull.send("PUT", f"{JOBS}/{job}/data", {"data": 1})
    assert (answer.status, answer.body) == (409, b"Job 1 is finished. updateData")


BODIES = [
    ("drain", {"delaid": True}, "Unexpected field: delaid"),
    ("jobs/1/move-to-completed", {"token": "t", "returnvalue": 1}, "Unexpected field: returnvalue"),
    ("drain", {"delayed": 1}, "Invalid delayed 1, must be a boolean"),
    ("clean", {"grace": -1}, "Invalid grace -1"),
    ("clean", {"limit": "x"}, "Invalid limit x"),
    ("clean", {"type": "everything"}, "Invalid type everything"),
    ("obliterate", {"force": "yes"}, "Invalid force yes, must be a boolean"),
    ("retry", {"state": "waiting"}, "Invalid state waiting"),
    ("retry", [], "Request body must be a JSON object"),
    ("retry", {"count": -1}, "Invalid count -1"),
    ("retry", {"timestamp": 1.5}, "Invalid timestamp 1.5"),
    ("promote", {"count": []}, "Invalid count "),
    ("rate-limit", {}, "duration is required"),
    ("rate-limit", {"duration": -1}, "Invalid duration -1"),
    ("jobs/next", {}, "token is required"),
    ("jobs/next", {"token": ""}, "Invalid token , must be a string of 1 to 1024 characters"),
    ("jobs/next", {"token": 5}, "Invalid token 5, must be a string of 1 to 1024 characters"),
    ("jobs/next", {"token": "t", "timeout": 60_001}, "Invalid timeout 60001"),
    ("jobs/next", {"token": "t", "lockDuration": 0}, "Invalid lockDuration 0"),
    ("jobs/1/move-to-completed", {}, "token is required"),
    ("jobs/1/move-to-completed", {"token": "t", "fetchNext": 1}, "Invalid fetchNext 1, must be a boolean"),
    ("jobs/1/move-to-failed", {"token": "t"}, "error is required"),
    ("jobs/1/move-to-failed", {"token": "t", "error": "x", "unrecoverable": 1},
     "Invalid unrecoverable 1, must be a boolean"),
    ("jobs/1/move-to-delayed", {"token": "t"}, "timestamp is required"),
    ("jobs/1/move-to-delayed", {"token": "t", "timestamp": "x"}, "Invalid timestamp x"),
    ("jobs/1/extend-lock", {"token": "t", "duration": 0}, "Invalid duration 0"),
    ("jobs/1/change-priority", {}, "priority is required"),
    ("jobs/1/change-priority", {"priority": -1}, "Invalid priority -1"),
    ("jobs/1/change-delay", {}, "delay is required"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "text"), BODIES)
async def test_bodies_that_are_refused(bull: Bull, path: str, body: Any, text: str) -> None:
    answer = await bull.post(f"/queues/que/{path}", body)
    assert (answer.status, answer.body.decode()) == (400, text)


PATHS = sorted({path for path, _, _ in BODIES})


@pytest.mark.parametrize("path", PATHS)
async def test_what_is_no_json_is_the_clients_mistake(bull: Bull, path: str) -> None:
    for raw, text in (
        (b"{nope", "Invalid JSON body"),
        (b'{"a":"\xff"}', "Invalid JSON body"),
        (b"[]", "Request body must be a JSON object"),
        (b"[" * 100_000, "Request body must be a JSON object"),
    ):
        answer = await bull.post(f"/queues/que/{path}", raw=raw)
        assert (answer.status, answer.body.decode()) == (400, text)


async def test_half_a_surrogate_pair(bull: Bull) -> None:
    """A result is kept as it was sent; a token cannot be such a text."""
    await bull.add()
    answer = await bull.post(f"{JOBS}/next", raw=b'{"token":"\\ud83d"}')
    assert (answer.status, answer.body) == (400, b"Invalid JSON body")
    await bull.next()
    body = b'{"token":"t1","returnValue":["\\ud83d"]}'
    assert (await bull.post(f"{JOBS}/1/move-to-completed", raw=body)).status == 200
    assert b'"returnvalue":["\\ud83d"],' in (await bull.get(f"{JOBS}/1")).body


@pytest.mark.parametrize(
    "error", [b'"cut off: \\ud83d"', b'{"message":"cut off: \\uD83D","stack":"a \\udc34 b \\\\ud83d \\ud83d\\udc34"}']
)
async def test_half_a_surrogate_pair_keeps_nobody_from_saying_what_went_wrong(bull: Bull, error: bytes) -> None:
    await bull.add()
    await bull.next()
    line = b'"a \\ud83d line"'
    assert (await bull.post(f"{JOBS}/1/logs", raw=line, token="t1")).status == 200
    answer = await bull.post(f"{JOBS}/1/move-to-failed", raw=b'{"token":"t1","error":%b}' % error)
    assert answer.json["state"] == "failed"
    job = await bull.job("1")
    assert job["failedReason"] == "cut off: \ufffd"
    assert job["stacktrace"] == ["a \ufffd b \\ud83d 🐴" if b"stack" in error else job["failedReason"]]
    assert (await bull.get(f"{JOBS}/1/logs")).json["logs"] == ["a \ufffd line"]


async def test_a_key_makes_repeats_one(bull: Bull) -> None:
    await bull.add_many("a", "b", "c")
    headers = {"Idempotency-Key": "k"}
    body = {"token": "t1"}
    first = await bull.post(f"{JOBS}/next", body, headers=headers)
    assert (await bull.post(f"{JOBS}/next", body, headers=headers)).json == first.json
    ended = {"token": "t1", "fetchNext": True}
    answers = [
        await bull.post(f"{JOBS}/1/move-to-completed", ended, headers={"Idempotency-Key": "k2"}) for _ in range(2)
    ]
    assert answers[0].body == answers[1].body
    assert answers[0].json["next"]["name"] == "b"
    assert (await bull.counts())["active"] == 1
    gone = [await bull.delete(f"{JOBS}/3", headers={"Idempotency-Key": "k3"}) for _ in range(2)]
    assert [answer.status for answer in gone] == [200, 200]

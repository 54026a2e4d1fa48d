"""Reading jobs in the BullMQ dialect, and what whoever works on one reports: lists and pages, the job object, progress, logs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.bullmq import Bull

JOBS = "/queues/que/jobs"
ALL = ["waiting", "active", "completed", "failed", "delayed", "prioritized"]


@pytest.fixture
async def bull(serve: Any) -> Bull:
    return Bull(await serve(auth_tokens=("tok1", "tok2")))


async def eighteen(bull: Bull) -> None:
    """The recorded queue: fifteen plain jobs, a delayed one, one with a priority, one that goes first."""
    await bull.add_many(*(f"n{i}" for i in range(15)))
    await bull.add(delay=100_000)
    await bull.add(priority=3)
    await bull.add(lifo=True)


NEWEST = [str(number) for number in range(15, 0, -1)]
# Query, ids, counts: recorded but for the default, which is all statuses, and for pages of several statuses, of which start and
# length are of the whole, both as the document says.
PAGES = [
    ("", NEWEST[:10], {"waiting": 16, "active": 0, "completed": 0, "failed": 0, "delayed": 1,
                                        "prioritized": 1, "paused": 0}),
    ("?statuses=waiting", NEWEST[:10], {"waiting": 16, "paused": 0}),
    ("?statuses=waiting&start=0&length=3", NEWEST[:3], {"waiting": 16, "paused": 0}),
    ("?statuses=waiting&start=14&length=5", ["1", "18"], {"waiting": 16, "paused": 0}),
    ("?statuses=waiting&length=0", [*NEWEST, "18"], {"waiting": 16, "paused": 0}),
    ("?statuses=waiting&length=100", [*NEWEST, "18"], {"waiting": 16, "paused": 0}),
    ("?start=1.9&length=2.9&statuses=waiting", ["14", "13"], {"waiting": 16, "paused": 0}),
    ("?statuses=delayed", ["16"], {"delayed": 1}),
    ("?statuses=prioritized", ["17"], {"prioritized": 1}),
    ("?statuses=waiting,delayed&length=1", NEWEST[:1], {"waiting": 16, "delayed": 1, "paused": 0}),
    ("?statuses=waiting,delayed&length=2", NEWEST[:2], {"waiting": 16, "delayed": 1, "paused": 0}),
    ("?statuses=delayed,waiting&length=2", ["16", "15"], {"waiting": 16, "delayed": 1, "paused": 0}),
    ("?statuses=delayed,waiting&start=1&length=2", ["15", "14"], {"waiting": 16, "delayed": 1, "paused": 0}),
    ("?statuses=waiting,delayed&start=14&length=3", ["1", "18", "16"], {"waiting": 16, "delayed": 1, "paused": 0}),
    ("?statuses=waiting,active,delayed,prioritized&start=16", ["16", "17"],
     {"waiting": 16, "active": 0, "delayed": 1, "prioritized": 1, "paused": 0}),
    ("?statuses=waiting,delayed&start=17", [], {"waiting": 16, "delayed": 1, "paused": 0}),
    ("?statuses=delayed,prioritized,waiting&length=0", ["16", "17", *NEWEST, "18"],
     {"waiting": 16, "delayed": 1, "prioritized": 1, "paused": 0}),
    ("?statuses=waiting,waiting&length=2", ["15", "14"], {"waiting": 16, "paused": 0}),
    ("?statuses=active", [], {"active": 0}),
    ("?statuses=waiting&start=&length=", NEWEST[:10], {"waiting": 16, "paused": 0}),
    ("?statuses=waiting&start=99999999999999999999999", [], {"waiting": 16, "paused": 0}),
    ("?statuses=waiting&length=5abc", NEWEST[:5], {"waiting": 16, "paused": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("query", "ids", "counts"), PAGES)
async def test_pages(bull: Bull, query: str, ids: list[str], counts: dict[str, int]) -> None:
    await eighteen(bull)
    page = (await bull.get(JOBS + query)).json
    assert [job["id"] for job in page["jobs"]] == ids
    assert page["counts"] == counts


BAD_PAGES = [
    ("length=101", "Length must be less than or equal to 100"),
    ("length=-1", "Start and length must be positive"),
    ("start=-1", "Start and length must be positive"),
    ("start=abc", "Invalid start or length"),
    ("length=abc", "Invalid start or length"),
]


@pytest.mark.parametrize(("query", "text"), BAD_PAGES)
async def test_pages_that_are_refused(bull: Bull, query: str, text: str) -> None:
    for path in (JOBS, f"{JOBS}/1/logs"):
        answer = await bull.get(f"{path}?{query}")
        assert (answer.status, answer.body.decode()) == (400, text)


@pytest.mark.parametrize("status", ["foo", "paused", "waiting-children", "all", "%20waiting"])
async def test_unknown_statuses(bull: Bull, status: str) -> None:
    for statuses in (status, f"waiting,{status}"):
        answer = await bull.get(f"{JOBS}?statuses={statuses}")
        text = "Invalid status: " + status.replace("%20", " ")
        assert (answer.status, answer.body.decode()) == (400, text)


async def test_a_list_shows_every_status_by_default(bull: Bull) -> None:
    await bull.add("completed")
    await bull.complete(await bull.next())
    await bull.add("failed")
    await bull.fail(await bull.next())
    await bull.add("active")
    await bull.next()
    await bull.add("waiting")
    await bull.add("delayed", delay=60_000)
    await bull.add("prioritized", priority=1)
    page = (await bull.get(JOBS)).json
    assert [job["name"] for job in page["jobs"]] == ALL[:1] + ALL[1:]
    assert page["counts"] == dict.fromkeys(ALL, 1) | {"paused": 0}
    assert (page["start"], page["length"]) == (0, 10)


async def test_a_paused_queue_shows_what_waits(bull: Bull) -> None:
    await bull.add_many("a", "b")
    await bull.post("/queues/que/pause")
    page = (await bull.get(f"{JOBS}?statuses=waiting")).json
    assert [job["name"] for job in page["jobs"]] == ["b", "a"]
    assert page["counts"] == {"waiting": 0, "paused": 2}


@pytest.mark.parametrize("paused", [False, True])
async def test_pages_of_several_statuses_follow_each_other(bull: Bull, paused: bool) -> None:
    """Read in pages of any size, each job comes once, in the order of the whole."""
    await eighteen(bull)
    if paused:
        await bull.post("/queues/que/pause")
    everything = f"{JOBS}?statuses=prioritized,waiting,delayed"
    whole = [job["id"] for job in (await bull.get(f"{everything}&length=0")).json["jobs"]]
    assert len(whole) == 18
    for length in (1, 3, 5, 17, 100):
        seen: list[str] = []
        while True:
            page = (await bull.get(f"{everything}&start={len(seen)}&length={length}")).json["jobs"]
            assert len(page) <= length
            if not page:
                break
            seen += [job["id"] for job in page]
        assert seen == whole


async def test_ended_jobs_come_newest_first(bull: Bull) -> None:
    await bull.add_many("a", "b", "c")
    for _ in range(3):
        await bull.complete(await bull.next())
    assert await bull.names("completed") == ["c", "b", "a"]


async def test_delayed_jobs_come_latest_first(bull: Bull) -> None:
    await bull.add_many(*({"name": name, "opts": {"delay": delay}} for name, delay in (("b", 20_000), ("a", 10_000))))
    assert await bull.names("delayed") == ["b", "a"]


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/json"}])
async def test_a_job_that_is_not_there(bull: Bull, headers: dict[str, str]) -> None:
    """Asked with the headers of the document, the answer has the form of the document; else that of the recorded server."""
    await bull.add()
    for path, status, text in (
        (f"{JOBS}/nope", 404, "Job not found"),
        ("/queues/other/jobs/1", 404, "Job not found"),
        ("/queues/ab/jobs/1", 400, "queue name must be at least 3 characters long"),
        (f"{JOBS}/1?consistency=x", 400, "consistency must be 'stale' or 'linearizable'"),
        (f"{JOBS}/meta", 404, "Job not found"),
    ):
        answer = await bull.get(path, headers=headers)
        assert answer.status == status
        if headers:
            assert answer.json == {"error": text}
        else:
            assert answer.body.decode() == text


async def test_a_job_of_another_dialect_is_found_by_its_id(bull: Bull) -> None:
    job_id = await bull.client.send(
        "POST", "/queues/que/jobs", {"data": {"k": 1}, "name": "n", "priority": 7}, headers={"Authorization": "tok1"}
    )
    job = await bull.job(job_id.json["id"])
    assert (job["id"], job["name"], job["data"], job["priority"]) == (job_id.json["id"], "n", {"k": 1}, 0)
    assert job["opts"] == {"attempts": 3, "backoff": {"type": "exponential", "delay": 1000}}
    assert [one["id"] for one in (await bull.get(f"{JOBS}?statuses=waiting")).json["jobs"]] == [job["id"]]
    taken = await bull.next()
    assert taken["id"] == job["id"]
    await bull.complete(taken, "done")
    assert (await bull.job(job["id"]))["returnvalue"] == "done"


# -- Progress and logs: the job's own token is the bearer


async def test_progress_is_any_json(bull: Bull) -> None:
    await bull.add()
    job = await bull.next("secret")
    for raw in (b"50", b'{"pct":70, "x":[1.0]}', b'"half"', b"null", b"0", b"-5", b"1e3"):
        answer = await bull.post(f"{JOBS}/1/progress", raw=raw, token="secret")
        assert (answer.status, answer.body) == (200, b"OK")
        assert b'"progress":%b,"returnvalue"' % raw in (await bull.get(f"{JOBS}/1")).body
    await bull.complete(job, token="secret")
    assert (await bull.job("1"))["progress"] == 1000


async def test_log_lines(bull: Bull) -> None:
    await bull.add()
    await bull.next("secret")
    for raw in (b'"line 1"', b'{"log":"line 2"}', b'{"other": 1}', b"5"):
        assert (await bull.post(f"{JOBS}/1/logs", raw=raw, token="secret")).body == b"OK"
    lines = ["line 1", "line 2", '{"other": 1}', "5"]
    assert (await bull.get(f"{JOBS}/1/logs")).json == {"logs": lines, "count": 4}
    assert (await bull.get(f"{JOBS}/1/logs?start=1&length=1")).json == {"logs": lines[1:2], "count": 4}
    assert (await bull.get(f"{JOBS}/1/logs?length=0")).json == {"logs": lines, "count": 4}
    assert (await bull.get(f"{JOBS}/1/logs?start=9")).json == {"logs": [], "count": 4}
    assert (await bull.get(f"{JOBS}/nope/logs")).json == {"logs": [], "count": 0}
    assert (await bull.get("/queues/ab/jobs/1/logs")).status == 400
    assert (await bull.delete(f"{JOBS}/1/logs?keepLogs=1")).body == b"OK"
    assert (await bull.get(f"{JOBS}/1/logs")).json == {"logs": ["5"], "count": 1}
    assert (await bull.delete(f"{JOBS}/1/logs?keepLogs=-1")).status == 400


@pytest.mark.parametrize("what", ["progress", "logs"])
async def test_only_the_holder_reports(bull: Bull, what: str) -> None:
    """Whoever does not hold the job is told 401 and nothing else, and writes nothing into the log."""
    await bull.add()
    path = f"{JOBS}/1/{what}"
    bull.engine.keep_entries = True

    async def refused(path: str, token: str | None, raw: bytes = b"1") -> None:
        answer = await bull.post(path, raw=raw, token=token)
        assert (answer.status, answer.body) == (401, b"Unauthorized")

    await refused(path, "tok1")
    bull.engine.keep_entries = False
    await bull.next("secret")
    bull.engine.keep_entries = True
    before = len(bull.engine.entries)
    for token in ("tok1", "secre", "secret2", "", None):
        await refused(path, token)
        await refused(path, token, b"{broken")
    await refused(f"{JOBS}/nope/{what}", "secret")
    await refused(f"/queues/ab/jobs/1/{what}", "secret")
    await refused(f"/queues/other/jobs/1/{what}", "secret")
    assert [batches for _, _, batches in bull.engine.entries[before:] if batches] == []
    broken = await bull.post(path, raw=b"{broken", token="secret")
    assert (broken.status, broken.body) == (400, b"Invalid JSON body")
    empty = await bull.post(path, token="secret")
    assert (empty.status, empty.body) == (400, b"Unexpected end of JSON input")


@pytest.mark.parametrize("what", ["progress", "logs"])
async def test_the_token_ends_with_the_job(bull: Bull, what: str) -> None:
    await bull.add()
    job = await bull.next("secret")
    assert (await bull.post(f"{JOBS}/1/{what}", raw=b"1", token="secret")).status == 200
    await bull.complete(job, token="secret")
    assert (await bull.post(f"{JOBS}/1/{what}", raw=b"1", token="secret")).status == 401


async def test_bodies_of_more_than_one_value(bull: Bull) -> None:
    await bull.add()
    await bull.next("secret")
    for raw in (b"1,2", b"1],[2", b"1 2", b"[" * 100_000, b'"\xff"'):
        answer = await bull.post(f"{JOBS}/1/progress", raw=raw, token="secret")
        assert (answer.status, answer.body) == (400, b"Invalid JSON body")


async def test_a_half_surrogate_pair_is_kept(bull: Bull) -> None:
    await bull.add()
    await bull.next("secret")
    raw = b'{"half":"\\ud83d"}'
    assert (await bull.post(f"{JOBS}/1/progress", raw=raw, token="secret")).status == 200
    assert b'"progress":%b,' % raw in (await bull.get(f"{JOBS}/1")).body


# -- Requests in general


async def test_strangers(bull: Bull) -> None:
    for method, path in (("GET", JOBS), ("POST", JOBS), ("POST", f"{JOBS}/next"), ("POST", "/queues/ab/jobs")):
        for token in (None, "wrong"):
            answer = await bull.send(method, path, raw=b"{}", token=token)
            assert (answer.status, answer.body) == (401, b"Unauthorized")
    assert (await bull.get(JOBS, token="tok2")).status == 200


async def test_no_tokens_let_nobody_in(serve: Any) -> None:
    bull = Bull(await serve())
    for token in ("", "x"):
        assert (await bull.get(JOBS, token=token)).status == 401


async def test_what_is_not_there(bull: Bull) -> None:
    for method, path in (
        ("PUT", JOBS),
        ("PATCH", JOBS),
        ("GET", "/nope"),
        ("POST", JOBS + "/"),
        ("GET", "/queues//jobs"),
    ):
        answer = await bull.send(method, path)
        assert (answer.status, answer.body) == (404, b"Not found")


async def test_the_banner_is_open(bull: Bull) -> None:
    assert (await bull.get("/", token=None)).body.startswith(b"quorumq ")

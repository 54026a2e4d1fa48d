"""Repeatable jobs in the BullMQ dialect: the `repeat` option, what it makes and when, and what repeats in a queue."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from quorumq.node.machine.operations.repeatables import AddRepeating, GetRepeating, ListRepeating
from tests.api.bullmq import Bull
from tests.support.local import wall_ms

JOBS = "/queues/que/jobs"
MINUTE_MS = 60_000


@pytest.fixture
async def bull(serve: Any) -> Bull:
    return Bull(await serve(auth_tokens=("tok1",)))


async def repeat(bull: Bull, name: str = "tick", **how: Any) -> Any:
    """Add a job that repeats; return what the add answered."""
    answer = await bull.post(JOBS, [{"name": name, "data": {"n": name}, "opts": {"repeat": how, "attempts": 2}}])
    assert answer.status == 200, answer.body
    (job,) = answer.json
    return job


async def repeatables(bull: Bull) -> Any:
    found = (await bull.get("/queues/que/repeatable")).json
    assert found["count"] == len(found["repeatables"])
    return found["repeatables"]


async def test_a_repetition_makes_a_job_at_each_of_its_times(bull: Bull) -> None:
    # A time that passes while the request is under way is none: this one shall have most of an interval before it.
    while wall_ms() % 500 > 100:
        await asyncio.sleep(0.01)
    job = await repeat(bull, every=500)
    (one,) = await repeatables(bull)
    due = int(job["id"].rpartition(":")[2])
    # By the time it is listed the first may have come already.
    assert job["id"] == f"repeat:{one['key']}:{due}" and due <= one["next"]
    assert due % 500 == one["next"] % 500 == 0
    state = bull.server.node.machine.state
    await bull.until(lambda: len(state.jobs) == 1)
    taken = await bull.next()
    assert taken["id"] == job["id"]
    assert (taken["name"], taken["data"], taken["repeatJobKey"]) == ("tick", {"n": "tick"}, one["key"])
    assert taken["opts"] == {"attempts": 2, "repeat": {"every": 500}}
    assert await bull.job(job["id"]) is not None
    # One may be worked on while the next one waits.
    await bull.until(lambda: len(state.jobs) == 2)
    again = await bull.next(timeout=5000)
    assert int(again["id"].rpartition(":")[2]) - due >= 500
    await bull.complete(again)
    await bull.complete(taken)


async def test_a_time_that_passes_while_it_is_added_has_its_job(bull: Bull) -> None:
    """As after an election that the request waited for: the answer names the job of that time."""
    bull.engine.clock = lambda: wall_ms() + 2_000
    job = await repeat(bull, every=1_000)
    await bull.until(lambda: bull.server.node.machine.state.jobs)
    assert (await bull.next())["id"] == job["id"]


async def test_one_job_waits_at_a_time(bull: Bull) -> None:
    await repeat(bull, every=20)
    state = bull.server.node.machine.state
    (cron,) = state.schedule.crons.values()
    first = cron.next_due
    await bull.until(lambda: cron.next_due >= first + 100)
    assert (await bull.counts())["waiting"] == 1
    assert cron.executions == 1


async def test_the_same_again_is_the_same_repetition(bull: Bull) -> None:
    first = await repeat(bull, every=MINUTE_MS)
    again = await repeat(bull, every=MINUTE_MS, limit=5)
    assert again["id"] == first["id"]
    (one,) = await repeatables(bull)
    assert one["limit"] == 5
    await repeat(bull, "other", every=MINUTE_MS)
    await repeat(bull, every=2 * MINUTE_MS)
    assert len(await repeatables(bull)) == 3


async def test_the_same_again_renews_the_job_that_waits(bull: Bull) -> None:
    """BullMQ's upsert: the same id, the new data."""
    first = await repeat(bull, every=MINUTE_MS, immediately=True, key="k")
    opts = {"repeat": {"every": MINUTE_MS, "key": "k"}, "attempts": 5, "priority": 7}
    (again,) = (await bull.post(JOBS, [{"name": "tock", "data": [2], "opts": opts}])).json
    assert (again["id"], again["delay"]) == (first["id"], 0)
    assert await bull.counts() | {"waiting": 0, "prioritized": 1} == await bull.counts()
    job = await bull.next()
    assert (job["id"], job["name"], job["data"], job["opts"], job["priority"]) == (first["id"], "tock", [2], opts, 7)


async def test_what_it_shows(bull: Bull) -> None:
    await repeat(bull, pattern="0 0 3 * * *", tz="Europe/Prague", key="nightly", endDate=wall_ms() + 10**10, limit=7)
    (one,) = await repeatables(bull)
    assert (one["key"], one["name"], one["pattern"], one["tz"], one["every"]) == (
        "nightly",
        "tick",
        "0 0 3 * * *",
        "Europe/Prague",
        None,
    )
    assert (one["count"], one["data"], one["opts"]["attempts"]) == (0, {"n": "tick"}, 2)
    assert one["next"] > wall_ms()
    assert (await bull.get("/queues/que/repeatable/nightly")).json == one
    assert (await bull.get("/queues/other/repeatable")).json == {"repeatables": [], "count": 0}


async def test_removing_ends_it_and_leaves_its_jobs(bull: Bull) -> None:
    job = await repeat(bull, every=MINUTE_MS, immediately=True, key="k")
    assert (await bull.counts())["waiting"] == 1
    assert (await bull.delete("/queues/que/repeatable/k")).body == b"OK"
    assert await repeatables(bull) == []
    assert (await bull.next())["id"] == job["id"]
    for method in ("GET", "DELETE"):
        answer = await bull.send(method, "/queues/que/repeatable/k")
        assert (answer.status, answer.body) == (404, b"Repeatable job not found")


async def test_a_cron_of_another_dialect_is_no_repetition(bull: Bull) -> None:
    body = {"name": "c", "queue": "que", "data": 1, "repeatEvery": MINUTE_MS}
    made = await bull.client.send("POST", "/crons", body, headers={"Authorization": "tok1"})
    assert made.status == 200
    assert await repeatables(bull) == []
    assert (await bull.get("/queues/que/repeatable/c")).status == 404


async def test_limit_and_end(bull: Bull) -> None:
    await repeat(bull, every=MINUTE_MS, immediately=True, limit=1)
    assert await repeatables(bull) == []
    assert (await bull.counts())["waiting"] == 1
    await repeat(bull, "ends", every=400, endDate=wall_ms() + 2_000)
    await bull.until(lambda: not bull.server.node.machine.state.schedule.crons)
    assert await repeatables(bull) == []


async def test_where_its_times_lie(bull: Bull) -> None:
    hour = 60 * MINUTE_MS
    await repeat(bull, "grid", every=hour)
    await repeat(bull, "offset", every=hour, offset=5 * MINUTE_MS)
    start = wall_ms() + 10 * hour
    await repeat(bull, "late", every=hour, startDate=start)
    await repeat(bull, "iso", pattern="0 0 1 1 *", startDate="2040-06-01T00:00:00Z")
    found = {one["name"]: one["next"] for one in await repeatables(bull)}
    assert found["grid"] % hour == 0
    assert found["offset"] % hour == 5 * MINUTE_MS
    assert start <= found["late"] < start + hour
    assert found["iso"] == 2_240_611_200_000


@pytest.mark.parametrize("how", [{"every": MINUTE_MS}, {"pattern": "* * * * *"}, {"every": MINUTE_MS, "offset": 5}])
async def test_a_start_date_that_is_a_due_time_is_the_first_one(bull: Bull, how: dict[str, Any]) -> None:
    start = (wall_ms() // MINUTE_MS + 60) * MINUTE_MS + how.get("offset", 0)
    for name, at_ms, expected in (
        ("on", start, start),
        ("before", start - 1, start),
        ("after", start + 1, start + MINUTE_MS),
    ):
        await repeat(bull, name, key=name, startDate=at_ms, **how)
        (found,) = [one["next"] for one in await repeatables(bull) if one["name"] == name]
        assert found == expected, name


async def test_an_array_with_repetitions_is_all_or_nothing(bull: Bull) -> None:
    good = {"name": "r", "data": 1, "opts": {"repeat": {"every": MINUTE_MS}}}
    jobs = [{"name": "a", "data": 1}, good, {"name": "b", "data": 1}]
    answer = await bull.post(JOBS, [*jobs, {"name": "c"}])
    assert answer.status == 400
    assert await repeatables(bull) == [] and (await bull.counts())["waiting"] == 0
    added = (await bull.post(JOBS, jobs)).json
    assert [job["name"] for job in added] == ["a", "r", "b"]
    assert (added[0]["id"], added[2]["id"]) == ("1", "2")
    assert added[1]["id"].startswith("repeat:")
    assert 0 < added[1]["delay"] <= MINUTE_MS


async def test_a_key_makes_repeats_one(bull: Bull) -> None:
    jobs = [
        {"name": "r", "data": 1, "opts": {"repeat": {"every": MINUTE_MS, "immediately": True}}},
        {"name": "a", "data": 1},
    ]
    answers = [await bull.post(JOBS, jobs, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert answers[0].body == answers[1].body
    assert (await bull.counts())["waiting"] == 2


async def test_draining_and_obliterating(bull: Bull) -> None:
    await repeat(bull, every=MINUTE_MS, immediately=True)
    await bull.post("/queues/que/drain")
    assert len(await repeatables(bull)) == 1


REFUSED = [
    (5, "Invalid repeat 5, must be an object"),
    ({}, "Either .pattern or .every options must be defined for this repeatable job"),
    ({"every": 1, "pattern": "* * * * *"}, "Both .pattern and .every options are defined for this repeatable job"),
    ({"every": 0}, "Invalid repeat.every 0"),
    ({"every": "5"}, "Invalid repeat.every 5"),
    ({"every": 5, "foo": 1}, "Unexpected field: opts.repeat.foo"),
    ({"every": 5, "limit": 0}, "Invalid repeat.limit 0"),
    ({"every": 5, "startDate": "soon"}, "Invalid repeat.startDate soon"),
    ({"pattern": "* * * * *", "startDate": 8.64e15}, "Invalid repeat.startDate 8640000000000000"),
    ({"pattern": "* * * * *", "startDate": "9999-12-31T23:59:59-14:00"}, "Invalid repeat.startDate 253402351199000"),
    ({"every": 5, "endDate": 1}, "End date must be greater than current timestamp"),
    ({"every": 2**40, "endDate": 2**41 - 1}, "Invalid repeat, none of its times comes before endDate"),
    ({"every": 5, "immediately": 1}, "Invalid repeat.immediately 1, must be a boolean"),
    (
        {"every": 5, "immediately": True, "startDate": 2**42},
        "Invalid repeat, immediately and startDate cannot be used together",
    ),
    (
        {"pattern": "nope"},
        "Invalid repeat pattern: Cron expression must have 5 fields, or 6 fields with leading seconds",
    ),
    ({"pattern": "* * * * *", "tz": "Mars/Base"}, "Invalid repeat pattern: unknown time zone 'Mars/Base'"),
    ({"every": 1_000, "tz": "Mars/Base"}, "Invalid repeat.tz: unknown time zone 'Mars/Base'"),
]


@pytest.mark.parametrize(("how", "text"), REFUSED)
async def test_repetitions_that_are_refused(bull: Bull, how: Any, text: str) -> None:
    answer = await bull.post(JOBS, [{"name": "a", "data": 1, "opts": {"repeat": how}}])
    assert (answer.status, answer.body.decode()) == (400, text)
    both = {"repeat": {"every": 5}, "jobId": "mine"}
    answer = await bull.post(JOBS, [{"name": "a", "data": 1, "opts": both}])
    assert (answer.status, answer.body) == (400, b"Invalid repeat, cannot be used with jobId or deduplication")


async def test_what_repeats_is_in_the_image(bull: Bull) -> None:
    await repeat(bull, every=MINUTE_MS, key="k", endDate=wall_ms() + 10**9)
    machine = bull.server.node.machine
    before = GetRepeating("que", "k").answer(machine.state)
    digest = machine.full_digest()
    machine.restore(machine.image())
    (after,) = ListRepeating("que").answer(machine.state)
    assert (after.key, after.until, after.next_due) == (before.key, before.until, before.next_due)
    assert machine.full_digest() == digest
    assert AddRepeating.__struct_config__.tag == "job.add_repeating"


async def test_an_obliterated_queue_does_not_come_back(bull: Bull) -> None:
    """Neither by a repetition of its own nor by a cron of the other dialect."""
    await repeat(bull, every=100)
    cron = {"name": "c", "queue": "que", "data": 1, "repeatEvery": 100, "preventOverlap": False}
    headers = {"Authorization": "Bearer tok1"}
    assert (await bull.client.send("POST", "/crons", cron, headers=headers)).status == 200
    state = bull.server.node.machine.state
    await bull.until(lambda: len(state.jobs) >= 2)
    assert (await bull.post("/queues/que/obliterate", {"force": True})).status == 200
    assert (await bull.client.get("/crons", headers=headers)).json["crons"] == []
    assert await repeatables(bull) == []
    # A time of both passes.
    await bull.add("last", queue="another", delay=250)
    await bull.until(lambda: not state.queues["another"].delayed.slice(0, 1))
    assert list(state.queues) == ["another"]


@pytest.mark.parametrize(
    ("what", "body"),
    [("drain", {}), ("drain", {"delayed": True}), ("clean", {"type": "wait"}), ("clean", {"type": "paused"})],
)
async def test_the_job_that_a_repetition_waits_with_is_neither_drained_nor_cleaned(
    bull: Bull, what: str, body: Any
) -> None:
    await bull.add()
    job = await repeat(bull, every=MINUTE_MS, immediately=True)
    assert (await bull.post(f"/queues/que/{what}", body)).json["count"] == 1
    assert await bull.state(job["id"]) == "waiting"
    # The other dialect's takes all, and the repetition goes on.
    assert (await bull.client.send("POST", "/queues/que/drain", headers={"Authorization": "Bearer tok1"})).json[
        "count"
    ] == 1
    assert await bull.state(job["id"]) == "unknown"
    assert len(await repeatables(bull)) == 1

"""What is done to whole queues over HTTP: draining, cleaning, dead letters, limits, settings."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import Client


async def fail(client: Client, queue: str = "q", **options: Any) -> str:
    """Bring a job into the dead letter queue; return its id."""
    job = await client.push(queue, maxAttempts=1, **options)
    assert (await client.pull(queue))["id"] == job
    await client.post(f"/jobs/{job}/fail", {"error": "boom"})
    return job


async def complete(client: Client, queue: str = "q") -> str:
    job = await client.push(queue)
    assert (await client.pull(queue))["id"] == job
    await client.post(f"/jobs/{job}/ack", {"result": 1})
    return job


async def test_drain_takes_what_waits_and_leaves_the_rest(client: Client) -> None:
    dead, done = await fail(client), await complete(client)
    active = await client.push()
    await client.pull()
    gone = [await client.push(), await client.push(priority=5), await client.push(delay=60_000)]
    kept = await client.push(dependsOn=[active])
    assert (await client.post("/queues/q/drain")).json == {"ok": True, "count": 3}
    assert [await client.state(job) for job in gone] == ["unknown"] * 3
    states = [await client.state(job) for job in (active, kept, dead, done)]
    assert states == ["active", "waiting-children", "failed", "completed"]
    assert (await client.post("/queues/q/drain")).json["count"] == 0
    assert (await client.post("/queues/never/drain")).json["count"] == 0


async def test_obliterate_leaves_nothing(client: Client) -> None:
    jobs = [await fail(client), await complete(client), await client.push(delay=60_000)]
    active = await client.push()
    await client.pull()
    await client.send("PUT", "/queues/q/concurrency", {"limit": 0})
    assert (await client.post("/queues/q/obliterate")).json == {"ok": True}
    assert [await client.state(job) for job in [*jobs, active]] == ["unknown"] * 4
    assert (await client.get("/queues")).json["queues"] == []
    assert (await client.post(f"/jobs/{active}/ack")).status == 400
    await client.push()
    assert await client.pull() is not None
    assert (await client.post("/queues/never/obliterate")).json == {"ok": True}


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ({}, ["active", "completed", "failed"]),
        (None, ["active", "completed", "failed"]),
        ({"state": "waiting"}, ["active", "completed", "delayed", "failed"]),
        ({"state": "delayed"}, ["active", "completed", "failed", "waiting", "waiting"]),
        ({"state": "completed"}, ["active", "delayed", "failed", "waiting", "waiting"]),
        ({"state": "failed"}, ["active", "completed", "delayed", "waiting", "waiting"]),
        ({"state": "active"}, ["active", "completed", "delayed", "failed", "waiting", "waiting"]),
        ({"state": "zzz"}, ["active", "completed", "delayed", "failed", "waiting", "waiting"]),
        ({"grace": 60_000}, ["active", "completed", "delayed", "failed", "waiting", "waiting"]),
        ({"limit": 0}, ["active", "completed", "delayed", "failed", "waiting", "waiting"]),
        ({"limit": 1}, ["active", "completed", "delayed", "failed", "waiting"]),
        ({"limit": 10**9, "grace": None, "state": None}, ["active", "completed", "failed"]),
    ],
)
async def test_clean(client: Client, body: Any, left: list[str]) -> None:
    await fail(client)
    await complete(client)
    await client.push()
    await client.pull()
    for options in ({}, {"priority": 3}, {"delay": 60_000}):
        await client.push(**options)
    answer = (await client.post("/queues/q/clean", body)).json
    assert answer["count"] == len(answer["ids"]) == 6 - len(left)
    jobs = (await client.get("/queues/q/jobs/list")).json["jobs"]
    assert sorted(job["state"] for job in jobs) == left
    assert not {job["id"] for job in jobs} & set(answer["ids"])


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("clean", {"grace": "x"}, "grace must be a number"),
        ("clean", {"grace": -1}, "grace must be at least 0"),
        ("clean", {"limit": 1.5}, "limit must be an integer"),
        ("clean", [], "Request body must be a JSON object"),
        ("promote-jobs", {"count": "x"}, "count must be a number"),
        ("promote-jobs", {"count": -1}, "count must be at least 0"),
    ],
)
async def test_rules(client: Client, path: str, body: Any, error: str) -> None:
    answer = await client.post(f"/queues/q/{path}", body)
    assert (answer.status, answer.error) == (400, error)
    broken = await client.post(f"/queues/q/{path}", raw=b"{")
    assert (broken.status, broken.error) == (400, "Invalid JSON body")


async def test_promote_jobs_takes_those_due_first(client: Client) -> None:
    late, soon, next_ = [await client.push(delay=delay) for delay in (90_000, 60_000, 70_000)]
    assert (await client.post("/queues/q/promote-jobs", {"count": 2})).json == {"ok": True, "count": 2}
    assert [await client.state(job) for job in (late, soon, next_)] == ["delayed", "waiting", "waiting"]
    assert (await client.post("/queues/q/promote-jobs")).json["count"] == 1
    assert (await client.post("/queues/never/promote-jobs", {})).json["count"] == 0


async def test_retry_completed(client: Client) -> None:
    first, second = await complete(client), await complete(client)
    assert (await client.post("/queues/q/retry-completed", {"id": first})).json == {"ok": True, "count": 1}
    assert (await client.get(f"/jobs/{first}/result")).json == {"ok": True, "id": first}
    assert [await client.state(job) for job in (first, second)] == ["waiting", "completed"]
    assert (await client.post("/queues/q/retry-completed", {"id": "nope"})).json["count"] == 0
    assert (await client.post("/queues/q/retry-completed", {"count": 0})).json["count"] == 0
    assert (await client.post("/queues/q/retry-completed", {"timestamp": 1})).json["count"] == 0
    assert (await client.post("/queues/q/retry-completed", {"count": -1})).error == "count must be at least 0"
    assert (await client.post("/queues/q/retry-completed")).json["count"] == 1
    assert (await client.counts())["waiting"] == 2


async def test_dead_letters(client: Client) -> None:
    first, second, third = [await fail(client, data=n) for n in range(3)]
    page = (await client.get("/queues/q/dlq?count=2")).json
    assert [job["id"] for job in page["jobs"]] == [first, second]
    assert [entry["job"]["id"] for entry in page["entries"]] == [first, second]
    assert page["total"] == 3
    assert (page["entries"][0]["reason"], page["entries"][0]["error"]) == ("max_attempts_exceeded", "boom")
    assert (await client.post("/queues/q/dlq/retry", {"jobId": second})).json == {"ok": True, "count": 1}
    job = (await client.get(f"/jobs/{second}")).json["job"]
    assert (job["state"], job["attempts"]) == ("waiting", 0)
    assert (await client.post("/queues/q/dlq/retry", {"jobId": "nope"})).json["count"] == 0
    assert (await client.post("/queues/other/dlq/retry", {"jobId": first})).json["count"] == 0
    assert (await client.post("/queues/q/dlq/retry", {"count": "x"})).error == "count must be a number"
    assert (await client.post("/queues/q/dlq/retry", {"count": 1})).json["count"] == 1
    assert (await client.post("/queues/q/dlq/retry")).json["count"] == 1
    assert await client.state(third) == "waiting"
    assert (await client.post("/queues/q/dlq/purge")).json == {"ok": True, "count": 0}


async def test_purge(client: Client) -> None:
    dead = [await fail(client), await fail(client)]
    assert (await client.post("/queues/q/dlq/purge")).json == {"ok": True, "count": 2}
    assert [await client.state(job) for job in dead] == ["unknown", "unknown"]
    assert (await client.get("/queues/q/dlq")).json == {"ok": True, "jobs": [], "entries": [], "total": 0}


async def test_dead_letters_by_reason(client: Client) -> None:
    nothing = (await client.get("/queues/q/dlq/stats")).json["stats"]
    assert nothing["byReason"] == dict.fromkeys(
        (
            "explicit_fail",
            "max_attempts_exceeded",
            "timeout",
            "stalled",
            "ttl_expired",
            "worker_lost",
            "unknown",
        ),
        0,
    )
    assert (nothing["total"], nothing["byQueue"], nothing["oldestEntry"]) == (0, {"q": 0}, None)
    await fail(client)
    await client.post(f"/jobs/{await client.push()}/discard")
    found = (await client.get("/queues/q/dlq/stats")).json["stats"]
    assert {reason: count for reason, count in found["byReason"].items() if count} == {
        "max_attempts_exceeded": 1,
        "unknown": 1,
    }
    assert (found["total"], found["byQueue"], found["pendingRetry"]) == (2, {"q": 2}, 0)
    assert 0 < found["oldestEntry"] <= found["newestEntry"]


class TestLimits:
    async def test_a_rate_limit_holds_and_goes(self, client: Client) -> None:
        await client.post("/queues/q/jobs/bulk", {"jobs": [{"data": n} for n in range(9)]})
        assert (await client.send("PUT", "/queues/q/rate-limit", {"limit": 2, "duration": 60_000})).status == 200
        taken = (await client.post("/queues/q/jobs/pull-batch", {"count": 5})).json["jobs"]
        assert len(taken) == 2
        assert await client.pull() is None
        for _ in range(2):
            assert (await client.delete("/queues/q/rate-limit")).json == {"ok": True}
        assert await client.pull() is not None

    async def test_a_concurrency_limit_holds_and_goes(self, client: Client) -> None:
        await client.post("/queues/q/jobs/bulk", {"jobs": [{"data": n} for n in range(9)]})
        await client.send("PUT", "/queues/q/concurrency", {"concurrency": 2})
        first = (await client.pull())["id"]
        assert await client.pull() is not None
        assert await client.pull() is None
        await client.post(f"/jobs/{first}/ack")
        assert await client.pull() is not None
        await client.delete("/queues/q/concurrency")
        assert await client.pull() is not None

    @pytest.mark.parametrize("what", ["rate-limit", "concurrency"])
    async def test_zero_lets_nothing_start(self, client: Client, what: str) -> None:
        await client.push()
        assert (await client.send("PUT", f"/queues/q/{what}", {"limit": "0"})).status == 200
        assert await client.pull() is None

    @pytest.mark.parametrize("what", ["rate-limit", "concurrency"])
    @pytest.mark.parametrize(
        ("body", "error"),
        [
            ({}, "limit must be a finite number"),
            (None, "limit must be a finite number"),
            ({"limit": "x"}, "limit must be a finite number"),
            ({"limit": ""}, "limit must be a finite number"),
            ({"limit": True}, "limit must be a number"),
            ({"limit": -1}, "limit must be at least 0"),
            ({"limit": 1.5}, "limit must be an integer"),
            ({"limit": 10**12}, "limit must be at most 1000000000"),
        ],
    )
    async def test_rules(self, client: Client, what: str, body: Any, error: str) -> None:
        answer = await client.send("PUT", f"/queues/q/{what}", body)
        assert (answer.status, answer.error) == (400, error)
        assert (await client.get("/queues")).json["queues"] == []


STALL = {"enabled": True, "stallInterval": 30_000, "maxStalls": 3, "gracePeriod": 5_000}
DLQ = {
    "autoRetry": False,
    "autoRetryInterval": 3_600_000,
    "maxAutoRetries": 3,
    "maxAge": 604_800_000,
    "maxEntries": 10_000,
}


class TestSettings:
    @pytest.mark.parametrize(("what", "defaults"), [("stall-config", STALL), ("dlq-config", DLQ)])
    async def test_defaults(self, client: Client, what: str, defaults: Any) -> None:
        assert (await client.get(f"/queues/q/{what}")).json == {"ok": True, "config": defaults}
        for body in (None, {}, {"config": {}}, {"config": {"bogus": 1}}, {"config": None}):
            assert (await client.send("PUT", f"/queues/q/{what}", body)).json == {"ok": True}
        assert (await client.get(f"/queues/q/{what}")).json["config"] == defaults

    @pytest.mark.parametrize(
        ("what", "change", "shown"),
        [
            ("stall-config", {"stallInterval": 1000, "maxStalls": 2}, {"stallInterval": 1000, "maxStalls": 2}),
            ("stall-config", {"enabled": False, "gracePeriod": 0}, {"enabled": False, "gracePeriod": 0}),
            ("dlq-config", {"autoRetry": True, "maxAge": 1000}, {"autoRetry": True, "maxAge": 1000}),
            ("dlq-config", {"maxAge": None, "maxEntries": 5}, {"maxAge": None, "maxEntries": 5}),
            (
                "dlq-config",
                {"autoRetryInterval": 7, "maxAutoRetries": 0},
                {"autoRetryInterval": 7, "maxAutoRetries": 0},
            ),
        ],
    )
    @pytest.mark.parametrize("wrapped", [True, False])
    async def test_what_is_given_changes(
        self, client: Client, what: str, change: Any, shown: Any, wrapped: bool
    ) -> None:
        body = {"config": change} if wrapped else change
        assert (await client.send("PUT", f"/queues/q/{what}", body)).json == {"ok": True}
        before = STALL if what == "stall-config" else DLQ
        assert (await client.get(f"/queues/q/{what}")).json["config"] == before | shown
        assert (await client.get(f"/queues/other/{what}")).json["config"] == before

    @pytest.mark.parametrize(
        ("what", "change", "error"),
        [
            ("stall-config", {"stallInterval": "x"}, "stallInterval must be a number"),
            ("stall-config", {"stallInterval": 0}, "stallInterval must be at least 1"),
            ("stall-config", {"stallInterval": -5, "gracePeriod": 1}, "stallInterval must be at least 1"),
            ("stall-config", {"maxStalls": 1.5}, "maxStalls must be an integer"),
            ("stall-config", {"enabled": "yes"}, "enabled must be a boolean"),
            ("stall-config", {"gracePeriod": 10**15}, "gracePeriod must be at most 31536000000"),
            ("dlq-config", {"maxEntries": "x"}, "maxEntries must be a number"),
            ("dlq-config", {"maxAge": 0}, "maxAge must be at least 1"),
            ("dlq-config", {"autoRetry": 1}, "autoRetry must be a boolean"),
        ],
    )
    @pytest.mark.parametrize("wrapped", [True, False])
    async def test_rules(self, client: Client, what: str, change: Any, error: str, wrapped: bool) -> None:
        answer = await client.send("PUT", f"/queues/q/{what}", {"config": change} if wrapped else change)
        assert (answer.status, answer.error) == (400, error)
        assert (await client.get(f"/queues/q/{what}")).json["config"] == (STALL if what == "stall-config" else DLQ)

    @pytest.mark.parametrize("what", ["stall-config", "dlq-config"])
    async def test_config_must_be_an_object(self, client: Client, what: str) -> None:
        for config in (5, "x", [1]):
            answer = await client.send("PUT", f"/queues/q/{what}", {"config": config})
            assert (answer.status, answer.error) == (400, "config must be an object")


async def test_no_event_has_to_go(client: Client) -> None:
    await client.push()
    assert (await client.post("/queues/q/events/trim", {"maxLength": 0})).json == {"ok": True, "removed": 0}
    for wrong in (None, -1, 1.5, "x"):
        assert (await client.post("/queues/q/events/trim", {"maxLength": wrong})).status == 400
    assert (await client.post("/queues/b%20d/events/trim", {"maxLength": 1})).status == 400


async def test_a_job_that_is_to_wait_again(client: Client) -> None:
    job = await client.push(maxAttempts=1)
    taken, token = await client.take()
    assert taken["id"] == job
    path = f"/jobs/{job}/requeue"
    assert (await client.post(path)).status == 400
    assert (await client.post(path, {"token": "wrong"})).status == 400
    assert (await client.post(path, {"token": token})).json == {"ok": True}
    assert await client.state(job) == "waiting"
    await client.pull()
    await client.post(f"/jobs/{job}/fail")
    assert (await client.post(path)).json == {"ok": True}
    assert await client.state(job) == "waiting"
    assert (await client.post("/jobs/none/requeue")).status == 404
    await client.pull()
    await client.post(f"/jobs/{job}/ack")
    assert (await client.post(path)).status == 400


async def test_keys_for_a_time(client: Client) -> None:
    first = await client.push(uniqueKey="k", dedup={"ttl": 60_000})
    await client.pull()
    await client.post(f"/jobs/{first}/ack")
    assert await client.push(uniqueKey="k", dedup={"ttl": 60_000}) == first
    second = await client.push(uniqueKey="l")
    assert await client.push(uniqueKey="l", dedup={"replace": True}) != second
    for wrong in ("x", {"ttl": 0}, {"ttl": "x"}, {"extend": 1}, {"replace": "yes"}):
        answer = await client.post("/queues/q/jobs", {"data": 1, "uniqueKey": "m", "dedup": wrong})
        assert answer.status == 400, wrong

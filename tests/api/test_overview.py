"""What dashboards ask: everything on one page, queues in numbers, limits that end."""

from __future__ import annotations

from tests.api.conftest import Client


async def test_queues_in_numbers(client: Client) -> None:
    for name in ("a", "b", "c"):
        await client.push(name)
    await client.post("/queues/b/pause")
    await client.push("c", delay=60_000)
    none = {"waiting": 1, "prioritized": 0, "active": 0, "completed": 0, "failed": 0, "delayed": 0}
    assert (await client.get("/queues/summary")).json == [
        {"name": "a", "paused": False, "counts": none},
        {"name": "b", "paused": True, "counts": none},
        {"name": "c", "paused": False, "counts": {**none, "delayed": 1}},
    ]
    found = (await client.get("/dashboard/queues?limit=1&offset=1")).json
    assert [one["name"] for one in found["queues"]] == ["b"]
    assert (found["total"], found["limit"], found["offset"]) == (3, 1, 1)
    assert len((await client.get("/dashboard/queues")).json["queues"]) == 3
    assert (await client.get("/dashboard/queues?limit=x")).status == 400


async def test_one_queue(client: Client) -> None:
    await client.push("q", priority=5)
    done = await client.push("q")
    await client.post(f"/jobs/{done}/discard")
    found = (await client.get("/dashboard/queues/q")).json
    assert found["counts"]["waiting"] == 1 and found["priorityCounts"] == {"5": 1}
    assert [one["id"] for one in found["dlqPreview"]] == [done] and "jobs" not in found
    shown = (await client.get("/dashboard/queues/q?includeJobs=true&jobsLimit=1")).json
    assert len(shown["jobs"]) == 1
    assert (await client.get("/dashboard/queues/none")).json["counts"]["waiting"] == 0
    assert (await client.get("/dashboard/queues/b%20d")).status == 400


async def test_everything(client: Client) -> None:
    await client.post("/workers", {"name": "w", "queues": ["q"]})
    await client.post("/crons", {"name": "c", "queue": "q", "data": 1, "repeatEvery": 60_000})
    await client.push()
    found = (await client.get("/dashboard")).json
    assert found["stats"]["totalPushed"] == 1 and found["workers"]["total"] == found["crons"]["total"] == 1
    assert set(found["throughput"]) == {"pushPerSec", "pullPerSec", "completePerSec", "failPerSec"}
    assert found["storage"]["diskFull"] is False
    assert found["throughput"]["pushPerSec"] == 0
    watch = client.server.streams.watch
    watch._seen = (watch._seen[0] - 2, watch._seen[1])
    await client.push()
    again = (await client.get("/dashboard")).json["throughput"]
    assert 0 < again["pushPerSec"] <= 0.5 and again["pullPerSec"] == 0


async def test_a_rate_limit_that_ends(client: Client) -> None:
    # Long enough that a pause of this machine does not end it before the first look.
    await client.send("PUT", "/queues/q/rate-limit", {"limit": 0, "ttl": 2_000})
    await client.push()
    assert await client.pull() is None
    # Whoever waits is not kept waiting longer than the limit lasts.
    answer = await client.get("/queues/q/jobs?timeout=10000")
    assert answer.json["job"] is not None
    assert (await client.get("/queues/q/limits")).json["limits"]["rateLimitTtl"] == -2
    for wrong in (0, -1, "x", 1.5):
        assert (await client.send("PUT", "/queues/q/rate-limit", {"limit": 1, "ttl": wrong})).status == 400


async def test_unique_keys(client: Client) -> None:
    job = await client.push(uniqueKey="a/b")
    assert (await client.get("/queues/q/unique/a%2Fb")).json["jobId"] == job
    assert (await client.delete("/queues/q/unique/a%2Fb")).json["count"] == 1
    assert await client.push(uniqueKey="a/b") != job
    assert (await client.delete(f"/jobs/{job}/unique")).json["removed"] is False
    assert (await client.delete("/queues/q/dlq/none")).json["removed"] is False

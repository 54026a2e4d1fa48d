"""The registry of workers over HTTP, and the figures made of it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from quorumq.node.machine.operations.workers import HeartbeatWorker, ListWorkers, RegisterWorker, UnregisterWorker
from tests.api.conftest import Client
from tests.api.test_monitoring import scrape

BASE = {"name": "w", "queues": ["a", "b"], "workerId": "w 1"}


async def workers(client: Client) -> Any:
    return (await client.get("/workers")).json["data"]


async def test_what_is_shown(client: Client) -> None:
    sums = {"totalProcessed": 0, "totalFailed": 0, "activeJobs": 0}
    assert await workers(client) == {
        "workers": [],
        "stats": {"total": 0, "active": 0, "concurrencySlots": 0, **sums},
    }
    began = time.time_ns() // 1_000_000
    body = {"name": "w", "queues": ["a", "b"], "concurrency": 4, "hostname": "h", "pid": 7}
    data = (await client.post("/workers", body)).json["data"]
    worker_id = data["workerId"]
    assert data["registeredAt"] == data["lastSeen"] >= began
    shown = {
        "name": "w",
        "queues": ["a", "b"],
        "concurrency": 4,
        "hostname": "h",
        "pid": 7,
        "status": "active",
        "registeredAt": data["registeredAt"],
        "lastSeen": data["lastSeen"],
        "activeJobs": 0,
        "processedJobs": 0,
        "failedJobs": 0,
        "currentJob": None,
    }
    assert data == {"workerId": worker_id, **shown}
    found = await workers(client)
    assert found["workers"][0].pop("uptime") >= 0
    assert found == {
        "workers": [{"id": worker_id, **shown}],
        "stats": {"total": 1, "active": 1, "concurrencySlots": 4, **sums},
    }
    assert [one["id"] for one in (await client.get("/queues/b/workers")).json["workers"]] == [worker_id]
    assert (await client.get("/queues/c/workers")).json["workers"] == []


async def test_defaults(client: Client) -> None:
    data = (await client.post("/workers", {})).json["data"]
    assert "name" not in data
    assert (data["queues"], data["concurrency"], data["hostname"], data["pid"]) == ([], 1, "unknown", 0)
    assert (await client.post("/workers", {"queues": "x"})).json["data"]["queues"] == ["x"]


async def test_the_same_id_again(client: Client) -> None:
    await client.post("/workers", BASE | {"concurrency": 4})
    await client.post("/workers/w%201/heartbeat", {"processed": 3})
    data = (await client.post("/workers", BASE | {"name": "other", "queues": ["c"]})).json["data"]
    assert (data["name"], data["queues"], data["concurrency"], data["processedJobs"]) == ("w", ["c"], 1, 3)
    assert (await workers(client))["stats"]["total"] == 1


async def test_heartbeats(client: Client) -> None:
    await client.post("/workers", BASE)
    path = "/workers/w%201/heartbeat"
    body = {"activeJobs": 2, "processed": 10, "failed": 1, "currentJob": "j"}
    for sent in ({"json": body}, {"raw": b""}, {"raw": b"{"}):
        answer = await client.post(path, sent.get("json"), raw=sent.get("raw"))
        assert answer.json == {"ok": True, "data": {"ok": True}}
    found = await workers(client)
    (one,) = found["workers"]
    assert (one["activeJobs"], one["processedJobs"], one["failedJobs"], one["currentJob"]) == (2, 10, 1, "j")
    assert found["stats"]["totalProcessed"] == 10
    answer = await client.post(path, {"failed": "x"})
    assert (answer.status, answer.error) == (400, "failed must be a number")
    answer = await client.post(path, raw=b"[]")
    assert (answer.status, answer.error) == (400, "Request body must be a JSON object")


async def test_leaving(client: Client) -> None:
    await client.post("/workers", BASE)
    await client.post("/workers/w%201/heartbeat", {"processed": 5})
    assert (await client.delete("/workers/w%201")).json == {"ok": True, "data": {"removed": True}}
    found = await workers(client)
    assert (found["workers"], found["stats"]["totalProcessed"]) == ([], 5)
    for answer in (await client.delete("/workers/w%201"), await client.post("/workers/w%201/heartbeat")):
        assert (answer.status, answer.error) == (404, "Worker not found")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"queues": ["a b"]}, "Queue name contains invalid characters"),
        ({"queues": ["a"] * 1001}, "queues must have at most 1000 items"),
        ({"concurrency": "x"}, "concurrency must be a number"),
        ({"concurrency": 1.5}, "concurrency must be an integer"),
        ({"pid": -1}, "pid must be at least 0"),
        ({"workerId": "x" * 1025}, "workerId too long (max 1024 characters)"),
    ],
)
async def test_rules(client: Client, change: Any, error: str) -> None:
    answer = await client.post("/workers", BASE | change)
    assert (answer.status, answer.error) == (400, error)
    for raw in (b"{", b""):
        assert (await client.post("/workers", raw=raw)).error == "Invalid JSON body"


async def test_silence(client: Client) -> None:
    node = client.server.node
    await node.submit(RegisterWorker("a"))
    await node.submit(RegisterWorker("b"))
    now_ms = client.engine.clock()
    client.engine.clock = lambda: now_ms + 31_000
    await node.submit(HeartbeatWorker("b"))
    assert [one["status"] for one in (await workers(client))["workers"]] == ["stale", "active"]
    client.engine.clock = lambda: now_ms + 91_000
    await node.submit(UnregisterWorker("b"))
    assert await node.ask(ListWorkers(), lambda found: found.workers) == []


async def test_figures(client: Client) -> None:
    await client.post("/workers", BASE | {"concurrency": 4})
    await client.post("/workers/w%201/heartbeat", {"activeJobs": 2, "processed": 10, "failed": 1})
    await client.post("/crons", {"name": "c", "queue": "q", "data": 1, "repeatEvery": 60_000})
    await client.post("/webhooks", {"url": "https://example.com/", "events": ["started"]})
    found = await scrape(client)
    assert found["bunqueue_workers_registered"] == found["bunqueue_workers_active"] == 1
    assert (found["bunqueue_worker_active_jobs"], found["bunqueue_worker_concurrency_slots"]) == (2, 4)
    assert (found["bunqueue_workers_processed_total"], found["bunqueue_workers_failed_total"]) == (10, 1)
    assert found["bunqueue_cron_jobs_registered"] == 1
    assert found["bunqueue_webhooks_registered"] == found["bunqueue_webhooks_enabled"] == 1
    assert found["quorumq_webhook_deliveries_waiting"] == 0
    assert found['quorumq_commit_seconds_bucket{le="+Inf"}'] == 0
    stats = (await client.get("/stats")).json["stats"]
    assert (stats["workers"], stats["cronJobs"], stats["webhooks"], stats["queues"]) == (1, 1, 1, 0)


async def test_figures_follow_what_a_worker_takes_as_owner(client: Client) -> None:
    assert (await client.post("/workers", {"workerId": "w1", "name": "mailer", "queues": ["q"]})).status == 200

    async def figures() -> tuple[int, int, int]:
        (worker,) = (await client.get("/workers")).json["data"]["workers"]
        return worker["activeJobs"], worker["processedJobs"], worker["failedJobs"]

    tokens = {}
    for _ in range(3):
        await client.push()
        job, token = await client.take(owner="w1")
        tokens[job["id"]] = token
    assert await figures() == (3, 0, 0)
    first, second, _ = tokens
    await client.post(f"/jobs/{first}/ack", {"token": tokens[first]})
    await client.post(f"/jobs/{second}/fail", {"token": tokens[second]})
    assert await figures() == (1, 1, 1)
    sums = (await client.get("/workers")).json["data"]["stats"]
    assert (sums["activeJobs"], sums["totalProcessed"], sums["totalFailed"]) == (1, 1, 1)
    await client.post("/workers/w1/heartbeat", {"activeJobs": 5, "processed": 7})
    assert await figures() == (5, 7, 1)

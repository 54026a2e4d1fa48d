"""What dashboards ask: everything on one page, queues in numbers, limits that end."""

from __future__ import annotations

from typing import Any

import pytest

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


@pytest.mark.parametrize(
    ("path", "body", "name", "text"),
    [
        ("rate-limit", {"limit": 0}, "rateLimit", "queue 'q' stands still: a rate limit of 0 lets no job start"),
        (
            "concurrency",
            {"concurrency": 0},
            "concurrency",
            "queue 'q' stands still: a concurrency of 0 lets no job start",
        ),
    ],
)
async def test_a_limit_of_none_blocks_and_says_so(
    client: Client, caplog: pytest.LogCaptureFixture, path: str, body: Any, name: str, text: str
) -> None:
    """In the limits of the queue, on the dashboards and in the log; another limit says nothing."""
    await client.push()
    assert (await client.send("PUT", f"/queues/q/{path}", {**body, **dict.fromkeys(body, 5)})).status == 200
    assert (await client.get("/queues/q/limits")).json["limits"]["blockedBy"] == []
    assert (await client.send("PUT", f"/queues/q/{path}", body)).status == 200
    assert await client.pull() is None
    assert (await client.get("/queues/q/limits")).json["limits"]["blockedBy"] == [name]
    found = (await client.get("/dashboard")).json["blocked"]
    assert found == {"total": 1, "list": [{"queue": "q", "blockedBy": [name]}], "truncated": False}
    assert [one["blockedBy"] for one in (await client.get("/dashboard/queues")).json["queues"]] == [[name]]
    assert (await client.get("/dashboard/queues/q")).json["blockedBy"] == [name]
    assert [record.message for record in caplog.records if record.name == "quorumq.limits"] == [text]
    await client.delete(f"/queues/q/{path}")
    assert (await client.get("/dashboard")).json["blocked"]["total"] == 0
    assert await client.pull() is not None


async def test_a_group_that_stands_still_is_logged(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    assert (await client.send("PUT", "/queues/q/groups/g/concurrency", {"concurrency": 0})).status == 200
    texts = [record.message for record in caplog.records if record.name == "quorumq.limits"]
    assert texts == ["group 'g' of queue 'q' stands still: a concurrency of 0 lets no job start"]


async def test_unique_keys(client: Client) -> None:
    job = await client.push(uniqueKey="a/b")
    assert (await client.get("/queues/q/unique/a%2Fb")).json["jobId"] == job
    assert (await client.delete("/queues/q/unique/a%2Fb")).json["count"] == 1
    assert await client.push(uniqueKey="a/b") != job
    assert (await client.delete(f"/jobs/{job}/unique")).json["removed"] is False
    assert (await client.delete("/queues/q/dlq/none")).json["removed"] is False


async def test_ends_by_minute(client: Client) -> None:
    for _ in range(2):
        job = await client.push()
        await client.pull()
        await client.post(f"/jobs/{job}/ack")
    found = (await client.get("/queues/q/metrics/completed")).json
    assert (found["meta"]["count"], sum(found["data"]), found["count"]) == (2, 2, len(found["data"]))
    assert found["meta"]["prevTS"] > 0 and found["meta"]["prevCount"] == found["data"][0]
    assert (await client.get("/queues/q/metrics/completed?start=0&end=0")).json["data"] == found["data"][:1]
    assert (await client.get("/queues/q/metrics/completed?start=5")).json["data"] == []
    none = {"ok": True, "meta": {"count": 0, "prevTS": 0, "prevCount": 0}, "data": [], "count": 0}
    assert (await client.get("/queues/q/metrics/failed")).json == none
    assert (await client.get("/queues/q/metrics/waiting")).status == 400
    assert (await client.get("/queues/q/metrics/failed?end=x")).status == 400
    assert (await client.get("/queues/q/metrics/failed?end=-2")).status == 400
    async with client.session.ws_connect(client.base + "/ws") as socket:

        async def ask(**fields: object) -> object:
            await socket.send_json({"cmd": "Metrics", "reqId": "r", **fields})
            while (answer := await socket.receive_json()).get("reqId") != "r":
                pass
            return {name: value for name, value in answer.items() if name != "reqId"}

        assert await ask(queue="q", type="completed") == {"ok": True, "data": {k: found[k] for k in list(found)[1:]}}
        assert await ask(queue="q", type="completed", start=0, end=-1) == await ask(queue="q", type="completed")
        assert (
            (await ask(queue="q", type="x"))["ok"]
            is (await ask(queue="q"))["ok"]
            is (await ask(type="failed"))["ok"]
            is False
        )  # type: ignore[index]
        assert "totalPushed" in (await ask())["metrics"]  # type: ignore[index]


async def test_a_group_whose_limit_is_none_is_told_wherever_its_queue_is(client: Client) -> None:
    """It holds back its own jobs only, and says so; a pause is no limit, and shows as one."""
    await client.push(groupId="g")
    path = "/queues/q/groups/g"
    await client.post(f"{path}/pause")
    assert (await client.get("/queues/q/limits")).json["limits"]["blockedBy"] == []
    assert (await client.send("PUT", f"{path}/concurrency", {"concurrency": 0})).status == 200
    for told in (
        (await client.get("/queues/q/limits")).json["limits"],
        (await client.get("/dashboard/queues")).json["queues"][0],
        (await client.get("/dashboard/queues/q")).json,
        (await client.get("/dashboard")).json["blocked"]["list"][0],
    ):
        assert told["blockedBy"] == ["groups"]
    client.server.node.machine.restore(list(client.server.node.machine.image()))
    assert (await client.get("/queues/q/limits")).json["limits"]["blockedBy"] == ["groups"]
    assert (await client.send("PUT", f"{path}/concurrency", {"concurrency": 2})).status == 200
    assert (await client.get("/dashboard")).json["blocked"]["total"] == 0

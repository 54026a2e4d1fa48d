"""A group's own rate limit and hold, over HTTP and as commands, whoever takes its jobs."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.api.bullmq import Bull
from tests.api.conftest import Client, Serve

GROUP = "/queues/q/groups/g"


async def limited(client: Client, most: int, duration: int, jobs: int, queue: str = "q") -> list[str]:
    group = f"/queues/{queue}/groups/g"
    await client.send("PUT", f"{group}/concurrency", {"concurrency": 100})
    set_limit = await client.send("PUT", f"{group}/rate-limit", {"max": most, "duration": duration})
    assert set_limit.json == {"ok": True}
    return [await client.push(queue, groupId="g") for _ in range(jobs)]


async def test_a_rate_limit_of_a_group(client: Client) -> None:
    jobs = await limited(client, 2, 60_000, 3)
    other = await client.push(groupId="h")
    shown = (await client.get(GROUP)).json
    assert (shown["rateLimit"], shown["rateLimitTtl"]) == ({"max": 2, "duration": 60_000}, -2)
    taken = (await client.post("/queues/q/jobs/pull-batch", {"count": 9})).json["jobs"]
    assert [job["id"] for job in taken] == [*jobs[:2], other]
    assert await client.pull() is None
    shown = (await client.get(GROUP)).json
    assert (shown["waiting"], shown["active"]) == (1, 2) and 50_000 < shown["rateLimitTtl"] <= 60_000
    assert (await client.get(f"{GROUP}?maxJobs=2")).json["rateLimitTtl"] > 50_000
    assert (await client.get(f"{GROUP}?maxJobs=3")).json["rateLimitTtl"] == 0
    assert (await client.get("/queues/q/limits")).json["limits"]["limitedGroups"] == 1
    assert (await client.get("/dashboard/queues/q")).json["limitedGroups"] == 1
    listed = (await client.get("/queues/q/groups")).json
    assert listed["total"] == 1 and listed["groups"][0] == {"groupId": "g"} | {
        name: value for name, value in shown.items() if name != "ok"
    } | {"rateLimitTtl": listed["groups"][0]["rateLimitTtl"]}
    assert (await client.delete(f"{GROUP}/rate-limit")).json["changed"] is True
    assert (await client.delete(f"{GROUP}/rate-limit")).json["changed"] is False
    assert (await client.pull())["id"] == jobs[2]
    assert (await client.get(GROUP)).json["rateLimit"] is None


@pytest.mark.parametrize("way", ["limit", "hold"])
async def test_whoever_waits_gets_the_job_when_the_group_may_go_on(client: Client, way: str) -> None:
    if way == "limit":
        jobs = await limited(client, 1, 700, 2)
        assert (await client.pull())["id"] == jobs.pop(0)
    else:
        jobs = [await client.push(groupId="g")]
        assert (await client.post(f"{GROUP}/hold", {"duration": 700})).json == {"ok": True}
        assert 0 < (await client.get(GROUP)).json["rateLimitTtl"] <= 700
    assert await client.pull() is None
    begun = time.monotonic()
    job = (await client.get("/queues/q/jobs?timeout=15000")).json["job"]
    # Not when the wait ends, but when the group is free.
    assert job is not None and job["id"] == jobs[0] and time.monotonic() - begun < 14


async def test_bullmq_keeps_to_it_as_well(serve: Serve) -> None:
    bull = Bull(await serve(auth_tokens=("tok1",)))
    bull.client.session.headers["Authorization"] = "Bearer tok1"
    jobs = await limited(bull.client, 2, 60_000, 4, "que")
    first = await bull.next()
    assert first["id"] == jobs[0]
    # The next job comes with the end of another.
    second = (await bull.complete(first, fetchNext=True))["next"]
    assert second["id"] == jobs[1]
    assert (await bull.complete(second, fetchNext=True))["next"] is None
    assert await bull.next() is None


async def test_commands(client: Client) -> None:
    jobs = await limited(client, 1, 60_000, 3)
    async with client.session.ws_connect(client.base + "/ws") as socket:

        async def ask(cmd: str, **fields: Any) -> Any:
            await socket.send_json({"cmd": cmd, "queue": "q", "groupId": "g", "reqId": "r", **fields})
            while (answer := await socket.receive_json()).get("reqId") != "r":
                pass
            del answer["reqId"]
            return answer

        assert await ask("SetGroupRateLimit", max=1, duration=50_000) == {"ok": True}
        assert await ask("GetGroupRateLimit") == {"ok": True, "data": {"limit": {"max": 1, "duration": 50_000}}}
        assert await ask("GetGroupRateLimitTtl") == {"ok": True, "data": {"ttl": -2}}
        assert (await ask("PULL"))["job"]["id"] == jobs[0]
        assert (await ask("PULLB", count=5))["jobs"] == []
        assert (await ask("PULL", timeout=50))["job"] is None
        assert 40_000 < (await ask("GetGroupRateLimitTtl"))["data"]["ttl"] <= 50_000
        assert await ask("GetGroupRateLimitTtl", maxJobs=5) == {"ok": True, "data": {"ttl": 0}}
        assert await ask("RemoveGroupRateLimit") == {"ok": True, "data": {"removed": 1}}
        assert await ask("RemoveGroupRateLimit") == {"ok": True, "data": {"removed": 0}}
        assert await ask("RateLimitGroup", duration=60_000) == {"ok": True}
        assert (await ask("PULL"))["job"] is None
        assert 50_000 < (await ask("GetGroupRateLimitTtl"))["data"]["ttl"] <= 60_000
        for wrong in ({"max": 0, "duration": 1}, {"max": 1}, {"duration": 1}, {"max": 1.5, "duration": 1}):
            assert (await ask("SetGroupRateLimit", **wrong))["ok"] is False
        assert (await ask("RateLimitGroup", duration=-1))["ok"] is False


async def test_what_is_wrong_with_a_limit(client: Client) -> None:
    for wrong in (None, 0, -1, 1.5, "x", 10**12):
        assert (await client.send("PUT", f"{GROUP}/rate-limit", {"max": wrong, "duration": 1000})).status == 400
        assert (await client.send("PUT", f"{GROUP}/rate-limit", {"max": 1, "duration": wrong})).status == 400
        assert (await client.post(f"{GROUP}/hold", {"duration": wrong})).status == 400
    assert (await client.get(f"{GROUP}?maxJobs=0")).status == 400
    assert (await client.get("/queues/q/groups?limit=x")).status == 400
    assert (await client.get("/queues/q/groups")).json == {"ok": True, "groups": [], "total": 0}


async def test_a_pull_says_what_holds_for_groups(client: Client) -> None:
    """`group` of a worker: for groups without limits of their own, whoever takes their jobs."""
    for _ in range(4):
        await client.push(groupId="g")
    pull = {"count": 10, "group": {"concurrency": 3}}
    assert len((await client.post("/queues/q/jobs/pull-batch", pull)).json["jobs"]) == 3
    async with client.session.ws_connect(f"{client.base}/ws") as socket:
        for n in range(4):
            await client.push("r", n, groupId="g")
        taken = []
        for n in range(4):
            await socket.send_json(
                {"cmd": "PULL", "queue": "r", "owner": "w", "reqId": str(n),
                 "group": {"concurrency": 9, "limit": {"max": 2, "duration": 60_000}, "affinity": None}}
            )  # fmt: skip
            while (reply := await socket.receive_json(timeout=10)).get("reqId") != str(n):
                pass
            taken.append(reply["job"] is not None)
        assert taken == [True, True, False, False]
        assert await client.pull("r") is None, "it holds for everybody"
    # Who says nothing of groups changes nothing.
    assert (await client.post("/queues/q/jobs/pull-batch", {"count": 10, "group": {}})).json["jobs"] == []


async def test_pulls_that_disagree_change_it_now_and_then(client: Client) -> None:
    before = client.server.node.machine.index
    for n in range(20):
        await client.post("/queues/q/jobs/pull-batch", {"count": 1, "group": {"concurrency": n % 2 + 2}})
    assert client.server.node.machine.state.queues["q"].settings.groups.concurrency == 2
    assert client.server.node.machine.index - before <= 22


@pytest.mark.parametrize(
    ("group", "words"),
    [
        (5, "group must be an object"),
        ({"concurrency": 0}, "group.concurrency must be at least 1"),
        ({"concurrency": 1.5}, "group.concurrency must be an integer"),
        ({"limit": 5}, "group.limit must be an object"),
        ({"limit": {"max": 1}}, "group.limit.duration must be a number"),
        ({"limit": {"max": 0, "duration": 5}}, "group.limit.max must be at least 1"),
    ],
)
async def test_what_a_pull_cannot_say_of_groups(client: Client, group: Any, words: str) -> None:
    answer = await client.post("/queues/q/jobs/pull-batch", {"count": 1, "group": group})
    assert (answer.status, answer.error) == (400, words)


async def test_below_the_level_a_pull_says_nothing_of_groups(client: Client) -> None:
    client.server.node.machine.level = client.server.node.machine.state.level = 0
    assert (await client.post("/queues/q/jobs/pull-batch", {"count": 1, "group": {"concurrency": 3}})).status == 200
    assert "q" not in client.server.node.machine.state.queues

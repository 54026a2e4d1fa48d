"""Groups over HTTP: limits of their own, pauses, counts."""

from __future__ import annotations

from tests.api.conftest import Client


async def test_a_group(client: Client) -> None:
    for _ in range(3):
        await client.push(groupId="a/b")
    path = "/queues/q/groups/a%2Fb"
    none = {"ok": True, "waiting": 3, "active": 0, "concurrency": 1, "paused": False}
    none |= {"rateLimit": None, "rateLimitTtl": -2}
    assert (await client.get(path)).json == none
    assert (await client.send("PUT", f"{path}/concurrency", {"concurrency": 2})).json == {"ok": True}
    assert await client.pull() and await client.pull() and await client.pull() is None
    assert (await client.get(path)).json == none | {"waiting": 1, "active": 2, "concurrency": 2}
    assert (await client.delete(f"{path}/concurrency")).json["changed"] is True
    assert (await client.post(f"{path}/pause")).json["changed"] is True
    assert (await client.get(path)).json["paused"] is True
    assert (await client.post(f"{path}/resume")).json["changed"] is True
    assert (await client.get("/queues/q/groups/count")).json["count"] == 1


async def test_what_is_wrong_with_a_group(client: Client) -> None:
    for wrong in (None, -1, 1.5, "x", 10**12):
        assert (await client.send("PUT", "/queues/q/groups/g/concurrency", {"concurrency": wrong})).status == 400
    assert (await client.get(f"/queues/q/groups/{'x' * 2000}")).status == 400
    assert (await client.get("/queues/b%20d/groups/g")).status == 400

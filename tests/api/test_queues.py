"""Queues over HTTP: counts, lists, pausing, dependencies seen from outside."""

from __future__ import annotations

import pytest

from quorumq.api.dialects.bunqueue import queues
from tests.api.conftest import Client, Serve

NOTHING = {
    "waiting": 0,
    "prioritized": 0,
    "delayed": 0,
    "active": 0,
    "completed": 0,
    "failed": 0,
    "waiting-children": 0,
    "paused": 0,
}


async def one_of_each(client: Client) -> dict[str, str]:
    """Bring one job of a queue into each state, priorities as given; return their ids by state."""
    completed = await client.push(priority=9)
    await client.pull()
    await client.post(f"/jobs/{completed}/ack")
    failed = await client.push(priority=8, maxAttempts=1)
    await client.pull()
    await client.post(f"/jobs/{failed}/fail")
    active = await client.push(priority=7)
    await client.pull()
    waiting = await client.push()
    return {
        "completed": completed,
        "failed": failed,
        "active": active,
        "waiting": waiting,
        "prioritized": await client.push(priority=5),
        "delayed": await client.push(delay=60_000),
        "waiting-children": await client.push(dependsOn=[waiting]),
    }


async def test_counts(client: Client) -> None:
    assert await client.counts("never") == NOTHING
    await one_of_each(client)
    expected = {"waiting": 2, "delayed": 1, "active": 1, "completed": 1, "failed": 1, "waiting-children": 1}
    assert await client.counts() == NOTHING | expected
    # What is neither completed nor dead, as the document's example adds up.
    assert (await client.get("/queues/q/count")).json["count"] == 5
    by_priority = (await client.get("/queues/q/priority-counts")).json
    assert by_priority == {"ok": True, "queue": "q", "counts": {"0": 2, "5": 1}}
    assert (await client.get("/queues/never/priority-counts")).json["counts"] == {}


async def test_lists_by_state(client: Client) -> None:
    ids = await one_of_each(client)
    for state in ("completed", "failed", "active", "delayed", "waiting-children", "prioritized"):
        jobs = (await client.get(f"/queues/q/jobs/list?state={state}")).json["jobs"]
        assert [job["id"] for job in jobs] == [ids[state]], state
        assert jobs[0]["state"] == ("waiting" if state == "prioritized" else state)
    waiting = (await client.get("/queues/q/jobs/list?state=waiting")).json["jobs"]
    assert [job["id"] for job in waiting] == [ids["prioritized"], ids["waiting"]]
    assert (await client.get("/queues/q/jobs/list?state=zzz")).json["jobs"] == []
    everything = (await client.get("/queues/q/jobs/list")).json["jobs"]
    assert [job["priority"] for job in everything] == [9, 8, 7, 5, 0, 0, 0]


async def test_pages(client: Client) -> None:
    await client.post("/queues/q/jobs/bulk", {"jobs": [{"data": n} for n in range(150)]})

    async def page(query: str) -> list[int]:
        return [job["data"] for job in (await client.get(f"/queues/q/jobs/list{query}")).json["jobs"]]

    assert await page("") == list(range(150))
    assert await page("?state=waiting&limit=2&offset=1") == [1, 2]
    assert await page("?limit=2&offset=149") == [149]
    assert await page("?limit=0") == []
    for query in ("limit=abc", "offset=-1"):
        assert (await client.get(f"/queues/q/jobs/list?{query}")).status == 400


async def test_an_answer_has_no_more_jobs_than_can_be_written_at_once(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "LISTED_MAX", 4)
    await client.post("/queues/q/jobs/bulk", {"jobs": [{"data": n} for n in range(6)]})
    for query, found in (
        ("", [0, 1, 2, 3]),
        ("?limit=9", [0, 1, 2, 3]),
        ("?limit=3", [0, 1, 2]),
        ("?offset=4", [4, 5]),
    ):
        jobs = (await client.get(f"/queues/q/jobs/list{query}")).json["jobs"]
        assert [job["data"] for job in jobs] == found
    page = (await client.get("/dashboard/queues/q?includeJobs=true")).json
    assert [job["data"] for job in page["jobs"]] == [0, 1, 2, 3]


async def test_queue_names_in_order_of_creation(client: Client) -> None:
    for name in ("b", "a", "c"):
        await client.push(name)
    assert (await client.get("/queues")).json == {"ok": True, "queues": ["b", "a", "c"]}


async def test_pause(client: Client) -> None:
    path = "/queues/q"
    assert (await client.get(f"{path}/paused")).json == {"ok": True, "paused": False}
    for _ in range(2):
        assert (await client.post(f"{path}/pause")).json == {"ok": True}
    assert (await client.get(f"{path}/paused")).json == {"ok": True, "paused": True}
    for _ in range(2):
        assert (await client.post(f"{path}/resume")).json == {"ok": True}
    assert (await client.get(f"{path}/paused")).json["paused"] is False


BAD_NAMES = {
    "b%20d": "Queue name contains invalid characters",
    "%E2%82%AC": "Queue name contains invalid characters",
    "x" * 257: "Queue name too long (max 256 characters)",
}


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_every_route_checks_the_name_of_its_queue(client: Client, name: str) -> None:
    seen = 0
    for mount in client.server.router.mounts():
        route = mount.route
        # Other dialects have other rules for names.
        if "{queue}" in route.path and mount.dialect.name == "bunqueue":
            raw = b'{"data":1,"count":1,"limit":1}' if route.body != "none" else None
            answer = await client.send(route.method, route.path.replace("{queue}", name), raw=raw)
            assert (answer.status, answer.error) == (400, BAD_NAMES[name]), route.path
            seen += 1
    assert seen >= 26
    assert (await client.get("/queues")).json["queues"] == []


async def test_a_paused_queue_gives_nothing_out(client: Client) -> None:
    held = await client.push()
    await client.pull()
    await client.post("/queues/q/pause")
    waiting = await client.push()
    assert await client.pull() is None
    assert (await client.post("/queues/q/jobs/pull-batch", {"count": 2})).json["jobs"] == []
    assert await client.counts() == NOTHING | {"waiting": 1, "paused": 1, "active": 1}
    assert await client.state(waiting) == "waiting"
    assert (await client.post(f"/jobs/{held}/ack")).status == 200
    await client.post("/queues/q/resume")
    assert (await client.pull())["id"] == waiting


async def test_dependencies_and_their_values(client: Client) -> None:
    first, second = await client.push(data="a"), await client.push(data="b")
    parent = await client.push(dependsOn=[first, second])
    shown = (await client.get(f"/jobs/{parent}")).json["job"]
    assert (shown["state"], shown["dependsOn"]) == ("waiting-children", [first, second])
    assert (await client.get(f"/jobs/{parent}/children")).json == {"ok": True, "values": {}, "data": {"values": {}}}
    for job_id, body in ((first, {"result": {"x": 1}}), (second, None)):
        assert (await client.pull())["id"] == job_id
        await client.post(f"/jobs/{job_id}/ack", body)
    values = {first: {"x": 1}, second: None}
    answer = (await client.get(f"/jobs/{parent}/children")).json
    assert answer == {"ok": True, "values": values, "data": {"values": values}}
    assert (await client.pull())["id"] == parent
    assert (await client.get("/jobs/nope/children")).status == 404


async def test_lists_of_queues_have_those_that_have_had_a_job(client: Client) -> None:
    await client.push("used")
    await client.post("/queues/drained/jobs", {"data": 1})
    await client.post("/queues/drained/drain")
    for setting in (
        client.post("/queues/paused/pause"),
        client.send("PUT", "/queues/limited/rate-limit", {"limit": 1}),
        client.send("PUT", "/queues/narrow/concurrency", {"limit": 1}),
        client.send("PUT", "/queues/strict/stall-config", {"config": {"maxStalls": 1}}),
        client.send("PUT", "/queues/dead/dlq-config", {"config": {"maxEntries": 5}}),
        client.send("PUT", "/queues/grouped/groups/g/concurrency", {"concurrency": 2}),
        client.send("PUT", "/admin/queues/kept/retention", {"completed": 5}),
        client.post("/queues/unlucky/jobs", {"data": 1, "dependsOn": ["nobody"]}),
    ):
        answer = await setting
        assert answer.status == 200 or b"nobody" in answer.body, answer.body
    listed = ["used", "drained"]
    assert (await client.get("/queues")).json["queues"] == listed
    assert [one["name"] for one in (await client.get("/queues/summary")).json] == listed
    shown = (await client.get("/dashboard/queues")).json
    assert ([one["name"] for one in shown["queues"]], shown["total"]) == (listed, 2)
    assert [one["name"] for one in (await client.get("/dashboard/queues?limit=1&offset=1")).json["queues"]] == [
        "drained"
    ]
    assert (await client.get("/stats")).json["stats"]["queues"] == 2
    figures = (await client.get("/prometheus")).body.decode()
    assert "\nquorumq_queues 2\n" in figures and 'queue="paused"' not in figures
    assert list((await client.server.streams.stats()).queues) == listed
    # It is no less paused for that, and listed from its first job on.
    assert (await client.get("/queues/paused/paused")).json["paused"] is True
    await client.push("paused")
    assert (await client.get("/queues")).json["queues"] == ["used", "drained", "paused"]


async def test_the_other_dialects_list_the_same_queues(serve: Serve) -> None:
    client = await serve(auth_tokens=("t",))
    headers = {"Authorization": "Bearer t"}
    await client.send("POST", "/queues/paused/pause", headers=headers)
    await client.send("POST", "/queues/used/jobs", {"data": 1}, headers=headers)
    assert (await client.get("/bullmq/queues", headers=headers)).json["queues"] == ["used"]
    assert [one["name"] for one in (await client.get("/v1/jobs/queues", headers=headers)).json["queues"]] == ["used"]

"""bunqueue's own console in front of a node: everything it sends is answered as it needs, with a token too, and its activity is alive."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from quorumq.api.metrics import DurationHistogram
from tests.api.conftest import Client, Serve
from tests.support.console import SHARES, Console, holds

# A browser asks before it sends these to another origin.
PREFLIGHT = {
    "Origin": "http://console.example",
    "Access-Control-Request-Method": "PUT",
    "Access-Control-Request-Headers": "authorization,content-type",
}


def console(client: Client, headers: dict[str, str]) -> Console:
    async def ask(method: str, path: str, body: Any) -> tuple[int, Any]:
        answer = await client.send(method, path, body, headers={"Content-Type": "application/json", **headers})
        return answer.status, answer.json

    return Console(ask, "mails")


@pytest.mark.parametrize("token", ["", "secret"])
async def test_everything_that_it_does(serve: Serve, token: str) -> None:
    client = await serve(auth_tokens=(token,) if token else ())
    mine = console(client, {"Authorization": f"Bearer {token}"} if token else {})
    await mine.everything()
    assert mine.asked >= 80
    if token:
        # Without the token it asks for one, and that is what 401 is for.
        assert (await client.get("/dashboard")).status == 401


async def test_a_browser_on_another_origin_may_ask_it(serve: Serve) -> None:
    client = await serve(auth_tokens=("secret",))
    answer = await client.send("OPTIONS", "/dashboard", headers=PREFLIGHT)
    assert answer.status == 204
    allowed = answer.headers["Access-Control-Allow-Headers"].lower()
    assert "authorization" in allowed and "content-type" in allowed
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert (await client.get("/dashboard")).headers["Access-Control-Allow-Origin"] == "*"


async def frames(stream: aiohttp.ClientResponse) -> Any:
    """Read a stream as the console does: frames by blank lines, `message` where none is named, comments passed over."""
    while block := (await stream.content.readuntil(b"\n\n")).decode():
        fields = [line.partition(":") for line in block.splitlines() if line and not line.startswith(":")]
        found = {name: value.removeprefix(" ") for name, _, value in fields}
        if "data" in found:
            yield found.get("event", "message"), json.loads(found["data"])


@pytest.mark.parametrize("path", ["/events", "/events/queues/mails"])
async def test_its_activity_is_alive_when_events_have_names(serve: Serve, path: str) -> None:
    """It counts `job:pushed`, `job:active` and so on, and takes the rest for signs of life."""
    client = await serve(events_form="named", auth_tokens=("secret",))
    headers = {"Authorization": "Bearer secret", "Accept": "text/event-stream"}
    async with client.session.get(client.base + path, headers=headers) as stream:
        seen = frames(stream)
        assert (await anext(seen))[0] == "message"
        job = (await client.post("/queues/mails/jobs", {"data": 1}, headers=headers)).json["id"]
        await client.post("/queues/mails/jobs/pull-batch", {"count": 1}, headers=headers)
        await client.post(f"/jobs/{job}/ack", {}, headers=headers)
        heard: dict[str, Any] = {}
        while "job:completed" not in heard:
            name, data = await anext(seen)
            heard[name] = data
        for name in ("job:pushed", "job:active", "job:completed"):
            holds({"queue": str, "jobId": str, "timestamp": int}, heard[name], name)


async def test_the_form_of_the_document_stays_the_default(client: Client) -> None:
    async with client.session.get(f"{client.base}/events") as stream:
        seen = frames(stream)
        await anext(seen)
        await client.push()
        name, data = await anext(seen)
        assert (name, data["eventType"]) == ("message", "pushed")


async def test_who_says_which_events_gets_those_whatever_the_setting(serve: Serve) -> None:
    client = await serve(events_form="named")
    async with client.session.get(f"{client.base}/events?events=job:completed") as stream:
        seen = frames(stream)
        await anext(seen)
        job = await client.push()
        await client.pull()
        await client.post(f"/jobs/{job}/ack", {})
        assert (await anext(seen))[0] == "job:completed"


# -- Latency -----------------------------------------------------------------------------------------------------------


async def test_latency_is_that_of_pushes_pulls_and_acknowledgements(serve: Serve) -> None:
    client = await serve(auth_tokens=("t",))
    headers = {"Authorization": "Bearer t"}
    kinds = client.server.latency.kinds

    def counted() -> dict[str, int]:
        return {kind: sum(found.counts) for kind, found in kinds.items()}

    empty = (await client.get("/dashboard", headers=headers)).json["latency"]
    assert empty["averages"] == {"pushMs": 0, "pullMs": 0, "ackMs": 0}
    job = (await client.post("/queues/que/jobs", {"data": 1}, headers=headers)).json["id"]
    await client.get("/queues/que/jobs", headers=headers)
    await client.post(f"/jobs/{job}/ack", {}, headers=headers)
    assert counted() == {"push": 1, "pull": 1, "ack": 1}
    # One that waits for a job says how long there was none.
    await client.get("/queues/que/jobs?timeout=10", headers=headers)
    assert counted()["pull"] == 1
    await client.post("/bullmq/queues/que/jobs", [{"name": "n", "data": 1}], headers=headers)
    taken = (await client.post("/bullmq/queues/que/jobs/next", {"token": "t"}, headers=headers)).json["id"]
    done = {"token": "t", "returnValue": 1, "fetchNext": True}
    await client.post(f"/bullmq/queues/que/jobs/{taken}/move-to-completed", done, headers=headers)
    async with client.session.ws_connect(f"{client.base}/ws", headers=headers) as ws:
        for command in ({"cmd": "PUSH", "data": 1}, {"cmd": "PULL"}):
            await ws.send_json({**command, "queue": "que", "reqId": 1})
            while "reqId" not in await ws.receive_json(timeout=10):
                pass
    assert counted() == {"push": 3, "pull": 3, "ack": 2}
    shown = (await client.get("/dashboard", headers=headers)).json["latency"]
    for kind in kinds:
        assert shown["averages"][f"{kind}Ms"] > 0
        percentiles = shown["percentiles"][kind]
        holds(SHARES, percentiles)
        assert 0 < percentiles["p50"] <= percentiles["p95"] <= percentiles["p99"]


def test_percentiles_are_ends_of_buckets() -> None:
    found = DurationHistogram()
    assert (found.average_ms(), found.percentile_ms(0.5)) == (0, 0)
    for micros in [100] * 90 + [3_000] * 9 + [1_000_000]:
        found.observe(micros / 1_000_000)
    assert found.percentile_ms(0.5) == 0.128
    assert found.percentile_ms(0.95) == found.percentile_ms(0.99) == 4.096
    assert found.percentile_ms(1) == 1048.576
    assert round(found.average_ms(), 2) == 10.36


# -- Lists by several states -------------------------------------------------------------------------------------------


async def test_lists_of_several_states(client: Client) -> None:
    done = await client.push()
    await client.pull()
    await client.post(f"/jobs/{done}/ack", {})
    high = await client.push(priority=5)
    low = await client.push()
    later = await client.push(delay=60_000, priority=9)
    path = "/queues/q/jobs/list"

    async def listed(query: str) -> list[str]:
        return [job["id"] for job in (await client.get(f"{path}?{query}")).json["jobs"]]

    for name in ("state", "states"):
        assert await listed(f"{name}=waiting,delayed") == [later, high, low]
        assert await listed(f"{name}=waiting,completed&limit=2&offset=1") == [done, low]
        assert await listed(f"{name}=prioritized,completed") == [high, done]
        assert await listed(f"{name}=waiting") == await listed(f"{name}=waiting,prioritized") == [high, low]
        assert await listed(f"{name}=zzz,delayed") == [later]
        assert await listed(f"{name}=zzz,") == []
    assert await listed("states=paused,active") == []
    await client.post("/queues/q/pause")
    assert await listed("states=paused,delayed") == [later, high, low]
    async with client.session.ws_connect(f"{client.base}/ws") as ws:
        await ws.send_json({"cmd": "GetJobs", "queue": "q", "state": ["completed", "delayed"]})
        assert [job["id"] for job in (await ws.receive_json(timeout=10))["jobs"]] == [later, done]

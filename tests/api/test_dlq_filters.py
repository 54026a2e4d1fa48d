"""Dead letters by why and when they came, over HTTP and as commands."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest

from tests.api.conftest import Client


async def dead(client: Client) -> tuple[str, str]:
    """A job that failed for good at once, and one that was discarded."""
    failed, discarded = await client.push(maxAttempts=1), await client.push()
    await client.pull()
    await client.post(f"/jobs/{failed}/fail", {"error": "e", "unrecoverable": True})
    await client.post(f"/jobs/{discarded}/discard")
    return failed, discarded


async def listed(client: Client, chosen: Any) -> Any:
    return await client.get(f"/queues/q/dlq?filter={quote(json.dumps(chosen))}")


async def test_over_http(client: Client) -> None:
    failed, discarded = await dead(client)
    entered = (await client.get("/queues/q/dlq")).json["entries"][0]["enteredAt"]
    for chosen, wanted in (
        ({}, [failed, discarded]),
        ({"reason": "unknown"}, [discarded]),
        ({"limit": 1}, [failed]),
        ({"limit": 0, "offset": 1, "queue": "q"}, [discarded]),
        ({"olderThan": entered - 1}, []),
        ({"olderThan": entered, "limit": 1}, [failed]),
        ({"newerThan": entered + 60_000}, []),
        ({"retriable": True}, []),
        ({"expired": True, "retriable": False}, []),
    ):
        answer = (await listed(client, chosen)).json
        assert [job["id"] for job in answer["jobs"]] == wanted, chosen
        assert [entry["job"]["id"] for entry in answer["entries"]] == wanted
    path = "/queues/q/dlq/retry"
    assert (await client.post(path, {"filter": {"reason": "stalled"}})).json["count"] == 0
    assert (await client.post(path, {"filter": {"olderThan": entered + 60_000}, "count": 1})).json["count"] == 1
    assert await client.state(failed) == "waiting"
    assert (await client.post(path, {"filter": {"reason": "unknown", "limit": 5}})).json["count"] == 1
    assert await client.state(discarded) == "waiting"


@pytest.mark.parametrize(
    "wrong",
    [
        {"raeson": "stalled"},
        {"reason": 5},
        {"olderThan": "yesterday"},
        {"olderThan": -1},
        {"newerThan": 1.5},
        {"retriable": "yes"},
        {"limit": -1},
        {"offset": "x"},
        {"queue": "other"},
        "stalled",
        ["stalled"],
        5,
    ],
    ids=json.dumps,
)
async def test_a_filter_that_is_wrong_retries_nothing(client: Client, wrong: Any) -> None:
    failed, _ = await dead(client)
    assert (await listed(client, wrong)).status == 400
    assert (await client.post("/queues/q/dlq/retry", {"filter": wrong})).status == 400
    assert (await client.post("/queues/q/dlq/retry", {"jobId": failed, "filter": wrong})).status == 400
    assert await client.state(failed) == "failed"


async def test_as_commands(client: Client) -> None:
    _, discarded = await dead(client)
    async with client.session.ws_connect(client.base + "/ws") as socket:

        async def ask(cmd: str, **fields: Any) -> Any:
            await socket.send_json({"cmd": cmd, "queue": "q", "reqId": "r", **fields})
            while (answer := await socket.receive_json()).get("reqId") != "r":
                pass
            return answer

        answer = await ask("Dlq", filter={"reason": "unknown"})
        assert [entry["job"]["id"] for entry in answer["entries"]] == [discarded]
        assert (await ask("Dlq", filter={"reason": 5}))["ok"] is False
        assert (await ask("RetryDlq", filter={"reason": "unknown"}))["count"] == 1
        assert (await ask("RetryDlq", filter={"reason": "unknown"}))["count"] == 0

"""What a job's holder and its dead letter can rely on, in the words of each dialect: over HTTP and over a WebSocket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.api.bullmq import Bull
from tests.api.conftest import Client

Send = Callable[..., Awaitable[Any]]
LOST = "Invalid or expired lock token for job {}"


async def lost_lock(client: Client) -> tuple[str, str]:
    """Return a job that somebody works on without a lock, and the token of the delivery before."""
    job_id = await client.push(backoff=0)
    _, token = await client.take()
    assert (await client.post(f"/jobs/{job_id}/fail", {"token": token})).status == 200
    assert (await client.pull())["id"] == job_id
    return job_id, token


ENDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ack": ("POST", "/jobs/{}/ack", {}),
    "fail": ("POST", "/jobs/{}/fail", {"error": "x"}),
    "progress": ("POST", "/jobs/{}/progress", {"progress": 5}),
    "heartbeat": ("POST", "/jobs/{}/heartbeat", {}),
    "move to delayed": ("POST", "/jobs/{}/move-to-delayed", {"delay": 5}),
    "change delay": ("PUT", "/jobs/{}/delay", {"delay": 5}),
}


@pytest.mark.parametrize("end", ENDS)
async def test_a_token_of_an_earlier_delivery_is_refused_by_every_route(client: Client, end: str) -> None:
    job_id, token = await lost_lock(client)
    method, path, body = ENDS[end]
    answer = await client.send(method, path.format(job_id), {**body, "token": token})
    assert answer.status == 400
    if end != "heartbeat":
        assert answer.error == LOST.format(job_id)
    batch = await client.post("/jobs/ack-batch", {"ids": [job_id], "tokens": [token]})
    assert batch.status in (200, 400) and await client.state(job_id) == "active"
    assert (await client.post(f"/jobs/{job_id}/ack", {})).status == 200


COMMANDS: dict[str, dict[str, Any]] = {
    "ACK": {},
    "FAIL": {},
    "Progress": {"progress": 5},
    "MoveToDelayed": {"delay": 5},
    "ChangeDelay": {"delay": 5},
}


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_token_of_an_earlier_delivery_is_refused_by_every_command(client: Client, command: str) -> None:
    job_id, token = await lost_lock(client)
    async with client.session.ws_connect(client.base + "/ws") as ws:
        await ws.send_json({"cmd": command, "id": job_id, "token": token, "reqId": 1, **COMMANDS[command]})
        while "reqId" not in (reply := await ws.receive_json(timeout=10)):
            pass
        assert (reply["ok"], reply["error"]) == (False, LOST.format(job_id))
    assert await client.state(job_id) == "active"


async def test_bullmqs_routes_take_no_token_for_a_run_without_a_lock(serve: Any) -> None:
    bull = Bull(await serve(auth_tokens=("tok1",)))
    headers = {"Authorization": "Bearer tok1"}
    (job,) = await bull.add_many("job")
    async with bull.client.session.get(bull.client.base + "/queues/que/jobs", headers=headers) as taken:
        assert (await taken.json())["job"]["id"] == "bull:que:1"
    lost = b"Lock mismatch for job 1. Cmd %b from active"
    for what, command, body in (
        ("move-to-completed", b"moveToFinished", {}),
        ("move-to-completed", b"moveToFinished", {"fetchNext": True}),
        ("move-to-failed", b"moveToFinished", {"error": "x"}),
        ("move-to-wait", b"moveToWait", {}),
        ("move-to-delayed", b"moveToDelayed", {"timestamp": 1}),
    ):
        answer = await bull.move(job, what, token="any", **body)
        assert (answer.status, answer.body) == (409, lost % command), what
    assert (await bull.move(job, "extend-lock", token="any")).status == 409
    assert await bull.state(job) == "active"


async def test_a_locked_run_is_delayed_by_its_token_only(client: Client) -> None:
    for method, path, statuses in (
        ("PUT", "/jobs/{}/delay", {None: 400, "wrong": 400, "right": 200}),
        ("POST", "/jobs/{}/move-to-delayed", {"wrong": 400, "right": 200}),
        ("POST", "/jobs/{}/move-to-delayed", {None: 200}),
    ):
        job_id = await client.push()
        _, token = await client.take()
        for shown, status in statuses.items():
            body = {"delay": 60_000} | ({"token": token if shown == "right" else shown} if shown else {})
            answer = await client.send(method, path.format(job_id), body)
            assert answer.status == status, (path, shown)
            assert await client.state(job_id) == ("delayed" if status == 200 else "active")


async def test_a_dead_letter_is_found_by_either_id_after_its_id_was_taken(client: Client) -> None:
    for _ in range(2):
        await client.push(data={"n": 1}, jobId="mine", maxAttempts=1)
        await client.pull()
        assert (await client.post("/jobs/mine/fail", {"error": "why"})).status == 200
        assert await client.push("other", jobId="mine") == "mine"
        (dead,) = (await client.get("/queues/q/dlq")).json["jobs"]
        assert dead["id"] != "mine" and (dead["customId"], dead["data"]) == ("mine", {"n": 1})
        found = (await client.get(f"/jobs/{dead['id']}")).json["job"]
        assert (found["customId"], found["queue"], found["attempts"]) == ("mine", "q", 1)
        (entry,) = (await client.get("/queues/q/dlq")).json["entries"]
        assert (entry["error"], entry["reason"]) == ("why", "max_attempts_exceeded")
        assert (await client.get("/jobs/custom/mine")).json["job"]["queue"] == "other"
        assert (await client.post("/queues/q/dlq/retry", {"jobId": "mine"})).json["count"] == 1
        # The old id is taken: it keeps its own.
        assert (await client.pull())["id"] == dead["id"]
        assert (await client.post(f"/jobs/{dead['id']}/ack", {})).status == 200
        await client.delete("/jobs/mine")
        await client.post("/queues/q/obliterate")
    await client.push(jobId="mine", maxAttempts=1)
    await client.pull()
    await client.post("/jobs/mine/fail", {})
    await client.push("other", jobId="mine")
    assert (await client.delete("/queues/q/dlq/mine")).status == 200
    assert (await client.get("/queues/q/dlq")).json["jobs"] == []


async def test_below_level_1_every_route_still_answers(serve: Any) -> None:
    """Nothing newer than the level is asked for: with an older member in the cluster the routes do what they did."""
    bull = Bull(await serve(auth_tokens=("tok1",)))
    bull.server.node.machine.level = 0
    headers = {"Authorization": "Bearer tok1"}
    client = bull.client
    for what, body in (
        ("move-to-completed", {}),
        ("move-to-completed", {"fetchNext": True}),
        ("move-to-failed", {"error": "x"}),
        ("move-to-wait", {}),
        ("move-to-delayed", {"timestamp": 1}),
    ):
        await bull.add()
        taken = await bull.next()
        assert (await bull.move(taken, what, **body)).status == 200, what
    assert (await bull.post("/queues/que/drain", {"delayed": True})).status == 200
    assert (await bull.post("/queues/que/clean", {"type": "wait"})).status == 200
    assert (await bull.delete("/queues/que/jobs/nope/logs")).status == 200
    answer = await client.send("POST", "/queues/q/jobs", {"data": 1, "jobId": "mine"}, headers=headers)
    assert answer.status == 200
    await client.send("POST", "/queues/q/jobs/pull-batch", {"count": 1, "owner": "w"}, headers=headers)
    late = {"delay": 5, "token": "whatever"}
    assert (await client.send("PUT", "/jobs/mine/delay", late, headers=headers)).status == 200
    assert (await client.send("DELETE", "/jobs/nope/logs", headers=headers)).status == 200
    for method, path in (("POST", "/queues/q/drain"), ("POST", "/queues/q/clean"), ("POST", "/queues/q/obliterate")):
        assert (await client.send(method, path, headers=headers)).status == 200

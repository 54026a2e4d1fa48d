"""Changing jobs over HTTP: data, priority, delay, promotion, discarding, logs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import Client


async def in_state(client: Client, state: str) -> str:
    """Bring a job of queue q into a state; return its id."""
    if state == "delayed":
        return await client.push(delay=60_000)
    if state == "waiting-children":
        return await client.push(dependsOn=[await client.push("other")])
    job = await client.push(maxAttempts=1)
    if state == "waiting":
        return job
    await client.pull()
    if state == "completed":
        await client.post(f"/jobs/{job}/ack")
    if state == "failed":
        await client.post(f"/jobs/{job}/fail")
    assert await client.state(job) == state
    return job


async def job_of(client: Client, job: str) -> Any:
    return (await client.get(f"/jobs/{job}")).json["job"]


# Per request: the states in which it works, the state that follows (None: the same), and what it says otherwise.
CHANGES = [
    ("PUT", "data", {"data": {"new": 1}}, "waiting delayed active waiting-children", None, "cannot be updated"),
    ("PUT", "priority", {"priority": 7}, "waiting delayed waiting-children", None, "not in queue"),
    ("POST", "promote", None, "delayed", "waiting", "not delayed"),
    ("POST", "move-to-wait", None, "delayed active failed", "waiting", "not delayed"),
    ("POST", "move-to-delayed", {"delay": 60_000}, "waiting delayed active", "delayed", "not active"),
    ("PUT", "delay", {"delay": 60_000}, "waiting delayed active", "delayed", "cannot change delay"),
    ("POST", "discard", None, "waiting delayed active waiting-children", "failed", ""),
]
STATES = ["waiting", "delayed", "active", "waiting-children", "completed", "failed"]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("method", "what", "body", "works", "then", "words"), CHANGES, ids=[c[1] for c in CHANGES])
async def test_in_each_state(
    client: Client, method: str, what: str, body: Any, works: str, then: str | None, words: str, state: str
) -> None:
    job = await in_state(client, state)
    answer = await client.send(method, f"/jobs/{job}/{what}", body)
    if state in works.split():
        assert (answer.status, answer.json) == (200, {"ok": True})
        assert await client.state(job) == (then or state)
    else:
        assert answer.status == 400
        assert answer.error.startswith("Job not found") and answer.error.endswith(words or "found")
        assert await client.state(job) == state


@pytest.mark.parametrize(("method", "what", "body"), [c[:3] for c in CHANGES], ids=[c[1] for c in CHANGES])
async def test_of_an_unknown_job(client: Client, method: str, what: str, body: Any) -> None:
    answer = await client.send(method, f"/jobs/nope/{what}", body)
    assert answer.status == (400 if what in ("promote", "move-to-wait") else 404)
    assert answer.error.startswith("Job not found")


@pytest.mark.parametrize(
    ("method", "what", "body", "error"),
    [
        ("PUT", "data", {}, "data is required"),
        ("PUT", "data", [], "Request body must be a JSON object"),
        ("PUT", "priority", {}, "priority is required"),
        ("PUT", "priority", {"priority": None}, "priority is required"),
        ("PUT", "priority", {"priority": "5"}, "priority must be a number"),
        ("PUT", "priority", {"priority": 1.5}, "priority must be an integer"),
        ("PUT", "priority", {"priority": 1_000_001}, "priority must be at most 1000000"),
        ("PUT", "delay", {}, "delay is required"),
        ("PUT", "delay", {"delay": -1}, "delay must be at least 0"),
        ("PUT", "delay", {"delay": True}, "delay must be a number"),
        ("POST", "move-to-delayed", {"delay": "x"}, "delay must be a number"),
        ("POST", "move-to-delayed", {"delay": 31_536_000_001}, "delay must be at most 31536000000"),
        ("POST", "logs", {}, "message is required"),
    ],
)
async def test_rules(client: Client, method: str, what: str, body: Any, error: str) -> None:
    job = await client.push()
    answer = await client.send(method, f"/jobs/{job}/{what}", body)
    assert (answer.status, answer.error) == (400, error)
    broken = await client.send(method, f"/jobs/{job}/{what}", raw=b"{")
    assert (broken.status, broken.error) == (400, "Invalid JSON body")


async def test_new_data_is_kept_as_it_was_sent(client: Client) -> None:
    job = await client.push(data={"old": 1})
    await client.send("PUT", f"/jobs/{job}/data", raw=b'{"data": {"b":1.0,  "a":"\\u00e9"}}')
    answer = await client.get(f"/jobs/{job}")
    assert b'"data":{"b":1.0,  "a":"\\u00e9"}' in answer.body
    empty = await client.send("PUT", f"/jobs/{job}/data")
    assert (empty.status, empty.error) == (400, "Invalid JSON body")


async def test_a_new_priority_moves_a_job_at_once(client: Client) -> None:
    first, second, third = [await client.push() for _ in range(3)]
    await client.send("PUT", f"/jobs/{third}/priority", {"priority": 100})
    await client.send("PUT", f"/jobs/{first}/priority", {"priority": -1})
    assert [(await client.pull())["id"] for _ in range(3)] == [third, second, first]


async def test_no_delay_lets_a_job_be_taken_at_once(client: Client) -> None:
    job = await client.push(delay=60_000)
    await client.send("PUT", f"/jobs/{job}/delay", {"delay": 0})
    assert await client.state(job) == "waiting"
    assert (await client.pull())["id"] == job


async def test_a_job_moved_to_delayed_cannot_be_acked(client: Client) -> None:
    job, token = await take_new(client)
    wrong = await client.post(f"/jobs/{job}/move-to-delayed", {"delay": 1, "token": "other"})
    assert (wrong.status, wrong.error) == (400, f"Invalid or expired lock token for job {job}")
    assert (await client.post(f"/jobs/{job}/move-to-delayed", {"delay": 60_000, "token": token})).status == 200
    assert (await client.post(f"/jobs/{job}/ack", {"token": token})).status == 400
    assert (await job_of(client, job))["attempts"] == 0


async def take_new(client: Client) -> tuple[str, str]:
    await client.push()
    job, token = await client.take()
    return job["id"], token


async def test_logs(client: Client) -> None:
    job = await client.push()
    assert (await client.get(f"/jobs/{job}/logs")).json == {"ok": True, "data": {"logs": [], "count": 0}}
    for body in ({"message": "one"}, {"message": "two", "level": "warn"}, {"message": 3, "level": "debug"}):
        assert (await client.post(f"/jobs/{job}/logs", body)).json == {"ok": True, "data": {"added": True}}
    data = (await client.get(f"/jobs/{job}/logs")).json["data"]
    assert [(line["message"], line["level"]) for line in data["logs"]] == [
        ("one", "info"),
        ("two", "warn"),
        ("3", "debug"),
    ]
    assert data["count"] == 3
    assert (await client.delete(f"/jobs/{job}/logs")).json == {"ok": True}
    assert (await client.get(f"/jobs/{job}/logs")).json["data"]["count"] == 0


async def test_logs_of_an_unknown_job(client: Client) -> None:
    for method, body in (("GET", None), ("DELETE", None), ("POST", {"message": "x"})):
        answer = await client.send(method, "/jobs/nope/logs", body)
        assert (answer.status, answer.error) == (404, "Job not found")


async def test_a_long_line_is_cut(client: Client) -> None:
    job = await client.push()
    await client.post(f"/jobs/{job}/logs", {"message": "x" * 70_000, "level": "y" * 300})
    (line,) = (await client.get(f"/jobs/{job}/logs")).json["data"]["logs"]
    assert (len(line["message"]), len(line["level"])) == (65_536, 256)


@pytest.mark.parametrize("state", ["waiting", "delayed", "active", "waiting-children"])
async def test_a_discarded_job_is_kept_whatever_becomes_of_failed_ones(client: Client, state: str) -> None:
    more: dict[str, Any] = {"delay": 60_000} if state == "delayed" else {}
    if state == "waiting-children":
        more = {"dependsOn": [await client.push("other")]}
    job = await client.push(removeOnFail=True, **more)
    if state == "active":
        await client.pull()
    assert await client.state(job) == state
    await client.post(f"/jobs/{job}/discard")
    assert await client.state(job) == "failed"
    dead = (await client.get("/queues/q/dlq")).json
    assert [each["id"] for each in dead["jobs"]] == [job]
    (attempt,) = dead["entries"][0]["attempts"]
    assert (attempt["attempt"], attempt["reason"], attempt["error"]) == (0, "unknown", None)
    assert attempt["duration"] == attempt["failedAt"] - attempt["startedAt"] >= 0
    # Its last failure still removes it.
    await client.post("/queues/q/dlq/retry", {"jobId": job})
    assert (await client.pull())["id"] == job
    await client.post(f"/jobs/{job}/fail", {"unrecoverable": True})
    assert await client.state(job) == "unknown"

"""What is over a bound is answered in the form of each dialect."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import Client, Serve

TOO_MANY = "There may be at most 1 queues; obliterate those that are not needed"

REQUESTS: list[tuple[str, str, Any]] = [
    ("POST", "/queues/new/jobs", {"data": 1}),
    ("POST", "/queues/new/jobs/bulk", {"jobs": [{"data": 1}]}),
    ("POST", "/queues/new/pause", None),
    ("PUT", "/queues/new/rate-limit", {"limit": 5}),
    ("PUT", "/queues/new/concurrency", {"concurrency": 5}),
    ("PUT", "/queues/new/stall-config", {"config": {"enabled": False}}),
    ("PUT", "/queues/new/dlq-config", {"config": {"maxEntries": 5}}),
    ("POST", "/crons", {"name": "c", "queue": "new", "data": 1, "repeatEvery": 1000}),
    ("PUT", "/admin/queues/new/retention", {"completed": 5}),
]


@pytest.fixture
async def full(client: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr("quorumq.node.machine.state.state.QUEUES_MAX", 1)
    await client.push("one")
    return client


@pytest.mark.parametrize(("method", "path", "body"), REQUESTS, ids=lambda value: str(value))
async def test_a_queue_too_many(full: Client, method: str, path: str, body: Any) -> None:
    answer = await full.send(method, path, body)
    assert (answer.status, answer.json["error"]) == (400, TOO_MANY)
    assert list(full.server.node.machine.state.queues) == ["one"]
    # Where there is room the same request is taken.
    assert (await full.post("/queues/one/obliterate", {})).status == 200
    assert (await full.send(method, path, body)).status == 200


async def test_a_queue_too_many_for_bullmq(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorumq.node.machine.state.state.QUEUES_MAX", 1)
    full = await serve(auth_tokens=("t",))
    token = {"headers": {"Authorization": "Bearer t"}}
    assert (await full.bullmq.post("/queues/one/jobs", [{"name": "a", "data": {}}], **token)).status == 200
    for client, root in ((full.bullmq, ""), (full, "/bullmq")):
        for path, body in (
            ("/queues/new/jobs", [{"name": "a", "data": {}}]),
            ("/queues/new/pause", None),
            ("/queues/new/jobs", [{"name": "a", "data": {}, "opts": {"repeat": {"every": 1000}}}]),
        ):
            answer = await client.post(root + path, body, **token)
            assert (answer.status, TOO_MANY in answer.body.decode()) == (400, True), (path, answer.body)
    assert list(full.server.node.machine.state.queues) == ["one"]


async def test_too_many_dependencies(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorumq.node.machine.operations.jobs.DEPENDENCIES_MAX", 3)
    one, two = await client.push(), await client.push()
    body = {"jobs": [{"data": 1, "dependsOn": [one, two]}] * 2}
    answer = await client.post("/queues/q/jobs/bulk", body)
    assert (answer.status, answer.error) == (400, "The jobs of one request may depend on at most 3 jobs in total")
    assert len(client.server.node.machine.state.jobs) == 2

"""What is another's cannot be told from what is nobody's: by the answer, by what a node does to find it, or by what it asks of the leader.

And whoever asks about it is in the audit, over HTTP and WebSocket, for one job and for a batch.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quorumq.api import tokens
from quorumq.api.mounts import main_dialects
from quorumq.api.request import Route
from tests.api.conftest import Answer, Client, Serve

FULL = {"Authorization": "Bearer full-token"}
MINE = {"Authorization": "Bearer mine"}
JOB_ROWS = [
    (prefix + route.path, route)
    for dialect, prefix in main_dialects()
    for route in dialect.routes
    if route.touches == "job"
]
READS = [(path, route) for path, route in JOB_ROWS if any(ask.name == "consistency" for ask in route.asks)]
# What names jobs in its body, or something else that belongs to a queue.
OTHERS: list[tuple[str, str, Any]] = [
    ("POST", "/jobs/ack-batch", {"ids": ["IT"]}),
    ("POST", "/jobs/heartbeat-batch", {"ids": ["IT"]}),
    ("POST", "/jobs/extend-locks", {"ids": ["IT"], "tokens": ["t"]}),
    ("POST", "/queues/mine/jobs", {"data": 1, "dependsOn": ["IT"]}),
    ("POST", "/queues/mine/jobs/bulk", {"jobs": [{"data": 1}, {"data": 2, "dependsOn": ["IT"]}]}),
    ("PUT", "/jobs/mine/parent", {"parentId": "IT"}),
    ("GET", "/jobs/custom/IT", None),
    ("GET", "/crons/IT", None),
    ("DELETE", "/crons/IT", None),
    ("DELETE", "/webhooks/IT", None),
    ("PUT", "/webhooks/IT/enabled", {"enabled": False}),
    ("DELETE", "/workers/IT", None),
    ("POST", "/workers/IT/heartbeat", {}),
]


class Node:
    """A node where `mine` has a token, and counts of what it asks of the cluster."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.reads = 0
        asked = client.engine.read_index

        async def read_index(deadline: float) -> None:
            self.reads += 1
            await asked(deadline)

        client.engine.read_index = read_index  # type: ignore[method-assign]

    async def cost(self, method: str, path: str, body: Any = None) -> tuple[Answer, int, int]:
        """Send a request; return its answer, and how many reads and log entries it took."""
        reads, entries = self.reads, self.client.engine.applied_index
        answer = await self.client.send(method, path, body, headers=MINE)
        return answer, self.reads - reads, self.client.engine.applied_index - entries


@pytest.fixture
async def node(serve: Serve, tmp_path: Path) -> Node:
    file = tmp_path / "tokens.jsonl"
    mine = tokens.Token("mine", tokens.digest("mine"), ("produce", "consume", "read", "manage:all"), ("mine",))
    tokens.replace(file, tokens.msgspec.json.encode(mine) + b"\n")
    client = await serve(auth_tokens=("full-token",), auth_tokens_file=file)
    # Nothing but what is asked for is to be counted.
    client.server.node.clock_duty.stop()
    await client.post("/queues/theirs/jobs", {"data": 1, "jobId": "theirs"}, headers=FULL)
    await client.post("/queues/mine/jobs", {"data": 1, "jobId": "mine", "delay": 3_600_000}, headers=FULL)
    await client.post("/crons", {"name": "theirs", "queue": "theirs", "data": 1, "repeatEvery": 60_000}, headers=FULL)
    await client.post("/workers", {"workerId": "theirs", "queues": ["theirs"]}, headers=FULL)
    hook = {"url": "https://example.com/", "events": ["failed"], "queue": "theirs"}
    made = (await client.post("/webhooks", hook, headers=FULL)).json["data"]["webhookId"]
    webhooks = client.server.node.machine.state.webhooks
    webhooks.by_id["theirs"] = webhooks.by_id[made]
    return Node(client)


def sent(route: Route) -> Any:
    body = {"data": 1, "priority": 1, "delay": 5, "progress": 5, "message": "m", "token": "t"}
    return body if route.body != "none" else None


@pytest.mark.parametrize(("path", "route"), JOB_ROWS, ids=[f"{route.method} {path}" for path, route in JOB_ROWS])
async def test_a_row_of_a_job_does_the_same_for_anothers_and_for_nobodys(node: Node, path: str, route: Route) -> None:
    theirs, nobodys = [
        await node.cost(route.method, path.replace("{id}", job_id), sent(route)) for job_id in ("theirs", "nobodys")
    ]
    assert theirs[1:] == nobodys[1:]
    assert theirs[0].status == nobodys[0].status
    assert theirs[0].body.replace(b"theirs", b"nobodys") == nobodys[0].body


@pytest.mark.parametrize(("method", "path", "body"), OTHERS, ids=[f"{one[0]} {one[1]}" for one in OTHERS])
async def test_what_names_it_in_another_way_does_so_too(node: Node, method: str, path: str, body: Any) -> None:
    theirs, nobodys = [
        await node.cost(method, path.replace("IT", one), json.loads(json.dumps(body).replace("IT", one)))
        for one in ("theirs", "nobodys")
    ]
    assert theirs[1:] == nobodys[1:]
    assert (theirs[0].status, theirs[0].body.replace(b"theirs", b"nobodys")) == (nobodys[0].status, nobodys[0].body)


@pytest.mark.parametrize(("path", "route"), READS, ids=[path for path, _ in READS])
@pytest.mark.parametrize("there", [True, False])
async def test_a_stale_read_asks_nobody(node: Node, path: str, route: Route, there: bool) -> None:
    """Without a quorum one waited for the leader, and the other did not."""
    node.client.engine.available = there
    theirs, nobodys = [
        await node.cost("GET", path.replace("{id}", job_id) + "?consistency=stale") for job_id in ("theirs", "nobodys")
    ]
    assert theirs[1:] == nobodys[1:] == (0, 0)
    assert theirs[0].status == nobodys[0].status != 503
    assert theirs[0].body.replace(b"theirs", b"nobodys") == nobodys[0].body
    node.client.engine.available = True


async def test_one_that_comes_to_be_meanwhile_is_not_met(node: Node) -> None:
    """Between the look for a job and what is done to it another's may be pushed under its id."""
    client = node.client
    asked = client.engine.read_index
    pushed = False

    async def pushed_after(deadline: float) -> None:
        nonlocal pushed
        await asked(deadline)
        if not pushed:
            pushed = True
            await client.post("/queues/theirs/jobs", {"data": 1, "jobId": "late"}, headers=FULL)

    client.engine.read_index = pushed_after  # type: ignore[method-assign]
    assert (await client.delete("/jobs/late", headers=MINE)).status == 404
    assert pushed and (await client.get("/jobs/late/state", headers=FULL)).json["state"] == "waiting"


async def test_a_repeat_still_finds_its_first_answer(node: Node) -> None:
    """Though the job that the first one ended is not there any more."""
    client = node.client
    body = {"data": 1, "removeOnComplete": True}
    job = (await client.post("/queues/mine/jobs", body, headers=MINE)).json["id"]
    await client.get("/queues/mine/jobs", headers=MINE)
    once = {**MINE, "Idempotency-Key": "k"}
    answers = [await client.post(f"/jobs/{job}/ack", {}, headers=once) for _ in range(2)]
    assert [(answer.status, answer.body) for answer in answers] == [(200, b'{"ok":true}')] * 2
    assert (await client.post(f"/jobs/{job}/ack", {}, headers=MINE)).status == 400


# -- The audit ---------------------------------------------------------------------------------------------------------


def refused(caplog: pytest.LogCaptureFixture) -> list[Any]:
    records = [record for record in caplog.records if record.name == "quorumq.audit"]
    return [
        (record.__dict__["token"], record.__dict__["route"], record.__dict__["status"])
        for record in records
        if record.getMessage() == "refused"
    ]


@pytest.mark.parametrize("ids", [["theirs"], ["theirs", "theirs"], ["theirs", "nobodys"]])
@pytest.mark.parametrize("path", ["/jobs/ack-batch", "/jobs/heartbeat-batch", "/jobs/extend-locks"])
async def test_a_batch_with_what_is_anothers_leaves_a_line(
    node: Node, caplog: pytest.LogCaptureFixture, path: str, ids: list[str]
) -> None:
    caplog.set_level(logging.INFO)
    body = {"ids": ids, "tokens": [None] * len(ids)}
    await node.client.post(path, {"ids": ["nobodys"], "tokens": [None]}, headers=MINE)
    assert refused(caplog) == []
    answer = await node.client.post(path, body, headers=MINE)
    assert refused(caplog) == [("mine", f"POST {path}", answer.status)]
    page = (await node.client.get("/prometheus")).body.decode()
    assert 'quorumq_http_refused_total{status="403"} 1' in page


@pytest.mark.parametrize(
    ("cmd", "fields"),
    [
        ("ACKB", {"ids": ["theirs"]}),
        ("JobHeartbeatB", {"ids": ["theirs"]}),
        ("ExtendLocks", {"ids": ["theirs"], "tokens": [None]}),
        ("Cancel", {"id": "theirs"}),
        ("GetState", {"id": "theirs"}),
        ("PUSH", {"queue": "mine", "data": 1, "dependsOn": ["theirs"]}),
        ("CronDelete", {"name": "theirs"}),
        ("UnregisterWorker", {"workerId": "theirs"}),
    ],
)
async def test_a_command_about_what_is_anothers_leaves_a_line(
    node: Node, caplog: pytest.LogCaptureFixture, cmd: str, fields: Any
) -> None:
    caplog.set_level(logging.INFO)
    async with node.client.session.ws_connect(f"{node.client.base}/ws", headers=MINE) as ws:
        nobodys = json.loads(json.dumps(fields).replace("theirs", "nobodys"))
        replies = []
        for one in (nobodys, fields):
            await ws.send_json({"cmd": cmd, **one, "reqId": 1})
            replies.append(await ws.receive_json(timeout=10))
    assert json.loads(json.dumps(replies[1]).replace("theirs", "nobodys")) == replies[0]
    assert len(refused(caplog)) == 1


@pytest.mark.parametrize("tie", [{"parentId": "theirs"}, {"childrenIds": ["theirs"]}], ids=["a parent", "a child"])
@pytest.mark.parametrize("bulk", [False, True], ids=["alone", "in bulk"])
async def test_no_job_is_tied_to_anothers(node: Node, tie: Any, bulk: bool) -> None:
    """Who pushes it under a token for its own queue alone is answered as if there were none; the other's job is none the wiser."""
    jobs = node.client.server.node.machine.state.jobs
    theirs = "/queues/theirs/jobs"
    await node.client.post(theirs, {"data": 1, "jobId": "below"}, headers=FULL)
    await node.client.post(theirs, {"data": 1, "jobId": "theirs", "childrenIds": ["below"]}, headers=FULL)
    before = msgspec.msgpack.encode(jobs["theirs"])
    for headers in (MINE, FULL):
        job = {"data": 1, "jobId": f"tied-{headers is FULL}", **tie}
        path, body = ("/queues/mine/jobs/bulk", {"jobs": [job]}) if bulk else ("/queues/mine/jobs", job)
        assert (await node.client.post(path, body, headers=headers)).status == 200
        assert (msgspec.msgpack.encode(jobs["theirs"]) == before) is (headers is MINE)

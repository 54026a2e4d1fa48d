"""The same job seen through all three dialects at once, in every state: what each must say of it, in one table."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from quorumq.api.dialects.bunqueue import jobs as bunqueue
from quorumq.node.machine.operations.job_reads import GetJob
from tests.api.bullmq import Bull

HEADERS = {"Authorization": "Bearer tok1"}
DATA = {"n": 1, "ingestionSourceId": "s1"}
Bring = Callable[["Three"], Awaitable[None]]


class Three:
    """One node and a job in its queue `que`, of which the id is known to the BullMQ dialect."""

    def __init__(self, bull: Bull, origin: str) -> None:
        self.bull = bull
        self.origin = origin
        self.own = ""

    @property
    def canonical(self) -> str:
        return f"bull:que:{self.own}" if self.origin == "bullmq" else self.own

    async def add(self, attempts: int = 1, delay: int = 0, priority: int = 0) -> None:
        """Add the job in the words of the dialect that it comes from. priority: as in BullMQ."""
        if self.origin == "bullmq":
            asked = {"attempts": attempts, "delay": delay, "backoff": 60_000, "priority": priority}
            self.own = await self.bull.add("n", DATA, **{key: value for key, value in asked.items() if value})
            return
        body = {"name": "n", "data": DATA, "maxAttempts": attempts, "delay": delay, "backoff": 60_000}
        answer = await self.bunqueue("POST", "/queues/que/jobs", body | {"priority": -priority})
        self.own = answer["id"]

    async def bunqueue(self, method: str, path: str, body: Any = None) -> Any:
        answer = await self.bull.client.send(method, path, body, headers=HEADERS)
        assert answer.status == 200, answer.body
        return answer.json

    async def take(self) -> Any:
        job = await self.bull.next()
        assert job["id"] == self.own
        return job

    async def seen(self, status: str) -> tuple[Any, Any, Any]:
        """Return the job as bunqueue, BullMQ and Open Archiver show it. status: the third asks for one."""
        one = (await self.bunqueue("GET", f"/jobs/{self.canonical}"))["job"]
        two = await self.bull.job(self.own)
        page = await self.bunqueue("GET", f"/v1/jobs/queues/que?status={status}")
        found = [job for job in page["jobs"] if job["id"] == self.own]
        assert len(found) == 1, page
        return one, two, found[0]


# -- How the job comes to its state


async def waiting(three: Three) -> None:
    await three.add()


async def prioritized(three: Three) -> None:
    await three.add(priority=5)


async def delayed(three: Three) -> None:
    await three.add(delay=60_000)


async def active(three: Three) -> None:
    await three.add()
    await three.take()


async def progressed(three: Three) -> None:
    await active(three)
    await three.bull.post(f"/queues/que/jobs/{three.own}/progress", 40, token="t1")


async def completed(three: Three) -> None:
    await three.add()
    await three.bull.complete(await three.take(), {"r": 1})


async def failed(three: Three) -> None:
    await three.add()
    await three.bull.fail(await three.take(), "broken")


async def to_be_retried(three: Three) -> None:
    await three.add(attempts=2)
    await three.bull.fail(await three.take(), "broken")


async def completed_at_last(three: Three) -> None:
    await three.add(attempts=2)
    await three.bull.fail(await three.take(), "broken")
    await three.bull.post(f"/queues/que/jobs/{three.own}/promote")
    await three.bull.complete(await three.take(), "fine")


async def retried_by_hand(three: Three) -> None:
    await failed(three)
    await three.bull.post(f"/queues/que/jobs/{three.own}/retry")


async def paused(three: Three) -> None:
    await three.add()
    await three.bull.post("/queues/que/pause")


async def put_back(three: Three) -> None:
    await active(three)
    await three.bull.move(three.own, "move-to-wait")


# State of bunqueue, of BullMQ and of Open Archiver; then what a job says of its runs: bunqueue's attempts, BullMQ's
# attemptsMade and attemptsStarted.
STATES: list[tuple[Bring, str, str, str, tuple[int, int, int]]] = [
    (waiting, "waiting", "waiting", "waiting", (0, 0, 0)),
    (prioritized, "waiting", "prioritized", "waiting", (0, 0, 0)),
    (delayed, "delayed", "delayed", "delayed", (0, 0, 0)),
    (active, "active", "active", "active", (0, 0, 1)),
    (progressed, "active", "active", "active", (0, 0, 1)),
    (completed, "completed", "completed", "completed", (0, 1, 1)),
    (failed, "failed", "failed", "failed", (1, 1, 1)),
    (to_be_retried, "delayed", "delayed", "delayed", (1, 1, 1)),
    (completed_at_last, "completed", "completed", "completed", (1, 2, 2)),
    (retried_by_hand, "waiting", "waiting", "waiting", (1, 1, 1)),
    (paused, "waiting", "waiting", "paused", (0, 0, 0)),
    (put_back, "waiting", "waiting", "waiting", (0, 0, 1)),
]
STATUSES = ("waiting", "prioritized", "delayed", "active", "completed", "failed", "paused")


@pytest.mark.parametrize("origin", ["bullmq", "bunqueue"])
@pytest.mark.parametrize(
    ("bring", "bun", "bull_state", "archiver", "runs"), STATES, ids=lambda x: getattr(x, "__name__", "")
)
async def test_a_job_in_three_dialects(
    serve: Any, origin: str, bring: Bring, bun: str, bull_state: str, archiver: str, runs: tuple[int, int, int]
) -> None:
    bull = Bull(await serve(auth_tokens=("tok1",)))
    three = Three(bull, origin)
    await bring(three)
    one, two, other = await three.seen(archiver)

    # What it is.
    assert (one["id"], two["id"], other["id"]) == (three.canonical, three.own, three.own)
    assert one["name"] == two["name"] == other["name"] == "n"
    assert one["data"] == two["data"] == other["data"] == DATA
    assert other["ingestionSourceId"] == "s1"
    assert two["queueQualifiedName"] == f"bull:{one['queue']}" == "bull:que"
    assert one["createdAt"] == two["timestamp"] == other["timestamp"]

    # Where it is.
    assert (await three.bunqueue("GET", f"/jobs/{three.canonical}/state"))["state"] == one["state"] == bun
    assert await bull.state(three.own) == bull_state
    assert other["state"] == archiver
    await check_counts(three, bun, bull_state, archiver)
    assert (two["delay"] > 0) == (bun == "delayed")

    # How its runs went.
    assert (one["attempts"], two["attemptsMade"], two["attemptsStarted"]) == runs
    assert other["attemptsMade"] == two["attemptsMade"]
    assert len(two["stacktrace"]) == len(other["stacktrace"]) == one["attempts"]
    assert (one.get("failedReason"), two.get("failedReason")) == (other.get("failedReason"),) * 2
    assert other.get("error") == (other.get("failedReason") if archiver == "failed" else None)
    assert (one["startedAt"] or two.get("processedOn")) == two.get("processedOn") == other.get("processedOn")
    assert two.get("finishedOn") == other.get("finishedOn")
    if one["completedAt"] is not None:
        assert one["completedAt"] == two["finishedOn"]
    assert ("finishedOn" in two) == (bun in ("completed", "failed"))
    assert one.get("returnvalue") == two["returnvalue"] == other["returnValue"]
    assert (two["returnvalue"] is not None) == (bun == "completed")

    # What it was asked for.
    priority = 5 if bring is prioritized else 0
    assert (two["priority"], one["priority"]) == (priority, -priority)
    if bun != "completed":
        assert one["progress"] == two["progress"] == (40 if bring is progressed else 0)


async def check_counts(three: Three, bun: str, bull_state: str, archiver: str) -> None:
    """One job is counted in one place of each dialect, and found in the list of that place."""
    is_paused = archiver == "paused"
    counted = (await three.bunqueue("GET", "/queues/que/counts"))["counts"]
    assert {state for state, count in counted.items() if count} == {bun} | ({"paused"} if is_paused else set())
    listed = (await three.bunqueue("GET", f"/queues/que/jobs/list?state={bun}"))["jobs"]
    assert [job["id"] for job in listed] == [three.canonical]
    counts = await three.bull.counts()
    assert {status for status, count in counts.items() if count} == {"paused" if is_paused else bull_state}
    for status in STATUSES[:-1]:
        assert await three.bull.names(status) == (["n"] if status == bull_state else [])
    (queue,) = (await three.bunqueue("GET", "/v1/jobs/queues"))["queues"]
    assert {status for status, count in queue["counts"].items() if count} == {archiver}


async def test_a_job_that_waits_for_others(serve: Any) -> None:
    """Only bunqueue makes such jobs; the others show them."""
    bull = Bull(await serve(auth_tokens=("tok1",)))
    three = Three(bull, "bunqueue")
    first = (await three.bunqueue("POST", "/queues/que/jobs", {"data": 1, "delay": 60_000}))["id"]
    body = {"name": "n", "data": DATA, "dependsOn": [first]}
    three.own = (await three.bunqueue("POST", "/queues/que/jobs", body))["id"]
    assert await bull.state(three.own) == "waiting-children"
    assert (await bull.counts())["waiting-children"] == 1
    assert (await bull.job(three.own))["data"] == DATA
    page = await three.bunqueue("GET", "/v1/jobs/queues/que?status=waiting-children")
    assert [job["id"] for job in page["jobs"]] == [three.own]


async def test_workers_of_one_dialect_work_on_jobs_of_another(serve: Any) -> None:
    bull = Bull(await serve(auth_tokens=("tok1",)))
    three = Three(bull, "bullmq")
    await three.add()
    body = {"count": 1, "owner": "w"}
    taken = await three.bunqueue("POST", "/queues/que/jobs/pull-batch", body)
    (job,), (token,) = taken["jobs"], taken["tokens"]
    assert (job["id"], job["data"]) == ("bull:que:1", DATA)
    assert (await bull.move("1", "move-to-completed", token="other")).status == 409
    await three.bunqueue("POST", f"/jobs/{job['id']}/ack", {"token": token, "result": [1]})
    assert (await bull.job("1"))["returnvalue"] == [1]


async def test_events_and_texts_survive_any_name_of_a_queue(serve: Any) -> None:
    """The BullMQ dialect lets a queue be called nearly anything; the other dialects show it as it is."""
    bull = Bull(await serve(auth_tokens=("tok1",)))
    three = Three(bull, "bullmq")
    name = 'a"b\\c üö'
    quoted = "a%22b%5Cc%20%C3%BC%C3%B6"
    await bull.add(queue=quoted)
    view = await bull.server.node.ask(GetJob(f"bull:{name}:1"), bunqueue.one_job)
    assert json.loads(view)["job"]["queue"] == name
    assert name in (await three.bunqueue("GET", "/queues"))["queues"]
    metrics = await bull.client.send("GET", "/prometheus")
    assert b'queue="a\\"b\\\\c \xc3\xbc\xc3\xb6"' in metrics.body

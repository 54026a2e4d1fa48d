"""Jobs over the backend protocol's socket: added, shown, taken, ended, as an adapter does it, and by the other dialects beside it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from tests.api.backend import Failed, connect
from tests.api.bullmq import Bull
from tests.api.conftest import Client, Serve

DATA = b'{"a": 1}'
TAKING: dict[str, Any] = {"lock": 30_000, "name": "w"}
ALL = [-1]


def new(name: str = "n", data: bytes = DATA, opts: bytes = b'{"attempts":0}', **more: Any) -> dict[str, Any]:
    return {"name": name, "data": data, "opts": opts, "timestamp": 5, **more}


async def code_of(call: Any) -> int:
    try:
        await call
    except Failed as error:
        return error.code
    return 0


async def test_a_job_goes_from_its_producer_to_its_end(client: Client) -> None:
    backend = await connect(client)
    assert await backend.call("addJob", "bull:q", new()) == "1"
    taken = await backend.call("moveToActive", "bull:q", "t", TAKING)
    assert taken[1:] == ["1", 0, 0]
    job = taken[0]
    processed = job.pop("processedOn")
    assert processed > 0
    assert job == {
        "id": "1", "name": "n", "data": DATA, "opts": b'{"attempts":0}', "progress": b"0", "delay": 0, "priority": 0, "timestamp": 5,
        "attemptsStarted": 1, "attemptsMade": 0, "stalledCounter": 0, "processedBy": "w",
    }  # fmt: skip
    finished, following = await backend.call("moveToCompleted", "bull:q", "1", "t", b'"done"', ALL, TAKING)
    assert following == [None, "", 0, 0]
    shown = await backend.call("getJobData", "bull:q", "1")
    assert (shown["returnvalue"], shown["finishedOn"], shown["attemptsMade"]) == (b'"done"', finished, 1)
    assert await backend.call("getJobData", "bull:q", "nope") is None
    await backend.close()


async def test_options_come_back_as_they_came(client: Client) -> None:
    backend = await connect(client)
    opts = b'{"attempts":3,"jobId":"x","deduplication":{"id":"d","ttl":9000},"backoff":{"type":"own","delay":1},"weird":[1]}'
    own = await backend.call("addJob", "bull:q", new(opts=opts, id="x", attempts=3, dedup={"id": "d", "ttl": 9000}))
    shown = await backend.call("getJobData", "bull:q", own)
    assert msgspec.json.decode(shown["opts"]) == msgspec.json.decode(opts)
    assert shown["deduplicationId"] == "d" and await backend.call("getDeduplicationJobId", "bull:q", "d") == "x"
    assert await backend.call("removeDeduplicationKey", "bull:q", "d", "y") == 0
    assert await backend.call("removeDeduplicationKey", "bull:q", "d", "x") == 1
    await backend.close()


async def test_what_bullmq_numbers_is_answered_by_its_number(client: Client) -> None:
    backend = await connect(client)
    await backend.call("addJob", "bull:q", new(opts=b'{"priority":2}', priority=2))
    assert await code_of(backend.call("moveToCompleted", "bull:q", "9", "t", b"1", ALL)) == -1
    assert await code_of(backend.call("moveToCompleted", "bull:q", "1", "t", b"1", ALL)) == -2
    assert await code_of(backend.call("moveToCompleted", "bull:q", "1", "0", b"1", ALL)) == -3
    await backend.call("moveToActive", "bull:q", "t", TAKING)
    assert await code_of(backend.call("retryJob", "bull:q", "1", "u")) == -6
    assert await code_of(backend.call("addJob", "bull:q", new(parent={"id": "9", "queue": "bull:p"}))) == -5
    # A queue that cannot be has no parent in it.
    assert await code_of(backend.call("addJob", "bull:q", new(parent={"id": "1", "queue": "q"}))) == -5
    assert await code_of(backend.call("moveToCompleted", "bull:q", "1", "t", b"{", ALL)) == 2
    assert await code_of(backend.call("addJob", "bull:q", new(opts=b"[]"))) == 2
    assert await code_of(backend.call("addJob", "bull:q", new(id="12"))) == 2
    assert await code_of(backend.call("obliterate", "bull:q", False, 10)) == 2
    await backend.close()


async def test_a_queue_is_one_for_the_dialects(serve: Serve) -> None:
    client = await serve(auth_tokens=("tok1",))
    bull = Bull(client)
    backend = await connect(client, token="tok1")
    assert await backend.call("addJob", "bull:que", new(opts=b'{"attempts":2}', attempts=2)) == "1"
    answer = await bull.send("POST", "/queues/que/jobs", [{"name": "h", "data": {"b": 2}}])
    [added] = answer.json
    assert added["id"] == "2"
    taken = [await backend.call("moveToActive", "bull:que", "t", TAKING) for _ in range(2)]
    assert [msgspec.json.decode(job["data"]) for job, *_ in taken] == [{"a": 1}, {"b": 2}]
    # Another prefix is another queue.
    assert await backend.call("moveToActive", "other:que", "t", TAKING) == [None, "", 0, 0]
    assert await backend.call("addJob", "other:que", new()) == "1"
    await backend.close()


@pytest.mark.parametrize("prefix", ["bull", "pre"])
async def test_jobs_are_named_with_the_prefix_that_queues_have(serve: Serve, prefix: str) -> None:
    backend = await connect(await serve(queue_prefix=prefix))
    for queue in (f"{prefix}:q", "other:q"):
        await backend.call("addJob", queue, new(id="p", waits=True))
        parent = {"id": "p", "queue": queue, "fpof": True}
        await backend.call("addJob", queue, new(id="c", parent=parent))
        await backend.call("moveToActive", queue, "t", TAKING)
        await backend.call("moveToFailed", queue, "c", "t", "broken", ALL)
        taken, *_ = await backend.call("moveToActive", queue, "t", TAKING)
        failure = f"child {queue}:c failed"
        assert (taken["id"], taken["deferredFailure"]) == ("p", failure)
        assert (await backend.call("getJobData", queue, "p"))["deferredFailure"] == failure
    await backend.close()


async def test_of_stack_traces_the_newest_stay_and_of_a_reason_its_beginning(client: Client) -> None:
    backend = await connect(client)
    newest, long = 64 << 10, 300 << 10
    for at, (sent, left) in enumerate(
        (
            (["a" * long, "b" * 1000, "c" * long], ["a" * newest, "b" * 1000, "c" * newest]),
            ([str(number) * newest for number in range(10)], [str(number) * newest for number in range(3, 10)]),
            (["\0" * long], ["\0" * newest]),
            (["a", "b" * (200 << 10)], ["a", "b" * (200 << 10)]),
        ),
        1,
    ):
        await backend.call("addJob", "bull:q", new())
        await backend.call("moveToActive", "bull:q", "t", TAKING)
        fields = {"failedReason": "r" * long, "stacktrace": msgspec.json.encode(sent)}
        await backend.call("moveToFailed", "bull:q", str(at), "t", "r" * long, ALL, None, fields)
        shown = await backend.call("getJobData", "bull:q", str(at))
        assert msgspec.json.decode(shown["stacktrace"]) == left
        assert shown["failedReason"] == "r" * newest
    await backend.call("addJob", "bull:q", new())
    await backend.call("moveToActive", "bull:q", "t", TAKING)
    wrong = {"stacktrace": msgspec.json.encode("x" * (1 << 20))}
    assert await code_of(backend.call("moveToFailed", "bull:q", "5", "t", "r", ALL, None, wrong)) == 2
    await backend.close()


async def test_what_goes_at_a_time_is_read_of_call_and_options(client: Client) -> None:
    backend = await connect(client)
    jobs = client.server.node.machine.state.jobs
    for at, (keep, opts) in enumerate(
        (([-1, 0, 1], b"{}"), ([-1, 0, None], b'{"removeOnFail":{"age":1,"limit":7}}')), 1
    ):
        await backend.call("addJob", "bull:q", new(opts=opts))
        found = jobs[f"bull:q:{at}"].opts.keep_failed
        assert found is None or (found.age_ms, found.count, found.limit) == (1000, None, 7)
        await backend.call("moveToActive", "bull:q", "t", TAKING)
        await backend.call("moveToCompleted", "bull:q", str(at), "t", b"1", keep)
    for wrong in (0, -1, 1 << 60):
        await backend.call("addJob", "bull:q", new(opts=b'{"removeOnComplete":{"count":5,"limit":%d}}' % wrong))
        assert list(jobs.values())[-1].opts.keep_completed.limit is None
    await backend.close()


async def test_calls_of_one_message_are_done_in_order(client: Client) -> None:
    backend = await connect(client)
    futures = await backend.send(*[("addJob", "bull:q", [new(data=b"%d" % at)]) for at in range(50)])
    assert await asyncio.gather(*futures) == [str(at + 1) for at in range(50)]
    await backend.close()

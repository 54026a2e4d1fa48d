"""Calls of BullMQ's backend protocol about queues as a whole: their fields, counts, lists, and events."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from quorumq.api import tokens
from quorumq.api.dialects.bullmq.backend import codes
from quorumq.node.machine.operations.adding import AddJobs
from quorumq.node.machine.operations.flows import AddFlow, FlowJob
from quorumq.node.machine.operations.queues import ObliterateQueue, PauseQueue
from quorumq.node.machine.operations.runs import AckJob, FailJob, PullJobs
from quorumq.node.machine.state import job_spec
from tests.api.backend import Backend, Failed, connect
from tests.api.conftest import Serve
from tests.api.test_backend_socket import tokens_file


@pytest.fixture
async def backend(serve: Serve) -> Backend:
    return await connect(await serve())


async def told(backend: Backend, number: int, count: int) -> list[Any]:
    """Return what a subscription was told, once that are so many events after the place where it began."""
    async with asyncio.timeout(10):
        while sum(map(len, backend.more.get(number, ()))) < count + 1:
            await asyncio.sleep(0.01)
    return [event for page in backend.more[number] for event in page][1:]


async def test_fields_of_queues(backend: Backend) -> None:
    assert await backend.call("getQueueMeta") == {}
    assert await backend.call("setQueueMeta", "bull:q", {"version": "bullmq:6.7.0", "concurrency": "5"}) == 2
    assert await backend.call("getQueueMetaFields", "bull:q", ["concurrency", "none"]) == ["5", None]
    assert await backend.call("pause", "bull:q", True) is None
    assert await backend.call("getQueueMeta") == {"version": "bullmq:6.7.0", "concurrency": "5", "paused": "1"}
    assert await backend.call("removeQueueMetaFields", "bull:q", ["paused", "none"]) == 1
    assert await backend.call("getQueueMetaFields", "other:q", ["paused"]) == [None]
    for fields in ({"": "x"}, {"x" * 257: "x"}, {str(number): "" for number in range(257)}):
        with pytest.raises(Failed) as failed:
            await backend.call("setQueueMeta", "bull:q", fields)
        assert failed.value.code == 2


async def test_a_producer_writes_the_fields_of_every_queue_and_no_others(serve: Serve, tmp_path: Path) -> None:
    backend = await connect(await serve(auth_tokens_file=tokens_file(tmp_path)), token="t1")
    assert await backend.call("setQueueMeta", "bull:q", {"version": "v", "opts.maxLenEvents": "5"}) == 2
    for call in (
        ("setQueueMeta", {"version": "v", "paused": "1"}),
        ("removeQueueMetaFields", ["version"]),
        ("pause", True),
    ):
        with pytest.raises(Failed) as failed:
            await backend.call(call[0], "bull:q", call[1])
        assert failed.value.code == 3
    assert "paused" not in await backend.call("getQueueMeta")


async def test_counts_lists_and_states(serve: Serve) -> None:
    client = await serve()
    backend = await connect(client)
    for priority in (0, 0, -3):
        await client.server.node.submit(AddJobs("q", [job_spec("", b"{}", priority=priority)]))
    assert await backend.call("getCounts", "bull:q", ["waiting", "prioritized", "paused", "delayed"], 5) == [2, 1, 0, 0]
    assert await backend.call("getCountsPerPriority", "bull:q", [0, 3, 1]) == [2, 1, 0]
    assert await backend.call("getRanges", "bull:q", ["wait", "prioritized"], 0, -1, True) == [["2", "1"], ["3"]]
    assert await backend.call("getState", "bull:q", "3") == "prioritized"
    assert await backend.call("isJobInState", "bull:q", "wait", "1") is True
    assert await backend.call("isFinished", "bull:q", "1") == [0, None]
    assert await backend.call("isFinished", "bull:q", "9") == [-1, None]
    assert await backend.call("isMaxed") is False
    with pytest.raises(Failed, match="Unknown job state: asleep") as failed:
        await backend.call("isJobInState", "bull:q", "asleep", "1")
    assert failed.value.code == 2
    with pytest.raises(Failed, match="Unknown type"):
        await backend.call("getCounts", "bull:q", ["asleep"])


async def test_a_subscription_begins_at_an_id_and_goes_on(backend: Backend) -> None:
    first = await backend.call("publishEvent", "bull:q", {"n": "1", "event": "mine"}, 100)
    await backend.send(
        ("subscribe", "bull:q", ["0", 100]), ("subscribe", "bull:q", ["$", 100]), ("subscribe", "bull:q", [first, 1])
    )
    everything, new, one = backend.number - 2, backend.number - 1, backend.number
    assert await told(backend, everything, 1) == [[first, ["event", "mine", "n", "1"]]]
    assert await told(backend, new, 0) == []
    await backend.call("pause", "bull:q", True)
    await backend.call("pause", "bull:q", False)
    found = await told(backend, everything, 3)
    assert [fields for _, fields in found[1:]] == [["event", "paused"], ["event", "resumed"]]
    assert await told(backend, new, 2) == found[1:]
    assert backend.more[new][0] == [[first, []]]
    assert await told(backend, one, 1) == found[1:2]
    assert await backend.call("credit", "bull:q", one, 5) is True
    assert await told(backend, one, 2) == found[1:]
    assert await backend.call("credit", "bull:q", 99, 5) is False
    waiting = backend.waiting[one]
    assert await backend.call("cancel", "", one) == 0
    assert await asyncio.wait_for(waiting, 5) is None
    assert await backend.call("credit", "bull:q", one, 5) is False


async def test_a_subscription_outlives_its_queue(serve: Serve) -> None:
    client = await serve()
    backend = await connect(client)
    await backend.send(("subscribe", "bull:q", ["$", 100]))
    number = backend.number
    await told(backend, number, 0)
    await client.server.node.submit(PauseQueue("q"))
    await backend.call("publishEvent", "bull:q", {"event": "old"})
    await told(backend, number, 2)
    await client.server.node.submit(ObliterateQueue("q"))
    await backend.call("publishEvent", "bull:q", {"event": "new"})
    assert [fields[1] for _, fields in await told(backend, number, 3)] == ["paused", "old", "new"]
    # Nor need anybody else name it: whoever listens sees to it that it keeps events.
    await client.server.node.submit(ObliterateQueue("q"))
    async with asyncio.timeout(30):
        while not client.server.node.machine.state.bullmq.streams.is_open("q"):
            await asyncio.sleep(0.01)
    await client.server.node.submit(PauseQueue("q"))
    assert (await told(backend, number, 4))[3][1] == ["event", "paused"]


async def test_a_subscription_tells_no_more_than_was_granted(backend: Backend) -> None:
    for name in ("one", "two", "three"):
        await backend.call("publishEvent", "bull:q", {"event": name})
    await backend.send(("subscribe", "bull:q", ["0", 2]))
    number = backend.number
    assert [fields[1] for _, fields in await told(backend, number, 2)] == ["one", "two"]
    await backend.call("credit", "bull:q", number, 1)
    assert [fields[1] for _, fields in await told(backend, number, 3)] == ["one", "two", "three"]


async def test_the_newest_event_is_the_newest_of_all_nodes(serve: Serve) -> None:
    client = await serve()
    backend = await connect(client)
    event = await backend.call("publishEvent", "bull:q", {"event": "mine"})
    client.engine.available = False
    # What this node holds is not asked for, for others may know of more; what an id means needs nobody else.
    for name in ("subscribe", "readEvents"):
        with pytest.raises(Failed) as failed:
            await backend.call(name, "bull:q", "$", 1)
        assert failed.value.code == codes.AGAIN
    assert await backend.call("readEvents", "bull:q", "0", 1) == [event, [[event, ["event", "mine"]]]]


async def test_events_are_read_once(backend: Backend) -> None:
    assert await backend.call("readEvents", "bull:q", "0", 20) == ["0-0", []]
    (reading,) = await backend.send(("readEvents", "bull:q", ["$", 5000]))
    await backend.call("getQueueMeta")
    await asyncio.sleep(0.05)
    event_id = await backend.call("publishEvent", "bull:q", {"event": "mine"})
    assert await asyncio.wait_for(reading, 5) == [event_id, [[event_id, ["event", "mine"]]]]
    assert await backend.call("readEvents", "bull:q", "$", 20) == [event_id, []]
    assert await backend.call("readEvents", "bull:q", "$", -1) == [event_id, []]
    assert await backend.call("readEvents", "bull:q", "0", -1) == [event_id, [[event_id, ["event", "mine"]]]]
    assert await backend.call("readEvents", "bull:new", "$", -1) == ["0-0", []]
    assert await backend.call("trimEvents", "bull:q", 0) == 1
    for name, args in (
        ("publishEvent", [{"n": "1"}]),
        ("publishEvent", [{"event": "e"}, -1]),
        ("publishEvent", [{"event": "x" * (65 << 10)}]),
        ("trimEvents", [-1]),
        ("readEvents", ["soon"]),
        ("subscribe", ["-1", 5]),
    ):
        with pytest.raises(Failed) as failed:
            await backend.call(name, "bull:q", *args)
        assert failed.value.code == 2, name


async def test_a_call_that_is_sent_again_is_made_once(serve: Serve) -> None:
    client = await serve()
    one, other = await connect(client, session="same"), await connect(client, session="same")
    first = await one.call("publishEvent", "bull:q", {"event": "mine"})
    assert await other.call("publishEvent", "bull:q", {"event": "mine"}) == first
    # Another session's calls are its own.
    third = await connect(client, session="third")
    assert await third.call("publishEvent", "bull:q", {"event": "mine"}) != first
    other.acknowledged = 1
    second = await other.call("publishEvent", "bull:q", {"event": "mine"})
    sessions = client.server.node.machine.state.bullmq.sessions.by_id
    assert sorted(len(session.answers) for session in sessions.values()) == [1, 1]
    await one.close()
    late = await connect(client, session="same")
    with pytest.raises(Failed) as failed:
        await late.call("publishEvent", "bull:q", {"event": "mine"})
    assert failed.value.code == 5
    assert await late.call("publishEvent", "bull:q", {"event": "mine"}) == second
    # Nobody has the answer to a call that is not made yet, whatever he says.
    late.acknowledged = 99
    assert await late.call("publishEvent", "bull:q", {"event": "mine"}) not in (first, second)


async def test_a_session_is_its_tokens(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "tokens.jsonl"
    each = [tokens.Token(name, tokens.digest(name), ("produce",), ("q",)) for name in ("t1", "t2")]
    tokens.replace(path, b"".join(tokens.msgspec.json.encode(token) + b"\n" for token in each))
    client = await serve(auth_tokens_file=path)
    one, other = [await connect(client, session="same", token=token.name) for token in each]
    first = await one.call("publishEvent", "bull:q", {"event": "mine"})
    assert await other.call("publishEvent", "bull:q", {"event": "theirs"}) != first


async def test_clients_are_there_until_they_or_their_connections_end(serve: Serve) -> None:
    client = await serve()
    one, other = await connect(client), await connect(client)
    assert await one.call("register", "bull:q", "w1", "bull:cQ==:w:a") == 0
    assert await one.call("register", "bull:q", "w2", "bull:cQ==:w:b") == 0
    assert await other.call("register", "bull:q", "e1", "bull:cQ==:qe") == 0
    assert await other.call("register", "bull:p", "w3", "bull:cA==") == 0
    lines = await other.call("getClientList")
    assert [dict(word.split("=", 1) for word in line.split())["name"] for line in lines] == [
        "bull:cQ==:w:a", "bull:cQ==:w:b", "bull:cQ==:qe",
    ]  # fmt: skip
    assert all(line.endswith("\n") and "addr=127.0.0.1" in line and "age=0" in line for line in lines)
    assert await other.call("unregister", "bull:q", "w1") == 0
    assert await one.call("unregister", "bull:q", "w1") == 0
    assert len(await other.call("getClientList")) == 2
    await one.close()
    async with asyncio.timeout(5):
        while len(await other.call("getClientList")) > 1:
            await asyncio.sleep(0.01)
    for client_id, name in (("", "x"), ("x" * 65, "x"), ("x", "a b"), ("x", "x" * 513)):
        with pytest.raises(Failed) as failed:
            await other.call("register", "bull:q", client_id, name)
        assert failed.value.code == 2


async def test_lines_of_a_job(serve: Serve) -> None:
    client = await serve()
    backend = await connect(client)
    await client.server.node.submit(AddJobs("q", [job_spec("", b"{}")]))
    for number, text in enumerate("abc", 1):
        assert await backend.call("addLog", "bull:q", "1", text) == number
    assert await backend.call("addLog", "bull:q", "1", "d", 3) == 3
    assert await backend.call("getJobLogs", "bull:q", "1", 0, -1, True) == [["b", "c", "d"], 3]
    assert await backend.call("getJobLogs", "bull:q", "1", 0, 1, False) == [["d", "c"], 3]
    assert await backend.call("clearLogs", "bull:q", "1", 1) is None
    assert await backend.call("getJobLogs", "bull:q", "1") == [["d"], 1]
    for args, code in ((["9", "x"], -1), (["1", "é" * (129 << 10)], 2)):
        with pytest.raises(Failed) as failed:
            await backend.call("addLog", "bull:q", *args)
        assert failed.value.code == code


async def test_children_of_a_job(serve: Serve) -> None:
    client = await serve()
    backend = await connect(client)
    specs = [job_spec(f"c{number}", b"1", custom=True) for number in range(3)]
    flow = [
        FlowJob("q", job_spec("top", b"1", custom=True)),
        *(FlowJob("@{b}:kids", spec, 0, None, "ignore") for spec in specs),
    ]
    await client.server.node.submit(AddFlow(flow, True))
    assert await backend.call("getDependencyCounts", "bull:q", "top", ["unprocessed", "processed"]) == [3, 0]
    for _ in range(2):
        (job_id,) = await client.server.node.submit(PullJobs("@{b}:kids"), lambda reply: [job.id for job in reply.jobs])
        await client.server.node.submit(
            AckJob(job_id, result=b'{"a":1}')
            if job_id.endswith("0")
            else FailJob(job_id, error="e", unrecoverable=True)
        )
    key = "{b}:kids:c"
    assert await backend.call("getDependencies", "bull:q", "top", None) == {
        "processed": {key + "0": b'{"a":1}'}, "unprocessed": [key + "2"], "ignored": {key + "1": "e"}, "failed": [],
        "next": {"processed": 0, "unprocessed": 0, "ignored": 0, "failed": 0},
    }  # fmt: skip
    assert await backend.call("getDependencies", "bull:q", "top", {"unprocessed": [0, 20]}) == {
        "unprocessed": [key + "2"], "next": {"unprocessed": 0},
    }  # fmt: skip
    assert await backend.call("getProcessedChildrenValues", "bull:q", "top") == {key + "0": b'{"a":1}'}
    assert await backend.call("getIgnoredChildrenFailures", "bull:q", "top") == {key + "1": "e"}
    assert await backend.call("getIgnoredChildrenFailures", "bull:q", "nope") == {}
    total, items, jobs = await backend.call("paginate", "bull:q", "top", "processed", 0, -1, True)
    assert (total, items, [job["returnvalue"] for job in jobs]) == (1, [[key + "0", b'{"a":1}']], [b'{"a":1}'])
    assert await backend.call("paginate", "bull:q", "top", "dependencies", 0, 0) == [1, [[key + "2", None]], None]
    for call in (("getDependencies", {"odd": [0, 1]}), ("paginate", "odd")):
        with pytest.raises(Failed, match="Unknown kind"):
            await backend.call(call[0], "bull:q", "top", call[1])


async def test_whoever_comes_is_seen_by_what_is_read_behind(backend: Backend) -> None:
    """In one message, so that nothing is known of the coming when the reading begins."""
    futures = await backend.send(("register", "bull:q", ["a", "name"]), ("getClientList", "bull:q", []))
    _, lines = await asyncio.wait_for(asyncio.gather(*futures), 10)
    assert len(lines) == 1
    await backend.close()


async def test_a_limit_is_over_though_no_entry_has_come_since(serve: Serve) -> None:
    client = await serve()
    backend = await connect(client)
    await backend.call("setRateLimit", "bull:q", 60_000)
    assert 0 < await backend.call("getRateLimitTtl", "bull:q") <= 60_000
    clock = client.engine.clock
    client.engine.clock = lambda: clock() + 60_000
    assert await backend.call("getRateLimitTtl", "bull:q") == -2
    await backend.close()

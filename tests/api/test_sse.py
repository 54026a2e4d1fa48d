"""Server-sent events: the documented form, names for those who ask, filters, bounds, and going on on any node."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import msgspec
import pytest

from quorumq.api.dialects.bunqueue import sse
from quorumq.api.events import feed
from quorumq.api.events.feed import EventMessage, Feed, Id, id_of
from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operations.jobs import PushJobs
from quorumq.node.machine.operations.streams import KeepEvents
from quorumq.node.machine.state import job_spec
from tests.api.conftest import Client, Serve


class Stream:
    """A stream of events as tests read it."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def block(self) -> dict[str, str]:
        """Return the fields of the next block; a comment stands under an empty name."""
        found: dict[str, str] = {}
        async with asyncio.timeout(10):
            async for line in self.response.content:
                text = line.decode().rstrip("\n")
                if not text:
                    return found
                name, _, value = text.partition(":")
                found[name] = value.removeprefix(" ")
        raise EOFError

    async def next(self) -> tuple[str, Any]:
        """Return id and data of the next message."""
        found = await self.block()
        return found["id"], json.loads(found["data"])


Follow = Callable[..., Awaitable[Stream]]


@pytest.fixture
async def follow() -> AsyncIterator[Follow]:
    streams: list[Stream] = []

    async def start(client: Client, path: str = "/events", last: str | None = None, **headers: str) -> Stream:
        if last is not None:
            headers["Last-Event-ID"] = last
        response = await client.session.get(client.base + path, headers=headers)
        assert response.status == 200, await response.text()
        streams.append(Stream(response))
        return streams[-1]

    yield start
    for stream in streams:
        stream.response.close()


async def hello(stream: Stream) -> Any:
    found = await stream.block()
    assert found["retry"] == "3000" and "event" not in found
    data = json.loads(found["data"])
    assert data["connected"] is True and data["clientId"]
    return data


async def test_the_documented_form(client: Client, follow: Follow) -> None:
    stream = await follow(client)
    assert stream.response.headers["Content-Type"] == "text/event-stream"
    assert stream.response.headers["Cache-Control"] == "no-cache"
    assert stream.response.headers["Access-Control-Allow-Origin"] == "*"
    assert "resumed" not in await hello(stream)
    job = await client.push(data={"n": 1})
    found = await stream.block()
    assert "event" not in found and id_of(found["id"]) is not None
    data = json.loads(found["data"])
    assert isinstance(data.pop("timestamp"), int)
    assert data == {"eventType": "pushed", "queue": "q", "jobId": job}
    await client.pull()
    await client.post(f"/jobs/{job}/ack", {})
    assert [(await stream.next())[1]["eventType"] for _ in range(2)] == ["pulled", "completed"]
    assert (await client.get("/health")).json["connections"]["sse"] == 1


async def test_data_with_line_breaks_is_one_field(client: Client, follow: Follow) -> None:
    stream = await follow(client)
    await hello(stream)
    job = (await client.post("/queues/q/jobs", raw=b'{"data":{\r\n"a":\n[1,\r2]},"backoff":0}')).json["id"]
    await client.pull()
    await client.post(f"/jobs/{job}/fail")
    await client.pull()
    await client.post(f"/jobs/{job}/ack", raw=b'{"result":{\n"r":\r\n1}}')
    shown = {}
    while "completed" not in shown:
        found = await stream.block()
        assert set(found) == {"id", "data"}
        message = json.loads(found["data"])
        shown[message["eventType"]] = message.get("data")
    assert (shown["failed"], shown["completed"]) == ({"a": [1, 2]}, {"r": 1})


async def test_events_under_their_names(client: Client, follow: Follow) -> None:
    stream = await follow(client, "/events?events=job:pushed,queue:*")
    await hello(stream)
    job = await client.push()
    created, pushed, counts = [await stream.block() for _ in range(3)]
    assert created["event"] == "queue:created"
    assert pushed["event"] == "job:pushed"
    data = json.loads(pushed["data"])
    assert isinstance(data.pop("timestamp"), int) and data == {"queue": "q", "jobId": job}
    assert counts["event"] == "queue:counts" and "id" not in counts
    assert json.loads(counts["data"])["waiting"] == 1
    assert (await client.get("/events?events=zzz")).error == "Invalid: zzz"


async def test_only_one_queue(client: Client, follow: Follow) -> None:
    old = await follow(client, "/events/queues/q")
    new = await follow(client, "/events/queues/q?events=job:*,queue:created")
    await hello(old)
    await hello(new)
    await client.push("other")
    job = await client.push("q")
    assert (await old.next())[1]["jobId"] == job
    assert [(await new.next())[1]["queue"] for _ in range(2)] == ["q", "q"]
    assert (await client.get("/events/queues/b%20d")).status == 400


async def test_heartbeats(client: Client, follow: Follow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_S", 0.01)
    stream = await follow(client)
    await hello(stream)
    beat = await stream.block()
    assert beat[""] == "heartbeat" and "data" not in beat
    # Whoever has seen nothing but heartbeats knows where he is.
    assert id_of(beat["id"]) is not None


async def test_going_on_where_one_was(client: Client, follow: Follow) -> None:
    stream = await follow(client)
    await hello(stream)
    jobs = [await client.push() for _ in range(3)]
    seen = [await stream.next() for _ in range(3)]
    assert [data["jobId"] for _, data in seen] == jobs
    other = await follow(client)
    stream.response.close()
    again = await follow(client, last=seen[0][0])
    assert (await hello(again))["resumed"] is True
    assert [await again.next() for _ in range(2)] == seen[1:]
    late = await client.push()
    assert (await again.next())[1]["jobId"] == late
    by_query = await follow(client, f"/events?lastEventId={seen[2][0]}")
    assert (await hello(by_query))["resumed"] is True
    assert (await by_query.next())[1]["jobId"] == late
    other.response.close()


async def test_going_on_before_anything_was_seen(client: Client, follow: Follow) -> None:
    stream = await follow(client)
    first = await stream.block()
    job = await client.push()
    again = await follow(client, last=first["id"])
    assert (await hello(again))["resumed"] is True
    assert (await again.next())[1]["jobId"] == job


@pytest.mark.parametrize("last", ["1.0", "999999.0", "nonsense", "7", "-1.0", "1.0.0"])
async def test_what_cannot_be_resumed_is_said(client: Client, follow: Follow, last: str) -> None:
    for _ in range(3):
        await client.push()
    stream = await follow(client, last=last)
    assert (await hello(stream)).get("resumed", False) is False
    job = await client.push()
    assert (await stream.next())[1]["jobId"] == job


async def test_going_on_on_another_node(serve: Serve, follow: Follow) -> None:
    """Two nodes with one log: the second has never had a client."""
    first, second = await serve(), await serve()
    first.engine.keep_entries = True

    def replicate() -> None:
        for index, now_ms, batches in first.engine.entries:
            if index > second.engine.applied_index:
                second.engine.machine.apply(index, now_ms, batches)
                second.engine.applied_index = index

    await first.push()
    stream = await follow(first)
    await hello(stream)
    # Committed before the next push, because it was submitted before.
    jobs = [await first.push() for _ in range(4)]
    seen = [await stream.next() for _ in range(4)]
    replicate()
    assert not second.server.node.machine.events_wanted
    again = await follow(second, last=seen[0][0])
    assert (await hello(again))["resumed"] is True
    assert [await again.next() for _ in range(3)] == seen[1:]
    assert [data["jobId"] for _, data in seen] == jobs
    # A node that is behind has nothing to tell yet, and says so.
    for _ in range(5):
        await first.push()
    ahead = [(await stream.next())[0] for _ in range(5)][-1]
    lagging = await follow(second, last=ahead)
    assert (await hello(lagging))["resumed"] is False


async def test_much_that_was_missed_comes_in_steps(
    client: Client, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = await follow(client)
    first = await stream.block()
    jobs = [await client.push() for _ in range(10)]
    monkeypatch.setattr(sse, "UNSENT_BYTES_MAX", 400)
    got: list[str] = []
    last = first["id"]
    rounds = 0
    while len(got) < len(jobs):
        part = await follow(client, last=last)
        assert (await hello(part))["resumed"] is True
        rounds += 1
        try:
            while len(got) < len(jobs):
                last, data = await part.next()
                got.append(data["jobId"])
        except EOFError:
            continue
    assert got == jobs and rounds > 1


async def test_tokens(serve: Serve, follow: Follow) -> None:
    client = await serve(auth_tokens=("secret",))
    assert (await client.get("/events")).status == 401
    stream = await follow(client, Authorization="Bearer secret")
    await hello(stream)


async def test_too_many_clients(serve: Serve, follow: Follow) -> None:
    client = await serve(event_streams_max=1)
    await follow(client)
    answer = await client.get("/events")
    assert (answer.status, answer.error) == (503, "Too many SSE clients")


async def test_a_client_that_leaves_is_forgotten(client: Client, follow: Follow) -> None:
    stream = await follow(client)
    await hello(stream)
    stream.response.close()
    while client.server.streams.clients:
        await client.get("/ping")
    assert not client.server.node.machine.events_wanted


async def test_stopping_ends_streams(client: Client, follow: Follow) -> None:
    stream = await follow(client, "/events?events=server:*")
    await hello(stream)
    await client.server.stop(5)
    assert (await stream.block())["event"] == "server:shutdown"
    with pytest.raises(EOFError):
        await stream.block()


# -- The feed ----------------------------------------------------------------------------------------------------------


class Ear:
    """A listener that notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[EventMessage] = []
        self.times_lost = 0

    def on_events(self, messages: Any) -> None:
        self.heard += messages

    def lost(self) -> None:
        self.times_lost += 1

    def close(self) -> None:
        self.heard.clear()


def render(state: Any, now_ms: int, event: Any) -> list[EventMessage]:
    return [EventMessage(event.name, now_ms, b"{}", queue="")]


def pushes(*ids: str) -> bytes:
    return msgspec.msgpack.encode([PushJobs("q", [job_spec(job_id, b"1")]) for job_id in ids])


def test_ids() -> None:
    assert str(Id(12, 3)) == "12.3" and id_of("12.3") == Id(12, 3)
    assert Id(2, 10) > Id(2, 9) > Id(1, 99)
    assert [id_of(text) for text in ("", "1", "1.", ".1", "a.b", "1.2.3", "1" * 50 + ".1", "²." + "1")] == [None] * 8


async def test_the_ring_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "RECENT_WEIGHT", 5)
    machine = Machine()
    told = Feed(machine, render, lambda state, queue: b"{}")
    ear = Ear()
    told.join(ear)
    for index in range(1, 11):
        machine.apply(index, index, [pushes(f"{index}")])
    ids = [message.id for message in ear.heard]
    assert ids == sorted(ids) and len(set(ids)) == len(ids)
    assert told.after(Id(5, 0)) is None
    found = told.after(Id(6, 0))
    assert found is not None and [message.id for message in found] == [Id(index, 0) for index in range(7, 11)]
    assert told.after(Id(11, 0)) is None
    told.close()


async def test_a_state_that_comes_as_a_whole_ends_what_can_be_resumed() -> None:
    other = Machine()
    other.apply(1, 1, [pushes("a")])
    machine = Machine()
    told = Feed(machine, render, lambda state, queue: b"{}")
    ear = Ear()
    told.join(ear)
    machine.restore(other.image())
    assert ear.times_lost == 1
    assert told.after(Id(0, 0)) is None
    machine.apply(2, 2, [pushes("b")])
    found = told.after(Id(1, feed.PLACES))
    assert found is not None and [message.id for message in found] == [Id(2, 0)]
    told.close()


async def test_events_are_kept_for_a_while_on_request() -> None:
    machine = Machine()
    told = Feed(machine, render, lambda state, queue: b"{}")
    keep = msgspec.msgpack.encode([KeepEvents(1000)])
    machine.apply(1, 1, [pushes("a"), keep])
    machine.apply(2, 500, [pushes("b")])
    assert len(list(told.after(Id(2, 0)) or ())) == 0
    machine.apply(3, 1000, [pushes("c")])
    found = told.after(Id(2, 0))
    assert found is not None and [message.id for message in found] == [Id(3, 0)]
    machine.apply(4, 1001, [pushes("d")])
    assert told.after(Id(3, 0)) is None

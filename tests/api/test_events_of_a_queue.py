"""Who hears which events: streams of one queue, and tokens for some queues, hear all of their queues and nothing of others."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quorumq.api import tokens
from quorumq.api.auth import Grant
from quorumq.api.dialects.bunqueue.events import messages_of
from quorumq.api.dialects.bunqueue.payloads import shapes
from quorumq.api.events.feed import EventMessage, visible_to
from quorumq.node.machine import events as happened
from quorumq.node.machine.events import Event
from quorumq.node.machine.operations.webhooks import NoteDelivered, NoteUndeliverable
from quorumq.node.machine.state import State
from tests.api.conftest import Client, Serve

FULL = {"Authorization": "Bearer full-token"}
READER = {"Authorization": "Bearer reader"}
# What each event says, by its name.
SHAPES = shapes()
# What a queue's life below brings, each under its own name.
HEARD = {
    "job:pushed", "job:active", "job:completed", "job:failed", "job:discarded", "dlq:added", "dlq:purged", "queue:created",
    "queue:paused", "queue:resumed", "queue:drained", "queue:cleaned", "queue:obliterated", "queue:removed",
    "ratelimit:set", "ratelimit:cleared", "concurrency:set", "concurrency:cleared", "config:stall-changed",
    "config:dlq-changed", "cron:created", "cron:updated", "cron:deleted", "worker:connected", "worker:heartbeat",
    "worker:error", "worker:disconnected", "worker:removed-stale", "webhook:added", "webhook:disabled", "webhook:enabled",
    "webhook:fired", "webhook:failed", "webhook:removed",
}  # fmt: skip


@pytest.fixture
async def client(serve: Serve, tmp_path: Path) -> Client:
    """A node with a token for everything, and one that reads the queue `mine`."""
    file = tmp_path / "tokens.jsonl"
    reader = tokens.Token("reader", tokens.digest("reader"), ("read",), ("mine",))
    tokens.replace(file, tokens.msgspec.json.encode(reader) + b"\n")
    return await serve(auth_tokens=("full-token",), auth_tokens_file=file)


class Life:
    """Everything that happens to a queue and to what belongs to it."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def send(self, method: str, path: str, body: Any = None) -> Any:
        answer = await self.client.send(method, path, body, headers=FULL)
        assert answer.status == 200, (method, path, answer.body)
        return answer.json

    async def of(self, queue: str) -> None:
        """Live one queue's life from beginning to end."""
        node = self.client.server.node
        job = (await self.send("POST", f"/queues/{queue}/jobs", {"data": 1}))["id"]
        await self.send("POST", f"/queues/{queue}/pause")
        await self.send("POST", f"/queues/{queue}/resume")
        hook = (
            await self.send("POST", "/webhooks", {"url": "https://example.com/h", "events": ["pushed"], "queue": queue})
        )["data"]["webhookId"]
        for enabled in (False, True):
            await self.send("PUT", f"/webhooks/{hook}/enabled", {"enabled": enabled})
        for _ in range(2):
            await self.send("POST", f"/queues/{queue}/jobs", {"data": 1})
        await node.submit(NoteDelivered(hook, 1))
        await node.submit(NoteUndeliverable(hook, 2, "away"))
        await self.send("DELETE", f"/webhooks/{hook}")
        await self.send("GET", f"/queues/{queue}/jobs")
        await self.send("POST", f"/jobs/{job}/ack", {})
        taken = (await self.send("GET", f"/queues/{queue}/jobs"))["job"]["id"]
        await self.send("POST", f"/jobs/{taken}/fail", {"error": "e", "unrecoverable": True})
        left = (await self.send("POST", f"/queues/{queue}/jobs", {"data": 1}))["id"]
        await self.send("POST", f"/jobs/{left}/discard")
        await self.send("POST", f"/queues/{queue}/dlq/purge")
        await self.send("POST", f"/queues/{queue}/drain")
        await self.send("POST", f"/queues/{queue}/jobs", {"data": 1})
        await self.send("POST", f"/queues/{queue}/clean", {"grace": 0, "state": "waiting"})
        await self.send("PUT", f"/queues/{queue}/rate-limit", {"limit": 9})
        await self.send("DELETE", f"/queues/{queue}/rate-limit")
        await self.send("PUT", f"/queues/{queue}/concurrency", {"limit": 3})
        await self.send("DELETE", f"/queues/{queue}/concurrency")
        await self.send("PUT", f"/queues/{queue}/stall-config", {"config": {"maxStalls": 5}})
        await self.send("PUT", f"/queues/{queue}/dlq-config", {"config": {"maxAge": 5000}})
        cron = {"name": f"cron of {queue}", "queue": queue, "data": 1, "repeatEvery": 86_400_000}
        for _ in range(2):
            await self.send("POST", "/crons", cron)
        await self.send("DELETE", f"/crons/cron%20of%20{queue}")
        worker = (await self.send("POST", "/workers", {"name": "w", "queues": [queue]}))["data"]["workerId"]
        await self.send("POST", f"/workers/{worker}/heartbeat", {"failed": 7})
        await self.send("DELETE", f"/workers/{worker}")
        await self.send("POST", "/workers", {"name": "w", "queues": [queue]})
        # It falls silent and is forgotten.
        clock = self.client.engine.clock
        self.client.engine.clock = lambda: clock() + 100_000
        await self.send("POST", f"/queues/{queue}/jobs", {"data": 1})
        await self.send("POST", f"/queues/{queue}/obliterate")


async def heard_over_websocket(client: Client, path: str, headers: dict[str, str]) -> AsyncIterator[tuple[str, str]]:
    async with client.session.ws_connect(client.base + path, headers=headers) as ws:
        await ws.send_json({"cmd": "Subscribe", "events": ["*"]})
        yield "", ""
        async for message in ws:
            found = json.loads(message.data)
            if "event" in found:
                yield found["event"], json.dumps(found["data"])


async def heard_over_sse(client: Client, path: str, headers: dict[str, str]) -> AsyncIterator[tuple[str, str]]:
    async with client.session.get(
        client.base + path.replace("/ws", "/events") + "?events=*", headers=headers
    ) as stream:
        await stream.content.readuntil(b"\n\n")
        yield "", ""
        while block := (await stream.content.readuntil(b"\n\n")).decode():
            fields = dict(line.partition(": ")[::2] for line in block.splitlines())
            yield fields["event"], fields["data"]


@pytest.mark.parametrize("hearing", [heard_over_websocket, heard_over_sse])
@pytest.mark.parametrize(
    ("path", "headers"), [("/ws/queues/mine", FULL), ("/ws/queues/mine", READER), ("/ws", READER)], ids=str
)
async def test_all_of_its_own_queue_and_nothing_of_another(
    client: Client, hearing: Any, path: str, headers: dict[str, str]
) -> None:
    stream = hearing(client, path, headers)
    await anext(stream)
    life = Life(client)
    await life.of("theirs")
    await life.of("mine")
    heard: dict[str, str] = {}
    while "queue:removed" not in heard:
        name, data = await anext(stream)
        if not name.startswith(("server:", "stats:", "health:", "storage:")):
            assert "theirs" not in data, name
            said = {key: value for key, value in json.loads(data).items() if key != "timestamp"}
            msgspec.convert(said, SHAPES[name])
            heard[name] = data
            # Those of the other queue came first; of them nothing may be here.
            assert "queue:created" in heard, name
    assert HEARD - set(heard) == set()
    await stream.aclose()


async def test_what_was_missed_is_of_its_own_queue_too(client: Client) -> None:
    async with client.session.get(f"{client.base}/events?events=*", headers=FULL) as first:
        begun = (await first.content.readuntil(b"\n\n")).decode()
    last = begun.partition("id: ")[2].partition("\n")[0]
    # Somebody stays, so that events are kept.
    async with client.session.get(f"{client.base}/events", headers=FULL):
        life = Life(client)
        await life.of("theirs")
        await life.of("mine")
        heard = set()
        async with client.session.get(
            f"{client.base}/events/queues/mine?events=*&lastEventId={last}", headers=READER
        ) as stream:
            await stream.content.readuntil(b"\n\n")
            while "queue:removed" not in heard:
                block = (await stream.content.readuntil(b"\n\n")).decode()
                assert "theirs" not in block
                heard.add(block.partition("event: ")[2].partition("\n")[0])
    assert HEARD - heard == set()


async def test_a_worker_of_several_queues_is_told_of_without_the_others(client: Client) -> None:
    async with client.session.ws_connect(f"{client.base}/ws", headers=READER) as ws:
        await ws.send_json({"cmd": "Subscribe", "events": ["worker:*"]})
        await ws.receive(timeout=10)
        life = Life(client)
        await life.send("POST", "/workers", {"workerId": "a", "name": "a", "queues": ["theirs"]})
        await life.send("POST", "/workers", {"workerId": "none", "name": "none", "queues": []})
        await life.send("POST", "/workers", {"workerId": "b", "name": "b", "queues": ["theirs", "mine"]})
        connected = await ws.receive_json(timeout=10)
        assert (connected["data"]["workerId"], connected["data"]["queues"]) == ("b", ["mine"])
        await life.send("POST", "/workers/b/heartbeat")
        assert (await ws.receive_json(timeout=10))["event"] == "worker:heartbeat"


async def test_a_full_worker_is_told_of_to_whom_its_queue_belongs(client: Client) -> None:
    life, watch = Life(client), client.server.streams.watch
    for name in ("theirs", "mine"):
        await life.send("POST", "/workers", {"workerId": name, "name": name, "queues": [name], "concurrency": 1})
        await life.send("POST", f"/workers/{name}/heartbeat", {"activeJobs": 1})
    async with client.session.ws_connect(f"{client.base}/ws", headers=READER) as ws:
        await ws.send_json({"cmd": "Subscribe", "events": ["worker:overloaded"]})
        await ws.receive(timeout=10)
        watch.overload_s = 0.000_1
        await watch.look()
        time.sleep(0.001)
        await watch.look()
        assert (await ws.receive_json(timeout=10))["data"]["workerId"] == "mine"


@pytest.mark.parametrize("kind", Event.__subclasses__(), ids=lambda kind: kind.__name__)
def test_every_event_says_which_queues_it_is_about(kind: Any) -> None:
    """A new event that says nothing would be heard by everybody who follows one queue, and by nobody with a narrow token."""
    assert {"queue", "queues", "about"} & set(kind.__annotations__)


def test_what_decides_who_hears_is_not_told() -> None:
    event = happened.WorkerDisconnected("w", ("theirs", "mine"))
    (message,) = messages_of(State(), 1, event)
    assert message.data == b'{"workerId":"w"}' and message.queues == ("theirs", "mine")
    assert visible_to(Grant("t", ("read",), ("other",)), message) is None
    assert visible_to(Grant("t", ("produce",), ("mine",)), message) is None
    heard = visible_to(Grant("t", ("read",), ("mine",)), message)
    assert heard is not None and heard.data == message.data


def test_what_is_of_no_queue_is_heard_by_whoever_follows_one_and_by_no_narrow_token() -> None:
    message = EventMessage("stats:snapshot", 1, b"{}")
    assert message.concerns("mine")
    assert visible_to(Grant("t", ("read",), ("mine",)), message) is None
    assert visible_to(Grant("t", ("read",)), message) is message

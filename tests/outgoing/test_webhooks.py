"""Delivering webhooks to real receivers: order, repeats, failures, leaders that come and go, addresses that are refused."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from quorumq.api.outgoing.client import CannotConnect, HttpClient, Origin
from quorumq.api.outgoing.egress import webhook_policy
from quorumq.api.outgoing.webhooks import WebhookDeliveries
from quorumq.node.batching import Batcher
from quorumq.node.machine.lifecycle import runs
from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.jobs import PushJobs
from quorumq.node.machine.operations.runs import AckJob
from quorumq.node.machine.operations.webhooks import AddWebhook, EnableWebhook, RemoveWebhook
from quorumq.node.machine.state import job_spec
from quorumq.node.machine.state import webhook as bounds
from quorumq.node.machine.state.webhook import Webhook
from tests.support.local import LocalEngine
from tests.support.waiting import after_entries
from tests.support.world import START_MS

Answer = Callable[[web.BaseRequest], Any]


@dataclass
class Receiver:
    """An HTTP server that notes what it gets. answers: what it says to the next requests, 200 after them;
    bodies: with what; peers: whom from."""

    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    answers: list[int | asyncio.Event] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    peers: set[Any] = field(default_factory=set)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        self.got.append((dict(request.headers), body))
        self.peers.add(request.transport.get_extra_info("peername"))  # type: ignore[union-attr]
        self.arrived.set()
        answer = self.answers.pop(0) if self.answers else 200
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            answer = 200
        headers = {"Location": "/elsewhere"} if answer == 302 else {}
        return web.Response(status=answer, **({"headers": headers} | (self.bodies.pop(0) if self.bodies else {})))

    async def start(self) -> None:
        self.server = web.Server(self.handle)
        loop = asyncio.get_running_loop()
        self.listener = await loop.create_server(self.server, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.listener.sockets[0].getsockname()[1]}/hook"

    async def stop(self) -> None:
        self.listener.close()
        await self.server.shutdown(0.1)

    @property
    def ids(self) -> list[str]:
        return [headers["X-Webhook-Delivery"] for headers, _ in self.got]

    @property
    def jobs(self) -> list[str]:
        return [json.loads(body)["jobId"] for _, body in self.got]


class Sender:
    """An engine, a machine and what delivers, without the rest of a node."""

    def __init__(self, **options: Any) -> None:
        self.machine = Machine()
        self.engine = LocalEngine(self.machine, clock=lambda: START_MS)
        self.batcher = Batcher(self.engine)
        given = {"allow_private": True, "retry_after_s": (0.01, 0.01, 0.01)} | options
        self.deliveries = WebhookDeliveries(self.engine, self.machine, self.batcher, **given)

    async def do(self, operation: Operation) -> Any:
        return await self.batcher.add(operation, lambda reply: reply, 5)

    async def add(self, receiver: Receiver | str, webhook_id: str = "h", **more: Any) -> Webhook:
        url = receiver if isinstance(receiver, str) else receiver.url
        given = {"events": ("pushed",)} | more
        return (await self.do(AddWebhook(webhook_id, url, **given))).webhook

    async def push(self, *job_ids: str) -> None:
        await self.do(PushJobs("q", [job_spec(job_id, b"1") for job_id in job_ids]))

    async def emptied(self, webhook_id: str = "h") -> None:
        """Return when nothing waits for a webhook."""
        await after_entries(self.machine, lambda: webhook_id not in self.machine.state.webhooks.waiting)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    await receiver.start()
    yield receiver
    await receiver.stop()


@pytest.fixture
async def senders() -> AsyncIterator[Callable[..., Any]]:
    made: list[Sender] = []

    async def make(**options: Any) -> Sender:
        sender = Sender(**options)
        made.append(sender)
        await sender.engine.start()
        sender.deliveries.start()
        return sender

    yield make
    for sender in made:
        await sender.deliveries.stop()
        await sender.engine.stop()
        assert sender.machine.errors == 0


async def test_deliveries_arrive_in_order_with_headers_and_signature(receiver: Receiver, senders: Any) -> None:
    sender = await senders()
    hook = await sender.add(receiver, events=("job.pushed", "completed"), secret="whsec")
    await sender.push("a", "b")
    runs.take(sender.machine.state, sender.machine.state.queues["q"], 1, None, 0, "")
    await sender.do(AckJob("a", result=b'{"done":true}'))
    await sender.emptied()
    assert [json.loads(body) for _, body in receiver.got] == [
        {"event": "job.pushed", "timestamp": START_MS, "jobId": "a", "queue": "q"},
        {"event": "job.pushed", "timestamp": START_MS, "jobId": "b", "queue": "q"},
        {"event": "job.completed", "timestamp": START_MS, "jobId": "a", "queue": "q", "data": {"done": True}},
    ]
    headers, body = receiver.got[2]
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Webhook-Event"] == "job.completed"
    assert headers["X-Webhook-Timestamp"] == str(START_MS)
    assert headers["X-Webhook-Signature"] == hmac.new(b"whsec", body, hashlib.sha256).hexdigest()
    assert receiver.ids == ["h-1", "h-2", "h-3"]
    assert (hook.succeeded, hook.failed, hook.last_triggered) == (3, 0, START_MS)


async def test_without_a_secret_there_is_no_signature(receiver: Receiver, senders: Any) -> None:
    sender = await senders()
    await sender.add(receiver)
    await sender.push("a")
    await sender.emptied()
    assert "X-Webhook-Signature" not in receiver.got[0][0]


async def test_a_failed_delivery_is_repeated_as_it_was(receiver: Receiver, senders: Any) -> None:
    sender = await senders()
    hook = await sender.add(receiver)
    receiver.answers = [200, 500, 429]
    await sender.push("a", "b", "c")
    await sender.emptied()
    assert receiver.ids == ["h-1", "h-2", "h-2", "h-2", "h-3"]
    assert receiver.got[1][1] == receiver.got[3][1]
    assert (hook.succeeded, hook.failed) == (3, 0)


async def test_after_three_retries_a_delivery_is_given_up(receiver: Receiver, senders: Any) -> None:
    sender = await senders()
    hook = await sender.add(receiver)
    sender.machine.events_wanted = True
    events: list[Any] = []
    sender.machine.listen(lambda entry: events.extend(entry.events or ()))
    receiver.answers = [500, 500, 500, 500]
    await sender.push("a", "b")
    await sender.emptied()
    assert receiver.ids == ["h-1"] * 4 + ["h-2"]
    assert (hook.succeeded, hook.failed) == (1, 1)
    assert [event.error for event in events if event.name == "webhook:failed"] == ["HTTP 500"]


async def test_a_redirect_is_a_failure_and_not_followed(receiver: Receiver, senders: Any) -> None:
    sender = await senders(retry_after_s=())
    hook = await sender.add(receiver)
    receiver.answers = [302]
    await sender.push("a")
    await sender.emptied()
    assert (len(receiver.got), hook.failed) == (1, 1)


async def test_a_receiver_that_does_not_answer_is_given_up_in_time(receiver: Receiver, senders: Any) -> None:
    # The second one is answered in this time even when the machine pauses.
    sender = await senders(timeout_s=1.5, retry_after_s=())
    hook = await sender.add(receiver)
    hang = asyncio.Event()
    receiver.answers = [hang]
    await sender.push("a", "b")
    await sender.emptied()
    hang.set()
    assert (hook.failed, hook.succeeded, receiver.jobs) == (1, 1, ["a", "b"])


async def test_a_receiver_that_is_not_there_is_a_failure(senders: Any) -> None:
    sender = await senders(retry_after_s=())
    hook = await sender.add("http://127.0.0.1:1/")
    await sender.push("a")
    await sender.emptied()
    assert hook.failed == 1


async def test_a_slow_receiver_delays_nobody_else(receiver: Receiver, senders: Any) -> None:
    sender = await senders()
    slow = Receiver()
    await slow.start()
    hang = asyncio.Event()
    slow.answers = [hang]
    await sender.add(slow, "slow")
    await sender.add(receiver, "quick")
    await sender.push("a", "b", "c")
    await sender.emptied("quick")
    await slow.arrived.wait()
    assert receiver.jobs == ["a", "b", "c"] and slow.jobs == ["a"]
    hang.set()
    await sender.emptied("slow")
    assert slow.jobs == ["a", "b", "c"]
    await slow.stop()


async def test_what_was_dropped_is_said_once_a_minute(
    receiver: Receiver, senders: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "OUTBOX_MAX", 2)
    hang = asyncio.Event()
    receiver.answers = [hang]
    sender = await senders()
    await sender.add(receiver)
    await sender.push("a", "b", "c", "d")
    await sender.push("e")
    hang.set()
    await sender.emptied()
    said = [text for record in caplog.records if "dropped" in (text := record.getMessage())]
    assert said == ["2 deliveries to webhooks were dropped: too many wait for receivers that do not take them"]


async def test_the_next_leader_delivers_what_the_last_one_did_not(receiver: Receiver, senders: Any) -> None:
    sender = await senders()
    hang = asyncio.Event()
    receiver.answers = [hang]
    await sender.add(receiver)
    await sender.push("a", "b")
    await receiver.arrived.wait()
    # The leader is gone before it hears the answer; what waits is in the replicated state.
    sender.engine.become_leader(False)
    image = list(sender.machine.image())
    hang.set()
    successor = await senders()
    successor.machine.restore(image)
    await successor.emptied()
    assert receiver.ids == ["h-1", "h-1", "h-2"]
    assert successor.machine.state.webhooks.by_id["h"].succeeded == 2


async def test_a_leader_that_hands_over_says_what_has_arrived(receiver: Receiver, senders: Any) -> None:
    sender = await senders()
    hang = asyncio.Event()
    receiver.answers = [200, hang]
    await sender.add(receiver)
    await sender.push("a", "b")
    while len(receiver.got) < 2:
        receiver.arrived.clear()
        await receiver.arrived.wait()
    sender.engine.become_leader(False)
    hang.set()
    while sender.machine.state.webhooks.by_id["h"].succeeded == 0:
        await asyncio.sleep(0.001)
    assert [delivery.job_id for delivery in sender.machine.state.webhooks.outboxes["h"].deliveries] == ["b"]


async def test_a_leader_that_comes_back_goes_on(receiver: Receiver, senders: Any) -> None:
    sender = await senders()
    await sender.add(receiver)
    sender.engine.become_leader(False)
    await sender.push("a")
    assert receiver.got == []
    sender.engine.become_leader(True)
    await sender.emptied()
    assert receiver.jobs == ["a"]


async def test_an_outcome_is_noted_when_the_cluster_can_again(
    receiver: Receiver, senders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = await senders()
    hang = asyncio.Event()
    receiver.answers = [hang]
    await sender.add(receiver)
    await sender.push("a")
    await receiver.arrived.wait()
    sender.engine.available = False
    refused, submit = asyncio.Event(), sender.engine.propose

    def submit_in_vain(*given: Any) -> None:
        refused.set()
        submit(*given)

    monkeypatch.setattr(sender.engine, "propose", submit_in_vain)
    hang.set()
    await refused.wait()
    sender.engine.available = True
    await sender.emptied()
    assert receiver.ids == ["h-1"]


@pytest.mark.parametrize("operation", [EnableWebhook("h", False), RemoveWebhook("h")])
async def test_what_was_switched_off_gets_nothing_more(receiver: Receiver, senders: Any, operation: Operation) -> None:
    sender = await senders()
    hang = asyncio.Event()
    receiver.answers = [hang]
    await sender.add(receiver)
    await sender.push("a", "b")
    await receiver.arrived.wait()
    await sender.do(operation)
    hang.set()
    await sender.push("c")
    while sender.deliveries._tasks:
        await asyncio.sleep(0.001)
    assert receiver.jobs == ["a"]


async def test_private_addresses_are_refused_at_each_connect(receiver: Receiver, senders: Any) -> None:
    sender = await senders(allow_private=False, retry_after_s=())
    port = receiver.url.rpartition(":")[2]
    for i, host in enumerate(("127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]")):
        await sender.add(f"http://{host}:{port}", f"h{i}")
    await sender.push("a")
    for i in range(4):
        await sender.emptied(f"h{i}")
        assert sender.machine.state.webhooks.by_id[f"h{i}"].failed == 1
    assert receiver.got == []


@pytest.mark.parametrize(
    ("host", "allow_private", "why"),
    [
        ("localhost", False, "loopback"),
        ("169.254.169.254", False, "cloud metadata"),
        ("169.254.1.1", True, None),
        ("10.0.0.1", True, None),
        ("10.0.0.1", False, "private"),
        ("1.1.1.1", False, None),
    ],
)
async def test_where_webhooks_may_go(host: str, allow_private: bool, why: str | None) -> None:
    client = HttpClient(webhook_policy(allow_private=allow_private))
    try:
        if why is None:
            assert [str(address) for address in await client._addresses(Origin(False, host, 80))] == [host]
        else:
            with pytest.raises(CannotConnect, match=f"must not be called: {why}"):
                await client._addresses(Origin(False, host, 80))
    finally:
        client.close()


async def test_an_answer_counts_by_its_status_whatever_its_body_is(receiver: Receiver, senders: Any) -> None:
    sender = await senders(retry_after_s=(), timeout_s=1.5)
    hook = await sender.add(receiver)
    for given in (
        {"body": b"x" * 1_000_000},
        {"body": b"no gzip", "headers": {"Content-Encoding": "gzip"}},
        {"body": b"?", "headers": {"Content-Encoding": "br"}},
    ):
        receiver.bodies.append(given)
    await sender.push("a", "b", "c", "d")
    await sender.emptied()
    assert (hook.succeeded, hook.failed, receiver.jobs) == (4, 0, ["a", "b", "c", "d"])


async def test_an_answer_whose_body_does_not_end_counts_by_its_status(senders: Any) -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 202 Accepted\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    async with await asyncio.start_server(endless, "127.0.0.1", 0) as server:
        sender = await senders(retry_after_s=(), timeout_s=0.5)
        hook = await sender.add(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        await sender.push("a")
        await sender.emptied()
        assert (hook.succeeded, hook.failed) == (1, 0)


async def test_a_delivery_goes_over_the_connection_of_the_one_before(receiver: Receiver, senders: Any) -> None:
    sender = await senders()
    await sender.add(receiver)
    await sender.push("a", "b", "c")
    await sender.emptied()
    assert len(receiver.peers) == 1 and len(receiver.got) == 3
    assert receiver.got[0][0]["User-Agent"] == "quorumq" and receiver.got[0][0]["Quorumq-Caller"]


async def test_a_node_that_is_about_to_hear_that_it_leads_no_more_sends_nothing(
    receiver: Receiver, senders: Any
) -> None:
    sender = await senders()
    await sender.add(receiver)
    # The role has changed and the listeners have not been told yet.
    sender.engine.is_leader = False
    await sender.push("a")
    for _ in range(20):
        await asyncio.sleep(0)
    assert receiver.got == [] and not sender.deliveries._tasks
    sender.engine.become_leader(True)
    await sender.emptied()
    assert receiver.jobs == ["a"]


async def test_a_bug_in_one_task_is_logged_and_tried_again_later(
    receiver: Receiver, senders: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("quorumq.api.outgoing.webhooks.AFTER_BUG_S", 0.02)
    sender = await senders()
    await sender.add(receiver)
    with monkeypatch.context() as patched:
        failed = asyncio.Event()

        async def broken(*_: object) -> int:
            failed.set()
            raise RuntimeError("a bug")

        patched.setattr(sender.deliveries, "_call", broken)
        await sender.push("a")
        await failed.wait()
    await sender.emptied()
    assert receiver.jobs == ["a"] and "deliveries of webhook h ended" in caplog.text

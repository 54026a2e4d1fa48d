"""Webhooks over HTTP: the rules, what is shown, and what a receiver gets."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from quorumq.node.machine.operations.webhooks import AddWebhook, EnableWebhook, ListWebhooks, RemoveWebhook
from tests.api.conftest import Client, Serve

BASE = {"url": "https://example.com/hook", "events": ["completed", "job.failed"], "queue": "q", "secret": "s3cret"}


async def hooks(client: Client) -> Any:
    return (await client.get("/webhooks")).json["data"]


async def test_what_is_shown(client: Client) -> None:
    assert await hooks(client) == {"webhooks": [], "stats": {"total": 0, "enabled": 0}}
    added = await client.post("/webhooks", BASE)
    data = added.json["data"]
    created, webhook_id = data.pop("createdAt"), data.pop("webhookId")
    assert data == {"url": BASE["url"], "events": BASE["events"], "queue": "q"}
    assert await client.server.node.ask(ListWebhooks(), len) == 1
    found = await hooks(client)
    assert found["stats"] == {"total": 1, "enabled": 1}
    assert found["webhooks"] == [
        {
            "id": webhook_id,
            "url": BASE["url"],
            "events": BASE["events"],
            "queue": "q",
            "createdAt": created,
            "lastTriggered": None,
            "successCount": 0,
            "failureCount": 0,
            "droppedCount": 0,
            "waitingCount": 0,
            "enabled": True,
        }
    ]
    assert b"s3cret" not in (await client.get("/webhooks")).body


async def test_enabling_and_removing(client: Client) -> None:
    webhook_id = (await client.post("/webhooks", BASE)).json["data"]["webhookId"]
    path = f"/webhooks/{webhook_id}"
    on, off = {"enabled": True}, {"enabled": False}
    for body, enabled in ((off, 0), (on, 1), ({}, 0), (on, 1), ({"enabled": None}, 0)):
        assert (await client.send("PUT", f"{path}/enabled", body)).json == {"ok": True}
        assert (await hooks(client))["stats"] == {"total": 1, "enabled": enabled}
    answer = await client.send("PUT", f"{path}/enabled", {"enabled": "no"})
    assert (answer.status, answer.error) == (400, "enabled must be a boolean")
    assert (await client.delete(path)).json == {"ok": True, "data": {"removed": True}}
    for answer in (await client.delete(path), await client.send("PUT", f"{path}/enabled", {"enabled": True})):
        assert (answer.status, answer.error) == (404, "Webhook not found")


VALID = "Valid: job.pushed, job.started, job.completed, job.failed, job.progress"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"url": None}, "Webhook URL is required"),
        ({"url": ""}, "Webhook URL is required"),
        ({"url": 5}, "Invalid URL format"),
        ({"url": "notaurl"}, "Invalid URL format"),
        ({"url": "https://example.com/" + "x" * 3000}, "Invalid URL format"),
        ({"url": "ftp://x.com/"}, "Webhook URL must use http or https protocol"),
        ({"url": "http://localhost/x"}, "Webhook URL cannot point to localhost"),
        ({"url": "http://127.0.0.1/x"}, "Webhook URL cannot point to localhost"),
        ({"url": "http://[::1]/"}, "Webhook URL cannot point to localhost"),
        ({"url": "http://10.0.0.1/"}, "Webhook URL cannot point to private IP"),
        ({"url": "http://172.16.0.1"}, "Webhook URL cannot point to private IP"),
        ({"url": "http://169.254.169.254/"}, "Webhook URL cannot point to link-local IP"),
        ({"url": "http://metadata.google.internal/"}, "Webhook URL cannot point to cloud metadata endpoints"),
        ({"url": "http://0.0.0.0/"}, "Webhook URL cannot point to unspecified IP"),
        ({"url": "http://[::ffff:127.0.0.1]/"}, "Webhook URL cannot point to loopback IP"),
        ({"url": "http://2130706433/"}, "Webhook URL cannot point to localhost"),
        ({"url": "http://example.com/"}, "Webhook URL must use https protocol"),
        ({"events": None}, "events must be an array"),
        ({"events": "completed"}, "events must be an array"),
        ({"events": ["completed", "bogus", 5]}, f"Invalid webhook event(s): bogus, 5. {VALID}"),
        ({"queue": "b d"}, "Queue name contains invalid characters"),
        ({"secret": "x" * 1025}, "secret too long (max 1024 characters)"),
    ],
)
async def test_rules(client: Client, change: Any, error: str) -> None:
    answer = await client.post("/webhooks", BASE | change)
    assert (answer.status, answer.error) == (400, error)
    assert (await hooks(client))["webhooks"] == []


async def test_a_command_has_the_same_rules(client: Client) -> None:
    async with client.session.ws_connect(f"{client.base}/ws") as ws:
        await ws.send_json({"cmd": "AddWebhook", **BASE, "url": "http://example.com/"})
        assert (await ws.receive_json(timeout=10))["error"] == "Webhook URL must use https protocol"


async def test_one_with_plain_http_that_is_there_already_goes_on(client: Client) -> None:
    """It was registered before, or on a node that allows it."""
    await client.server.node.submit(AddWebhook("old", "http://example.com/", ("job.pushed",)))
    for enabled in (False, True):
        assert (await client.send("PUT", "/webhooks/old/enabled", {"enabled": enabled})).status == 200
    await client.push()
    (shown,) = (await hooks(client))["webhooks"]
    assert (shown["enabled"], shown["url"]) == (True, "http://example.com/")
    assert shown["waitingCount"] + shown["failureCount"] + shown["successCount"] == 1


async def test_a_body_is_needed(client: Client) -> None:
    for raw in (b"{", b""):
        assert (await client.post("/webhooks", raw=raw)).error == "Invalid JSON body"


async def test_a_repeat_under_one_key_is_one_webhook(client: Client) -> None:
    answers = [await client.post("/webhooks", BASE, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert answers[0].body == answers[1].body
    assert (await hooks(client))["stats"]["total"] == 1


async def test_there_are_at_most_so_many(client: Client) -> None:
    node = client.server.node
    for number in range(500):
        await node.submit(AddWebhook(f"w{number}", "https://example.com/", ()))
    answer = await client.post("/webhooks", BASE)
    assert (answer.status, answer.error) == (400, "There may be at most 500 webhooks")
    await node.submit(EnableWebhook("w0", False))
    await node.submit(RemoveWebhook("w1"))
    assert (await hooks(client))["stats"] == {"total": 499, "enabled": 498}


class Receiver:
    """Somebody else's server."""

    def __init__(self) -> None:
        self.calls: asyncio.Queue[tuple[Any, bytes]] = asyncio.Queue()
        self.status = 200
        self.url = ""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.calls.put_nowait((request.headers, await request.read()))
        return web.Response(status=self.status)

    async def next(self) -> tuple[Any, bytes]:
        async with asyncio.timeout(10):
            return await self.calls.get()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    runner = web.ServerRunner(web.Server(made.handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield made
    await runner.cleanup()


async def test_what_a_receiver_gets(serve: Serve, receiver: Receiver) -> None:
    client = await serve(webhook_allow_private=True)
    body = {"url": receiver.url, "events": ["pushed", "completed"], "queue": "q", "secret": "s3cret"}
    webhook_id = (await client.post("/webhooks", body)).json["data"]["webhookId"]
    job_id = await client.push()
    await client.push("other")
    await client.pull()
    await client.post(f"/jobs/{job_id}/ack", {"result": {"done": True}})
    headers, sent = await receiver.next()
    assert json.loads(sent)["event"] == headers["X-Webhook-Event"] == "job.pushed"
    assert headers["X-Webhook-Delivery"] == f"{webhook_id}-1"
    headers, sent = await receiver.next()
    found = json.loads(sent)
    assert headers["X-Webhook-Timestamp"] == str(found.pop("timestamp"))
    assert found == {"event": "job.completed", "jobId": job_id, "queue": "q", "data": {"done": True}}
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Webhook-Signature"] == hmac.new(b"s3cret", sent, hashlib.sha256).hexdigest()
    assert receiver.calls.empty()
    async with asyncio.timeout(10):
        while (shown := (await hooks(client))["webhooks"][0])["successCount"] < 2:
            await asyncio.sleep(0.01)
    assert (shown["waitingCount"], shown["failureCount"]) == (0, 0)
    assert shown["lastTriggered"]

"""Tokens, their rights and their queues, on every row of every dialect, over HTTP, WebSocket and SSE; and the audit."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorumq.api import audit, tokens
from quorumq.api.auth import EVERYTHING, Access, Grant, matches
from quorumq.api.dialects.openarchiver import OpenArchiver
from quorumq.api.mounts import bullmq_dialects, main_dialects
from quorumq.api.request import Right, Route
from quorumq.api.rows import EventStream
from tests.api.conftest import Answer, Client, Serve

FULL = "full-token"
ALL = [(prefix + route.path, route) for dialect, prefix in main_dialects() for route in dialect.routes]
ON_BULLMQ = [(prefix + route.path, route) for dialect, prefix in bullmq_dialects() for route in dialect.routes]
OPEN = ("open", "metrics", "job")


class Keys:
    """A file of tokens in the making. Each token's secret is its name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tokens: dict[str, tokens.Token] = {}
        self.write()

    def add(self, name: str, rights: str, *queues: str, **more: Any) -> dict[str, str]:
        """Add a token; return the header that shows it."""
        chosen: Any = tuple(rights.split())
        self.tokens[name] = tokens.Token(name, tokens.digest(name), chosen, queues or ("*",), **more)
        self.write()
        return {"Authorization": f"Bearer {name}"}

    def write(self) -> None:
        lines = [json.dumps(json.loads(tokens.msgspec.json.encode(one))) for one in self.tokens.values()]
        tokens.replace(self.path, "\n".join([*lines, ""]).encode())


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "tokens.jsonl")


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def ask(client: Client, method: str, path: str, headers: dict[str, str], body: Any = None) -> Answer:
    return await client.send(method, path, body, headers=headers)


# -- Every row ---------------------------------------------------------------------------------------------------------


def filled(path: str, queue: str = "mail-out") -> str:
    """Put something in the place of a path's parameters."""
    return re.sub(r"\{\w+\}", "x1", path.replace("{queue}", queue))


def guarded(rows: Iterable[tuple[str, Route]]) -> list[tuple[str, Route]]:
    return [(path, route) for path, route in rows if route.right not in OPEN]


async def test_every_row_refuses_who_has_no_token(serve: Serve, keys: Keys) -> None:
    keys.add("known", "read")
    client = await serve(auth_tokens=(FULL,), auth_tokens_file=keys.path)
    for one, rows in ((client, guarded(ALL)), (client.bullmq, guarded(ON_BULLMQ))):
        assert rows
        for path, route in rows:
            for headers in ({}, bearer("unknown"), {"Authorization": "Basic known"}):
                answer = await ask(one, route.method, filled(path), headers)
                assert answer.status == 401, (route.method, path)


async def test_every_row_refuses_who_has_every_right_but_its_own(serve: Serve, keys: Keys) -> None:
    rights: tuple[Right, ...] = ("produce", "consume", "read", "manage:all", "admin")
    headers = {}
    for right in rights:
        others = [one for one in rights if one != right and not (one == "manage:all" and right != "admin")]
        headers[right] = keys.add(right.replace(":", "-"), " ".join(others))
    client = await serve(auth_tokens_file=keys.path)
    for one, rows in ((client, guarded(ALL)), (client.bullmq, guarded(ON_BULLMQ))):
        for path, route in rows:
            answer = await ask(one, route.method, filled(path), headers[route.right])
            assert answer.status == 403, (route.method, path)
            assert route.right in answer.body.decode(), (route.method, path)


async def test_every_row_of_a_queue_refuses_who_is_for_other_queues(serve: Serve, keys: Keys) -> None:
    headers = keys.add("other", "manage:all admin", "news-*")
    client = await serve(auth_tokens_file=keys.path)
    for one, rows in ((client, guarded(ALL)), (client.bullmq, guarded(ON_BULLMQ))):
        for path, route in rows:
            if route.reply is EventStream and route.touches != "queue":
                continue
            answer = await ask(one, route.method, filled(path), headers)
            if route.touches in ("queue", "every"):
                assert answer.status == 403, (route.method, path, answer.body)
            else:
                # These hold something else against the token: a job, what the body says, or nothing.
                assert answer.status in (200, 400, 404), (route.method, path, answer.body)


async def test_a_row_that_names_a_queue_is_held_against_it() -> None:
    for path, route in (*ALL, *ON_BULLMQ):
        if "{queue}" in path and route.right not in OPEN:
            assert route.touches == "queue", path
        if route.touches == "job":
            assert "{id}" in path, path


async def test_a_token_for_the_queue_gets_through(serve: Serve, keys: Keys) -> None:
    headers = keys.add("mailer", "produce consume read", "mail-*", "news")
    client = await serve(auth_tokens_file=keys.path)
    for queue, status in (("mail-out", 200), ("mail-", 200), ("news", 200), ("newsy", 403), ("mail", 403)):
        answer = await ask(client, "POST", f"/queues/{queue}/jobs", headers, {"data": 1})
        assert answer.status == status, queue
    # The name that counts is the one that is meant, however it is spelled.
    assert (await ask(client, "GET", "/queues/mail%2Dout/jobs", headers)).status == 200
    assert (await ask(client, "GET", "/queues/ne%77sy/jobs", headers)).status == 403


# -- Without tokens ----------------------------------------------------------------------------------------------------


async def test_what_is_open_without_any_token(client: Client) -> None:
    """bunqueue and the administration are open then; the others let nobody in."""
    assert (await client.get("/queues")).status == 200
    assert (await client.get("/admin/cluster")).status == 200
    for one, prefix in ((client, "/bullmq"), (client.bullmq, "")):
        for path, route in guarded((route.path, route) for route in bullmq_dialects()[0][0].routes):
            answer = await ask(one, route.method, prefix + filled(path), bearer("anything"))
            assert (answer.status, answer.body) == (401, b"Unauthorized"), path
        for path in ("/v1/jobs/queues", "/v1/jobs/queues/mail"):
            assert (await one.get(path, headers=bearer("x"))).json == {"message": "Unauthorized: Invalid token"}


async def test_an_empty_file_lets_nobody_in(serve: Serve, keys: Keys) -> None:
    client = await serve(auth_tokens_file=keys.path)
    assert (await client.get("/queues")).status == 401
    assert (await client.get("/readyz")).status == 200


# -- How dialects take tokens ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer full-token", 200),
        ("Basic xBearer full-token", 200),
        ("bearer full-token", 401),
        ("full-token", 401),
        ("Bearer ", 401),
        ("Bearer full-token,second", 401),
        ("Bearer second", 200),
    ],
)
async def test_bullmq_takes_bearers_as_recorded(serve: Serve, header: str, status: int) -> None:
    client = (await serve(auth_tokens=(FULL, "second"))).bullmq
    assert (await client.get("/queues/mail/jobs", headers={"Authorization": header})).status == status


@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        ({}, 401, "Unauthorized: No token provided"),
        ({"Authorization": "Basic abc"}, 401, "Unauthorized: No token provided"),
        ({"Authorization": "Bearer nope"}, 401, "Unauthorized: Invalid token"),
        ({"X-API-KEY": "nope"}, 401, "Unauthorized: Invalid API key"),
        # The key goes first, whatever the other header says.
        ({"X-API-KEY": "nope", "Authorization": "Bearer full-token"}, 401, "Unauthorized: Invalid API key"),
        ({"X-API-KEY": "full-token", "Authorization": "Bearer nope"}, 200, None),
        ({"X-API-KEY": "full-token"}, 200, None),
        ({"X-API-KEY": "", "Authorization": "Bearer full-token"}, 200, None),
        ({"Authorization": "Bearer reader"}, 403, "Forbidden: the token does not have the right manage:all"),
        ({"X-API-KEY": "reader"}, 403, "Forbidden: the token does not have the right manage:all"),
    ],
)
async def test_open_archiver(
    serve: Serve, keys: Keys, headers: dict[str, str], status: int, message: str | None
) -> None:
    keys.add("reader", "read produce consume")
    client = await serve(auth_tokens=(FULL,), auth_tokens_file=keys.path)
    for one in (client, client.bullmq):
        answer = await one.get("/v1/jobs/queues", headers=headers)
        assert answer.status == status
        assert message is None or answer.json == {"message": message}


async def test_a_check_comes_before_the_body(serve: Serve, keys: Keys) -> None:
    headers = keys.add("reader", "read")
    client = await serve(auth_tokens_file=keys.path)
    for one, path in ((client, "/queues/q/jobs"), (client.bullmq, "/queues/q/jobs")):
        assert (await one.send("POST", path, raw=b"{nope", headers=headers)).status == 403


async def test_metrics(serve: Serve, keys: Keys) -> None:
    scraper, reader = keys.add("scraper", "metrics"), keys.add("reader", "read")
    one_queue = keys.add("one", "metrics", "mail")
    client = await serve(auth_tokens_file=keys.path, metrics_auth=True)
    found = [(await ask(client, "GET", "/prometheus", how)).status for how in ({}, scraper, reader, one_queue)]
    assert found == [401, 200, 403, 403]
    assert (await ask(client, "GET", "/queues", scraper)).status == 403


# -- Jobs and other records of other queues ----------------------------------------------------------------------------

JOB_ROWS = [(path, route) for path, route in ALL if route.touches == "job"]


@pytest.mark.parametrize(("path", "route"), JOB_ROWS, ids=[f"{route.method} {path}" for path, route in JOB_ROWS])
async def test_a_job_of_another_queue_is_like_none(serve: Serve, keys: Keys, path: str, route: Route) -> None:
    mine = keys.add("mine", "manage:all", "mine")
    client = await serve(auth_tokens=(FULL,), auth_tokens_file=keys.path)
    pushed = await ask(client, "POST", "/queues/theirs/jobs", bearer(FULL), {"data": 1, "jobId": "their-job"})
    assert pushed.json["id"] == "their-job"
    before = client.server.node.machine.digest()
    body = {"data": 1, "priority": 1, "delay": 5, "progress": 5, "message": "m", "token": "t"}
    sent = body if route.body != "none" else None
    theirs = await ask(client, route.method, path.replace("{id}", "their-job"), mine, sent)
    nobodys = await ask(client, route.method, path.replace("{id}", "no-job"), mine, sent)
    # Wherever the answer repeats the id, it is the one that was asked for.
    assert (theirs.status, theirs.body.replace(b"their-job", b"no-job")) == (nobodys.status, nobodys.body)
    state = await ask(client, "GET", "/jobs/their-job", bearer(FULL))
    assert state.json["job"]["state"] == "waiting"
    assert state.json["job"]["data"] == 1
    assert before


async def test_an_id_to_be_decoded_tells_nothing_of_anothers_job(serve: Serve, keys: Keys) -> None:
    mine = keys.add("mine", "manage:all", "mine")
    client = await serve(auth_tokens=(FULL,), auth_tokens_file=keys.path)
    for queue in ("mine", "theirs"):
        await ask(client, "POST", f"/queues/{queue}/jobs", bearer(FULL), {"data": 1, "jobId": f"a job of {queue}"})
    theirs = await ask(client, "GET", "/jobs/a%20job%20of%20theirs/state", mine)
    assert theirs.json == {"ok": True, "id": "a%20job%20of%20theirs", "state": "unknown"}
    own = await ask(client, "GET", "/jobs/a%20job%20of%20mine/state", mine)
    assert own.json == {"ok": True, "id": "a job of mine", "state": "waiting"}


async def test_own_jobs_are_there(serve: Serve, keys: Keys) -> None:
    mine = keys.add("mine", "produce consume read", "mine")
    client = await serve(auth_tokens_file=keys.path)
    job_id = (await ask(client, "POST", "/queues/mine/jobs", mine, {"data": 1, "jobId": "j"})).json["id"]
    assert (await ask(client, "GET", f"/jobs/{job_id}", mine)).status == 200
    assert (await ask(client, "GET", "/jobs/custom/j", mine)).status == 200
    assert (await ask(client, "GET", "/queues/mine/jobs", mine)).json["job"]["id"] == "j"
    assert (await ask(client, "POST", "/jobs/j/ack", mine, {})).status == 200


async def test_batches_leave_out_what_is_not_theirs(serve: Serve, keys: Keys) -> None:
    mine = keys.add("mine", "produce consume", "mine")
    client = await serve(auth_tokens=(FULL,), auth_tokens_file=keys.path)
    ids = {}
    for queue in ("mine", "theirs"):
        await ask(client, "POST", f"/queues/{queue}/jobs", bearer(FULL), {"data": 1})
        ids[queue] = (await ask(client, "GET", f"/queues/{queue}/jobs", bearer(FULL))).json["job"]["id"]
    both = [ids["theirs"], ids["mine"]]
    none = ["no-job", ids["mine"]]
    for path, more in (("/jobs/heartbeat-batch", {}), ("/jobs/extend-locks", {"tokens": [None, None]})):
        answers = [await ask(client, "POST", path, mine, {"ids": some, **more}) for some in (both, none)]
        assert answers[0].status == answers[1].status == 200
        assert answers[0].body == answers[1].body, path
    answer = await ask(client, "POST", "/jobs/ack-batch", mine, {"ids": both})
    assert (await ask(client, "GET", f"/jobs/{ids['theirs']}/state", bearer(FULL))).json["state"] == "active"
    assert (await ask(client, "GET", f"/jobs/{ids['mine']}/state", bearer(FULL))).json["state"] == "completed"
    assert ids["theirs"] not in answer.body.decode()


async def test_custom_ids(serve: Serve, keys: Keys) -> None:
    mine = keys.add("mine", "read", "mine")
    client = await serve(auth_tokens=(FULL,), auth_tokens_file=keys.path)
    await ask(client, "POST", "/queues/theirs/jobs", bearer(FULL), {"data": 1, "jobId": "their-job"})
    theirs = await ask(client, "GET", "/jobs/custom/their-job", mine)
    nobodys = await ask(client, "GET", "/jobs/custom/no-job", mine)
    assert (theirs.status, theirs.body) == (nobodys.status, nobodys.body)
    assert theirs.status == 404


async def test_nobody_waits_for_the_results_of_others(serve: Serve, keys: Keys) -> None:
    """Whoever depends on a job may read its result, so that is not allowed across queues."""
    mine = keys.add("mine", "produce read", "mine")
    client = await serve(auth_tokens=(FULL,), auth_tokens_file=keys.path)
    await ask(client, "POST", "/queues/theirs/jobs", bearer(FULL), {"data": 1, "jobId": "their-job"})
    own = (await ask(client, "POST", "/queues/mine/jobs", mine, {"data": 1})).json["id"]
    for path, body in (
        ("/queues/mine/jobs", {"data": 1, "dependsOn": ["their-job"]}),
        ("/queues/mine/jobs/bulk", {"jobs": [{"data": 1}, {"data": 1, "dependsOn": [own, "their-job"]}]}),
    ):
        theirs = await ask(client, "POST", path, mine, body)
        nobodys = await ask(client, "POST", path, mine, json.loads(json.dumps(body).replace("their-job", "no-job")))
        assert (theirs.status, theirs.body.replace(b"their-job", b"no-job")) == (nobodys.status, nobodys.body)
        assert theirs.status == 400
        assert (await ask(client, "POST", path, bearer(FULL), body)).status == 200
    assert (await ask(client, "POST", "/queues/mine/jobs", mine, {"data": 1, "dependsOn": [own]})).status == 200


async def test_lists_show_what_the_token_is_for(serve: Serve, keys: Keys) -> None:
    mine = keys.add("mine", "manage:all", "mine*")
    client = await serve(auth_tokens=(FULL,), auth_tokens_file=keys.path, webhook_allow_private=True)
    for queue in ("mine", "mine-too", "theirs"):
        await ask(client, "POST", f"/queues/{queue}/jobs", bearer(FULL), {"data": 1})
        cron = {"name": f"c-{queue}", "queue": queue, "data": 1, "repeatEvery": 60_000}
        assert (await ask(client, "POST", "/crons", bearer(FULL), cron)).status == 200
        hook = {"url": f"http://127.0.0.1/{queue}", "events": ["completed"], "queue": queue}
        assert (await ask(client, "POST", "/webhooks", bearer(FULL), hook)).status == 200
    hook = {"url": "http://127.0.0.1/all", "events": ["completed"]}
    assert (await ask(client, "POST", "/webhooks", bearer(FULL), hook)).status == 200
    assert (await ask(client, "GET", "/queues", mine)).json["queues"] == ["mine", "mine-too"]
    crons = (await ask(client, "GET", "/crons", mine)).json["crons"]
    assert [one["queue"] for one in crons] == ["mine", "mine-too"]
    hooks = (await ask(client, "GET", "/webhooks", mine)).json["data"]
    assert [one["queue"] for one in hooks["webhooks"]] == ["mine", "mine-too"]
    assert hooks["stats"] == {"total": 2, "enabled": 2}
    archived = (await ask(client, "GET", "/v1/jobs/queues", mine)).json["queues"]
    assert [one["name"] for one in archived] == ["mine", "mine-too"]
    listed = (await client.bullmq.get("/queues", headers=mine)).json["queues"]
    assert listed == ["mine", "mine-too"]
    for path in ("/stats", "/metrics", "/workers", "/heapstats"):
        assert (await ask(client, "GET", path, mine)).status == 403, path
    for path in ("/ping", "/storage", "/queues/mine/workers"):
        assert (await ask(client, "GET", path, mine)).status == 200, path


async def test_crons_of_others(serve: Serve, keys: Keys) -> None:
    mine = keys.add("mine", "manage:all", "mine")
    client = await serve(auth_tokens=(FULL,), auth_tokens_file=keys.path)
    theirs = {"name": "c", "queue": "theirs", "data": 1, "repeatEvery": 60_000}
    assert (await ask(client, "POST", "/crons", mine, theirs)).status == 403
    await ask(client, "POST", "/crons", bearer(FULL), theirs)
    # Nor is it replaced by one of the same name.
    assert (await ask(client, "POST", "/crons", mine, {**theirs, "queue": "mine"})).status == 403
    for method in ("GET", "DELETE"):
        there, nowhere = [await ask(client, method, f"/crons/{name}", mine) for name in ("c", "none")]
        assert (there.status, there.body) == (nowhere.status, nowhere.body) == (404, there.body)
    assert (await ask(client, "GET", "/crons/c", bearer(FULL))).status == 200
    assert (await ask(client, "POST", "/crons", mine, {**theirs, "name": "d", "queue": "mine"})).status == 200
    assert (await ask(client, "DELETE", "/crons/d", mine)).status == 200


async def test_webhooks_of_others(serve: Serve, keys: Keys) -> None:
    mine = keys.add("mine", "manage:all", "mine")
    client = await serve(auth_tokens=(FULL,), auth_tokens_file=keys.path, webhook_allow_private=True)
    hook = {"url": "http://127.0.0.1/x", "events": ["completed"]}
    for body, status in ((hook, 403), ({**hook, "queue": "theirs"}, 403), ({**hook, "queue": "mine"}, 200)):
        assert (await ask(client, "POST", "/webhooks", mine, body)).status == status
    for body in (hook, {**hook, "queue": "theirs"}):
        added = (await ask(client, "POST", "/webhooks", bearer(FULL), body)).json["data"]["webhookId"]
        assert (await ask(client, "DELETE", f"/webhooks/{added}", mine)).error == "Webhook not found"
        answer = await ask(client, "PUT", f"/webhooks/{added}/enabled", mine, {"enabled": False})
        assert answer.error == "Webhook not found"
    shown = (await ask(client, "GET", "/webhooks", bearer(FULL))).json["data"]
    assert shown["stats"] == {"total": 3, "enabled": 3}


async def test_workers_of_others(serve: Serve, keys: Keys) -> None:
    mine = keys.add("mine", "consume", "mine")
    client = await serve(auth_tokens=(FULL,), auth_tokens_file=keys.path)
    for queues, status in ((["mine"], 200), (["mine", "theirs"], 403), ([], 403)):
        assert (await ask(client, "POST", "/workers", mine, {"queues": queues})).status == status
    await ask(client, "POST", "/workers", bearer(FULL), {"workerId": "w", "queues": ["theirs"]})
    assert (await ask(client, "POST", "/workers", mine, {"workerId": "w", "queues": ["mine"]})).status == 403
    assert (await ask(client, "POST", "/workers/w/heartbeat", mine, {})).error == "Worker not found"
    assert (await ask(client, "DELETE", "/workers/w", mine)).error == "Worker not found"
    assert (await ask(client, "POST", "/workers/w/heartbeat", bearer(FULL), {})).status == 200
    await ask(client, "POST", "/workers", bearer(FULL), {"workerId": "both", "queues": ["theirs", "mine"]})
    await ask(client, "POST", "/workers/both/heartbeat", bearer(FULL), {"currentJob": "their-job"})
    reader = keys.add("reader", "read", "mine")
    await client.server.access.keep_up()
    shown = (await ask(client, "GET", "/queues/mine/workers", reader)).json["workers"]
    assert [worker["queues"] for worker in shown] == [["mine"], ["mine"]]
    assert [worker["currentJob"] for worker in shown] == [None, None]
    whole = (await ask(client, "GET", "/queues/mine/workers", bearer(FULL))).json["workers"]
    assert whole[1]["queues"] == ["theirs", "mine"]


# -- Streams -----------------------------------------------------------------------------------------------------------


async def talk(ws: aiohttp.ClientWebSocketResponse, **message: Any) -> Any:
    """Send a command and return its reply; events that come before it are passed over."""
    await ws.send_json({**message, "reqId": "r"})
    while True:
        reply = await ws.receive_json(timeout=10)
        if reply.get("reqId") == "r":
            return reply


class TestWebSocket:
    async def test_commands_need_the_rights_of_their_rows(self, serve: Serve, keys: Keys) -> None:
        producer = keys.add("producer", "produce", "mine")
        client = await serve(auth_tokens=(FULL,), auth_tokens_file=keys.path)
        await ask(client, "POST", "/queues/theirs/jobs", bearer(FULL), {"data": 1, "jobId": "their-job"})
        async with client.session.ws_connect(f"{client.base}/ws", headers=producer) as ws:
            assert (await talk(ws, cmd="PUSH", queue="mine", data=1))["ok"]
            assert (await talk(ws, cmd="PUSH", queue="theirs", data=1))["error"].startswith("Forbidden")
            assert (await talk(ws, cmd="PULL", queue="mine"))["error"].startswith("Forbidden")
            assert (await talk(ws, cmd="Obliterate", queue="mine"))["error"].startswith("Forbidden")
            theirs, nobodys = [await talk(ws, cmd="Cancel", id=one) for one in ("their-job", "no-job")]
            assert theirs == nobodys
            assert not theirs["ok"]
        assert (await ask(client, "GET", "/jobs/their-job/state", bearer(FULL))).json["state"] == "waiting"

    async def test_acknowledging_leaves_out_what_is_not_theirs(self, serve: Serve, keys: Keys) -> None:
        mine = keys.add("mine", "consume", "mine")
        client = await serve(auth_tokens=(FULL,), auth_tokens_file=keys.path)
        ids = {}
        for queue in ("mine", "theirs"):
            await ask(client, "POST", f"/queues/{queue}/jobs", bearer(FULL), {"data": 1})
            ids[queue] = (await ask(client, "GET", f"/queues/{queue}/jobs", bearer(FULL))).json["job"]["id"]
        async with client.session.ws_connect(f"{client.base}/ws", headers=mine) as ws:
            for tokens in ({}, {"tokens": ["t", ""]}):
                theirs = await talk(ws, cmd="ACKB", ids=[ids["theirs"], ids["mine"]], **tokens)
                nobodys = await talk(ws, cmd="ACKB", ids=["no-job", ids["mine"]], **tokens)
                assert json.dumps(theirs).replace(ids["theirs"], "no-job") == json.dumps(nobodys)
        assert (await ask(client, "GET", f"/jobs/{ids['theirs']}/state", bearer(FULL))).json["state"] == "active"

    async def test_events_are_those_of_the_tokens_queues(self, serve: Serve, keys: Keys) -> None:
        reader = keys.add("reader", "read", "mine")
        producer = keys.add("producer", "produce")
        client = await serve(auth_tokens=(FULL,), auth_tokens_file=keys.path)
        async with (
            client.session.ws_connect(f"{client.base}/ws", headers=reader) as heard,
            client.session.ws_connect(f"{client.base}/ws", headers=producer) as deaf,
        ):
            assert (await talk(heard, cmd="Subscribe", events=["*"]))["ok"]
            assert (await talk(deaf, cmd="Subscribe", events=["*"]))["error"].startswith("Forbidden")
            for queue in ("theirs", "mine"):
                await ask(client, "POST", f"/queues/{queue}/jobs", bearer(FULL), {"data": 1})
            first = await heard.receive_json(timeout=10)
            assert first["data"]["queue"] == "mine"
            # Whatever it was told comes before the answer.
            await deaf.send_json({"cmd": "Hello", "reqId": 1})
            assert (await deaf.receive_json(timeout=10))["reqId"] == 1

    async def test_the_auth_command(self, serve: Serve, keys: Keys) -> None:
        keys.add("producer", "produce", "mine")
        client = await serve(auth_tokens_file=keys.path)
        async with client.session.ws_connect(f"{client.base}/ws") as ws:
            assert (await talk(ws, cmd="Auth", token="nope"))["error"] == "Invalid token"
            assert (await talk(ws, cmd="PUSH", queue="mine", data=1))["error"] == "Not authenticated"
            assert (await talk(ws, cmd="Auth", token="producer"))["ok"]
            assert (await talk(ws, cmd="PUSH", queue="mine", data=1))["ok"]
            assert not (await talk(ws, cmd="PULL", queue="mine"))["ok"]

    async def test_a_handshake_for_another_queue(self, serve: Serve, keys: Keys) -> None:
        reader = keys.add("reader", "read", "mine")
        client = await serve(auth_tokens_file=keys.path)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await client.session.ws_connect(f"{client.base}/ws/queues/theirs", headers=reader)
        assert refused.value.status == 403

    async def test_a_revoked_token_ends_its_connections(
        self, serve: Serve, keys: Keys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("quorumq.api.server.REREAD_S", 0.01)
        kept, gone = keys.add("kept", "read"), keys.add("gone", "read")
        client = await serve(auth_tokens_file=keys.path)
        stream = await client.session.get(f"{client.base}/events", headers=gone)
        await stream.content.readuntil(b"\n\n")
        async with (
            client.session.ws_connect(f"{client.base}/ws", headers=kept) as stays,
            client.session.ws_connect(f"{client.base}/ws", headers=gone) as ends,
        ):
            del keys.tokens["gone"]
            keys.write()
            assert (await ends.receive(timeout=10)).type is aiohttp.WSMsgType.CLOSE
            assert await stream.content.read() == b""
            assert (await talk(stays, cmd="Ping"))["ok"]
        assert (await client.get("/queues", headers=gone)).status == 401


@pytest.mark.parametrize(
    ("method", "path", "body", "on_bullmq"),
    [
        ("POST", "/queues/mails/jobs/next", {"token": "t", "timeout": 60_000}, True),
        ("GET", "/queues/mails/jobs?timeout=30000", None, False),
        ("POST", "/queues/mails/jobs/pull-batch", {"count": 1, "timeout": 30_000}, False),
        ("POST", "/jobs/unfinished/wait", {"timeout": 30_000}, False),
    ],
)
async def test_a_revoked_token_ends_its_requests_that_wait(
    serve: Serve,
    keys: Keys,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    body: Any,
    on_bullmq: bool,
) -> None:
    monkeypatch.setattr("quorumq.api.server.REREAD_S", 0.01)
    kept, gone = keys.add("kept", "produce consume read"), keys.add("gone", "consume read")
    client = await serve(auth_tokens_file=keys.path)
    await ask(client, "POST", "/queues/others/jobs", kept, {"data": 1, "jobId": "unfinished"})
    asked = client.bullmq if on_bullmq else client
    going = asyncio.create_task(ask(asked, method, path, gone, body))
    async with asyncio.timeout(10):
        while not client.server.waiting:
            await asyncio.sleep(0.005)
    del keys.tokens["gone"]
    keys.write()
    assert (await asyncio.wait_for(going, 10)).status == 401
    assert not client.server.waiting
    # Nobody is left in the line who would get a job now.
    await ask(client, "POST", "/queues/mails/jobs", kept, {"data": 1})
    assert (await ask(client, "GET", "/queues/mails/count", kept)).json["count"] == 1


async def test_sse(serve: Serve, keys: Keys) -> None:
    reader = keys.add("reader", "read", "mine")
    client = await serve(auth_tokens=(FULL,), auth_tokens_file=keys.path)
    assert (await client.get("/events/queues/theirs", headers=reader)).status == 403
    async with client.session.get(f"{client.base}/events?events=job:*", headers=reader) as stream:
        await stream.content.readuntil(b"\n\n")
        for queue in ("theirs", "mine"):
            await ask(client, "POST", f"/queues/{queue}/jobs", bearer(FULL), {"data": 1})
        told = (await stream.content.readuntil(b"\n\n")).decode()
        assert '"queue":"mine"' in told


# -- The file ----------------------------------------------------------------------------------------------------------


class TestFile:
    def test_what_is_read(self) -> None:
        whole = {
            "name": "a",
            "sha256": "0" * 64,
            "rights": ["read"],
            "queues": ["x*"],
            "created": "2026-01-31T00:00:00Z",
            "expires": "2027-01-31T12:00:00+02:00",
        }
        text = f'# a comment\n\n{json.dumps(whole)}\n  {{"name": "b", "sha256": "{"1" * 64}", "rights": ["admin"]}}\r\n'
        first, second = tokens.parse(text.encode())
        assert (first.name, first.rights, first.queues) == ("a", ("read",), ("x*",))
        assert first.expires == datetime(2027, 1, 31, 10, tzinfo=UTC)
        assert (second.queues, second.expires) == (("*",), None)

    @pytest.mark.parametrize(
        "line",
        [
            "nonsense",
            "[]",
            '{"name": "a"}',
            '{"name": "a", "sha256": "short", "rights": ["read"]}',
            '{"name": "a", "sha256": "%s", "rights": []}' % ("0" * 64),
            '{"name": "a", "sha256": "%s", "rights": ["root"]}' % ("0" * 64),
            '{"name": "a", "sha256": "%s", "rights": ["read"], "queues": []}' % ("0" * 64),
            '{"name": "a", "sha256": "%s", "rights": ["read"], "queues": [""]}' % ("0" * 64),
            '{"name": "a", "sha256": "%s", "rights": ["read"], "expires": "2027-01-31T12:00:00"}' % ("0" * 64),
            '{"name": "a b", "sha256": "%s", "rights": ["read"]}' % ("0" * 64),
            '{"name": "a", "sha256": "%s", "rights": ["read"], "secret": "qmq_s3cret"}' % ("0" * 64),
            '{"name": "first", "sha256": "%s", "rights": ["read"]}' % ("0" * 64),
            '{"name": "other", "sha256": "%s", "rights": ["read"]}' % ("f" * 64),
        ],
    )
    def test_what_is_refused(self, line: str) -> None:
        good = '{"name": "first", "sha256": "%s", "rights": ["read"]}' % ("f" * 64)
        with pytest.raises(tokens.BadTokens, match=r"^line 2") as refused:
            tokens.parse(f"{good}\n{line}\n".encode())
        assert "s3cret" not in str(refused.value)
        assert "0" * 64 not in str(refused.value)

    def test_only_digests_are_kept(self) -> None:
        secret, token = tokens.make("a", ["read"], ["*"])
        assert len(secret) >= 43
        assert secret not in tokens.msgspec.json.encode(token).decode()
        assert token.sha256 == tokens.digest(secret)
        assert tokens.make("a", ["read"], ["*"])[0] != secret

    def test_it_is_replaced_in_one_step_and_is_its_owners(self, tmp_path: Path) -> None:
        path = tmp_path / "tokens"
        tokens.replace(path, b"one")
        held = path.open("rb")
        tokens.replace(path, b"two")
        with held:
            assert held.read() == b"one"
        assert path.read_bytes() == b"two"
        assert path.stat().st_mode & 0o777 == 0o600
        assert os.listdir(tmp_path) == ["tokens"]


class TestRereading:
    async def test_what_is_added_and_revoked(self, serve: Serve, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
        client = await serve(auth_tokens_file=keys.path)
        headers = keys.add("new", "read")
        assert (await client.get("/queues", headers=headers)).status == 401
        await client.server.access.keep_up()
        assert (await client.get("/queues", headers=headers)).status == 200
        keys.tokens.clear()
        keys.write()
        await client.server.access.keep_up()
        assert (await client.get("/queues", headers=headers)).status == 401

    async def test_rights_change(self, serve: Serve, keys: Keys) -> None:
        headers = keys.add("one", "read")
        client = await serve(auth_tokens_file=keys.path)
        assert (await client.post("/queues/q/jobs", {"data": 1}, headers=headers)).status == 403
        keys.add("one", "produce", "q")
        await client.server.access.keep_up()
        assert (await client.post("/queues/q/jobs", {"data": 1}, headers=headers)).status == 200

    async def test_a_broken_file_keeps_the_last_good_one(
        self, serve: Serve, keys: Keys, caplog: pytest.LogCaptureFixture
    ) -> None:
        headers = keys.add("one", "read")
        client = await serve(auth_tokens=(FULL,), auth_tokens_file=keys.path)

        async def figures() -> str:
            return (await client.get("/prometheus")).body.decode()

        assert "quorumq_tokens_file_ok 1" in await figures()
        for broken in ("{", '{"name": "qmq_s3cret"}'):
            keys.path.write_text(broken)
            await client.server.access.keep_up()
            assert (await client.get("/queues", headers=headers)).status == 200
        page = await figures()
        assert "quorumq_tokens_file_ok 0" in page
        assert "quorumq_tokens_file_failures_total 2" in page
        assert "quorumq_tokens 2" in page
        errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert len(errors) == 2
        assert all("cannot be used" in text and "stay in force" in text for text in errors)
        assert "s3cret" not in caplog.text
        keys.path.unlink()
        await client.server.access.keep_up()
        await client.server.access.keep_up()
        assert (await client.get("/queues", headers=headers)).status == 200
        assert "quorumq_tokens_file_failures_total 3" in await figures()
        # It comes back, and is what counts again.
        keys.add("two", "read")
        await client.server.access.keep_up()
        assert "quorumq_tokens_file_ok 1" in await figures()
        assert (await client.get("/queues", headers=bearer("two"))).status == 200

    async def test_a_file_that_is_broken_at_the_start_gives_nobody_anything(self, serve: Serve, keys: Keys) -> None:
        keys.path.write_text("nonsense")
        client = await serve(auth_tokens=(FULL,), auth_tokens_file=keys.path)
        assert (await client.get("/queues")).status == 401
        assert (await client.get("/queues", headers=bearer(FULL))).status == 200
        headers = keys.add("one", "read")
        await client.server.access.keep_up()
        assert (await client.get("/queues", headers=headers)).status == 200

    def test_it_is_followed_through_links(self, tmp_path: Path) -> None:
        """As where a directory of secrets is swapped as a whole."""
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            Keys(tmp_path / name / "tokens").add(name, "read")
        link = tmp_path / "current"
        link.symlink_to("a")
        access = Access((), link / "tokens")
        assert access.find("a") is not None
        (tmp_path / "next").symlink_to("b")
        (tmp_path / "next").replace(link)
        access.reread()
        assert access.find("a") is None
        assert access.find("b") is not None

    def test_nothing_is_read_while_it_stays(self, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
        keys.add("a", "read")
        access = Access((), keys.path)
        before = access.find("a")
        monkeypatch.setattr(tokens, "read", lambda path: pytest.fail("it was read again"))
        access.reread()
        assert access.find("a") is before

    def test_tokens_end(self, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
        ends = tokens.now() + timedelta(hours=1)
        keys.add("a", "read", expires=ends)
        access = Access((), keys.path)
        grant = access.find("a")
        assert grant is not None
        assert grant.alive
        monkeypatch.setattr(time, "time", lambda: ends.timestamp())
        assert access.find("a") is None
        assert not grant.alive


# -- Patterns ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("*", "", True),
        ("*", "anything", True),
        ("a", "a", True),
        ("a", "ab", False),
        ("a*", "a", True),
        ("a*", "ab", True),
        ("a*", "ba", False),
        ("*a", "ba", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("a*b*c", "axbxc", True),
        ("a*b*c", "axcxb", False),
        ("a*b*b", "ab", False),
        ("a?", "ab", False),
        ("a.c", "abc", False),
        ("[a]", "a", False),
        ("a**b", "ab", True),
    ],
)
def test_patterns(pattern: str, name: str, fits: bool) -> None:
    assert matches(pattern, name) is fits


@given(st.text("ab*", max_size=8), st.text("ab", max_size=10))
def test_patterns_are_what_a_regular_expression_says(pattern: str, name: str) -> None:
    expected = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None
    assert matches(pattern, name) is expected


def test_what_a_token_remembers_of_queues_is_bounded() -> None:
    grant = Grant("a", ["read"], ["q1*"])
    for number in range(5_000):
        assert grant.covers(f"q{number}") is str(number).startswith("1")
    assert len(grant._covered) <= 1_000


def test_rights_that_others_imply() -> None:
    assert Grant("a", ["manage:all"]).rights == {"manage:all", "produce", "consume", "read"}
    assert Grant("a", ["admin"]).rights == {"admin"}
    assert EVERYTHING.unlimited
    assert not Grant("a", tokens.RIGHTS, ["mail*"]).unlimited


# -- The audit ---------------------------------------------------------------------------------------------------------


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    shown = ("token", "client", "via", "route", "queue", "status")
    return [
        {"what": record.getMessage(), **{key: getattr(record, key) for key in shown if hasattr(record, key)}}
        for record in caplog.records
        if record.name == "quorumq.audit"
    ]


async def test_the_audit(serve: Serve, keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    reader, ops = keys.add("reader", "read", "mine"), keys.add("ops", "admin manage:all")
    client = await serve(auth_tokens=(FULL,), auth_tokens_file=keys.path, log_level="error")
    here = {"client": "127.0.0.1"}
    await client.get("/queues/mine/count", headers=reader)
    assert lines(caplog) == []
    await client.get("/queues/mine/count", headers=bearer("s3cret"))
    await client.get("/nope")
    await client.post("/queues/mine/jobs", {"data": "s3cret"}, headers=reader)
    await client.get("/queues/theirs/count", headers=reader)
    await client.get("/admin/cluster", headers=ops)
    await client.post("/queues/mine/pause", headers=ops)
    await client.get("/v1/jobs/queues", headers=ops)
    await client.post("/queues/mine/jobs", {"data": 1}, headers=bearer(FULL))
    await client.post("/queues/mine/pause", headers=bearer(FULL))
    await client.bullmq.get("/queues/mine/jobs")
    assert lines(caplog) == [
        {"what": "refused", "token": "-", "route": "GET /queues/{queue}/count", "queue": "mine", "status": 401, **here},
        {"what": "refused", "token": "-", "route": "GET -", "queue": "-", "status": 401, **here},
        {"what": "refused", "token": "reader", "route": "POST /queues/{queue}/jobs", "queue": "mine", "status": 403, **here},
        {"what": "refused", "token": "reader", "route": "GET /queues/{queue}/count", "queue": "theirs", "status": 403, **here},
        {"what": "administered", "token": "ops", "route": "GET /admin/cluster", "queue": "-", "status": 200, **here},
        {"what": "administered", "token": "ops", "route": "POST /queues/{queue}/pause", "queue": "mine", "status": 200, **here},
        {"what": "administered", "token": "AUTH_TOKENS:1", "route": "POST /queues/{queue}/pause", "queue": "mine",
         "status": 200, **here},
        {"what": "refused", "token": "-", "route": "GET /queues/{queue}/jobs", "queue": "mine", "status": 401, **here},
    ]  # fmt: skip
    assert "s3cret" not in caplog.text


async def test_the_audit_of_what_is_hidden(serve: Serve, keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    reader = keys.add("reader", "read", "mine")
    client = await serve(auth_tokens=(FULL,), auth_tokens_file=keys.path)
    await client.post("/queues/theirs/jobs", {"data": 1, "jobId": "j"}, headers=bearer(FULL))
    await client.get("/jobs/j", headers=reader)
    await client.get("/jobs/none", headers=reader)
    (line,) = lines(caplog)
    assert (line["what"], line["route"], line["status"]) == ("refused", "GET /jobs/{id}", 404)
    page = (await client.get("/prometheus")).body.decode()
    assert 'quorumq_http_refused_total{status="403"} 1' in page


async def test_the_audit_of_commands(serve: Serve, keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    producer = keys.add("producer", "produce")
    client = await serve(auth_tokens=(FULL,), auth_tokens_file=keys.path)
    for headers in (producer, bearer(FULL)):
        async with client.session.ws_connect(f"{client.base}/ws", headers=headers) as ws:
            await talk(ws, cmd="Obliterate", queue="mine")
            await talk(ws, cmd="PUSH", queue="mine", data=1)
    assert [(one["what"], one["token"], one["route"], one["queue"], one["status"]) for one in lines(caplog)] == [
        ("refused", "producer", "POST /queues/{queue}/obliterate", "mine", 403),
        ("administered", "AUTH_TOKENS:1", "POST /queues/{queue}/obliterate", "mine", 200),
    ]


async def test_nothing_can_be_written_into_the_audit(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    client = await serve(auth_tokens=("t",))
    forged = {"X-Forwarded-For": "1.2.3.4 status=200 token=root"}
    await client.get("/queues/a%0Ab%20status=200/jobs", headers=forged)
    (line,) = lines(caplog)
    assert line["queue"] == "a%0Ab%20status%3D200"
    assert line["client"] == "1.2.3.4%20status%3D200%20token%3Droot"
    assert line["via"] == "127.0.0.1"


async def test_a_flood_does_not_fill_the_audit(
    serve: Serve, keys: Keys, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow the machine is, all of it is one window.
    monkeypatch.setattr(audit, "WINDOW_S", 3600)
    reader = keys.add("reader", "read", "mine")
    client = await serve(auth_tokens=(FULL,), auth_tokens_file=keys.path)
    written = client.server.audit
    for _ in range(audit.CLIENT_LINES_MAX + 5):
        assert (await client.get("/queues/mine/count")).status == 401
    assert [one["status"] for one in lines(caplog)] == [401] * audit.CLIENT_LINES_MAX
    # Another client is still heard, and whoever administers always is.
    await client.get("/queues/mine/count", headers={"X-Forwarded-For": "10.1.2.3"})
    await client.post("/queues/mine/pause", headers=bearer(FULL))
    assert [one["client"] for one in lines(caplog)[-2:]] == ["10.1.2.3", "127.0.0.1"]
    for number in range(audit.LINES_MAX):
        await client.get("/queues/mine/count", headers={"X-Forwarded-For": f"10.9.0.{number}"})
    assert len(lines(caplog)) == audit.LINES_MAX + 1
    # What a known token may not do is told all the same, as often as that.
    for _ in range(audit.CLIENT_LINES_MAX + 1):
        assert (await client.get("/queues/theirs/count", headers=reader)).status == 403
    assert [one["token"] for one in lines(caplog)[audit.LINES_MAX + 1 :]] == ["reader"] * audit.CLIENT_LINES_MAX
    written.settle()
    assert caplog.records[-1].getMessage() == "refused, without a line each"
    assert caplog.records[-1].__dict__["requests"] == 5 + 1 + audit.CLIENT_LINES_MAX + 1
    assert written.refusals[401] == audit.CLIENT_LINES_MAX + 6 + audit.LINES_MAX
    # The next window begins anew.
    await client.get("/queues/mine/count")
    assert lines(caplog)[-1]["status"] == 401


async def test_the_jobs_own_token(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """BullMQ's progress and logs take the token of the delivery, and no other; who comes with another is written down."""
    client = (await serve(auth_tokens=("t",))).bullmq
    headers = bearer("t")
    job_id = (await client.post("/queues/mail/jobs", [{"name": "a", "data": 1}], headers=headers)).json[0]["id"]
    taken = await client.post("/queues/mail/jobs/next", {"token": "mine"}, headers=headers)
    assert taken.json["id"] == job_id
    path = f"/queues/mail/jobs/{job_id}/progress"
    assert (await client.post(path, 50, headers=headers)).status == 401
    assert (await client.post(path, 50, headers=bearer("mine"))).status == 200
    assert [one["status"] for one in lines(caplog)] == [401]


def test_open_archiver_is_one_dialect_on_both_listeners() -> None:
    for mounts in (main_dialects(), bullmq_dialects()):
        assert [prefix for dialect, prefix in mounts if isinstance(dialect, OpenArchiver)] == ["/v1/jobs"]

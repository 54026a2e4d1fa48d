"""What clients make of answers: of what a server says, and of what it does not say."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from scripts.tools.chaos.history import DONE, FAILED, REFUSED, UNKNOWN
from scripts.tools.chaos.wires import Http, Own, Socket, due_time, key_of, short_id
from tests.support.local_cluster import HOST, LocalNode, free_ports


async def asked(tmp_path: Any, handler: Any, *, reads: bool = False) -> Any:
    """Ask a server that has one handler for everything."""
    (port,) = free_ports(1)
    runner = web.ServerRunner(web.Server(handler))
    await runner.setup()
    await web.TCPSite(runner, HOST, port).start()
    try:
        async with aiohttp.ClientSession() as session:
            return await Http(session).ask(LocalNode("n1", port, 0, 0, tmp_path), "POST", "/x", {}, reads=reads)
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    "status, body, outcome",
    [
        (200, {"ok": True}, DONE),
        (400, {"error": "Invalid or expired lock token"}, REFUSED),
        (404, {"error": "Job not found"}, REFUSED),
        (409, {"error": "This request was done before; its reply was too large to be kept"}, UNKNOWN),
        (429, {}, FAILED),
        (503, {"code": "not_applied"}, FAILED),
        (503, {"code": "busy"}, FAILED),
        (503, {"code": "outcome_unknown"}, UNKNOWN),
        # Whatever does not say that nothing was done may have been.
        (503, {"code": "unavailable"}, UNKNOWN),
        (500, {}, UNKNOWN),
    ],
)
async def test_what_an_answer_means(tmp_path: Any, status: int, body: Any, outcome: str) -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        return web.json_response(body, status=status)

    assert (await asked(tmp_path, handler)).outcome == outcome


async def test_a_connection_that_ends_without_an_answer_leaves_it_open(tmp_path: Any) -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        await request.read()
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    assert (await asked(tmp_path, handler)).outcome == UNKNOWN
    assert (await asked(tmp_path, handler, reads=True)).outcome == FAILED


async def test_where_nobody_listens_nothing_was_done(tmp_path: Any) -> None:
    (port,) = free_ports(1)
    node = LocalNode("n1", port, 0, 0, tmp_path)
    async with aiohttp.ClientSession() as session:
        assert (await Http(session).ask(node, "POST", "/x", {})).outcome == FAILED
        socket = Socket(session, lambda: 0.0)
        assert (await socket.push(node, "q", "k", Own(), None)).outcome == FAILED


async def test_a_socket_that_ends_says_when_it_was_last_alive(tmp_path: Any) -> None:
    (port,) = free_ports(1)
    now = 0.0

    async def handler(request: web.BaseRequest) -> web.WebSocketResponse:
        nonlocal now
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            command = message.json()
            now += 1
            if command["cmd"] == "PUSH":
                await socket.send_json({"ok": True, "id": "j", "reqId": command["reqId"]})
            elif command["cmd"] == "ACK":
                assert request.transport is not None
                request.transport.abort()
        return socket

    runner = web.ServerRunner(web.Server(handler))
    await runner.setup()
    await web.TCPSite(runner, HOST, port).start()
    node = LocalNode("n1", port, 0, 0, tmp_path)
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(30):
            socket = Socket(session, lambda: now)
            assert (await socket.push(node, "q", "k", Own(), None)).outcome == DONE
            heard = socket.heard
            assert (await socket.ask(node, "ACK", {})).outcome == UNKNOWN
            assert heard == 2 and socket.heard == heard and socket.ends == 1
            await socket.close()
    finally:
        await runner.cleanup()


def test_a_job_has_one_name_in_all_dialects() -> None:
    assert short_id("bull:q:7", "q") == short_id("7", "q") == "7"
    assert key_of("7", {"key": "k"}) == "k"
    job_id = "01a22035-8241-7287-a143-3daf2c0f10c2"
    assert due_time(job_id) == 1795836707393
    assert key_of(job_id, {"cron": "often"}) == "cron:often:1795836707393"

"""Frames of WebSockets: messages of any size up to that of a body, what is beyond, and what breaks the protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import struct
from collections.abc import Iterable
from typing import Any

import aiohttp
import pytest
from aiohttp import WebSocketError, WSMsgType
from hypothesis import given
from hypothesis import strategies as st

from quorumq.api.dialects.bunqueue import websocket
from quorumq.api.events.frames import RefusedMessage, WebSocketReader, number_of
from quorumq.api.limits import Bodies, BodyTooLarge, Busy
from tests.api.conftest import Client, Serve

MASK = b"\x01\x92\xfe\x73"


def frame(opcode: int, payload: bytes, *, last: bool = True, mask: bytes | None = MASK, bits: int = 0) -> bytes:
    """Write a frame as a client does, or one that it must not send."""
    size, flag = len(payload), 0x80 if mask else 0
    head = bytes([(0x80 if last else 0) | bits << 4 | opcode])
    if size < 126:
        head += bytes([flag | size])
    elif size < 1 << 16:
        head += bytes([flag | 126]) + struct.pack("!H", size)
    else:
        head += bytes([flag | 127]) + struct.pack("!Q", size)
    if mask is None:
        return head + payload
    turned = (mask * (size // 4 + 1))[:size]
    whole = (int.from_bytes(payload, "big") ^ int.from_bytes(turned, "big")).to_bytes(size, "big")
    return head + mask + whole


class Queue:
    """Takes messages, or why there are no more."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.error: WebSocketError | None = None

    def feed_data(self, message: Any, size: int) -> None:
        self.messages.append(message)

    def set_exception(self, error: WebSocketError) -> None:
        self.error = error

    def feed_eof(self) -> None:
        self.messages.append(None)


def reader(bytes_max: int = 1 << 20, pending: int = 1 << 30) -> tuple[WebSocketReader, Queue, Bodies]:
    queue, bodies = Queue(), Bodies(bytes_max, pending)
    return WebSocketReader(queue, bodies, bytes_max), queue, bodies


# -- Reading -----------------------------------------------------------------------------------------------------------

PAYLOADS = st.lists(st.binary(max_size=300), min_size=1, max_size=4)


@given(messages=st.lists(PAYLOADS, max_size=4), cuts=st.lists(st.integers(1, 400), max_size=20), ping=st.booleans())
def test_messages_come_whole_however_they_arrive(messages: list[list[bytes]], cuts: list[int], ping: bool) -> None:
    frames, queue, bodies = reader()
    sent = b""
    for parts in messages:
        for at, part in enumerate(parts):
            sent += frame(0 if at else 2, part, last=at == len(parts) - 1, mask=os.urandom(4))
            sent += frame(9, b"p") if ping else b""
    while sent:
        cut = cuts.pop() if cuts else len(sent)
        assert frames.feed_data(sent[:cut]) == (False, b"")
        sent = sent[cut:]
    found = [bytes(one.data) for one in queue.messages if one.type == WSMsgType.BINARY]
    assert found == [b"".join(parts) for parts in messages]
    assert queue.error is None and bodies.pending_bytes == 0


@given(size=st.integers(101, 5_000), cuts=st.lists(st.integers(1, 400), max_size=20), parts=st.integers(1, 5))
def test_a_message_beyond_the_bound_is_one_refusal_in_its_place(size: int, cuts: list[int], parts: int) -> None:
    frames, queue, bodies = reader(bytes_max=100)
    text = b'{"cmd":"ACK","reqId":"7","result":"' + b"x" * size + b'"}'
    step = -(-len(text) // parts)
    pieces = [text[at : at + step] for at in range(0, len(text), step)]
    sent = frame(1, b"before") + b"".join(
        frame(0 if at else 1, piece, last=at == len(pieces) - 1) for at, piece in enumerate(pieces)
    )
    sent += frame(1, b"after")
    while sent:
        cut = cuts.pop() if cuts else len(sent)
        frames.feed_data(sent[:cut])
        sent = sent[cut:]
        assert bodies.pending_bytes <= 100
    before, refused, after = [one.data for one in queue.messages]
    assert (before, after) == (b"before", b"after")
    assert isinstance(refused, RefusedMessage) and isinstance(refused.error, BodyTooLarge) and refused.number == b'"7"'
    assert bodies.pending_bytes == 0


@pytest.mark.parametrize(
    "sent",
    [
        frame(1, b"x", mask=None),
        frame(9, b"x", mask=None),
        frame(1, b"x", bits=4),
        frame(1, b"x", bits=1),
        frame(3, b"x"),
        frame(11, b"x"),
        frame(0, b"x"),
        frame(1, b"x", last=False) + frame(1, b"x"),
        frame(9, b"x", last=False),
        frame(9, b"x" * 126),
        frame(8, b"x"),
        frame(8, struct.pack("!H", 1005)),
    ],
    ids=lambda sent: sent.hex()[:20],
)
def test_what_breaks_the_protocol(sent: bytes) -> None:
    frames, queue, bodies = reader()
    assert frames.feed_data(sent + frame(1, b"later"))[0] is True
    assert queue.error is not None and queue.error.code == 1002
    assert queue.messages == [] and bodies.pending_bytes == 0
    # Nothing of what comes after it is read.
    assert frames.feed_data(frame(1, b"later"))[0] is True
    assert queue.messages == []


@pytest.mark.parametrize("sent", [frame(1, b"\xff"), frame(8, struct.pack("!H", 1000) + b"\xff")])
def test_text_that_is_none(sent: bytes) -> None:
    frames, queue, _ = reader()
    frames.feed_data(sent)
    assert queue.error is not None and queue.error.code == 1007


def test_unfinished_messages_are_held_under_the_bound_of_all_bodies() -> None:
    bodies = Bodies(1_000, 1_500)
    queues = [Queue(), Queue()]
    first, second = (WebSocketReader(queue, bodies, 1_000) for queue in queues)
    whole = frame(1, b'{"reqId":5,' + b"x" * 900)
    first.feed_data(whole[:850])
    second.feed_data(whole[:850])
    assert 800 < bodies.pending_bytes < 1_000
    second.feed_data(whole[850:])
    (refused,) = [one.data for one in queues[1].messages]
    assert isinstance(refused.error, Busy) and refused.number == b"5"
    # Who came first is not disturbed, and what he took is given back when he is done, or gone.
    first.feed_data(whole[850:])
    assert queues[0].messages[0].data == b'{"reqId":5,' + b"x" * 900
    assert bodies.pending_bytes == 0
    first.feed_data(whole[:850])
    first.feed_eof()
    assert bodies.pending_bytes == 0 and queues[0].messages[-1] is None


@pytest.mark.parametrize(
    ("first", "last", "number"),
    [
        (b'{"cmd":"ACK","reqId":"a b","data":', b'xxx"}', b'"a b"'),
        (b' {"reqId" : -1.5 , "data":{"reqId":"no"', b'xxx"}}', b"-1.5"),
        (b'{"cmd":"PUSH","data":{"reqId":"no"', b'xxx"}}', None),
        (b'{"cmd":"PUSH","data":{', b'xxx"},"queue":"q","reqId":"9"} ', b'"9"'),
        (b'{"cmd":"PUSH","data":["', b'xxx"],"reqId":17}', b"17"),
        (b'{"cmd":"PUSH","data":{', b'xxx"reqId":"no"},"queue":"q"}', None),
        (b'{"cmd":"PUSH","data":"', rb'\"reqId\":\"no\""}', None),
        (b"\xff\x00", b"\xff\x00", None),
        (b"", b"", None),
    ],
)
def test_the_number_of_a_command_that_is_not_read(first: bytes, last: bytes, number: bytes | None) -> None:
    assert number_of(first, last) == number


# -- Over a connection -------------------------------------------------------------------------------------------------


async def run(ws: aiohttp.ClientWebSocketResponse, cmd: str, **fields: Any) -> Any:
    await ws.send_json({"cmd": cmd, **fields, "reqId": "1"})
    return await reply(ws)


async def reply(ws: aiohttp.ClientWebSocketResponse) -> Any:
    """Return the next reply; whoever has not subscribed gets events, too."""
    while "reqId" not in (message := await ws.receive_json(timeout=20)):
        pass
    return message


async def test_a_large_result_ends_its_job(client: Client) -> None:
    """As over HTTP; it ended the connection, and gave the job back for ever."""
    for size in (1_500_000, 10 * 1024 * 1024 - 2):
        job = await client.push()
        async with client.session.ws_connect(f"{client.base}/ws", max_msg_size=0) as ws:
            assert (await run(ws, "PULL", queue="q"))["job"]["id"] == job
            assert (await run(ws, "ACK", id=job, result="x" * size))["ok"] is True
        assert await client.state(job) == "completed"
        assert len((await client.get(f"/jobs/{job}/result")).json["result"]) == size


@pytest.mark.parametrize(
    ("cmd", "more", "error"),
    [
        ("PUSH", {"queue": "q", "data": "x" * (10 << 20)}, "Job data too large (max 10MB)"),
        ("ACK", {"id": "x", "result": "x" * (10 << 20)}, "Job result too large (max 10MB)"),
        ("PUSH", {"queue": "q", "data": "x" * (16 << 20)}, "Request body too large (max 16MB)"),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_what_is_too_large_is_an_error_and_the_connection_stays(
    client: Client, cmd: str, more: Any, error: str
) -> None:
    job = await client.push()
    async with client.session.ws_connect(f"{client.base}/ws", max_msg_size=0) as ws:
        await run(ws, "PULL", queue="q")
        answer = await run(ws, cmd, **more)
        assert (answer["ok"], answer["error"], answer["reqId"]) == (False, error, "1")
        assert await client.state(job) == "active"
        assert (await run(ws, "ACK", id=job))["ok"] is True
    assert client.server.bodies.pending_bytes == 0


async def test_a_stranger_gets_little_room(serve: Serve) -> None:
    client = await serve(auth_tokens=("secret",))
    async with client.session.ws_connect(f"{client.base}/ws", max_msg_size=0) as ws:
        answer = await run(ws, "PUSH", queue="q", data="x" * websocket.STRANGER_BYTES_MAX)
        assert (answer["error"], answer["reqId"]) == ("Not authenticated", "1")
        assert (await run(ws, "Auth", token="secret"))["ok"] is True
        assert (await run(ws, "PUSH", queue="q", data="x" * 1_500_000))["ok"] is True


async def test_who_sends_more_than_can_be_done_is_not_listened_to(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "UNDER_WAY_BYTES_MAX", 100)
    async with client.session.ws_connect(f"{client.base}/ws") as ws:
        await ws.send_json({"cmd": "PULL", "queue": "q", "timeout": 30_000, "owner": "x" * 200, "reqId": "waits"})
        await ws.send_json({"cmd": "Ping", "reqId": "behind"})
        (connection,) = client.server.sessions
        async with asyncio.timeout(10):
            while not client.server.node.waiters.count:
                await asyncio.sleep(0.005)
        assert connection.under_way_bytes > 200  # type: ignore[attr-defined]
        job = await client.push()
        replies = [await reply(ws) for _ in range(2)]
        assert [one["reqId"] for one in replies] == ["waits", "behind"] and replies[0]["job"]["id"] == job


async def shaken(client: Client) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a WebSocket by hand."""
    source, sink = await asyncio.open_connection("127.0.0.1", client.listener.port)
    key = base64.b64encode(os.urandom(16)).decode()
    lines = ["GET /ws HTTP/1.1", "Host: h", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    head = "\r\n".join([*lines, f"Sec-WebSocket-Key: {key}", "", ""]).encode()
    # With the first frame at once, as a hasty client does.
    sink.write(head + frame(1, json.dumps({"cmd": "Ping", "reqId": "1"}).encode()))
    assert (await source.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    return source, sink


async def received(source: asyncio.StreamReader) -> tuple[int, bytes]:
    first, second = await source.readexactly(2)
    size = second & 0x7F
    if size == 126:
        (size,) = struct.unpack("!H", await source.readexactly(2))
    return first & 0xF, await source.readexactly(size)


async def until(source: asyncio.StreamReader, opcodes: Iterable[int]) -> tuple[int, bytes]:
    while True:
        opcode, payload = await asyncio.wait_for(received(source), 10)
        if opcode in opcodes:
            return opcode, payload


async def test_a_frame_that_is_not_masked_ends_the_connection(client: Client) -> None:
    source, sink = await shaken(client)
    assert b'"reqId":"1"' in (await until(source, {1}))[1]
    sink.write(frame(1, b'{"cmd":"PUSH","queue":"q","data":1}', mask=None))
    _, payload = await until(source, {8})
    assert struct.unpack("!H", payload[:2]) == (1002,)
    assert await asyncio.wait_for(source.read(), 10) == b""
    sink.close()
    assert (await client.get("/queues/q/count")).json["count"] == 0


async def test_pings_are_answered_and_a_close_is_echoed(client: Client) -> None:
    source, sink = await shaken(client)
    sink.write(frame(9, b"hello"))
    assert await until(source, {10}) == (10, b"hello")
    sink.write(frame(8, struct.pack("!H", 1000)))
    assert (await until(source, {8}))[0] == 8
    sink.close()

"""The door: what is inflated and what is not, how long heads, bodies and replies may take, how many connections there may be."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import compression_utils, web
from hypothesis import given
from hypothesis import strategies as st

from quorumq.api import limits
from quorumq.api.limits import Turnstile, inflated
from quorumq.api.reply import Reply
from quorumq.api.server import Listener
from tests.api.conftest import Client, Serve
from tests.api.test_http import MIB, get, post, read_reply, until

BOMB = gzip.compress(b'{"data":"%b"}' % (b"x" * 20 * MIB))
NOT_LET_IN = (
    "/queues/q/jobs",
    "/queues/q/jobs/bulk",
    "/jobs/x/ack",
    "/admin/cluster/members",
    "/bullmq/queues/q/jobs",
    "/v1/jobs/queues",
    "/nowhere",
)

OPENED: list[asyncio.StreamWriter] = []


async def dial(listener: Listener, *pieces: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    OPENED.append(writer)
    for piece in pieces:
        writer.write(piece)
    return reader, writer


@pytest.fixture(autouse=True)
async def closing() -> AsyncIterator[None]:
    """Close what a test has left open."""
    yield
    while OPENED:
        writer = OPENED.pop()
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def compressed(path: str, body: bytes, encoding: str = "gzip", *more: str) -> bytes:
    return post(path, body, f"Content-Encoding: {encoding}", *more)


@pytest.fixture
def inflating(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who inflates anything, aiohttp or we."""
    seen: list[str] = []

    def theirs(*_: Any, **__: Any) -> bytes:
        seen.append("aiohttp")
        return b""

    def ours(*arguments: Any) -> bytes | None:
        seen.append("ours")
        return inflated(*arguments)

    monkeypatch.setattr(compression_utils.ZLibDecompressor, "decompress_sync", theirs)
    monkeypatch.setattr(limits, "inflated", ours)
    return seen


class TestInflating:
    @pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "GZIP"])
    @pytest.mark.parametrize("path", NOT_LET_IN)
    async def test_nothing_is_inflated_of_what_was_not_let_in(
        self, serve: Serve, inflating: list[str], path: str, encoding: str
    ) -> None:
        client = await serve(auth_tokens=("t",))
        for listener in client.server.listeners:
            # The body comes with its head, and in parts; what follows a refused one is not looked at.
            for later in (0, 1000):
                request = compressed(path, BOMB, encoding)
                reader, writer = await dial(listener, request[: len(request) - later])
                status, headers, _ = await read_reply(reader)
                assert status in (401, 404)
                writer.write(request[len(request) - later :])
                if later:
                    assert headers["connection"] == "close"
                    assert await reader.read() == b""
                writer.close()
        assert inflating == []

    async def test_nothing_is_inflated_of_what_has_no_right_or_comes_too_often(
        self, serve: Serve, inflating: list[str], tmp_path: Any
    ) -> None:
        client = await serve(rate_limit_max_requests=1, auth_tokens=("t",))
        allowed = "Authorization: Bearer t"
        assert (await client.get("/queues", headers={"Authorization": "Bearer t"})).status == 200
        reader, writer = await dial(client.server.main, compressed("/queues/q/jobs", BOMB, "gzip", allowed))
        assert (await read_reply(reader))[0] == 429
        writer.close()
        assert inflating == []

    async def test_what_is_let_in_is_inflated_by_us_alone(self, client: Client, inflating: list[str]) -> None:
        for encoding, body in (
            ("gzip", gzip.compress(b'{"data":1}', mtime=0)),
            ("deflate", zlib.compress(b'{"data":1}')),
            ("deflate", zlib.compress(b'{"data":1}', wbits=-15)),
            ("identity, X-GZIP", gzip.compress(b'{"data":1}', mtime=0)),
        ):
            answer = await client.post("/queues/q/jobs", raw=body, headers={"Content-Encoding": encoding})
            assert answer.status == 200
        assert inflating == ["ours"] * 4
        assert (await client.counts())["waiting"] == 4

    async def test_a_bomb_stops_at_the_bound_and_off_the_loop(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        threads: list[bool] = []
        loop_thread = asyncio.get_running_loop()

        def look(body: bytes, encoding: str, most: int) -> bytes | None:
            try:
                on_loop = asyncio.get_running_loop() is loop_thread
            except RuntimeError:
                on_loop = False
            threads.append(on_loop)
            # What is made on the loop is short.
            assert not on_loop or most <= limits.AT_ONCE_BYTES
            return inflated(body, encoding, most)

        monkeypatch.setattr(limits, "inflated", look)
        answer = await client.post("/jobs/x/ack", raw=BOMB, headers={"Content-Encoding": "gzip"})
        assert (answer.status, answer.error) == (413, "Request body too large (max 16MB)")
        assert threads == [True, False]
        assert client.server.bodies.pending_bytes == 0

    async def test_a_large_body_that_is_fine(self, client: Client) -> None:
        data = {"text": "abc" * MIB}
        body = gzip.compress(json.dumps({"data": data}).encode())
        answer = await client.post("/queues/q/jobs", raw=body, headers={"Content-Encoding": "gzip"})
        assert answer.status == 200
        assert (await client.pull())["data"] == data

    @pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "deflate, gzip"])
    @pytest.mark.parametrize("path", ["/queues/q/jobs", "/admin/cluster/members", "/bullmq/queues/q/jobs"])
    async def test_what_is_not_inflated_is_said(self, serve: Serve, path: str, encoding: str) -> None:
        client = await serve(auth_tokens=("t",))
        answer = await client.post(
            path, raw=b"whatever", headers={"Content-Encoding": encoding, "Authorization": "Bearer t"}
        )
        assert answer.status == 415
        assert answer.headers["Accept-Encoding"] == "gzip, deflate"
        assert encoding in answer.body.decode()

    @given(st.lists(st.binary(max_size=200), min_size=1, max_size=5), st.integers(0, 9))
    def test_members_are_put_together(self, parts: list[bytes], level: int) -> None:
        whole = b"".join(parts)
        assert inflated(b"".join(gzip.compress(part, level) for part in parts), "gzip", len(whole)) == whole
        assert inflated(zlib.compress(whole, level), "deflate", len(whole)) == whole
        assert inflated(zlib.compress(whole, level, wbits=-15), "deflate", len(whole)) in (whole, None)
        if whole:
            assert inflated(zlib.compress(whole, level), "deflate", len(whole) - 1) is None

    @pytest.mark.parametrize(
        "body",
        [
            gzip.compress(b"x" * 1000, mtime=0)[:-1],
            gzip.compress(b"x" * 1000, mtime=0)[:12],
            gzip.compress(b"x", mtime=0) + b"y",
            gzip.compress(b"", mtime=0) * (limits.MEMBERS_MAX + 1),
            b"\x1f\x8b",
            b"none",
        ],
    )
    def test_what_is_no_gzip(self, body: bytes) -> None:
        with pytest.raises(web.RequestPayloadError):
            inflated(body, "gzip", MIB)

    def test_a_long_input_takes_time_in_proportion(self) -> None:
        # Bytes that do not compress: the input is handed over in pieces, never as all that is left.
        body = gzip.compress(bytes(range(256)) * 4096 * 8, 0)
        assert inflated(body, "gzip", 8 * MIB) == bytes(range(256)) * 4096 * 8


class TestUnreadBodies:
    async def test_the_answer_is_read_and_the_rest_is_dropped(self, serve: Serve) -> None:
        client = await serve(auth_tokens=("t",))
        body = b"x" * 8 * MIB
        reader, writer = await dial(client.server.main, post("/queues/q/jobs", body)[: -len(body)])
        status, headers, _ = await read_reply(reader)
        assert (status, headers["connection"]) == (401, "close")
        # What looks like another request is part of the body.
        writer.write(get("/healthz") + body[: 4 * MIB])
        await writer.drain()
        assert await reader.read() == b""
        writer.close()
        await until(lambda: client.server.connections == 0)

    async def test_a_short_body_that_nobody_asked_for_is_skipped(self, client: Client) -> None:
        request = post("/queues/q/pause", b"{}")
        reader, writer = await dial(client.server.main, request[:-2])
        await until(lambda: client.server.under_way == 1)
        writer.write(request[-2:] + get("/ping"))
        status, headers, _ = await read_reply(reader)
        assert (status, headers.get("connection")) == (200, None)
        assert (await read_reply(reader))[0] == 200
        writer.close()

    async def test_a_long_one_ends_the_connection(self, client: Client) -> None:
        body = b"x" * (limits.SKIPPED_BYTES_MAX + 1)
        reader, writer = await dial(client.server.main, post("/queues/q/pause", body)[: -len(body)])
        status, headers, _ = await read_reply(reader)
        assert (status, headers["connection"]) == (200, "close")
        assert await reader.read() == b""
        writer.close()

    async def test_what_was_refused_leaves_no_memory_behind(self, serve: Serve) -> None:
        client = await serve(auth_tokens=("t",))
        reader, writer = await dial(client.server.main, post("/queues/q/jobs", b"x" * 500_000)[:-1])
        await until(lambda: client.server.door.connections)
        (connection,) = client.server.door.connections
        assert (await read_reply(reader))[0] == 401
        writer.close()
        await until(lambda: client.server.connections == 0)
        assert connection._body is None


class TestHeads:
    @pytest.mark.parametrize("begun", [b"", b"GET /queues HTTP/1.1\r\nHost: h\r\n", b"G", b"\r\n"])
    async def test_one_that_is_not_finished_ends_the_connection(self, serve: Serve, begun: bytes) -> None:
        client = await serve(head_timeout_ms=100)
        for listener in client.server.listeners:
            reader, writer = await dial(listener, begun)
            if begun:
                status, headers, body = await read_reply(reader)
                assert (status, headers["connection"]) == (408, "close")
                assert "did not come in time" in body.decode()
            assert await reader.read() == b""
            writer.close()
        assert client.server.door.counts["head"] == 2
        await until(lambda: not client.server.door.unfinished and not client.server.door.connections)

    async def test_a_byte_now_and_then_gives_no_more_time(self, serve: Serve) -> None:
        client = await serve(head_timeout_ms=400)
        reader, writer = await dial(client.server.main, b"GET /queues HTTP/1.1\r\nX: ")

        async def drip() -> None:
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert (await read_reply(reader))[0] == 408
        dripping.cancel()
        writer.close()

    async def test_later_heads_of_a_connection_have_as_long_from_their_first_byte(self, serve: Serve) -> None:
        client = await serve(head_timeout_ms=100)
        reader, writer = await dial(client.server.main, get("/ping"))
        assert (await read_reply(reader))[0] == 200
        assert not client.server.door.unfinished
        writer.write(b"GET /ping HT")
        await until(lambda: client.server.door.unfinished)
        assert (await read_reply(reader))[0] == 408
        writer.close()

    async def test_requests_that_wait_and_bodies_under_way_are_no_heads(self, serve: Serve) -> None:
        client = await serve(head_timeout_ms=100)
        waiting = await dial(client.server.main, get("/queues/q/jobs?timeout=20000"))
        body = post("/queues/other/jobs", b'{"data":1}')
        slow = await dial(client.server.main, body[:-3])
        await until(lambda: client.server.under_way == 2)
        slow[1].write(body[-3:-2])
        # Somebody else's head comes too late meanwhile.
        late = await dial(client.server.main, b"GET")
        assert (await read_reply(late[0]))[0] == 408
        slow[1].write(body[-2:])
        assert (await read_reply(slow[0]))[0] == 200
        await client.push()
        assert (await read_reply(waiting[0]))[0] == 200
        for _, writer in (waiting, slow, late):
            writer.close()

    async def test_a_body_that_comes_after_its_head_is_no_head(self, serve: Serve) -> None:
        client = await serve(head_timeout_ms=100)
        # As many clients send them: the head, then the body. One waits for its answer, the other keeps its connection.
        poll = post("/queues/q/jobs/pull-batch", b'{"count":1,"timeout":20000}')
        waiting = await dial(client.server.main, poll[:-27])
        body = post("/queues/other/jobs", b'{"data":1}')
        kept = await dial(client.server.main, body[:-10])
        await until(lambda: client.server.under_way == 2)
        waiting[1].write(poll[-27:])
        kept[1].write(body[-10:])
        assert (await read_reply(kept[0]))[0] == 200
        late = await dial(client.server.main, b"GET")
        assert (await read_reply(late[0]))[0] == 408
        assert client.server.door.counts["head"] == 1
        await client.push()
        assert (await read_reply(waiting[0]))[0] == 200
        kept[1].write(get("/ping"))
        assert (await read_reply(kept[0]))[0] == 200
        # What comes after the body's end and is no whole head still is an unfinished one.
        kept[1].write(b"G")
        assert (await read_reply(kept[0]))[0] == 408
        for _, writer in (waiting, kept, late):
            writer.close()

    async def test_many_requests_in_a_row_are_no_unfinished_head(self, serve: Serve) -> None:
        client = await serve(head_timeout_ms=100)
        # More than are looked at before one of them is answered.
        reader, writer = await dial(client.server.main, get("/queues/q/jobs?timeout=20000"), get("/ping") * 200)
        await until(lambda: client.server.under_way == 1)
        late = await dial(client.server.main, b"GET")
        assert (await read_reply(late[0]))[0] == 408
        await client.push()
        assert [(await read_reply(reader))[0] for _ in range(201)] == [200] * 201
        writer.close()
        late[1].close()

    @pytest.mark.parametrize(
        "head",
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET /ws HTTP/2.0\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            b'POST /queues/q/jobs HTTP/0.9\r\nHost: h\r\nContent-Length: 10\r\n\r\n{"data":1}',
            b"GET /v1/jobs/queues HTTP/3.0\r\nHost: h\r\n\r\n",
            b"GET /admin/cluster HTTP/0.9\r\n\r\n",
        ],
        ids=["the preface of HTTP/2", "a WebSocket", "a write", "another dialect", "administration"],
    )
    async def test_whatever_comes_in_another_version_is_not_done(self, client: Client, head: bytes) -> None:
        reader, writer = await dial(client.server.main, head)
        status, headers, body = await read_reply(reader)
        assert (status, headers["connection"]) == (505, "close"), body
        assert b"HTTP/1.1" in body
        writer.close()
        assert client.engine.machine.state.jobs == {}

    async def test_a_request_line_without_a_version(self, client: Client) -> None:
        reader, writer = await dial(client.server.main, b"GET /healthz\r\n\r\n")
        status, headers, _ = await read_reply(reader)
        # As HTTP/0.9 has it.
        assert (status, headers["connection"]) == (505, "close")
        writer.close()

    @pytest.mark.parametrize("version", ["HTTP/2.0", "HTTP/0.9", "HTTP/1.2", "HTTP/3.0"])
    async def test_other_versions(self, client: Client, version: str) -> None:
        for listener in client.server.listeners:
            reader, writer = await dial(listener, f"GET /healthz {version}\r\nHost: h\r\n\r\n".encode())
            status, headers, body = await read_reply(reader)
            assert (status, headers["connection"]) == (505, "close")
            assert "HTTP/1.1" in body.decode()
            assert await reader.read() == b""
            writer.close()


def hurry(client: Client, bytes_in_window: int = 1000, window_s: float = 0.1) -> None:
    """Make the window of the least rate short."""
    client.server.pace.window_s = window_s
    client.server.pace.least = bytes_in_window


class TestPace:
    async def test_a_body_that_stops_halfway(self, client: Client) -> None:
        hurry(client)
        head = b"POST /jobs/x/ack HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n"
        reader, writer = await dial(client.server.main, head, b"x" * 100_000)
        status, headers, body = await read_reply(reader)
        assert (status, headers["connection"]) == (408, "close")
        assert json.loads(body)["error"] == "The request's body came too slowly"
        assert client.server.bodies.pending_bytes == 0
        assert client.server.door.counts["body"] == 1
        writer.close()

    async def test_a_body_that_drips(self, client: Client) -> None:
        hurry(client, 100_000)
        head = b"POST /jobs/x/ack HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        reader, writer = await dial(client.server.main, head)

        async def drip() -> None:
            while True:
                writer.write(b"1\r\nx\r\n")
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        assert (await read_reply(reader))[0] == 408
        dripping.cancel()
        writer.close()

    async def test_a_slow_body_that_is_quick_enough(self, client: Client) -> None:
        hurry(client, 10, 1.0)
        body = b'{"data":"%b"}' % (b"x" * 200)
        request = post("/queues/q/jobs", body)
        reader, writer = await dial(client.server.main, request[: -len(body)])
        for at in range(0, len(body), 5):
            writer.write(body[at : at + 5])
            await asyncio.sleep(0.05)
        assert (await read_reply(reader))[0] == 200
        writer.close()

    async def test_the_budget_is_free_again_after_bodies_that_stopped(self, client: Client) -> None:
        hurry(client)
        client.server.bodies.pending_bytes_max = 280_000
        head = b"POST /jobs/x/ack HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n"
        halves = [await dial(client.server.main, head, b"x" * 140_000) for _ in range(2)]
        await until(lambda: client.server.bodies.pending_bytes == 280_000)
        # Short ones are taken in all the same.
        request = post("/queues/q/jobs", b'{"data":1}')
        reader, writer = await dial(client.server.main, request[:-2])
        await until(lambda: client.server.under_way == 3)
        writer.write(request[-2:])
        assert (await read_reply(reader))[0] == 200
        for half, _ in halves:
            assert (await read_reply(half))[0] == 408
        answer = await client.post("/queues/q/jobs", raw=b'{"data":"%b"}' % (b"x" * 250_000))
        assert answer.status == 200
        for _, one in (*halves, (reader, writer)):
            one.close()

    @pytest.mark.parametrize("path", ["/large", "/pieces"])
    async def test_a_reply_that_nobody_reads(self, client: Client, path: str) -> None:
        hurry(client)
        ids = [await client.push(data="x" * 8 * MIB) for _ in range(3)]
        assert ids
        which = "/queues/q/jobs/pull-batch" if path == "/pieces" else f"/jobs/{ids[0]}"
        request = post(which, b'{"count":3}') if path == "/pieces" else get(which) * 6
        reader, writer = await dial(client.server.main, request)
        await until(lambda: client.server.door.counts["reply"] == 1)
        await until(lambda: client.server.under_way == 0)
        del reader
        writer.close()

    async def test_many_short_replies_that_nobody_reads_wait_for_it(self, client: Client) -> None:
        job = await client.push(data="x" * 30_000)
        _, writer = await dial(client.server.main)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(get(f"/jobs/{job}") * 2_000)
        await until(lambda: client.server.door.connections and client.server.under_way)
        (connection,) = [one for one in client.server.door.connections if one._request_count > 10]
        await until(lambda: connection.writing_paused)
        transport = connection.transport
        assert transport is not None
        # 60 MB would be there otherwise.
        for _ in range(2_000):
            await asyncio.sleep(0)
            assert transport.get_write_buffer_size() < MIB
        writer.close()

    async def test_a_stream_of_events_that_nobody_reads(self, client: Client) -> None:
        hurry(client)
        _, writer = await dial(client.server.main, get("/events"))
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: client.server.streams.clients == 1)
        while client.server.streams.clients:
            await client.push(data="x", name="n" * 200)
            await client.post("/queues/q/jobs/bulk", {"jobs": [{"data": 1, "jobId": None}] * 2_000})
        writer.close()

    @pytest.mark.parametrize("later", [b"", b"\x89\x80\0\0\0\0"], ids=["silent", "with pings"])
    async def test_a_message_of_a_websocket_that_stops_halfway(self, client: Client, later: bytes) -> None:
        hurry(client, 100_000)
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13"
        head = f"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{key}\r\n\r\n"
        reader, writer = await dial(client.server.main, head.encode())
        await reader.readuntil(b"\r\n\r\n")
        # The first of two frames, and between them whatever says that the client is still there.
        writer.write(b"\x01\xfe\x40\x00\0\0\0\0" + b" " * 16_384)
        await until(lambda: client.server.bodies.pending_bytes or client.server.door.counts["body"])

        async def ping() -> None:
            while later:
                writer.write(later)
                await asyncio.sleep(0.02)

        pinging = asyncio.create_task(ping())
        await until(lambda: client.server.door.counts["body"] == 1)
        pinging.cancel()
        assert client.server.bodies.pending_bytes == 0
        await until(lambda: client.server.websockets == 0)


class TestConnectionBounds:
    async def test_the_longest_idle_makes_room(self, serve: Serve) -> None:
        client = await serve(connections_max=16)
        idle = [await dial(client.server.main) for _ in range(16)]
        await until(lambda: len(client.server.door.connections) == 16)
        reader, writer = await dial(client.server.main, get("/queues"))
        assert (await read_reply(reader))[0] == 200
        assert client.server.door.counts["idle"] >= 1
        assert await idle[0][0].read() == b""
        for _, one in (*idle, (reader, writer)):
            one.close()

    async def test_beyond_the_bound_there_are_probes_only(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        client = await serve(connections_max=16)
        busy = [await dial(client.server.main, get("/queues/q/jobs?timeout=20000")) for _ in range(16)]
        await until(lambda: client.server.under_way == 16)
        for path, status in (("/queues", 503), ("/livez", 200), ("/readyz", 200), ("/ws", 503), ("/nowhere", 503)):
            reader, writer = await dial(client.server.main, get(path))
            found, headers, _ = await read_reply(reader)
            assert (found, headers["connection"]) == (status, "close")
            assert await reader.read() == b""
            writer.close()
        assert client.server.door.counts["all"] == 5
        # More that only wait do not keep probes out, be they idle or not.
        monkeypatch.setattr(client.server.door, "_make_room", lambda newcomer: False)
        crowd = [await dial(client.server.main) for _ in range(200)]
        reader, writer = await dial(client.server.main, get("/livez"))
        assert (await read_reply(reader))[0] == 200
        assert len(client.server.door.room) <= 64
        for _, one in (*busy, *crowd, (reader, writer)):
            one.close()
        await until(lambda: not client.server.door.connections)
        assert (await client.get("/queues")).status == 200

    @pytest.mark.parametrize(("proxies", "status"), [(("none",), 503), (("*",), 200), (("127.0.0.0/8",), 200)])
    async def test_of_one_address(self, serve: Serve, proxies: tuple[str, ...], status: int) -> None:
        client = await serve(connections_per_client_max=2, trusted_proxies=proxies)
        two = [await dial(client.server.main, get("/ping")) for _ in range(2)]
        for reader, _ in two:
            assert (await read_reply(reader))[0] == 200
        reader, writer = await dial(client.server.main, get("/queues"))
        assert (await read_reply(reader))[0] == status
        writer.close()
        two.pop()[1].close()
        await until(lambda: len(client.server.door.connections) == 1)
        reader, writer = await dial(client.server.main, get("/queues"))
        assert (await read_reply(reader))[0] == 200
        for _, one in (*two, (reader, writer)):
            one.close()
        await until(lambda: not client.server.door.connections)
        assert not client.server.door.of_client

    async def test_descriptors_that_are_kept(self, serve: Serve) -> None:
        client = await serve()
        client.server.door.descriptor_max = 2
        reader, writer = await dial(client.server.main, get("/queues"))
        assert (await read_reply(reader))[0] == 503
        writer.close()
        client.server.door.descriptor_max = None
        assert client.server.door.counts["descriptors"] == 1
        assert (await client.get("/queues")).status == 200

    async def test_a_flood_is_counted_and_told_once(self, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING, "quorumq.api.door")
        client = await serve(connections_per_client_max=1, trusted_proxies=("none",))
        held = await dial(client.server.main, get("/queues/q/jobs?timeout=20000"))
        await until(lambda: client.server.under_way == 1)
        for _ in range(20):
            reader, writer = await dial(client.server.main, get("/queues"))
            assert (await read_reply(reader))[0] == 503
            writer.close()
        held[1].close()
        await until(lambda: not client.server.door.connections)
        assert len(caplog.records) == 1
        assert "CONNECTIONS_PER_CLIENT_MAX" in caplog.text
        figures = (await client.get("/prometheus")).body.decode()
        assert 'quorumq_http_turned_away_total{why="client"} 20' in figures
        assert "quorumq_http_connections_max 10000" in figures

    async def test_a_handshake_that_is_refused_ends_the_connection(self, serve: Serve) -> None:
        client = await serve(auth_tokens=("t",))
        lines = "Connection: Upgrade\r\nUpgrade: websocket\r\nAuthorization: wrong"
        reader, writer = await dial(client.server.main, f"GET /ws HTTP/1.1\r\nHost: h\r\n{lines}\r\n\r\n".encode())
        status, headers, _ = await read_reply(reader)
        assert (status, headers["connection"]) == (401, "close")
        assert await reader.read() == b""
        writer.close()


async def test_a_turnstile_lets_a_few_through_at_a_time() -> None:
    passed: list[int] = []
    turnstile = Turnstile(2)

    def enter(number: int) -> Callable[[], object]:
        return lambda: passed.append(number)

    for number in range(5):
        turnstile.enter(enter(number))
    assert passed == []
    for seen in ([0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4]):
        await asyncio.sleep(0)
        assert passed == seen
    await turnstile.passing()


def test_a_reply_says_that_its_connection_ends_when_a_body_is_left() -> None:
    assert Reply(200, b"").end_connection().keep_alive is False

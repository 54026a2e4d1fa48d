"""What holds for every route: unknown paths, tokens, CORS, bounds on bodies, clients that leave, stopping."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from typing import Any

import pytest

from quorumq.node.machine import contents
from quorumq.node.machine.state import State
from quorumq.node.machine.state.digests import START, Place
from tests.api.conftest import Client, Serve

MIB = 1 << 20


async def talk(client: Client, *pieces: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection and send bytes as they are."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.server.port)
    for piece in pieces:
        writer.write(piece)
    await writer.drain()
    return reader, writer


async def read_reply(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Read one reply off a connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(head[0].split()[1]), headers, body


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode()


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: h", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


async def until(condition: Any) -> None:
    """Let the loop turn until something holds; the test's own time limit is the bound."""
    while not condition():
        await asyncio.sleep(0)


class TestRoutes:
    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/nope"),
            ("POST", "/"),
            ("PATCH", "/queues"),
            ("POST", "/queues"),
            ("GET", "/queues/"),
            ("POST", "/jobs//ack"),
            ("GET", "/queues/q"),
            ("GET", "/jobs"),
            ("GET", "/jobs/"),
            ("GET", "/jobs/custom/a/b"),
            ("PUT", "/jobs/ack-batch"),
            ("HEAD", "/queues/q/jobs"),
        ],
    )
    async def test_unknown(self, client: Client, method: str, path: str) -> None:
        await client.push()
        answer = await client.send(method, path)
        assert answer.status == 404
        assert answer.headers["Content-Type"] == "application/json"
        if method != "HEAD":
            assert answer.json == {"ok": False, "error": "Not found"}
        assert (await client.counts())["active"] == 0

    async def test_a_job_whose_id_looks_like_a_route(self, client: Client) -> None:
        for name in ("custom", "ack-batch"):
            await client.push(jobId=name)
            await client.pull()
            assert (await client.post(f"/jobs/{name}/ack")).json == {"ok": True}

    @pytest.mark.parametrize("path", ["/health", "/healthz", "/live", "/ready"])
    async def test_probes_by_head(self, client: Client, path: str) -> None:
        answer = await client.send("HEAD", path)
        assert (answer.status, answer.body) == (200, b"")

    async def test_the_form_for_proxies(self, client: Client) -> None:
        reader, writer = await talk(client, b"GET http://elsewhere/queues?x=1 HTTP/1.1\r\nHost: h\r\n\r\n")
        status, _, body = await read_reply(reader)
        assert (status, json.loads(body)) == (200, {"ok": True, "queues": []})
        writer.close()

    async def test_a_path_that_is_not_utf_8(self, client: Client) -> None:
        reader, writer = await talk(client, b"GET /jobs/\xff/state HTTP/1.1\r\nHost: h\r\n\r\n")
        status, _, _ = await read_reply(reader)
        assert status == 400
        writer.close()

    async def test_every_route_declares_what_it_answers(self, client: Client) -> None:
        mounts = list(client.server.router.mounts())
        assert len(mounts) >= 40
        for mount in mounts:
            route = mount.route
            assert route.reply is not None
            assert (route.right == "open") == (
                route.path in {"/health", "/healthz", "/live", "/livez", "/ready", "/readyz", "/startupz"}
                or route.path in {"/", "/openapi.json", "/docs"}
                # A client may show its token after the handshake.
                or route.path in {"/ws", "/ws/queues/{queue}", "/v1/socket"}
            ), mount.template
            assert route.group
            assert (route.takes is not None) == (route.body != "none")


class TestConnections:
    async def test_requests_in_a_row_on_one_connection(self, client: Client) -> None:
        reader, writer = await talk(client, get("/ping"), post("/queues/q/jobs", b'{"data":1}'), get("/queues/q/count"))
        assert [(await read_reply(reader))[0] for _ in range(3)] == [200, 200, 200]
        writer.close()

    async def test_close_when_asked(self, client: Client) -> None:
        reader, writer = await talk(client, b"GET /ping HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        status, headers, _ = await read_reply(reader)
        assert (status, headers["connection"]) == (200, "close")
        assert await reader.read() == b""
        writer.close()

    async def test_http_1_0(self, client: Client) -> None:
        reader, writer = await talk(client, b"GET /ping HTTP/1.0\r\n\r\n")
        status, headers, _ = await read_reply(reader)
        assert (status, headers["connection"]) == (200, "close")
        assert await reader.read() == b""
        writer.close()
        reader, writer = await talk(client, b"GET /ping HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", get("/ping"))
        status, headers, _ = await read_reply(reader)
        assert headers["connection"] == "keep-alive"
        assert (await read_reply(reader))[0] == 200
        writer.close()

    async def test_replies_have_a_date(self, client: Client) -> None:
        assert (await client.get("/ping")).headers["Date"].endswith(" GMT")

    async def test_what_is_no_http_is_not_quoted_in_the_log(
        self, client: Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        broken = b"GET /queues HTTP/1.1\r\nAuthorization: Bearer s3cret\x00\r\n\r\n"
        reader, writer = await talk(client, broken)
        assert (await reader.readline()).split()[1] == b"400"
        writer.close()
        assert "s3cret" not in caplog.text
        assert (await client.get("/ping")).status == 200

    @pytest.mark.parametrize(
        "head",
        [
            "get /queues HTTP/1.1",
            "GET /jobs/\u00e9 HTTP/1.1",
            "GET /jobs/" + "x" * 40_000 + " HTTP/1.1",
            "\x16\x03\x01",
        ],
        ids=["method", "path", "too long", "TLS"],
    )
    async def test_what_is_no_http_is_answered_in_json(self, client: Client, head: str) -> None:
        reader, writer = await talk(client, head.encode() + b"\r\nHost: h\r\n\r\n")
        status, headers, body = await read_reply(reader)
        assert (status, json.loads(body)) == (400, {"ok": False, "error": "Malformed HTTP request"})
        assert (headers["content-type"], headers["access-control-allow-origin"]) == ("application/json", "*")
        assert "server" not in headers
        assert await reader.read() == b""
        writer.close()

    @pytest.mark.parametrize("size", [8_000, 9_000, 16 << 10])
    async def test_a_long_header_is_taken(self, client: Client, size: int) -> None:
        reader, writer = await talk(client, f"GET /ping HTTP/1.1\r\nHost: h\r\nCookie: {'x' * size}\r\n\r\n".encode())
        assert (await read_reply(reader))[0] == 200
        writer.close()

    @pytest.mark.parametrize(
        "headers",
        [f"Cookie: {'x' * 17_000}", f"{'X' * 17_000}: x", "\r\n".join(f"X-{n}: {n}" for n in range(200))],
        ids=["value", "name", "many"],
    )
    @pytest.mark.parametrize("port", [0, 1])
    async def test_headers_beyond_the_bound(self, client: Client, headers: str, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.server.listeners[port].port)
        writer.write(f"GET /ping HTTP/1.1\r\nHost: h\r\n{headers}\r\n\r\n".encode())
        status, _, body = await read_reply(reader)
        text = b"Request headers too large (max 16KB each, 128 of them)"
        assert status == 431 and text in body and (port == 1 or json.loads(body)["error"] == text.decode())
        assert await reader.read() == b""
        writer.close()

    async def test_what_is_no_http_on_the_other_port(self, client: Client) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.server.listeners[1].port)
        writer.write(b"get /queues HTTP/1.1\r\n\r\n")
        status, headers, _ = await read_reply(reader)
        assert (status, "server" in headers) == (400, False)
        writer.close()


class TestTokens:
    @pytest.mark.parametrize(
        ("header", "status"),
        [
            (None, 401),
            ("", 401),
            ("Bearer", 401),
            ("Bearer wrong", 401),
            ("Bearer tok-", 401),
            ("Bearer tok-ab", 401),
            ("bearer tok-a", 401),
            ("Bearer  tok-a", 401),
            ("Basic tok-a", 401),
            ("Bearer tök", 401),
            ("Bearer tok-a", 200),
            ("Bearer tok-b", 200),
            ("tok-b", 200),
        ],
    )
    async def test_who_passes(self, serve: Serve, header: str | None, status: int) -> None:
        client = await serve(auth_tokens=("tok-a", "tok-b"))
        for path in ("/queues", "/admin/cluster", "/metrics"):
            answer = await client.get(path, headers={} if header is None else {"Authorization": header})
            assert answer.status == status
            if status == 401:
                assert answer.error == "Unauthorized"
                assert answer.headers.get("Access-Control-Allow-Origin") == (None if "admin" in path else "*")

    async def test_what_is_open(self, serve: Serve) -> None:
        client = await serve(auth_tokens=("t",))
        for path in ("/health", "/healthz", "/live", "/livez", "/ready", "/readyz", "/startupz"):
            assert (await client.get(path)).status == 200
        assert (await client.send("OPTIONS", "/stats")).status == 204
        for path in ("/nope", "/queues/%zz/jobs"):
            assert (await client.get(path)).status == 401

    async def test_a_body_is_not_read_without_a_token(self, serve: Serve) -> None:
        client = await serve(auth_tokens=("t",))
        head = b"POST /queues/q/jobs HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n"
        reader, writer = await talk(client, head)
        assert (await read_reply(reader))[0] == 401
        writer.close()

    async def test_without_tokens_everything_is_open(self, client: Client) -> None:
        assert (await client.get("/queues")).status == 200


class TestCors:
    async def test_default(self, client: Client) -> None:
        for path in ("/queues", "/jobs/nope", "/nope", "/healthz"):
            assert (await client.get(path)).headers["Access-Control-Allow-Origin"] == "*"

    async def test_preflight(self, client: Client) -> None:
        answer = await client.send("OPTIONS", "/queues/q/jobs", headers={"Origin": "https://a.example"})
        assert (answer.status, answer.body) == (204, b"")
        assert "Content-Length" not in answer.headers
        assert {name: value for name, value in answer.headers.items() if name.startswith("Access")} == {
            "Access-Control-Allow-Origin": "*",
            "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE, OPTIONS",
            "Access-Control-Allow-Headers": "Content-Type, Authorization",
            "Access-Control-Max-Age": "86400",
        }

    async def test_one_origin(self, serve: Serve) -> None:
        client = await serve(cors_allow_origin="https://dash.example.com")
        answer = await client.get("/queues", headers={"Origin": "https://evil.example"})
        assert answer.headers["Access-Control-Allow-Origin"] == "https://dash.example.com"

    async def test_of_several_the_one_that_asks(self, serve: Serve) -> None:
        client = await serve(cors_allow_origin="https://a.example, https://b.example")
        for origin, named in (("https://b.example", "https://b.example"), ("https://c.example", "https://a.example")):
            answer = await client.get("/queues", headers={"Origin": origin})
            assert answer.headers["Access-Control-Allow-Origin"] == named
            assert answer.headers["Vary"] == "Origin"


class TestBodyBounds:
    async def test_data_of_ten_megabytes(self, client: Client) -> None:
        fits = b'{"data":"%b"}' % (b"x" * (10 * MIB - 2))
        assert (await client.post("/queues/q/jobs", raw=fits)).status == 200
        for body in (b'{"data":"%b"}' % (b"x" * (10 * MIB - 1)), b'{"data":"%b"}' % (b"x" * 12 * MIB)):
            answer = await client.post("/queues/q/jobs", raw=body)
            assert (answer.status, answer.error) == (400, "Job data too large (max 10MB)")
        in_bulk = await client.post("/queues/q/jobs/bulk", raw=b'{"jobs":[{"data":1},%b]}' % body)
        assert (in_bulk.status, in_bulk.error) == (400, "jobs[1]: Job data too large (max 10MB)")
        assert (await client.get("/queues/q/count")).json["count"] == 1

    async def test_a_body_beyond_the_bound(self, client: Client) -> None:
        body = b'{"data":"%b"}' % (b"x" * 17 * MIB)
        push = await client.post("/queues/q/jobs", raw=body)
        assert (push.status, push.error) == (400, "Job data too large (max 10MB)")
        for path in ("/queues/q/jobs/bulk", "/jobs/x/ack", "/queues/q/jobs/pull-batch"):
            answer = await client.post(path, raw=body)
            assert (answer.status, answer.error) == (413, "Request body too large (max 16MB)")
        assert client.server.bodies.pending_bytes == 0
        assert (await client.get("/ping")).status == 200

    async def test_a_smaller_bound(self, serve: Serve) -> None:
        client = await serve(body_bytes_max=64 * 1024)
        answer = await client.post("/queues/q/jobs", raw=b'{"data":"%b"}' % (b"x" * 65_536))
        assert (answer.status, answer.error) == (413, "Request body too large (max 64KB)")
        assert await client.push(data="x" * 60_000)

    async def test_a_declared_length_beyond_the_bound_is_answered_at_once(self, client: Client) -> None:
        head = b"POST /jobs/x/ack HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n"
        reader, writer = await talk(client, head)
        assert (await read_reply(reader))[0] == 413
        writer.close()

    async def test_a_chunked_body_is_not_held_beyond_the_bound(self, serve: Serve) -> None:
        client = await serve(body_bytes_max=64 * 1024)
        head = b"POST /jobs/x/ack HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
        reader, writer = await talk(client, head, chunk, chunk)
        status, _, body = await read_reply(reader)
        assert (status, json.loads(body)["error"]) == (413, "Request body too large (max 64KB)")
        writer.close()

    async def test_a_compressed_body_is_bounded_by_what_it_becomes(self, serve: Serve) -> None:
        client = await serve(body_bytes_max=64 * 1024)
        bomb = gzip.compress(b'{"data":"%b"}' % (b"x" * 20 * MIB))
        answer = await client.post("/jobs/x/ack", raw=bomb, headers={"Content-Encoding": "gzip"})
        assert answer.status == 413
        fine = gzip.compress(b'{"data":{"n":1}}')
        pushed = await client.post("/queues/q/jobs", raw=fine, headers={"Content-Encoding": "gzip"})
        assert pushed.status == 200
        broken = await client.post("/queues/q/jobs", raw=b"not gzip", headers={"Content-Encoding": "gzip"})
        assert broken.status == 400

    async def test_a_client_that_asks_before_it_sends(self, client: Client) -> None:
        body = b'{"data":1}'
        request = post("/queues/q/jobs", body, "Expect: 100-continue")
        reader, writer = await talk(client, request[: -len(body)])
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await read_reply(reader))[0] == 200
        writer.close()

    async def test_bodies_under_way_are_bounded_together(self, client: Client) -> None:
        client.server.bodies.pending_bytes_max = 100_000
        head = b"POST /jobs/x/ack HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n"
        first = await talk(client, head, b"x" * 90_000)
        await until(lambda: client.server.bodies.pending_bytes == 90_000)
        reader, writer = await talk(client, head, b"x" * 90_000)
        status, headers, body = await read_reply(reader)
        assert (status, json.loads(body)["code"]) == (503, "busy")
        assert int(headers["retry-after"]) >= 1
        writer.close()
        first[1].close()
        await until(lambda: client.server.bodies.pending_bytes == 0)

    async def test_a_body_that_ends_early(self, client: Client) -> None:
        _, writer = await talk(client, post("/queues/q/jobs", b'{"data":1}')[:-3])
        await until(lambda: client.server.under_way == 1)
        writer.close()
        await until(lambda: client.server.under_way == 0)
        assert (await client.get("/queues/q/count")).json["count"] == 0


class TestLongPoll:
    async def test_a_push_ends_it(self, client: Client) -> None:
        waiting = asyncio.ensure_future(client.get("/queues/q/jobs?timeout=20000"))
        batch = asyncio.ensure_future(client.post("/queues/b/jobs/pull-batch", {"count": 5, "timeout": 20_000}))
        await until(lambda: client.server.under_way == 2)
        job_id = await client.push()
        await client.push("b")
        assert (await waiting).json["job"]["id"] == job_id
        assert len((await batch).json["jobs"]) == 1

    async def test_it_ends_empty(self, client: Client) -> None:
        assert (await client.get("/queues/q/jobs?timeout=20")).json == {"ok": True, "job": None}
        answer = await client.post("/queues/q/jobs/pull-batch", {"count": 2, "timeout": 20, "owner": "w"})
        assert answer.json == {"ok": True, "jobs": [], "tokens": []}

    async def test_a_resumed_queue_ends_it(self, client: Client) -> None:
        job_id = await client.push()
        await client.post("/queues/q/pause")
        assert await client.pull() is None
        waiting = asyncio.ensure_future(client.get("/queues/q/jobs?timeout=20000"))
        await until(lambda: client.server.under_way == 1)
        await client.post("/queues/q/resume")
        assert (await waiting).json["job"]["id"] == job_id

    async def test_a_client_that_left_takes_nothing(self, client: Client) -> None:
        _, writer = await talk(client, get("/queues/q/jobs?timeout=60000"))
        await until(lambda: client.server.under_way == 1)
        writer.close()
        await until(lambda: client.server.under_way == 0)
        job_id = await client.push()
        assert await client.state(job_id) == "waiting"

    async def test_a_client_that_leaves_while_a_job_is_taken_for_it(self, client: Client) -> None:
        _, writer = await talk(client, get("/queues/q/jobs?timeout=60000"))
        await until(lambda: client.server.under_way == 1)
        # The engine is held up, so that the take is under way when the connection ends.
        engine, held = client.engine, []
        submit = engine.propose
        engine.propose = lambda *arguments: held.append(arguments)  # type: ignore[method-assign]
        pushing = asyncio.ensure_future(client.push())
        await until(lambda: held)
        submit(*held.pop(0))
        job_id = await pushing
        await until(lambda: held)
        writer.close()
        await until(lambda: client.server.under_way == 0)
        engine.propose = submit  # type: ignore[method-assign]
        submit(*held.pop(0))
        answer = await client.get("/queues/q/jobs?timeout=5000")
        assert (answer.json["job"]["id"], answer.json["job"]["attempts"]) == (job_id, 0)


class TestTrouble:
    async def test_without_a_quorum(self, client: Client) -> None:
        job_id = await client.push()
        client.engine.available = False
        for answer in (
            await client.post("/queues/q/jobs", {"data": 1}),
            await client.post(f"/jobs/{job_id}/ack"),
            await client.get("/queues/q/jobs"),
            await client.get(f"/jobs/{job_id}"),
        ):
            assert answer.status == 503
            assert answer.json["code"] in ("not_applied", "unavailable")
            assert int(answer.headers["Retry-After"]) >= 1
        assert (await client.get("/queues/q/jobs?timeout=abc")).status == 400

    async def test_what_nobody_expected(
        self, client: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def broken(*arguments: Any, **more: Any) -> None:
            raise ZeroDivisionError("about " + "PRIVATE".lower())

        monkeypatch.setattr(client.server.node, "submit", broken)
        answer = await client.post("/queues/q/jobs", {"data": "private"}, headers={"Authorization": "Bearer s3cret"})
        assert (answer.status, answer.json) == (500, {"ok": False, "error": "Internal server error"})
        assert "ZeroDivisionError" in caplog.text
        assert "private" not in caplog.text
        assert "s3cret" not in caplog.text

    async def test_too_many_requests_under_way(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("quorumq.api.host.REQUESTS_MAX", 1)
        waiting = asyncio.ensure_future(client.get("/queues/q/jobs?timeout=20000"))
        await until(lambda: client.server.under_way == 1)
        answer = await client.get("/queues")
        assert (answer.status, answer.json["code"]) == (503, "busy")
        waiting.cancel()
        await until(lambda: client.server.under_way == 0)
        assert (await client.get("/queues")).status == 200


class TestProbes:
    async def test_health(self, client: Client) -> None:
        await client.push()
        await client.push(delay=60_000)
        body = (await client.get("/health")).json
        assert body["status"] == "healthy"
        assert body["queues"] == {"waiting": 1, "active": 0, "delayed": 1, "completed": 0, "dlq": 0}
        assert body["memory"]["rss"] > 0
        assert body["connections"]["http"] >= 1
        assert body["cluster"]["leader"] == "n1"

    async def test_not_ready(self, client: Client) -> None:
        client.engine.available = False
        for path in ("/ready", "/readyz"):
            answer = await client.get(path)
            assert (answer.status, answer.json) == (503, {"ok": False, "ready": False, "error": "no quorum"})
        assert (await client.get("/health")).json["status"] == "degraded"
        for path in ("/healthz", "/live", "/livez", "/startupz"):
            answer = await client.get(path)
            assert (answer.status, answer.body) == (200, b"OK")

    async def test_a_consensus_that_ticks_no_more(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("quorumq.api.dialects.bunqueue.monitoring.MOMENT_S", 0.0)
        client.engine.silent_s = 11.0
        answer = await client.get("/livez")
        assert (answer.status, answer.json["error"]) == (503, "the consensus has done nothing for 11 s")
        # As documented, these are of the process alone.
        for path in ("/healthz", "/live"):
            assert (await client.get(path)).status == 200

    async def test_a_process_that_was_suspended_is_alive(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        waited: list[float] = []

        async def ticks(seconds: float) -> None:
            waited.append(seconds)
            client.engine.silent_s = 0.0

        client.engine.silent_s = 60.0
        monkeypatch.setattr("quorumq.api.dialects.bunqueue.monitoring.asyncio.sleep", ticks)
        assert (await client.get("/livez")).status == 200
        assert waited == [0.25]

    async def test_before_the_log_is_replayed(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client.server.node, "started", False, raising=False)
        for path in ("/ready", "/readyz", "/startupz"):
            answer = await client.get(path)
            assert (answer.status, answer.json["error"]) == (503, "the log is being replayed")
        for path in ("/healthz", "/live", "/livez"):
            assert (await client.get(path)).status == 200
        answer = await client.get("/queues")
        assert (answer.status, answer.json["code"]) == (503, "unavailable")

    async def test_figures(self, client: Client) -> None:
        done = await client.push()
        await client.push(priority=3)
        await client.pull()
        await client.pull()
        await client.post(f"/jobs/{done}/ack")
        await client.push()
        metrics = (await client.get("/metrics")).json["metrics"]
        assert metrics == {"totalPushed": 3, "totalPulled": 2, "totalCompleted": 1, "totalFailed": 0}
        stats = (await client.get("/stats")).json
        assert {name: stats["stats"][name] for name in ("waiting", "active", "completed")} == {
            "waiting": 1,
            "active": 1,
            "completed": 1,
        }
        assert (stats["stats"]["waiting-children"], stats["stats"]["cronPending"]) == (0, 0)
        assert stats["stats"]["pushPerSec"] >= 0
        assert stats["collections"]["jobIndex"] == 3
        storage = (await client.get("/storage")).json
        assert (storage["diskFull"], storage["data"]["diskFull"], storage["data"]["error"]) == (False, False, None)
        assert (await client.get("/ping")).json["data"]["time"] > 1.7e12

    async def test_the_cluster(self, client: Client) -> None:
        body = (await client.get("/admin/cluster")).json
        assert (body["node_id"], body["role"], body["leader"], body["ready"]) == ("n1", "leader", "n1", True)
        assert [(member["id"], member["self"], member["lag"]) for member in body["members"]] == [("n1", True, 0)]
        before = body["digest"]
        await client.push()
        assert (await client.get("/admin/cluster")).json["digest"] != before
        assert (body["apart"], body["differing"], body["agreed_index"]) == ("", [], 0)
        client.engine.available = False
        assert (await client.get("/admin/cluster")).json["has_quorum"] is False

    async def test_the_contents(self, client: Client) -> None:
        await client.push()
        before = (await client.get("/admin/contents")).json
        assert (before["node_id"], before["index"]) == ("n1", client.server.node.machine.index)
        assert (await client.get("/admin/contents")).json == before
        state = client.server.node.machine.state
        next(iter(state.jobs.values())).data = b'"damaged"'
        assert (await client.get("/admin/contents")).json["digest"] != before["digest"]

    async def test_the_contents_are_of_one_entry_even_while_others_come(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for _ in range(3):
            await client.push()
        monkeypatch.setattr(contents, "STEP_RECORDS", 1)
        read, pushes = contents.read, [1, 2]

        def late(state: State, place: Place) -> tuple[bytes, Place]:
            if place != START and pushes:
                pushes.pop()
                client.engine.apply_now([])
            return read(state, place)

        monkeypatch.setattr(contents, "read", late)
        while_written = (await client.get("/admin/contents")).json
        assert not pushes
        assert (await client.get("/admin/contents")).json == while_written
        client.server.node.timeout_s = 0.0
        pushes += range(10**6)
        assert (await client.get("/admin/contents")).status == 503
        pushes.clear()


class TestStopping:
    async def test_what_is_under_way_is_answered(self, client: Client) -> None:
        waiting = asyncio.ensure_future(client.get("/queues/q/jobs?timeout=60000"))
        await until(lambda: client.server.under_way == 1)
        reader, writer = await talk(client, get("/ping"))
        assert (await read_reply(reader))[0] == 200
        port = client.server.port
        client.server.node.drain()
        assert (await client.get("/ready")).json["error"] == "the node is stopping"
        await client.server.stop(5)
        answer = await waiting
        assert answer.json == {"ok": True, "job": None}
        assert await reader.read() == b""
        writer.close()
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)

    async def test_what_takes_too_long_is_cut_off(self, client: Client) -> None:
        reader, writer = await talk(client, get("/queues/q/jobs?timeout=60000"))
        await until(lambda: client.server.under_way == 1)
        await client.server.stop(0.01)
        assert await reader.read() == b""
        writer.close()
        assert client.server.under_way == 0

    async def test_a_port_that_is_taken(self, client: Client, serve: Serve) -> None:
        config = client.server.config
        other = type(client.server)(client.server.node, type(config)(host="127.0.0.1", http_port=client.server.port))
        with pytest.raises(OSError):
            await other.start()
        assert (await client.get("/ping")).status == 200

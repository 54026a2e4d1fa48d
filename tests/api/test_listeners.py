"""Several listeners of one node: what each serves, in whose words, and that bounds, figures and stopping cover all of them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from quorumq.api.mounts import bullmq_dialects, main_dialects
from quorumq.api.server import Server
from quorumq.api.settings.loading import load
from quorumq.api.settings.rows import NodeConfig
from quorumq.node.machine.machine import Machine
from quorumq.node.node import Node
from tests.api.conftest import Answer, Client, Serve
from tests.support.local import LocalEngine

TOKEN = {"Authorization": "Bearer t"}


async def both(serve: Serve, **settings: Any) -> tuple[Client, Client]:
    client = await serve(auth_tokens=("t",), **settings)
    return client, client.bullmq


def text(answer: Answer) -> tuple[int, str, str]:
    return answer.status, answer.body.decode(), answer.headers["Content-Type"].partition(";")[0]


class TestWhatIsServed:
    async def test_each_listener_speaks_its_own_dialect(self, serve: Serve) -> None:
        main, bullmq = await both(serve)
        # The same request lists in one dialect and takes a job in the other.
        taken = await main.get("/queues/mail/jobs", headers=TOKEN)
        listed = await bullmq.get("/queues/mail/jobs", headers=TOKEN)
        assert taken.json == {"ok": True, "job": None}
        assert listed.json["jobs"] == []
        assert listed.json["start"] == 0

    async def test_bullmq_is_under_its_prefix_on_the_main_listener(self, serve: Serve) -> None:
        main, bullmq = await both(serve)
        added = await bullmq.post("/queues/mail/jobs", [{"name": "a", "data": 1}], headers=TOKEN)
        seen = await main.get(f"/bullmq/queues/mail/jobs/{added.json[0]['id']}", headers=TOKEN)
        assert (seen.status, seen.json["name"]) == (200, "a")

    async def test_open_archiver_is_on_both(self, serve: Serve) -> None:
        for client in await both(serve):
            assert (await client.get("/v1/jobs/queues", headers=TOKEN)).json == {"queues": []}

    async def test_what_is_on_one_only(self, serve: Serve) -> None:
        _, bullmq = await both(serve)
        for path in ("/admin/cluster", "/events", "/ws", "/health", "/prometheus", "/stats"):
            assert (await bullmq.get(path, headers=TOKEN)).status == 404, path

    async def test_each_describes_what_it_serves(self, serve: Serve) -> None:
        main, bullmq = await both(serve)
        described = [set((await client.get("/openapi.json")).json["paths"]) for client in (main, bullmq)]
        assert described == [{prefix + route.path for dialect, prefix in mounts for route in dialect.routes}
                             for mounts in (main_dialects(), bullmq_dialects())]  # fmt: skip
        for client in (main, bullmq):
            assert (await client.get("/docs")).headers["Content-Type"] == "text/html; charset=utf-8"

    @pytest.mark.parametrize(
        "accept",
        ["text/html", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "*/*, TEXT/HTML;q=0.5"],
    )
    async def test_a_browser_is_sent_to_the_documentation(self, serve: Serve, accept: str) -> None:
        main, bullmq = await both(serve)
        async with aiohttp.ClientSession(headers={"Accept": accept}) as session:
            for client, path, where in ((main, "/", "docs"), (bullmq, "/", "docs"), (main, "/bullmq/", "../docs")):
                async with session.get(client.base + path, allow_redirects=False) as answer:
                    assert (answer.status, answer.headers["Location"], answer.headers["Vary"]) == (302, where, "Accept")
                async with session.get(client.base + path) as page:
                    assert (page.status, page.url.path, page.content_type) == (200, "/docs", "text/html")

    async def test_others_are_told_what_is_where(self, serve: Serve) -> None:
        main, bullmq = await both(serve)
        asked = {"Accept": "application/json"}
        told = await main.get("/", headers={"Accept": "*/*"})
        assert told.json == (await main.get("/")).json == (await main.get("/", headers=asked)).json
        assert told.headers["Vary"] == "Accept"
        assert (told.json["name"], told.json["apis"]["bunqueue"], told.json["apis"]["bullmq"]) == (
            "quorumq",
            "/",
            "/bullmq",
        )
        # What it names is there.
        for name in ("docs", "openapi", "ready"):
            assert (await main.get(told.json[name])).status == 200
            assert (await bullmq.get(told.json[name])).status == 200
        # BullMQ Proxy answers with text, which stays so for whoever does not ask for JSON.
        for client, path, own in ((bullmq, "/", "/"), (main, "/bullmq/", "/bullmq")):
            for headers in ({}, {"Accept": "*/*"}):
                status, said, kind = text(await client.get(path, headers=headers))
                assert (status, kind) == (200, "text/plain") and said.startswith("quorumq ")
            async with aiohttp.ClientSession() as session, session.get(client.base + path, headers=asked) as answer:
                assert (await answer.json())["apis"] == {"bullmq": own, "openarchiver": "/v1/jobs"}

    async def test_probes_are_on_both(self, serve: Serve) -> None:
        for client in await both(serve):
            for path in ("/healthz", "/livez", "/readyz", "/startupz"):
                assert (await client.get(path)).status == 200, path
                assert (await client.send("HEAD", path)).status == 200, path
            client.engine.available = False
            assert (await client.get("/readyz")).status == 503
            client.engine.available = True

    def test_no_path_is_served_twice(self) -> None:
        for mounts in (main_dialects(), bullmq_dialects()):
            paths = [(route.method, prefix + route.path) for dialect, prefix in mounts for route in dialect.routes]
            assert len(paths) == len(set(paths))


class TestWhoseWords:
    """A path without a route is answered by the dialect of its prefix, else by the listener's own."""

    async def test_unknown_paths(self, serve: Serve) -> None:
        main, bullmq = await both(serve)
        for client, path in ((bullmq, "/nope"), (bullmq, "/queues"[:-1]), (main, "/bullmq/nope"), (main, "/bullmq")):
            assert text(await client.get(path)) == (404, "Not found", "text/plain"), path
        for client in (main, bullmq):
            assert text(await client.get("/v1/jobs/nope")) == (404, '{"message":"Not found"}', "application/json")
        # Here strangers are not told which paths there are.
        for path in ("/nope", "/bullmqs", "/v1", "/admin/nope"):
            assert (await main.get(path)).status == 401, path
            assert (await main.get(path, headers=TOKEN)).error == "Not found", path
        assert (await main.get("/admin/nope", headers=TOKEN)).json["code"] == "not_found"

    async def test_without_a_token(self, serve: Serve) -> None:
        main, bullmq = await both(serve)
        assert text(await bullmq.get("/queues/mail/jobs")) == (401, "Unauthorized", "text/plain")
        assert text(await main.get("/bullmq/queues/mail/jobs")) == (401, "Unauthorized", "text/plain")
        assert (await main.get("/queues/mail/jobs")).json == {"ok": False, "error": "Unauthorized"}
        assert (await main.get("/admin/cluster")).json == {"ok": False, "error": "Unauthorized", "code": "unauthorized"}
        for client in (main, bullmq):
            told = await client.get("/v1/jobs/queues")
            assert (told.status, told.json) == (401, {"message": "Unauthorized: No token provided"})

    async def test_wrong_methods(self, serve: Serve) -> None:
        main, bullmq = await both(serve)
        for method in ("PUT", "PATCH", "OPTIONS"):
            assert text(await bullmq.send(method, "/queues/mail/jobs")) == (404, "Not found", "text/plain"), method
        assert (await main.send("PATCH", "/v1/jobs/queues")).json == {"message": "Not found"}

    async def test_a_body_that_is_too_long(self, serve: Serve) -> None:
        main, bullmq = await both(serve, body_bytes_max=2048)
        raw = json.dumps([{"name": "a", "data": "x" * 4096}]).encode()
        for client, path in ((bullmq, "/queues/mail/jobs"), (main, "/bullmq/queues/mail/jobs")):
            status, said, kind = text(await client.send("POST", path, raw=raw, headers=TOKEN))
            assert (status, said, kind) == (413, "Request body too large (max 2KB)", "text/plain")
        assert (await main.send("POST", "/queues/mail/jobs/bulk", raw=raw, headers=TOKEN)).status == 413

    async def test_too_many_requests_of_a_client(self, serve: Serve) -> None:
        main, bullmq = await both(serve, rate_limit_max_requests=3)
        # The limit is the node's: it does not matter where a client sends.
        assert (await main.get("/queues", headers=TOKEN)).status == 200
        assert (await bullmq.get("/queues/mail/jobs", headers=TOKEN)).status == 200
        assert (await main.get("/v1/jobs/queues", headers=TOKEN)).status == 200
        assert text(await bullmq.get("/queues/mail/jobs", headers=TOKEN))[::2] == (429, "text/plain")
        assert (await main.get("/queues", headers=TOKEN)).error == "Rate limit exceeded"
        archiver = await bullmq.get("/v1/jobs/queues", headers=TOKEN)
        assert archiver.json == {"status": 429, "message": "Rate limit exceeded"}
        assert int(archiver.headers["Retry-After"]) >= 1
        # Probes do not count.
        assert (await bullmq.get("/readyz")).status == 200

    async def test_without_a_quorum(self, serve: Serve) -> None:
        main, bullmq = await both(serve)
        main.engine.available = False
        status, _, kind = text(await bullmq.get("/queues/mail/jobs", headers=TOKEN))
        assert (status, kind) == (503, "text/plain")
        answer = await bullmq.get("/v1/jobs/queues", headers=TOKEN)
        assert (answer.status, list(answer.json)) == (503, ["message"])
        assert (await main.get("/queues", headers=TOKEN)).status == 503
        for answer in (await bullmq.get("/queues/mail/jobs", headers=TOKEN), await main.get("/queues", headers=TOKEN)):
            assert "Retry-After" in answer.headers

    async def test_too_many_under_way(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("quorumq.api.host.REQUESTS_MAX", 0)
        main, bullmq = await both(serve)
        assert text(await bullmq.get("/nope")) == (503, "Too many requests under way", "text/plain")
        assert (await bullmq.get("/v1/jobs/queues?x=1")).json == {"message": "Too many requests under way"}
        assert (await main.get("/queues")).json["code"] == "busy"


class TestPages:
    """What browsers ask before a page may send a request."""

    async def test_preflight(self, serve: Serve) -> None:
        asking = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
        for client in await both(serve):
            for path in ("/queues/mail/jobs", "/v1/jobs/queues"):
                answer = await client.send("OPTIONS", path, headers=asking)
                assert answer.status == 204
                assert answer.headers["Access-Control-Allow-Origin"] == "*"
                assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]

    async def test_headers_that_are_allowed_when_asked_for(self, serve: Serve) -> None:
        _, bullmq = await both(serve)
        asking = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "x-api-key,idempotency-key"}
        answer = await bullmq.send("OPTIONS", "/v1/jobs/queues", headers=asking)
        allowed = answer.headers["Access-Control-Allow-Headers"].split(", ")
        assert allowed == ["Content-Type", "Authorization", "Idempotency-Key", "X-API-KEY"]

    async def test_every_reply_says_which_pages_may_read_it(self, serve: Serve) -> None:
        main, bullmq = await both(serve, cors_allow_origin="https://a.example")
        for answer in (await bullmq.get("/nope"), await bullmq.get("/"), await main.get("/v1/jobs/queues")):
            assert answer.headers["Access-Control-Allow-Origin"] == "https://a.example"


class TestLife:
    async def test_figures_cover_all_listeners(self, serve: Serve) -> None:
        main, bullmq = await both(serve)
        async with aiohttp.ClientSession() as one, aiohttp.ClientSession() as other:
            async with one.get(f"{main.base}/healthz"), other.get(f"{bullmq.base}/healthz"):
                pass
            assert main.server.connections >= 2
            before = list(main.server.replies)
            async with one.get(f"{main.base}/nope"), other.get(f"{bullmq.base}/nope"):
                pass
            assert main.server.replies[4] == before[4] + 2
        page = (await main.get("/prometheus", headers=TOKEN)).body.decode()
        assert 'quorumq_http_refused_total{status="401"} 1' in page

    async def test_stopping_answers_what_waits_on_every_listener(self) -> None:
        config = NodeConfig(host="127.0.0.1", http_port=0, bullmq_port=0, tcp_port=None, auth_tokens=("t",))
        machine = Machine()
        engine = LocalEngine(machine)
        node = Node(engine, machine)
        server = Server(node, config)
        await engine.start()
        await node.start()
        await server.start()
        ports = [listener.port for listener in server.listeners]
        assert len(set(ports)) == 2

        async def wait(session: aiohttp.ClientSession, port: int, path: str, **how: Any) -> int:
            async with session.request(url=f"http://127.0.0.1:{port}{path}", headers=TOKEN, **how) as answer:
                await answer.read()
                assert answer.headers["Connection"] == "close"
                return answer.status

        async with aiohttp.ClientSession() as session:
            polls = [
                asyncio.create_task(wait(session, ports[0], "/queues/mail/jobs?timeout=60000", method="GET")),
                asyncio.create_task(
                    wait(
                        session,
                        ports[1],
                        "/queues/news/jobs/next",
                        method="POST",
                        json={"token": "w", "timeout": 60000},
                    )
                ),
            ]
            while not (node.waiters.waiting_for("mail") and node.waiters.waiting_for("news")):
                await asyncio.sleep(0)
            node.drain()
            await server.stop(10)
            assert await asyncio.gather(*polls) == [200, 200]
            for port in ports:
                with pytest.raises(aiohttp.ClientConnectorError):
                    await session.get(f"http://127.0.0.1:{port}/healthz")
        assert server.connections == 0
        await node.stop()
        await engine.stop()

    async def test_a_port_that_is_taken_is_named_and_nothing_stays_open(self, serve: Serve) -> None:
        taken = (await serve()).bullmq.listener.port
        engine = LocalEngine(Machine())
        config = NodeConfig(host="127.0.0.1", http_port=0, bullmq_port=taken, tcp_port=None)
        server = Server(Node(engine, engine.machine), config)
        with pytest.raises(OSError, match=rf"cannot listen on 127.0.0.1:{taken} \(BULLMQ_PORT\): ."):
            await server.start()
        assert server.connections == 0
        with pytest.raises(AssertionError):
            assert server.port

    async def test_it_can_be_switched_off(self, serve: Serve) -> None:
        client = await serve(auth_tokens=("t",), bullmq_port=None)
        assert len(client.server.listeners) == 1
        assert (await client.get("/bullmq/queues/mail/jobs", headers=TOKEN)).status == 200

    @pytest.mark.parametrize(("given", "port"), [("off", None), ("OFF", None), ("0", 0), ("8090", 8090), ("", 8080)])
    def test_the_setting(self, given: str, port: int | None) -> None:
        assert load({}, {"BULLMQ_PORT": given}).bullmq_port == port

"""Which pages may use the API, who comes near `/admin`, and that the cluster does not call itself."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from quorumq.api.mounts import main_dialects
from quorumq.api.openapi import document
from quorumq.api.outgoing.egress import CALLER, caller_of
from tests.api.conftest import Client, Serve

EVIL = "https://evil.example"
ADMIN = [
    (method.upper(), path.replace("{member}", "n2").replace("{queue}", "q"))
    for path, methods in document(main_dialects(), "1")["paths"].items()
    if path.startswith("/admin")
    for method in methods
]


def own(client: Client) -> str:
    return f"127.0.0.1:{client.server.port}"


class TestAdmin:
    def test_there_is_something_to_test(self) -> None:
        assert {"/admin/cluster", "/admin/backup", "/admin/cluster/members"} <= {path for _, path in ADMIN}

    @pytest.mark.parametrize("tokens", [(), ("t",)])
    @pytest.mark.parametrize(("method", "path"), [*ADMIN, ("GET", "/admin/nope"), ("OPTIONS", "/admin/cluster")])
    async def test_no_other_page_has_access(self, serve: Serve, tokens: Any, method: str, path: str) -> None:
        client = await serve(auth_tokens=tokens)
        allowed = {"Authorization": "Bearer t"} if tokens else {}
        for origin in (EVIL, "null", f"http://localhost:{client.server.port}", f"http://{own(client)}.evil.example"):
            asks = {"Access-Control-Request-Method": "POST"} if method == "OPTIONS" else {}
            answer = await client.send(method, path, raw=b"{}", headers={"Origin": origin, **allowed, **asks})
            assert answer.status == 403
            assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        assert client.server.audit.refusals[403] == 4

    async def test_nobody_is_told_that_he_may_read_it(self, serve: Serve) -> None:
        client = await serve(auth_tokens=("t",), cors_allow_origin=EVIL)
        for path, token, status in (
            ("/admin/cluster", "t", 200),
            ("/admin/cluster", "wrong", 401),
            ("/admin/nope", "t", 404),
            ("/admin/cluster?consistency=what", "t", 200),
        ):
            answer = await client.get(path, headers={"Authorization": f"Bearer {token}"})
            assert answer.status == status
            assert "Access-Control-Allow-Origin" not in answer.headers
        # The documented API keeps what is documented.
        assert (await client.get("/queues")).headers["Access-Control-Allow-Origin"] == EVIL

    async def test_its_own_page_has_access(self, client: Client) -> None:
        assert (await client.get("/admin/cluster", headers={"Origin": f"http://{own(client)}"})).status == 200

    async def test_with_tokens_one_is_needed_from_this_machine_too(self, serve: Serve) -> None:
        client = await serve(auth_tokens=("t",))
        assert (await client.get("/admin/cluster")).status == 401
        headers = {"Authorization": "Bearer t", "Host": "queue.example.com", "X-Forwarded-For": "8.8.8.8"}
        assert (await client.get("/admin/cluster", headers=headers)).status == 200

    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("localhost", 200),
            ("localhost:6790", 200),
            ("LOCALHOST.", 200),
            ("node.localhost:6790", 200),
            ("127.0.0.1:1", 200),
            ("[::1]:6790", 200),
            ("10.1.2.3", 200),
            ("queue-1", 200),
            ("queue-1.cluster.internal:6790", 200),
            ("evil.example", 403),
            ("evil.example:6790", 403),
            ("localhost.evil.example", 403),
            ("127.0.0.1.evil.example", 403),
            ("localhost@evil.example", 403),
            ("evil.example/localhost", 403),
            ("evil.example#@localhost", 403),
        ],
    )
    async def test_without_tokens_a_name_must_be_the_nodes_own(self, serve: Serve, host: str, status: int) -> None:
        client = await serve(node_id="queue-1", peers={"queue-1": "queue-1.cluster.internal:7790"})
        for path in ("/admin/cluster", "/admin/nope"):
            answer = await client.get(path, headers={"Host": host})
            assert answer.status == (status if status == 403 or path != "/admin/nope" else 404)
        if status == 403:
            assert "AUTH_TOKENS" in answer.json["error"]
        # A page whose name was pointed at this machine asks its own origin.
        rebound = await client.get("/admin/cluster", headers={"Host": host, "Origin": f"http://{host}"})
        assert rebound.status in ((403,) if status == 403 else (200, 403))

    @pytest.mark.parametrize("peer", ["10.0.0.7", "172.17.0.1", "2001:db8::1", "::ffff:10.0.0.1", None])
    async def test_without_tokens_it_is_this_machines_alone(
        self, client: Client, monkeypatch: pytest.MonkeyPatch, peer: str | None
    ) -> None:
        monkeypatch.setattr(aiohttp.web.BaseRequest, "remote", property(lambda _: peer))
        assert (await client.get("/admin/cluster")).status == 403
        assert (await client.get("/queues")).status == 200

    @pytest.mark.parametrize("header", ["X-Forwarded-For", "X-Real-IP", "Forwarded", "Via"])
    async def test_a_proxy_on_this_machine_is_not_this_machine(self, client: Client, header: str) -> None:
        assert (await client.get("/admin/cluster", headers={header: "127.0.0.1"})).status == 403


class TestWebSockets:
    @pytest.mark.parametrize(
        ("setting", "origin", "status"),
        [
            ("*", EVIL, 101),
            ("https://a.example, https://b.example", "https://b.example", 101),
            ("https://a.example, https://b.example", EVIL, 403),
            ("https://a.example", EVIL, 403),
            ("https://a.example", None, 101),
            ("", EVIL, 403),
            ("", None, 101),
        ],
    )
    async def test_which_pages_may_open_one(self, serve: Serve, setting: str, origin: str | None, status: int) -> None:
        client = await serve(cors_allow_origin=setting)
        for path in ("/ws", "/ws/queues/q"):
            connecting = client.session.ws_connect(client.base + path, headers={"Origin": origin} if origin else {})
            if status == 101:
                async with connecting as ws:
                    await ws.send_str('{"cmd":"Hello"}')
                    assert "protocolVersion" in (await ws.receive_str(timeout=5))
            else:
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await connecting
                assert refused.value.status == 403


async def test_a_frame_that_is_compressed_ends_the_connection(client: Client) -> None:
    # Nobody has agreed to compression, so there is none to inflate.
    async with client.session.ws_connect(client.base + "/ws", compress=15) as ws:
        assert not ws.compress
        assert ws._writer is not None
        ws._writer.transport.write(b"\xc1\x85\0\0\0\0hello")  # type: ignore[union-attr]
        message = await ws.receive(timeout=5)
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, aiohttp.WSCloseCode.PROTOCOL_ERROR)


class TestOwnCalls:
    @pytest.mark.parametrize("path", ["/queues/q/jobs", "/admin/cluster", "/healthz", "/nowhere"])
    async def test_the_cluster_does_not_serve_itself(self, client: Client, path: str) -> None:
        own_name = caller_of("local")
        for one in (client, client.bullmq):
            assert (await one.get(path, headers={CALLER: own_name})).status == 508
        assert (await client.get("/queues", headers={CALLER: caller_of("another")})).status == 200

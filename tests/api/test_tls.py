"""TLS for clients: on every listener, with certificates that change meanwhile, under the same bounds as without."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from quorumq.api.certificates import Certificate
from quorumq.api.server import Listener
from quorumq.cluster import pem
from tests.api.conftest import Client, Serve
from tests.api.test_door import hurry
from tests.api.test_http import get, post, read_reply, until
from tests.consensus.test_tls import Authority
from tests.support.tcp_client import TcpClient

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by the openssl command")
NAMES = "DNS:localhost,IP:127.0.0.1"


class Secured:
    """An authority, a certificate of it, and what clients need who believe in it."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder, "authority")
        self.cert, self.key = self.authority.issue("node", NAMES)

    @property
    def settings(self) -> dict[str, Any]:
        return {"tls_cert": self.cert, "tls_key": self.key}

    @property
    def client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.authority.cert)

    async def dial(self, listener: Listener, request: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, check the certificate, and send."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", listener.port, ssl=self.client, server_hostname="localhost"
        )
        writer.write(request)
        return reader, writer


@pytest.fixture
def secured(tmp_path: Path) -> Secured:
    return Secured(tmp_path)


def serial(writer: asyncio.StreamWriter) -> str:
    return str(writer.get_extra_info("peercert")["serialNumber"])


async def test_every_listener_speaks_tls_and_nothing_else(serve: Serve, secured: Secured) -> None:
    client = await serve(**secured.settings)
    for listener in client.server.listeners:
        reader, writer = await secured.dial(listener, get("/readyz") + get("/livez"))
        assert [(await read_reply(reader))[0] for _ in range(2)] == [200, 200]
        assert writer.get_extra_info("ssl_object").version() in ("TLSv1.2", "TLSv1.3")
        writer.close()
        # Who forgot it is told so, in the dialect's form.
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(get("/readyz"))
        status, headers, body = await read_reply(reader)
        assert (status, headers["connection"]) == (400, "close") and b"https://" in body
        assert await reader.read() == b""
        writer.close()
    assert client.server.door.counts["plain"] == len(client.server.listeners)
    await until(lambda: not client.server.door.handshakes and not client.server.connections)


async def test_while_it_is_optional_both_are_served(serve: Serve, secured: Secured) -> None:
    client = await serve(tls="optional", **secured.settings)
    for listener in client.server.listeners:
        reader, writer = await secured.dial(listener, get("/livez"))
        assert (await read_reply(reader))[0] == 200
        writer.close()
        # Also a head that comes in pieces, and a second request.
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        for piece in (b"G", get("/livez")[1:] + get("/readyz")):
            writer.write(piece)
            await writer.drain()
        assert [(await read_reply(reader))[0] for _ in range(2)] == [200, 200]
        writer.close()
    assert not client.server.door.counts["plain"]
    await until(lambda: not client.server.door.handshakes and not client.server.connections)


async def test_a_large_body_a_long_reply_and_a_websocket_go_through(serve: Serve, secured: Secured) -> None:
    client = await serve(**secured.settings)
    base = f"https://127.0.0.1:{client.server.main.port}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=secured.client)) as session:
        data = "x" * 900_000
        async with session.post(f"{base}/queues/q/jobs", json={"data": data}) as answer:
            assert answer.status == 200
        async with session.get(f"{base}/queues/q/jobs") as answer:
            assert (await answer.json())["job"]["data"] == data
        async with session.ws_connect(f"{base}/ws") as socket:
            await socket.send_json({"cmd": "PUSH", "queue": "q", "data": 1, "reqId": "1"})
            said = [await socket.receive_json() for _ in range(2)]
            assert any(one.get("reqId") == "1" and one["ok"] for one in said)


async def test_a_renewed_certificate_is_shown_to_new_connections_and_ends_no_old_one(
    serve: Serve, secured: Secured
) -> None:
    client = await serve(**secured.settings)
    certificate = client.server.certificate
    assert certificate is not None
    for listener in client.server.listeners:
        reader, old = await secured.dial(listener, get("/livez"))
        assert (await read_reply(reader))[0] == 200
        secured.authority.issue("node", NAMES)
        await until(lambda taken=certificate.reloads: certificate.reloads > taken)
        _, new = await secured.dial(listener)
        assert serial(new) != serial(old)
        old.write(get("/livez"))
        assert (await read_reply(reader))[0] == 200
        for writer in (old, new):
            writer.close()
    assert certificate.failures == 0


async def test_a_link_that_points_elsewhere_is_followed(tmp_path: Path, secured: Secured) -> None:
    # As Kubernetes mounts a Secret: the files are links into a folder, which is a link itself.
    links = tmp_path / "mounted"
    links.mkdir()
    for number in (1, 2):
        folder = links / f"..{number}"
        folder.mkdir()
        for made, name in zip(secured.authority.issue("node", f"DNS:n{number}"), ("tls.crt", "tls.key"), strict=True):
            shutil.copy2(made, folder / name)
    (links / "..data").symlink_to("..1")
    for name in ("tls.crt", "tls.key"):
        (links / name).symlink_to(f"..data/{name}")
    certificate = Certificate(links / "tls.crt", links / "tls.key")
    assert certificate.facts.names == ("n1",)
    (links / "..new").symlink_to("..2")
    (links / "..new").replace(links / "..data")
    await certificate.keep_up()
    assert certificate.facts.names == ("n2",)


async def test_files_that_cannot_be_used_leave_the_old_ones_in_force(
    serve: Serve, secured: Secured, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = await serve(**secured.settings)
    certificate = client.server.certificate
    assert certificate is not None
    other, _ = Authority(tmp_path, "other").issue("node", NAMES)
    good = secured.cert.read_bytes()
    for broken, why in (
        (b"nothing", "no certificate"),
        (other.read_bytes(), "key values mismatch"),
        (None, "cannot be"),
    ):
        caplog.clear()
        if broken is None:
            secured.cert.unlink()
        else:
            secured.cert.write_bytes(broken)
        await until(lambda why=why: why in certificate.trouble)
        await certificate.keep_up()
        # However often it is looked at, it is said once.
        assert len([one for one in caplog.records if one.levelno == logging.ERROR]) == 1
        reader, writer = await secured.dial(client.server.main, get("/livez"))
        assert (await read_reply(reader))[0] == 200
        writer.close()
        assert b"quorumq_tls_files_ok 0" in await page(secured, client)
    secured.cert.write_bytes(good)
    await until(lambda: not certificate.trouble)
    assert b"quorumq_tls_files_ok 1" in await page(secured, client)
    assert certificate.failures == 3


async def page(secured: Secured, client: Client) -> bytes:
    reader, writer = await secured.dial(client.server.main, get("/prometheus"))
    status, _, body = await read_reply(reader)
    assert status == 200
    writer.close()
    return body


async def test_the_end_of_a_certificate_is_a_figure_and_told_of(
    serve: Serve, secured: Secured, caplog: pytest.LogCaptureFixture
) -> None:
    # Two days, as the authority here gives.
    with caplog.at_level(logging.INFO):
        client = await serve(**secured.settings)
    assert "for localhost, 127.0.0.1, until " in caplog.text and caplog.text.count("ends soon") == 1
    certificate = client.server.certificate
    assert certificate is not None
    assert 1.9 * 86_400 < certificate.facts.ends_at - time.time() <= 2 * 86_400
    assert f"quorumq_tls_certificate_end_seconds {int(certificate.facts.ends_at)}".encode() in await page(
        secured, client
    )
    certificate.tell_end()
    assert caplog.text.count("ends soon") == 1


def test_one_that_has_ended_is_told_of_and_one_that_is_for_no_server_is_refused(secured: Secured) -> None:
    authority = secured.authority
    run = authority._openssl
    config = authority.directory / "extensions"

    def issue(extension: str, *dates: str) -> tuple[Path, Path]:
        cert, key = authority.issue("odd")
        config.write_text(extension)
        request = authority.directory / "odd.csr"
        run(
            *("x509", "-req", "-in", str(request), "-CA", str(authority.cert), "-CAkey", str(authority._key)),
            *("-CAcreateserial", "-extfile", str(config), "-out", str(cert), *dates),
        )
        return cert, key

    _, facts = pem.server_context(*issue("subjectAltName=DNS:n1", "-days", "-1"))
    assert facts.ends_at < time.time() and facts.names == ("n1",)
    with pytest.raises(pem.BadPair, match="purpose"):
        pem.server_context(*issue("extendedKeyUsage=clientAuth", "-days", "2"))


# -- Handshakes that come to nothing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
async def test_one_that_is_not_finished_in_time_ends(serve: Serve, secured: Secured, begun: bytes) -> None:
    client = await serve(head_timeout_ms=100, **secured.settings)
    reader, writer = await asyncio.open_connection("127.0.0.1", client.server.main.port)
    writer.write(begun)
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()
    door = client.server.door
    assert door.counts["handshake"] == 1
    await until(lambda: not door.handshakes)


async def test_one_that_fails_is_counted_with_why_and_a_look_at_the_port_is_not(
    serve: Serve, secured: Secured, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = await serve(**secured.settings)
    door = client.server.door
    _, writer = await asyncio.open_connection("127.0.0.1", client.server.main.port)
    writer.close()
    # A client that believes in another authority.
    stranger = ssl.create_default_context(cafile=Authority(tmp_path, "other").cert)

    def connect() -> None:
        address = ("127.0.0.1", client.server.main.port)
        with (
            socket.create_connection(address) as raw,
            pytest.raises(ssl.SSLCertVerificationError),
        ):
            stranger.wrap_socket(raw, server_hostname="localhost")

    await asyncio.to_thread(connect)
    await until(lambda: door.counts["handshake"] == 1)
    assert "unknown ca" in caplog.text
    # It is gone without a word.
    _, writer = await asyncio.open_connection("127.0.0.1", client.server.main.port)
    writer.write(b"\x16\x03\x01")
    await writer.drain()
    writer.close()
    await until(lambda: door.counts["handshake"] == 2)
    _, writer = await asyncio.open_connection("127.0.0.1", client.server.main.port)
    writer.write(b"\x16" + os.urandom(500))
    await until(lambda: door.counts["handshake"] == 3)
    writer.close()
    await until(lambda: not door.handshakes and not client.server.connections)


async def test_those_that_wait_in_a_handshake_are_bounded_and_the_crowd_s_are_ended(
    serve: Serve, secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quorumq.api.door.WAITING_ROOM", 4)
    client = await serve(connections_max=16, **secured.settings)
    door = client.server.door
    idle = [await asyncio.open_connection("127.0.0.1", client.server.main.port) for _ in range(40)]
    await until(lambda: door.counts["crowd"] == 20 and len(door.handshakes) == 20)
    # Somebody who means it comes in all the same.
    reader, writer = await secured.dial(client.server.main, get("/livez"))
    assert (await read_reply(reader))[0] == 200
    for one in (writer, *(writer for _, writer in idle)):
        one.close()
    await until(lambda: not door.handshakes)
    assert not door._knocking


async def test_a_client_s_handshakes_count_among_its_connections(
    serve: Serve, secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quorumq.api.door.WAITING_ROOM", 4)
    client = await serve(connections_per_client_max=3, trusted_proxies=("none",), **secured.settings)
    door = client.server.door
    idle = [await asyncio.open_connection("127.0.0.1", client.server.main.port) for _ in range(20)]
    await until(lambda: door.counts["client"] == 13 and len(door.handshakes) == 7)
    for _, writer in idle:
        writer.close()
    await until(lambda: not door.handshakes)


async def test_a_slow_reader_is_cut_off_within_tls_as_well(serve: Serve, secured: Secured) -> None:
    client = await serve(**secured.settings)
    data = b'{"data":"' + b"x" * (8 << 20) + b'"}'
    reader, writer = await secured.dial(client.server.main, post("/queues/q/jobs", data))
    status, _, body = await read_reply(reader)
    assert status == 200
    hurry(client)
    # More than the system keeps for somebody who does not read.
    writer.write(get(f"/jobs/{json.loads(body)['id']}") * 6)
    await until(lambda: client.server.door.counts["reply"] == 1)
    writer.transport.abort()
    await until(lambda: not client.server.connections)


async def test_stopping_waits_for_no_handshake(serve: Serve, secured: Secured) -> None:
    client = await serve(**secured.settings)
    reader, writer = await asyncio.open_connection("127.0.0.1", client.server.main.port)
    await until(lambda: len(client.server.door.handshakes) == 1)
    await client.server.stop(1)
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()


# -- Commands over TCP -------------------------------------------------------------------------------------------------


async def test_commands_over_tcp_speak_tls_from_the_first_byte(serve: Serve, secured: Secured) -> None:
    client = await serve(**secured.settings, auth_tokens=("sesame",))
    assert client.server.tcp is not None
    port = client.server.tcp.port
    one = await TcpClient.open(port, "localhost", tls=secured.client, token="sesame")
    data = "x" * (2 << 20)
    job = (await one.ok("PUSH", queue="q", data=data))["id"]
    assert (await one.ok("PULL", queue="q"))["job"]["data"] == data
    # Who forgot it is told so in a frame, and others are not let in.
    plain = await TcpClient.open(port)
    plain.send("Ping")
    assert await plain.event() == {"ok": False, "error": "This port speaks TLS", "code": "tls_required"}
    await plain.end()
    await one.close()
    await until(lambda: client.server.node.machine.state.jobs[job].state == "waiting")
    await until(lambda: not client.server.door.handshakes and not client.server.connections)


async def test_while_tls_is_optional_commands_come_with_and_without(serve: Serve, secured: Secured) -> None:
    client = await serve(**secured.settings, tls="optional")
    assert client.server.tcp is not None
    plain = await TcpClient.open(client.server.tcp.port)
    await plain.ok("PUSH", queue="q", data=1)
    encrypted = await TcpClient.open(client.server.tcp.port, "localhost", tls=secured.client)
    assert (await encrypted.ok("PULL", queue="q"))["job"]["data"] == 1
    await plain.close()
    await encrypted.close()

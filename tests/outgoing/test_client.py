"""The client that delivers jobs: connections that are kept and that go stale, redirects, headers, time-outs, addresses."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from quorumq.api.outgoing import client as module
from quorumq.api.outgoing.budget import ReceiveBudget
from quorumq.api.outgoing.client import CallTimedOut, CannotConnect, HttpClient, Target
from quorumq.api.outgoing.egress import CALLER, CallPolicy
from quorumq.api.outgoing.response import BadResponse, CallError, ConnectionLost, Response

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Script = Callable[["Peer", asyncio.Transport, bytes], None]


class Peer:
    """A server that does with each request what its script says. connections: how many there have been."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self.script = script
        self.tls = tls
        self.connections = 0
        self.requests: list[bytes] = []
        self.transports: list[asyncio.Transport] = []

    async def __aenter__(self) -> Peer:
        loop = asyncio.get_running_loop()
        self.listener = await loop.create_server(lambda: Served(self), "127.0.0.1", 0, ssl=self.tls)
        self.port = self.listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.listener.close()
        for transport in self.transports:
            transport.abort()
        await asyncio.sleep(0)

    @property
    def url(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self.port}/path"


class Served(asyncio.Protocol):
    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.peer.connections += 1
        self.peer.transports.append(transport)

    def data_received(self, data: bytes) -> None:
        self.peer.requests.append(data)
        self.peer.script(self.peer, self.transport, data)


def fine(peer: Peer, transport: asyncio.Transport, request: bytes) -> None:
    transport.write(OK)


@pytest.fixture
async def client() -> AsyncIterator[HttpClient]:
    client = HttpClient(CallPolicy())
    yield client
    client.close()
    await asyncio.sleep(0)
    assert client.connections == 0


async def call(client: HttpClient, target: Target | str, body: bytes | None = b"{}", timeout_s: float = 5) -> Response:
    found: asyncio.Future[Response | CallError] = asyncio.get_running_loop().create_future()
    client.call(Target("POST", target) if isinstance(target, str) else target, body, timeout_s, found.set_result)
    outcome = await asyncio.wait_for(found, 10)
    if isinstance(outcome, CallError):
        raise outcome
    return outcome


# -- Connections


async def test_a_connection_is_kept_for_the_next_call(client: HttpClient) -> None:
    async with Peer(fine) as peer:
        for _ in range(3):
            assert (await call(client, peer.url)).body == b"ok"
        assert peer.connections == 1
        # Calls at once need connections of their own.
        await asyncio.gather(*(call(client, peer.url) for _ in range(4)))
        assert peer.connections == 4 and client.connections == 4


async def test_a_kept_connection_that_had_ended_is_not_a_failure(
    client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow the machine is.
    monkeypatch.setattr(module, "STALE_S", 60.0)

    def once(peer: Peer, transport: asyncio.Transport, request: bytes) -> None:
        # The second request on a connection finds it ended.
        if transport in seen:
            transport.abort()
        else:
            seen.append(transport)
            transport.write(OK)

    seen: list[asyncio.Transport] = []
    async with Peer(once) as peer:
        for _ in range(3):
            assert (await call(client, peer.url)).body == b"ok"
        assert peer.connections == 3


async def test_a_connection_that_ends_while_the_server_works_is_one(
    client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def once(peer: Peer, transport: asyncio.Transport, request: bytes) -> None:
        if len(peer.requests) == 1:
            transport.write(OK)
        else:
            transport.abort()

    # As if it had taken the server longer than that to end it.
    monkeypatch.setattr(module, "STALE_S", -1.0)
    async with Peer(once) as peer:
        await call(client, peer.url)
        with pytest.raises(ConnectionLost):
            await call(client, peer.url)
        assert len(peer.requests) == 2


async def test_a_new_connection_that_ends_without_an_answer_is_a_failure(client: HttpClient) -> None:
    async with Peer(lambda peer, transport, request: transport.close()) as peer:
        with pytest.raises(ConnectionLost):
            await call(client, peer.url)
        assert len(peer.requests) == 1


async def test_an_answer_that_breaks_off_is_a_failure(client: HttpClient) -> None:
    def half(peer: Peer, transport: asyncio.Transport, request: bytes) -> None:
        transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        transport.close()

    async with Peer(half) as peer:
        with pytest.raises(ConnectionLost):
            await call(client, peer.url)


async def test_a_server_that_says_close_is_not_asked_again_on_that_connection(client: HttpClient) -> None:
    def close(peer: Peer, transport: asyncio.Transport, request: bytes) -> None:
        transport.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")

    async with Peer(close) as peer:
        for _ in range(2):
            await call(client, peer.url)
        assert peer.connections == 2


async def test_bytes_that_nobody_asked_for_end_the_connection(client: HttpClient) -> None:
    def chatty(peer: Peer, transport: asyncio.Transport, request: bytes) -> None:
        transport.write(OK + OK)

    async with Peer(chatty) as peer:
        for _ in range(2):
            assert (await call(client, peer.url)).body == b"ok"
        assert peer.connections == 2


async def test_idle_connections_are_ended() -> None:
    client = HttpClient(CallPolicy(), idle_s=0.02)
    async with Peer(fine) as peer:
        await call(client, peer.url)
        assert client.connections == 1
        async with asyncio.timeout(20):
            while client.connections:
                await asyncio.sleep(0.005)
        await call(client, peer.url)
        assert peer.connections == 2
    client.close()


async def test_what_is_not_http_is_an_error(client: HttpClient) -> None:
    async with Peer(lambda peer, transport, request: transport.write(b"220 smtp\r\n\r\n")) as peer:
        with pytest.raises(BadResponse):
            await call(client, peer.url)


async def test_a_closed_client_ends_what_is_under_way() -> None:
    client = HttpClient(CallPolicy())
    async with Peer(lambda peer, transport, request: client.close()) as peer:
        with pytest.raises(ConnectionLost):
            await call(client, peer.url)
        with pytest.raises(CannotConnect):
            await call(client, peer.url)


# -- Time-outs


async def test_the_time_runs_for_the_whole_call(client: HttpClient) -> None:
    async with Peer(fine) as peer:
        # The next call finds a connection, so that it cannot be late before it has one.
        await call(client, peer.url)
        peer.script = lambda peer, transport, request: None
        with pytest.raises(CallTimedOut) as caught:
            await call(client, peer.url, timeout_s=0.02)
        assert caught.value.connected
        assert peer.connections == 1 and client.connections in (0, 1)


async def test_a_call_that_is_given_up_tells_nobody(client: HttpClient) -> None:
    told: list[Any] = []
    async with Peer(lambda peer, transport, request: arrived.set()) as peer:
        arrived = asyncio.Event()
        going = client.call(Target("POST", peer.url), b"{}", 5, told.append)
        await arrived.wait()
        going.give_up()
        going.finish(ConnectionLost())
        assert told == []
        peer.script = fine
        assert (await call(client, peer.url)).body == b"ok" and peer.connections == 2


async def test_a_call_that_is_given_up_is_not_sent_again(client: HttpClient) -> None:
    def once(peer: Peer, transport: asyncio.Transport, request: bytes) -> None:
        if len(peer.requests) == 1:
            transport.write(OK)
        else:
            arrived.set()

    arrived = asyncio.Event()
    async with Peer(once) as peer:
        await call(client, peer.url)
        # On the kept connection, which ends without an answer because the call does.
        going = client.call(Target("POST", peer.url), b"{}", 5, lambda _: None)
        await arrived.wait()
        going.give_up()
        peer.script = fine
        await call(client, peer.url)
        assert (len(peer.requests), peer.connections) == (3, 2)


async def test_nobody_there(client: HttpClient) -> None:
    with pytest.raises(CannotConnect, match="ECONNREFUSED: Unable to connect"):
        await call(client, "http://127.0.0.1:1/")
    with pytest.raises(CannotConnect, match="ENOTFOUND: Unable to connect"):
        await call(client, "http://no-such-host.invalid/")


async def test_a_name_with_several_addresses_is_tried_one_after_the_other(
    client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def several(host: str, port: int, **_: Any) -> list[Any]:
        return [(0, 0, 0, "", (address, port)) for address in ("169.254.169.254", "127.0.0.2", "127.0.0.1")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", several, raising=False)
    async with Peer(fine) as peer:
        assert (await call(client, f"http://several.test:{peer.port}/")).body == b"ok"
        assert b"Host: several.test:%d\r\n" % peer.port in peer.requests[0]


async def test_a_name_is_looked_up_once_for_all_who_ask_at_the_time(
    client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    answered = asyncio.Event()

    async def slow(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        await answered.wait()
        return [(0, 0, 0, "", ("127.0.0.1", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", slow, raising=False)
    async with Peer(fine) as peer:
        url = f"http://slow.test:{peer.port}/"
        # One that stops waiting takes nothing from the others.
        with pytest.raises(CallTimedOut):
            await call(client, url, timeout_s=0.01)
        calls = [asyncio.create_task(call(client, url)) for _ in range(5)]
        await asyncio.sleep(0)
        answered.set()
        assert [answer.body for answer in await asyncio.gather(*calls)] == [b"ok"] * 5
        assert asked == ["slow.test"]
        # The next one asks again.
        client.close()
    again = HttpClient(CallPolicy())
    async with Peer(fine) as peer:
        await call(again, f"http://slow.test:{peer.port}/")
        again.close()
    assert asked == ["slow.test"] * 2


# -- Large answers


SIZE = 300_000


@pytest.mark.parametrize("chunked", [False, True])
async def test_large_answers_wait_for_room_and_are_not_blamed_for_it(client: HttpClient, chunked: bool) -> None:
    client.budget = ReceiveBudget(SIZE)
    body = b"x" * SIZE

    def large(peer: Peer, transport: asyncio.Transport, request: bytes) -> None:
        if chunked:
            transport.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % SIZE)
        else:
            transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
        loop = asyncio.get_running_loop()
        loop.call_soon(transport.write, body[: SIZE // 2])
        # The first one takes its time, so that the others have to wait; longer than their own time is.
        rest = body[SIZE // 2 :] + (b"\r\n0\r\n\r\n" if chunked else b"")
        loop.call_later(0.3 if len(peer.requests) == 1 else 0, transport.write, rest)

    async with Peer(large) as peer:
        first = asyncio.create_task(call(client, peer.url))
        while client.budget.taken < SIZE // 2:
            await asyncio.sleep(0)
        # As if something else held what is left.
        client.budget.hold(SIZE)
        others = [asyncio.create_task(call(client, peer.url, timeout_s=0.2)) for _ in range(4)]
        while client.budget.waiting < 4:
            await asyncio.sleep(0.001)
        assert (await first).body == body
        assert client.budget.waiting == 4 and not any(other.done() for other in others)
        client.budget.release(SIZE)
        assert [answer.body for answer in await asyncio.gather(*others)] == [body] * 4
        assert (client.budget.taken, client.budget.waiting) == (0, 0)


async def test_who_waits_for_room_may_be_given_up(client: HttpClient) -> None:
    client.budget = ReceiveBudget(SIZE)
    client.budget.hold(SIZE)

    def large(peer: Peer, transport: asyncio.Transport, request: bytes) -> None:
        transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)

    async with Peer(large) as peer:
        going = client.call(Target("POST", peer.url), b"{}", 5, lambda _: None)
        while not client.budget.waiting:
            await asyncio.sleep(0.001)
        going.give_up()
        while client.connections:
            await asyncio.sleep(0.001)
        assert client.budget.waiting == 0
        client.budget.release(SIZE)


# -- What is sent


async def test_headers_are_those_registered_and_what_http_needs(client: HttpClient) -> None:
    async with Peer(fine) as peer:
        headers = (("X-A", "ü"), ("Content-Length", "999"), ("transfer-encoding", "chunked"), ("Connection", "close"))
        await call(client, Target("PATCH", peer.url + "?q=1#fragment", headers), b"body")
        assert peer.requests == [
            f"PATCH /path?q=1 HTTP/1.1\r\nHost: 127.0.0.1:{peer.port}\r\nUser-Agent: quorumq\r\nAccept: */*\r\n"
            "X-A: ü\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\nbody".encode("latin-1")
        ]


async def test_calls_say_which_cluster_they_come_from_and_registrations_cannot() -> None:
    async with Peer(fine) as peer:
        for policy, lines in ((CallPolicy(), 1), (CallPolicy(["any", "cluster"]), 0)):
            client = HttpClient(policy, caller="0123")
            await call(client, Target("POST", peer.url, ((CALLER.upper(), "forged"),)), b"x")
            head = peer.requests.pop().decode()
            assert head.count(f"{CALLER}: 0123\r\n") == lines
            assert "forged" not in head
            client.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0x7f.1"])
async def test_the_clusters_own_ports_are_not_called(host: str) -> None:
    async with Peer(fine) as peer:
        url = f"http://{host}:{peer.port}/"
        # Whatever allows the address.
        for words in (["any"], ["127.0.0.0/8", "localhost", "::ffff:0:0/96"]):
            client = HttpClient(CallPolicy(words, [peer.port]))
            with pytest.raises(CannotConnect, match="the cluster's own"):
                await call(client, Target("POST", url), b"x")
            client.close()
        assert peer.requests == []
        for policy in (CallPolicy(["any", "cluster"], [peer.port]), CallPolicy(["any"], [peer.port + 1, 0])):
            client = HttpClient(policy)
            assert (await call(client, Target("POST", peer.url), b"x")).status == 200
            client.close()


async def test_the_ports_of_other_members_are_not_called() -> None:
    # An address of nobody here: that of a member is enough.
    client = HttpClient(CallPolicy(["any"], [6790]), own_hosts=lambda: ["192.0.2.7", "no-such-name.invalid"])
    with pytest.raises(CannotConnect, match="the cluster's own"):
        await call(client, Target("POST", "http://192.0.2.7:6790/"), b"x")
    with pytest.raises(CannotConnect, match="the cluster's own"):
        await call(client, Target("POST", "http://[::ffff:192.0.2.7]:6790/"), b"x")
    client.close()


async def test_what_is_registered_wins(client: HttpClient) -> None:
    async with Peer(fine) as peer:
        headers = (("host", "other"), ("USER-AGENT", "mine"), ("Accept", "a/b"))
        await call(client, Target("POST", peer.url, headers))
        head = peer.requests[0].partition(b"\r\n\r\n")[0]
        assert head.count(b"ost: ") == 1 and b"host: other" in head and b"quorumq" not in head and b"*/*" not in head


async def test_a_name_and_a_password_in_the_url_become_a_header(client: HttpClient) -> None:
    async with Peer(fine) as peer:
        await call(client, peer.url.replace("//", "//user:p%40ss@"))
        assert b"\r\nAuthorization: Basic dXNlcjpwQHNz\r\n" in peer.requests[0]
        assert b"user" not in peer.requests[0].partition(b"\r\n")[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [("X\r\nY", "1"), ("X", "1\r\nY: 2"), ("X", "1\n"), ("X", "\x00"), ("X Y", "1"), ("", "1"), ("X", "€")],
)
def test_headers_that_would_break_a_request_are_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="Invalid headers"):
        Target("POST", "http://h/", ((name, value),))


@pytest.mark.parametrize(
    "url",
    [
        *("", "nope", "ftp://h/", "http://", "http:///x", "http://h:99999/", "http://h /", "http://h/\r\nX: 1", "//h/"),
        *("http://a%0d%0ab/", "http://a%20b/", "http://<h>/", "http://a|b/", "http://a^b/", "http://256.1.1.1/"),
    ],
)
def test_urls_that_cannot_be_called_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="Invalid URL"):
        Target("POST", url)


# -- Redirects


def redirects(status: int, where: str) -> Script:
    def answer(peer: Peer, transport: asyncio.Transport, request: bytes) -> None:
        if request.split(b" ")[1] == b"/path":
            transport.write(b"HTTP/1.1 %d Go\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % (status, where.encode()))
        else:
            transport.write(OK)

    return answer


@pytest.mark.parametrize(
    ("status", "method", "then", "has_body"),
    [
        (301, "POST", "GET", False),
        (302, "POST", "GET", False),
        (303, "POST", "GET", False),
        (303, "PUT", "GET", False),
        (301, "PUT", "PUT", True),
        (302, "PATCH", "PATCH", True),
        (307, "POST", "POST", True),
        (308, "PUT", "PUT", True),
    ],
)
async def test_a_redirect_is_followed_as_fetch_does(
    client: HttpClient, status: int, method: str, then: str, has_body: bool
) -> None:
    headers = (("Content-Type", "application/json"), ("Authorization", "secret"))
    async with Peer(redirects(status, "/there?x=1")) as peer:
        assert (await call(client, Target(method, peer.url, headers))).body == b"ok"
        second = peer.requests[1]
        assert second.startswith(f"{then} /there?x=1 HTTP/1.1\r\n".encode())
        assert second.endswith(b"\r\n\r\n{}") == has_body
        assert (b"Content-Type" in second) == has_body and (b"Content-Length" in second) == has_body
        # The same origin gets the same secrets.
        assert b"Authorization: secret" in second and peer.connections == 1


async def test_secrets_stay_with_their_origin(client: HttpClient) -> None:
    headers = (("Authorization", "secret"), ("Cookie", "secret"), ("Host", "first"), ("X-Other", "kept"))
    async with Peer(fine) as other, Peer(redirects(307, f"http://127.0.0.1:{other.port}/there")) as peer:
        assert (await call(client, Target("POST", peer.url, headers))).body == b"ok"
        assert b"secret" in peer.requests[0]
        assert b"secret" not in other.requests[0] and b"first" not in other.requests[0]
        assert b"X-Other: kept" in other.requests[0]


@pytest.mark.parametrize("where", ["ftp://h/", "http://", "http://h:0x/"])
async def test_a_redirect_to_nowhere_is_an_error(client: HttpClient, where: str) -> None:
    async with Peer(redirects(302, where)) as peer:
        with pytest.raises(BadResponse):
            await call(client, peer.url)


async def test_a_redirect_that_never_ends_is_an_error(client: HttpClient) -> None:
    async with Peer(redirects(307, "/path")) as peer:
        with pytest.raises(BadResponse, match="TooManyRedirects"):
            await call(client, peer.url)
        assert len(peer.requests) == module.REDIRECTS_MAX + 1


async def test_a_redirect_without_a_place_is_an_answer(client: HttpClient) -> None:
    async with Peer(lambda p, t, r: t.write(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n")) as peer:
        assert (await call(client, peer.url)).status == 302


# -- TLS


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")),
        ],
        check=False,
        capture_output=True,
    )
    if made.returncode:
        pytest.skip("there is no openssl")
    return folder


async def test_https_checks_the_certificate(
    client: HttpClient, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    async with Peer(fine, server) as peer:
        with pytest.raises(CannotConnect, match="ERR_TLS"):
            await call(client, peer.url)
        assert peer.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
        trusting = HttpClient(CallPolicy())
        for _ in range(2):
            assert (await call(trusting, peer.url)).body == b"ok"
        assert len(peer.requests) == 2
        trusting.close()
        async with asyncio.timeout(20):
            while trusting.connections:
                await asyncio.sleep(0.005)

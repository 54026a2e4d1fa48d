"""The HTTP client that delivers jobs: HTTP/1.1 over kept connections, with nothing that a delivery does not need.

It exists because a general client costs a multiple of all else that a delivery takes (node/DESIGN.md has the figures). It is strict: an
answer that is not plain HTTP/1.1 is an error, never a guess. Every connection goes to an address that was checked.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import ipaddress
import re
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast
from urllib.parse import urljoin

from yarl import URL

from .budget import SMALL_BYTES, ReceiveBudget
from .egress import CALLER, CallPolicy, IPAddress, embedded, is_here, literal
from .egress import split as split_url
from .response import BODY_BYTES_MAX, BadResponse, CallError, ConnectionLost, Response, ResponseReader, decoded

REDIRECTS_MAX = 20
# Servers end idle connections, most of them after five seconds or more: ours are ended before.
IDLE_S = 4.0
# What one read takes, at most.
READ_BYTES = 256 * 1024
# A kept connection that ends this soon after a request, without a byte of an answer, had been ended by the server before
# the request arrived; then it is sent once more on a new one. Later than that the server may have been at work.
STALE_S = 0.5
# How long a connection to one of several addresses of a name may take before the next is tried.
NEXT_ADDRESS_S = 1.0
# A server that does not say goodbye in time is left standing.
TLS_GOODBYE_S = 2.0

# Headers that belong to a connection or to the framing of one message; those of a registration are not sent.
OWN_HEADERS = frozenset(
    {"connection", "content-length", "expect", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding"}
    | {"upgrade", CALLER.lower()}
)
# What does not go to another origin that an answer points to.
SECRET_HEADERS = frozenset({"authorization", "cookie", "host", "proxy-authorization"})
BODY_HEADERS = frozenset({"content-encoding", "content-language", "content-location", "content-type"})

HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# What a name of a host cannot have, and what it ends with only when it is an address.
FORBIDDEN = re.compile(r"[\x00-\x20#%/<>?@\[\\\]^|\x7f]")
NUMERIC_END = re.compile(r"(?:^|\.)(?:\d+|0[xX][0-9A-Fa-f]*)\.?$", re.ASCII)
HEADER_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
Headers = tuple[tuple[str, str], ...]


class CannotConnect(CallError):
    """There was no connection: nothing of the request has left. is_local: for want of something on this machine."""

    def __init__(self, code: str = "ECONNREFUSED") -> None:
        super().__init__(f"{code}: Unable to connect. Is the computer able to access the url?")
        self.is_local = code in ("EADDRNOTAVAIL", "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM")


class CallTimedOut(CallError):
    """No whole answer in time. connected: whether the request had a connection, so that it may have been worked on."""

    def __init__(self, *, connected: bool, status: int = 0) -> None:
        super().__init__("The operation was aborted.")
        self.connected = connected
        self.status = status


class Origin(NamedTuple):
    """What connections can be shared within."""

    secure: bool
    host: str
    port: int


class Target:
    """Where calls go, and the lines that all of them begin with.

    url: http or https.  headers: as registered; those of OWN_HEADERS are left out.  Raises ValueError for a URL or a header
    that cannot be sent.
    """

    __slots__ = ("headers", "method", "origin", "prefix", "url")

    def __init__(self, method: str, url: str, headers: Headers = ()) -> None:
        parts = URL(url) if split_url(url) is not None else URL()
        host = parts.raw_host
        if parts.scheme not in ("http", "https") or not host or parts.port is None or not is_host(host):
            raise ValueError("Invalid URL")
        self.method = method
        names = {name.lower() for name, _ in headers}
        self.headers = tuple(pair for pair in headers if pair[0].lower() not in OWN_HEADERS)
        if parts.user is not None and "authorization" not in names:
            pair = f"{parts.user}:{parts.password or ''}".encode()
            self.headers += (("Authorization", f"Basic {base64.b64encode(pair).decode()}"),)
        self.origin = Origin(parts.scheme == "https", host.lower(), parts.port)
        self.url = str(parts.with_user(None).with_fragment(None))
        self.prefix = self._prefix(parts)

    def _prefix(self, parts: URL) -> bytes:
        names = {name.lower() for name, _ in self.headers}
        lines = [f"{self.method} {parts.raw_path_qs or '/'} HTTP/1.1"]
        if "host" not in names:
            host = self.origin.host
            shown = f"[{host}]" if ":" in host else host
            lines.append(f"Host: {shown}" if parts.is_default_port() else f"Host: {shown}:{parts.port}")
        if "user-agent" not in names:
            lines.append("User-Agent: quorumq")
        if "accept" not in names:
            lines.append("Accept: */*")
        return "\r\n".join(lines).encode("latin-1") + b"\r\n" + lines_of(self.headers)

    def request(self, body: bytes | None, more: bytes = b"") -> bytes:
        """Return a request as it goes over the wire. more: further lines of its head."""
        if body is None:
            return b"%b%bConnection: keep-alive\r\n\r\n" % (self.prefix, more)
        length = len(body)
        return b"%b%bConnection: keep-alive\r\nContent-Length: %d\r\n\r\n%b" % (self.prefix, more, length, body)

    def after(self, status: int, location: str) -> tuple[Target, bool]:
        """Return where an answer points to, and whether the body goes there too. Raises ValueError."""
        url = urljoin(self.url, location)
        method, keeps = self.method, True
        # As fetch does: 303 always asks with GET, 301 and 302 turn a POST into one.
        if status == 303 or (status in (301, 302) and method == "POST"):
            method, keeps = "GET", False
        other = Target(method, url)
        dropped = frozenset() if keeps else BODY_HEADERS
        if other.origin != self.origin:
            dropped |= SECRET_HEADERS
        headers = tuple(pair for pair in self.headers if pair[0].lower() not in dropped)
        return Target(method, url, headers), keeps


def lines_of(headers: Iterable[tuple[str, str]]) -> bytes:
    """Return headers as lines of a request. Raises ValueError for one that cannot be sent."""
    lines: list[str] = []
    for name, value in headers:
        if not HEADER_NAME.fullmatch(name) or not HEADER_VALUE.fullmatch(value):
            raise ValueError("Invalid headers")
        lines.append(f"{name}: {value}\r\n")
    try:
        return "".join(lines).encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError("Invalid headers") from None


def is_host(host: str) -> bool:
    """Whether a host can be one, as fetch sees it: no character that has another meaning, and what ends like an address is one."""
    if ":" not in host and FORBIDDEN.search(host):
        return False
    return literal(host) is not None or not NUMERIC_END.search(host)


Done = Callable[["Response | CallError"], None]


class OutgoingCall:
    """One call on its way: `done` is called once, with the answer or with what went wrong, unless it is given up before."""

    __slots__ = (
        "_left_s",
        "_task",
        "body",
        "client",
        "connected",
        "connection",
        "done",
        "hops",
        "more",
        "started",
        "target",
        "timer",
    )

    def __init__(
        self, client: HttpClient, target: Target, body: bytes | None, timeout_s: float, done: Done, more: bytes
    ) -> None:
        self.client = client
        self.target = target
        self.body = body
        self.more = more
        self.done: Done | None = done
        self.connection: ClientConnection | None = None
        self.connected = False
        self.hops = 0
        self.started = client.loop.time()
        self.timer = client.loop.call_later(timeout_s, self._late)
        self._left_s = timeout_s
        self._task: asyncio.Task[None] | None = None

    @property
    def ended(self) -> bool:
        """Whether the call has its outcome, or was given up."""
        return self.done is None

    def begin(self) -> None:
        """Send the request over a kept connection, or over a new one."""
        connection = self.client.kept(self.target.origin)
        if connection is not None:
            self.carry(connection)
        else:
            self._task = self.client.loop.create_task(self._connect())

    def carry(self, connection: ClientConnection) -> None:
        """Send the request over a connection."""
        self.connected = True
        self.connection = connection
        connection.send(self)

    async def _connect(self) -> None:
        try:
            connection = await self.client.connect(self.target.origin)
        except CannotConnect as error:
            self._task = None
            self.finish(error)
            return
        self._task = None
        if self.done is None:
            connection.abort()
            return
        self.carry(connection)

    def answered(self, answer: Response) -> None:
        """Take the answer of a connection, which is free again."""
        self.connection = None
        try:
            if self.client.by_status:
                self.finish(answer)
            elif answer.status in (301, 302, 303, 307, 308) and answer.location is not None:
                self._follow(answer.status, answer.location)
            else:
                is_read = 200 <= answer.status < 300
                self.finish(decoded(answer, self.client.body_bytes_max) if is_read else answer)
        except CallError as error:
            self.finish(error)

    def _follow(self, status: int, location: str) -> None:
        self.hops += 1
        if self.hops > REDIRECTS_MAX:
            raise BadResponse("TooManyRedirects: The response redirected too many times.")
        try:
            self.target, keeps_body = self.target.after(status, location)
        except ValueError:
            raise BadResponse("The answer redirects to a URL that cannot be called") from None
        if not keeps_body:
            self.body = None
        self.begin()

    def lost(self, error: CallError, *, stale: bool) -> None:
        """Hear that the connection ended before the answer did. stale: it had been ended before the request arrived."""
        self.connection = None
        if stale and not self.ended:
            self._task = self.client.loop.create_task(self._connect())
        else:
            self.finish(error)

    def stop_clock(self) -> None:
        """Let the time for the call stand still: it is this node that keeps the endpoint waiting."""
        self._left_s = max(self.timer.when() - self.client.loop.time(), 0)
        self.timer.cancel()

    def start_clock(self) -> None:
        """Let it run on."""
        if not self.ended:
            self.timer = self.client.loop.call_later(self._left_s, self._late)

    def _late(self) -> None:
        status = 0 if self.connection is None else self.connection.status
        self.finish(CallTimedOut(connected=self.connected, status=status))

    def finish(self, outcome: Response | CallError) -> None:
        """End the call with an outcome, unless it has ended."""
        done = self.give_up()
        if done is not None:
            done(outcome)

    def give_up(self) -> Done | None:
        """End the call without telling anybody; its connection ends too."""
        done, self.done = self.done, None
        self.timer.cancel()
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self.connection is not None:
            connection, self.connection = self.connection, None
            connection.abort()
        return done


class ClientConnection(asyncio.BufferedProtocol):
    """One connection: it carries one request after the other."""

    __slots__ = ("_idle_since", "_reader", "_room", "_sent_at", "_transport", "call", "client", "origin", "uses")

    def __init__(self, client: HttpClient, origin: Origin) -> None:
        self.client = client
        self.origin = origin
        self.call: OutgoingCall | None = None
        self.uses = 0
        self._reader = ResponseReader(client.body_bytes_max)
        self._transport: asyncio.Transport | None = None
        self._idle_since = self._sent_at = 0.0
        # Bytes of the answer that there is room for, beyond what every answer may have.
        self._room = 0

    @property
    def status(self) -> int:
        """Of the answer that is coming; 0 before its head has."""
        return self._reader.status

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.client.opened(self)

    def send(self, call: OutgoingCall) -> None:
        """Send a call's request."""
        self.call = call
        self.uses += 1
        self._sent_at = self.client.loop.time()
        if self._transport is None or self._transport.is_closing():
            self._end()
            return
        self._transport.write(call.target.request(call.body, self.client.signature + call.more))

    def get_buffer(self, sizehint: int) -> memoryview:
        """Lend the one buffer that all connections read into: what is read is taken out of it at once."""
        return self.client.buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self.client.buffer[:nbytes])
        call = self.call
        if call is None:
            # Nobody asked for anything.
            self.abort()
            return
        try:
            answer = self._reader.feed(data)
        except CallError as error:
            self.call = None
            self.abort()
            call.connection = None
            call.finish(error)
            return
        if answer is not None:
            self._answered(call, answer)
        else:
            self._see_room()

    def _see_room(self) -> None:
        """Take room for an answer that is large: all of it where its head says how much, else twice what has come."""
        reader, length = self._reader, self._reader.length
        needed = reader.received if length is None else length
        if needed > max(self._room, SMALL_BYTES):
            self._room = needed if length is not None else min(2 * needed, reader.limit)
            self.client.budget.want(self, self._room)

    def _leave_room(self) -> None:
        if self._room:
            self._room = 0
            self.client.budget.leave(self)

    def stop_reading(self) -> None:
        """Leave the rest of the answer where it is; its call is not blamed for the time."""
        if self.call is not None and self._transport is not None:
            self.call.stop_clock()
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Read on."""
        if self.call is not None and self._transport is not None:
            self.call.start_clock()
            self._transport.resume_reading()

    def _answered(self, call: OutgoingCall, answer: Response) -> None:
        self.call = None
        self._leave_room()
        transport = self._transport
        # A server that answers before it has read all of a request may take the rest for the next one.
        if self._reader.keep and self.open and transport is not None and not transport.get_write_buffer_size():
            self.client.keep(self)
        else:
            self.abort()
        call.answered(answer)

    def eof_received(self) -> None:
        """Let the transport close; what the end means is told in connection_lost."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave_room()
        self.client.forget(self)
        self._end(broken=exc is not None)

    def _end(self, *, broken: bool = True) -> None:
        call, self.call = self.call, None
        if call is None:
            return
        begun = self._reader.begun
        try:
            if broken:
                raise ConnectionLost
            answer = self._reader.end()
        except ConnectionLost as error:
            stale = self.uses > 1 and not begun and self.client.loop.time() - self._sent_at < STALE_S
            call.lost(error, stale=stale)
            return
        call.connection = None
        call.answered(answer)

    def idle_for(self, now: float) -> float:
        return now - self._idle_since

    def rest(self, now: float) -> None:
        self._idle_since = now

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()


class HttpClient:
    """Makes calls and keeps connections. policy: which addresses may be called.

    own_hosts: hosts of the cluster's nodes, whose ports are not called.  caller: what calls say of where they come from.
    by_status: an answer is worth its status: redirects are not followed, and bodies not decoded.
    """

    def __init__(
        self,
        policy: CallPolicy,
        *,
        body_bytes_max: int = BODY_BYTES_MAX,
        idle_s: float = IDLE_S,
        own_hosts: Callable[[], Iterable[str]] = tuple,
        caller: str = "",
        by_status: bool = False,
    ) -> None:
        self.by_status = by_status
        self.loop = asyncio.get_running_loop()
        self.policy = policy
        self._own_hosts = own_hosts
        self.signature = f"{CALLER}: {caller}\r\n".encode() if caller and not policy.calls_cluster else b""
        self.body_bytes_max = body_bytes_max
        self._idle_s = idle_s
        self._kept: dict[Origin, deque[ClientConnection]] = {}
        self._connections: dict[ClientConnection, None] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None
        # Look-ups of names that are under way.
        self._asking: dict[str, asyncio.Task[Any]] = {}
        self.budget = ReceiveBudget()
        # asyncio would set aside as much for each read and give it back, which can take longer than all else in a call.
        self.buffer = memoryview(bytearray(READ_BYTES))
        self._closed = False

    @property
    def connections(self) -> int:
        """Open connections, the idle ones included."""
        return len(self._connections)

    def call(self, target: Target, body: bytes | None, timeout_s: float, done: Done, more: bytes = b"") -> OutgoingCall:
        """Call an endpoint; `done` gets the answer, or a CallError, within timeout_s. It may be called before this returns.

        more: further lines of the request's head (`lines_of`).
        """
        call = OutgoingCall(self, target, body, timeout_s, done, more)
        call.begin()
        return call

    async def ask(self, target: Target, body: bytes | None, timeout_s: float, more: bytes = b"") -> Response:
        """Call an endpoint and return its answer; who is cancelled gives the call up. Raises CallError."""
        ended: asyncio.Future[Response | CallError] = self.loop.create_future()
        call = self.call(target, body, timeout_s, ended.set_result, more)
        try:
            outcome = await ended
        finally:
            call.give_up()
        if isinstance(outcome, CallError):
            raise outcome
        return outcome

    def close(self) -> None:
        """End all connections; calls under way end with ConnectionLost."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in list(self._connections):
            connection.abort()

    # -- Connections

    def kept(self, origin: Origin) -> ClientConnection | None:
        """Return a connection that is free, the one that was used last."""
        idle = self._kept.get(origin)
        while idle:
            connection = idle.pop()
            if connection.open:
                return connection
        return None

    def keep(self, connection: ClientConnection) -> None:
        """Put a connection aside for the next call of its origin."""
        connection.rest(self.loop.time())
        self._kept.setdefault(connection.origin, deque()).append(connection)
        if self._sweeper is None and not self._closed:
            self._sweeper = self.loop.call_later(self._idle_s / 2, self._sweep)

    def opened(self, connection: ClientConnection) -> None:
        """Note a connection."""
        self._connections[connection] = None

    def forget(self, connection: ClientConnection) -> None:
        """Note that a connection is gone."""
        self._connections.pop(connection, None)
        idle = self._kept.get(connection.origin)
        if idle is not None and connection.call is None:
            with contextlib.suppress(ValueError):
                idle.remove(connection)
            if not idle:
                del self._kept[connection.origin]

    def _sweep(self) -> None:
        """End connections that have been idle for too long: the ones at the front of each line."""
        self._sweeper = None
        now = self.loop.time()
        for origin, idle in list(self._kept.items()):
            while idle and idle[0].idle_for(now) >= self._idle_s:
                idle.popleft().abort()
            if not idle:
                self._kept.pop(origin, None)
        if self._kept and not self._closed:
            self._sweeper = self.loop.call_later(self._idle_s / 2, self._sweep)

    async def connect(self, origin: Origin) -> ClientConnection:
        """Connect to the first address of an origin that answers, of those that may be called. Raises CannotConnect."""
        if self._closed:
            raise CannotConnect("ECANCELED")
        error: Exception = CannotConnect("ENOTFOUND")
        addresses = list(await self._addresses(origin))
        for address in addresses:
            connection = ClientConnection(self, origin)
            try:
                # The time for the whole call is the only bound for the last address.
                async with asyncio.timeout(None if address is addresses[-1] else NEXT_ADDRESS_S):
                    await self._open(connection, str(address))
            except (OSError, ssl.CertificateError) as problem:
                error = problem
                continue
            except asyncio.CancelledError:
                connection.abort()
                raise
            if self._closed:
                connection.abort()
            return connection
        raise error if isinstance(error, CannotConnect) else CannotConnect(code_of(error))

    async def _open(self, connection: ClientConnection, address: str) -> None:
        origin = connection.origin
        if origin.secure:
            await self.loop.create_connection(
                lambda: connection,
                address,
                origin.port,
                ssl=self._context(),
                server_hostname=origin.host,
                ssl_shutdown_timeout=TLS_GOODBYE_S,
            )
        else:
            await self.loop.create_connection(lambda: connection, address, origin.port)

    async def _addresses(self, origin: Origin) -> Iterable[IPAddress]:
        """Return the addresses of a host that may be called, at least one. Raises CannotConnect."""
        host = origin.host
        address = literal(host)
        reason = self.policy.refused_host(host)
        if reason is not None:
            raise refused(reason)
        if address is not None:
            await self._check_own(origin, [address])
            return [address]
        try:
            infos = await self._look_up(host)
        except (OSError, UnicodeError):
            raise CannotConnect("ENOTFOUND") from None
        allowed: dict[IPAddress, None] = {}
        for info in infos:
            found = ipaddress.ip_address(str(info[4][0]).partition("%")[0])
            reason = self.policy.refused(host, found)
            if reason is None:
                allowed[found] = None
        if not allowed:
            raise refused(reason or "not allowed")
        await self._check_own(origin, allowed)
        return allowed

    async def _check_own(self, origin: Origin, addresses: Iterable[IPAddress]) -> None:
        """Raise CannotConnect when one of the addresses is a node of the cluster, and the port one that nodes listen on."""
        if not self.policy.may_be_own(origin.port):
            return
        own: set[IPAddress] = set()
        for host in self._own_hosts():
            address = literal(host)
            if address is not None:
                own.add(address)
                continue
            with contextlib.suppress(OSError, UnicodeError):
                own.update(
                    ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in await self._look_up(host)
                )
        for address in addresses:
            inner = embedded(address) if isinstance(address, ipaddress.IPv6Address) else None
            if is_here(inner or address) or (inner or address) in own:
                raise refused("the cluster's own")

    async def _look_up(self, host: str) -> Any:
        """Ask for the addresses of a name, once for all who want to know at this time.

        Each question takes a thread of the process until it is answered: a name that nobody answers for must not take all of them.
        """
        asking = self._asking.get(host)
        if asking is None:
            question = self.loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            asking = self._asking[host] = self.loop.create_task(question)
            asking.add_done_callback(lambda _: self._asking.pop(host, None))
        return await asyncio.shield(asking)

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls


def refused(reason: str) -> CannotConnect:
    """Return the error for an address that must not be called."""
    error = CannotConnect("EACCES")
    error.args = (f"EACCES: The address of the url must not be called: {reason}",)
    return error


def code_of(error: Exception) -> str:
    """Return the name of what kept a connection from being made, as clients of other libraries know it."""
    if isinstance(error, ssl.SSLError | ssl.CertificateError):
        return "ERR_TLS"
    if isinstance(error, TimeoutError):
        return "ETIMEDOUT"
    number = getattr(error, "errno", None)
    return errno.errorcode.get(number, "ECONNREFUSED") if number else "ECONNREFUSED"

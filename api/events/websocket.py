"""WebSockets: commands with their replies, and events for those who subscribed, or in the old form for those who never did.

One task reads, one writes, and each command has its own, so that a long PULL holds up nobody. What a client has
taken and not finished goes back to its queue when the connection ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web
from msgspec import Raw

from api.auth import BEARER, EVERYTHING, Grant, Unauthorized
from api.dialects.bunqueue.commands import Held
from api.dialects.bunqueue.events import Subscription, unknown_patterns
from api.dialects.bunqueue.values import check_queue
from api.http import Call, Invalid, Reply, Streamed, trouble
from api.scopes import needs
from api.values import NOT_AN_OBJECT, as_text, check_text, members, value_of
from api.version import VERSION
from cluster.errors import ClusterError
from node.operations.jobs import GetJob
from node.refusals import Refusal
from node.state.job import ACTIVE

from .feed import Message, Outbox, may_hear

if TYPE_CHECKING:
    from api.server import Server

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 1_000
MESSAGE_BYTES_MAX = 1 << 20
# A client that is further behind than this misses events.
UNSENT_BYTES_MAX = 1 << 20
# A ping after half of the documented idle time, and the end when nothing answers it within a quarter.
PING_S = 60
CLOSE_S = 2
# How long a client without a token in its handshake has for the Auth command.
AUTH_S = 10
# Commands of one connection under way at once.
UNDER_WAY_MAX = 1_000
ENCODE = msgspec.json.Encoder().encode


async def websocket(call: Call) -> Reply:
    """Serve one connection until it ends."""
    server, request = call.server, call.request
    queue = check_queue(call.path["queue"]) if "queue" in call.path else ""
    grant = None
    shakes_hands = request.method == "GET" and request.headers.get("Upgrade", "").lower() == "websocket"
    # Who opens a connection may show its token later; for anything else this is a route like all the others.
    if server.access.is_open or not shakes_hands or "Authorization" in request.headers:
        try:
            grant = server.bunqueue.authorize(server.access, request)
        except Unauthorized as error:
            raise Invalid(str(error), 401, "unauthorized") from None
        if queue:
            needs(grant, queue)
    if not shakes_hands:
        raise Invalid("Expected a WebSocket handshake", 426, "upgrade_required")
    is_ready, why = server.readiness()
    if not server.node_started or server.stopping:
        raise Invalid(why if not is_ready else "the node is stopping", 503, "unavailable")
    if server.streams.sockets >= CONNECTIONS_MAX:
        raise Invalid("Too many WebSocket connections", 503, "busy")
    # Compression would cost more time than it saves on messages of this size.
    ws = web.WebSocketResponse(timeout=CLOSE_S, heartbeat=PING_S, compress=False, max_msg_size=MESSAGE_BYTES_MAX)
    try:
        await ws.prepare(request)
    except web.HTTPException:
        raise Invalid("Malformed WebSocket handshake") from None
    connection = Connection(server, request, ws, queue, grant)
    server.streams.sockets += 1
    try:
        await connection.serve()
    finally:
        server.streams.sockets -= 1
    return Streamed(101)


class Connection:
    """One WebSocket. queue: the only one whose jobs' events it gets, or empty. grant: None until it has shown a token."""

    def __init__(
        self, server: Server, request: web.BaseRequest, ws: web.WebSocketResponse, queue: str, grant: Grant | None
    ) -> None:
        self.server = server
        self.request = request
        self.ws = ws
        self.queue = queue
        self.grant = grant
        # None: in the old form, because it has never subscribed.
        self.subscription: Subscription | None = None
        self.outbox = Outbox(UNSENT_BYTES_MAX)
        self.held = Held()
        self.tasks: set[asyncio.Task[None]] = set()
        self.room = asyncio.Event()

    # -- As a listener

    def hear(self, messages: Sequence[Message]) -> None:
        wanted, queue, grant = self.subscription, self.queue, self.grant
        hears_all = grant is not None and grant.unlimited
        for message in messages:
            if not hears_all and (grant is None or not may_hear(grant, message)):
                continue
            if wanted is None:
                if message.legacy is not None and (not queue or message.queue == queue):
                    self.outbox.offer(message.legacy)
            elif wanted.wants(message.name) and not (queue and message.of_job and message.queue != queue):
                self.outbox.offer(message.frame)

    def lost(self) -> None:
        """Nothing can be said of it: the client reads the state again when it comes back from wherever it was."""

    def close(self) -> None:
        self.outbox.end()

    # -- Life

    async def serve(self) -> None:
        feed = self.server.streams.feed
        writer = asyncio.create_task(self.write())
        timer = None
        self.server.sessions[self] = None
        if self.grant is not None:
            feed.join(self)
        else:
            timer = asyncio.get_running_loop().call_later(AUTH_S, self.close)
        try:
            await self.read()
        finally:
            if timer is not None:
                timer.cancel()
            feed.leave(self)
            del self.server.sessions[self]
            # Whoever waits for a job waits for nothing now; the node takes back what was just given to him.
            for task in self.tasks:
                task.cancel()
            writer.cancel()
            await asyncio.shield(self.give_back(writer))

    async def give_back(self, writer: asyncio.Task[None]) -> None:
        """Return the jobs that the client has not finished to their queues, as they were."""
        await asyncio.gather(writer, *self.tasks, return_exceptions=True)
        operation = self.held.release()
        if operation is not None:
            # Without a quorum their locks, or stall detection, bring them back.
            with contextlib.suppress(ClusterError, Refusal):
                await self.server.node.submit(operation)

    async def read(self) -> None:
        async for message in self.ws:
            if message.type == WSMsgType.TEXT:
                body = message.data.encode("utf-8", "surrogatepass")
            elif message.type == WSMsgType.BINARY:
                body = bytes(message.data)
            else:
                continue
            self.take(body)
            # A client that does not read its replies is not listened to either.
            while self.outbox.full and not self.ws.closed:
                self.room.clear()
                await self.room.wait()

    async def write(self) -> None:
        try:
            while (frame := await self.outbox.take()) is not None:
                await self.ws.send_frame(frame, WSMsgType.TEXT)
                self.room.set()
        except (ConnectionError, RuntimeError):
            # The client is gone; the reader hears of it as well.
            return
        finally:
            self.room.set()
        await self.ws.close(code=WSCloseCode.GOING_AWAY)

    # -- Commands

    def take(self, body: bytes) -> None:
        """Look at one message and begin what it asks for."""
        try:
            check_text(body)
            fields = members(body)
        except Invalid as error:
            text = "Invalid command" if str(error) == NOT_AN_OBJECT else "Invalid JSON"
            self.outbox.put(failed(text))
            return
        number = fields.get("reqId")
        try:
            self.begin(fields, body, number)
        except Invalid as error:
            self.answer(failed(str(error)), number)

    def begin(self, fields: Mapping[str, Raw], body: bytes, number: Raw | None) -> None:
        """Answer a command at once, or begin it. Raises Invalid when one of its fields cannot be read."""
        name = as_text(value_of(fields["cmd"])) if "cmd" in fields else None
        if not name:
            self.answer(failed("Invalid command"), number)
        elif name == "Auth":
            self.answer(self.authenticate(fields), number)
        elif self.grant is None:
            self.answer(failed("Not authenticated"), number)
        elif name == "Hello":
            self.answer(HELLO, number)
        elif name in ("Subscribe", "Unsubscribe"):
            self.answer(self.subscribe(name, fields), number)
        elif self.server.streams.commands.route(name) is None:
            self.answer(failed(f"Unknown command: {name[:100]}"), number)
        elif len(self.tasks) >= UNDER_WAY_MAX:
            self.answer(failed("Too many commands under way", "busy"), number)
        else:
            task = asyncio.create_task(self.run(name, fields, body, number, self.grant))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def run(self, name: str, fields: Mapping[str, Raw], body: bytes, number: Raw | None, grant: Grant) -> None:
        commands = self.server.streams.commands
        try:
            reply = await commands.run(self.server, self.request, self.held, name, fields, body, grant)
        except Exception as error:
            route = commands.route(name)
            assert route is not None
            reply = trouble(self.server.bunqueue, route, error).body
        self.answer(reply, number)
        self.held.tidy(self.still_held)

    def still_held(self, job_id: str, fence: int) -> bool:
        try:
            job = GetJob(job_id).answer(self.server.node.machine.state)
        except Refusal:
            return False
        return job.state == ACTIVE and job.fence == fence

    def answer(self, reply: bytes, number: Raw | None) -> None:
        """Send a reply; it repeats the number of its command, if that had one."""
        if number is not None:
            reply = b'%b,"reqId":%b}' % (reply[:-1], bytes(number))
        self.outbox.put(reply)

    def authenticate(self, fields: Mapping[str, Raw]) -> bytes:
        token = as_text(value_of(fields["token"])) if "token" in fields else None
        access = self.server.access
        grant = EVERYTHING if access.is_open else access.find((token or "").removeprefix(BEARER))
        if grant is None:
            self.server.audit.unknown(self.request, "GET /ws Auth")
            return failed("Invalid token")
        if self.grant is None:
            self.server.streams.feed.join(self)
        self.grant = grant
        return b'{"ok":true}'

    def subscribe(self, name: str, fields: Mapping[str, Raw]) -> bytes:
        if self.grant is not None and not self.grant.may("read"):
            self.server.audit.deaf(self.request, self.grant)
            return failed("Forbidden: the token does not have the right read")
        patterns: Any = value_of(fields["events"]) if "events" in fields else None
        if not isinstance(patterns, list) or not (patterns or name == "Unsubscribe"):
            return failed("events must be a non-empty array" if name == "Subscribe" else "events must be an array")
        if unknown := unknown_patterns(patterns):
            return failed(f"Invalid: {', '.join(unknown[:20])}")
        if self.subscription is None:
            self.subscription = Subscription()
        if name == "Subscribe":
            self.subscription.add(patterns)
        else:
            self.subscription.remove(patterns)
        return b'{"ok":true,"subscribed":%b}' % ENCODE(list(self.subscription.patterns))


def failed(text: str, code: str | None = None) -> bytes:
    return ENCODE({"ok": False, "error": text} | ({"code": code} if code else {}))


HELLO = ENCODE(
    {
        "ok": True,
        "protocolVersion": 3,
        "capabilities": ["pipelining", "separate-job-name"],
        "server": "quorumq",
        "version": VERSION,
    }
)

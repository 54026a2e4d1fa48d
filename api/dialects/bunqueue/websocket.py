"""WebSockets: commands with their replies, and events for those who subscribed, or in the old form for those who never did.

One task reads, one writes; what a command does, and what goes back when the connection ends, is common to all transports
(commands/connection.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web
from msgspec import Raw

from quorumq.api.auth import Grant, Unauthorized, bearer_or_bare
from quorumq.api.commands.connection import UNDER_WAY_BYTES_MAX, UNSENT_BYTES_MAX, CommandConnection, Task, failed
from quorumq.api.errors import Invalid
from quorumq.api.events.feed import EventMessage, SendQueue, visible_to
from quorumq.api.events.frames import (
    CLOSE_S,
    END_BYTES,
    PING_S,
    STRANGER_BYTES_MAX,
    RefusedMessage,
    WebSocket,
    number_of,
)
from quorumq.api.host import Host
from quorumq.api.limits import LARGE_BYTES, BodyTooLarge
from quorumq.api.path import BOM
from quorumq.api.reply import Reply, Streamed
from quorumq.api.request import Call
from quorumq.api.scopes import needs
from quorumq.api.values import NOT_AN_OBJECT, check_text, members, value_of
from quorumq.api.weight import weigh

from .events import Subscription, unknown_patterns
from .values import check_queue

ENCODE = msgspec.json.Encoder().encode


async def websocket(call: Call) -> Reply:
    """Serve one connection until it ends."""
    host, request = call.server.service(Host), call.request
    queue = check_queue(call.path["queue"]) if "queue" in call.path else ""
    grant = None
    shakes_hands = request.method == "GET" and request.headers.get("Upgrade", "").lower() == "websocket"
    # Who opens a connection may show its token later; for anything else this is a route like all the others.
    if host.access.is_open or not shakes_hands or "Authorization" in request.headers:
        try:
            grant = bearer_or_bare(host.access, request)
        except Unauthorized as error:
            raise Invalid(str(error), 401, "unauthorized") from None
        if queue:
            needs(grant, queue)
    if not shakes_hands:
        raise Invalid("Expected a WebSocket handshake", 426, "upgrade_required")
    if not host.origins.lets_in(request):
        host.audit.kept_out(request, f"GET {call.template}")
        raise Invalid("CORS_ALLOW_ORIGIN does not name this page's origin", 403, "forbidden")
    is_ready, why = host.readiness()
    if not host.node_started or host.stopping:
        raise Invalid(why if not is_ready else "the node is stopping", 503, "unavailable")
    if host.websockets >= host.config.websockets_max:
        raise Invalid("Too many WebSocket connections", 503, "busy")
    # Compression would cost more time than it saves on messages of this size.
    ws = WebSocket(
        host.bodies,
        STRANGER_BYTES_MAX if grant is None else host.bodies.body_bytes_max,
        timeout=CLOSE_S,
        heartbeat=PING_S,
        compress=False,
    )
    try:
        await ws.prepare(request)
    except web.HTTPException:
        raise Invalid("Malformed WebSocket handshake") from None
    connection = WebSocketConnection(host, request, ws, queue, grant)
    host.websockets += 1
    try:
        await connection.serve()
    finally:
        host.websockets -= 1
    return Streamed(101)


class WebSocketConnection(CommandConnection):
    """One WebSocket. queue: the only one of whose events it gets, or empty. grant: None until it has shown a token."""

    own = frozenset({"Subscribe", "Unsubscribe"})

    def __init__(self, host: Host, request: web.BaseRequest, ws: WebSocket, queue: str, grant: Grant | None) -> None:
        self.send_queue = SendQueue(UNSENT_BYTES_MAX)
        super().__init__(host, request, self.send_queue, grant, door="GET /ws")
        self.ws = ws
        self.queue = queue
        # None: in the old form, because it has never subscribed.
        self.subscription: Subscription | None = None
        self.room = asyncio.Event()

    # -- As a listener

    def on_events(self, messages: Sequence[EventMessage]) -> None:
        grant = self.grant
        if grant is None:
            return
        for message in messages:
            heard = message if grant.unlimited else visible_to(grant, message)
            frame = None if heard is None else self.wanted(heard)
            if frame is not None:
                self.send_queue.offer(frame)

    def lost(self) -> None:
        """Nothing can be said of it: the client reads the state again when it comes back from wherever it was."""

    def wanted(self, message: EventMessage) -> bytes | None:
        """Return what is told of an event, if anything."""
        if self.queue and not message.concerns(self.queue):
            return None
        if self.subscription is None:
            return message.legacy
        return message.frame if self.subscription.wants(message.name) else None

    def admitted(self) -> None:
        self.ws.frames.bytes_max = self.host.bodies.body_bytes_max
        self.streams.feed.join(self)

    # -- Life

    async def serve(self) -> None:
        writer = asyncio.create_task(self.write())
        self.begin()
        try:
            await self.read()
        finally:
            self.ended()
            self.streams.feed.leave(self)
            self.ws.frames.end()
            self.ws.forget()
            writer.cancel()
            await asyncio.shield(self.finish(writer))

    async def finish(self, writer: asyncio.Task[None]) -> None:
        await asyncio.gather(writer, return_exceptions=True)
        await self.give_back()

    async def read(self) -> None:
        async for message in self.ws:
            if message.type != WSMsgType.BINARY:
                continue
            if isinstance(message.data, RefusedMessage):
                self.refuse(message.data)
            elif len(message.data) <= LARGE_BYTES or await self.weighed(message.data):
                self.take(message.data)
            # A client that does not read its replies, or sends more than can be done, is not listened to either.
            while (self.send_queue.full or self.under_way_bytes > UNDER_WAY_BYTES_MAX) and not self.ws.closed:
                self.room.clear()
                await self.room.wait()

    async def write(self) -> None:
        try:
            while (frame := await self.send_queue.take()) is not None:
                await self.ws.send_frame(frame, WSMsgType.TEXT)
                self.room.set()
        except (ConnectionError, RuntimeError):
            # The client is gone; the reader hears of it as well.
            return
        finally:
            self.room.set()
        await self.ws.close(code=WSCloseCode.GOING_AWAY)

    # -- Commands

    def refuse(self, refused: RefusedMessage) -> None:
        """Answer a message that was not taken."""
        if self.grant is None:
            reply = failed("Not authenticated")
        elif isinstance(refused.error, BodyTooLarge):
            reply = failed(str(refused.error), "body_too_large")
        else:
            reply = failed("The bodies under way take all the memory set aside for them", "busy")
        self.answer(reply, None if refused.number is None else Raw(refused.number))

    async def weighed(self, body: bytes) -> bool:
        """Look whether a large message may be decoded; answer it when not."""
        try:
            await asyncio.to_thread(weigh, body)
        except Invalid as error:
            number = number_of(body[:END_BYTES], body[-END_BYTES:])
            self.answer(failed(str(error)), None if number is None else Raw(number))
            return False
        return True

    def take(self, body: bytes) -> None:
        """Look at one message and begin what it asks for."""
        body = body.removeprefix(BOM)
        try:
            check_text(body)
            fields = members(body)
        except Invalid as error:
            text = "Invalid command" if str(error) == NOT_AN_OBJECT else "Invalid JSON"
            self.send_queue.put(failed(text))
            return
        self.command(fields, body, fields.get("reqId"), len(body))

    def done(self, size: int, task: Task) -> None:
        super().done(size, task)
        self.room.set()

    def answer(self, reply: bytes, number: Any) -> None:
        if number is not None:
            reply = b'%b,"reqId":%b}' % (reply[:-1], bytes(number))
        self.send_queue.put(reply)

    def own_command(self, name: str, fields: Mapping[str, Raw]) -> bytes:
        """Subscribe to events, or end that."""
        refused = self.may_subscribe("Subscribe")
        if refused is not None:
            return refused
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

"""Server-sent events: the events of jobs in the documented form, or any events under their names for those who say which.

A client that was cut off says the last id it saw and gets what it missed, from whatever node it comes to.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from api.dialects.bunqueue.events import Subscription, unknown_patterns
from api.dialects.bunqueue.values import check_queue
from api.http import Call, Invalid, Reply, Streamed
from api.ids import new_id
from cluster.errors import ClusterError
from node.operations.queues import IsPaused

from .feed import Id, Message, Outbox, id_of, may_hear

if TYPE_CHECKING:
    from api.auth import Grant
    from api.server import Server

CLIENTS_MAX = 1_000
UNSENT_BYTES_MAX = 1 << 20
HEARTBEAT_S = 30.0
RETRY_MS = 3_000
ENCODE = msgspec.json.Encoder().encode
# Data and results are shown as they were sent. Between JSON's tokens a line may end, which would end the message's field, too.
ONE_LINE = bytes.maketrans(b"\r\n", b"  ")


async def events(call: Call) -> Reply:
    """Stream events until the client leaves."""
    server, request = call.server, call.request
    queue = check_queue(call.path["queue"]) if "queue" in call.path else ""
    grant = call.grant
    subscription = wanted(call.query.get("events"))
    if server.stopping:
        raise Invalid("the node is stopping", 503, "unavailable")
    if server.streams.clients >= CLIENTS_MAX:
        raise Invalid("Too many SSE clients", 503, "busy")
    last = id_of(request.headers.get("Last-Event-ID") or call.query.get("lastEventId") or "")
    if last is not None and last.entry > call.node.machine.index:
        # This node may be behind the one that the client comes from.
        with contextlib.suppress(ClusterError):
            await call.node.ask(IsPaused("any"))
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    # nginx and its like hold back what they may buffer.
    response.headers["X-Accel-Buffering"] = "no"
    for line in server.allow_origin(request.headers.get("Origin")).decode("latin-1").splitlines():
        name, _, value = line.partition(": ")
        response.headers[name] = value
    await response.prepare(request)
    client = Client(server, queue, subscription, grant)
    server.streams.clients += 1
    server.sessions[client] = None
    try:
        client.greet(last)
        server.streams.keep_events()
        await client.serve(response)
    finally:
        server.streams.feed.leave(client)
        del server.sessions[client]
        server.streams.clients -= 1
    return Streamed(200)


def wanted(text: str | None) -> Subscription | None:
    """Read the patterns that a client names, or None when it names none. Raises Invalid."""
    if not text:
        return None
    patterns = [pattern.strip() for pattern in text.split(",")]
    if unknown := unknown_patterns(patterns):
        raise Invalid(f"Invalid: {', '.join(unknown[:20])}")
    subscription = Subscription()
    subscription.add(patterns)
    return subscription


class Client:
    """One stream. queue: the only one whose jobs' events it gets, or empty. subscription: None for the documented form."""

    def __init__(self, server: Server, queue: str, subscription: Subscription | None, grant: Grant) -> None:
        self.grant: Grant | None = grant
        self.hears_all = grant.unlimited
        self.feed = server.streams.feed
        self.queue = queue
        self.subscription = subscription
        self.outbox = Outbox(UNSENT_BYTES_MAX)

    def greet(self, last: Id | None) -> None:
        """Say the first words, then what was missed, then listen, all before anything new can happen."""
        hello: dict[str, object] = {"connected": True, "clientId": new_id()}
        missed: Iterator[Message] = iter(())
        if last is not None:
            found = self.feed.after(last, self.queue)
            hello["resumed"] = found is not None
            missed = found or missed
        # With an id from the beginning, also who has seen nothing yet can say where he was.
        number = b"" if hello.get("resumed") else self.place()
        self.outbox.put(b"retry: %d\n%bdata: %b\n\n" % (RETRY_MS, number, ENCODE(hello)))
        for message in missed:
            if self.outbox.full:
                # One step at a time: it comes back with the last id of this one.
                self.close()
                return
            if (text := self.text(message)) is not None:
                self.outbox.put(text)
        self.feed.join(self)

    def hear(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if (text := self.text(message)) is None:
                continue
            if message.id is not None and self.outbox.full:
                # It comes back and goes on after the last id it saw.
                self.close()
                return
            self.outbox.offer(text)

    def text(self, message: Message) -> bytes | None:
        """Write a message, or None where it is not for this client."""
        queue = self.queue
        if not self.hears_all and (self.grant is None or not may_hear(self.grant, message)):
            return None
        if self.subscription is None:
            if message.legacy is None or (queue and message.queue != queue):
                return None
            return b"id: %b\ndata: %b\n\n" % (str(message.id).encode(), message.legacy.translate(ONE_LINE))
        if not self.subscription.wants(message.name) or (queue and message.of_job and message.queue != queue):
            return None
        number = b"" if message.id is None else b"id: %b\n" % str(message.id).encode()
        stamped = b'%b%b"timestamp":%d}' % (message.data[:-1], b"," if len(message.data) > 2 else b"", message.at_ms)
        return b"%bevent: %b\ndata: %b\n\n" % (number, message.name.encode(), stamped.translate(ONE_LINE))

    def place(self) -> bytes:
        """Return the id of somebody who has got everything so far."""
        return b"id: %b\n" % str(self.feed.now).encode()

    def lost(self) -> None:
        """End the stream: another node may have what this one cannot tell."""
        self.close()

    def close(self) -> None:
        self.feed.leave(self)
        self.outbox.end()

    async def serve(self, response: web.StreamResponse) -> None:
        try:
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT_S):
                        text = await self.outbox.take()
                except TimeoutError:
                    # An id without data is remembered, and nothing is shown.
                    text = b":heartbeat\n%b\n" % self.place()
                if text is None:
                    break
                await response.write(text + self.outbox.rest())
            await response.write_eof()
        except ConnectionError:
            # The client is gone.
            return

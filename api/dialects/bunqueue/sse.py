"""Server-sent events: the events of jobs in the documented form, or any events under their names for those who say which.

A client that was cut off says the last id it saw and gets what it missed, from whatever node it comes to.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

import msgspec
from aiohttp import web

from quorumq.api.auth import Grant
from quorumq.api.errors import Invalid
from quorumq.api.events.feed import EventMessage, Id, SendQueue, id_of, visible_to
from quorumq.api.host import Host
from quorumq.api.ids import new_id
from quorumq.api.reply import Reply, Streamed
from quorumq.api.request import Call
from quorumq.cluster.errors import ClusterError
from quorumq.node.machine.operations.queue_reads import IsPaused

from .events import Subscription, unknown_patterns
from .streams import LiveStreams
from .values import check_queue

UNSENT_BYTES_MAX = 1 << 20
# What is written without waiting for the client to read, if it has read everything else.
AT_ONCE_BYTES = 32 << 10
HEARTBEAT_S = 30.0
RETRY_MS = 3_000
ENCODE = msgspec.json.Encoder().encode
# Data and results are shown as they were sent. Between JSON's tokens a line may end, which would end the message's field, too.
ONE_LINE = bytes.maketrans(b"\r\n", b"  ")


async def events(call: Call) -> Reply:
    """Stream events until the client leaves."""
    host, streams, request = call.server.service(Host), call.server.service(LiveStreams), call.request
    queue = check_queue(call.path["queue"]) if "queue" in call.path else ""
    grant = call.grant
    subscription = wanted(call.query.get("events") or ("*" if host.config.events_form == "named" else None))
    if host.stopping:
        raise Invalid("the node is stopping", 503, "unavailable")
    if streams.clients >= host.config.event_streams_max:
        raise Invalid("Too many SSE clients", 503, "busy")
    last = id_of(request.headers.get("Last-Event-ID") or call.query.get("lastEventId") or "")
    if last is not None and last.entry > call.node.machine.index:
        # This node may be behind the one that the client comes from.
        with contextlib.suppress(ClusterError):
            await call.node.ask(IsPaused("any"))
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    # nginx and its like hold back what they may buffer.
    response.headers["X-Accel-Buffering"] = "no"
    for line in host.origins.header(request.headers.get("Origin")).decode("latin-1").splitlines():
        name, _, value = line.partition(": ")
        response.headers[name] = value
    await response.prepare(request)
    client = SseClient(host, streams, queue, subscription, grant)
    streams.clients += 1
    host.sessions[client] = None
    try:
        client.greet(last)
        streams.keep_events()
        await client.serve(request, response)
    finally:
        streams.feed.leave(client)
        del host.sessions[client]
        streams.clients -= 1
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


class SseClient:
    """One stream. queue: the only one of whose events it gets, or empty. subscription: None for the documented form."""

    def __init__(
        self, host: Host, streams: LiveStreams, queue: str, subscription: Subscription | None, grant: Grant
    ) -> None:
        self.grant: Grant | None = grant
        self.sees_all = grant.unlimited
        self.feed = streams.feed
        self.queue = queue
        self.subscription = subscription
        self.send_queue = SendQueue(UNSENT_BYTES_MAX)
        self.pace = host.pace

    def greet(self, last: Id | None) -> None:
        """Say the first words, then what was missed, then listen, all before anything new can happen."""
        hello: dict[str, object] = {"connected": True, "clientId": new_id()}
        missed: Iterator[EventMessage] = iter(())
        if last is not None:
            found = self.feed.after(last, self.queue)
            hello["resumed"] = found is not None
            missed = found or missed
        # With an id from the beginning, also who has seen nothing yet can say where he was.
        number = b"" if hello.get("resumed") else self.place()
        self.send_queue.put(b"retry: %d\n%bdata: %b\n\n" % (RETRY_MS, number, ENCODE(hello)))
        for message in missed:
            if self.send_queue.full:
                # One step at a time: it comes back with the last id of this one.
                self.close()
                return
            if (text := self.text(message)) is not None:
                self.send_queue.put(text)
        self.feed.join(self)

    def on_events(self, messages: Sequence[EventMessage]) -> None:
        for message in messages:
            if (text := self.text(message)) is None:
                continue
            if message.id is not None and self.send_queue.full:
                # It comes back and goes on after the last id it saw.
                self.close()
                return
            self.send_queue.offer(text)

    def text(self, message: EventMessage) -> bytes | None:
        """Write a message, or None where it is not for this client."""
        queue = self.queue
        if not self.sees_all:
            heard = None if self.grant is None else visible_to(self.grant, message)
            if heard is None:
                return None
            message = heard
        if queue and not message.concerns(queue):
            return None
        if self.subscription is None:
            if message.legacy is None:
                return None
            return b"id: %b\ndata: %b\n\n" % (str(message.id).encode(), message.legacy.translate(ONE_LINE))
        if not self.subscription.wants(message.name):
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
        self.send_queue.end()

    async def serve(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        try:
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT_S):
                        text = await self.send_queue.take()
                except TimeoutError:
                    # An id without data is remembered, and nothing is shown.
                    text = b":heartbeat\n%b\n" % self.place()
                if text is None:
                    break
                text += self.send_queue.rest()
                transport = request.transport
                if len(text) < AT_ONCE_BYTES and transport is not None and not transport.get_write_buffer_size():
                    await response.write(text)
                else:
                    await self.pace.while_read(request, response.write(text))
            await response.write_eof()
        except ConnectionError:
            # The client is gone.
            return

"""The rows of streams: WebSockets and server-sent events."""

from __future__ import annotations

from quorumq.api.request import Parameter, Route
from quorumq.api.rows import EventStream, WebSocketUpgrade, grouped, plain

from .sse import events
from .websocket import websocket

EVENTS = Parameter(
    "events",
    "Names and patterns, separated by commas, such as `job:*,queue:counts`: those events, each under its name. "
    "Left out: the events of jobs in the form `{eventType, queue, jobId, …}`, without names, or whatever EVENTS_FORM says.",
    {"type": "string"},
)
LAST = Parameter("lastEventId", "The same as the header `Last-Event-ID`: go on after this message.", {"type": "string"})
HANDSHAKE = {
    400: "The handshake is malformed, or the queue's name cannot be one.",
    401: "The handshake has a token that is not known.",
    426: "This is no handshake of a WebSocket.",
    429: "Too many requests of this client; `Retry-After` says when to come back.",
    503: "The node is stopping, not ready, or has too many connections; `Retry-After` says when to come back.",
}
ROUTES: tuple[Route, ...] = grouped(
    "Events",
    plain("GET", "/ws", websocket, reply=WebSocketUpgrade, right="open", answers=HANDSHAKE,
          about="A WebSocket: commands with their replies, and events."),
    plain("GET", "/ws/queues/{queue}", websocket, reply=WebSocketUpgrade, right="open", answers=HANDSHAKE,
          about="The same, with the events of one queue, and those of the node, only."),
    plain("GET", "/events", events, asks=(EVENTS, LAST), reply=EventStream, right="read", scope="checked",
          about="Server-sent events."),
    plain("GET", "/events/queues/{queue}", events, asks=(EVENTS, LAST), reply=EventStream, right="read",
          about="The same, with the events of one queue, and those of the node, only."),
)  # fmt: skip

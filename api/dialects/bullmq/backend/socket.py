"""`GET /bullmq/v1/socket`: the handshake, and the row."""

from __future__ import annotations

from aiohttp import web

from quorumq.api.auth import BEARER
from quorumq.api.dialects.bullmq.dialect import Bullmq
from quorumq.api.errors import Invalid
from quorumq.api.events.frames import CLOSE_S, PING_S, STRANGER_BYTES_MAX, WebSocket
from quorumq.api.host import Host
from quorumq.api.reply import Reply, Streamed
from quorumq.api.request import Call, Route
from quorumq.api.rows import WebSocketUpgrade, grouped, plain

from .connection import DOOR, BackendConnection


async def backend(call: Call) -> Reply:
    """Serve one connection until it ends."""
    server, request = call.server.service(Host), call.request
    grant = None
    given = request.headers.get("Authorization")
    if given is not None and not server.access.is_open:
        grant = server.access.find(given.removeprefix(BEARER))
        if grant is None:
            server.audit.unknown(request, DOOR)
            raise Invalid("Unauthorized", 401, "unauthorized")
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise Invalid("Expected a WebSocket handshake", 426, "upgrade_required")
    if not server.origins.lets_in(request):
        server.audit.kept_out(request, DOOR)
        raise Invalid("CORS_ALLOW_ORIGIN does not name this page's origin", 403, "forbidden")
    is_ready, why = server.readiness()
    if not server.node_started or server.stopping or server.leaving:
        raise Invalid(why if not is_ready else "the node is stopping", 503, "unavailable")
    if server.websockets >= server.config.websockets_max:
        raise Invalid("Too many WebSocket connections", 503, "busy")
    ws = WebSocket(server.bodies, STRANGER_BYTES_MAX, timeout=CLOSE_S, heartbeat=PING_S, compress=False)
    try:
        await ws.prepare(request)
    except web.HTTPException:
        raise Invalid("Malformed WebSocket handshake") from None
    transport = request.transport
    port = transport.get_extra_info("sockname")[1] if transport is not None else 0
    server.websockets += 1
    try:
        await BackendConnection(server, request, ws, grant, port).serve()
    finally:
        server.websockets -= 1
    return Streamed(101)


HANDSHAKE = {
    400: "The handshake is malformed.",
    401: "The handshake has a token that is not known.",
    426: "This is no handshake of a WebSocket.",
    503: "The node is stopping, not ready, or has too many connections; `Retry-After` says when to come back.",
}
ROUTES: tuple[Route, ...] = grouped(
    "BullMQ: backend",
    plain("GET", "/v1/socket", backend, reply=WebSocketUpgrade, right="open", answers=HANDSHAKE,
          about="A WebSocket over which adapters run BullMQ itself; docs/bullmq-protocol.md has the protocol."),
)  # fmt: skip


class BullmqBackend(Bullmq):
    """The socket as the request path sees it: it speaks as the BullMQ dialect does."""

    routes = ROUTES

"""Who is connected: workers and clients that read events, as they say of themselves."""

from __future__ import annotations

from quorumq.api.errors import Invalid
from quorumq.node.machine.operations.bullmq.presence import ListClients, NotePresence
from quorumq.node.machine.state.bullmq.presence import Client

from .lifecycle import ANY
from .rows import Args, Asked, NoArgs, Row, own, read

ID_CHARS_MAX = 64
NAME_CHARS_MAX = 512
CLIENTS_MAX = 1_000
"""Of one connection."""


class Register(Args):
    id: str
    name: str


class Unregister(Args):
    id: str


async def register(asked: Asked, args: Register) -> int:
    """Let a client be known until it says otherwise, or its connection ends."""
    connection = asked.connection
    if not 0 < len(args.id) <= ID_CHARS_MAX or len(args.name) > NAME_CHARS_MAX or any(map(str.isspace, args.name)):
        raise Invalid(f"id: 1 to {ID_CHARS_MAX} characters; name: at most {NAME_CHARS_MAX}, none of them a space")
    if len(connection.clients) >= CLIENTS_MAX and args.id not in connection.clients:
        raise Invalid(f"A connection may have {CLIENTS_MAX} clients")
    connection.clients[args.id] = None
    await asked.server.node.connected.register(Client(args.id, asked.queue, args.name, connection.address))
    return 0


async def unregister(asked: Asked, args: Unregister) -> int:
    """Let a client of this connection be known no more."""
    if args.id in asked.connection.clients:
        del asked.connection.clients[args.id]
        asked.server.node.connected.unregister(args.id)
    return 0


def lines(found: tuple[list[Client], int]) -> list[str]:
    """Write clients as Redis writes those of a connection: one line each, the words of which are `key=value`."""
    clients, now_ms = found
    return [
        f"id={one.id} addr={one.address} name={one.name} age={max(now_ms - one.since_ms, 0) // 1000}\n"
        for one in clients
    ]


ROWS: tuple[Row, ...] = (
    own("register", register, right=ANY, takes=Register, what=NotePresence),
    own("unregister", unregister, right=ANY, takes=Unregister),
    read("getClientList", ListClients, lambda asked, args: ListClients(asked.queue), lines, takes=NoArgs),
)

"""Who is connected: workers and clients that read events, as they say of themselves."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from quorumq.api.errors import Invalid
from quorumq.node.machine.operations.bullmq.presence import ListClients, NotePresence
from quorumq.node.machine.state.bullmq.presence import Client

from .lifecycle import ANY
from .rows import Args, Asked, NoArgs, Row, own, read

ID_CHARS_MAX = 64
NAME_CHARS_MAX = 512
CLIENTS_MAX = 1_000
"""Of one connection."""
Id = Annotated[str, Meta(min_length=1, max_length=ID_CHARS_MAX)]


class Register(Args):
    id: Id
    name: Annotated[str, Meta(max_length=NAME_CHARS_MAX)]


class Unregister(Args):
    id: Id


async def register(asked: Asked, args: Register) -> int:
    """Let a client be known until it says otherwise, or its connection ends."""
    connection = asked.connection
    if any(map(str.isspace, args.name)):
        raise Invalid("The name of a client has no spaces")
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

"""What a row of the table of calls is: a call's name, the right it needs, its arguments, and the operation or query that it means.

A write goes into the log in the order in which the calls came; its view runs inside the local apply. A read sees whatever was
written before it over its connection, and may see what was written after it. What is neither has a handler of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta, Struct

from quorumq.api.auth import Grant
from quorumq.api.errors import Invalid
from quorumq.api.events.feed import SendQueue
from quorumq.api.host import Host
from quorumq.api.limits import DATA_BYTES_MAX
from quorumq.api.values import KEY_CHARS_MAX, check_text
from quorumq.node.batching import same
from quorumq.node.long_polls import Waiter
from quorumq.node.machine.operation import Operation, Query

# Whoever has one of the rights may make the call; `manage:all` implies the other three.
Right = Literal["produce", "consume", "read", "manage:all"]
JSON_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])


class Holding(Protocol):
    """Waiters that were woken and keep their places for a moment."""

    def add(self, waiter: Waiter) -> None:
        """Keep a waiter's place."""


class Caller(Protocol):
    """The connection of a call.

    send_queue, room: what it sends, and set when the client has read of it.  subscriptions: those of its calls, by their numbers.
    clients: workers and readers of events that said over it that they are there, by id.
    """

    server: Host
    send_queue: SendQueue
    room: asyncio.Event
    clients: dict[str, None]

    @property
    def address(self) -> str:
        """Where its client is."""

    @property
    def subscriptions(self) -> MutableMapping[int, Any]:
        """What its calls have subscribed to."""

    @property
    def holds(self) -> Holding:
        """Its waiters that were woken."""

    def queue(self, qualified: str, grant: Grant) -> str:
        """Return what a queue is called in the state. Raises Invalid; Forbidden when the token is not for it."""

    def answer(self, number: int, code: int, result: bytes) -> None:
        """Send a result, or a part of one."""

    def cancel(self, number: int) -> None:
        """Have a call that waits wait no longer."""


class Asked:
    """One call on its way. number: its own.  qualified: `prefix:name`.  queue: what that is called in the state.

    said_ms: the client's time, where CLOCK=clients.
    """

    __slots__ = ("connection", "grant", "number", "qualified", "queue", "said_ms")

    def __init__(
        self, connection: Caller, number: int, qualified: str, queue: str, grant: Grant, said_ms: int | None
    ) -> None:
        self.connection = connection
        self.number = number
        self.qualified = qualified
        self.queue = queue
        self.grant = grant
        self.said_ms = said_ms

    @property
    def server(self) -> Host:
        return self.connection.server

    @property
    def now_ms(self) -> int:
        """What time it is, for what goes by it."""
        if self.said_ms is not None:
            return self.said_ms
        node = self.server.node
        return max(node.now_ms(), node.machine.state.now_ms)

    def other_queue(self, qualified: str) -> str:
        """Return what another queue is called in the state. Raises Invalid; Forbidden when the token is not for it."""
        return self.connection.queue(qualified, self.grant)


# What arguments are made of; each that can be long says how long at most. An id, a token, a name, and `prefix:name:id`; opaque JSON, and a
# text for people.
Word = Annotated[str, Meta(max_length=KEY_CHARS_MAX)]
Key = Annotated[str, Meta(max_length=2 * KEY_CHARS_MAX)]
Json = Annotated[bytes, Meta(max_length=DATA_BYTES_MAX)]
Text = Annotated[str, Meta(max_length=DATA_BYTES_MAX)]


class Args(Struct, array_like=True):
    """Base of the arguments of a call: a list; trailing ones that have a default may be left out, and more are ignored."""


class NoArgs(Args):
    """None."""


class OfJob(Args):
    """Which job."""

    job: Word


class Row(Struct, frozen=True, kw_only=True):
    """One call. takes: its arguments.  what: the operation or query it comes to, for those who read the table."""

    name: str
    rights: tuple[Right, ...]
    takes: type[Args]
    what: type[Operation] | type[Query] | None
    decode: Any

    @property
    def right(self) -> Right:
        return self.rights[0]


class Viewed(Row, frozen=True, kw_only=True):
    """A call that is answered by a view(reply) -> what msgpack can hold; or view(reply, prefix).

    prefixed: whether the view names queues, and so needs to know the prefix of those with a bare name.
    """

    view: Callable[..., Any]
    prefixed: bool = False

    def viewing(self, prefix: str) -> Callable[[Any], Any]:
        """Return the view of a reply, on a node with this default prefix."""
        return partial(self.view, prefix=prefix) if self.prefixed else self.view


class Write(Viewed, frozen=True, kw_only=True):
    """A call that changes something. decode(asked, args) -> Operation."""

    decode: Callable[[Asked, Any], Operation]


class Read(Viewed, frozen=True, kw_only=True):
    """A call that reads. decode(asked, args) -> Query."""

    decode: Callable[[Asked, Any], Query]


class Own(Row, frozen=True, kw_only=True):
    """A call with a handler of its own: decode(asked, args) -> an awaitable of the result."""

    decode: Callable[[Asked, Any], Awaitable[Any]]


def nothing(reply: Any) -> None:
    """The view of what there is nothing to say about."""


def write(
    name: str,
    what: type[Operation],
    decode: Callable[[Asked, Any], Operation],
    view: Callable[..., Any] = same,
    *,
    right: Right | tuple[Right, ...],
    takes: type[Args] = NoArgs,
    prefixed: bool = False,
) -> Write:
    """A row that replicates an operation."""
    rights = right if isinstance(right, tuple) else (right,)
    return Write(name=name, what=what, decode=decode, view=view, rights=rights, takes=takes, prefixed=prefixed)


def read(
    name: str,
    what: type[Query],
    decode: Callable[[Asked, Any], Query],
    view: Callable[..., Any] = same,
    *,
    right: Right | tuple[Right, ...] = ("read", "consume", "produce"),
    takes: type[Args] = NoArgs,
    prefixed: bool = False,
) -> Read:
    """A row that reads; by default for whoever may do anything at all with the queue, as its producers and workers must."""
    rights = right if isinstance(right, tuple) else (right,)
    return Read(name=name, what=what, decode=decode, view=view, rights=rights, takes=takes, prefixed=prefixed)


def own(
    name: str,
    handler: Callable[[Asked, Any], Awaitable[Any]],
    *,
    right: Right | tuple[Right, ...],
    takes: type[Args] = NoArgs,
    what: type[Operation] | type[Query] | None = None,
) -> Own:
    """A row with a handler of its own. What waits long must end when it is cancelled."""
    rights = right if isinstance(right, tuple) else (right,)
    return Own(name=name, what=what, decode=handler, rights=rights, takes=takes)


def json_text(name: str, value: bytes) -> bytes:
    """Return opaque JSON as it came: exactly one value, in UTF-8. Raises Invalid.

    Other dialects put it into their replies unseen, so that it must be what it says it is.
    """
    try:
        check_text(value)
        found = JSON_ITEMS.decode(b"[%b]" % value)
    except msgspec.MsgspecError:
        raise Invalid(f"{name} is not valid JSON") from None
    if len(found) != 1:
        raise Invalid(f"{name} is not valid JSON")
    return value

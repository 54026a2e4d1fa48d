"""Makers of rows: what replicates an operation, what reads, what has a handler of its own; and what stands for replies that are no JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, Required, TypedDict, Unpack

import msgspec

from quorumq.node.machine.operation import Operation, Query
from quorumq.node.machine.refusals import Refusal

from .auth import Grant
from .limits import LARGE_BYTES
from .reply import Reply
from .request import (
    CONSISTENCY,
    Body,
    Call,
    Check,
    Command,
    Handler,
    Narrow,
    Parameter,
    Right,
    Route,
    Touches,
    View,
    Wording,
)


class RowOptions(TypedDict, total=False):
    """What every kind of row says besides."""

    reply: Required[Any]
    refusals: Wording
    about: str
    limited: bool
    answers: Mapping[int, str]
    scope: Touches | None
    command: str | Command | tuple[str | Command, ...]


class More(RowOptions):
    """What every row says that is no plain read."""

    right: Right


class Text(msgspec.Struct):
    """Stands for a reply that is text."""


class Html(msgspec.Struct):
    """Stands for a reply that is a page."""


class Octets(msgspec.Struct):
    """Stands for a reply that is a file."""


class EventStream(msgspec.Struct):
    """Stands for a reply that goes on for as long as the client stays."""


class WebSocketUpgrade(msgspec.Struct):
    """Stands for a connection that goes on as a WebSocket."""


class OpenApi(msgspec.Struct):
    """An OpenAPI document."""

    openapi: str
    paths: dict[str, Any]


class NotReady(msgspec.Struct, forbid_unknown_fields=True):
    """What a probe answers that says no."""

    ok: Literal[False]
    ready: Literal[False]
    error: str


def write(
    method: str,
    path: str,
    what: type[Operation],
    decode: Callable[[Call], Operation],
    view: View,
    *,
    body: Body | None = None,
    takes: Any = None,
    check: Check | None = None,
    **more: Unpack[More],
) -> Route:
    """A row that replicates an operation and answers at its local apply. body: by default, one is read if one is taken."""

    async def handler(call: Call) -> Reply:
        operation = decode(call) if len(call.body) <= LARGE_BYTES else await call.decoded(decode)
        if check is not None and not call.grant.every_queue:
            operation = await check(call, operation)
        return success(await call.write(operation, view))

    reads: Body = body or ("none" if takes is None else "small")
    return Route(method=method, path=path, handler=handler, what=what, body=reads, takes=takes, **more)


def ask(
    method: str,
    path: str,
    what: type[Query],
    decode: Callable[[Call], Query],
    view: View,
    *,
    right: Right = "read",
    asks: tuple[Parameter, ...] = (),
    narrow: Narrow | None = None,
    **more: Unpack[RowOptions],
) -> Route:
    """A row that reads: linearizable unless `?consistency=stale`."""

    async def handler(call: Call) -> Reply:
        query, seen = decode(call), view
        if narrow is not None and not call.grant.every_queue:
            seen = partial(narrowed, narrow, call.grant, query, view)
        return success(await call.node.ask(query, seen, stale=call.stale))

    return Route(method=method, path=path, handler=handler, what=what, right=right, asks=(*asks, CONSISTENCY), **more)


def narrowed(narrow: Narrow, grant: Grant, query: Query, view: View, answer: Any) -> bytes | Refusal:
    """Show what a token may see of an answer."""
    return view(narrow(grant, query, answer))


def success(made: bytes | Refusal) -> Reply:
    """Make the reply of what a view made. Raises Refusal."""
    if isinstance(made, Refusal):
        raise made
    return Reply(200, made)


def plain(
    method: str,
    path: str,
    handler: Handler,
    *,
    what: type[Operation] | type[Query] | None = None,
    body: Body | None = None,
    takes: Any = None,
    asks: tuple[Parameter, ...] = (),
    **more: Unpack[More],
) -> Route:
    """A row with a handler of its own: long polls, health, figures."""
    reads: Body = body or ("none" if takes is None else "small")
    return Route(method=method, path=path, handler=handler, what=what, body=reads, takes=takes, asks=asks, **more)


def grouped(group: str, *routes: Route) -> tuple[Route, ...]:
    """Put rows under a heading."""
    return tuple(msgspec.structs.replace(route, group=group) for route in routes)

"""The one request path: a row of a table, found by method and path, decodes a request into an operation or a query,
hands it to the node and answers with what the row's view made of the reply.

What the bodies mean and how refusals are worded is each dialect's; sockets and listeners are server.py's.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Required, TypedDict, TypeVar, Unpack
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from aiohttp import web

from cluster.errors import EntryTooLarge, Unavailable
from node.operation import Operation, Query
from node.refusals import Refusal

from .auth import Access, Forbidden, Grant
from .limits import DATA_BYTES_MAX, BodyTooLarge, Busy
from .once import BadKey, once_of
from .scopes import Hidden, named_again, permit

if TYPE_CHECKING:
    from node.node import Node, Once
    from node.operations.jobs import Pulled, PullJobs

    from .server import Server

log = logging.getLogger(__name__)

# open: anybody. job: the token of the job itself, which the row's handler checks.
Right = Literal["open", "job", "metrics", "produce", "consume", "read", "manage:all", "admin"]
Body = Literal["none", "small", "data"]
# What a token has to be for: the queue or the job that the path names; what the row itself checks; nothing; every queue.
Touches = Literal["queue", "job", "checked", "nothing", "every"]

T = TypeVar("T")

JSON = b"application/json"
HTML = b"text/html; charset=utf-8"
TEXT = b"text/plain; charset=utf-8"
REPLAYING = "the log is being replayed"
# A reply longer than this waits for the client to read it before the next request of its connection is looked at.
DRAIN_BYTES = 1 << 16


class Reply(web.StreamResponse):
    """A whole response, written in one piece.

    It takes the place of aiohttp's Response, whose header dictionary and writer cost more than the rest of a small
    request; aiohttp calls prepare and write_eof and reads keep_alive, and that is all it needs.
    heads: the first lines by status, with the headers that every reply of a listener has.
    """

    def __init__(self, status: int, body: bytes, content_type: bytes = JSON, headers: bytes = b"") -> None:
        self._line = status
        self._whole = body
        self._kind = content_type
        self._more = headers
        self._stay = True
        self.heads: Mapping[int, bytes] = HEADS

    @property
    def status(self) -> int:
        return self._line

    @property
    def body(self) -> bytes:
        return self._whole

    @property
    def keep_alive(self) -> bool | None:
        return self._stay

    def replaced(self, body: bytes) -> Reply:
        """Take another body."""
        self._whole = body
        return self

    def end_connection(self) -> Reply:
        """Close the connection after this reply."""
        self._stay = False
        return self

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write the response. A client that is gone is no error."""
        transport = request.transport
        if transport is None or transport.is_closing():
            return
        body = self._whole
        head = self.head(request, len(body))
        if request.method != "HEAD":
            head.append(body)
        transport.write(b"".join(head))
        if len(body) > DRAIN_BYTES:
            await request.writer.drain()

    def head(self, request: web.BaseRequest, length: int) -> list[bytes]:
        """Return everything before a body of so many bytes."""
        head = [self.heads[self._line], DATE.line(), self._more]
        if self._line != HTTPStatus.NO_CONTENT:
            head.append(b"Content-Type: %b\r\nContent-Length: %d\r\n" % (self._kind, length))
        if not request.keep_alive:
            self._stay = False
        if not self._stay:
            head.append(b"Connection: close\r\n")
        elif request.version < (1, 1):
            head.append(b"Connection: keep-alive\r\n")
        head.append(b"\r\n")
        return head

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing: prepare has written everything."""


class Pieced(Reply):
    """A reply whose body is in pieces, some of them large and somebody else's: they are not copied into one text."""

    def __init__(self, status: int, pieces: Sequence[bytes]) -> None:
        super().__init__(status, b"")
        self._pieces = pieces

    @property
    def body(self) -> bytes:
        return b"".join(self._pieces)

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write the response as fast as the client reads it."""
        pieces = self._pieces
        length = sum(map(len, pieces))
        transport = request.transport
        if length <= DRAIN_BYTES or transport is None or transport.is_closing() or request.method == "HEAD":
            self._whole = self.body
            await super().prepare(request)
            return
        unsent = self.head(request, length)
        size = 0
        for piece in pieces:
            unsent.append(piece)
            size += len(piece)
            if size > DRAIN_BYTES:
                # A large piece is alone in what is joined, or nearly so.
                transport.write(b"".join(unsent))
                unsent, size = [], 0
                await request.writer.drain()
                if transport.is_closing():
                    return
        transport.write(b"".join(unsent))


class Streamed(Reply):
    """Stands for a response that its route has written itself, to its end."""

    def __init__(self, status: int) -> None:
        super().__init__(status, b"")
        self._stay = False

    async def prepare(self, request: web.BaseRequest) -> None:
        """Do nothing: everything is written."""


class DateLine:
    """The Date header, worked out once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._text = b""

    def line(self) -> bytes:
        now = int(time.time())
        if now != self._second:
            self._second = now
            self._text = b"Date: %b\r\n" % formatdate(now, usegmt=True).encode("ascii")
        return self._text


DATE = DateLine()
HEADS = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode("ascii") for s in HTTPStatus}


class Invalid(Exception):
    """A request that its route cannot accept; the message is for the client."""

    def __init__(self, message: str, status: int = 400, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Call:
    """One request on its way through a route.

    path: the parameters of the path.  body: the whole body, empty for routes that take none.  grant: what the sender may do.
    """

    __slots__ = (
        "_query",
        "body",
        "cut_off",
        "grant",
        "hidden_id",
        "node",
        "path",
        "query_text",
        "request",
        "route",
        "server",
        "template",
    )

    def __init__(
        self,
        server: Server,
        request: web.BaseRequest,
        route: Route,
        path: Mapping[str, str],
        query_text: str,
        body: bytes,
        grant: Grant,
    ) -> None:
        self.server = server
        self.node: Node = server.node
        self.request = request
        self.route = route
        # The whole path with its prefix, for those who write down what was asked for.
        self.template = route.path
        self.path = path
        self.query_text = query_text
        self.body = body
        self.grant = grant
        # The id of the job that was asked for, where the sender must not know whether there is one.
        self.hidden_id: str | None = None
        # Whether its token was revoked while it waited.
        self.cut_off = False
        self._query: dict[str, str] | None = None

    @property
    def query(self) -> dict[str, str]:
        """The query's parameters; the first of a repeated name counts."""
        if self._query is None:
            self._query = {}
            if self.query_text:
                for name, value in parse_qsl(self.query_text, keep_blank_values=True):
                    self._query.setdefault(name, value)
        return self._query

    @property
    def once(self) -> Once | None:
        """What makes this request one with its repeats, when it has an idempotency key. Raises Invalid."""
        try:
            return once_of(self.request, self.body)
        except BadKey as error:
            raise Invalid(str(error)) from None

    async def submit(self, operation: Operation, view: Callable[[Any], T]) -> T:
        """Replicate an operation under the request's key; return `view(reply)`. Raises Refusal, Unavailable, Invalid."""
        began = time.perf_counter()
        made = await self.node.submit(operation, view, once=self.once)
        self.server.writes.observe(time.perf_counter() - began)
        return made

    async def pull(self, operation: PullJobs, view: Callable[[Pulled], T], wait_ms: float) -> T:
        """Take jobs, or wait for one. Raises Refusal, Unavailable, Invalid."""
        doing = self.node.pull(operation, view, wait_ms=wait_ms, once=self.once)
        return await (self.waiting(doing) if wait_ms else doing)

    async def waiting(self, doing: Coroutine[Any, Any, T]) -> T:
        """Await what may take as long as the client likes: not longer than its token is one. Raises Invalid (401)."""
        task = asyncio.current_task()
        assert task is not None
        self.server.waiting[self] = task
        try:
            return await doing
        except asyncio.CancelledError:
            if not self.cut_off or task.uncancel():
                # The client has left, too.
                raise
            raise Invalid("Unauthorized", 401, "unauthorized") from None
        finally:
            del self.server.waiting[self]

    @property
    def stale(self) -> bool:
        """Whether the client is content with this node's copy, however old. Raises Invalid."""
        if not self.query_text:
            return False
        wanted = self.query.get("consistency", "linearizable")
        if wanted not in ("stale", "linearizable"):
            raise Invalid("consistency must be 'stale' or 'linearizable'")
        return wanted == "stale"


Handler = Callable[[Call], Awaitable[Reply]]
# What a reply becomes: the body of a success, or a refusal that stands inside a reply.
View = Callable[[Any], bytes | Refusal]
# Holds an operation against a token that is not for all queues; returns it, or what is left of it. Raises Forbidden, Hidden.
Check = Callable[["Call", Any], Awaitable[Operation]]
# What such a token sees of a query's answer: token, query, answer. Raises Hidden.
Narrow = Callable[[Grant, Any, Any], Any]
Answer = tuple[int, str]
# How a route words the refusals that it words in its own way: status and text, or what makes them of the refusal.
Wording = Mapping[type[Refusal], Answer | Callable[[Any], Answer]]
NO_WORDING: Wording = MappingProxyType({})
NO_ANSWERS: Mapping[int, str] = MappingProxyType({})


class About(TypedDict, total=False):
    """What every kind of row says besides."""

    reply: Required[Any]
    refusals: Wording
    about: str
    limited: bool
    answers: Mapping[int, str]
    scope: Touches | None


class More(About):
    """What every row says that is no plain read."""

    right: Right


class Text(msgspec.Struct):
    """Stands for a reply that is text."""


class Html(msgspec.Struct):
    """Stands for a reply that is a page."""


class Octets(msgspec.Struct):
    """Stands for a reply that is a file."""


class Stream(msgspec.Struct):
    """Stands for a reply that goes on for as long as the client stays."""


class Socket(msgspec.Struct):
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


class Parameter(msgspec.Struct, frozen=True):
    """A parameter of a route's query, as the OpenAPI document shows it. schema: JSON Schema of its value."""

    name: str
    text: str
    schema: Mapping[str, Any]


CONSISTENCY = Parameter(
    "consistency",
    "`stale` answers from this node's copy, however old; otherwise the answer is linearizable.",
    {"type": "string", "enum": ["linearizable", "stale"], "default": "linearizable"},
)


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A row of a dialect's table.

    path: parameters in braces.  what: the operation or query it runs, None for plain handlers.  reply: the type of
    the body of a success, which the tests hold every reply against.  body: whether a body is read at all, and
    whether it carries job data.  refusals: status and text where this route words a refusal in its own way.
    takes, asks: the type of the body (a struct, a list of them, or Raw for any JSON) and the parameters of the query, for the
    OpenAPI document.  about: one sentence
    for the same, where that of `what` does not fit.  group: the heading under which it is documented.  limited: whether
    it counts for the request limit of a client.  answers: what statuses mean here that mean something else elsewhere.
    scope: what a token has to be for; by default what the path names, and every queue where it names none.
    """

    method: str
    path: str
    handler: Handler
    what: type[Operation] | type[Query] | None = None
    reply: Any
    right: Right
    body: Body = "none"
    refusals: Wording = NO_WORDING
    takes: Any = None
    asks: tuple[Parameter, ...] = ()
    about: str = ""
    group: str = ""
    limited: bool = True
    answers: Mapping[int, str] = NO_ANSWERS
    scope: Touches | None = None

    @property
    def touches(self) -> Touches:
        """What a token has to be for."""
        if self.scope is not None:
            return self.scope
        if "{queue}" in self.path:
            return "queue"
        return "job" if "{id}" in self.path else "every"


def submit(
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
        operation = decode(call)
        if check is not None and not call.grant.every_queue:
            operation = await check(call, operation)
        return success(await call.submit(operation, view))

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
    **more: Unpack[About],
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


class Dialect(Protocol):
    """What the request path asks of a dialect."""

    name: str
    routes: tuple[Route, ...]
    # Parameters of paths that are taken as they came (but see `meant`); the others are percent-decoded.
    undecoded: frozenset[str]
    # Of the bodies that `error` makes.
    content_type: bytes
    # Whether strangers are told 401 of a path that is not there, so that they cannot find out which are.
    hides_paths: bool

    def authorize(self, access: Access, request: web.BaseRequest) -> Grant:
        """Say what the sender of a request may do. Raises Unauthorized."""

    def refusal(self, refusal: Refusal) -> Answer:
        """Word a refusal that its route does not: status and text."""

    def error(self, status: int, text: str, code: str) -> bytes:
        """Render the body of an error."""


class Mount:
    """A route where a listener serves it, with the dialect that it speaks. template: its whole path."""

    __slots__ = ("dialect", "names", "route", "template")

    def __init__(self, dialect: Dialect, route: Route, names: tuple[str, ...], template: str) -> None:
        self.dialect = dialect
        self.route = route
        self.names = names
        self.template = template


class Branch:
    """A node of the tree of paths: what follows by literal segment, what follows any segment, what ends here."""

    __slots__ = ("any", "here", "literal")

    def __init__(self) -> None:
        self.literal: dict[str, Branch] = {}
        self.any: Branch | None = None
        self.here: Mount | None = None


class Router:
    """Finds the route of a method and a path. A literal segment goes before a parameter."""

    def __init__(self) -> None:
        self._roots: dict[str, Branch] = {}

    def mount(self, dialect: Dialect, prefix: str = "") -> None:
        """Serve a dialect's routes under a prefix."""
        for route in dialect.routes:
            branch = self._roots.setdefault(route.method, Branch())
            names = []
            for segment in (prefix + route.path).split("/")[1:]:
                if segment.startswith("{"):
                    names.append(segment[1:-1])
                    branch.any = branch.any or Branch()
                    branch = branch.any
                else:
                    branch = branch.literal.setdefault(segment, Branch())
            assert branch.here is None, f"{route.method} {route.path} is there twice"
            branch.here = Mount(dialect, route, tuple(names), prefix + route.path)

    def find(self, method: str, path: str) -> tuple[Mount, dict[str, str]] | None:
        """Return the route and the path's parameters. Raises Invalid when one of them cannot be decoded."""
        root = self._roots.get(method)
        if root is None:
            return None
        segments = path.split("/")
        values: list[str] = []
        found = walk(root, segments, 1, values)
        if found is None:
            return None
        parameters = dict(zip(found.names, values, strict=True))
        if "%" in path:
            for name in found.names:
                if name not in found.dialect.undecoded:
                    parameters[name] = percent_decode(parameters[name])
        return found, parameters

    def mounts(self) -> Iterator[Mount]:
        """Every route that is served."""
        branches = list(self._roots.values())
        while branches:
            branch = branches.pop()
            branches += branch.literal.values()
            if branch.any is not None:
                branches.append(branch.any)
            if branch.here is not None:
                yield branch.here


def walk(branch: Branch, segments: list[str], at: int, values: list[str]) -> Mount | None:
    if at == len(segments):
        return branch.here
    segment = segments[at]
    following = branch.literal.get(segment)
    if following is not None:
        found = walk(following, segments, at + 1, values)
        if found is not None:
            return found
    if branch.any is None or not segment:
        return None
    values.append(segment)
    found = walk(branch.any, segments, at + 1, values)
    if found is None:
        values.pop()
    return found


MALFORMED = re.compile(r"%(?![0-9A-Fa-f]{2})")


def percent_decode(text: str) -> str:
    """Decode a segment. Raises Invalid where decodeURIComponent would raise."""
    if "%" not in text:
        return text
    if MALFORMED.search(text):
        raise Invalid("Malformed percent-encoding in the path")
    try:
        return unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        raise Invalid("Malformed percent-encoding in the path") from None


async def meant(call: Call) -> Mapping[str, str]:
    """Return the path's parameters, with the id percent-decoded where only a job of that name is there.

    An id is taken as it stands in the path first, so that one with a percent sign in it is found. A job that the token is
    not for is not there.  Raises Unavailable.
    """
    job_id = call.path["id"]
    try:
        decoded = percent_decode(job_id)
    except Invalid:
        return call.path
    if not call.stale:
        await call.node.refresh()
    jobs = call.node.machine.state.jobs
    job = jobs.get(decoded)
    if job_id in jobs or job is None or not (call.grant.every_queue or call.grant.covers(job.queue)):
        return call.path
    return {**call.path, "id": decoded}


async def answer(
    server: Server, request: web.BaseRequest, found: Mount, path: Mapping[str, str], query: str, grant: Grant
) -> Reply:
    """Run a request through its route and word whatever goes wrong in its dialect."""
    route, dialect = found.route, found.dialect
    call = Call(server, request, route, path, query, b"", grant)
    call.template = found.template
    try:
        if dialect.undecoded and "%" in path.get("id", ""):
            call.path = await meant(call)
        if not grant.unlimited:
            await permit(call)
        if route.body != "none":
            call.body = await server.bodies.read(request)
        reply = await route.handler(call)
    except Exception as error:
        reply = trouble(dialect, route, error)
        server.audit.refused(call, error, reply.status)
    else:
        server.audit.done(call, reply.status)
    return reply if call.hidden_id is None else reply.replaced(named_again(call, reply.body))


def trouble(dialect: Dialect, route: Route, error: Exception) -> Reply:
    """Word what went wrong with a request."""
    match error:
        case Refusal():
            wording = route.refusals.get(type(error)) or dialect.refusal(error)
            status, text = wording(error) if callable(wording) else wording
            return failure(dialect, status, text, error.code)
        case Hidden():
            return trouble(dialect, route, error.refusal)
        case Forbidden():
            return failure(dialect, 403, str(error), "forbidden")
        case Invalid():
            return failure(dialect, error.status, str(error), error.code)
        case Unavailable():
            return failure(dialect, 503, str(error), error.code, retry_after_s=error.retry_after_s)
        case BodyTooLarge():
            return oversized(dialect, route, error)
        case Busy():
            text = "The bodies under way take all the memory set aside for them"
            return failure(dialect, 503, text, "busy", retry_after_s=1).end_connection()
        case EntryTooLarge():
            return failure(dialect, 413, "Request too large for one log entry", "entry_too_large")
        case web.RequestPayloadError():
            return failure(dialect, 400, "Malformed request body", "invalid_request").end_connection()
    # Where it happened and what kind it is, but not its message, which may quote job data, nor the request.
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s %s failed: %s\n%s", route.method, route.path, type(error).__name__, where)
    return failure(dialect, 500, "Internal server error", "internal_error")


def oversized(dialect: Dialect, route: Route, error: BodyTooLarge) -> Reply:
    """Answer a body beyond the bound: as data that is too long where it cannot be anything else."""
    if route.body == "data" and error.limit >= DATA_BYTES_MAX:
        return failure(dialect, 400, "Job data too large (max 10MB)", "data_too_large")
    return failure(dialect, 413, str(error), "body_too_large")


def failure(dialect: Dialect, status: int, text: str, code: str, *, retry_after_s: float | None = None) -> Reply:
    """Make an error's reply. retry_after_s: seconds after which a repeat is worth it."""
    headers = b""
    if retry_after_s is not None:
        headers = b"Retry-After: %d\r\n" % max(1, math.ceil(retry_after_s))
    return Reply(status, dialect.error(status, text, code), dialect.content_type, headers)

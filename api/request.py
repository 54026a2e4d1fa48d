"""A request on its way, the row that it runs through, and what it needs of its surroundings.

A row of a dialect's table says what a method and a path mean; rows.py has the makers of rows, path.py runs a request through one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar
from urllib.parse import parse_qsl

import msgspec
from aiohttp import web

from quorumq.node.machine.operation import Operation, Query
from quorumq.node.machine.refusals import Refusal

from .auth import Grant
from .errors import Invalid
from .latency import Latency
from .limits import Bodies
from .metrics import DurationHistogram
from .once import BadKey, once_of
from .reply import Reply

if TYPE_CHECKING:
    from quorumq.api.settings.rows import NodeConfig
    from quorumq.node.machine.operations.runs import Pulled, PullJobs
    from quorumq.node.node import IdempotencyKey, Node

# open: anybody. job: the token of the job itself, which the row's handler checks.
Right = Literal["open", "job", "metrics", "produce", "consume", "read", "manage:all", "admin"]
Body = Literal["none", "small", "data"]
# What a token has to be for: the queue or the job that the path names; what the row itself checks; nothing; every queue.
Touches = Literal["queue", "job", "checked", "nothing", "every"]

T = TypeVar("T")


class Environment(Protocol):
    """What a request needs of its surroundings.

    writes, latency: how long operations take.  waiting: requests that wait for something to happen, with what runs them.
    open_rights: those that need no token.
    """

    node: Node
    config: NodeConfig
    bodies: Bodies
    writes: DurationHistogram
    latency: Latency
    waiting: dict[Call, asyncio.Task[Any]]
    open_rights: frozenset[str]

    def service(self, kind: type[T]) -> T:
        """Return what is there once for all requests of this node, by its type."""


class Call:
    """One request on its way through a route.

    path: the parameters of the path.  body: the whole body, empty for routes that take none.  grant: what the sender may do.
    """

    __slots__ = (
        "_query",
        "body",
        "counted",
        "cut_off",
        "grant",
        "in_turn",
        "masked",
        "masks_anothers",
        "node",
        "path",
        "query_text",
        "request",
        "route",
        "server",
        "template",
    )

    # Whether it came as a request of its own, and not as a command over a WebSocket.
    over_http = True

    def __init__(
        self,
        server: Environment,
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
        # Ids that stand for those that were asked for, where the sender must not know whether there is such a thing; and
        # whether one of them is another's.
        self.masked: dict[str, str] = {}
        self.masks_anothers = False
        # Whether its token was revoked while it waited.
        self.cut_off = False
        # What it holds while its body is there (limits.py).
        self.counted = 0
        self.in_turn: asyncio.TimerHandle | None = None
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
    def once(self) -> IdempotencyKey | None:
        """What makes this request one with its repeats, when it has an idempotency key. Raises Invalid."""
        try:
            return once_of(self.request, self.body, self.grant)
        except BadKey as error:
            raise Invalid(str(error)) from None

    async def decoded(self, decode: Callable[[Call], T]) -> T:
        """Decode a large body: in its turn, and in a thread, in which the loop goes on between any two steps of Python's."""
        await self.server.bodies.await_turn(self, self.node.timeout_s)
        return await asyncio.to_thread(decode, self)

    async def write(self, operation: Operation, view: Callable[[Any], T]) -> T:
        """Replicate an operation under the request's key; return `view(reply)`. Raises Refusal, Unavailable, Invalid."""
        began = time.perf_counter()
        made = await self.node.submit(operation, view, once=self.once)
        passed = time.perf_counter() - began
        self.server.writes.observe(passed)
        self.server.latency.observe(operation, passed)
        return made

    async def pull(self, operation: PullJobs, view: Callable[[Pulled], T], wait_ms: float) -> T:
        """Take jobs, or wait for one. Raises Refusal, Unavailable, Invalid."""
        doing = self.node.pull(operation, view, wait_ms=wait_ms, once=self.once)
        with self.server.latency.timing(operation, wait_ms):
            if not wait_ms:
                return await doing
            # Nobody looks at its body any more, and it may wait for a minute.
            self.body = b""
            self.server.bodies.let_go(self)
            return await self.waiting(doing)

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
    def level(self) -> int:
        """The feature level that this node knows to be in force; newer ones are asked of nobody (node/levels.py)."""
        return self.node.machine.level

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
NO_FIELDS: Mapping[str, str] = MappingProxyType({})


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


class Command(msgspec.Struct, frozen=True):
    """What a row is called where requests are commands. fields: what its path calls a thing, by the field that names it there.

    reply: what is made of the row's reply.
    """

    name: str
    fields: Mapping[str, str] = NO_FIELDS
    reply: Callable[[bytes], bytes] | None = None


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A row of a dialect's table.

    path: parameters in braces.  what: the operation or query it runs, None for plain handlers.  reply: the type of
    the body of a success, which the tests hold every reply against.  body: whether a body is read at all, and
    whether it carries job data.  refusals: status and text where this route words a refusal in its own way.
    takes, asks: the type of the body (a struct, a list of them, or Raw for any JSON) and the parameters of the query, for the
    OpenAPI document.  about: one sentence
    for the same, where that of `what` does not fit.  group: the heading under which it is documented.  limited: whether
    it counts for the request limit of a client.  answers: what statuses mean here that mean something else elsewhere.
    scope: what a token has to be for; by default what the path names, and every queue where it names none.  command: its name, or
    what is to be known of it, over WebSockets and TCP; some rows have several.
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
    command: str | Command | tuple[str | Command, ...] = ()

    @property
    def commands(self) -> list[Command]:
        """The commands that mean this row."""
        given = self.command if isinstance(self.command, tuple) else (self.command,)
        return [Command(one) if isinstance(one, str) else one for one in given]

    @property
    def touches(self) -> Touches:
        """What a token has to be for."""
        if self.scope is not None:
            return self.scope
        if "{queue}" in self.path:
            return "queue"
        return "job" if "{id}" in self.path else "every"

"""What all listeners of a node share: its bounds, tokens and figures, what lasts, what is under way, and whether it is ready."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, TypeVar, cast

from quorumq.api.settings.rows import NodeConfig
from quorumq.node.node import Node

from .audit import Audit
from .auth import Access, Grant
from .certificates import Certificate
from .disk import DiskWatch
from .door import Door, descriptor_max
from .latency import Latency
from .limits import Bodies, Pace, Proxies, RequestLimit
from .metrics import DurationHistogram
from .origins import Origins
from .recent_keys import RecentKeys
from .request import Call

# Requests under way at once, long polls included; each takes a few kilobytes.
REQUESTS_MAX = 20_000
# How often the groups of a queue are limited anew where pulls disagree.
GROUPS_SET_S = 5.0
REPLAYING = "the log is being replayed"

T = TypeVar("T")


class LongLivedConnection(Protocol):
    """A connection that lasts. grant: None as long as it has shown no token."""

    grant: Grant | None

    def close(self) -> None:
        """Come to an end."""


class Port(Protocol):
    """A listener, as all of a node's listeners are treated. setting: the name of the setting that gives the port."""

    setting: str

    @property
    def address(self) -> str:
        """Where it listens, as host:port."""

    @property
    def connections(self) -> int:
        """Open connections."""

    async def start(self) -> None:
        """Bind and listen. Raises OSError with the address in its message."""

    async def take_no_more(self) -> None:
        """Close the listening socket; what is connected stays so."""

    async def close(self) -> None:
        """End what is still connected."""


class CommandPort(Port, Protocol):
    """The listener of commands over TCP. commands: how many came."""

    commands: int

    @property
    def polls_known(self) -> int:
        """Those among them that were known to find nothing."""

    def leave(self) -> None:
        """Have its clients go elsewhere."""


class DrainableConnection(Protocol):
    """A connection that says so when its node leaves."""

    def leave(self) -> None:
        """Have the client go elsewhere."""


class Host:
    """What requests and connections of a node find around them; the Environment of every request.

    listeners: those of HTTP, the main one first.  tcp: that of commands, where there is one.
    """

    def __init__(self, node: Node, config: NodeConfig) -> None:
        self.node = node
        self.config = config
        self.started_at = time.monotonic()
        self.access = Access(config.auth_tokens, config.auth_tokens_file)
        # What clients are shown at the beginning of TLS; None: they speak plain HTTP.
        self.certificate: Certificate | None = None
        if config.tls_cert is not None and config.tls_key is not None:
            self.certificate = Certificate(config.tls_cert, config.tls_key)
        self.pace = Pace(config.client_bytes_per_s_min)
        self.bodies = Bodies(config.body_bytes_max, pace=self.pace)
        self.origins = Origins(config)
        self.listeners: Sequence[Port] = ()
        self.tcp: CommandPort | None = None
        self.proxies = Proxies(config.trusted_proxies)
        self.audit = Audit(self.proxies)
        self.door = Door(
            connections_max=config.connections_max,
            per_client_max=config.connections_per_client_max,
            proxies=self.proxies,
            head_s=config.head_timeout_ms / 1000,
            pace=self.pace,
            descriptor_max=descriptor_max(config.descriptors_kept),
        )
        self.request_limit: RequestLimit | None = None
        if config.rate_limit_max_requests:
            self.request_limit = RequestLimit(
                config.rate_limit_max_requests, config.rate_limit_window_ms, config.rate_limit_cleanup_ms
            )
        # What needs no token: probes, the job's own token, and the metrics unless they are to be kept from strangers.
        self.open_rights: frozenset[str] = frozenset(
            {"open", "job"} if config.metrics_auth else {"open", "job", "metrics"}
        )
        # Queues whose groups were limited as a pull said, lately.
        self.groups_set = RecentKeys(GROUPS_SET_S)
        self.disk = DiskWatch(config.data_path)
        self.writes = DurationHistogram()
        self.latency = Latency()
        self._services: dict[type, Any] = {Host: self}
        # Connections that last, each with the token that it showed.
        self.sessions: dict[LongLivedConnection, None] = {}
        # Those of them that speak BullMQ's backend protocol.
        self.backends: dict[DrainableConnection, None] = {}
        self.websockets = 0
        # Requests that wait for something to happen, with what runs them.
        self.waiting: dict[Call, asyncio.Task[Any]] = {}
        # What is still to be done for connections that are gone.
        self._meanwhile: set[asyncio.Task[None]] = set()
        # Replies by the first digit of their status.
        self.replies = [0] * 6
        self.under_way = 0
        self.stopping = False
        self.leaving = False
        self._idle = asyncio.Event()

    def provide(self, service: object) -> None:
        """Have what is there once for all requests be found by its type."""
        self._services[type(service)] = service

    def service(self, kind: type[T]) -> T:
        """Return what is there once for all requests of this node, by its type."""
        return cast(T, self._services[kind])

    @property
    def connections(self) -> int:
        """Open connections."""
        return self.http_connections + self.tcp_connections

    @property
    def http_connections(self) -> int:
        """Those of HTTP, WebSockets and streams included."""
        return sum(listener.connections for listener in self.listeners)

    @property
    def tcp_connections(self) -> int:
        """Those of bunqueue's own protocol."""
        return 0 if self.tcp is None else self.tcp.connections

    @property
    def node_started(self) -> bool:
        """Whether the node has its state; the listener is there before, so that probes get an answer."""
        return bool(getattr(self.node, "started", True))

    def readiness(self) -> tuple[bool, str]:
        """Say whether requests should be sent to this node, and if not, why."""
        if not self.node_started:
            return False, REPLAYING
        if self.stopping or self.leaving or self.node.draining:
            return False, "the node is stopping"
        status = self.node.status()
        return status.ready, status.ready_reason or "the node is not ready"

    @property
    def full(self) -> bool:
        """Whether as much is under way as may be."""
        return self.under_way >= REQUESTS_MAX

    def begun(self) -> None:
        """A request, or a command, is under way."""
        self.under_way += 1

    def done(self) -> None:
        """It is not any more."""
        self.under_way -= 1
        if self.stopping and not self.under_way:
            self._idle.set()

    def meanwhile(self, doing: Coroutine[Any, Any, None]) -> None:
        """Do what is still to be done for a connection that is gone; stopping waits for it as for a request."""
        self.begun()
        task = asyncio.create_task(doing)
        self._meanwhile.add(task)
        task.add_done_callback(self._meanwhile.discard)
        task.add_done_callback(lambda _: self.done())

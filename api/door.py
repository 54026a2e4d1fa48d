"""The door of a node: how many connections there may be, and how long each may take up to its request.

What connections are is connections.py's and commands/tcp.py's.
Whoever is turned away is counted, and named in the log by a line that comes at most once in a while.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import resource
from collections import Counter
from typing import Literal, Protocol

from .limits import Pace, Proxies

log = logging.getLogger(__name__)

# Connections beyond a bound that are still let in to be told so, and to ask the probes how the node is.
WAITING_ROOM = 64
# How often it is looked for heads that are not finished.
LOOK_S = 0.5
# A client gets this long to read why its body was refused, while the rest of it is dropped unseen.
LINGER_S = 5.0
# Idle connections that are closed at once to make room; finding them means to look at all.
EVICTED_AT_ONCE = 64
# When there was none, it is not looked again for so long.
LOOK_AGAIN_S = 0.1
# A line of each kind at most this often.
LOG_S = 10.0

Ended = Literal["head", "body", "reply", "idle", "frame", "unread"]
Turned = Literal["all", "client", "descriptors"]
SAID: dict[str, str] = {
    "head": "request heads were not finished in time (HEAD_TIMEOUT_MS)",
    "body": "request bodies came more slowly than CLIENT_BYTES_PER_S_MIN",
    "reply": "replies were read more slowly than CLIENT_BYTES_PER_S_MIN",
    "idle": "idle connections were closed to make room (CONNECTIONS_MAX)",
    "frame": "frames were longer than a command may be (64 MB; 64 KB before Auth)",
    "unread": "clients of TCP_PORT had more than 64 MB unread",
    "all": "connections were turned away (CONNECTIONS_MAX)",
    "client": "connections were turned away (CONNECTIONS_PER_CLIENT_MAX)",
    "descriptors": "connections were turned away, because file descriptors are kept back (DESCRIPTORS_KEPT, ulimit -n)",
    "handshake": "TLS handshakes failed, or were not finished in time (HEAD_TIMEOUT_MS)",
    "crowd": "TLS handshakes were ended to make room (CONNECTIONS_MAX, DESCRIPTORS_KEPT)",
    "plain": "connections spoke no TLS, which TLS_CERT asks for",
}

TURNED_AWAY: dict[Turned, str] = {
    "all": "Too many connections",
    "client": "Too many connections from this address",
    "descriptors": "Too many connections",
}


def descriptor_max(kept: int) -> int | None:
    """Return the highest file descriptor that a client's connection may have; None where there is no limit.

    kept: descriptors that are left for the log, snapshots and peers; at least half of all are clients'.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft - 1 - min(kept, soft // 2)


class Guest(Protocol):
    """A connection, as the door sees it. client: the peer's address, where connections of an address are bounded."""

    client: str

    @property
    def is_idle(self) -> bool:
        """Whether nothing would be lost with it."""

    @property
    def idle_until(self) -> float:
        """When it would be closed for being idle; the earliest has been idle longest."""

    def drop(self) -> None:
        """End the connection at once; what was written still goes out, as far as the client reads it."""

    def too_late(self) -> None:
        """End the connection, because a head did not come in time."""


class Knocking(Protocol):
    """A connection before it is one: its TLS is being negotiated. client: the peer's address."""

    client: str
    transport: asyncio.Transport

    def abort(self) -> None:
        """End it at once."""


class Door:
    """The bounds on connections that all listeners of a node share, and who was met by them.

    connections_max: of all clients.  per_client_max: of one address that is no trusted proxy's, or None.
    descriptor_max: a connection with a higher file descriptor is not let in, because the system gives the lowest that is free.
    head_s: seconds from a connection's beginning, or a later head's first byte, to the head's end.  pace: of bodies and replies.
    """

    def __init__(
        self,
        *,
        connections_max: int,
        per_client_max: int | None,
        proxies: Proxies,
        head_s: float,
        pace: Pace,
        descriptor_max: int | None = None,
    ) -> None:
        self.connections_max = connections_max
        self.per_client_max = per_client_max
        self.descriptor_max = descriptor_max
        self.head_s = head_s
        self.pace = pace
        pace.ended = self.note
        self._proxies = proxies
        self.connections: dict[Guest, None] = {}
        # How many there were at once since somebody last asked.
        self._most = 0
        # By the address of the peer, where that is bounded.
        self.of_client: Counter[str] = Counter()
        # Whose head is not there yet, by the time it has to be, earliest first: every entry has the same time to go.
        self.unfinished: dict[Guest, float] = {}
        # Those beyond a bound that may ask one thing, the longest first.
        self.room: dict[Guest, None] = {}
        # Connections whose TLS is being negotiated, the longest first, and how many of them an address has.
        self.handshakes: dict[Knocking, None] = {}
        self._knocking: Counter[str] = Counter()
        # When it makes sense again to look for somebody idle.
        self._look_again_at = 0.0
        self.counts: Counter[str] = Counter()
        self._logged: dict[str, float] = {}
        self._unlogged: Counter[str] = Counter()
        self._looking: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Look no more, and wait for no handshake."""
        for handshake in list(self.handshakes):
            handshake.abort()
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def enter(self, connection: Guest, transport: asyncio.Transport) -> Turned | None:
        """Let a connection in; return why it is to be turned away, if it is."""
        self.connections[connection] = None
        self._most = max(self._most, len(self.connections))
        why: Turned | None = None
        if self.per_client_max is not None:
            peer = transport.get_extra_info("peername")
            client = peer[0] if isinstance(peer, tuple) else ""
            if client and not self._proxies.trusts(client):
                connection.client = client
                self.of_client[client] += 1
                if self.of_client[client] > self.per_client_max:
                    why = "client"
        if why is None and len(self.connections) > self.connections_max and not self._make_room(connection):
            why = "all"
        if self.descriptor_max is not None:
            socket = transport.get_extra_info("socket")
            if socket is not None and socket.fileno() > self.descriptor_max and not self._make_room(connection):
                why = "descriptors"
        if why is not None:
            self.note(why)
            self.room[connection] = None
            if len(self.room) > WAITING_ROOM:
                next(iter(self.room)).drop()
        return why

    def leave(self, connection: Guest) -> None:
        self.connections.pop(connection, None)
        self.unfinished.pop(connection, None)
        self.room.pop(connection, None)
        client, connection.client = connection.client, ""
        if client:
            self.of_client[client] -= 1
            if self.of_client[client] <= 0:
                del self.of_client[client]

    # -- Before there is TLS

    def most(self) -> int:
        """How many connections there were at once since the last question."""
        most, self._most = self._most, len(self.connections)
        return most

    def knock(self, handshake: Knocking) -> None:
        """Count a connection whose TLS is to be negotiated. As many are let in beyond the bounds as may be told of them."""
        self.handshakes[handshake] = None
        peer = handshake.transport.get_extra_info("peername")
        handshake.client = client = peer[0] if isinstance(peer, tuple) else ""
        self._knocking[client] += 1
        if self.per_client_max is not None and client and not self._proxies.trusts(client):
            most = self.per_client_max + WAITING_ROOM
            if self.of_client[client] + self._knocking[client] > most:
                self.note("client")
                handshake.abort()
                return
        crowded = len(self.connections) + len(self.handshakes) > self.connections_max + WAITING_ROOM
        if self.descriptor_max is not None and not crowded:
            socket = handshake.transport.get_extra_info("socket")
            crowded = socket.fileno() > self.descriptor_max and len(self.handshakes) > WAITING_ROOM
        if crowded and not self._make_room(None):
            self.note("crowd")
            ((crowd, _),) = self._knocking.most_common(1)
            next(one for one in self.handshakes if one.client == crowd).abort()

    def let_go(self, handshake: Knocking) -> None:
        """A handshake is over, or its connection is."""
        if handshake in self.handshakes:
            del self.handshakes[handshake]
            self._knocking[handshake.client] -= 1
            if not self._knocking[handshake.client]:
                del self._knocking[handshake.client]

    def _make_room(self, newcomer: Guest | None) -> bool:
        """Close connections on which nothing happens, those first that have been idle longest; say whether there were any."""
        now = asyncio.get_running_loop().time()
        if now < self._look_again_at:
            return False
        idle = [one for one in self.connections if one.is_idle and one is not newcomer]
        for one in heapq.nsmallest(EVICTED_AT_ONCE, idle, key=lambda one: one.idle_until):
            self.note("idle")
            one.drop()
        if not idle:
            self._look_again_at = now + LOOK_AGAIN_S
        return bool(idle)

    # -- Heads

    def expect(self, connection: Guest) -> None:
        """A head has begun, or may at any time."""
        now = asyncio.get_running_loop().time()
        self.unfinished[connection] = now + self.head_s
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(min(LOOK_S, self.head_s), self._look)

    def _look(self) -> None:
        self._looking = None
        loop = asyncio.get_running_loop()
        late = []
        for connection, due in self.unfinished.items():
            if due > loop.time():
                break
            late.append(connection)
        for connection in late:
            del self.unfinished[connection]
            self.note("head")
            connection.too_late()
        if self.unfinished:
            self._looking = loop.call_later(min(LOOK_S, self.head_s), self._look)

    # -- Who was met by a bound

    def note(self, what: str, why: str = "") -> None:
        """Count it, and say so, but not more often than every few seconds. why: said of the last."""
        self.counts[what] += 1
        self._unlogged[what] += 1
        now = asyncio.get_running_loop().time()
        if now - self._logged.get(what, -LOG_S) < LOG_S:
            return
        self._logged[what] = now
        log.warning("%d %s%s", self._unlogged.pop(what), SAID[what], f", the last: {why}" if why else "")

"""Links between simulated nodes, with the methods of cluster.links.Links: order within a connection, and every way to lose one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import msgspec

from quorumq.cluster import codec
from quorumq.cluster.config import ClusterConfig
from quorumq.cluster.discovery import Who
from tests.simulation.loop import Process, VirtualLoop

SILENCE_S = 3.0
PING_S = 0.25


class Connection:
    """One way from `source` to `target`; a new one is made after each loss."""

    def __init__(self, source: SimLinks, target: str) -> None:
        self.source = source
        self.target = target
        self.other_end = source.network.nodes[target]
        self.open = True
        self.arrives_at = 0.0
        self.stuck: list[bytes] = []
        self.cut_since: float | None = None


class Network:
    """Who can reach whom, how fast, and what is under way."""

    def __init__(self, loop: VirtualLoop, rng: random.Random, delay: Callable[[random.Random], float]) -> None:
        self.loop = loop
        self.rng = rng
        self.delay = delay
        self.nodes: dict[str, SimLinks] = {}
        self.cuts: set[tuple[str, str]] = set()
        self.messages = 0
        self.watched: Callable[[str, str, dict[str, Any]], None] = lambda source, target, message: None
        """Told of every message that leaves."""
        self.overheard: Callable[[str, str, dict[str, Any]], None] | None = None
        """Somebody who hears every message, and may answer."""

    def reachable(self, source: str, target: str) -> bool:
        return (source, target) not in self.cuts

    def cut(self, source: str, target: str) -> None:
        """Nothing from `source` arrives at `target` any more; connections look alive for a while."""
        self.cuts.add((source, target))

    def heal(self, source: str, target: str) -> None:
        """Undo a cut: what was under way arrives, when its connection still stands."""
        self.cuts.discard((source, target))
        links = self.nodes.get(source)
        connection = links.connections.get(target) if links else None
        if connection is not None and connection.open:
            connection.cut_since = None
            stuck, connection.stuck = connection.stuck, []
            for body in stuck:
                self.carry(connection, body)

    def heal_all(self) -> None:
        for source, target in sorted(self.cuts):
            self.heal(source, target)

    def reset(self, source: str, target: str) -> None:
        """The connection from `source` breaks, and what was under way is lost."""
        links = self.nodes.get(source)
        connection = links.connections.get(target) if links else None
        if connection is not None:
            self.break_connection(connection)

    def break_connection(self, connection: Connection, *, quietly: bool = False) -> None:
        if not connection.open:
            return
        connection.open = False
        source, target = connection.source, self.nodes.get(connection.target)
        if source.connections.get(connection.target) is connection:
            del source.connections[connection.target]
        peer, me = connection.target, source.config.node_id

        def lost() -> None:
            source.listener.peer_down(peer)
            if not quietly:
                source.listener.peer_reset(peer)
            source.dial_later(peer)

        source.process.run(lost)
        if target is not None and not quietly and self.reachable(me, peer):
            target.process.run(target.listener.peer_reset, me)

    def carry(self, connection: Connection, body: bytes) -> None:
        """Deliver after a delay, never before an earlier message of the same connection."""
        at = max(self.loop.now + self.delay(self.rng), connection.arrives_at + 1e-6)
        connection.arrives_at = at
        self.loop.call_at(at, self._arrive, connection, body)

    def _arrive(self, connection: Connection, body: bytes) -> None:
        if not connection.open:
            return
        me, target = connection.source.config.node_id, self.nodes.get(connection.target)
        if not self.reachable(me, connection.target):
            connection.stuck.append(body)
            return
        if target is not connection.other_end:
            # The process at the other end is not the one that took this connection: its machine answers with a reset.
            self.break_connection(connection)
            return
        self.messages += 1

        def deliver() -> None:
            if body:
                target.listener.message_received(me, codec.loads(body))

        target.process.run(deliver)

    def leave(self, node: str) -> None:
        """The process of `node` died: its sockets close, and whoever can hear it learns of it."""
        links = self.nodes.pop(node)
        for connection in list(links.connections.values()):
            connection.open = False
            target = self.nodes.get(connection.target)
            if target is not None and self.reachable(node, connection.target):
                target.process.run(target.listener.peer_reset, node)
        for other in self.nodes.values():
            connection = other.connections.get(node)
            if connection is not None and self.reachable(node, other.config.node_id):
                self.break_connection(connection)


class SimLinks:
    """One node's links."""

    def __init__(self, network: Network, process: Process, config: ClusterConfig, listener: Any) -> None:
        self.network = network
        self.process = process
        self.config = config
        self.listener = listener
        self.addresses = dict(config.peers)
        self.connections: dict[str, Connection] = {}
        self._peers: list[str] = []

    async def start(self) -> None:
        self.network.nodes[self.config.node_id] = self

    async def stop(self) -> None:
        if self.network.nodes.get(self.config.node_id) is self:
            self.network.leave(self.config.node_id)

    def add_peer(self, peer: str, address: str) -> None:
        if peer != self.config.node_id and peer not in self._peers:
            self._peers.append(peer)
            self.dial_later(peer)

    def drop_peer(self, peer: str) -> None:
        if peer in self._peers:
            self._peers.remove(peer)
            connection = self.connections.get(peer)
            if connection is not None:
                self.network.break_connection(connection, quietly=True)
            other = self.network.nodes.get(peer)
            back = other.connections.get(self.config.node_id) if other is not None else None
            if back is not None:
                self.network.break_connection(back)

    def dial_later(self, peer: str) -> None:
        self.network.loop.call_later(self.network.rng.uniform(0.02, 0.5), self.dial, peer)

    def dial(self, peer: str) -> None:
        """Connect, also when a connection stands: then the new one replaces it."""
        network, me = self.network, self.config.node_id
        if network.nodes.get(me) is not self or peer not in self._peers:
            return
        target = network.nodes.get(peer)
        if (
            target is None
            or not network.reachable(me, peer)
            or not network.reachable(peer, me)
            or target.process.paused
        ):
            if peer not in self.connections:
                self.dial_later(peer)
            return
        seated_at = self.listener.seated_at()
        if not target.known(me) and not target.adopt(me, self.config.peers[me], seated_at):
            if target.listener.was_removed(me, seated_at):
                self.listener.refused(peer, "removed", f"{me} was removed from this cluster")
            self.dial_later(peer)
            return
        old = self.connections.get(peer)
        if old is not None:
            old.open = False
            self.listener.peer_down(peer)
        connection = self.connections[peer] = Connection(self, peer)
        self.listener.peer_up(peer)
        self._keep_alive(connection)

    def _keep_alive(self, connection: Connection) -> None:
        network, me, peer = self.network, self.config.node_id, connection.target
        if not connection.open:
            return
        target = network.nodes.get(peer)
        silent = (
            target is None
            or target.process.paused
            or not network.reachable(me, peer)
            or not network.reachable(peer, me)
        )
        if not silent:
            connection.cut_since = None
            network.carry(connection, b"")
        elif connection.cut_since is None:
            connection.cut_since = network.loop.now
        elif network.loop.now - connection.cut_since > SILENCE_S:
            network.break_connection(connection, quietly=True)
            return
        network.loop.call_later(PING_S, self._keep_alive, connection)

    def send(self, peer: str, message: dict[str, Any]) -> bool:
        connection = self.connections.get(peer)
        if connection is None:
            return False
        self.network.watched(self.config.node_id, peer, message)
        if self.network.overheard is not None:
            self.network.overheard(self.config.node_id, peer, message)
        self.network.carry(connection, codec.dumps(message))
        return True

    def connected(self, peer: str) -> bool:
        return peer in self.connections

    async def ask(self, address: str) -> Who | None:
        network, me, peer = self.network, self.config.node_id, address.rpartition(":")[0]
        answer: Who | None = None
        for source, target in ((me, peer), (peer, me)):
            await asyncio.sleep(network.delay(network.rng))
            other = network.nodes.get(peer)
            if other is None or other.process.paused or not network.reachable(source, target):
                return None
            if answer is None:
                answer = msgspec.convert(codec.loads(codec.dumps(msgspec.to_builtins(other.listener.who()))), Who)
        return answer

    def moved(self, peer: str, address: str) -> None:
        self.addresses[peer] = address

    def known(self, peer: str) -> bool:
        return peer in self._peers

    def adopt(self, peer: str, address: str, seated_at: int) -> bool:
        if self.listener.may_adopt(peer, seated_at):
            self.process.run(self.add_peer, peer, address)
        return self.known(peer)

"""Who is connected to the cluster over the backend protocol: workers, and clients that read events. For people and `getWorkers` only.

Each node says who came and left, and renews a lease of LEASE_MS for all of its clients together. Those of a node that is gone are
shown no more when the lease is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

CLIENTS_MAX = 100_000
LEASE_MS = 30_000


class Client(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """One client. id: of its own making.  name: by which the library knows it.  address: host and port.  since_ms: when it came."""

    id: str
    queue: str
    name: str
    address: str
    since_ms: int = 0


class Clients:
    """Those of one node. until_ms: the end of its lease."""

    __slots__ = ("by_id", "until_ms")

    def __init__(self, until_ms: int) -> None:
        self.by_id: dict[str, Client] = {}
        self.until_ms = until_ms


class Presence:
    """All clients by node.

    lasting: not replicated: leases do not end, for a node whose clock is set by its clients.
    """

    __slots__ = ("_node_of", "by_node", "lasting")

    def __init__(self) -> None:
        self.by_node: dict[str, Clients] = {}
        self.lasting = False
        # On which node a client is.
        self._node_of: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._node_of)

    def renew(self, node: str, now_ms: int) -> Clients:
        """Begin a node's lease anew, and forget the nodes whose lease is over."""
        for name in [name for name, clients in self.by_node.items() if self._over(clients, now_ms) and name != node]:
            self.forget(name)
        clients = self.by_node.get(node)
        if clients is None:
            clients = self.by_node[node] = Clients(now_ms + LEASE_MS)
        clients.until_ms = now_ms + LEASE_MS
        return clients

    def add(self, node: str, client: Client) -> None:
        """Add a client to a node that has a lease; it is on no other node then."""
        self.remove(client.id)
        self.by_node[node].by_id[client.id] = client
        self._node_of[client.id] = node

    def remove(self, client_id: str, node: str | None = None) -> None:
        """Forget a client; node: unless it is on another one by now."""
        found = self._node_of.get(client_id)
        if found is not None and node in (None, found):
            del self._node_of[client_id]
            del self.by_node[found].by_id[client_id]

    def forget(self, node: str) -> None:
        """Forget a node with all its clients."""
        clients = self.by_node.pop(node, None)
        for client_id in clients.by_id if clients is not None else ():
            del self._node_of[client_id]

    def of_queue(self, queue: str, now_ms: int) -> Iterator[Client]:
        """Iterate over the clients of a queue."""
        for clients in self.by_node.values():
            if not self._over(clients, now_ms):
                for client in clients.by_id.values():
                    if client.queue == queue:
                        yield client

    def _over(self, clients: Clients, now_ms: int) -> bool:
        return clients.until_ms <= now_ms and not self.lasting

    def restore(self, node: str, until_ms: int, clients: Iterable[Client]) -> None:
        """Add clients from an image, in its order."""
        found = self.by_node.setdefault(node, Clients(until_ms))
        for client in clients:
            found.by_id[client.id] = client
            self._node_of[client.id] = node

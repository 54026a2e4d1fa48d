"""Ways to the other members: the link to each, or through a member that both ends can reach, while there is no link.

A node whose link to the leader alone is cut would be of no use to its clients, and nobody would elect another leader for it. So what it
sends goes through a third member, and so does what is sent to it: everything above works as before. One hop, never more: whoever
passes a message on does so over its own link, and only what comes from the sender itself. A route is opened by the receiver's token,
which goes with every message, so that what an earlier process sent, and a slow member passes on late, is not taken for the present one's.
What is not delivered is lost: the protocol above repeats it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any, Protocol

from quorumq.cluster.messages import Malformed
from quorumq.cluster.metrics import ReplicationMetrics

log = logging.getLogger("quorumq.peers")

Message = dict[str, Any]

FRESH_S = 3.0
"""For so long counts what a member said last of whom it reaches; it says so twice a second."""
ASK_S = 0.5
"""A route that is not open by then is tried through the next member."""
_MISSING_S = 0.6
"""A link that is gone for so long is not just being made again."""
_LOOK_S = 0.05
_SAY_AGAIN_S = 600.0


class DirectLinks(Protocol):
    """Links to peers by id (cluster/links.py, and the simulation's)."""

    addresses: dict[str, str]

    def send(self, peer: str, message: Message) -> bool: ...
    def add_peer(self, peer: str, address: str) -> None: ...
    def drop_peer(self, peer: str) -> None: ...
    def connected(self, peer: str) -> bool: ...


class _Route:
    """The way to one peer through another. token: the peer's, None until it has given one."""

    __slots__ = ("asked_at", "nonce", "token", "via")

    def __init__(self, via: str, nonce: int, now: float) -> None:
        self.via = via
        self.nonce = nonce
        self.asked_at = now
        self.token: int | None = None


class Routes:
    """The links of one node, and what goes round them.

    members: ids of all others.  up, down: a peer can be reached that could not, or the other way round, by a route.  congested: a peer
    whose route has become full, or has drained.  receive: takes a message that came by a route, as if its sender's link had brought it.
    vet: raises Malformed for a message that no member sends.  introduce: tells a peer where this node stands.  random_bits: chance.
    """

    def __init__(
        self,
        node_id: str,
        links: DirectLinks,
        metrics: ReplicationMetrics,
        *,
        members: Callable[[], Collection[str]],
        up: Callable[[str], None],
        down: Callable[[str], None],
        congested: Callable[[str, bool], None],
        receive: Callable[[str, Message], None],
        vet: Callable[[Message], None],
        introduce: Callable[[str], None],
        random_bits: Callable[[int], int],
    ) -> None:
        self._node_id = node_id
        self._links = links
        self._metrics = metrics
        self._members = members
        self._up = up
        self._down = down
        self._set_congested = congested
        self._receive = receive
        self._vet = vet
        self._introduce = introduce
        self._receiving = False
        self._random_bits = random_bits
        self._reaches: dict[str, tuple[frozenset[str], float]] = {}
        self._routes: dict[str, _Route] = {}
        self._granted: dict[str, int] = {}
        self._missing: dict[str, float] = {}
        self._full: set[str] = set()
        self._logged: set[str] = set()
        self._said_at: dict[tuple[str, ...], float] = {}
        self._looked_at = float("-inf")
        self._now = 0.0

    # -- as links ----------------------------------------------------------------------------------------------------

    @property
    def addresses(self) -> dict[str, str]:
        """Where each peer is dialled."""
        return self._links.addresses

    def add_peer(self, peer: str, address: str) -> None:
        """Begin to dial `peer`."""
        self._links.add_peer(peer, address)

    def drop_peer(self, peer: str) -> None:
        """`peer` is no member any more."""
        self._links.drop_peer(peer)
        self._missing.pop(peer, None)
        self._granted.pop(peer, None)
        self._reaches.pop(peer, None)

    def connected(self, peer: str) -> bool:
        """Whether messages can be sent to `peer`."""
        return self._links.connected(peer) or self.via(peer) is not None

    def via(self, peer: str) -> str | None:
        """The member through which messages go to `peer`; None when they go directly, or not at all."""
        route = self._routes.get(peer)
        open_ = route is not None and route.token is not None and not self._links.connected(peer)
        return route.via if open_ and route is not None else None

    def send(self, peer: str, message: Message) -> bool:
        """Hand a message to the link, or to the route; False when there is neither at the moment."""
        if self._links.connected(peer):
            return self._links.send(peer, message)
        route = self._routes.get(peer)
        if route is None or route.token is None:
            return False
        return self._links.send(route.via, self._to(peer, "relay") | {"token": route.token, "message": message})

    def _to(self, peer: str, kind: str) -> Message:
        return {"type": kind, "to": peer, "from": self._node_id}

    # -- who reaches whom --------------------------------------------------------------------------------------------

    def reaches(self, speaks: Callable[[str], bool]) -> tuple[str, ...]:
        """The members that this node has links to and that understand routes: for the others to know."""
        return tuple(sorted(peer for peer in self._members() if self._links.connected(peer) and speaks(peer)))

    def on_reaches(self, peer: str, reached: Collection[str], now: float) -> None:
        """`peer` says which members it reaches over links of its own."""
        self._reaches[peer] = (frozenset(reached), now)

    def direct_up(self, peer: str) -> None:
        """The link to `peer` stands."""
        self._missing.pop(peer, None)
        if self._routes.pop(peer, None) is not None:
            self._set_congested(peer, False)
        if peer in self._logged:
            self._logged.discard(peer)
            log.info("%s is reached directly again", peer)

    def direct_down(self, peer: str) -> None:
        """The link to `peer` is gone."""
        self._full.discard(peer)

    def on_introduction(self, peer: str) -> None:
        """A process of `peer` introduces itself: if over a link, what comes by a route from now on may be of an earlier one."""
        if not self._receiving:
            self._granted.pop(peer, None)

    def peer_congested(self, peer: str, congested: bool) -> None:
        """The link to `peer` is full, or has drained: so are the routes through it."""
        (self._full.add if congested else self._full.discard)(peer)
        for target, route in self._routes.items():
            if route.via == peer and route.token is not None:
                self._set_congested(target, congested)

    def drive(self, now: float) -> None:
        """Find ways to those that have no link, and give up those that lead nowhere any more."""
        self._now = now
        if now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        members = set(self._members())
        for peer in [peer for peer, route in self._routes.items() if not self._leads(peer, route, members)]:
            self._close(peer)
        for peer in sorted(members):
            route = self._routes.get(peer)
            if self._links.connected(peer) or now - self._missing.setdefault(peer, now) < _MISSING_S:
                continue
            if route is not None and (route.token is not None or now - route.asked_at < ASK_S):
                continue
            found = self._next(peer, members, None if route is None else route.via)
            if found is None:
                continue
            route = self._routes[peer] = _Route(found, self._random_bits(61), now)
            self._links.send(found, self._to(peer, "relay_ask") | {"nonce": route.nonce})
        self._metrics.peers_by_relay = sum(route.token is not None for route in self._routes.values())

    def _leads(self, peer: str, route: _Route, members: set[str]) -> bool:
        return peer in members and self._may_lead(peer, route.via, members)

    def _may_lead(self, peer: str, through: str, members: set[str]) -> bool:
        reached, at = self._reaches.get(through, (frozenset(), float("-inf")))
        return (
            through in members
            and through != peer
            and self._links.connected(through)
            and peer in reached
            and self._now - at < FRESH_S
        )

    def _next(self, peer: str, members: set[str], last: str | None) -> str | None:
        """The member after the one that was tried last, of those that say they reach `peer`."""
        able = sorted(each for each in members if self._may_lead(peer, each, members))
        return next((each for each in able if last is not None and each > last), able[0] if able else None)

    def _close(self, peer: str) -> None:
        route = self._routes.pop(peer)
        if route.token is not None and not self._links.connected(peer):
            self._set_congested(peer, False)
            self._down(peer)

    # -- messages ----------------------------------------------------------------------------------------------------

    def on_message(self, sender: str, message: Message) -> None:
        """A message of a route, from whoever this node has a link with. Raises Malformed."""
        target, origin = message["to"], message["from"]
        if target != self._node_id:
            self._pass_on(sender, target, origin, message)
        elif origin in self._members():
            getattr(self, f"_on_{message['type']}")(sender, origin, message)

    def _pass_on(self, sender: str, target: str, origin: str, message: Message) -> None:
        if origin != sender:
            # Never a second hop: so nothing goes round in circles.
            raise Malformed("a message to be passed on of another node than the one that sent it")
        if "message" in message:
            self._vet(message["message"])
        if target not in self._members() or target in self._full or not self._links.send(target, message):
            self._metrics.relay_drops += 1
            return
        self._metrics.relayed += 1
        pair = tuple(sorted((sender, target)))
        if self._now - self._said_at.get(pair, float("-inf")) > _SAY_AGAIN_S:
            log.info("passes on what %s and %s tell each other: there is no link between them", *pair)
        self._said_at[pair] = self._now

    def _on_relay_ask(self, sender: str, origin: str, message: Message) -> None:
        token = self._granted[origin] = self._random_bits(61)
        answer = self._to(origin, "relay_open") | {"nonce": message["nonce"], "token": token}
        self._links.send(origin if self._links.connected(origin) else sender, answer)
        if self.connected(origin):
            # It may have lost what it knew of this node with its link.
            self._introduce(origin)

    def _on_relay_open(self, sender: str, origin: str, message: Message) -> None:
        route = self._routes.get(origin)
        if route is None or route.nonce != message["nonce"] or self._links.connected(origin):
            return
        known, route.token = route.token, message["token"]
        if known is None:
            if origin not in self._logged:
                self._logged.add(origin)
                log.warning("%s cannot be reached directly: what this node tells it goes through %s", origin, route.via)
            self._up(origin)

    def _on_relay_closed(self, sender: str, origin: str, message: Message) -> None:
        route = self._routes.get(origin)
        if route is not None and route.token == message["token"]:
            self._close(origin)

    def _on_relay(self, sender: str, origin: str, message: Message) -> None:
        if self._granted.get(origin) != message["token"]:
            closed = self._to(origin, "relay_closed") | {"token": message["token"]}
            self._links.send(origin if self._links.connected(origin) else sender, closed)
            return
        inner = message["message"]
        self._receiving = True
        try:
            self._vet(inner)
            self._receive(origin, inner)
        except Malformed as error:
            # The link is that of somebody who only passed it on.
            del self._granted[origin]
            self._metrics.peer_messages_refused += 1
            log.error("closed the route from %s through %s: broken message (%s)", origin, sender, error)
        finally:
            self._receiving = False

"""The links of a node: which peers it dials, which connections of theirs stand, and what becomes of both.

Each node dials every peer and sends on the connection it dialled, so a connection has one direction of messages and duplicates
cannot happen: a newer connection of the same peer replaces the older one. Names are resolved at every dial. What the messages
mean is not known here.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import cast

from quorumq.cluster import codec, messages, tls
from quorumq.cluster.addresses import parted
from quorumq.cluster.config import ClusterConfig
from quorumq.cluster.discovery import Who
from quorumq.cluster.frames import Message
from quorumq.cluster.handshake import (
    HANDSHAKE_S,
    TLS_HELLO,
    Dialled,
    Inbound,
    Introductions,
    LinkListener,
    Question,
)

log = logging.getLogger("quorumq.peers")

_PING_S = 0.25
_SILENCE_S = 3.0
_STOP_S = 1.0
_RETRY_FIRST_S, _RETRY_MOST_S = 0.05, 1.0
_COMPLAIN_S = 30.0
_COMPLAINTS_MAX = 1000
_UNPROVEN_MAX = 256
"""Connections that have not proved themselves yet, from their first byte on and at most; a further one takes the place of the
oldest one of the address that has most of them."""
_CERTIFICATES_S = 5.0
_ENTRY_OVERHEAD = 4096
_PING = codec.dumps({"type": "ping"})


class AcceptedConnection(asyncio.Protocol):
    """The way in: a connection that somebody dialled, spoken to in TLS or without, counted until it has proved itself."""

    def __init__(self, links: Links) -> None:
        self.links = links
        self.inbound = Inbound(links, partial(links.proven, self))
        self.host = "?"
        self.raw: asyncio.Transport
        self._inner: asyncio.Protocol | None = None
        self._limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.raw = cast(asyncio.Transport, transport)
        name = transport.get_extra_info("peername")
        self.host = name[0] if isinstance(name, tuple) else "?"
        self.links.came(self)
        if self.links.config.tls_optional:
            # What it speaks shows in its first byte.
            self._limit = self.links.loop.call_later(HANDSHAKE_S, self.raw.abort)
        else:
            self._enter(over_tls=self.links.certificates is not None)

    def _enter(self, *, over_tls: bool) -> None:
        self._inner, links = self.inbound, self.links
        if over_tls:
            assert links.certificates is not None
            self._inner = tls.Acceptor(links.certificates.server, self.inbound, links.no_tls)
        self._inner.connection_made(self.raw)

    def data_received(self, data: bytes) -> None:
        if self._inner is None:
            self._end_limit()
            self._enter(over_tls=data[:1] == TLS_HELLO[:1])
        assert self._inner is not None
        self._inner.data_received(data)

    def _end_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()

    def connection_lost(self, error: Exception | None) -> None:
        self._end_limit()
        if self._inner is not None:
            self._inner.connection_lost(error)
        self.links.gone(self)

    def close(self, why: str) -> None:
        """End it, once what is under way is sent."""
        if self.inbound.transport is not None:
            self.inbound.close(why)
        else:
            self.raw.abort()


class Outbound(Dialled):
    """A connection to a peer: this node's own messages leave here, and only pongs come back."""

    def __init__(self, links: Links, link: Link, dialled: str) -> None:
        super().__init__(links, link.peer, dialled)
        self.link = link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.link.dialled = self
        super().connection_made(transport)

    def refused(self, code: str, reason: str) -> None:
        self.links.listener.refused(self.peer, code, reason)

    def welcome(self, message: Message) -> None:
        if message.get("member") is False:
            self.links.listener.refused(self.peer, "not_member", "this node is not a member")
        self.link.ready(self)

    def pause_writing(self) -> None:
        if self.established:
            self.links.listener.peer_congested(self.link.peer, True)

    def resume_writing(self) -> None:
        if self.established:
            self.links.listener.peer_congested(self.link.peer, False)

    def connection_lost(self, error: Exception | None) -> None:
        was_closing = self.closing
        super().connection_lost(error)
        self.link.lost(self, by_peer=not was_closing)


class Link:
    """This node's way to one peer: dials, dials again, and knows the connection that stands."""

    def __init__(self, links: Links, peer: str) -> None:
        self.links = links
        self.peer = peer
        self.connection: Outbound | None = None
        self.dialled: Outbound | None = None
        """The same, or one on which both have not proved themselves yet."""
        self._hurry = asyncio.Event()
        self._ended: asyncio.Event = asyncio.Event()
        self.task = links.loop.create_task(self._keep(), name=f"link to {peer}")

    async def _keep(self) -> None:
        wait = _RETRY_FIRST_S
        # Whoever is dialled dials back at once, and must not find the port still closed.
        await self.links.listening.wait()
        while True:
            self._ended.clear()
            self._hurry.clear()
            began = self.links.loop.time()
            if await self._dial():
                await self._ended.wait()
            if self.links.loop.time() - began > _RETRY_MOST_S:
                wait = _RETRY_FIRST_S
            try:
                async with asyncio.timeout(wait * random.uniform(0.5, 1.0)):
                    await self._hurry.wait()
                # It is there, so that the next pause need not be as long as for one that has been away all this time.
                wait = _RETRY_FIRST_S
            except TimeoutError:
                wait = min(wait * 2, _RETRY_MOST_S)

    async def _dial(self) -> bool:
        address = self.links.addresses.get(self.peer)
        if address is None:
            return False
        return await self.links.dial(address, lambda: Outbound(self.links, self, address), self.peer)

    def hurry(self) -> None:
        """The peer is there: do not wait out the pause before the next dial."""
        self._hurry.set()

    def ready(self, connection: Outbound) -> None:
        assert connection.transport is not None
        connection.transport.set_write_buffer_limits(high=self.links.config.send_buffer_bytes_max)
        self.connection = connection
        log.info("connected to %s at %s%s", self.peer, connection.address, " over TLS" if connection.over_tls else "")
        self.links.listener.peer_up(self.peer)
        self._keep_alive(connection)

    def _keep_alive(self, connection: Outbound) -> None:
        if self.connection is not connection or connection.closing:
            return
        if self.links.loop.time() - connection.received_at > _SILENCE_S:
            log.warning("%s has been silent for %.0f s: dialling again", self.peer, _SILENCE_S)
            connection.closing = True
            assert connection.transport is not None
            connection.transport.abort()
            return
        connection.write(_PING)
        self.links.loop.call_later(_PING_S, self._keep_alive, connection)

    def lost(self, connection: Outbound, *, by_peer: bool) -> None:
        self._ended.set()
        if self.dialled is connection:
            self.dialled = None
        if self.connection is connection:
            self.connection = None
            log.info("lost the connection to %s", self.peer)
            self.links.listener.peer_down(self.peer)
            if by_peer:
                self.links.listener.peer_reset(self.peer)

    def close(self) -> None:
        self.task.cancel()
        if self.dialled is not None:
            self.dialled.close("closed")


class Links:
    """All links of one node. `send` never blocks; what cannot be sent is dropped: the protocol above repeats it."""

    def __init__(self, config: ClusterConfig, listener: LinkListener) -> None:
        self.config = config
        self.listener = listener
        self.introductions = Introductions(config, listener)
        self.loop = asyncio.get_running_loop()
        self.addresses: dict[str, str] = dict(config.peers)
        self._links: dict[str, Link] = {}
        self._inbound: dict[str, Inbound] = {}
        self._accepted: set[AcceptedConnection] = set()
        # In the order in which they came.
        self._unproven: dict[AcceptedConnection, None] = {}
        self._server: asyncio.Server | None = None
        self.listening = asyncio.Event()
        self.certificates: tls.Certificates | None = None
        self._certificates_timer: asyncio.TimerHandle | None = None
        if config.tls_cert is not None and config.tls_key is not None and config.tls_ca is not None:
            self.certificates = tls.Certificates(config.tls_cert, config.tls_key, config.tls_ca)
        self._complained: dict[str, float] = {}

    async def start(self) -> None:
        """Listen, and dial every peer. Raises OSError when the port is taken."""
        host, port = parted(self.config.listen)
        self._server = await self.loop.create_server(
            lambda: AcceptedConnection(self), host or None, int(port), reuse_address=True
        )
        self.listening.set()
        self._look_at_certificates()

    def _look_at_certificates(self) -> None:
        if self.certificates is not None:
            self.certificates.refresh()
            self._certificates_timer = self.loop.call_later(_CERTIFICATES_S, self._look_at_certificates)

    def no_tls(self, address: str, error: Exception) -> None:
        """A handshake of TLS failed that somebody else began."""
        self.complain(f"refused somebody at {address}: TLS: {tls.reason(error)}")

    def came(self, connection: AcceptedConnection) -> None:
        """Somebody dialled this node, and has to prove who it is."""
        self._accepted.add(connection)
        self._unproven[connection] = None
        if len(self._unproven) > _UNPROVEN_MAX:
            counts = Counter(each.host for each in self._unproven)
            most = max(counts.values())
            crowd = next(each for each in self._unproven if counts[each.host] == most)
            del self._unproven[crowd]
            crowd.raw.abort()
            self.complain(f"refused somebody at {crowd.host}: more than {_UNPROVEN_MAX} connections prove nothing")

    def proven(self, connection: AcceptedConnection) -> None:
        """A connection is known to be a peer's."""
        self._unproven.pop(connection, None)

    def gone(self, connection: AcceptedConnection) -> None:
        """A connection that somebody dialled has ended."""
        self._accepted.discard(connection)
        self._unproven.pop(connection, None)
        if not connection.inbound.let_in:
            self.listener.peer_refused()

    async def stop(self) -> None:
        """Close everything, and wait until it is closed."""
        links, self._links = list(self._links.values()), {}
        for link in links:
            link.close()
        if self._server is not None:
            self._server.close()
        if self._certificates_timer is not None:
            self._certificates_timer.cancel()
        for connection in list(self._accepted):
            connection.close("stopping")
        cut_off_at = self.loop.time() + _STOP_S
        while self._accepted or any(link.dialled is not None for link in links):
            await asyncio.sleep(0.001)
            if self.loop.time() > cut_off_at:
                # Somebody does not read what was still to be sent.
                for connection in self._accepted:
                    connection.raw.abort()
                for each in (link.dialled for link in links):
                    if each is not None and each.transport is not None:
                        each.transport.abort()
        await asyncio.gather(*(link.task for link in links), return_exceptions=True)

    async def dial(self, address: str, protocol: Callable[[], Dialled], who: str) -> bool:
        """Open a connection; its handshake follows. Returns whether there is one."""
        host, port = parted(address)
        context = self.certificates.client if self.certificates is not None else None
        while True:
            try:
                async with asyncio.timeout(HANDSHAKE_S):
                    await self.loop.create_connection(protocol, host, int(port), ssl=context)
            except ssl.SSLError as error:
                if self.config.tls_optional and context is not None and tls.speaks_none(error):
                    # A certificate that is not accepted is no reason to do without: somebody would never learn of it.
                    context = None
                    continue
                self.complain(f"do not talk to {who} at {address}: TLS: {tls.reason(error)}")
                return False
            except (OSError, TimeoutError, ValueError) as error:
                log.debug("cannot reach %s at %s: %s", who, address, error)
                return False
            return True

    async def ask(self, address: str) -> Who | None:
        """Who is at `address`; None when nobody there has proved to know the secret."""
        question = Question(self, address)
        if not await self.dial(address, lambda: question, "a node"):
            return None
        try:
            # It ends by itself: with the answer, with a refusal, or when the time for a handshake is over.
            return await question.answer
        finally:
            question.close("nobody asks any more")

    def moved(self, peer: str, address: str) -> None:
        """`peer` was found at `address`: dial it there from now on."""
        if peer in self._links and self.addresses.get(peer) != address:
            log.info("%s is at %s now", peer, address)
            self.addresses[peer] = address
            self._links[peer].hurry()

    def add_peer(self, peer: str, address: str) -> None:
        """Begin to dial `peer`. An address that the configuration gives for it wins: it is the newer knowledge."""
        self.addresses[peer] = self.config.peers.get(peer, address)
        if peer != self.config.node_id and peer not in self._links:
            self._links[peer] = Link(self, peer)

    def drop_peer(self, peer: str) -> None:
        """Close the connections with `peer`, dial it no more and take none from it."""
        link = self._links.pop(peer, None)
        if link is not None:
            link.close()
        if peer not in self.config.peers:
            self.addresses.pop(peer, None)
        inbound = self._inbound.pop(peer, None)
        if inbound is not None:
            inbound.close("not a member any more")

    def send(self, peer: str, message: Message) -> bool:
        """Hand a message to the link; False when there is none at the moment."""
        link = self._links.get(peer)
        if link is None or link.connection is None:
            return False
        link.connection.write(codec.dumps(message))
        return True

    def connected(self, peer: str) -> bool:
        """Whether frames can be sent to `peer`."""
        link = self._links.get(peer)
        return link is not None and link.connection is not None

    def known(self, peer: str) -> bool:
        """Whether connections of `peer` are accepted."""
        return peer in self._links

    def deliver(self, peer: str, message: Message) -> None:
        """Pass a message on. Raises messages.Malformed for one that no handler could rely on."""
        messages.check(message, self.config.entry_bytes_max - _ENTRY_OVERHEAD)
        self.listener.message_received(peer, message)

    def inbound_ready(self, peer: str, connection: Inbound) -> None:
        """`peer` has dialled and proved itself; its older connection, if any, is void."""
        old, self._inbound[peer] = self._inbound.get(peer), connection
        if old is not None and old is not connection:
            old.close("replaced")
        self._links[peer].hurry()

    def inbound_lost(self, connection: Inbound) -> None:
        """A connection ended; when it was the peer's present one, the peer's process may have died."""
        peer = connection.peer
        if peer is not None and self._inbound.get(peer) is connection:
            del self._inbound[peer]
            self.listener.peer_reset(peer)

    def complain(self, text: str, about: str = "") -> None:
        """Log a refusal, at most every half minute for the same peer and matter: a refused peer dials for ever.

        about: the matter, where the text says something different each time. Strangers count as one peer, whatever they call
        themselves.
        """
        now = self.loop.time()
        # Without the address, whose port is another one each time.
        words, _, rest = text.partition(" at ")
        who = next((word for word in words.split() if word in self._links), "somebody")
        key = f"{who} {about or rest.partition(' ')[2]}"
        if now - self._complained.get(key, float("-inf")) > _COMPLAIN_S:
            if len(self._complained) > _COMPLAINTS_MAX:
                self._complained.clear()
            self._complained[key] = now
            log.error("%s", text)

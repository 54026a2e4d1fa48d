"""Frames between the members of a cluster, over TCP or TLS, in msgpack, between nodes that have proved who they are.

Each node dials every peer and sends on the connection it dialled, so a connection has one direction of messages and duplicates
cannot happen: a newer connection of the same peer replaces the older one. Names are resolved at every dial. What the messages
mean is not known here.

A frame is `length u32 big endian · msgpack map`. The first frames are the handshake: HELLO and CHALLENGE carry protocol version,
cluster and nonces; then the dialling side proves the shared secret by HMAC-SHA256 over both nonces and both names, and only to one that
has proved it the accepting side gives its own proof: a stranger that dials gets nothing against which to try secrets. A HELLO
to nobody in particular asks who the other is; it gets that answered and no connection.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import random
import secrets
import ssl
import struct
from collections.abc import Callable
from typing import Any, Protocol, cast

import msgspec

from cluster import codec, messages, tls
from cluster.config import ClusterConfig
from cluster.discovery import Who

log = logging.getLogger("quorumq.peers")

Message = dict[str, Any]

PROTOCOL = 2
_LENGTH = struct.Struct(">I")
_HANDSHAKE_BYTES_MAX = 4096
_ANSWER_BYTES_MAX = 64 << 10
_HANDSHAKE_S = 5.0
_PING_S = 0.25
_SILENCE_S = 3.0
_STOP_S = 1.0
_RETRY_FIRST_S, _RETRY_MOST_S = 0.05, 1.0
_COMPLAIN_S = 30.0
_COMPLAINTS_MAX = 1000
_UNPROVEN_MAX = 256
"""Connections that have not proved themselves yet, at most; a further one takes the place of the oldest."""
_PONG_BUFFER_MAX = 64 << 10
_CERTIFICATES_S = 5.0
_ENTRY_OVERHEAD = 4096
# How a connection begins that speaks TLS: with a handshake, or with an alert.
_TLS_HELLO, _TLS_ALERT = b"\x16\x03", b"\x15\x03"
_PING = codec.dumps({"type": "ping"})
_PONG = codec.dumps({"type": "pong"})


class Listener(Protocol):
    """Who is told what happens on the links. Everything is called on the event loop."""

    def message_received(self, peer: str, message: Message) -> None: ...
    def peer_up(self, peer: str) -> None: ...
    def peer_down(self, peer: str) -> None: ...
    def peer_reset(self, peer: str) -> None: ...
    def frame_under_way(self, peer: str) -> None: ...
    def peer_congested(self, peer: str, congested: bool) -> None: ...
    def cluster_id(self) -> str: ...
    def refused(self, peer: str, code: str, reason: str) -> None: ...
    def was_removed(self, peer: str) -> bool: ...
    def may_adopt(self, peer: str) -> bool: ...
    def who(self) -> Who: ...


class FrameError(Exception):
    """Bytes that are not a frame of this protocol; says why."""


class Frames:
    """Cuts a stream of bytes into frames; raises FrameError for one above the bound."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._buffer = bytearray()
        self._wanted = _LENGTH.size

    @property
    def partial(self) -> bool:
        """Whether the beginning of a frame is held."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes in; returns the frames that are complete now."""
        buffer = self._buffer
        buffer += data
        if len(buffer) < self._wanted:
            return []
        frames: list[bytes] = []
        offset = 0
        while len(buffer) - offset >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, offset)
            if length > self.bytes_max:
                raise FrameError(f"a frame of {length} bytes is above the bound of {self.bytes_max}")
            end = offset + _LENGTH.size + length
            if end > len(buffer):
                self._wanted = end - offset
                break
            frames.append(bytes(memoryview(buffer)[offset + _LENGTH.size : end]))
            offset = end
        else:
            self._wanted = _LENGTH.size
        del buffer[:offset]
        return frames


def frame(body: bytes) -> bytes:
    """`body` with its length before it."""
    return _LENGTH.pack(len(body)) + body


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 63 and value.isprintable()


def _shown(value: Any) -> str:
    """What somebody else said, fit for one line of a log."""
    text = str(value)[:200] if isinstance(value, (str, int, float)) else type(value).__name__
    return "".join(each if each.isprintable() else "?" for each in text)


def _proof(secret: str, side: str, dialler: str, acceptor: str, cluster: str, nonces: bytes) -> bytes:
    text = "\0".join((f"quorumq-{PROTOCOL}", side, dialler, acceptor, cluster)).encode() + b"\0" + nonces
    return hmac.digest(secret.encode(), text, "sha256")


class _Connection(asyncio.Protocol):
    """What both ends share: frames in, frames out, and the end."""

    def __init__(self, links: Links) -> None:
        self.links = links
        self.transport: asyncio.Transport | None = None
        self.frames = Frames(_HANDSHAKE_BYTES_MAX)
        self.established = False
        self.closing = False
        self.address = "?"
        self._limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        name = transport.get_extra_info("peername")
        self.address = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "?"
        self._limit = self.links.loop.call_later(_HANDSHAKE_S, self._handshake_late)

    def ended(self) -> None:
        """The connection is no more: nothing shall hold on to it."""
        self.closing = True
        if self._limit is not None:
            self._limit.cancel()

    def _handshake_late(self) -> None:
        if not self.established and not self.closing:
            self.close("no handshake in time")

    def write(self, body: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(frame(body))

    def send(self, message: Message) -> None:
        self.write(codec.dumps(message))

    def data_received(self, data: bytes) -> None:
        try:
            for body in self.frames.feed(data):
                if self.closing:
                    return
                self.frame_received(body)
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, FrameError) as error:
            # A broken frame says nothing about the others: this connection ends, and nothing else does. The error's own
            # text may quote what was in the frame; that of ours does not.
            why = str(error) if isinstance(error, (FrameError, messages.Malformed)) else type(error).__name__
            self.links.complain(f"closed the connection with {self.name}: broken frame ({why})", "broken frame")
            self.close("broken frame")

    @property
    def name(self) -> str:
        return self.address

    def frame_received(self, body: bytes) -> None:
        raise NotImplementedError

    def close(self, why: str) -> None:
        if self.transport is not None and not self.closing:
            # What is still to be sent goes out first, but not to somebody who does not read it.
            self.transport.close()
            if self._limit is not None:
                self._limit.cancel()
            self._limit = self.links.loop.call_later(_HANDSHAKE_S, self.transport.abort)
        self.closing = True

    def refuse(self, code: str, reason: str, proof: bytes = b"") -> None:
        self.send(
            {"type": "refused", "code": code, "reason": reason, "from": self.links.config.node_id, "proof": proof}
        )
        self.close(reason)

    def misnamed(self, *names: str) -> str | None:
        """Why the other side's certificate is not that of a node with one of these names, or None."""
        assert self.transport is not None
        session = self.transport.get_extra_info("ssl_object")
        if session is None or not self.links.config.tls_names:
            return None
        return tls.misnamed(session, names)


class _Inbound(_Connection):
    """A connection that a peer dialled: its messages arrive here."""

    peer: str | None = None

    def __init__(self, links: Links) -> None:
        super().__init__(links)
        self._nonces = b""
        self._pending = ""
        self._asks = False
        self._address_given = ""
        self._heard = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.links.accepted(self)

    @property
    def name(self) -> str:
        return f"{self.peer} at {self.address}" if self.peer else f"somebody at {self.address}"

    def frame_received(self, body: bytes) -> None:
        message = codec.loads(body)
        kind = message["type"]
        if self.established:
            assert self.peer is not None
            if kind != "ping":
                self.links.deliver(self.peer, message)
            elif self.transport is not None and self.transport.get_write_buffer_size() < _PONG_BUFFER_MAX:
                self.write(_PONG)
        elif kind == "hello" and not self._pending:
            self._hello(message)
        elif kind == "proof" and self._pending:
            self._prove(message)
        else:
            raise FrameError("not a handshake")

    def data_received(self, data: bytes) -> None:
        if not self._heard and data[:2] == _TLS_HELLO:
            self.links.complain(f"refused {self.name}: it speaks TLS, and this node has no certificates")
            self.refuse("tls", "this node has no certificates and does not speak TLS")
            return
        self._heard = True
        super().data_received(data)
        if self.established and self.peer is not None and self.frames.partial:
            self.links.listener.frame_under_way(self.peer)

    def _hello(self, message: Message) -> None:
        links, config = self.links, self.links.config
        dialler, nonce = message["from"], message["nonce"]
        if not isinstance(nonce, bytes) or len(nonce) != 16 or not _is_name(dialler):
            raise FrameError("not a handshake")
        refusal = links.unsuitable(message)
        if refusal is None and message["to"] not in ("", config.node_id):
            refusal = ("other_node", f"this is {config.node_id}, not {_shown(message['to'])}")
        if refusal is not None:
            links.complain(f"refused {dialler} at {self.address}: {refusal[1]}", refusal[0])
            self.refuse(*refusal)
            return
        mine = secrets.token_bytes(16)
        self._nonces = nonce + mine
        self._pending = dialler
        self._asks = message["to"] == ""
        self._address_given = _shown(message.get("address", ""))
        self.send(
            {
                "type": "challenge",
                "protocol": PROTOCOL,
                "cluster": config.cluster_name,
                "cluster_id": links.listener.cluster_id(),
                "from": config.node_id,
                "address": config.peers[config.node_id],
                "nonce": mine,
            }
        )

    def _proof_of(self, side: str) -> bytes:
        config = self.links.config
        return _proof(config.secret, side, self._pending, config.node_id, config.cluster_name, self._nonces)

    def _prove(self, message: Message) -> None:
        links, dialler, proof = self.links, self._pending, message["proof"]
        if not isinstance(proof, bytes) or not hmac.compare_digest(proof, self._proof_of("dialler")):
            links.complain(f"refused {dialler} at {self.address}: it does not know our secret")
            self.refuse("secret", "wrong cluster secret")
            return
        links.proven(self)
        mine = self._proof_of("acceptor")
        # The address that it gives is its own word: where this node knows one itself, only that counts.
        wrong = self.misnamed(dialler, links.addresses.get(dialler, self._address_given))
        if wrong is not None:
            links.complain(f"refused {dialler} at {self.address}: {wrong}")
            self.refuse("certificate", wrong, mine)
            return
        if self._asks:
            self.send({"type": "welcome", "proof": mine, "who": msgspec.to_builtins(links.listener.who())})
            self.close("answered")
            return
        if not links.known(dialler) and links.listener.may_adopt(dialler):
            # An empty node knows only the configured peers; the leader may be another by now.
            links.add_peer(dialler, self._address_given)
        if not links.known(dialler):
            links.complain(f"refused {dialler} at {self.address}: it is not a member of this cluster")
            if links.listener.was_removed(dialler):
                self.refuse("removed", f"{dialler} was removed from this cluster", mine)
            else:
                self.refuse("not_member", f"{dialler} is not a member of this cluster", mine)
            return
        self.peer = dialler
        self.established = True
        self.frames.bytes_max = links.config.frame_bytes_max
        self.send({"type": "welcome", "proof": mine})
        if links.config.discover and not links.connected(dialler):
            links.moved(dialler, self._address_given)
        links.inbound_ready(dialler, self)

    def connection_lost(self, error: Exception | None) -> None:
        self.ended()
        self.links.inbound_lost(self)


class _Dialled(_Connection):
    """A connection that this node dialled, until both sides have proved themselves.

    peer: who is to be there, or empty to ask whoever is.  dialled: the `host:port`.
    """

    def __init__(self, links: Links, peer: str, dialled: str) -> None:
        super().__init__(links)
        self.peer = peer
        self.dialled = dialled
        self._nonce = secrets.token_bytes(16)
        self._expected = b""
        self._heard = False
        self.heard_at = links.loop.time()

    @property
    def name(self) -> str:
        return f"{self.peer or 'a node'} at {self.address}"

    def data_received(self, data: bytes) -> None:
        if not self._heard and data[:2] == _TLS_ALERT:
            self.links.complain(f"{self.name} refused this node: it speaks TLS only, and this node has no certificates")
            self.close("TLS")
            return
        self._heard = True
        super().data_received(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        config = self.links.config
        self.send(
            {
                "type": "hello",
                "protocol": PROTOCOL,
                "cluster": config.cluster_name,
                "cluster_id": self.links.listener.cluster_id(),
                "from": config.node_id,
                "to": self.peer,
                "address": config.peers[config.node_id],
                "nonce": self._nonce,
            }
        )

    def frame_received(self, body: bytes) -> None:
        message = codec.loads(body)
        kind = message["type"]
        self.heard_at = self.links.loop.time()
        if kind == "pong" and self.established:
            return
        if kind == "refused" and not self.established:
            # What somebody says who has not proved to be the peer is worth a line in the log, and nothing else.
            code = _shown(message["code"]) if self._proves(message.get("proof")) else "unproven"
            reason = _shown(message["reason"])
            self.links.complain(f"{self.name} refused this node: {reason}")
            self.refused(code, reason)
            self.close(reason)
        elif kind == "challenge" and not self._expected:
            self._challenged(message)
        elif kind == "welcome" and not self.established and self._expected:
            if self._proves(message.get("proof")):
                self.established = True
                self.welcome(message)
            else:
                self._distrust("it does not know our secret")
        else:
            raise FrameError(f"unexpected {_shown(kind)}")

    def _proves(self, proof: Any) -> bool:
        return bool(self._expected) and isinstance(proof, bytes) and hmac.compare_digest(proof, self._expected)

    def _challenged(self, message: Message) -> None:
        config, other = self.links.config, message["from"]
        refusal = self.links.unsuitable(message)
        if not _is_name(other) or not isinstance(message["nonce"], bytes):
            raise FrameError("not a handshake")
        if refusal is not None:
            self._distrust(refusal[1])
            return
        # Somebody found by a name is dialled at a bare address: what it says of its own is all there is to compare.
        wrong = self.misnamed(other, self.dialled if self.peer else _shown(message.get("address", "")))
        if wrong is None and self.peer not in ("", other):
            wrong = f"this is {other}"
        if wrong is not None:
            self._distrust(wrong)
            return
        nonces = self._nonce + message["nonce"]
        self._expected = _proof(config.secret, "acceptor", config.node_id, other, config.cluster_name, nonces)
        proof = _proof(config.secret, "dialler", config.node_id, other, config.cluster_name, nonces)
        self.send({"type": "proof", "proof": proof})

    def _distrust(self, why: str) -> None:
        self.links.complain(f"do not talk to {self.name}: {why}")
        self.close(why)

    def refused(self, code: str, reason: str) -> None:
        """The other side sent this node away; `code` is `unproven` when it did not prove itself."""

    def welcome(self, message: Message) -> None:
        """Both sides have proved themselves."""
        raise NotImplementedError

    def connection_lost(self, error: Exception | None) -> None:
        if isinstance(error, ssl.SSLError) and not self.established:
            self.links.complain(f"{self.name} refused this node: TLS: {tls.reason(error)}")
        elif self.links.certificates is not None and not self._heard and not self.closing:
            # In TLS 1.3 this side is done before the other has judged the certificate, and then the other may just hang up.
            self.links.complain(
                f"{self.name} hung up after the TLS handshake: it may not accept this node's certificate"
            )
        self.ended()


class _Question(_Dialled):
    """A connection that asks who is there, and ends with the answer."""

    def __init__(self, links: Links, dialled: str) -> None:
        super().__init__(links, "", dialled)
        self.frames.bytes_max = _ANSWER_BYTES_MAX
        self.answer: asyncio.Future[Who | None] = links.loop.create_future()

    def welcome(self, message: Message) -> None:
        who = msgspec.convert(message["who"], Who)
        if not self.answer.done():
            self.answer.set_result(who)
        self.close("answered")

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        if not self.answer.done():
            self.answer.set_result(None)


class _Outbound(_Dialled):
    """A connection to a peer: this node's own messages leave here, and only pongs come back."""

    def __init__(self, links: Links, link: _Link, dialled: str) -> None:
        super().__init__(links, link.peer, dialled)
        self.link = link

    def refused(self, code: str, reason: str) -> None:
        self.links.listener.refused(self.peer, code, reason)

    def welcome(self, message: Message) -> None:
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


class _Link:
    """This node's way to one peer: dials, dials again, and knows the connection that stands."""

    def __init__(self, links: Links, peer: str) -> None:
        self.links = links
        self.peer = peer
        self.connection: _Outbound | None = None
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
        return await self.links.dial(address, lambda: _Outbound(self.links, self, address), self.peer)

    def hurry(self) -> None:
        """The peer is there: do not wait out the pause before the next dial."""
        self._hurry.set()

    def ready(self, connection: _Outbound) -> None:
        assert connection.transport is not None
        connection.transport.set_write_buffer_limits(high=self.links.config.send_buffer_bytes_max)
        self.connection = connection
        log.info("connected to %s at %s", self.peer, connection.address)
        self.links.listener.peer_up(self.peer)
        self._keep_alive(connection)

    def _keep_alive(self, connection: _Outbound) -> None:
        if self.connection is not connection or connection.closing:
            return
        if self.links.loop.time() - connection.heard_at > _SILENCE_S:
            log.warning("%s has been silent for %.0f s: dialling again", self.peer, _SILENCE_S)
            connection.closing = True
            assert connection.transport is not None
            connection.transport.abort()
            return
        connection.write(_PING)
        self.links.loop.call_later(_PING_S, self._keep_alive, connection)

    def lost(self, connection: _Outbound, *, by_peer: bool) -> None:
        self._ended.set()
        if self.connection is connection:
            self.connection = None
            log.info("lost the connection to %s", self.peer)
            self.links.listener.peer_down(self.peer)
            if by_peer:
                self.links.listener.peer_reset(self.peer)

    def close(self) -> None:
        self.task.cancel()
        if self.connection is not None:
            self.connection.close("closed")


class Links:
    """All links of one node. `send` never blocks; what cannot be sent is dropped: the protocol above repeats it."""

    def __init__(self, config: ClusterConfig, listener: Listener) -> None:
        self.config = config
        self.listener = listener
        self.loop = asyncio.get_running_loop()
        self.addresses: dict[str, str] = dict(config.peers)
        self._links: dict[str, _Link] = {}
        self._inbound: dict[str, _Inbound] = {}
        self._connections: set[_Inbound] = set()
        # In the order in which they came.
        self._unproven: dict[_Inbound, asyncio.Transport] = {}
        self._server: asyncio.Server | None = None
        self.listening = asyncio.Event()
        self.certificates: tls.Certificates | None = None
        self._certificates_timer: asyncio.TimerHandle | None = None
        if config.tls_cert is not None and config.tls_key is not None and config.tls_ca is not None:
            self.certificates = tls.Certificates(config.tls_cert, config.tls_key, config.tls_ca)
        self._complained: dict[str, float] = {}

    async def start(self) -> None:
        """Listen, and dial every peer. Raises OSError when the port is taken."""
        host, _, port = self.config.listen.rpartition(":")
        self._server = await self.loop.create_server(
            self._accept, host.strip("[]") or None, int(port), reuse_address=True
        )
        self.listening.set()
        self._look_at_certificates()

    def _look_at_certificates(self) -> None:
        if self.certificates is not None:
            self.certificates.refresh()
            self._certificates_timer = self.loop.call_later(_CERTIFICATES_S, self._look_at_certificates)

    def _accept(self) -> asyncio.Protocol:
        connection = _Inbound(self)
        if self.certificates is None:
            return connection
        return tls.Acceptor(self.certificates.server, connection, self._no_tls)

    def _no_tls(self, address: str, error: Exception) -> None:
        self.complain(f"refused somebody at {address}: TLS: {tls.reason(error)}")

    def accepted(self, connection: _Inbound) -> None:
        """Somebody dialled this node, and has to prove who it is."""
        assert connection.transport is not None
        self._connections.add(connection)
        self._unproven[connection] = connection.transport
        if len(self._unproven) > _UNPROVEN_MAX:
            self._unproven.pop(next(iter(self._unproven))).abort()

    def proven(self, connection: _Inbound) -> None:
        """A connection is known to be a peer's."""
        self._unproven.pop(connection, None)

    async def stop(self) -> None:
        """Close everything, and wait until it is closed."""
        links, self._links = list(self._links.values()), {}
        for link in links:
            link.close()
        if self._server is not None:
            self._server.close()
        if self._certificates_timer is not None:
            self._certificates_timer.cancel()
        for connection in list(self._connections):
            connection.close("stopping")
        cut_off_at = self.loop.time() + _STOP_S
        while self._connections or any(link.connection is not None for link in links):
            await asyncio.sleep(0.001)
            if self.loop.time() > cut_off_at:
                # Somebody does not read what was still to be sent.
                for each in (*self._connections, *(link.connection for link in links)):
                    if each is not None and each.transport is not None:
                        each.transport.abort()
        await asyncio.gather(*(link.task for link in links), return_exceptions=True)

    async def dial(self, address: str, protocol: Callable[[], _Dialled], who: str) -> bool:
        """Open a connection; its handshake follows. Returns whether there is one."""
        host, _, port = address.rpartition(":")
        context = self.certificates.client if self.certificates is not None else None
        try:
            async with asyncio.timeout(_HANDSHAKE_S):
                await self.loop.create_connection(protocol, host.strip("[]"), int(port), ssl=context)
        except ssl.SSLError as error:
            self.complain(f"do not talk to {who} at {address}: TLS: {tls.reason(error)}")
            return False
        except (OSError, TimeoutError, ValueError) as error:
            log.debug("cannot reach %s at %s: %s", who, address, error)
            return False
        return True

    async def ask(self, address: str) -> Who | None:
        """Who is at `address`; None when nobody there has proved to know the secret."""
        question = _Question(self, address)
        if not await self.dial(address, lambda: question, "a node"):
            return None
        # It ends by itself: with the answer, with a refusal, or when the time for a handshake is over.
        return await question.answer

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
            self._links[peer] = _Link(self, peer)

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

    def unsuitable(self, message: Message) -> tuple[str, str] | None:
        """Why the sender of a HELLO or CHALLENGE does not belong to this node's cluster, as (code, reason)."""
        if message["protocol"] != PROTOCOL:
            return ("protocol", f"protocol version {_shown(message['protocol'])}, ours is {PROTOCOL}")
        if message["cluster"] != self.config.cluster_name:
            return ("cluster", f"cluster name {_shown(message['cluster'])!r}, ours is {self.config.cluster_name!r}")
        mine, theirs = self.listener.cluster_id(), message["cluster_id"]
        if mine and theirs and mine != theirs:
            return ("cluster_id", f"cluster id {_shown(theirs)}, ours is {mine}: the data is of another cluster")
        return None

    def inbound_ready(self, peer: str, connection: _Inbound) -> None:
        """`peer` has dialled and proved itself; its older connection, if any, is void."""
        old, self._inbound[peer] = self._inbound.get(peer), connection
        if old is not None and old is not connection:
            old.close("replaced")
        self._links[peer].hurry()

    def inbound_lost(self, connection: _Inbound) -> None:
        """A connection ended; when it was the peer's present one, the peer's process may have died."""
        self._connections.discard(connection)
        self._unproven.pop(connection, None)
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

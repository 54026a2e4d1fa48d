"""The handshake of two members, over TCP or TLS: who dials whom, and how both prove who they are.

HELLO and CHALLENGE carry protocol version, cluster and nonces; then the dialling side proves the shared secret by HMAC-SHA256 over
both nonces and both names, and only to one that has proved it the accepting side gives its own proof: a stranger that dials gets
nothing against which to try secrets. A HELLO to nobody in particular asks who the other is; it gets that answered and no connection.
While the secret is being changed two are good: the dialling side proves both, and the accepting side one that the other has proved.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import ssl
from collections.abc import Callable
from typing import Any, Protocol, cast

import msgspec

from quorumq.cluster import codec, messages, tls
from quorumq.cluster.config import ClusterConfig
from quorumq.cluster.discovery import Who
from quorumq.cluster.frames import FrameDecoder, FrameError, Message, frame
from quorumq.cluster.version import VERSION

log = logging.getLogger("quorumq.peers")

PROTOCOL = 2
PROTOCOL_OF_LEVELS = 3
"""The handshake of a node with a feature level in force: the same, but one that versions without levels refuse."""
HANDSHAKE_S = 5.0
_HANDSHAKE_BYTES_MAX = 4096
_ANSWER_BYTES_MAX = 64 << 10
_PONG_BUFFER_MAX = 64 << 10
# How a connection begins that speaks TLS: with a handshake, or with an alert.
TLS_HELLO, _TLS_ALERT = b"\x16\x03", b"\x15\x03"
_PONG = codec.dumps({"type": "pong"})
_PROOFS_MAX = 4


class LinkListener(Protocol):
    """Who is told what happens on the links. Everything is called on the event loop."""

    def message_received(self, peer: str, message: Message) -> None: ...
    def peer_up(self, peer: str) -> None: ...
    def peer_down(self, peer: str) -> None: ...
    def peer_reset(self, peer: str) -> None: ...
    def frame_under_way(self, peer: str) -> None: ...
    def peer_congested(self, peer: str, congested: bool) -> None: ...
    def cluster_id(self) -> str: ...
    def refused(self, peer: str, code: str, reason: str) -> None: ...
    def levels(self) -> tuple[int, int]: ...
    def peer_refused(self) -> None: ...
    def message_refused(self) -> None: ...
    def seated_at(self) -> int: ...
    def was_removed(self, peer: str, seated_at: int) -> bool: ...
    def may_adopt(self, peer: str, seated_at: int) -> bool: ...
    def who(self) -> Who: ...


class Owner(Protocol):
    """What a connection needs of the links that it belongs to."""

    config: ClusterConfig
    listener: LinkListener
    introductions: Introductions
    loop: asyncio.AbstractEventLoop
    addresses: dict[str, str]

    def complain(self, text: str, about: str = "") -> None: ...
    def known(self, peer: str) -> bool: ...
    def connected(self, peer: str) -> bool: ...
    def add_peer(self, peer: str, address: str) -> None: ...
    def moved(self, peer: str, address: str) -> None: ...
    def inbound_ready(self, peer: str, connection: Inbound) -> None: ...
    def inbound_lost(self, connection: Inbound) -> None: ...
    def deliver(self, peer: str, message: Message) -> None: ...


def is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 63 and value.isprintable()


def shown(value: Any) -> str:
    """What somebody else said, fit for one line of a log."""
    text = str(value)[:200] if isinstance(value, (str, int, float)) else type(value).__name__
    return "".join(each if each.isprintable() else "?" for each in text)


def proof_of(secret: str, side: str, dialler: str, acceptor: str, cluster: str, nonces: bytes) -> bytes:
    text = "\0".join((f"quorumq-{PROTOCOL}", side, dialler, acceptor, cluster)).encode() + b"\0" + nonces
    return hmac.digest(secret.encode(), text, "sha256")


class Introductions:
    """What a node says of itself in a handshake, and how it judges what others say of themselves."""

    def __init__(self, config: ClusterConfig, listener: LinkListener) -> None:
        self._config = config
        self._listener = listener
        # Addresses where the secret to stay is what counts: 0.1.0 looks at the first proof only.
        self._newest_first: set[str] = set()

    def introduction(self, kind: str, nonce: bytes) -> Message:
        """What both sides say of themselves first, in a HELLO and in a CHALLENGE; `unsuitable` judges it."""
        config = self._config
        return {
            "type": kind,
            "protocol": PROTOCOL_OF_LEVELS if self._listener.levels()[1] else PROTOCOL,
            "cluster": config.cluster_name,
            "cluster_id": self._listener.cluster_id(),
            "from": config.node_id,
            "address": config.peers[config.node_id],
            "nonce": nonce,
        }

    def secrets_for(self, address: str) -> tuple[str, ...]:
        """The secrets to prove at `address`, the first for those that look at one only.

        That is the one to go, as long as it is not refused: who knows one only has not been told the other yet.
        """
        known = self._config.secrets
        return known if address in self._newest_first else known[::-1]

    def other_secret(self, address: str) -> None:
        """The secret that was proved first at `address` was refused: begin with the other one the next time."""
        if len(self._config.secrets) > 1:
            self._newest_first ^= {address}

    def too_old(self, message: Message) -> str:
        """Why the sender of a HELLO may not join in: it does not know the feature level in force; empty when it does."""
        known, active = message.get("level", 0), self._listener.levels()[1]
        if active and not (type(known) is int and known >= active):
            version = shown(message.get("version", "")) or "a version before 0.2.0"
            return (
                f"this cluster is at feature level {active}, and {version} knows levels up to {shown(known)}: "
                "start a newer version with this data directory"
            )
        return ""

    def unsuitable(self, message: Message) -> tuple[str, str] | None:
        """Why the sender of a HELLO or CHALLENGE does not belong to this node's cluster, as (code, reason)."""
        if message["protocol"] not in (PROTOCOL, PROTOCOL_OF_LEVELS):
            return ("protocol", f"protocol version {shown(message['protocol'])}, ours is {PROTOCOL}")
        if message["cluster"] != self._config.cluster_name:
            return ("cluster", f"cluster name {shown(message['cluster'])!r}, ours is {self._config.cluster_name!r}")
        mine, theirs = self._listener.cluster_id(), message["cluster_id"]
        if mine and theirs and mine != theirs:
            return ("cluster_id", f"cluster id {shown(theirs)}, ours is {mine}: the data is of another cluster")
        return None


class PeerConnection(asyncio.Protocol):
    """What both ends share: frames in, frames out, and the end."""

    def __init__(self, links: Owner) -> None:
        self.links = links
        self.transport: asyncio.Transport | None = None
        self.frames = FrameDecoder(_HANDSHAKE_BYTES_MAX)
        self.established = False
        self.closing = False
        self.address = "?"
        self._limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        name = transport.get_extra_info("peername")
        self.address = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "?"
        self._limit = self.links.loop.call_later(HANDSHAKE_S, self._handshake_late)

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
            if self.established:
                self.links.listener.message_refused()
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
            self._limit = self.links.loop.call_later(HANDSHAKE_S, self.transport.abort)
        self.closing = True

    def refuse(self, code: str, reason: str, proof: bytes = b"") -> None:
        self.send(
            {"type": "refused", "code": code, "reason": reason, "from": self.links.config.node_id, "proof": proof}
        )
        self.close(reason)

    @property
    def over_tls(self) -> bool:
        return self.transport is not None and self.transport.get_extra_info("ssl_object") is not None

    def misnamed(self, *names: str) -> str | None:
        """Why the other side's certificate is not that of a node with one of these names, or None."""
        assert self.transport is not None
        session = self.transport.get_extra_info("ssl_object")
        if session is None or not self.links.config.tls_names:
            return None
        return tls.misnamed(session, names)


class Inbound(PeerConnection):
    """A connection that a peer dialled: its messages arrive here."""

    peer: str | None = None
    let_in = False

    def __init__(self, links: Owner, proven: Callable[[], None]) -> None:
        super().__init__(links)
        self._proven = proven
        self._nonces = b""
        self._pending = ""
        self._asks = False
        self._address_given = ""
        self._received = False
        self._level = ""

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
        if not self._received and data[:2] == TLS_HELLO and not self.over_tls:
            self.links.complain(f"refused {self.name}: it speaks TLS, and this node has no certificates")
            self.refuse("tls", "this node has no certificates and does not speak TLS")
            return
        self._received = True
        super().data_received(data)
        if self.established and self.peer is not None and self.frames.partial:
            self.links.listener.frame_under_way(self.peer)

    def _hello(self, message: Message) -> None:
        links, config = self.links, self.links.config
        dialler, nonce = message["from"], message["nonce"]
        if not isinstance(nonce, bytes) or len(nonce) != 16 or not is_name(dialler):
            raise FrameError("not a handshake")
        refusal = links.introductions.unsuitable(message)
        if refusal is None and "level" not in message and (reason := links.introductions.too_old(message)):
            # It would refuse the newer protocol of the answer, but it logs what it is told.
            refusal = ("level", reason)
        if refusal is None and message["to"] not in ("", config.node_id):
            refusal = ("other_node", f"this is {config.node_id}, not {shown(message['to'])}")
        if refusal is not None:
            links.complain(f"refused {dialler} at {self.address}: {refusal[1]}", refusal[0])
            self.refuse(*refusal)
            return
        self._level = links.introductions.too_old(message)
        mine = secrets.token_bytes(16)
        self._nonces = nonce + mine
        self._pending = dialler
        self._asks = message["to"] == ""
        self._address_given = shown(message.get("address", ""))
        self.send(links.introductions.introduction("challenge", mine))

    def _proof_of(self, side: str, secret: str) -> bytes:
        config = self.links.config
        return proof_of(secret, side, self._pending, config.node_id, config.cluster_name, self._nonces)

    def _secret_proved(self, message: Message) -> str | None:
        """The first of the good secrets that the other side has proved to know."""
        proofs = (message["proof"], *message.get("also", ()))[:_PROOFS_MAX]
        for secret in self.links.config.secrets:
            right = self._proof_of("dialler", secret)
            if any(isinstance(each, bytes) and hmac.compare_digest(each, right) for each in proofs):
                return secret
        return None

    def _prove(self, message: Message) -> None:
        links, dialler = self.links, self._pending
        secret = self._secret_proved(message)
        if secret is None:
            links.complain(f"refused {dialler} at {self.address}: it does not know our secret")
            self.refuse("secret", "wrong cluster secret")
            return
        self._proven()
        mine = self._proof_of("acceptor", secret)
        if self._level:
            links.complain(f"refused {dialler} at {self.address}: {self._level}")
            self.refuse("level", self._level, mine)
            return
        # The address that it gives is its own word: where this node knows one itself, only that counts.
        wrong = self.misnamed(dialler, links.addresses.get(dialler, self._address_given))
        if wrong is not None:
            links.complain(f"refused {dialler} at {self.address}: {wrong}")
            self.refuse("certificate", wrong, mine)
            return
        if self._asks:
            self.let_in = True
            self.send({"type": "welcome", "proof": mine, "who": msgspec.to_builtins(links.listener.who())})
            self.close("answered")
            return
        told = message.get("seated_at")
        seated_at = told if type(told) is int else 0  # version 0.1.0 says nothing
        if not links.known(dialler) and links.listener.may_adopt(dialler, seated_at):
            # An empty node knows only the configured peers; the leader may be another by now.
            links.add_peer(dialler, self._address_given)
        if not links.known(dialler):
            links.complain(f"refused {dialler} at {self.address}: it is not a member of this cluster")
            if links.listener.was_removed(dialler, seated_at):
                self.refuse("removed", f"{dialler} was removed from this cluster", mine)
            else:
                self.refuse("not_member", f"{dialler} is not a member of this cluster", mine)
            return
        self.peer = dialler
        self.established = self.let_in = True
        self.frames.bytes_max = links.config.frame_bytes_max
        # Whoever is listened to need not be a member; it could not tell that from a cluster without a leader.
        who = links.listener.who()
        self.send({"type": "welcome", "proof": mine, "member": not who.seated or dialler in who.members})
        if links.config.discover and not links.connected(dialler):
            links.moved(dialler, self._address_given)
        links.inbound_ready(dialler, self)

    def connection_lost(self, error: Exception | None) -> None:
        self.ended()
        self.links.inbound_lost(self)


class Dialled(PeerConnection):
    """A connection that this node dialled, until both sides have proved themselves.

    peer: who is to be there, or empty to ask whoever is.  dialled: the `host:port`.
    """

    def __init__(self, links: Owner, peer: str, dialled: str) -> None:
        super().__init__(links)
        self.peer = peer
        self.dialled = dialled
        self._nonce = secrets.token_bytes(16)
        self._expected: list[bytes] = []
        self._received = False
        self.received_at = links.loop.time()

    @property
    def name(self) -> str:
        return f"{self.peer or 'a node'} at {self.address}"

    def data_received(self, data: bytes) -> None:
        if not self._received and data[:2] == _TLS_ALERT:
            self.links.complain(f"{self.name} refused this node: it speaks TLS only, and this node has no certificates")
            self.close("TLS")
            return
        self._received = True
        super().data_received(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # The version is for those whom this node dials, and not for whoever dials it.
        mine = {"version": VERSION, "level": self.links.listener.levels()[0]}
        self.send(self.links.introductions.introduction("hello", self._nonce) | mine | {"to": self.peer})

    def frame_received(self, body: bytes) -> None:
        message = codec.loads(body)
        kind = message["type"]
        self.received_at = self.links.loop.time()
        if kind == "pong" and self.established:
            return
        if kind == "refused" and not self.established:
            # What somebody says who has not proved to be the peer is worth a line in the log, and nothing else.
            code = shown(message["code"]) if self._proves(message.get("proof")) else "unproven"
            reason = shown(message["reason"])
            self.links.complain(f"{self.name} refused this node: {reason}")
            if self._expected:
                self.links.introductions.other_secret(self.dialled)
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
            raise FrameError(f"unexpected {shown(kind)}")

    def _proves(self, proof: Any) -> bool:
        return isinstance(proof, bytes) and any(hmac.compare_digest(proof, each) for each in self._expected)

    def _challenged(self, message: Message) -> None:
        config, other = self.links.config, message["from"]
        refusal = self.links.introductions.unsuitable(message)
        if not is_name(other) or not isinstance(message["nonce"], bytes):
            raise FrameError("not a handshake")
        if refusal is not None:
            self._distrust(refusal[1])
            return
        # Somebody found by a name is dialled at a bare address: what it says of its own is all there is to compare.
        wrong = self.misnamed(other, self.dialled if self.peer else shown(message.get("address", "")))
        if wrong is None and self.peer not in ("", other):
            wrong = f"this is {other}"
        if wrong is not None:
            self._distrust(wrong)
            return
        known = self.links.introductions.secrets_for(self.dialled)

        def proofs(side: str) -> list[bytes]:
            nonces = self._nonce + message["nonce"]
            return [proof_of(each, side, config.node_id, other, config.cluster_name, nonces) for each in known]

        self._expected = proofs("acceptor")
        first, *also = proofs("dialler")
        seated_at = self.links.listener.seated_at()
        self.send({"type": "proof", "proof": first, "seated_at": seated_at, **({"also": also} if also else {})})

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
        elif self.over_tls and not self._received and not self.closing:
            # In TLS 1.3 this side is done before the other has judged the certificate, and then the other may just hang up.
            self.links.complain(
                f"{self.name} hung up after the TLS handshake: it may not accept this node's certificate"
            )
        self.ended()


class Question(Dialled):
    """A connection that asks who is there, and ends with the answer."""

    def __init__(self, links: Owner, dialled: str) -> None:
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

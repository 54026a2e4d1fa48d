"""Mutual TLS between members: this node's certificate, and the authority that members' certificates must come from.

Contexts are made anew when the files change, so that certificates are renewed without a restart; connections that stand keep
what they were made with. A certificate of the authority with names in it (SAN) is good for the nodes that it names; one
without is good for any. Who a peer is in particular is proved inside, by the handshake of transport.py.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from quorumq.cluster.addresses import parted
from quorumq.cluster.errors import ClusterError

log = logging.getLogger("quorumq.peers")

Stamp = tuple[tuple[int, int, int], ...]


class BadCertificates(ClusterError):
    """The files cannot be used; says which and why."""


class Certificates:
    """Contexts for both directions from three PEM files."""

    def __init__(self, cert: Path, key: Path, authority: Path) -> None:
        """Read the files. Raises BadCertificates."""
        self._cert, self._key, self._authority = cert, key, authority
        self._stamp = self._look()
        self.server, self.client = self._load()

    def _look(self) -> Stamp:
        """What changes when a file does: also when it is a link that points elsewhere now, as mounted secrets are."""
        try:
            found = [path.stat() for path in (self._cert, self._key, self._authority)]
        except OSError as error:
            raise BadCertificates(f"{error.filename} (PEER_TLS_…) cannot be read: {error.strerror}") from None
        return tuple((each.st_mtime_ns, each.st_size, each.st_ino) for each in found)

    def _load(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # Names are compared later (`misnamed`), when the id is known as well as the address.
        client.check_hostname = False
        for context in (server, client):
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_cert_chain(self._cert, self._key, password=no_password)
            except (OSError, ValueError) as error:
                files = f"PEER_TLS_CERT {self._cert} and PEER_TLS_KEY {self._key}"
                raise BadCertificates(f"{files} cannot be used: {reason(error)}") from None
            try:
                context.load_verify_locations(self._authority)
            except (OSError, ValueError) as error:
                raise BadCertificates(f"PEER_TLS_CA {self._authority} cannot be used: {reason(error)}") from None
        return server, client

    def refresh(self) -> bool:
        """Read the files again if they have changed; returns whether new ones are in use. Broken ones are not taken."""
        try:
            stamp = self._look()
            if stamp == self._stamp:
                return False
            self.server, self.client = self._load()
        except BadCertificates as error:
            # Perhaps half of a renewal: the files are looked at again until they fit.
            log.error("the peer certificates were changed, and the old ones stay in use: %s", error)
            return False
        self._stamp = stamp
        log.info("new peer certificates are in use")
        return True


def no_password() -> str:
    """Refuse a key that is encrypted, instead of OpenSSL, which would ask a person at the terminal. Raises ValueError."""
    raise ValueError("the key is encrypted, and there is no setting for its password")


def reason(error: BaseException) -> str:
    """What went wrong in TLS, in the words of its library but without its line numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def speaks_none(error: ssl.SSLError) -> bool:
    """Whether a handshake failed because the other side does not speak TLS at all."""
    return error.reason in _NOT_TLS


def misnamed(session: Any, names: Sequence[str]) -> str | None:
    """Why the certificate at the other end of `session` is not for any of `names`, or None when it is or names nobody.

    names: ids, hosts, or `host:port`. A certificate's `*.` stands for one label.
    """
    held = [value.lower() for kind, value in (session.getpeercert() or {}).get("subjectAltName", ()) if kind in _NAMES]
    wanted = {name.lower() for name in names} | {parted(name.lower())[0] for name in names}
    for name in wanted - {""}:
        if any(_is(name, each) for each in held):
            return None
    return f"its certificate is for {', '.join(sorted(held))[:200]}" if held else None


_NAMES = ("DNS", "IP Address")
# What OpenSSL says of bytes that are no record of TLS, by its version.
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"})


def _is(name: str, held: str) -> bool:
    if held.startswith("*."):
        return name.partition(".")[2] == held[2:]
    try:
        return ipaddress.ip_address(name) == ipaddress.ip_address(held)
    except ValueError:
        return name.rstrip(".") == held.rstrip(".")


_READ_BYTES = 256 << 10
_HANDSHAKE_S = 5.0


class Acceptor(asyncio.Protocol):
    """The accepting side of TLS between a connection and the protocol that speaks inside of it.

    The event loop's own servers say nothing of a handshake that failed, to neither side; here the other side gets its alert,
    and `failed(address, error)` is called.
    """

    def __init__(
        self, context: ssl.SSLContext, inner: asyncio.Protocol, failed: Callable[[str, Exception], None]
    ) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._inner = inner
        self._failed = failed
        self._ready = False
        self._limit: asyncio.TimerHandle | None = None
        self.raw: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.raw = cast(asyncio.Transport, transport)
        self._limit = asyncio.get_running_loop().call_later(_HANDSHAKE_S, self.raw.abort)

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        try:
            if not self._ready:
                self.session.do_handshake()
                self._ready = True
                self._end_limit()
                self.flush()
                self._inner.connection_made(Inside(self))
            while not self.raw.is_closing():
                plain = self.session.read(_READ_BYTES)
                if not plain:
                    self.raw.close()
                    return
                self._inner.data_received(plain)
        except ssl.SSLWantReadError:
            self.flush()
        except ssl.SSLError as error:
            # The alert says to the other side what was wrong.
            self.flush()
            if not self._ready:
                name = self.raw.get_extra_info("peername")
                self._failed(f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "?", error)
            self.raw.close()

    def flush(self) -> None:
        """Send what TLS has to send."""
        data = self._outgoing.read()
        if data and not self.raw.is_closing():
            self.raw.write(data)

    def _end_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()

    def connection_lost(self, error: Exception | None) -> None:
        self._end_limit()
        if self._ready:
            self._inner.connection_lost(error)


class Inside(asyncio.Transport):
    """What the inner protocol writes to."""

    def __init__(self, acceptor: Acceptor) -> None:
        super().__init__()
        self._acceptor = acceptor

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Encrypt and send."""
        if not self._acceptor.raw.is_closing():
            self._acceptor.session.write(data)
            self._acceptor.flush()

    def get_write_buffer_size(self) -> int:
        """Bytes not taken by the system yet."""
        return self._acceptor.raw.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """About the connection, or the session as `ssl_object`."""
        return self._acceptor.session if name == "ssl_object" else self._acceptor.raw.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """Whether it is being closed."""
        return self._acceptor.raw.is_closing()

    def close(self) -> None:
        """Close once everything is sent."""
        self._acceptor.raw.close()

    def abort(self) -> None:
        """Close at once."""
        self._acceptor.raw.abort()

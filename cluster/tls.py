"""Mutual TLS between members: this node's certificate, and the authority that members' certificates must come from.

Contexts are made anew when the files change, so that certificates are renewed without a restart; connections that stand keep
what they were made with. Every certificate of the authority counts as a member's, so it should be the cluster's own; who a
peer is in particular is proved inside, by the handshake of transport.py.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from cluster.errors import ClusterError

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
            raise BadCertificates(f"{error.filename} cannot be read: {error.strerror}") from None
        return tuple((each.st_mtime_ns, each.st_size, each.st_ino) for each in found)

    def _load(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # Names are not compared: members are dialled by addresses that come and go, and prove their ids themselves.
        client.check_hostname = False
        for context in (server, client):
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_cert_chain(self._cert, self._key, password=_no_password)
            except (OSError, ValueError) as error:
                raise BadCertificates(f"{self._cert} and {self._key} cannot be used: {reason(error)}") from None
            try:
                context.load_verify_locations(self._authority)
            except (OSError, ValueError) as error:
                raise BadCertificates(f"{self._authority} cannot be used: {reason(error)}") from None
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


def _no_password() -> str:
    # Without this OpenSSL would ask a person at the terminal.
    raise ValueError("the key is encrypted, and there is no setting for its password")


def reason(error: BaseException) -> str:
    """What went wrong in TLS, in the words of its library but without its line numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return getattr(error, "strerror", None) or str(error) or type(error).__name__

"""Certificate files as OpenSSL reads them: whether a pair can be used, for whom it is and until when, and whether the files changed.

Python's `ssl` reads files and tells little of what they hold. So a pair is tried out: a handshake in memory between a server that has it
and a client that trusts just this certificate, which then can be asked about it.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path

from quorumq.cluster.tls import no_password, reason

Stamp = tuple[tuple[int, int, int], ...]
# The first certificate of a chain is the server's own.
OWN = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
# X509_V_FLAG_NO_CHECK_TIME of OpenSSL: a certificate that has ended is told of as well.
NO_CHECK_TIME = 0x200000
NAMES = ("DNS", "IP Address")
# Flights of a handshake; TLS 1.3 takes two, a broken one stops by itself.
TURNS_MAX = 10


class BadPair(ValueError):
    """A certificate and a key with which no server can answer; says why, and names no file."""


@dataclass(frozen=True)
class CertificateInfo:
    """What a certificate says. names: those of its SAN.  ends_at: seconds since 1970."""

    names: tuple[str, ...]
    ends_at: float


def stamp(*files: Path) -> Stamp:
    """What changes when a file does: also when it is a link that points elsewhere now, as mounted secrets are. Raises OSError."""
    found = [path.stat() for path in files]
    return tuple((each.st_mtime_ns, each.st_size, each.st_ino) for each in found)


def server_context(cert: Path, key: Path) -> tuple[ssl.SSLContext, CertificateInfo]:
    """A context for a server that asks its clients for no certificate, and what its own says. Raises BadPair, OSError.

    cert: PEM, the certificate first and then those that lead to the authority's.  key: PEM, without a password.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # OpenSSL has no words for these.
    if (own := OWN.search(cert.read_text("ascii", "replace"))) is None:
        raise BadPair("there is no certificate in the first, in the form of PEM")
    if "PRIVATE KEY-----" not in key.read_text("ascii", "replace"):
        raise BadPair("there is no private key in the second, in the form of PEM")
    try:
        context.load_cert_chain(cert, key, password=no_password)
        return context, certificate_info(context, own[0])
    except ssl.SSLError as error:
        raise BadPair(reason(error)) from None
    except ValueError as error:
        raise BadPair(str(error)) from None


def certificate_info(server: ssl.SSLContext, certificate: str) -> CertificateInfo:
    """Ask a certificate, by a handshake, what it says; also whether it is one for servers. Raises ssl.SSLError."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(NO_CHECK_TIME)
    client.load_verify_locations(cadata=certificate)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = (client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True))
    for turn in range(TURNS_MAX):
        try:
            sides[turn % 2].do_handshake()
        except ssl.SSLWantReadError:
            continue
        if turn % 2 == 0:
            break
    told = sides[0].getpeercert() or {}
    alternative: tuple[tuple[str, str], ...] = told.get("subjectAltName", ())  # type: ignore[assignment]
    names = tuple(value for kind, value in alternative if kind in NAMES)
    return CertificateInfo(names, float(ssl.cert_time_to_seconds(str(told["notAfter"]))))

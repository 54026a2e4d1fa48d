"""Which addresses the cluster may call on behalf of clients: none that only its own network can reach.

A name says nothing: what counts is the address that a connection goes to, so `check_url` is for early and clear answers and
`refused_address` for every connection.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import SplitResult, urlsplit

URL_CHARS_MAX = 2048
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
# Networks that carry an IPv4 address in their last bits.
EMBEDDING = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))


def check_url(url: str, *, allow_private: bool = False) -> str | None:
    """Return why a URL cannot be a webhook's, None when it can. Names are not resolved here."""
    if not url:
        return "Webhook URL is required"
    parts = split(url)
    if parts is None:
        return "Invalid URL format"
    if parts.scheme not in ("http", "https"):
        return "Webhook URL must use http or https protocol"
    if allow_private:
        return None
    host = (parts.hostname or "").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return "Webhook URL cannot point to localhost"
    if host == "metadata" or host.endswith(".internal"):
        return "Webhook URL cannot point to cloud metadata endpoints"
    address = literal(host)
    if address is None:
        return None
    if str(address) in ("127.0.0.1", "::1"):
        return "Webhook URL cannot point to localhost"
    kind = refused_address(address)
    return None if kind is None else f"Webhook URL cannot point to {kind} IP"


def split(url: str) -> SplitResult | None:
    """Take a URL apart; None when it is none that a client could call."""
    if len(url) > URL_CHARS_MAX or any(char <= " " or char == "\\" or char == "\x7f" for char in url):
        return None
    try:
        parts = urlsplit(url)
        # Reading the port checks it.
        fine = bool(parts.scheme and parts.hostname) and (parts.port is None or parts.port >= 0)
    except ValueError:
        return None
    return parts if fine else None


def literal(host: str) -> IPAddress | None:
    """Return the address that a host is spelled as, in any spelling that a resolver takes; None for a name."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    try:
        # The old spellings: 127.1, 0x7f000001, 2130706433.
        return ipaddress.IPv4Address(socket.inet_aton(host)) if host[:1].isdigit() else None
    except OSError:
        return None


def refused_address(address: IPAddress | str) -> str | None:
    """Return what kind of address it is that must not be called; None for one on the open internet."""
    if isinstance(address, str):
        try:
            address = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        inner = embedded(address)
        if inner is not None:
            return refused_address(inner)
    elif address.packed[0] == 0:
        return "unspecified"
    if address.is_unspecified:
        return "unspecified"
    if address.is_loopback:
        return "loopback"
    if address.is_link_local:
        return "link-local"
    if address.is_multicast:
        return "multicast"
    if address.is_private or (isinstance(address, ipaddress.IPv6Address) and address.is_site_local):
        return "private"
    return None if address.is_global else "reserved"


def embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that an IPv6 address stands for, if it does."""
    inner = address.ipv4_mapped or address.sixtofour
    if inner is not None:
        return inner
    teredo = address.teredo
    if teredo is not None:
        return teredo[1]
    # The first addresses of all are the unspecified one and loopback, not IPv4.
    if int(address) > 1 and any(address in network for network in EMBEDDING):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None

"""Which addresses the cluster may call on behalf of clients: none that only its own network can reach.

A name says nothing: what counts is the address that a connection goes to, so `check_url` is for early and clear answers and
`CallPolicy` for every connection. Webhooks go to the open internet only, unless a setting says that they may go anywhere; where push
workers may go is a setting.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import socket
from collections.abc import Iterable
from urllib.parse import SplitResult, unquote, urlsplit

from yarl import URL

URL_CHARS_MAX = 2048
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
# Networks that carry an IPv4 address in their last bits.
EMBEDDING = (
    ipaddress.IPv6Network("64:ff9b::/96"),
    ipaddress.IPv6Network("::/96"),
    ipaddress.IPv6Network("::ffff:0:0:0/96"),
)
# All of the open internet that has IPv6 addresses; what Python knows of the rest differs from version to version.
GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
# Addresses of protocols, and of one cloud's metadata service, which older Pythons take for any other.
PROTOCOLS = ipaddress.IPv4Network("192.0.0.0/24")
SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)
# What hosts files call this machine, beside localhost and names below it.
LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")
HOST_NAME = re.compile(r"\.?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")


def check_url(url: str, *, allow_private: bool = False) -> str | None:
    """Return why a URL cannot be a webhook's, None when it can. Names are not resolved here.

    allow_private: whether plain HTTP and addresses that only the cluster's network reaches are fine.
    """
    if not url:
        return "Webhook URL is required"
    parts = split(url)
    scheme = SCHEME.match(url)
    if scheme is not None and scheme[1].lower() not in ("http", "https"):
        return "Webhook URL must use http or https protocol"
    host = None if parts is None else host_of(parts)
    if not host:
        return "Invalid URL format"
    if allow_private:
        return None
    if host in LOCAL_NAMES or host.endswith(".localhost"):
        return "Webhook URL cannot point to localhost"
    if host in METADATA_NAMES or host.endswith(".internal"):
        return "Webhook URL cannot point to cloud metadata endpoints"
    address = literal(host)
    if address is not None:
        if str(address) in ("127.0.0.1", "::1"):
            return "Webhook URL cannot point to localhost"
        kind = refused_address(address)
        if kind is not None:
            return f"Webhook URL cannot point to {kind} IP"
    return None if parts is not None and parts.scheme == "https" else "Webhook URL must use https protocol"


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


def host_of(parts: SplitResult) -> str | None:
    """Return a URL's host as a connection takes it: in ASCII, lower case, without a dot at its end; None for none that is one.

    Digits and dots of other scripts become the usual ones, so that `①②⑦.⓪.⓪.①` is seen for what it is.
    """
    host = parts.hostname or ""
    if ":" not in host:
        try:
            host = URL.build(scheme="http", host=unquote(host)).raw_host or ""
        except ValueError:
            return None
    return host.rstrip(".").lower()


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
    if is_metadata(address):
        return "cloud metadata"
    if address.is_private or (isinstance(address, ipaddress.IPv6Address) and address.is_site_local):
        return "private"
    is_known = address in GLOBAL_IPV6 if isinstance(address, ipaddress.IPv6Address) else address not in PROTOCOLS
    return None if is_known and address.is_global else "reserved"


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


# Where clouds answer questions about a machine, its credentials among them: never called, whatever a setting says.
METADATA_NETWORKS = tuple(
    ipaddress.ip_network(text)
    for text in (
        "169.254.0.0/16",
        "fe80::/10",
        "fd00:ec2::254/128",
        "fd20:ce::254/128",
        "100.100.100.200/32",
        "192.0.0.192/32",
        "168.63.129.16/32",
    )
)
METADATA_NAMES = (
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "instance-data",
    "instance-data.ec2.internal",
)


def is_metadata(address: IPAddress) -> bool:
    """Whether an address is, or stands for, one of a cloud's metadata service; every link-local one counts."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = embedded(address)
        if inner is not None:
            return is_metadata(inner)
    return any(address in network for network in METADATA_NETWORKS)


# The header of calls by which a cluster knows its own, whatever names and balancers are between.
CALLER = "Quorumq-Caller"


def caller_of(cluster_id: str) -> str:
    """Return the value of that header: it tells clusters apart, and nothing about one."""
    return hashlib.sha256(b"caller of " + cluster_id.encode()).hexdigest()[:16]


def is_here(address: IPAddress) -> bool:
    """Whether an address is one of this machine: only then can a socket have it."""
    if address.is_loopback or address.is_unspecified:
        return True
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


class CallPolicy:
    """Which addresses may be called, as the setting WORKER_ENDPOINTS words it.

    words: `any`, `public` (the open internet), networks (`10.0.0.0/8`), addresses, host names (`.example.com` for all below
    one), `cluster` (the cluster's own ports, which no other word allows); what one of them allows is allowed.  Cloud metadata never
    is, nor are link-local addresses, unless link_local.  own_ports: those that nodes listen on.  Raises ValueError for a word that
    is none of these.
    """

    def __init__(
        self, words: Iterable[str] = ("any",), own_ports: Iterable[int] = (), *, link_local: bool = False
    ) -> None:
        self._link_local = link_local
        self._any = self._public = self.calls_cluster = False
        self._own_ports = frozenset(own_ports) - {0}
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        self._names: list[str] = []
        for word in words:
            self._take(word.strip().lower().rstrip("."))

    def _take(self, word: str) -> None:
        if word == "any":
            self._any = True
        elif word == "public":
            self._public = True
        elif word == "cluster":
            self.calls_cluster = True
        elif HOST_NAME.fullmatch(word) and literal(word) is None:
            self._names.append(word)
        else:
            try:
                self._networks.append(ipaddress.ip_network(word, strict=False))
            except ValueError:
                raise ValueError(
                    f"{word!r} is none of any, public, cluster, a network, an address or a host name"
                ) from None

    def refused_host(self, host: str) -> str | None:
        """Return why a host may not be called, as far as that shows without asking for its address; None otherwise."""
        host = host.rstrip(".").lower()
        if host in METADATA_NAMES and not self._link_local:
            return "cloud metadata"
        address = literal(host)
        if address is not None:
            return self.refused(host, address)
        allowed = self._any or self._public or self._networks or self._names_host(host)
        return None if allowed else "not allowed"

    def refused(self, host: str, address: IPAddress) -> str | None:
        """Return why a connection to an address may not be made that a host's name led to; None when it may."""
        if is_metadata(address) and not self._link_local:
            return "cloud metadata"
        if self._any or self._names_host(host):
            return None
        inner = embedded(address) if isinstance(address, ipaddress.IPv6Address) else None
        if any((inner or address) in network for network in self._networks):
            return None
        kind = refused_address(address)
        return None if self._public and kind is None else kind or "not allowed"

    def may_be_own(self, port: int) -> bool:
        """Whether a connection to a port has to be looked at, because nodes listen on such a one."""
        return not self.calls_cluster and port in self._own_ports

    def _names_host(self, host: str) -> bool:
        host = host.rstrip(".").lower()
        return any(host == name or (name[0] == "." and host.endswith(name)) for name in self._names)


def webhook_policy(*, allow_private: bool) -> CallPolicy:
    """Return where webhooks may go: the open internet, or, in closed networks, anywhere."""
    return CallPolicy(("any",), link_local=True) if allow_private else CallPolicy(("public",))

"""Which web pages may use the API, and who may come near `/admin`.

The documented API has its documented CORS. What administers the cluster is no page's affair but the node's own; where no token is
there to ask for, it is this machine's alone, and no name that somebody has pointed at it (DNS rebinding) counts as it.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from aiohttp import web

from quorumq.cluster.addresses import split_address

from .outgoing.egress import literal
from .settings.rows import NodeConfig

# Headers by which proxies say for whom they ask: whoever has one of them is not on this machine, though the proxy may be.
FORWARDED = ("X-Forwarded-For", "X-Real-IP", "Forwarded", "Via", "X-Forwarded-Host")
FOREIGN = "Pages of other origins have no access here"
CLOSED = (
    "No tokens are set, so only this machine has access here, by localhost, an address or the node's own name: "
    "set AUTH_TOKENS or AUTH_TOKENS_FILE"
)
DEFAULT_PORTS = {"http": 80, "https": 443}


class Origins:
    """What CORS_ALLOW_ORIGIN allows, and the node's own names.

    listed: the origins of the setting; `*` is every page's.
    """

    def __init__(self, config: NodeConfig) -> None:
        self.listed = [origin.strip() for origin in config.cors_allow_origin.split(",") if origin.strip()]
        self.everyone = "*" in self.listed
        addresses = [config.members().get(config.node_id, ""), config.advertise]
        self._names = {config.node_id, config.host, socket.gethostname(), *hosts(addresses)}
        self._names = {name.lower().rstrip(".") for name in self._names if name}

    @property
    def several(self) -> bool:
        """Whether the header depends on who asks."""
        return len(self.listed) > 1

    def header(self, origin: str | None) -> bytes:
        """Return the header lines that say which pages may read a reply.

        origin: the page that asks.  A browser takes one origin only, so of several the asking one is named.
        """
        if not self.several:
            return b"Access-Control-Allow-Origin: %b\r\n" % "".join(self.listed).encode("latin-1", "replace")
        named = origin if origin in self.listed else self.listed[0]
        return b"Access-Control-Allow-Origin: %b\r\nVary: Origin\r\n" % named.encode("latin-1", "replace")

    def lets_in(self, request: web.BaseRequest) -> bool:
        """Say whether a page may open a WebSocket, which no browser asks for beforehand. Who is no page has no origin."""
        origin = request.headers.get("Origin")
        return origin is None or self.everyone or origin in self.listed

    def kept_out(self, request: web.BaseRequest, *, no_tokens: bool) -> str | None:
        """Say why a request must not come near what administers the cluster; None when it may, if it has the right.

        no_tokens: whether there are none, so that everybody has the right.
        """
        host = request.headers.get("Host", "")
        origin = request.headers.get("Origin")
        if origin is not None and not is_same(origin, host):
            return FOREIGN
        if not no_tokens:
            return None
        is_local = is_loopback(request.remote) and not any(name in request.headers for name in FORWARDED)
        return None if is_local and self._is_own(host) else CLOSED

    def _is_own(self, host: str) -> bool:
        """Whether a Host header names this node in a way that nobody else can point at it. Who is no browser need not send one."""
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".") if is_plain(host) else "?"
        if not name:
            return not host
        return name == "localhost" or name.endswith(".localhost") or literal(name) is not None or name in self._names


def hosts(addresses: Iterable[str]) -> Iterable[str]:
    for address in addresses:
        if address:
            yield split_address(address)[0]


def is_plain(host: str) -> bool:
    """Whether a Host header can be taken apart without a surprise."""
    return not any(char in host for char in "/\\@?# \t") and host.count("[") <= 1


def is_same(origin: str, host: str) -> bool:
    """Whether a page's origin is the address that it asks; a proxy before the node may have ended its TLS."""
    if not is_plain(host):
        return False
    try:
        page, asked = urlsplit(origin), urlsplit(f"//{host}")
        default = DEFAULT_PORTS.get(page.scheme)
        return (
            default is not None
            and page.hostname is not None
            and page.hostname == asked.hostname
            and (page.port or default) == (asked.port or default)
        )
    except ValueError:
        return False


def is_loopback(address: str | None) -> bool:
    """Whether a peer is on this machine."""
    try:
        parsed = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return bool((mapped or parsed).is_loopback)

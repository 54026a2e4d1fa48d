"""Addresses of listeners, as people write them: `host:port`, and `[v6]:port`."""

from __future__ import annotations

import ipaddress
import re

HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,253}[A-Za-z0-9_.])?")


def is_host(text: str) -> bool:
    """Say whether a text is an address or could be the name of a machine."""
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return bool(HOST.fullmatch(text))
    return True


def parted(address: str) -> tuple[str, str]:
    """Split `host:port` without asking whether it is one: host, without the brackets of `[v6]`, and port as a text."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), port


def split_address(address: str) -> tuple[str, int]:
    """Split `host:port`, or `[v6]:port`. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not is_host(host) or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ValueError(f"must be written id=host:port, and {address!r} is not an address")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens at `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

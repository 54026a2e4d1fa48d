"""What the values of single settings have to be: hosts, addresses, ids, folders."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quorumq.cluster.addresses import is_host, split_address

NODE_ID_CHARS_MAX = 63
NODE_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{NODE_ID_CHARS_MAX - 1}}}")
PEER_PORT = 7790


def check_host(text: str) -> None:
    if not is_host(text):
        raise ValueError("must be an address or a host name")


def check_version(text: str) -> None:
    if not re.fullmatch(r"[0-9A-Za-z.+-]{1,64}", text, re.ASCII):
        raise ValueError("must be a version, such as 2.9.5")


def check_node_id(text: str) -> None:
    if not NODE_ID.fullmatch(text):
        raise ValueError("cannot be used: letters, digits, '.', '_' and '-', at most 63")


def check_name(text: str) -> None:
    if not text.strip():
        raise ValueError("must not be empty")


def check_peers_dns(names: tuple[str, ...]) -> None:
    for name in names:
        check_address(with_port(name), name)


def check_advertise(text: str) -> None:
    if text:
        check_address(with_port(text), text)


def check_address(address: str, shown: str) -> None:
    try:
        split_address(address)
    except ValueError:
        raise ValueError(f"must be host:port, and {shown!r} is not") from None


def check_proxies(texts: tuple[str, ...]) -> None:
    for text in texts:
        try:
            text in ("*", "none") or ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f"must be addresses or networks, and {text!r} is none") from None


def check_data_path(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.exists() and not path.is_dir():
            raise ValueError("is not a folder")


def parse_peers(raw: Any) -> dict[str, str]:
    """Parse `n1=host:7790,n2=…` or a table of the same; ids and addresses must each be given once."""
    if isinstance(raw, str):
        rows = [row.partition("=") for row in raw.split(",") if row.strip()]
        if bad := [row[0].strip() for row in rows if not row[1]]:
            raise ValueError(f"must be written id=host:port, and {bad[0]!r} is not")
        pairs = [(name.strip(), address.strip()) for name, _, address in rows]
    elif isinstance(raw, Mapping):
        pairs = [(name, address if isinstance(address, str) else "") for name, address in raw.items()]
    else:
        raise ValueError("must be written id=host:port, separated by commas")
    for name, address in pairs:
        if not NODE_ID.fullmatch(name):
            raise ValueError(
                f"has a node id that cannot be used: {name!r} (letters, digits, '.', '_' and '-', at most 63)"
            )
        split_address(address)
    for what, values in (("node id", [name for name, _ in pairs]), ("address", [address for _, address in pairs])):
        if repeated := [value for value in values if values.count(value) > 1]:
            raise ValueError(f"names the {what} {repeated[0]!r} more than once")
    return dict(pairs)


@functools.cache
def full_host_name() -> str:
    """The name by which others can resolve this machine; in a pod of a StatefulSet that of the pod."""
    return socket.getfqdn()


def with_port(name: str) -> str:
    """A name of PEERS_DNS with its port."""
    given = ":" in name and not name.endswith("]")
    return name if given else f"{name}:{PEER_PORT}"

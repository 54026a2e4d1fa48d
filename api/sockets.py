"""Sockets that listeners of clients bind, and what is said when one cannot be had."""

from __future__ import annotations

import socket

from quorumq.cluster.addresses import join_address

BACKLOG = 1024
# Longer than balancers keep an idle connection, so that it is they who close it.
KEEP_ALIVE_S = 620


def listen(host: str, port: int) -> socket.socket:
    """Bind a socket. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def cannot_listen(error: OSError, host: str, port: int, setting: str) -> OSError:
    """Return the error with the address in its message, and the name of the setting that gives the port."""
    reason = error.strerror or error
    return type(error)(error.errno, f"cannot listen on {join_address(host, port)} ({setting}): {reason}")

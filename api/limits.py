"""Bounds on what a client may send: the size of a body, read under its bound, and the number of requests in a window.

A body longer than its bound is never held in memory: reading stops at the bound, the answer is sent, and what is
still on its way is read and dropped by the server for a bounded time, so that the client sees the answer.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Iterable

from aiohttp import web

MIB = 1 << 20
# The document's bound on a job's data, on a result and on any other opaque value.
DATA_BYTES_MAX = 10 * MIB


class BodyTooLarge(Exception):
    """A request body is longer than the bound. limit: the bound in bytes. length: as far as it is known."""

    def __init__(self, limit: int, length: int) -> None:
        super().__init__(f"Request body too large (max {describe(limit)})")
        self.limit = limit
        self.length = length


class Busy(Exception):
    """The bodies being received already take all the memory that is set aside for them."""


def describe(count: int) -> str:
    """Write a number of bytes as people write bounds: 16MB, 100KB, 7 bytes."""
    for unit, name in ((MIB, "MB"), (1 << 10, "KB")):
        if count >= unit and count % unit == 0:
            return f"{count // unit}{name}"
    return f"{count} bytes"


class Bodies:
    """Reads request bodies.

    body_bytes_max: bytes of one body.  pending_bytes_max: bytes of all bodies that have arrived only in part; a
    thousand slow clients in the middle of large bodies must not take the memory of the state.
    """

    def __init__(self, body_bytes_max: int, pending_bytes_max: int = 0) -> None:
        self.body_bytes_max = body_bytes_max
        self.pending_bytes_max = pending_bytes_max or max(16 * body_bytes_max, 64 * MIB)
        self.pending_bytes = 0

    async def read(self, request: web.BaseRequest) -> bytes:
        """Return the whole body. Raises BodyTooLarge, Busy."""
        content = request.content
        if content.is_eof():
            # The usual case: head and body came together.
            body = content.read_nowait()
            if len(body) > self.body_bytes_max:
                raise BodyTooLarge(self.body_bytes_max, len(body))
            return body
        return await self._read_slowly(request)

    async def _read_slowly(self, request: web.BaseRequest) -> bytes:
        declared = request.content_length or 0
        if declared > self.body_bytes_max:
            raise BodyTooLarge(self.body_bytes_max, declared)
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = bytearray()
        counted = 0
        try:
            while True:
                chunk = await request.content.readany()
                if not chunk:
                    return bytes(body)
                self.pending_bytes += len(chunk)
                counted += len(chunk)
                if counted > self.body_bytes_max:
                    raise BodyTooLarge(self.body_bytes_max, max(declared, counted))
                if self.pending_bytes > self.pending_bytes_max:
                    raise Busy
                body += chunk
        finally:
            self.pending_bytes -= counted


# The window of the request limit moves in steps of this share of it.
STEPS = 64
# Clients counted at once; beyond it the one that has been silent longest is forgotten.
CLIENTS_MAX = 10_000
CLIENT_CHARS_MAX = 64
COUNT_BITS = 32
COUNT_MASK = (1 << COUNT_BITS) - 1


class Sent:
    """What one client sent within the window. steps: number of a step and requests in it, packed, oldest first."""

    __slots__ = ("steps", "total")

    def __init__(self) -> None:
        self.steps: deque[int] = deque()
        self.total = 0

    def forget(self, before: int) -> None:
        """Drop the steps with lower numbers than `before`."""
        steps = self.steps
        while steps and steps[0] >> COUNT_BITS < before:
            self.total -= steps.popleft() & COUNT_MASK


class RequestLimit:
    """At most requests_max requests of a client in any window of window_ms.

    The window slides in steps; a request counts until the step it came in has left the window whole, so the limit is never
    exceeded, and a client waits at most one step longer than it must. A client takes a few kilobytes at most.
    cleanup_ms: how often clients without requests in the window are forgotten.
    """

    def __init__(self, requests_max: int, window_ms: int, cleanup_ms: int) -> None:
        self.requests_max = requests_max
        self.step_s = window_ms / 1000 / STEPS
        self.cleanup_s = cleanup_ms / 1000
        self.clients: dict[str, Sent] = {}
        self._cleanup_at = 0.0

    def admit(self, client: str, now: float) -> float:
        """Count a request; return 0, or the seconds until the client may send the next one, when it was one too many.

        now: seconds of a clock that never goes back.
        """
        step = int(now / self.step_s)
        if now >= self._cleanup_at:
            self._clean_up(step)
            self._cleanup_at = now + self.cleanup_s
        # Taken out and put back, so that the order of the dictionary is that of the last requests.
        sent = self.clients.pop(client, None) or Sent()
        if len(self.clients) >= CLIENTS_MAX:
            del self.clients[next(iter(self.clients))]
        self.clients[client] = sent
        sent.forget(step - STEPS)
        if sent.total >= self.requests_max:
            oldest = sent.steps[0] >> COUNT_BITS
            return max((oldest + 1 + STEPS) * self.step_s - now, self.step_s)
        sent.total += 1
        if sent.steps and sent.steps[-1] >> COUNT_BITS == step:
            sent.steps[-1] += 1
        else:
            sent.steps.append(step << COUNT_BITS | 1)
        return 0.0

    def _clean_up(self, step: int) -> None:
        gone = [client for client, sent in self.clients.items() if sent.steps[-1] >> COUNT_BITS < step - STEPS]
        for client in gone:
            del self.clients[client]


class Proxies:
    """Who is believed when a header says for whom a request is sent."""

    def __init__(self, trusted: Iterable[str]) -> None:
        texts = [text for text in trusted if text != "none"]
        self.everyone = "*" in texts
        self._networks = [ipaddress.ip_network(text, strict=False) for text in texts if text != "*"]

    def trusts(self, address: str) -> bool:
        """Say whether an address is a proxy's."""
        if self.everyone:
            return True
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(parsed, "ipv4_mapped", None)
        return any((mapped or parsed) in network for network in self._networks)

    def client_of(self, request: web.BaseRequest) -> str:
        """Return the address that a request is counted for.

        With every sender believed it is the first of X-Forwarded-For, as documented; with proxies named it is the last
        one that is no proxy's, because what stands before it anyone can write. Then X-Real-IP, then the connection's.
        """
        peer = request.remote or "unknown"
        if not self.trusts(peer):
            return peer
        forwarded = request.headers.get("X-Forwarded-For")
        if forwarded:
            addresses = [address.strip() for address in forwarded[:4096].split(",")]
            if self.everyone:
                return addresses[0][:CLIENT_CHARS_MAX] or peer
            for address in reversed(addresses):
                if not self.trusts(address):
                    return address[:CLIENT_CHARS_MAX]
            return addresses[0][:CLIENT_CHARS_MAX]
        return request.headers.get("X-Real-IP", "").strip()[:CLIENT_CHARS_MAX] or peer

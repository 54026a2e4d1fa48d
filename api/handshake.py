"""A connection of TLS before there is a request: its handshake, under the bounds of the door.

The event loop's own TLS servers let as many connections wait in a handshake as come, and close without a word what speaks no TLS.
So the connection is taken here first and counted; whoever sends plain HTTP is told so in it; the rest goes to the event loop.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, cast

from quorumq.cluster.tls import reason

from .door import Door

# The first byte of a record that begins a handshake.
HANDSHAKE = 0x16
# What a client gets to answer the end of its session.
GOODBYE_S = 5.0


class Early(asyncio.Protocol):
    """What comes between the handshake's end and the moment when the inner protocol takes over."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.lost = False

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


class Handshake(asyncio.Protocol):
    """One connection until its handshake is over; then the protocol that `inner` makes speaks inside of it.

    context: of the server.  plain: makes the whole answer to somebody who speaks no TLS, in the listener's own words; None: that is
    allowed as well, and `inner` speaks with them.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        door: Door,
        inner: Callable[[], asyncio.Protocol],
        plain: Callable[[], bytes] | None,
    ) -> None:
        self._context = context
        self._door = door
        self._inner = inner
        self._plain = plain
        self._limit: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._ended = False
        self.client = ""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._limit = asyncio.get_running_loop().call_later(self._door.head_s, self._late)
        self._door.knock(self)

    def data_received(self, data: bytes) -> None:
        if self._task is not None or self.transport.is_closing():
            return
        if data[0] != HANDSHAKE and self._plain is None:
            self._end()
            self._hand_over(self.transport, data)
            return
        if data[0] != HANDSHAKE and self._plain is not None:
            self._door.note("plain")
            self.transport.write(self._plain())
            self.transport.close()
            return
        self.transport.pause_reading()
        self._task = asyncio.get_running_loop().create_task(self._negotiate(data))

    def connection_lost(self, exc: Exception | None) -> None:
        # Only as long as no handshake has begun: then the event loop's protocol is in this one's place.
        self._end()

    def abort(self) -> None:
        """End it at once; the caller has logged why."""
        self._ended = True
        self.transport.abort()

    def _late(self) -> None:
        self._door.note("handshake", "not finished in time")
        self.abort()

    def _end(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
        self._door.let_go(self)

    async def _negotiate(self, first: bytes) -> None:
        loop = asyncio.get_running_loop()
        early = Early()
        try:
            # The door's time is shorter than the loop's.
            upgrade = loop.start_tls(
                self.transport,
                early,
                self._context,
                server_side=True,
                ssl_handshake_timeout=2 * self._door.head_s + 1,
                ssl_shutdown_timeout=GOODBYE_S,
            )
            task = asyncio.ensure_future(upgrade)
            await self._feed(first, task)
            transport = await task
        except ssl.SSLError as error:
            self._door.note("handshake", reason(error))
            return
        except OSError:
            # In the middle of it: mostly one that does not trust the certificate, and does not say so.
            if not self._ended:
                self._door.note("handshake", "the client left")
            return
        finally:
            self._end()
        if transport is not None and not early.lost:
            self._hand_over(transport, bytes(early.data))

    def _hand_over(self, transport: asyncio.Transport, data: bytes) -> None:
        inner = self._inner()
        inner.connection_made(transport)
        transport.set_protocol(inner)
        if data:
            inner.data_received(data)

    async def _feed(self, first: bytes, upgrade: asyncio.Future[Any]) -> None:
        """Hand what has come already to the protocol that start_tls puts in this one's place."""
        while self.transport.get_protocol() is self and not upgrade.done():
            await asyncio.sleep(0)
        # It is told of its connection in the next turn of the loop, and nothing is read before that.
        await asyncio.sleep(0)
        protocol = cast(asyncio.BufferedProtocol, self.transport.get_protocol())
        while first and not self.transport.is_closing() and not upgrade.done():
            room = memoryview(protocol.get_buffer(len(first)))
            taken = min(len(room), len(first))
            room[:taken] = first[:taken]
            protocol.buffer_updated(taken)
            first = first[taken:]

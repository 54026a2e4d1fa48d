"""A client of bunqueue's TCP protocol, as tests use it: frames of MessagePack, requests matched to replies by their `reqId`."""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import Mapping
from typing import Any

import msgpack

HEAD_BYTES = 4


def pack(value: Any, **more: Any) -> bytes:
    """Return a frame."""
    body: bytes = msgpack.packb(value, **more)
    return framed(body)


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(HEAD_BYTES, "big") + body


class Refused(Exception):
    """A command was answered `ok: false`; reply: all of it."""

    def __init__(self, reply: Mapping[str, Any]) -> None:
        super().__init__(str(reply.get("error")))
        self.reply = reply


class TcpClient:
    """One connection. events: what came without a `reqId`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self._numbers = itertools.count(1)
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._task = asyncio.create_task(self._read())

    @classmethod
    async def open(
        cls, port: int, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None, token: str | None = None
    ) -> TcpClient:
        client = cls(*await asyncio.open_connection(host, port, ssl=tls, limit=1 << 20))
        if token is not None:
            await client.ok("Auth", token=token)
        return client

    @property
    def ended(self) -> bool:
        return self._task.done()

    async def _read(self) -> None:
        error: Exception = ConnectionError("the connection ended")
        try:
            while True:
                length = int.from_bytes(await self.reader.readexactly(HEAD_BYTES), "big")
                reply = msgpack.unpackb(await self.reader.readexactly(length), timestamp=3)
                future = self._waiting.pop(reply.get("reqId", ""), None)
                if future is None:
                    self.events.put_nowait(reply)
                elif not future.done():
                    future.set_result(reply)
        except (OSError, EOFError) as problem:
            error = ConnectionError(str(problem))
        finally:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(error)
            self._waiting.clear()
            self.writer.close()

    def send(self, cmd: str, **fields: Any) -> asyncio.Future[Any]:
        """Send a command; return what becomes its reply."""
        number = str(next(self._numbers))
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._task.done():
            future.set_exception(ConnectionError("the connection ended"))
            return future
        self._waiting[number] = future
        self.writer.write(pack({"cmd": cmd, **fields, "reqId": number}, datetime=True))
        return future

    async def run(self, cmd: str, **fields: Any) -> Any:
        """Send a command; return its reply. Raises ConnectionError."""
        async with asyncio.timeout(90):
            return await self.send(cmd, **fields)

    async def ok(self, cmd: str, **fields: Any) -> Any:
        """The same. Raises Refused unless it says ok."""
        reply = await self.run(cmd, **fields)
        if reply["ok"] is not True:
            raise Refused(reply)
        return reply

    async def event(self) -> Any:
        async with asyncio.timeout(30):
            return await self.events.get()

    async def end(self) -> None:
        """Wait until the node has ended the connection."""
        async with asyncio.timeout(30):
            await asyncio.wait([self._task])

    async def close(self) -> None:
        self.writer.close()
        await asyncio.wait([self._task])

"""A client of BullMQ's backend protocol, as tests use it."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import aiohttp
import msgspec

from tests.api.conftest import Client

ENCODE = msgspec.msgpack.encode
DECODE = msgspec.msgpack.decode
SESSIONS = itertools.count(1)


class Failed(Exception):
    """An answer that is no result. code, text: as they came."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text


class Backend:
    """One connection. welcome: the answer to its hello.  messages: how many answers came together, message by message."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.welcome: dict[str, Any] = {}
        self.number = 0
        # What its calls say the time is, where clients say so.
        self.now_ms: int | None = None
        self.acknowledged = 0
        self.waiting: dict[int, asyncio.Future[Any]] = {}
        self.more: dict[int, list[Any]] = {}
        self.messages: list[int] = []
        self.order: list[int] = []
        self.reader: asyncio.Task[None] | None = None

    async def hello(self, **more: Any) -> dict[str, Any]:
        await self.ws.send_bytes(ENCODE({"protocol": 1, "session": f"s{next(SESSIONS)}", "client": "test", **more}))
        message = await self.ws.receive(5)
        assert message.type == aiohttp.WSMsgType.BINARY, message
        self.welcome = DECODE(message.data)
        self.reader = asyncio.create_task(self.read())
        return self.welcome

    async def read(self) -> None:
        async for message in self.ws:
            answers = DECODE(message.data)
            self.messages.append(len(answers))
            for number, code, result in answers:
                if code == 100:
                    self.more.setdefault(number, []).append(result)
                    continue
                self.order.append(number)
                future = self.waiting.pop(number)
                if future.done():
                    continue
                if code:
                    future.set_exception(Failed(code, result))
                else:
                    future.set_result(result)
        for future in self.waiting.values():
            if not future.done():
                future.set_exception(ConnectionError(f"closed: {self.ws.close_code}"))
                future.exception()  # that nobody asks for it is no fault of the test

    async def send(self, *calls: tuple[str, str, list[Any]]) -> list[asyncio.Future[Any]]:
        """Send calls in one message; return what becomes of each."""
        futures, sent = [], []
        for name, queue, args in calls:
            self.number += 1
            self.waiting[self.number] = future = asyncio.get_running_loop().create_future()
            futures.append(future)
            sent.append([self.number, name, queue, args, self.now_ms])
        await self.ws.send_bytes(ENCODE([self.acknowledged, sent]))
        return futures

    async def call(self, name: str, queue: str = "bull:q", *args: Any) -> Any:
        (future,) = await self.send((name, queue, list(args)))
        return await asyncio.wait_for(future, 10)

    async def close(self) -> None:
        await self.ws.close()
        if self.reader is not None:
            await self.reader


async def connect(client: Client, path: str = "/bullmq/v1/socket", *, hello: bool = True, **more: Any) -> Backend:
    """Open a connection, and say hello unless told not to. more: fields of the hello; headers: of the handshake."""
    headers = more.pop("headers", None)
    backend = Backend(await client.session.ws_connect(client.base + path, headers=headers))
    if hello:
        await backend.hello(**more)
    return backend

"""A client of the API server: requests, and watching a collection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

Object = dict[str, Any]

MERGE = "application/merge-patch+json"
REQUEST_S = 20.0
# An object of Kubernetes is at most about this long on a watch's line.
LINE_BYTES = 4 << 20
AGAIN_S = 0.2


class Refused(Exception):
    """The API server answered with another status than 2xx."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class Api:
    """An async context manager. url: of the API server, whose certificate is not checked."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}

    async def __aenter__(self) -> Api:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=False, limit=0), headers=self._headers, read_bufsize=LINE_BYTES
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Object:
        """Send a request. Raises Refused, and what aiohttp raises without an answer."""
        data = None if body is None else json.dumps(body)
        timeout = aiohttp.ClientTimeout(total=REQUEST_S)
        async with self._session.request(
            method, self._url + path, data=data, headers={"Content-Type": kind}, timeout=timeout
        ) as reply:
            text = await reply.text()
            if reply.status >= 300:
                raise Refused(reply.status, text)
            return json.loads(text) if text[:1] in ("{", "[") else {"text": text}

    async def get(self, path: str) -> Object:
        return await self.ask("GET", path)

    async def merge(self, path: str, body: Any) -> Object:
        """Change the fields that `body` has."""
        return await self.ask("PATCH", path, body, MERGE)

    async def items(self, path: str) -> list[Object]:
        return (await self.get(path))["items"]

    async def watched(self, path: str) -> AsyncIterator[dict[str, Object]]:
        """Yield all objects of a collection by their uid: at first, and again whenever one has changed. Never ends."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_S)
        while True:
            try:
                listed = await self.get(path)
                held = {one["metadata"]["uid"]: one for one in listed["items"]}
                yield held
                since = listed["metadata"]["resourceVersion"]
                query = {"watch": "1", "resourceVersion": since}
                async with self._session.get(self._url + path, params=query, timeout=timeout) as reply:
                    async for line in reply.content:
                        event = json.loads(line)
                        if event["type"] == "ERROR":
                            break
                        uid = event["object"]["metadata"]["uid"]
                        if event["type"] == "DELETED":
                            held.pop(uid, None)
                        else:
                            held[uid] = event["object"]
                        yield held
            except (aiohttp.ClientError, TimeoutError, Refused, ValueError):
                pass
            await asyncio.sleep(AGAIN_S)

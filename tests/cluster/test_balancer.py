"""The balancer of the scripts follows what nodes say of themselves, as docs/operations.md tells people to have theirs do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.support import balancer
from tests.support.balancer import Balancer


class Node:
    """Somebody who answers every request with its name, and probes as it is told to."""

    def __init__(self, node_id: str) -> None:
        self.id = node_id
        self.http_port = 0
        self.status = 200
        self.looks = 0
        self.seen = asyncio.Event()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == balancer.READY:
            self.looks += 1
            self.seen.set()
            return web.Response(status=self.status)
        return web.Response(text=self.id)

    async def looked_at(self) -> None:
        """Wait until it was asked twice more, so that one whole look was after now."""
        for _ in range(2):
            self.seen.clear()
            async with asyncio.timeout(10):
                await self.seen.wait()


@contextlib.asynccontextmanager
async def serving(*nodes: Node) -> AsyncIterator[None]:
    runners = []
    for node in nodes:
        runner = web.ServerRunner(web.Server(node.handle))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        node.http_port = runner.addresses[0][1]
        runners.append(runner)
    try:
        yield
    finally:
        for runner in runners:
            await runner.cleanup()


async def answers(url: str, count: int) -> list[str]:
    async with aiohttp.ClientSession() as session:
        found = []
        for _ in range(count):
            async with session.get(url + "/anything") as answer:
                found.append(await answer.text())
        return found


async def test_requests_go_to_who_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balancer, "LOOK_S", 0.01)
    nodes: Any = [Node(name) for name in ("n1", "n2", "n3")]
    nodes[1].status = 503
    async with serving(*nodes), Balancer(nodes) as one:
        # It has looked before the first request.
        assert await answers(one.url, 4) == ["n1", "n3", "n1", "n3"]
        nodes[1].status, nodes[2].status = 200, 503
        for node in nodes[1:]:
            await node.looked_at()
        assert sorted(set(await answers(one.url, 6))) == ["n1", "n2"]
        # None is better than the others then, so all of them are tried.
        nodes[0].status = nodes[1].status = 503
        for node in nodes[:2]:
            await node.looked_at()
        assert sorted(set(await answers(one.url, 6))) == ["n1", "n2", "n3"]


async def test_a_node_that_says_nothing_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balancer, "LOOK_S", 0.01)
    nodes: Any = [Node("n1"), Node("n2")]
    gone = contextlib.AsyncExitStack()
    async with serving(nodes[0]):
        await gone.enter_async_context(serving(nodes[1]))
        async with Balancer(nodes) as one:
            assert sorted(set(await answers(one.url, 4))) == ["n1", "n2"]
            await gone.aclose()
            async with asyncio.timeout(10):
                while "n2" not in one.not_ready:
                    await asyncio.sleep(0.005)
            assert await answers(one.url, 3) == ["n1"] * 3

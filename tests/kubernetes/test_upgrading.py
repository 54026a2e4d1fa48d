"""`helm upgrade` under load, on a real control plane: pods are replaced one by one, and no client notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.kubernetes.clients import Clients
from tests.kubernetes.release import NAME, POLL_S, Release, installed, is_ready
from tests.support.kubernetes.cluster import Cluster

pytestmark = pytest.mark.timeout(600)


class Watched:
    """What the pods were like meanwhile. most_away: how many of `count` were not ready at once."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.most_away = 0
        self.uids: set[str] = set()


@asynccontextmanager
async def watched(one: Release, count: int) -> AsyncIterator[Watched]:
    """Look at the pods the whole time."""
    seen = Watched(count)

    async def look() -> None:
        path = f"/api/v1/namespaces/{one.namespace}/pods"
        async for held in one.api.watched(f"{path}?labelSelector=app.kubernetes.io%2Fcomponent%3Dnode"):
            ready = [pod for pod in held.values() if is_ready(pod) and "deletionTimestamp" not in pod["metadata"]]
            seen.most_away = max(seen.most_away, count - len(ready))
            seen.uids |= set(held)

    task = asyncio.create_task(look())
    try:
        yield seen
        await asyncio.sleep(POLL_S)
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def handed_over(one: Release, count: int) -> int:
    """How often leadership went from one node to the next; that none of those that led had to be missed first is checked."""
    said = "\n".join(one.log(f"{NAME}-{number}") for number in range(count))
    led, ceased = said.count(" leads in term "), said.count(" does not lead any more in term ")
    assert led - ceased == 1, f"of {led} that led only {ceased} lived to see the next"
    return ceased


async def test_an_upgrade_under_load_fails_no_request(kubernetes: Cluster) -> None:
    async with installed(kubernetes, "upgrade") as one:
        async with watched(one, 3) as seen, Clients(one) as clients:
            await clients.until(100)
            await one.upgrade(values={"image.tag": "next"})
            await one.ready(3)
            await clients.until(100)
        print(clients.summary())
        assert clients.failed == []
        assert await clients.broken(f"{NAME}-0") == []
        assert len(seen.uids) == 6 and seen.most_away == 1
        assert handed_over(one, 3) >= 1
        await one.converged(3)

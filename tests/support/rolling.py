"""Rolling restarts under load: a client behind a balancer that repeats nothing and notes what failed, and the restarts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import aiohttp

from tests.support.local_cluster import LocalCluster, LocalNode

QUEUE = "/queues/rolled/jobs"


class Client:
    """Pushes, pulls and acknowledges through one address, and repeats nothing.

    per_s: requests a second of all workers together; None: as fast as they are answered.  All are POSTs: HTTP clients send a GET
    again by themselves when the connection was closed meanwhile, which would hide what is looked for.
    """

    def __init__(self, url: str, per_s: float | None = None) -> None:
        self.url = url
        self.stopping = False
        self.answered: Counter[str] = Counter()
        self.failed: list[str] = []
        self.pushed: set[str] = set()
        self.acked: set[str] = set()
        self.doubled: list[str] = []
        self.progress = asyncio.Condition()
        self._between_s = 1 / per_s if per_s else 0.0
        self._next_at = 0.0

    async def _turn(self) -> None:
        """Wait until it is time for one more request; what a slow moment has missed is not made up for."""
        if self._between_s:
            now = asyncio.get_running_loop().time()
            self._next_at = max(self._next_at + self._between_s, now)
            await asyncio.sleep(self._next_at - now)

    async def _post(self, session: aiohttp.ClientSession, what: str, path: str, body: Any) -> Any:
        await self._turn()
        try:
            async with session.post(self.url + path, json=body) as reply:
                answer = await reply.json(content_type=None)
                if reply.status == 200:
                    self.answered[what] += 1
                    return answer
                self.failed.append(f"{what}: {reply.status} {answer}")
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            self.failed.append(f"{what}: {error!r}")
        return None

    async def run(self) -> None:
        """Push one, pull one, acknowledge it, again and again."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
            while not self.stopping:
                if pushed := await self._post(session, "push", QUEUE, {"data": 1}):
                    self.pushed.add(pushed["id"])
                taken = await self._post(
                    session, "pull", f"{QUEUE}/pull-batch", {"count": 1, "owner": "w", "lockTtl": 60_000}
                )
                for job, token in zip(taken["jobs"], taken["tokens"], strict=True) if taken else ():
                    if await self._post(session, "ack", f"/jobs/{job['id']}/ack", {"token": token}):
                        async with self.progress:
                            if job["id"] in self.acked:
                                self.doubled.append(job["id"])
                            self.acked.add(job["id"])
                            self.progress.notify_all()

    @property
    def requests(self) -> int:
        """Requests that have come to an end."""
        return self.answered.total() + len(self.failed)

    async def until(self, acked: int, timeout_s: float = 90.0) -> None:
        """Wait until so many more have been acknowledged."""
        goal = len(self.acked) + acked
        async with asyncio.timeout(timeout_s), self.progress:
            await self.progress.wait_for(lambda: len(self.acked) >= goal)


class Load:
    """Some workers of one client while the block runs; an async context manager."""

    def __init__(self, client: Client, workers: int = 3) -> None:
        self._client = client
        self._workers = workers
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Client:
        self._tasks = [asyncio.create_task(self._client.run()) for _ in range(self._workers)]
        return self._client

    async def __aexit__(self, *_: object) -> None:
        self._client.stopping = True
        await asyncio.gather(*self._tasks)


async def roll(
    cluster: LocalCluster,
    client: Client,
    acked: int,
    change: Callable[[LocalNode], None] = lambda node: None,
) -> None:
    """Restart one node after the other; between two steps so many acknowledgements. change: made while the node is down."""
    for node in cluster.nodes:
        await client.until(acked)
        assert await node.stop() == 0, node.tail()
        await client.until(acked)
        change(node)
        await node.start()
        await cluster.ready([node])
    await client.until(acked)


async def lost(client: Client, node: LocalNode) -> list[str]:
    """Jobs whose push was answered and that a node does not know, or that were acknowledged and are not completed."""
    wrong = []
    gate = asyncio.Semaphore(16)
    async with aiohttp.ClientSession() as session:

        async def look(job_id: str) -> None:
            async with gate, session.get(f"{node.url}/jobs/{job_id}/state") as reply:
                state = (await reply.json())["state"]
            if state == "unknown" or (job_id in client.acked and state != "completed"):
                wrong.append(f"{job_id} is {state}")

        await asyncio.gather(*map(look, client.pushed))
    return wrong

"""Clients that load a cluster, a record of what it told them, and the check that every word of it was kept.

A write is a promise from the moment its 200 arrives; one without an answer may have happened or not, and both are right.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from scripts.tools.local_cluster import LocalCluster, LocalNode

# A queue keeps its last 10,000 completed jobs, and the check at the end wants to see all of them.
JOBS_PER_QUEUE = 4_000
PAGE = 500
LOCK_MS = 4_000
WORK_MS = 30
FAILS = 0.1
REQUEST_S = 6.0
BACK_OFF_S = 0.1
DRAIN_S = 120.0


@dataclass
class Told:
    """What clients know of one job. acked, attempted: by the fencing token of the delivery; seen: the highest one."""

    queue: str
    pushed: bool = False
    acked: int | None = None
    attempted: set[int] = field(default_factory=set)
    seen: int = 0


@dataclass
class History:
    """Everything that was asked and answered, as far as the check needs it."""

    jobs: dict[str, Told] = field(default_factory=dict)
    deliveries: dict[int, str] = field(default_factory=dict)
    highest_fence: int = 0
    wrong: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    acknowledged: list[float] = field(default_factory=list)

    def violated(self, text: str) -> None:
        if len(self.wrong) < 1000:
            self.wrong.append(text)

    def longest_pause_s(self) -> float:
        """The longest time in which no write of any client was acknowledged."""
        return max((b - a for a, b in itertools.pairwise(self.acknowledged)), default=0.0)

    def delivered(self, job_id: str, fence: int, highest_before: int) -> None:
        """A job was handed to a worker whose request was sent when `highest_before` had been seen by somebody."""
        if fence in self.deliveries:
            self.violated(f"fencing token {fence} was given twice: with {self.deliveries[fence]} and with {job_id}")
        self.deliveries[fence] = job_id
        if fence <= highest_before:
            self.violated(f"fencing token {fence} of {job_id} is not above {highest_before}, which was given before")
        self.highest_fence = max(self.highest_fence, fence)
        told = self.jobs[job_id]
        told.seen = max(told.seen, fence)
        if told.acked is not None and fence > told.acked:
            self.violated(f"{job_id} was delivered again (token {fence}) after it was completed (token {told.acked})")

    def completed(self, job_id: str, fence: int) -> None:
        """A worker's acknowledgement was answered with 200."""
        told = self.jobs[job_id]
        if told.acked not in (None, fence):
            self.violated(f"{job_id} was completed twice, with tokens {told.acked} and {fence}")
        told.acked = fence
        if told.seen > fence:
            self.violated(f"{job_id} was completed with token {fence}, and was delivered again with {told.seen}")


class Load:
    """Pushers, workers and readers, each going from node to node; an async context manager that stops them on the way out."""

    def __init__(
        self, cluster: LocalCluster, rng: random.Random, *, pushes_per_s: float = 60.0, clients: int = 3
    ) -> None:
        self.cluster = cluster
        self.history = History()
        self._rng = rng
        self._clients = clients
        self._pause_s = clients / pushes_per_s
        self._count = 0
        self._pushing = True
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._pushers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_S))
        for number in range(self._clients):
            self._pushers.append(asyncio.create_task(self._push(number)))
            self._tasks.append(asyncio.create_task(self._work(number)))
            self._tasks.append(asyncio.create_task(self._read(number)))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._pushing, self._stopping = False, True
        for task in (*self._pushers, *self._tasks):
            task.cancel()
        await asyncio.gather(*self._pushers, *self._tasks, return_exceptions=True)
        await self._session.close()

    def check_alive(self) -> None:
        """Raise what ended a client, if one has ended: a load that stopped proves nothing."""
        for task in (*self._pushers, *self._tasks):
            if task.done() and not task.cancelled() and (error := task.exception()):
                raise error

    async def drain(self) -> None:
        """Push no more, and wait until the workers have finished every job that is known to exist."""
        self._pushing = False
        await asyncio.gather(*self._pushers)
        deadline = time.monotonic() + DRAIN_S
        while left := await self._unfinished():
            self.check_alive()
            if time.monotonic() > deadline:
                self.history.violated(
                    f"{left} jobs were not finished within {DRAIN_S:.0f} s after everything was healed"
                )
                break
            await asyncio.sleep(0.2)
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _unfinished(self) -> int:
        left = 0
        for queue in self.queues():
            answer = await self._ask(self._rng.choice(self.cluster.nodes), "GET", f"/queues/{queue}/counts")
            counts = (answer or {}).get("counts", {"waiting": 1})
            left += sum(counts.get(state, 0) for state in ("waiting", "prioritized", "active", "delayed"))
        return left

    def queues(self) -> list[str]:
        """Names of the queues used so far."""
        return [f"chaos-{number}" for number in range(self._count // JOBS_PER_QUEUE + 1)]

    # -- requests ----------------------------------------------------------------------------------------------------

    async def _ask(self, node: LocalNode, method: str, path: str, body: Any = None) -> Any:
        """One request; None when it was not answered with 200, and then the error is counted."""
        try:
            async with self._session.request(method, node.url + path, json=body) as reply:
                answer = await reply.json()
                status = reply.status
        except TimeoutError:
            self._failed("timed out")
        except aiohttp.ClientError as error:
            self._failed("no connection" if isinstance(error, aiohttp.ClientConnectorError) else "connection lost")
        except ValueError:
            self._failed("answer cut short")
        else:
            if status == 200:
                self.history.answers[
                    f"{method} {path.split('?')[0].rsplit('/', 1)[-1] if method == 'POST' else 'read'}"
                ] += 1
                return answer
            self._failed(f"{status} {answer.get('code', '') if isinstance(answer, dict) else ''}".strip())
        return None

    def _failed(self, what: str) -> None:
        self.history.errors[what] += 1

    def _acknowledged(self) -> None:
        self.history.acknowledged.append(time.monotonic())

    def _next(self, node: LocalNode) -> LocalNode:
        """What a balancer would do after an error: another node."""
        return self._rng.choice([other for other in self.cluster.nodes if other is not node] or [node])

    async def _push(self, number: int) -> None:
        node = self.cluster.nodes[number % len(self.cluster.nodes)]
        while self._pushing:
            queue = self.queues()[-1]
            job_id = f"job-{self._count}"
            self._count += 1
            told = self.history.jobs[job_id] = Told(queue)
            body = {"jobId": job_id, "data": {"id": job_id, "text": "x" * 200}, "maxAttempts": 1000, "backoff": 20}
            # Never sent again: once finished, an id may be used for another job, and that would not be an error.
            if await self._ask(node, "POST", f"/queues/{queue}/jobs", body) is not None:
                told.pushed = True
                self._acknowledged()
                await asyncio.sleep(self._pause_s * self._rng.uniform(0.5, 1.5))
            else:
                node = self._next(node)
                await asyncio.sleep(BACK_OFF_S)

    async def _work(self, number: int) -> None:
        node = self.cluster.nodes[number % len(self.cluster.nodes)]
        while not self._stopping:
            queues = self.queues()
            queue = queues[-1] if self._rng.random() < 0.5 and self._pushing else self._rng.choice(queues)
            before = self.history.highest_fence
            body = {"count": 4, "timeout": 100, "owner": f"worker-{number}", "lockTtl": LOCK_MS}
            taken = await self._ask(node, "POST", f"/queues/{queue}/jobs/pull-batch", body)
            if taken is None:
                node = self._next(node)
                await asyncio.sleep(BACK_OFF_S)
                continue
            jobs = taken["jobs"]
            for job in jobs:
                self.history.delivered(job["id"], job["fencingToken"], before)
            for job, token in zip(jobs, taken.get("tokens") or [], strict=True):
                await asyncio.sleep(self._rng.uniform(0, WORK_MS / 1000))
                node = await self._finish(node, job["id"], job["fencingToken"], token)

    async def _finish(self, node: LocalNode, job_id: str, fence: int, token: str) -> LocalNode:
        """Complete or fail a job; try again elsewhere when there is no answer, as a good worker would."""
        fails = self._rng.random() < FAILS
        told = self.history.jobs[job_id]
        path, body = ("fail", {"error": "as chaos wills"}) if fails else ("ack", {"result": {"fence": fence}})
        if not fails:
            told.attempted.add(fence)
        for _ in range(3):
            errors = self.history.errors.total()
            answer = await self._ask(node, "POST", f"/jobs/{job_id}/{path}", body | {"token": token})
            if answer is not None:
                self._acknowledged()
                if not fails:
                    self.history.completed(job_id, fence)
                return node
            if self.history.errors.total() == errors:
                break
            node = self._next(node)
            await asyncio.sleep(BACK_OFF_S)
        return node

    async def _read(self, number: int) -> None:
        """Read, anywhere, what somebody was told before: a consistent read may not be older than that."""
        node = self.cluster.nodes[number % len(self.cluster.nodes)]
        while not self._stopping:
            await asyncio.sleep(self._rng.uniform(0.02, 0.1))
            if not self._count:
                continue
            job_id = f"job-{self._rng.randrange(max(0, self._count - 300), self._count)}"
            told = self.history.jobs[job_id]
            if not told.pushed:
                continue
            completed = told.acked is not None
            answer = await self._ask(node, "GET", f"/jobs/{job_id}/state")
            if answer is None:
                node = self._next(node)
                await asyncio.sleep(BACK_OFF_S)
            elif answer["state"] == "unknown":
                self.history.violated(f"{node.id} does not know {job_id}, whose push was answered before the read")
            elif completed and answer["state"] != "completed":
                self.history.violated(
                    f"{node.id} says {job_id} is {answer['state']}, which was completed before the read"
                )

    # -- the check -----------------------------------------------------------------------------------------------------

    async def verify(self, node: LocalNode) -> Counter[str]:
        """Compare what clients were told with what `node` holds now; violations go to the history. Returns jobs by state."""
        held: dict[str, dict[str, Any]] = {}
        for queue in self.queues():
            for offset in itertools.count(0, PAGE):
                answer = await self._ask(node, "GET", f"/queues/{queue}/jobs/list?limit={PAGE}&offset={offset}")
                if answer is None:
                    self.history.violated(f"{node.id} does not list its jobs at the end")
                    return Counter()
                held |= {job["id"]: job for job in answer["jobs"]}
                if len(answer["jobs"]) < PAGE:
                    break
        for job_id, told in self.history.jobs.items():
            job = held.get(job_id)
            if job is None:
                if told.pushed or told.acked is not None:
                    self.history.violated(f"{node.id}: {job_id} is lost: its push was answered")
                continue
            self._verify_one(node, job_id, told, job)
        for job_id in held.keys() - self.history.jobs.keys():
            self.history.violated(f"{node.id}: {job_id} is there, and nobody pushed it")
        return Counter(job["state"] for job in held.values())

    def _verify_one(self, node: LocalNode, job_id: str, told: Told, job: dict[str, Any]) -> None:
        result = job.get("returnvalue")
        if told.acked is not None and (job["state"] != "completed" or result != {"fence": told.acked}):
            self.history.violated(
                f"{node.id}: {job_id} was completed with token {told.acked}, and is {job['state']} with result {result}"
            )
        elif job["state"] == "completed" and (result or {}).get("fence") not in told.attempted:
            self.history.violated(f"{node.id}: {job_id} is completed with result {result}, which no worker sent")

"""Clients of a release: a steady rate of requests through its Service, none of them repeated, and the check of what was promised."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from typing import Any

import aiohttp

from tests.kubernetes.promises import Promises, Told
from tests.kubernetes.release import TOKEN, Release
from tests.support.kubernetes.cluster import Trouble

QUEUE = "orders"
LOCK_MS = 30_000
REQUEST_S = 30.0
PAGE = 500


class Clients:
    """Push, pull and acknowledge; an async context manager that stops them on the way out.

    rate: requests per second of all together.  failed: every request that was not answered 200, in words.
    """

    def __init__(self, release: Release, rate: float = 200.0, clients: int = 12) -> None:
        self.release = release
        self.history = Promises()
        self.failed: list[str] = []
        self._failed_at: list[float] = []
        self.requests = 0
        self.began = time.monotonic()
        self._pause_s = clients / rate
        self._count = clients
        # So that later clients of the same release use other ids.
        self._run_id = uuid.uuid4().hex[:8]
        self._numbers = itertools.count()
        self._stopping = False
        self._progress = asyncio.Condition()

    async def __aenter__(self) -> Clients:
        self.url = await self.release.url()
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=REQUEST_S),
            connector=aiohttp.TCPConnector(limit=0),
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        await self.release.until("the Service leads somewhere", self._answers)
        self.began = time.monotonic()
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(self._count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _answers(self) -> bool:
        """Whether what the API says has arrived where addresses are translated."""
        try:
            async with self._session.get(f"{self.url}/livez") as reply:
                return reply.status == 200
        except aiohttp.ClientError:
            return False

    async def stop(self) -> None:
        """Let what is under way end. Raises what ended a client."""
        self._stopping = True
        await asyncio.gather(*self._tasks)
        await self._session.close()

    @property
    def rate(self) -> float:
        """Requests per second so far."""
        return self.requests / (time.monotonic() - self.began)

    @property
    def now(self) -> float:
        """Seconds since the first request."""
        return time.monotonic() - self.began

    def failed_since(self, moment: float) -> list[str]:
        """Requests that began after that and failed: one that fails may take its time to do so."""
        return [text for text, at in zip(self.failed, self._failed_at, strict=True) if at > moment]

    async def until(self, more: int, timeout_s: float = 240.0) -> None:
        """Wait until so many more jobs have been acknowledged. Raises Trouble, with what a person would look at."""
        goal = len(self.acknowledged) + more
        try:
            async with asyncio.timeout(timeout_s), self._progress:
                await self._progress.wait_for(lambda: len(self.acknowledged) >= goal)
        except TimeoutError:
            lines = [
                f"{goal - len(self.acknowledged)} jobs of {more} are missing; at {self.now:.1f} s, {self.summary()}"
            ]
            raise Trouble("\n".join([*lines, *self.failed[-20:], await self.release.report()])) from None

    @property
    def acknowledged(self) -> list[str]:
        return [job for job, told in self.history.jobs.items() if told.acked is not None]

    async def _run(self, number: int) -> None:
        """One request after the other, at a steady pace; who is late does not hurry."""
        due = time.monotonic() + self._pause_s * number / self._count
        steps = self._steps(number)
        while not self._stopping:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due = max(due + self._pause_s, time.monotonic())
            await anext(steps)

    async def _steps(self, number: int) -> Any:
        while True:
            job_id = f"{self._run_id}-{next(self._numbers)}"
            told = self.history.jobs[job_id] = Told(QUEUE)
            body = {"jobId": job_id, "data": {"text": "x" * 100}, "maxAttempts": 1000}
            told.pushed = await self._ask("POST", f"/queues/{QUEUE}/jobs", body) is not None
            yield
            before = self.history.highest_fence
            pull = {"count": 1, "owner": f"worker-{number}", "lockTtl": LOCK_MS}
            taken = await self._ask("POST", f"/queues/{QUEUE}/jobs/pull-batch", pull)
            yield
            for job, token in zip(taken["jobs"], taken["tokens"], strict=True) if taken and taken["jobs"] else ():
                await self._finish(job["id"], job["fencingToken"], token, before)
                yield

    async def _finish(self, job_id: str, fence: int, token: str, before: int) -> None:
        self.history.delivered(job_id, fence, before)
        told = self.history.jobs[job_id]
        told.attempted.add(fence)
        if await self._ask("POST", f"/jobs/{job_id}/ack", {"token": token, "result": {"fence": fence}}) is not None:
            async with self._progress:
                self.history.completed(job_id, fence)
                self._progress.notify_all()

    async def _ask(self, method: str, path: str, body: Any = None) -> Any:
        self.requests += 1
        at = time.monotonic() - self.began
        try:
            async with self._session.request(method, self.url + path, json=body) as reply:
                answer = await reply.json(content_type=None)
                if reply.status == 200:
                    return answer
                text = f"{reply.status} {answer}"
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            text = repr(error)
        self.failed.append(f"after {at:.1f} s: {method} {path}: {text}")
        self._failed_at.append(at)
        return None

    async def broken(self, pod: str) -> list[str]:
        """Every promise that a node does not keep, in words; to be asked for after `stop`."""
        held: dict[str, dict[str, Any]] = {}
        for offset in itertools.count(0, PAGE):
            page = await self.release.ask(pod, f"/queues/{QUEUE}/jobs/list?limit={PAGE}&offset={offset}")
            held |= {job["id"]: job for job in page["jobs"]}
            if len(page["jobs"]) < PAGE:
                break
        wrong = list(self.history.wrong)
        for job_id, told in self.history.jobs.items():
            job = held.get(job_id)
            if job is None:
                if told.pushed or told.acked is not None:
                    wrong.append(f"{job_id} is lost: its push was answered")
            elif told.acked is not None:
                if job["state"] != "completed" or job.get("returnvalue") != {"fence": told.acked}:
                    wrong.append(
                        f"{job_id} was acknowledged with {told.acked}, and is {job['state']} {job.get('returnvalue')}"
                    )
            elif job["state"] == "completed" and (job.get("returnvalue") or {}).get("fence") not in told.attempted:
                wrong.append(f"{job_id} is completed, and nobody acknowledged it")
        return wrong

    def summary(self) -> str:
        jobs = self.history.jobs.values()
        pushed = sum(told.pushed for told in jobs)
        return (
            f"{self.requests} requests at {self.rate:.0f}/s, {len(self.failed)} failed; {pushed} jobs pushed, "
            f"{len(self.acknowledged)} acknowledged"
        )

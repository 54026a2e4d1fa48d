"""Process jobs by hand over HTTP: BullMQ's document "Manually processing jobs", line by line, with nothing but aiohttp.

    python examples/manual_processing.py http://127.0.0.1:8080 API_TOKEN QUEUE

It takes one job after the other until it is stopped. A job's lock is held by a token that this program chooses; as long as a job is
being worked on the lock is extended, and when this program dies the lock runs out and another one gets the job.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

LOCK_MS = 30_000
# How long a request for the next job waits for one.
WAIT_MS = 20_000

Job = dict[str, Any]


class Worker:
    """The calls of BullMQ's Worker and Job that the document uses, on one queue."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str, api_token: str, queue: str) -> None:
        self._session = session
        self._jobs = f"{base_url}/queues/{queue}/jobs"
        self._queue = f"{base_url}/queues/{queue}"
        self._headers = {"Authorization": f"Bearer {api_token}"}

    async def _post(self, url: str, body: Any) -> Any:
        async with self._session.post(url, json=body, headers=self._headers) as response:
            if response.status != 200:
                raise RuntimeError(f"{response.status}: {await response.text()}")
            return await response.json() if response.content_type == "application/json" else await response.text()

    async def get_next_job(self, token: str) -> Job | None:
        """Take the next job, or None when there was none for a while."""
        body = {"token": token, "lockDuration": LOCK_MS, "timeout": WAIT_MS}
        job: Job | None = await self._post(f"{self._jobs}/next", body)
        return job

    async def move_to_completed(self, job: Job, value: Any, token: str) -> Job | None:
        """Complete a job; return the next one, under the same token."""
        body = {"returnValue": value, "token": token, "fetchNext": True, "lockDuration": LOCK_MS}
        answer: dict[str, Job | None] = await self._post(f"{self._jobs}/{job['id']}/move-to-completed", body)
        return answer["next"]

    async def move_to_failed(self, job: Job, error: Exception, token: str) -> None:
        """Fail a run of a job: it is tried again while it has attempts left."""
        body = {"error": str(error), "token": token}
        await self._post(f"{self._jobs}/{job['id']}/move-to-failed", body)

    async def extend_lock(self, job: Job, token: str, duration_ms: int) -> None:
        """Keep a job for longer."""
        await self._post(f"{self._jobs}/{job['id']}/extend-lock", {"token": token, "duration": duration_ms})

    async def move_to_wait(self, job: Job, token: str) -> None:
        """Put a job back, first in line."""
        await self._post(f"{self._jobs}/{job['id']}/move-to-wait", {"token": token})

    async def rate_limit(self, duration_ms: int) -> None:
        """Have the queue give out no jobs for a while."""
        await self._post(f"{self._queue}/rate-limit", {"duration": duration_ms})


@contextlib.asynccontextmanager
async def locked(worker: Worker, job: Job, token: str) -> AsyncIterator[None]:
    """Extend a job's lock after each half of it while the body runs."""

    async def extend() -> None:
        while True:
            await asyncio.sleep(LOCK_MS / 2000)
            await worker.extend_lock(job, token, LOCK_MS)

    extending = asyncio.create_task(extend())
    try:
        yield
    finally:
        extending.cancel()


async def process(job: Job) -> Any:
    """Do the work. What it returns becomes the job's returnvalue; raising makes the run a failed one."""
    if isinstance(job["data"], dict) and "fail" in job["data"]:
        raise ValueError(job["data"]["fail"])
    return {"processed": job["data"]}


async def main(base_url: str, api_token: str, queue: str) -> None:
    """Work until cancelled: the loop of the document."""
    async with aiohttp.ClientSession() as session:
        worker = Worker(session, base_url, api_token, queue)
        token = str(uuid.uuid4())
        job: Job | None = None
        while True:
            if job is None:
                job = await worker.get_next_job(token)
                continue
            try:
                async with locked(worker, job, token):
                    value = await process(job)
            except ValueError as error:
                await worker.move_to_failed(job, error, token)
                job = None
            else:
                job = await worker.move_to_completed(job, value, token)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:4]))

"""examples/manual_processing.py, the loop of BullMQ's document, against a node."""

from __future__ import annotations

import asyncio
import contextlib
import runpy
from pathlib import Path
from typing import Any

from tests.api.bullmq import Bull

EXAMPLE = Path(__file__).parents[2] / "examples" / "manual_processing.py"


async def test_the_loop_processes_what_there_is_and_what_comes(serve: Any) -> None:
    bull = Bull(await serve(auth_tokens=("tok1",)))
    example = runpy.run_path(str(EXAMPLE))
    await bull.add_many(*({"name": "n", "data": number} for number in range(3)))
    await bull.add(data={"fail": "no luck"}, attempts=2)
    queue = bull.server.node.machine.state.queues["que"]
    working = asyncio.create_task(example["main"](bull.base, "tok1", "que"))
    async with asyncio.timeout(20):
        await bull.until(lambda: len(queue.completed) + len(queue.failed) == 4)
        # The loop waits for the next job now; a new one wakes it.
        while not bull.server.node.waiters.count:
            await asyncio.sleep(0)
        await bull.add(data="late")
        await bull.until(lambda: len(queue.completed) + len(queue.failed) == 5)
    working.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await working
    page = (await bull.get("/queues/que/jobs?statuses=completed")).json
    assert [job["returnvalue"] for job in page["jobs"]] == [{"processed": x} for x in ("late", 2, 1, 0)]
    failed = (await bull.get("/queues/que/jobs?statuses=failed")).json["jobs"]
    assert [(job["failedReason"], job["attemptsMade"]) for job in failed] == [("no luck", 2)]


async def test_a_rate_limited_queue(serve: Any) -> None:
    """The last example of the document: the job goes back, and the queue gives out nothing."""
    bull = Bull(await serve(auth_tokens=("tok1",)))
    example = runpy.run_path(str(EXAMPLE))
    await bull.add(data={"foo": "bar"})
    worker = example["Worker"](bull.client.session, bull.base, "tok1", "que")
    job = await worker.get_next_job("my-token")
    await worker.rate_limit(60_000)
    await worker.move_to_wait(job, "my-token")
    assert await bull.state(job["id"]) == "waiting"
    assert await bull.next() is None

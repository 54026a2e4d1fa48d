"""A node over the local engine, with a clock that tests move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operations.jobs import PushJobs
from quorumq.node.machine.operations.runs import PullJobs
from quorumq.node.machine.state import job_spec
from quorumq.node.node import Node
from tests.support.local import LocalEngine
from tests.support.world import START_MS


@dataclass
class Local:
    """One node, its engine and its machine."""

    now_ms: int = START_MS
    ids: int = 0
    machine: Machine = field(default_factory=Machine)

    def __post_init__(self) -> None:
        self.engine = LocalEngine(self.machine, clock=lambda: self.now_ms)
        self.engine.keep_entries = True
        self.node = Node(self.engine, self.machine, clock=lambda: self.now_ms)

    async def push(self, queue: str = "q", **options: Any) -> str:
        self.ids += 1
        spec = job_spec(f"job-{self.ids}", b"1", **options)
        return await self.node.submit(PushJobs(queue, [spec]), lambda reply: reply.ids[0])

    async def pull(self, wait_ms: int = 0, *, count: int = 1, queue: str = "q", owner: str | None = None) -> list[str]:
        return await self.node.pull(
            PullJobs(queue, count, owner), lambda reply: [job.id for job in reply.jobs], wait_ms=wait_ms
        )

    def pull_later(self, wait_ms: int = 60_000, **more: Any) -> asyncio.Task[list[str]]:
        return asyncio.get_running_loop().create_task(self.pull(wait_ms, **more))

    async def settle(self) -> None:
        """Let everything happen that does not need time to pass."""
        for _ in range(20):
            await asyncio.sleep(0)

    def state_of(self, job_id: str) -> str:
        return self.machine.state.jobs[job_id].state


@pytest.fixture
async def local() -> AsyncIterator[Local]:
    local = Local()
    await local.engine.start()
    await local.node.start()
    yield local
    await local.node.stop()
    await local.engine.stop()
    assert local.machine.errors == 0

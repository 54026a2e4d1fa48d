"""A machine with a clock of its own, and builders for jobs in any state: what tests of operations start from.

Every operation goes through its bytes, as it would through the log.
"""

from __future__ import annotations

from typing import Any

import msgspec

from quorumq.node.machine.events import Event
from quorumq.node.machine.levels import KNOWN
from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operation import Entry, Operation, Query
from quorumq.node.machine.operations.adding import AddJobs, FindJob
from quorumq.node.machine.operations.jobs import PushJobs
from quorumq.node.machine.operations.runs import AckJob, FailJob, PullJobs
from quorumq.node.machine.refusals import Refusal
from quorumq.node.machine.state import Job, job_spec
from tests.support.indexes import check_indexes

START_MS = 1_800_000_000_000
encode = msgspec.msgpack.Encoder().encode


class World:
    """One machine, its clock, and what its entries reported."""

    def __init__(self, *, now_ms: int = START_MS, level: int = KNOWN) -> None:
        self.machine = Machine()
        self.machine.state.level = level
        self.machine.events_wanted = True
        self.machine.listen(self._on_entry)
        self.now_ms = now_ms
        self.events: list[Event] = []
        self.woken: list[str] = []
        self.ended: list[Job] = []
        self._ids = 0

    def _on_entry(self, entry: Entry) -> None:
        self.events += entry.events or []
        self.woken += entry.woken
        self.ended += entry.ended

    # -- The log

    def apply(self, *operations: Operation) -> list[Any]:
        """Apply operations as one batch of one entry; refusals are values."""
        outcomes = self.machine.apply(self.machine.index + 1, self.now_ms, [encode(list(operations))])
        return outcomes[0]

    def do(self, operation: Operation) -> Any:
        """Apply one operation; a refusal is raised."""
        reply = self.apply(operation)[0]
        if isinstance(reply, Refusal):
            raise reply
        return reply

    def count(self, queue: str) -> int:
        """Return how many jobs a queue has, in whatever state."""
        return len(self.machine.state.queues[queue].jobs) if queue in self.machine.state.queues else 0

    def ask(self, query: Query) -> Any:
        return query.answer(self.machine.state)

    def wait(self, ms: int) -> None:
        """Let time pass, and do what becomes due meanwhile at its own time, as the pulse does."""
        until = self.now_ms + ms
        while True:
            due = self.machine.state.next_due_ms(self.now_ms)
            if due is None or due > until:
                break
            self.now_ms = max(due, self.now_ms)
            self.tick()
        self.now_ms = until
        self.tick()

    def tick(self) -> None:
        """Apply an entry without operations."""
        self.machine.apply(self.machine.index + 1, self.now_ms, [])

    def resume(self, *operations: Operation) -> list[Any]:
        """Apply operations as the first entry of a leader."""
        index = self.machine.index + 1
        return self.machine.apply(index, self.now_ms, [encode(list(operations))], resumed=True)[0]

    # -- Builders

    def new_id(self) -> str:
        self._ids += 1
        return f"job-{self._ids}"

    def push(self, queue: str = "q", job_id: str | None = None, data: bytes = b"{}", **options: Any) -> str:
        """Push one job and return the id the server gave."""
        spec = job_spec(job_id or self.new_id(), data, custom=job_id is not None, **options)
        return self.do(PushJobs(queue, [spec])).ids[0]

    def add(self, queue: str = "q", own: str = "", data: bytes = b"{}", **options: Any) -> Job:
        """Add one job as the BullMQ dialect does, with that dialect's defaults; return it, or the one that stands for it."""
        options = {"max_attempts": 1, "backoff": 0, "rejoin_last": True, "stalls_allowed": 1} | options
        reply = self.do(AddJobs(queue, [job_spec(own, data, **options)]))
        return self.ask(FindJob(queue, reply.ids[0]))

    def pull(self, queue: str = "q", count: int = 1, **lock: Any) -> list[Job]:
        return self.do(PullJobs(queue, count, **lock)).jobs

    def pull_ids(self, queue: str = "q", count: int = 1, **lock: Any) -> list[str]:
        return [job.id for job in self.pull(queue, count, **lock)]

    def a_job(self, state: str = "waiting", queue: str = "q", **options: Any) -> Job:
        """Return a new job in the state asked for, in a queue where nothing else is ready."""
        if state == "delayed":
            options.setdefault("delay_ms", 60_000)
        if state == "waiting-children":
            options["depends_on"] = (self.a_job("delayed", queue).id,)
        if state == "failed":
            options["max_attempts"] = 1
        job = self.job(self.push(queue, **options))
        if state == "locked":
            assert self.pull(queue, owner="worker", token_seed=f"token-{job.id}") == [job]
        elif state in ("active", "completed", "failed"):
            assert self.pull(queue) == [job]
        if state == "completed":
            self.do(AckJob(job.id))
        if state == "failed":
            self.do(FailJob(job.id, error="broken"))
        assert job.state == ("active" if state == "locked" else state)
        return job

    def job(self, job_id: str) -> Job:
        return self.machine.state.jobs[job_id]

    def state_of(self, job_id: str) -> str:
        job = self.machine.state.jobs.get(job_id)
        return "unknown" if job is None else job.shown_state

    def event_names(self) -> list[str]:
        """Return the names of the events so far and forget them."""
        names = [event.name for event in self.events]
        self.events.clear()
        return names

    # -- Checks

    def restored(self) -> Machine:
        """Return a machine made from the image of this one."""
        other = Machine()
        other.restore(self.machine.image())
        return other

    def check(self) -> None:
        """Check what must hold at any time: no bug was met, and the image is the whole state."""
        assert self.machine.errors == 0
        check_indexes(self.machine.state)
        other = self.restored()
        assert other.digest() == self.machine.digest()
        assert other.full_digest() == self.machine.full_digest()

"""The registry of workers: who says that it works on which queues, and how it is doing."""

from __future__ import annotations

from typing import Annotated

import msgspec

from quorumq.node.machine import events as happened
from quorumq.node.machine.bounds import PATH_CHARS_MAX, Key, QueueName, bounded
from quorumq.node.machine.operation import Entry, Operation, Query, operation, query
from quorumq.node.machine.refusals import TooManyWorkers, WorkerNotFound
from quorumq.node.machine.state import State
from quorumq.node.machine.state.worker import WORKERS_MAX, Worker

WorkerId = Annotated[str, bounded(PATH_CHARS_MAX, "Id of a worker: made by the server, or its own.")]


class Registered(msgspec.Struct, frozen=True, gc=False):
    """A worker as it is registered now."""

    worker: Worker


@operation(emits=(happened.WorkerConnected,), refuses=(TooManyWorkers,))
class RegisterWorker(Operation, frozen=True, tag="worker.register"):
    """Register a worker; one that is known gets other queues, concurrency, host and process, and keeps its name and counts.

    A worker that is not heard of is stale after 30 seconds and forgotten after 90.
    """

    worker_id: WorkerId
    name: Key | None = None
    queues: tuple[QueueName, ...] = ()
    concurrency: int = 1
    hostname: Key = "unknown"
    pid: int = 0

    def apply(self, state: State, entry: Entry) -> Registered:
        workers, now_ms = state.workers, state.now_ms
        known = workers.by_id.get(self.worker_id)
        if known is None and len(workers.by_id) >= WORKERS_MAX:
            raise TooManyWorkers(WORKERS_MAX)
        worker = Worker(
            self.worker_id,
            self.name if known is None else known.name,
            self.queues,
            self.concurrency,
            self.hostname,
            self.pid,
            now_ms if known is None else known.registered_at,
            now_ms,
        )
        if known is not None:
            worker.active_jobs, worker.current_job = known.active_jobs, known.current_job
            worker.processed, worker.failed = known.processed, known.failed
        workers.put(worker)
        state.mark += 83 + len(workers.by_id)
        state.emit(happened.WorkerConnected(worker.id, worker.name, worker.queues, worker.hostname, worker.pid))
        return Registered(worker)


@operation(emits=(happened.WorkerDisconnected,), refuses=(WorkerNotFound,), newer={"heard_at": 1})
class UnregisterWorker(Operation, frozen=True, tag="worker.unregister"):
    """Take a worker off the registry; what it did stays in the totals.

    heard_at: only when it was last heard of at this time of the log: what one of its connections says that is gone does not count any
    more when it has come back over another one.
    """

    worker_id: WorkerId
    heard_at: int | None = None

    def apply(self, state: State, entry: Entry) -> None:
        worker = known_worker(state, self.worker_id)
        if self.heard_at is not None and worker.last_seen != self.heard_at:
            return
        state.workers.remove(worker)
        state.mark += 89
        state.emit(happened.WorkerDisconnected(self.worker_id, worker.queues))


@operation(emits=(happened.WorkerHeartbeat, happened.WorkerErred), refuses=(WorkerNotFound,))
class HeartbeatWorker(Operation, frozen=True, tag="worker.heartbeat"):
    """Say that a worker is alive, and how it is doing; what is not given stays.

    What it says of its jobs goes before what was counted of those that it took with its id as owner, which counts on from there.
    """

    worker_id: WorkerId
    active_jobs: int | None = None
    processed: int | None = None
    failed: int | None = None
    current_job: Key | None = None

    def apply(self, state: State, entry: Entry) -> Registered:
        worker = known_worker(state, self.worker_id)
        state.workers.see(worker, state.now_ms)
        state.mark += 97
        state.emit(happened.WorkerHeartbeat(worker.id, worker.queues))
        if self.active_jobs is not None:
            worker.active_jobs = self.active_jobs
        if self.processed is not None:
            worker.processed = self.processed
        if self.current_job is not None:
            worker.current_job = self.current_job
        if self.failed is not None:
            state.count_failures(worker, self.failed)
        return Registered(worker)


def known_worker(state: State, worker_id: str) -> Worker:
    """Return a registered worker. Raises WorkerNotFound."""
    worker = state.workers.by_id.get(worker_id)
    if worker is None:
        raise WorkerNotFound(worker_id)
    return worker


class WorkerList(msgspec.Struct, frozen=True, gc=False):
    """All workers in order of registration, and sums.

    now_ms: of the log, for how long each has been up.  active: workers that are not stale.  processed, failed: of all
    workers ever.  active_jobs, slots: of those that are registered.
    """

    workers: list[Worker]
    now_ms: int
    active: int
    processed: int
    failed: int
    active_jobs: int
    slots: int


@query
class ListWorkers(Query, frozen=True):
    """Registered workers, those of one queue if one is named; the sums are always over all."""

    queue: QueueName | None = None

    def answer(self, state: State) -> WorkerList:
        registry = state.workers
        every = list(registry.by_id.values())
        return WorkerList(
            [worker for worker in every if self.queue is None or self.queue in worker.queues],
            state.now_ms,
            registry.active_count,
            registry.gone.processed + sum(worker.processed for worker in every),
            registry.gone.failed + sum(worker.failed for worker in every),
            sum(worker.active_jobs for worker in every),
            sum(worker.concurrency for worker in every),
        )

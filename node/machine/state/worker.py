"""Workers that registered themselves: who works on what, and when each was heard of last.

The registry is information for people; no lock and no job depends on it. Its figures follow the jobs that are taken under an id.
"""

from __future__ import annotations

import msgspec

WORKERS_MAX = 10_000
# Silence after which a worker counts as stale, and after which it is forgotten.
STALE_MS = 30_000
FORGET_MS = 90_000
# Workers say themselves what they did: their totals must fit the image whatever they say.
TOTAL_MAX = 2**63 - 1
# Failures of one worker that are worth an event.
FAILURES_SHOWN = (5, 10, 25, 50, 100)


class Worker(msgspec.Struct, gc=False, array_like=True):
    """One registration. active_jobs, processed, failed: jobs, as the worker says in its heartbeats, and of those that it takes as
    their owner since.  stale: not heard of for STALE_MS."""

    id: str
    name: str | None
    queues: tuple[str, ...]
    concurrency: int
    hostname: str
    pid: int
    registered_at: int
    last_seen: int
    active_jobs: int = 0
    processed: int = 0
    failed: int = 0
    current_job: str | None = None
    stale: bool = False


class Gone(msgspec.Struct, gc=False, array_like=True):
    """What workers that are registered no more had done, so that totals never go back."""

    processed: int = 0
    failed: int = 0


class WorkerTable:
    """All registrations by id, in order of registration, and in order of the last sign of life."""

    __slots__ = ("_fresh", "_stale", "by_id", "gone", "queues")

    def __init__(self) -> None:
        self.by_id: dict[str, Worker] = {}
        self.gone = Gone()
        # How many fresh workers say that they work on a queue.
        self.queues: dict[str, int] = {}
        # Longest silent first.
        self._fresh: dict[str, Worker] = {}
        self._stale: dict[str, Worker] = {}

    @property
    def active_count(self) -> int:
        return len(self._fresh)

    def next_due(self) -> int:
        """Return when the next worker becomes stale or is forgotten; 0 for never."""
        due = 0
        if self._fresh:
            due = next(iter(self._fresh.values())).last_seen + STALE_MS
        if self._stale:
            forget = next(iter(self._stale.values())).last_seen + FORGET_MS
            due = min(due, forget) if due else forget
        return due

    def put(self, worker: Worker) -> None:
        """Add a registration, or one that has changed, as the one heard of last."""
        present = self.by_id.get(worker.id)
        if present is not None:
            self._file_out(present)
        self.by_id[worker.id] = worker
        self._file_in(worker)

    def see(self, worker: Worker, now_ms: int) -> None:
        """Note a sign of life."""
        self._file_out(worker)
        worker.last_seen = now_ms
        worker.stale = False
        self._file_in(worker)

    def remove(self, worker: Worker) -> None:
        """Forget a registration, but not what it did."""
        self._file_out(worker)
        del self.by_id[worker.id]
        self.gone.processed = min(self.gone.processed + worker.processed, TOTAL_MAX)
        self.gone.failed = min(self.gone.failed + worker.failed, TOTAL_MAX)

    def age(self, now_ms: int) -> list[Worker]:
        """Mark workers stale and forget the longest silent; return those that were forgotten."""
        while self._fresh:
            worker = next(iter(self._fresh.values()))
            if worker.last_seen + STALE_MS > now_ms:
                break
            self._file_out(worker)
            worker.stale = True
            self._file_in(worker)
        forgotten: list[Worker] = []
        while self._stale:
            worker = next(iter(self._stale.values()))
            if worker.last_seen + FORGET_MS > now_ms:
                break
            self.remove(worker)
            forgotten.append(worker)
        # Those who were silent equally long have no order of their own that an image would keep.
        return sorted(forgotten, key=lambda worker: (worker.last_seen, worker.id))

    def restore(self, workers: list[Worker], gone: Gone) -> None:
        """Take registrations over from an image."""
        self.gone = gone
        self.by_id = {worker.id: worker for worker in workers}
        for worker in sorted(workers, key=lambda worker: worker.last_seen):
            self._file_in(worker)

    def _file_in(self, worker: Worker) -> None:
        if worker.stale:
            self._stale[worker.id] = worker
            return
        self._fresh[worker.id] = worker
        for queue in dict.fromkeys(worker.queues):
            self.queues[queue] = self.queues.get(queue, 0) + 1

    def _file_out(self, worker: Worker) -> None:
        if worker.stale:
            del self._stale[worker.id]
            return
        del self._fresh[worker.id]
        for queue in dict.fromkeys(worker.queues):
            left = self.queues[queue] - 1
            if left:
                self.queues[queue] = left
            else:
                del self.queues[queue]

"""The job queue once more, as plainly as it can be written: lists that are searched, nothing that is kept in order.

It knows the rules, not the indexes. Whatever it answers, the machine has to answer, in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

QUEUED = ("waiting", "delayed", "waiting-children")
DAY_MS = 24 * 3600 * 1000
STALL_MS = 30_000
GRACE_MS = 5_000
STALLS_MAX = 3
DLQ_AGE_MS = 604_800_000


@dataclass
class ModelJob:
    id: str
    queue: str
    seq: int
    created_at: int
    opts: dict[str, Any]
    state: str = "waiting"
    run_at: int = 0
    attempts: int = 0
    stalls: int = 0
    token: str | None = None
    lock_until: int = 0
    lock_ms: int = 0
    started_at: int = 0
    heard_at: int = 0
    finished_at: int = 0
    ending: int = 0
    fence: int = 0
    progress: float = 0
    result: bytes | None = None
    waits_for: list[str] = field(default_factory=list)
    has_key: bool = False
    place: int = 0

    def opt(self, name: str, default: Any = None) -> Any:
        return self.opts.get(name, default)

    @property
    def order(self) -> tuple[int, int]:
        return (-self.opt("priority", 0), self.place or (-self.seq if self.opt("lifo") else self.seq))

    @property
    def finished(self) -> bool:
        return self.state in ("completed", "failed")

    def due(self) -> int | None:
        """When something happens to this job by itself."""
        moments: list[int] = []
        if self.state in QUEUED and self.opt("ttl_ms") is not None:
            moments.append(self.created_at + self.opt("ttl_ms"))
        if self.state == "delayed":
            moments.append(self.run_at)
        if self.state == "active":
            if self.lock_until:
                moments.append(self.lock_until)
            else:
                moments.append(max(self.heard_at + STALL_MS, self.started_at + GRACE_MS))
            if self.opt("timeout_ms"):
                moments.append(self.started_at + self.opt("timeout_ms"))
        if self.state == "failed":
            moments.append(self.finished_at + DLQ_AGE_MS)
        return min(moments, default=None)


class Refused(Exception):
    """Carries the code of the refusal the machine should give."""


class Model:
    """All queues. Every method answers what the operation of the same name replies, in plain values."""

    def __init__(self, now_ms: int) -> None:
        self.now = now_ms
        self.seq = self.fence = self.endings = 0
        self.jobs: list[ModelJob] = []
        self.gone: set[str] = set()
        self.paused: set[str] = set()
        self.concurrency: dict[str, int] = {}
        self.rates: dict[str, tuple[int, Fraction, int]] = {}

    # -- Looking

    def find(self, job_id: str) -> ModelJob | None:
        return next((job for job in self.jobs if job.id == job_id), None)

    def in_state(self, queue: str, *states: str) -> list[ModelJob]:
        return [job for job in self.jobs if job.queue == queue and job.state in states]

    def waiting(self, queue: str) -> list[ModelJob]:
        return sorted(self.in_state(queue, "waiting"), key=lambda job: job.order)

    def list_all(self, queue: str) -> list[str]:
        found = [job for job in self.jobs if job.queue == queue]
        return [job.id for job in sorted(found, key=lambda job: job.order)]

    def counts(self, queue: str) -> dict[str, int]:
        states = ("waiting", "delayed", "active", "waiting-children", "completed", "failed")
        counts = {state.replace("-", "_"): len(self.in_state(queue, state)) for state in states}
        counts["prioritized"] = len([job for job in self.waiting(queue) if job.opt("priority", 0) > 0])
        return counts

    def priority_counts(self, queue: str) -> dict[int, int]:
        counts: dict[int, int] = {}
        for job in self.in_state(queue, "waiting", "delayed"):
            priority = job.opt("priority", 0)
            counts[priority] = counts.get(priority, 0) + 1
        return dict(sorted(counts.items()))

    # -- Time

    def advance(self, to_ms: int) -> None:
        self.now = to_ms
        while True:
            due = [(job.due(), job.seq, job) for job in self.jobs]
            ripe = sorted((when, seq) for when, seq, _ in due if when is not None and when <= to_ms)
            if not ripe:
                return
            self.ring(next(job for _, seq, job in due if seq == ripe[0][1]))

    def next_due(self) -> int | None:
        return min((when for when in (job.due() for job in self.jobs) if when is not None), default=None)

    def ring(self, job: ModelJob) -> None:
        if job.state in QUEUED:
            if job.opt("ttl_ms") is not None and job.created_at + job.opt("ttl_ms") <= self.now:
                self.jobs.remove(job)
            else:
                job.state = "waiting"
        elif job.state == "failed":
            self.jobs.remove(job)
        elif job.opt("timeout_ms") and job.started_at + job.opt("timeout_ms") <= self.now:
            self.end_run(job, final=False)
        else:
            token, was_locked = job.token, job.lock_until > 0
            job.stalls += 1
            backoff = 0 if was_locked else self.backoff(job, job.attempts + 1)
            self.end_run(job, final=job.stalls >= STALLS_MAX, delay=backoff)
            if not job.finished:
                job.token = token

    def backoff(self, job: ModelJob, failures: int) -> int:
        return min(job.opt("backoff", 1000) * 2 ** (failures - 1), DAY_MS)

    def end_run(self, job: ModelJob, *, final: bool, delay: int | None = None) -> None:
        job.attempts += 1
        job.token, job.lock_until = None, 0
        if final or job.attempts >= job.opt("max_attempts", 3):
            self.bury(job)
        else:
            job.run_at = self.now + (self.backoff(job, job.attempts) if delay is None else delay)
            job.state = "delayed" if job.run_at > self.now else "waiting"

    def bury(self, job: ModelJob) -> None:
        self.endings += 1
        job.state, job.finished_at, job.ending, job.has_key = "failed", self.now, self.endings, False
        job.token, job.lock_until = None, 0
        if job.opt("remove_on_fail"):
            self.jobs.remove(job)

    # -- Operations

    def push(self, queue: str, job_id: str, **opts: Any) -> str:
        depends_on = opts.get("depends_on", ())
        for other_id in depends_on:
            if other_id == job_id or (self.find(other_id) is None and other_id not in self.gone):
                raise Refused("dependency_not_found")
        present = self.find(job_id)
        if present is not None and not present.finished:
            return job_id
        key = opts.get("unique_key")
        if key is not None:
            for job in self.jobs:
                if job.queue == queue and job.has_key and job.opt("unique_key") == key:
                    return job.id
        if present is not None:
            self.jobs.remove(present)
        self.seq += 1
        job = ModelJob(job_id, queue, self.seq, self.now, opts, has_key=key is not None)
        job.run_at = self.now + opts.get("delay_ms", 0)
        self.jobs.append(job)
        for other_id in depends_on:
            other = self.find(other_id)
            if other is not None and other.state != "completed":
                job.waits_for.append(other_id)
        if job.waits_for:
            job.state = "waiting-children"
        elif job.run_at > self.now:
            job.state = "delayed"
        if opts.get("ttl_ms") == 0:
            self.jobs.remove(job)
        return job_id

    def pull(self, queue: str, count: int, owner: str | None, lock_ms: int, seed: str) -> list[str]:
        taken: list[str] = []
        while len(taken) < count and queue not in self.paused:
            active = self.in_state(queue, "active")
            if len(active) >= self.concurrency.get(queue, 10**9):
                break
            if queue in self.rates and self.tokens(queue) < 1:
                break
            busy = {job.opt("group_id") for job in active} - {None}
            ready = [job for job in self.waiting(queue) if job.opt("group_id") not in busy]
            if not ready:
                break
            job = ready[0]
            self.fence += 1
            job.state, job.fence, job.started_at, job.heard_at = "active", self.fence, self.now, self.now
            job.token = None if owner is None else f"{seed}-{len(taken)}"
            job.lock_ms = lock_ms
            job.lock_until = 0 if owner is None else self.now + lock_ms
            taken.append(job.id)
            self.spend(queue, 1)
        return taken

    def active(self, job_id: str) -> ModelJob:
        job = self.find(job_id)
        if job is None:
            raise Refused("job_not_found")
        if job.state != "active":
            raise Refused("job_not_active")
        return job

    def held(self, job_id: str, token: str | None, *, late: bool) -> ModelJob:
        job = self.find(job_id)
        if (
            late
            and job is not None
            and job.state in ("waiting", "delayed")
            and token is not None
            and job.token == token
        ):
            return job
        job = self.active(job_id)
        if job.token is not None and job.token != token:
            raise Refused("lock_required" if token is None else "lock_lost")
        return job

    def ack(self, job_id: str, token: str | None, result: bytes | None) -> str:
        job = self.held(job_id, token, late=True)
        self.endings += 1
        job.state, job.result, job.finished_at, job.ending = "completed", result, self.now, self.endings
        job.token, job.lock_until, job.has_key = None, 0, False
        if job.opt("remove_on_complete"):
            self.jobs.remove(job)
            self.gone.add(job_id)
        for other in self.jobs:
            if job_id in other.waits_for:
                other.waits_for = [i for i in other.waits_for if i != job_id]
                if not other.waits_for:
                    other.state = "delayed" if other.run_at > self.now else "waiting"
        return job_id

    def fail(self, job_id: str, token: str | None, unrecoverable: bool) -> str:
        job = self.held(job_id, token, late=False)
        self.end_run(job, final=unrecoverable)
        return job_id

    def heartbeat(self, job_id: str, token: str | None, duration_ms: int | None) -> str:
        job = self.active(job_id)
        if token is not None and job.token != token:
            raise Refused("lock_lost")
        self.beat(job, duration_ms)
        return job_id

    def extend_lock(self, job_id: str, token: str | None, duration_ms: int | None) -> str:
        job = self.active(job_id)
        if not job.lock_until:
            raise Refused("job_not_locked")
        return self.heartbeat(job_id, token, duration_ms)

    def beat(self, job: ModelJob, duration_ms: int | None) -> None:
        job.heard_at = self.now
        if job.lock_until:
            job.lock_ms = job.lock_ms if duration_ms is None else duration_ms
            job.lock_until = self.now + job.lock_ms

    def report(self, job_id: str, progress: float) -> str:
        job = self.active(job_id)
        job.progress, job.heard_at = min(max(progress, 0), 100), self.now
        return job_id

    def cancel(self, job_id: str) -> str:
        job = self.find(job_id)
        if job is None:
            raise Refused("job_not_found")
        if job.finished:
            raise Refused("job_in_wrong_state")
        self.jobs.remove(job)
        return job_id

    def promote(self, job_id: str) -> str:
        job = self.find(job_id)
        if job is None:
            raise Refused("job_not_found")
        if job.state != "delayed":
            raise Refused("job_in_wrong_state")
        job.state, job.run_at = "waiting", self.now
        return job_id

    # -- Managing

    def unfinished(self, job_id: str, *states: str) -> ModelJob:
        job = self.find(job_id)
        if job is None:
            raise Refused("job_not_found")
        if job.state not in states:
            raise Refused("job_in_wrong_state")
        return job

    def change_priority(self, job_id: str, priority: int) -> str:
        job = self.unfinished(job_id, *QUEUED)
        job.opts = {**job.opts, "priority": priority}
        return job_id

    def move_to_wait(self, job_id: str, token: str | None) -> str:
        job = self.held(job_id, token, late=False)
        self.seq += 1
        job.state, job.token, job.lock_until, job.run_at = "waiting", None, 0, self.now
        job.place = -self.seq
        return job_id

    def delay(self, job_id: str, delay_ms: int) -> str:
        job = self.unfinished(job_id, "active", "waiting", "delayed")
        job.run_at, job.token, job.lock_until = self.now + delay_ms, None, 0
        job.state = "delayed" if delay_ms > 0 else "waiting"
        return job_id

    def discard(self, job_id: str) -> str:
        job = self.unfinished(job_id, "active", *QUEUED)
        self.bury(job)
        return job_id

    def drain(self, queue: str) -> int:
        return self.drop(self.in_state(queue, "waiting", "delayed"))

    def obliterate(self, queue: str) -> int:
        self.paused.discard(queue)
        self.concurrency.pop(queue, None)
        self.rates.pop(queue, None)
        return self.drop([job for job in self.jobs if job.queue == queue])

    def drop(self, jobs: list[ModelJob]) -> int:
        self.jobs = [job for job in self.jobs if job not in jobs]
        return len(jobs)

    def clean(self, queue: str, grace_ms: int, state: str | None, limit: int) -> list[str]:
        if state in ("completed", "failed"):
            old = [job for job in self.in_state(queue, state) if job.finished_at <= self.now - grace_ms]
            old.sort(key=lambda job: job.ending)
        else:
            states = ("waiting", "delayed") if state is None else (state,)
            old = [job for job in self.in_state(queue, *states) if job.created_at <= self.now - grace_ms]
            old.sort(key=lambda job: job.seq)
        self.drop(old[:limit])
        return [job.id for job in old[:limit]]

    def promote_jobs(self, queue: str, count: int | None) -> int:
        jobs = sorted(self.in_state(queue, "delayed"), key=lambda job: (job.run_at, job.seq))[:count]
        for job in jobs:
            self.promote(job.id)
        return len(jobs)

    def revive(self, queue: str, state: str, job_id: str | None) -> int:
        jobs = [job for job in self.in_state(queue, state) if job_id in (None, job.id)]
        for job in sorted(jobs, key=lambda job: job.ending):
            job.state, job.attempts, job.stalls, job.progress, job.result = "waiting", 0, 0, 0, None
            job.run_at, job.ending = self.now, 0
            key = job.opt("unique_key")
            if key is not None:
                holders = [o for o in self.jobs if o.queue == queue and o.has_key and o.opt("unique_key") == key]
                if holders:
                    job.opts = {**job.opts, "unique_key": None}
                else:
                    job.has_key = True
            if job.opt("ttl_ms") is not None and job.created_at + job.opt("ttl_ms") <= self.now:
                job.opts = {**job.opts, "ttl_ms": None}
        return len(jobs)

    def purge(self, queue: str) -> int:
        return self.drop(self.in_state(queue, "failed"))

    def set_rate(self, queue: str, limit: int) -> None:
        if queue not in self.rates or self.rates[queue][0] != limit:
            self.rates[queue] = (limit, Fraction(limit), self.now)

    def tokens(self, queue: str) -> Fraction:
        limit, left, at = self.rates[queue]
        return min(Fraction(limit), left + Fraction((self.now - at) * limit, 1000))

    def spend(self, queue: str, count: int) -> None:
        if queue in self.rates:
            self.rates[queue] = (self.rates[queue][0], self.tokens(queue) - count, self.now)

    def release(self, job_id: str, fence: int) -> int:
        job = self.find(job_id)
        if job is None or job.state != "active" or job.fence != fence:
            return 0
        job.state, job.token, job.lock_until = "waiting", None, 0
        self.spend(job.queue, -1)
        return 1

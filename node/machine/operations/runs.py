"""The runs of jobs: what workers pull, finish, fail, keep alive and give back."""

from __future__ import annotations

import msgspec

from quorumq.node.machine import events as happened
from quorumq.node.machine.bounds import JobId, Key, LockToken, Note, QueueName, RawJson
from quorumq.node.machine.lifecycle import finishing, retention, runs
from quorumq.node.machine.operation import Entry, Operation, operation
from quorumq.node.machine.operations.jobs import COMPLETES, FAILS, Changed, Counted, DurationMs
from quorumq.node.machine.refusals import (
    ChildrenFailed,
    ChildrenPending,
    JobNotActive,
    JobNotFound,
    JobNotLocked,
    LockLost,
    LockRequired,
    Refusal,
)
from quorumq.node.machine.state import State
from quorumq.node.machine.state.job import ACTIVE, EXPLICIT_FAIL, LOCK_MS, MAX_ATTEMPTS, Job


class Pulled(msgspec.Struct, frozen=True, gc=False):
    """Jobs taken, in order; tokens beside them when they are locked."""

    jobs: list[Job]
    tokens: list[str] | None = None


class Acked(msgspec.Struct, frozen=True, gc=False):
    """A completed job."""

    job: Job


class AckedBatch(msgspec.Struct, frozen=True, gc=False):
    """Ids of the jobs completed, and why the others were not, in order."""

    job_ids: list[str]
    refused: list[Refusal]


class Failed(msgspec.Struct, frozen=True, gc=False):
    """A job after a failed run: it waits for the next one, or is in the dead letter queue, or removed."""

    job: Job


class Finished(msgspec.Struct, frozen=True, gc=False):
    """A job after its run, and what was taken in the same step."""

    job: Job
    next: Pulled


@operation(emits=(happened.JobActive,))
class PullJobs(Operation, frozen=True, tag="job.pull"):
    """Take the next jobs of a queue, fewer or none when it has fewer to give.

    With an owner each job is locked for lock_ms and has a token, `{token_seed}-{i}`; the seed is fresh for every pull.
    token: locks them as well, and is the token of each; a client's own, which may hold many jobs.  active_max: only so many
    that the owner has no more active jobs of this queue than that.
    """

    queue: QueueName
    count: int = 1
    owner: Key | None = None
    lock_ms: DurationMs | None = None
    token_seed: Key = ""
    token: LockToken | None = None
    active_max: int | None = None

    @property
    def locks(self) -> bool:
        """Whether the jobs taken are locked."""
        return self.owner is not None or self.token is not None

    def apply(self, state: State, entry: Entry) -> Pulled:
        queue = state.queues.get(self.queue)
        jobs: list[Job] = []
        if queue is not None:
            lock_ms = LOCK_MS if self.lock_ms is None else self.lock_ms
            jobs = runs.take(
                state, queue, self.count, self.owner, lock_ms, self.token_seed, self.token, self.active_max
            )
        if self.token is not None:
            return Pulled(jobs, [self.token] * len(jobs))
        if self.owner is None:
            return Pulled(jobs)
        return Pulled(jobs, [f"{self.token_seed}-{i}" for i in range(len(jobs))])


@operation(emits=(happened.JobWaiting,))
class ReleaseJobs(Operation, frozen=True, tag="job.release"):
    """Give jobs back as if they had not been taken, for a worker that left before it got them.

    jobs: id and fence of each, so that a later delivery of the same job is left alone.  key: idempotency key of the pull,
    which is forgotten, so that a repeat takes jobs anew.
    """

    jobs: list[tuple[JobId, int]]
    key: Key | None = None

    def apply(self, state: State, entry: Entry) -> Counted:
        count = 0
        for job_id, fence in self.jobs:
            job = state.jobs.get(job_id)
            if job is not None and job.state == ACTIVE and job.fence == fence:
                runs.release(state, job)
                count += 1
        if count and self.key is not None:
            state.forget_outcome(self.key)
        return Counted(count)


@operation(
    emits=COMPLETES,
    refuses=(JobNotFound, JobNotActive, LockRequired, LockLost, ChildrenPending, ChildrenFailed),
    newer={"must_hold": 1},
)
class AckJob(Operation, frozen=True, tag="job.ack"):
    """Mark an active job completed and release its lock.

    A job whose lock ran out is still completed by its old token as long as nobody else has taken it.
    must_hold: a token that holds no lock is refused, also where the run has none.
    """

    job_id: JobId
    token: LockToken | None = None
    result: RawJson | None = None
    must_hold: bool = False

    def apply(self, state: State, entry: Entry) -> Acked:
        job = state.held_job(self.job_id, self.token, must_hold=self.must_hold)
        # Nothing above changes state; nothing below refuses.
        finishing.complete(state, job, self.result)
        return Acked(job)


@operation(emits=COMPLETES)
class AckJobs(Operation, frozen=True, tag="job.ack_batch"):
    """Mark many jobs completed, each for itself: one that is refused does not keep the others from completing.

    tokens, results: beside job_ids and of the same length, or empty.
    """

    job_ids: list[JobId]
    tokens: list[LockToken | None] = []
    results: list[RawJson | None] = []

    def apply(self, state: State, entry: Entry) -> AckedBatch:
        done: list[str] = []
        refused: list[Refusal] = []
        # A dictionary for its order: the queues that may hold more completed jobs now than they should.
        touched: dict[str, None] = {}
        # Jobs of a queue that were taken together ran equally long, and are counted together.
        name, started_at, count = "", None, 0
        tokens, results = self.tokens, self.results
        for i, job_id in enumerate(self.job_ids):
            try:
                job = state.held_job(job_id, tokens[i] if tokens else None)
            except Refusal as refusal:
                refused.append(refusal.with_traceback(None))
                continue
            finishing.complete(state, job, results[i] if results else None, alone=False)
            if job.started_at != started_at or job.queue != name:
                finishing.count_runs(state, name, started_at, count)
                name, started_at, count = job.queue, job.started_at, 0
                touched[name] = None
            count += 1
            done.append(job_id)
        finishing.count_runs(state, name, started_at, count)
        for name in touched:
            retention.trim_completed(state, state.queues[name])
        return AckedBatch(done, refused)


@operation(
    emits=FAILS,
    refuses=(JobNotFound, JobNotActive, LockRequired, LockLost),
    newer={"must_hold": 1},
)
class FailJob(Operation, frozen=True, tag="job.fail"):
    """Mark a run of an active job failed: it is tried again after its backoff, or goes to the dead letter queue.

    unrecoverable: no further run, whatever the attempts allowed.  chance: a random number from 0 to 1, made at the edge:
    the share of its backoff's jitter that the job is spared.  stack: where in the worker's program it failed.
    must_hold: a token that holds no lock is refused, also where the run has none.
    """

    job_id: JobId
    token: LockToken | None = None
    error: Note | None = None
    unrecoverable: bool = False
    chance: float | None = None
    stack: Note | None = None
    must_hold: bool = False

    def apply(self, state: State, entry: Entry) -> Failed:
        job = state.active_job(self.job_id)
        state.check_token(job, self.token, must_hold=self.must_hold)
        reason = EXPLICIT_FAIL if self.unrecoverable else MAX_ATTEMPTS
        runs.fail(state, job, self.error, reason=reason, final=self.unrecoverable, chance=self.chance, stack=self.stack)
        return Failed(job)


@operation(
    emits=(*COMPLETES, *FAILS, happened.JobActive),
    refuses=(JobNotFound, JobNotActive, LockRequired, LockLost, ChildrenPending, ChildrenFailed),
)
class FinishAndPull(Operation, frozen=True, tag="job.finish_and_pull"):
    """End a run and take the next jobs, in one step; when the first is refused nothing is taken."""

    finish: AckJob | FailJob
    pull: PullJobs

    def apply(self, state: State, entry: Entry) -> Finished:
        job = self.finish.apply(state, entry).job
        return Finished(job, self.pull.apply(state, entry))


@operation(refuses=(JobNotFound, JobNotActive, LockLost))
class HeartbeatJob(Operation, frozen=True, tag="job.heartbeat"):
    """Say that an active job is being worked on. A lock is renewed, for duration_ms or as long as it was given for."""

    job_id: JobId
    token: LockToken | None = None
    duration_ms: DurationMs | None = None

    def apply(self, state: State, entry: Entry) -> Changed:
        job = state.active_job(self.job_id)
        if self.token is not None and job.token != self.token:
            raise LockLost(job.id)
        runs.beat(state, job, self.duration_ms)
        return Changed(job)


@operation()
class HeartbeatJobs(Operation, frozen=True, tag="job.heartbeat_batch"):
    """Say that many jobs are being worked on; counts those for which it is true. tokens: beside job_ids, or empty."""

    job_ids: list[JobId]
    tokens: list[LockToken | None] = []

    def apply(self, state: State, entry: Entry) -> Counted:
        count = 0
        for i, job_id in enumerate(self.job_ids):
            token = self.tokens[i] if i < len(self.tokens) else None
            job = state.jobs.get(job_id)
            if job is not None and job.state == ACTIVE and (token is None or job.token == token):
                runs.beat(state, job)
                count += 1
        return Counted(count)


@operation(refuses=(JobNotFound, JobNotActive, JobNotLocked, LockLost))
class ExtendLock(Operation, frozen=True, tag="job.extend_lock"):
    """Let the lock of an active job last duration_ms from now, or as long as it was given for."""

    job_id: JobId
    token: LockToken | None = None
    duration_ms: DurationMs | None = None

    def apply(self, state: State, entry: Entry) -> Changed:
        job = state.active_job(self.job_id)
        if not job.locked:
            raise JobNotLocked(job.id)
        if self.token is not None and job.token != self.token:
            raise LockLost(job.id)
        runs.beat(state, job, self.duration_ms)
        return Changed(job)


@operation()
class ExtendLocks(Operation, frozen=True, tag="job.extend_lock_batch"):
    """Extend many locks; counts those extended. tokens, durations_ms: beside job_ids, or empty."""

    job_ids: list[JobId]
    tokens: list[LockToken | None] = []
    durations_ms: list[DurationMs | None] = []

    def apply(self, state: State, entry: Entry) -> Counted:
        count = 0
        for i, job_id in enumerate(self.job_ids):
            token = self.tokens[i] if i < len(self.tokens) else None
            job = state.jobs.get(job_id)
            if job is None or job.state != ACTIVE or not job.locked or (token is not None and job.token != token):
                continue
            runs.beat(state, job, self.durations_ms[i] if i < len(self.durations_ms) else None)
            count += 1
        return Counted(count)


@operation(emits=(happened.JobProgressed,), refuses=(JobNotFound, JobNotActive, LockLost))
class ProgressJob(Operation, frozen=True, tag="job.progress"):
    """Note how far an active job has come, 0 to 100 (numbers outside count as the nearest). A message stays until the next.

    value: a progress that is more than that number, any JSON; until the next without one.
    """

    job_id: JobId
    progress: int | float = 0
    message: Note | None = None
    token: LockToken | None = None
    value: RawJson | None = None

    def apply(self, state: State, entry: Entry) -> Changed:
        job = state.active_job(self.job_id)
        if self.token is not None:
            state.check_token(job, self.token)
        runs.report(state, job, self.progress, self.message, self.value)
        state.emit(happened.JobProgressed(job.queue, job.id, job.progress))
        return Changed(job)

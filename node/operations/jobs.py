"""What can be done with and asked about jobs: producers push, workers pull, acknowledge, fail and report.

Durations are milliseconds. Replies hold live records; whoever gets one renders it at once and does not keep it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from node import events as happened
from node.operation import Operation, Query, operation, query
from node.refusals import (
    DependencyNotFound,
    JobInWrongState,
    JobLocked,
    JobNotActive,
    JobNotFound,
    JobNotLocked,
    LockLost,
    LockRequired,
    Refusal,
)
from node.state.job import (
    ACTIVE,
    COMPLETED,
    DELAYED,
    EXPLICIT_FAIL,
    FAILED,
    MAX_ATTEMPTS,
    UNKNOWN,
    WAITING,
    Job,
    JobSpec,
    LogLine,
)
from node.state.state import LOCK_MS, LOG_LINES_MAX

if TYPE_CHECKING:
    from node.machine import Entry
    from node.state import State

JobId = Annotated[str, Meta(description="Id of a job: made by the server, or the client's own.")]
QueueName = Annotated[str, Meta(description="Name of a queue: 1 to 256 of the characters a-z A-Z 0-9 - _ . :")]
LockToken = Annotated[str, Meta(description="Token that holds a job's lock, as handed out when it was pulled.")]
RawJson = Annotated[bytes, Meta(description="JSON text, opaque to the server.")]
DurationMs = Annotated[int, Meta(description="Milliseconds.")]


class Pushed(msgspec.Struct, frozen=True, gc=False):
    """Ids in the order of the jobs pushed; for a duplicate the id of the job that was there."""

    ids: list[str]


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


class Changed(msgspec.Struct, frozen=True, gc=False):
    """A job that was changed."""

    job: Job


class Counted(msgspec.Struct, frozen=True, gc=False):
    """How many jobs something was done to."""

    count: int


# -- Producers


@operation(
    emits=(
        happened.QueueCreated,
        happened.JobPushed,
        happened.JobDelayed,
        happened.JobWaitingChildren,
        happened.JobDuplicated,
        happened.JobExpired,
    ),
    refuses=(DependencyNotFound,),
)
class PushJobs(Operation, frozen=True, tag="job.push"):
    """Add jobs to a queue, all or none. An unfinished job with the same id or unique key stands for the new one."""

    queue: QueueName
    jobs: list[JobSpec]

    def apply(self, state: State, entry: Entry) -> Pushed:
        for position, spec in enumerate(self.jobs):
            if spec.depends_on:
                self.check_dependencies(state, position, spec)
        return Pushed(state.push(self.queue, self.jobs))

    def check_dependencies(self, state: State, position: int, spec: JobSpec) -> None:
        """Refuse a job that depends on one that never was, or that comes later in this push."""
        for job_id in spec.depends_on:
            if job_id != spec.id and (job_id in state.jobs or job_id in state.remembered):
                continue
            if not any(earlier.id == job_id for earlier in self.jobs[:position]):
                raise DependencyNotFound(position, job_id)


@operation(
    emits=(happened.JobRemoved,),
    refuses=(JobNotFound, JobInWrongState),
)
class CancelJob(Operation, frozen=True, tag="job.cancel"):
    """Remove a job that is not finished; its worker, if it has one, loses it."""

    job_id: JobId

    def apply(self, state: State, entry: Entry) -> Changed:
        job = state.job(self.job_id)
        if job.finished:
            raise JobInWrongState(job.id, job.shown_state, "not finished")
        state.remove(job)
        return Changed(job)


@operation(emits=(happened.JobRemoved,), refuses=(JobNotFound, JobLocked))
class RemoveJob(Operation, frozen=True, tag="job.remove"):
    """Remove a job in any state, but not one that a worker holds under a lock."""

    job_id: JobId

    def apply(self, state: State, entry: Entry) -> Changed:
        job = state.job(self.job_id)
        if job.state == ACTIVE and job.lock_until > state.now_ms:
            raise JobLocked(job.id)
        state.remove(job)
        return Changed(job)


@operation(emits=(happened.JobWaiting,), refuses=(JobNotFound, JobInWrongState))
class RetryJob(Operation, frozen=True, tag="job.retry"):
    """Let a finished job wait once more, behind all others of its priority or first (lifo), as BullMQ does.

    state: the end it must have come to; None for either.  Its failed runs still count, unless reset_attempts; error, result and
    the times of its run are gone.
    """

    job_id: JobId
    state: Literal["failed", "completed"] | None = None
    reset_attempts: bool = False

    def apply(self, state: State, entry: Entry) -> Changed:
        job = state.job(self.job_id)
        if job.state not in ((COMPLETED, FAILED) if self.state is None else (self.state,)):
            raise JobInWrongState(job.id, job.shown_state, self.state or "finished")
        state.rerun(job, reset_attempts=self.reset_attempts)
        return Changed(job)


@operation(
    emits=(happened.JobWaiting, happened.JobPromoted),
    refuses=(JobNotFound, JobInWrongState),
)
class PromoteJob(Operation, frozen=True, tag="job.promote"):
    """Let a delayed job wait no longer."""

    job_id: JobId

    def apply(self, state: State, entry: Entry) -> Changed:
        job = state.job(self.job_id)
        if job.state != DELAYED:
            raise JobInWrongState(job.id, job.shown_state, DELAYED)
        state.undelay(job)
        job.run_at = state.now_ms
        state.emit(happened.JobPromoted(job.queue, job.id))
        return Changed(job)


# -- Workers


@operation(emits=(happened.JobActive,))
class PullJobs(Operation, frozen=True, tag="job.pull"):
    """Take the next jobs of a queue, fewer or none when it has fewer to give.

    With an owner each job is locked for lock_ms and has a token, `{token_seed}-{i}`; the seed is fresh for every pull.
    token: locks them as well, and is the token of each; a client's own, which may hold many jobs.  active_max: only so many
    that the owner has no more active jobs of this queue than that.
    """

    queue: QueueName
    count: int = 1
    owner: str | None = None
    lock_ms: DurationMs | None = None
    token_seed: str = ""
    token: str | None = None
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
            jobs = state.take(queue, self.count, self.owner, lock_ms, self.token_seed, self.token, self.active_max)
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

    jobs: list[tuple[str, int]]
    key: str | None = None

    def apply(self, state: State, entry: Entry) -> Counted:
        count = 0
        for job_id, fence in self.jobs:
            job = state.jobs.get(job_id)
            if job is not None and job.state == ACTIVE and job.fence == fence:
                state.release(job)
                count += 1
        if count and self.key is not None:
            state.forget_outcome(self.key)
        return Counted(count)


@operation(
    emits=(happened.JobCompleted, happened.JobWaiting, happened.JobPushed),
    refuses=(JobNotFound, JobNotActive, LockRequired, LockLost),
)
class AckJob(Operation, frozen=True, tag="job.ack"):
    """Mark an active job completed and release its lock.

    A job whose lock ran out is still completed by its old token as long as nobody else has taken it.
    """

    job_id: JobId
    token: LockToken | None = None
    result: RawJson | None = None

    def apply(self, state: State, entry: Entry) -> Acked:
        job = state.held_job(self.job_id, self.token)
        # Nothing above changes state; nothing below refuses.
        state.complete(job, self.result)
        return Acked(job)


@operation(emits=(happened.JobCompleted,))
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
            state.complete(job, results[i] if results else None, alone=False)
            if job.started_at != started_at or job.queue != name:
                state.count_runs(name, started_at, count)
                name, started_at, count = job.queue, job.started_at, 0
                touched[name] = None
            count += 1
            done.append(job_id)
        state.count_runs(name, started_at, count)
        for name in touched:
            state.trim_completed(state.queues[name])
        return AckedBatch(done, refused)


@operation(
    emits=(happened.JobFailed, happened.JobRetried, happened.JobDelayed, happened.DlqAdded, happened.DlqExpired),
    refuses=(JobNotFound, JobNotActive, LockRequired, LockLost),
)
class FailJob(Operation, frozen=True, tag="job.fail"):
    """Mark a run of an active job failed: it is tried again after its backoff, or goes to the dead letter queue.

    unrecoverable: no further run, whatever the attempts allowed.  chance: a random number from 0 to 1, made at the edge:
    the share of its backoff's jitter that the job is spared.  stack: where in the worker's program it failed.
    """

    job_id: JobId
    token: LockToken | None = None
    error: str | None = None
    unrecoverable: bool = False
    chance: float | None = None
    stack: str | None = None

    def apply(self, state: State, entry: Entry) -> Failed:
        job = state.active_job(self.job_id)
        if job.token is not None and job.token != self.token:
            raise LockRequired(job.id) if self.token is None else LockLost(job.id)
        reason = EXPLICIT_FAIL if self.unrecoverable else MAX_ATTEMPTS
        state.fail(job, self.error, reason=reason, final=self.unrecoverable, chance=self.chance, stack=self.stack)
        return Failed(job)


@operation(
    emits=(
        happened.JobCompleted,
        happened.JobFailed,
        happened.JobRetried,
        happened.JobDelayed,
        happened.JobWaiting,
        happened.JobPushed,
        happened.DlqAdded,
        happened.DlqExpired,
        happened.JobActive,
    ),
    refuses=(JobNotFound, JobNotActive, LockRequired, LockLost),
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
        state.beat(job, self.duration_ms)
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
                state.beat(job)
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
        state.beat(job, self.duration_ms)
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
            state.beat(job, self.durations_ms[i] if i < len(self.durations_ms) else None)
            count += 1
        return Counted(count)


@operation(emits=(happened.JobProgressed,), refuses=(JobNotFound, JobNotActive, LockLost))
class ProgressJob(Operation, frozen=True, tag="job.progress"):
    """Note how far an active job has come, 0 to 100 (numbers outside count as the nearest). A message stays until the next.

    value: a progress that is more than that number, any JSON; until the next without one.
    """

    job_id: JobId
    progress: int | float = 0
    message: str | None = None
    token: LockToken | None = None
    value: RawJson | None = None

    def apply(self, state: State, entry: Entry) -> Changed:
        job = state.active_job(self.job_id)
        if self.token is not None and job.token is not None and job.token != self.token:
            raise LockLost(job.id)
        state.report(job, self.progress, self.message, self.value)
        state.emit(happened.JobProgressed(job.queue, job.id, job.progress))
        return Changed(job)


# -- Changing jobs


@operation(emits=(happened.JobDataUpdated,), refuses=(JobNotFound, JobInWrongState))
class UpdateJobData(Operation, frozen=True, tag="job.update_data"):
    """Replace the data of a job that is not finished."""

    job_id: JobId
    data: RawJson

    def apply(self, state: State, entry: Entry) -> Changed:
        job = state.job(self.job_id)
        if job.finished:
            raise JobInWrongState(job.id, job.shown_state, "not finished")
        state.update_data(job, self.data)
        state.emit(happened.JobDataUpdated(job.queue, job.id))
        return Changed(job)


@operation(emits=(happened.JobPriorityChanged,), refuses=(JobNotFound, JobInWrongState))
class ChangePriority(Operation, frozen=True, tag="job.change_priority"):
    """Give a job that nobody has taken another priority, and its place there. lifo: the first place."""

    job_id: JobId
    priority: int
    lifo: bool = False

    def apply(self, state: State, entry: Entry) -> Changed:
        job = state.job(self.job_id)
        if job.finished or job.state == ACTIVE:
            raise JobInWrongState(job.id, job.shown_state, "waiting or delayed")
        state.change_priority(job, self.priority, first=self.lifo)
        state.emit(happened.JobPriorityChanged(job.queue, job.id, self.priority))
        return Changed(job)


@operation(emits=(happened.JobWaiting,), refuses=(JobNotFound, JobNotActive, LockRequired, LockLost))
class MoveToWait(Operation, frozen=True, tag="job.move_to_wait"):
    """Put an active job back, in front of the waiting jobs of its priority; its run counts for nothing."""

    job_id: JobId
    token: LockToken | None = None

    def apply(self, state: State, entry: Entry) -> Changed:
        job = state.active_job(self.job_id)
        if job.token is not None and job.token != self.token:
            raise LockRequired(job.id) if self.token is None else LockLost(job.id)
        state.put_first(job)
        return Changed(job)


@operation(emits=(happened.JobDelayed,), refuses=(JobNotFound, JobNotActive, JobInWrongState, LockLost))
class MoveToDelayed(Operation, frozen=True, tag="job.move_to_delayed"):
    """Let an active job, or one that waits, wait for delay_ms from now; its run counts for nothing.

    until_ms: until this time, in the place of delay_ms.  only_active: no job that is not being worked on.
    """

    job_id: JobId
    delay_ms: int | float = 0
    token: LockToken | None = None
    until_ms: int | None = None
    only_active: bool = False

    def apply(self, state: State, entry: Entry) -> Changed:
        job = state.active_job(self.job_id) if self.only_active else state.job(self.job_id)
        if job.state not in (ACTIVE, WAITING, DELAYED):
            raise JobInWrongState(job.id, job.shown_state, "active, waiting or delayed")
        if self.token is not None and job.token is not None and job.token != self.token:
            raise LockLost(job.id)
        state.delay(job, self.delay_ms if self.until_ms is None else self.until_ms - state.now_ms)
        return Changed(job)


@operation(emits=(happened.JobDelayed, happened.JobDelayChanged), refuses=(JobNotFound, JobInWrongState))
class ChangeDelay(Operation, frozen=True, tag="job.change_delay"):
    """Let a job become ready delay_ms from now. only_delayed: one that is delayed, no other."""

    job_id: JobId
    delay_ms: int | float
    only_delayed: bool = False

    def apply(self, state: State, entry: Entry) -> Changed:
        job = state.job(self.job_id)
        if job.state not in ((DELAYED,) if self.only_delayed else (ACTIVE, WAITING, DELAYED)):
            raise JobInWrongState(job.id, job.shown_state, DELAYED)
        state.delay(job, self.delay_ms)
        state.emit(happened.JobDelayChanged(job.queue, job.id, self.delay_ms))
        return Changed(job)


@operation(
    emits=(happened.JobDiscarded, happened.JobFailed, happened.DlqAdded, happened.DlqExpired),
    refuses=(JobNotFound, JobInWrongState),
)
class DiscardJob(Operation, frozen=True, tag="job.discard"):
    """Send a job that is not finished to the dead letter queue, whatever its attempts.

    always: also one with remove_on_fail, which speaks of its last failure.
    """

    job_id: JobId
    always: bool = False

    def apply(self, state: State, entry: Entry) -> Changed:
        job = state.job(self.job_id)
        if job.finished:
            raise JobInWrongState(job.id, job.shown_state, "not finished")
        state.bury(job, UNKNOWN, always=self.always)
        state.emit(happened.JobDiscarded(job.queue, job.id))
        return Changed(job)


@operation(refuses=(JobNotFound,))
class AddLog(Operation, frozen=True, tag="job.add_log"):
    """Attach a line to a job; the last 100 lines are kept, of at most 10,000 jobs. Answers how many lines it has.

    keep: lines of this job that stay, 100 at most.
    """

    job_id: JobId
    message: str
    level: str = "info"
    keep: int = LOG_LINES_MAX

    def apply(self, state: State, entry: Entry) -> Counted:
        return Counted(state.add_log(state.job(self.job_id), self.level, self.message, self.keep))


@operation()
class ClearLogs(Operation, frozen=True, tag="job.clear_logs"):
    """Drop a job's lines but for the last `keep`; nothing happens for an unknown job."""

    job_id: JobId
    keep: int = 0

    def apply(self, state: State, entry: Entry) -> None:
        state.clear_logs(self.job_id, self.keep)


# -- Questions


class Progress(msgspec.Struct, frozen=True, gc=False):
    """How far a job has come."""

    progress: int | float
    message: str | None


@query
class GetJob(Query, frozen=True):
    """The record of a job in any state."""

    job_id: JobId

    def answer(self, state: State) -> Job:
        return state.job(self.job_id)


@query
class GetJobByCustomId(Query, frozen=True):
    """The record of an unfinished job whose id the client chose."""

    job_id: JobId

    def answer(self, state: State) -> Job:
        job = state.job(self.job_id)
        if not job.custom or job.finished:
            raise JobNotFound(self.job_id)
        return job


@query
class GetJobState(Query, frozen=True):
    """A job's state: waiting, prioritized, delayed, active, waiting-children, completed, failed; unknown for no job."""

    job_id: JobId

    def answer(self, state: State) -> str:
        job = state.jobs.get(self.job_id)
        return "unknown" if job is None else job.shown_state


@query
class GetResult(Query, frozen=True):
    """The result of a completed job; None when there is no such job, no end yet, or no result was given."""

    job_id: JobId

    def answer(self, state: State) -> bytes | None:
        job = state.jobs.get(self.job_id)
        return None if job is None or job.state != COMPLETED else job.result


@query
class GetProgress(Query, frozen=True):
    """The progress of an active job."""

    job_id: JobId

    def answer(self, state: State) -> Progress:
        job = state.active_job(self.job_id)
        return Progress(job.progress, job.progress_message)


@query
class GetLogs(Query, frozen=True):
    """Lines attached to a job, oldest first; none for an unknown job."""

    job_id: JobId

    def answer(self, state: State) -> list[LogLine]:
        return state.logs.get(self.job_id, [])


@query
class GetChildrenValues(Query, frozen=True):
    """Results of the completed jobs that a job depends on, by id; empty for an unknown job."""

    job_id: JobId

    def answer(self, state: State) -> dict[str, bytes | None]:
        job = state.jobs.get(self.job_id)
        return {} if job is None or job.dependencies is None else job.dependencies.values

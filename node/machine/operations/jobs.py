"""What can be done with a job: pushed, cancelled, removed, retried, changed, logged to; runs.py has what its workers do.

Durations are milliseconds. Replies hold live records; whoever gets one renders it at once and does not keep it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from quorumq.node.machine import events as happened
from quorumq.node.machine.bounds import JobId, Key, LockToken, Note, QueueName, RawJson
from quorumq.node.machine.lifecycle import changes, creation, finishing, flows, indexes, removal, revival, runs
from quorumq.node.machine.operation import Entry, Operation, operation
from quorumq.node.machine.refusals import (
    DependencyNotFound,
    FlowTooLarge,
    JobInWrongState,
    JobLocked,
    JobNotActive,
    JobNotFound,
    LockLost,
    LockRequired,
    TooManyDependencies,
    TooManyQueues,
)
from quorumq.node.machine.state import State
from quorumq.node.machine.state.job import (
    ACTIVE,
    COMPLETED,
    DELAYED,
    FAILED,
    UNKNOWN,
    WAIT,
    WAITING,
    Job,
    JobSpec,
    OnChildFailure,
)
from quorumq.node.machine.state.logs import LOG_LINES_MAX

DurationMs = Annotated[int, Meta(description="Milliseconds.")]

# Jobs that all jobs of one push depend on, each counted as often as it is named: a fifth of a second's work.
DEPENDENCIES_MAX = 50_000


class Pushed(msgspec.Struct, frozen=True, gc=False):
    """Ids in the order of the jobs pushed; for a duplicate the id of the job that was there."""

    ids: list[str]


class Changed(msgspec.Struct, frozen=True, gc=False):
    """A job that was changed."""

    job: Job


class Counted(msgspec.Struct, frozen=True, gc=False):
    """How many jobs something was done to."""

    count: int


GOES_ON = (happened.FlowCompleted, happened.JobWaiting, happened.JobDelayed)
"""What a job emits that waits for no other any more."""
COMPLETES = (happened.JobCompleted, happened.JobPushed, *GOES_ON)
"""What the completion of a job emits: those that waited for it may run, and a job that repeats is followed by the next."""
DIES = (happened.JobFailed, happened.FlowFailed, happened.DlqAdded, happened.DlqExpired, *GOES_ON)
"""What a failure for good emits: by its policy a parent fails too, or goes on."""
FAILS = (*DIES, happened.JobRetried, happened.WorkerErred)


class JobTies(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """Family of a job of a push. position: which job.  parent_id, children_ids: jobs that are there, as far as they are.

    on_failure: what becomes of its parent when it fails for good, also of one that it gets later.
    """

    position: int
    parent_id: JobId | None = None
    children_ids: tuple[JobId, ...] = ()
    on_failure: OnChildFailure = WAIT


@operation(
    emits=(
        happened.QueueCreated,
        happened.JobPushed,
        happened.JobRemoved,
        happened.JobWaitingChildren,
        happened.JobDuplicated,
        happened.JobExpired,
        *DIES,
    ),
    refuses=(DependencyNotFound, TooManyDependencies, TooManyQueues),
    newer={"ties": 1},
)
class PushJobs(Operation, frozen=True, tag="job.push"):
    """Add jobs to a queue, all or none. An unfinished job with the same id or unique key stands for the new one.

    A completed job gives its id to the new one and is gone; a dead letter stays, under an id of its own.  ties: family of those
    jobs that have any; a job that stands for a new one keeps its own.
    """

    queue: QueueName
    jobs: list[JobSpec]
    ties: tuple[JobTies, ...] = ()

    def apply(self, state: State, entry: Entry) -> Pushed:
        for spec in self.jobs:
            if spec.depends_on:
                self.check_dependencies(state)
                break
        if not self.ties or state.level < 1:
            return Pushed(creation.push(state, self.queue, self.jobs))
        before = state.seq
        pushed = Pushed(creation.push(state, self.queue, self.jobs))
        tied: set[str] = set()
        with finishing.failing_parents_later(state):
            for ties in self.ties:
                job = state.jobs.get(pushed.ids[ties.position])
                if job is not None and job.seq > before and job.id not in tied:
                    tied.add(job.id)
                    flows.tie(state, job, ties.parent_id, ties.children_ids, ties.on_failure)
        return pushed

    def check_dependencies(self, state: State) -> None:
        """Refuse a job that depends on one that never was, or that comes later in this push; and too many of them."""
        if state.level >= 1 and sum(len(spec.depends_on) for spec in self.jobs) > DEPENDENCIES_MAX:
            raise TooManyDependencies(DEPENDENCIES_MAX)
        earlier: set[str] = set()
        for position, spec in enumerate(self.jobs):
            for job_id in spec.depends_on:
                if job_id in earlier or (job_id != spec.id and (job_id in state.jobs or job_id in state.remembered)):
                    continue
                raise DependencyNotFound(position, job_id)
            earlier.add(spec.id)


@operation(
    emits=(happened.JobRemoved, *GOES_ON),
    refuses=(JobNotFound, JobInWrongState),
)
class CancelJob(Operation, frozen=True, tag="job.cancel"):
    """Remove a job that is not finished; its worker, if it has one, loses it."""

    job_id: JobId

    def apply(self, state: State, entry: Entry) -> Changed:
        job = state.job(self.job_id)
        if job.finished:
            raise JobInWrongState(job.id, job.shown_state, "not finished")
        removal.remove(state, job)
        return Changed(job)


@operation(emits=(happened.JobRemoved, *GOES_ON), refuses=(JobNotFound, JobLocked, FlowTooLarge), newer={"children": 1})
class RemoveJob(Operation, frozen=True, tag="job.remove"):
    """Remove a job in any state, but not one that a worker holds under a lock.

    children: with all jobs below it, of which none may be held either.
    """

    job_id: JobId
    children: bool = False

    def apply(self, state: State, entry: Entry) -> Changed:
        job = state.job(self.job_id)
        below = flows.descendants(state, job) if self.children else []
        for each in (job, *below):
            if each.state == ACTIVE and each.lock_until > state.now_ms:
                raise JobLocked(each.id)
        for each in (*reversed(below), job):
            removal.remove(state, each)
        return Changed(job)


@operation(emits=(happened.JobWaiting, happened.JobWaitingChildren), refuses=(JobNotFound, JobInWrongState))
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
        revival.rerun(state, job, reset_attempts=self.reset_attempts)
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
        indexes.promote(state, job)
        return Changed(job)


@operation(emits=(happened.JobDataUpdated,), refuses=(JobNotFound, JobInWrongState))
class UpdateJobData(Operation, frozen=True, tag="job.update_data"):
    """Replace the data of a job that is not finished."""

    job_id: JobId
    data: RawJson

    def apply(self, state: State, entry: Entry) -> Changed:
        job = state.job(self.job_id)
        if job.finished:
            raise JobInWrongState(job.id, job.shown_state, "not finished")
        changes.update_data(state, job, self.data)
        state.emit(happened.JobDataUpdated(job.queue, job.id))
        return Changed(job)


@operation(emits=(happened.JobPriorityChanged, happened.JobDelayed), refuses=(JobNotFound, JobInWrongState))
class ChangePriority(Operation, frozen=True, tag="job.change_priority"):
    """Give a job that nobody has taken another priority, and its place there. lifo: the first place."""

    job_id: JobId
    priority: int
    lifo: bool = False

    def apply(self, state: State, entry: Entry) -> Changed:
        job = state.job(self.job_id)
        if job.finished or job.state == ACTIVE:
            raise JobInWrongState(job.id, job.shown_state, "waiting or delayed")
        changes.change_priority(state, job, self.priority, first=self.lifo)
        state.emit(happened.JobPriorityChanged(job.queue, job.id, self.priority))
        return Changed(job)


@operation(emits=(happened.JobWaiting,), refuses=(JobNotFound, JobNotActive, LockRequired, LockLost))
class MoveToWait(Operation, frozen=True, tag="job.move_to_wait"):
    """Put an active job back, in front of the waiting jobs of its priority; its run counts for nothing.

    A token that holds no lock is refused, also where the run has none.
    """

    job_id: JobId
    token: LockToken | None = None

    def apply(self, state: State, entry: Entry) -> Changed:
        job = state.active_job(self.job_id)
        state.check_token(job, self.token, must_hold=True)
        runs.put_first(state, job)
        return Changed(job)


@operation(emits=(happened.JobDelayed,), refuses=(JobNotFound, JobNotActive, JobInWrongState, LockLost))
class MoveToDelayed(Operation, frozen=True, tag="job.move_to_delayed"):
    """Let an active job, or one that waits, wait for delay_ms from now; its run counts for nothing.

    until_ms: until this time, in the place of delay_ms.  only_active: no job that is not being worked on, and a token that
    holds no lock is refused, also where the run has none. Without a token it takes a locked run away, too.
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
        if self.token is not None:
            state.check_token(job, self.token, must_hold=self.only_active)
        runs.delay(state, job, self.delay_ms if self.until_ms is None else self.until_ms - state.now_ms)
        return Changed(job)


@operation(
    emits=(happened.JobDelayed, happened.JobDelayChanged),
    refuses=(JobNotFound, JobInWrongState, LockRequired, LockLost),
    newer={"token": 1},
)
class ChangeDelay(Operation, frozen=True, tag="job.change_delay"):
    """Let a job become ready delay_ms from now; a run under a lock is taken away only by its token.

    only_delayed: a job that is delayed, no other.
    """

    job_id: JobId
    delay_ms: int | float
    only_delayed: bool = False
    token: LockToken | None = None

    def apply(self, state: State, entry: Entry) -> Changed:
        job = state.job(self.job_id)
        if job.state not in ((DELAYED,) if self.only_delayed else (ACTIVE, WAITING, DELAYED)):
            raise JobInWrongState(job.id, job.shown_state, DELAYED)
        if state.level >= 1 and (job.state == ACTIVE or self.token is not None):
            state.check_token(job, self.token)
        runs.delay(state, job, self.delay_ms)
        state.emit(happened.JobDelayChanged(job.queue, job.id, self.delay_ms))
        return Changed(job)


@operation(
    emits=(happened.JobDiscarded, *DIES),
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
        finishing.dead_letter(state, job, UNKNOWN, always=self.always)
        state.emit(happened.JobDiscarded(job.queue, job.id))
        return Changed(job)


@operation(refuses=(JobNotFound,))
class AddLog(Operation, frozen=True, tag="job.add_log"):
    """Attach a line to a job; the last 100 lines are kept, of at most 10,000 jobs. Answers how many lines it has.

    keep: lines of this job that stay, 100 at most.
    """

    job_id: JobId
    message: Note
    level: Key = "info"
    keep: int = LOG_LINES_MAX

    def apply(self, state: State, entry: Entry) -> Counted:
        return Counted(changes.add_log(state, state.job(self.job_id), self.level, self.message, self.keep))


@operation(refuses=(JobNotFound,), newer={"known": 1})
class ClearLogs(Operation, frozen=True, tag="job.clear_logs"):
    """Drop a job's lines but for the last `keep`; nothing happens for an unknown job.

    known: refused for an unknown job.
    """

    job_id: JobId
    keep: int = 0
    known: bool = False

    def apply(self, state: State, entry: Entry) -> None:
        if self.known and state.level >= 1:
            state.job(self.job_id)
        changes.clear_logs(state, self.job_id, self.keep)

"""What can be done with and asked about queues as a whole, their dead letter queues included."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import merge
from itertools import chain, islice, takewhile
from operator import attrgetter
from typing import TYPE_CHECKING, Literal

import msgspec

from node import events as happened
from node.operation import Operation, Query, operation, query
from node.operations.jobs import Counted, DurationMs, JobId, QueueName
from node.refusals import QueueBusy
from node.state.job import ACTIVE, COMPLETED, DELAYED, FAILED, WAITING, WAITING_CHILDREN, Job, Keep, rank_of
from node.state.queue import DlqConfig, Queue, QueueCounters, QueueSettings, RateLimit, StallConfig, Window
from node.state.ranked import Ranked

if TYPE_CHECKING:
    from node.machine import Entry
    from node.state import State


# -- Operations


@operation(emits=(happened.QueuePaused, happened.QueueCreated))
class PauseQueue(Operation, frozen=True, tag="queue.pause"):
    """Give out no jobs of a queue any more; active ones go on. True when that is a change."""

    queue: QueueName

    def apply(self, state: State, entry: Entry) -> bool:
        queue = state.queue(self.queue)
        if queue.settings.paused:
            return False
        queue.settings = msgspec.structs.replace(queue.settings, paused=True)
        state.emit(happened.QueuePaused(queue.name))
        return True


@operation(emits=(happened.QueueResumed,))
class ResumeQueue(Operation, frozen=True, tag="queue.resume"):
    """Give out jobs of a queue again. True when that is a change."""

    queue: QueueName

    def apply(self, state: State, entry: Entry) -> bool:
        queue = state.queues.get(self.queue)
        if queue is None or not queue.settings.paused:
            return False
        queue.settings = msgspec.structs.replace(queue.settings, paused=False)
        state.woken[queue.name] = None
        state.emit(happened.QueueResumed(queue.name))
        return True


@operation(emits=(happened.QueueDrained,))
class DrainQueue(Operation, frozen=True, tag="queue.drain"):
    """Remove all waiting and delayed jobs of a queue; active ones and those that wait for others stay.

    so_far: jobs that queue.thin removed for it, which count as well.  delayed: those too, not the waiting ones only.
    """

    queue: QueueName
    so_far: int = 0
    delayed: bool = True

    def apply(self, state: State, entry: Entry) -> Counted:
        queue = state.queues.get(self.queue)
        count = self.so_far + (0 if queue is None else state.drain(queue, delayed=self.delayed))
        state.emit(happened.QueueDrained(self.queue, count))
        return Counted(count)


@operation(emits=(happened.QueueObliterated,), refuses=(QueueBusy,))
class ObliterateQueue(Operation, frozen=True, tag="queue.obliterate"):
    """Destroy a queue with all its jobs, active ones too, and its settings.

    so_far: jobs that queue.thin removed for it, which count as well.  only_idle: not while jobs are active.
    """

    queue: QueueName
    so_far: int = 0
    only_idle: bool = False

    def apply(self, state: State, entry: Entry) -> Counted:
        queue = state.queues.get(self.queue)
        if queue is not None and queue.active and self.only_idle:
            raise QueueBusy(queue.name, len(queue.active))
        count = self.so_far + (0 if queue is None else state.obliterate(queue))
        state.emit(happened.QueueObliterated(self.queue))
        return Counted(count)


@operation()
class ThinQueue(Operation, frozen=True, tag="queue.thin"):
    """Remove some of the jobs that a drain or an obliteration is about to remove, so that no entry takes long.

    everything: jobs in any state, else waiting and delayed ones.  until_seq: jobs born later stay.  limit: at most so many.
    spare: states whose jobs stay.
    """

    queue: QueueName
    until_seq: int
    limit: int
    everything: bool = False
    spare: tuple[str, ...] = ()

    def apply(self, state: State, entry: Entry) -> Counted:
        queue = state.queues.get(self.queue)
        if queue is None:
            return Counted(0)
        old = takewhile(lambda job: job.seq <= self.until_seq, queue.jobs.values())
        if self.everything:
            chosen = (job for job in old if job.state not in self.spare)
        else:
            chosen = (job for job in old if job.state in (WAITING, DELAYED) and job.state not in self.spare)
        gone = list(islice(chosen, self.limit))
        for job in gone:
            state.delete(job)
        return Counted(len(gone))


class Cleaned(msgspec.Struct, frozen=True, gc=False):
    """Ids of the jobs removed, oldest first."""

    job_ids: list[str]


# States whose jobs a cleaning looks for among those that are queued.
CLEANED = (WAITING, DELAYED, "prioritized", "lowered", "unlowered")
# Sorting jobs of one state costs so many times as much as passing over a job of another.
SPARSE = 8
by_birth = attrgetter("seq")


@operation(emits=(happened.QueueCleaned,))
class CleanQueue(Operation, frozen=True, tag="queue.clean"):
    """Remove the oldest jobs of a state that are at least grace_ms old, at most `limit`.

    state: waiting, prioritized, delayed, completed or failed; None for waiting and delayed.  BullMQ divides those that wait
    otherwise: lowered (a priority below zero), and unlowered.  unlocked: active jobs without a lock.  The age of a finished
    job counts from its end, of an active one from its start, of any other from its creation.
    """

    queue: QueueName
    grace_ms: int | float = 0
    state: str | None = None
    limit: int = 1000

    def apply(self, state: State, entry: Entry) -> Cleaned:
        queue = state.queues.get(self.queue)
        gone = [] if queue is None else list(islice(self.candidates(queue, state.now_ms), max(self.limit, 0)))
        for job in gone:
            state.delete(job)
        state.emit(happened.QueueCleaned(self.queue, self.state, len(gone)))
        return Cleaned([job.id for job in gone])

    def candidates(self, queue: Queue, now_ms: int) -> Iterator[Job]:
        """Iterate over the jobs to remove, oldest first."""
        until = now_ms - self.grace_ms
        if self.state in (COMPLETED, FAILED):
            # In order of their ends, so the first that is too young ends it.
            ended = queue.completed if self.state == COMPLETED else queue.failed
            return takewhile(lambda job: (job.finished_at or 0) <= until, ended)
        if self.state == "unlocked":
            return (
                job
                for job in list(queue.active.values())
                if job.lock_until <= now_ms and (job.started_at or 0) <= until
            )
        if self.state is not None and self.state not in CLEANED:
            return iter(())
        old = takewhile(lambda job: job.created_at <= until, self.in_order_of_birth(queue))
        if self.state in ("lowered", "unlowered"):
            lowered = self.state == "lowered"
            return (job for job in old if job.state == WAITING and (job.opts.priority < 0) == lowered)
        if self.state is None:
            return (job for job in old if job.state in (WAITING, DELAYED))
        if self.state in (WAITING, DELAYED):
            return (job for job in old if job.state == self.state)
        return (job for job in old if job.shown_state == self.state)

    def in_order_of_birth(self, queue: Queue) -> Iterable[Job]:
        """Return the jobs to choose from, oldest first: all of the queue, or those of the state where they are few among them.

        The temporal index holds jobs of every state, so a few delayed ones are not looked for among a million that wait.
        """
        if self.state is None:
            return queue.jobs.values()
        few: Iterable[Job]
        if self.state == DELAYED:
            count, few = len(queue.delayed), queue.delayed
        elif self.state == "prioritized":
            # They stand before all others.
            count, few = queue.prioritized, islice(queue.waiting(), queue.prioritized)
        elif self.state == "lowered" and not queue.parked:
            # And these behind.
            count = queue.lowered
            few = queue.ready.slice(queue.waiting_count - count, count)
        else:
            count, few = queue.waiting_count, queue.waiting()
        return queue.jobs.values() if count * SPARSE > len(queue.jobs) else sorted(few, key=by_birth)


@operation(emits=(happened.JobWaiting, happened.JobPromoted))
class PromoteJobs(Operation, frozen=True, tag="queue.promote_jobs"):
    """Let the delayed jobs of a queue wait no longer, those due first first, at most `count` of them.

    so_far: jobs that entries before this one promoted, which the reply counts as well.
    """

    queue: QueueName
    count: int | None = None
    so_far: int = 0

    def apply(self, state: State, entry: Entry) -> Counted:
        queue = state.queues.get(self.queue)
        jobs = [] if queue is None else queue.delayed.slice(0, None if self.count is None else max(self.count, 0))
        for job in jobs:
            state.undelay(job)
            job.run_at = state.now_ms
            state.emit(happened.JobPromoted(job.queue, job.id))
        return Counted(self.so_far + len(jobs))


@operation(emits=(happened.JobWaiting,))
class RetryCompleted(Operation, frozen=True, tag="queue.retry_completed"):
    """Let one completed job of a queue, or all of them, run again from the start, oldest end first.

    count: at most so many.  until_ms: only those that ended until then.
    """

    queue: QueueName
    job_id: JobId | None = None
    count: int | None = None
    until_ms: int | None = None

    def apply(self, state: State, entry: Entry) -> Counted:
        jobs = first(finished_jobs(state, self.queue, COMPLETED, self.job_id), self.count)
        if self.until_ms is not None:
            until_ms = self.until_ms
            jobs = [job for job in jobs if (job.finished_at or 0) <= until_ms]
        for job in jobs:
            state.revive(job)
            state.emit(happened.JobWaiting(job.queue, job.id))
        return Counted(len(jobs))


@operation(emits=(happened.JobWaiting,))
class RetryJobs(Operation, frozen=True, tag="queue.retry_jobs"):
    """Let finished jobs of a queue wait once more by the rules of job.retry, oldest end first, at most `count` of them.

    until_ms: only those that ended until then.  so_far: jobs that entries before this one put back, which count as well.
    """

    queue: QueueName
    state: Literal["failed", "completed"] = FAILED
    count: int | None = None
    until_ms: int | None = None
    so_far: int = 0

    def apply(self, state: State, entry: Entry) -> Counted:
        queue = state.queues.get(self.queue)
        if queue is None:
            return Counted(self.so_far)
        ended = queue.failed if self.state == FAILED else queue.completed
        jobs = ended.slice(0, None if self.count is None else max(self.count, 0))
        if self.until_ms is not None:
            until_ms = self.until_ms
            jobs = list(takewhile(lambda job: (job.finished_at or 0) <= until_ms, jobs))
        for job in jobs:
            state.rerun(job)
        return Counted(self.so_far + len(jobs))


class Checked(msgspec.Struct, frozen=True, gc=False):
    """Ids of the jobs that had stalled: those that wait for another run, and those that failed for it."""

    waiting: list[str]
    failed: list[str]

    @property
    def count(self) -> int:
        """How many jobs had stalled."""
        return len(self.waiting) + len(self.failed)


@operation(
    emits=(
        happened.JobLockExpired,
        happened.JobStalled,
        happened.JobWaiting,
        happened.JobDelayed,
        happened.JobFailed,
        happened.JobRetried,
        happened.DlqAdded,
        happened.DlqExpired,
    )
)
class CheckStalled(Operation, frozen=True, tag="queue.check_stalled"):
    """Deal with the locks of a queue that have run out, now; else that happens by itself in one of the next entries."""

    queue: QueueName

    def apply(self, state: State, entry: Entry) -> Checked:
        queue = state.queues.get(self.queue)
        if queue is not None:
            state.check_stalled(queue)
        # What the passing of time did at the beginning of this entry counts as well.
        jobs = [job for job in state.stalled if job.queue == self.queue]
        failed = [job.id for job in jobs if job.state == FAILED]
        return Checked([job.id for job in jobs if not job.finished], failed)


@operation(emits=(happened.DlqRetried, happened.DlqRetriedAll))
class RetryDlq(Operation, frozen=True, tag="dlq.retry"):
    """Let one job of a dead letter queue, or all of them, run again with their attempts from zero; the oldest first.

    count: at most so many.
    """

    queue: QueueName
    job_id: JobId | None = None
    count: int | None = None

    def apply(self, state: State, entry: Entry) -> Counted:
        jobs = first(finished_jobs(state, self.queue, FAILED, self.job_id), self.count)
        for job in jobs:
            state.revive(job)
        if self.job_id is None:
            state.emit(happened.DlqRetriedAll(self.queue, len(jobs)))
        elif jobs:
            state.emit(happened.DlqRetried(self.queue, self.job_id))
        return Counted(len(jobs))


@operation(emits=(happened.DlqPurged,))
class PurgeDlq(Operation, frozen=True, tag="dlq.purge"):
    """Remove all jobs of a dead letter queue for good."""

    queue: QueueName

    def apply(self, state: State, entry: Entry) -> Counted:
        jobs = finished_jobs(state, self.queue, FAILED, None)
        for job in jobs:
            state.delete(job)
        state.emit(happened.DlqPurged(self.queue, len(jobs)))
        return Counted(len(jobs))


@operation(emits=(happened.JobRemoved,))
class RemoveDeadJob(Operation, frozen=True, tag="dlq.remove"):
    """Remove one job of a dead letter queue for good."""

    queue: QueueName
    job_id: JobId

    def apply(self, state: State, entry: Entry) -> Counted:
        jobs = finished_jobs(state, self.queue, FAILED, self.job_id)
        for job in jobs:
            state.remove(job)
        return Counted(len(jobs))


def finished_jobs(state: State, name: str, kind: str, job_id: str | None) -> list[Job]:
    """Return one finished job of a queue, or all of its kind, oldest end first."""
    queue = state.queues.get(name)
    if queue is None:
        return []
    if job_id is not None:
        job = queue.jobs.get(job_id)
        return [job] if job is not None and job.state == kind else []
    return list(queue.completed if kind == COMPLETED else queue.failed)


def first(jobs: list[Job], count: int | None) -> list[Job]:
    """Return the first so many jobs; None for all."""
    return jobs if count is None else jobs[: max(count, 0)]


# -- Settings


def configure(state: State, name: str, **settings: object) -> Queue:
    """Set some settings of a queue, created when it is new."""
    queue = state.queue(name)
    state.configure(queue, msgspec.structs.replace(queue.settings, **settings))
    return queue


@operation(emits=(happened.RateLimitSet, happened.QueueCreated))
class SetRateLimit(Operation, frozen=True, tag="queue.set_rate_limit"):
    """Let at most `limit` jobs of a queue start in duration_ms; the limit starts with all of them free.

    ttl_ms: the limit is over after this time; None for never.
    """

    queue: QueueName
    limit: int
    duration_ms: int = 1000
    ttl_ms: int | None = None

    def apply(self, state: State, entry: Entry) -> None:
        until_ms = 0 if self.ttl_ms is None else state.now_ms + max(self.ttl_ms, 1)
        configure(state, self.queue, rate=RateLimit(max(self.limit, 0), max(self.duration_ms, 1), until_ms))
        state.emit(happened.RateLimitSet(self.queue, self.limit))


@operation(emits=(happened.RateLimitCleared, happened.QueueCreated))
class ClearRateLimit(Operation, frozen=True, tag="queue.clear_rate_limit"):
    """Take a queue's rate limit away."""

    queue: QueueName

    def apply(self, state: State, entry: Entry) -> None:
        configure(state, self.queue, rate=None)
        state.emit(happened.RateLimitCleared(self.queue))


@operation(emits=(happened.ConcurrencySet, happened.QueueCreated))
class SetConcurrency(Operation, frozen=True, tag="queue.set_concurrency"):
    """Let at most `limit` jobs of a queue be active at once."""

    queue: QueueName
    limit: int

    def apply(self, state: State, entry: Entry) -> None:
        configure(state, self.queue, concurrency=max(self.limit, 0))
        state.emit(happened.ConcurrencySet(self.queue, self.limit))


@operation(emits=(happened.ConcurrencyCleared, happened.QueueCreated))
class ClearConcurrency(Operation, frozen=True, tag="queue.clear_concurrency"):
    """Take a queue's limit of active jobs away."""

    queue: QueueName

    def apply(self, state: State, entry: Entry) -> None:
        configure(state, self.queue, concurrency=None)
        state.emit(happened.ConcurrencyCleared(self.queue))


@operation(emits=(happened.QueueCreated,))
class SetWindow(Operation, frozen=True, tag="queue.set_window"):
    """Let at most `max` jobs of a queue start within duration_ms of the first one; None takes the limit away.

    What has started in the window under way counts for a new limit, too.
    """

    queue: QueueName
    max: int | None
    duration_ms: DurationMs = 1000

    def apply(self, state: State, entry: Entry) -> None:
        window = None if self.max is None else Window(max(self.max, 0), max(self.duration_ms, 1))
        configure(state, self.queue, window=window)


@operation(emits=(happened.QueueCreated,))
class HoldQueue(Operation, frozen=True, tag="queue.hold"):
    """Give out no jobs of a queue for duration_ms from now, in the place of what an earlier one said; 0 ends it."""

    queue: QueueName
    duration_ms: DurationMs

    def apply(self, state: State, entry: Entry) -> None:
        state.hold(state.queue(self.queue), self.duration_ms)


@operation(emits=(happened.QueueCreated,))
class SetDefaults(Operation, frozen=True, tag="queue.set_defaults"):
    """Set what holds for jobs of a queue that do not say so themselves: which finished ones are kept, None for all.

    stalls_allowed: in the place of that of every job that has one; None leaves it to the job.
    """

    queue: QueueName
    keep_completed: Keep | None = None
    keep_failed: Keep | None = None
    stalls_allowed: int | None = None

    def apply(self, state: State, entry: Entry) -> None:
        configure(
            state,
            self.queue,
            default_keep_completed=self.keep_completed,
            default_keep_failed=self.keep_failed,
            default_stalls_allowed=self.stalls_allowed,
        )


@operation(emits=(happened.StallConfigChanged, happened.QueueCreated))
class SetStallConfig(Operation, frozen=True, tag="queue.set_stall_config"):
    """Configure a queue's stall detection; what is not given stays. It holds for jobs that are active already, too."""

    queue: QueueName
    enabled: bool | None = None
    interval_ms: int | None = None
    max_stalls: int | None = None
    grace_ms: int | None = None

    def apply(self, state: State, entry: Entry) -> StallConfig:
        given = {name: value for name in GIVEN_STALL if (value := getattr(self, name)) is not None}
        stall = msgspec.structs.replace(state.queue(self.queue).settings.stall, **given)
        configure(state, self.queue, stall=stall)
        state.emit(happened.StallConfigChanged(self.queue))
        return stall


GIVEN_STALL = ("enabled", "interval_ms", "max_stalls", "grace_ms")


@operation(emits=(happened.DlqConfigChanged, happened.DlqExpired, happened.QueueCreated))
class SetDlqConfig(Operation, frozen=True, tag="queue.set_dlq_config"):
    """Configure a queue's dead letter queue; what is not given stays. max_age_ms: 0 keeps jobs for good."""

    queue: QueueName
    auto_retry: bool | None = None
    auto_retry_interval_ms: int | None = None
    max_auto_retries: int | None = None
    max_age_ms: int | None = None
    max_entries: int | None = None

    def apply(self, state: State, entry: Entry) -> DlqConfig:
        given = {name: value for name in GIVEN_DLQ if (value := getattr(self, name)) is not None}
        if given.get("max_age_ms") == 0:
            given["max_age_ms"] = None
        dlq = msgspec.structs.replace(state.queue(self.queue).settings.dlq, **given)
        configure(state, self.queue, dlq=dlq)
        state.emit(happened.DlqConfigChanged(self.queue))
        return dlq


GIVEN_DLQ = ("auto_retry", "auto_retry_interval_ms", "max_auto_retries", "max_age_ms", "max_entries")


@operation()
class SetRetention(Operation, frozen=True, tag="queue.set_retention"):
    """Set how many completed jobs of a queue are kept, and how many bytes of data and results; what is not given stays."""

    queue: QueueName
    keep_completed: int | None = None
    keep_completed_bytes: int | None = None

    def apply(self, state: State, entry: Entry) -> None:
        given = {name: value for name in GIVEN_RETENTION if (value := getattr(self, name)) is not None}
        configure(state, self.queue, **given)


GIVEN_RETENTION = ("keep_completed", "keep_completed_bytes")


# -- Questions


class Counts(msgspec.Struct, gc=False):
    """Jobs of a queue by state. waiting: all that may be taken, prioritized: those of them with a priority above zero.

    lowered: those with one below zero, which BullMQ calls prioritized.
    paused: whether the queue is; how its waiting jobs are shown then is the dialect's affair.
    """

    waiting: int = 0
    prioritized: int = 0
    delayed: int = 0
    active: int = 0
    waiting_children: int = 0
    completed: int = 0
    failed: int = 0
    paused: bool = False
    lowered: int = 0

    def add(self, queue: Queue) -> None:
        """Add a queue's jobs to the sums."""
        self.waiting += queue.waiting_count
        self.prioritized += queue.prioritized
        self.lowered += queue.lowered
        self.delayed += len(queue.delayed)
        self.active += len(queue.active)
        self.waiting_children += len(queue.waiting_children)
        self.completed += len(queue.completed)
        self.failed += len(queue.failed)


class Total(msgspec.Struct, gc=False):
    """Sums over all queues: jobs by state, and how many went through since the beginning, also those that are no more."""

    queues: int
    counts: Counts
    pushed: int = 0
    pulled: int = 0
    completed: int = 0
    failed: int = 0


class QueueFigure(msgspec.Struct, frozen=True, gc=False):
    """What there is to say of a queue in numbers. ready_at: since when the job is ready that has been so longest."""

    name: str
    counts: Counts
    counters: QueueCounters
    ready_at: int | None


class DlqPage(msgspec.Struct, frozen=True, gc=False):
    """Jobs of a dead letter queue, oldest first. total: all it holds.  max_age_ms: how long it keeps one, None for ever."""

    jobs: list[Job]
    total: int
    max_age_ms: int | None


@query
class QueueCounts(Query, frozen=True):
    """Jobs of a queue by state; all zero for an unknown queue."""

    queue: QueueName

    def answer(self, state: State) -> Counts:
        counts = Counts()
        queue = state.queues.get(self.queue)
        if queue is not None:
            counts.add(queue)
            counts.paused = queue.settings.paused
        return counts


@query
class QueueCount(Query, frozen=True):
    """All jobs of a queue, in whatever state."""

    queue: QueueName

    def answer(self, state: State) -> int:
        queue = state.queues.get(self.queue)
        return 0 if queue is None else len(queue.jobs)


@query
class PriorityCounts(Query, frozen=True):
    """Waiting and delayed jobs of a queue by priority, lowest first."""

    queue: QueueName

    def answer(self, state: State) -> dict[int, int]:
        queue = state.queues.get(self.queue)
        return {} if queue is None else queue.priority_counts()


@query
class GetHold(Query, frozen=True):
    """Until when a hold or a spent window keeps a queue from giving out jobs; 0 when neither does, or nobody knows when."""

    queue: QueueName

    def answer(self, state: State) -> int:
        queue = state.queues.get(self.queue)
        if queue is None:
            return 0
        until_ms = max(queue.held_until, queue.next_window_ms(state.now_ms) or 0)
        return until_ms if until_ms > state.now_ms else 0


@query
class ListQueues(Query, frozen=True):
    """Names of all queues in order of creation."""

    def answer(self, state: State) -> list[str]:
        return list(state.queues)


@query
class IsPaused(Query, frozen=True):
    """Whether a queue gives out no jobs."""

    queue: QueueName

    def answer(self, state: State) -> bool:
        queue = state.queues.get(self.queue)
        return queue is not None and queue.settings.paused


@query
class ListJobs(Query, frozen=True):
    """Jobs of a queue, highest priority first, oldest first among equals; completed and failed ones oldest first.

    state: waiting, prioritized, delayed, active, waiting-children, completed, failed or paused; None for every state.
    """

    queue: QueueName
    state: str | None = None
    limit: int | None = None
    offset: int = 0

    def answer(self, state: State) -> list[Job]:
        queue = state.queues.get(self.queue)
        if queue is None or (self.limit is not None and self.limit <= 0):
            return []
        return self.of(queue)

    def of(self, queue: Queue) -> list[Job]:
        limit, offset = self.limit, max(self.offset, 0)
        if self.state is None:
            # The waiting jobs may be a million and are in order already; the others are few.
            others = (
                queue.delayed,
                queue.active.values(),
                queue.waiting_children.values(),
                queue.completed,
                queue.failed,
            )
            rest = sorted(chain.from_iterable(others), key=rank_of)
            return list(islice(merge(queue.waiting(), rest, key=rank_of), offset, limit and offset + limit))
        if self.state == "paused":
            return self.page(list(queue.waiting())) if queue.settings.paused else []
        if self.state == "prioritized":
            return list(islice(islice(queue.waiting(), queue.prioritized), offset, limit and offset + limit))
        if self.state == WAITING and not queue.parked:
            return queue.ready.slice(offset, limit)
        if self.state == COMPLETED:
            return queue.completed.slice(offset, limit)
        if self.state == FAILED:
            return queue.failed.slice(offset, limit)
        if self.state == WAITING:
            return list(islice(queue.waiting(), offset, limit and offset + limit))
        if self.state == DELAYED:
            return self.page(sorted(queue.delayed, key=rank_of))
        if self.state == ACTIVE:
            return self.page(sorted(queue.active.values(), key=rank_of))
        if self.state == WAITING_CHILDREN:
            return self.page(sorted(queue.waiting_children.values(), key=rank_of))
        return []

    def page(self, jobs: list[Job]) -> list[Job]:
        offset = max(self.offset, 0)
        return jobs[offset : None if self.limit is None else offset + self.limit]


@query
class ListStatus(Query, frozen=True):
    """Jobs of a queue in a status as BullMQ divides them, in the order in which they run or came there.

    status: waiting (without those of a priority below zero, which are prioritized), prioritized, delayed, active, completed,
    failed, waiting-children; paused: waiting ones of a paused queue.  newest: in the opposite order.
    """

    queue: QueueName
    status: str
    offset: int = 0
    limit: int | None = None
    newest: bool = False

    def answer(self, state: State) -> list[Job]:
        queue = state.queues.get(self.queue)
        if queue is None or self.status not in STATUSES or (self.status == "paused" and not queue.settings.paused):
            return []
        index: Iterable[Job]
        begin = 0
        if self.status in (WAITING, "paused", "prioritized"):
            index, size = queue.waiting() if queue.parked else queue.ready, queue.waiting_count
            if self.status == "prioritized":
                begin = size - queue.lowered
            else:
                size -= queue.lowered
        else:
            index = STATUSES[self.status](queue)
            size = queue.count(self.status)
        offset = max(self.offset, 0)
        count = size - begin - offset if self.limit is None else min(self.limit, size - begin - offset)
        if count <= 0:
            return []
        first = size - offset - count if self.newest else begin + offset
        page = index.slice(first, count) if isinstance(index, Ranked) else list(islice(index, first, first + count))
        return page[::-1] if self.newest else page


STATUSES: dict[str, Callable[[Queue], Iterable[Job]]] = {
    WAITING: lambda queue: queue.ready,
    "paused": lambda queue: queue.ready,
    "prioritized": lambda queue: queue.ready,
    DELAYED: lambda queue: queue.delayed,
    ACTIVE: lambda queue: queue.active.values(),
    WAITING_CHILDREN: lambda queue: queue.waiting_children.values(),
    COMPLETED: lambda queue: queue.completed,
    FAILED: lambda queue: queue.failed,
}


@query
class ListDlq(Query, frozen=True):
    """Jobs of a queue's dead letter queue, oldest first."""

    queue: QueueName
    limit: int | None = 100
    offset: int = 0

    def answer(self, state: State) -> DlqPage:
        queue = state.queues.get(self.queue)
        if queue is None:
            return DlqPage([], 0, None)
        jobs = [] if self.limit is not None and self.limit <= 0 else queue.failed.slice(max(self.offset, 0), self.limit)
        return DlqPage(jobs, len(queue.failed), queue.settings.dlq.max_age_ms)


@query
class GetQueueSettings(Query, frozen=True):
    """The settings of a queue; the defaults for an unknown one."""

    queue: QueueName

    def answer(self, state: State) -> QueueSettings:
        queue = state.queues.get(self.queue)
        return QueueSettings() if queue is None else queue.settings


@query
class QueueFigures(Query, frozen=True):
    """Figures of the queues, the oldest first, of up to `limit` of them."""

    limit: int

    def answer(self, state: State) -> list[QueueFigure]:
        found: list[QueueFigure] = []
        for queue in islice(state.queues.values(), max(self.limit, 0)):
            counts = Counts(paused=queue.settings.paused)
            counts.add(queue)
            found.append(QueueFigure(queue.name, counts, queue.counters, queue.oldest_ready_at()))
        return found


@query
class Totals(Query, frozen=True):
    """Sums over all queues."""

    def answer(self, state: State) -> Total:
        gone = state.gone
        total = Total(len(state.queues), Counts(), gone.pushed, gone.pulled, gone.completed, gone.failed)
        for queue in state.queues.values():
            total.counts.add(queue)
            counters: QueueCounters = queue.counters
            total.pushed += counters.pushed
            total.pulled += counters.pulled
            total.completed += counters.completed
            total.failed += counters.failed
        return total

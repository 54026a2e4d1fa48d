"""What can be done with a queue as a whole: paused, emptied, destroyed, cleaned; its jobs let run, or run again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import filterfalse, islice, takewhile
from operator import attrgetter
from typing import Literal

import msgspec

from quorumq.node.machine import events as happened
from quorumq.node.machine.bounds import JobId, Key, QueueName
from quorumq.node.machine.lifecycle import clock, crons, indexes, queues, removal, repetition, revival, stream_events
from quorumq.node.machine.operation import Entry, Operation, operation
from quorumq.node.machine.operations.jobs import DIES, GOES_ON, Counted
from quorumq.node.machine.refusals import QueueBusy, TooManyQueues
from quorumq.node.machine.state import State
from quorumq.node.machine.state.bullmq import streams
from quorumq.node.machine.state.job import (
    COMPLETED,
    DELAYED,
    FAILED,
    WAITING,
    Job,
)
from quorumq.node.machine.state.queue import Queue


@operation(emits=(happened.QueuePaused, happened.QueueCreated), refuses=(TooManyQueues,))
class PauseQueue(Operation, frozen=True, tag="queue.pause"):
    """Give out no jobs of a queue any more; active ones go on. True when that is a change."""

    queue: QueueName

    def apply(self, state: State, entry: Entry) -> bool:
        queue = state.queue(self.queue)
        if not queues.set_paused(state, queue, True):
            return False
        stream_events.publish_of_queue(state, queue.name, streams.PAUSED)
        return True


@operation(emits=(happened.QueueResumed,))
class ResumeQueue(Operation, frozen=True, tag="queue.resume"):
    """Give out jobs of a queue again. True when that is a change."""

    queue: QueueName

    def apply(self, state: State, entry: Entry) -> bool:
        queue = state.queues.get(self.queue)
        if queue is None or not queues.set_paused(state, queue, False):
            return False
        stream_events.publish_of_queue(state, queue.name, streams.RESUMED)
        return True


@operation(emits=(happened.QueueDrained, happened.JobRemoved, *GOES_ON), newer={"spare_repeating": 1})
class DrainQueue(Operation, frozen=True, tag="queue.drain"):
    """Remove all waiting and delayed jobs of a queue; active ones and those that wait for others stay.

    so_far: jobs that queue.thin removed for it, which count as well.  delayed: those too, not the waiting ones only.
    spare_repeating: not those with which a repetition or a cron waits for its next run. Without it a repetition whose job goes
    has its next one at its next time.
    """

    queue: QueueName
    so_far: int = 0
    delayed: bool = True
    spare_repeating: bool = False

    def apply(self, state: State, entry: Entry) -> Counted:
        queue = state.queues.get(self.queue)
        spare = self.spare_repeating
        count = self.so_far
        if queue is not None:
            count += queues.drain(state, queue, delayed=self.delayed, spare_repeating=spare)
        state.emit(happened.QueueDrained(self.queue, count))
        return Counted(count)


@operation(emits=(happened.QueueObliterated, happened.CronDeleted, *GOES_ON), refuses=(QueueBusy,))
class ObliterateQueue(Operation, frozen=True, tag="queue.obliterate"):
    """Destroy a queue with all its jobs, active ones too, its settings, its repetitions and crons.

    so_far: jobs that queue.thin removed for it, which count as well.  only_idle: not while jobs are active.
    """

    queue: QueueName
    so_far: int = 0
    only_idle: bool = False

    def apply(self, state: State, entry: Entry) -> Counted:
        queue = state.queues.get(self.queue)
        if queue is not None and queue.active and self.only_idle:
            raise QueueBusy(queue.name, len(queue.active))
        count = self.so_far + (0 if queue is None else queues.obliterate(state, queue))
        if state.level >= 1:
            crons.stop_repeating(state, self.queue)
        state.emit(happened.QueueObliterated(self.queue))
        return Counted(count)


@operation(emits=GOES_ON, newer={"spare_repeating": 1})
class ThinQueue(Operation, frozen=True, tag="queue.thin"):
    """Remove some of the jobs that a drain or an obliteration is about to remove, so that no entry takes long.

    everything: jobs in any state, else waiting and delayed ones.  until_seq: jobs born later stay.  limit: at most so many.
    spare: states whose jobs stay.  spare_repeating: as in queue.drain.
    """

    queue: QueueName
    until_seq: int
    limit: int
    everything: bool = False
    spare: tuple[Key, ...] = ()
    spare_repeating: bool = False

    def apply(self, state: State, entry: Entry) -> Counted:
        queue = state.queues.get(self.queue)
        if queue is None:
            return Counted(0)
        old = takewhile(lambda job: job.seq <= self.until_seq, queue.jobs.values())
        chosen: Iterator[Job]
        if self.everything:
            chosen = (job for job in old if job.state not in self.spare)
        else:
            chosen = (job for job in old if job.state in (WAITING, DELAYED) and job.state not in self.spare)
        if self.spare_repeating and state.level >= 1:
            chosen = filterfalse(repetition.pending(state, queue), chosen)
        gone = list(islice(chosen, self.limit))
        for job in gone:
            if not self.everything:
                repetition.skip_run(state, job)
            removal.delete(state, job)
        return Counted(len(gone))


class Cleaned(msgspec.Struct, frozen=True, gc=False):
    """Ids of the jobs removed, oldest first."""

    job_ids: list[str]


# States whose jobs a cleaning looks for among those that are queued.
CLEANED = (WAITING, DELAYED, "prioritized", "lowered", "unlowered")
# Sorting jobs of one state costs so many times as much as passing over a job of another.
SPARSE = 8
by_creation = attrgetter("seq")


@operation(emits=(happened.QueueCleaned, *GOES_ON), newer={"spare_repeating": 1})
class CleanQueue(Operation, frozen=True, tag="queue.clean"):
    """Remove the oldest jobs of a state that are at least grace_ms old, at most `limit`.

    state: waiting, prioritized, delayed, completed or failed; None for waiting and delayed.  BullMQ divides those that wait
    otherwise: lowered (a priority below zero), and unlowered.  unlocked: active jobs without a lock.  The age of a finished
    job counts from its end, of an active one from its start, of any other from its creation.  spare_repeating: as in
    queue.drain.
    """

    queue: QueueName
    grace_ms: int | float = 0
    state: Key | None = None
    limit: int = 1000
    spare_repeating: bool = False

    def apply(self, state: State, entry: Entry) -> Cleaned:
        queue = state.queues.get(self.queue)
        gone: list[Job] = []
        if queue is not None:
            found = self.candidates(queue, state.now_ms)
            if self.spare_repeating and state.level >= 1:
                found = filterfalse(repetition.pending(state, queue), found)
            gone = list(islice(found, max(self.limit, 0)))
        for job in gone:
            if not job.finished:
                repetition.skip_run(state, job)
            removal.delete(state, job)
        state.emit(happened.QueueCleaned(self.queue, self.state, len(gone)))
        stream_events.publish_of_queue(state, self.queue, streams.CLEANED, len(gone))
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
        old = takewhile(lambda job: job.created_at <= until, self.in_creation_order(queue))
        if self.state in ("lowered", "unlowered"):
            lowered = self.state == "lowered"
            return (job for job in old if job.state == WAITING and (job.opts.priority < 0) == lowered)
        if self.state is None:
            return (job for job in old if job.state in (WAITING, DELAYED))
        if self.state in (WAITING, DELAYED):
            return (job for job in old if job.state == self.state)
        return (job for job in old if job.shown_state == self.state)

    def in_creation_order(self, queue: Queue) -> Iterable[Job]:
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
        return queue.jobs.values() if count * SPARSE > len(queue.jobs) else sorted(few, key=by_creation)


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
            indexes.promote(state, job)
        return Counted(self.so_far + len(jobs))


@operation(emits=(happened.JobWaiting, happened.JobWaitingChildren))
class RetryCompleted(Operation, frozen=True, tag="queue.retry_completed"):
    """Let one completed job of a queue, or all of them, run again from the start, oldest end first.

    count: at most so many.  until_ms: only those that ended until then.  so_far: jobs that entries before this one revived,
    which the reply counts as well.
    """

    queue: QueueName
    job_id: JobId | None = None
    count: int | None = None
    until_ms: int | None = None
    so_far: int = 0

    def apply(self, state: State, entry: Entry) -> Counted:
        jobs = finished_jobs(state, self.queue, COMPLETED, self.job_id, self.count)
        if self.until_ms is not None:
            until_ms = self.until_ms
            jobs = [job for job in jobs if (job.finished_at or 0) <= until_ms]
        for job in jobs:
            revival.revive(state, job)
            if job.state == WAITING:
                state.emit(happened.JobWaiting(job.queue, job.id))
        return Counted(self.so_far + len(jobs))


@operation(emits=(happened.JobWaiting, happened.JobWaitingChildren))
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
            revival.rerun(state, job)
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
        happened.JobRetried,
        *DIES,
    )
)
class CheckStalled(Operation, frozen=True, tag="queue.check_stalled"):
    """Deal with the locks of a queue that have run out, now; else that happens by itself in one of the next entries."""

    queue: QueueName

    def apply(self, state: State, entry: Entry) -> Checked:
        queue = state.queues.get(self.queue)
        if queue is not None:
            clock.check_stalled(state, queue)
        # What the passing of time did at the beginning of this entry counts as well.
        jobs = [job for job in state.stalled if job.queue == self.queue]
        failed = [job.id for job in jobs if job.state == FAILED]
        return Checked([job.id for job in jobs if not job.finished], failed)


def finished_jobs(state: State, name: str, kind: str, job_id: str | None, count: int | None = None) -> list[Job]:
    """Return one finished job of a queue, or all of its kind, oldest end first, or the first so many of them.

    A dead letter is found by the id that it has, and by the one that it had before a new job took that.
    """
    queue = state.queues.get(name)
    if queue is None or (count is not None and count <= 0):
        return []
    if job_id is not None:
        job = queue.finished(job_id, kind)
        return [] if job is None else [job]
    return (queue.completed if kind == COMPLETED else queue.failed).slice(0, count)

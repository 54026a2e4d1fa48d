"""Repeatable jobs of the BullMQ dialect: crons that belong to one queue, are named by a key, and whose jobs it can name.

They are kept and fired with all other crons (schedules.py); what differs is that adding one again leaves its times as they are
and renews its job that waits, and that one job of each may wait at a time, however many are being worked on.
"""

from __future__ import annotations

import msgspec

from quorumq.node.machine import events as happened
from quorumq.node.machine.bounds import Key, PathKey, QueueName
from quorumq.node.machine.lifecycle import changes, crons, removal
from quorumq.node.machine.operation import CATALOGUE, Entry, Operation, Query, operation, query
from quorumq.node.machine.operations.adding import Added, AddJobs
from quorumq.node.machine.operations.jobs import DurationMs
from quorumq.node.machine.operations.schedules import TimeMs
from quorumq.node.machine.refusals import CronNotFound, TooManyCrons
from quorumq.node.machine.state import State
from quorumq.node.machine.state.job import JobSpec
from quorumq.node.machine.state.schedule import CRONS_MAX, Cron

ADD = CATALOGUE["job.add"]


def name_of(queue: str, key: str) -> str:
    """Return the name that a repetition has among all crons."""
    return f"bull:{queue}:{key}"


class Repetition(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """How a job repeats.

    key: its name in its queue.  job: what is pushed each time; its id means nothing.  schedule: cron expression; every_ms: in
    its place.  next_due_ms: the first time after now, worked out at the edge.  limit: jobs in all.  until_ms: none after.
    immediately: the first one now.
    """

    key: PathKey
    job: JobSpec
    next_due_ms: TimeMs
    schedule: Key | None = None
    every_ms: DurationMs | None = None
    timezone: Key | None = None
    limit: int | None = None
    until_ms: TimeMs | None = None
    immediately: bool = False


class AddedRepeating(msgspec.Struct, frozen=True, gc=False):
    """The plain jobs that were added, and for each repetition the time of its next job, or of the one that waits; 0 for none."""

    added: Added
    next_due_ms: list[int]


@operation(
    emits=(
        happened.CronCreated,
        happened.CronUpdated,
        happened.CronFired,
        happened.CronSkipped,
        happened.CronDeleted,
        happened.JobDataUpdated,
        happened.JobRemoved,
        *ADD.emits,
    ),
    refuses=(TooManyCrons, *ADD.refuses),
)
class AddRepeating(Operation, frozen=True, tag="job.add_repeating"):
    """Add jobs and repetitions to a queue, all or none.

    A repetition of a key that is there gives it new jobs, limit and end; with the same times it goes on as it was, and its job
    that waits gets the new data and options. With other times it begins anew, and that job is gone.
    """

    add: AddJobs
    repetitions: list[Repetition]

    def apply(self, state: State, entry: Entry) -> AddedRepeating:
        queue = self.add.queue
        crons = state.schedule.crons
        new = {name for one in self.repetitions if (name := name_of(queue, one.key)) not in crons}
        if len(crons) + len(new) > CRONS_MAX:
            raise TooManyCrons(CRONS_MAX)
        state.check_room_for(queue)
        added = self.add.apply(state, entry)
        return AddedRepeating(added, [repeat(state, queue, one, entry.index) for one in self.repetitions])


def repeat(state: State, queue: str, wanted: Repetition, index: int) -> int:
    """Create or change a repetition. Returns the time of its job that waits, else of its next one, 0 for never."""
    schedule, now_ms = state.schedule, state.now_ms
    name = name_of(queue, wanted.key)
    present = schedule.crons.get(name)
    cron = Cron(
        name,
        queue,
        wanted.job,
        wanted.schedule,
        wanted.every_ms,
        wanted.timezone,
        wanted.next_due_ms,
        now_ms,
        wanted.limit,
        prevent_overlap=False,
        key=wanted.key,
        until=wanted.until_ms,
        set_by=index,
    )
    goes_on = present is not None and same_times(present, cron)
    waiting = None if present is None else crons.waiting_of(state, present)
    if present is not None and goes_on:
        if cron.until is None or present.next_due <= cron.until:
            cron.next_due = present.next_due
        cron.set_at = present.set_at
        cron.executions, cron.last_fired, cron.last_id = present.executions, present.last_fired, present.last_id
    schedule.put(cron)
    state.mark += cron.next_due + len(schedule.crons)
    kind = happened.CronCreated if present is None else happened.CronUpdated
    state.emit(kind(cron.name, queue, cron.next_due, cron.schedule, cron.every_ms))
    due_ms = 0
    if waiting is not None and goes_on:
        changes.renew(state, waiting, wanted.job)
        state.emit(happened.JobDataUpdated(queue, waiting.id))
        due_ms = int(waiting.id.rpartition(":")[2])
    elif waiting is not None:
        removal.remove(state, waiting)
    if wanted.immediately and not goes_on:
        crons.fire(state, cron, now_ms)
        due_ms = now_ms
    has_ended = not cron.next_due or (cron.max_limit is not None and cron.executions >= cron.max_limit)
    if has_ended and schedule.crons.get(name) is cron:
        # No time is left before its end, or it was given a limit that it has reached.
        crons.remove(state, cron)
    return due_ms or cron.next_due


def same_times(one: Cron, other: Cron) -> bool:
    return (one.schedule, one.every_ms, one.timezone) == (other.schedule, other.every_ms, other.timezone)


@query
class ListRepeating(Query, frozen=True):
    """The repetitions of a queue in order of creation."""

    queue: QueueName

    def answer(self, state: State) -> list[Cron]:
        crons = state.schedule.crons.values()
        return [cron for cron in crons if cron.key is not None and cron.queue == self.queue]


@query
class GetRepeating(Query, frozen=True):
    """A repetition of a queue by its key."""

    queue: QueueName
    key: PathKey

    def answer(self, state: State) -> Cron:
        cron = state.schedule.crons.get(name_of(self.queue, self.key))
        if cron is None or cron.key is None:
            raise CronNotFound(self.key)
        return cron

"""What can be done with and asked about crons, and the leader's answer to what is due.

No time is worked out here: next times come inside operations. A due time fires exactly once, because it is applied only
while it is the cron's next one.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from quorumq.node.machine import events as happened
from quorumq.node.machine.bounds import PATH_CHARS_MAX, JobId, Key, QueueName, bounded
from quorumq.node.machine.lifecycle import crons, repetition
from quorumq.node.machine.operation import Entry, Operation, Query, operation, query
from quorumq.node.machine.operations.jobs import Counted, DurationMs
from quorumq.node.machine.refusals import CronNotFound, TooManyCrons, TooManyQueues
from quorumq.node.machine.state import State
from quorumq.node.machine.state.job import JobSpec
from quorumq.node.machine.state.schedule import CRONS_MAX, SKIP, Cron, Held

CronName = Annotated[str, bounded(PATH_CHARS_MAX, "Name of a cron, unique in the cluster.")]
TimeMs = Annotated[int, Meta(description="Milliseconds since the epoch.")]


class CronSet(msgspec.Struct, frozen=True, gc=False):
    """A cron as it is now. created: it is new; else it took the place of the one with its name."""

    cron: Cron
    created: bool


class CronFire(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """One due time of a cron and the one after it, 0 for none.

    missed: due times between the two that passed while nobody led.  push: whether there is a job for this one.
    set_by: of the cron that this was worked out for; 0 for whichever there is.
    """

    name: CronName
    due_ms: int
    next_due_ms: int
    missed: int = 0
    push: bool = True
    set_by: int = 0


@operation(
    emits=(
        happened.CronCreated,
        happened.CronUpdated,
        happened.CronFired,
        happened.CronSkipped,
        happened.CronDeleted,
        happened.QueueCreated,
        happened.JobPushed,
    ),
    refuses=(TooManyCrons, TooManyQueues),
)
class AddCron(Operation, frozen=True, tag="cron.add"):
    """Create a cron, or replace the one of that name; its executions start from zero.

    job: what is pushed each time; its id means nothing.  schedule: a cron expression, whose first time after now was worked
    out at the edge (next_due_ms); every_ms: milliseconds, in its place.  max_limit: jobs after which the cron is
    removed.  prevent_overlap: no job while the last one is unfinished.  immediately: fires now, too.  on_missed: what
    becomes of times that passed while nobody led: `fire` makes one job for all of them, `skip` none; either is reported.
    needs_worker: no job while no worker is registered for the queue.
    """

    name: CronName
    queue: QueueName
    job: JobSpec
    schedule: Key | None = None
    every_ms: DurationMs | None = None
    timezone: Key | None = None
    next_due_ms: TimeMs = 0
    max_limit: int | None = None
    prevent_overlap: bool = True
    immediately: bool = False
    on_missed: Literal["fire", "skip"] = "fire"
    needs_worker: bool = False

    def apply(self, state: State, entry: Entry) -> CronSet:
        schedule, now_ms = state.schedule, state.now_ms
        before = schedule.crons.get(self.name)
        created = before is None
        if created and len(schedule.crons) >= CRONS_MAX:
            raise TooManyCrons(CRONS_MAX)
        state.check_room_for(self.queue)
        due_ms = self.next_due_ms
        if self.schedule is None:
            due_ms = now_ms + max(self.every_ms or 0, 1)
        cron = Cron(
            self.name,
            self.queue,
            self.job,
            self.schedule,
            self.every_ms,
            self.timezone,
            due_ms,
            now_ms,
            self.max_limit,
            prevent_overlap=self.prevent_overlap,
            on_missed=self.on_missed,
            needs_worker=self.needs_worker,
            set_by=entry.index,
        )
        schedule.put(cron)
        state.mark += due_ms + len(schedule.crons)
        kind = happened.CronCreated if created else happened.CronUpdated
        if before is not None and before.queue != cron.queue and state.level >= 1:
            state.emit(happened.CronDeleted(cron.name, (before.queue,)))
        state.emit(kind(cron.name, cron.queue, cron.next_due, cron.schedule, cron.every_ms))
        if self.immediately:
            crons.fire(state, cron, now_ms)
        return CronSet(cron, created)


@operation(emits=(happened.CronDeleted,), refuses=(CronNotFound,))
class DeleteCron(Operation, frozen=True, tag="cron.delete"):
    """Remove a cron; jobs that it made stay."""

    name: CronName

    def apply(self, state: State, entry: Entry) -> None:
        cron = state.schedule.crons.get(self.name)
        if cron is None:
            raise CronNotFound(self.name)
        crons.remove(state, cron)


@operation(
    emits=(
        happened.CronFired,
        happened.CronSkipped,
        happened.CronMissed,
        happened.CronDeleted,
        happened.QueueCreated,
        happened.JobPushed,
    ),
)
class FireCrons(Operation, frozen=True, tag="cron.fire"):
    """Let due times of crons happen; counts those that did.

    A due time that is not its cron's next one has happened already, or belongs to a cron that was changed: it is passed over.
    So is one that the log's clock has not reached.
    """

    fires: list[CronFire]

    def apply(self, state: State, entry: Entry) -> Counted:
        count = 0
        for fire in self.fires:
            cron = state.schedule.crons.get(fire.name)
            if cron is None or not fire.due_ms or fire.due_ms != cron.next_due or fire.due_ms > state.now_ms:
                continue
            if fire.set_by and fire.set_by != cron.set_by:
                # Its times may be others now; the leader will work them out.
                continue
            count += 1
            state.schedule.move(cron, fire.next_due_ms)
            state.mark += fire.due_ms * 3 + fire.next_due_ms
            if fire.missed:
                cron.missed += fire.missed
                # Of the missed times the first still made a job when the cron wants one for all of them.
                state.emit(happened.CronMissed(cron.name, cron.queue, missed_text(fire, cron)))
            if fire.push:
                crons.fire(state, cron, fire.due_ms)
            if not cron.next_due and cron.until is not None and cron.name in state.schedule.crons:
                # It has come to its end.
                crons.remove(state, cron)
        return Counted(count)


def missed_text(fire: CronFire, cron: Cron) -> str:
    """Say which times were missed, and what became of them."""
    made = "no job" if cron.on_missed == SKIP else "one job for all"
    return f"{fire.missed} due time(s) from {fire.due_ms} on passed without a leader: {made}"


@operation(emits=(happened.QueueCreated, happened.JobPushed, happened.JobDelayed))
class FollowJobs(Operation, frozen=True, tag="job.follow"):
    """Create jobs that follow completed ones by a pattern, each at its time; counts them. Time 0 ends the repetition.

    Of a held job this says when it comes, and at that time again, that it is there.
    """

    jobs: list[tuple[JobId, int]]

    def apply(self, state: State, entry: Entry) -> Counted:
        count = 0
        schedule = state.schedule
        for job_id, due_ms in self.jobs:
            held = schedule.held.get(job_id)
            if held is not None:
                count += come(state, held, due_ms)
                continue
            following = schedule.following.pop(job_id, None)
            if following is not None:
                state.mark += 67 + due_ms
                count += due_ms > 0 and repetition.follow(state, following, due_ms)
        return Counted(count)


def come(state: State, held: Held, due_ms: int) -> bool:
    """Let a held job have its time, or come at it. Say whether that was news."""
    schedule, job = state.schedule, held.job
    if held.at_ms:
        if due_ms != held.at_ms or due_ms > state.now_ms:
            return False
        schedule.drop(job.id)
        if not repetition.follow(state, job, due_ms):
            # Its key is taken just now: it is for the time after.
            repetition.hold_next(state, job, due_ms)
    elif due_ms > 0:
        schedule.hold(Held(job, due_ms))
    else:
        # It has no time any more.
        schedule.drop(job.id)
    state.mark += 131 + due_ms
    return True


# -- Questions


@query
class GetCron(Query, frozen=True):
    """A cron by its name."""

    name: CronName

    def answer(self, state: State) -> Cron:
        cron = state.schedule.crons.get(self.name)
        if cron is None:
            raise CronNotFound(self.name)
        return cron


@query
class ListCrons(Query, frozen=True):
    """All crons in order of creation."""

    def answer(self, state: State) -> list[Cron]:
        return list(state.schedule.crons.values())

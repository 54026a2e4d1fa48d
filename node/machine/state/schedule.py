"""What makes jobs by itself: crons, and repeating jobs whose next time is yet to be worked out.

Times of both are worked out by the leader and come through the log; here they are only kept and ordered.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final, Literal

import msgspec
from sortedcontainers import SortedList

from quorumq.node.machine.state.job import JobSpec, Options

CRONS_MAX = 10_000
# What becomes of due times that passed while nobody led: one job for all of them, or none.
FIRE: Final = "fire"
SKIP: Final = "skip"


class Cron(msgspec.Struct, gc=False, array_like=True):
    """A named source of jobs. Order of fields is the image's format: only append.

    job: what is pushed each time; its id means nothing.  schedule: cron expression; every_ms: in its place.  next_due: when
    it fires next, 0 for never.  set_at: when it was created or changed last.  executions: times fired since.
    missed: due times that passed without a job because nobody led.  key: of a repetition of the BullMQ dialect, by which its
    queue knows it.  until: no due times after.  last_id: of the last job, for those of which one may wait at a time.
    set_by: index of the entry that created or changed it last; 0 where nobody noted it.
    """

    name: str
    queue: str
    job: JobSpec
    schedule: str | None
    every_ms: int | None
    timezone: str | None
    next_due: int
    set_at: int
    max_limit: int | None = None
    executions: int = 0
    prevent_overlap: bool = True
    on_missed: Literal["fire", "skip"] = FIRE
    needs_worker: bool = False
    last_fired: int | None = None
    missed: int = 0
    key: str | None = None
    until: int | None = None
    last_id: str = ""
    set_by: int = 0

    @property
    def unique_key(self) -> str | None:
        """The key that its jobs carry, so that one is there at a time."""
        return self.job.unique_key or (f"cron:{self.name}" if self.prevent_overlap else None)


class Following(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A job that is to follow another one, once it is known when. after_ms: when that one completed, or was not to be."""

    id: str
    queue: str
    data: bytes
    opts: Options
    unique_key: str | None
    group_id: str | None
    after_ms: int


class Held(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A job that is not there before its time, since the run before it was drained. at_ms: that time; 0 until it is worked out."""

    job: Following
    at_ms: int


class Schedule:
    """All crons by name, in order of creation and in order of time, and the jobs that are to follow others.

    following: those whose time is to be worked out.  held: those that come at their time and not before.  skipped: by cron, how
    many of its executions made no job because the last one was unfinished.
    """

    __slots__ = ("_by_time", "_held_by_time", "crons", "following", "held", "skipped", "untimed")

    def __init__(self) -> None:
        self.crons: dict[str, Cron] = {}
        self.following: dict[str, Following] = {}
        self.held: dict[str, Held] = {}
        # Of the held ones, those whose time is to be worked out.
        self.untimed: dict[str, None] = {}
        self.skipped: dict[str, int] = {}
        self._by_time: SortedList = SortedList()
        self._held_by_time: SortedList = SortedList()

    @property
    def first_due(self) -> int:
        """When the first cron fires, or the first held job comes; 0 when none does."""
        due: int = self._by_time[0][0] if self._by_time else 0
        held = self.first_held
        return min(due, held) if due and held else due or held

    @property
    def first_held(self) -> int:
        """When the first held job comes; 0 when there is none."""
        due: int = self._held_by_time[0][0] if self._held_by_time else 0
        return due

    def held_until(self, now_ms: int, limit: int) -> list[tuple[str, int]]:
        """Return the held jobs whose time has come, the first ones first, at most `limit`: id and time."""
        found = self._held_by_time.irange(maximum=(now_ms + 1,), inclusive=(True, False))
        return [(job_id, at_ms) for at_ms, job_id in islice(found, limit)]

    def open(self) -> list[Following]:
        """Return the jobs whose time is to be worked out."""
        return [*self.following.values(), *(self.held[job_id].job for job_id in self.untimed)]

    def hold(self, held: Held) -> None:
        """Note a job that comes at its time and not before."""
        job_id = held.job.id
        self.drop(job_id)
        self.held[job_id] = held
        if held.at_ms:
            self._held_by_time.add((held.at_ms, job_id))
        else:
            self.untimed[job_id] = None

    def drop(self, job_id: str) -> None:
        """Let a held job not come."""
        held = self.held.pop(job_id, None)
        if held is not None and held.at_ms:
            self._held_by_time.remove((held.at_ms, job_id))
        self.untimed.pop(job_id, None)

    def skip(self, cron: Cron) -> None:
        """Note that an execution of a cron made no job."""
        self.skipped[cron.name] = self.skipped.get(cron.name, 0) + 1

    def runs(self, cron: Cron) -> int:
        """Return how many jobs a cron has made since it was set."""
        return cron.executions - self.skipped.get(cron.name, 0)

    def upcoming(self) -> Iterator[Cron]:
        """Iterate over the crons that will fire, the next one first."""
        for _, name in self._by_time:
            yield self.crons[name]

    def put(self, cron: Cron) -> None:
        """Add a cron, or replace the one of its name, which keeps its place."""
        present = self.crons.get(cron.name)
        if present is not None and present.next_due:
            self._by_time.remove((present.next_due, present.name))
        self.crons[cron.name] = cron
        self.skipped.pop(cron.name, None)
        if cron.next_due:
            self._by_time.add((cron.next_due, cron.name))

    def move(self, cron: Cron, next_due: int) -> None:
        """Let a cron fire at another time next."""
        if cron.next_due:
            self._by_time.remove((cron.next_due, cron.name))
        cron.next_due = next_due
        if next_due:
            self._by_time.add((next_due, cron.name))

    def remove(self, cron: Cron) -> None:
        """Take a cron away."""
        self.move(cron, 0)
        del self.crons[cron.name]
        self.skipped.pop(cron.name, None)

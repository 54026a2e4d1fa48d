"""What makes jobs by itself: crons, and repeating jobs whose next time is yet to be worked out.

Times of both are worked out by the leader and come through the log; here they are only kept and ordered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import msgspec
from sortedcontainers import SortedList

from node.state.job import JobSpec, Options

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
    """A job that is to follow a completed one, once it is known when. after_ms: when that one completed."""

    id: str
    queue: str
    data: bytes
    opts: Options
    unique_key: str | None
    group_id: str | None
    after_ms: int


class Schedule:
    """All crons by name, in order of creation and in order of time, and the jobs that are to follow others."""

    __slots__ = ("_by_time", "crons", "following")

    def __init__(self) -> None:
        self.crons: dict[str, Cron] = {}
        self.following: dict[str, Following] = {}
        self._by_time: SortedList = SortedList()

    @property
    def first_due(self) -> int:
        """When the first cron fires; 0 when none does."""
        if not self._by_time:
            return 0
        due: int = self._by_time[0][0]
        return due

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

"""The leader's clockwork: it works out when crons and repeating jobs are due next and has the log say so.

It sleeps until the first cron is due. What it submits names the due time that it means, so a leader that is late, or is no
leader any more, does no harm. Every node has one, only the leader's runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from quorumq.node.batching import Batcher
from quorumq.node.engine import ReplicatedLog
from quorumq.node.leader.crontime import InvalidSchedule, next_due_ms
from quorumq.node.leader.duty import TimedDuty
from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operation import Entry, Operation
from quorumq.node.machine.operations.schedules import CronFire, FireCrons, FollowJobs
from quorumq.node.machine.state.schedule import SKIP, Cron, Schedule

log = logging.getLogger("quorumq.scheduler")

# A due time that is later than this was missed: its cron says what becomes of it. Until then it is only late, and fires.
LATE_MS = 60_000
# Due times, and repeating jobs, in one operation.
FIRES_MAX = 500
# What did not get through, or what the log's clock has not reached yet, is tried again after this long.
AGAIN_S = 0.05
BEHIND_S = 0.005
# A cron whose expression this node cannot work out is left alone for this long; another leader may know better.
ASIDE_MS = 60_000


class CronDuty(TimedDuty):
    """Fires crons and times repeating jobs while this node leads."""

    again_s = AGAIN_S

    def __init__(self, engine: ReplicatedLog, machine: Machine, batcher: Batcher, clock: Callable[[], int]) -> None:
        super().__init__(engine, machine, batcher, clock)
        self._aside: dict[str, int] = {}

    def _on_role_change(self, leads: bool) -> None:
        self._aside.clear()
        super()._on_role_change(leads)

    def _on_entry(self, entry: Entry) -> None:
        if self._leads and self._under_way is None:
            schedule = self._machine.state.schedule
            if schedule.following or schedule.untimed or schedule.first_due != self._timer_ms:
                self.look()

    def _due(self) -> Operation | None:
        schedule = self._machine.state.schedule
        if schedule.following or schedule.untimed:
            return self._follow(schedule)
        now_ms = self._now_ms()
        come = schedule.held_until(now_ms, FIRES_MAX)
        if come:
            return FollowJobs(come)
        if schedule.first_due and schedule.first_due <= now_ms:
            fires = self._fires(schedule, now_ms)
            if fires:
                return FireCrons(fires)
        self._sleep_until(self._next_look(schedule))
        return None

    def _next_look(self, schedule: Schedule) -> int:
        """Return when the first cron is due that is not left alone, or the first held job; 0 for never."""
        soonest = min(self._aside.values(), default=0)
        held = schedule.first_held
        soonest = min(soonest, held) if soonest and held else soonest or held
        for cron in schedule.upcoming():
            if cron.name not in self._aside:
                return min(cron.next_due, soonest) if soonest else cron.next_due
        return soonest

    def _fires(self, schedule: Schedule, now_ms: int) -> list[CronFire]:
        """Return due times with those that follow them, each cron's in order."""
        self._aside = {name: until for name, until in self._aside.items() if until > now_ms}
        fires: list[CronFire] = []
        for cron in schedule.upcoming():
            if cron.next_due > now_ms or len(fires) >= FIRES_MAX:
                break
            if cron.name in self._aside:
                continue
            try:
                fires.extend(fires_of(cron, now_ms, FIRES_MAX - len(fires)))
            except InvalidSchedule as error:
                log.error("cron %r cannot be worked out here: %s", cron.name, error)
                self._aside[cron.name] = now_ms + ASIDE_MS
        return fires

    def _follow(self, schedule: Schedule) -> FollowJobs:
        """Work out when the jobs come that repeat by a pattern."""
        jobs: list[tuple[str, int]] = []
        for following in schedule.open()[:FIRES_MAX]:
            repeat = following.opts.repeat
            try:
                assert repeat is not None and repeat.pattern is not None
                due_ms = next_due_ms(repeat.pattern, repeat.tz, following.after_ms)
            except InvalidSchedule as error:
                # Nobody could work it out later either: the edge lets no such pattern in.
                log.error("the pattern of job %s cannot be worked out: %s", following.id, error)
                due_ms = 0
            jobs.append((following.id, due_ms))
        return FollowJobs(jobs)

    def _applied(self, reply: Any) -> None:
        if reply.count == 0:
            # Nothing happened: the log's clock is behind this one, or others did it; asking at once would fill the log.
            self._sleep_for(BEHIND_S)
        else:
            self.look()


def fires_of(cron: Cron, now_ms: int, limit: int) -> Iterator[CronFire]:
    """Yield the due times of a cron up to now, each with the one after it. Raises InvalidSchedule.

    A time before the cron was set (its edge's clock was behind) only leads to the first one after; but of a repetition whoever
    added it was told the id of the job of that time.  Times that are too late are taken together.
    """
    due_ms = cron.next_due
    while due_ms and due_ms <= now_ms and limit > 0:
        limit -= 1
        if due_ms <= cron.set_at and cron.key is None:
            fire = CronFire(cron.name, due_ms, following_due(cron, due_ms, cron.set_at), push=False, set_by=cron.set_by)
        elif due_ms + LATE_MS <= now_ms:
            skips = cron.on_missed == SKIP
            next_ms = following_due(cron, due_ms, now_ms)
            missed = count_between(cron, due_ms, now_ms) + (1 if skips else 0)
            fire = CronFire(cron.name, due_ms, next_ms, missed, not skips, cron.set_by)
        else:
            fire = CronFire(cron.name, due_ms, following_due(cron, due_ms, due_ms), set_by=cron.set_by)
        yield fire
        due_ms = fire.next_due_ms


def following_due(cron: Cron, due_ms: int, after_ms: int) -> int:
    """Return the first due time after `after_ms`, 0 for none; due_ms is one, not later than that. Raises InvalidSchedule."""
    if cron.schedule is not None:
        following_ms = next_due_ms(cron.schedule, cron.timezone, after_ms)
    else:
        assert cron.every_ms is not None
        every_ms = max(cron.every_ms, 1)
        # Due times stay on the grid that began with the cron.
        following_ms = due_ms + ((after_ms - due_ms) // every_ms + 1) * every_ms
    return 0 if cron.until is not None and following_ms > cron.until else following_ms


# Missed times are counted up to here; more of them say nothing more.
COUNTED_MAX = 1_000


def count_between(cron: Cron, due_ms: int, now_ms: int) -> int:
    """Count the due times after one of them, up to now."""
    if cron.until is not None:
        now_ms = min(now_ms, cron.until)
    if cron.schedule is None:
        return (now_ms - due_ms) // max(cron.every_ms or 1, 1)
    count = 0
    while count < COUNTED_MAX:
        due_ms = next_due_ms(cron.schedule, cron.timezone, due_ms)
        if due_ms > now_ms:
            break
        count += 1
    return count

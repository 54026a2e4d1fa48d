"""The record of a queue: its settings, counters and one index per state of its jobs.

An index is only a place to find jobs in order; which job belongs in which index is decided in `node.state.state`.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from typing import Literal

import msgspec

from quorumq.node.machine.state.group import USUAL, Group, GroupSettings, GroupUse
from quorumq.node.machine.state.job import (
    ACTIVE,
    COMPLETED,
    DELAYED,
    FAILED,
    ORDER_BITS,
    WAITING,
    WAITING_CHILDREN,
    Job,
    Keep,
    rank_of,
)
from quorumq.node.machine.state.limits import UNLIMITED, RateLimit, Window
from quorumq.node.machine.state.minutes import Minutes
from quorumq.node.machine.state.ranked import Ranked

KEEP_COMPLETED = 10_000
KEEP_COMPLETED_BYTES = 256 * 1024 * 1024
KEEP_FAILED_BYTES = 256 * 1024 * 1024
# Bucket n of a histogram counts durations whose milliseconds have n binary digits; the last one holds 18 hours and more.
BUCKETS = 28
# Jobs looked at on each side of a priority for the one that has been ready longest, and priorities looked at.
OLDEST_OF = 32
OLDEST_PRIORITIES = 256
# Limits that let no job start when they are 0; `groups`: those of some groups, for their jobs.
Limit = Literal["rateLimit", "concurrency", "globalRateLimit", "groups"]


class StallConfig(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """When an active job without a lock counts as abandoned. Times in milliseconds.

    interval_ms: silence since the last heartbeat.  grace_ms: time after the start that is never counted as a stall.
    max_stalls: stalls after which the job goes to the dead letter queue.
    """

    enabled: bool = True
    interval_ms: int = 30_000
    max_stalls: int = 3
    grace_ms: int = 5_000


class DlqConfig(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What becomes of jobs in the dead letter queue. max_age_ms: None keeps them for good."""

    auto_retry: bool = False
    auto_retry_interval_ms: int = 3_600_000
    max_auto_retries: int = 3
    max_age_ms: int | None = 604_800_000
    max_entries: int = 10_000


class QueueSettings(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What an operator can set on a queue. keep_completed: the most recent completed jobs that are kept.

    default_keep_completed, default_keep_failed: for jobs whose options do not say what is kept.  default_stalls_allowed: in
    the place of `Options.stalls_allowed`, for jobs that have one.  own: names of Retention that were set for this queue; the
    others follow the default of all queues.  groups: what holds for groups as far as they have no settings of their own; None for
    the usual.  keep_failed_bytes: of failed jobs, by `weight_of_failed`. Both from feature level 1 on.
    """

    paused: bool = False
    stall: StallConfig = StallConfig()
    dlq: DlqConfig = DlqConfig()
    rate: RateLimit | None = None
    concurrency: int | None = None
    keep_completed: int = KEEP_COMPLETED
    keep_completed_bytes: int = KEEP_COMPLETED_BYTES
    window: Window | None = None
    default_keep_completed: Keep | None = None
    default_keep_failed: Keep | None = None
    default_stalls_allowed: int | None = None
    own: tuple[str, ...] = ()
    groups: GroupSettings | None = None
    keep_failed_bytes: int = KEEP_FAILED_BYTES


class Retention(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """How many finished jobs a queue keeps. completed, failed: the last so many.  completed_bytes: of data and results.

    failed_age_ms: so long, None for as long as there is room.  failed_bytes: of data and of what their runs left.
    """

    completed: int = KEEP_COMPLETED
    completed_bytes: int = KEEP_COMPLETED_BYTES
    failed: int = DlqConfig().max_entries
    failed_age_ms: int | None = DlqConfig().max_age_ms
    failed_bytes: int = KEEP_FAILED_BYTES


def retention_of(settings: QueueSettings) -> Retention:
    """Return what a queue with these settings keeps."""
    dlq = settings.dlq
    return Retention(
        settings.keep_completed,
        settings.keep_completed_bytes,
        dlq.max_entries,
        dlq.max_age_ms,
        settings.keep_failed_bytes,
    )


def own_retention(settings: QueueSettings, default: Retention) -> tuple[str, ...]:
    """Return the names of what is a queue's own: set for it, or other than the default, as settings of old."""
    found = retention_of(settings)
    names = Retention.__struct_fields__
    return tuple(name for name in names if name in settings.own or getattr(found, name) != getattr(default, name))


def with_retention(settings: QueueSettings, retention: Retention) -> QueueSettings:
    """Return settings that keep so much."""
    dlq = msgspec.structs.replace(settings.dlq, max_entries=retention.failed, max_age_ms=retention.failed_age_ms)
    return msgspec.structs.replace(
        settings,
        keep_completed=retention.completed,
        keep_completed_bytes=retention.completed_bytes,
        keep_failed_bytes=retention.failed_bytes,
        dlq=dlq,
    )


def settings_after(settings: QueueSettings, before: Retention, after: Retention) -> QueueSettings:
    """Return settings that follow the default of all queues where it changes, but for what is the queue's own."""
    own, found = own_retention(settings, before), retention_of(settings)
    return with_retention(settings, msgspec.structs.replace(after, **{name: getattr(found, name) for name in own}))


class QueueCounters(msgspec.Struct, gc=False):
    """How many jobs went through a queue since it was created, and how long that took them.

    waits: jobs taken, by the time since they could be.  runs: runs that completed or failed, by the time they took.
    wait_ms, run_ms: the sums of those times.
    """

    pushed: int = 0
    pulled: int = 0
    completed: int = 0
    failed: int = 0
    waits: list[int] = msgspec.field(default_factory=lambda: [0] * BUCKETS)
    wait_ms: int = 0
    runs: list[int] = msgspec.field(default_factory=lambda: [0] * BUCKETS)
    run_ms: int = 0

    def waited(self, ms: int, count: int) -> None:
        """Count jobs that were taken after the same wait."""
        if ms < 0:
            ms = 0
        self.waits[bucket_of(ms)] += count
        self.wait_ms += ms * count

    def ran(self, ms: int, count: int = 1) -> None:
        """Count runs that are over and took equally long."""
        self.runs[bucket_of(ms)] += count
        self.run_ms += ms * count


class Sums(msgspec.Struct, gc=False, array_like=True):
    """How many jobs went through queues that are no more, so that totals never go back. Only append."""

    pushed: int = 0
    pulled: int = 0
    completed: int = 0
    failed: int = 0

    def add(self, counters: QueueCounters) -> None:
        """Count what went through one more of them."""
        self.pushed += counters.pushed
        self.pulled += counters.pulled
        self.completed += counters.completed
        self.failed += counters.failed


def bucket_of(ms: int) -> int:
    """Return where a histogram counts a duration."""
    bits = ms.bit_length()
    return bits if bits < BUCKETS else BUCKETS - 1


def ready_since(job: Job) -> int:
    """Return since when a waiting job could be taken: its time had come and nothing it depends on was left."""
    dependencies = job.dependencies
    return job.run_at if dependencies is None else max(job.run_at, dependencies.done_at)


class Queue:
    """One queue. ready: jobs that a worker may take now, in order; the rest as the names say."""

    __slots__ = (
        "active",
        "aside",
        "completed",
        "completed_bytes",
        "completions",
        "counters",
        "delayed",
        "failed",
        "failed_bytes",
        "failures",
        "group_settings",
        "group_uses",
        "groups",
        "held_until",
        "jobs",
        "lowered",
        "name",
        "number",
        "parked",
        "priorities",
        "prioritized",
        "rate_at",
        "rate_level",
        "ready",
        "settings",
        "shut_groups",
        "throttled",
        "unique",
        "waiting_children",
        "window_at",
        "window_count",
    )

    def __init__(self, name: str, settings: QueueSettings | None = None) -> None:
        self.name = name
        self.settings = settings or QueueSettings()
        self.counters = QueueCounters()
        # When jobs completed, and failed for good; None before the first. From feature level 1 on.
        self.completions: Minutes | None = None
        self.failures: Minutes | None = None
        # Every job of the queue in order of creation: the temporal index.
        self.jobs: dict[str, Job] = {}
        # Ids that dead letters had before new jobs took them, with the ids that they have now.
        self.aside: dict[str, list[str]] = {}
        self.ready = Ranked()
        self.delayed = Ranked()
        self.active: dict[str, Job] = {}
        self.waiting_children: dict[str, Job] = {}
        self.completed = Ranked()
        self.completed_bytes = 0
        self.failed = Ranked()
        self.failed_bytes = 0
        # Who holds a unique key.
        self.unique: dict[str, str] = {}
        # Of those keys the ones that are free at a time of their own, and not when their job is finished.
        self.throttled: dict[str, int] = {}
        self.groups: dict[str, Group] = {}
        # Of the groups that have other settings than the usual ones.
        self.group_settings: dict[str, GroupSettings] = {}
        # How many of them have a limit of none.
        self.shut_groups = 0
        # Of the groups that are held, or have a window of their rate limit under way.
        self.group_uses: dict[str, GroupUse] = {}
        # Waiting jobs outside the ready index, because others of their group come first.
        self.parked = 0
        # Waiting jobs with a priority above zero, and below.
        self.prioritized = 0
        self.lowered = 0
        # The last number that was given to a job as its name within the queue.
        self.number = 0
        # Waiting and delayed jobs by priority, without those of priority zero.
        self.priorities: dict[int, int] = {}
        # The token bucket: tokens times duration_ms, as of rate_at, so that a refill is exact in whole numbers.
        self.rate_level = 0
        self.rate_at = 0
        # The window under way: its begin, and how many jobs started in it.
        self.window_at = 0
        self.window_count = 0
        # Nothing is given out before.
        self.held_until = 0

    # -- Questions

    @property
    def is_listed(self) -> bool:
        """Whether it has ever had a job: one that was only paused, limited or configured is in no list of queues."""
        return self.counters.pushed > 0 or bool(self.jobs)

    @property
    def waiting_count(self) -> int:
        return len(self.ready) + self.parked

    @property
    def limited_groups(self) -> int:
        """How many groups have limits of their own, or are paused or held."""
        return len(self.group_settings.keys() | self.group_uses.keys()) if self.group_uses else len(self.group_settings)

    def group(self, group_id: str) -> Group:
        """Return a group; one that has no jobs yet comes into being."""
        group = self.groups.get(group_id)
        if group is None:
            group = self.groups[group_id] = Group()
            settings, use = self.settings_of(group_id), self.group_uses.get(group_id)
            if settings is not USUAL or use is not None:
                group.limit, group.left = settings.limit, settings.left(use)
        return group

    def settings_of(self, group_id: str) -> GroupSettings:
        """Return what holds for a group: its own settings, and those of the queue's groups for the rest."""
        usual = self.settings.groups or USUAL
        own = self.group_settings.get(group_id)
        return usual if own is None else own.over(usual)

    def finished(self, job_id: str, state: str) -> Job | None:
        """Return the finished job of an id, else the youngest of those that had it before new jobs took it."""
        job = self.jobs.get(job_id)
        if job is not None and job.state == state:
            return job
        others = [job for other in self.aside.get(job_id, ()) if (job := self.jobs[other]).state == state]
        return max(others, key=lambda job: job.seq, default=None)

    def count(self, state: str) -> int:
        """Return how many jobs are in a state."""
        if state == WAITING:
            return self.waiting_count
        if state == DELAYED:
            return len(self.delayed)
        if state == ACTIVE:
            return len(self.active)
        if state == WAITING_CHILDREN:
            return len(self.waiting_children)
        if state == COMPLETED:
            return len(self.completed)
        return len(self.failed) if state == FAILED else 0

    def waiting(self) -> Iterator[Job]:
        """Iterate over the waiting jobs in the order in which they would be taken if groups had no limit."""
        if not self.parked:
            return iter(self.ready)
        parked = [group.parked for group in self.groups.values() if len(group.parked)]
        return merge(self.ready, *parked, key=rank_of)

    def claimable(self, now_ms: int) -> int:
        """Return how many jobs a worker could take at this moment."""
        settings = self.settings
        if settings.paused:
            return 0
        count = len(self.ready)
        if count and settings.concurrency is not None:
            count = min(count, max(0, settings.concurrency - len(self.active)))
        if count and settings.rate is not None:
            count = min(count, self.tokens(now_ms))
        if count and settings.window is not None:
            count = min(count, self.window_room(now_ms))
        return count if now_ms >= self.held_until else 0

    def blocked_by(self, now_ms: int) -> tuple[Limit, ...]:
        """Return which limits of none let no job start, whatever ends: rateLimit, concurrency, globalRateLimit.

        groups: those of some groups, which hold back their jobs only.
        """
        settings = self.settings
        found: list[Limit] = []
        if settings.rate is not None and settings.rate.limit <= 0 and not settings.rate.is_over(now_ms):
            found.append("rateLimit")
        if settings.concurrency is not None and settings.concurrency <= 0:
            found.append("concurrency")
        if settings.window is not None and settings.window.max <= 0:
            found.append("globalRateLimit")
        if self.shut_groups:
            found.append("groups")
        return tuple(found)

    def set_group(self, group_id: str, settings: GroupSettings) -> None:
        """Give a group settings, or take its own away by giving it the usual ones."""
        before = (
            self.group_settings.pop(group_id, USUAL) if settings == USUAL else self.group_settings.get(group_id, USUAL)
        )
        if settings != USUAL:
            self.group_settings[group_id] = settings
        self.shut_groups += settings.is_shut - before.is_shut

    def room_for(self, owner: str | None, active_max: int | None) -> int:
        """Return how many jobs more an owner may have here, of whom at most active_max are to be active."""
        active = self.active
        if active_max is None:
            return len(self.ready)
        if not active:
            return max(active_max, 0)
        return max(active_max - sum(job.owner == owner for job in active.values()), 0)

    def next_free_ms(self, now_ms: int) -> int | None:
        """Return when time alone lets the next job through; None when it does not, for something must happen first."""
        settings = self.settings
        if settings.paused or not len(self.ready):
            return None
        if settings.concurrency is not None and len(self.active) >= settings.concurrency:
            return None
        token_at, window_at = self.next_token_ms(now_ms), self.next_window_ms(now_ms)
        if token_at is None or window_at is None:
            return None
        return max(now_ms, self.held_until, token_at, window_at)

    def oldest_ready_at(self) -> int | None:
        """Return since when the job could be taken that has been ready longest, whatever a pause or a limit says.

        Jobs stand by priority and then by creation, or by creation backwards (lifo), so the oldest is where the two meet. Only
        jobs that came back later than others were born can hide it, when there are more than OLDEST_OF of them there.
        """
        if not len(self.ready):
            return None
        priorities = sorted([0, *self.priorities])[:OLDEST_PRIORITIES]
        places = (-(priority << ORDER_BITS) for priority in priorities)
        return min(ready_since(job) for place in places for job in self.ready.around(place, OLDEST_OF))

    def priority_counts(self) -> dict[int, int]:
        """Return how many jobs wait (delayed ones too) at each priority."""
        queued = self.waiting_count + len(self.delayed)
        rest = queued - sum(self.priorities.values())
        counts = dict(self.priorities)
        if rest:
            counts[0] = rest
        return {priority: counts[priority] for priority in sorted(counts)}

    # -- The rate limit

    def tokens(self, now_ms: int) -> int:
        """Return how many jobs the rate limit lets through at this moment."""
        rate = self.settings.rate
        assert rate is not None
        return UNLIMITED if rate.is_over(now_ms) else self._level(rate, now_ms) // rate.duration_ms

    def next_token_ms(self, now_ms: int) -> int | None:
        """Return when the rate limit lets the next job through; None when it never does."""
        rate = self.settings.rate
        if rate is None or rate.is_over(now_ms):
            return now_ms
        if rate.limit <= 0:
            return rate.until_ms or None
        missing = rate.duration_ms - self._level(rate, now_ms)
        if missing <= 0:
            return now_ms
        at_ms = now_ms - (-missing // rate.limit)
        return min(at_ms, rate.until_ms) if rate.until_ms else at_ms

    def spend(self, count: int, now_ms: int) -> None:
        """Take tokens out of the bucket."""
        rate = self.settings.rate
        assert rate is not None
        self.rate_level = self._level(rate, now_ms) - count * rate.duration_ms
        self.rate_at = now_ms

    def window_room(self, now_ms: int) -> int:
        """Return how many jobs may start in the window of this moment."""
        window = self.settings.window
        assert window is not None
        if now_ms >= self.window_at + window.duration_ms:
            return max(window.max, 0)
        return max(window.max - self.window_count, 0)

    def next_window_ms(self, now_ms: int) -> int | None:
        """Return when the window lets the next job through; None when it never does."""
        window = self.settings.window
        if window is None:
            return now_ms
        if window.max <= 0:
            return None
        return now_ms if self.window_room(now_ms) else self.window_at + window.duration_ms

    def count_starts(self, count: int, now_ms: int) -> None:
        """Count jobs that start against the window; a negative count takes starts back that were none."""
        window = self.settings.window
        assert window is not None
        if now_ms >= self.window_at + window.duration_ms:
            if count < 0:
                return
            self.window_at, self.window_count = now_ms, 0
        self.window_count = max(self.window_count + count, 0)

    def note_completed(self, count: int, now_ms: int) -> None:
        """Note when jobs completed."""
        if self.completions is None:
            self.completions = Minutes()
        self.completions.note(now_ms, count)

    def note_failed(self, now_ms: int) -> None:
        """Note when a job failed for good."""
        if self.failures is None:
            self.failures = Minutes()
        self.failures.note(now_ms)

    def fill_bucket(self, now_ms: int) -> None:
        """Start with a full bucket, as a new limit does."""
        rate = self.settings.rate
        self.rate_level = rate.limit * rate.duration_ms if rate else 0
        self.rate_at = now_ms

    def _level(self, rate: RateLimit, now_ms: int) -> int:
        full = rate.limit * rate.duration_ms
        return min(full, self.rate_level + (now_ms - self.rate_at) * rate.limit)

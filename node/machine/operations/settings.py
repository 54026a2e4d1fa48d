"""The settings of a queue: limits, defaults, stalls, dead letters, retention."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from quorumq.node.machine import events as happened
from quorumq.node.machine.bounds import QueueName
from quorumq.node.machine.lifecycle import queues
from quorumq.node.machine.operation import Entry, Operation, Query, operation, query
from quorumq.node.machine.operations.jobs import GOES_ON, DurationMs
from quorumq.node.machine.refusals import TooManyQueues
from quorumq.node.machine.state import State
from quorumq.node.machine.state.job import Keep
from quorumq.node.machine.state.limits import RateLimit, Window
from quorumq.node.machine.state.queue import DlqConfig, Queue, QueueSettings, StallConfig


def configure(state: State, name: str, **settings: object) -> Queue:
    """Set some settings of a queue, created when it is new."""
    queue = state.queue(name)
    queues.configure(state, queue, msgspec.structs.replace(queue.settings, **settings))
    return queue


@operation(emits=(happened.RateLimitSet, happened.QueueCreated), refuses=(TooManyQueues,))
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


@operation(emits=(happened.RateLimitCleared, happened.QueueCreated), refuses=(TooManyQueues,))
class ClearRateLimit(Operation, frozen=True, tag="queue.clear_rate_limit"):
    """Take a queue's rate limit away."""

    queue: QueueName

    def apply(self, state: State, entry: Entry) -> None:
        configure(state, self.queue, rate=None)
        state.emit(happened.RateLimitCleared(self.queue))


@operation(emits=(happened.ConcurrencySet, happened.QueueCreated), refuses=(TooManyQueues,))
class SetConcurrency(Operation, frozen=True, tag="queue.set_concurrency"):
    """Let at most `limit` jobs of a queue be active at once."""

    queue: QueueName
    limit: int

    def apply(self, state: State, entry: Entry) -> None:
        configure(state, self.queue, concurrency=max(self.limit, 0))
        state.emit(happened.ConcurrencySet(self.queue, self.limit))


@operation(emits=(happened.ConcurrencyCleared, happened.QueueCreated), refuses=(TooManyQueues,))
class ClearConcurrency(Operation, frozen=True, tag="queue.clear_concurrency"):
    """Take a queue's limit of active jobs away."""

    queue: QueueName

    def apply(self, state: State, entry: Entry) -> None:
        configure(state, self.queue, concurrency=None)
        state.emit(happened.ConcurrencyCleared(self.queue))


@operation(emits=(happened.QueueCreated,), refuses=(TooManyQueues,))
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


@operation(emits=(happened.QueueCreated,), refuses=(TooManyQueues,))
class HoldQueue(Operation, frozen=True, tag="queue.hold"):
    """Give out no jobs of a queue for duration_ms from now, in the place of what an earlier one said; 0 ends it."""

    queue: QueueName
    duration_ms: DurationMs

    def apply(self, state: State, entry: Entry) -> None:
        queues.hold(state, state.queue(self.queue), self.duration_ms)


@operation(emits=(happened.QueueCreated,), refuses=(TooManyQueues,))
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


@operation(emits=(happened.StallConfigChanged, happened.QueueCreated), refuses=(TooManyQueues,))
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


@operation(
    emits=(happened.DlqConfigChanged, happened.DlqExpired, happened.QueueCreated, *GOES_ON), refuses=(TooManyQueues,)
)
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
        settings = state.queue(self.queue).settings
        dlq = msgspec.structs.replace(settings.dlq, **given)
        configure(state, self.queue, dlq=dlq, own=owned(state, settings, given))
        state.emit(happened.DlqConfigChanged(self.queue))
        return dlq


GIVEN_DLQ = ("auto_retry", "auto_retry_interval_ms", "max_auto_retries", "max_age_ms", "max_entries")


@operation(emits=(happened.QueueCreated, happened.DlqExpired), refuses=(TooManyQueues,), newer={"keep_failed_bytes": 1})
class SetRetention(Operation, frozen=True, tag="queue.set_retention"):
    """Set how many completed jobs of a queue are kept, and how many bytes of data and results; what is not given stays.

    keep_failed_bytes: how many bytes of failed jobs, their data and what their runs left.
    """

    queue: QueueName
    keep_completed: int | None = None
    keep_completed_bytes: int | None = None
    keep_failed_bytes: int | None = None

    def apply(self, state: State, entry: Entry) -> None:
        given = {name: value for name in GIVEN_RETENTION if (value := getattr(self, name)) is not None}
        configure(state, self.queue, own=owned(state, state.queue(self.queue).settings, given), **given)


GIVEN_RETENTION = ("keep_completed", "keep_completed_bytes", "keep_failed_bytes")


# What settings of a queue are called among what all queues keep.
OWNED = {
    "keep_completed": "completed",
    "keep_completed_bytes": "completed_bytes",
    "max_entries": "failed",
    "max_age_ms": "failed_age_ms",
    "keep_failed_bytes": "failed_bytes",
}


def owned(state: State, settings: QueueSettings, given: Mapping[str, object]) -> tuple[str, ...]:
    """Return what was set for a queue itself, so that a default of all queues leaves it alone, once these are set."""
    if state.level < 1:
        return settings.own
    mine = {*settings.own, *(OWNED[name] for name in given if name in OWNED)}
    return tuple(name for name in OWNED.values() if name in mine)


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
class GetQueueSettings(Query, frozen=True):
    """The settings of a queue; the defaults for an unknown one."""

    queue: QueueName

    def answer(self, state: State) -> QueueSettings:
        queue = state.queues.get(self.queue)
        return state.new_settings() if queue is None else queue.settings

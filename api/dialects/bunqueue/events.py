"""Events as the bunqueue dialect tells them: names, payloads, the form for clients that never subscribe, and patterns.

An event carries ids; what else its payload shows is read from the state that its entry left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from quorumq.api.events.feed import EventMessage
from quorumq.node.machine import events as happened
from quorumq.node.machine.events import Event
from quorumq.node.machine.operations.queue_reads import QueueCounts
from quorumq.node.machine.operations.settings import GetQueueSettings
from quorumq.node.machine.state import State
from quorumq.node.machine.state.job import Job

from . import configuration, payloads

ENCODE = msgspec.json.Encoder().encode
# Data and results up to this length stand in the old form of `completed` and `failed`.
SHOWN_BYTES_MAX = 16_384

NAMES = frozenset(payloads.shapes())
PREFIXES = (
    "job", "queue", "dlq", "flow", "cron", "worker", "ratelimit", "concurrency", "webhook", "batch", "client", "auth",
    "cleanup", "health", "stats", "storage", "server", "memory", "config",
)  # fmt: skip
PATTERNS = NAMES | {"*"} | {f"{prefix}:*" for prefix in PREFIXES}

# What the old form calls a job's event; the others have the last part of their name.
LEGACY = {"job:active": "pulled"}


def covers(pattern: str, name: str) -> bool:
    """Whether a pattern stands for an event, or for a narrower pattern."""
    return pattern in ("*", name) or (pattern.endswith(":*") and name.startswith(pattern[:-1]))


class Subscription:
    """Which events a client wants. muted: what it takes out of a wider pattern."""

    __slots__ = ("_known", "muted", "patterns")

    def __init__(self) -> None:
        self.patterns: dict[str, None] = {}
        self.muted: dict[str, None] = {}
        self._known: dict[str, bool] = {}

    def add(self, patterns: Iterable[str]) -> None:
        self._known.clear()
        for pattern in patterns:
            self.patterns[pattern] = None
            self.muted = {one: None for one in self.muted if not covers(pattern, one)}

    def remove(self, patterns: Iterable[str]) -> None:
        """Take patterns away; none at all takes all away."""
        self._known.clear()
        gone = list(patterns) or ["*"]
        for pattern in gone:
            self.patterns = {one: None for one in self.patterns if not covers(pattern, one)}
            if any(covers(one, pattern) for one in self.patterns):
                self.muted[pattern] = None
        if not self.patterns:
            self.muted = {}

    def wants(self, name: str) -> bool:
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = any(covers(one, name) for one in self.patterns) and not any(
                covers(one, name) for one in self.muted
            )
        return known


def unknown_patterns(patterns: Iterable[Any]) -> list[str]:
    """Return what is no pattern."""
    return [str(one)[:100] for one in patterns if not isinstance(one, str) or one not in PATTERNS]


# -- Payloads ----------------------------------------------------------------------------------------------------------


def messages_of(state: State, now_ms: int, event: Event) -> Iterator[EventMessage]:
    """Return what an event says: as a rule one message with the event's own fields."""
    name = event.name
    data = plain(event)
    queue: str = getattr(event, "queue", "")
    queues: tuple[str, ...] = getattr(event, "about", ()) or getattr(event, "queues", ())
    added = MORE.get(type(event))
    if added is not None and (more := added(state, event)) is not None:
        data = b"%b,%b" % (data[:-1], ENCODE(more)[1:])
    job_id: str | None = getattr(event, "job_id", None)
    legacy = None
    if name.startswith("job:") or isinstance(event, happened.QueuePaused | happened.QueueResumed):
        legacy = old_form(state, now_ms, event, queue, job_id or "")
    yield EventMessage(name, now_ms, data, queue=queue, queues=queues, legacy=legacy)
    if isinstance(event, happened.QueueObliterated):
        yield EventMessage("queue:removed", now_ms, data, queue=queue)
    elif isinstance(event, happened.WorkerRemovedStale):
        # The document's name for it, which those know who keep a list of workers.
        gone = payloads.WorkerGone(event.worker_id)
        yield EventMessage(gone.EVENT, now_ms, ENCODE(gone), queues=queues)


def plain(event: Event) -> bytes:
    """Write the fields of an event that are for everybody who hears it."""
    text = ENCODE(msgspec.structs.replace(event, about=()) if getattr(event, "about", None) else event)
    # {"type":"job:pushed","queue":…: names and their quotes are ASCII.
    rest = text[len(b'{"type":""') + len(event.name) :]
    return b"{%b" % rest.removeprefix(b",")


def job_of(state: State, event: Any) -> Job | None:
    return state.jobs.get(event.job_id)


def with_error(state: State, event: Any) -> payloads.NoError | None:
    return payloads.NoError() if event.error is None else None


def with_timeout(state: State, event: Any) -> payloads.TimedOut:
    job = job_of(state, event)
    timeout_ms = None if job is None else job.opts.timeout_ms
    return payloads.TimedOut(None if timeout_ms is None else whole(timeout_ms))


def with_dependencies(state: State, event: Any) -> payloads.WaitsFor:
    job = job_of(state, event)
    return payloads.WaitsFor([] if job is None else list(job.depends_on))


def with_stall_config(state: State, event: Any) -> payloads.StallConfigSet:
    return payloads.StallConfigSet(configuration.stall_config(GetQueueSettings(event.queue).answer(state)))


def with_dlq_config(state: State, event: Any) -> payloads.DlqConfigSet:
    return payloads.DlqConfigSet(configuration.dlq_config(GetQueueSettings(event.queue).answer(state)))


# What makes what payloads.ADDED declares.
MORE: dict[type[Event], Callable[[State, Any], Struct | None]] = {
    happened.JobFailed: with_error,
    happened.FlowFailed: with_error,
    happened.JobRetried: lambda state, event: payloads.Retried(),
    happened.JobTimedOut: with_timeout,
    happened.JobWaitingChildren: with_dependencies,
    happened.StallConfigChanged: with_stall_config,
    happened.DlqConfigChanged: with_dlq_config,
    happened.DlqRetried: lambda state, event: payloads.One(),
    happened.DlqExpired: lambda state, event: payloads.One(),
}


def old_form(state: State, now_ms: int, event: Event, queue: str, job_id: str) -> bytes:
    """Write an event for clients that never subscribed."""
    name = event.name
    said = payloads.OldForm(LEGACY.get(name) or name.partition(":")[2], queue, job_id, now_ms)
    match event:
        case happened.JobCompleted():
            job = job_of(state, event)
            said.data = shown(None if job is None else job.result)
        case happened.JobFailed():
            job = job_of(state, event)
            said.error, said.terminal = event.error, event.final
            said.data = shown(None if job is None else job.data)
        case happened.JobProgressed():
            job = job_of(state, event)
            said.progress = whole(event.progress)
            said.data = payloads.ProgressData(said.progress, None if job is None else job.progress_message)
        case happened.JobDelayed():
            said.delay = event.delay
        case happened.JobRetried():
            said.prev = "failed"
        case happened.JobRemoved():
            said.prev = event.prev
    return ENCODE(said)


def whole(value: float) -> float:
    """Return a number, whole ones without a fraction."""
    return found if (found := int(value)) == value else value


def shown(data: bytes | None) -> Raw | UnsetType:
    return Raw(data) if data is not None and len(data) <= SHOWN_BYTES_MAX else UNSET


def counts(state: State, queue: str) -> payloads.QueueCountsChanged:
    """Return the counts of a queue, as `queue:counts` tells them."""
    found = QueueCounts(queue).answer(state)
    return payloads.QueueCountsChanged(
        queue, found.waiting, 0, found.active, found.completed, found.failed, found.delayed
    )

"""What events say, declared: each payload is encoded from its struct here, documented by it, and held against it by the tests.

The log's own events say their fields (node/machine/events.py), and what the structs of `ADDED` add to them. All others are payloads of
this node, with their names.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType, field

from quorumq.api.events.feed import Payload
from quorumq.node.machine import events as happened
from quorumq.node.machine.events import Event

from .configuration import DlqConfigShown, StallConfigShown
from .figures import Collections

Number = int | float


# -- What this node tells of itself ----------------------------------------------------------------------------------------


class QueueCountsChanged(Payload):
    """Jobs of a queue have changed their states; told once for many changes."""

    EVENT: ClassVar = "queue:counts"
    queue: str
    waiting: int
    prioritized: Literal[0]
    active: int
    completed: int
    failed: int
    delayed: int


class QueueIdle(Payload):
    """A queue has had nothing to do for QUEUE_IDLE_THRESHOLD_MS."""

    EVENT: ClassVar = "queue:idle"
    queue: str
    idle_seconds: int


class QueueThreshold(Payload):
    """A queue has grown beyond QUEUE_SIZE_THRESHOLD."""

    EVENT: ClassVar = "queue:threshold"
    queue: str
    size: int
    threshold: int


class WorkerOverloaded(Payload):
    """A worker has been full for WORKER_OVERLOAD_THRESHOLD_MS."""

    EVENT: ClassVar = "worker:overloaded"
    worker_id: str
    name: str | None
    active_jobs: int
    concurrency: int
    overloaded_seconds: int


class QueueState(Struct, rename="camel"):
    waiting: int
    active: int
    delayed: int
    dlq: int
    paused: bool


class Snapshot(Payload):
    """Sums over all queues, every five seconds. queues: each queue's own counts."""

    EVENT: ClassVar = "stats:snapshot"
    waiting: int
    active: int
    delayed: int
    completed: int
    dlq: int
    total_pushed: int
    total_pulled: int
    total_completed: int
    total_failed: int
    push_per_sec: float
    pull_per_sec: float
    uptime: int
    queues: dict[str, QueueState]
    workers: int
    cron_jobs: int


class MemoryUsed(Struct, rename="camel"):
    rss: int
    heap_used: int


class ConnectionCounts(Struct):
    tcp: int
    ws: int
    sse: int
    http: int


class HealthStatus(Payload):
    """How this node is, every ten seconds. memory: in MB.  uptime: in seconds."""

    EVENT: ClassVar = "health:status"
    ok: bool
    uptime: int
    memory: MemoryUsed
    connections: ConnectionCounts


class StorageStatus(Payload):
    """What the collections hold, and whether this node's disk is full, every thirty seconds."""

    EVENT: ClassVar = "storage:status"
    collections: Collections
    disk_full: bool


class Started(Payload):
    """This node has started."""

    EVENT: ClassVar = "server:started"
    version: str
    started_at: int


class Shutdown(Payload):
    """This node is stopping."""

    EVENT: ClassVar = "server:shutdown"
    reason: str


class MemoryWarning(Payload):
    """This node uses more memory than MEMORY_WARNING_MB."""

    EVENT: ClassVar = "server:memory-warning"
    heap_used_mb: int = field(name="heapUsedMB")
    threshold_mb: int = field(name="thresholdMB")
    rss_mb: int = field(name="rssMB")


class StorageWarning(Payload):
    """This node's folder is larger than STORAGE_WARNING_MB."""

    EVENT: ClassVar = "storage:size-warning"
    size_mb: float = field(name="sizeMB")
    threshold_mb: int = field(name="thresholdMB")


class WorkerGone(Payload):
    """A worker was removed because it fell silent: what those hear who keep a list of workers."""

    EVENT: ClassVar = "worker:disconnected"
    worker_id: str


# -- What is added to events of the log --------------------------------------------------------------------------------------


class NoError(Struct):
    # What is left out of the record is told all the same: that there was no text.
    error: None = None


class Retried(Struct):
    prev: Literal["failed"] = "failed"


class One(Struct):
    count: Literal[1] = 1


class TimedOut(Struct):
    timeout: Number | None


class WaitsFor(Struct, rename="camel"):
    depends_on: list[str]


class StallConfigSet(Struct):
    config: StallConfigShown


class DlqConfigSet(Struct):
    config: DlqConfigShown


ADDED: dict[type[Event], type[Struct]] = {
    happened.JobFailed: NoError,
    happened.FlowFailed: NoError,
    happened.JobRetried: Retried,
    happened.JobTimedOut: TimedOut,
    happened.JobWaitingChildren: WaitsFor,
    happened.StallConfigChanged: StallConfigSet,
    happened.DlqConfigChanged: DlqConfigSet,
    happened.DlqRetried: One,
    happened.DlqExpired: One,
}


# -- The form for clients that never subscribe ---------------------------------------------------------------------------------


class ProgressData(Struct):
    progress: Number
    message: str | None


class OldForm(Struct, rename="camel", gc=False):
    """An event of a job, or of a queue's pause. data: a result, a failed job's data, or progress with its message."""

    event_type: str
    queue: str
    job_id: str
    timestamp: int
    error: str | UnsetType | None = UNSET
    progress: Number | UnsetType = UNSET
    delay: int | UnsetType = UNSET
    prev: str | UnsetType = UNSET
    data: Raw | ProgressData | UnsetType = UNSET
    terminal: bool | UnsetType = UNSET


# -- All of them by name -------------------------------------------------------------------------------------------------------


def shape_of(kind: type[Event]) -> type[Struct]:
    """Return what an event of the log says: its fields, but who hears it, and those that are added."""
    found: dict[str, tuple[str, Any, Any]] = {}
    types = {item.name: item.type for item in msgspec.structs.fields(kind)}
    for item in msgspec.structs.fields(kind):
        if item.name != "about":
            # A field that has its default is left out.
            kinds, default = (item.type, msgspec.NODEFAULT) if item.required else (item.type | UnsetType, UNSET)
            found[item.name] = (item.name, kinds, field(name=item.encode_name, default=default))
    for item in msgspec.structs.fields(ADDED[kind]) if kind in ADDED else ():
        found[item.name] = (item.name, item.type | types.get(item.name, item.type), field(name=item.encode_name))
    shape = msgspec.defstruct(kind.__name__, list(found.values()), kw_only=True, forbid_unknown_fields=True)
    shape.__doc__ = kind.__doc__
    return shape


def shapes() -> dict[str, type[Struct]]:
    """Return what each event says, by its name."""
    own = {kind.EVENT: kind for kind in Payload.__subclasses__()}
    logged = {str(kind.__struct_config__.tag): shape_of(kind) for kind in Event.__subclasses__()}
    return {**own, **logged, "queue:removed": logged["queue:obliterated"]}

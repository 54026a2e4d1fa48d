"""The registry of workers: what clients send, the rules for it, how a worker is shown, and the rows."""

from __future__ import annotations

import time
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from quorumq.api.errors import Invalid
from quorumq.api.ids import new_id
from quorumq.api.request import Call, Command
from quorumq.api.rows import ask, grouped, write
from quorumq.api.rules import says
from quorumq.api.scopes import its_worker, own_workers
from quorumq.api.values import BAD_JSON, COUNT_MAX, as_text
from quorumq.node.machine.operations.workers import (
    HeartbeatWorker,
    ListWorkers,
    Registered,
    RegisterWorker,
    UnregisterWorker,
    WorkerList,
)
from quorumq.node.machine.state.worker import Worker

from . import locking, replies
from .values import NAME_CHARS_MAX, check_queue, integer, key, queue_of, read

SLOTS_MAX = 1_000_000
QUEUES_MAX = 1_000
ENCODE = msgspec.json.Encoder().encode


class WorkerBase(Struct, forbid_unknown_fields=True, rename="camel", kw_only=True):
    name: str | UnsetType = UNSET
    queues: list[str]
    concurrency: int
    hostname: str
    pid: int
    status: Literal["active", "stale"]
    registered_at: replies.Millis
    last_seen: replies.Millis
    active_jobs: int
    processed_jobs: int
    failed_jobs: int
    current_job: str | None


class WorkerAddedData(WorkerBase, forbid_unknown_fields=True, rename="camel", kw_only=True):
    worker_id: str


class WorkerAdded(replies.Success):
    data: WorkerAddedData


class WorkerShown(WorkerBase, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """uptime: milliseconds since it registered."""

    id: str
    uptime: int


class WorkerSums(Struct, forbid_unknown_fields=True, rename="camel"):
    """total_processed, total_failed: of all workers ever; the rest is of those registered now."""

    total: int
    active: int
    total_processed: int
    total_failed: int
    active_jobs: int
    concurrency_slots: int


class WorkersData(Struct, forbid_unknown_fields=True):
    workers: list[WorkerShown]
    stats: WorkerSums


class Workers(replies.Success):
    data: WorkersData


class QueueWorkers(replies.Success):
    workers: list[WorkerShown]


def checked_queues(name: str, value: Any) -> tuple[str, ...]:
    """Return the names of queues; one that stands alone is a list of one. Raises Invalid."""
    names = value if isinstance(value, list) else [value]
    if len(names) > QUEUES_MAX:
        raise Invalid(f"queues must have at most {QUEUES_MAX} items")
    return tuple(check_queue(as_text(one) or "") for one in names)


def as_host(name: str, value: Any) -> str:
    return (as_text(value) or "")[:NAME_CHARS_MAX]


class WorkerBody(Struct, gc=False, rename="camel"):
    """A worker. One with the id of another takes its place, and keeps its name and its counts."""

    CHECKED: ClassVar = ("concurrency", "worker_id", "name", "queues")

    name: Annotated[str | None, key("For people.")] = None
    queues: Annotated[list[str] | None, says("The queues it works on.", reads=checked_queues, max_items=QUEUES_MAX)] = (
        None
    )
    worker_id: Annotated[str | None, key("An id of its own; left out, one is made.")] = None
    concurrency: Annotated[int | None, integer("Jobs it works on at once.", 0, SLOTS_MAX, default=1)] = None
    hostname: Annotated[
        str | None, says("The machine it runs on.", reads=as_host, bound=NAME_CHARS_MAX, default="unknown")
    ] = None
    pid: Annotated[int | None, integer("Its process.", 0, COUNT_MAX, default=0)] = None


class BeatBody(Struct, gc=False, rename="camel"):
    """How a worker is doing; what is not given stays."""

    active_jobs: Annotated[int | None, integer("Jobs it works on now.", 0, SLOTS_MAX)] = None
    processed: Annotated[int | None, integer("Jobs it has completed.", 0, COUNT_MAX)] = None
    failed: Annotated[int | None, integer("Jobs it has failed.", 0, COUNT_MAX)] = None
    current_job: Annotated[str | None, key("Id of the job it works on.")] = None


WORKER = msgspec.json.Decoder(WorkerBody)
BEAT = msgspec.json.Decoder(BeatBody)


def register(call: Call) -> RegisterWorker:
    body = read(WORKER, call.body, required=True)
    return RegisterWorker(
        body.worker_id or new_id(),
        body.name,
        body.queues or (),
        1 if body.concurrency is None else body.concurrency,
        body.hostname or "unknown",
        body.pid or 0,
    )


def unregister(call: Call) -> UnregisterWorker:
    return UnregisterWorker(call.path["worker_id"])


def heartbeat(call: Call) -> HeartbeatWorker:
    try:
        body = read(BEAT, call.body)
    except Invalid as error:
        if str(error) != BAD_JSON:
            raise
        # As the documented server: that the worker lives is what counts.
        body = BeatBody()
    return HeartbeatWorker(
        call.path["worker_id"],
        body.active_jobs,
        body.processed,
        body.failed,
        body.current_job,
    )


class Shown(Struct, gc=False, rename="camel"):
    """A worker as it is shown, under one of two names of its id."""

    worker_id: str | UnsetType
    id: str | UnsetType
    name: str | UnsetType
    queues: tuple[str, ...]
    concurrency: int
    hostname: str
    pid: int
    status: str
    registered_at: int
    last_seen: int
    active_jobs: int
    processed_jobs: int
    failed_jobs: int
    current_job: str | None
    uptime: int | UnsetType


def shown(worker: Worker, *, now_ms: int | None = None) -> Shown:
    """Show a worker. now_ms: for a list, which names its id otherwise and says how long it has been up."""
    return Shown(
        worker.id if now_ms is None else UNSET,
        UNSET if now_ms is None else worker.id,
        UNSET if worker.name is None else worker.name,
        worker.queues,
        worker.concurrency,
        worker.hostname,
        worker.pid,
        "stale" if worker.stale else "active",
        worker.registered_at,
        worker.last_seen,
        worker.active_jobs,
        worker.processed,
        worker.failed,
        worker.current_job,
        UNSET if now_ms is None else max(0, now_ms - worker.registered_at),
    )


def registered(reply: Registered) -> bytes:
    return b'{"ok":true,"data":%b}' % ENCODE(shown(reply.worker))


def unregistered(reply: None) -> bytes:
    return b'{"ok":true,"data":{"removed":true}}'


def beaten(reply: Registered) -> bytes:
    return b'{"ok":true,"data":{"ok":true}}'


def listed(found: WorkerList) -> list[Shown]:
    # The log's time stands still while nothing happens.
    now_ms = max(found.now_ms, time.time_ns() // 1_000_000)
    return [shown(worker, now_ms=now_ms) for worker in found.workers]


def every(found: WorkerList) -> bytes:
    stats = WorkerSums(
        total=len(found.workers),
        active=found.active,
        total_processed=found.processed,
        total_failed=found.failed,
        active_jobs=found.active_jobs,
        concurrency_slots=found.slots,
    )
    return b'{"ok":true,"data":{"workers":%b,"stats":%b}}' % (ENCODE(listed(found)), ENCODE(stats))


def of_queue(found: WorkerList) -> bytes:
    return b'{"ok":true,"workers":%b}' % ENCODE(listed(found))


ROUTES = grouped(
    "Workers",
    ask("GET", "/workers", ListWorkers, lambda call: ListWorkers(), every, reply=Workers,
        about="Registered workers, and sums over all of them.", command="ListWorkers"),
    write("POST", "/workers", RegisterWorker, register, registered, takes=WorkerBody, reply=WorkerAdded,
          right="consume", scope="checked", check=its_worker, command="RegisterWorker"),
    write("DELETE", "/workers/{worker_id}", UnregisterWorker, unregister, unregistered, reply=replies.Removed,
          right="consume", scope="checked", check=its_worker, command="UnregisterWorker"),
    write("POST", "/workers/{worker_id}/heartbeat", HeartbeatWorker, heartbeat, beaten, takes=BeatBody,
          reply=locking.Beat, right="consume", scope="checked", check=its_worker,
          command=Command("Heartbeat", {"worker_id": "id"})),
    ask("GET", "/queues/{queue}/workers", ListWorkers, lambda call: ListWorkers(queue_of(call)), of_queue,
        reply=QueueWorkers, narrow=own_workers, about="Registered workers of a queue."),
)  # fmt: skip

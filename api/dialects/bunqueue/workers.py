"""The registry of workers: what clients send, the rules for it, how a worker is shown, and the rows."""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from api.http import Call, Invalid, ask, grouped, submit
from api.ids import new_id
from api.scopes import its_worker, own_workers
from api.values import BAD_JSON, COUNT_MAX, KEY_CHARS_MAX, as_text, says
from node.operations.workers import (
    HeartbeatWorker,
    ListWorkers,
    Registered,
    RegisterWorker,
    UnregisterWorker,
    WorkerList,
)
from node.state.worker import Worker

from . import replies
from .queue_bodies import queue_of
from .values import NAME_CHARS_MAX, as_key, check_number, check_queue, read

SLOTS_MAX = 1_000_000
QUEUES_MAX = 1_000
ENCODE = msgspec.json.Encoder().encode


class WorkerBody(Struct, gc=False, rename="camel"):
    """A worker. One with the id of another takes its place, and keeps its name and its counts."""

    name: Annotated[str | None, says("For people.", max_chars=KEY_CHARS_MAX)] = None
    queues: Annotated[list[str] | None, says("The queues it works on.", max_items=QUEUES_MAX)] = None
    worker_id: Annotated[str | None, says("An id of its own; left out, one is made.", max_chars=KEY_CHARS_MAX)] = None
    concurrency: Annotated[int | None, says("Jobs it works on at once.", default=1, low=0, high=SLOTS_MAX)] = None
    hostname: Annotated[str | None, says("The machine it runs on.", default="unknown")] = None
    pid: Annotated[int | None, says("Its process.", default=0, low=0, high=COUNT_MAX)] = None


class BeatBody(Struct, gc=False, rename="camel"):
    """How a worker is doing; what is not given stays."""

    active_jobs: Annotated[int | None, says("Jobs it works on now.", low=0, high=SLOTS_MAX)] = None
    processed: Annotated[int | None, says("Jobs it has completed.", low=0, high=COUNT_MAX)] = None
    failed: Annotated[int | None, says("Jobs it has failed.", low=0, high=COUNT_MAX)] = None
    current_job: Annotated[str | None, says("Id of the job it works on.", max_chars=KEY_CHARS_MAX)] = None


WORKER = msgspec.json.Decoder(WorkerBody)
BEAT = msgspec.json.Decoder(BeatBody)


def register(call: Call) -> RegisterWorker:
    body = read(WORKER, call.body, required=True)
    concurrency = counted("concurrency", body.concurrency, SLOTS_MAX)
    return RegisterWorker(
        as_key("workerId", body.worker_id) or new_id(),
        as_key("name", body.name),
        checked_queues(body.queues),
        1 if concurrency is None else concurrency,
        (as_text(body.hostname) or "unknown")[:NAME_CHARS_MAX],
        counted("pid", body.pid, COUNT_MAX) or 0,
    )


def checked_queues(value: Any) -> tuple[str, ...]:
    """Return the names of queues; one that stands alone is a list of one. Raises Invalid."""
    if value is None:
        return ()
    names = value if isinstance(value, list) else [value]
    if len(names) > QUEUES_MAX:
        raise Invalid(f"queues must have at most {QUEUES_MAX} items")
    return tuple(check_queue(as_text(name) or "") for name in names)


def counted(name: str, value: Any, high: int) -> int | None:
    """Return a whole number that may be left out. Raises Invalid."""
    if value is None:
        return None
    check_number(name, value, 0, high, integer=True)
    return int(value)


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
        counted("activeJobs", body.active_jobs, SLOTS_MAX),
        counted("processed", body.processed, COUNT_MAX),
        counted("failed", body.failed, COUNT_MAX),
        as_key("currentJob", body.current_job),
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
    stats = {
        "total": len(found.workers),
        "active": found.active,
        "totalProcessed": found.processed,
        "totalFailed": found.failed,
        "activeJobs": found.active_jobs,
        "concurrencySlots": found.slots,
    }
    return b'{"ok":true,"data":%b}' % ENCODE({"workers": listed(found), "stats": stats})


def of_queue(found: WorkerList) -> bytes:
    return b'{"ok":true,"workers":%b}' % ENCODE(listed(found))


ROUTES = grouped(
    "Workers",
    ask("GET", "/workers", ListWorkers, lambda call: ListWorkers(), every, reply=replies.Workers,
        about="Registered workers, and sums over all of them."),
    submit("POST", "/workers", RegisterWorker, register, registered, takes=WorkerBody, reply=replies.WorkerAdded,
           right="consume", scope="checked", check=its_worker),
    submit("DELETE", "/workers/{worker_id}", UnregisterWorker, unregister, unregistered, reply=replies.Removed,
           right="consume", scope="checked", check=its_worker),
    submit("POST", "/workers/{worker_id}/heartbeat", HeartbeatWorker, heartbeat, beaten, takes=BeatBody,
           reply=replies.Beat, right="consume", scope="checked", check=its_worker),
    ask("GET", "/queues/{queue}/workers", ListWorkers, lambda call: ListWorkers(queue_of(call)), of_queue,
        reply=replies.QueueWorkers, narrow=own_workers, about="Registered workers of a queue."),
)  # fmt: skip

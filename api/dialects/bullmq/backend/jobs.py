"""Adding, changing and removing jobs over the socket, and showing one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from quorumq.api.errors import Invalid
from quorumq.api.values import BATCH_MAX
from quorumq.node.machine.operations.bullmq.adding import AddedNamed, AddNamedFlow, AddNamedJobs, FlowPart
from quorumq.node.machine.operations.bullmq.changing import (
    ChangeNamedDelay,
    ChangeNamedPriority,
    FindNamed,
    FreeNamedKey,
    NamedKeyHolder,
    PromoteNamed,
    RetryNamed,
    UpdateNamedData,
    UpdateNamedProgress,
)
from quorumq.node.machine.operations.bullmq.removing import RemoveDependency, RemoveNamed, RemoveUnprocessed
from quorumq.node.machine.refusals import BullmqError
from quorumq.node.machine.state.job import Job

from ..adding import PRIORITY_MAX
from ..values import MILLIS_MAX
from .records import New, job_keys, named_job, shown
from .rows import Args, Asked, Json, Key, OfJob, Right, Row, Word, json_text, nothing, read, write

EITHER: tuple[Right, ...] = ("produce", "consume")


class Add(Args):
    job: New


class AddMany(Args):
    jobs: Annotated[list[New], Meta(max_length=BATCH_MAX)]


class Data(Args):
    job: Word
    data: Json


class Delay(Args):
    job: Word
    delay: float


class Priority(Args):
    job: Word
    priority: int = 0
    lifo: bool | None = None


class Remove(Args):
    job: Word
    children: bool | None = None


class Dependency(Args):
    job: Word
    parent: Key


class RetryJobArgs(Args):
    job: Word
    state: Literal["failed", "completed"] = "failed"
    lifo: bool | None = None
    reset_made: bool | None = None
    reset_started: bool | None = None


class KeyOfJob(Args):
    key: Word
    job: Word


class OfKey(Args):
    key: Word


# -- Adding


def add(asked: Asked, args: Add) -> AddNamedJobs:
    return AddNamedJobs(asked.queue, [named_job(asked, args.job)])


def added(reply: AddedNamed) -> str:
    """Return the id. Raises BullmqError."""
    [own], [error] = reply.ids, reply.errors
    if error:
        raise BullmqError(error, own)
    return own


def add_many(asked: Asked, args: AddMany) -> AddNamedJobs:
    return AddNamedJobs(asked.queue, [named_job(asked, job) for job in args.jobs])


def added_many(reply: AddedNamed) -> list[str]:
    """Return the ids; the first error stands for all. Raises BullmqError."""
    for own, error in zip(reply.ids, reply.errors, strict=True):
        if error:
            raise BullmqError(error, own)
    return reply.ids


def add_flow(asked: Asked, args: AddMany) -> AddNamedFlow:
    """Make the parts of trees: a job whose parent is among those before it has that as its parent, another one is a root."""
    places_of: dict[tuple[str, str], int] = {}
    parts: list[FlowPart] = []
    for at, new in enumerate(args.jobs):
        if new.queue is None:
            raise Invalid("queue is required")
        queue = asked.other_queue(new.queue)
        named = named_job(asked, new)
        above = -1 if named.parent is None else places_of.get(named.parent, -1)
        parts.append(FlowPart(queue, named, above))
        if new.id:
            places_of[queue, new.id] = at
    return AddNamedFlow(parts)


def added_flow(reply: AddedNamed) -> list[list[Any]]:
    return [
        [error, BullmqError(error, own).message] if error else [0, own]
        for own, error in zip(reply.ids, reply.errors, strict=True)
    ]


# -- Changing


def update_data(asked: Asked, args: Data) -> UpdateNamedData:
    return UpdateNamedData(asked.queue, args.job, json_text("data", args.data))


def update_progress(asked: Asked, args: Data) -> UpdateNamedProgress:
    text = json_text("progress", args.data)
    value = msgspec.json.decode(text) if len(text) <= 32 else None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return UpdateNamedProgress(asked.queue, args.job, text, value if is_number else None)


def change_delay(asked: Asked, args: Delay) -> ChangeNamedDelay:
    return ChangeNamedDelay(asked.queue, args.job, min(max(args.delay, 0), MILLIS_MAX))


def change_priority(asked: Asked, args: Priority) -> ChangeNamedPriority:
    if not -PRIORITY_MAX <= args.priority <= PRIORITY_MAX:
        raise Invalid(f"priority must be at most {PRIORITY_MAX}")
    return ChangeNamedPriority(asked.queue, args.job, args.priority, bool(args.lifo))


def promote(asked: Asked, args: OfJob) -> PromoteNamed:
    return PromoteNamed(asked.queue, args.job)


def retry(asked: Asked, args: RetryJobArgs) -> RetryNamed:
    return RetryNamed(asked.queue, args.job, args.state, bool(args.reset_made), bool(args.reset_started))


def remove(asked: Asked, args: Remove) -> RemoveNamed:
    return RemoveNamed(asked.queue, args.job, bool(args.children))


def remove_unprocessed(asked: Asked, args: OfJob) -> RemoveUnprocessed:
    return RemoveUnprocessed(asked.queue, args.job)


def remove_dependency(asked: Asked, args: Dependency) -> RemoveDependency:
    return RemoveDependency(asked.queue, args.job, job_keys(asked, args.parent))


def free_of_job(asked: Asked, args: KeyOfJob) -> FreeNamedKey:
    return FreeNamedKey(asked.queue, args.key, args.job)


def free(asked: Asked, args: OfKey) -> FreeNamedKey:
    return FreeNamedKey(asked.queue, args.key)


# -- Looking


def get_holder(asked: Asked, args: OfKey) -> NamedKeyHolder:
    return NamedKeyHolder(asked.queue, args.key)


def get_job(asked: Asked, args: OfJob) -> FindNamed:
    return FindNamed(asked.queue, args.job)


def shown_or_none(job: Job | None, prefix: str) -> dict[str, Any] | None:
    return None if job is None else shown(job, prefix)


ROWS: tuple[Row, ...] = (
    write("addJob", AddNamedJobs, add, added, right="produce", takes=Add),
    write("addJobs", AddNamedJobs, add_many, added_many, right="produce", takes=AddMany),
    write("addFlow", AddNamedFlow, add_flow, added_flow, right="produce", takes=AddMany),
    write("updateData", UpdateNamedData, update_data, nothing, right=EITHER, takes=Data),
    write("updateProgress", UpdateNamedProgress, update_progress, nothing, right="consume", takes=Data),
    write("changeDelay", ChangeNamedDelay, change_delay, nothing, right="produce", takes=Delay),
    write("changePriority", ChangeNamedPriority, change_priority, nothing, right="produce", takes=Priority),
    write("promote", PromoteNamed, promote, nothing, right="produce", takes=OfJob),
    write("retryFinishedJob", RetryNamed, retry, nothing, right="produce", takes=RetryJobArgs),
    write("remove", RemoveNamed, remove, int, right="produce", takes=Remove),
    write("removeUnprocessedChildren", RemoveUnprocessed, remove_unprocessed, nothing, right=EITHER, takes=OfJob),
    write("removeChildDependency", RemoveDependency, remove_dependency, right=EITHER, takes=Dependency),
    write("removeDeduplicationKey", FreeNamedKey, free_of_job, int, right="produce", takes=KeyOfJob),
    write("deleteDeduplicationKey", FreeNamedKey, free, int, right="produce", takes=OfKey),
    read("getDeduplicationJobId", NamedKeyHolder, get_holder, takes=OfKey),
    read("getJobData", FindNamed, get_job, shown_or_none, takes=OfJob, prefixed=True),
)

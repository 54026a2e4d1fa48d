"""Jobs over the socket: what one that is added means, and how one is shown.

Options are text of JSON that comes back as it came; what they mean for workers of the other dialects (backoff, which finished jobs stay) is
read out of them once for a text, and what a client says wrongly there means nothing. The id and the deduplication are a job's own, so
they are left out of the text that jobs share, and put in again where it is shown.
"""

from __future__ import annotations

import contextlib
import math
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from quorumq.api.errors import Invalid
from quorumq.api.values import COUNT_MAX, KEY_CHARS_MAX
from quorumq.node.machine.lifecycle.bullmq.running import Taken
from quorumq.node.machine.state import Dedup, JobSpec, Keep, Options
from quorumq.node.machine.state.bullmq.facts import NamedJob
from quorumq.node.machine.state.job import (
    COMPLETED,
    DELAYED,
    WAITING_CHILDREN,
    Job,
    OnChildFailure,
    own_id,
    unscoped,
)

from .. import job_object
from ..adding import NAME_CHARS_MAX, checked_backoff, checked_keep
from ..values import INTEGER, MILLIS_MAX, is_integer
from . import names
from .rows import Asked, Json, Key, Text, Word, json_text

ENCODE = msgspec.json.Encoder().encode
MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
DECODE = msgspec.json.decode
TEXTS = msgspec.json.Decoder(list[str]).decode
# Of the stack traces that a failed run leaves, together, and of one where they are more; at six bytes a character, one always stays.
STACKS_BYTES_MAX = 512 << 10
STACK_CHARS_MAX = 64 << 10
# What is a job's own among its options.
OWN = ("jobId", "deduplication", "debounce")
KNOWN_MAX = 4_096
KNOWN_BYTES_MAX = 1_024
_known: dict[tuple[Any, ...], ReadOptions] = {}


class NewParent(Struct):
    """The job that is to wait for a new one. queue: `prefix:name`."""

    id: Word
    queue: Word
    fpof: bool = False
    cpof: bool = False
    idof: bool = False
    rdof: bool = False

    @property
    def policy(self) -> OnChildFailure:
        """What becomes of it when the child fails for good; the first that is asked for, in BullMQ's order."""
        if self.fpof:
            return "fail"
        if self.cpof:
            return "continue"
        if self.idof:
            return "ignore"
        return "remove" if self.rdof else "wait"


class NewDedup(Struct, rename="camel"):
    """Which jobs a new one keeps away. ttl: milliseconds."""

    id: Annotated[str, Meta(min_length=1, max_length=KEY_CHARS_MAX)]
    ttl: float | None = None
    extend: bool | None = None
    replace: bool | None = None
    reschedule: bool | None = None
    keep_last_if_active: bool | None = None


class New(Struct, rename="camel"):
    """A job to add, `new` in the table."""

    name: Annotated[str, Meta(max_length=NAME_CHARS_MAX)]
    data: Json
    opts: Json
    timestamp: float = 0
    id: Word | None = None
    delay: float | None = None
    priority: int | None = None
    lifo: bool | None = None
    attempts: int | None = None
    waits: bool | None = None
    parent: NewParent | None = None
    dedup: NewDedup | None = None
    repeat_job_key: Key | None = None
    queue: Word | None = None
    group: int | None = None


class ReadOptions(Struct, frozen=True):
    """What a text of options means, with those wishes beside it that the client has worked out. has_time: whether it chose a timestamp."""

    options: Options
    has_time: bool


def options_of(new: New) -> ReadOptions:
    """Say what a job's options mean. Raises Invalid."""
    dedup = new.dedup
    key = (new.name, new.opts, new.delay, new.priority, new.lifo, new.attempts, new.waits)
    is_own = dedup is not None or b'"jobId"' in new.opts
    found = None if is_own else _known.get(key)
    if found is None:
        found = read_options(new)
        if not is_own and not found.has_time and len(new.opts) + len(new.name) <= KNOWN_BYTES_MAX:
            if len(_known) >= KNOWN_MAX:
                _known.clear()
            _known[key] = found
    return found


def read_options(new: New) -> ReadOptions:
    text = json_text("opts", new.opts)
    try:
        found = MEMBERS(text)
    except msgspec.MsgspecError:
        raise Invalid("opts must be an object") from None
    priority = new.priority or 0
    asked: dict[str, Any] = {
        "name": new.name,
        "priority": -priority,
        "delay_ms": min(max(new.delay or 0, 0), MILLIS_MAX),
        "max_attempts": max(new.attempts or 0, 1),
        "backoff": 0,
        "lifo": bool(new.lifo) and not priority,
        "rejoin_last": True,
        "stalls_allowed": 1,
    }
    with contextlib.suppress(Invalid, ValueError):
        if "backoff" in found:
            asked["backoff"] = checked_backoff("backoff", DECODE(found["backoff"]))
    for name, option in (("removeOnComplete", "keep_completed"), ("removeOnFail", "keep_failed")):
        with contextlib.suppress(Invalid, ValueError, AttributeError):
            if name in found:
                value = DECODE(found[name])
                limit = value.pop("limit", None) if isinstance(value, dict) else None
                keep = checked_keep(name, value)
                asked[option] = msgspec.structs.replace(keep, limit=limit) if is_integer(limit, 1, COUNT_MAX) else keep
    if new.dedup is not None:
        asked["dedup"] = read_dedup(new.dedup)
    if any(name in found for name in OWN):
        text = ENCODE({name: value for name, value in found.items() if name not in OWN})
    return ReadOptions(Options(**asked, sent=text), "timestamp" in found)


def read_dedup(wish: NewDedup) -> Dedup:
    keep_last = bool(wish.keep_last_if_active)
    ttl = math.ceil(wish.ttl) if wish.ttl is not None and 0 < wish.ttl <= MILLIS_MAX and not keep_last else None
    return Dedup(ttl, bool(wish.extend), bool(wish.replace), bool(wish.reschedule), keep_last)


def checked_id(value: str | None) -> str:
    """Return the id that a client chose, empty for none. Raises Invalid."""
    if not value:
        return ""
    if INTEGER.fullmatch(value):
        raise Invalid("Custom Id cannot be integers")
    if value.count(":") not in (0, 2):
        raise Invalid("Custom Id cannot contain :")
    return value


def named_job(asked: Asked, new: New) -> NamedJob:
    """Make what goes into the log of a job to add. Raises Invalid, Forbidden."""
    found = options_of(new)
    own = checked_id(new.id)
    timestamp = int(new.timestamp) if 0 <= new.timestamp <= 2 * MILLIS_MAX else 0
    spec = JobSpec(
        own, json_text("data", new.data), found.options, bool(own), None if new.dedup is None else new.dedup.id
    )
    parent = new.parent
    where = None if parent is None else (queue_of(asked, parent.queue), parent.id)
    return NamedJob(
        spec,
        timestamp=timestamp,
        due_from=timestamp if found.has_time and found.options.delay_ms else None,
        parent=where,
        parent_key=None if parent is None else f"{parent.queue}:{parent.id}",
        parent_json=None if parent is None else parent_json(parent),
        on_failure="wait" if parent is None else parent.policy,
        to_children=bool(new.waits),
        repeat_key=new.repeat_job_key,
        prefix=asked.server.config.queue_prefix,
    )


def queue_of(asked: Asked, qualified: str) -> str:
    """Return what the queue of a parent is called here; of a name that no queue can have, the empty one. Raises Forbidden."""
    try:
        return asked.other_queue(qualified)
    except Invalid:
        return ""


def parent_json(parent: NewParent) -> bytes:
    flags = {name: True for name in ("fpof", "cpof", "idof", "rdof") if getattr(parent, name)}
    return ENCODE({"id": parent.id, "queueKey": parent.queue, **flags})


# -- Showing


def shown(job: Job, prefix: str) -> dict[str, Any]:
    """Return a job as the table has it. prefix: of the queues that have a bare name."""
    record, opts = job.record, job.opts
    found: dict[str, Any] = {
        "id": own_id(job),
        "name": opts.name,
        "data": job.data,
        "opts": options_json(job),
        "progress": progress_json(job),
        "delay": delay_of(job),
        "priority": max(-opts.priority, 0),
        "timestamp": job.created_at if record is None else record.timestamp,
        "attemptsStarted": job.starts,
        "attemptsMade": job.attempts + (job.state == COMPLETED),
        "stalledCounter": job.stalls,
    }
    if job.processed_at is not None:
        found["processedOn"] = job.processed_at
    if job.finished_at is not None and job.finished:
        found["finishedOn"] = job.finished_at
    if job.unique_key is not None:
        found["deduplicationId"] = job.unique_key
    reason = job.failed_reason
    if reason is not None:
        found["failedReason"] = reason
    if job.state == COMPLETED:
        found["returnvalue"] = b"null" if job.result is None else job.result
    stacks = stacks_json(job)
    if stacks is not None:
        found["stacktrace"] = stacks
    if record is None:
        links = job.flow
        if links is not None and links.parent is not None:
            queue = names.qualified_of(links.parent_queue, prefix)
            above = unscoped(links.parent_queue, links.parent)
            found["parentKey"], found["parent"] = f"{queue}:{above}", {"id": above, "queueKey": queue}
        return found
    if record.parent_key is not None:
        found["parentKey"] = record.parent_key
    if record.parent is not None:
        found["parent"] = DECODE(record.parent)
    more = {
        "repeatJobKey": record.repeat_key,
        "deferredFailure": record.deferred,
        "processedBy": record.processed_by,
    }
    return found | {name: value for name, value in more.items() if value is not None}


def options_json(job: Job) -> bytes:
    """Return a job's options, with those that are its own."""
    text = job_object.options_text(job.opts)[1]
    custom = job.custom_id
    if custom is not None:
        text += b',"jobId":%b' % ENCODE(unscoped(job.queue, custom))
    if job.unique_key is not None:
        text += b',"deduplication":%b' % dedup_json(job.opts.dedup, job.unique_key)
    return (b"{" + text[2:] if text.startswith(b"{,") else text) + b"}"


def dedup_json(dedup: Dedup | None, key: str) -> bytes:
    told: dict[str, Any] = {"id": key}
    if dedup is not None:
        flags = {
            "ttl": dedup.ttl_ms,
            "extend": dedup.extend,
            "replace": dedup.replace,
            "reschedule": dedup.reschedule,
            "keepLastIfActive": dedup.keep_last,
        }
        told |= {name: value for name, value in flags.items() if value}
    return ENCODE(told)


def progress_json(job: Job) -> bytes:
    return ENCODE(job.progress) if job.progress_json is None else job.progress_json


def delay_of(job: Job) -> int:
    record = job.record
    if job.state == DELAYED:
        return job.delay_left if record is None else record.delay
    return int(job.opts.delay_ms) if job.state == WAITING_CHILDREN else 0


def stacks_json(job: Job) -> bytes | None:
    """Return the stack traces as their worker sent them, else those of the runs that failed elsewhere."""
    record = job.record
    if record is not None and record.stacks is not None:
        return record.stacks
    stacks = job.stacks
    return ENCODE(stacks) if stacks else None


def taken(reply: Taken, prefix: str) -> list[Any]:
    """Return the answer of a take."""
    job = reply.job
    return [None, "", reply.ttl_ms, reply.due_ms] if job is None else [shown(job, prefix), own_id(job), 0, 0]


# -- Arguments that several calls have


class Limiter(Struct, array_like=True):
    """How many starts a worker allows in which time; dur in milliseconds."""

    max: int
    duration: float = 0


class Taking(Struct):
    """How a worker takes. lock: milliseconds, 0 for no lock.  metrics: not kept yet."""

    lock: float = 30_000
    name: Word | None = None
    limiter: Limiter | None = None
    metrics: int | None = None


class KeepArgs(Struct, array_like=True):
    """Which finished jobs stay. count: -1 for all.  age: milliseconds.  limit: jobs too old that go at most when one ends."""

    count: int = -1
    age: float | None = None
    limit: int | None = None

    def keep(self) -> Keep:
        age = None if self.age is None else int(min(max(self.age, 0), MILLIS_MAX))
        limit = self.limit if is_integer(self.limit, 1, COUNT_MAX) else None
        return Keep(age, self.count if self.count >= 0 else None, limit)


class FailureFields(Struct, rename="camel"):
    """What a failed run leaves. stacktrace: JSON text."""

    failed_reason: Text | None = None
    stacktrace: Json | UnsetType = UNSET

    @property
    def stacks(self) -> bytes | None:
        return None if self.stacktrace is UNSET else newest_stacks(json_text("stacktrace", self.stacktrace))


def newest_stacks(text: bytes) -> bytes:
    """Return stack traces as they came where they are short enough; else the newest of them, each cut. Raises Invalid."""
    if len(text) <= STACKS_BYTES_MAX:
        return text
    try:
        stacks = TEXTS(text)
    except msgspec.MsgspecError:
        raise Invalid("stacktrace must be an array of texts") from None
    kept: list[bytes] = []
    left = STACKS_BYTES_MAX - len(b"[]")
    for stack in reversed(stacks):
        shown = ENCODE(stack[:STACK_CHARS_MAX])
        left -= len(shown) + len(b",")
        if left < 0:
            break
        kept.append(shown)
    return b"[%b]" % b",".join(reversed(kept))


def job_keys(asked: Asked, key: str) -> list[tuple[str, str]]:
    """Return queue and id of the jobs that a key, `prefix:name:id`, may mean: ids have no colon, or two. Raises Invalid."""
    found: list[tuple[str, str]] = []
    for colons in (1, 3):
        parts = key.rsplit(":", colons)
        if len(parts) == colons + 1:
            with contextlib.suppress(Invalid):
                found.append((asked.other_queue(parts[0]), ":".join(parts[1:])))
    if not found:
        raise Invalid("A job's key is prefix:name:id")
    return found

"""What clients of the bunqueue dialect send about jobs, and the rules for it: from a request to an operation or a query.

The types of the bodies are also what the OpenAPI document says of them: what a type cannot say stands in `Meta`, which
decoding ignores. What queues are sent is in queue_bodies.py, how any value is read and checked in values.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from api.http import Call, Invalid
from api.ids import new_id, new_ids, new_token_seed
from api.values import (
    BAD_JSON,
    BATCH_MAX,
    COUNT_MAX,
    DAY_MS,
    KEY_CHARS_MAX,
    NOT_AN_OBJECT,
    YEAR_MS,
    Number,
    as_text,
    check_text,
    decoded,
    members,
    says,
    whole,
)
from node import crontime
from node.operations.jobs import (
    AckJob,
    AckJobs,
    AddLog,
    ChangeDelay,
    ChangePriority,
    DiscardJob,
    ExtendLock,
    ExtendLocks,
    FailJob,
    GetJobByCustomId,
    HeartbeatJob,
    HeartbeatJobs,
    MoveToDelayed,
    ProgressJob,
    PullJobs,
    PushJobs,
    UpdateJobData,
)
from node.state import DEFAULT, Backoff, JobSpec, Options, Repeat

from .values import (
    NAME_CHARS_MAX,
    TAGS_MAX,
    as_key,
    as_note,
    as_texts,
    check_length,
    check_number,
    check_queue,
    checked_data,
    checked_ids,
    checked_list,
    checked_result,
    duration,
    loosened,
    query_number,
    read,
)

PULL_WAIT_MS_MAX = 60_000
FINISH_WAIT_MS_MAX = 600_000
FINISH_WAIT_MS = 30_000
LOCK_MS = 30_000
PULL_COUNT_MAX = 1_000
PRIORITY_MAX = 1_000_000
ATTEMPTS_MAX = 1_000
# Not documented: a hundred years, so that every due time can be stored.
REPEAT_MS_MAX = 100 * YEAR_MS

T = TypeVar("T")

Millis = Number | None
Key = Annotated[str | None, says(max_chars=KEY_CHARS_MAX)]
Token = Annotated[str | None, says("The job's lock token, as it came with the job; a locked job needs it.")]
Ids = Annotated[list[str] | None, says("Ids of jobs.", required=True, max_items=BATCH_MAX)]


class PushBody(Struct, gc=False, rename="camel"):
    """One job as a client sends it. null stands for the default of every option."""

    data: Annotated[
        Raw | UnsetType, says("What the worker gets: any JSON, up to 10 MB; kept as it was sent.", required=True)
    ] = UNSET
    name: Annotated[str | None, says("A name for the kind of job.", default="default", max_chars=NAME_CHARS_MAX)] = None
    priority: Annotated[int | None, says("Higher goes first.", default=0, low=-PRIORITY_MAX, high=PRIORITY_MAX)] = None
    delay: Annotated[Millis, says("Milliseconds before it may be taken.", default=0, low=0, high=YEAR_MS)] = None
    max_attempts: Annotated[
        int | None, says("Runs allowed before the dead letter queue.", default=3, low=1, high=ATTEMPTS_MAX)
    ] = None
    attempts: Annotated[int | None, says("The same as maxAttempts.", low=1, high=ATTEMPTS_MAX)] = None
    backoff: Annotated[
        Number | dict[str, Any] | None,
        says(
            "Milliseconds before the first retry, doubled for each further one up to a day; or "
            '`{"type": "fixed" | "exponential", "delay": ms}`.',
            default=1000,
            low=0,
            high=DAY_MS,
        ),
    ] = None
    ttl: Annotated[
        Millis, says("Milliseconds from its creation after which it is dropped untaken.", low=0, high=YEAR_MS)
    ] = None
    timeout: Annotated[Millis, says("Milliseconds a run may take; 0 for no bound.", low=0, high=DAY_MS)] = None
    stall_timeout: Annotated[
        Millis, says("Accepted and ignored; stall detection is set per queue.", low=0, high=DAY_MS)
    ] = None
    unique_key: Annotated[Key, says("While an unfinished job of the queue has this key, a push returns it.")] = None
    job_id: Annotated[Key, says("The job's id; while an unfinished job of the cluster has it, a push returns it.")] = (
        None
    )
    custom_id: Annotated[Key, says("The same as jobId.")] = None
    tags: Annotated[list[str] | None, says("Labels.", default=[], max_items=TAGS_MAX)] = None
    group_id: Annotated[Key, says("Jobs of one group are worked on one at a time; others overtake.")] = None
    lifo: Annotated[bool | None, says("Go before the waiting jobs of the same priority.", default=False)] = None
    remove_on_complete: Annotated[bool | None, says("Forget it once it completed.", default=False)] = None
    remove_on_fail: Annotated[bool | None, says("Forget it in place of the dead letter queue.", default=False)] = None
    durable: Annotated[bool | None, says("Accepted; every job is durable.", default=False)] = None
    depends_on: Annotated[
        list[str] | None, says("Ids of jobs that must complete first.", default=[], max_items=BATCH_MAX)
    ] = None
    repeat: Annotated[
        dict[str, Any] | None,
        says('`{"every": ms, "limit"?: n}` or `{"cron": expression, "limit"?: n, "tz"?: zone}`.'),
    ] = None


class BulkBody(Struct, gc=False):
    """Jobs for one queue: all are pushed, or none."""

    jobs: Annotated[list[PushBody] | None, says("The jobs, in order.", default=[], max_items=BATCH_MAX)] = None


class LooseBulkBody(Struct):
    jobs: list[Raw] | None = None


class PullBody(Struct, gc=False, rename="camel"):
    """How many jobs to take, and whether to lock them."""

    count: Annotated[Number | None, says("Jobs to take, at most.", required=True, low=1, high=PULL_COUNT_MAX)] = None
    timeout: Annotated[
        Millis, says("Milliseconds to wait for the first job.", default=0, low=0, high=PULL_WAIT_MS_MAX)
    ] = None
    owner: Annotated[Key, says("Who takes them: locks the jobs, and the reply has their tokens.")] = None
    lock_ttl: Annotated[Millis, says("Milliseconds a lock lasts.", default=LOCK_MS, low=1, high=DAY_MS)] = None


class AckBody(Struct, gc=False):
    """How a run ended."""

    result: Annotated[Raw | UnsetType, says("Any JSON, up to 10 MB; kept as it was sent.")] = UNSET
    token: Token = None


class AckBatchBody(Struct, gc=False):
    """Jobs that completed, with their results and tokens in the same order."""

    ids: Ids = None
    results: Annotated[list[Raw] | None, says("As many as ids.")] = None
    tokens: Annotated[list[str | None] | None, says("As many as ids.")] = None


class FailBody(Struct, gc=False):
    """Why a run failed."""

    error: Annotated[str | None, says("For people to read; cut after 65,536 characters.")] = None
    token: Token = None
    unrecoverable: Annotated[bool | None, says("No further run, whatever the attempts left.", default=False)] = None
    stack: Annotated[
        str | list[str] | None, says("Where in the worker's program; lines, or one text. Cut after 65,536 characters.")
    ] = None


class LockBody(Struct, gc=False):
    """Which lock, and how long it is to last from now."""

    token: Token = None
    duration: Annotated[Millis, says("Milliseconds; left out, as long as it was given for.", low=1, high=DAY_MS)] = None


class BeatsBody(Struct, gc=False):
    """Jobs that are being worked on."""

    ids: Ids = None
    tokens: Annotated[list[str | None] | None, says("As many as ids.")] = None


class LocksBody(Struct, gc=False):
    """Locks to extend."""

    ids: Ids = None
    tokens: Annotated[list[str | None] | None, says("As many as ids.", required=True)] = None
    durations: Annotated[list[Number | None] | None, says("Milliseconds, as many as ids.")] = None


class ProgressBody(Struct, gc=False):
    """How far a job has come."""

    progress: Annotated[Number | None, says("0 to 100; what lies outside counts as the nearest.", required=True)] = None
    message: Annotated[str | None, says("For people to read; stays until the next.")] = None
    token: Token = None


class WaitBody(Struct, gc=False):
    """How long to wait."""

    timeout: Annotated[Millis, says("Milliseconds.", default=FINISH_WAIT_MS, low=0, high=FINISH_WAIT_MS_MAX)] = None


class DataBody(Struct, gc=False):
    """New data of a job."""

    data: Annotated[Raw | UnsetType, says("Any JSON, up to 10 MB; takes the place of all data.", required=True)] = UNSET


class PriorityBody(Struct, gc=False):
    """New priority of a job."""

    priority: Annotated[int | None, says("Higher goes first.", required=True, low=-PRIORITY_MAX, high=PRIORITY_MAX)] = (
        None
    )


class DelayBody(Struct, gc=False):
    """How long a job is to wait from now."""

    delay: Annotated[Millis, says("Milliseconds.", required=True, low=0, high=YEAR_MS)] = None
    token: Token = None


class LogBody(Struct, gc=False):
    """One line for a job's log."""

    message: Annotated[str | None, says("The line; cut after 65,536 characters.", required=True)] = None
    level: Annotated[str | None, says("info, warn, error, or a word of your own.", default="info")] = None


PUSH = msgspec.json.Decoder(PushBody)
BULK = msgspec.json.Decoder(BulkBody)
LOOSE_BULK = msgspec.json.Decoder(LooseBulkBody)
PULL = msgspec.json.Decoder(PullBody)
ACK = msgspec.json.Decoder(AckBody)
ACK_BATCH = msgspec.json.Decoder(AckBatchBody)
FAIL = msgspec.json.Decoder(FailBody)
LOCK = msgspec.json.Decoder(LockBody)
BEATS = msgspec.json.Decoder(BeatsBody)
LOCKS = msgspec.json.Decoder(LocksBody)
PROGRESS = msgspec.json.Decoder(ProgressBody)
WAIT = msgspec.json.Decoder(WaitBody)
DATA = msgspec.json.Decoder(DataBody)
PRIORITY = msgspec.json.Decoder(PriorityBody)
DELAY = msgspec.json.Decoder(DelayBody)
LOG = msgspec.json.Decoder(LogBody)
# Raw reads any value and a struct compares in C: a job with nothing but data is told from the rest by one comparison.
ONLY_DATA = PushBody()


def of_job(what: Callable[[str], T]) -> Callable[[Call], T]:
    """Decode a request that says nothing but which job."""
    return lambda call: what(call.path["id"])


# -- Pushing -----------------------------------------------------------------------------------------------------------


def push(call: Call) -> PushJobs:
    queue = check_queue(call.path["queue"])
    body = read(PUSH, call.body, required=True)
    return PushJobs(queue=queue, jobs=[spec(body, new_id())])


def bulk(call: Call) -> PushJobs:
    queue = check_queue(call.path["queue"])
    if not call.body:
        raise Invalid(BAD_JSON)
    check_text(call.body)
    jobs = decoded(call.body, BULK.decode, loose_bulk).jobs
    if not jobs:
        return PushJobs(queue=queue, jobs=[])
    if len(jobs) > BATCH_MAX:
        raise Invalid(f"jobs must have at most {BATCH_MAX} items")
    specs = []
    for position, (job, new) in enumerate(zip(jobs, new_ids(len(jobs)), strict=True)):
        try:
            specs.append(spec(job, new))
        except Invalid as error:
            raise Invalid(f"jobs[{position}]: {error}") from None
    return PushJobs(queue=queue, jobs=specs)


def loose_bulk(body: bytes) -> BulkBody:
    """Decode a bulk that does not fit the types, job by job. Raises Invalid."""
    try:
        items = LOOSE_BULK.decode(body).jobs or []
    except msgspec.ValidationError:
        members(body)
        raise Invalid("jobs must be an array") from None
    jobs = []
    for position, item in enumerate(items[: BATCH_MAX + 1]):
        try:
            jobs.append(loosened(PushBody, members(item)))
        except Invalid as error:
            text = "must be an object" if str(error) == NOT_AN_OBJECT else str(error)
            raise Invalid(f"jobs[{position}]: {text}") from None
    return BulkBody(jobs)


def spec(body: PushBody, new: str) -> JobSpec:
    """Check one job and make what goes into the log of it. Raises Invalid."""
    data = checked_data(body.data)
    body.data = UNSET
    if body == ONLY_DATA:
        return JobSpec(new, data)
    return checked_spec(body, new, data)


def checked_spec(body: PushBody, new: str, data: bytes) -> JobSpec:
    """Check the options of one job, in the documented order. Raises Invalid."""
    group = None if body.group_id is None else checked_group(body.group_id)
    asked: dict[str, Any] = {}
    if body.priority is not None:
        check_number("priority", body.priority, -PRIORITY_MAX, PRIORITY_MAX, integer=True)
        asked["priority"] = int(body.priority)
    if body.delay is not None:
        check_number("delay", body.delay, 0, YEAR_MS)
        asked["delay_ms"] = whole(body.delay)
    if body.timeout is not None:
        check_number("timeout", body.timeout, 0, DAY_MS)
        # The documented server takes 0 for no timeout at all.
        asked["timeout_ms"] = whole(body.timeout) or None
    attempts, name = body.max_attempts, "maxAttempts"
    if attempts is None:
        attempts, name = body.attempts, "attempts"
    if attempts is not None:
        check_number(name, attempts, 1, ATTEMPTS_MAX, integer=True)
        asked["max_attempts"] = int(attempts)
    if body.backoff is not None:
        asked["backoff"] = checked_backoff(body.backoff)
    if body.ttl is not None:
        check_number("ttl", body.ttl, 0, YEAR_MS)
        asked["ttl_ms"] = whole(body.ttl)
    if body.stall_timeout is not None:
        check_number("stallTimeout", body.stall_timeout, 0, DAY_MS)
    depends = () if body.depends_on is None else checked_depends(body.depends_on)
    if isinstance(body.name, str):
        if not 0 < len(body.name) <= NAME_CHARS_MAX:
            raise Invalid(f"Job name must be a non-empty string of at most {NAME_CHARS_MAX} characters")
        asked["name"] = body.name
    unique = as_key("uniqueKey", body.unique_key)
    custom = as_key("jobId", body.job_id) or as_key("customId", body.custom_id)
    if body.repeat is not None:
        asked["repeat"] = checked_repeat(body.repeat)
        if custom is not None or depends:
            raise Invalid("repeat cannot be combined with jobId or dependsOn")
    if body.tags:
        asked["tags"] = checked_tags(body.tags)
    for flag in ("lifo", "remove_on_complete", "remove_on_fail", "durable"):
        if getattr(body, flag):
            asked[flag] = True
    options = Options(**asked) if asked else DEFAULT
    return JobSpec(custom or new, data, options, custom is not None, unique, group, depends)


def checked_depends(value: Any) -> tuple[str, ...]:
    """Return the ids that a job depends on. Raises Invalid."""
    ids = as_texts([value] if isinstance(value, str) else value)
    if len(ids) > BATCH_MAX:
        raise Invalid(f"dependsOn must have at most {BATCH_MAX} items")
    return tuple(dict.fromkeys(ids))


def checked_tags(value: Any) -> tuple[str, ...]:
    """Return the tags; what is no list holds none. Raises Invalid."""
    tags = as_texts(value)
    if len(tags) > TAGS_MAX:
        raise Invalid(f"tags must have at most {TAGS_MAX} items")
    if any(len(tag) > KEY_CHARS_MAX for tag in tags):
        raise Invalid(f"tag too long (max {KEY_CHARS_MAX} characters)")
    return tuple(tags)


def checked_group(value: Any) -> str:
    if not isinstance(value, str):
        raise Invalid("groupId must be a string")
    if not value:
        raise Invalid("groupId must be a non-empty string")
    key = as_key("groupId", value)
    assert key is not None
    return key


def checked_backoff(value: Any) -> Number | Backoff:
    """Return a number of milliseconds, or type and delay. Raises Invalid."""
    if not isinstance(value, dict):
        check_number("backoff", value, 0, DAY_MS)
        return whole(value)
    if value.get("type") not in ("fixed", "exponential"):
        raise Invalid("backoff.type must be 'fixed' or 'exponential'")
    if value.get("delay") is None:
        raise Invalid("backoff.delay is required")
    check_number("backoff.delay", value["delay"], 0, DAY_MS)
    return Backoff(value["type"], whole(value["delay"]))


def checked_repeat(value: Any) -> Repeat:
    """Return how a job repeats. Raises Invalid."""
    if not isinstance(value, dict):
        value = {}
    every, pattern = value.get("every"), value.get("pattern") or value.get("cron")
    if (every is None) == (pattern is None):
        raise Invalid("repeat requires exactly one of every or pattern")
    if every is not None and (
        isinstance(every, bool) or not isinstance(every, (int, float)) or not 0 < every < math.inf
    ):
        raise Invalid("repeat.every must be a positive finite number")
    if every is not None:
        check_number("repeat.every", every, 0, REPEAT_MS_MAX)
    limit = value.get("limit")
    if limit is not None:
        check_number("repeat.limit", limit, 0, COUNT_MAX, integer=True)
    zone = as_text(value.get("tz"))
    if pattern is not None:
        check_pattern(pattern, zone)
    return Repeat(None if every is None else whole(every), pattern, None if limit is None else int(limit), tz=zone)


def check_pattern(pattern: Any, zone: str | None) -> None:
    """Raises Invalid when this is no cron expression, or no time zone."""
    try:
        crontime.next_due_ms(pattern if isinstance(pattern, str) else "", zone, time.time_ns() // 1_000_000)
    except crontime.InvalidSchedule as error:
        raise Invalid(f"Invalid repeat pattern: {error}") from None


# -- Taking ------------------------------------------------------------------------------------------------------------


def pull(call: Call) -> tuple[PullJobs, int]:
    """Return what to take and how long to wait for it, in milliseconds."""
    queue = check_queue(call.path["queue"])
    wait_ms = query_number("timeout", call.query.get("timeout"), 0, PULL_WAIT_MS_MAX) if call.query_text else 0
    return PullJobs(queue), math.ceil(wait_ms)


def pull_batch(call: Call) -> tuple[PullJobs, int]:
    """Return what to take and how long to wait for it, in milliseconds."""
    queue = check_queue(call.path["queue"])
    body = read(PULL, call.body)
    if body.count is None:
        raise Invalid("count is required")
    check_number("count", body.count, 1, PULL_COUNT_MAX)
    wait_ms = 0
    if body.timeout is not None:
        check_number("timeout", body.timeout, 0, PULL_WAIT_MS_MAX)
        wait_ms = math.ceil(body.timeout)
    lock_ms = LOCK_MS if body.lock_ttl is None else duration("lockTtl", body.lock_ttl)
    owner = as_key("owner", body.owner)
    if owner is None:
        return PullJobs(queue, int(body.count)), wait_ms
    return PullJobs(queue, int(body.count), owner, lock_ms, new_token_seed()), wait_ms


# -- Finishing ---------------------------------------------------------------------------------------------------------


def ack(call: Call) -> AckJob:
    body = read(ACK, call.body)
    return AckJob(call.path["id"], as_text(body.token), checked_result(body.result))


def ack_batch(call: Call) -> AckJobs:
    body = read(ACK_BATCH, call.body)
    ids = checked_ids(body.ids)
    results: list[bytes | None] = []
    if body.results is not None:
        check_length("ACKB", "results", checked_list("results", body.results), ids)
        results = [checked_result(result) for result in body.results]
    tokens = checked_tokens("ACKB", body.tokens, ids)
    return AckJobs(ids, tokens, results)


def checked_tokens(command: str, value: Any, ids: Sequence[str]) -> list[str | None]:
    """Return the tokens beside the ids; none at all when none were sent. Raises Invalid."""
    if value is None:
        return []
    check_length(command, "tokens", checked_list("tokens", value), ids)
    return [as_text(token) for token in value]


def fail(call: Call) -> FailJob:
    body = read(FAIL, call.body)
    stack = "\n".join(as_texts(body.stack)) or None if isinstance(body.stack, list) else body.stack
    return FailJob(
        call.path["id"], as_text(body.token), as_note(body.error), bool(body.unrecoverable), stack=as_note(stack)
    )


# -- Locks and progress ------------------------------------------------------------------------------------------------


def heartbeat(call: Call) -> HeartbeatJob:
    body = read(LOCK, call.body)
    # The documented server takes no notice of a duration that is none; a heartbeat must not fail for it.
    known = isinstance(body.duration, (int, float)) and not isinstance(body.duration, bool)
    lasting = duration("duration", body.duration) if known else None
    return HeartbeatJob(call.path["id"], as_text(body.token), lasting)


def heartbeat_batch(call: Call) -> HeartbeatJobs:
    body = read(BEATS, call.body)
    ids = checked_ids(body.ids)
    return HeartbeatJobs(ids, checked_tokens("JobHeartbeatB", body.tokens, ids))


def extend_lock(call: Call) -> ExtendLock:
    body = read(LOCK, call.body)
    lasting = None if body.duration is None else duration("duration", body.duration)
    return ExtendLock(call.path["id"], as_text(body.token), lasting)


def extend_locks(call: Call) -> ExtendLocks:
    body = read(LOCKS, call.body)
    ids = checked_ids(body.ids)
    if body.tokens is None:
        raise Invalid("tokens must be an array")
    tokens = checked_tokens("ExtendLocks", body.tokens, ids)
    durations: list[int | None] = []
    if body.durations is not None:
        check_length("ExtendLocks", "durations", checked_list("durations", body.durations), ids)
        durations = [None if item is None else duration("durations", item) for item in body.durations]
    return ExtendLocks(ids, tokens, durations)


def progress(call: Call) -> ProgressJob:
    body = read(PROGRESS, call.body)
    if body.progress is None:
        raise Invalid("progress is required")
    value: Any = body.progress
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Invalid("progress must be a number")
    return ProgressJob(call.path["id"], whole(max(0, min(100, value))), as_note(body.message), as_text(body.token))


def wait(call: Call) -> int:
    """Return how long to wait for the end of a job, in milliseconds."""
    body = read(WAIT, call.body)
    if body.timeout is None:
        return FINISH_WAIT_MS
    check_number("timeout", body.timeout, 0, FINISH_WAIT_MS_MAX)
    return math.ceil(body.timeout)


# -- Changing ----------------------------------------------------------------------------------------------------------


def update_data(call: Call) -> UpdateJobData:
    body = read(DATA, call.body, required=True)
    return UpdateJobData(call.path["id"], checked_data(body.data))


def change_priority(call: Call) -> ChangePriority:
    body = read(PRIORITY, call.body)
    if body.priority is None:
        raise Invalid("priority is required")
    check_number("priority", body.priority, -PRIORITY_MAX, PRIORITY_MAX, integer=True)
    return ChangePriority(call.path["id"], int(body.priority))


def change_delay(call: Call) -> ChangeDelay:
    return ChangeDelay(call.path["id"], checked_delay(read(DELAY, call.body)))


def move_to_delayed(call: Call) -> MoveToDelayed:
    body = read(DELAY, call.body)
    return MoveToDelayed(call.path["id"], checked_delay(body), as_text(body.token))


def checked_delay(body: DelayBody) -> Number:
    """Return the delay in milliseconds. Raises Invalid."""
    if body.delay is None:
        raise Invalid("delay is required")
    check_number("delay", body.delay, 0, YEAR_MS)
    return whole(body.delay)


def discard(call: Call) -> DiscardJob:
    # `removeOnFail` speaks of the last failure; a discarded job is sent to the dead letter queue by name.
    return DiscardJob(call.path["id"], always=True)


def add_log(call: Call) -> AddLog:
    body = read(LOG, call.body)
    message = as_note(body.message)
    if message is None:
        raise Invalid("message is required")
    return AddLog(call.path["id"], message, (as_text(body.level) or "info")[:NAME_CHARS_MAX])


def get_job_by_custom_id(call: Call) -> GetJobByCustomId:
    return GetJobByCustomId(call.path["custom_id"])

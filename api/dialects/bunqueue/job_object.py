"""The job object, which most replies have: its type, and how it is written.

It is written piece by piece: what depends only on the options is made once per options object, which the state shares between
jobs. Filling and encoding a struct of the same keys takes three times as long."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from quorumq.node.machine.state.job import (
    ACTIVE,
    COMPLETED,
    CONTINUE,
    FAIL,
    IGNORE,
    PROCESSED,
    REMOVE,
    WAITING,
    Backoff,
    FlowLinks,
    Job,
    Moment,
    Options,
    Repeat,
)

from . import replies

_OPTIONS_MAX = 4096
# What jobs have that are in no flow.
NO_FLOW = (
    b',"childrenIds":[],"childrenCompleted":0,"parentId":null,"failParentOnFailure":false,'
    b'"removeDependencyOnFailure":false,"continueParentOnFailure":false,"ignoreDependencyOnFailure":false'
)
# The keys that the documented server has and this one never fills.
CONSTANT = (
    b',"stallTimeout":null,"stackTraceLimit":10,"keepLogs":null,"sizeLimit":null,"deduplicationTtl":null,"deduplicationExtend":false,"deduplicationReplace":false,"debounceId":null,'
    b'"debounceTtl":null'
)
NOTHING_OWN = (
    b',"uniqueKey":null,"customId":null,"groupId":null,"dependsOn":[],"progress":0,"progressMessage":null,'
    b'"stacktrace":null' + NO_FLOW + CONSTANT
)
JobState = Literal["waiting", "delayed", "active", "completed", "failed", "waiting-children"]


class Step(Struct, forbid_unknown_fields=True):
    state: str
    timestamp: replies.Millis
    error: str | UnsetType = UNSET
    attempt: int | UnsetType = UNSET


class BackoffShown(Struct, forbid_unknown_fields=True):
    type: Literal["fixed", "exponential", "linear"]
    delay: replies.Number


class RepeatShown(Struct, forbid_unknown_fields=True):
    count: int
    every: replies.Number | UnsetType = UNSET
    pattern: str | UnsetType = UNSET
    limit: int | UnsetType = UNSET
    tz: str | UnsetType = UNSET


class JobShown(Struct, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """The job object, with every key of the documented server's."""

    id: Annotated[str, Meta(description="Made by the server (a UUID v7), or the `jobId` it was pushed with.")]
    queue: str
    name: str
    data: Annotated[Raw, Meta(description="As it was sent.")]
    created_at: replies.Millis
    run_at: Annotated[replies.Millis, Meta(description="When it may, or might, be taken.")]
    started_at: Annotated[replies.Millis | None, Meta(description="When the present or last run began.")]
    completed_at: replies.Millis | None
    attempts: Annotated[int, Meta(description="Runs that failed.")]
    backoff: Annotated[replies.Number, Meta(description="Base of the delay before a retry, in milliseconds.")]
    backoff_config: Annotated[BackoffShown | None, Meta(description="Type and delay, where they were given.")]
    depends_on: list[str]
    children_ids: Annotated[list[str], Meta(description="Jobs that it waits for as their parent.")]
    children_completed: Annotated[int, Meta(description="How many of them completed.")]
    tags: list[str]
    progress: Annotated[replies.Number, Meta(description="0 to 100, as the worker reported.")]
    progress_message: str | None
    stacktrace: Annotated[list[str] | None, Meta(description="One entry for each failed run whose worker sent one.")]
    repeat: Annotated[RepeatShown | None, Meta(description="How it repeats; `count` is the repeats so far.")]
    durable: Annotated[bool, Meta(description="As it was asked for; every job is durable.")]
    last_heartbeat: replies.Millis | None
    stall_count: Annotated[int, Meta(description="How often its worker fell silent.")]
    priority: int
    lifo: bool
    max_attempts: Annotated[int, Meta(description="Runs allowed.")]
    remove_on_complete: bool
    remove_on_fail: bool
    ttl: replies.Number | None
    timeout: replies.Number | None
    unique_key: Annotated[
        str | None, Meta(description="While it is unfinished, pushes with this key to its queue add nothing.")
    ]
    custom_id: Annotated[str | None, Meta(description="The `jobId` it was pushed with.")]
    parent_id: Annotated[str | None, Meta(description="The job that waits for it.")]
    group_id: Annotated[str | None, Meta(description="Jobs of one group are worked on one at a time.")]
    stall_timeout: None
    stack_trace_limit: int
    keep_logs: None
    size_limit: None
    fail_parent_on_failure: bool
    remove_dependency_on_failure: bool
    continue_parent_on_failure: bool
    ignore_dependency_on_failure: bool
    deduplication_ttl: None
    deduplication_extend: bool
    deduplication_replace: bool
    debounce_id: None
    debounce_ttl: None
    timeline: Annotated[list[Step], Meta(description="The states it went through, the last 40 at most.")]
    # Beyond the documented server.
    fencing_token: Annotated[
        int | UnsetType, Meta(description="Rises with every delivery of any job; there once it was taken.")
    ] = UNSET
    owner: Annotated[str | UnsetType | None, Meta(description="Who holds its lock.")] = UNSET
    lock_expires_at: Annotated[replies.Millis | UnsetType, Meta(description="When its lock runs out.")] = UNSET
    token: Annotated[
        str | UnsetType, Meta(description="The token of its lock; shown to the worker that takes it, to nobody else.")
    ] = UNSET
    state: Annotated[JobState | UnsetType, Meta(description="Its state; in reads, not when taken.")] = UNSET
    returnvalue: Annotated[Raw | UnsetType, Meta(description="Its result, once it completed with one.")] = UNSET
    failed_reason: Annotated[str | UnsetType, Meta(description="The error of its last failed run.")] = UNSET


# Kept by the identity of the options object, which the state shares between jobs.
_options: dict[int, tuple[Options, bytes]] = {}


def number(value: float | None) -> bytes:
    """Write a number, whole ones without a fraction."""
    if value is None:
        return b"null"
    whole = int(value)
    return b"%d" % whole if whole == value else replies.ENCODE(value)


def options_text(opts: Options) -> bytes:
    """Render the keys that come from the options."""
    found = _options.get(id(opts))
    if found is not None and found[0] is opts:
        return found[1]
    if len(_options) >= _OPTIONS_MAX:
        _options.clear()
    backoff = opts.backoff
    if isinstance(backoff, Backoff):
        config = replies.ENCODE({"type": backoff.type, "delay": msgspec.Raw(number(backoff.delay))})
        base = backoff.delay
    else:
        config, base = b"null", backoff
    text = (
        b',"name":%b,"priority":%d,"maxAttempts":%d,"backoff":%b,"backoffConfig":%b,"ttl":%b,"timeout":%b,"lifo":%b,'
        b'"removeOnComplete":%b,"removeOnFail":%b,"durable":%b,"tags":%b,"repeat":%b'
        % (
            replies.ENCODE(opts.name),
            opts.priority,
            opts.max_attempts,
            number(base),
            config,
            number(opts.ttl_ms),
            number(opts.timeout_ms),
            replies.ENCODE(opts.lifo),
            replies.ENCODE(opts.remove_on_complete),
            replies.ENCODE(opts.remove_on_fail),
            replies.ENCODE(opts.durable),
            replies.ENCODE(opts.tags),
            repeat_text(opts.repeat),
        )
    )
    _options[id(opts)] = (opts, text)
    return text


def repeat_text(repeat: Repeat | None) -> bytes:
    if repeat is None:
        return b"null"
    shown: dict[str, Any] = {"count": repeat.count}
    if repeat.every_ms is not None:
        shown["every"] = msgspec.Raw(number(repeat.every_ms))
    if repeat.pattern is not None:
        shown["pattern"] = repeat.pattern
    if repeat.limit is not None:
        shown["limit"] = repeat.limit
    if repeat.tz is not None:
        shown["tz"] = repeat.tz
    return replies.ENCODE(shown)


def timeline_text(job: Job) -> bytes:
    """Render the states that a job went through."""
    if job.past is None and job.state == ACTIVE:
        return b'[{"state":"%b","timestamp":%d},{"state":"active","timestamp":%d}]' % (
            (job.first_state or WAITING).encode(),
            job.created_at,
            job.started_at or 0,
        )
    return replies.ENCODE([moment_shown(moment) for moment in job.timeline])


def moment_shown(moment: Moment) -> dict[str, Any]:
    shown: dict[str, Any] = {"state": moment.state, "timestamp": moment.at}
    if moment.error is not None:
        shown["error"] = moment.error
    if moment.attempt is not None:
        shown["attempt"] = moment.attempt
    return shown


def own_text(job: Job) -> bytes:
    """Render the keys that few jobs fill."""
    # A completed job of which none was reported has come all the way.
    progress = job.progress or (100 if job.state == COMPLETED else 0)
    if (
        not progress
        and not job.custom
        and job.unique_key is None
        and job.group_id is None
        and job.dependencies is None
        and job.progress_message is None
        and job.failures is None
    ):
        return NOTHING_OWN
    return (
        b',"uniqueKey":%b,"customId":%b,"groupId":%b,"dependsOn":%b,"progress":%b,"progressMessage":%b,"stacktrace":%b%b%b'
        % (
            replies.ENCODE(job.unique_key),
            replies.ENCODE(job.custom_id),
            replies.ENCODE(job.group_id),
            replies.ENCODE(depends_on(job)),
            number(progress),
            replies.ENCODE(job.progress_message),
            replies.ENCODE(job.stacks or None),
            NO_FLOW if job.flow is None else flow_text(job.flow),
            CONSTANT,
        )
    )


def depends_on(job: Job) -> list[str]:
    """Return the ids of all jobs that this one waits, or waited, for."""
    if job.flow is None:
        return list(job.depends_on)
    # Older clients name a child in both.
    children = job.flow.children
    return [*children, *(one for one in job.depends_on if one not in children)]


def flow_text(links: FlowLinks) -> bytes:
    """Render the keys of a job of a flow."""
    policy = links.on_failure
    return (
        b',"childrenIds":%b,"childrenCompleted":%d,"parentId":%b,"failParentOnFailure":%b,'
        b'"removeDependencyOnFailure":%b,"continueParentOnFailure":%b,"ignoreDependencyOnFailure":%b'
        % (
            replies.ENCODE(list(links.children)),
            sum(end is not None and end.how == PROCESSED for end in links.children.values()),
            replies.ENCODE(links.parent),
            replies.ENCODE(policy == FAIL),
            replies.ENCODE(policy == REMOVE),
            replies.ENCODE(policy == CONTINUE),
            replies.ENCODE(policy == IGNORE),
        )
    )


def job_text(job: Job, more: bytes = b"") -> bytes:
    """Render the job object. more: further members, each with the comma before it."""
    started, finished, beat = job.started_at, job.finished_at, job.last_heartbeat
    if job.fence:
        more = b',"fencingToken":%d%b' % (job.fence, more)
    if job.lock_until:
        more = b',"owner":%b,"lockExpiresAt":%d%b' % (replies.ENCODE(job.owner), job.lock_until, more)
    return (
        b'{"id":%b,"queue":%b,"data":%b,"createdAt":%d,"runAt":%d,"startedAt":%b,"completedAt":%b,"attempts":%d,'
        b'"stallCount":%d,"lastHeartbeat":%b,"timeline":%b%b%b%b}'
        % (
            # Escaped both: the BullMQ dialect lets clients call a queue nearly anything.
            replies.ENCODE(job.id),
            replies.ENCODE(job.queue),
            job.data,
            job.created_at,
            job.run_at,
            b"null" if started is None else b"%d" % started,
            b"null" if finished is None or job.state != COMPLETED else b"%d" % finished,
            job.attempts,
            job.stalls,
            b"null" if beat is None else b"%d" % beat,
            timeline_text(job),
            options_text(job.opts),
            own_text(job),
            more,
        )
    )


def full_text(job: Job) -> bytes:
    """Render the job object as reads show it: with its state, its result and its last error."""
    more = b',"state":"%b"' % job.state.encode()
    if job.result is not None:
        more += b',"returnvalue":%b' % job.result
    if job.error is not None:
        more += b',"failedReason":%b' % replies.ENCODE(job.error)
    return job_text(job, more)


def taken_text(job: Job) -> bytes:
    """Render the job object for the worker that has just taken it: only it may see the lock's token."""
    if job.lock_until and job.token is not None:
        return job_text(job, b',"token":%b' % replies.ENCODE(job.token))
    return job_text(job)

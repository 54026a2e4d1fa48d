"""The job object with the recorded server's keys, which most replies have: its type, and how it is written.

Data, results, progress and options are spliced in as the bytes they came as. What depends only on the options is made once
per options object, which the state shares between jobs. prefix: QUEUE_PREFIX, which is only for show.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Raw, UnsetType

from quorumq.node.machine.state import own_id
from quorumq.node.machine.state.job import COMPLETED, WAITING, Backoff, Job, Options, unscoped

from . import replies

State = Literal["waiting", "prioritized", "delayed", "active", "waiting-children", "completed", "failed"]


class ParentShown(replies.BullShown):
    """id: in its queue.  queue_key: QUEUE_PREFIX and name of that queue."""

    id: str
    queue_key: str


class JobJson(replies.BullShown, kw_only=True):
    """The job object, with every key of the recorded server's."""

    name: Annotated[str, Meta(description="As it was sent.")]
    data: Annotated[Raw, Meta(description="As it was sent.")]
    opts: Annotated[dict[str, Any], Meta(description="The options as they were sent, with `attempts`.")]
    id: Annotated[str, Meta(description="Unique in its queue.")]
    progress: Annotated[Raw, Meta(description="Any JSON, as the worker reported it; 0 before.")]
    returnvalue: Annotated[Raw, Meta(description="Any JSON; null before it completed.")]
    stacktrace: Annotated[list[str], Meta(description="One entry for each failed run, oldest first.")]
    delay: Annotated[int, Meta(description="Milliseconds it was put off by, while it is delayed; else 0.")]
    priority: Annotated[int, Meta(description="0 for none; else lower goes first.")]
    attempts_started: Annotated[int, Meta(description="How often it was taken.")]
    attempts_made: Annotated[int, Meta(description="Runs that completed or failed.")]
    stalled_counter: Annotated[int, Meta(description="How often its lock ran out.")]
    timestamp: Annotated[replies.Millis, Meta(description="When it was added.")]
    queue_qualified_name: Annotated[str, Meta(description="QUEUE_PREFIX and name of the queue.")]
    processed_on: Annotated[replies.Millis | UnsetType, Meta(description="When its present or last run began.")] = UNSET
    finished_on: Annotated[replies.Millis | UnsetType, Meta(description="When it completed or failed for good.")] = (
        UNSET
    )
    failed_reason: Annotated[str | UnsetType, Meta(description="The error of its last failed run.")] = UNSET
    deduplication_id: Annotated[str | UnsetType, Meta(description="The id that keeps others away.")] = UNSET
    repeat_job_key: Annotated[str | UnsetType, Meta(description="Key of the repetition that made it.")] = UNSET
    parent: Annotated[ParentShown | UnsetType, Meta(description="The job that waits for it, or waited.")] = UNSET
    parent_key: Annotated[str | UnsetType, Meta(description="The same as one text.")] = UNSET
    token: Annotated[
        str | UnsetType, Meta(description="The token of its lock; shown to the worker that takes it, to nobody else.")
    ] = UNSET


# Kept by the identity of the options object.
_options: dict[int, tuple[Options, bytes, bytes]] = {}
_OPTIONS_MAX = 4_096


def options_text(opts: Options) -> tuple[bytes, bytes]:
    """Return the name as JSON, and what the options have in common for all jobs that share them, without its last brace."""
    found = _options.get(id(opts))
    if found is not None and found[0] is opts:
        return found[1], found[2]
    if len(_options) >= _OPTIONS_MAX:
        _options.clear()
    name = replies.ENCODE(opts.name)
    sent = opts.sent if opts.sent is not None else replies.ENCODE(translated(opts))
    _options[id(opts)] = (opts, name, sent[:-1])
    return name, sent[:-1]


def translated(opts: Options) -> dict[str, Any]:
    """Say in BullMQ's words what a job was asked for in another dialect."""
    told: dict[str, Any] = {"attempts": opts.max_attempts}
    backoff = opts.backoff
    if isinstance(backoff, Backoff):
        told["backoff"] = {"type": backoff.type, "delay": backoff.delay}
    elif backoff:
        told["backoff"] = {"type": "exponential", "delay": backoff}
    if opts.delay_ms:
        told["delay"] = opts.delay_ms
    if opts.priority < 0:
        told["priority"] = -opts.priority
    if opts.lifo:
        told["lifo"] = True
    if opts.remove_on_complete:
        told["removeOnComplete"] = True
    if opts.remove_on_fail:
        told["removeOnFail"] = True
    return told


def job_text(job: Job, prefix: str, token: str | None = None) -> bytes:
    """Render the job object. token: of its lock, only for whoever takes it."""
    return b"".join(job_pieces(job, prefix, token))


def job_pieces(job: Job, prefix: str, token: str | None = None) -> tuple[bytes, ...]:
    """Render the job object in pieces: data and result, which may be large, are those of the record."""
    opts = job.opts
    name, shown = options_text(opts)
    own = own_id(job)
    own_text = replies.ENCODE(own)
    if job.custom_id is not None:
        shown += b',"jobId":%b' % replies.ENCODE(unscoped(job.queue, job.custom_id))
    more = b""
    if job.unique_key is not None:
        key = replies.ENCODE(job.unique_key)
        shown += b',"deduplication":%b' % deduplication_text(opts, key)
        more = b',"deduplicationId":%b' % key
    processed = job.processed_at
    if processed is not None:
        more += b',"processedOn":%d' % processed
    if job.finished_at is not None:
        more += b',"finishedOn":%d' % job.finished_at
    reason = job.failed_reason
    if reason is not None:
        more += b',"failedReason":%b' % replies.ENCODE(reason)
    if own.startswith("repeat:") and not job.custom:
        more += b',"repeatJobKey":%b' % replies.ENCODE(own.removeprefix("repeat:").rpartition(":")[0])
    links = job.flow
    if links is not None and links.parent is not None:
        above, queue = unscoped(links.parent_queue, links.parent), f"{prefix}:{links.parent_queue}"
        more += b',"parent":{"id":%b,"queueKey":%b},"parentKey":%b' % (
            replies.ENCODE(above),
            replies.ENCODE(queue),
            replies.ENCODE(f"{queue}:{above}"),
        )
    if token is not None:
        more += b',"token":%b' % replies.ENCODE(token)
    return (
        b'{"name":%b,"data":' % name,
        job.data,
        b',"opts":%b},"id":%b,"progress":%b,"returnvalue":'
        % (
            shown,
            own_text,
            job.progress_json if job.progress_json is not None else replies.number(job.progress),
        ),
        replies.NULL if job.result is None else job.result,
        b',"stacktrace":%b,"delay":%b,"priority":%d,"attemptsStarted":%d,"attemptsMade":%d,"stalledCounter":%d,'
        b'"timestamp":%d,"queueQualifiedName":%b%b}'
        % (
            b"[]" if job.failures is None else stacktrace_text(job),
            replies.number(job.delay_left),
            max(-opts.priority, 0),
            job.starts,
            job.attempts + (job.state == COMPLETED),
            job.stalls,
            job.created_at,
            replies.ENCODE(f"{prefix}:{job.queue}"),
            more,
        ),
    )


def deduplication_text(opts: Options, key: bytes) -> bytes:
    dedup = opts.dedup
    text = b'{"id":%b' % key
    if dedup is not None:
        if dedup.ttl_ms is not None:
            text += b',"ttl":%d' % dedup.ttl_ms
        if dedup.extend:
            text += b',"extend":true'
        if dedup.replace:
            text += b',"replace":true'
    return text + b"}"


def stacktrace_text(job: Job) -> bytes:
    """Render what each failed run died of, the last twenty of them."""
    assert job.failures is not None
    return replies.ENCODE([run.stack or run.error or run.reason for run in job.failures.runs])


def taken_text(job: Job, prefix: str) -> bytes:
    """Render a job for the worker that has just taken it."""
    return job_text(job, prefix, job.token)


def state_name(job: Job) -> str:
    """Name the state as BullMQ does: a job that waits with a priority is prioritized."""
    return "prioritized" if job.state == WAITING and job.opts.priority < 0 else job.state

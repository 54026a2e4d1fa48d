"""What the BullMQ dialect answers: the job object with the recorded server's keys, pages, counts and the small replies.

Data, results, progress and options are spliced in as the bytes they came as. What depends only on the options is made once
per options object, which the state shares between jobs. prefix: QUEUE_PREFIX, which is only for show.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from quorumq.node.machine.operations.jobs import Changed, Counted
from quorumq.node.machine.operations.queue_reads import Counts
from quorumq.node.machine.operations.queues import Checked, Cleaned
from quorumq.node.machine.operations.runs import Finished, Pulled
from quorumq.node.machine.state import QueueSettings, own_id, scoped_id
from quorumq.node.machine.state.job import COMPLETED, FAILED, WAITING, Backoff, Job, LogLine, Options, unscoped

ENCODE = msgspec.json.Encoder().encode
OK = b"OK"
NULL = b"null"
STATUSES = ("waiting", "active", "completed", "failed", "delayed", "prioritized")

# Kept by the identity of the options object.
_options: dict[int, tuple[Options, bytes, bytes]] = {}
_OPTIONS_MAX = 4_096


def number(value: float) -> bytes:
    """Write a number, whole ones without a fraction."""
    whole = int(value)
    return b"%d" % whole if whole == value else ENCODE(value)


# -- Jobs --------------------------------------------------------------------------------------------------------------


def options_text(opts: Options) -> tuple[bytes, bytes]:
    """Return the name as JSON, and what the options have in common for all jobs that share them, without its last brace."""
    found = _options.get(id(opts))
    if found is not None and found[0] is opts:
        return found[1], found[2]
    if len(_options) >= _OPTIONS_MAX:
        _options.clear()
    name = ENCODE(opts.name)
    sent = opts.sent if opts.sent is not None else ENCODE(translated(opts))
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
    own_text = ENCODE(own)
    if job.custom_id is not None:
        shown += b',"jobId":%b' % ENCODE(unscoped(job.queue, job.custom_id))
    more = b""
    if job.unique_key is not None:
        key = ENCODE(job.unique_key)
        shown += b',"deduplication":%b' % deduplication_text(opts, key)
        more = b',"deduplicationId":%b' % key
    processed = job.processed_at
    if processed is not None:
        more += b',"processedOn":%d' % processed
    if job.finished_at is not None:
        more += b',"finishedOn":%d' % job.finished_at
    reason = reason_of(job)
    if reason is not None:
        more += b',"failedReason":%b' % ENCODE(reason)
    if own.startswith("repeat:") and not job.custom:
        more += b',"repeatJobKey":%b' % ENCODE(own.removeprefix("repeat:").rpartition(":")[0])
    links = job.flow
    if links is not None and links.parent is not None:
        above, queue = unscoped(links.parent_queue, links.parent), f"{prefix}:{links.parent_queue}"
        more += b',"parent":{"id":%b,"queueKey":%b},"parentKey":%b' % (
            ENCODE(above),
            ENCODE(queue),
            ENCODE(f"{queue}:{above}"),
        )
    if token is not None:
        more += b',"token":%b' % ENCODE(token)
    return (
        b'{"name":%b,"data":' % name,
        job.data,
        b',"opts":%b},"id":%b,"progress":%b,"returnvalue":'
        % (
            shown,
            own_text,
            job.progress_json if job.progress_json is not None else number(job.progress),
        ),
        NULL if job.result is None else job.result,
        b',"stacktrace":%b,"delay":%b,"priority":%d,"attemptsStarted":%d,"attemptsMade":%d,"stalledCounter":%d,'
        b'"timestamp":%d,"queueQualifiedName":%b%b}'
        % (
            b"[]" if job.failures is None else stacktrace_text(job),
            number(job.delay_left),
            max(-opts.priority, 0),
            job.starts,
            job.attempts + (job.state == COMPLETED),
            job.stalls,
            job.created_at,
            ENCODE(f"{prefix}:{job.queue}"),
            more,
        ),
    )


def reason_of(job: Job) -> str | None:
    """Say why the last failed run failed; where a worker of another dialect gave no reason, in a word of the server."""
    if job.error is not None or job.state != FAILED or job.failures is None:
        return job.error
    return job.failures.reason


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
    return ENCODE([run.stack or run.error or run.reason for run in job.failures.runs])


def taken_text(job: Job, prefix: str) -> bytes:
    """Render a job for the worker that has just taken it."""
    return job_text(job, prefix, job.token)


# -- Reading -----------------------------------------------------------------------------------------------------------


def all_counts(reply: Counts) -> dict[str, int]:
    """Return the counts by status: jobs without a priority are paused where the queue is, those with one stay prioritized."""
    plain = reply.waiting - reply.lowered
    return {
        "waiting": 0 if reply.paused else plain,
        "active": reply.active,
        "completed": reply.completed,
        "failed": reply.failed,
        "delayed": reply.delayed,
        "prioritized": reply.lowered,
        "paused": plain if reply.paused else 0,
        "waiting-children": reply.waiting_children,
    }


def page(
    statuses: Iterable[str], counts: Counts, jobs: Iterable[Job], start: int, length: int, prefix: str
) -> list[bytes]:
    """Render a page in pieces, because its jobs may be large."""
    found = all_counts(counts)
    asked = {status: found[status] for status in statuses}
    if "waiting" in asked:
        asked["paused"] = found["paused"]
    pieces = [b'{"counts":%b,"jobs":[' % ENCODE(asked)]
    for job in jobs:
        if len(pieces) > 1:
            pieces.append(b",")
        pieces += job_pieces(job, prefix)
    pieces.append(b'],"start":%d,"length":%d}' % (start, length))
    return pieces


def logs(start: int, length: int, lines: list[LogLine]) -> bytes:
    shown = lines[start : start + length if length else None]
    return b'{"logs":%b,"count":%d}' % (ENCODE([line.message for line in shown]), len(lines))


def state_name(job: Job) -> str:
    """Name the state as BullMQ does: a job that waits with a priority is prioritized."""
    return "prioritized" if job.state == WAITING and job.opts.priority < 0 else job.state


def state(job: Job) -> bytes:
    return b'{"state":"%b"}' % state_name(job).encode()


NO_STATE = b'{"state":"unknown"}'


def queue(name: str, counts: Counts, settings: QueueSettings) -> bytes:
    window = settings.window
    shown = {
        "name": name,
        "isPaused": counts.paused,
        "counts": all_counts(counts),
        "globalRateLimit": None if window is None else {"max": window.max, "duration": window.duration_ms},
        "globalConcurrency": settings.concurrency,
    }
    return ENCODE(shown)


def counts(reply: Counts) -> bytes:
    return ENCODE(all_counts(reply))


def queues(names: list[str]) -> bytes:
    return ENCODE({"queues": names})


# -- Working -----------------------------------------------------------------------------------------------------------


def pulled(prefix: str, reply: Pulled) -> bytes:
    """Render the job taken; null when there was none."""
    return taken_text(reply.jobs[0], prefix) if reply.jobs else NULL


def moved(prefix: str, job: Job, following: Pulled | None = None) -> bytes:
    """Render what became of a job, and the job that comes next."""
    taken = NULL if following is None else pulled(prefix, following)
    return b'{"state":"%b","next":%b}' % (state_name(job).encode(), taken)


def finished(prefix: str, reply: Finished) -> bytes:
    return moved(prefix, reply.job, reply.next)


def ok(reply: Any) -> bytes:
    return OK


def counted(reply: Counted) -> bytes:
    return b'{"count":%d}' % reply.count


def renewed(reply: Changed) -> bytes:
    return b'{"lockUntil":%d}' % reply.job.lock_until


def own_ids(queue: str, job_ids: list[str]) -> list[str]:
    """Return ids as the queue knows them."""
    scope = scoped_id(queue, "")
    return [job_id.removeprefix(scope) for job_id in job_ids]


def cleaned(queue: str, reply: Cleaned) -> bytes:
    return ENCODE({"count": len(reply.job_ids), "ids": own_ids(queue, reply.job_ids)})


def stalled(queue: str, reply: Checked) -> bytes:
    return ENCODE({"stalled": own_ids(queue, reply.waiting), "failed": own_ids(queue, reply.failed)})

"""What the bunqueue dialect answers: the job object with all its keys, dead letter entries, and the small replies.

Data and results are spliced in as the bytes they came as. A job is rendered many thousand times a second, so its text is
put together from pieces: those that depend only on its options are made once per options object, and those that most
jobs have in common are constants. The declared types of the replies are in replies.py.
"""

from __future__ import annotations

from typing import Any

import msgspec

from node.operations.jobs import AckedBatch, Counted, Progress, Pulled, Pushed
from node.operations.queues import Cleaned, Counts, DlqPage
from node.refusals import Refusal
from node.state.job import (
    ACTIVE,
    COMPLETED,
    EXPLICIT_FAIL,
    MAX_ATTEMPTS,
    STALLED,
    TIMEOUT,
    UNKNOWN,
    WAITING,
    Backoff,
    Job,
    LogLine,
    Moment,
    Options,
    Repeat,
    Run,
)
from node.state.queue import QueueSettings

ENCODE = msgspec.json.Encoder().encode

OK = b'{"ok":true}'
NO_JOB = b'{"ok":true,"job":null}'

# Kept by the identity of the options object, which the state shares between jobs.
_options: dict[int, tuple[Options, bytes]] = {}
_OPTIONS_MAX = 4096

# The keys that the documented server has and this one never fills.
CONSTANT = (
    b',"childrenIds":[],"childrenCompleted":0,"parentId":null,"stallTimeout":null,'
    b'"stackTraceLimit":10,"keepLogs":null,"sizeLimit":null,"failParentOnFailure":false,'
    b'"removeDependencyOnFailure":false,"continueParentOnFailure":false,"ignoreDependencyOnFailure":false,'
    b'"deduplicationTtl":null,"deduplicationExtend":false,"deduplicationReplace":false,"debounceId":null,'
    b'"debounceTtl":null'
)
NOTHING_OWN = (
    b',"uniqueKey":null,"customId":null,"groupId":null,"dependsOn":[],"progress":0,"progressMessage":null,'
    b'"stacktrace":null' + CONSTANT
)


def number(value: float | None) -> bytes:
    """Write a number, whole ones without a fraction."""
    if value is None:
        return b"null"
    whole = int(value)
    return b"%d" % whole if whole == value else ENCODE(value)


def options_text(opts: Options) -> bytes:
    """Render the keys that come from the options."""
    found = _options.get(id(opts))
    if found is not None and found[0] is opts:
        return found[1]
    if len(_options) >= _OPTIONS_MAX:
        _options.clear()
    backoff = opts.backoff
    if isinstance(backoff, Backoff):
        config = ENCODE({"type": backoff.type, "delay": msgspec.Raw(number(backoff.delay))})
        base = backoff.delay
    else:
        config, base = b"null", backoff
    text = (
        b',"name":%b,"priority":%d,"maxAttempts":%d,"backoff":%b,"backoffConfig":%b,"ttl":%b,"timeout":%b,"lifo":%b,'
        b'"removeOnComplete":%b,"removeOnFail":%b,"durable":%b,"tags":%b,"repeat":%b'
        % (
            ENCODE(opts.name),
            opts.priority,
            opts.max_attempts,
            number(base),
            config,
            number(opts.ttl_ms),
            number(opts.timeout_ms),
            ENCODE(opts.lifo),
            ENCODE(opts.remove_on_complete),
            ENCODE(opts.remove_on_fail),
            ENCODE(opts.durable),
            ENCODE(opts.tags),
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
    return ENCODE(shown)


def timeline_text(job: Job) -> bytes:
    """Render the states that a job went through."""
    if job.past is None and job.state == ACTIVE:
        return b'[{"state":"%b","timestamp":%d},{"state":"active","timestamp":%d}]' % (
            (job.first_state or WAITING).encode(),
            job.created_at,
            job.started_at or 0,
        )
    return ENCODE([moment_shown(moment) for moment in job.timeline])


def moment_shown(moment: Moment) -> dict[str, Any]:
    shown: dict[str, Any] = {"state": moment.state, "timestamp": moment.at}
    if moment.error is not None:
        shown["error"] = moment.error
    if moment.attempt is not None:
        shown["attempt"] = moment.attempt
    return shown


def own_text(job: Job) -> bytes:
    """Render the keys that few jobs fill."""
    progress = 100 if job.state == COMPLETED else job.progress
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
        b',"uniqueKey":%b,"customId":%b,"groupId":%b,"dependsOn":%b,"progress":%b,"progressMessage":%b,"stacktrace":%b%b'
        % (
            ENCODE(job.unique_key),
            ENCODE(job.id) if job.custom else b"null",
            ENCODE(job.group_id),
            ENCODE(job.depends_on),
            number(progress),
            ENCODE(job.progress_message),
            ENCODE(job.stacks or None),
            CONSTANT,
        )
    )


def job_text(job: Job, more: bytes = b"") -> bytes:
    """Render the job object. more: further members, each with the comma before it."""
    started, finished, beat = job.started_at, job.finished_at, job.last_heartbeat
    if job.fence:
        more = b',"fencingToken":%d%b' % (job.fence, more)
    if job.lock_until:
        more = b',"owner":%b,"lockExpiresAt":%d%b' % (ENCODE(job.owner), job.lock_until, more)
    return (
        b'{"id":%b,"queue":%b,"data":%b,"createdAt":%d,"runAt":%d,"startedAt":%b,"completedAt":%b,"attempts":%d,'
        b'"stallCount":%d,"lastHeartbeat":%b,"timeline":%b%b%b%b}'
        % (
            # Escaped both: the BullMQ dialect lets clients call a queue nearly anything.
            ENCODE(job.id),
            ENCODE(job.queue),
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
        more += b',"failedReason":%b' % ENCODE(job.error)
    return job_text(job, more)


def taken_text(job: Job) -> bytes:
    """Render the job object for the worker that has just taken it: only it may see the lock's token."""
    if job.lock_until and job.token is not None:
        return job_text(job, b',"token":%b' % ENCODE(job.token))
    return job_text(job)


# -- Views: what a reply becomes, at the moment it is the truth --------------------------------------------------------


def ok(reply: Any) -> bytes:
    return OK


def pushed(reply: Pushed) -> bytes:
    return b'{"ok":true,"id":%b}' % ENCODE(reply.ids[0])


def pushed_many(reply: Pushed) -> bytes:
    return b'{"ok":true,"ids":%b}' % ENCODE(reply.ids)


def pulled_one(reply: Pulled) -> bytes:
    return b'{"ok":true,"job":%b}' % taken_text(reply.jobs[0]) if reply.jobs else NO_JOB


def pulled_many(reply: Pulled) -> bytes:
    jobs = b",".join(map(taken_text, reply.jobs))
    if reply.tokens is None:
        return b'{"ok":true,"jobs":[%b]}' % jobs
    return b'{"ok":true,"jobs":[%b],"tokens":%b}' % (jobs, ENCODE(reply.tokens))


def acked_many(reply: AckedBatch) -> bytes | Refusal:
    """The jobs that could be completed are; the first that could not is the answer."""
    return reply.refused[0] if reply.refused else OK


def counted(reply: Counted) -> bytes:
    return b'{"ok":true,"count":%d}' % reply.count


def cleaned(reply: Cleaned) -> bytes:
    return b'{"ok":true,"count":%d,"ids":%b}' % (len(reply.job_ids), ENCODE(reply.job_ids))


def beat(reply: Any) -> bytes:
    return b'{"ok":true,"data":{"ok":true}}'


def beats(reply: Counted) -> bytes:
    return b'{"ok":true,"data":{"ok":true,"count":%d}}' % reply.count


def one_job(job: Job) -> bytes:
    return b'{"ok":true,"job":%b}' % full_text(job)


def jobs(reply: list[Job]) -> bytes:
    return b'{"ok":true,"jobs":[%b]}' % b",".join(map(full_text, reply))


def state_of(job_id: str, state: str) -> bytes:
    # A job that waits with a priority is `waiting` to the document.
    shown = WAITING if state == "prioritized" else state
    return b'{"ok":true,"id":%b,"state":"%b"}' % (ENCODE(job_id), shown.encode())


def result_of(job_id: str, result: bytes | None) -> bytes:
    if result is None:
        return b'{"ok":true,"id":%b}' % ENCODE(job_id)
    return b'{"ok":true,"id":%b,"result":%b}' % (ENCODE(job_id), result)


def progress_of(reply: Progress) -> bytes:
    return b'{"ok":true,"progress":%b,"message":%b}' % (number(reply.progress), ENCODE(reply.message))


def children(values: dict[str, bytes | None]) -> bytes:
    """Render the results both ways: the document's `values` and the server's `data.values`."""
    shown = b",".join(
        b"%b:%b" % (ENCODE(job_id), b"null" if result is None else result) for job_id, result in values.items()
    )
    return b'{"ok":true,"values":{%b},"data":{"values":{%b}}}' % (shown, shown)


def log_added(reply: Counted) -> bytes:
    return b'{"ok":true,"data":{"added":true}}'


def logs(reply: list[LogLine]) -> bytes:
    lines = [{"timestamp": line.at, "level": line.level, "message": line.message} for line in reply]
    return b'{"ok":true,"data":{"logs":%b,"count":%d}}' % (ENCODE(lines), len(lines))


def finished(job: Job | None) -> bytes:
    """None: the wait ended before the job did."""
    if job is None or job.state != COMPLETED:
        return b'{"ok":true,"completed":false}'
    if job.result is None:
        return b'{"ok":true,"completed":true}'
    return b'{"ok":true,"completed":true,"result":%b}' % job.result


def queues(names: list[str]) -> bytes:
    return b'{"ok":true,"queues":%b}' % ENCODE(names)


def counts(reply: Counts) -> bytes:
    """Render the counts: jobs that wait with a priority are waiting, and those of a paused queue are paused as well."""
    return (
        b'{"ok":true,"counts":{"waiting":%d,"prioritized":0,"delayed":%d,"active":%d,"completed":%d,"failed":%d,'
        b'"waiting-children":%d,"paused":%d}}'
        % (
            reply.waiting,
            reply.delayed,
            reply.active,
            reply.completed,
            reply.failed,
            reply.waiting_children,
            reply.waiting if reply.paused else 0,
        )
    )


def unfinished_count(reply: Counts) -> bytes:
    """Render how many jobs are neither completed nor dead, as the document's example adds up."""
    return b'{"ok":true,"count":%d}' % (reply.waiting + reply.delayed + reply.active + reply.waiting_children)


def priority_counts(queue: str, reply: dict[int, int]) -> bytes:
    return b'{"ok":true,"queue":%b,"counts":%b}' % (ENCODE(queue), ENCODE(reply))


def paused(reply: bool) -> bytes:
    return b'{"ok":true,"paused":true}' if reply else b'{"ok":true,"paused":false}'


def dlq(reply: DlqPage) -> bytes:
    """Render the dead letters both ways: the document's `jobs` and the server's `entries`."""
    texts = [full_text(job) for job in reply.jobs]
    entries = [dlq_entry(job, text, reply.max_age_ms) for job, text in zip(reply.jobs, texts, strict=True)]
    return b'{"ok":true,"jobs":[%b],"entries":[%b],"total":%d}' % (b",".join(texts), b",".join(entries), reply.total)


def dlq_entry(job: Job, text: bytes, max_age_ms: int | None) -> bytes:
    failures = job.failures
    entered = job.finished_at or 0
    runs = failures.runs if failures else []
    if failures is not None and failures.reason == UNKNOWN:
        # As the documented server does: that a job was discarded is the last of its attempts.
        runs = [*runs, Run(job.attempts, job.started_at or entered, entered, UNKNOWN, None)]
    return (
        b'{"job":%b,"enteredAt":%d,"reason":%b,"error":%b,"attempts":%b,"retryCount":%d,"lastRetryAt":%b,'
        b'"nextRetryAt":%b,"expiresAt":%b}'
        % (
            text,
            entered,
            ENCODE((failures.reason if failures else None) or "unknown"),
            ENCODE(job.error),
            ENCODE([run_shown(run) for run in runs]),
            failures.retries if failures else 0,
            ENCODE(failures.last_retry_at if failures else None),
            ENCODE(failures.next_retry_at if failures else None),
            ENCODE(None if max_age_ms is None else entered + max_age_ms),
        )
    )


def run_shown(run: Run) -> dict[str, Any]:
    return {
        "attempt": run.attempt,
        "startedAt": run.started_at,
        "failedAt": run.failed_at,
        "reason": run.reason,
        "error": run.error,
        "duration": 0 if run.started_at is None else run.failed_at - run.started_at,
    }


# In the documented order; those that nothing here causes stay at zero.
REASONS = (EXPLICIT_FAIL, MAX_ATTEMPTS, TIMEOUT, STALLED, "ttl_expired", "worker_lost", UNKNOWN)


def dlq_stats(queue: str, reply: DlqPage) -> bytes:
    """Render the sums over a whole dead letter queue."""
    by_reason = dict.fromkeys(REASONS, 0)
    retrying = 0
    for job in reply.jobs:
        failures = job.failures
        reason = (failures.reason if failures else None) or UNKNOWN
        by_reason[reason] = by_reason.get(reason, 0) + 1
        retrying += failures is not None and failures.next_retry_at is not None
    shown = {
        "total": reply.total,
        "byReason": by_reason,
        "byQueue": {queue: reply.total},
        "pendingRetry": retrying,
        # What is too old is removed on time, so none waits for it.
        "expired": 0,
        "oldestEntry": reply.jobs[0].finished_at if reply.jobs else None,
        "newestEntry": reply.jobs[-1].finished_at if reply.jobs else None,
    }
    return b'{"ok":true,"stats":%b}' % ENCODE(shown)


def stall_config(reply: QueueSettings) -> bytes:
    stall = reply.stall
    return b'{"ok":true,"config":{"enabled":%b,"stallInterval":%d,"maxStalls":%d,"gracePeriod":%d}}' % (
        ENCODE(stall.enabled),
        stall.interval_ms,
        stall.max_stalls,
        stall.grace_ms,
    )


def dlq_config(reply: QueueSettings) -> bytes:
    dlq = reply.dlq
    return (
        b'{"ok":true,"config":{"autoRetry":%b,"autoRetryInterval":%d,"maxAutoRetries":%d,"maxAge":%b,"maxEntries":%d}}'
        % (
            ENCODE(dlq.auto_retry),
            dlq.auto_retry_interval_ms,
            dlq.max_auto_retries,
            number(dlq.max_age_ms),
            dlq.max_entries,
        )
    )

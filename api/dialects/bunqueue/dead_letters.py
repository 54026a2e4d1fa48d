"""Dead letter queues: which jobs are meant, how they are shown, and the rows."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Raw, Struct

from quorumq.api.errors import Invalid
from quorumq.api.reply import Reply
from quorumq.api.request import CONSISTENCY, Call, Command, Parameter, Route
from quorumq.api.rows import ask, grouped, plain, success, write
from quorumq.api.rules import apply, says
from quorumq.api.values import COUNT_MAX, KEY_CHARS_MAX, Number, as_text, fields_of, members
from quorumq.node.machine.bounds import QUEUE_NAME_CHARS_MAX
from quorumq.node.machine.operations.dlq import DlqPage, ListDlq, PurgeDlq, RetryDlq
from quorumq.node.machine.operations.dlq_filter import DlqFilter, reason_of
from quorumq.node.machine.state.job import EXPLICIT_FAIL, MAX_ATTEMPTS, STALLED, TIMEOUT, UNKNOWN, Job, Run

from . import job_object, queues, replies
from .values import flag, integer, of_queue, page, queue_of, read, read_unchecked, word

LISTED = 100
# In the documented order; those that nothing here causes stay at zero.
REASONS = (EXPLICIT_FAIL, MAX_ATTEMPTS, TIMEOUT, STALLED, "ttl_expired", "worker_lost", UNKNOWN)


def as_reason(name: str, value: Any) -> str | None:
    """Read a reason; an empty one is no condition. Raises Invalid."""
    if not isinstance(value, str):
        raise Invalid(f"{name} must be a string")
    return value[: KEY_CHARS_MAX + 1] or None


class DlqFilterBody(Struct, gc=False, rename="camel"):
    """Which dead jobs, by why and when they came there. A condition that is not known is refused."""

    CHECKED: ClassVar = ("reason", "offset")

    reason: Annotated[
        str | None, says("Why they are there, as in `entries`.", reads=as_reason, bound=KEY_CHARS_MAX)
    ] = None
    older_than: Annotated[Number | None, integer("There until then; milliseconds since the epoch.", 0, COUNT_MAX)] = (
        None
    )
    newer_than: Annotated[Number | None, integer("There since then; milliseconds since the epoch.", 0, COUNT_MAX)] = (
        None
    )
    retriable: Annotated[bool | None, flag("Those whose automatic retry is due at this moment.")] = None
    expired: Annotated[bool | None, flag("Those older than `maxAge`, which go at this moment.")] = None
    limit: Annotated[Number | None, integer("Jobs, at most, the oldest first; 0 for all.", 0, COUNT_MAX)] = None
    offset: Annotated[
        Number | None, integer("Jobs that meet the conditions and are passed over.", 0, COUNT_MAX, in_schema=False)
    ] = None
    queue: Annotated[str | None, word("The queue itself, or nothing.", QUEUE_NAME_CHARS_MAX)] = None


class RetryDlqBody(Struct, gc=False, rename="camel"):
    """Which dead jobs."""

    job_id: Annotated[str | None, word("Id of a job; left out, all.")] = None
    count: Annotated[
        Number | None, integer("Jobs, at most, the oldest first; left out, all.", 0, COUNT_MAX, in_schema=False)
    ] = None
    filter: Annotated[
        DlqFilterBody | None, says("Only jobs that meet all these conditions; `jobId` counts for nothing then.")
    ] = None


RETRY_DLQ = msgspec.json.Decoder(RetryDlqBody)
FILTER = msgspec.json.Decoder(DlqFilterBody)


def list_dlq(call: Call) -> ListDlq:
    queue = queue_of(call)
    limit, offset = page(call, "count", "limit")
    if (text := call.query.get("filter")) is None:
        return ListDlq(queue, LISTED if limit is None else queues.at_most(limit), offset)
    chosen, most = dlq_filter(queue, read_unchecked(FILTER, text.encode()), Raw(text.encode()))
    return ListDlq(queue, queues.at_most(fewer(limit, most)), offset, chosen)


def whole_dlq(call: Call) -> ListDlq:
    return ListDlq(queue_of(call), None)


def retry_dlq(call: Call) -> RetryDlq:
    queue = queue_of(call)
    body = read(RETRY_DLQ, call.body)
    if body.filter is None:
        return RetryDlq(queue, body.job_id, body.count)
    chosen, most = dlq_filter(queue, body.filter, members(call.body)["filter"])
    return RetryDlq(queue, None, fewer(body.count, most), filter=chosen)


def fewer(one: int | None, other: int | None) -> int | None:
    """Return the smaller of two bounds; None is no bound."""
    return other if one is None else one if other is None else min(one, other)


CONDITIONS = frozenset(spelled for spelled, _ in fields_of(DlqFilterBody))


def dlq_filter(queue: str, body: Any, raw: Raw) -> tuple[DlqFilter, int | None]:
    """Check the conditions of a filter; return them, and how many jobs it wants at most. Raises Invalid.

    As the documented server has it, an empty text and a 0 are no condition; whatever else is not known is refused, so that no
    more jobs are meant than were.
    """
    if isinstance(body, dict):
        # What did not fit the types was decoded generically.
        named = dict(fields_of(DlqFilterBody))
        body = DlqFilterBody(**{named[name]: value for name, value in body.items() if name in named})
    if not isinstance(body, DlqFilterBody):
        raise Invalid("filter must be an object")
    unknown = set(members(bytes(raw))) - CONDITIONS
    if unknown:
        raise Invalid(f"filter has no condition {min(unknown)}")
    if body.queue and as_text(body.queue) != queue:
        raise Invalid("filter.queue must be the queue itself")
    checked: Any = apply(body, "filter.")
    chosen = DlqFilter(
        checked.reason,
        checked.older_than or None,
        checked.newer_than or None,
        checked.retriable or False,
        checked.expired or False,
        checked.offset or 0,
    )
    return chosen, checked.limit or None


class RunShown(Struct, forbid_unknown_fields=True, rename="camel"):
    attempt: int
    started_at: replies.Millis | None
    failed_at: replies.Millis
    reason: str
    error: str | None
    duration: int


class DlqEntry(Struct, forbid_unknown_fields=True, rename="camel"):
    job: job_object.JobShown
    entered_at: replies.Millis
    reason: str
    error: str | None
    attempts: list[RunShown]
    retry_count: int
    last_retry_at: replies.Millis | None
    next_retry_at: replies.Millis | None
    expires_at: replies.Millis | None


class Dlq(replies.Success):
    jobs: list[job_object.JobShown]
    entries: list[DlqEntry]
    total: int


class DlqSums(Struct, forbid_unknown_fields=True, rename="camel"):
    total: int
    by_reason: dict[str, int]
    by_queue: dict[str, int]
    pending_retry: int
    expired: int
    oldest_entry: replies.Millis | None
    newest_entry: replies.Millis | None


class DlqStats(replies.Success):
    stats: DlqSums


def dlq(reply: DlqPage) -> bytes:
    """Render the dead letters both ways: the document's `jobs` and the server's `entries`."""
    texts = [job_object.full_text(job) for job in reply.jobs]
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
            replies.ENCODE(reason_of(job)),
            replies.ENCODE(job.error),
            replies.ENCODE([run_shown(run) for run in runs]),
            failures.retries if failures else 0,
            replies.ENCODE(failures.last_retry_at if failures else None),
            replies.ENCODE(failures.next_retry_at if failures else None),
            replies.ENCODE(None if max_age_ms is None else entered + max_age_ms),
        )
    )


def run_shown(run: Run) -> RunShown:
    lasted = 0 if run.started_at is None else run.failed_at - run.started_at
    return RunShown(run.attempt, run.started_at, run.failed_at, run.reason, run.error, lasted)


def sums(queue: str, reply: DlqPage) -> bytes:
    """Render the sums over a whole dead letter queue."""
    by_reason = dict.fromkeys(REASONS, 0)
    retrying = 0
    for job in reply.jobs:
        failures = job.failures
        reason = reason_of(job)
        by_reason[reason] = by_reason.get(reason, 0) + 1
        retrying += failures is not None and failures.next_retry_at is not None
    shown = DlqSums(
        total=reply.total,
        by_reason=by_reason,
        by_queue={queue: reply.total},
        pending_retry=retrying,
        # What is too old is removed on time, so none waits for it.
        expired=0,
        oldest_entry=reply.jobs[0].finished_at if reply.jobs else None,
        newest_entry=reply.jobs[-1].finished_at if reply.jobs else None,
    )
    return replies.ENCODE(DlqStats(True, shown))


COUNT_ASKED = Parameter("count", "Jobs, at most.", {**queues.COUNT, "default": LISTED})
DLQ_LIMIT = Parameter("limit", "The same as count.", queues.COUNT)
FILTER_ASKED = Parameter(
    "filter",
    "Only jobs that meet these conditions, of which `total` then says how many there are: an object as JSON, with the keys that "
    "`filter` of `POST …/dlq/retry` has. Without `count` all of them, up to ten thousand.",
    {"type": "string"},
)


async def dlq_stats(call: Call) -> Reply:
    query = whole_dlq(call)
    return success(await call.node.ask(query, partial(sums, query.queue), stale=call.stale))


ROUTES: tuple[Route, ...] = grouped(
    "Dead letter queue",
    ask("GET", "/queues/{queue}/dlq", ListDlq, list_dlq, dlq,
        asks=(COUNT_ASKED, DLQ_LIMIT, queues.OFFSET, FILTER_ASKED), reply=Dlq, command="Dlq"),
    plain("GET", "/queues/{queue}/dlq/stats", dlq_stats, what=ListDlq, asks=(CONSISTENCY,), reply=DlqStats,
          right="read", about="Jobs of a dead letter queue by reason.",
          command=Command("GetDlqStats", reply=replies.in_data)),
    write("POST", "/queues/{queue}/dlq/retry", RetryDlq, retry_dlq, replies.counted,
          takes=RetryDlqBody, reply=replies.Count, right="manage:all", command="RetryDlq"),
    write("POST", "/queues/{queue}/dlq/purge", PurgeDlq, of_queue(PurgeDlq), replies.counted,
          reply=replies.Count, right="manage:all", command="PurgeDlq"),
)  # fmt: skip

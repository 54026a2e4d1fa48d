"""What the Open Archiver dialect answers: counts of the six documented states, and jobs with its keys in its order.

Data and results are the bytes they came as; a page is not copied into one text, because its jobs may be large.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from quorumq.api import surrogates
from quorumq.node.machine.operations.queue_reads import Counts
from quorumq.node.machine.state import own_id
from quorumq.node.machine.state.job import COMPLETED, FAILED, Job

Json = Any
ENCODE = msgspec.json.Encoder().encode
SOURCE = b"ingestionSourceId"


class ArchiverCounts(Struct, forbid_unknown_fields=True):
    """Jobs of a queue in each of the documented states. waiting: all that wait, also with a priority; paused: the same while
    the queue is paused."""

    active: int
    completed: int
    failed: int
    delayed: int
    waiting: int
    paused: int


class ArchiverQueue(Struct, forbid_unknown_fields=True):
    name: str
    counts: ArchiverCounts


class ArchiverQueues(Struct, forbid_unknown_fields=True):
    queues: list[ArchiverQueue]


class ArchiverJob(Struct, forbid_unknown_fields=True, rename="camel"):
    """A job. failedReason: of the last run that failed; error: the same, of jobs in state failed only."""

    id: str
    name: str
    data: Json
    state: str
    timestamp: int
    attempts_made: int
    stacktrace: list[str]
    return_value: Json
    failed_reason: str | UnsetType = UNSET
    processed_on: int | UnsetType = UNSET
    finished_on: int | UnsetType = UNSET
    ingestion_source_id: Json = UNSET
    error: str | UnsetType = UNSET


class ArchiverPagination(Struct, forbid_unknown_fields=True, rename="camel"):
    current_page: int
    total_pages: int
    total_jobs: int
    limit: int


class ArchiverPage(Struct, forbid_unknown_fields=True):
    """A queue with one page of its jobs in one state. counts: of all states, whatever is asked for."""

    name: str
    counts: ArchiverCounts
    jobs: list[ArchiverJob]
    pagination: ArchiverPagination


class ArchiverFailure(Struct, forbid_unknown_fields=True):
    """Every error."""

    message: str
    status: Literal[429] | UnsetType = UNSET


class _Source(Struct):
    ingestion_source_id: Raw | UnsetType = msgspec.field(name="ingestionSourceId", default=UNSET)


_SOURCE = msgspec.json.Decoder(_Source)


def shown_counts(counts: Counts) -> ArchiverCounts:
    """Show counts; a job that waits is in one of two of them, so that none is in no count because of its priority."""
    waiting = 0 if counts.paused else counts.waiting
    paused = counts.waiting if counts.paused else 0
    return ArchiverCounts(counts.active, counts.completed, counts.failed, counts.delayed, waiting, paused)


def overview(queues: Iterable[tuple[str, Counts]]) -> bytes:
    return ENCODE(ArchiverQueues([ArchiverQueue(name, shown_counts(counts)) for name, counts in queues]))


def page(
    name: str, counts: ArchiverCounts, jobs: Iterable[Job], status: str, pagination: ArchiverPagination
) -> Iterator[bytes]:
    """Render a queue with a page of its jobs, in pieces. status: what was asked for, which is the state that is shown."""
    yield b'{"name":%b,"counts":%b,"jobs":[' % (ENCODE(name), ENCODE(counts))
    first = True
    for job in jobs:
        if not first:
            yield b","
        first = False
        yield from job_pieces(job, status)
    yield b'],"pagination":%b}' % ENCODE(pagination)


def job_pieces(job: Job, state: str) -> Iterator[bytes]:
    """Render a job; what it does not have is left out, not null."""
    reason = job.failed_reason
    yield b'{"id":%b,"name":%b,"data":' % (ENCODE(own_id(job)), ENCODE(job.opts.name))
    yield job.data
    parts = [b',"state":"%b"' % state.encode()]
    if reason is not None:
        parts.append(b',"failedReason":%b' % ENCODE(reason))
    parts.append(b',"timestamp":%d' % job.created_at)
    if job.processed_at is not None:
        parts.append(b',"processedOn":%d' % job.processed_at)
    if job.finished_at is not None:
        parts.append(b',"finishedOn":%d' % job.finished_at)
    parts.append(b',"attemptsMade":%d,"stacktrace":%b' % (job.attempts + (job.state == COMPLETED), stacktrace(job)))
    yield b"".join([*parts, b',"returnValue":'])
    yield job.result if job.state == COMPLETED and job.result is not None else b"null"
    source = source_of(job.data)
    if source is not None:
        yield b',"ingestionSourceId":%b' % source
    if job.state == FAILED and reason is not None:
        yield b',"error":%b' % ENCODE(reason)
    yield b"}"


def stacktrace(job: Job) -> bytes:
    """Render what each failed run died of, oldest first."""
    if job.failures is None:
        return b"[]"
    return ENCODE([run.stack or run.error or run.reason for run in job.failures.runs])


def source_of(data: bytes) -> bytes | None:
    """Return the JSON text of `ingestionSourceId` in a job's data, or None.

    Data without the word is not looked at any further, and of the rest only this one field is read. Half a surrogate pair,
    which data may hold, is no hindrance; what cannot be read at all has no such field.
    """
    if SOURCE not in data or not data.lstrip().startswith(b"{"):
        return None
    try:
        found = _SOURCE.decode(data)
    except (msgspec.DecodeError, RecursionError):
        try:
            covered = surrogates.cover(data)
        except surrogates.TooManyHalves:
            # Stored before there was a bound.
            return None
        if covered is None:
            return None
        try:
            found = _SOURCE.decode(covered[0])
        except (msgspec.DecodeError, RecursionError):
            return None
        surrogates.uncover(found)
    source = found.ingestion_source_id
    return None if isinstance(source, UnsetType) else bytes(source)

"""What clients of the bunqueue dialect send about queues, and the rules for it: limits, settings, what to clean or retry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Raw, Struct

from api.http import Call, Invalid
from api.values import BATCH_MAX, COUNT_MAX, DAY_MS, YEAR_MS, Number, as_text, says, whole
from node.operations.queues import (
    CleanQueue,
    ListDlq,
    ListJobs,
    PromoteJobs,
    RetryCompleted,
    RetryDlq,
    SetConcurrency,
    SetDlqConfig,
    SetRateLimit,
    SetStallConfig,
)

from .values import check_number, check_queue, page, query_number, read

DLQ_COUNT = 100
# Jobs of one answer: some ten megabytes, written while the node does nothing else.
LISTED_MAX = 10_000
CLEAN_LIMIT = 1_000
LIMIT_MAX = 1_000_000_000
STALLS_MAX = 1_000_000
ENTRIES_MAX = 1_000_000

F = TypeVar("F", bound=Struct)
T = TypeVar("T")


class CleanBody(Struct, gc=False):
    """Which jobs to remove."""

    grace: Annotated[
        Number | None, says("Milliseconds; only jobs at least this old.", default=0, low=0, high=COUNT_MAX)
    ] = None
    state: Annotated[str | None, says("waiting, delayed, completed or failed; left out, both waiting and delayed.")] = (
        None
    )
    limit: Annotated[
        Number | None,
        says(f"Jobs to remove, at most; more than {BATCH_MAX:,} count as that.", default=CLEAN_LIMIT, low=0),
    ] = None


class PromoteBody(Struct, gc=False):
    """How many delayed jobs."""

    count: Annotated[Number | None, says("Jobs, at most; left out, all.", low=0)] = None


class RetryCompletedBody(Struct, gc=False):
    """Which completed jobs."""

    id: Annotated[str | None, says("Id of a job; left out, all.")] = None
    count: Annotated[Number | None, says("Jobs, at most, the first to have ended first; left out, all.", low=0)] = None
    timestamp: Annotated[
        Number | None, says("Only jobs that ended until then; milliseconds since the epoch.", low=0, high=COUNT_MAX)
    ] = None


class RetryDlqBody(Struct, gc=False, rename="camel"):
    """Which dead jobs."""

    job_id: Annotated[str | None, says("Id of a job; left out, all.")] = None
    count: Annotated[Number | None, says("Jobs, at most, the oldest first; left out, all.", low=0)] = None
    filter: Annotated[Raw | None, says("Not served: 400, so that no more is retried than was meant.")] = None


class RateLimitBody(Struct, gc=False):
    """How many jobs may start."""

    limit: Annotated[
        Number | str | None, says("Jobs in each window; 0 lets none start.", required=True, low=0, high=LIMIT_MAX)
    ] = None
    duration: Annotated[
        Number | None, says("Length of a window in milliseconds.", default=1000, low=1, high=DAY_MS)
    ] = None
    ttl: Annotated[
        Number | None, says("Milliseconds after which the limit is over; left out, never.", low=1, high=YEAR_MS)
    ] = None


class ConcurrencyBody(Struct, gc=False):
    """How many jobs may be active at once."""

    limit: Annotated[Number | str | None, says("Jobs; 0 lets none start.", required=True, low=0, high=LIMIT_MAX)] = None
    concurrency: Annotated[Number | str | None, says("The same as limit.", low=0, high=LIMIT_MAX)] = None


class StallFields(Struct, gc=False, rename="camel"):
    """Stall detection of a queue; what is left out stays as it is."""

    enabled: Annotated[bool | None, says("Whether stalled jobs are looked for.")] = None
    stall_interval: Annotated[
        Number | None, says("Milliseconds without a heartbeat after which a job is stalled.", low=1, high=YEAR_MS)
    ] = None
    max_stalls: Annotated[
        Number | None, says("Stalls after which a job goes to the dead letter queue.", low=0, high=STALLS_MAX)
    ] = None
    grace_period: Annotated[
        Number | None, says("Milliseconds after the start of a run that never count.", low=0, high=YEAR_MS)
    ] = None


class StallBody(StallFields, gc=False, rename="camel"):
    """Settings in `config`, as documented, or beside it."""

    config: StallFields | None = None


class DlqFields(Struct, gc=False, rename="camel"):
    """Dead letter queue of a queue; what is left out stays as it is."""

    auto_retry: Annotated[bool | None, says("Whether its jobs are tried again by themselves.")] = None
    auto_retry_interval: Annotated[Number | None, says("Milliseconds before such a retry.", low=1, high=YEAR_MS)] = None
    max_auto_retries: Annotated[Number | None, says("Such retries of one job.", low=0, high=STALLS_MAX)] = None
    max_age: Annotated[
        Number | msgspec.UnsetType | None,
        says("Milliseconds after which a job is removed; null keeps jobs for good.", low=1, high=COUNT_MAX),
    ] = msgspec.UNSET
    max_entries: Annotated[
        Number | None, says("Jobs kept; the oldest make room for new ones.", low=0, high=ENTRIES_MAX)
    ] = None


class DlqBody(DlqFields, gc=False, rename="camel"):
    """Settings in `config`, as documented, or beside it."""

    config: DlqFields | None = None


CLEAN = msgspec.json.Decoder(CleanBody)
PROMOTE = msgspec.json.Decoder(PromoteBody)
RETRY_COMPLETED = msgspec.json.Decoder(RetryCompletedBody)
RETRY_DLQ = msgspec.json.Decoder(RetryDlqBody)
RATE_LIMIT = msgspec.json.Decoder(RateLimitBody)
CONCURRENCY = msgspec.json.Decoder(ConcurrencyBody)
STALL = msgspec.json.Decoder(StallBody)
DLQ = msgspec.json.Decoder(DlqBody)


def queue_of(call: Call) -> str:
    """Return the queue that the path names. Raises Invalid."""
    return check_queue(call.path["queue"])


def of_queue(what: Callable[[str], T]) -> Callable[[Call], T]:
    """Decode a request that says nothing but which queue."""
    return lambda call: what(check_queue(call.path["queue"]))


# -- Jobs of a queue ---------------------------------------------------------------------------------------------------


def list_jobs(call: Call) -> ListJobs:
    queue = queue_of(call)
    limit, offset = page(call, "limit")
    return ListJobs(queue, call.query.get("state") or None, at_most(limit), offset)


def at_most(limit: int | None) -> int:
    """Return how many jobs an answer may have; None asks for all."""
    return LISTED_MAX if limit is None else min(limit, LISTED_MAX)


def clean(call: Call) -> CleanQueue:
    queue = queue_of(call)
    body = read(CLEAN, call.body)
    grace, limit = body.grace or 0, CLEAN_LIMIT if body.limit is None else body.limit
    check_number("grace", grace, 0, COUNT_MAX)
    check_number("limit", limit, 0, COUNT_MAX, integer=True)
    return CleanQueue(queue, whole(grace), as_text(body.state), min(int(limit), BATCH_MAX))


def promote_jobs(call: Call) -> PromoteJobs:
    queue = queue_of(call)
    body = read(PROMOTE, call.body)
    if body.count is None:
        return PromoteJobs(queue)
    check_number("count", body.count, 0, COUNT_MAX, integer=True)
    return PromoteJobs(queue, int(body.count))


def retry_completed(call: Call) -> RetryCompleted:
    queue = queue_of(call)
    body = read(RETRY_COMPLETED, call.body)
    return RetryCompleted(
        queue,
        as_text(body.id),
        checked_setting("count", body.count, 0, COUNT_MAX),
        checked_setting("timestamp", body.timestamp, 0, COUNT_MAX),
    )


def list_dlq(call: Call) -> ListDlq:
    queue = queue_of(call)
    limit, offset = page(call, "count", "limit")
    return ListDlq(queue, DLQ_COUNT if limit is None else at_most(limit), offset)


def whole_dlq(call: Call) -> ListDlq:
    return ListDlq(queue_of(call), None)


def retry_dlq(call: Call) -> RetryDlq:
    queue = queue_of(call)
    body = read(RETRY_DLQ, call.body)
    if body.filter is not None:
        raise Invalid("filter is not supported")
    return RetryDlq(queue, as_text(body.job_id), checked_setting("count", body.count, 0, COUNT_MAX))


# -- Limits ------------------------------------------------------------------------------------------------------------


def set_rate_limit(call: Call) -> SetRateLimit:
    queue = queue_of(call)
    body = read(RATE_LIMIT, call.body)
    limit = checked_limit(body.limit)
    duration = 1000 if body.duration is None else checked_whole("duration", body.duration, 1, DAY_MS)
    return SetRateLimit(queue, limit, duration, checked_setting("ttl", body.ttl, 1, YEAR_MS))


def set_concurrency(call: Call) -> SetConcurrency:
    queue = queue_of(call)
    body = read(CONCURRENCY, call.body)
    return SetConcurrency(queue, checked_limit(body.concurrency if body.limit is None else body.limit))


def checked_limit(value: Any) -> int:
    """Read a limit; the documented server takes digits in a string too. Raises Invalid."""
    if value is None:
        raise Invalid("limit must be a finite number")
    if isinstance(value, str):
        if not value.strip():
            raise Invalid("limit must be a finite number")
        value = query_number("limit", value, 0, LIMIT_MAX)
    return checked_whole("limit", value, 0, LIMIT_MAX)


def checked_whole(name: str, value: Any, low: int, high: int) -> int:
    """Check a whole number. Raises Invalid."""
    check_number(name, value, low, high, integer=True)
    return int(value)


# -- Settings ----------------------------------------------------------------------------------------------------------


def set_stall_config(call: Call) -> SetStallConfig:
    queue = queue_of(call)
    body = config_of(read(STALL, call.body), StallFields)
    return SetStallConfig(
        queue,
        checked_flag("enabled", body.enabled),
        checked_setting("stallInterval", body.stall_interval, 1, YEAR_MS),
        checked_setting("maxStalls", body.max_stalls, 0, STALLS_MAX),
        checked_setting("gracePeriod", body.grace_period, 0, YEAR_MS),
    )


def set_dlq_config(call: Call) -> SetDlqConfig:
    queue = queue_of(call)
    body = config_of(read(DLQ, call.body), DlqFields)
    max_age_ms = None
    if body.max_age is not msgspec.UNSET:
        # The operation's word for keeping jobs for good is 0.
        max_age_ms = checked_setting("maxAge", body.max_age, 1, COUNT_MAX) or 0
    return SetDlqConfig(
        queue,
        checked_flag("autoRetry", body.auto_retry),
        checked_setting("autoRetryInterval", body.auto_retry_interval, 1, YEAR_MS),
        checked_setting("maxAutoRetries", body.max_auto_retries, 0, STALLS_MAX),
        max_age_ms,
        checked_setting("maxEntries", body.max_entries, 0, ENTRIES_MAX),
    )


def config_of(body: Any, fields: type[F]) -> F:
    """Return the settings of a body: those in `config` if that is there, else those beside it. Raises Invalid."""
    config = body.config
    if config is None:
        config = body
    elif isinstance(config, dict):
        # What did not fit the types was decoded generically.
        names = {field.encode_name: field.name for field in msgspec.structs.fields(fields)}
        return fields(**{names[name]: value for name, value in config.items() if name in names})
    if not isinstance(config, fields):
        raise Invalid("config must be an object")
    return config


def checked_flag(name: str, value: Any) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise Invalid(f"{name} must be a boolean")
    return value


def checked_setting(name: str, value: Any, low: int, high: int) -> int | None:
    """Check a setting; None leaves it as it is. Raises Invalid."""
    return None if value is None else checked_whole(name, value, low, high)

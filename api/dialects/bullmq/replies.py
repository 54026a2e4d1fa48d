"""The declared type of each reply of the BullMQ dialect: what the OpenAPI document shows and the tests hold replies against.

Rendering does not go through these types (see render.py); that the two agree is what the tests are for.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

Millis = int
Number = int | float
State = Literal["waiting", "prioritized", "delayed", "active", "waiting-children", "completed", "failed"]


class BullShown(Struct, forbid_unknown_fields=True, rename="camel"):
    """Base of all replies: nothing that is not declared may appear."""


class AddedJob(BullShown, kw_only=True):
    """A job as the answer of an add shows it: what was sent, under its id."""

    name: str
    data: Annotated[Raw, Meta(description="As it was sent.")]
    opts: Annotated[dict[str, Any], Meta(description="The options as they were sent, with `attempts`.")]
    id: Annotated[
        str,
        Meta(description="Counted per queue, or the `jobId`; for an add that added nothing that of the job there is."),
    ]
    progress: Literal[0]
    returnvalue: None
    stacktrace: None
    delay: Annotated[int | UnsetType, Meta(description="Milliseconds, where it was asked for.")] = UNSET
    priority: int
    attempts_started: Literal[0]
    attempts_made: Literal[0]
    stalled_counter: Literal[0]
    timestamp: Millis
    deduplication_id: str | UnsetType = UNSET
    queue_qualified_name: str


class ParentShown(BullShown):
    """id: in its queue.  queue_key: QUEUE_PREFIX and name of that queue."""

    id: str
    queue_key: str


class JobJson(BullShown, kw_only=True):
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
    timestamp: Annotated[Millis, Meta(description="When it was added.")]
    queue_qualified_name: Annotated[str, Meta(description="QUEUE_PREFIX and name of the queue.")]
    processed_on: Annotated[Millis | UnsetType, Meta(description="When its present or last run began.")] = UNSET
    finished_on: Annotated[Millis | UnsetType, Meta(description="When it completed or failed for good.")] = UNSET
    failed_reason: Annotated[str | UnsetType, Meta(description="The error of its last failed run.")] = UNSET
    deduplication_id: Annotated[str | UnsetType, Meta(description="The id that keeps others away.")] = UNSET
    repeat_job_key: Annotated[str | UnsetType, Meta(description="Key of the repetition that made it.")] = UNSET
    parent: Annotated[ParentShown | UnsetType, Meta(description="The job that waits for it, or waited.")] = UNSET
    parent_key: Annotated[str | UnsetType, Meta(description="The same as one text.")] = UNSET
    token: Annotated[
        str | UnsetType, Meta(description="The token of its lock; shown to the worker that takes it, to nobody else.")
    ] = UNSET


AddedJobs = list[AddedJob]
NextJob = JobJson | None


class JobPage(BullShown):
    """counts: of the statuses asked for.  jobs: start and length hold for each status by itself."""

    counts: dict[str, int]
    jobs: list[JobJson]
    start: int
    length: int


class LogPage(BullShown):
    """count: all lines there are."""

    logs: list[str]
    count: int


class StateShown(BullShown):
    state: State | Literal["unknown"]


class Moved(BullShown):
    """state: what became of the job.  next: the next job, when it was asked for and there is one."""

    state: State
    next: JobJson | None


class PutBack(Moved):
    """ttl: milliseconds for which the queue gives out no jobs because of a rate limit."""

    ttl: int


class Ttl(BullShown):
    """ttl: milliseconds for which the queue gives out no jobs; 0 when nothing holds it back."""

    ttl: int


class Renewed(BullShown):
    """lock_until: when the lock runs out unless it is extended again."""

    lock_until: Millis


class CountShown(BullShown):
    count: int


class IdsShown(BullShown):
    """ids: of the jobs removed, oldest first."""

    count: int
    ids: list[str]


class StalledShown(BullShown):
    """stalled: ids of the jobs that wait again.  failed: of those that had stalled once too often."""

    stalled: list[str]
    failed: list[str]


class QueueCountsShown(Struct, forbid_unknown_fields=True, rename="kebab"):
    """Jobs by status; those of a paused queue that have no priority are paused."""

    waiting: int
    active: int
    completed: int
    failed: int
    delayed: int
    prioritized: int
    paused: int
    waiting_children: int


class RateShown(BullShown):
    """At most so many starts within a time of the first of them."""

    max: int
    duration: int


class QueueShown(BullShown):
    """global_rate_limit: set here or by a push worker's limiter."""

    name: str
    is_paused: bool
    counts: QueueCountsShown
    global_rate_limit: RateShown | None
    global_concurrency: int | None


class QueueNames(BullShown):
    queues: list[str]


class FlowShown(BullShown):
    """A job of a flow with its children."""

    job: JobJson
    children: list[FlowShown] | UnsetType = UNSET


Flow = FlowShown | list[FlowShown]


class DependencyCounts(BullShown):
    """How many children there are of each kind that was asked for."""

    processed: int | UnsetType = UNSET
    unprocessed: int | UnsetType = UNSET
    ignored: int | UnsetType = UNSET
    failed: int | UnsetType = UNSET


class DependenciesShown(BullShown, kw_only=True):
    """Children by key, `bull:queue:id`: results of those that completed, reasons of those whose failure was ignored."""

    counts: DependencyCounts
    processed: dict[str, Any] | UnsetType = UNSET
    unprocessed: list[str] | UnsetType = UNSET
    ignored: dict[str, str] | UnsetType = UNSET
    failed: list[str] | UnsetType = UNSET
    start: int
    length: int


class Awaiting(BullShown):
    """moved: whether the job waits for children now; not when none is pending."""

    moved: bool

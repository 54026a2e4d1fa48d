"""The declared type of each reply of the bunqueue dialect: the document's, and what the tests hold every reply against.

Rendering does not go through these types (see render.py); that the two agree is what the tests are for.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

Millis = int
Number = int | float
JobState = Literal["waiting", "delayed", "active", "completed", "failed", "waiting-children"]


class Body(Struct, forbid_unknown_fields=True, rename="camel"):
    """Base of all replies: nothing that is not declared may appear."""

    ok: Literal[True]


class Failure(Struct, forbid_unknown_fields=True):
    """Every error. code: for programs, where the text alone does not tell what to do."""

    ok: Literal[False]
    error: str
    code: str | UnsetType = UNSET


class Ok(Body):
    pass


class Step(Struct, forbid_unknown_fields=True):
    state: str
    timestamp: Millis
    error: str | UnsetType = UNSET
    attempt: int | UnsetType = UNSET


class BackoffShown(Struct, forbid_unknown_fields=True):
    type: Literal["fixed", "exponential", "linear"]
    delay: Number


class RepeatShown(Struct, forbid_unknown_fields=True):
    count: int
    every: Number | UnsetType = UNSET
    pattern: str | UnsetType = UNSET
    limit: int | UnsetType = UNSET
    tz: str | UnsetType = UNSET


class JobShown(Struct, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """The job object, with every key of the documented server's."""

    id: Annotated[str, Meta(description="Made by the server (a UUID v7), or the `jobId` it was pushed with.")]
    queue: str
    name: str
    data: Annotated[Raw, Meta(description="As it was sent.")]
    created_at: Millis
    run_at: Annotated[Millis, Meta(description="When it may, or might, be taken.")]
    started_at: Annotated[Millis | None, Meta(description="When the present or last run began.")]
    completed_at: Millis | None
    attempts: Annotated[int, Meta(description="Runs that failed.")]
    backoff: Annotated[Number, Meta(description="Base of the delay before a retry, in milliseconds.")]
    backoff_config: Annotated[BackoffShown | None, Meta(description="Type and delay, where they were given.")]
    depends_on: list[str]
    children_ids: list[str]
    children_completed: int
    tags: list[str]
    progress: Annotated[Number, Meta(description="0 to 100, as the worker reported.")]
    progress_message: str | None
    stacktrace: Annotated[list[str] | None, Meta(description="One entry for each failed run whose worker sent one.")]
    repeat: Annotated[RepeatShown | None, Meta(description="How it repeats; `count` is the repeats so far.")]
    durable: Annotated[bool, Meta(description="As it was asked for; every job is durable.")]
    last_heartbeat: Millis | None
    stall_count: Annotated[int, Meta(description="How often its worker fell silent.")]
    priority: int
    lifo: bool
    max_attempts: Annotated[int, Meta(description="Runs allowed.")]
    remove_on_complete: bool
    remove_on_fail: bool
    ttl: Number | None
    timeout: Number | None
    unique_key: Annotated[
        str | None, Meta(description="While it is unfinished, pushes with this key to its queue add nothing.")
    ]
    custom_id: Annotated[str | None, Meta(description="The `jobId` it was pushed with.")]
    parent_id: None
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
    lock_expires_at: Annotated[Millis | UnsetType, Meta(description="When its lock runs out.")] = UNSET
    token: Annotated[
        str | UnsetType, Meta(description="The token of its lock; shown to the worker that takes it, to nobody else.")
    ] = UNSET
    state: Annotated[JobState | UnsetType, Meta(description="Its state; in reads, not when taken.")] = UNSET
    returnvalue: Annotated[Raw | UnsetType, Meta(description="Its result, once it completed with one.")] = UNSET
    failed_reason: Annotated[str | UnsetType, Meta(description="The error of its last failed run.")] = UNSET


class Pushed(Body):
    id: str


class PushedMany(Body):
    ids: list[str]


class OneJob(Body):
    job: JobShown


class PulledJob(Body):
    job: JobShown | None


class PulledJobs(Body):
    jobs: list[JobShown]
    tokens: list[str] | UnsetType = UNSET


class Jobs(Body):
    jobs: list[JobShown]


class StateOf(Body):
    id: str
    state: JobState | Literal["unknown"]


class ResultOf(Body):
    id: str
    result: Raw | UnsetType = UNSET


class ProgressOf(Body):
    progress: Number
    message: str | None


class Values(Struct, forbid_unknown_fields=True):
    values: dict[str, Raw]


class Children(Body):
    values: dict[str, Raw]
    data: Values


class BeatData(Struct, forbid_unknown_fields=True):
    ok: Literal[True]


class Beat(Body):
    data: BeatData


class BeatsData(Struct, forbid_unknown_fields=True):
    ok: Literal[True]
    count: int


class Beats(Body):
    data: BeatsData


class Count(Body):
    count: int


class Cleaned(Body):
    count: int
    ids: list[str]


class AddedData(Struct, forbid_unknown_fields=True):
    added: Literal[True]


class LogAdded(Body):
    data: AddedData


class LogLineShown(Struct, forbid_unknown_fields=True):
    timestamp: Millis
    level: str
    message: str


class LogsData(Struct, forbid_unknown_fields=True):
    logs: list[LogLineShown]
    count: int


class Logs(Body):
    data: LogsData


class StallConfigShown(Struct, forbid_unknown_fields=True, rename="camel"):
    enabled: bool
    stall_interval: int
    max_stalls: int
    grace_period: int


class StallConfigOf(Body):
    config: StallConfigShown


class DlqConfigShown(Struct, forbid_unknown_fields=True, rename="camel"):
    auto_retry: bool
    auto_retry_interval: int
    max_auto_retries: int
    max_age: int | None
    max_entries: int


class DlqConfigOf(Body):
    config: DlqConfigShown


class Finished(Body):
    completed: bool
    result: Raw | UnsetType = UNSET


class Queues(Body):
    queues: list[str]


class CountsOf(Struct, forbid_unknown_fields=True, rename="kebab"):
    waiting: int
    prioritized: int
    delayed: int
    active: int
    completed: int
    failed: int
    waiting_children: int
    paused: int


class Counts(Body):
    counts: CountsOf


class PriorityCountsOf(Body):
    queue: str
    counts: dict[int, int]


class Paused(Body):
    paused: bool


class RunShown(Struct, forbid_unknown_fields=True, rename="camel"):
    attempt: int
    started_at: Millis | None
    failed_at: Millis
    reason: str
    error: str | None
    duration: int


class DlqEntry(Struct, forbid_unknown_fields=True, rename="camel"):
    job: JobShown
    entered_at: Millis
    reason: str
    error: str | None
    attempts: list[RunShown]
    retry_count: int
    last_retry_at: Millis | None
    next_retry_at: Millis | None
    expires_at: Millis | None


class Dlq(Body):
    jobs: list[JobShown]
    entries: list[DlqEntry]
    total: int


class DlqSums(Struct, forbid_unknown_fields=True, rename="camel"):
    total: int
    by_reason: dict[str, int]
    by_queue: dict[str, int]
    pending_retry: int
    expired: int
    oldest_entry: Millis | None
    newest_entry: Millis | None


class DlqStats(Body):
    stats: DlqSums


class CronShown(Struct, forbid_unknown_fields=True, rename="camel"):
    name: str
    job_name: str
    queue: str
    schedule: str | None
    repeat_every: int | None
    next_run: Millis | None
    executions: int
    max_limit: int | None
    timezone: str | None
    priority: int


class OneCron(Body):
    cron: CronShown


class Crons(Body):
    crons: list[CronShown]


class WebhookShown(Struct, forbid_unknown_fields=True, rename="camel"):
    """dropped_count: deliveries never tried because too many waited.  waiting_count: those that wait now."""

    id: str
    url: str
    events: list[str]
    queue: str | None
    created_at: Millis
    last_triggered: Millis | None
    success_count: int
    failure_count: int
    dropped_count: int
    waiting_count: int
    enabled: bool


class WebhookSums(Struct, forbid_unknown_fields=True):
    total: int
    enabled: int


class WebhooksData(Struct, forbid_unknown_fields=True):
    webhooks: list[WebhookShown]
    stats: WebhookSums


class Webhooks(Body):
    data: WebhooksData


class WebhookAddedData(Struct, forbid_unknown_fields=True, rename="camel"):
    webhook_id: str
    url: str
    events: list[str]
    queue: str | None
    created_at: Millis


class WebhookAdded(Body):
    data: WebhookAddedData


class RemovedData(Struct, forbid_unknown_fields=True):
    removed: Literal[True]


class Removed(Body):
    data: RemovedData


class WorkerBase(Struct, forbid_unknown_fields=True, rename="camel", kw_only=True):
    name: str | UnsetType = UNSET
    queues: list[str]
    concurrency: int
    hostname: str
    pid: int
    status: Literal["active", "stale"]
    registered_at: Millis
    last_seen: Millis
    active_jobs: int
    processed_jobs: int
    failed_jobs: int
    current_job: str | None


class WorkerAddedData(WorkerBase, forbid_unknown_fields=True, rename="camel", kw_only=True):
    worker_id: str


class WorkerAdded(Body):
    data: WorkerAddedData


class WorkerShown(WorkerBase, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """uptime: milliseconds since it registered."""

    id: str
    uptime: int


class WorkerSums(Struct, forbid_unknown_fields=True, rename="camel"):
    """total_processed, total_failed: of all workers ever; the rest is of those registered now."""

    total: int
    active: int
    total_processed: int
    total_failed: int
    active_jobs: int
    concurrency_slots: int


class WorkersData(Struct, forbid_unknown_fields=True):
    workers: list[WorkerShown]
    stats: WorkerSums


class Workers(Body):
    data: WorkersData


class QueueWorkers(Body):
    workers: list[WorkerShown]


class Megabytes(Struct, forbid_unknown_fields=True, rename="camel"):
    heap_used: int
    heap_total: int
    rss: int
    external: int | UnsetType = UNSET
    array_buffers: int | UnsetType = UNSET


class Connections(Struct, forbid_unknown_fields=True):
    tcp: int
    ws: int
    sse: int
    http: int


class HealthQueues(Struct, forbid_unknown_fields=True):
    waiting: int
    active: int
    delayed: int
    completed: int
    dlq: int


class HealthCluster(Struct, forbid_unknown_fields=True, rename="camel"):
    node_id: str
    role: str
    leader: str | None
    term: int
    has_quorum: bool
    members: int
    connected: int
    applied_index: int
    ready: bool
    reason: str | UnsetType = UNSET


class Health(Body):
    status: Literal["healthy", "degraded"]
    uptime: int
    version: str
    queues: HealthQueues
    connections: Connections
    memory: Megabytes
    cluster: HealthCluster


class Ready(Body):
    ready: Literal[True]


class PongData(Struct, forbid_unknown_fields=True):
    pong: Literal[True]
    time: Millis


class Pong(Body):
    data: PongData


class TotalsShown(Struct, forbid_unknown_fields=True, rename="camel"):
    total_pushed: int
    total_pulled: int
    total_completed: int
    total_failed: int


class Metrics(Body):
    metrics: TotalsShown


class StatsOf(Struct, forbid_unknown_fields=True, rename="camel"):
    waiting: int
    delayed: int
    active: int
    completed: int
    dlq: int
    prioritized: int
    waiting_children: int = field(name="waiting-children")
    total_pushed: int
    total_pulled: int
    total_completed: int
    total_failed: int
    queues: int
    workers: int
    cron_jobs: int
    cron_pending: int
    webhooks: int
    uptime: int
    push_per_sec: float
    pull_per_sec: float
    complete_per_sec: float
    fail_per_sec: float


class Collections(Struct, forbid_unknown_fields=True, rename="camel"):
    job_index: int
    completed_jobs: int
    processing_total: int
    queued_total: int
    waiting_deps_total: int
    temporal_index_total: int


class Stats(Body):
    stats: StatsOf
    memory: Megabytes
    collections: Collections


class StorageData(Struct, forbid_unknown_fields=True, rename="camel"):
    disk_full: bool
    error: str | None
    since: Millis | None
    free_bytes: int | None
    log_bytes: int


class Storage(Body):
    disk_full: bool
    data: StorageData


class Collected(Body):
    before: Megabytes
    after: Megabytes


class HeapCounts(Struct, forbid_unknown_fields=True, rename="camel"):
    """object_count: blocks of memory.  protected_count: objects set apart at the start.  global_count: tracked ones."""

    object_count: int
    protected_count: int
    global_count: int


class ObjectCount(Struct, forbid_unknown_fields=True):
    type: str
    count: int


class HeapStats(Body):
    memory: Megabytes
    heap: HeapCounts
    collections: Collections
    top_object_types: list[ObjectCount]


class SummaryCounts(Struct, forbid_unknown_fields=True):
    waiting: int
    prioritized: int
    active: int
    completed: int
    failed: int
    delayed: int


class QueueSummary(Struct, forbid_unknown_fields=True):
    name: str
    paused: bool
    counts: SummaryCounts


class DashboardStats(Struct, forbid_unknown_fields=True, rename="camel"):
    waiting: int
    active: int
    delayed: int
    completed: int
    dlq: int
    total_pushed: int
    total_pulled: int
    total_completed: int
    total_failed: int
    uptime: int


class Throughput(Struct, forbid_unknown_fields=True, rename="camel"):
    """Jobs in a second since this node was last asked for them; zeros at first."""

    push_per_sec: float
    pull_per_sec: float
    complete_per_sec: float
    fail_per_sec: float


class WorkersListed(Struct, forbid_unknown_fields=True):
    total: int
    active: int
    listed: list[WorkerShown] = field(name="list")
    truncated: bool


class CronsListed(Struct, forbid_unknown_fields=True):
    total: int
    listed: list[CronShown] = field(name="list")
    truncated: bool


class StorageBrief(Struct, forbid_unknown_fields=True, rename="camel"):
    disk_full: bool
    error: str | None
    since: Millis | None


class Dashboard(Body):
    stats: DashboardStats
    throughput: Throughput
    memory: Megabytes
    collections: Collections
    workers: WorkersListed
    crons: CronsListed
    storage: StorageBrief
    timestamp: Millis


class DashboardQueueShown(Struct, forbid_unknown_fields=True):
    name: str
    waiting: int
    prioritized: int
    delayed: int
    active: int
    dlq: int
    paused: bool


class DashboardQueues(Body):
    queues: list[DashboardQueueShown]
    total: int
    limit: int
    offset: int
    timestamp: Millis


class DashboardCounts(Struct, forbid_unknown_fields=True):
    waiting: int
    prioritized: int
    delayed: int
    active: int
    completed: int
    failed: int
    paused: int
    waiting_children: int = field(name="waiting-children")
    total_completed: Annotated[int, Meta(description="Since the queue was created.")] = field(name="totalCompleted")
    total_failed: Annotated[int, Meta(description="Since the queue was created.")] = field(name="totalFailed")


class DashboardQueue(Body):
    name: str
    counts: DashboardCounts
    paused: bool
    priority_counts: dict[int, int]
    dlq_preview: list[JobShown]
    timestamp: Millis
    jobs: list[JobShown] | UnsetType = UNSET


class RateShown(Struct, forbid_unknown_fields=True):
    max: int
    duration: Millis


class LimitsShown(Struct, forbid_unknown_fields=True, rename="camel"):
    rate_limit: RateShown | None
    rate_limit_ttl: Annotated[int, Meta(description="Milliseconds left of it; -1 without an end, -2 without a limit.")]
    concurrency_limit: int | None
    maxed: Annotated[bool, Meta(description="Whether one of them holds jobs back at this moment.")]


class LimitsOf(Body):
    limits: LimitsShown


class WasRemoved(Body):
    removed: bool


class KeyHolder(Body):
    job_id: str | None


class Group(Body):
    waiting: int
    active: int
    concurrency: int
    paused: bool


class WasChanged(Body):
    changed: bool

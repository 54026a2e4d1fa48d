"""What happens to jobs and queues, one struct per event, named as the API names it.

Events come out of `apply` in the same order on every node, so an event's identity is its log index and its position.
They carry ids, not records; they are rendered with the state of the same moment. What such a record cannot say any
more when it is gone, which queues it was for, stands in `about`: it decides who hears the event and is not told.
"""

from __future__ import annotations

import msgspec


class Event(msgspec.Struct, frozen=True, gc=False, tag_field="type", rename="camel", omit_defaults=True):
    """Base of all events."""

    @property
    def name(self) -> str:
        """The event's name as clients subscribe to it, such as `job:completed`."""
        return str(self.__struct_config__.tag)


class JobPushed(Event, frozen=True, tag="job:pushed"):
    """A job was added to a queue."""

    queue: str
    job_id: str


class JobDuplicated(Event, frozen=True, tag="job:duplicated"):
    """A push found an unfinished job with its id or unique key and added nothing."""

    queue: str
    job_id: str


class JobActive(Event, frozen=True, tag="job:active"):
    """A worker took a job."""

    queue: str
    job_id: str


class JobCompleted(Event, frozen=True, tag="job:completed"):
    """A job finished successfully."""

    queue: str
    job_id: str


class JobFailed(Event, frozen=True, tag="job:failed"):
    """A run of a job failed. final: no retry follows."""

    queue: str
    job_id: str
    error: str | None = None
    final: bool = False


class JobRetried(Event, frozen=True, tag="job:retried"):
    """A failed job was put back for another run."""

    queue: str
    job_id: str


class JobDelayed(Event, frozen=True, tag="job:delayed"):
    """A job waits until its time comes. delay: milliseconds from now."""

    queue: str
    job_id: str
    delay: int


class JobWaiting(Event, frozen=True, tag="job:waiting"):
    """A job that was delayed, active or waiting for others may now be taken."""

    queue: str
    job_id: str


class JobWaitingChildren(Event, frozen=True, tag="job:waiting-children"):
    """A job waits for the jobs it depends on."""

    queue: str
    job_id: str


class JobPromoted(Event, frozen=True, tag="job:promoted"):
    """A delayed job was made to wait no longer."""

    queue: str
    job_id: str


class JobProgressed(Event, frozen=True, tag="job:progress"):
    """A worker reported progress."""

    queue: str
    job_id: str
    progress: int | float


class JobStalled(Event, frozen=True, tag="job:stalled"):
    """An active job gave no sign of life for too long."""

    queue: str
    job_id: str


class JobLockExpired(Event, frozen=True, tag="job:lock-expired"):
    """The lock of an active job ran out."""

    queue: str
    job_id: str


class JobTimedOut(Event, frozen=True, tag="job:timeout"):
    """A run took longer than the job allows."""

    queue: str
    job_id: str


class JobExpired(Event, frozen=True, tag="job:expired"):
    """Nobody took the job within its time to live."""

    queue: str
    job_id: str
    ttl: int | float
    age: int


class JobRemoved(Event, frozen=True, tag="job:removed"):
    """A job was cancelled or deleted. prev: the state it was in."""

    queue: str
    job_id: str
    prev: str


class JobDiscarded(Event, frozen=True, tag="job:discarded"):
    """A job was sent to the dead letter queue on request."""

    queue: str
    job_id: str


class JobPriorityChanged(Event, frozen=True, tag="job:priority-changed"):
    """A job's priority was changed."""

    queue: str
    job_id: str
    new_priority: int


class JobDataUpdated(Event, frozen=True, tag="job:data-updated"):
    """A job's data was replaced."""

    queue: str
    job_id: str


class JobDelayChanged(Event, frozen=True, tag="job:delay-changed"):
    """A job's delay was changed. new_delay: milliseconds from now."""

    queue: str
    job_id: str
    new_delay: int | float


class DlqAdded(Event, frozen=True, tag="dlq:added"):
    """A job entered the dead letter queue."""

    queue: str
    job_id: str
    reason: str


class DlqRetried(Event, frozen=True, tag="dlq:retried"):
    """A job went back from the dead letter queue."""

    queue: str
    job_id: str


class DlqRetriedAll(Event, frozen=True, tag="dlq:retry-all"):
    """All jobs of a dead letter queue went back."""

    queue: str
    count: int


class DlqPurged(Event, frozen=True, tag="dlq:purged"):
    """A dead letter queue was emptied."""

    queue: str
    count: int


class DlqExpired(Event, frozen=True, tag="dlq:expired"):
    """A job left the dead letter queue because it grew too old or too many."""

    queue: str
    job_id: str


class QueueCreated(Event, frozen=True, tag="queue:created"):
    """A queue came into being."""

    queue: str


class QueuePaused(Event, frozen=True, tag="queue:paused"):
    """A queue gives out no jobs any more."""

    queue: str


class QueueResumed(Event, frozen=True, tag="queue:resumed"):
    """A queue gives out jobs again."""

    queue: str


class QueueDrained(Event, frozen=True, tag="queue:drained"):
    """The waiting and delayed jobs of a queue were removed."""

    queue: str
    count: int


class QueueCleaned(Event, frozen=True, tag="queue:cleaned"):
    """Old jobs of a queue were removed."""

    queue: str
    state: str | None
    count: int


class QueueObliterated(Event, frozen=True, tag="queue:obliterated"):
    """A queue was destroyed with all its jobs."""

    queue: str


class FlowCompleted(Event, frozen=True, tag="flow:completed"):
    """All jobs that a job depends on have completed. children_count: how many they are."""

    parent_job_id: str
    queue: str
    children_count: int


class FlowFailed(Event, frozen=True, tag="flow:failed"):
    """A job that another one depends on failed for good. queue: that of the one that waits."""

    parent_job_id: str
    failed_child_id: str
    queue: str
    error: str | None = None


class RateLimitHit(Event, frozen=True, tag="ratelimit:hit"):
    """A job could start but for the rate limit of its queue, and is the next one that will."""

    queue: str
    job_id: str


class RateLimitSet(Event, frozen=True, tag="ratelimit:set"):
    """A queue's rate limit was set. max: jobs per window."""

    queue: str
    max: int


class RateLimitCleared(Event, frozen=True, tag="ratelimit:cleared"):
    """A queue's rate limit was taken away."""

    queue: str


class ConcurrencySet(Event, frozen=True, tag="concurrency:set"):
    """A queue's limit of active jobs was set."""

    queue: str
    concurrency: int


class ConcurrencyCleared(Event, frozen=True, tag="concurrency:cleared"):
    """A queue's limit of active jobs was taken away."""

    queue: str


class StallConfigChanged(Event, frozen=True, tag="config:stall-changed"):
    """A queue's stall detection was configured."""

    queue: str


class DlqConfigChanged(Event, frozen=True, tag="config:dlq-changed"):
    """A queue's dead letter queue was configured."""

    queue: str


class CronCreated(Event, frozen=True, tag="cron:created"):
    """A cron was created. next_run: milliseconds since the epoch."""

    cron: str = msgspec.field(name="name")
    queue: str
    next_run: int
    pattern: str | None = None
    every: int | None = None


class CronUpdated(Event, frozen=True, tag="cron:updated"):
    """A cron took the place of the one with its name."""

    cron: str = msgspec.field(name="name")
    queue: str
    next_run: int
    pattern: str | None = None
    every: int | None = None


class CronDeleted(Event, frozen=True, tag="cron:deleted"):
    """A cron was removed, or has fired as often as it may; or it has left its queue for another, which `cron:updated` tells."""

    cron: str = msgspec.field(name="name")
    about: tuple[str, ...] = ()


class CronFired(Event, frozen=True, tag="cron:fired"):
    """A cron made a job."""

    cron: str = msgspec.field(name="name")
    queue: str


class CronSkipped(Event, frozen=True, tag="cron:skipped"):
    """A cron was due and made no job. reason: `overlap` or `no-worker`."""

    cron: str = msgspec.field(name="name")
    queue: str
    reason: str


class CronMissed(Event, frozen=True, tag="cron:missed"):
    """Due times of a cron passed while nobody led the cluster."""

    cron: str = msgspec.field(name="name")
    queue: str
    error: str


class WorkerConnected(Event, frozen=True, tag="worker:connected"):
    """A worker registered, or registered again."""

    worker_id: str
    worker: str | None = msgspec.field(name="name")
    queues: tuple[str, ...]
    hostname: str
    pid: int


class WorkerDisconnected(Event, frozen=True, tag="worker:disconnected"):
    """A worker unregistered."""

    worker_id: str
    about: tuple[str, ...] = ()


class WorkerHeartbeat(Event, frozen=True, tag="worker:heartbeat"):
    """A worker gave a sign of life."""

    worker_id: str
    about: tuple[str, ...] = ()


class WorkerErred(Event, frozen=True, tag="worker:error"):
    """So many jobs of a worker failed by now that somebody should look. failure_rate: of all its jobs, 0 to 1."""

    worker_id: str
    worker: str | None = msgspec.field(name="name")
    failed_jobs: int
    processed_jobs: int
    failure_rate: float
    about: tuple[str, ...] = ()


class WorkerRemovedStale(Event, frozen=True, tag="worker:removed-stale"):
    """A worker gave no sign of life for so long that it was forgotten."""

    worker_id: str
    worker: str | None = msgspec.field(name="name")
    about: tuple[str, ...] = ()


class WebhookAdded(Event, frozen=True, tag="webhook:added"):
    """A webhook was registered."""

    id: str
    url: str
    events: tuple[str, ...]
    about: tuple[str, ...] = ()


class WebhookRemoved(Event, frozen=True, tag="webhook:removed"):
    """A webhook was removed."""

    id: str
    about: tuple[str, ...] = ()


class WebhookEnabled(Event, frozen=True, tag="webhook:enabled"):
    """A webhook gets deliveries again."""

    webhook_id: str
    about: tuple[str, ...] = ()


class WebhookDisabled(Event, frozen=True, tag="webhook:disabled"):
    """A webhook gets no deliveries any more."""

    webhook_id: str
    about: tuple[str, ...] = ()


class WebhookFired(Event, frozen=True, tag="webhook:fired"):
    """A delivery arrived. status_code: what the receiver answered."""

    id: str
    webhook_id: str
    url: str
    occasion: str = msgspec.field(name="event")
    status_code: int
    about: tuple[str, ...] = ()


class WebhookFailed(Event, frozen=True, tag="webhook:failed"):
    """A delivery was given up after its retries."""

    id: str
    webhook_id: str
    url: str
    occasion: str = msgspec.field(name="event")
    error: str
    about: tuple[str, ...] = ()

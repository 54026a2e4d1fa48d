"""The table of the bunqueue dialect: each row a method, a path, the operation or query, how it is decoded and shown."""

from __future__ import annotations

from functools import partial

from api.http import CONSISTENCY, Call, Parameter, Reply, Route, Wording, ask, grouped, plain, submit, success
from api.scopes import its_dependencies, its_jobs, own_job, own_names
from node.operations.jobs import (
    AckJob,
    AckJobs,
    AddLog,
    CancelJob,
    ChangeDelay,
    ChangePriority,
    ClearLogs,
    DiscardJob,
    ExtendLock,
    ExtendLocks,
    FailJob,
    GetChildrenValues,
    GetJob,
    GetJobByCustomId,
    GetJobState,
    GetLogs,
    GetProgress,
    GetResult,
    HeartbeatJob,
    HeartbeatJobs,
    MoveToDelayed,
    ProgressJob,
    PromoteJob,
    PullJobs,
    PushJobs,
    UpdateJobData,
)
from node.operations.queues import (
    CleanQueue,
    ClearConcurrency,
    ClearRateLimit,
    DrainQueue,
    GetQueueSettings,
    IsPaused,
    ListDlq,
    ListJobs,
    ListQueues,
    ObliterateQueue,
    PauseQueue,
    PriorityCounts,
    PromoteJobs,
    PurgeDlq,
    QueueCounts,
    ResumeQueue,
    RetryCompleted,
    RetryDlq,
    SetConcurrency,
    SetDlqConfig,
    SetRateLimit,
    SetStallConfig,
)
from node.refusals import DependencyNotFound, JobNotActive

from . import bodies, crons, errors, groups, monitoring, overview, queue_bodies, render, replies, webhooks, workers
from .bodies import of_job
from .queue_bodies import of_queue

COUNT = {"type": "integer", "minimum": 0}
TIMEOUT = Parameter(
    "timeout",
    "Milliseconds to wait for a job.",
    {"type": "number", "minimum": 0, "maximum": bodies.PULL_WAIT_MS_MAX, "default": 0},
)
STATE = Parameter(
    "state",
    "waiting, delayed, active, waiting-children, completed, failed, prioritized or paused; left out, all.",
    {"type": "string"},
)
LIMIT = Parameter("limit", f"Jobs, at most; left out, all, of which one answer has {queue_bodies.LISTED_MAX:,}.", COUNT)
OFFSET = Parameter("offset", "Jobs to skip.", {**COUNT, "default": 0})
DLQ_COUNT = Parameter("count", "Jobs, at most.", {**COUNT, "default": queue_bodies.DLQ_COUNT})
DLQ_LIMIT = Parameter("limit", "The same as count.", COUNT)


async def pull(call: Call) -> Reply:
    """Take one job, waiting for it if asked to."""
    operation, wait_ms = bodies.pull(call)
    return success(await call.pull(operation, render.pulled_one, wait_ms))


async def pull_batch(call: Call) -> Reply:
    """Take several jobs, waiting for the first of them if asked to."""
    operation, wait_ms = bodies.pull_batch(call)
    return success(await call.pull(operation, render.pulled_many, wait_ms))


async def wait(call: Call) -> Reply:
    """Wait for the end of a job."""
    doing = call.node.wait_finished(call.path["id"], bodies.wait(call), render.finished)
    return success(await call.waiting(doing))


async def state(call: Call) -> Reply:
    query = GetJobState(call.path["id"])
    return success(await call.node.ask(query, partial(render.state_of, query.job_id), stale=call.stale))


async def result(call: Call) -> Reply:
    query = GetResult(call.path["id"])
    return success(await call.node.ask(query, partial(render.result_of, query.job_id), stale=call.stale))


async def priority_counts(call: Call) -> Reply:
    query = PriorityCounts(queue_bodies.queue_of(call))
    return success(await call.node.ask(query, partial(render.priority_counts, query.queue), stale=call.stale))


async def dlq_stats(call: Call) -> Reply:
    query = queue_bodies.whole_dlq(call)
    return success(await call.node.ask(query, partial(render.dlq_stats, query.queue), stale=call.stale))


NOT_ACTIVE_READ: Wording = {JobNotActive: partial(errors.word_progress, 404)}
NOT_ACTIVE_WRITE: Wording = {JobNotActive: partial(errors.word_progress, 400)}

JOBS = grouped(
    "Jobs",
    # Producers
    submit("POST", "/queues/{queue}/jobs", PushJobs, bodies.push, render.pushed,
           takes=bodies.PushBody, reply=replies.Pushed, right="produce", body="data", about="Push a job.",
           check=its_dependencies),
    submit("POST", "/queues/{queue}/jobs/bulk", PushJobs, bodies.bulk, render.pushed_many,
           takes=bodies.BulkBody, reply=replies.PushedMany, right="produce",
           refusals={DependencyNotFound: errors.word_bulk_dependency}, about="Push jobs, all or none.",
           check=its_dependencies),
    # Workers
    plain("GET", "/queues/{queue}/jobs", pull, what=PullJobs, asks=(TIMEOUT,), reply=replies.PulledJob,
          right="consume", about="Take the next job, waiting for it if asked to."),
    plain("POST", "/queues/{queue}/jobs/pull-batch", pull_batch, what=PullJobs, takes=bodies.PullBody,
          reply=replies.PulledJobs, right="consume"),
    # Jobs
    ask("GET", "/jobs/{id}", GetJob, of_job(GetJob), render.one_job, reply=replies.OneJob),
    ask("GET", "/jobs/custom/{custom_id}", GetJobByCustomId, bodies.get_job_by_custom_id,
        render.one_job, reply=replies.OneJob, scope="checked", narrow=own_job),
    submit("DELETE", "/jobs/{id}", CancelJob, of_job(CancelJob), render.ok,
           reply=replies.Ok, right="produce", refusals=errors.CANCELLING),
    submit("POST", "/jobs/{id}/ack", AckJob, bodies.ack, render.ok, takes=bodies.AckBody,
           reply=replies.Ok, right="consume", refusals=errors.FINISHING),
    submit("POST", "/jobs/ack-batch", AckJobs, bodies.ack_batch, render.acked_many, takes=bodies.AckBatchBody,
           reply=replies.Ok, right="consume", refusals=errors.FINISHING, scope="checked", check=its_jobs),
    submit("POST", "/jobs/{id}/fail", FailJob, bodies.fail, render.ok, takes=bodies.FailBody,
           reply=replies.Ok, right="consume", refusals=errors.FINISHING),
    plain("GET", "/jobs/{id}/state", state, what=GetJobState, asks=(CONSISTENCY,), reply=replies.StateOf,
          right="read"),
    plain("GET", "/jobs/{id}/result", result, what=GetResult, asks=(CONSISTENCY,), reply=replies.ResultOf,
          right="read"),
    ask("GET", "/jobs/{id}/progress", GetProgress, of_job(GetProgress), render.progress_of,
        reply=replies.ProgressOf, refusals=NOT_ACTIVE_READ),
    submit("POST", "/jobs/{id}/progress", ProgressJob, bodies.progress, render.ok, takes=bodies.ProgressBody,
           reply=replies.Ok, right="consume", refusals=NOT_ACTIVE_WRITE),
    submit("PUT", "/jobs/{id}/data", UpdateJobData, bodies.update_data, render.ok, takes=bodies.DataBody,
           reply=replies.Ok, right="produce", body="data", refusals=errors.UPDATING),
    submit("PUT", "/jobs/{id}/priority", ChangePriority, bodies.change_priority, render.ok,
           takes=bodies.PriorityBody, reply=replies.Ok, right="produce", refusals=errors.REORDERING),
    submit("POST", "/jobs/{id}/promote", PromoteJob, of_job(PromoteJob), render.ok,
           reply=replies.Ok, right="produce", refusals=errors.PROMOTING),
    submit("POST", "/jobs/{id}/move-to-wait", PromoteJob, of_job(PromoteJob), render.ok,
           reply=replies.Ok, right="produce", refusals=errors.PROMOTING, about="The same as promote."),
    submit("POST", "/jobs/{id}/move-to-delayed", MoveToDelayed, bodies.move_to_delayed, render.ok,
           takes=bodies.DelayBody, reply=replies.Ok, right="consume", refusals=errors.DELAYING),
    submit("PUT", "/jobs/{id}/delay", ChangeDelay, bodies.change_delay, render.ok, takes=bodies.DelayBody,
           reply=replies.Ok, right="produce", refusals=errors.CHANGING_DELAY),
    submit("POST", "/jobs/{id}/discard", DiscardJob, bodies.discard, render.ok,
           reply=replies.Ok, right="manage:all", refusals=errors.DISCARDING),
    plain("POST", "/jobs/{id}/wait", wait, what=GetJob, takes=bodies.WaitBody, reply=replies.Finished,
          right="read", about="Wait until a job completes, or the time is over."),
    ask("GET", "/jobs/{id}/children", GetChildrenValues, of_job(GetChildrenValues), render.children,
        reply=replies.Children),
    submit("POST", "/jobs/{id}/heartbeat", HeartbeatJob, bodies.heartbeat, render.beat, takes=bodies.LockBody,
           reply=replies.Beat, right="consume", refusals=errors.BEATING),
    submit("POST", "/jobs/heartbeat-batch", HeartbeatJobs, bodies.heartbeat_batch, render.beats,
           takes=bodies.BeatsBody, reply=replies.Beats, right="consume", scope="checked", check=its_jobs),
    submit("POST", "/jobs/{id}/extend-lock", ExtendLock, bodies.extend_lock, render.ok, takes=bodies.LockBody,
           reply=replies.Ok, right="consume", refusals=errors.EXTENDING),
    submit("POST", "/jobs/extend-locks", ExtendLocks, bodies.extend_locks, render.counted,
           takes=bodies.LocksBody, reply=replies.Count, right="consume", scope="checked", check=its_jobs),
    ask("GET", "/jobs/{id}/logs", GetLogs, of_job(GetLogs), render.logs, reply=replies.Logs),
    submit("POST", "/jobs/{id}/logs", AddLog, bodies.add_log, render.log_added, takes=bodies.LogBody,
           reply=replies.LogAdded, right="consume"),
    submit("DELETE", "/jobs/{id}/logs", ClearLogs, of_job(ClearLogs), render.ok,
           reply=replies.Ok, right="consume", about="Drop the lines attached to a job."),
)  # fmt: skip

QUEUES = grouped(
    "Queues",
    ask("GET", "/queues", ListQueues, lambda call: ListQueues(), render.queues, reply=replies.Queues,
        scope="checked", narrow=own_names),
    ask("GET", "/queues/{queue}/jobs/list", ListJobs, queue_bodies.list_jobs, render.jobs,
        asks=(STATE, LIMIT, OFFSET), reply=replies.Jobs),
    ask("GET", "/queues/{queue}/counts", QueueCounts, of_queue(QueueCounts), render.counts, reply=replies.Counts,
        about="Jobs of a queue by state."),
    ask("GET", "/queues/{queue}/count", QueueCounts, of_queue(QueueCounts), render.unfinished_count,
        reply=replies.Count, about="Jobs of a queue that are not finished."),
    plain("GET", "/queues/{queue}/priority-counts", priority_counts, what=PriorityCounts, asks=(CONSISTENCY,),
          reply=replies.PriorityCountsOf, right="read"),
    ask("GET", "/queues/{queue}/paused", IsPaused, of_queue(IsPaused), render.paused, reply=replies.Paused),
    submit("POST", "/queues/{queue}/pause", PauseQueue, of_queue(PauseQueue), render.ok,
           reply=replies.Ok, right="manage:all", about="Give out no jobs of a queue any more; active ones go on."),
    submit("POST", "/queues/{queue}/resume", ResumeQueue, of_queue(ResumeQueue), render.ok,
           reply=replies.Ok, right="manage:all", about="Give out jobs of a queue again."),
    submit("POST", "/queues/{queue}/drain", DrainQueue, of_queue(DrainQueue), render.counted,
           reply=replies.Count, right="manage:all"),
    submit("POST", "/queues/{queue}/obliterate", ObliterateQueue, of_queue(ObliterateQueue), render.ok,
           reply=replies.Ok, right="manage:all"),
    submit("POST", "/queues/{queue}/clean", CleanQueue, queue_bodies.clean, render.cleaned,
           takes=queue_bodies.CleanBody, reply=replies.Cleaned, right="manage:all",
           about="Remove the oldest jobs of a state."),
    submit("POST", "/queues/{queue}/promote-jobs", PromoteJobs, queue_bodies.promote_jobs, render.counted,
           takes=queue_bodies.PromoteBody, reply=replies.Count, right="manage:all"),
    submit("POST", "/queues/{queue}/retry-completed", RetryCompleted, queue_bodies.retry_completed, render.counted,
           takes=queue_bodies.RetryCompletedBody, reply=replies.Count, right="manage:all"),
)  # fmt: skip

DLQ = grouped(
    "Dead letter queue",
    ask("GET", "/queues/{queue}/dlq", ListDlq, queue_bodies.list_dlq, render.dlq,
        asks=(DLQ_COUNT, DLQ_LIMIT, OFFSET), reply=replies.Dlq),
    plain("GET", "/queues/{queue}/dlq/stats", dlq_stats, what=ListDlq, asks=(CONSISTENCY,), reply=replies.DlqStats,
          right="read", about="Jobs of a dead letter queue by reason."),
    submit("POST", "/queues/{queue}/dlq/retry", RetryDlq, queue_bodies.retry_dlq, render.counted,
           takes=queue_bodies.RetryDlqBody, reply=replies.Count, right="manage:all"),
    submit("POST", "/queues/{queue}/dlq/purge", PurgeDlq, of_queue(PurgeDlq), render.counted,
           reply=replies.Count, right="manage:all"),
)  # fmt: skip

LIMITS = grouped(
    "Rate limit and concurrency",
    submit("PUT", "/queues/{queue}/rate-limit", SetRateLimit, queue_bodies.set_rate_limit, render.ok,
           takes=queue_bodies.RateLimitBody, reply=replies.Ok, right="manage:all",
           about="Limit how many jobs of a queue start in a second."),
    submit("DELETE", "/queues/{queue}/rate-limit", ClearRateLimit, of_queue(ClearRateLimit), render.ok,
           reply=replies.Ok, right="manage:all"),
    submit("PUT", "/queues/{queue}/concurrency", SetConcurrency, queue_bodies.set_concurrency, render.ok,
           takes=queue_bodies.ConcurrencyBody, reply=replies.Ok, right="manage:all",
           about="Limit how many jobs of a queue are active at once."),
    submit("DELETE", "/queues/{queue}/concurrency", ClearConcurrency, of_queue(ClearConcurrency), render.ok,
           reply=replies.Ok, right="manage:all"),
)  # fmt: skip

CONFIG = grouped(
    "Configuration",
    ask("GET", "/queues/{queue}/stall-config", GetQueueSettings, of_queue(GetQueueSettings), render.stall_config,
        reply=replies.StallConfigOf, about="Stall detection of a queue."),
    submit("PUT", "/queues/{queue}/stall-config", SetStallConfig, queue_bodies.set_stall_config, render.ok,
           takes=queue_bodies.StallBody, reply=replies.Ok, right="manage:all"),
    ask("GET", "/queues/{queue}/dlq-config", GetQueueSettings, of_queue(GetQueueSettings), render.dlq_config,
        reply=replies.DlqConfigOf, about="Dead letter queue of a queue."),
    submit("PUT", "/queues/{queue}/dlq-config", SetDlqConfig, queue_bodies.set_dlq_config, render.ok,
           takes=queue_bodies.DlqBody, reply=replies.Ok, right="manage:all",
           about="Configure a queue's dead letter queue; what is not given stays."),
)  # fmt: skip

ROUTES: tuple[Route, ...] = (
    *JOBS,
    *QUEUES,
    *DLQ,
    *LIMITS,
    *CONFIG,
    *crons.ROUTES,
    *webhooks.ROUTES,
    *workers.ROUTES,
    *monitoring.ROUTES,
    *overview.ROUTES,
    *groups.ROUTES,
)

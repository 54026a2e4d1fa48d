"""Why an operation or a query was refused, one class per reason.

A refusal is part of an operation's outcome: every replica reaches the same one. It carries the facts as attributes;
the message is for people who read logs, and a dialect may word it differently.
"""

from __future__ import annotations

from typing import Any


class Refusal(Exception):
    """Base of all refusals.

    code: a stable word for programs.  Arguments are the attributes, in the order of `fields`.
    """

    code = "refused"
    text = "The request was refused"
    fields: tuple[str, ...] = ()

    def __init__(self, *values: Any) -> None:
        super().__init__(*values)
        for name, value in zip(self.fields, values, strict=True):
            setattr(self, name, value)

    @property
    def message(self) -> str:
        """One sentence for people."""
        return self.text.format(**{name: getattr(self, name) for name in self.fields})

    def __str__(self) -> str:
        return self.message


class JobNotFound(Refusal):
    """No job has this id."""

    code = "job_not_found"
    text = "Job not found: {job_id}"
    fields = ("job_id",)
    job_id: str


class JobNotActive(Refusal):
    """The job exists, but nobody is working on it."""

    code = "job_not_active"
    text = "Job {job_id} is not active (current state: {state})"
    fields = ("job_id", "state")
    job_id: str
    state: str


class JobInWrongState(Refusal):
    """The job exists, but its state does not allow this."""

    code = "job_in_wrong_state"
    text = "Job {job_id} is {state}; this needs it {needed}"
    fields = ("job_id", "state", "needed")
    job_id: str
    state: str
    needed: str


class LockRequired(Refusal):
    """The job is locked and the caller showed no token."""

    code = "lock_required"
    text = "Lock token required for job {job_id}"
    fields = ("job_id",)
    job_id: str


class LockLost(Refusal):
    """The token shown is not the one that holds the job."""

    code = "lock_lost"
    text = "Invalid or expired lock token for job {job_id}"
    fields = ("job_id",)
    job_id: str


class JobNotLocked(Refusal):
    """The caller acts on a lock that the job does not have."""

    code = "job_not_locked"
    text = "Job {job_id} is not locked"
    fields = ("job_id",)
    job_id: str


class JobLocked(Refusal):
    """A worker holds the job, so it cannot be removed."""

    code = "job_locked"
    text = "Job {job_id} is locked by a worker"
    fields = ("job_id",)
    job_id: str


class QueueBusy(Refusal):
    """The queue has active jobs. active: how many."""

    code = "queue_busy"
    text = "Queue {queue} has {active} active jobs"
    fields = ("queue", "active")
    queue: str
    active: int


class DependencyNotFound(Refusal):
    """A job depends on an id that no job has. position: index of the job in its push."""

    code = "dependency_not_found"
    text = "Dependency job not found: {dependency_id}"
    fields = ("position", "dependency_id")
    position: int
    dependency_id: str


class CronNotFound(Refusal):
    """No cron has this name."""

    code = "cron_not_found"
    text = "Cron not found: {name}"
    fields = ("name",)
    name: str


class TooManyCrons(Refusal):
    """The cluster holds as many crons as it may."""

    code = "too_many_crons"
    text = "There may be at most {limit} crons"
    fields = ("limit",)
    limit: int


class WorkerNotFound(Refusal):
    """No worker is registered under this id."""

    code = "worker_not_found"
    text = "Worker not found: {worker_id}"
    fields = ("worker_id",)
    worker_id: str


class TooManyGroups(Refusal):
    """As many groups of the queue as may have settings of their own."""

    code = "too_many_groups"
    text = "At most {limit} groups of a queue may have settings of their own"
    fields = ("limit",)
    limit: int


class TooManyWorkers(Refusal):
    """The cluster holds as many registrations of workers as it may."""

    code = "too_many_workers"
    text = "There may be at most {limit} registered workers"
    fields = ("limit",)
    limit: int


class PusherNotFound(Refusal):
    """No endpoint is registered for this queue."""

    code = "pusher_not_found"
    text = "No push worker is registered for queue {queue}"
    fields = ("queue",)
    queue: str


class TooManyPushers(Refusal):
    """The cluster holds as many registrations of endpoints as it may."""

    code = "too_many_pushers"
    text = "There may be at most {limit} push workers"
    fields = ("limit",)
    limit: int


class WebhookNotFound(Refusal):
    """No webhook has this id."""

    code = "webhook_not_found"
    text = "Webhook not found: {webhook_id}"
    fields = ("webhook_id",)
    webhook_id: str


class TooManyWebhooks(Refusal):
    """The cluster holds as many webhooks as it may."""

    code = "too_many_webhooks"
    text = "There may be at most {limit} webhooks"
    fields = ("limit",)
    limit: int


class IdempotencyKeyReused(Refusal):
    """The key came with another request before. The first one's answer stands; this request did nothing."""

    code = "idempotency_key_reused"
    text = "Idempotency key {key} was used for a different request"
    fields = ("key",)
    key: str


class ReplyForgotten(Refusal):
    """The request with this key was done before, but its reply was too large to be remembered."""

    code = "reply_forgotten"
    text = "The request with idempotency key {key} was done before; its reply was too large to be kept"
    fields = ("key",)
    key: str


class OperationNotKnown(Refusal):
    """The batch holds an operation that this version does not know or cannot read."""

    code = "operation_not_known"
    text = "The operation cannot be read: {reason}"
    fields = ("reason",)
    reason: str


class InternalError(Refusal):
    """A bug in an operation, met by every replica alike. index: the log entry that shows it."""

    code = "internal_error"
    text = "Internal error (log index {index})"
    fields = ("index",)
    index: int


def known_refusals() -> dict[str, type[Refusal]]:
    """Return every kind of refusal by its code."""
    return {kind.code: kind for kind in Refusal.__subclasses__()}

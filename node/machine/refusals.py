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


class ParentNotFound(Refusal):
    """A job is to have a parent that does not exist."""

    code = "parent_not_found"
    text = "Parent job not found: {parent_id}"
    fields = ("parent_id",)
    parent_id: str


class ParentNotReplaceable(Refusal):
    """A job has a parent already, another one, which lives."""

    code = "parent_not_replaceable"
    text = "Job {job_id} has another parent, {parent_id}, which cannot be replaced"
    fields = ("job_id", "parent_id")
    job_id: str
    parent_id: str


class NoParent(Refusal):
    """The job is nobody's child."""

    code = "no_parent"
    text = "Job {job_id} has no parent"
    fields = ("job_id",)
    job_id: str


class FlowCycle(Refusal):
    """A job would wait for itself, or for one that waits for it."""

    code = "flow_cycle"
    text = "Job {job_id} cannot wait for {parent_id}, which waits for it"
    fields = ("job_id", "parent_id")
    job_id: str
    parent_id: str


class FlowTooDeep(Refusal):
    """A job would have more ancestors than a flow may have levels."""

    code = "flow_too_deep"
    text = "A flow may have at most {limit} levels"
    fields = ("limit",)
    limit: int


class FlowTooLarge(Refusal):
    """One request adds or removes more jobs of a flow than one entry may."""

    code = "flow_too_large"
    text = "At most {limit} jobs of a flow can be added or removed at once"
    fields = ("limit",)
    limit: int


class JobExists(Refusal):
    """A job of a new flow has an id that is taken."""

    code = "job_exists"
    text = "Flow job {job_id} already exists"
    fields = ("job_id",)
    job_id: str


class ChildrenPending(Refusal):
    """The job cannot complete: children of its are pending."""

    code = "children_pending"
    text = "Job {job_id} has pending dependencies"
    fields = ("job_id",)
    job_id: str


class ChildrenFailed(Refusal):
    """The job cannot complete or wait for its children: one of them failed, and the job with it."""

    code = "children_failed"
    text = "Cannot complete job {job_id} because it has at least one failed child"
    fields = ("job_id",)
    job_id: str


class CronNotFound(Refusal):
    """No cron has this name."""

    code = "cron_not_found"
    text = "Cron not found: {name}"
    fields = ("name",)
    name: str


class TooManyQueues(Refusal):
    """The cluster holds as many queues as it may."""

    code = "too_many_queues"
    text = "There may be at most {limit} queues; obliterate those that are not needed"
    fields = ("limit",)
    limit: int


class TooManyDependencies(Refusal):
    """The jobs of one request depend on more jobs, all together, than one entry may look up."""

    code = "too_many_dependencies"
    text = "The jobs of one request may depend on at most {limit} jobs in total"
    fields = ("limit",)
    limit: int


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


class AnswerForgotten(Refusal):
    """The call with this number was acknowledged, or its answer had to go: it was made, and is not made again."""

    code = "answer_forgotten"
    text = "What call {number} was answered is not known any more"
    fields = ("number",)
    number: int


class TooManySessions(Refusal):
    """Clients have as many sessions as may be."""

    code = "too_many_sessions"
    text = "Clients have {limit} sessions already"
    fields = ("limit",)
    limit: int


class TooManyClients(Refusal):
    """As many workers and other clients are registered as may be."""

    code = "too_many_clients"
    text = "{limit} clients are registered already"
    fields = ("limit",)
    limit: int


class MetaTooLarge(Refusal):
    """The fields of a queue would be too many or too long, or those of all queues together."""

    code = "meta_too_large"
    text = "A queue may have {fields_max} fields of {bytes_max} bytes together, and all queues a bounded number"
    fields = ("fields_max", "bytes_max")
    fields_max: int
    bytes_max: int


class TooLong(Refusal):
    """The answer would hold too many ids."""

    code = "too_long"
    text = "Cannot list more than {limit} jobs at once; ask for them in parts"
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


class KeyForgotten(Refusal):
    """The request with this key was done before; its answer had to go before its day was over."""

    code = "key_forgotten"
    text = "The request with idempotency key {key} was done before; its answer is not kept any more"
    fields = ("key",)
    key: str


class KeyNeedsScope(Refusal):
    """A key in the form of before level 1: its sender has not seen that level yet. No client hears of it: the node sends it again."""

    code = "key_needs_scope"
    text = "Idempotency key {key} came without its scope"
    fields = ("key",)
    key: str


class BullmqError(Refusal):
    """One of BullMQ's numbered errors, for clients of its backend protocol, who have the words for it.

    number: -1 no such job, -2 no lock, -3 not in that state, -4 children pending, -5 no such parent, -6 somebody else's lock, -7 the child
    of somebody else, -8 a scheduler's job, -9 a child failed, -10 and -11 of schedulers.  job_id: within its queue.
    """

    code = "bullmq_error"
    text = "BullMQ's error {number} for job {job_id}"
    fields = ("number", "job_id")
    number: int
    job_id: str


class LevelTooLow(Refusal):
    """The operation, or a field of it, is of a higher feature level than the one in force."""

    code = "level_too_low"
    text = "{operation} needs feature level {needed}, and this cluster is at {level}: some member runs an older version"
    fields = ("operation", "needed", "level")
    operation: str
    needed: int
    level: int


class OperationNotKnown(Refusal):
    """The operation could not be read back by the nodes that would apply it: a bug of the caller."""

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

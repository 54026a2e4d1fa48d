"""How the bunqueue dialect words errors: `{"ok": false, "error": text}`, with the documented texts and statuses."""

from __future__ import annotations

import msgspec

from quorumq.api.request import Answer
from quorumq.node.machine.refusals import (
    CronNotFound,
    DependencyNotFound,
    IdempotencyKeyReused,
    InternalError,
    JobInWrongState,
    JobNotActive,
    JobNotFound,
    JobNotLocked,
    KeyForgotten,
    LockLost,
    OperationNotKnown,
    Refusal,
    ReplyForgotten,
    WebhookNotFound,
    WorkerNotFound,
)

# Codes that tell a client what to do next; elsewhere the text is all that the document promises.
CODED = frozenset(
    {
        "not_applied",
        "outcome_unknown",
        "unavailable",
        "busy",
        "idempotency_key_reused",
        "reply_forgotten",
        "key_forgotten",
        "level_too_low",
    }
)

TEXTS: dict[type[Refusal], Answer] = {
    JobNotFound: (404, "Job not found"),
    CronNotFound: (404, "Cron job not found"),
    WebhookNotFound: (404, "Webhook not found"),
    WorkerNotFound: (404, "Worker not found"),
    JobNotActive: (400, "Job not found or not active"),
    JobNotLocked: (400, "Lock not found or invalid token"),
    OperationNotKnown: (500, "Internal server error"),
    InternalError: (500, "Internal server error"),
    IdempotencyKeyReused: (422, "Idempotency-Key was used for a different request"),
    ReplyForgotten: (409, "This request was done before; its reply was too large to be kept"),
    KeyForgotten: (409, "This request was done before; its reply is not kept any more"),
}

NOT_ACTIVE: Answer = (400, "Job not found or not active")
FINISHING: dict[type[Refusal], Answer] = {JobNotFound: NOT_ACTIVE, JobNotActive: NOT_ACTIVE}

NO_BEAT: Answer = (400, "Job not found or not active (or invalid token)")
BEATING: dict[type[Refusal], Answer] = {
    JobNotFound: NO_BEAT,
    JobNotActive: NO_BEAT,
    JobNotLocked: NO_BEAT,
    LockLost: NO_BEAT,
}

NO_LOCK: Answer = (400, "Lock not found or invalid token")
EXTENDING: dict[type[Refusal], Answer] = {
    JobNotFound: NO_LOCK,
    JobNotActive: NO_LOCK,
    JobNotLocked: NO_LOCK,
    LockLost: NO_LOCK,
}

NOT_DELAYED: Answer = (400, "Job not found or not delayed")
PROMOTING: dict[type[Refusal], Answer] = {
    JobNotFound: NOT_DELAYED,
    JobInWrongState: NOT_DELAYED,
    JobNotActive: NOT_DELAYED,
}

REQUEUING: dict[type[Refusal], Answer] = {JobNotFound: (404, "Job not found")}

NOT_CANCELLED: Answer = (404, "Job not found or cannot be cancelled")
CANCELLING: dict[type[Refusal], Answer] = {
    JobNotFound: NOT_CANCELLED,
    JobInWrongState: NOT_CANCELLED,
    JobNotActive: NOT_CANCELLED,
}


def unless(text: str) -> dict[type[Refusal], Answer]:
    """Word what cannot be done to a job: 404 when there is none, 400 when its state does not allow it."""
    return {JobNotFound: (404, text), JobInWrongState: (400, text), JobNotActive: (400, text)}


UPDATING = unless("Job not found or cannot be updated")
REORDERING = unless("Job not found or not in queue")
DELAYING = unless("Job not found or not active")
CHANGING_DELAY = unless("Job not found or cannot change delay")
DISCARDING = unless("Job not found")


def word(refusal: Refusal) -> Answer:
    """Give status and text of a refusal that no route words in its own way."""
    found = TEXTS.get(type(refusal))
    return found if found is not None else (400, refusal.message)


def word_progress(status: int, refusal: JobNotActive) -> Answer:
    return status, f"Job is not active (current state: {refusal.state})"


def word_bulk_dependency(refusal: DependencyNotFound) -> Answer:
    return 400, f"jobs[{refusal.position}]: Dependency job not found: {refusal.dependency_id}"


def error_body(text: str, code: str) -> bytes:
    """Render the body of an error."""
    body = {"ok": False, "error": text}
    if code in CODED:
        body["code"] = code
    return msgspec.json.encode(body)

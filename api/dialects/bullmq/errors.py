"""How the BullMQ dialect words errors: plain text, with BullMQ's own messages where a job or its lock is concerned.

404 says that there is no such thing, 409 that its state or its lock does not allow this now.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from quorumq.api.request import Answer, Wording
from quorumq.node.machine.refusals import (
    ChildrenFailed,
    ChildrenPending,
    IdempotencyKeyReused,
    InternalError,
    JobInWrongState,
    JobLocked,
    JobNotActive,
    JobNotFound,
    JobNotLocked,
    KeyForgotten,
    LockLost,
    LockRequired,
    OperationNotKnown,
    ParentNotFound,
    ParentNotReplaceable,
    QueueBusy,
    Refusal,
    ReplyForgotten,
)

NO_JOB: Answer = (404, "Job not found")
CONFLICT = "The job's state or lock does not allow this now, or the request was done before and its reply is not kept."
CONFLICTS = {409: CONFLICT}

TEXTS: dict[type[Refusal], Answer] = {
    JobNotFound: NO_JOB,
    IdempotencyKeyReused: (422, "Idempotency-Key was used for a different request"),
    ReplyForgotten: (409, "This request was done before; its reply was too large to be kept"),
    KeyForgotten: (409, "This request was done before; its reply is not kept any more"),
    OperationNotKnown: (500, "Internal server error"),
    InternalError: (500, "Internal server error"),
    QueueBusy: (409, "Cannot obliterate queue with active jobs"),
}


def word(refusal: Refusal) -> Answer:
    """Give status and text of a refusal that no route words in its own way."""
    found = TEXTS.get(type(refusal))
    return found if found is not None else (400, refusal.message)


def body(text: str) -> bytes:
    """Render the body of an error."""
    return text.encode("utf-8", "replace")


def json_body(text: str) -> bytes:
    """Render the body of an error where the document has it as JSON."""
    return msgspec.json.encode({"error": text})


def of_lock(command: str) -> Wording:
    """Word what the holder of a lock is refused, as BullMQ words it for a command."""
    return {
        JobNotFound: partial(_missing_key, command),
        # Whoever has no lock any more is told so before the state is looked at.
        JobNotActive: partial(_missing_lock, command),
        JobNotLocked: partial(_missing_lock, command),
        LockRequired: partial(_mismatch, command),
        LockLost: partial(_mismatch, command),
        JobInWrongState: partial(_wrong_state, command, "active"),
        ChildrenPending: partial(_pending, command),
        ChildrenFailed: partial(_failed_child, command),
    }


def of_state(command: str, state: str) -> Wording:
    """Word what cannot be done to a job in another state, as BullMQ words it for a command."""
    wrong = partial(_wrong_state, command, state)
    return {JobNotFound: partial(_missing_key, command), JobInWrongState: wrong, JobNotActive: wrong}


def shown_id(refusal: Any) -> str:
    """Return the id that the client knows: without the scope of its queue."""
    job_id: str = refusal.job_id
    return job_id.split(":", 2)[2] if job_id.startswith("bull:") and job_id.count(":") >= 2 else job_id


def _missing_key(command: str, refusal: JobNotFound) -> Answer:
    return 404, f"Missing key for job {shown_id(refusal)}. {command}"


def _missing_lock(command: str, refusal: Refusal) -> Answer:
    return 409, f"Missing lock for job {shown_id(refusal)}. {command}"


def _mismatch(command: str, refusal: Refusal) -> Answer:
    return 409, f"Lock mismatch for job {shown_id(refusal)}. Cmd {command} from active"


def _wrong_state(command: str, state: str, refusal: Refusal) -> Answer:
    return 409, f"Job {shown_id(refusal)} is not in the {state} state. {command}"


def _locked(refusal: JobLocked) -> Answer:
    return 409, f"Job {shown_id(refusal)} could not be removed because it is locked by another worker"


def _not_finished(refusal: JobInWrongState) -> Answer:
    return 409, f"Job {shown_id(refusal)} is not in the {refusal.needed} state. reprocessJob"


def _no_parent(refusal: ParentNotFound) -> Answer:
    return 404, f"Missing key for parent job {refusal.parent_id}. addJob"


def _not_replaced(refusal: ParentNotReplaceable) -> Answer:
    return 409, f"The parent job {refusal.parent_id} cannot be replaced. addJob"


def _pending(command: str, refusal: ChildrenPending) -> Answer:
    return 409, f"Job {shown_id(refusal)} has pending dependencies. {command}"


def _failed_child(command: str, refusal: ChildrenFailed) -> Answer:
    return 409, f"Cannot complete job {shown_id(refusal)} because it has at least one failed child. {command}"


ADDING_FLOWS: Wording = {ParentNotFound: _no_parent, ParentNotReplaceable: _not_replaced}
UNAUTHORIZED: Answer = (401, "Unauthorized")
# Whoever does not hold the job is not told why: as the recorded server, which asks for nothing but the lock's token.
HOLDING: Wording = dict.fromkeys((JobNotFound, JobNotActive, JobNotLocked, LockRequired, LockLost), UNAUTHORIZED)
RETRYING: Wording = {JobNotFound: partial(_missing_key, "reprocessJob"), JobInWrongState: _not_finished}
UPDATING: Wording = {
    JobNotFound: partial(_missing_key, "updateData"),
    JobInWrongState: lambda refusal: (409, f"Job {shown_id(refusal)} is finished. updateData"),
}
REMOVING: Wording = {JobNotFound: NO_JOB, JobLocked: _locked}

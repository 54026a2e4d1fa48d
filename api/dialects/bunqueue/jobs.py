"""Single jobs: what is asked of them and changed in them, what is answered, and the rows."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from quorumq.api.errors import Invalid
from quorumq.api.reply import Reply
from quorumq.api.request import CONSISTENCY, Call, Route, Wording
from quorumq.api.rows import ask, grouped, plain, success, write
from quorumq.api.rules import says
from quorumq.api.scopes import own_job
from quorumq.api.values import YEAR_MS, Number, whole
from quorumq.node.machine.operations.job_reads import (
    GetChildrenValues,
    GetJob,
    GetJobByCustomId,
    GetJobState,
    GetProgress,
    GetResult,
    Progress,
)
from quorumq.node.machine.operations.jobs import (
    CancelJob,
    ChangeDelay,
    ChangePriority,
    DiscardJob,
    MoveToDelayed,
    PromoteJob,
    UpdateJobData,
)
from quorumq.node.machine.operations.requeue import RequeueJob
from quorumq.node.machine.operations.runs import ProgressJob
from quorumq.node.machine.refusals import JobNotActive
from quorumq.node.machine.state.job import WAITING, Job

from . import errors, job_object, pushing, replies
from .values import BeatToken, DelayToken, Millis, Token, given_data, integer, note, number, of_job, of_known_job, read


def as_progress(name: str, value: Any) -> Number:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Invalid("progress must be a number")
    return whole(max(0, min(100, value)))


class ProgressBody(Struct, gc=False):
    """How far a job has come."""

    progress: Annotated[
        Number | None,
        says("0 to 100; what lies outside counts as the nearest.", reads=as_progress,
             required=True),
    ] = None  # fmt: skip
    message: Annotated[str | None, note("For people to read; stays until the next.")] = None
    token: BeatToken = None


class DataBody(Struct, gc=False):
    """New data of a job."""

    data: Annotated[Raw | UnsetType, given_data("Any JSON, up to 10 MB; takes the place of all data.")] = UNSET


class PriorityBody(Struct, gc=False):
    """New priority of a job."""

    priority: Annotated[
        int | None, integer("Higher goes first.", -pushing.PRIORITY_MAX, pushing.PRIORITY_MAX, required=True)
    ] = None


class DelayBody(Struct, gc=False):
    """How long a job is to wait from now."""

    delay: Annotated[Millis, number("Milliseconds.", 0, YEAR_MS, required=True)] = None
    token: DelayToken = None


class RequeueBody(Struct, gc=False):
    """Who has the job."""

    token: Token = None


class AgainBody(Struct, gc=False):
    """Who has the job, where that is known."""

    token: BeatToken = None


PROGRESS = msgspec.json.Decoder(ProgressBody)
DATA = msgspec.json.Decoder(DataBody)
PRIORITY = msgspec.json.Decoder(PriorityBody)
REQUEUE = msgspec.json.Decoder(RequeueBody)
AGAIN = msgspec.json.Decoder(AgainBody)
DELAY = msgspec.json.Decoder(DelayBody)


def progress(call: Call) -> ProgressJob:
    body = read(PROGRESS, call.body)
    return ProgressJob(call.path["id"], body.progress, body.message, body.token)


def update_data(call: Call) -> UpdateJobData:
    return UpdateJobData(call.path["id"], read(DATA, call.body, required=True).data)


def change_priority(call: Call) -> ChangePriority:
    return ChangePriority(call.path["id"], read(PRIORITY, call.body).priority)


def change_delay(call: Call) -> ChangeDelay:
    body = read(DELAY, call.body)
    return ChangeDelay(call.path["id"], body.delay, token=body.token if call.level >= 1 else None)


def move_to_delayed(call: Call) -> MoveToDelayed:
    body = read(DELAY, call.body)
    return MoveToDelayed(call.path["id"], body.delay, body.token)


def requeue(call: Call) -> RequeueJob:
    return RequeueJob(call.path["id"], read(REQUEUE, call.body).token)


def move_to_wait(call: Call) -> RequeueJob | PromoteJob:
    token = read(AGAIN, call.body).token
    if call.level < 1:
        return PromoteJob(call.path["id"])
    return RequeueJob(call.path["id"], token, forced=True)


def discard(call: Call) -> DiscardJob:
    # `removeOnFail` speaks of the last failure; a discarded job is sent to the dead letter queue by name.
    return DiscardJob(call.path["id"], always=True)


def get_job_by_custom_id(call: Call) -> GetJobByCustomId:
    return GetJobByCustomId(call.path["custom_id"])


class OneJob(replies.Success):
    job: job_object.JobShown


class StateOf(replies.Success):
    id: str
    state: job_object.JobState | Literal["unknown"]


class ResultOf(replies.Success):
    id: str
    result: Raw | UnsetType = UNSET


class ProgressOf(replies.Success):
    progress: replies.Number
    message: str | None


class Values(Struct, forbid_unknown_fields=True):
    values: dict[str, Raw]


class Children(replies.Success):
    values: dict[str, Raw]
    data: Values


def one_job(job: Job) -> bytes:
    return b'{"ok":true,"job":%b}' % job_object.full_text(job)


def state_of(job_id: str, state: str) -> bytes:
    # A job that waits with a priority is `waiting` to the document.
    shown = WAITING if state == "prioritized" else state
    return b'{"ok":true,"id":%b,"state":"%b"}' % (replies.ENCODE(job_id), shown.encode())


def result_of(job_id: str, result: bytes | None) -> bytes:
    if result is None:
        return b'{"ok":true,"id":%b}' % replies.ENCODE(job_id)
    return b'{"ok":true,"id":%b,"result":%b}' % (replies.ENCODE(job_id), result)


def progress_of(reply: Progress) -> bytes:
    return b'{"ok":true,"progress":%b,"message":%b}' % (
        job_object.number(reply.progress),
        replies.ENCODE(reply.message),
    )


def children(values: dict[str, bytes | None]) -> bytes:
    """Render the results both ways: the document's `values` and the server's `data.values`."""
    shown = b",".join(
        b"%b:%b" % (replies.ENCODE(job_id), b"null" if result is None else result) for job_id, result in values.items()
    )
    return b'{"ok":true,"values":{%b},"data":{"values":{%b}}}' % (shown, shown)


async def state(call: Call) -> Reply:
    query = GetJobState(call.path["id"])
    return success(await call.node.ask(query, partial(state_of, query.job_id), stale=call.stale))


async def result(call: Call) -> Reply:
    query = of_known_job(GetResult)(call)
    return success(await call.node.ask(query, partial(result_of, query.job_id), stale=call.stale))


NOT_ACTIVE_READ: Wording = {JobNotActive: partial(errors.word_progress, 404)}
NOT_ACTIVE_WRITE: Wording = {JobNotActive: partial(errors.word_progress, 400)}
ROUTES: tuple[Route, ...] = grouped(
    "Jobs",
    ask("GET", "/jobs/{id}", GetJob, of_job(GetJob), one_job, reply=OneJob, command="GetJob"),
    ask("GET", "/jobs/custom/{custom_id}", GetJobByCustomId, get_job_by_custom_id,
        one_job, reply=OneJob, scope="checked", narrow=own_job, command="GetJobByCustomId"),
    write("DELETE", "/jobs/{id}", CancelJob, of_job(CancelJob), replies.ok,
          reply=replies.Ok, right="produce", refusals=errors.CANCELLING, command="Cancel"),
    plain("GET", "/jobs/{id}/state", state, what=GetJobState, asks=(CONSISTENCY,), reply=StateOf,
          right="read", command="GetState"),
    plain("GET", "/jobs/{id}/result", result, what=GetResult, asks=(CONSISTENCY,), reply=ResultOf,
          right="read", command="GetResult"),
    ask("GET", "/jobs/{id}/progress", GetProgress, of_job(GetProgress), progress_of,
        reply=ProgressOf, refusals=NOT_ACTIVE_READ, command="GetProgress"),
    write("POST", "/jobs/{id}/progress", ProgressJob, progress, replies.ok, takes=ProgressBody,
          reply=replies.Ok, right="consume", refusals=NOT_ACTIVE_WRITE, command="Progress"),
    write("PUT", "/jobs/{id}/data", UpdateJobData, update_data, replies.ok, takes=DataBody,
          reply=replies.Ok, right="produce", body="data", refusals=errors.UPDATING, command="Update"),
    write("PUT", "/jobs/{id}/priority", ChangePriority, change_priority, replies.ok,
          takes=PriorityBody, reply=replies.Ok, right="produce", refusals=errors.REORDERING, command="ChangePriority"),
    write("POST", "/jobs/{id}/promote", PromoteJob, of_job(PromoteJob), replies.ok,
          reply=replies.Ok, right="produce", refusals=errors.PROMOTING, command="Promote"),
    write("POST", "/jobs/{id}/move-to-wait", RequeueJob, move_to_wait, replies.ok, takes=AgainBody,
          reply=replies.Ok, right="produce", refusals=errors.PROMOTING,
          about="Promote a delayed job, take an active one from its worker, or retry a dead one."),
    write("POST", "/jobs/{id}/requeue", RequeueJob, requeue, replies.ok, takes=RequeueBody,
          reply=replies.Ok, right="consume", refusals=errors.REQUEUING,
          about="Let a job wait again: an active one in front of its equals, a delayed one now, a dead one anew.",
          command="MoveToWait"),
    write("POST", "/jobs/{id}/move-to-delayed", MoveToDelayed, move_to_delayed, replies.ok,
          takes=DelayBody, reply=replies.Ok, right="consume", refusals=errors.DELAYING, command="MoveToDelayed"),
    write("PUT", "/jobs/{id}/delay", ChangeDelay, change_delay, replies.ok, takes=DelayBody,
          reply=replies.Ok, right="produce", refusals=errors.CHANGING_DELAY, command="ChangeDelay"),
    write("POST", "/jobs/{id}/discard", DiscardJob, discard, replies.ok,
          reply=replies.Ok, right="manage:all", refusals=errors.DISCARDING, command="Discard"),
    ask("GET", "/jobs/{id}/children", GetChildrenValues, of_known_job(GetChildrenValues), children,
        reply=Children, command="GetChildrenValues"),
)  # fmt: skip

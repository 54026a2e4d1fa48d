"""How runs end, and waiting for the end: what is sent, what is answered, and the rows."""

from __future__ import annotations

import math
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from quorumq.api.reply import Reply
from quorumq.api.request import Call, Route
from quorumq.api.rows import grouped, plain, success, write
from quorumq.api.rules import says
from quorumq.api.scopes import its_jobs
from quorumq.api.values import NOTE_CHARS_MAX
from quorumq.node.machine.operations.job_reads import GetJob
from quorumq.node.machine.operations.runs import AckedBatch, AckJob, AckJobs, FailJob
from quorumq.node.machine.refusals import Refusal
from quorumq.node.machine.state.job import COMPLETED, Job

from . import errors, replies
from .values import (
    Ids,
    Millis,
    Token,
    as_many,
    as_note,
    as_texts,
    beside_ids,
    checked_result,
    given_result,
    note,
    number,
    read,
    token_of,
    truth,
)

FINISH_WAIT_MS_MAX = 600_000
FINISH_WAIT_MS = 30_000


def result_item(name: str, value: Any) -> bytes | None:
    return checked_result(value)


def as_stack(name: str, value: Any) -> str | None:
    """Read a stack: lines, or one text."""
    return as_note(("\n".join(as_texts(value)) or None) if isinstance(value, list) else value)


class AckBody(Struct, gc=False):
    """How a run ended."""

    result: Annotated[Raw | UnsetType, given_result("Any JSON, up to 10 MB; kept as it was sent.")] = UNSET
    token: Token = None


class AckBatchBody(Struct, gc=False):
    """Jobs that completed, with their results and tokens in the same order."""

    ids: Ids = None
    results: Annotated[list[Raw] | None, beside_ids("As many as ids.", result_item)] = None
    tokens: Annotated[list[str | None] | None, beside_ids("As many as ids.", token_of)] = None


class FailBody(Struct, gc=False):
    """Why a run failed."""

    error: Annotated[str | None, note("For people to read; cut after 65,536 characters.")] = None
    token: Token = None
    unrecoverable: Annotated[bool | None, truth("No further run, whatever the attempts left.", default=False)] = None
    stack: Annotated[
        str | list[str] | None,
        says("Where in the worker's program; lines, or one text. Cut after 65,536 characters.",
             reads=as_stack, bound=NOTE_CHARS_MAX),
    ] = None  # fmt: skip


class WaitBody(Struct, gc=False):
    """How long to wait."""

    timeout: Annotated[Millis, number("Milliseconds.", 0, FINISH_WAIT_MS_MAX, default=FINISH_WAIT_MS)] = None


ACK = msgspec.json.Decoder(AckBody)
ACK_BATCH = msgspec.json.Decoder(AckBatchBody)
FAIL = msgspec.json.Decoder(FailBody)
WAIT = msgspec.json.Decoder(WaitBody)


def ack(call: Call) -> AckJob:
    body = read(ACK, call.body)
    return AckJob(call.path["id"], body.token, None if body.result is UNSET else body.result)


def ack_batch(call: Call) -> AckJobs:
    body = read(ACK_BATCH, call.body)
    return AckJobs(
        body.ids,
        as_many("ACKB", "tokens", body.tokens, body.ids),
        as_many("ACKB", "results", body.results, body.ids),
    )


def fail(call: Call) -> FailJob:
    body = read(FAIL, call.body)
    return FailJob(call.path["id"], body.token, body.error, bool(body.unrecoverable), stack=body.stack)


def waiting_ms(call: Call) -> int:
    """Return how long to wait for the end of a job, in milliseconds."""
    timeout = read(WAIT, call.body).timeout
    return FINISH_WAIT_MS if timeout is None else math.ceil(timeout)


class WaitResult(replies.Success):
    completed: bool
    result: Raw | UnsetType = UNSET


def acked_many(reply: AckedBatch) -> bytes | Refusal:
    """The jobs that could be completed are; the first that could not is the answer."""
    return reply.refused[0] if reply.refused else replies.OK


def finished(job: Job | None) -> bytes:
    """None: the wait ended before the job did."""
    if job is None or job.state != COMPLETED:
        return b'{"ok":true,"completed":false}'
    if job.result is None:
        return b'{"ok":true,"completed":true}'
    return b'{"ok":true,"completed":true,"result":%b}' % job.result


async def wait(call: Call) -> Reply:
    """Wait for the end of a job."""
    doing = call.node.wait_finished(call.path["id"], waiting_ms(call), finished)
    return success(await call.waiting(doing))


ROUTES: tuple[Route, ...] = grouped(
    "Jobs",
    write("POST", "/jobs/{id}/ack", AckJob, ack, replies.ok, takes=AckBody,
          reply=replies.Ok, right="consume", refusals=errors.FINISHING, command="ACK"),
    write("POST", "/jobs/ack-batch", AckJobs, ack_batch, acked_many, takes=AckBatchBody,
          reply=replies.Ok, right="consume", refusals=errors.FINISHING, scope="checked", check=its_jobs,
          command="ACKB"),
    write("POST", "/jobs/{id}/fail", FailJob, fail, replies.ok, takes=FailBody,
          reply=replies.Ok, right="consume", refusals=errors.FINISHING, command="FAIL"),
    plain("POST", "/jobs/{id}/wait", wait, what=GetJob, takes=WaitBody, reply=WaitResult,
          right="read", about="Wait until a job completes, or the time is over.", command="WaitJob"),
)  # fmt: skip

"""Jobs of a queue: added, listed, shown, changed; what is answered, and the rows. What a worker does with them is in manual.py.

Names and rules of what can be done to a job are BullMQ's (`job.retry()`, `job.remove()` and so on); paths are in the style of the
document's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from itertools import chain
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from quorumq.api.errors import Invalid
from quorumq.api.limits import LARGE_BYTES
from quorumq.api.reply import TEXT, Pieced, Reply
from quorumq.api.request import CONSISTENCY, Call, Parameter, Route
from quorumq.api.rows import Text, grouped, plain, success
from quorumq.api.scopes import its_descendants
from quorumq.node.batching import same
from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.adding import AddJobs, FindJob
from quorumq.node.machine.operations.job_reads import GetLogs
from quorumq.node.machine.operations.jobs import (
    AddLog,
    ChangeDelay,
    ChangePriority,
    ClearLogs,
    PromoteJob,
    RemoveJob,
    RetryJob,
    UpdateJobData,
)
from quorumq.node.machine.operations.queue_reads import Counts, ListStatus, QueueCounts
from quorumq.node.machine.operations.runs import ProgressJob
from quorumq.node.machine.refusals import JobNotFound
from quorumq.node.machine.state.job import Job, LogLine

from . import adding, errors, flows, job_object, queues, replies
from .lookup import canonical, held_job, job_of, prefix_of
from .values import (
    MILLIS_MAX,
    Body,
    any_json,
    flag,
    line,
    number,
    one_of,
    opaque,
    page,
    parse_int,
    progress_of,
    queue_of,
    read,
)

# What a page without a length holds; a longer one would hold up everybody else.
ALL_MAX = 10_000
STATUSES_ASKED = Parameter(
    "statuses",
    "Statuses with commas between them: waiting, active, completed, failed, delayed, prioritized; left out, all.",
    {"type": "string"},
)
START = Parameter(
    "start", "Jobs to skip, of those of all statuses asked for.", {"type": "integer", "minimum": 0, "default": 0}
)
LENGTH = Parameter(
    "length",
    "Jobs, at most; 0 for all, up to 10,000.",
    {"type": "integer", "minimum": 0, "maximum": 100, "default": 10},
)
LINE_START = Parameter("start", "Lines to skip.", {"type": "integer", "minimum": 0, "default": 0})
LINE_LENGTH = Parameter(
    "length", "Lines, at most; 0 for all.", {"type": "integer", "minimum": 0, "maximum": 100, "default": 10}
)
STATUSES = ("waiting", "active", "completed", "failed", "delayed", "prioritized")
KEEP_LOGS = Parameter("keepLogs", "The last lines that stay.", {"type": "integer", "minimum": 0, "default": 0})


class RetryBody(Body):
    """What a job must have come to, to run again."""

    state: Annotated[str | None, one_of("failed or completed.", queues.FINISHED)] = None
    reset_attempts_made: Annotated[bool | None, flag("Its attempts count from zero.", default=False)] = None


class NewPriorityBody(Body):
    """New priority of a job."""

    priority: Annotated[int | None, number("Lower goes first; 0 for none.", 0, adding.PRIORITY_MAX, required=True)] = (
        None
    )
    lifo: Annotated[bool | None, flag("First among those of its new priority, else last.", default=False)] = None


class NewDelayBody(Body):
    """How long a delayed job is to wait from now."""

    delay: Annotated[int | None, number("Milliseconds.", 0, MILLIS_MAX, required=True)] = None


class NewDataBody(Body):
    """New data of a job."""

    data: Annotated[Raw | UnsetType, any_json("Any JSON, up to 10 MB; takes the place of all data.", required=True)] = (
        UNSET
    )


RETRY = msgspec.json.Decoder(RetryBody)
PRIORITY = msgspec.json.Decoder(NewPriorityBody)
DELAY = msgspec.json.Decoder(NewDelayBody)
DATA = msgspec.json.Decoder(NewDataBody)


# -- What is answered --------------------------------------------------------------------------------------------------


class JobPage(replies.BullShown):
    """counts: of the statuses asked for.  jobs: start and length hold for each status by itself."""

    counts: dict[str, int]
    jobs: list[job_object.JobJson]
    start: int
    length: int


class LogPage(replies.BullShown):
    """count: all lines there are."""

    logs: list[str]
    count: int


class StateShown(replies.BullShown):
    state: job_object.State | Literal["unknown"]


def page_of_jobs(
    statuses: Iterable[str], counts: Counts, jobs: Iterable[Job], start: int, length: int, prefix: str
) -> list[bytes]:
    """Render a page in pieces, because its jobs may be large."""
    found = queues.all_counts(counts)
    asked = {status: found[status] for status in statuses}
    if "waiting" in asked:
        asked["paused"] = found["paused"]
    pieces = [b'{"counts":%b,"jobs":[' % replies.ENCODE(asked)]
    for job in jobs:
        if len(pieces) > 1:
            pieces.append(b",")
        pieces += job_object.job_pieces(job, prefix)
    pieces.append(b'],"start":%d,"length":%d}' % (start, length))
    return pieces


def lines(start: int, length: int, found: list[LogLine]) -> bytes:
    shown = found[start : start + length if length else None]
    return b'{"logs":%b,"count":%d}' % (replies.ENCODE([line.message for line in shown]), len(found))


def state_of(job: Job) -> bytes:
    return b'{"state":"%b"}' % job_object.state_name(job).encode()


NO_STATE = b'{"state":"unknown"}'


# -- Requests ----------------------------------------------------------------------------------------------------------


async def add(call: Call) -> Reply:
    """Add jobs to a queue, all or none."""
    wanted = adding.add(call) if len(call.body) <= LARGE_BYTES else await call.decoded(adding.add)
    if not wanted.items:
        # Nothing is no reason for a log entry, nor for a queue.
        return Reply(200, b"[]")
    if any(one.parent is not None for one in wanted.wanted):
        return await flows.add_children(call, wanted)
    added = await call.write(adding.operation(wanted), same)
    return await adding.answered(wanted, prefix_of(call), added)


def statuses_of(call: Call) -> list[str]:
    """Return the statuses asked for, each once. Raises Invalid."""
    asked = list(dict.fromkeys(status for status in call.query.get("statuses", "").split(",") if status))
    for status in asked:
        if status not in STATUSES:
            raise Invalid(f"Invalid status: {status[:100]}")
    return asked or list(STATUSES)


async def list_jobs(call: Call) -> Reply:
    """Read a page of the jobs in the statuses asked for: those of the first status first, newest first within each."""
    queue, statuses, (start, length) = queue_of(call), statuses_of(call), page(call)
    node = call.node
    counts = await node.ask(QueueCounts(queue), stale=call.stale)
    # Nothing happens between these reads: they wait for nothing.
    shown = [*statuses, "paused"] if "waiting" in statuses else statuses
    sizes, skipped, left = queues.all_counts(counts), start, length or ALL_MAX
    pages: list[list[Job]] = []
    for status in shown:
        pages.append(
            await node.ask(ListStatus(queue, status, skipped, left, True), stale=True) if sizes[status] else []
        )
        left -= len(pages[-1])
        skipped = max(skipped - sizes[status], 0)
        if left <= 0:
            break
    jobs = chain.from_iterable(pages)
    return Pieced(200, page_of_jobs(statuses, counts, jobs, start, length, prefix_of(call)))


async def get_job(call: Call) -> Reply:
    """Show a job in any state."""
    try:
        prefix = prefix_of(call)
        query = FindJob(queue_of(call), call.path["id"])
        return success(await call.node.ask(query, lambda job: job_object.job_text(job, prefix), stale=call.stale))
    except (Invalid, JobNotFound) as error:
        if call.request.headers.get("Content-Type", "").startswith("application/json"):
            # Asked as the document asks, with that header: answered as the document answers.
            status, text = (error.status, str(error)) if isinstance(error, Invalid) else errors.NO_JOB
            return Reply(status, errors.json_body(text))
        raise


async def get_state(call: Call) -> Reply:
    """Say in which state a job is; unknown when there is none."""
    query = FindJob(queue_of(call), call.path["id"])
    try:
        return Reply(200, await call.node.ask(query, state_of, stale=call.stale))
    except JobNotFound:
        return Reply(200, NO_STATE)


async def get_logs(call: Call) -> Reply:
    """Read the lines attached to a job, oldest first; none for an unknown job."""
    query, (start, length) = FindJob(queue_of(call), call.path["id"]), page(call)
    try:
        job_id = await call.node.ask(query, canonical, stale=call.stale)
    except JobNotFound:
        return Reply(200, lines(start, length, []))
    # Read of the same moment: this waits for nothing.
    return Reply(200, await call.node.ask(GetLogs(job_id), partial(lines, start, length), stale=True))


async def progress(call: Call) -> Reply:
    """Note how far a job has come, as any JSON; for whoever holds the job."""
    job_id, token = await held_job(call)
    text = opaque(call.body)
    # A number is a progress to all dialects; anything else, and how a number was written, is kept for this one.
    number = progress_of(text)
    is_plain = number is not None and 0 <= number <= 100 and replies.number(number) == text
    operation = ProgressJob(job_id, number or 0, token=token, value=None if is_plain else text)
    return Reply(200, await call.write(operation, replies.ok), TEXT)


async def add_log(call: Call) -> Reply:
    """Attach a line to a job; for whoever holds the job."""
    job_id, _ = await held_job(call)
    return Reply(200, await call.write(AddLog(job_id, line(call.body)), replies.ok), TEXT)


async def retry(call: Call) -> Operation:
    body = read(RETRY, call.body)
    return RetryJob(await job_of(call), body.state or queues.FINISHED[0], bool(body.reset_attempts_made))


async def promote(call: Call) -> Operation:
    return PromoteJob(await job_of(call))


async def change_priority(call: Call) -> Operation:
    body = read(PRIORITY, call.body)
    return ChangePriority(await job_of(call), -body.priority, lifo=bool(body.lifo))


async def change_delay(call: Call) -> Operation:
    delay = read(DELAY, call.body).delay
    return ChangeDelay(await job_of(call), delay, only_delayed=True)


async def update_data(call: Call) -> Operation:
    data = read(DATA, call.body).data
    return UpdateJobData(await job_of(call), data)


async def remove(call: Call) -> Operation:
    operation = RemoveJob(await job_of(call), children=call.level >= 1)
    return operation if call.grant.every_queue else await its_descendants(call, operation)


async def clear_logs(call: Call) -> Operation:
    keep = parse_int(call.query.get("keepLogs"), 0)
    if keep is None or keep < 0:
        raise Invalid("Invalid keepLogs")
    return ClearLogs(await job_of(call), keep, known=call.level >= 1)


# -- The rows ----------------------------------------------------------------------------------------------------------


def on_job(
    method: str, path: str, what: type[Operation], decode: Callable[[Call], Awaitable[Operation]], **more: Any
) -> Route:
    """A row that does something to one job and answers OK."""

    async def handler(call: Call) -> Reply:
        return replies.done(await call.write(await decode(call), replies.ok))

    target = "/queues/{queue}/jobs/{id}" + path
    return plain(method, target, handler, what=what, reply=Text, answers=errors.CONFLICTS, **more)


DOCUMENTED: tuple[Route, ...] = grouped(
    "BullMQ: jobs",
    plain("POST", "/queues/{queue}/jobs", add, what=AddJobs, takes=list[adding.NewJob], reply=adding.AddedJobs,
          right="produce", refusals=errors.ADDING_FLOWS, about="Add jobs to a queue, all or none; the body is an array."),
    plain("GET", "/queues/{queue}/jobs", list_jobs, what=ListStatus, asks=(STATUSES_ASKED, START, LENGTH, CONSISTENCY),
          reply=JobPage, right="read", about="Jobs of a queue by status, in pages."),
    plain("GET", "/queues/{queue}/jobs/{id}", get_job, what=FindJob, asks=(CONSISTENCY,), reply=job_object.JobJson,
          right="read", about="A job in any state."),
    plain("GET", "/queues/{queue}/jobs/{id}/state", get_state, what=FindJob, asks=(CONSISTENCY,),
          reply=StateShown, right="read", about="The state of a job."),
    plain("GET", "/queues/{queue}/jobs/{id}/logs", get_logs, what=GetLogs, asks=(LINE_START, LINE_LENGTH, CONSISTENCY),
          reply=LogPage, right="read"),
    plain("POST", "/queues/{queue}/jobs/{id}/progress", progress, what=ProgressJob, takes=Raw, reply=Text, right="job",
          refusals=errors.HOLDING,
          about="Note how far a job has come, any JSON; the job's own token is the bearer."),
    plain("POST", "/queues/{queue}/jobs/{id}/logs", add_log, what=AddLog, takes=Raw, reply=Text, right="job",
          refusals=errors.HOLDING, about="Attach a line to a job; the job's own token is the bearer."),
)  # fmt: skip  # fmt: skip

ACTIONS: tuple[Route, ...] = grouped(
    queues.GROUP,
    on_job("POST", "/retry", RetryJob, retry, takes=RetryBody, right="produce", refusals=errors.RETRYING,
           about="Let a finished job run again; its attempts made stay unless they are reset."),
    on_job("POST", "/promote", PromoteJob, promote, right="produce", refusals=errors.of_state("promote", "delayed")),
    on_job("POST", "/change-priority", ChangePriority, change_priority, takes=NewPriorityBody, right="produce",
           refusals=errors.of_state("changePriority", "waiting"), about="Give a job another priority, and its place there."),
    on_job("POST", "/change-delay", ChangeDelay, change_delay, takes=NewDelayBody, right="produce",
           refusals=errors.of_state("changeDelay", "delayed"), about="Let a delayed job wait for a time from now."),
    on_job("PUT", "/data", UpdateJobData, update_data, takes=NewDataBody, body="data", right="produce",
           refusals=errors.UPDATING, about="Replace the data of a job that is not finished."),
    on_job("DELETE", "", RemoveJob, remove, right="produce", refusals=errors.REMOVING),
    on_job("DELETE", "/logs", ClearLogs, clear_logs, asks=(KEEP_LOGS,), right="produce",
           about="Drop the lines attached to a job, but for the last ones if asked to."),
)  # fmt: skip

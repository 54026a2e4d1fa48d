"""The table of the BullMQ dialect: BullMQ Proxy's documented routes here, the rest in the modules named for it."""

from __future__ import annotations

from functools import partial
from itertools import chain

from msgspec import Raw

from quorumq.api.errors import Invalid
from quorumq.api.front import VARY, accepts, places, to_docs
from quorumq.api.limits import LARGE_BYTES
from quorumq.api.reply import TEXT, Pieced, Reply
from quorumq.api.request import CONSISTENCY, Call, Parameter, Route
from quorumq.api.rows import Text, grouped, plain, success
from quorumq.cluster.version import VERSION
from quorumq.node.machine.operations.adding import AddJobs, FindJob
from quorumq.node.machine.operations.job_reads import GetLogs
from quorumq.node.machine.operations.jobs import AddLog
from quorumq.node.machine.operations.queue_reads import ListStatus, QueueCounts
from quorumq.node.machine.operations.runs import ProgressJob
from quorumq.node.machine.refusals import JobNotFound
from quorumq.node.machine.state.job import Job

from . import actions, adding, errors, flows, manual, render, repeatables, replies, workers
from .lookup import canonical, held_job, prefix_of
from .values import line, opaque, page, progress_of, queue_of

# What a page without a length holds; a longer one would hold up everybody else.
ALL_MAX = 10_000
STATUSES = Parameter(
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


async def banner(call: Call) -> Reply:
    """Say who answers: in a line of text, as BullMQ Proxy does, unless the client asks for JSON or is a browser."""
    if (docs := to_docs(call)) is not None:
        return docs
    if accepts(call, "application/json"):
        return places({"bullmq": call.template.rstrip("/") or "/", "openarchiver": "/v1/jobs"})
    return Reply(200, b"quorumq %b: BullMQ Proxy's API; its description is at /docs\n" % VERSION.encode(), TEXT, VARY)


async def add(call: Call) -> Reply:
    """Add jobs to a queue, all or none."""
    wanted = adding.add(call) if len(call.body) <= LARGE_BYTES else await call.decoded(adding.add)
    if not wanted.items:
        # Nothing is no reason for a log entry, nor for a queue.
        return Reply(200, b"[]")
    if any(one.parent is not None for one in wanted.wanted):
        return success(await flows.add_children(call, wanted))
    operation = adding.operation(wanted)
    return success(await call.submit(operation, partial(adding.added, wanted, prefix_of(call))))


def statuses_of(call: Call) -> list[str]:
    """Return the statuses asked for, each once. Raises Invalid."""
    asked = list(dict.fromkeys(status for status in call.query.get("statuses", "").split(",") if status))
    for status in asked:
        if status not in render.STATUSES:
            raise Invalid(f"Invalid status: {status[:100]}")
    return asked or list(render.STATUSES)


async def list_jobs(call: Call) -> Reply:
    """Read a page of the jobs in the statuses asked for: those of the first status first, newest first within each."""
    queue, statuses, (start, length) = queue_of(call), statuses_of(call), page(call)
    node = call.node
    counts = await node.ask(QueueCounts(queue), stale=call.stale)
    # Nothing happens between these reads: they wait for nothing.
    shown = [*statuses, "paused"] if "waiting" in statuses else statuses
    sizes, skipped, left = render.all_counts(counts), start, length or ALL_MAX
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
    return Pieced(200, render.page(statuses, counts, jobs, start, length, prefix_of(call)))


async def get_job(call: Call) -> Reply:
    """Show a job in any state."""
    try:
        prefix = prefix_of(call)
        query = FindJob(queue_of(call), call.path["id"])
        return success(await call.node.ask(query, lambda job: render.job_text(job, prefix), stale=call.stale))
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
        return Reply(200, await call.node.ask(query, render.state, stale=call.stale))
    except JobNotFound:
        return Reply(200, render.NO_STATE)


async def get_logs(call: Call) -> Reply:
    """Read the lines attached to a job, oldest first; none for an unknown job."""
    query, (start, length) = FindJob(queue_of(call), call.path["id"]), page(call)
    try:
        job_id = await call.node.ask(query, canonical, stale=call.stale)
    except JobNotFound:
        return Reply(200, render.logs(start, length, []))
    # Read of the same moment: this waits for nothing.
    return Reply(200, await call.node.ask(GetLogs(job_id), partial(render.logs, start, length), stale=True))


async def progress(call: Call) -> Reply:
    """Note how far a job has come, as any JSON; for whoever holds the job."""
    job_id, token = await held_job(call)
    text = opaque(call.body)
    # A number is a progress to all dialects; anything else, and how a number was written, is kept for this one.
    number = progress_of(text)
    is_plain = number is not None and 0 <= number <= 100 and render.number(number) == text
    operation = ProgressJob(job_id, number or 0, token=token, value=None if is_plain else text)
    return Reply(200, await call.submit(operation, render.ok), TEXT)


async def add_log(call: Call) -> Reply:
    """Attach a line to a job; for whoever holds the job."""
    job_id, _ = await held_job(call)
    return Reply(200, await call.submit(AddLog(job_id, line(call.body)), render.ok), TEXT)


PROXY = grouped(
    "BullMQ: jobs",
    plain("GET", "/", banner, reply=Text, right="open", limited=False,
          about="Who answers, in one line; what is where, if JSON is asked for; a browser is sent to `/docs`."),
    plain("POST", "/queues/{queue}/jobs", add, what=AddJobs, takes=list[adding.NewJob], reply=replies.AddedJobs,
          right="produce", refusals=errors.ADDING_FLOWS, about="Add jobs to a queue, all or none; the body is an array."),
    plain("GET", "/queues/{queue}/jobs", list_jobs, what=ListStatus, asks=(STATUSES, START, LENGTH, CONSISTENCY),
          reply=replies.JobPage, right="read", about="Jobs of a queue by status, in pages."),
    plain("GET", "/queues/{queue}/jobs/{id}", get_job, what=FindJob, asks=(CONSISTENCY,), reply=replies.JobJson,
          right="read", about="A job in any state."),
    plain("GET", "/queues/{queue}/jobs/{id}/state", get_state, what=FindJob, asks=(CONSISTENCY,),
          reply=replies.StateShown, right="read", about="The state of a job."),
    plain("GET", "/queues/{queue}/jobs/{id}/logs", get_logs, what=GetLogs, asks=(LINE_START, LINE_LENGTH, CONSISTENCY),
          reply=replies.LogPage, right="read"),
    plain("POST", "/queues/{queue}/jobs/{id}/progress", progress, what=ProgressJob, takes=Raw, reply=Text, right="job",
          refusals=errors.HOLDING,
          about="Note how far a job has come, any JSON; the job's own token is the bearer."),
    plain("POST", "/queues/{queue}/jobs/{id}/logs", add_log, what=AddLog, takes=Raw, reply=Text, right="job",
          refusals=errors.HOLDING, about="Attach a line to a job; the job's own token is the bearer."),
)  # fmt: skip

ROUTES: tuple[Route, ...] = (
    *PROXY,
    *workers.ROUTES,
    *manual.ROUTES,
    *actions.ROUTES,
    *repeatables.ROUTES,
    *flows.ROUTES,
)

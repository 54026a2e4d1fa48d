"""Which queues a request touches, held against the patterns of its token: the check before a row runs, and those of rows
whose queues stand in their bodies or in records.

A job, a cron, a webhook or a worker of another's queue is answered as if there were none, so that its id tells nothing: neither
by the answer nor by what it takes to find it. So a request about one, or about one that there is not, goes on about an id made up
for it, which nothing has. Tokens for all queues, and nodes without tokens, pay one comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from quorumq.node.machine.lifecycle import flows
from quorumq.node.machine.operations.schedules import AddCron, DeleteCron, GetCron
from quorumq.node.machine.operations.webhooks import AddWebhook, EnableWebhook, RemoveWebhook, WebhookShown
from quorumq.node.machine.operations.workers import HeartbeatWorker, RegisterWorker, UnregisterWorker, WorkerList
from quorumq.node.machine.refusals import CronNotFound, JobNotFound

from .auth import Forbidden, Grant
from .errors import Hidden
from .ids import new_id
from .request import Call

if TYPE_CHECKING:
    from quorumq.node.machine.operation import Operation, Query
    from quorumq.node.machine.operations.flows import AddFlow, AttachChild, RemoveUnprocessedChildren
    from quorumq.node.machine.operations.job_reads import GetJobByCustomId
    from quorumq.node.machine.operations.jobs import JobTies, PushJobs, RemoveJob
    from quorumq.node.machine.state.job import Job
    from quorumq.node.machine.state.schedule import Cron


ENCODE = msgspec.json.Encoder().encode
NOT_FOR_ALL = "Forbidden: the token is not for all queues"


async def permit(call: Call) -> None:
    """Check that the sender may send this request. Raises Forbidden, Unavailable.

    A job of a queue that the token is not for is put out of sight: the request is about another id then, which no job has.
    """
    route, grant = call.route, call.grant
    if route.right in call.server.open_rights:
        return
    if not grant.may(route.right):
        raise Forbidden(f"Forbidden: the token does not have the right {route.right}")
    if grant.every_queue:
        return
    scope = route.touches
    if scope == "queue":
        needs(grant, call.path["queue"])
    elif scope == "job":
        await mask_foreign_job(call)
    elif scope == "every":
        raise Forbidden(NOT_FOR_ALL)


def needs(grant: Grant, *queues: str) -> None:
    """Raise Forbidden unless a token is for these queues."""
    for queue in queues:
        if not grant.covers(queue):
            raise Forbidden("Forbidden: the token is not for this queue")


def mask(call: Call, asked: str, *, is_anothers: bool) -> str:
    """Return an id that nothing has, in place of one that this sender cannot ask about.

    The same whether it is another's or nobody's, so that one which comes to be meanwhile is not met either.
    """
    made = new_id()
    call.masked[made] = asked
    call.masks_anothers = call.masks_anothers or is_anothers
    return made


async def own_jobs(call: Call, job_ids: Sequence[str]) -> Sequence[str]:
    """Return the ids of jobs that the token is for as they are, and others in place of the rest.

    A job of any age stays in its queue, so that what this node's copy knows as its own is so. What it does not, another's or
    none, is looked for in a state as new as a linearizable read, unless the client is content with the copy. Raises Unavailable.
    """
    covers, jobs = call.grant.covers, call.node.machine.state.jobs

    def is_own(job_id: str) -> bool:
        job = jobs.get(job_id)
        return job is not None and covers(job.queue)

    if all(map(is_own, job_ids)):
        return job_ids
    if call.route.method != "GET" or not call.stale:
        await call.node.refresh()
        jobs = call.node.machine.state.jobs
    return [job_id if is_own(job_id) else mask(call, job_id, is_anothers=job_id in jobs) for job_id in job_ids]


async def mask_foreign_job(call: Call) -> None:
    """Have a request about a job of another's queue, or about none, be about one that is not there."""
    (job_id,) = await own_jobs(call, [call.path["id"]])
    if job_id != call.path["id"]:
        call.path = {**call.path, "id": job_id}


def unmask(call: Call, body: bytes) -> bytes:
    """Put the ids that were asked for back into the body of a reply about some that are not there."""
    for made, asked in call.masked.items():
        body = body.replace(made.encode(), ENCODE(asked)[1:-1])
    return body


# -- Checks of what rows made of their bodies, for tokens that are not for all queues ------------------------------------


async def its_jobs(call: Call, operation: Any) -> Operation:
    """Take the jobs of other queues out of a batch, each of whose jobs is looked at for itself."""
    made: Operation = msgspec.structs.replace(operation, job_ids=list(await own_jobs(call, operation.job_ids)))
    return made


async def its_dependencies(call: Call, operation: PushJobs) -> Operation:
    """Check the jobs that pushed ones are to wait for, and that are to wait for them: whoever waits for a job may read its result."""
    if operation.ties:
        operation = msgspec.structs.replace(operation, ties=await its_ties(call, operation.ties))
    wanted = [job_id for spec in operation.jobs for job_id in spec.depends_on]
    known = await own_jobs(call, wanted) if wanted else wanted
    if known is wanted:
        return operation
    left = iter(known)
    jobs = [
        msgspec.structs.replace(spec, depends_on=tuple(islice(left, len(spec.depends_on)))) for spec in operation.jobs
    ]
    made: Operation = msgspec.structs.replace(operation, jobs=jobs)
    return made


async def its_ties(call: Call, ties: tuple[JobTies, ...]) -> tuple[JobTies, ...]:
    """Return what is said of pushed jobs' families, with ids that are nobody's in place of those that the token has no right to."""
    wanted = [one for tied in ties for one in (*([tied.parent_id] if tied.parent_id else ()), *tied.children_ids)]
    left = iter(await own_jobs(call, wanted))
    return tuple(
        msgspec.structs.replace(
            tied,
            parent_id=next(left) if tied.parent_id else None,
            children_ids=tuple(islice(left, len(tied.children_ids))),
        )
        for tied in ties
    )


async def its_flow(call: Call, operation: AddFlow) -> Operation:
    """Check the queues of all jobs of a flow."""
    needs(call.grant, *{each.queue for each in operation.jobs})
    return operation


async def its_child(call: Call, operation: AttachChild) -> Operation:
    """Check the job that is to wait for another one, which the row's path names: whoever waits for a job may read its result."""
    (parent,) = await own_jobs(call, [operation.parent_id])
    made: Operation = msgspec.structs.replace(operation, parent_id=parent)
    return made


async def its_descendants(call: Call, operation: RemoveUnprocessedChildren | RemoveJob) -> Operation:
    """Check the queues of the jobs below a job that are to go."""
    await call.node.refresh()
    state = call.node.machine.state
    job = state.jobs.get(operation.job_id)
    needs(call.grant, *({child.queue for child in flows.descendants(state, job)} if job is not None else ()))
    return operation


async def its_cron(call: Call, operation: AddCron | DeleteCron) -> Operation:
    """Check the queue of a cron, and of the one whose place it takes."""
    await call.node.refresh()
    cron = call.node.machine.state.schedule.crons.get(operation.name)
    if isinstance(operation, AddCron):
        needs(call.grant, operation.queue, *([cron.queue] if cron is not None else ()))
    elif cron is None or not call.grant.covers(cron.queue):
        name = mask(call, operation.name, is_anothers=cron is not None)
        return msgspec.structs.replace(operation, name=name)
    return operation


async def its_webhook(call: Call, operation: AddWebhook | RemoveWebhook | EnableWebhook) -> Operation:
    """Check the queue of a webhook; one that has none hears of all of them."""
    if isinstance(operation, AddWebhook):
        if operation.queue is None:
            raise Forbidden(NOT_FOR_ALL)
        needs(call.grant, operation.queue)
        return operation
    await call.node.refresh()
    webhook = call.node.machine.state.webhooks.by_id.get(operation.webhook_id)
    if webhook is None or not covers_all(call.grant, webhook.about):
        webhook_id = mask(call, operation.webhook_id, is_anothers=webhook is not None)
        return msgspec.structs.replace(operation, webhook_id=webhook_id)
    return operation


async def its_worker(call: Call, operation: RegisterWorker | UnregisterWorker | HeartbeatWorker) -> Operation:
    """Check the queues of a worker, and of the one whose place it takes; one that has none may be at any."""
    await call.node.refresh()
    worker = call.node.machine.state.workers.by_id.get(operation.worker_id)
    is_own = worker is not None and covers_all(call.grant, worker.queues)
    if isinstance(operation, RegisterWorker):
        if not (is_own or worker is None) or not covers_all(call.grant, operation.queues):
            raise Forbidden("Forbidden: the token is not for the queues of this worker")
    elif not is_own:
        worker_id = mask(call, operation.worker_id, is_anothers=worker is not None)
        return msgspec.structs.replace(operation, worker_id=worker_id)
    return operation


def covers_all(grant: Grant, queues: Sequence[str] | None) -> bool:
    """Say whether a token is for all of these queues; none stands for every queue there is."""
    return bool(queues) and all(grant.covers(queue) for queue in queues or ())


# -- What tokens that are not for all queues see of an answer ------------------------------------------------------------


def own_names(grant: Grant, query: Query, names: list[str]) -> list[str]:
    return [name for name in names if grant.covers(name)]


def own_crons(grant: Grant, query: Query, crons: list[Cron]) -> list[Cron]:
    return [cron for cron in crons if grant.covers(cron.queue)]


def own_cron(grant: Grant, query: GetCron, cron: Cron) -> Cron:
    if not grant.covers(cron.queue):
        raise Hidden(CronNotFound(query.name))
    return cron


def own_webhooks(grant: Grant, query: Query, shown: list[WebhookShown]) -> list[WebhookShown]:
    return [one for one in shown if one.webhook.queue is not None and grant.covers(one.webhook.queue)]


def own_workers(grant: Grant, query: Query, found: WorkerList) -> WorkerList:
    """Show of each worker only the queues that the token is for, and not the job it works on, which may be of another."""
    seen = []
    for worker in found.workers:
        queues = tuple(queue for queue in worker.queues if grant.covers(queue))
        is_own = queues == worker.queues
        seen.append(worker if is_own else msgspec.structs.replace(worker, queues=queues, current_job=None))
    return msgspec.structs.replace(found, workers=seen)


def own_job(grant: Grant, query: GetJobByCustomId, job: Job) -> Job:
    if not grant.covers(job.queue):
        raise Hidden(JobNotFound(query.job_id))
    return job

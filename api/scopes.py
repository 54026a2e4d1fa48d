"""Which queues a request touches, held against the patterns of its token: the check before a row runs, and those of rows
whose queues stand in their bodies or in records.

A job, a cron, a webhook or a worker of another's queue is answered as if there were none, so that its id tells nothing.
Tokens for all queues, and nodes without tokens, pay one comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from node.operations.schedules import AddCron, DeleteCron, GetCron
from node.operations.webhooks import AddWebhook, EnableWebhook, RemoveWebhook, WebhookShown
from node.operations.workers import HeartbeatWorker, RegisterWorker, UnregisterWorker, WorkerList
from node.refusals import CronNotFound, DependencyNotFound, JobNotFound, Refusal, WebhookNotFound, WorkerNotFound
from node.state import State

from .auth import Forbidden, Grant
from .ids import new_id

if TYPE_CHECKING:
    from node.operation import Operation, Query
    from node.operations.jobs import GetJobByCustomId, PushJobs
    from node.state.job import Job
    from node.state.schedule import Cron

    from .http import Call

# No job has this id.
NO_ID = ""
ENCODE = msgspec.json.Encoder().encode
NOT_FOR_ALL = "Forbidden: the token is not for all queues"


class Hidden(Exception):
    """What was asked for is there and not for this sender; `refusal` is what he is told."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


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
        await look_away(call)
    elif scope == "every":
        raise Forbidden(NOT_FOR_ALL)


def needs(grant: Grant, *queues: str) -> None:
    """Raise Forbidden unless a token is for these queues."""
    for queue in queues:
        if not grant.covers(queue):
            raise Forbidden("Forbidden: the token is not for this queue")


async def known_jobs(call: Call, job_ids: Iterable[str]) -> State:
    """Return the state once it is new enough to say of what queue the jobs are: a job of any age stays in its queue."""
    state = call.node.machine.state
    if any(job_id not in state.jobs for job_id in job_ids):
        await call.node.refresh()
    return call.node.machine.state


async def look_away(call: Call) -> None:
    """Have a request about a job of another's queue be about one that is not there."""
    job_id = call.path["id"]
    state = await known_jobs(call, [job_id])
    job = state.jobs.get(job_id)
    if job is not None and not call.grant.covers(job.queue):
        call.hidden_id = job_id
        call.path = {**call.path, "id": new_id()}


def named_again(call: Call, body: bytes) -> bytes:
    """Put the id that was asked for back into the body of a reply about one that is not there."""
    if call.hidden_id is None:
        return body
    return body.replace(call.path["id"].encode(), ENCODE(call.hidden_id)[1:-1])


# -- Checks of what rows made of their bodies, for tokens that are not for all queues ------------------------------------


async def its_jobs(call: Call, operation: Any) -> Operation:
    """Take the jobs of other queues out of a batch, each of whose jobs is looked at for itself."""
    state = await known_jobs(call, operation.job_ids)
    covers, jobs = call.grant.covers, state.jobs
    ids = [job_id if (job := jobs.get(job_id)) is None or covers(job.queue) else NO_ID for job_id in operation.job_ids]
    made: Operation = msgspec.structs.replace(operation, job_ids=ids)
    return made


async def its_dependencies(call: Call, operation: PushJobs) -> Operation:
    """Check the jobs that pushed ones are to wait for: whoever waits for a job may read its result."""
    wanted = [(at, job_id) for at, spec in enumerate(operation.jobs) for job_id in spec.depends_on]
    if wanted:
        state = await known_jobs(call, (job_id for _, job_id in wanted))
        for at, job_id in wanted:
            job = state.jobs.get(job_id)
            if job is not None and not call.grant.covers(job.queue):
                raise Hidden(DependencyNotFound(at, job_id))
    return operation


async def its_cron(call: Call, operation: AddCron | DeleteCron) -> Operation:
    """Check the queue of a cron, and of the one whose place it takes."""
    await call.node.refresh()
    cron = call.node.machine.state.schedule.crons.get(operation.name)
    is_foreign = cron is not None and not call.grant.covers(cron.queue)
    if isinstance(operation, AddCron):
        needs(call.grant, operation.queue, *([cron.queue] if cron is not None else ()))
    elif is_foreign:
        raise Hidden(CronNotFound(operation.name))
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
    if webhook is not None and not covers_all(call.grant, webhook.queue and (webhook.queue,)):
        raise Hidden(WebhookNotFound(operation.webhook_id))
    return operation


async def its_worker(call: Call, operation: RegisterWorker | UnregisterWorker | HeartbeatWorker) -> Operation:
    """Check the queues of a worker, and of the one whose place it takes; one that has none may be at any."""
    await call.node.refresh()
    worker = call.node.machine.state.workers.by_id.get(operation.worker_id)
    is_foreign = worker is not None and not covers_all(call.grant, worker.queues)
    if isinstance(operation, RegisterWorker):
        if is_foreign or not covers_all(call.grant, operation.queues):
            raise Forbidden("Forbidden: the token is not for the queues of this worker")
    elif is_foreign:
        raise Hidden(WorkerNotFound(operation.worker_id))
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

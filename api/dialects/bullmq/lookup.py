"""Which job a path means: in this dialect an id is unique in its queue only, and jobs of other dialects can be meant too.

What holds a job over progress and logs, its lock's token, is checked here as well.
"""

from __future__ import annotations

import hmac

from quorumq.api.auth import BEARER
from quorumq.api.errors import Invalid
from quorumq.api.request import Call
from quorumq.node.machine.operations.adding import FindJob
from quorumq.node.machine.refusals import JobNotFound
from quorumq.node.machine.state import scoped_id
from quorumq.node.machine.state.job import ACTIVE, Job

from .values import queue_of


def prefix_of(call: Call) -> str:
    """Return what stands before a queue's name in `queueQualifiedName`."""
    return call.server.config.queue_prefix


async def job_of(call: Call) -> str:
    """Return the canonical id of the job that the path names. Raises Invalid, Unavailable.

    It is looked for in this node's copy first, since no id changes its meaning while its job is there. An id that no job has
    is returned all the same: the operation refuses it, or its repeat under an idempotency key finds the first answer.
    """
    queue, own = queue_of(call), call.path["id"]
    query = FindJob(queue, own)
    for stale in (True, False):
        try:
            return await call.node.ask(query, canonical, stale=stale)
        except JobNotFound:
            continue
    return scoped_id(queue, own)


def canonical(job: Job) -> str:
    """Return the id that operations take."""
    return job.id


async def held_job(call: Call) -> tuple[str, str]:
    """Return the canonical id of the job that the path names, and the token that holds it.

    Asked of the newest state and before anything else is looked at, so that nobody but the job's holder writes to the log, or
    learns whether there is such a job. Raises Invalid (401), Unavailable.
    """
    given = call.request.headers.get("Authorization", "").split(BEARER)
    token = given[1] if len(given) > 1 else ""
    try:
        found = await call.node.ask(FindJob(call.path["queue"], call.path["id"]), _lock)
    except JobNotFound:
        found = None
    if found is None or not same(token, found[1]):
        raise Invalid("Unauthorized", 401, "unauthorized")
    return found


def _lock(job: Job) -> tuple[str, str] | None:
    return (job.id, job.token) if job.state == ACTIVE and job.token else None


def same(given: str, token: str) -> bool:
    """Compare tokens in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode("utf-8", "surrogateescape"))

"""Finding jobs as clients of BullMQ's backend protocol call them: by queue, and an id within it.

What those call `prefix:name` is the queue `name` with the default prefix, which the other dialects serve, and `@prefix:name` with any
other; the edge says which (`api/dialects/bullmq/backend/names.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorumq.node.machine.state.job import Job, own_id, scoped_id

if TYPE_CHECKING:
    from quorumq.node.machine.state.state import State


def failure_text(child: Job, prefix: str) -> str:
    """Return in BullMQ's words that a child failed, with its `prefix:name:id`. prefix: the default one, of queues with a bare name."""
    name = child.queue
    return f"child {name[1:] if name.startswith('@') else f'{prefix}:{name}'}:{own_id(child)} failed"


def find(state: State, queue: str, own: str) -> Job | None:
    """Return the job that is called `own` in a queue, or has that as its whole id there."""
    job = state.jobs.get(scoped_id(queue, own))
    if job is None or job.queue != queue:
        job = state.jobs.get(own)
    return job if job is not None and job.queue == queue else None

"""What can be asked about a job."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from quorumq.node.machine.bounds import JobId
from quorumq.node.machine.operation import Query, query
from quorumq.node.machine.refusals import JobNotFound
from quorumq.node.machine.state import State
from quorumq.node.machine.state.job import COMPLETED, PROCESSED, FlowLinks, Job, LogLine, child_key


class Progress(msgspec.Struct, frozen=True, gc=False):
    """How far a job has come."""

    progress: int | float
    message: str | None


@query
class GetJob(Query, frozen=True):
    """The record of a job in any state."""

    job_id: JobId

    def answer(self, state: State) -> Job:
        return state.job(self.job_id)


@query
class GetJobByCustomId(Query, frozen=True):
    """The record of a job in any state whose id the client chose."""

    job_id: JobId

    def answer(self, state: State) -> Job:
        job = state.job(self.job_id)
        if job.custom_id != self.job_id:
            raise JobNotFound(self.job_id)
        return job


@query
class GetJobState(Query, frozen=True):
    """A job's state: waiting, prioritized, delayed, active, waiting-children, completed, failed; unknown for no job."""

    job_id: JobId

    def answer(self, state: State) -> str:
        job = state.jobs.get(self.job_id)
        return "unknown" if job is None else job.shown_state


@query
class GetResult(Query, frozen=True):
    """The result of a completed job; None when there is no such job, no end yet, or no result was given.

    known: refused for an unknown job.
    """

    job_id: JobId
    known: bool = False

    def answer(self, state: State) -> bytes | None:
        job = state.job(self.job_id) if self.known else state.jobs.get(self.job_id)
        return None if job is None or job.state != COMPLETED else job.result


@query
class GetProgress(Query, frozen=True):
    """The progress of an active job."""

    job_id: JobId

    def answer(self, state: State) -> Progress:
        job = state.active_job(self.job_id)
        return Progress(job.progress, job.progress_message)


@query
class GetLogs(Query, frozen=True):
    """Lines attached to a job, oldest first; none for an unknown job.

    known: refused for an unknown job.
    """

    job_id: JobId
    known: bool = False

    def answer(self, state: State) -> list[LogLine]:
        if self.known:
            state.job(self.job_id)
        return state.logs.by_job.get(self.job_id, [])


@query
class GetChildrenValues(Query, frozen=True):
    """Results of the completed jobs that a job waits, or waited, for: by id, those of its children by key; empty for an unknown job.

    known: refused for an unknown job.
    """

    job_id: JobId
    known: bool = False

    def answer(self, state: State) -> dict[str, bytes | None]:
        job = state.job(self.job_id) if self.known else state.jobs.get(self.job_id)
        if job is None:
            return {}
        values = {} if job.dependencies is None else job.dependencies.values
        if job.flow is not None:
            # Clients make a flow of jobs that depend on each other, too: such a child is told once.
            children = job.flow.children
            values = {key: value for key, value in values.items() if children.get(key) is None}
            values |= dict(processed_children(job.flow))
        return values


def processed_children(links: FlowLinks) -> Iterator[tuple[str, bytes | None]]:
    """Return the keys and results of the children that completed."""
    for child_id, end in links.children.items():
        if end is not None and end.how == PROCESSED:
            yield child_key(end.queue, child_id), end.result

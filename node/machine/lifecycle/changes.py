"""What may be changed of a job that stays where it is: data, options, priority, log lines."""

from __future__ import annotations

import msgspec

from quorumq.node.machine.lifecycle import indexes
from quorumq.node.machine.state.job import COMPLETED, DELAYED, FAILED, WAITING, Job, JobSpec, LogLine
from quorumq.node.machine.state.logs import LOG_LINES_MAX
from quorumq.node.machine.state.state import State


def update_data(state: State, job: Job, data: bytes) -> None:
    """Replace the data of an unfinished job."""
    job.data = data
    state.mark += job.seq * 29


def replace_data(state: State, job: Job, data: bytes) -> None:
    """Replace the data of a job in any state."""
    if job.state == COMPLETED:
        state.queues[job.queue].completed_bytes += len(data) - len(job.data)
    elif job.state == FAILED:
        state.queues[job.queue].failed_bytes += len(data) - len(job.data)
    update_data(state, job, data)


def renew(state: State, job: Job, spec: JobSpec) -> None:
    """Give a job that waits other data and options; among those of its priority it keeps its place."""
    if job.opts != spec.opts:
        queue = state.queues[job.queue]
        indexes.leave(state, queue, job)
        job.opts = state.shared(spec.opts)
        indexes.enqueue(state, queue, job)
    update_data(state, job, spec.data)


def change_priority(state: State, job: Job, priority: int, *, first: bool = False) -> None:
    """Give an unfinished job another priority, and its place among its new equals; first: in front of them."""
    queue = state.queues[job.queue]
    opts = state.shared(msgspec.structs.replace(job.opts, priority=priority))
    if job.state in (WAITING, DELAYED):
        indexes.leave(state, queue, job)
        job.opts = opts
        if first:
            indexes.rejoin(state, job, first=True)
        elif not opts.lifo:
            indexes.rejoin_by_options(state, job)
        indexes.enqueue(state, queue, job)
    else:
        job.opts = opts
    state.mark += job.seq * 37


def add_log(state: State, job: Job, level: str, message: str, keep: int = LOG_LINES_MAX) -> int:
    """Attach a line to a job, of which the last `keep` stay (LOG_LINES_MAX at most); return how many it has."""
    state.mark += job.seq * 41
    return state.logs.add(job.id, LogLine(state.now_ms, level, message), keep, in_bytes=state.level >= 1)


def clear_logs(state: State, job_id: str, keep: int = 0) -> None:
    """Drop a job's lines but for the last `keep`."""
    if state.logs.clear(job_id, keep):
        state.mark += 43

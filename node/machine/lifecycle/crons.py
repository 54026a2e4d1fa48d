"""Crons: jobs pushed at their due times, unless the last one is still there."""

from __future__ import annotations

import msgspec

from quorumq.node.machine.events import CronDeleted, CronFired, CronSkipped
from quorumq.node.machine.lifecycle import creation, unique_keys
from quorumq.node.machine.state.job import DELAYED, WAITING, Job, next_id, scoped_id
from quorumq.node.machine.state.schedule import Cron
from quorumq.node.machine.state.state import State


def fire(state: State, cron: Cron, due_ms: int) -> None:
    """Push a cron's job for one due time, unless the last one is still there; remove a cron that may fire no more."""
    key = cron.unique_key
    queue = state.queue(cron.queue, always=True)
    if cron.needs_worker and cron.queue not in state.workers.queues:
        state.emit(CronSkipped(cron.name, cron.queue, "no-worker"))
        return
    if cron.key is not None:
        fire_repeating(state, cron, due_ms)
    elif key is not None and unique_keys.holder_of(state, queue, key) is not None:
        cron.executions += 1
        if state.level >= 1:
            state.schedule.skip(cron)
        state.emit(CronSkipped(cron.name, cron.queue, "overlap"))
    else:
        # The id tells the due time, so that another attempt at the same one would find the job.
        job_id = next_id(f"cron:{cron.name}", due_ms)
        creation.push(state, cron.queue, (msgspec.structs.replace(cron.job, id=job_id, unique_key=key),))
        if state.level >= 1:
            cron.last_id = job_id
        cron.executions += 1
        cron.last_fired = state.now_ms
        state.emit(CronFired(cron.name, cron.queue))
    state.mark += cron.executions * 71
    if cron.max_limit is not None and state.schedule.runs(cron) >= cron.max_limit:
        remove(state, cron)


def fire_repeating(state: State, cron: Cron, due_ms: int) -> None:
    """Push the job of a repetition, unless the last one still waits; its id tells repetition and time."""
    if waiting_of(state, cron) is not None:
        state.emit(CronSkipped(cron.name, cron.queue, "overlap"))
        return
    cron.last_id = scoped_id(cron.queue, f"repeat:{cron.key}:{due_ms}")
    creation.push(state, cron.queue, (msgspec.structs.replace(cron.job, id=cron.last_id),))
    cron.executions += 1
    cron.last_fired = state.now_ms
    state.emit(CronFired(cron.name, cron.queue))


def waiting_of(state: State, cron: Cron) -> Job | None:
    """Return the job of a repetition that nobody has taken yet, if there is one."""
    last = state.jobs.get(cron.last_id)
    return last if last is not None and last.state in (WAITING, DELAYED) and not last.starts else None


def remove(state: State, cron: Cron) -> None:
    """Take a cron away."""
    state.schedule.remove(cron)
    state.mark += 73
    state.emit(CronDeleted(cron.name, (cron.queue,)))


def stop_repeating(state: State, name: str) -> None:
    """Take away all that would make jobs of a queue by itself."""
    schedule = state.schedule
    for cron in [cron for cron in schedule.crons.values() if cron.queue == name]:
        remove(state, cron)
    for job_id in [job_id for job_id, job in schedule.following.items() if job.queue == name]:
        del schedule.following[job_id]
    for job_id in [job_id for job_id, held in schedule.held.items() if held.job.queue == name]:
        schedule.drop(job_id)

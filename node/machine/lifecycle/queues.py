"""What is done to a queue as a whole: emptied, held, deleted, given other settings."""

from __future__ import annotations

import msgspec

from quorumq.node.machine.events import QueuePaused, QueueResumed
from quorumq.node.machine.lifecycle import parents, removal, repetition, retention, timing, unique_keys
from quorumq.node.machine.state.job import ACTIVE, FAILED, REMOVED
from quorumq.node.machine.state.queue import Queue, QueueSettings, Retention, settings_after
from quorumq.node.machine.state.ranked import Ranked
from quorumq.node.machine.state.state import State


def drain(state: State, queue: Queue, *, delayed: bool = True, spare_repeating: bool = False) -> int:
    """Delete all waiting jobs of a queue, and the delayed ones. Returns how many.

    spare_repeating: not those with which a repetition waits for its next run; else it goes on at the time after.
    """
    gone = [*queue.waiting(), *(queue.delayed if delayed else ())]
    if spare_repeating and state.level >= 1:
        is_pending = repetition.pending(state, queue)
        left = [job for job in gone if not is_pending(job)]
        if len(left) < len(gone):
            for job in left:
                removal.delete(state, job)
            return len(left)
    jobs, own, logs = state.jobs, queue.jobs, state.logs.by_job
    stay = {} if delayed else queue.priorities
    tied = [job for job in gone if job.dependencies is not None]
    # The indexes are emptied at once: taking out a million jobs one by one would hold the node up for seconds.
    for job in gone:
        if job.due:
            state.timers.clear(job)
        if job.unique_key is not None:
            unique_keys.release_key(state, queue, job, removed=True)
        if logs:
            state.logs.forget(job.id)
        if state.spent.by_job:
            state.spent.forget(job.id)
        if job.called is not None:
            removal.not_aside(queue, job)
        if job.opts.repeat is not None:
            repetition.skip_run(state, job)
        del jobs[job.id], own[job.id]
        job.state = REMOVED
        if stay and job.opts.priority:
            stay[job.opts.priority] -= 1
    queue.ready = Ranked()
    if delayed:
        queue.delayed = Ranked()
    queue.parked = queue.prioritized = queue.lowered = 0
    queue.priorities = {priority: left for priority, left in stay.items() if left}
    for group in queue.groups.values():
        group.heads, group.parked = Ranked(), Ranked()
    queue.groups = {group_id: group for group_id, group in queue.groups.items() if group.active}
    for job in tied:
        removal.untie(state, job, hard=True)
    state.mark += len(gone) * 53
    return len(gone)


def set_paused(state: State, queue: Queue, paused: bool) -> bool:
    """Give out no jobs of a queue, or jobs again. Returns whether that is a change."""
    if queue.settings.paused == paused:
        return False
    queue.settings = msgspec.structs.replace(queue.settings, paused=paused)
    if not paused:
        state.woken[queue.name] = None
    state.emit(QueuePaused(queue.name) if paused else QueueResumed(queue.name))
    return True


def hold(state: State, queue: Queue, duration_ms: int) -> None:
    """Give out no jobs of a queue for a while."""
    queue.held_until = state.now_ms + max(duration_ms, 0)
    state.mark += queue.held_until * 97
    state.woken[queue.name] = None


def obliterate(state: State, queue: Queue) -> int:
    """Delete a queue with all its jobs, settings and counters, which stay in the sums. Returns how many jobs."""
    count = len(queue.jobs)
    parents.untie_queue(state, queue.name)
    drain(state, queue)
    for job in list(queue.jobs.values()):
        removal.delete(state, job)
    for key in list(queue.throttled):
        unique_keys.free_key(state, queue, key)
    schedule = state.schedule
    for job_id in [key for key, job in schedule.following.items() if job.queue == queue.name]:
        del schedule.following[job_id]
    state.gone.add(queue.counters)
    state.group_limits.forget(queue)
    del state.queues[queue.name]
    state.bullmq.forget(queue.name)
    state.woken.pop(queue.name, None)
    state.overfull.pop(queue.name, None)
    for at_state in (ACTIVE, FAILED):
        state.retiming.pop((queue.name, at_state), None)
    return count


def configure(state: State, queue: Queue, settings: QueueSettings) -> None:
    """Give a queue other settings, and its jobs the timers that follow from them."""
    before = queue.settings
    queue.settings = settings
    if settings.stall != before.stall:
        timing.retime(state, queue, ACTIVE)
    if settings.dlq != before.dlq or settings.keep_failed_bytes != before.keep_failed_bytes:
        retention.trim_dlq(state, queue)
    if settings.dlq != before.dlq:
        timing.retime(state, queue, FAILED)
    if settings.rate != before.rate:
        queue.fill_bucket(state.now_ms)
    retention.trim_completed(state, queue)
    state.woken[queue.name] = None
    state.mark += 47


def set_retention(state: State, retention: Retention) -> None:
    """Have all queues keep so many finished jobs, but for what is set for a queue itself."""
    before, state.retention = state.retention, retention
    for queue in list(state.queues.values()):
        settings = settings_after(queue.settings, before, retention)
        if settings != queue.settings:
            configure(state, queue, settings)
    state.mark += 149 + retention.completed * 151 + retention.failed

"""Jobs that follow jobs: repetitions, and the times they are held for."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from quorumq.node.machine.events import JobPushed
from quorumq.node.machine.lifecycle import indexes, stream_events, unique_keys
from quorumq.node.machine.state import webhook as hook
from quorumq.node.machine.state.job import DELAYED, WAITING, Job, Repeat, ceil, next_id
from quorumq.node.machine.state.queue import Queue
from quorumq.node.machine.state.schedule import Following, Held
from quorumq.node.machine.state.state import State


def repeat_job(state: State, queue: Queue, done: Job, repeat: Repeat) -> None:
    """Create the job that follows a completed one: due one interval after that one was, or by its pattern."""
    if repeat.limit is not None and repeat.count >= repeat.limit:
        return
    job_id = next_id(done.id, state.now_ms)
    opts = msgspec.structs.replace(done.opts, repeat=msgspec.structs.replace(repeat, count=repeat.count + 1))
    following = Following(
        job_id, queue.name, done.data, state.shared(opts), done.unique_key, done.group_id, state.now_ms
    )
    if repeat.every_ms is not None:
        follow(state, following, max(done.run_at + ceil(repeat.every_ms), state.now_ms))
    elif repeat.pattern is not None:
        # Its time is worked out by the leader and comes with job.follow.
        state.schedule.following[job_id] = following
        state.mark += done.seq * 79


def skip_run(state: State, job: Job) -> None:
    """Let a repetition go on at its next time though a job of it that is not finished goes."""
    repeat = job.opts.repeat
    if state.level >= 1 and repeat is not None:
        job_id = next_id(job.id, state.now_ms)
        hold_next(state, Following(job_id, job.queue, job.data, job.opts, job.unique_key, job.group_id, 0), job.run_at)


def hold_next(state: State, following: Following, due_ms: int) -> None:
    """Hold a job for the time that comes after one of its times, and after now."""
    repeat, now_ms = following.opts.repeat, state.now_ms
    assert repeat is not None
    at_ms = 0
    if repeat.every_ms is not None:
        every_ms = max(ceil(repeat.every_ms), 1)
        at_ms = due_ms + (max(now_ms - due_ms, 0) // every_ms + 1) * every_ms
    # The leader works out the times of a pattern.
    state.schedule.hold(Held(msgspec.structs.replace(following, after_ms=max(now_ms, due_ms)), at_ms))
    state.mark += due_ms * 139


def pending(state: State, queue: Queue) -> Callable[[Job], bool]:
    """Return what tells the jobs of a queue with which a repetition or a cron waits for its next run."""
    last = {cron.last_id for cron in state.schedule.crons.values() if cron.queue == queue.name}
    queued = (WAITING, DELAYED)

    def is_pending(job: Job) -> bool:
        return job.state in queued and (job.opts.repeat is not None or (job.id in last and not job.starts))

    return is_pending


def follow(state: State, following: Following, run_at: int) -> bool:
    """Create a job that follows a completed one; say whether, for its id or unique key may be taken meanwhile."""
    queue, key, job_id = state.queue(following.queue, always=True), following.unique_key, following.id
    if job_id in state.jobs or (key is not None and unique_keys.holder_of(state, queue, key) is not None):
        return False
    state.announce(queue)
    state.seq += 1
    opts, now_ms = state.shared(following.opts), state.now_ms
    job = Job(job_id, queue.name, following.data, opts, WAITING, state.seq, state.seq, now_ms, now_ms)
    job.run_at = run_at
    job.group_id = following.group_id
    if key is not None:
        job.unique_key = key
        queue.unique[key] = job_id
    state.jobs[job_id] = queue.jobs[job_id] = job
    queue.counters.pushed += 1
    state.emit(JobPushed(queue.name, job_id))
    if state.streaming:
        stream_events.publish_added(state, job)
    state.webhooks.post(hook.PUSHED, now_ms, job_id, queue.name)
    indexes.enqueue(state, queue, job)
    if state.streaming:
        stream_events.publish_first_state(state, job)
    job.first_state = None if job.shown_state == WAITING else job.shown_state
    return True

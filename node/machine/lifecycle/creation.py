"""Jobs that are new: pushed, or added by BullMQ's rules."""

from __future__ import annotations

from collections.abc import Iterable

from quorumq.node.machine.events import JobDuplicated, JobPushed
from quorumq.node.machine.lifecycle import dependencies, indexes, parents, removal, stream_events, unique_keys
from quorumq.node.machine.state import webhook as hook
from quorumq.node.machine.state.bullmq import streams
from quorumq.node.machine.state.job import (
    COMPLETED,
    DEFAULT,
    DELAYED,
    WAITING,
    WAITING_CHILDREN,
    Job,
    JobSpec,
    aside_id,
    ceil,
    scoped_id,
    unscoped,
)
from quorumq.node.machine.state.queue import Queue
from quorumq.node.machine.state.state import State

# States of jobs that make room for one with the same key, where jobs are pushed (not added by BullMQ's rules).
PENDING = (WAITING, DELAYED, WAITING_CHILDREN)


def push(state: State, name: str, specs: Iterable[JobSpec]) -> list[str]:
    """Add jobs to a queue. Returns their ids, or those of the unfinished jobs that were there already."""
    queue = state.queues.get(name) or state.queue(name)
    now_ms = state.now_ms
    jobs, own, ready, shared = state.jobs, queue.jobs, queue.ready, state.shared
    is_streaming = name in state.streaming
    is_heard = is_streaming or state.events is not None or bool(state.webhooks.listening)
    seq = state.seq
    pushed = 0
    ids: list[str] = []
    for spec in specs:
        job_id = spec.id
        present = jobs.get(job_id)
        if present is not None and not present.finished:
            state.emit(JobDuplicated(present.queue, job_id))
            ids.append(job_id)
            continue
        until = 0
        if spec.unique_key is not None:
            if spec.opts.dedup is None or state.level < 1:
                holder = unique_keys.holder_of(state, queue, spec.unique_key)
            else:
                state.seq = seq
                holder, until = deduplicate(state, queue, spec, spec.unique_key, PENDING)
                seq = state.seq
            if holder is not None:
                state.emit(JobDuplicated(name, holder))
                ids.append(holder)
                continue
        if present is not None:
            # A finished job gives its id to a new generation.
            state.seq = seq
            make_room(state, present)
            seq = state.seq
        seq += 1
        pushed += 1
        if not own:
            state.announce(queue)
        asked = spec.opts
        opts = asked if asked is DEFAULT else shared(asked)
        job = Job(job_id, name, spec.data, opts, WAITING, seq, seq, now_ms, now_ms, spec.custom)
        jobs[job_id] = own[job_id] = job
        ids.append(job_id)
        if is_heard:
            _publish_created(state, job)
        if opts is DEFAULT and not spec.depends_on and spec.group_id is None and spec.unique_key is None:
            # The usual way in, without the general steps of `settle`; the sum below level 1 is as if they had been taken.
            ready.add(seq, job)
            if asked is not DEFAULT:
                state.mark += seq * 3
            if is_streaming:
                stream_events.publish_first_state(state, job)
        else:
            settle(state, queue, job, spec)
            if until and spec.unique_key in queue.throttled:
                unique_keys.throttle(state, queue, spec.unique_key, until)
    state.seq = seq
    queue.counters.pushed += pushed
    state.mark += pushed * 31 + seq
    state.woken[name] = None
    return ids


def make_room(state: State, present: Job) -> None:
    """Let a new job have the id of a finished one. The tokens of that are to end none of its runs.

    A completed job goes. A dead letter stays, with all that there is to know of it, under an id of its own.
    """
    if state.level < 1:
        removal.delete(state, present)
        return
    job_id, spent = present.id, state.spent.by_job.get(present.id)
    if present.state == COMPLETED:
        was_locked = present.lock_ms > 0
        removal.delete(state, present)
        if spent is not None:
            state.spent.by_job[job_id] = spent
        if was_locked:
            # The token that completed it was not kept.
            state.spent.add(job_id, None)
    else:
        called = present.called or job_id
        removal.rename(state, present, aside_id(present, state.jobs))
        state.spent.copy(present.id, job_id)
        present.custom = called
        state.queues[present.queue].aside.setdefault(called, []).append(present.id)


def add(state: State, name: str, specs: Iterable[JobSpec]) -> tuple[list[str], list[bool]]:
    """Add jobs by BullMQ's rules: ids within the queue, and a job in any state keeps another one of its id away.

    Returns canonical ids, and which of them were there already.
    """
    queue = state.queues.get(name) or state.queue(name)
    ids: list[str] = []
    duplicates: list[bool] = []
    for spec in specs:
        queue.number += 1
        if spec.id:
            job_id = scoped_id(name, spec.id)
            present = job_id if job_id in state.jobs else None
        else:
            job_id, present = scoped_id(name, str(queue.number)), None
            while job_id in state.jobs:
                # Somebody chose this very id.
                queue.number += 1
                job_id = scoped_id(name, str(queue.number))
        until = 0
        if present is None and spec.unique_key is not None:
            present, until = deduplicate(state, queue, spec, spec.unique_key)
        duplicates.append(present is not None)
        if present is not None:
            if state.streaming and present in state.jobs:
                _publish_duplicate(state, state.jobs[present], job_id, spec)
            state.emit(JobDuplicated(name, present))
            ids.append(present)
            continue
        ids.append(job_id)
        create_job(state, queue, job_id, spec)
        if until and spec.unique_key in queue.throttled:
            unique_keys.throttle(state, queue, spec.unique_key, until)
    state.mark += queue.number * 83
    return ids, duplicates


def _publish_duplicate(state: State, present: Job, job_id: str, spec: JobSpec) -> None:
    if present.id == job_id:
        stream_events.publish(state, present, streams.DUPLICATED)
    else:
        stream_events.publish(state, present, streams.DEDUPLICATED, spec.unique_key, unscoped(present.queue, job_id))


def create_job(state: State, queue: Queue, job_id: str, spec: JobSpec) -> None:
    """Create a job whose id is new, in its first place."""
    settle(state, queue, create_record(state, queue, job_id, spec), spec)


def create_record(state: State, queue: Queue, job_id: str, spec: JobSpec) -> Job:
    """Create a job whose id is new; it is in no index before it is settled."""
    now_ms, own, opts = state.now_ms, queue.jobs, spec.opts
    if not own:
        state.announce(queue)
    if opts is not DEFAULT:
        opts = state.shared(opts)
    state.seq = seq = state.seq + 1
    job = Job(job_id, queue.name, spec.data, opts, WAITING, seq, seq, now_ms, now_ms, bool(spec.id))
    state.jobs[job_id] = own[job_id] = job
    queue.counters.pushed += 1
    state.mark += 31 + seq
    if state.streaming or state.events is not None or state.webhooks.listening:
        _publish_created(state, job)
    return job


def _publish_created(state: State, job: Job) -> None:
    """A job is new; its place follows."""
    if state.events is not None:
        state.events.append(JobPushed(job.queue, job.id))
    if state.streaming:
        stream_events.publish_added(state, job)
    if state.webhooks.listening:
        state.webhooks.post(hook.PUSHED, state.now_ms, job.id, job.queue)


def settle(
    state: State, queue: Queue, job: Job, spec: JobSpec, *, run_at: int | None = None, to_children: bool = False
) -> None:
    """Give a new job its first place. run_at: when it may run, in the place of its delay's end.

    to_children: it waits for children though none is known yet.
    """
    opts = job.opts
    if (
        not (opts.priority or opts.lifo or opts.delay_ms or spec.depends_on or to_children)
        and opts.ttl_ms is None
        and spec.group_id is None
        and spec.unique_key is None
        and run_at is None
        and ((links := job.flow) is None or not links.pending)
    ):
        # Without wishes: it waits, behind all others.
        queue.ready.add(job.order, job)
        state.mark += job.seq * 3
        state.woken[queue.name] = None
        if state.streaming:
            stream_events.publish_first_state(state, job)
        return
    if spec.group_id is not None:
        job.group_id = spec.group_id
    if opts.lifo:
        job.order = -job.seq
    if spec.unique_key is not None:
        job.unique_key = spec.unique_key
        queue.unique[spec.unique_key] = job.id
        if opts.dedup is not None and opts.dedup.ttl_ms:
            unique_keys.throttle(state, queue, spec.unique_key, state.now_ms + opts.dedup.ttl_ms)
    if run_at is not None:
        job.run_at = run_at
    elif opts.delay_ms:
        job.run_at = job.created_at + ceil(opts.delay_ms)
    if spec.depends_on:
        dependencies.wait_for(state, job, spec.depends_on)
    if job.state != WAITING_CHILDREN:
        if to_children or (job.dependencies is not None and job.pending_children):
            parents.park(state, job)
        else:
            indexes.enqueue(state, queue, job)
    if state.streaming:
        stream_events.publish_first_state(state, job)
    if job.state != WAITING or opts.priority > 0:
        job.first_state = job.shown_state
    if opts.ttl_ms is not None and job.expires_at <= state.now_ms:
        removal.expire(state, job)


def deduplicate(
    state: State, queue: Queue, spec: JobSpec, key: str, replaceable: tuple[str, ...] = (DELAYED,)
) -> tuple[str | None, int]:
    """Return the id of the job that stands for a new one, if any; and until when the new one's key is to be held, 0
    for as long as it says itself, when it takes the place of another. replaceable: states of those that make room; of
    pushed jobs those do not for which others wait."""
    holder, dedup, until = unique_keys.holder_of(state, queue, key), spec.opts.dedup, queue.throttled.get(key, 0)
    if holder is None or dedup is None:
        return holder, 0
    job = state.jobs.get(holder)
    if (
        dedup.replace
        and job is not None
        and job.state in replaceable
        and not (replaceable is PENDING and (job.id in spec.depends_on or job.id in state.dependents))
        and (job.queue, job.unique_key) == (queue.name, key)
    ):
        removal.remove(state, job)
        return None, 0 if dedup.extend else until
    if dedup.extend and not dedup.replace and dedup.ttl_ms and until:
        unique_keys.throttle(state, queue, key, state.now_ms + dedup.ttl_ms)
    return holder, 0

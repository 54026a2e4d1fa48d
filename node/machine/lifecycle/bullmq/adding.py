"""Adding jobs by BullMQ's rules, for clients of the backend protocol: numbers, duplicates, deduplication, parents.

The order of the checks is BullMQ's: the parent, the queue's counter, an id that is taken, deduplication, and then the job's place.
"""

from __future__ import annotations

from quorumq.node.machine.events import JobDuplicated
from quorumq.node.machine.lifecycle import creation, flows, parents, removal, runs, unique_keys
from quorumq.node.machine.lifecycle.stream_events import publish_of_queue as publish
from quorumq.node.machine.state.bullmq.facts import NamedJob
from quorumq.node.machine.state.bullmq.names import find
from quorumq.node.machine.state.job import ACTIVE, DELAYED, FAILED, ClientRecord, Dedup, Job, ceil, own_id, scoped_id
from quorumq.node.machine.state.queue import Queue
from quorumq.node.machine.state.state import State

MISSING_PARENT, OTHERS_CHILD = -5, -7
LOOKED_THROUGH = 10_000
"""Ancestors that are looked through for a child that is to become its own."""


def add(state: State, name: str, named: NamedJob) -> tuple[str, int, Job | None]:
    """Add a job. Returns its id in the queue, or that of the one that stands for it; 0 or BullMQ's error; and the job if it is new.

    Nothing is changed where there is an error, but for the counter.
    """
    parent = None
    if named.parent is not None:
        parent = find(state, *named.parent)
        if parent is None:
            return "", MISSING_PARENT, None
    queue = state.queues.get(name) or state.queue(name)
    state.bullmq.streams.open(name)
    queue.number += 1
    spec = named.job
    if spec.id:
        own = spec.id
        present = find(state, name, own)
        if present is not None:
            return (own, *_stand_in(state, present, named, parent), None)
    else:
        own = str(queue.number)
        while scoped_id(name, own) in state.jobs:
            # Somebody chose this very id.
            queue.number += 1
            own = str(queue.number)
    until = None
    if spec.unique_key is not None and spec.opts.dedup is not None:
        holder, until = _deduplicated(state, queue, own, named, spec.unique_key, spec.opts.dedup)
        if holder is not None:
            state.emit(JobDuplicated(name, holder))
            return holder.removeprefix(scoped_id(name, "")), 0, None
    job = _create(state, queue, own, named, parent)
    if until is not None and spec.unique_key is not None:
        unique_keys.hold(state, queue, spec.unique_key, until)
    return own, 0, job


def _create(state: State, queue: Queue, own: str, named: NamedJob, parent: Job | None) -> Job:
    spec = named.job
    job = creation.create_record(state, queue, scoped_id(queue.name, own), spec)
    job.extra = ClientRecord(
        timestamp=named.timestamp,
        parent_key=named.parent_key,
        parent=named.parent_json,
        repeat_key=named.repeat_key,
        delay=ceil(spec.opts.delay_ms),
    )
    if named.to_children:
        job.tied()
    if parent is not None:
        flows.attach(state, job, parent, named.on_failure, named.prefix)
    run_at = None if named.due_from is None else named.due_from + ceil(spec.opts.delay_ms)
    creation.settle(state, queue, job, spec, run_at=run_at, to_children=named.to_children)
    return job


def _stand_in(state: State, present: Job, named: NamedJob, parent: Job | None) -> tuple[int]:
    """Let a job that is there already stand for a new one, and be the child of that one's parent."""
    if parent is not None:
        links = present.flow
        others = None if links is None or links.parent is None else state.jobs.get(links.parent)
        if (others is not None and others is not parent) or _is_above(state, present, parent):
            return (OTHERS_CHILD,)
        if present.state == FAILED:
            _await_failed(present, parent, named)
        else:
            flows.attach(state, present, parent, named.on_failure, named.prefix)
        record = present.named()
        record.parent_key, record.parent = named.parent_key, named.parent_json
    name = present.queue
    state.emit(JobDuplicated(name, present.id))
    publish(state, name, "duplicated", own_id(present))
    return (0,)


def _await_failed(child: Job, parent: Job, named: NamedJob) -> None:
    """Let a parent wait for a job that failed before: until that is retried."""
    links, flow = child.tied(), parent.tied()
    links.parent, links.parent_queue, links.on_failure = parent.id, parent.queue, named.on_failure
    flow.prefix = named.prefix
    if child.id not in flow.children:
        flow.add_pending(child.id)


def _is_above(state: State, job: Job, below: Job) -> bool:
    """Whether a job is another one, or an ancestor of it."""
    at: Job | None = below
    for _ in range(LOOKED_THROUGH):
        if at is None:
            return False
        if at is job:
            return True
        at = parents.parent_of(state, at)
    return True


# -- Deduplication


def _deduplicated(
    state: State, queue: Queue, own: str, named: NamedJob, key: str, dedup: Dedup
) -> tuple[str | None, int | None]:
    """Return the id of the job that keeps a new one away, if any; else until when the new one's key is to be held, where that is another
    one's time: 0 for as long as the job is unfinished, None for what the job says itself."""
    name, now_ms = queue.name, state.now_ms
    holder, until = unique_keys.holder_of(state, queue, key), queue.throttled.get(key, 0)
    if holder is None:
        return None, 0 if dedup.keep_last else None
    job = state.jobs.get(holder)
    if job is None and not until:
        # Its key was held for as long as it is there.
        unique_keys.free_key(state, queue, key)
        return None, 0 if dedup.keep_last else None
    kept = holder.removeprefix(scoped_id(name, ""))
    if dedup.keep_last and job is not None and job.state == ACTIVE:
        unique_keys.hold(state, queue, key, 0)
        state.bullmq.facts.keep(name, key, own, named)
    elif dedup.replace and not named.to_children:
        if job is not None and job.state == DELAYED and job.unique_key == key:
            removal.remove(state, job)
            publish(state, name, "deduplicated", own, key, kept)
            return None, 0 if dedup.keep_last else None if dedup.extend else until or None
        # BullMQ says nothing of one that could not take the place of another.
        return holder, None
    elif dedup.reschedule and job is not None and job.state == DELAYED and not named.to_children:
        delay_ms = ceil(named.job.opts.delay_ms)
        job.named().delay = delay_ms
        runs.delay(state, job, delay_ms, always=True)
        if dedup.extend and dedup.ttl_ms:
            unique_keys.hold(state, queue, key, now_ms + dedup.ttl_ms)
    elif dedup.extend and dedup.ttl_ms:
        unique_keys.hold(state, queue, key, 0 if dedup.keep_last else now_ms + dedup.ttl_ms)
    publish(state, name, "deduplicated", kept, key, own)
    return holder, None


def let_follow(state: State, limit: int) -> None:
    """Let jobs come that were kept away by others which have ended; at most `limit`."""
    while limit > 0 and (found := state.bullmq.facts.take_released()) is not None:
        limit -= 1
        name, key, own, named = found
        queue = state.queues[name]
        if unique_keys.holder_of(state, queue, key) is not None:
            # Somebody else came first and has the key: he stands for it.
            continue
        queue.number += 1
        if find(state, name, own) is not None:
            own = str(queue.number)
        parent = None if named.parent is None else find(state, *named.parent)
        _create(state, queue, own, named, parent)

"""Unique keys: who holds one, for as long as it is unfinished or for a time of its own."""

from __future__ import annotations

import msgspec

from quorumq.node.machine.state.job import Dedup, Job
from quorumq.node.machine.state.queue import Queue
from quorumq.node.machine.state.state import State

# Unique keys with a time of their own; those that end first are forgotten early.
THROTTLED_MAX = 250_000


def holder_of(state: State, queue: Queue, key: str) -> str | None:
    """Return the id of the job that keeps others with this key away; the job itself may be gone."""
    holder = queue.unique.get(key)
    return None if holder is None or queue.throttled.get(key, state.now_ms + 1) <= state.now_ms else holder


def throttle(state: State, queue: Queue, key: str, until: int) -> None:
    """Hold a key until a time, whatever becomes of its job."""
    present = queue.throttled.get(key)
    if present is not None:
        state.throttles.remove((present, queue.name, key))
    queue.throttled[key] = until
    state.throttles.add((until, queue.name, key))
    state.mark += until * 89
    if len(state.throttles) > THROTTLED_MAX:
        _, name, first = state.throttles[0]
        free_key(state, state.queues[name], first)


def hold(state: State, queue: Queue, key: str, until: int) -> None:
    """Hold a key that is held until another time; 0: for as long as its job is unfinished.

    That one's options say the same from now on, for by them the key is found again in an image.
    """
    job = state.jobs.get(queue.unique[key])
    if job is not None and job.unique_key == key:
        dedup = job.opts.dedup or Dedup()
        if bool(dedup.ttl_ms) != bool(until):
            lasting = max(until - state.now_ms, 1) if until else None
            dedup = msgspec.structs.replace(dedup, ttl_ms=lasting)
            job.opts = state.shared(msgspec.structs.replace(job.opts, dedup=dedup))
    if until:
        throttle(state, queue, key, until)
    elif (before := queue.throttled.pop(key, None)) is not None:
        state.throttles.remove((before, queue.name, key))


def free_key(state: State, queue: Queue, key: str) -> None:
    """Let a key be free, whoever holds it."""
    queue.unique.pop(key, None)
    until = queue.throttled.pop(key, None)
    if until is not None:
        state.throttles.remove((until, queue.name, key))


def take_back(state: State, name: str, key: str) -> int:
    """Take a unique key from whoever has it. Returns how many keys that were."""
    queue = state.queues.get(name)
    holder = None if queue is None else holder_of(state, queue, key)
    if queue is None or holder is None:
        return 0
    free_key(state, queue, key)
    job = state.jobs.get(holder)
    if job is not None and job.queue == name and job.unique_key == key:
        job.unique_key = None
    state.mark += 107
    return 1


def free_due(state: State, limit: int) -> None:
    """Forget keys whose time is over, at most `limit`; what is left counts for nothing and goes with the next entry."""
    throttles, now_ms = state.throttles, state.now_ms
    while throttles and throttles[0][0] <= now_ms and limit > 0:
        _, name, key = throttles[0]
        free_key(state, state.queues[name], key)
        limit -= 1


def release_key(state: State, queue: Queue, job: Job, *, removed: bool = False) -> None:
    """Free the key that a job holds; one with a time of its own only because the job was removed."""
    key = job.unique_key
    if key is not None and queue.unique.get(key) == job.id and (removed or key not in queue.throttled):
        free_key(state, queue, key)
        if state.bullmq.facts.following:
            # Of a job that was removed none follows.
            state.bullmq.facts.release(queue.name, key, drop=removed)


def place_key(state: State, queue: Queue, key: str, holder: str, until: int) -> None:
    """Put a key with a time of its own, from an image, where it was."""
    queue.unique[key] = holder
    queue.throttled[key] = until
    state.throttles.add((until, queue.name, key))

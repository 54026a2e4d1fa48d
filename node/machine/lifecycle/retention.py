"""How many finished jobs stay, by number, age and bytes; what one entry drops is bounded."""

from __future__ import annotations

from quorumq.node.machine.lifecycle import removal
from quorumq.node.machine.state.job import Keep
from quorumq.node.machine.state.queue import Queue, Retention, settings_after
from quorumq.node.machine.state.ranked import Ranked
from quorumq.node.machine.state.state import State

# Finished jobs that one more lets go.
KEEP_STEP = 5_000
# Finished jobs past the bounds of a queue that one entry drops, after a change of those bounds: some tens of milliseconds.
TRIM_STEP = 5_000
UNBOUNDED = 1 << 62


def trim_completed(state: State, queue: Queue) -> None:
    """Drop the oldest completed jobs past the bounds of the queue, in number and in bytes.

    From level 1 on TRIM_STEP at most; the entries that follow go on.
    """
    settings, most = queue.settings, TRIM_STEP if state.level >= 1 else UNBOUNDED
    surplus = len(queue.completed) - settings.keep_completed
    if surplus > 0:
        dropped = queue.completed.pop_first(min(surplus, most))
        most -= len(dropped)
        removal.drop_completed(state, queue, dropped)
    while most > 0 and weighs_too_much(queue):
        removal.drop_completed(state, queue, queue.completed.pop_first(1))
        most -= 1
    if most <= 0:
        note_overfull(state, queue)


def weighs_too_much(queue: Queue) -> bool:
    """Whether the completed jobs of a queue take more bytes than they may; one is always kept."""
    return queue.completed_bytes > queue.settings.keep_completed_bytes and len(queue.completed) > 1


def failed_weigh_too_much(state: State, queue: Queue) -> bool:
    """Whether the failed jobs of a queue take more bytes than they may; one is always kept. Below level 1 they may take any."""
    return state.level >= 1 and queue.failed_bytes > queue.settings.keep_failed_bytes and len(queue.failed) > 1


def note_overfull(state: State, queue: Queue) -> None:
    """Remember a queue that holds more finished jobs than it may, and forget one that does not."""
    settings = queue.settings
    if (
        len(queue.completed) > settings.keep_completed
        or weighs_too_much(queue)
        or len(queue.failed) > settings.dlq.max_entries
        or failed_weigh_too_much(state, queue)
    ):
        state.overfull[queue.name] = None
    else:
        state.overfull.pop(queue.name, None)


def trim_more(state: State) -> None:
    """Go on with one queue that holds more finished jobs than it may."""
    # By name, because in which order they came an image does not keep.
    queue = state.queues[min(state.overfull)]
    trim_completed(state, queue)
    trim_dlq(state, queue)
    note_overfull(state, queue)


def surplus_of(state: State, ended: Ranked, keep: Keep) -> int:
    """Count the oldest finished jobs that have to go, KEEP_STEP at most: those too old first, then those too many."""
    surplus = 0
    if keep.age_ms is not None:
        until, most = state.now_ms - keep.age_ms, KEEP_STEP if keep.limit is None else min(keep.limit, KEEP_STEP)
        for job in ended:
            if (job.finished_at or 0) > until or surplus >= most:
                break
            surplus += 1
    if keep.count is not None:
        surplus = max(surplus, len(ended) - keep.count)
    return min(surplus, KEEP_STEP)


def trim_dlq(state: State, queue: Queue) -> None:
    """Drop the oldest jobs of a dead letter queue that holds more than it may, in number or in bytes.

    From level 1 on TRIM_STEP at most; the entries that follow go on.
    """
    most = TRIM_STEP if state.level >= 1 else UNBOUNDED
    surplus = min(len(queue.failed) - queue.settings.dlq.max_entries, most)
    if surplus > 0:
        removal.drop_failed(state, queue, surplus)
        most -= surplus
    while most > 0 and failed_weigh_too_much(state, queue):
        removal.drop_failed(state, queue, 1)
        most -= 1
    if most <= 0:
        note_overfull(state, queue)


def trim_finished(state: State, retention: Retention, limit: int) -> int:
    """Drop the oldest finished jobs that queues would have to drop for a default of all queues, `limit` at most."""
    left = limit
    for queue in state.queues.values():
        settings = settings_after(queue.settings, state.retention, retention)
        surplus = min(len(queue.completed) - settings.keep_completed, left)
        if surplus > 0:
            removal.drop_completed(state, queue, queue.completed.pop_first(surplus))
            left -= surplus
        surplus = min(len(queue.failed) - settings.dlq.max_entries, left)
        if surplus > 0:
            removal.drop_failed(state, queue, surplus)
            left -= surplus
        if left <= 0:
            break
    state.mark += (limit - left) * 157
    return limit - left

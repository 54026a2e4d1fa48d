"""Operations on very many jobs, split into several entries: no entry may keep a node from answering, and a million jobs would.

A queue of ordinary size is dealt with in one entry, at once and as a whole. Before a large one is, most of the work is done in
parts; the operation itself then does the rest and answers for all of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.dlq import PurgeDlq, RetryDlq
from quorumq.node.machine.operations.queues import (
    DrainQueue,
    ObliterateQueue,
    PauseQueue,
    PromoteJobs,
    ResumeQueue,
    RetryCompleted,
    RetryJobs,
    ThinQueue,
)
from quorumq.node.machine.operations.retention import SetDefaultRetention, ThinFinished
from quorumq.node.machine.state import State
from quorumq.node.machine.state.job import ACTIVE, COMPLETED, DELAYED
from quorumq.node.machine.state.queue import settings_after

# Jobs dealt with in one entry: some tens of milliseconds on each node.
SLICE_JOBS = 5_000


# Those that change the first so many jobs of an index. Of some the parts are told from the whole by their fields, from level 1 on.
Counting = PromoteJobs | RetryJobs | RetryCompleted | RetryDlq | PurgeDlq
SINCE_1 = RetryCompleted | RetryDlq | PurgeDlq


def is_large(op: Operation, state: State) -> bool:
    """Whether an operation would take long, as far as this node knows."""
    if isinstance(op, SetDefaultRetention):
        return state.level >= 1 and _surplus(op, state) > SLICE_JOBS
    if not isinstance(op, DrainQueue | ObliterateQueue | Counting):
        return False
    queue = state.queues.get(op.queue)
    if queue is None or (isinstance(op, SINCE_1) and state.level < 1):
        return False
    if isinstance(op, Counting):
        if getattr(op, "job_id", None) is not None:
            return False
        return _reach(op, state) > SLICE_JOBS and (op.count is None or op.count > SLICE_JOBS)
    return len(queue.jobs) > SLICE_JOBS


def _reach(op: Counting, state: State) -> int:
    """Return how many jobs an operation without a count would change."""
    queue = state.queues[op.queue]
    if isinstance(op, PromoteJobs):
        return len(queue.delayed)
    if isinstance(op, RetryCompleted) or (isinstance(op, RetryJobs) and op.state == COMPLETED):
        return len(queue.completed)
    return len(queue.failed)


def _part_of(op: Counting) -> Counting:
    changes: dict[str, Any] = {"count": SLICE_JOBS, "so_far": 0}
    if isinstance(op, RetryDlq | PurgeDlq):
        changes["part"] = True
    return msgspec.structs.replace(op, **changes)


def _surplus(op: SetDefaultRetention, state: State) -> int:
    """Return how many finished jobs a default of all queues would drop."""
    after, count = op.changed(state.retention), 0
    for queue in state.queues.values():
        settings = settings_after(queue.settings, state.retention, after)
        count += max(len(queue.completed) - settings.keep_completed, 0)
        count += max(len(queue.failed) - settings.dlq.max_entries, 0)
    return count


async def split_large(op: Operation, state: State, submit: Callable[[Operation], Awaitable[Any]]) -> Operation:
    """Do most of a large operation's work in parts; return what is left to do. Raises as submit does."""
    done = 0
    if isinstance(op, SetDefaultRetention):
        after = op.changed(state.retention)
        thin_ended = ThinFinished(after.completed, after.failed, SLICE_JOBS)
        while (await submit(thin_ended)).count == SLICE_JOBS:
            pass
        return op
    if isinstance(op, Counting):
        # What becomes delayed or ends meanwhile is left to the last entry, so that this ends.
        left = _reach(op, state) if op.count is None else op.count
        while left > SLICE_JOBS:
            part: int = (await submit(_part_of(op))).count
            done += part
            left -= part
            if part < SLICE_JOBS:
                break
        return msgspec.structs.replace(op, count=None if op.count is None else left, so_far=op.so_far + done)
    assert isinstance(op, DrainQueue | ObliterateQueue)
    if isinstance(op, ObliterateQueue):
        everything, spare = True, (ACTIVE,) if op.only_idle else ()
        if op.only_idle and not await _is_idle(op, state, submit):
            return op
    else:
        everything, spare = False, () if op.delayed else (DELAYED,)
    spare_repeating = isinstance(op, DrainQueue) and op.spare_repeating
    # Jobs that are pushed meanwhile are left to the last entry, so that this ends.
    thin = ThinQueue(op.queue, state.seq, SLICE_JOBS, everything, spare, spare_repeating)
    while True:
        gone: int = (await submit(thin)).count
        done += gone
        if gone < SLICE_JOBS:
            return msgspec.structs.replace(op, so_far=op.so_far + done)


async def _is_idle(op: ObliterateQueue, state: State, submit: Callable[[Operation], Awaitable[Any]]) -> bool:
    """Pause a queue, so that none of its jobs becomes active while it is destroyed; say whether none is.

    Else it is as before, and the operation itself refuses.
    """
    if state.queues[op.queue].active:
        return False
    paused: bool = await submit(PauseQueue(op.queue))
    queue = state.queues.get(op.queue)
    if queue is None or not queue.active:
        return True
    if paused:
        await submit(ResumeQueue(op.queue))
    return False

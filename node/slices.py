"""Work on very many jobs in several entries: no entry may keep a node from answering, and a million jobs would.

A queue of ordinary size is dealt with in one entry, at once and as a whole. Before a large one is, most of the work is done in
parts; the operation itself then does the rest and answers for all of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from node.operation import Operation
from node.operations.queues import (
    DrainQueue,
    ObliterateQueue,
    PauseQueue,
    PromoteJobs,
    ResumeQueue,
    RetryJobs,
    ThinQueue,
)
from node.state import State
from node.state.job import ACTIVE, DELAYED, FAILED

# Jobs dealt with in one entry: some tens of milliseconds on each node.
SLICE_JOBS = 5_000


def is_large(op: Operation, state: State) -> bool:
    """Whether an operation would take long, as far as this node knows."""
    if not isinstance(op, DrainQueue | ObliterateQueue | PromoteJobs | RetryJobs):
        return False
    queue = state.queues.get(op.queue)
    if queue is None:
        return False
    if isinstance(op, PromoteJobs | RetryJobs):
        return _reach(op, state) > SLICE_JOBS and (op.count is None or op.count > SLICE_JOBS)
    return len(queue.jobs) > SLICE_JOBS


def _reach(op: PromoteJobs | RetryJobs, state: State) -> int:
    """Return how many jobs an operation without a count would change."""
    queue = state.queues[op.queue]
    if isinstance(op, PromoteJobs):
        return len(queue.delayed)
    return len(queue.failed if op.state == FAILED else queue.completed)


async def lessen(op: Operation, state: State, submit: Callable[[Operation], Awaitable[Any]]) -> Operation:
    """Do most of a large operation's work in parts; return what is left to do. Raises as submit does."""
    done = 0
    if isinstance(op, PromoteJobs | RetryJobs):
        # What becomes delayed or ends meanwhile is left to the last entry, so that this ends.
        left = _reach(op, state) if op.count is None else op.count
        while left > SLICE_JOBS:
            part: int = (await submit(msgspec.structs.replace(op, count=SLICE_JOBS, so_far=0))).count
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
    # Jobs that are pushed meanwhile are left to the last entry, so that this ends.
    thin = ThinQueue(op.queue, state.seq, SLICE_JOBS, everything, spare)
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

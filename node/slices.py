"""Work on very many jobs in several entries: no entry may keep a node from answering, and a million jobs would.

A queue of ordinary size is dealt with in one entry, at once and as a whole. Before a large one is, most of the work is done in
parts; the operation itself then does the rest and answers for all of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from node.operation import Operation
from node.operations.queues import DrainQueue, ObliterateQueue, PromoteJobs, ThinQueue
from node.state import State

# Jobs dealt with in one entry: some tens of milliseconds on each node.
SLICE_JOBS = 5_000


def is_large(op: Operation, state: State) -> bool:
    """Whether an operation would take long, as far as this node knows."""
    if not isinstance(op, DrainQueue | ObliterateQueue | PromoteJobs):
        return False
    queue = state.queues.get(op.queue)
    if queue is None:
        return False
    if isinstance(op, PromoteJobs):
        return len(queue.delayed) > SLICE_JOBS and (op.count is None or op.count > SLICE_JOBS)
    return len(queue.jobs) > SLICE_JOBS


async def lessen(op: Operation, state: State, submit: Callable[[Operation], Awaitable[Any]]) -> Operation:
    """Do most of a large operation's work in parts; return what is left to do. Raises as submit does."""
    done = 0
    if isinstance(op, PromoteJobs):
        # What becomes delayed meanwhile is left to the last entry, so that this ends.
        left = len(state.queues[op.queue].delayed) if op.count is None else op.count
        while left > SLICE_JOBS:
            part: int = (await submit(PromoteJobs(op.queue, SLICE_JOBS))).count
            done += part
            left -= part
            if part < SLICE_JOBS:
                break
        return PromoteJobs(op.queue, None if op.count is None else left, op.so_far + done)
    assert isinstance(op, DrainQueue | ObliterateQueue)
    # Jobs that are pushed meanwhile are left to the last entry, so that this ends.
    thin = ThinQueue(op.queue, state.seq, SLICE_JOBS, isinstance(op, ObliterateQueue))
    while True:
        gone: int = (await submit(thin)).count
        done += gone
        if gone < SLICE_JOBS:
            return msgspec.structs.replace(op, so_far=op.so_far + done)

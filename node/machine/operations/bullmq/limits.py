"""The rate limit of a queue as workers of the backend protocol know it: a fixed window that begins with its first start.

A worker says with each take how many starts it allows in which time; a limit that is set for the whole queue goes before. Both kinds are
counted in one window. A queue that was told to wait (`LimitFor`) holds only workers that know a limit.
"""

from __future__ import annotations

from quorumq.node.machine import events as happened
from quorumq.node.machine.bounds import QueueName
from quorumq.node.machine.lifecycle.bullmq import running
from quorumq.node.machine.operation import Entry, Operation, Query, operation, query
from quorumq.node.machine.refusals import TooManyQueues
from quorumq.node.machine.state import State


@operation(emits=(happened.QueueCreated,), refuses=(TooManyQueues,), since=1)
class LimitFor(Operation, frozen=True, tag="bullmq.limit_for"):
    """Let no worker that knows a limit take a job of a queue for a while."""

    queue: QueueName
    duration_ms: int

    def apply(self, state: State, entry: Entry) -> None:
        state.queue(self.queue)
        running.limit_for(state, self.queue, self.duration_ms)


@operation(since=1)
class Unlimit(Operation, frozen=True, tag="bullmq.unlimit"):
    """Let the window of a queue's limit begin anew. True when one was under way."""

    queue: QueueName

    def apply(self, state: State, entry: Entry) -> bool:
        return running.unlimit(state, self.queue)


@query
class LimitTtl(Query, frozen=True):
    """For how long the limit of a queue holds it, in ms; 0 for not at all.

    most: for a worker that allows so many starts; None for what is set for the queue, and where nothing is the time that is left of the
    window, -2 when there is none.  now_ms: what time it is; no entry need have come since the limit was over.
    """

    queue: QueueName
    now_ms: int
    most: int | None = None

    def answer(self, state: State) -> int:
        queue = state.queues.get(self.queue)
        most, now_ms = self.most, self.now_ms
        if most is None and queue is not None and queue.settings.window is not None:
            most = queue.settings.window.max
        if most is None:
            return running.window_left(state, self.queue, now_ms) or -2
        return running.limit_ttl(state, self.queue, most, now_ms)

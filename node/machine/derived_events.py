"""Events that no single transition makes, but the state at the end of an entry: worked out only while somebody listens.

Every node comes to the same ones, because they depend on nothing but the state and what the entry did.
"""

from __future__ import annotations

from collections.abc import Sequence

from quorumq.node.machine.events import Event, JobActive, JobPushed, JobWaiting, RateLimitHit
from quorumq.node.machine.state import Queue, State


def derive(state: State, events: Sequence[Event]) -> list[Event]:
    """Return what has to be said of an entry besides its events: which jobs are next and held up by a rate limit alone.

    A job is named when it comes to the front, so once as a rule, however often workers ask for it meanwhile.
    """
    taken: dict[str, None] = {}
    came: dict[str, str] = {}
    for event in events:
        # Not isinstance, which asks the metaclass of a struct, and takes longer than all else here.
        if type(event) is JobActive:
            taken[event.queue] = None
        elif type(event) is JobPushed or type(event) is JobWaiting:
            came[event.job_id] = event.queue
    hit: list[Event] = []
    for name in dict.fromkeys([*taken, *came.values()]):
        queue = state.queues.get(name)
        if queue is not None and is_limited(queue, state.now_ms):
            first = queue.ready.first()
            if first is not None and (name in taken or first.id in came):
                hit.append(RateLimitHit(name, first.id))
    return hit


def is_limited(queue: Queue, now_ms: int) -> bool:
    """Whether the rate limit, and nothing else, keeps a job of a queue from being taken."""
    settings = queue.settings
    if settings.rate is None or settings.paused or queue.tokens(now_ms) > 0:
        return False
    return settings.concurrency is None or len(queue.active) < settings.concurrency

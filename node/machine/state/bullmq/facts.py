"""What is known of a queue only because clients of BullMQ's backend protocol work on it. From feature level 1 on."""

from __future__ import annotations

import msgspec

from quorumq.node.machine.state.job import QUEUE_PREFIX, WAIT, JobSpec, OnChildFailure


class NamedJob(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """One job as a client of the backend protocol adds it.

    job: its id within the queue, empty for the queue's next number; data; options.  timestamp: when it was made, by its producer's
    clock.  due_from: what its delay counts from, where its producer chose a time; None for now.  parent: queue and id of the job that
    waits for it.  parent_key, parent_json: the same as the client sent it.  on_failure: what becomes of that one when this one fails for
    good.  to_children: it waits for children, that there are or will be.  repeat_key: the scheduler that makes it.  prefix: what its client
    calls queues with a bare name with.
    """

    job: JobSpec
    timestamp: int = 0
    due_from: int | None = None
    parent: tuple[str, str] | None = None
    parent_key: str | None = None
    parent_json: bytes | None = None
    on_failure: OnChildFailure = WAIT
    to_children: bool = False
    repeat_key: str | None = None
    prefix: str = QUEUE_PREFIX


class QueueFacts(msgspec.Struct, gc=False, array_like=True):
    """Of one queue.

    limit_count, limit_until: jobs that started in the window under way, and its end.  checked_until: no check of stalls before.
    marked_fence, marked_at: the last check saw all deliveries up to this one, at this time.  following: by deduplication id, the job
    that comes when the one that keeps it away ends, as (own id, job).  released: those ids whose jobs have ended, in that order.
    """

    limit_count: int = 0
    limit_until: int = 0
    checked_until: int = 0
    marked_fence: int = 0
    marked_at: int = 0
    following: dict[str, tuple[str, NamedJob]] = {}
    released: list[str] = []


class Facts:
    """Of all queues. following: how many jobs come after others.  released: queues that have some whose time has come."""

    __slots__ = ("by_queue", "following", "released")

    def __init__(self) -> None:
        self.by_queue: dict[str, QueueFacts] = {}
        self.following = 0
        self.released: dict[str, None] = {}

    def of(self, queue: str) -> QueueFacts:
        """Return what is known of a queue, from now on more than nothing."""
        facts = self.by_queue.get(queue)
        if facts is None:
            facts = self.by_queue[queue] = QueueFacts()
        return facts

    def find(self, queue: str) -> QueueFacts | None:
        """Return what is known of a queue, if anything is."""
        return self.by_queue.get(queue)

    def keep(self, queue: str, key: str, own: str, job: NamedJob) -> None:
        """Let a job come after the one that keeps it away; it takes the place of another one."""
        following = self.of(queue).following
        self.following += key not in following
        following[key] = (own, job)

    def release(self, queue: str, key: str, *, drop: bool = False) -> None:
        """Let a job come, if there is one that was to come after another one; drop: forget it."""
        facts = self.by_queue.get(queue)
        if facts is None or key not in facts.following:
            return
        if drop:
            del facts.following[key]
            self.following -= 1
        else:
            facts.released.append(key)
            self.released[queue] = None

    def take_released(self) -> tuple[str, str, str, NamedJob] | None:
        """Return queue, deduplication id, own id and job of the next one whose time has come; None when there is none."""
        while self.released:
            queue = next(iter(self.released))
            facts = self.by_queue[queue]
            key = facts.released.pop(0)
            if not facts.released:
                del self.released[queue]
            found = facts.following.pop(key, None)
            if found is not None:
                self.following -= 1
                return queue, key, *found
        return None

    def forget(self, queue: str) -> None:
        """Let nothing be known of a queue."""
        facts = self.by_queue.pop(queue, None)
        self.released.pop(queue, None)
        if facts is not None:
            self.following -= len(facts.following)

    def restore(self, queue: str, facts: QueueFacts) -> None:
        """Put what is known of a queue, from an image, where it was."""
        self.by_queue[queue] = facts
        self.following += len(facts.following)
        if facts.released:
            self.released[queue] = None


def weight_of_facts(item: tuple[str, QueueFacts]) -> int:
    """Return the bytes that a queue's facts take, roughly."""
    return 200 + sum(200 + len(job.job.data) for _, job in item[1].following.values())

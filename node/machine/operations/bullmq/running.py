"""Commands of workers over the backend protocol: each is one step, and most take the next job in it. Rules: lifecycle/bullmq/running.py."""

from __future__ import annotations

import msgspec

from quorumq.node.machine import events as happened
from quorumq.node.machine.bounds import JobId, LockToken, LongText, QueueName, RawJson
from quorumq.node.machine.lifecycle.bullmq import running
from quorumq.node.machine.lifecycle.bullmq.running import Taken, Wish
from quorumq.node.machine.operation import Entry, Operation, operation
from quorumq.node.machine.operations.bullmq.adding import ADDS
from quorumq.node.machine.operations.jobs import COMPLETES, FAILS, DurationMs
from quorumq.node.machine.refusals import BullmqError
from quorumq.node.machine.state import State
from quorumq.node.machine.state.bullmq.names import find
from quorumq.node.machine.state.job import Keep, own_id


class Ended(msgspec.Struct, frozen=True, gc=False):
    """When a run ended, and the job taken after it; None when none was asked for."""

    at_ms: int
    next: Taken | None


@operation(emits=(happened.JobActive,), since=1)
class TakeNext(Operation, frozen=True, tag="bullmq.take"):
    """Take the next job of a queue under a strict lock; else say what holds it up."""

    queue: QueueName
    wish: Wish = Wish("0")

    def apply(self, state: State, entry: Entry) -> Taken:
        return running.take(state, self.queue, self.wish)


@operation(emits=(*COMPLETES, *ADDS, happened.JobActive), refuses=(BullmqError,), since=1)
class CompleteRun(Operation, frozen=True, tag="bullmq.complete"):
    """End a run well. keep: which completed jobs stay; None leaves it to the job and its queue.  next: take the next job with this."""

    queue: QueueName
    job_id: JobId
    token: LockToken
    result: RawJson | None = None
    keep: Keep | None = None
    next: Wish | None = None

    def apply(self, state: State, entry: Entry) -> Ended:
        _, taken = running.complete(state, self.queue, self.job_id, self.token, self.result, self.keep, self.next)
        return Ended(state.now_ms, taken)


@operation(emits=(*FAILS, *ADDS, happened.JobActive), refuses=(BullmqError,), since=1)
class FailRun(Operation, frozen=True, tag="bullmq.fail"):
    """Fail a job for good. stacks: JSON text of its stack traces.  keep: which failed jobs stay, None as the job and its queue say."""

    queue: QueueName
    job_id: JobId
    token: LockToken
    reason: LongText = ""
    stacks: RawJson | None = None
    keep: Keep | None = None
    next: Wish | None = None

    def apply(self, state: State, entry: Entry) -> Ended:
        _, taken = running.fail(
            state, self.queue, self.job_id, self.token, self.reason, self.stacks, self.keep, self.next
        )
        return Ended(state.now_ms, taken)


@operation(emits=(*FAILS, happened.JobActive), refuses=(BullmqError,), since=1)
class DelayRun(Operation, frozen=True, tag="bullmq.delay"):
    """Let an active job wait for delay_ms from now. skip_attempt: its run counts as none; else as a failed one, of this reason."""

    queue: QueueName
    job_id: JobId
    token: LockToken
    delay_ms: int | float = 0
    skip_attempt: bool = False
    reason: LongText | None = None
    stacks: RawJson | None = None
    next: Wish | None = None

    def apply(self, state: State, entry: Entry) -> Ended:
        running.delay(
            state,
            self.queue,
            self.job_id,
            self.token,
            self.delay_ms,
            skip_attempt=self.skip_attempt,
            reason=self.reason,
            stacks=self.stacks,
        )
        return Ended(state.now_ms, None if self.next is None else running.take(state, self.queue, self.next))


@operation(emits=FAILS, refuses=(BullmqError,), since=1)
class RetryRun(Operation, frozen=True, tag="bullmq.retry_run"):
    """Let an active job whose run failed wait for the next one at once: behind the others of its priority, or first if it is lifo."""

    queue: QueueName
    job_id: JobId
    token: LockToken
    reason: LongText | None = None
    stacks: RawJson | None = None

    def apply(self, state: State, entry: Entry) -> None:
        running.retry(state, self.queue, self.job_id, self.token, self.reason, self.stacks)


@operation(emits=(happened.JobWaiting,), refuses=(BullmqError,), since=1)
class GiveBack(Operation, frozen=True, tag="bullmq.give_back"):
    """Put an active job in front of all that wait with its priority; its run counts as none. Answers for how long a limit holds it, ms."""

    queue: QueueName
    job_id: JobId
    token: LockToken

    def apply(self, state: State, entry: Entry) -> int:
        return running.give_back(state, self.queue, self.job_id, self.token)


@operation(emits=(happened.JobWaitingChildren,), refuses=(BullmqError,), since=1)
class AwaitNamedChildren(Operation, frozen=True, tag="bullmq.await_children"):
    """Let an active job wait for its children; False, and nothing happens, when none is pending.

    children: queue and id; only while the first of these that is there is pending.
    """

    queue: QueueName
    job_id: JobId
    token: LockToken
    children: list[tuple[QueueName, JobId]] = []

    def apply(self, state: State, entry: Entry) -> bool:
        child = next(filter(None, (find(state, *each) for each in self.children)), None)
        return running.await_children(state, self.queue, self.job_id, self.token, child, one=bool(self.children))


# -- Locks


@operation(since=1)
class ExtendNamedLocks(Operation, frozen=True, tag="bullmq.extend_locks"):
    """Let locks last lock_ms from now. Answers the ids whose tokens hold none; tokens: beside job_ids."""

    queue: QueueName
    job_ids: list[JobId]
    tokens: list[LockToken]
    lock_ms: DurationMs = 30_000

    def apply(self, state: State, entry: Entry) -> list[str]:
        return [
            own
            for own, token in zip(self.job_ids, self.tokens, strict=False)
            if not running.extend(state, self.queue, own, token, self.lock_ms)
        ]


@operation(emits=(happened.JobStalled, happened.JobWaiting), since=1)
class CheckNamedStalled(Operation, frozen=True, tag="bullmq.check_stalled"):
    """Put back the jobs whose workers gave no sign of life since the last check; nothing within interval_ms of that. Answers their ids.

    max_stalls: a job that stalled more often is failed by the next worker that takes it.
    """

    queue: QueueName
    max_stalls: int = 1
    interval_ms: int = 30_000

    def apply(self, state: State, entry: Entry) -> list[str]:
        return [own_id(job) for job in running.check_stalled(state, self.queue, self.max_stalls, self.interval_ms)]

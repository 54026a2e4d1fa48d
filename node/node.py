"""A node: the state machine, the engine under it and those who wait on it, behind a handful of calls.

Everything above (HTTP, WebSocket, command line) changes the state through `submit` and `pull` and reads it through
`ask`; nothing above touches the state itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, overload

import msgspec

from quorumq.cluster.errors import Unavailable
from quorumq.node.batching import Batcher, same
from quorumq.node.connected import Connected
from quorumq.node.engine import ReplicatedLog
from quorumq.node.forgetting import Forgetting
from quorumq.node.leader.assignment import AssignmentDuty
from quorumq.node.leader.clock import ClockDuty
from quorumq.node.leader.crons import CronDuty
from quorumq.node.long_polls import Waiters
from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operation import Operation, Query, level_needed
from quorumq.node.machine.operations.bullmq.sessions import CallOnce, IsAnswered
from quorumq.node.machine.operations.requests import GetOutcome, Idempotent
from quorumq.node.machine.operations.runs import FinishAndPull, Finished, Pulled, PullJobs, ReleaseJobs
from quorumq.node.machine.refusals import KeyNeedsScope, LevelTooLow
from quorumq.node.machine.state.job import COMPLETED, Job
from quorumq.node.proposals import propose_once
from quorumq.node.split_large import is_large, split_large
from quorumq.node.stream_readers import StreamReaders

if TYPE_CHECKING:
    from quorumq.cluster.status import Status

T = TypeVar("T")

WRITE_TIMEOUT_S = 15.0


class IdempotencyKey(NamedTuple):
    """A client's promise that requests with this key are one request. fingerprint: of all that it sent.

    scope: whose key it is, empty where everybody is one.  earlier: what the key is below feature level 1.
    """

    key: str
    fingerprint: bytes
    scope: str
    earlier: str


class Service(Protocol):
    """What runs on a node as long as the node does, and is made above it: the calls of webhooks and push workers."""

    def start(self) -> None:
        """Begin to work."""

    def drain(self) -> None:
        """Begin nothing that the node would have to wait for."""

    async def stop(self, within_s: float) -> None:
        """Finish what is under way in so many seconds, and leave the rest undone."""


class Keyed(NamedTuple):
    """A call of a session: its number there, up to which number the client has its answers, and the time by it where that counts."""

    session: str
    number: int
    acknowledged: int
    now_ms: int | None = None


class Node:
    """One node of the cluster, as its API sees it.

    write_timeout_s: how long a write or a read may take.  shutdown_s: how long what is under way may take once the node drains.
    clock: milliseconds since the epoch, for deciding when to look at the state again; by default the log's clock, or, where
    calls of clients say what time it is, that.
    """

    def __init__(
        self,
        engine: ReplicatedLog,
        machine: Machine,
        *,
        write_timeout_s: float = WRITE_TIMEOUT_S,
        shutdown_s: float = 0.0,
        clock: Callable[[], int] | None = None,
    ) -> None:
        if clock is None:
            clock = partial(_time_of, machine) if machine.state.timed_by_clients else engine.now_ms
        self.engine = engine
        self.machine = machine
        self.id = engine.node_id
        self.draining = False
        self.timeout_s = write_timeout_s
        self.shutdown_s = shutdown_s
        self.batcher = Batcher(engine)
        self.waiters = Waiters(machine, clock)
        self.readers = StreamReaders(machine)
        self.connected = Connected(self.id, machine, self.submit, clock)
        self.forgetting = Forgetting(engine, machine)
        self.clock_duty = ClockDuty(engine, machine, self.batcher, clock)
        self.cron_duty = CronDuty(engine, machine, self.batcher, clock)
        self.assignment_duty = AssignmentDuty(engine, machine, self.batcher, clock)
        self._services: list[Service] = []
        self._clock = clock
        self._drained_at = 0.0

    # -- Life

    def attach(self, service: Service) -> None:
        """Have something run as long as this node does. Before `start`."""
        self._services.append(service)

    async def start(self) -> None:
        """Begin to beat when leading. The engine is started by whoever made it."""
        self.clock_duty.start()
        self.cron_duty.start()
        self.assignment_duty.start()
        for service in self._services:
            service.start()

    def drain(self) -> None:
        """Take no new long polls and end those that wait, so that stopping takes no longer than the work under way."""
        if not self.draining:
            self._drained_at = time.monotonic()
        self.draining = True
        self.waiters.close()
        for service in self._services:
            service.drain()

    async def stop(self, *, at_once: bool = False) -> None:
        """Finish what is under way, services within what is left of the time to shut down.

        The engine is stopped by whoever made it; when it has given up already, nothing can be finished (at_once).
        """
        self.drain()
        for service in self._services:
            left_s = self.shutdown_s - (time.monotonic() - self._drained_at)
            await service.stop(0 if at_once else max(left_s, 0))
        self.connected.stop()
        self.clock_duty.stop()
        self.cron_duty.stop()
        self.assignment_duty.stop()
        try:
            async with asyncio.timeout(self.timeout_s):
                await self.batcher.idle()
        except TimeoutError:
            # What is under way without a quorum stays so; its callers get their answer from the engine.
            pass

    def now_ms(self) -> int:
        """The log's clock as this node knows it, in milliseconds since the epoch: what is asked of the future goes by it."""
        return self._clock()

    def status(self) -> Status:
        """Return the node's view of the cluster."""
        return self.engine.status()

    async def contents_digest(self) -> tuple[int, str]:
        """Work out a fingerprint of all that this node's state holds, beside everything else; return it with the entry it is of.

        It begins anew when an entry is applied meanwhile. Raises Unavailable when that never leaves it the time.
        """
        deadline = time.monotonic() + self.timeout_s
        while True:
            index, steps = self.machine.index, self.machine.contents_digest()
            while self.machine.index == index:
                try:
                    next(steps)
                except StopIteration as end:
                    return index, end.value
                await asyncio.sleep(0)
            if time.monotonic() > deadline:
                raise Unavailable("the state changes all the time; the members compare it by themselves meanwhile")

    async def change_members(self, action: str, node: str, address: str = "") -> None:
        """Add (as a learner), promote or remove a member, or transfer leadership to it.

        The change is in force when this returns, and in `status` too unless the leader was lost in the same moment.
        Raises cluster.membership.ChangeRefused, cluster.errors.Unavailable.
        """
        await self.engine.change_members(action, node, address)
        # What is asked of the leader may be older here; a node that has removed itself need not know.
        with contextlib.suppress(Unavailable):
            await self.refresh()

    # -- Writing

    @overload
    async def submit(
        self, op: Operation, *, timeout_s: float | None = None, once: IdempotencyKey | None = None
    ) -> Any: ...
    @overload
    async def submit(
        self,
        op: Operation,
        view: Callable[[Any], T],
        *,
        timeout_s: float | None = None,
        once: IdempotencyKey | None = None,
    ) -> T: ...
    async def submit(
        self,
        op: Operation,
        view: Callable[[Any], Any] | None = None,
        *,
        timeout_s: float | None = None,
        once: IdempotencyKey | None = None,
    ) -> Any:
        """Replicate an operation and return `view(reply)`.

        `view` runs inside the local apply and sees the state of that moment; records in a reply are live and must not be
        kept. With `once` a repeat is not applied again: its view gets a copy of the first reply, as it was then.
        What FinishAndPull takes goes back when the caller is cancelled.
        Raises Refusal, cluster.errors.Unavailable, cluster.errors.EntryTooLarge.
        """
        if isinstance(op, FinishAndPull):
            return await self._finish_and_pull(op, view or same, timeout_s or self.timeout_s, once)
        if is_large(op, self.machine.state) and (once is None or await self.ask(self._question(once)) is None):
            op = await split_large(op, self.machine.state, self._submit_part)
        return await self._hand_over(op, once, view or same, timeout_s or self.timeout_s)

    def begin(self, op: Operation, view: Callable[[Any], T], keyed: Keyed | None = None) -> asyncio.Future[T]:
        """Hand an operation to the log now, after those that were handed to it before; the future gets what `submit` returns or raises.

        It goes on when nobody waits for it. What is large is done in parts, and others may come between them.
        keyed: whose call it is; one that was made before is answered as it was then.
        Raises LevelTooLow, OperationNotKnown, cluster.errors.NotApplied where it cannot be handed over.
        """
        if is_large(op, self.machine.state):
            return asyncio.ensure_future(self._in_parts(op, view, keyed))
        return self.batcher.add(self._keyed(self._ready(op, None), keyed), view, self.timeout_s)

    async def _in_parts(self, op: Operation, view: Callable[[Any], T], keyed: Keyed | None) -> T:
        if keyed is None or not await self.ask(IsAnswered(keyed.session, keyed.number)):
            op = await split_large(op, self.machine.state, self._submit_part)
        return await self.batcher.add(self._keyed(self._ready(op, None), keyed), view, self.timeout_s)

    def _keyed(self, op: Operation, keyed: Keyed | None) -> Operation:
        if keyed is None:
            return op
        return CallOnce(keyed.session, keyed.number, keyed.acknowledged, _encode(op), keyed.now_ms)

    async def _hand_over(
        self,
        op: Operation,
        once: IdempotencyKey | None,
        view: Callable[[Any], Any],
        timeout_s: float,
        abandoned: Callable[[Any], None] | None = None,
    ) -> Any:
        try:
            return await self.batcher.add(self._ready(op, once), view, timeout_s, abandoned)
        except KeyNeedsScope:
            # Level 1 came into force just before it was applied, and so it is in force here too now.
            return await self.batcher.add(self._ready(op, once), view, timeout_s, abandoned)

    def _key(self, once: IdempotencyKey) -> str:
        """What a client's key is at the level in force."""
        return once.key if self.machine.state.level >= 1 else once.earlier

    def _question(self, once: IdempotencyKey) -> GetOutcome:
        if self.machine.state.level < 1:
            return GetOutcome(once.earlier, once.fingerprint)
        return GetOutcome(once.key, once.fingerprint, once.scope, once.earlier)

    def _ready(self, op: Operation, once: IdempotencyKey | None) -> Operation:
        """Put an operation under its idempotency key, if it has one. Raises LevelTooLow for one that may not be in the log yet."""
        needed, level = level_needed(op), self.machine.state.level
        if needed > level:
            raise LevelTooLow(str(op.__struct_config__.tag), needed, level)
        if once is None:
            return op
        if level < 1:
            return Idempotent(once.earlier, once.fingerprint, _encode(op))
        return Idempotent(once.key, once.fingerprint, _encode(op), once.scope, once.earlier)

    async def _submit_part(self, op: Operation) -> Any:
        return await self.batcher.add(op, same, self.timeout_s)

    # -- Reading

    @overload
    async def ask(self, query: Query, *, stale: bool = False) -> Any: ...
    @overload
    async def ask(self, query: Query, view: Callable[[Any], T], *, stale: bool = False) -> T: ...
    async def ask(self, query: Query, view: Callable[[Any], Any] | None = None, *, stale: bool = False) -> Any:
        """Answer a query from the local state, made fresh first unless `stale`. Raises Refusal, Unavailable."""
        if not stale:
            await self.refresh()
        answer = query.answer(self.machine.state)
        return answer if view is None else view(answer)

    async def refresh(self) -> None:
        """Make what the local state says as new as a linearizable read. Raises Unavailable."""
        await self.engine.read_index(asyncio.get_running_loop().time() + self.timeout_s)

    # -- Taking jobs

    async def pull(
        self, op: PullJobs, view: Callable[[Pulled], T], *, wait_ms: float = 0, once: IdempotencyKey | None = None
    ) -> T:
        """Take jobs, or wait up to wait_ms for one; return `view` of what was taken, which may be nothing.

        An empty answer at once is as true as any linearizable read, and costs no log entry. When the caller is cancelled,
        jobs taken for it go back as they were. With `once` a repeat gets the jobs that were taken first, as they were then.
        Raises Unavailable, IdempotencyKeyReused, ReplyForgotten, KeyForgotten.
        """
        if once is not None:
            known = await self.ask(self._question(once))
            if known is not None:
                return view(known)
        loop = asyncio.get_running_loop()
        ends = loop.time() + wait_ms / 1000
        if not self._promising(op):
            await self.refresh()
        if self._promising(op) and not self.waiters.waiting_for(op.queue):
            found, result = await self._take(op, view, once)
            if found:
                return result
        if wait_ms <= 0 or self.draining:
            if self._promising(op):
                return (await self._take(op, view, once))[1]
            return view(_nothing_for(op))
        waiter = self.waiters.join(op)
        try:
            while not self.draining and await waiter.sleep(ends - loop.time()):
                try:
                    found, result = await self._take(op, view, once)
                finally:
                    self.waiters.tried(waiter)
                if found:
                    return result
                self.waiters.look(waiter)
        finally:
            self.waiters.leave(waiter)
        return view(_nothing_for(op))

    def has_for(self, queue: str) -> bool:
        """Whether a pull from a queue may find something, as far as this node knows; whoever wants to be sure refreshes first."""
        return self._promising(PullJobs(queue))

    def _promising(self, op: PullJobs) -> bool:
        """Whether a pull may find something, as far as this node knows: a job, or something due that may become one."""
        state = self.machine.state
        now_ms = max(self._clock(), state.now_ms)
        queue = state.queues.get(op.queue)
        if queue is None or queue.settings.paused:
            return False
        if op.active_max is not None and queue.room_for(op.owner, op.active_max) <= 0:
            return False
        if queue.claimable(now_ms) > 0:
            return True
        first = queue.delayed.first()
        if first is not None and first.run_at <= now_ms:
            return True
        return bool(queue.group_uses) and (state.group_limits.next_due() or now_ms + 1) <= now_ms

    async def _take(self, op: PullJobs, view: Callable[[Pulled], T], once: IdempotencyKey | None) -> tuple[bool, T]:
        """Pull, and say whether there was anything. What was taken for a caller that is gone, or failed, goes back."""
        taken: list[tuple[str, int]] = []

        def look(reply: Pulled) -> tuple[bool, T]:
            taken.extend([(job.id, job.fence) for job in reply.jobs])
            return bool(taken), view(reply)

        def leave(reply: Pulled) -> None:
            self._give_back([(job.id, job.fence) for job in reply.jobs], once)

        try:
            found: tuple[bool, T] = await self._hand_over(op, once, look, self.timeout_s, leave)
            return found
        except BaseException:
            # The caller may be cancelled after the jobs were taken and before it could hear of them.
            self._give_back(taken, once)
            raise

    async def _finish_and_pull(
        self, op: FinishAndPull, view: Callable[[Finished], T], timeout_s: float, once: IdempotencyKey | None
    ) -> T:
        """End a run and take the next jobs, which go back when the caller is gone. The end of the run stays as it is."""
        taken: list[tuple[str, int]] = []

        def look(reply: Finished) -> T:
            taken.extend([(job.id, job.fence) for job in reply.next.jobs])
            return view(reply)

        def leave(reply: Finished) -> None:
            self._give_back([(job.id, job.fence) for job in reply.next.jobs], None)

        try:
            done: T = await self._hand_over(op, once, look, timeout_s, leave)
            return done
        except BaseException:
            self._give_back(taken, None)
            raise

    def _give_back(self, taken: list[tuple[str, int]], once: IdempotencyKey | None) -> None:
        """Return jobs, by id and fence, as they were."""
        if not taken:
            return
        # When that is not heard, their locks, or stall detection, bring them back.
        propose_once(self.batcher, ReleaseJobs(taken, once and self._key(once)), self.timeout_s)

    # -- Waiting for an end

    async def wait_finished(self, job_id: str, wait_ms: float, view: Callable[[Job | None], T]) -> T:
        """Wait until a job completes; return `view(job)`, or `view(None)` when it did not within wait_ms.

        Raises JobNotFound, Unavailable.
        """
        await self.refresh()
        job = self.machine.state.job(job_id)
        if job.state == COMPLETED:
            return view(job)
        if wait_ms <= 0 or self.draining:
            return view(None)
        future = self.waiters.on_end(job_id, view)
        try:
            done, _ = await asyncio.wait([future], timeout=wait_ms / 1000)
            return future.result() if done and not future.cancelled() else view(None)
        finally:
            self.waiters.off_end(job_id, future)


_encode = msgspec.msgpack.Encoder().encode


def _time_of(machine: Machine) -> int:
    return machine.state.now_ms


def _nothing_for(op: PullJobs) -> Pulled:
    return Pulled([], [] if op.locks else None)

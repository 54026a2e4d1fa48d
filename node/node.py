"""A node: the state machine, the engine under it and those who wait on it, behind a handful of calls.

Everything above (HTTP, WebSocket, command line) changes the state through `submit` and `pull` and reads it through
`ask`; nothing above touches the state itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

import msgspec

from cluster.errors import ClusterError, Unavailable
from node.addresses import CallPolicy
from node.batching import Batcher
from node.deliveries import Deliveries
from node.engine import Engine
from node.machine import Machine
from node.operation import Operation, Query
from node.operations.jobs import FinishAndPull, Finished, Pulled, PullJobs, ReleaseJobs
from node.operations.requests import GetOutcome, Idempotent
from node.pulse import Pulse
from node.pushing import Pushing, Render
from node.scheduler import Scheduler
from node.slices import is_large, lessen
from node.spreading import Spreader
from node.state.job import COMPLETED, Job
from node.waiters import Waiters

if TYPE_CHECKING:
    from cluster.status import Status
    from node.config import NodeConfig

T = TypeVar("T")

WRITE_TIMEOUT_S = 15.0


class Once(NamedTuple):
    """A client's promise that requests with this key are one request. fingerprint: of all that it sent."""

    key: str
    fingerprint: bytes


def wall_ms() -> int:
    """Return the time of this machine in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class Node:
    """One node of the cluster, as its API sees it.

    clock: milliseconds since the epoch, for deciding when to look at the state again; the log has its own time.
    render: what the endpoint of a push worker is sent for a job and its token; without it this node calls none.
    """

    def __init__(
        self,
        engine: Engine,
        machine: Machine,
        config: NodeConfig | None = None,
        *,
        clock: Callable[[], int] = wall_ms,
        render: Render | None = None,
    ) -> None:
        self.engine = engine
        self.machine = machine
        self.id = engine.node_id
        self.draining = False
        self.timeout_s = WRITE_TIMEOUT_S if config is None else config.write_timeout_ms / 1000
        self.batcher = Batcher(engine)
        self.waiters = Waiters(machine, clock)
        self.pulse = Pulse(engine, machine, self.batcher, clock)
        self.scheduler = Scheduler(engine, machine, self.batcher, clock)
        allow_private = config is not None and config.webhook_allow_private == "true"
        self.deliveries = Deliveries(engine, machine, self.batcher, allow_private=allow_private)
        self.spreader = Spreader(engine, machine, self.batcher, clock)
        self.pushing = None if render is None else self._pushing(config, clock, render)
        self.shutdown_s = 0.0 if config is None else config.shutdown_timeout_ms / 1000
        self._clock = clock
        self._drained_at = 0.0

    def _pushing(self, config: NodeConfig | None, clock: Callable[[], int], render: Render) -> Pushing:
        options: dict[str, Any] = {}
        if config is not None:
            options = {
                "policy": CallPolicy(config.worker_endpoints),
                "lock_ms": config.worker_lock_ms,
                "calls_max": config.worker_calls_max,
            }
        return Pushing(
            self.engine, self.machine, self.batcher, clock, render, write_timeout_s=self.timeout_s, **options
        )

    # -- Life

    async def start(self) -> None:
        """Begin to beat when leading. The engine is started by whoever made it."""
        self.pulse.start()
        self.scheduler.start()
        self.deliveries.start()
        self.spreader.start()
        if self.pushing is not None:
            self.pushing.start()

    def drain(self) -> None:
        """Take no new long polls and end those that wait, so that stopping takes no longer than the work under way."""
        if not self.draining:
            self._drained_at = time.monotonic()
        self.draining = True
        self.waiters.close()
        if self.pushing is not None:
            self.pushing.drain()

    async def stop(self, *, at_once: bool = False) -> None:
        """Finish what is under way, deliveries within what is left of the time to shut down.

        The engine is stopped by whoever made it; when it has given up already, nothing can be finished (at_once).
        """
        self.drain()
        if self.pushing is not None:
            left_s = self.shutdown_s - (time.monotonic() - self._drained_at)
            await self.pushing.stop(0 if at_once else max(left_s, 0))
        self.pulse.stop()
        self.scheduler.stop()
        self.spreader.stop()
        await self.deliveries.stop()
        try:
            async with asyncio.timeout(self.timeout_s):
                await self.batcher.idle()
        except TimeoutError:
            # What is under way without a quorum stays so; its callers get their answer from the engine.
            pass

    def status(self) -> Status:
        """Return the node's view of the cluster."""
        return self.engine.status()

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
    async def submit(self, op: Operation, *, timeout_s: float | None = None, once: Once | None = None) -> Any: ...
    @overload
    async def submit(
        self, op: Operation, view: Callable[[Any], T], *, timeout_s: float | None = None, once: Once | None = None
    ) -> T: ...
    async def submit(
        self,
        op: Operation,
        view: Callable[[Any], Any] | None = None,
        *,
        timeout_s: float | None = None,
        once: Once | None = None,
    ) -> Any:
        """Replicate an operation and return `view(reply)`.

        `view` runs inside the local apply and sees the state of that moment; records in a reply are live and must not be
        kept. With `once` a repeat is not applied again: its view gets a copy of the first reply, as it was then.
        What FinishAndPull takes goes back when the caller is cancelled.
        Raises Refusal, cluster.errors.Unavailable, cluster.errors.EntryTooLarge.
        """
        if isinstance(op, FinishAndPull):
            return await self._finish_and_pull(op, view or _same, timeout_s or self.timeout_s, once)
        if is_large(op, self.machine.state) and (once is None or await self.ask(GetOutcome(*once)) is None):
            op = await lessen(op, self.machine.state, self._submit_part)
        return await self.batcher.submit(_keyed(op, once), view or _same, timeout_s or self.timeout_s)

    async def _submit_part(self, op: Operation) -> Any:
        return await self.batcher.submit(op, _same, self.timeout_s)

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
        self, op: PullJobs, view: Callable[[Pulled], T], *, wait_ms: float = 0, once: Once | None = None
    ) -> T:
        """Take jobs, or wait up to wait_ms for one; return `view` of what was taken, which may be nothing.

        An empty answer at once is as true as any linearizable read, and costs no log entry. When the caller is cancelled,
        jobs taken for it go back as they were. With `once` a repeat gets the jobs that were taken first, as they were then.
        Raises Unavailable, IdempotencyKeyReused, ReplyForgotten.
        """
        if once is not None:
            known = await self.ask(GetOutcome(*once))
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
        return first is not None and first.run_at <= now_ms

    async def _take(self, op: PullJobs, view: Callable[[Pulled], T], once: Once | None) -> tuple[bool, T]:
        """Pull, and say whether there was anything. What was taken for a caller that is gone, or failed, goes back."""
        taken: list[tuple[str, int]] = []

        def look(reply: Pulled) -> tuple[bool, T]:
            taken.extend([(job.id, job.fence) for job in reply.jobs])
            return bool(taken), view(reply)

        def leave(reply: Pulled) -> None:
            self._give_back([(job.id, job.fence) for job in reply.jobs], once)

        future = self.batcher.submit(_keyed(op, once), look, self.timeout_s, leave)
        try:
            return await future
        except BaseException:
            # The caller may be cancelled after the jobs were taken and before it could hear of them.
            self._give_back(taken, once)
            raise

    async def _finish_and_pull(
        self, op: FinishAndPull, view: Callable[[Finished], T], timeout_s: float, once: Once | None
    ) -> T:
        """End a run and take the next jobs, which go back when the caller is gone. The end of the run stays as it is."""
        taken: list[tuple[str, int]] = []

        def look(reply: Finished) -> T:
            taken.extend([(job.id, job.fence) for job in reply.next.jobs])
            return view(reply)

        def leave(reply: Finished) -> None:
            self._give_back([(job.id, job.fence) for job in reply.next.jobs], None)

        future = self.batcher.submit(_keyed(op, once), look, timeout_s, leave)
        try:
            return await future
        except BaseException:
            self._give_back(taken, None)
            raise

    def _give_back(self, taken: list[tuple[str, int]], once: Once | None) -> None:
        """Return jobs, by id and fence, as they were."""
        if not taken:
            return
        try:
            future = self.batcher.submit(ReleaseJobs(taken, once and once.key), _same, self.timeout_s)
        except ClusterError:
            # Their locks, or stall detection, bring them back.
            return
        future.add_done_callback(_heard)

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


def _keyed(op: Operation, once: Once | None) -> Operation:
    """Put an operation under its idempotency key, if it has one."""
    return op if once is None else Idempotent(once.key, once.fingerprint, _encode(op))


def _same(reply: Any) -> Any:
    return reply


def _nothing_for(op: PullJobs) -> Pulled:
    return Pulled([], [] if op.locks else None)


def _heard(future: asyncio.Future[Any]) -> None:
    # Asking for the exception keeps the loop from reporting one that nobody waits for.
    if not future.cancelled():
        future.exception()

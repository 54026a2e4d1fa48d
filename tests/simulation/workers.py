"""Workers under faults, as BullMQ has them over the backend protocol, and what must come of it.

Each has a session of its own, and sends a call that was not answered again under its number, at another node, until it is. Their locks
are strict: one that ran out ends nothing, nobody else gets the job before it has, and a job whose worker is lost is put back by the
check that workers ask for, not before two of them have come. The stream of the queue tells of each end once.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from quorumq.cluster.errors import ClusterError
from quorumq.node.machine.lifecycle.bullmq.running import Taken, Wish
from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.bullmq.adding import AddNamedJobs
from quorumq.node.machine.operations.bullmq.running import (
    CheckNamedStalled,
    CompleteRun,
    Ended,
    ExtendNamedLocks,
    RetryRun,
    TakeNext,
)
from quorumq.node.machine.refusals import BullmqError, LevelTooLow
from quorumq.node.machine.state import State, job_spec
from quorumq.node.machine.state.bullmq.facts import NamedJob
from quorumq.node.machine.state.bullmq.names import find
from quorumq.node.machine.state.bullmq.streams import fields_of, read_id, written
from quorumq.node.machine.state.job import COMPLETED, Keep
from quorumq.node.node import Keyed
from tests.simulation.checks import Checks

if TYPE_CHECKING:
    from tests.simulation.world import World

WORK = "work"
INTERVAL_MS = 1_500
"""Between two checks of stalls; most locks are shorter, so that one check alone would put jobs back too early."""
LOCKS_MS = (200, 600, 15_000)
STALLS_MAX = 1 << 20
ALL = Keep()
FOR_EVER = 1 << 62


@dataclass
class Delivery:
    """A job as a worker got it, in the log's time. until_ms: the last moment of its lock.  given_up: its worker may have let go of it."""

    own: str
    token: str
    fence: int
    at_ms: int
    until_ms: int
    given_up: bool = False


class Session:
    """One client: its calls one after the other, each made until it is answered, at whichever node."""

    def __init__(self, world: World, name: str, rng: random.Random) -> None:
        self._world = world
        self._name = name
        self._rng = rng
        self._number = 0

    async def call(self, operation: Operation, view: Callable[[Any], Any]) -> Any:
        """Return `view(reply)`, worked out inside the apply. Raises Refusal; CancelledError when all is to be quiet."""
        self._number += 1
        keyed = Keyed(self._name, self._number, self._number - 1)
        while not self._world._quiet:
            names = self._world._asked()
            if not names:
                await asyncio.sleep(0.1)
                continue
            host = self._world.hosts[self._rng.choice(names)]
            node = host.node
            assert node is not None

            async def once(node: Any = node) -> Any:
                return await node.begin(operation, view, keyed)

            task = self._world.loop.create_task(once(), context=host.process.context())
            await asyncio.wait([task], timeout=self._rng.choice((0.05, 0.5, 3.0)))
            if not task.done():
                # It may be made all the same, before or after it is sent again.
                task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            elif not task.cancelled() and not isinstance(task.exception(), ClusterError | LevelTooLow):
                return task.result()
            await asyncio.sleep(self._rng.choice((0.0, 0.05)))
        raise asyncio.CancelledError


class Workers:
    """What was added, delivered and ended, as clients know it. `checks` takes the violations."""

    def __init__(self, checks: Checks) -> None:
        self._checks = checks
        self._added: set[str] = set()
        self._deliveries: dict[str, dict[int, Delivery]] = {}
        self._completed: dict[str, str] = {}

    async def work(self, world: World, number: int) -> None:
        """Add jobs, take and end them, keep some too long and lose others, until all is to be quiet."""
        rng = random.Random(world.seed * 104_729 + number)
        session = Session(world, f"worker {number}", rng)
        held: Delivery | None = None
        turn = 0
        while not world._quiet:
            turn += 1
            await asyncio.sleep(rng.expovariate(6))
            try:
                if rng.random() < 0.3:
                    await self._add(session)
                if rng.random() < 0.2:
                    await session.call(CheckNamedStalled(WORK, STALLS_MAX, INTERVAL_MS), _nothing)
                wish = Wish(f"{number}-{turn}", rng.choice(LOCKS_MS))
                if held is None:
                    taken = await session.call(TakeNext(WORK, wish), _copied)
                    held = self._delivered(wish, taken)
                else:
                    await asyncio.sleep(rng.choice((0.0, 0.0, 0.1, 0.5)))
                    held = await self._go_on(session, held, wish, rng)
            except BullmqError:
                # Its lock is over.
                held = None
            except asyncio.CancelledError:
                return

    async def _add(self, session: Session) -> None:
        spec = job_spec("", b"1", max_attempts=1 << 20, backoff=0, rejoin_last=True, stalls_allowed=1)
        own = await session.call(AddNamedJobs(WORK, [NamedJob(spec)]), lambda reply: reply.ids[0])
        if own in self._added:
            self._checks.fail("an id is given once", f"{own} was given to two jobs")
        self._added.add(own)

    async def _go_on(self, session: Session, held: Delivery, wish: Wish, rng: random.Random) -> Delivery | None:
        """End a run in one of its ways; return the next delivery, or the same one where it is kept."""
        what = rng.choices(("complete", "retry", "extend", "lose"), (6, 2, 2, 2))[0]
        if what == "lose":
            return None
        if what == "extend":
            # From when on it lasts so long, the answer does not say.
            held.until_ms = FOR_EVER
            extending = ExtendNamedLocks(WORK, [held.own], [held.token], wish.lock_ms)
            return None if await session.call(extending, list) else held
        held.given_up = True
        if what == "retry":
            await session.call(RetryRun(WORK, held.own, held.token), _nothing)
            return None
        operation = CompleteRun(WORK, held.own, held.token, b'"%b"' % held.token.encode(), ALL, wish)
        at_ms, taken = await session.call(operation, _copied_end)
        self._checks.acknowledged += 1
        if at_ms > held.until_ms:
            self._checks.fail(
                "a lock that ran out ends nothing", f"{held.own} was completed {at_ms - held.until_ms} ms after it"
            )
        if held.own in self._completed:
            self._checks.fail("nobody completes a job twice", f"{held.own} by {held.token}")
        self._completed[held.own] = held.token
        return self._delivered(wish, taken)

    def _delivered(self, wish: Wish, taken: tuple[str, int, int, int] | None) -> Delivery | None:
        if taken is None:
            return None
        own, fence, at_ms, until_ms = taken
        found = Delivery(own, wish.token, fence, at_ms, until_ms)
        known = self._deliveries.setdefault(own, {})
        if fence in known:
            self._checks.fail("a delivery has one worker", f"{own} was given to {known[fence].token} and {found.token}")
        known[fence] = found
        for before, after in pairwise(known[one] for one in sorted(known)):
            if not before.given_up and before.until_ms < FOR_EVER and after.at_ms < before.until_ms:
                self._checks.fail(
                    "a lock is kept", f"{own} was given away {before.until_ms - after.at_ms} ms too early"
                )
        return found

    def at_the_end(self, state: State) -> None:
        """Look at the jobs and the stream of a node, after everything has healed."""
        stream = state.bullmq.streams.by_queue.get(WORK)
        told = [] if stream is None else [(written(entry[0]), fields_of(entry)) for entry in stream.entries]
        ids = [read_id(event_id) for event_id, _ in told]
        if any(before >= after for before, after in pairwise(ids)):
            self._checks.fail("ids of events rise", str(ids))
        self._stalls(told)
        heard = Counter((fields[1], fields[3]) for _, fields in told if len(fields) > 3)
        for own in self._added:
            job = find(state, WORK, own)
            if job is None:
                self._checks.fail("nothing acknowledged is lost", f"job {own} was added")
            assert job is not None
            ends = heard["completed", own]
            if heard["added", own] != 1 or ends != (job.state == COMPLETED):
                self._checks.fail("a stream tells of each end once", f"of {own}, which is {job.state}: {ends}")
            if heard["active", own] < len(self._deliveries.get(own, ())):
                self._checks.fail("a stream tells of each delivery", f"of {own}: {heard['active', own]}")
        for own, token in self._completed.items():
            job = find(state, WORK, own)
            if job is None or job.state != COMPLETED or job.result != b'"%b"' % token.encode():
                self._checks.fail("nothing acknowledged is lost", f"{token} completed {own}")

    def _stalls(self, told: list[tuple[str, list[str]]]) -> None:
        """A job that is put back was delivered before the first of two checks, so an interval ago at least."""
        since: dict[str, int] = {}
        for event_id, fields in told:
            at_ms = int(event_id.partition("-")[0])
            if fields[1] == "active":
                since[fields[3]] = at_ms
            elif fields[1] == "stalled" and at_ms - since[fields[3]] < INTERVAL_MS:
                late = at_ms - since[fields[3]]
                self._checks.fail("two checks put a job back", f"{fields[3]} was, {late} ms after it was delivered")


def _nothing(reply: Any) -> None:
    return None


def _copied(taken: Taken) -> tuple[str, int, int, int] | None:
    """Return what a worker is to know of a job that it got, as it is at that moment; of a repeat, as it was then."""
    job = taken.job
    if job is None:
        return None
    return job.id.rpartition(":")[2], job.fence, job.started_at or 0, job.lock_until


def _copied_end(ended: Ended) -> tuple[int, tuple[str, int, int, int] | None]:
    return ended.at_ms, None if ended.next is None else _copied(ended.next)

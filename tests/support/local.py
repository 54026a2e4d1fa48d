"""An engine of one node in one process: no log, no network, the order of submission is the order of the log.

It keeps the promises of `cluster.engine.Engine` that a node relies on (outcomes inside the local apply, one entry per
loop iteration, a clock that never goes back), so tests of node/ and api/ run over it in milliseconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from quorumq.cluster.errors import ClusterError, NotApplied, Unavailable
from quorumq.cluster.membership import ChangeRefused, Membership, Seat
from quorumq.cluster.metrics import ReplicationMetrics
from quorumq.cluster.status import Member, Status


def wall_ms() -> int:
    """Return the time of this machine in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class LocalEngine:
    """The single node of a cluster of one.

    clock: returns milliseconds since the epoch; replace it to travel in time.
    available: set to False to act like a cluster without a quorum.
    """

    def __init__(self, machine: Any, *, node_id: str = "n1", clock: Callable[[], int] | None = None) -> None:
        self.machine = machine
        self.node_id = node_id
        self.clock = clock or wall_ms
        self.is_leader = False
        self.applied_index = 0
        self.available = True
        self.entries: list[tuple[int, int, list[bytes]]] = []
        self.keep_entries = False
        self._waiting: list[tuple[bytes, Callable[[Any, ClusterError | None], None]]] = []
        self._scheduled = False
        self._stopped = False
        self._listeners: list[Callable[[bool], None]] = []
        self._failed: asyncio.Future[None] | None = None
        self.metrics = ReplicationMetrics()
        self.clock_offset_ms = 0
        self.silent_s = 0.0
        self.membership = Membership({node_id: Seat("127.0.0.1:7790", True)})

    @property
    def failed(self) -> asyncio.Future[None]:
        if self._failed is None:
            self._failed = asyncio.get_running_loop().create_future()
        return self._failed

    def now_ms(self) -> int:
        return self.clock()

    def propose(self, payload: bytes, deadline: float, done: Callable[[Any, ClusterError | None], None]) -> None:
        loop = asyncio.get_running_loop()
        if self._stopped or not self.available:
            loop.call_soon(done, None, NotApplied("the local engine is not available"))
            return
        self._waiting.append((payload, done))
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._apply)

    def _apply(self) -> None:
        self._scheduled = False
        waiting, self._waiting = self._waiting, []
        batches = [payload for payload, _ in waiting]
        outcomes = self.apply_now(batches)
        for (_, done), outcome in zip(waiting, outcomes, strict=True):
            done(outcome, None)

    def apply_now(self, batches: list[bytes]) -> list[Any]:
        """Apply one entry at once, outside the loop's turn."""
        self.applied_index += 1
        now_ms = self.clock()
        if self.keep_entries:
            self.entries.append((self.applied_index, now_ms, batches))
        outcomes: list[Any] = self.machine.apply(self.applied_index, now_ms, batches)
        return outcomes

    async def read_index(self, deadline: float) -> None:
        if self._stopped or not self.available:
            raise Unavailable("the local engine is not available")
        await asyncio.sleep(0)

    def on_role_change(self, listener: Callable[[bool], None]) -> None:
        self._listeners.append(listener)
        if self.is_leader:
            listener(True)

    async def change_members(self, action: str, node: str, address: str = "") -> Membership:
        """Change what `status` shows; nobody is really there."""
        if not self.available:
            raise Unavailable("no leader: the membership cannot be changed now")
        if action == "add":
            self.membership = self.membership.adding(node, address)
        elif action == "promote":
            self.membership = self.membership.promoting(node)
        elif action == "remove":
            self.membership = self.membership.removing(node, set(self.membership.seats))
        elif node not in self.membership.voters:
            raise ChangeRefused(f"{node} is not a voter")
        return self.membership

    def become_leader(self, leads: bool) -> None:
        """Change the role, as an election would."""
        if leads != self.is_leader:
            self.is_leader = leads
            for listener in self._listeners:
                listener(leads)

    def status(self) -> Status:
        role = "leader" if self.is_leader else "follower"
        applied = self.applied_index
        return Status(
            node_id=self.node_id,
            cluster_name="quorumq",
            cluster_id="local",
            role=role,
            term=1,
            leader=self.node_id if self.is_leader else None,
            commit_index=applied,
            applied_index=applied,
            last_index=applied,
            durable_index=applied,
            first_index=1,
            snapshot_index=0,
            log_bytes=0,
            has_quorum=self.available,
            ready=self.available and not self._stopped,
            ready_reason="" if self.available else "no quorum",
            digest=self.machine.digest(),
            members=[
                Member(
                    id=node,
                    address=seat.address,
                    role=(role if node == self.node_id else "follower") if seat.voter else "learner",
                    voter=seat.voter,
                    connected=True,
                    match_index=applied,
                    lag=0,
                    self=node == self.node_id,
                    clock_offset_ms=self.clock_offset_ms if node == self.node_id else None,
                )
                for node, seat in self.membership.seats.items()
            ],
        )

    async def start(self) -> None:
        self.become_leader(True)

    async def stop(self, *, transfer: bool = True) -> None:
        self.become_leader(False)
        self._stopped = True
        waiting, self._waiting = self._waiting, []
        for _, done in waiting:
            done(None, NotApplied("the local engine stopped"))

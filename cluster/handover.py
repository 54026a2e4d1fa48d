"""Leadership that is handed to another member: when this node leaves, when it is asked to, or when its state is not to be trusted."""

from __future__ import annotations

import asyncio

from quorumq.cluster.agreement import Agreement
from quorumq.cluster.driver import Driver
from quorumq.cluster.levels import Levels
from quorumq.cluster.raft import Raft
from quorumq.cluster.routes import Routes
from quorumq.cluster.seams import Clock

_TRANSFER_S = 2.0
_NEAR_ENTRIES = 1000


class Handover:
    """Hands over, and knows whether it is about to: meanwhile a leader proposes nothing."""

    def __init__(self, raft: Raft, routes: Routes, levels: Levels, agreement: Agreement, driver: Driver) -> None:
        self._raft = raft
        self._routes = routes
        self._levels = levels
        self._agreement = agreement
        self._driver = driver
        self.under_way = 0
        self._giving_up = False

    async def transfer(self, peer: str | None = None) -> bool:
        """Hand leadership to `peer`, or to the one furthest ahead, once it holds the whole log. Returns whether it was taken."""
        raft = self._raft
        deadline = Clock.now() + _TRANSFER_S
        asked_at = float("-inf")
        self.under_way += 1
        try:
            while raft.is_leader and Clock.now() < deadline:
                target = peer
                if target is None:
                    suspects = self._agreement.suspects
                    present = [
                        each
                        for each in raft.peers
                        if self._routes.connected(each) and raft.counts(each) and each not in suspects
                    ]
                    target = max(present, key=self._fitness, default=None)
                if target is not None and Clock.now() - asked_at > 0.3 and raft.transfer(target):
                    asked_at = Clock.now()
                self._driver.poke()
                await asyncio.sleep(0.005)
            return not raft.is_leader
        finally:
            self.under_way -= 1

    def drive(self, *, leads: bool) -> None:
        """A leader whose state is not what the others have gives up."""
        if leads and self._agreement.apart and not self._giving_up:
            self._giving_up = True
            self._driver.spawn(self._give_up())

    async def _give_up(self) -> None:
        try:
            await self.transfer()
        finally:
            self._giving_up = False

    def _fitness(self, peer: str) -> tuple[bool, int, str]:
        """Who should lead next: one that runs a newer version, so that a roll moves leadership once, else who is furthest ahead."""
        raft = self._raft
        near = raft.journal.last_index - raft.match_index(peer) <= _NEAR_ENTRIES
        return near and self._levels.is_newer(peer), raft.match_index(peer), peer

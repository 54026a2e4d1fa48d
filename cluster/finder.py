"""Looking for the other nodes by a name: what `discovery.decide` concludes is done here, and members that moved are dialled anew.

Until a node belongs to a cluster it looks every second; after that only while some member cannot be reached.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from quorumq.cluster import discovery
from quorumq.cluster.config import ClusterConfig
from quorumq.cluster.discovery import Who
from quorumq.cluster.driver import Driver
from quorumq.cluster.identity import IdentityFile, Probation
from quorumq.cluster.raft import Raft

log = logging.getLogger("quorumq.cluster")


class DiscoveryLinks(Protocol):
    """What the search needs of the links (cluster/links.py, and the simulation's)."""

    addresses: dict[str, str]

    def connected(self, peer: str) -> bool: ...
    def moved(self, peer: str, address: str) -> None: ...
    async def ask(self, address: str) -> Who | None: ...


class Finder:
    """Finds the cluster that this node belongs to, or founds it with the others. With a list of peers there is nothing to find.

    instance: random, of this process.  resolve: the addresses that names stand for.  cluster_id: the id as far as it is known.
    has_history: whether this node holds entries or a snapshot.  changed: called when this node may belong to a cluster now.
    """

    def __init__(
        self,
        config: ClusterConfig,
        raft: Raft,
        links: DiscoveryLinks,
        driver: Driver,
        identity: IdentityFile,
        probation: Probation | None,
        *,
        instance: str,
        resolve: Callable[[Iterable[str]], Awaitable[list[str]]],
        cluster_id: Callable[[], str],
        has_history: Callable[[], bool],
        changed: Callable[[], None],
    ) -> None:
        self._config = config
        self._raft = raft
        self._links = links
        self._driver = driver
        self._identity = identity
        self._probation = probation
        self._instance = instance
        self._resolve = resolve
        self._cluster_id = cluster_id
        self._has_history = has_history
        self._changed = changed
        self._found = not config.discover
        self.looking = "not looked yet" if config.discover else ""
        """Why the members are not found yet."""
        self._sees: list[str] = []
        # Members that were out of reach at the last look.
        self._missed: list[str] = []

    def belongs(self) -> bool:
        """Whether the members are known: from the settings, from the log, or because they were found."""
        return self._found or self._raft.membership_known

    def who(self) -> Who:
        """What this node says of itself to one that asks."""
        seated, seats = self._raft.membership_known, self._raft.membership.seats
        held = self._identity.held
        return Who(
            id=self._raft.id,
            instance=self._instance,
            address=self._config.peers[self._raft.id],
            cluster_id=self._cluster_id(),
            seated=seated,
            history=self._has_history(),
            joins=bool(held.cluster_id) and not held.whole and not seated,
            founders=held.founders,
            sees=self._sees,
            members={each: self._links.addresses.get(each, seat.address) for each, seat in seats.items()}
            if seated
            else {},
        )

    async def run(self) -> None:
        """Look until this node belongs to a cluster, and after that for members that cannot be reached where they were."""
        try:
            while not self._driver.stopped:
                if not self.belongs() or self._away():
                    await self._look()
                await asyncio.sleep(discovery.LOOK_S if not self.belongs() else 3 * discovery.LOOK_S)
        except Exception as error:
            self._driver.fail(error)

    def _away(self) -> list[str]:
        """Members that this node is not connected to."""
        seats = self._raft.membership.seats
        return [node for node in seats if node != self._raft.id and not self._links.connected(node)]

    async def _look(self) -> None:
        addresses = await self._resolve(self._config.discover)
        found = await asyncio.gather(*(self._links.ask(address) for address in addresses))
        answers = [(address, who) for address, who in zip(addresses, found, strict=True) if who is not None]
        if not self.belongs():
            await self._follow(
                discovery.decide(self.who(), [who for _, who in answers], self._config.cluster_size), answers
            )
        away = self._away()
        for address, who in answers:
            if who.id not in away:
                continue
            if who.address != self._links.addresses.get(who.id):
                self._links.moved(who.id, who.address)
            elif who.id in self._missed:
                # What it calls its own address has been tried for a while; whoever asked it came by this one.
                self._links.moved(who.id, address)
        self._missed = away
        self._changed()

    async def _follow(self, decision: discovery.Decision, answers: list[tuple[str, Who]]) -> None:
        self._sees = decision.sees
        before, self.looking = self.looking, decision.waits_for
        if self.looking not in ("", before):
            log.info("no cluster yet: %s", self.looking)
        if decision.bind:
            await self._identity.keep(founders=decision.sees)
        elif decision.found:
            addresses = {who.id: who.address for _, who in answers} | {self._raft.id: self._config.peers[self._raft.id]}
            self._take_part({node: addresses[node] for node in decision.sees})
        elif decision.join:
            # Remembered before anything of that cluster is believed: this node has no part in founding another any more.
            await self._identity.keep(cluster_id=decision.cluster_id)
            if self._identity.held.cluster_id and self._probation is not None:
                self._probation.history = True
            if self._identity.held.cluster_id:
                self._take_part(decision.join)

    def _take_part(self, peers: dict[str, str]) -> None:
        log.info("found %s", ", ".join(sorted(peers)))
        self._found = True
        self._raft.found(peers)
        self._changed()
        self._driver.poke()

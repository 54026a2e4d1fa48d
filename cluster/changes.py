"""Changes of the membership on request: from the node that was asked to the leader, which proposes them, and back with the outcome.

What a change does to the seats is membership.py's; what makes one safe to propose now is decided here, by the leader. The outcome
is told when the change is applied at the leader, or when it ceases to lead.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Collection

from quorumq.cluster.driver import Driver
from quorumq.cluster.errors import ClusterError, OutcomeUnknown, Unavailable
from quorumq.cluster.frames import Message
from quorumq.cluster.membership import ChangeRefused, Membership
from quorumq.cluster.raft import Raft

log = logging.getLogger("quorumq.cluster")

_PROMOTABLE_LAG = 16
_ERRORS: dict[str, type[ClusterError]] = {"ChangeRefused": ChangeRefused, "OutcomeUnknown": OutcomeUnknown}
"""Kinds of error that keep their kind on the way between nodes; any other is Unavailable."""

Reply = Callable[[ClusterError | None], None]


class Changes:
    """Both sides: the requests of this node that have no outcome yet, and the changes that it proposed as the leader.

    whole: ids of the members that are known to hold all that they promised.  may_propose: whether this leader takes anything
    into its log now.  propose: append a membership to it.  hand_over: hand leadership to a node, and tell whether it took it.
    raise_level: append a higher feature level to the log, or raise ChangeRefused.  lone: no member may come to this node.
    """

    def __init__(
        self,
        raft: Raft,
        driver: Driver,
        *,
        whole: Collection[str],
        may_propose: Callable[[], bool],
        propose: Callable[[Membership], None],
        hand_over: Callable[[str], Awaitable[bool]],
        raise_level: Callable[[int], None],
        lone: bool = False,
    ) -> None:
        self._raft = raft
        self._driver = driver
        self._whole = whole
        self._may_propose = may_propose
        self._propose = propose
        self._hand_over = hand_over
        self._raise_level = raise_level
        self._lone = lone
        self._raising: list[tuple[int, Reply]] = []
        self._number = 0
        self._asked: dict[int, asyncio.Future[None]] = {}
        self._under_way: list[tuple[bytes, Reply]] = []

    # -- the node that was asked -------------------------------------------------------------------------------------

    async def request(self, action: str, node: str, address: str, timeout_s: float) -> Membership:
        """Have the leader make the change; returns the membership in force afterwards.

        action: add, promote, remove, transfer, or level, with the feature level to reach in place of the node.
        Raises ChangeRefused with the reason, Unavailable without a connection to a leader, OutcomeUnknown when it was lost meanwhile.
        """
        if self._lone and action == "add":
            raise ChangeRefused("CLOCK=clients is for one node alone")
        raft = self._raft
        leader = raft.leader
        if leader is None:
            raise Unavailable("no leader: the membership cannot be changed now")
        future: asyncio.Future[None] = self._driver.loop.create_future()
        self._number += 1
        number = self._number
        self._asked[number] = future
        question = {"type": "change", "number": number, "action": action, "node": node, "address": address}
        try:
            if leader == raft.id:
                self._change(action, node, address, functools.partial(self._settle, number))
            elif not raft.links.send(leader, question):
                raise Unavailable(f"no connection to {leader}, which leads: the membership was not changed")
            self._driver.poke()
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            raise OutcomeUnknown("no answer from the leader: see the members") from None
        finally:
            self._asked.pop(number, None)
        return raft.membership

    def _settle(self, number: int, error: ClusterError | None) -> None:
        future = self._asked.get(number)
        if future is not None and not future.done():
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

    def on_changed(self, peer: str, message: Message) -> None:
        """The leader's answer."""
        code, text = message["code"], str(message["error"])
        self._settle(message["number"], _ERRORS.get(code, Unavailable)(text) if code else None)

    # -- the leader --------------------------------------------------------------------------------------------------

    def on_change(self, peer: str, message: Message) -> None:
        """Another node was asked for a change, and takes this one for the leader."""
        number = message["number"]

        def reply(error: ClusterError | None) -> None:
            code = "" if error is None else type(error).__name__
            self._raft.links.send(peer, {"type": "changed", "number": number, "code": code, "error": str(error or "")})

        self._change(str(message["action"]), str(message["node"]), str(message["address"]), reply)

    def _change(self, action: str, node: str, address: str, reply: Reply) -> None:
        """Propose the change, and reply when it is applied here."""
        raft = self._raft
        try:
            if not raft.is_leader:
                raise Unavailable("this node does not lead")
            if action == "transfer":
                self._transfer(node, reply)
                return
            if action == "level":
                self._raise(node, reply)
                return
            if not raft.membership_settled or not self._may_propose():
                raise ChangeRefused("another change is under way, or this leader is new: try again in a moment")
            after = self._after(action, node, address)
        except ClusterError as error:
            reply(error)
            return
        log.info("%s %s", action, node)
        self._propose(after)
        self._under_way.append((after.encode(), reply))
        self._driver.poke()

    def _after(self, action: str, node: str, address: str) -> Membership:
        raft = self._raft
        if action == "add":
            return raft.membership.adding(node, address)
        if action == "promote":
            after = raft.membership.promoting(node)
            behind = raft.commit_index - raft.match_index(node)
            if raft.match_index(node) == 0 or behind > _PROMOTABLE_LAG or node not in self._whole:
                raise ChangeRefused(
                    f"{node} is {behind} entries behind, or does not know every member yet: it must catch up first"
                )
            return after
        if action == "remove":
            if node == raft.id:
                raise ChangeRefused(f"{node} leads: hand leadership over first")
            return raft.membership.removing(node, self._reachable())
        raise ChangeRefused(f"unknown action {action!r}")

    def _reachable(self) -> set[str]:
        """Those that count for a quorum.

        A voter that has lost its disk, and does not vote before it has caught up, is no help for one; and what is known of
        one that has not answered just now may be past.
        """
        raft = self._raft
        helpful = (
            peer for peer in raft.peers if raft.links.connected(peer) and peer in self._whole and raft.answers(peer)
        )
        return {raft.id, *helpful}

    def _raise(self, level: str, reply: Reply) -> None:
        if not level.isdecimal() or len(level) > 9:
            raise ChangeRefused(f"{level!r} is no feature level")
        self._raise_level(int(level))
        self._raising.append((int(level), reply))
        self._driver.poke()

    def _transfer(self, node: str, reply: Reply) -> None:
        if node == self._raft.id:
            reply(None)
            return
        if node not in self._raft.peers:
            raise ChangeRefused(f"{node} is not a voter")

        async def hand_over() -> None:
            moved = await self._hand_over(node)
            reply(None if moved else ChangeRefused(f"{node} did not take over in time"))

        self._driver.spawn(hand_over())

    def applied(self, membership: bytes, level: int) -> None:
        """This membership and this feature level are in force and applied here."""
        for raising in [raising for raising in self._raising if raising[0] <= level]:
            self._raising.remove(raising)
            raising[1](None)
        for change in list(self._under_way):
            if change[0] == membership:
                self._under_way.remove(change)
                change[1](None)

    def ceased_to_lead(self) -> None:
        """Others decide now what becomes of the changes under way."""
        changes = [*self._under_way, *self._raising]
        self._under_way, self._raising = [], []
        for _, reply in changes:
            reply(OutcomeUnknown("this node ceased to lead: see the members"))

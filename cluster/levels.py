"""When the feature level of a cluster rises: announcements of the members, and the leader's decision.

The level is replicated (replica.py): an entry raises it, it never goes back, and it decides which meaning entries have. Every
member announces the version it runs and the highest level it knows. The leader raises the level when all members, learners too, have
known a higher one for a while, at once in a cluster that is being founded, or by command. Below a level older versions can serve in the
cluster; above it they are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from quorumq.cluster.membership import ChangeRefused
from quorumq.cluster.version import VERSION

log = logging.getLogger("quorumq.cluster")

FOUNDING_S = 10.0
"""For how long after it named the cluster the first leader waits for all founders, to raise the level to what they know at once."""


class Announced(msgspec.Struct, frozen=True):
    """What a member says of its program. Versions before 0.2.0 announce nothing: an empty version, level 0.

    doors: ports of its own that it wants the others to know, by whatever name; nothing here looks at them.
    """

    version: str = ""
    level: int = 0
    doors: dict[str, int] = {}

    @property
    def shown(self) -> str:
        return self.version or "a version before 0.2.0"


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdecimal()]


class Levels:
    """What this node and the others know, and the leader's timer.

    known: the highest level of this program.  after_s: how long all members must have announced a level before it is raised.
    members: ids of all members, this node's among them.  level: the level in force.  may_propose, propose: the leader's log.
    """

    def __init__(
        self,
        node_id: str,
        known: int,
        after_s: float,
        *,
        members: Callable[[], list[str]],
        level: Callable[[], int],
        may_propose: Callable[[], bool],
        propose: Callable[[int], None],
        doors: dict[str, int] | None = None,
    ) -> None:
        self.mine = Announced(VERSION, known, doors or {})
        self._node_id = node_id
        self._after_s = after_s
        self._members = members
        self._level = level
        self._may_propose = may_propose
        self._propose = propose
        self._announced: dict[str, Announced] = {}
        self._common_since: tuple[int, float] | None = None
        self._founded_at = float("-inf")
        self._proposed = 0

    def announced(self, peer: str) -> Announced | None:
        """What a connected member has announced; None for one that is not connected."""
        return self.mine if peer == self._node_id else self._announced.get(peer)

    def on_announced(self, peer: str, announced: Announced) -> None:
        """`peer` is there and says what it runs."""
        if self._announced.get(peer) != announced:
            log.info("%s runs %s and knows feature levels up to %d", peer, announced.shown, announced.level)
        self._announced[peer] = announced

    def lost(self, peer: str) -> None:
        """What `peer` will run when it comes back nobody knows."""
        self._announced.pop(peer, None)

    def founded(self, now: float) -> None:
        """This leader names a new cluster: nobody can want to go back to an older version of it."""
        self._founded_at = now

    def runs_the_same(self, peer: str) -> bool:
        """Whether a connected member is known to run this node's program."""
        said = self.announced(peer)
        return said is not None and (said.version, said.level) == (self.mine.version, self.mine.level)

    def is_of_old(self, peer: str) -> bool:
        """Whether a connected member is of a version before 0.2.0."""
        said = self.announced(peer)
        return said is not None and not said.version

    def is_newer(self, peer: str) -> bool:
        """Whether a connected member runs a newer version than this node."""
        said = self._announced.get(peer)
        return said is not None and _numbers(said.version) > _numbers(self.mine.version)

    def common(self) -> int:
        """The highest level that all members know, as far as they are connected; the one in force if that is higher."""
        told = [self.announced(member) for member in self._members()]
        return max(self._level(), min((0 if one is None else one.level for one in told), default=0))

    def lacking(self, level: int) -> list[str]:
        """Why `level` cannot be raised to now: each member that does not know it, in words."""
        reasons = []
        for member in self._members():
            one = self.announced(member)
            if one is None:
                reasons.append(f"{member} is not connected")
            elif one.level < level:
                reasons.append(f"{member} runs {one.shown}, which knows {one.level}")
        return reasons

    def drive(self, now: float, *, leads: bool) -> None:
        """Raise the level if it is time."""
        if not leads:
            self._common_since, self._proposed, self._founded_at = None, 0, float("-inf")
            return
        common = self.common()
        founding = now - self._founded_at < FOUNDING_S
        if all(self.announced(member) is not None for member in self._members()):
            # What the founders run is known; whoever comes with a newer version later waits as everywhere.
            self._founded_at = float("-inf")
        if common <= self._level():
            self._common_since = None
            return
        if self._common_since is None or self._common_since[0] != common:
            self._common_since = (common, now)
        if common <= self._proposed or not (founding or now - self._common_since[1] >= self._after_s):
            return
        if self._may_propose():
            self._raise(common)
        elif founding:
            self._founded_at = now

    def raise_to(self, level: int) -> None:
        """Raise the level by command, without waiting. Raises ChangeRefused with who does not know it."""
        if level < self._level():
            raise ChangeRefused(f"the feature level is {self._level()} and never goes back")
        if level == self._level():
            return
        if reasons := self.lacking(level):
            raise ChangeRefused(f"feature level {level} needs every member: {'; '.join(reasons)}")
        if not self._may_propose():
            raise ChangeRefused("another change is under way, or this leader is new: try again in a moment")
        self._raise(level)

    def _raise(self, level: int) -> None:
        log.info("raising the feature level from %d to %d", self._level(), level)
        self._proposed = level
        self._propose(level)

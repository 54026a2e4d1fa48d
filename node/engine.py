"""What a node asks of the replication engine under it: `cluster.engine.Engine`, or a stand-in for tests.

The node knows only this much of it, so everything above can run over one process without consensus.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from quorumq.cluster.errors import ClusterError
    from quorumq.cluster.membership import Membership
    from quorumq.cluster.status import Status


class ReplicatedLog(Protocol):
    """The replicated log as the node sees it: propose, read_index, roles."""

    node_id: str

    @property
    def is_leader(self) -> bool:
        """Whether this node believes it leads; may be stale."""

    @property
    def applied_index(self) -> int:
        """Index of the last entry applied here."""

    @property
    def silent_s(self) -> float:
        """For how many seconds it has done nothing at all; more than a fraction of one means that it is dead."""

    def now_ms(self) -> int:
        """The log's clock as far as this node knows it, in milliseconds since the epoch; what the next entry is stamped with."""

    def propose(self, payload: bytes, deadline: float, done: Callable[[Any, ClusterError | None], None]) -> None:
        """Replicate one batch; `done(outcome, None)` or `done(None, error)` exactly once.

        deadline: in loop.time() seconds.  `done` runs synchronously inside the local apply.
        """

    async def read_index(self, deadline: float) -> None:
        """Return when the local state is fresh enough for a linearizable read. Raises Unavailable."""

    def on_role_change(self, listener: Callable[[bool], None]) -> None:
        """Call `listener(True)` when this node became leader, `listener(False)` when it stopped being it."""

    async def change_members(self, action: str, node: str, address: str = "") -> Membership:
        """Have the leader add, promote or remove a member, or hand leadership to it."""

    def status(self) -> Status:
        """The node's view of the cluster."""

    async def start(self) -> None:
        """Join the cluster."""

    async def stop(self, *, transfer: bool = True) -> None:
        """Leave it, handing leadership over first when asked to."""

"""What leaves the engine: its messages go to the links, and those that promise something once that is durable."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from pysyncobj.node import Node
from pysyncobj.transport import Transport

from quorumq.cluster.frames import Message
from quorumq.cluster.log import Log
from quorumq.cluster.seams import Clock

# Messages that promise something about this node's log, term or vote: none leaves before the promise is durable.
_PROMISES = frozenset({"next_node_idx", "request_vote", "response_vote"})


class PeerLinks(Protocol):
    """Frames to peers by id (cluster/links.py, and the simulation's)."""

    def send(self, peer: str, message: Message) -> bool: ...
    def add_peer(self, peer: str, address: str) -> None: ...
    def drop_peer(self, peer: str) -> None: ...
    def connected(self, peer: str) -> bool: ...


class Promising(Protocol):
    """Whose promises they are: the engine, as far as they go by it."""

    journal: Log
    links: PeerLinks
    transfer_election: bool
    whole: bool
    answer_again_s: float

    @property
    def term(self) -> int: ...


class Outbox(Transport):  # type: ignore[misc]
    """The engine's transport: passes messages to the links, promises only once they are durable."""

    def __init__(self, raft: Promising, self_node: Node, other_nodes: Iterable[Node]) -> None:
        super().__init__(raft, self_node, other_nodes)
        self._raft = raft
        self._held: deque[tuple[int, str, Message]] = deque()
        self._answered: tuple[str, Message] | None = None
        self._answered_at = float("-inf")

    def send(self, node: Node, message: Message) -> bool:
        kind = message["type"]
        if kind in ("apply_command", "apply_command_response"):
            # Operations are forwarded by cluster/submit.py, which knows what to do when this node is deposed.
            return False
        raft = self._raft
        if kind in _PROMISES:
            if kind == "request_vote":
                message["transfer"] = raft.transfer_election
            elif kind == "next_node_idx":
                message["term"] = raft.term
                message["whole"] = raft.whole
                if self._just_said(node.id, message):
                    return True
            if raft.journal.durable < raft.journal.appended:
                if kind == "next_node_idx" and self._held and self._held[-1][1:] == (node.id, message):
                    return True  # every heartbeat brings the same one for as long as the log cannot be written
                self._held.append((raft.journal.appended, node.id, message))
                return True
        return raft.links.send(node.id, message)

    def _just_said(self, peer: str, message: Message) -> bool:
        """Whether a leader was told this a moment ago: that more is committed needs no answer of its own."""
        now, said = Clock.now(), (peer, message)
        if message["success"] and said == self._answered and now - self._answered_at < self._raft.answer_again_s:
            return True
        self._answered, self._answered_at = said, now
        return False

    @property
    def elects(self) -> bool:
        """Whether a request for votes, or a vote, in the present term waits for the disk."""
        return any(
            message["type"] in ("request_vote", "response_vote") and message["term"] == self._raft.term
            for _, _, message in self._held
        )

    def release(self) -> None:
        """Let go what has become durable."""
        durable = self._raft.journal.durable
        while self._held and self._held[0][0] <= durable:
            _, peer, message = self._held.popleft()
            if message.get("term", 0) == self._raft.term:
                self._raft.links.send(peer, message)

    def destroy(self) -> None:
        pass

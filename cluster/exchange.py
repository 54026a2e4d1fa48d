"""What nodes ask of each other for a write or a read: batches go to the leader, and an index that is fresh comes from it.

A leader answers a read once a round of its voters has confirmed that it still leads (Raft thesis 6.4).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from quorumq.cluster.driver import Driver
from quorumq.cluster.frames import Message
from quorumq.cluster.levels import Levels
from quorumq.cluster.messages import Malformed
from quorumq.cluster.probation import Probations
from quorumq.cluster.raft import Raft
from quorumq.cluster.reads import Readers, Rounds
from quorumq.cluster.replica import Batch, Replica, StateMachine
from quorumq.cluster.routes import Routes
from quorumq.cluster.submit import Inbox, Submitter
from quorumq.cluster.version import VERSION

log = logging.getLogger("quorumq.cluster")

# Not at once: the leader that refused may be about to be deposed, or to know of it only now.
_REJECTED_AFTER_S = 0.02


class Exchange:
    """One node's side of it, as origin and as leader.

    epoch: tells this start of the node from others.  payload_bytes_max: the largest batch.
    """

    _raft: Raft
    _routes: Routes
    _levels: Levels
    _probations: Probations

    def __init__(
        self, node_id: str, machine: StateMachine, driver: Driver, replica: Replica, epoch: int, payload_bytes_max: int
    ) -> None:
        self._node_id = node_id
        self._machine = machine
        self._driver = driver
        self.inbox = Inbox(replica)
        self.submitter = Submitter(node_id, epoch, payload_bytes_max, self._send_batch)
        self.rounds = Rounds(self._broadcast_round)
        self.readers = Readers(self._ask)

    def attach(self, raft: Raft, routes: Routes, levels: Levels, probations: Probations) -> None:
        """Say by whom it goes. Before anything is asked."""
        self._raft, self._routes, self._levels, self._probations = raft, routes, levels, probations

    def handlers(self) -> dict[str, Callable[[str, Message], None]]:
        """Return who takes each type of message."""
        return {
            "batch": self.on_batch,
            "batch_no": self.on_batch_no,
            "read": self.on_read,
            "read_index": self.on_read_index,
            "round": self.on_round,
            "round_ok": self.on_round_ok,
        }

    def settled(self, batch: Batch, outcome: Any) -> None:
        """A batch was applied here."""
        self.inbox.settled(batch)
        self.submitter.settled(batch, outcome)

    def drive(self, now: float, *, leads: bool) -> None:
        """Ask what is to be asked, and give up what is overdue."""
        raft = self._raft
        self.rounds.drive(
            leads=leads, ready=raft.committed_own_term, commit_index=raft.commit_index, quorum=raft.quorum, now=now
        )
        self.readers.applied(raft.applied_index)
        self.readers.drive(raft.leader, raft.term, now)
        self.submitter.drive(raft.leader, raft.term, now)

    # -- asking

    async def read(self, deadline: float) -> bool:
        """Return once the local state holds everything acknowledged anywhere before this call; False when that cannot be known in time."""
        future: asyncio.Future[bool] = self._driver.loop.create_future()

        def done(fresh: bool) -> None:
            if not future.done():
                future.set_result(fresh)

        self.readers.wait(deadline, done)
        self._driver.poke()
        return await future

    def _send_batch(self, leader: str, batch: Batch) -> bool:
        if leader == self._node_id:
            self.inbox.put(batch)
            return True
        return self._routes.send(
            leader, {"type": "batch", "batch": (batch.origin, batch.epoch, batch.seq, batch.floor, batch.payload)}
        )

    def _ask(self, leader: str, question: int) -> bool:
        if leader == self._node_id:
            self.rounds.ask(lambda index: self.readers.answered(question, index, self._raft.applied_index))
            self._driver.poke()
            return True
        return self._routes.send(leader, {"type": "read", "question": question})

    def _broadcast_round(self, number: int) -> None:
        for peer in self._raft.peers:
            self._routes.send(peer, {"type": "round", "term": self._raft.term, "number": number})

    # -- answering

    def on_batch(self, peer: str, message: Message) -> None:
        """A batch that is to be an entry. Raises Malformed for one of another origin."""
        batch = Batch(*message["batch"])
        if batch.origin != peer:
            # What is remembered of origins is replicated, and never forgotten: nobody makes up any.
            raise Malformed("batch of another node than the one that sent it")
        if not self._levels.runs_the_same(peer) and not self._machine.understands(batch.payload):
            # Nobody who serves at the level in force sends it. In the log it would stop every node that does not know it.
            log.error("refused a batch of %s: it holds what version %s does not understand", peer, VERSION)
        elif self._raft.is_leader:
            self.inbox.put(batch)
        else:
            self._routes.send(peer, {"type": "batch_no", "epoch": batch.epoch, "seq": batch.seq})

    def on_batch_no(self, peer: str, message: Message) -> None:
        """The one it was sent to does not lead."""
        self._driver.loop.call_later(_REJECTED_AFTER_S, self.submitter.rejected, message["epoch"], message["seq"])

    def on_read(self, peer: str, message: Message) -> None:
        """Somebody wants an index that is fresh."""
        question = message["question"]

        def reply(index: int | None) -> None:
            self._routes.send(peer, {"type": "read_index", "question": question, "index": index})

        self.rounds.ask(reply)

    def on_read_index(self, peer: str, message: Message) -> None:
        """The leader's answer."""
        # Another one's answer could make readers wait for an index that never comes, or not wait for one that they need.
        if peer == self.readers.asked:
            self.readers.answered(message["question"], message["index"], self._raft.applied_index)

    def on_round(self, peer: str, message: Message) -> None:
        """A leader asks whether it is one."""
        # A node on probation may have forgotten that it elected another leader.
        followed = message["term"] == self._raft.term and self._raft.leader == peer
        if followed and self._probations.probation is None:
            self._routes.send(peer, {"type": "round_ok", "term": message["term"], "number": message["number"]})

    def on_round_ok(self, peer: str, message: Message) -> None:
        """A voter follows this leader."""
        if self._raft.is_leader and message["term"] == self._raft.term and peer in self._raft.peers:
            self.rounds.confirmed(peer, message["number"], self._raft.quorum)

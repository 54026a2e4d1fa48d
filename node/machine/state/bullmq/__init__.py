"""What the state holds for clients of BullMQ's backend protocol beside jobs and queues. From feature level 1 on."""

from __future__ import annotations

from quorumq.node.machine.state.bullmq.facts import Facts
from quorumq.node.machine.state.bullmq.metas import Metas
from quorumq.node.machine.state.bullmq.presence import Presence
from quorumq.node.machine.state.bullmq.sessions import Sessions
from quorumq.node.machine.state.bullmq.streams import Streams


class BullMQ:
    """The tables of that protocol.

    streams: events by queue.  metas: fields by queue.  facts: what workers brought about, by queue.  sessions, presence: of clients.
    """

    __slots__ = ("facts", "metas", "presence", "sessions", "streams")

    def __init__(self) -> None:
        self.streams = Streams()
        self.metas = Metas()
        self.facts = Facts()
        self.sessions = Sessions()
        self.presence = Presence()

    def forget(self, queue: str) -> None:
        """A queue was obliterated: nothing of it stays."""
        self.streams.forget(queue)
        self.metas.forget(queue)
        self.facts.forget(queue)

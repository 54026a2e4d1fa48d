"""Who is connected over the backend protocol, as each node says of its own connections."""

from __future__ import annotations

import msgspec

from quorumq.node.machine.bounds import Key, QueueName
from quorumq.node.machine.operation import Entry, Operation, Query, operation, query
from quorumq.node.machine.operations.jobs import Counted
from quorumq.node.machine.refusals import TooManyClients
from quorumq.node.machine.state import State
from quorumq.node.machine.state.bullmq.presence import CLIENTS_MAX, Client


@operation(refuses=(TooManyClients,), since=1)
class NotePresence(Operation, frozen=True, tag="bullmq.note_presence"):
    """Note who came to a node and who left it, and that it is there. Answers how many clients it is known to have.

    whole: those who came are all that it has.  sessions: that have a connection there, and were not heard of for a while.
    """

    node: Key
    came: list[Client] = []
    left: list[Key] = []
    whole: bool = False
    sessions: list[Key] = []

    def apply(self, state: State, entry: Entry) -> Counted:
        presence, now_ms = state.bullmq.presence, state.now_ms
        if self.whole:
            presence.forget(self.node)
        elif len(presence) + len(self.came) > CLIENTS_MAX:
            raise TooManyClients(CLIENTS_MAX)
        clients = presence.renew(self.node, now_ms)
        for client in self.came[:CLIENTS_MAX]:
            presence.add(self.node, msgspec.structs.replace(client, since_ms=client.since_ms or now_ms))
        for client_id in self.left:
            presence.remove(client_id, self.node)
        if self.sessions:
            state.bullmq.sessions.see(self.sessions, now_ms)
        return Counted(len(clients.by_id))


@query
class ListClients(Query, frozen=True):
    """The clients of a queue, node by node, and the time that it is."""

    queue: QueueName

    def answer(self, state: State) -> tuple[list[Client], int]:
        return list(state.bullmq.presence.of_queue(self.queue, state.now_ms)), state.now_ms

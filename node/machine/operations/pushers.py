"""Push workers: registrations of endpoints, who serves them, and what is taken for them.

A registration is served by the node it is assigned to; the leader spreads them
(`node/leader/assignment.py`). Neither is trusted: what may be taken, by whom and how much at once, is decided here,
where a pull is applied.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from quorumq.node.machine import events as happened
from quorumq.node.machine.bounds import KEY_CHARS_MAX, Key, LockToken, Note, QueueName, bounded
from quorumq.node.machine.lifecycle import queues
from quorumq.node.machine.operation import Entry, Operation, Query, operation, query
from quorumq.node.machine.operations.jobs import Counted, DurationMs
from quorumq.node.machine.operations.runs import Pulled, PullJobs
from quorumq.node.machine.refusals import PusherNotFound, TooManyPushers
from quorumq.node.machine.state import State
from quorumq.node.machine.state.job import Keep
from quorumq.node.machine.state.limits import Window
from quorumq.node.machine.state.pusher import CLOSED, PUSH_OWNER, PUSHERS_MAX, Circuit, Pusher, settings_under

NodeId = Annotated[str, bounded(KEY_CHARS_MAX, "Id of a node of the cluster.")]


class PusherSet(msgspec.Struct, frozen=True, gc=False):
    """A registration as it is now. replaced: whether there was one before."""

    pusher: Pusher
    replaced: bool


@operation(refuses=(TooManyPushers,))
class PutPusher(Operation, frozen=True, tag="pusher.put"):
    """Register the endpoint that gets the jobs of a queue, in place of the one that had them.

    The limit, max_stalls and what is kept become the queue's, for jobs that do not say otherwise.
    """

    queue: QueueName
    url: Note
    method: Key = "POST"
    headers: tuple[tuple[Note, Note], ...] = ()
    timeout_ms: DurationMs = 3_000
    concurrency: int = 1
    limit: Window | None = None
    max_stalls: int | None = None
    keep_completed: Keep | None = None
    keep_failed: Keep | None = None

    def apply(self, state: State, entry: Entry) -> PusherSet:
        pushers = state.pushers
        before = pushers.by_queue.get(self.queue)
        if before is None and len(pushers.by_queue) >= PUSHERS_MAX:
            raise TooManyPushers(PUSHERS_MAX)
        pushers.generation += 1
        pusher = Pusher(
            self.queue,
            self.url,
            self.method,
            self.headers,
            self.timeout_ms,
            self.concurrency,
            self.limit,
            self.max_stalls,
            self.keep_completed,
            self.keep_failed,
            state.now_ms,
            pushers.generation,
            None if before is None else before.node,
        )
        pushers.put(pusher)
        configure(state, self.queue, pusher, before)
        state.mark += 131 * pushers.generation
        return PusherSet(pusher, before is not None)


@operation(refuses=(PusherNotFound,))
class RemovePusher(Operation, frozen=True, tag="pusher.remove"):
    """Take no more jobs of a queue for its endpoint; jobs that are under way there finish. Its limit goes with it."""

    queue: QueueName

    def apply(self, state: State, entry: Entry) -> None:
        pusher = known_pusher(state, self.queue)
        state.pushers.remove(pusher)
        configure(state, self.queue, None, pusher)
        state.mark += 137


@operation()
class AssignPushers(Operation, frozen=True, tag="pusher.assign"):
    """Have nodes serve registrations, by queue; counts those that changed hands."""

    queues_by_node: dict[NodeId, list[QueueName]]

    def apply(self, state: State, entry: Entry) -> Counted:
        pushers, count = state.pushers, 0
        for node, names in self.queues_by_node.items():
            if node not in pushers.nodes:
                # It has left meanwhile.
                continue
            for name in names:
                pusher = pushers.by_queue.get(name)
                if pusher is not None and pusher.node != node:
                    pushers.assign(pusher, node)
                    count += 1
        state.mark += 139 * count
        return Counted(count)


@operation()
class JoinPushing(Operation, frozen=True, tag="pusher.join"):
    """Say that a node calls endpoints, so that registrations may be assigned to it."""

    node: NodeId

    def apply(self, state: State, entry: Entry) -> None:
        state.pushers.nodes.setdefault(self.node)
        state.pushers.version += 1
        state.mark += 149


@operation()
class LeavePushing(Operation, frozen=True, tag="pusher.leave"):
    """Say that a node calls endpoints no more; counts the registrations that nobody serves then."""

    node: NodeId

    def apply(self, state: State, entry: Entry) -> Counted:
        pushers = state.pushers
        left = list(pushers.of_node(self.node))
        for pusher in left:
            pushers.assign(pusher, None)
        pushers.nodes.pop(self.node, None)
        pushers.version += 1
        state.mark += 151 + len(left)
        return Counted(len(left))


class CircuitNote(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """How it stands with the endpoint of a registration, as long as it is of that generation."""

    queue: QueueName
    generation: int
    circuit: Circuit = CLOSED


@operation()
class NoteCircuits(Operation, frozen=True, tag="pusher.note_circuits"):
    """Note which endpoints cannot be reached, or can again; counts the registrations that are still the same."""

    notes: list[CircuitNote]

    def apply(self, state: State, entry: Entry) -> Counted:
        count = 0
        for note in self.notes:
            pusher = state.pushers.by_queue.get(note.queue)
            if pusher is not None and pusher.generation == note.generation:
                pusher.circuit = note.circuit
                count += 1
        state.mark += 157 * count
        return Counted(count)


@operation(emits=(happened.JobActive,))
class PullForPusher(Operation, frozen=True, tag="pusher.pull"):
    """Take the next jobs of a queue for its endpoint: as many as its concurrency leaves, none for a node that does not serve it.

    token: holds the lock of each of them.
    """

    queue: QueueName
    node: NodeId
    count: int
    lock_ms: DurationMs
    token: LockToken

    def apply(self, state: State, entry: Entry) -> Pulled:
        pusher = state.pushers.by_queue.get(self.queue)
        if pusher is None or pusher.node != self.node:
            return Pulled([], [])
        pull = PullJobs(
            self.queue, self.count, PUSH_OWNER, self.lock_ms, token=self.token, active_max=pusher.concurrency
        )
        return pull.apply(state, entry)


def configure(state: State, name: str, pusher: Pusher | None, before: Pusher | None) -> None:
    """Have a queue go by its registration; one that comes later does from its beginning."""
    queue = state.queues.get(name)
    if queue is not None:
        settings = settings_under(queue.settings, pusher, before)
        if settings != queue.settings:
            queues.configure(state, queue, settings)
        else:
            state.woken[name] = None


def known_pusher(state: State, queue: str) -> Pusher:
    """Return the registration of a queue. Raises PusherNotFound."""
    pusher = state.pushers.by_queue.get(queue)
    if pusher is None:
        raise PusherNotFound(queue)
    return pusher


class PusherShown(msgspec.Struct, frozen=True, gc=False):
    """A registration, and how many jobs are under way at its endpoint."""

    pusher: Pusher
    active: int


@query
class GetPusher(Query, frozen=True):
    """The registration of a queue."""

    queue: QueueName

    def answer(self, state: State) -> PusherShown:
        return PusherShown(known_pusher(state, self.queue), push_active(state, self.queue))


@query
class ListPushers(Query, frozen=True):
    """All registrations in order of their queues' first one."""

    def answer(self, state: State) -> list[Pusher]:
        return list(state.pushers.by_queue.values())


def push_active(state: State, name: str) -> int:
    """Return how many jobs of a queue push workers hold."""
    queue = state.queues.get(name)
    return 0 if queue is None else sum(job.owner == PUSH_OWNER for job in queue.active.values())

"""The fields that BullMQ's clients keep with a queue, and its pause."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from quorumq.node.machine import events as happened
from quorumq.node.machine.bounds import Key, LongText, QueueName
from quorumq.node.machine.lifecycle import queues
from quorumq.node.machine.operation import Entry, Operation, Query, operation, query
from quorumq.node.machine.operations.jobs import Counted
from quorumq.node.machine.refusals import MetaTooLarge, TooManyQueues
from quorumq.node.machine.state.bullmq import metas, streams

if TYPE_CHECKING:
    from quorumq.node.machine.state import State
    from quorumq.node.machine.state.queue import Queue

_PAUSES = (happened.QueueCreated, happened.QueuePaused, happened.QueueResumed)


@operation(emits=_PAUSES, refuses=(TooManyQueues, MetaTooLarge), since=1)
class SetMeta(Operation, frozen=True, tag="bullmq.set_meta"):
    """Set fields of a queue; `paused` (whatever its text), `concurrency`, `max` and `duration` act at once. Answers how many are new."""

    queue: QueueName
    fields: dict[Key, LongText]

    def apply(self, state: State, entry: Entry) -> Counted:
        queue = state.queue(self.queue)
        before = state.bullmq.metas.shown(queue.name, queue.settings)
        put(state, queue, before | self.fields)
        return Counted(sum(name not in before for name in self.fields))


@operation(emits=_PAUSES, refuses=(MetaTooLarge,), since=1)
class RemoveMeta(Operation, frozen=True, tag="bullmq.remove_meta"):
    """Remove fields of a queue, and with them what they set. Answers how many there were."""

    queue: QueueName
    names: list[Key]

    def apply(self, state: State, entry: Entry) -> Counted:
        queue = state.queues.get(self.queue)
        if queue is None:
            return Counted(0)
        before = state.bullmq.metas.shown(queue.name, queue.settings)
        left = {name: text for name, text in before.items() if name not in self.names}
        if len(left) < len(before):
            put(state, queue, left)
        return Counted(len(before) - len(left))


@operation(emits=_PAUSES, refuses=(TooManyQueues,), since=1)
class Pause(Operation, frozen=True, tag="bullmq.pause"):
    """Pause a queue or let it go on; its stream tells of it each time, also where nothing changes."""

    queue: QueueName
    paused: bool

    def apply(self, state: State, entry: Entry) -> None:
        queue = state.queue(self.queue)
        queues.set_paused(state, queue, self.paused)
        state.bullmq.streams.add(state.now_ms, queue.name, streams.PAUSED if self.paused else streams.RESUMED)


@query
class GetMeta(Query, frozen=True):
    """All fields of a queue, in order of their names; none of an unknown one."""

    queue: QueueName

    def answer(self, state: State) -> dict[str, str]:
        queue = state.queues.get(self.queue)
        return state.bullmq.metas.shown(self.queue, None if queue is None else queue.settings)


@query
class GetMetaFields(Query, frozen=True):
    """Some fields of a queue, in the order asked; None for one that it does not have."""

    queue: QueueName
    names: tuple[Key, ...]

    def answer(self, state: State) -> list[str | None]:
        fields = GetMeta(self.queue).answer(state)
        return [fields.get(name) for name in self.names]


def put(state: State, queue: Queue, fields: dict[str, str]) -> None:
    """Make these the fields of a queue, and what they set its settings. Raises MetaTooLarge, before anything is changed."""
    found = metas.split(fields)
    if not state.bullmq.metas.has_room(queue.name, found.rest):
        raise MetaTooLarge(metas.FIELDS_MAX, metas.FIELDS_BYTES_MAX)
    state.bullmq.metas.put(queue.name, found.rest)
    state.bullmq.streams.set_most(queue.name, found.events_max)
    settings = queue.settings
    if (settings.concurrency, settings.window) != (found.concurrency, found.window):
        settings = msgspec.structs.replace(settings, concurrency=found.concurrency, window=found.window)
        queues.configure(state, queue, settings)
    queues.set_paused(state, queue, found.paused)

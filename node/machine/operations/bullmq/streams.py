"""What clients do with the stream of a queue's events, and how it is read."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from quorumq.node.machine.bounds import Note, QueueName
from quorumq.node.machine.operation import Entry, Operation, Query, operation, query
from quorumq.node.machine.operations.jobs import Counted
from quorumq.node.machine.refusals import TooManyQueues
from quorumq.node.machine.state.bullmq import streams
from quorumq.node.machine.state.state import QUEUES_MAX

if TYPE_CHECKING:
    from quorumq.node.machine.state import State

READ_EVENTS = 1_000
READ_BYTES = 1 << 20
"""One reading ends with the event that passes either."""

Texts = Annotated[tuple[tuple[Note, Note], ...], Meta(description="Names and texts, `event` first.")]


class Published(msgspec.Struct, frozen=True, gc=False):
    """The id of an event."""

    event_id: int


@operation(refuses=(TooManyQueues,), since=1)
class OpenStream(Operation, frozen=True, tag="bullmq.open_stream"):
    """Keep events of a queue from now on, because somebody wants to read them."""

    queue: QueueName

    def apply(self, state: State, entry: Entry) -> None:
        found = state.bullmq.streams
        # As a reader's, a stream does not need its queue.
        if not found.is_open(self.queue) and len(found.by_queue) >= QUEUES_MAX:
            raise TooManyQueues(QUEUES_MAX)
        found.open(self.queue)


@operation(refuses=(TooManyQueues,), since=1)
class PublishEvent(Operation, frozen=True, tag="bullmq.publish_event"):
    """Put an event of a client's own into a queue's stream. most: events that the stream keeps of all."""

    queue: QueueName
    fields: Texts
    most: int | None = None

    def apply(self, state: State, entry: Entry) -> Published:
        queue = state.queue(self.queue)
        return Published(state.bullmq.streams.publish(state.now_ms, queue.name, self.fields, self.most))


@operation(since=1)
class TrimEvents(Operation, frozen=True, tag="bullmq.trim_events"):
    """Drop the oldest events of a queue beyond the `most` newest. Answers how many."""

    queue: QueueName
    most: int

    def apply(self, state: State, entry: Entry) -> Counted:
        return Counted(state.bullmq.streams.trim(self.queue, self.most))


class ReadEvent(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """An event as it is read. id: `ms-n`.  fields: names and texts in turn."""

    id: str
    fields: list[str]


class EventBatch(msgspec.Struct, frozen=True, gc=False):
    """Events of a queue. last: where to go on.  more: whether there are more already."""

    events: list[ReadEvent]
    last: int
    more: bool


@query
class ReadEvents(Query, frozen=True):
    """Events of a queue after an id, oldest first, up to `limit` of them and about READ_BYTES; an id is as `streams.read_id` reads it."""

    queue: QueueName
    after: int
    limit: int = READ_EVENTS

    def answer(self, state: State) -> EventBatch:
        stream = state.bullmq.streams.by_queue.get(self.queue)
        found: list[ReadEvent] = []
        last, size = self.after, 0
        if stream is not None:
            for entry in islice(stream.after(self.after), max(self.limit, 0)):
                last = entry[0]
                found.append(ReadEvent(streams.written(last), streams.fields_of(entry)))
                size += streams.weight_of(entry)
                if size > READ_BYTES:
                    break
        return EventBatch(found, last, stream is not None and last < stream.last and bool(found))


@query
class LastEvent(Query, frozen=True):
    """The id of the newest event that a queue has had: what `$` means at this moment. None: it keeps no events yet."""

    queue: QueueName

    def answer(self, state: State) -> int | None:
        found = state.bullmq.streams
        return found.last_id(self.queue) if found.is_open(self.queue) else None

"""Streams of events, one per queue: what BullMQ's QueueEvents reads, from any id, on any node.

A stream exists for queues that a client of the backend protocol has named; no other queue has one. Events lie in it as tuples
`(id, kind, *values)` that share ids and results with the jobs, and become BullMQ's fields only when somebody reads them.

An id is the log's time in milliseconds, shifted by SEQUENCE_BITS, plus a number within it. It always rises, also where the clock stands
still or goes back. Written out it is `ms-n`, as Redis writes it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import itemgetter
from typing import Any, Final

from quorumq.node.machine.state.bullmq.shares import share_of
from quorumq.node.machine.state.job import ACTIVE, COMPLETED, DELAYED, FAILED, WAITING, WAITING_CHILDREN

SEQUENCE_BITS = 20
_SEQUENCE = (1 << SEQUENCE_BITS) - 1
EVENTS_MAX = 10_000
"""Events of a queue that are kept, unless its `opts.maxLenEvents` says otherwise; BullMQ's default."""
BYTES_MAX = 64 << 20
"""Of all events of all queues, by their weight."""
EVENT_BYTES = 150
"""What an event weighs beside its values."""

# Kinds of events; others are called by the state that a job has entered.
ADDED: Final = "added"
RETRIES_EXHAUSTED: Final = "retries-exhausted"
STALLED: Final = "stalled"
PROGRESS: Final = "progress"
REMOVED: Final = "removed"
DUPLICATED: Final = "duplicated"
DEDUPLICATED: Final = "deduplicated"
DRAINED: Final = "drained"
PAUSED: Final = "paused"
RESUMED: Final = "resumed"
CLEANED: Final = "cleaned"
CUSTOM: Final = ""
"""Published by a client: its values are names and texts in turn, the first pair being `event` and the name."""

_NAMES: dict[str, tuple[str, ...]] = {
    ADDED: ("jobId", "name"),
    WAITING: ("jobId", "prev"),
    DELAYED: ("jobId", "delay"),
    ACTIVE: ("jobId",),
    WAITING_CHILDREN: ("jobId", "prev"),
    COMPLETED: ("jobId", "returnvalue"),
    FAILED: ("jobId", "failedReason"),
    RETRIES_EXHAUSTED: ("jobId", "attemptsMade"),
    STALLED: ("jobId",),
    PROGRESS: ("jobId", "data"),
    REMOVED: ("jobId", "prev"),
    DUPLICATED: ("jobId",),
    DEDUPLICATED: ("jobId", "deduplicationId", "deduplicatedJobId"),
    DRAINED: (),
    PAUSED: (),
    RESUMED: (),
    CLEANED: ("count",),
}
"""The fields of each kind in BullMQ's order; the values of an event are in the same."""
_ALWAYS: dict[str, tuple[str, str]] = {
    ACTIVE: ("prev", "waiting"),
    COMPLETED: ("prev", "active"),
    FAILED: ("prev", "active"),
}
"""What follows them and is the same in each event of the kind."""

Value = str | bytes | int | None
"""bytes: UTF-8 text, such as a result's JSON.  None: the event has no such field."""
Entry = tuple[Any, ...]
_id_of = itemgetter(0)


class Stream:
    """The events of one queue. last: the id of the newest there has been.  size: by weight.  most: events kept at most."""

    __slots__ = ("entries", "last", "most", "size")

    def __init__(self, last: int, most: int = EVENTS_MAX) -> None:
        self.entries: deque[Entry] = deque()
        self.last = last
        self.most = most
        self.size = 0

    def trim(self, most: int) -> int:
        """Drop the oldest events beyond the `most` newest; return how many."""
        entries, gone = self.entries, 0
        while len(entries) > most:
            self.size -= weight_of(entries.popleft())
            gone += 1
        return gone

    def after(self, event_id: int) -> Iterator[Entry]:
        """Iterate over the events with greater ids, oldest first."""
        entries = self.entries
        if not entries or event_id >= self.last:
            return iter(())
        return islice(entries, bisect_right(entries, event_id, key=_id_of), None)


class Streams:
    """The streams of all queues that have one.

    size: the weight of all events.  floor: no new stream begins with an id up to this one, so that one of a queue that comes again goes
    on above what was read of it before.  changed: queues that got events by the entry under way; not replicated.
    """

    __slots__ = ("by_queue", "changed", "floor", "size")

    def __init__(self) -> None:
        self.by_queue: dict[str, Stream] = {}
        self.size = 0
        self.floor = 0
        self.changed: dict[str, None] = {}

    def open(self, queue: str) -> Stream:
        """Return the stream of a queue, which has one from now on."""
        stream = self.by_queue.get(queue)
        if stream is None:
            stream = self.by_queue[queue] = Stream(self.floor)
        return stream

    def is_open(self, queue: str) -> bool:
        """Whether a queue has a stream."""
        return queue in self.by_queue

    def add(self, now_ms: int, queue: str, kind: str, *values: Value) -> int:
        """Append an event to the stream of a queue and return its id.

        kind, values: as in `_NAMES`, job ids as they are called within the queue, trailing ones may be left out: `add(now, q,
        WAITING, "7")`, `add(now, q, WAITING, "7", "active")`, `add(now, q, DELAYED, "7", due_ms)`.
        """
        stream = self.by_queue.get(queue) or self.open(queue)
        stream.last = event_id = max(now_ms << SEQUENCE_BITS, stream.last + 1)
        entry = (event_id, kind, *values)
        weight = weight_of(entry)
        stream.entries.append(entry)
        stream.size += weight
        self.size += weight
        self.changed[queue] = None
        if len(stream.entries) > stream.most:
            self._trim(stream, stream.most)
        if self.size > BYTES_MAX:
            self._shorten()
        return event_id

    def publish(self, now_ms: int, queue: str, fields: Iterable[tuple[str, str]], most: int | None = None) -> int:
        """Append an event of a client's own: names and texts, `event` first. most: events that the queue keeps of all, at once."""
        event_id = self.add(now_ms, queue, CUSTOM, *(text for field in fields for text in field))
        if most is not None:
            self.trim(queue, most)
        return event_id

    def trim(self, queue: str, most: int) -> int:
        """Drop the oldest events of a queue beyond the `most` newest; return how many."""
        stream = self.by_queue.get(queue)
        return 0 if stream is None else self._trim(stream, max(most, 0))

    def set_most(self, queue: str, most: int) -> None:
        """Have a queue keep so many events."""
        stream = self.open(queue)
        stream.most = max(most, 0)
        self._trim(stream, stream.most)

    def forget(self, queue: str) -> None:
        """Let a stream go with all its events."""
        stream = self.by_queue.pop(queue, None)
        if stream is not None:
            self.size -= stream.size
            self.floor = max(self.floor, stream.last)
            # Whoever reads it has to hear of it, too.
            self.changed[queue] = None

    def last_id(self, queue: str) -> int:
        """The id of the newest event there has been: what `$` means now."""
        stream = self.by_queue.get(queue)
        return self.floor if stream is None else stream.last

    def _trim(self, stream: Stream, most: int) -> int:
        before = stream.size
        gone = stream.trim(most)
        self.size -= before - stream.size
        return gone

    def _shorten(self) -> None:
        """Drop old events of whoever has most until a sixteenth of the room is free, so that looking for them is seldom.

        No stream keeps more than a share, and those that have less lose nothing.
        """
        share = share_of([stream.size for stream in self.by_queue.values()], BYTES_MAX - BYTES_MAX // 16)
        for stream in self.by_queue.values():
            if stream.size > share:
                entries, before = stream.entries, stream.size
                while stream.size > share and entries:
                    stream.size -= weight_of(entries.popleft())
                self.size -= before - stream.size

    def restore(self, queue: str, last: int, most: int, entries: Iterable[Entry]) -> None:
        """Add events from an image, in its order."""
        stream = self.by_queue.get(queue)
        if stream is None:
            stream = self.by_queue[queue] = Stream(last, most)
        for entry in entries:
            entry = tuple(entry)
            weight = weight_of(entry)
            stream.entries.append(entry)
            stream.size += weight
            self.size += weight


def weight_of(entry: Entry) -> int:
    """Return the bytes that an event counts for."""
    weight = EVENT_BYTES
    for value in entry[2:]:
        if value is not None and not isinstance(value, int):
            weight += len(value)
    return weight


def fields_of(entry: Entry) -> list[str]:
    """Return an event as BullMQ's clients read it: names and texts in turn, `event` first."""
    kind, values = entry[1], entry[2:]
    if kind == CUSTOM:
        return list(values)
    fields = ["event", kind]
    for name, value in zip(_NAMES[kind], values, strict=False):
        if value is not None:
            fields += (name, value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))
    fields += _ALWAYS.get(kind, ())
    return fields


def written(event_id: int) -> str:
    """Return an id as clients see it."""
    return f"{event_id >> SEQUENCE_BITS}-{event_id & _SEQUENCE}"


def read_id(text: str) -> int:
    """Return what `ms-n`, or `ms`, means; numbers past any id are greater than all. Raises ValueError."""
    ms, _, number = text.partition("-")
    if not (
        ms.isascii() and ms.isdigit() and len(ms) <= 20 and (not number or (number.isascii() and number.isdigit()))
    ):
        raise ValueError(f"not an id of an event: {text[:40]}")
    return (int(ms) << SEQUENCE_BITS) + min(int(number or 0) if len(number) <= 20 else _SEQUENCE, _SEQUENCE)

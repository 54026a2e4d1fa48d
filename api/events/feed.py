"""The events of this node: what the local apply reports, rendered once, delivered to listeners and kept for a while.

Every node applies the same log, so a message has the same id everywhere: the index of its entry and its place among the
messages of that entry. A client that was cut off goes on after the last id it has seen, at any node.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

import msgspec

if TYPE_CHECKING:
    from quorumq.api.auth import Grant
    from quorumq.node.machine.events import Event
    from quorumq.node.machine.machine import Machine
    from quorumq.node.machine.operation import Entry
    from quorumq.node.machine.state import State

# What can be resumed: so many events; one with a long text counts as several.
RECENT_WEIGHT = 20_000
# More than one entry ever has messages.
PLACES = 10**9
# Changes of a queue within this time are one change to those who follow its counts.
COALESCE_S = 0.01
ENCODE = msgspec.json.Encoder().encode


class Id(NamedTuple):
    """Which message: index of its log entry and place in it. Greater means later, on every node."""

    entry: int
    place: int

    def __str__(self) -> str:
        return f"{self.entry}.{self.place}"


def id_of(text: str) -> Id | None:
    """Read an id, or None where this is none of ours."""
    entry, _, place = text.strip().partition(".")
    if len(text) > 40 or not all(part.isascii() and part.isdigit() for part in (entry, place)):
        return None
    return Id(int(entry), int(place))


class EventMessage:
    """One event as it is told.

    queue: whose counts it may have changed, empty for none.  queues: those that it is about, none when it is about the node or
    all of them.  data: JSON.  legacy: the whole text for those who have not subscribed, where they get one.  id: None for what
    only this node says.
    """

    __slots__ = ("_frame", "at_ms", "data", "id", "legacy", "name", "queue", "queues")

    def __init__(
        self,
        name: str,
        at_ms: int,
        data: bytes,
        *,
        queue: str = "",
        queues: Sequence[str] = (),
        legacy: bytes | None = None,
    ) -> None:
        self.name = name
        self.at_ms = at_ms
        self.data = data
        self.queue = queue
        self.queues = queues or ((queue,) if queue else ())
        self.legacy = legacy
        self.id: Id | None = None
        self._frame: bytes | None = None

    @property
    def frame(self) -> bytes:
        """The message for those who subscribed; made once for all of them."""
        if self._frame is None:
            self._frame = b'{"event":"%b","ts":%d,"data":%b}' % (self.name.encode(), self.at_ms, self.data)
        return self._frame

    def concerns(self, queue: str) -> bool:
        """Say whether it belongs to the events of one queue: all do but those that are only about other queues."""
        return not self.queues or queue in self.queues

    def naming(self, queues: Sequence[str]) -> EventMessage:
        """Return the message for a token that must not know of the other queues that it is about."""
        data = self.data
        if b'"queues":' in data:
            data = ENCODE({**msgspec.json.decode(data), "queues": queues})
        message = EventMessage(self.name, self.at_ms, data, queue=self.queue, queues=queues, legacy=self.legacy)
        message.id = self.id
        return message


def visible_to(grant: Grant, message: EventMessage) -> EventMessage | None:
    """Return what a token may see of a message: nothing unless it names a queue of the token's. One that names none is about all."""
    if not grant.may("read"):
        return None
    if grant.every_queue:
        return message
    own = [queue for queue in message.queues if grant.covers(queue)]
    if not own:
        return None
    return message if len(own) == len(message.queues) else message.naming(own)


class EventListener(Protocol):
    """Takes the messages of a feed."""

    def on_events(self, messages: Sequence[EventMessage]) -> None:
        """Take messages, in order, without waiting for anything."""

    def lost(self) -> None:
        """Events were missed: this node got a whole state in place of the entries before it."""

    def close(self) -> None:
        """Come to an end: the node is stopping."""


class Payload(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """What an event says that only this node tells."""

    EVENT: ClassVar[str]


Render = Callable[["State", int, "Event"], Iterable[EventMessage]]
Summary = Callable[["State", str], Payload]


class Past(NamedTuple):
    """What one entry did, and when."""

    entry: int
    now_ms: int
    events: list[Event]


class Feed:
    """The messages of one node. While nobody in the cluster can want them, events are not even collected.

    render: what an event says, asked while the state is the one that its entry left, or a later one for a client that
    missed it.  counts: what the counts of a queue say, told as `queue:counts` once after any number of changes.
    changed: called with a queue whenever its counts have been told.
    """

    def __init__(
        self, machine: Machine, render: Render, counts: Summary, changed: Callable[[str], None] | None = None
    ) -> None:
        self._machine = machine
        self._render = render
        self._counts = counts
        self._on_change = changed
        self._listeners: dict[EventListener, None] = {}
        self._recent: deque[Past] = deque()
        self._recent_weight = 0
        # Everything after this is among the recent ones.
        self._floor = Id(machine.index, PLACES)
        self._changed: dict[str, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        machine.listen(self._on_entry)

    @property
    def listened_to(self) -> bool:
        return bool(self._listeners)

    @property
    def now(self) -> Id:
        """The id of the newest message, for a client that has seen all so far."""
        return Id(self._machine.index, PLACES)

    def join(self, listener: EventListener) -> None:
        """Deliver everything from now on to a listener."""
        self._machine.events_wanted = True
        self._listeners[listener] = None

    def leave(self, listener: EventListener) -> None:
        """Deliver nothing more to a listener."""
        self._listeners.pop(listener, None)
        self._machine.events_wanted = bool(self._listeners)

    def close(self) -> None:
        """Send everybody away."""
        for listener in list(self._listeners):
            listener.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def after(self, last: Id, queue: str = "") -> Iterator[EventMessage] | None:
        """Return what came after a message, or None when that is not known any more. queue: the only one that matters.

        The messages are made one by one: whoever has enough may stop.
        """
        if last < self._floor or last.entry > self._machine.index:
            return None
        return self._past(list(self._recent), last, queue)

    def _past(self, recent: list[Past], last: Id, queue: str) -> Iterator[EventMessage]:
        for past in recent:
            if past.entry < last.entry:
                continue
            place = 0
            for event in past.events:
                messages = self._made(past.entry, past.now_ms, event, place)
                place += len(messages)
                for one in messages:
                    if (one.id is None or one.id > last) and (not queue or one.concerns(queue)):
                        yield one

    def _made(self, index: int, now_ms: int, event: Event, place: int) -> list[EventMessage]:
        messages = list(self._render(self._machine.state, now_ms, event))
        for more, message in enumerate(messages):
            message.id = Id(index, place + more)
        return messages

    def publish(self, payload: Payload, *, queue: str = "", queues: Sequence[str] = ()) -> None:
        """Deliver an event that only this node can know of: figures, warnings. It has no id and is not kept."""
        if self._listeners:
            now_ms = time.time_ns() // 1_000_000
            self._deliver([EventMessage(payload.EVENT, now_ms, ENCODE(payload), queue=queue, queues=queues)])

    def _on_entry(self, entry: Entry) -> None:
        events = entry.events
        if events is None:
            # Nobody wanted any, or the state was replaced as a whole.
            self._recent.clear()
            self._recent_weight = 0
            self._floor = Id(entry.index, PLACES)
            for listener in list(self._listeners):
                listener.lost()
        elif events:
            self._keep(Past(entry.index, entry.now_ms, events))
            if self._listeners:
                self._deliver_events(entry.index, entry.now_ms, events)

    def _deliver_events(self, index: int, now_ms: int, events: list[Event]) -> None:
        messages: list[EventMessage] = []
        for event in events:
            messages += self._made(index, now_ms, event, len(messages))
        self._changed.update(dict.fromkeys(message.queue for message in messages if message.queue))
        self._deliver(messages)
        if self._changed and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(COALESCE_S, self._deliver_counts)

    def _keep(self, past: Past) -> None:
        self._recent.append(past)
        self._recent_weight += weight(past)
        while self._recent_weight > RECENT_WEIGHT:
            oldest = self._recent.popleft()
            self._recent_weight -= weight(oldest)
            self._floor = Id(oldest.entry, PLACES)

    def _deliver(self, messages: Sequence[EventMessage]) -> None:
        for listener in list(self._listeners):
            listener.on_events(messages)

    def _deliver_counts(self) -> None:
        self._timer = None
        changed, self._changed = self._changed, {}
        for queue in changed:
            self.publish(self._counts(self._machine.state, queue), queue=queue)
            if self._on_change is not None:
                self._on_change(queue)


def weight(past: Past) -> int:
    """Return how much room events take: one each, and more for long texts."""
    return len(past.events) + sum(len(getattr(event, "error", None) or "") // 100 for event in past.events)


class SendQueue:
    """Frames on their way to one client. What a client does not read in time it misses, but for what it asked for."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()
        self._ended = False
        self.missed = 0

    @property
    def full(self) -> bool:
        return self._bytes > self._bytes_max

    def offer(self, frame: bytes) -> None:
        """Send a frame unless the client is too far behind."""
        if self.full:
            self.missed += 1
        else:
            self.put(frame)

    def put(self, frame: bytes) -> None:
        """Send a frame."""
        self._frames.append(frame)
        self._bytes += len(frame)
        self._changed.set()

    def end(self) -> None:
        """Have `take` return None once everything is sent."""
        self._ended = True
        self._changed.set()

    async def take(self) -> bytes | None:
        """Return the next frame, or None at the end."""
        while not self._frames:
            if self._ended:
                return None
            self._changed.clear()
            await self._changed.wait()
        frame = self._frames.popleft()
        self._bytes -= len(frame)
        return frame

    def rest(self) -> bytes:
        """Return all further frames at once."""
        frames = b"".join(self._frames)
        self._frames.clear()
        self._bytes = 0
        return frames

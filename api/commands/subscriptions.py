"""Who is told the events of which queue over TCP.

Every worker of bunqueue's subscribes to its queue. An event is looked at once for all of them, and made once, however many there are; what
one entry of the log brings goes out in one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from .framing import framed
from .messagepack import encoded

if TYPE_CHECKING:
    from quorumq.api.events.feed import EventMessage, Feed


class Subscriber(Protocol):
    """A connection that is told events."""

    def tell(self, frames: bytes, count: int) -> None:
        """Send so many events. frames: as they are written."""


class Subscriptions:
    """Those of one node: as long as there is one, it listens to the feed."""

    def __init__(self) -> None:
        self._of_queue: dict[str, dict[Subscriber, None]] = {}

    def add(self, subscriber: Subscriber, queue: str, feed: Feed) -> None:
        """Send a connection the events of a queue from now on."""
        if not self._of_queue:
            feed.join(self)
        self._of_queue.setdefault(queue, {})[subscriber] = None

    def remove(self, subscriber: Subscriber, queue: str, feed: Feed) -> None:
        """Send a connection no more events."""
        subscribers = self._of_queue.get(queue)
        if subscribers is None or subscriber not in subscribers:
            return
        del subscribers[subscriber]
        if not subscribers:
            del self._of_queue[queue]
            if not self._of_queue:
                feed.leave(self)

    # -- As a listener of the feed

    def on_events(self, messages: Sequence[EventMessage]) -> None:
        """Take the messages of an entry, and send those of each queue in one piece to whoever wants them."""
        frames: dict[str, list[bytes]] = {}
        for message in messages:
            if message.legacy is not None and message.queue in self._of_queue:
                packed = framed(encoded(b'{"type":"event","event":%b}' % message.legacy))
                frames.setdefault(message.queue, []).append(packed)
        for queue, those in frames.items():
            text = b"".join(those)
            for subscriber in list(self._of_queue[queue]):
                subscriber.tell(text, len(those))

    def lost(self) -> None:
        """Nothing can be said of it: the protocol has no word for it, and clients look at the state from time to time."""

    def close(self) -> None:
        """The node is stopping; its connections are ended one by one."""

"""Webhooks and their outboxes: what is to be delivered to whom, in order, until somebody says that it was.

The outbox is part of the replicated state, so a delivery that is due outlives any leader. Nothing here sends anything.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

WEBHOOKS_MAX = 500
# What waits for one receiver that is away; past either bound the oldest goes, and is counted.
OUTBOX_MAX = 10_000
OUTBOX_BYTES_MAX = 8 << 20
# What waits for all receivers together, by its weight: a small delivery takes some 120 bytes of memory and weighs 200. Past it
# the receiver for which most waits loses its oldest.
TOTAL_BYTES_MAX = 64 << 20
# Deliveries that one entry brings: a tenth of a second's work. What is past it is counted as dropped, and never tried.
ENTRY_MAX = 100_000
# A delivery without its data, roughly.
RECORD_BYTES = 200

PUSHED: Final = "job.pushed"
STARTED: Final = "job.started"
COMPLETED: Final = "job.completed"
FAILED: Final = "job.failed"
PROGRESS: Final = "job.progress"
EVENTS = (PUSHED, STARTED, COMPLETED, FAILED, PROGRESS)
# Both spellings of an event, and what each means.
SPELLINGS = {name: name for name in EVENTS} | {name.removeprefix("job."): name for name in EVENTS}


class Delivery(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One event on its way to one receiver. number: rises by one with each delivery of a webhook.

    data: JSON text, the result of a completed job or the data of a failed one.
    """

    number: int
    event: str
    at: int
    job_id: str
    queue: str
    data: bytes | None = None
    error: str | None = None
    progress: int | float | None = None


class Webhook(msgspec.Struct, gc=False, array_like=True):
    """A receiver. Order of fields is the image's format: only append.

    events: as the client spelled them.  queue: None for all.  number: of the last delivery.  succeeded, failed, dropped:
    deliveries that arrived, that were given up, that were never tried because too many waited.
    """

    id: str
    url: str
    events: tuple[str, ...]
    queue: str | None
    secret: str | None
    created_at: int
    enabled: bool = True
    last_triggered: int | None = None
    succeeded: int = 0
    failed: int = 0
    dropped: int = 0
    number: int = 0

    @property
    def about(self) -> tuple[str, ...]:
        """The queue that it hears of, as events say it; empty for all."""
        return () if self.queue is None else (self.queue,)


class WebhookOutbox:
    """What waits for one receiver, oldest first."""

    __slots__ = ("deliveries", "size")

    def __init__(self) -> None:
        self.deliveries: deque[Delivery] = deque()
        self.size = 0

    def add(self, delivery: Delivery) -> int:
        """Put a delivery at the end; return how many of the oldest had to go for it."""
        self.deliveries.append(delivery)
        self.size += weight_of(delivery)
        dropped = 0
        while len(self.deliveries) > OUTBOX_MAX or (self.size > OUTBOX_BYTES_MAX and len(self.deliveries) > 1):
            self.pop()
            dropped += 1
        return dropped

    def pop(self) -> Delivery:
        """Take the oldest out."""
        delivery = self.deliveries.popleft()
        self.size -= weight_of(delivery)
        return delivery


class WebhookTable:
    """All webhooks by id, in order of creation, each with its outbox."""

    __slots__ = ("_bounded", "_missed", "_room", "by_id", "dropped", "listening", "outboxes", "size", "waiting")

    def __init__(self) -> None:
        # Whether the bounds on all of them together hold (level 1); how many deliveries the entry under way may bring yet, and
        # how many more it brought, by event and queue.
        self._bounded = False
        self._room = ENTRY_MAX
        self._missed: dict[tuple[str, str], int] = {}
        # The weight of all that waits.
        self.size = 0
        # Not replicated: deliveries that this node has seen dropped.
        self.dropped = 0
        self.by_id: dict[str, Webhook] = {}
        self.outboxes: dict[str, WebhookOutbox] = {}
        # Who wants which event; empty while nobody wants any, which is all that the hot path asks.
        self.listening: dict[str, list[Webhook]] = {}
        # Webhooks with something in their outbox: a dictionary for its order.
        self.waiting: dict[str, None] = {}

    def put(self, webhook: Webhook) -> None:
        """Add a webhook, or one that has changed."""
        self.by_id[webhook.id] = webhook
        self.outboxes.setdefault(webhook.id, WebhookOutbox())
        self._listen()

    def remove(self, webhook: Webhook) -> None:
        """Take a webhook away with all that waits for it."""
        self.size -= self.outboxes[webhook.id].size
        del self.by_id[webhook.id], self.outboxes[webhook.id]
        self.waiting.pop(webhook.id, None)
        self._listen()

    def enable(self, webhook: Webhook, enabled: bool) -> None:
        """Let a webhook get deliveries, or none any more: what waits for it is dropped then."""
        webhook.enabled = enabled
        if not enabled:
            self._drop(webhook, len(self.outboxes[webhook.id].deliveries))
            self.size -= self.outboxes[webhook.id].size
            self.outboxes[webhook.id] = WebhookOutbox()
            self.waiting.pop(webhook.id, None)
        self._listen()

    def post(
        self,
        event: str,
        at: int,
        job_id: str,
        queue: str,
        data: bytes | None = None,
        error: str | None = None,
        progress: float | None = None,
    ) -> None:
        """Put an event into the outbox of everybody who wants it."""
        wanted = self.listening.get(event)
        if wanted is None:
            return
        if self._bounded and self._room <= 0:
            self._missed[event, queue] = self._missed.get((event, queue), 0) + 1
            return
        for webhook in wanted:
            if webhook.queue is None or webhook.queue == queue:
                webhook.number += 1
                delivery = Delivery(webhook.number, event, at, job_id, queue, data, error, progress)
                outbox = self.outboxes[webhook.id]
                self.size -= outbox.size
                dropped = outbox.add(delivery)
                self.size += outbox.size
                if dropped:
                    self._drop(webhook, dropped)
                self.waiting[webhook.id] = None
                self._room -= 1
        if self._bounded and self.size > TOTAL_BYTES_MAX:
            self._shorten()

    def begin(self, level: int) -> None:
        """An entry begins."""
        self._bounded, self._room = level >= 1, ENTRY_MAX

    def end(self) -> None:
        """An entry ends: count what it brought beyond its bound."""
        if self._missed:
            for (event, queue), count in self._missed.items():
                for webhook in self.listening.get(event, ()):
                    if webhook.queue is None or webhook.queue == queue:
                        webhook.number += count
                        self._drop(webhook, count)
            self._missed = {}

    def _shorten(self) -> None:
        """Drop the oldest of whoever has most waiting, a sixteenth at a time so that looking for it is seldom."""
        while self.size > TOTAL_BYTES_MAX:
            # By registration, because in which order they began to wait an image does not keep.
            largest = max(self.by_id.values(), key=lambda webhook: self.outboxes[webhook.id].size)
            outbox = self.outboxes[largest.id]
            count = len(outbox.deliveries) // 16 + 1
            self.size -= outbox.size
            for _ in range(count):
                outbox.pop()
            self.size += outbox.size
            self._drop(largest, count)
            if not outbox.deliveries:
                del self.waiting[largest.id]

    def _drop(self, webhook: Webhook, count: int) -> None:
        webhook.dropped += count
        self.dropped += count

    def tried(self, webhook: Webhook, at_ms: int, *, succeeded: bool) -> Delivery:
        """Note that the oldest delivery of a webhook is done with, and return it."""
        outbox = self.outboxes[webhook.id]
        delivery = outbox.pop()
        self.size -= weight_of(delivery)
        if not outbox.deliveries:
            del self.waiting[webhook.id]
        webhook.succeeded += succeeded
        webhook.failed += not succeeded
        webhook.last_triggered = at_ms
        return delivery

    def restore(self, webhook_id: str, deliveries: list[Delivery]) -> None:
        """Add deliveries from an image, in its order."""
        outbox = self.outboxes[webhook_id]
        for delivery in deliveries:
            outbox.deliveries.append(delivery)
            outbox.size += weight_of(delivery)
            self.size += weight_of(delivery)
            self.waiting[webhook_id] = None

    def _listen(self) -> None:
        self.listening = {}
        for webhook in self.by_id.values():
            if webhook.enabled:
                wanted = dict.fromkeys(SPELLINGS[name] for name in webhook.events if name in SPELLINGS)
                for event in wanted:
                    self.listening.setdefault(event, []).append(webhook)


def weight_of(delivery: Delivery) -> int:
    """Return the bytes that a delivery counts for."""
    return RECORD_BYTES + len(delivery.data or b"") + len(delivery.error or "")

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


class Outbox:
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


class Webhooks:
    """All webhooks by id, in order of creation, each with its outbox."""

    __slots__ = ("by_id", "listening", "outboxes", "waiting")

    def __init__(self) -> None:
        self.by_id: dict[str, Webhook] = {}
        self.outboxes: dict[str, Outbox] = {}
        # Who wants which event; empty while nobody wants any, which is all that the hot path asks.
        self.listening: dict[str, list[Webhook]] = {}
        # Webhooks with something in their outbox: a dictionary for its order.
        self.waiting: dict[str, None] = {}

    def put(self, webhook: Webhook) -> None:
        """Add a webhook, or one that has changed."""
        self.by_id[webhook.id] = webhook
        self.outboxes.setdefault(webhook.id, Outbox())
        self._listen()

    def remove(self, webhook: Webhook) -> None:
        """Take a webhook away with all that waits for it."""
        del self.by_id[webhook.id], self.outboxes[webhook.id]
        self.waiting.pop(webhook.id, None)
        self._listen()

    def enable(self, webhook: Webhook, enabled: bool) -> None:
        """Let a webhook get deliveries, or none any more: what waits for it is dropped then."""
        webhook.enabled = enabled
        if not enabled:
            webhook.dropped += len(self.outboxes[webhook.id].deliveries)
            self.outboxes[webhook.id] = Outbox()
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
        for webhook in self.listening.get(event, ()):
            if webhook.queue is None or webhook.queue == queue:
                webhook.number += 1
                delivery = Delivery(webhook.number, event, at, job_id, queue, data, error, progress)
                webhook.dropped += self.outboxes[webhook.id].add(delivery)
                self.waiting[webhook.id] = None

    def taken(self, webhook: Webhook) -> None:
        """Note that the oldest delivery of a webhook is done with."""
        outbox = self.outboxes[webhook.id]
        outbox.pop()
        if not outbox.deliveries:
            del self.waiting[webhook.id]

    def restore(self, webhook_id: str, deliveries: list[Delivery]) -> None:
        """Add deliveries from an image, in its order."""
        outbox = self.outboxes[webhook_id]
        for delivery in deliveries:
            outbox.deliveries.append(delivery)
            outbox.size += weight_of(delivery)
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

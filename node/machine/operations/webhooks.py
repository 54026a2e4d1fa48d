"""Webhooks: registration, and what became of deliveries.

Deliveries are put into outboxes by what happens to jobs and sent by the leader, in order per webhook. They
leave the outbox only here, by the leader's word.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from quorumq.node.machine import events as happened
from quorumq.node.machine.bounds import PATH_CHARS_MAX, Key, Note, QueueName, bounded
from quorumq.node.machine.operation import Entry, Operation, Query, operation, query
from quorumq.node.machine.operations.jobs import Counted
from quorumq.node.machine.refusals import TooManyWebhooks, WebhookNotFound
from quorumq.node.machine.state import State
from quorumq.node.machine.state.webhook import WEBHOOKS_MAX, Webhook

WebhookId = Annotated[str, bounded(PATH_CHARS_MAX, "Id of a webhook, made by the server.")]


class WebhookSet(msgspec.Struct, frozen=True, gc=False):
    """A webhook as it is now."""

    webhook: Webhook


@operation(emits=(happened.WebhookAdded,), refuses=(TooManyWebhooks,))
class AddWebhook(Operation, frozen=True, tag="webhook.add"):
    """Register a receiver for events of jobs, in either spelling: `completed` or `job.completed`. queue: None for all."""

    webhook_id: WebhookId
    url: Note
    events: tuple[Key, ...]
    queue: QueueName | None = None
    secret: Note | None = None

    def apply(self, state: State, entry: Entry) -> WebhookSet:
        webhooks = state.webhooks
        if len(webhooks.by_id) >= WEBHOOKS_MAX:
            raise TooManyWebhooks(WEBHOOKS_MAX)
        webhook = Webhook(self.webhook_id, self.url, self.events, self.queue, self.secret, state.now_ms)
        webhooks.put(webhook)
        state.mark += 103 + len(webhooks.by_id)
        state.emit(happened.WebhookAdded(webhook.id, webhook.url, webhook.events, webhook.about))
        return WebhookSet(webhook)


@operation(emits=(happened.WebhookRemoved,), refuses=(WebhookNotFound,))
class RemoveWebhook(Operation, frozen=True, tag="webhook.remove"):
    """Remove a webhook; nothing more is delivered to it."""

    webhook_id: WebhookId

    def apply(self, state: State, entry: Entry) -> None:
        webhook = known_webhook(state, self.webhook_id)
        state.webhooks.remove(webhook)
        state.mark += 107
        state.emit(happened.WebhookRemoved(self.webhook_id, webhook.about))


@operation(emits=(happened.WebhookEnabled, happened.WebhookDisabled), refuses=(WebhookNotFound,))
class EnableWebhook(Operation, frozen=True, tag="webhook.enable"):
    """Let a webhook get deliveries, or none: what happens while it is disabled is not delivered later."""

    webhook_id: WebhookId
    enabled: bool = True

    def apply(self, state: State, entry: Entry) -> WebhookSet:
        webhook = known_webhook(state, self.webhook_id)
        if webhook.enabled != self.enabled:
            state.webhooks.enable(webhook, self.enabled)
            state.mark += 109
            kind = happened.WebhookEnabled if self.enabled else happened.WebhookDisabled
            state.emit(kind(webhook.id, webhook.about))
        return WebhookSet(webhook)


@operation(emits=(happened.WebhookFired,))
class NoteDelivered(Operation, frozen=True, tag="webhook.delivered"):
    """Note that the deliveries of a webhook up to a number have arrived; counts those that nobody had noted yet.

    status: what the receiver answered to the last of them.
    """

    webhook_id: WebhookId
    up_to: int
    status: int = 200

    def apply(self, state: State, entry: Entry) -> Counted:
        webhook = state.webhooks.by_id.get(self.webhook_id)
        if webhook is None:
            return Counted(0)
        count = 0
        deliveries = state.webhooks.outboxes[webhook.id].deliveries
        while deliveries and deliveries[0].number <= self.up_to:
            event = state.webhooks.tried(webhook, state.now_ms, succeeded=True).event
            state.emit(happened.WebhookFired(webhook.id, webhook.id, webhook.url, event, self.status, webhook.about))
            count += 1
        state.mark += 113 * count
        return Counted(count)


@operation(emits=(happened.WebhookFailed,))
class NoteUndeliverable(Operation, frozen=True, tag="webhook.failed"):
    """Note that a delivery was given up after its retries; counts it unless somebody had noted it already."""

    webhook_id: WebhookId
    number: int
    error: Note

    def apply(self, state: State, entry: Entry) -> Counted:
        webhook = state.webhooks.by_id.get(self.webhook_id)
        deliveries = () if webhook is None else state.webhooks.outboxes[webhook.id].deliveries
        if webhook is None or not deliveries or deliveries[0].number != self.number:
            return Counted(0)
        event = state.webhooks.tried(webhook, state.now_ms, succeeded=False).event
        state.mark += 127
        state.emit(happened.WebhookFailed(webhook.id, webhook.id, webhook.url, event, self.error, webhook.about))
        return Counted(1)


def known_webhook(state: State, webhook_id: str) -> Webhook:
    """Return a webhook. Raises WebhookNotFound."""
    webhook = state.webhooks.by_id.get(webhook_id)
    if webhook is None:
        raise WebhookNotFound(webhook_id)
    return webhook


class WebhookShown(msgspec.Struct, frozen=True, gc=False):
    """A webhook, and how many deliveries wait for it."""

    webhook: Webhook
    waiting: int


@query
class ListWebhooks(Query, frozen=True):
    """All webhooks in order of creation."""

    def answer(self, state: State) -> list[WebhookShown]:
        table = state.webhooks
        return [WebhookShown(hook, len(table.outboxes[hook.id].deliveries)) for hook in table.by_id.values()]

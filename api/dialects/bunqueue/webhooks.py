"""Webhooks: what clients send, the rules for it, how a webhook is shown, and the rows.

Whether a receiver's address may be called is asked here for an early answer, and again by whoever connects to it.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Struct

from quorumq.api.errors import Invalid
from quorumq.api.ids import new_id
from quorumq.api.request import Call, Command
from quorumq.api.rows import ask, grouped, write
from quorumq.api.rules import apply, says
from quorumq.api.scopes import its_webhook, own_webhooks
from quorumq.api.values import KEY_CHARS_MAX, as_text
from quorumq.node.machine.bounds import QUEUE_NAME_CHARS_MAX
from quorumq.node.machine.operations.webhooks import AddWebhook, EnableWebhook, ListWebhooks, RemoveWebhook, WebhookSet
from quorumq.node.machine.operations.webhooks import WebhookShown as WebhookAnswer
from quorumq.node.machine.state.webhook import EVENTS, SPELLINGS

from ...outgoing.egress import URL_CHARS_MAX, check_url
from . import replies
from .values import check_queue, checked_list, flag, key, read, read_unchecked, word

VALID = ", ".join(EVENTS)
ENCODE = msgspec.json.Encoder().encode


class WebhookShown(Struct, forbid_unknown_fields=True, rename="camel"):
    """dropped_count: deliveries never tried because too many waited.  waiting_count: those that wait now."""

    id: str
    url: str
    events: tuple[str, ...]
    queue: str | None
    created_at: replies.Millis
    last_triggered: replies.Millis | None
    success_count: int
    failure_count: int
    dropped_count: int
    waiting_count: int
    enabled: bool


class WebhookSums(Struct, forbid_unknown_fields=True):
    total: int
    enabled: int


class WebhooksData(Struct, forbid_unknown_fields=True):
    webhooks: list[WebhookShown]
    stats: WebhookSums


class Webhooks(replies.Success):
    data: WebhooksData


class AddedWebhookData(Struct, forbid_unknown_fields=True, rename="camel"):
    webhook_id: str
    url: str
    events: tuple[str, ...]
    queue: str | None
    created_at: replies.Millis


class AddedWebhook(replies.Success):
    data: AddedWebhookData


def checked_events(name: str, value: Any) -> tuple[str, ...]:
    """Return the names of events as they were spelled, each once. Raises Invalid."""
    names = dict.fromkeys(as_text(one) or "" for one in checked_list(name, value))
    if unknown := [one for one in names if one not in SPELLINGS]:
        shown = ", ".join(unknown[: len(EVENTS)])
        raise Invalid(f"Invalid webhook event(s): {shown[:KEY_CHARS_MAX]}. Valid: {VALID}")
    return tuple(names)


class WebhookBody(Struct, gc=False):
    """A receiver of events, which are posted to it as JSON."""

    # How an address is looked at depends on a setting, and its text is the first of all (add).
    url: Annotated[
        str | None,
        says("Where to post: https, and no address that only the cluster's own network reaches.", required=True, elsewhere=True,
             max_chars=URL_CHARS_MAX),
    ] = None  # fmt: skip
    events: Annotated[
        list[str] | None,
        says("Any of pushed, started, completed, failed, progress; with or without `job.` before them.",
             reads=checked_events, bound=len(SPELLINGS), required="events must be an array"),
    ] = None  # fmt: skip
    queue: Annotated[str | None, word("The queue whose events are wanted; left out, all.", QUEUE_NAME_CHARS_MAX)] = None
    secret: Annotated[str | None, key("Key of the HMAC-SHA256 in X-Webhook-Signature.")] = None


class EnabledBody(Struct, gc=False):
    enabled: Annotated[bool | None, flag("Whether it gets deliveries; left out, it does not.", default=False)] = None


WEBHOOK = msgspec.json.Decoder(WebhookBody)
ENABLED = msgspec.json.Decoder(EnabledBody)


def add(call: Call) -> AddWebhook:
    unchecked = read_unchecked(WEBHOOK, call.body, required=True)
    url = as_text(unchecked.url) or ""
    wrong = check_url(url, allow_private=call.server.config.webhook_allow_private)
    if wrong is not None:
        raise Invalid(wrong)
    body: Any = apply(unchecked)
    return AddWebhook(new_id(), url, body.events, check_queue(body.queue) if body.queue else None, body.secret)


def remove(call: Call) -> RemoveWebhook:
    return RemoveWebhook(call.path["webhook_id"])


def enable(call: Call) -> EnableWebhook:
    return EnableWebhook(call.path["webhook_id"], bool(read(ENABLED, call.body).enabled))


def added(reply: WebhookSet) -> bytes:
    webhook = reply.webhook
    data = AddedWebhookData(webhook.id, webhook.url, webhook.events, webhook.queue, webhook.created_at)
    return ENCODE(AddedWebhook(True, data))


def removed(reply: None) -> bytes:
    return b'{"ok":true,"data":{"removed":true}}'


def shown(one: WebhookAnswer) -> WebhookShown:
    """Show a webhook without its secret."""
    webhook = one.webhook
    return WebhookShown(
        webhook.id,
        webhook.url,
        webhook.events,
        webhook.queue,
        webhook.created_at,
        webhook.last_triggered,
        webhook.succeeded,
        webhook.failed,
        webhook.dropped,
        one.waiting,
        webhook.enabled,
    )


def several(webhooks: list[WebhookAnswer]) -> bytes:
    stats = WebhookSums(len(webhooks), sum(one.webhook.enabled for one in webhooks))
    return ENCODE(Webhooks(True, WebhooksData([shown(one) for one in webhooks], stats)))


ROUTES = grouped(
    "Webhooks",
    ask("GET", "/webhooks", ListWebhooks, lambda call: ListWebhooks(), several, reply=Webhooks,
        scope="checked", narrow=own_webhooks, command="ListWebhooks"),
    write("POST", "/webhooks", AddWebhook, add, added, takes=WebhookBody, reply=AddedWebhook,
          right="manage:all", about="Have events of jobs posted to a URL.", scope="checked", check=its_webhook,
          command="AddWebhook"),
    write("DELETE", "/webhooks/{webhook_id}", RemoveWebhook, remove, removed, reply=replies.Removed,
          right="manage:all", scope="checked", check=its_webhook, command="RemoveWebhook"),
    write("PUT", "/webhooks/{webhook_id}/enabled", EnableWebhook, enable, replies.ok, takes=EnabledBody,
          reply=replies.Ok, right="manage:all", scope="checked", check=its_webhook,
          command=Command("SetWebhookEnabled", {"webhook_id": "id"})),
)  # fmt: skip

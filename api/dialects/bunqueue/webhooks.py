"""Webhooks: what clients send, the rules for it, how a webhook is shown, and the rows.

Whether a receiver's address may be called is asked here for an early answer, and again by whoever connects to it.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Struct

from api.http import Call, Invalid, ask, grouped, submit
from api.ids import new_id
from api.scopes import its_webhook, own_webhooks
from api.values import KEY_CHARS_MAX, as_text, says
from node.addresses import URL_CHARS_MAX, check_url
from node.operations.webhooks import (
    AddWebhook,
    EnableWebhook,
    ListWebhooks,
    RemoveWebhook,
    WebhookSet,
    WebhookShown,
)
from node.state.webhook import EVENTS, SPELLINGS

from . import render, replies
from .values import as_key, check_queue, checked_list, read

VALID = ", ".join(EVENTS)
ENCODE = msgspec.json.Encoder().encode


class WebhookBody(Struct, gc=False):
    """A receiver of events, which are posted to it as JSON."""

    url: Annotated[
        str | None,
        says("Where to post; no address that only the cluster's own network reaches.", required=True,
             max_chars=URL_CHARS_MAX),
    ] = None  # fmt: skip
    events: Annotated[
        list[str] | None,
        says("Any of pushed, started, completed, failed, progress; with or without `job.` before them.", required=True),
    ] = None
    queue: Annotated[str | None, says("The queue whose events are wanted; left out, all.")] = None
    secret: Annotated[str | None, says("Key of the HMAC-SHA256 in X-Webhook-Signature.", max_chars=KEY_CHARS_MAX)] = (
        None
    )


class EnabledBody(Struct, gc=False):
    enabled: Annotated[bool | None, says("Whether it gets deliveries; left out, it does not.", default=False)] = None


WEBHOOK = msgspec.json.Decoder(WebhookBody)
ENABLED = msgspec.json.Decoder(EnabledBody)


def add(call: Call) -> AddWebhook:
    body = read(WEBHOOK, call.body, required=True)
    url = as_text(body.url) or ""
    wrong = check_url(url, allow_private=call.server.config.webhook_allow_private == "true")
    if wrong is not None:
        raise Invalid(wrong)
    queue = as_text(body.queue)
    return AddWebhook(
        new_id(), url, checked_events(body.events), check_queue(queue) if queue else None, as_key("secret", body.secret)
    )


def checked_events(value: Any) -> tuple[str, ...]:
    """Return the names of events as they were spelled, each once. Raises Invalid."""
    names = dict.fromkeys(as_text(name) or "" for name in checked_list("events", value))
    if unknown := [name for name in names if name not in SPELLINGS]:
        shown = ", ".join(unknown[: len(EVENTS)])
        raise Invalid(f"Invalid webhook event(s): {shown[:KEY_CHARS_MAX]}. Valid: {VALID}")
    return tuple(names)


def remove(call: Call) -> RemoveWebhook:
    return RemoveWebhook(call.path["webhook_id"])


def enable(call: Call) -> EnableWebhook:
    enabled: Any = read(ENABLED, call.body).enabled
    if enabled is not None and not isinstance(enabled, bool):
        raise Invalid("enabled must be a boolean")
    return EnableWebhook(call.path["webhook_id"], bool(enabled))


def added(reply: WebhookSet) -> bytes:
    webhook = reply.webhook
    data = {
        "webhookId": webhook.id,
        "url": webhook.url,
        "events": webhook.events,
        "queue": webhook.queue,
        "createdAt": webhook.created_at,
    }
    return b'{"ok":true,"data":%b}' % ENCODE(data)


def removed(reply: None) -> bytes:
    return b'{"ok":true,"data":{"removed":true}}'


def shown(one: WebhookShown) -> dict[str, Any]:
    """Show a webhook without its secret."""
    webhook = one.webhook
    return {
        "id": webhook.id,
        "url": webhook.url,
        "events": webhook.events,
        "queue": webhook.queue,
        "createdAt": webhook.created_at,
        "lastTriggered": webhook.last_triggered,
        "successCount": webhook.succeeded,
        "failureCount": webhook.failed,
        "droppedCount": webhook.dropped,
        "waitingCount": one.waiting,
        "enabled": webhook.enabled,
    }


def several(webhooks: list[WebhookShown]) -> bytes:
    stats = {"total": len(webhooks), "enabled": sum(one.webhook.enabled for one in webhooks)}
    return b'{"ok":true,"data":%b}' % ENCODE({"webhooks": [shown(one) for one in webhooks], "stats": stats})


ROUTES = grouped(
    "Webhooks",
    ask("GET", "/webhooks", ListWebhooks, lambda call: ListWebhooks(), several, reply=replies.Webhooks,
        scope="checked", narrow=own_webhooks),
    submit("POST", "/webhooks", AddWebhook, add, added, takes=WebhookBody, reply=replies.WebhookAdded,
           right="manage:all", about="Have events of jobs posted to a URL.", scope="checked", check=its_webhook),
    submit("DELETE", "/webhooks/{webhook_id}", RemoveWebhook, remove, removed, reply=replies.Removed,
           right="manage:all", scope="checked", check=its_webhook),
    submit("PUT", "/webhooks/{webhook_id}/enabled", EnableWebhook, enable, render.ok, takes=EnabledBody,
           reply=replies.Ok, right="manage:all", scope="checked", check=its_webhook),
)  # fmt: skip

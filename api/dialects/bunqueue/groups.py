"""Groups of a queue: what clients send about them, how one is shown, and the rows."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Struct

from api.http import Call, Invalid, ask, grouped, submit
from api.values import KEY_CHARS_MAX, Number, says
from node.operations.groups import (
    CountGrouped,
    GetGroup,
    GroupShown,
    PauseGroup,
    ResumeGroup,
    SetGroupConcurrency,
)

from . import render, replies
from .queue_bodies import LIMIT_MAX, queue_of
from .values import as_key, check_number, read


class GroupConcurrencyBody(Struct, gc=False):
    """How many jobs of a group may be active at once."""

    concurrency: Annotated[Number | None, says("Jobs; 0 lets none start.", required=True, low=0, high=LIMIT_MAX)] = None


CONCURRENCY = msgspec.json.Decoder(GroupConcurrencyBody)


def names(call: Call) -> tuple[str, str]:
    """Return queue and group of a path. Raises Invalid."""
    queue = queue_of(call)
    group = as_key("groupId", call.path["group"])
    if not group:
        raise Invalid(f"groupId must have 1 to {KEY_CHARS_MAX} characters")
    return queue, group


def set_concurrency(call: Call) -> SetGroupConcurrency:
    queue, group = names(call)
    value = read(CONCURRENCY, call.body).concurrency
    if value is None:
        raise Invalid("concurrency is required")
    check_number("concurrency", value, 0, LIMIT_MAX, integer=True)
    return SetGroupConcurrency(queue, group, int(value))


def shown(found: GroupShown) -> bytes:
    settings = found.settings
    return b'{"ok":true,"waiting":%d,"active":%d,"concurrency":%d,"paused":%b}' % (
        found.waiting,
        found.active,
        settings.concurrency,
        b"true" if settings.paused else b"false",
    )


def changed(is_change: bool) -> bytes:
    return b'{"ok":true,"changed":true}' if is_change else b'{"ok":true,"changed":false}'


def counted(count: int) -> bytes:
    return b'{"ok":true,"count":%d}' % count


ROUTES = grouped(
    "Groups",
    ask("GET", "/queues/{queue}/groups/count", CountGrouped, lambda call: CountGrouped(queue_of(call)), counted,
        reply=replies.Count),
    ask("GET", "/queues/{queue}/groups/{group}", GetGroup, lambda call: GetGroup(*names(call)), shown,
        reply=replies.Group),
    submit("PUT", "/queues/{queue}/groups/{group}/concurrency", SetGroupConcurrency, set_concurrency, render.ok,
           takes=GroupConcurrencyBody, reply=replies.Ok, right="manage:all",
           about="Limit how many jobs of a group are active at once."),
    submit("DELETE", "/queues/{queue}/groups/{group}/concurrency", SetGroupConcurrency,
           lambda call: SetGroupConcurrency(*names(call)), changed, reply=replies.WasChanged, right="manage:all",
           about="Have one job of a group active at once again."),
    submit("POST", "/queues/{queue}/groups/{group}/pause", PauseGroup, lambda call: PauseGroup(*names(call)), changed,
           reply=replies.WasChanged, right="manage:all"),
    submit("POST", "/queues/{queue}/groups/{group}/resume", ResumeGroup, lambda call: ResumeGroup(*names(call)), changed,
           reply=replies.WasChanged, right="manage:all"),
)  # fmt: skip

"""Groups of a queue: what clients send about them, how one is shown, and the rows."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Struct

from quorumq.api.errors import Invalid
from quorumq.api.reply import Reply
from quorumq.api.request import CONSISTENCY, Call, Command, Parameter, Route
from quorumq.api.rows import ask, grouped, plain, write
from quorumq.api.values import COUNT_MAX, KEY_CHARS_MAX, YEAR_MS, Number
from quorumq.node.machine.operations.groups import (
    CountGrouped,
    GetGroup,
    GroupPage,
    GroupShown,
    HoldGroup,
    ListLimitedGroups,
    PauseGroup,
    ResumeGroup,
    SetGroupConcurrency,
    SetGroupRateLimit,
)

from . import limits, overview, replies
from .values import as_key, integer, page, query_number, queue_of, read

ENCODE = msgspec.json.Encoder().encode
COUNT = {"type": "integer", "minimum": 0}
GROUPS_SHOWN = 100
GROUPS_SHOWN_MAX = 1_000
LIMIT = Parameter(
    "limit", f"Groups, at most {GROUPS_SHOWN_MAX:,}.", {**COUNT, "default": GROUPS_SHOWN, "maximum": GROUPS_SHOWN_MAX}
)
OFFSET = Parameter("offset", "Groups to skip.", {**COUNT, "default": 0})
MAX_JOBS = Parameter(
    "maxJobs", "Have `rateLimitTtl` be 0 while fewer than so many have started in the window.", {**COUNT, "minimum": 1}
)


class GroupFigures(Struct, forbid_unknown_fields=True, rename="camel"):
    group_id: str
    waiting: int
    active: int
    concurrency: int
    paused: bool
    rate_limit: overview.RateShown | None
    rate_limit_ttl: overview.GroupTtl


class Group(replies.Success):
    waiting: int
    active: int
    concurrency: int
    paused: bool
    rate_limit: overview.RateShown | None
    rate_limit_ttl: overview.GroupTtl


class Groups(replies.Success):
    groups: list[GroupFigures]
    total: int


class GroupConcurrencyBody(Struct, gc=False):
    """How many jobs of a group may be active at once."""

    concurrency: Annotated[Number | None, integer("Jobs; 0 lets none start.", 0, limits.LIMIT_MAX, required=True)] = (
        None
    )


class GroupRateLimitBody(Struct, gc=False):
    """How many jobs of a group may start."""

    max: Annotated[Number | None, integer("Jobs in each window.", 1, limits.LIMIT_MAX, required=True)] = None
    duration: Annotated[
        Number | None,
        integer("Length of a window in milliseconds; it begins with the first start.", 1, YEAR_MS, required=True),
    ] = None


class HoldGroupBody(Struct, gc=False):
    """How long a group is to wait."""

    duration: Annotated[Number | None, integer("Milliseconds from now.", 1, YEAR_MS, required=True)] = None


RATE_LIMIT = msgspec.json.Decoder(GroupRateLimitBody)
HOLD = msgspec.json.Decoder(HoldGroupBody)
CONCURRENCY = msgspec.json.Decoder(GroupConcurrencyBody)


def names(call: Call) -> tuple[str, str]:
    """Return queue and group of a path. Raises Invalid."""
    queue = queue_of(call)
    group = as_key("groupId", call.path["group"])
    if not group:
        raise Invalid(f"groupId must have 1 to {KEY_CHARS_MAX} characters")
    return queue, group


def set_concurrency(call: Call) -> SetGroupConcurrency:
    return SetGroupConcurrency(*names(call), read(CONCURRENCY, call.body).concurrency)


def set_rate_limit(call: Call) -> SetGroupRateLimit:
    queue, group = names(call)
    body = read(RATE_LIMIT, call.body)
    return SetGroupRateLimit(queue, group, body.max, body.duration)


def hold(call: Call) -> HoldGroup:
    return HoldGroup(*names(call), read(HOLD, call.body).duration)


async def get_group(call: Call) -> Reply:
    """Answer with a group; how long it is held is counted from this node's time."""
    query = GetGroup(*names(call))
    jobs = int(query_number("maxJobs", call.query["maxJobs"], 1, COUNT_MAX)) if "maxJobs" in call.query else None

    def view(found: GroupShown) -> bytes:
        return ENCODE(Group(True, *shown(found, call.node.now_ms(), jobs)))

    return Reply(200, await call.node.ask(query, view, stale=call.stale))


async def list_groups(call: Call) -> Reply:
    """Answer with a page of the groups that differ from the others."""
    limit, offset = page(call, "limit")
    query = ListLimitedGroups(queue_of(call), min(GROUPS_SHOWN if limit is None else limit, GROUPS_SHOWN_MAX), offset)

    def view(found: GroupPage) -> bytes:
        now_ms = call.node.now_ms()
        listed = [GroupFigures(group_id, *shown(one, now_ms)) for group_id, one in found.groups]
        return ENCODE(Groups(True, listed, found.total))

    return Reply(200, await call.node.ask(query, view, stale=call.stale))


def shown(
    found: GroupShown, now_ms: int, jobs: int | None = None
) -> tuple[int, int, int, bool, overview.RateShown | None, int]:
    """Return what is shown of a group besides its name, in the order of its types."""
    settings, free_at_ms = found.settings, found.free_at_ms(jobs)
    rate = settings.rate
    limit = None if rate is None else overview.RateShown(rate.max, rate.duration_ms)
    return found.waiting, found.active, settings.concurrency, settings.paused, limit, ttl(free_at_ms, now_ms)


def ttl(free_at_ms: int | None, now_ms: int) -> int:
    """Return the milliseconds left until a time; 0 stays, -2 when there is none, or it has passed."""
    if free_at_ms == 0:
        return 0
    return -2 if free_at_ms is None or free_at_ms <= now_ms else free_at_ms - now_ms


def changed(is_change: bool) -> bytes:
    return b'{"ok":true,"changed":true}' if is_change else b'{"ok":true,"changed":false}'


def counted(count: int) -> bytes:
    return b'{"ok":true,"count":%d}' % count


ROUTES: tuple[Route, ...] = grouped(
    "Groups",
    ask("GET", "/queues/{queue}/groups/count", CountGrouped, lambda call: CountGrouped(queue_of(call)), counted,
        reply=replies.Count, command=Command("GetGroupsJobsCount", reply=replies.in_data)),
    plain("GET", "/queues/{queue}/groups", list_groups, what=ListLimitedGroups, asks=(LIMIT, OFFSET, CONSISTENCY),
          reply=Groups, right="read",
          about="Groups with limits of their own, or that are paused or held, by id."),
    plain("GET", "/queues/{queue}/groups/{group}", get_group, what=GetGroup, asks=(MAX_JOBS, CONSISTENCY),
          reply=Group, right="read", about="One group: its jobs, its limits, and for how long it is held.",
          command=(
              Command("GetGroupJobsCount", reply=replies.one_of("waiting", "count")),
              Command("GetGroupActiveCount", reply=replies.one_of("active", "count")),
              Command("GetGroupConcurrency", reply=replies.one_of("concurrency")),
              Command("GetGroupRateLimit", reply=replies.one_of("rateLimit", "limit")),
              Command("GetGroupRateLimitTtl", reply=replies.one_of("rateLimitTtl", "ttl")),
              Command("IsGroupPaused", reply=replies.one_of("paused")),
          )),
    plain("PUT", "/queues/{queue}/groups/{group}/concurrency", limits.limiting(set_concurrency), what=SetGroupConcurrency,
          takes=GroupConcurrencyBody, reply=replies.Ok, right="manage:all",
          about="Limit how many jobs of a group are active at once; 0 lets none start.", command="SetGroupConcurrency"),
    write("DELETE", "/queues/{queue}/groups/{group}/concurrency", SetGroupConcurrency,
          lambda call: SetGroupConcurrency(*names(call)), changed, reply=replies.WasChanged, right="manage:all",
          about="Have one job of a group active at once again.",
          command=Command("RemoveGroupConcurrency", reply=replies.as_removed)),
    write("PUT", "/queues/{queue}/groups/{group}/rate-limit", SetGroupRateLimit, set_rate_limit, replies.ok,
          takes=GroupRateLimitBody, reply=replies.Ok, right="manage:all",
          about="Limit how many jobs of a group start in a window; what has started before does not count.",
          command="SetGroupRateLimit"),
    write("DELETE", "/queues/{queue}/groups/{group}/rate-limit", SetGroupRateLimit,
          lambda call: SetGroupRateLimit(*names(call)), changed, reply=replies.WasChanged, right="manage:all",
          about="Take a group's rate limit away.", command=Command("RemoveGroupRateLimit", reply=replies.as_removed)),
    write("POST", "/queues/{queue}/groups/{group}/hold", HoldGroup, hold, replies.ok, takes=HoldGroupBody, reply=replies.Ok,
          right="consume", about="Start no job of a group for a while from now; active ones go on.",
          command="RateLimitGroup"),
    write("POST", "/queues/{queue}/groups/{group}/pause", PauseGroup, lambda call: PauseGroup(*names(call)), changed,
          reply=replies.WasChanged, right="manage:all", command=Command("PauseGroup", reply=replies.as_data)),
    write("POST", "/queues/{queue}/groups/{group}/resume", ResumeGroup, lambda call: ResumeGroup(*names(call)), changed,
          reply=replies.WasChanged, right="manage:all", command=Command("ResumeGroup", reply=replies.as_data)),
)  # fmt: skip

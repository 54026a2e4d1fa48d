"""What a pull says of groups that have no limits of their own: `group` of a worker of the documented server.

There it holds for that pull. Here it becomes what holds for all groups of the queue, whoever takes their jobs: a limit that other
workers need not keep is none. The last that was asked for holds; where workers disagree, it changes every few seconds at most.
"""

from __future__ import annotations

import logging
from typing import Any

from quorumq.api.errors import Invalid
from quorumq.api.host import Host
from quorumq.api.request import Call
from quorumq.node.machine.operations.groups import SetUsualGroup
from quorumq.node.machine.refusals import Refusal

from .limits import LIMIT_MAX
from .values import check_number

log = logging.getLogger("quorumq.limits")
DURATION_MAX_MS = 365 * 86_400_000


def usual_of(queue: str, group: Any) -> SetUsualGroup | None:
    """Return what a pull wants of groups; None when it wants nothing. Raises Invalid."""
    if group is None:
        return None
    if not isinstance(group, dict):
        raise Invalid("group must be an object")
    concurrency, limit = group.get("concurrency"), group.get("limit")
    if concurrency is None and limit is None:
        return None
    if concurrency is None:
        concurrency = 1
    check_number("group.concurrency", concurrency, 1, LIMIT_MAX, integer=True)
    if limit is None:
        return SetUsualGroup(queue, int(concurrency))
    if not isinstance(limit, dict):
        raise Invalid("group.limit must be an object")
    check_number("group.limit.max", limit.get("max"), 1, LIMIT_MAX, integer=True)
    check_number("group.limit.duration", limit.get("duration"), 1, DURATION_MAX_MS, integer=True)
    return SetUsualGroup(queue, int(concurrency), int(limit["max"]), int(limit["duration"]))


async def keep_to(call: Call, wanted: SetUsualGroup | None) -> None:
    """Have the groups of a queue be limited as a pull says, unless they are already. Raises Unavailable."""
    if wanted is None or call.level < 1:
        return
    queue = call.node.machine.state.queues.get(wanted.queue)
    if wanted.usual == (None if queue is None else queue.settings.groups):
        return
    if not call.server.service(Host).groups_set.first(wanted.queue):
        return
    try:
        changed = await call.node.submit(wanted, bool)
    except Refusal as refusal:
        log.warning("queue %r: what a pull says of its groups is not kept: %s", wanted.queue, refusal)
        return
    if changed:
        rate = "" if wanted.max is None else f", {wanted.max} may start in {wanted.duration_ms} ms"
        log.info(
            "queue %r: of each group %d may be active at once%s, as a pull says", wanted.queue, wanted.concurrency, rate
        )

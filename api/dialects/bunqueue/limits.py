"""Rate limit and concurrency of queues: what is sent, and the rows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Struct

from quorumq.api.errors import Invalid
from quorumq.api.reply import Reply
from quorumq.api.request import Call, Handler, Route
from quorumq.api.rows import grouped, plain, success, write
from quorumq.api.rules import says
from quorumq.api.values import DAY_MS, KEY_CHARS_MAX, YEAR_MS, Number
from quorumq.node.machine.operations.groups import SetGroupConcurrency
from quorumq.node.machine.operations.settings import ClearConcurrency, ClearRateLimit, SetConcurrency, SetRateLimit

from . import replies
from .values import check_number, integer, of_queue, query_number, queue_of, read

LIMIT_MAX = 1_000_000_000
WINDOW_MS = 1_000
log = logging.getLogger("quorumq.limits")


def as_limit(name: str, value: Any) -> int:
    """Read a limit; the documented server takes digits in a string too. Raises Invalid."""
    if isinstance(value, str):
        if not value.strip():
            raise Invalid("limit must be a finite number")
        value = query_number("limit", value[:KEY_CHARS_MAX], 0, LIMIT_MAX)
    check_number("limit", value, 0, LIMIT_MAX, integer=True)
    return int(value)


class RateLimitBody(Struct, gc=False):
    """How many jobs may start."""

    limit: Annotated[
        Number | str | None,
        says("Jobs in each window; 0 lets none start.", reads=as_limit, bound=KEY_CHARS_MAX,
             required="limit must be a finite number", low=0, high=LIMIT_MAX),
    ] = None  # fmt: skip
    duration: Annotated[Number | None, integer("Length of a window in milliseconds.", 1, DAY_MS, default=WINDOW_MS)] = (
        None
    )
    ttl: Annotated[
        Number | None, integer("Milliseconds after which the limit is over; left out, never.", 1, YEAR_MS)
    ] = None


class ConcurrencyBody(Struct, gc=False):
    """How many jobs may be active at once."""

    limit: Annotated[
        Number | str | None,
        says("Jobs; 0 lets none start.", reads=as_limit, bound=KEY_CHARS_MAX, required=True, elsewhere=True, low=0,
             high=LIMIT_MAX),
    ] = None  # fmt: skip
    concurrency: Annotated[
        Number | str | None,
        says("The same as limit.", reads=as_limit, bound=KEY_CHARS_MAX, instead_of="limit", low=0, high=LIMIT_MAX),
    ] = None


RATE_LIMIT = msgspec.json.Decoder(RateLimitBody)
CONCURRENCY = msgspec.json.Decoder(ConcurrencyBody)


def set_rate_limit(call: Call) -> SetRateLimit:
    queue = queue_of(call)
    body = read(RATE_LIMIT, call.body)
    return SetRateLimit(queue, body.limit, WINDOW_MS if body.duration is None else body.duration, body.ttl)


def set_concurrency(call: Call) -> SetConcurrency:
    queue = queue_of(call)
    body = read(CONCURRENCY, call.body)
    limit = body.concurrency if body.limit is None else body.limit
    if limit is None:
        raise Invalid("limit must be a finite number")
    return SetConcurrency(queue, limit)


def limiting(decode: Callable[[Call], SetRateLimit | SetConcurrency | SetGroupConcurrency]) -> Handler:
    """Make the handler of a row that sets a limit: of none it says in the log what that means."""

    async def handler(call: Call) -> Reply:
        operation = decode(call)
        reply = success(await call.write(operation, replies.ok))
        if operation.limit == 0:
            group = f"group {operation.group_id!r} of " if isinstance(operation, SetGroupConcurrency) else ""
            what = "rate limit" if isinstance(operation, SetRateLimit) else "concurrency"
            log.warning("%squeue %r stands still: a %s of 0 lets no job start", group, operation.queue, what)
        return reply

    return handler


ROUTES: tuple[Route, ...] = grouped(
    "Rate limit and concurrency",
    plain("PUT", "/queues/{queue}/rate-limit", limiting(set_rate_limit), what=SetRateLimit,
          takes=RateLimitBody, reply=replies.Ok, right="manage:all",
          about="Limit how many jobs of a queue start in a second; 0 lets none start.", command="RateLimit"),
    write("DELETE", "/queues/{queue}/rate-limit", ClearRateLimit, of_queue(ClearRateLimit), replies.ok,
          reply=replies.Ok, right="manage:all", command="RateLimitClear"),
    plain("PUT", "/queues/{queue}/concurrency", limiting(set_concurrency), what=SetConcurrency,
          takes=ConcurrencyBody, reply=replies.Ok, right="manage:all",
          about="Limit how many jobs of a queue are active at once; 0 lets none start.", command="SetConcurrency"),
    write("DELETE", "/queues/{queue}/concurrency", ClearConcurrency, of_queue(ClearConcurrency), replies.ok,
          reply=replies.Ok, right="manage:all", command="ClearConcurrency"),
)  # fmt: skip

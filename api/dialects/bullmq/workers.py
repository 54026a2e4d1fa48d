"""Push workers: what clients register, checked in the recorded order and words; how registrations are shown; what endpoints are sent.

Who calls the endpoints is `api.outgoing.push_worker`'s affair. Values of registered headers are shown to nobody, nor is a
password in a URL.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Raw, Struct
from yarl import URL

from quorumq.api.auth import Grant
from quorumq.api.errors import Invalid
from quorumq.api.reply import TEXT, Reply
from quorumq.api.request import CONSISTENCY, Call, Wording
from quorumq.api.rows import Text, grouped, plain, success
from quorumq.api.rules import says
from quorumq.api.scopes import needs
from quorumq.api.values import COUNT_MAX, DAY_MS, value_of
from quorumq.node.machine.operations.pushers import (
    GetPusher,
    ListPushers,
    PusherSet,
    PusherShown,
    PutPusher,
    RemovePusher,
)
from quorumq.node.machine.refusals import PusherNotFound, TooManyPushers
from quorumq.node.machine.state import Job
from quorumq.node.machine.state.job import Keep
from quorumq.node.machine.state.limits import Window
from quorumq.node.machine.state.pusher import Pusher

from ...outgoing.client import Headers, Target
from ...outgoing.egress import URL_CHARS_MAX, CallPolicy
from . import job_object, replies
from .values import MILLIS_MAX, can_be_named, check_name, is_integer, opaque, shown
from .values import plain as written

TIMEOUT_MS = 3_000
METHODS = ("POST", "PUT", "PATCH")
CONCURRENCY_MAX = 100_000
HEADERS_MAX = 100
HEADERS_CHARS_MAX = 32_768
FIELDS = ("queue", "endpoint", "opts")
ENDPOINT_FIELDS = ("url", "method", "headers", "timeout")
OPTION_FIELDS = ("concurrency", "removeOnComplete", "removeOnFail", "limiter", "maxStalledCount")
LIMITER_FIELDS = ("max", "duration")
KEEP_FIELDS = ("count", "age")
ENCODE = msgspec.json.Encoder().encode


# -- What clients send -------------------------------------------------------------------------------------------------


class EndpointBody(Struct, rename="camel"):
    """Where the jobs go."""

    url: Annotated[str | None, says("http or https.", required=True, bound=URL_CHARS_MAX)] = None
    method: Annotated[str | None, says("POST, PUT or PATCH.", required=True, bound=len("PATCH"))] = None
    headers: Annotated[
        dict[str, str] | None,
        says("Sent with each call; there is no Content-Type but the one given here.", bound=HEADERS_CHARS_MAX),
    ] = None
    timeout: Annotated[int | None, says("Milliseconds for one call.", default=TIMEOUT_MS, low=0, high=DAY_MS)] = None


class LimiterBody(Struct):
    """Jobs that start within a window."""

    max: Annotated[int | None, says("Jobs.", required=True, low=1)] = None
    duration: Annotated[int | None, says("Milliseconds.", required=True, low=1)] = None


class KeepBody(Struct):
    """Which finished jobs stay."""

    count: Annotated[int | None, says("The newest so many; 0 for none.")] = None
    age: Annotated[int | None, says("Only those of the last so many seconds.", low=1)] = None


class WorkerOptionsBody(Struct, rename="camel"):
    """How much, and what becomes of jobs that do not say so themselves."""

    concurrency: Annotated[
        int | None, says("Jobs under way at once, in the whole cluster.", default=1, low=1, high=CONCURRENCY_MAX)
    ] = None
    limiter: LimiterBody | None = None
    max_stalled_count: Annotated[int | None, says("Lost locks that a job survives.", default=1, low=0)] = None
    remove_on_complete: KeepBody | None = None
    remove_on_fail: KeepBody | None = None


class WorkerBody(Struct):
    """An endpoint that gets the jobs of a queue."""

    queue: Annotated[
        str | None, says("The queue; one endpoint each, the last one counts.", bound=100, required=True)
    ] = None
    endpoint: Annotated[EndpointBody | None, says("", required=True)] = None
    opts: WorkerOptionsBody | None = None


def put(call: Call) -> PutPusher:
    """Read a registration. Raises Invalid."""
    body = value_of(Raw(opaque(call.body)))
    for field in ("queue", "endpoint"):
        if not member(body, field):
            raise Invalid(f"{field} is required")
    only(FIELDS, body)
    name = member(body, "queue")
    if not isinstance(name, str):
        raise Invalid("queue must be a string")
    queue = check_name(name)
    method, url, headers, timeout_ms = endpoint_of(member(body, "endpoint"))
    opts = member(body, "opts") or {}
    only(OPTION_FIELDS, opts)
    limiter = limiter_of(member(opts, "limiter"))
    max_stalls = member(opts, "maxStalledCount")
    if max_stalls is not None and not is_integer(max_stalls, 0, COUNT_MAX):
        raise Invalid("Invalid maxStalledCount")
    concurrency = member(opts, "concurrency")
    if concurrency is not None and not is_integer(concurrency, 1, CONCURRENCY_MAX):
        raise Invalid("Invalid concurrency")
    operation = PutPusher(
        queue,
        url,
        method,
        headers,
        timeout_ms,
        1 if concurrency is None else int(concurrency),
        limiter,
        None if max_stalls is None else int(max_stalls),
        keep_of("removeOnComplete", member(opts, "removeOnComplete")),
        keep_of("removeOnFail", member(opts, "removeOnFail")),
    )
    check_target(call, operation)
    return operation


def endpoint_of(endpoint: Any) -> tuple[str, str, Headers, int]:
    """Return method, URL, headers and time-out. Raises Invalid."""
    for field in ("url", "method"):
        if not member(endpoint, field):
            raise Invalid(f"{field} is required")
    url, method = member(endpoint, "url"), member(endpoint, "method")
    if not isinstance(url, str) or len(url) > URL_CHARS_MAX:
        raise Invalid("Invalid URL")
    try:
        Target("POST", url)
    except ValueError:
        raise Invalid("Invalid URL") from None
    if not isinstance(method, str) or method.upper() not in METHODS:
        raise Invalid(f"Invalid HTTP method {shown(method)}")
    only(ENDPOINT_FIELDS, endpoint)
    timeout_ms = member(endpoint, "timeout")
    if timeout_ms and not is_integer(timeout_ms, 1, DAY_MS):
        raise Invalid("Invalid timeout")
    return method.upper(), url, headers_of(member(endpoint, "headers")), int(timeout_ms or TIMEOUT_MS)


def headers_of(headers: Any) -> Headers:
    """Return the headers of a registration. Raises Invalid."""
    if not headers:
        return ()
    if not isinstance(headers, dict) or any(isinstance(value, dict | list) for value in headers.values()):
        raise Invalid("Invalid headers")
    pairs = tuple((name, value if isinstance(value, str) else written(value)) for name, value in headers.items())
    if len(pairs) > HEADERS_MAX or sum(len(name) + len(value) for name, value in pairs) > HEADERS_CHARS_MAX:
        raise Invalid("Invalid headers")
    return pairs


def check_target(call: Call, operation: PutPusher) -> None:
    """Raise Invalid for an endpoint that cannot or must not be called, as far as that shows now."""
    try:
        target = Target(operation.method, operation.url, operation.headers)
    except ValueError as error:
        raise Invalid(str(error)) from None
    reason = CallPolicy(call.server.config.worker_endpoints).refused_host(target.origin.host)
    if reason is not None:
        raise Invalid(f"Invalid URL: this address must not be called ({reason})")


def limiter_of(limiter: Any) -> Window | None:
    """Return the limit of a registration. Raises Invalid."""
    if not limiter and not isinstance(limiter, dict):
        return None
    for field in LIMITER_FIELDS:
        if not is_integer(member(limiter, field), 1, COUNT_MAX if field == "max" else MILLIS_MAX):
            raise Invalid(f"Invalid limiter.{field}")
    only(LIMITER_FIELDS, limiter, "limiter.")
    return Window(int(limiter["max"]), int(limiter["duration"]))


def keep_of(name: str, keep: Any) -> Keep | None:
    """Return what a registration keeps of finished jobs. Raises Invalid."""
    if keep is True:
        return Keep(None, 0)
    if keep is None or keep is False or keep == "":
        return None
    if is_integer(keep, -1, COUNT_MAX):
        # BullMQ's short form; -1 keeps all.
        return Keep(None, int(keep) if keep >= 0 else None)
    if not isinstance(keep, dict | str | list) or keep == []:
        raise Invalid(f"Invalid {name}")
    only(KEEP_FIELDS, keep, f"{name}.")
    count, age = member(keep, "count"), member(keep, "age")
    if count is not None and not is_integer(count, 0, COUNT_MAX):
        raise Invalid(f"Invalid {name}.count")
    if age and not is_integer(age, 1, MILLIS_MAX // 1000):
        raise Invalid(f"Invalid {name}.age")
    return Keep(int(age) * 1000 if age else None, None if count is None else int(count))


def member(value: Any, name: str) -> Any:
    """Return a property as JavaScript would: None of what has none."""
    return value.get(name) if isinstance(value, dict) else None


def only(known: tuple[str, ...], value: Any, prefix: str = "") -> None:
    """Raise Invalid for a property that is not known; texts and lists have their positions."""
    names = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, str | list) else ()
    for name in names:
        if name not in known:
            raise Invalid(f"Invalid field: {prefix}{str(name)[:100]}")


# -- What they are shown -----------------------------------------------------------------------------------------------


class EndpointShown(replies.BullShown):
    """headers: names only."""

    url: str
    method: str
    timeout: int
    headers: list[str]


class LimiterShown(replies.BullShown):
    max: int
    duration: int


class KeepShown(replies.BullShown, omit_defaults=True):
    count: int | None = None
    age: int | None = None


class WorkerOptionsShown(replies.BullShown, omit_defaults=True):
    concurrency: int
    limiter: LimiterShown | None = None
    max_stalled_count: int | None = None
    remove_on_complete: KeepShown | None = None
    remove_on_fail: KeepShown | None = None


class WorkerShown(replies.BullShown):
    """circuit: open while the endpoint cannot be reached; then one job is tried at a time.  failures: calls in a row that found nobody.

    next_try_at: when the next one is.  error: of the last.  node: which calls the endpoint.  active: jobs under way there.
    """

    queue: str
    endpoint: EndpointShown
    opts: WorkerOptionsShown
    circuit: Literal["closed", "open"]
    failures: int
    next_try_at: int | None
    error: str | None
    node: str | None
    active: int
    registered_on: int


WorkersShown = dict[str, str]


def shown_url(url: str) -> str:
    """Return a URL without its password."""
    parts = URL(url)
    return url if parts.password is None else str(parts.with_password("***"))


def shown_keep(keep: Keep | None) -> KeepShown | None:
    if keep is None:
        return None
    return KeepShown(keep.count, None if keep.age_ms is None else keep.age_ms // 1000)


def one(reply: PusherShown) -> bytes:
    pusher, circuit = reply.pusher, reply.pusher.circuit
    limit = pusher.limit
    return ENCODE(
        WorkerShown(
            pusher.queue,
            EndpointShown(
                shown_url(pusher.url), pusher.method, pusher.timeout_ms, [name for name, _ in pusher.headers]
            ),
            WorkerOptionsShown(
                pusher.concurrency,
                None if limit is None else LimiterShown(limit.max, limit.duration_ms),
                pusher.max_stalls,
                shown_keep(pusher.keep_completed),
                shown_keep(pusher.keep_failed),
            ),
            "open" if circuit.next_try_at else "closed",
            circuit.failures,
            circuit.next_try_at or None,
            circuit.error,
            pusher.node,
            reply.active,
            pusher.registered_at,
        )
    )


def several(pushers: list[Pusher]) -> bytes:
    return ENCODE({pusher.queue: shown_url(pusher.url) for pusher in pushers})


def delivery(prefix: str, job: Job, token: str) -> bytes:
    """Render what an endpoint is sent for a job."""
    return b'{"job":%b,"token":%b}' % (job_object.job_text(job, prefix, token), ENCODE(token))


# -- The rows ----------------------------------------------------------------------------------------------------------


def ok(reply: PusherSet | None) -> bytes:
    return replies.OK


async def register(call: Call) -> Reply:
    """Register the endpoint of a queue."""
    operation = put(call)
    if not call.grant.every_queue:
        needs(call.grant, operation.queue)
    return Reply(200, await call.write(operation, ok), TEXT)


async def remove(call: Call) -> Reply:
    """Remove the endpoint of a queue."""
    queue = call.path["queue"]
    if not can_be_named(queue):
        raise PusherNotFound(queue)
    return Reply(200, await call.write(RemovePusher(queue), ok), TEXT)


def covered(grant: Grant, pushers: list[Pusher]) -> list[Pusher]:
    """Return the registrations of queues that a token is for."""
    return pushers if grant.every_queue else [pusher for pusher in pushers if grant.covers(pusher.queue)]


async def list_all(call: Call) -> Reply:
    """List the registered endpoints by queue."""
    return success(
        await call.node.ask(ListPushers(), lambda found: several(covered(call.grant, found)), stale=call.stale)
    )


async def get(call: Call) -> Reply:
    """Show the registration of a queue."""
    return success(await call.node.ask(GetPusher(call.path["queue"]), one, stale=call.stale))


NOT_FOUND: Wording = {PusherNotFound: (404, "Worker not found")}

ROUTES = grouped(
    "BullMQ: push workers",
    plain("POST", "/workers", register, what=PutPusher, takes=WorkerBody, reply=Text, right="manage:all", scope="checked",
          refusals={TooManyPushers: (409, "Too many workers")},
          about="Have the jobs of a queue delivered to an endpoint, in place of the one it had."),
    plain("GET", "/workers", list_all, what=ListPushers, asks=(CONSISTENCY,), reply=WorkersShown, right="read",
          scope="checked", about="The URL of each queue's endpoint."),
    plain("GET", "/workers/{queue}", get, what=GetPusher, asks=(CONSISTENCY,), reply=WorkerShown, right="read",
          refusals=NOT_FOUND, about="The registration of a queue, and how it stands with its endpoint."),
    plain("DELETE", "/workers/{queue}", remove, what=RemovePusher, reply=Text, right="manage:all", refusals=NOT_FOUND,
          about="Deliver no more jobs of a queue; those under way finish."),
)  # fmt: skip

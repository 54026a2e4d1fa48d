"""The one request path: a request is decoded into an operation or a query, handed to the node, and answered with what the row's
view made of the reply; whatever goes wrong is worded in its dialect.

What the bodies mean and how refusals are worded is each dialect's; sockets and listeners are server.py's.
"""

from __future__ import annotations

import asyncio
import logging
import math
import traceback
from collections.abc import Mapping

from aiohttp import web

from quorumq.cluster.errors import EntryTooLarge, Unavailable
from quorumq.node.machine.refusals import LevelTooLow, Refusal

from .auth import Forbidden, Grant
from .errors import Hidden, Invalid
from .host import Host
from .limits import DATA_BYTES_MAX, LARGE_BYTES, BodyTooLarge, Busy, TooSlow, Unsupported
from .reply import Reply
from .request import Call, Route
from .router import Dialect, Mount, percent_decode
from .scopes import permit, unmask

log = logging.getLogger(__name__)

# How soon a client may ask again for what older members of the cluster do not know.
LEVEL_RETRY_S = 30
# Some clients write it before a text that is UTF-8; it is none of the text.
BOM = b"\xef\xbb\xbf"


async def resolve_job_id(call: Call) -> Mapping[str, str]:
    """Return the path's parameters, with the id percent-decoded where only a job of that name is there.

    An id is taken as it stands in the path first, so that one with a percent sign in it is found. A job that the token is
    not for is not there.  Raises Unavailable.
    """
    job_id = call.path["id"]
    try:
        decoded = percent_decode(job_id)
    except Invalid:
        return call.path
    if not call.stale:
        await call.node.refresh()
    jobs = call.node.machine.state.jobs
    job = jobs.get(decoded)
    if job_id in jobs or job is None or not (call.grant.every_queue or call.grant.covers(job.queue)):
        return call.path
    return {**call.path, "id": decoded}


async def answer(
    host: Host, request: web.BaseRequest, found: Mount, path: Mapping[str, str], query: str, grant: Grant
) -> Reply:
    """Run a request through its route and word whatever goes wrong in its dialect."""
    route, dialect = found.route, found.dialect
    call = Call(host, request, route, path, query, b"", grant)
    call.template = found.template
    try:
        if dialect.undecoded and "%" in path.get("id", ""):
            call.path = await resolve_job_id(call)
        if not grant.unlimited:
            await permit(call)
        if route.body != "none":
            call.body = (await host.bodies.read(request, call, host.node.timeout_s)).removeprefix(BOM)
            if len(call.body) > LARGE_BYTES:
                await asyncio.to_thread(dialect.weigh, route, call.body)
        elif not request.content.is_eof():
            await host.bodies.skip(request, call)
        reply = await route.handler(call)
    except Exception as error:
        reply = trouble(dialect, route, error)
        host.audit.refused(call, error, reply.status)
    else:
        host.audit.done(call, reply.status)
    finally:
        if call.counted or call.in_turn is not None:
            host.bodies.let_go(call)
    return reply.replaced(unmask(call, reply.body)) if call.masked else reply


def trouble(dialect: Dialect, route: Route, error: Exception) -> Reply:
    """Word what went wrong with a request."""
    match error:
        case LevelTooLow():
            return failure(dialect, 503, error.message, error.code, retry_after_s=LEVEL_RETRY_S)
        case Refusal():
            wording = route.refusals.get(type(error)) or dialect.refusal(error)
            status, text = wording(error) if callable(wording) else wording
            return failure(dialect, status, text, error.code)
        case Hidden():
            return trouble(dialect, route, error.refusal)
        case Forbidden():
            return failure(dialect, 403, str(error), "forbidden")
        case Invalid():
            return failure(dialect, error.status, str(error), error.code)
        case Unavailable():
            return failure(dialect, 503, str(error), error.code, retry_after_s=error.retry_after_s)
        case BodyTooLarge():
            return oversized(dialect, route, error)
        case Busy():
            text = "The bodies under way take all the memory set aside for them"
            return failure(dialect, 503, text, "busy", retry_after_s=1).end_connection()
        case TooSlow():
            return failure(dialect, 408, "The request's body came too slowly", "request_timeout").end_connection()
        case Unsupported():
            known = b"Accept-Encoding: gzip, deflate\r\n"
            body = dialect.error(415, str(error), "unsupported_encoding")
            return Reply(415, body, dialect.content_type, known)
        case EntryTooLarge():
            return failure(dialect, 413, "Request too large for one log entry", "entry_too_large")
        case web.RequestPayloadError():
            return failure(dialect, 400, "Malformed request body", "invalid_request").end_connection()
    # Where it happened and what kind it is, but not its message, which may quote job data, nor the request.
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s %s failed: %s\n%s", route.method, route.path, type(error).__name__, where)
    return failure(dialect, 500, "Internal server error", "internal_error")


def oversized(dialect: Dialect, route: Route, error: BodyTooLarge) -> Reply:
    """Answer a body beyond the bound: as data that is too long where it cannot be anything else."""
    if route.body == "data" and error.limit >= DATA_BYTES_MAX:
        return failure(dialect, 400, "Job data too large (max 10MB)", "data_too_large")
    return failure(dialect, 413, str(error), "body_too_large")


def failure(dialect: Dialect, status: int, text: str, code: str, *, retry_after_s: float | None = None) -> Reply:
    """Make an error's reply. retry_after_s: seconds after which a repeat is worth it."""
    headers = b""
    if retry_after_s is not None:
        headers = b"Retry-After: %d\r\n" % max(1, math.ceil(retry_after_s))
    return Reply(status, dialect.error(status, text, code), dialect.content_type, headers)

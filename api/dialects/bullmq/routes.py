"""The table of the dialect: who answers, and the rows of all its subjects."""

from __future__ import annotations

from quorumq.api.front import VARY, accepts, show_apis, to_docs
from quorumq.api.reply import TEXT, Reply
from quorumq.api.request import Call, Route
from quorumq.api.rows import Text, grouped, plain
from quorumq.cluster.version import VERSION

from . import flows, jobs, manual, queues, repeatables, workers


async def banner(call: Call) -> Reply:
    """Say who answers: in a line of text, as BullMQ Proxy does, unless the client asks for JSON or is a browser."""
    if (docs := to_docs(call)) is not None:
        return docs
    if accepts(call, "application/json"):
        return show_apis({"bullmq": call.template.rstrip("/") or "/", "openarchiver": "/v1/jobs"})
    return Reply(200, b"quorumq %b: BullMQ Proxy's API; its description is at /docs\n" % VERSION.encode(), TEXT, VARY)


ROUTES: tuple[Route, ...] = (
    *grouped(
        "BullMQ: jobs",
        plain(
            "GET",
            "/",
            banner,
            reply=Text,
            right="open",
            limited=False,
            about="Who answers, in one line; what is where, if JSON is asked for; a browser is sent to `/docs`.",
        ),
    ),
    *jobs.DOCUMENTED,
    *workers.ROUTES,
    *manual.ROUTES,
    *queues.ROUTES,
    *jobs.ACTIONS,
    *repeatables.ROUTES,
    *flows.ROUTES,
)

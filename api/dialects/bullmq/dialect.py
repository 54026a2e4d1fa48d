"""The BullMQ dialect over HTTP: BullMQ Proxy's routes, processing by hand, the queue's actions, repeatable jobs, push workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorumq.api.auth import Access, Grant, bearer
from quorumq.api.reply import TEXT
from quorumq.api.request import Answer, Route
from quorumq.api.weight import weigh
from quorumq.node.machine.operations.adding import AddJobs
from quorumq.node.machine.refusals import Refusal

from . import errors
from .routes import ROUTES

if TYPE_CHECKING:
    from aiohttp import web


class Bullmq:
    """The dialect as the request path sees it."""

    name = "bullmq"
    routes: tuple[Route, ...] = ROUTES
    undecoded: frozenset[str] = frozenset()
    may_be_empty: frozenset[str] = frozenset()
    content_type = TEXT
    # As the recorded server does: what is not there is 404 without a token, too.
    hides_paths = False
    private = False

    def authorize(self, access: Access, request: web.BaseRequest) -> Grant:
        return bearer(access, request)

    def weigh(self, route: Route, body: bytes) -> None:
        if route.what is AddJobs:
            weigh(body)

    def refusal(self, refusal: Refusal) -> Answer:
        return errors.word(refusal)

    def error(self, status: int, text: str, code: str) -> bytes:
        return errors.body(text)

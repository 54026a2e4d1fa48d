"""The BullMQ dialect over HTTP: BullMQ Proxy's routes, processing by hand, the queue's actions, repeatable jobs, push workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.auth import Access, Grant, bearer
from api.http import TEXT, Answer, Route
from node.refusals import Refusal

from . import errors
from .routes import ROUTES

if TYPE_CHECKING:
    from aiohttp import web


class Bullmq:
    """The dialect as the request path sees it."""

    name = "bullmq"
    routes: tuple[Route, ...] = ROUTES
    undecoded: frozenset[str] = frozenset()
    content_type = TEXT
    # As the recorded server does: what is not there is 404 without a token, too.
    hides_paths = False

    def authorize(self, access: Access, request: web.BaseRequest) -> Grant:
        return bearer(access, request)

    def refusal(self, refusal: Refusal) -> Answer:
        return errors.word(refusal)

    def error(self, status: int, text: str, code: str) -> bytes:
        return errors.body(text)

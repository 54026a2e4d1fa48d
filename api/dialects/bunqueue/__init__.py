"""The bunqueue dialect over HTTP: its table of routes, its bodies and their rules, its job object, its errors."""

from __future__ import annotations

from api.http import Answer, Route
from node.refusals import Refusal

from . import errors
from .routes import ROUTES


class Bunqueue:
    """The dialect as the request path sees it."""

    name = "bunqueue"
    routes: tuple[Route, ...] = ROUTES
    # As the documented server does: a job's id is what stands in the path.
    undecoded: frozenset[str] = frozenset({"id"})

    def refusal(self, refusal: Refusal) -> Answer:
        return errors.word(refusal)

    def error(self, status: int, text: str, code: str) -> bytes:
        return errors.error_body(text, code)

"""The bunqueue dialect over HTTP: its table of routes, its bodies and their rules, its job object, its errors."""

from __future__ import annotations

from aiohttp import web

from api.auth import Access, Grant, bearer_or_bare
from api.http import JSON, Answer, Route
from node.refusals import Refusal

from . import errors, monitoring
from .routes import ROUTES


class Bunqueue:
    """The dialect as the request path sees it."""

    name = "bunqueue"
    routes: tuple[Route, ...] = ROUTES
    # As the documented server does: a job's id is what stands in the path, unless only a decoded one is there.
    undecoded: frozenset[str] = frozenset({"id"})
    content_type = JSON
    hides_paths = True

    def authorize(self, access: Access, request: web.BaseRequest) -> Grant:
        return bearer_or_bare(access, request)

    def refusal(self, refusal: Refusal) -> Answer:
        return errors.word(refusal)

    def error(self, status: int, text: str, code: str) -> bytes:
        return errors.error_body(text, code)


class Probes(Bunqueue):
    """What balancers and kubelets ask, for listeners of other dialects; `/health` is none of it, because it could be theirs."""

    routes = tuple(route for route in monitoring.ROUTES if route.path in ("/healthz", "/livez", "/readyz", "/startupz"))

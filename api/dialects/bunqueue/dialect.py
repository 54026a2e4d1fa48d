"""The bunqueue dialect over HTTP: its table of routes, its bodies and their rules, its job object, its errors."""

from __future__ import annotations

from aiohttp import web

from quorumq.api.auth import Access, Grant, bearer_or_bare
from quorumq.api.reply import JSON
from quorumq.api.request import Answer, Route
from quorumq.api.weight import weigh
from quorumq.node.machine.refusals import Refusal

from . import errors, event_rows, monitoring
from .routes import ROUTES


class Bunqueue:
    """The dialect as the request path sees it."""

    name = "bunqueue"
    routes: tuple[Route, ...] = ROUTES
    # As the documented server does: a job's id is what stands in the path, unless only a decoded one is there.
    undecoded: frozenset[str] = frozenset({"id"})
    may_be_empty: frozenset[str] = frozenset({"queue"})
    content_type = JSON
    hides_paths = True
    private = False

    def authorize(self, access: Access, request: web.BaseRequest) -> Grant:
        return bearer_or_bare(access, request)

    def weigh(self, route: Route, body: bytes) -> None:
        weigh(body)

    def refusal(self, refusal: Refusal) -> Answer:
        return errors.word(refusal)

    def error(self, status: int, text: str, code: str) -> bytes:
        return errors.error_body(text, code)


class Probes(Bunqueue):
    """What balancers and kubelets ask, for listeners of other dialects; `/health` is none of it, because it could be theirs."""

    routes = tuple(route for route in monitoring.ROUTES if route.path in ("/healthz", "/livez", "/readyz", "/startupz"))


class Events(Bunqueue):
    """WebSockets and server-sent events."""

    routes = event_rows.ROUTES

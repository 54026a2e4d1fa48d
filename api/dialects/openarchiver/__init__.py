"""The Open Archiver dialect: its Jobs API, which shows all queues of the cluster and a page of the jobs of one."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from quorumq.api.auth import API_KEY, BEARER, Access, Grant, Unauthorized
from quorumq.api.reply import JSON
from quorumq.api.request import Answer, Route
from quorumq.node.machine.refusals import Refusal

from .routes import ROUTES


class OpenArchiver:
    """The dialect as the request path sees it: errors are `{"message": text}`, and nobody is let in without a token."""

    name = "openarchiver"
    routes: tuple[Route, ...] = ROUTES
    undecoded: frozenset[str] = frozenset()
    may_be_empty: frozenset[str] = frozenset()
    content_type = JSON
    hides_paths = False
    private = False

    def authorize(self, access: Access, request: web.BaseRequest) -> Grant:
        """Take `X-API-KEY`, which goes before `Authorization: Bearer`, in the recorded words."""
        key = request.headers.get(API_KEY)
        if key:
            grant, told = access.find(key), "Unauthorized: Invalid API key"
        else:
            given = request.headers.get("Authorization", "")
            if not given.startswith(BEARER):
                raise Unauthorized("Unauthorized: No token provided")
            grant, told = access.find(given.removeprefix(BEARER)), "Unauthorized: Invalid token"
        if grant is None:
            raise Unauthorized(told)
        return grant

    def weigh(self, route: Route, body: bytes) -> None:
        """Nothing here takes a body with lists."""

    def refusal(self, refusal: Refusal) -> Answer:
        return 400, refusal.message

    def error(self, status: int, text: str, code: str) -> bytes:
        body: dict[str, Any] = {"message": text}
        if status == web.HTTPTooManyRequests.status_code:
            body = {"status": status, **body}
        return msgspec.json.encode(body)

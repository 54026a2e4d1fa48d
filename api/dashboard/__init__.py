"""The pages of a listener: the OpenAPI document of all that it serves, and a page to browse it with.

The page is one file that asks for nothing beyond this node, so it works without the internet.
"""

from __future__ import annotations

from importlib.resources import files

import msgspec
from aiohttp import web

from api.auth import Access, Grant, bearer_or_bare
from api.http import HTML, JSON, Answer, Call, Html, OpenApi, Reply, Route, grouped, plain
from api.openapi import document
from api.version import VERSION
from node.refusals import Refusal

# The page's script and style stand in it; nothing else may run, be loaded or be asked for elsewhere.
POLICY = (
    b"Content-Security-Policy: default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    b"connect-src 'self'; base-uri 'none'; frame-ancestors 'none'\r\nX-Content-Type-Options: nosniff\r\n"
)


async def openapi(call: Call) -> Reply:
    """Describe every route of this listener."""
    return Reply(200, msgspec.json.encode(document(call.server.dialects, VERSION)))


async def docs(call: Call) -> Reply:
    """Show the description as a page."""
    page = files(__package__).joinpath("docs.html").read_bytes()
    return Reply(200, page, HTML, POLICY)


class Pages:
    """The pages, as a dialect of their own."""

    name = "pages"
    undecoded: frozenset[str] = frozenset()
    content_type = JSON
    hides_paths = True
    routes: tuple[Route, ...] = grouped(
        "Documentation",
        plain("GET", "/openapi.json", openapi, reply=OpenApi, right="open",
              about="Every request of this server as an OpenAPI 3.1 document."),
        plain("GET", "/docs", docs, reply=Html, right="open", about="The same as a page to browse and try."),
    )  # fmt: skip

    def authorize(self, access: Access, request: web.BaseRequest) -> Grant:
        return bearer_or_bare(access, request)

    def refusal(self, refusal: Refusal) -> Answer:
        return 400, refusal.message

    def error(self, status: int, text: str, code: str) -> bytes:
        return msgspec.json.encode({"ok": False, "error": text})

"""The pages of a listener: what is where, the OpenAPI document of all that it serves, and a page to browse it with.

The page is one file that asks for nothing beyond this node, so it works without the internet.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

import msgspec
from aiohttp import web

from quorumq.api.auth import Access, Grant, bearer_or_bare
from quorumq.api.front import Places, show_apis, to_docs
from quorumq.api.openapi import document
from quorumq.api.reply import HTML, JSON, Reply
from quorumq.api.request import Answer, Call, Route
from quorumq.api.router import Dialect
from quorumq.api.rows import Html, OpenApi, grouped, plain
from quorumq.cluster.version import VERSION
from quorumq.node.machine.refusals import Refusal

# The page's script and style stand in it; nothing else may run, be loaded or be asked for elsewhere.
POLICY = (
    b"Content-Security-Policy: default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    b"connect-src 'self'; base-uri 'none'; frame-ancestors 'none'\r\nX-Content-Type-Options: nosniff\r\n"
)

# The dialects that a client may want to know of; the others are parts of these.
APIS = frozenset({"bunqueue", "bullmq", "openarchiver", "admin"})


async def docs(call: Call) -> Reply:
    """Show the description as a page."""
    page = files(__package__).joinpath("docs.html").read_bytes()
    return Reply(200, page, HTML, POLICY)


class Pages:
    """The pages, as a dialect of their own.

    mounts: what the listener serves, these pages among it.  front: whether `/` is theirs, too.
    """

    name = "pages"
    undecoded: frozenset[str] = frozenset()
    may_be_empty: frozenset[str] = frozenset()
    content_type = JSON
    hides_paths = True
    private = False

    def __init__(self, mounts: Sequence[tuple[Dialect, str]], *, front: bool) -> None:
        self._mounts = mounts
        at_root = plain("GET", "/", self.root, reply=Places, right="open", limited=False,
                        about="Who answers, and what is where; a browser is sent to `/docs`.")  # fmt: skip
        self.routes: tuple[Route, ...] = grouped(
            "Documentation",
            *([at_root] if front else []),
            plain("GET", "/openapi.json", self.openapi, reply=OpenApi, right="open",
                  about="Every request of this port as an OpenAPI 3.1 document."),
            plain("GET", "/docs", docs, reply=Html, right="open", about="The same as a page to browse and try."),
        )  # fmt: skip

    async def root(self, call: Call) -> Reply:
        """Say what is where."""
        apis = {dialect.name: prefix or "/" for dialect, prefix in self._mounts if dialect.name in APIS}
        return to_docs(call) or show_apis(apis)

    async def openapi(self, call: Call) -> Reply:
        """Describe every route of this listener."""
        return Reply(200, msgspec.json.encode(document(self._mounts, VERSION)))

    def authorize(self, access: Access, request: web.BaseRequest) -> Grant:
        return bearer_or_bare(access, request)

    def weigh(self, route: Route, body: bytes) -> None:
        """Nothing here takes a body with lists."""

    def refusal(self, refusal: Refusal) -> Answer:
        return 400, refusal.message

    def error(self, status: int, text: str, code: str) -> bytes:
        return msgspec.json.encode({"ok": False, "error": text})

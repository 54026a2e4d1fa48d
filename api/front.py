"""What `GET /` answers: a browser is sent to the documentation, a program is told what is where.

Relative addresses, so that a proxy may put a prefix before all of it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from quorumq.cluster.version import VERSION

from .reply import TEXT, Reply
from .request import Call

# The answer is another one for another client; a cache must know.
VARY = b"Vary: Accept\r\n"


class Places(msgspec.Struct, forbid_unknown_fields=True):
    """Who answers, and what is where. apis: the prefix of each dialect that this port serves."""

    ok: Literal[True]
    name: str
    version: str
    docs: str
    openapi: str
    ready: str
    apis: dict[str, str]


def accepts(call: Call, kind: str) -> bool:
    """Say whether the client names a media type among those that it takes; a browser names HTML when it shows a page."""
    named = call.request.headers.get("Accept", "").lower().split(",")
    return any(one.partition(";")[0].strip() == kind for one in named)


def to_docs(call: Call) -> Reply | None:
    """Send a browser to the documentation; None for any other client."""
    if not accepts(call, "text/html"):
        return None
    up = "../" * (call.template.count("/") - 1)
    return Reply(302, b"", TEXT, b"Location: %bdocs\r\n%b" % (up.encode(), VARY))


def show_apis(apis: dict[str, str]) -> Reply:
    """Tell a program what is where."""
    found = Places(True, "quorumq", VERSION, "/docs", "/openapi.json", "/readyz", apis)
    return Reply(200, msgspec.json.encode(found), headers=VARY)

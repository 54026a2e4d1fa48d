"""The audit: one line for each request that was refused for want of a right, and for each that administers.

A line says who, from where, what and how it ended, never secrets, bodies or ids of jobs. The lines go to the logger
`quorumq.audit`, whatever LOG_LEVEL says. Of refused requests only so many are written in a second, and the rest are counted:
whoever has no token must not be able to fill a disk, nor to bury what others do.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING
from urllib.parse import quote

from .auth import Forbidden, Grant
from .errors import Hidden

if TYPE_CHECKING:
    from aiohttp import web

    from .limits import Proxies
    from .request import Call

log = logging.getLogger("quorumq.audit")
log.setLevel(logging.INFO)

TEXT_CHARS_MAX = 256
# Refused requests written in a window: of one client without a known token, or of one token; and of all such clients.
WINDOW_S = 1.0
CLIENT_LINES_MAX = 10
LINES_MAX = 100
STRANGER = "-"
UNAUTHORIZED, FORBIDDEN = 401, 403
REFUSED = "refused"


class Audit:
    """Writes the lines, and counts the refused requests by status."""

    def __init__(self, proxies: Proxies) -> None:
        self.proxies = proxies
        self.refusals: Counter[int] = Counter({UNAUTHORIZED: 0, FORBIDDEN: 0})
        # Of the present window: lines by token or client, those about strangers, and requests that got none.
        self._lines: Counter[tuple[str, str]] = Counter()
        self._strangers = 0
        self._left_out = 0
        self._ending: asyncio.TimerHandle | None = None

    def unknown(self, request: web.BaseRequest, route: str, queue: str | None = None) -> None:
        """A request had no token, or none that is known. route: method and template."""
        self.refusals[UNAUTHORIZED] += 1
        self._write(logging.WARNING, REFUSED, request, STRANGER, route, queue, UNAUTHORIZED)

    def kept_out(self, request: web.BaseRequest, route: str) -> None:
        """A page of another origin, or somebody beyond this machine where there are no tokens, asked for what administers."""
        self.refusals[FORBIDDEN] += 1
        self._write(logging.WARNING, REFUSED, request, STRANGER, route, None, FORBIDDEN)

    def subscription_refused(self, request: web.BaseRequest, grant: Grant, route: str) -> None:
        """Somebody asked for events who may not read."""
        self.refusals[FORBIDDEN] += 1
        self._write(logging.WARNING, REFUSED, request, named(grant), route, None, FORBIDDEN)

    def refused(self, call: Call, error: Exception, status: int) -> None:
        """A row did not do what it was asked for; the line is written when that was for want of a right."""
        if isinstance(error, (Forbidden, Hidden)) or call.masks_anothers:
            self._note(call, status)
        else:
            self.done(call, status)

    def done(self, call: Call, status: int) -> None:
        """A row was run; the line is written when it administers, when something was hidden, or when it refused the job's own token."""
        if status == UNAUTHORIZED or call.masks_anothers:
            self._note(call, status)
        elif call.route.right == "admin" or (call.route.right == "manage:all" and call.route.method != "GET"):
            self._write_call(logging.INFO, "administered", call, status)

    def _note(self, call: Call, status: int) -> None:
        """Write that a request was refused; what is hidden is told as if it were not there, and counted as what it is."""
        self.refusals[UNAUTHORIZED if status == UNAUTHORIZED else FORBIDDEN] += 1
        self._write_call(logging.WARNING, REFUSED, call, status)

    def _write_call(self, level: int, what: str, call: Call, status: int) -> None:
        route = f"{call.route.method} {call.template}"
        self._write(level, what, call.request, named(call.grant), route, call.path.get("queue"), status)

    def _write(
        self, level: int, what: str, request: web.BaseRequest, token: str, route: str, queue: str | None, status: int
    ) -> None:
        client, peer = self.proxies.client_of(request), request.remote or "unknown"
        if what == REFUSED and not self._admits(token, client):
            self._left_out += 1
            return
        extra = {"token": token, "client": plain(client), "route": plain(route, " /{}"), "queue": plain(queue or "-")}
        if peer != client:
            # Whom the connection came from, since the other may be what a header says.
            extra["via"] = plain(peer)
        log.log(level, what, extra={**extra, "status": status})

    def _admits(self, token: str, client: str) -> bool:
        """Count a line about a refused request; say whether it may be written. Strangers leave room for known tokens."""
        if self._ending is None:
            self._ending = asyncio.get_running_loop().call_later(WINDOW_S, self.settle)
        # Only what is written is remembered, so that invented clients take no memory.
        who = (token, client if token == STRANGER else "")
        if self._lines[who] >= CLIENT_LINES_MAX or (token == STRANGER and self._strangers >= LINES_MAX):
            return False
        self._lines[who] += 1
        self._strangers += token == STRANGER
        return True

    def settle(self) -> None:
        """End the window: say how many refused requests got no line."""
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        self._lines.clear()
        self._strangers = 0
        left_out, self._left_out = self._left_out, 0
        if left_out:
            log.warning("refused, without a line each", extra={"requests": left_out})


def named(grant: Grant) -> str:
    return plain(grant.name)


def plain(text: str, also: str = "") -> str:
    """Return a text without what could be mistaken for the next field or the next line."""
    return quote(text[:TEXT_CHARS_MAX], safe=f":*@[]{also}", errors="replace")

"""The certificate that a node shows its clients: one context for all listeners, which follows the files.

Every new connection gets what the files held when they were last good; connections that stand keep what they were made with. Files
that cannot be used, perhaps half of a renewal, leave the certificate before in force and are looked at again.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quorumq.cluster import pem

if TYPE_CHECKING:
    from .door import Door
    from .metrics import MetricsPage

log = logging.getLogger(__name__)

DAY_S = 86_400
# A certificate that is not renewed by then is told of at each start and each day.
SOON_S = 7 * DAY_S
# What the door counts: failed or late, to make room, no TLS at all.
ENDED = ("handshake", "crowd", "plain")


class Certificate:
    """TLS_CERT and TLS_KEY as servers need them.

    context: for as long as the node runs, for `ssl=` of any listener; each handshake uses the files as they were last good.
    facts: whom the certificate is for, and when it ends.  trouble: why the files cannot be used now, else "".  reloads,
    failures: how often new files were taken, and how often they could not be.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        """Read the files. Raises pem.BadPair, OSError."""
        self.cert, self.key = cert, key
        self.trouble = ""
        self.reloads = self.failures = 0
        self._stamp = pem.stamp(cert, key)
        self._current, self.facts = pem.server_context(cert, key)
        # It never shows its own: a handshake has none before this is called, and it is called in each.
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.sni_callback = self._switch
        self._told_at = 0.0

    def _switch(self, session: Any, _name: str | None, _context: ssl.SSLContext) -> None:
        session.context = self._current

    async def keep_up(self) -> None:
        """Take what the files hold now, if that is something else and can be used; the reading happens in a thread."""
        try:
            found = await asyncio.to_thread(self._read)
        except (pem.BadPair, OSError) as error:
            why = said(error, self.cert, self.key)
            if why != self.trouble:
                self.failures += 1
                log.error("TLS_CERT and TLS_KEY cannot be used, and what was read before stays in use: %s", why)
            self.trouble = why
            return
        self.trouble = ""
        if found is not None:
            self._stamp, self._current, self.facts = found
            self.reloads += 1
            self._told_at = 0.0
            log.info("a new certificate is in use for clients: %s", self.described())
        self.tell_end()

    def _read(self) -> tuple[pem.Stamp, ssl.SSLContext, pem.CertificateInfo] | None:
        stamp = pem.stamp(self.cert, self.key)
        if stamp == self._stamp:
            return None
        return (stamp, *pem.server_context(self.cert, self.key))

    def described(self) -> str:
        """For whom the certificate is, and until when."""
        names = ", ".join(self.facts.names)[:200] or "nobody in particular"
        return f"for {names}, until {datetime.fromtimestamp(self.facts.ends_at, UTC):%Y-%m-%d %H:%M} UTC"

    def write_figures(self, page: MetricsPage, door: Door) -> None:
        """Write what there is to watch."""
        page.gauge(
            "quorumq_tls_certificate_end_seconds",
            "When the certificate for clients ends, in seconds since 1970",
            self.facts.ends_at,
        )
        page.gauge("quorumq_tls_files_ok", "Whether TLS_CERT and TLS_KEY could be used last", not self.trouble)
        page.counter("quorumq_tls_reloads_total", "Times that a renewed certificate was taken", self.reloads)
        page.gauge("quorumq_tls_handshakes", "Connections whose TLS is being negotiated", len(door.handshakes))
        ended = [({"why": why}, float(door.counts[why])) for why in ENDED]
        page.write("quorumq_tls_handshakes_ended_total", "counter", "Handshakes that came to nothing, by why", ended)

    def tell_end(self) -> None:
        """Say in the log that the certificate has ended, or is about to; once a day."""
        now = time.time()
        if self.facts.ends_at - now < SOON_S and now - self._told_at >= DAY_S:
            self._told_at = now
            what = "has ended" if self.facts.ends_at < now else "ends soon"
            log.warning("the certificate for clients %s: %s (TLS_CERT %s)", what, self.described(), self.cert)


def said(error: Exception, cert: Path, key: Path) -> str:
    """Why a pair of files cannot be used, with their names."""
    if isinstance(error, OSError):
        return f"{error.filename} cannot be read: {error.strerror}"
    return f"TLS_CERT {cert} and TLS_KEY {key}: {error}"

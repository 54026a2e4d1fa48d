"""Who sends a request, and what the sender may do: tokens, the rights that they give, and how dialects take them.

Only the decision lives here. Which right a request needs is said by its row, which queues it touches too; the words of a
refusal are its dialect's.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from . import tokens
from .tokens import RIGHTS, Token

if TYPE_CHECKING:
    from aiohttp import web

log = logging.getLogger(__name__)

BEARER = "Bearer "
API_KEY = "X-API-KEY"
# Queues that a token remembers to be for, or not.
COVERED_MAX = 1_000
# Who may obliterate a queue may do everything else to it.
IMPLIED = {"manage:all": ("produce", "consume", "read")}


class Unauthorized(Exception):
    """The sender is not known; the message is for him."""


class Forbidden(Exception):
    """The sender is known and may not do this; the message is for him."""


class Grant:
    """What the sender of a request may do. name: of the token, for the audit; queues: patterns, in which `*` is any text.

    ends_at: seconds since the epoch after which the token is none, or None.  revoked: it is none already.
    owner: whose the idempotency keys are that come with it, empty where everybody is one: the same for a token that takes
    this one's place.  scope: the same in short, for what counts them.
    """

    __slots__ = (
        "_covered", "ends_at", "every_queue", "name", "owner", "queues", "revoked", "rights", "scope", "unlimited",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        rights: Iterable[str],
        queues: Iterable[str] = ("*",),
        ends_at: float | None = None,
        *,
        owner: str = "",
        scope: str = "",
    ) -> None:
        self.name = name
        self.owner = owner
        self.scope = scope
        self.rights = frozenset(one for right in rights for one in (right, *IMPLIED.get(right, ())))
        self.queues = tuple(queues)
        self.every_queue = "*" in self.queues
        self.unlimited = self.every_queue and self.rights.issuperset(RIGHTS)
        self.ends_at = ends_at
        self.revoked = False
        self._covered: dict[str, bool] = {}

    @property
    def alive(self) -> bool:
        """Whether the token is still one."""
        return not self.revoked and (self.ends_at is None or time.time() < self.ends_at)

    def may(self, right: str) -> bool:
        return right in self.rights

    def covers(self, queue: str) -> bool:
        """Say whether a queue is one of those that the token is for."""
        if self.every_queue:
            return True
        known = self._covered.get(queue)
        if known is None:
            known = any(matches(pattern, queue) for pattern in self.queues)
            if len(self._covered) >= COVERED_MAX:
                self._covered.clear()
            self._covered[queue] = known
        return known


def matches(pattern: str, name: str) -> bool:
    """Say whether a name fits a pattern, in which `*` stands for any text, also none, and nothing else is special."""
    first, *rest = pattern.split("*")
    if not rest:
        return name == pattern
    *middle, last = rest
    at = len(first)
    if not name.startswith(first) or len(name) < at + len(last) or not name.endswith(last):
        return False
    end = len(name) - len(last)
    for part in middle:
        # The first place that fits leaves most for what follows.
        at = name.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


# What everybody may do where no token is configured, and who has one of AUTH_TOKENS.
EVERYTHING = Grant("-", RIGHTS)
NOTHING = Grant("-", ())


Known = dict[bytes, tuple[bytes, Grant]]


class Access:
    """The tokens that this node knows.

    full: tokens with every right.  file: that of the others, which is read again when it changes. One that cannot be read
    leaves in force what was read last, which at the start is none of it: a node must not stay down, and take its vote from
    the cluster, for a file of its clients.
    """

    def __init__(self, full: Iterable[str], file: Path | None = None) -> None:
        self.file = file
        # Why the file cannot be used at present, and how often that was so.
        self.trouble = ""
        self.failures = 0
        self._stamp: Stamp | None = None
        self._fixed: Known = {}
        for number, token in enumerate(full, 1):
            whole = digest(token.encode("utf-8"))
            # By its digest, for its place among the others may change. The short one is in the log: it must tell little of it.
            scope = f"AUTH_TOKENS#{whole.hex()[:8]}"
            note(self._fixed, whole, Grant(f"AUTH_TOKENS:{number}", RIGHTS, owner=f"#{whole.hex()}", scope=scope))
        self._from_file: dict[Token, Grant] = {}
        self._known: Known = self._fixed
        if file is not None:
            self.reread()

    @property
    def is_open(self) -> bool:
        """Whether no token is configured at all, so that a dialect may let everybody in."""
        return not self._fixed and self.file is None

    @property
    def count(self) -> int:
        """How many tokens there are, those that have ended too."""
        return len(self._known)

    def find(self, secret: str) -> Grant | None:
        """Return what a token gives, or None for one that is not known or has ended.

        What the time of the look-up can tell is about the digest of what was sent, from which no token can be worked out;
        the rest of the digest is compared in constant time.
        """
        # aiohttp hands over bytes outside ASCII as surrogates; they are compared as what was sent.
        given = digest(secret.encode("utf-8", "surrogateescape"))
        rest, grant = self._known.get(given[:HALF], (NO_REST, NOTHING))
        return grant if hmac.compare_digest(rest, given[HALF:]) and grant.alive else None

    def known(self, secret: str | None) -> Grant:
        """Return what a token gives. Raises Unauthorized."""
        found = self.find(secret) if secret else None
        if found is None:
            raise Unauthorized("Unauthorized")
        return found

    async def keep_up(self) -> None:
        """Read the file again if it has changed, in a thread, because it may be on a disk that takes its time."""
        found = await asyncio.to_thread(self._look)
        if found is not None:
            self._take(found)

    def reread(self) -> None:
        """The same, at once."""
        found = self._look()
        if found is not None:
            self._take(found)

    def _look(self) -> list[Token] | str | None:
        """Return what the file holds, or why it cannot be used, or None when it is what it was."""
        assert self.file is not None
        try:
            about = self.file.stat()
        except OSError as error:
            # When it comes back it is read, whether it is the same or not.
            self._stamp = None
            found = f"it cannot be read: {error.strerror or type(error).__name__}"
            return None if self.trouble == found else found
        stamp = (about.st_mtime_ns, about.st_ctime_ns, about.st_ino, about.st_dev, about.st_size)
        if stamp == self._stamp:
            return None
        # Of before the reading: what changes meanwhile is read again.
        self._stamp = stamp
        try:
            return tokens.read(self.file)
        except tokens.BadTokens as error:
            return str(error)

    def _take(self, found: list[Token] | str) -> None:
        if isinstance(found, str):
            self.trouble = found
            self.failures += 1
            kept = (
                f"the {len(self._from_file)} tokens that it had stay in force"
                if self._from_file
                else "it gives no rights"
            )
            log.error("AUTH_TOKENS_FILE %s cannot be used: %s; %s", self.file, found, kept)
            return
        before, self._from_file = self._from_file, {}
        self._known = dict(self._fixed)
        for token in found:
            # A token that has not changed keeps its connections.
            grant = before.pop(token, None) or granted(token)
            self._from_file[token] = grant
            note(self._known, bytes.fromhex(token.sha256), grant)
        for grant in before.values():
            grant.revoked = True
        self.trouble = ""
        log.info("AUTH_TOKENS_FILE: %d tokens", len(found))


Stamp = tuple[int, int, int, int, int]
HALF = 16
NO_REST = bytes(HALF)


def note(known: Known, whole: bytes, grant: Grant) -> None:
    """Remember a token by the first half of its digest; the second is compared in constant time."""
    known.setdefault(whole[:HALF], (whole[HALF:], grant))


def granted(token: Token) -> Grant:
    """Return what a token of the file gives."""
    ends_at = token.expires.timestamp() if token.expires else None
    return Grant(token.name, token.rights, token.queues, ends_at, owner=token.name, scope=token.name)


def digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def bearer_or_bare(access: Access, request: web.BaseRequest) -> Grant:
    """Take `Authorization: Bearer <token>`, or the token alone; let everybody in where there are no tokens."""
    if access.is_open:
        return EVERYTHING
    given = request.headers.get("Authorization")
    return access.known(None if given is None else given.removeprefix(BEARER))


def bearer(access: Access, request: web.BaseRequest) -> Grant:
    """Take `Authorization: Bearer <token>`, whatever stands before it, as BullMQ Proxy does; no tokens let nobody in."""
    given = request.headers.get("Authorization", "").split(BEARER)
    return access.known(given[1] if len(given) > 1 else None)

"""`Idempotency-Key`: a write that carries it is done once, however often and through whichever node it is sent.

Here a request's key is checked and put into the terms of the node; what is remembered, and for how long, is the state's affair.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

from aiohttp import web

from quorumq.node.node import IdempotencyKey

if TYPE_CHECKING:
    from .auth import Grant

HEADER = "Idempotency-Key"
KEY_CHARS_MAX = 255


class BadKey(Exception):
    """An idempotency key that cannot be used; the message is for the client."""


def once_of(request: web.BaseRequest, body: bytes, grant: Grant) -> IdempotencyKey | None:
    """Return what makes a request one with its repeats; None when it has no key. Raises BadKey.

    The key is scoped by the token's name, since clients that do not know each other may choose the same, and a token that is
    renewed goes on under its name; and it is hashed, so that what is replicated is short and holds no secret. Below feature
    level 1 it is scoped by the token's text.
    """
    key = request.headers.get(HEADER)
    if key is None:
        return None
    key = key.strip()
    if not key:
        raise BadKey(f"{HEADER} must not be empty")
    if len(key) > KEY_CHARS_MAX:
        raise BadKey(f"{HEADER} too long (max {KEY_CHARS_MAX} characters)")
    earlier = f"{request.headers.get('Authorization', '')}\n{key}"
    head = f"{request.method} {request.raw_path}\n".encode("utf-8", "surrogateescape")
    fingerprint = blake2b(head + body, digest_size=16).digest()
    return IdempotencyKey(_hashed(f"{grant.owner}\n{key}"), fingerprint, grant.scope, _hashed(earlier))


def _hashed(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def part_of(once: IdempotencyKey, part: int) -> IdempotencyKey:
    """What makes one of several operations of a request one with its repeats."""
    return once._replace(key=f"{once.key}:{part}", earlier=f"{once.earlier}:{part}")

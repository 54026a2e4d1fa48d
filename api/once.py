"""`Idempotency-Key`: a write that carries it is done once, however often and through whichever node it is sent.

Here a request's key is checked and put into the terms of the node; what is remembered, and for how long, is the state's affair.
"""

from __future__ import annotations

from hashlib import blake2b

from aiohttp import web

from node.node import Once

HEADER = "Idempotency-Key"
KEY_CHARS_MAX = 255


class BadKey(Exception):
    """An idempotency key that cannot be used; the message is for the client."""


def once_of(request: web.BaseRequest, body: bytes) -> Once | None:
    """Return what makes a request one with its repeats; None when it has no key. Raises BadKey.

    The key is scoped by the token, since clients that do not know each other may choose the same, and hashed, so that
    what is replicated is short and holds no secret.
    """
    key = request.headers.get(HEADER)
    if key is None:
        return None
    key = key.strip()
    if not key:
        raise BadKey(f"{HEADER} must not be empty")
    if len(key) > KEY_CHARS_MAX:
        raise BadKey(f"{HEADER} too long (max {KEY_CHARS_MAX} characters)")
    scope = f"{request.headers.get('Authorization', '')}\n{key}".encode("utf-8", "surrogateescape")
    head = f"{request.method} {request.raw_path}\n".encode("utf-8", "surrogateescape")
    return Once(blake2b(scope, digest_size=16).hexdigest(), blake2b(head + body, digest_size=16).digest())

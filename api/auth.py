"""Who may send requests: the tokens of AUTH_TOKENS, compared in constant time.

Only the comparison lives here; which routes are open is said by each route's row.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

BEARER = "Bearer "


class Tokens:
    """The tokens that open this node. Without any, every request passes."""

    def __init__(self, tokens: Iterable[str]) -> None:
        # Digests are compared, so that not even the length of a token shows in the time taken.
        self._tokens = tuple(digest(token.encode("utf-8")) for token in tokens)

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def allow(self, authorization: str | None) -> bool:
        """Say whether the value of an Authorization header holds one of the tokens, with `Bearer ` before it or bare.

        Every configured token is compared whatever an earlier comparison said, so the time taken tells nothing
        about which of them was close.
        """
        if not self._tokens:
            return True
        if not authorization:
            return False
        # aiohttp hands over bytes outside ASCII as surrogates; they are compared as what was sent.
        given = digest(authorization.removeprefix(BEARER).encode("utf-8", "surrogateescape"))
        found = False
        for token in self._tokens:
            found |= hmac.compare_digest(given, token)
        return found


def digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()

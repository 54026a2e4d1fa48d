"""What requests with an idempotency key were answered: key to first outcome, for a day and within bounds.

Outcomes are kept as bytes; what they mean is the affair of `node.operations.requests`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

KEEP_MS = 24 * 3600 * 1000
KEYS_MAX = 100_000
BYTES_MAX = 64 << 20
# A record without its reply, key and fingerprint, roughly.
RECORD_BYTES = 200


class Outcome(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What one request was answered. fingerprint: of the request, made at the edge.  operation: its name.

    reply: the reply in bytes, None when the operation was refused or its reply too large.
    refusal: code and facts of the refusal, None when there was a reply.
    """

    fingerprint: bytes
    at: int
    operation: str
    reply: bytes | None = None
    refusal: tuple[str, list[Any]] | None = None


class Outcomes:
    """Outcomes by key, oldest first."""

    __slots__ = ("_by_key", "size")

    def __init__(self) -> None:
        self._by_key: dict[str, Outcome] = {}
        # Bytes that they take, by their weight.
        self.size = 0

    def __len__(self) -> int:
        return len(self._by_key)

    def find(self, key: str, now_ms: int) -> Outcome | None:
        """Return what a key was answered, unless that is too long ago."""
        outcome = self._by_key.get(key)
        return None if outcome is None or outcome.at + KEEP_MS <= now_ms else outcome

    def put(self, key: str, outcome: Outcome) -> None:
        """Remember an outcome for a key that has none, and forget what is too old or too much."""
        self.forget(key)
        self._by_key[key] = outcome
        self.size += weight_of(key, outcome)
        while len(self._by_key) > 1:
            oldest = next(iter(self._by_key))
            if (
                self._by_key[oldest].at + KEEP_MS > outcome.at
                and len(self._by_key) <= KEYS_MAX
                and self.size <= BYTES_MAX
            ):
                break
            self.forget(oldest)

    def forget(self, key: str) -> bool:
        """Forget a key; say whether it was there."""
        outcome = self._by_key.pop(key, None)
        if outcome is None:
            return False
        self.size -= weight_of(key, outcome)
        return True

    def items(self) -> Iterable[tuple[str, Outcome]]:
        """Iterate over keys and outcomes, oldest first."""
        return self._by_key.items()

    def restore(self, items: Iterable[tuple[str, Outcome]]) -> None:
        """Add outcomes from an image, in its order."""
        for key, outcome in items:
            self._by_key[key] = outcome
            self.size += weight_of(key, outcome)


def weight_of(key: str, outcome: Outcome) -> int:
    """Return the bytes that an outcome counts for."""
    return RECORD_BYTES + len(key) + len(outcome.fingerprint) + len(outcome.reply or b"")

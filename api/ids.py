"""Ids and lock tokens, made at the edge: nothing random happens behind the log."""

from __future__ import annotations

import os
import random
import secrets
import time

# Seeded from the system once; ids have to be distinct, not secret.
_random = random.Random(os.urandom(32))

# A run of ids counts up in the last twelve hexadecimal digits.
_RUN_BITS = 48


def new_ids(count: int) -> list[str]:
    """Make UUIDs of version 7 that rise in their order."""
    if count == 1:
        return [new_id()]
    low = _random.getrandbits(_RUN_BITS) % ((1 << _RUN_BITS) - count)
    prefix = _prefix()
    return [f"{prefix}{number:012x}" for number in range(low, low + count)]


def new_id() -> str:
    """Make one UUID of version 7."""
    return f"{_prefix()}{_random.getrandbits(_RUN_BITS):012x}"


def _prefix() -> str:
    """Time in milliseconds, version, 12 random bits, variant, 14 random bits, as text up to the last dash."""
    millis = f"{time.time_ns() // 1_000_000:012x}"
    bits = _random.getrandbits(26)
    return f"{millis[:8]}-{millis[8:]}-7{bits >> 14:03x}-{0x8000 | bits & 0x3FFF:04x}-"


def new_token_seed() -> str:
    """Make the secret that the lock tokens of one pull are derived from."""
    return secrets.token_hex(16)

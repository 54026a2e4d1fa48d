"""Names of queues over the socket: `prefix:name`, and what they are called in the state.

A name has no colon; the prefix, which may have some, ends at the last one. Queues of the default prefix (QUEUE_PREFIX) have their bare
name, so they are those that the HTTP dialects serve. Others have a form that no other dialect can name: bunqueue's names have no `@`,
and those of BullMQ Proxy no colon.
"""

from __future__ import annotations

from quorumq.api.errors import Invalid

QUALIFIED_CHARS_MAX = 200


def split(qualified: str) -> tuple[str, str]:
    """Return prefix and name. Raises Invalid."""
    prefix, colon, name = qualified.rpartition(":")
    if not colon or not prefix or not name:
        raise Invalid("A queue is named as prefix:name")
    if len(qualified) > QUALIFIED_CHARS_MAX:
        raise Invalid(f"Prefix and name of a queue must have at most {QUALIFIED_CHARS_MAX} characters together")
    if "\0" in qualified:
        raise Invalid("The name of a queue must not hold the character 0")
    return prefix, name


def named_in_state(qualified: str, default_prefix: str) -> str:
    """Return what a queue is called in the state. Raises Invalid."""
    prefix, name = split(qualified)
    return name if prefix == default_prefix else f"@{qualified}"


def named_for_token(qualified: str, default_prefix: str) -> str:
    """Return what the patterns of a token are held against: the bare name where the prefix is the default. Raises Invalid."""
    prefix, name = split(qualified)
    return name if prefix == default_prefix else qualified


def qualified_of(named: str, default_prefix: str) -> str:
    """Return `prefix:name` of a queue by what it is called in the state."""
    return named[1:] if named.startswith("@") and ":" in named else f"{default_prefix}:{named}"

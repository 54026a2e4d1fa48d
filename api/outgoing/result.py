"""What the end of a call means for its job: a result, an error, or that nobody was there."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from .client import CannotConnect
from .response import CallError, Response

EMPTY_TEXT = b'""'
# A text as JSON: it may be longer than what the endpoint sent.
TEXT_BYTES_MAX = 12 << 20
# Answers that a server, or a proxy before it, gives when nobody is there to work.
UNAVAILABLE = (502, 503, 504)
_decode = msgspec.json.Decoder(msgspec.Raw).decode


def is_local(outcome: Response | CallError) -> bool:
    """Whether a call failed for want of something on this machine, such as file descriptors."""
    return isinstance(outcome, CannotConnect) and outcome.is_local


def is_unavailable(outcome: Response | CallError) -> bool:
    """Whether an answer says that nobody is there to work."""
    return isinstance(outcome, Response) and outcome.status in UNAVAILABLE


def result_of(outcome: Response | CallError) -> tuple[bytes | None, str | None]:
    """Return what an outcome means for its job: a result as JSON text, or the error it failed with."""
    if isinstance(outcome, CallError):
        return None, str(outcome)
    if not 200 <= outcome.status < 300:
        return None, outcome.reason or f"HTTP {outcome.status}"
    body = outcome.body.removeprefix(b"\xef\xbb\xbf")
    if outcome.status == 204:
        return EMPTY_TEXT, None
    if "application/json" not in outcome.content_type:
        text = msgspec.json.encode(body.decode("utf-8", "replace"))
        return (text, None) if len(text) <= TEXT_BYTES_MAX else (None, "The answer is too large for a result")
    if not body.isascii():
        # As fetch reads it: what is no UTF-8 becomes a replacement character.
        body = body.decode("utf-8", "replace").encode()
    try:
        return bytes(_decode(body)), None
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        # Half a surrogate pair is JSON, though msgspec has no place for it.
        json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None, json_error(body)
    return body.strip(), None


def _no_number(name: str) -> Any:
    raise ValueError(name)


def json_error(body: bytes) -> str:
    """Say what is wrong with JSON in the words of the documented server's runtime."""
    text = body.strip()
    if not text:
        return "Unexpected end of JSON input"
    closing = {b"{": "}", b"[": "]"}.get(text[:1])
    return f"JSON Parse error: Expected '{closing}'" if closing else "JSON Parse error: Unexpected token"

"""How the bodies of /admin are read."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from quorumq.api.errors import Invalid
from quorumq.api.request import Call

T = TypeVar("T")


def read(call: Call, decoder: msgspec.json.Decoder[T]) -> T:
    """Decode a body. Raises Invalid."""
    try:
        return decoder.decode(call.body)
    except msgspec.ValidationError as error:
        raise Invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Invalid("Invalid JSON body") from None

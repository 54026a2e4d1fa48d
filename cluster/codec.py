"""msgpack in the three places where the engine would pickle: peer messages, log commands and what its `pickle` seam carries.

Decoding never runs code: it yields only numbers, text, bytes, lists and dictionaries.
"""

from __future__ import annotations

from typing import Any

import msgpack
from pysyncobj.node import Node


def _plain(value: Any) -> Any:
    # The engine's membership command holds a Node; its id is all there is to say about it.
    if isinstance(value, Node):
        return value.id
    raise TypeError(f"{type(value).__name__} cannot be sent")


def dumps(value: Any, protocol: int | None = None) -> bytes:
    """Encode; `protocol` is there because the engine's seam has it."""
    packed: bytes = msgpack.packb(value, default=_plain, use_bin_type=True)
    return packed


def loads(data: bytes | memoryview) -> Any:
    """Decode; sequences become tuples, as the engine expects of its commands. Raises ValueError on anything malformed."""
    try:
        return msgpack.unpackb(data, raw=False, use_list=False, strict_map_key=False)
    except (msgpack.UnpackException, ValueError, TypeError) as error:
        raise ValueError(f"not a message: {type(error).__name__}") from None

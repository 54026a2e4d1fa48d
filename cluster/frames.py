"""Frames: how messages lie in a stream of bytes. A frame is `length u32 big endian · msgpack map`."""

from __future__ import annotations

import struct
from typing import Any

Message = dict[str, Any]

_LENGTH = struct.Struct(">I")


class FrameError(Exception):
    """Bytes that are not a frame of this protocol; says why."""


class FrameDecoder:
    """Cuts a stream of bytes into frames; raises FrameError for one above the bound."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._buffer = bytearray()
        self._wanted = _LENGTH.size

    @property
    def partial(self) -> bool:
        """Whether the beginning of a frame is held."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes in; returns the frames that are complete now."""
        buffer = self._buffer
        buffer += data
        if len(buffer) < self._wanted:
            return []
        frames: list[bytes] = []
        offset = 0
        while len(buffer) - offset >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, offset)
            if length > self.bytes_max:
                raise FrameError(f"a frame of {length} bytes is above the bound of {self.bytes_max}")
            end = offset + _LENGTH.size + length
            if end > len(buffer):
                self._wanted = end - offset
                break
            frames.append(bytes(memoryview(buffer)[offset + _LENGTH.size : end]))
            offset = end
        else:
            self._wanted = _LENGTH.size
        del buffer[:offset]
        return frames


def frame(body: bytes) -> bytes:
    """`body` with its length before it."""
    return _LENGTH.pack(len(body)) + body

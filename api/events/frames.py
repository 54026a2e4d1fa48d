"""Frames of WebSockets as clients send them (RFC 6455), put together to messages under the bounds that bodies of requests have.

It takes the place of aiohttp's reader, which ends the connection at a message beyond its bound, holds unfinished messages without
a common bound, and obeys frames that are not masked. A message that cannot be taken becomes a `RefusedMessage` in its place, and what
there is of it is dropped unseen; a client that breaks the protocol is told so and left.
"""

from __future__ import annotations

import re
import struct
from typing import Any, NamedTuple

from aiohttp import WebSocketError, WSCloseCode, WSMessage, WSMsgType, web
from aiohttp._websocket.helpers import websocket_mask
from aiohttp._websocket.reader import WebSocketDataQueue

from quorumq.api.limits import Bodies, BodyTooLarge, Busy, PaceClock

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
OPCODES = frozenset({CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})
CONTROL_BYTES_MAX = 125
CLOSE_CODES = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})
# Bytes at each end of a refused message in which the number of its command is looked for.
END_BYTES = 1024
QUEUE_BYTES = 1 << 16
# One message of a client that has not shown its token; of all others, as of a request's body.
STRANGER_BYTES_MAX = 1 << 16
# A ping after half of the documented idle time, and the end when nothing answers it within a quarter.
PING_S = 60
CLOSE_S = 2
NUMBER = re.compile(rb'(?<!\\)"reqId"\s*:\s*("(?:[^"\\\x00-\x1f]|\\.)*"|-?\d+(?:\.\d+)?)')


class RefusedMessage(NamedTuple):
    """A message that was not taken. number: the `reqId` of the command in it, as JSON, where that could be told."""

    error: BodyTooLarge | Busy
    number: bytes | None


class WebSocketReader:
    """The reader of one connection: aiohttp feeds it what arrives, and it feeds the queue that messages are received from.

    queue: takes the messages.  bodies: whose bounds hold.  bytes_max: of one message; may be changed at any time.
    """

    def __init__(self, queue: Any, bodies: Bodies, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._queue = queue
        self._bodies = bodies
        self._ended = False
        # The beginning of a frame whose head has not arrived as a whole.
        self._unread = b""
        # The present frame: what it is, how it is masked, what is still to come of it, what has come.
        self._opcode = self._left = self._frame_bytes = 0
        self._is_last = False
        self._in_frame = False
        self._mask = b""
        self._frame = bytearray()
        # The present message: of which kind, its frames so far, its size, and what of it is counted under the common bound.
        self._kind = 0
        self._message = bytearray()
        self._size = 0
        self._counted = 0
        # Why the present message is not taken, and its two ends.
        self._error: BodyTooLarge | Busy | None = None
        self._first = self._last = b""
        self._clock = PaceClock(bodies.pace, self._too_slow)

    # -- What aiohttp asks

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Read what has arrived; return whether nothing more is to be read."""
        if not self._ended:
            try:
                self._read(self._unread + bytes(data) if self._unread else bytes(data))
            except WebSocketError as error:
                self.end()
                self._queue.set_exception(error)
            else:
                if not self._ended:
                    self._clock.came(len(data), unfinished=bool(self._kind or self._in_frame or self._unread))
        return self._ended, b""

    def _too_slow(self) -> None:
        self.end()
        self._queue.set_exception(WebSocketError(WSCloseCode.POLICY_VIOLATION, "The message came too slowly"))

    def feed_eof(self) -> None:
        """The connection has ended."""
        self.end()
        self._queue.feed_eof()

    def end(self) -> None:
        """Read nothing more, and give back what the unfinished message took of the common bound."""
        self._ended = True
        self._clock.stop()
        self._bodies.release(self._counted)
        self._counted = 0
        self._message = self._frame = bytearray()

    # -- Frames

    def _read(self, data: bytes) -> None:
        at, end = 0, len(data)
        while True:
            if not self._in_frame:
                length = self._head(data, at)
                if not length:
                    break
                at += length
            part = data[at : at + self._left] if at or end - at > self._left else data
            at += len(part)
            self._left -= len(part)
            if part:
                self._take(part)
            if self._left:
                break
            self._in_frame = False
            self._finish()
        self._unread = data[at:]

    def _head(self, data: bytes, at: int) -> int:
        """Read the head of a frame; return its length, or 0 when it has not arrived as a whole. Raises WebSocketError."""
        if len(data) - at < 2:
            return 0
        first, second = data[at], data[at + 1]
        opcode, length, is_last = first & 0xF, second & 0x7F, bool(first & 0x80)
        if first & 0x70:
            raise broken("Received frame with non-zero reserved bits")
        if opcode not in OPCODES:
            raise broken(f"Unexpected opcode={opcode}")
        if not second & 0x80:
            raise broken("Received frame that is not masked")
        if opcode >= CLOSE and (length > CONTROL_BYTES_MAX or not is_last):
            raise broken("Received control frame that is long or in parts")
        size = {126: 4, 127: 10}.get(length, 2)
        if len(data) - at < size + 4:
            return 0
        if length == 126:
            (length,) = struct.unpack_from("!H", data, at + 2)
        elif length == 127:
            (length,) = struct.unpack_from("!Q", data, at + 2)
        self._mask = data[at + size : at + size + 4]
        if opcode < CLOSE:
            if (opcode == CONTINUATION) != bool(self._kind):
                raise broken("Received frame out of its order")
            self._kind = self._kind or opcode
            self._is_last = is_last
            self._size += length
            if self._error is None and self._size > self.bytes_max:
                self._refuse(BodyTooLarge(self.bytes_max, self._size))
        self._opcode, self._left, self._frame_bytes = opcode, length, 0
        self._in_frame = True
        return size + 4

    def _take(self, part: bytes) -> None:
        """Take a part of the present frame's payload, or look at the ends of what is dropped."""
        begins = self._frame_bytes
        self._frame_bytes += len(part)
        if self._opcode < CLOSE and self._error is None and (self._left or self._counted or not self._is_last):
            # As of a body: what has arrived of an unfinished message counts, one that arrives whole does not.
            try:
                self._bodies.reserve(len(part))
                self._counted += len(part)
            except Busy as error:
                self._refuse(error)
        if self._opcode >= CLOSE or self._error is None:
            self._frame += part
            return
        if len(self._first) < END_BYTES:
            self._first += self._unmasked(part[: END_BYTES - len(self._first)], begins)
        tail = part[-END_BYTES:]
        self._last = (self._last + self._unmasked(tail, self._frame_bytes - len(tail)))[-END_BYTES:]

    def _unmasked(self, part: bytes, begins: int) -> bytes:
        """Unmask a part of the present frame. begins: where in it the part does."""
        turned = begins % 4
        text = bytearray(part)
        websocket_mask(self._mask[turned:] + self._mask[:turned], text)
        return bytes(text)

    def _refuse(self, error: BodyTooLarge | Busy) -> None:
        """Drop what there is of the present message, and all that comes of it."""
        self._error = error
        seen = bytes(self._message[:END_BYTES]) + self._unmasked(bytes(self._frame[:END_BYTES]), 0)
        self._first = seen[:END_BYTES]
        self._message, self._frame = bytearray(), bytearray()
        self._bodies.release(self._counted)
        self._counted = 0

    def _finish(self) -> None:
        """The present frame has arrived as a whole. Raises WebSocketError."""
        frame, self._frame = self._frame, bytearray()
        if self._opcode >= CLOSE:
            websocket_mask(self._mask, frame)
            self._queue.feed_data(control(self._opcode, bytes(frame)), len(frame))
            return
        if self._error is None:
            websocket_mask(self._mask, frame)
            if self._message:
                self._message += frame
            else:
                self._message = frame
        if not self._is_last:
            return
        kind, found, error = self._kind, bytes(self._message), self._error
        first, last = self._first, self._last
        self._bodies.release(self._counted)
        self._kind = self._size = self._counted = 0
        self._message, self._error = bytearray(), None
        self._first = self._last = b""
        if error is not None:
            self._queue.feed_data(
                WSMessage(WSMsgType.BINARY, RefusedMessage(error, number_of(first, last)), ""), END_BYTES
            )
            return
        if kind == TEXT and not found.isascii():
            try:
                found.decode("utf-8")
            except UnicodeDecodeError:
                raise WebSocketError(WSCloseCode.INVALID_TEXT, "Invalid UTF-8 text message") from None
        self._queue.feed_data(WSMessage(WSMsgType.BINARY, found, ""), len(found))


def broken(text: str) -> WebSocketError:
    return WebSocketError(WSCloseCode.PROTOCOL_ERROR, text)


def control(opcode: int, payload: bytes) -> WSMessage:
    """Return what a control frame says. Raises WebSocketError."""
    if opcode != CLOSE:
        return WSMessage(WSMsgType.PING if opcode == PING else WSMsgType.PONG, payload, "")
    if not payload:
        return WSMessage(WSMsgType.CLOSE, 0, "")
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or (code not in CLOSE_CODES and not 3000 <= code < 5000):
        raise broken("Invalid close frame")
    try:
        return WSMessage(WSMsgType.CLOSE, code, payload[2:].decode("utf-8"))
    except UnicodeDecodeError:
        raise WebSocketError(WSCloseCode.INVALID_TEXT, "Invalid UTF-8 text message") from None


def number_of(first: bytes, last: bytes) -> bytes | None:
    """Find the number of a command in the two ends of its message: outside of whatever else is in the object.

    In the first bytes what comes before anything nested, in the last what comes after it.
    """
    head = re.split(rb"[{\[]", first.lstrip().removeprefix(b"{"), maxsplit=1)[0]
    found = NUMBER.search(head)
    if found is None:
        # The last number of all, unless something that could hold it is closed behind it.
        found = next(iter(list(NUMBER.finditer(last))[-1:]), None)
        if found is not None and re.search(rb"[\]}]", last[found.end() :].rstrip()[:-1]):
            found = None
    return None if found is None else found[1]


class WebSocket(web.WebSocketResponse):
    """aiohttp's side of a connection, with our reader. frames: there once the handshake is done."""

    frames: WebSocketReader

    def __init__(self, bodies: Bodies, bytes_max: int, **settings: Any) -> None:
        super().__init__(**settings)
        self._bodies = bodies
        self._bytes_max = bytes_max

    def _post_start(self, request: web.BaseRequest, protocol: str | None, writer: Any) -> None:
        # As aiohttp's own, but for the reader.
        self._ws_protocol = protocol
        self._writer = writer
        self._reset_heartbeat()
        assert self._loop is not None
        self._reader = WebSocketDataQueue(request._protocol, QUEUE_BYTES, loop=self._loop)
        self.frames = WebSocketReader(self._reader, self._bodies, self._bytes_max)
        reader: Any = self.frames
        heard = None if self._heartbeat is None else self._on_data_received
        request.protocol.set_parser(reader, data_received_cb=heard)
        # The connection is no HTTP any more, also when it ends.
        request.protocol.keep_alive(False)

    def forget(self) -> None:
        """The connection is over: send no ping any more. The timer of the next one would keep all of this for a minute and a half."""
        self._cancel_heartbeat()

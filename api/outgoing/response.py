"""Reading answers to outgoing calls: the bytes of a connection become answers, however they are cut.

Nothing here opens a connection. What is not plain HTTP/1.1, or larger than may be kept, is an error, never a guess.
"""

from __future__ import annotations

import re
import zlib
from typing import NamedTuple

HEAD_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 10 * 1024 * 1024
CHUNK_LINE_BYTES_MAX = 1024

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([^\x00-\x08\x0a-\x1f\x7f]*))?")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_DIGITS = re.compile(rb"[0-9]{1,15}")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,12})[ \t]*(?:;[^\r\n]*)?")
_READ = frozenset(
    {b"content-length", b"transfer-encoding", b"connection", b"content-type", b"content-encoding", b"location"}
)


class CallError(Exception):
    """A call that brought no answer. Its message is what a failed job shows.

    status: of the answer of which the head came; 0 when none did.
    """

    status = 0


class ConnectionLost(CallError):
    """The connection ended before the answer did."""

    def __init__(self) -> None:
        super().__init__("ECONNRESET: The socket connection was closed unexpectedly.")


class BadResponse(CallError):
    """What came back is not an answer that can be used."""


class TooLarge(BadResponse):
    """The answer is larger than may be kept."""

    def __init__(self, limit: int, status: int) -> None:
        super().__init__(f"The answer is larger than {limit >> 20} MB")
        self.status = status


class Response(NamedTuple):
    """A whole answer. content_type: as sent, in lower case; empty when there is none."""

    status: int
    reason: str
    content_type: str
    body: bytes
    location: str | None = None
    encoding: str = ""


# What a head means: an endpoint's answers of one second mostly begin with the same bytes.
_heads: dict[bytes, tuple[Response | None, int | None, int, bool]] = {}
KNOWN_MAX = 256
KNOWN_BYTES_MAX = 1024


class ResponseReader:
    """Makes answers of the bytes of a connection, however they are cut.

    `feed` gives an answer when it is whole. keep: whether the connection can carry another request after it.
    """

    __slots__ = ("_body", "_chunk", "_data", "_head", "_interim", "_left", "_size", "keep", "limit")

    def __init__(self, limit: int = BODY_BYTES_MAX) -> None:
        self.limit = limit
        self._data = bytearray()
        self.reset()

    def reset(self) -> None:
        """Begin with the next answer."""
        self._head: Response | None = None
        # Bytes of the body to come; None: chunks, or until the end of the connection.
        self._left: int | None = 0
        self._chunk = -1
        # One buffer: kept apart, the pieces of a body that comes in many small ones would take many times its size.
        self._body = bytearray()
        self._size = 0
        self._interim = False
        self.keep = False

    @property
    def begun(self) -> bool:
        """Whether anything of an answer has come, be it an interim one."""
        return self._head is not None or self._interim or bool(self._data)

    @property
    def status(self) -> int:
        """The status of the answer that is being read; 0 before its head has come."""
        return 0 if self._head is None else self._head.status

    @property
    def length(self) -> int | None:
        """How long the body will be, when its head says so."""
        return None if self._head is None or self._chunk >= 0 else self._left

    @property
    def received(self) -> int:
        """Bytes that are kept of the answer so far."""
        return self._size + len(self._data)

    def feed(self, data: bytes) -> Response | None:
        """Take in bytes; return the answer when they complete it. Raises BadResponse."""
        self._data += data
        while self._head is None:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                if len(self._data) > HEAD_BYTES_MAX:
                    raise BadResponse("The head of the answer is too large")
                return None
            if end > HEAD_BYTES_MAX:
                raise BadResponse("The head of the answer is too large")
            head = bytes(self._data[:end])
            del self._data[: end + 4]
            self._take_head(head)
        if self._chunk >= 0:
            return self._read_chunks()
        if self._left is None:
            self._take(len(self._data))
            return None
        if len(self._data) < self._left:
            return None
        self._take(self._left)
        return self._whole()

    def end(self) -> Response:
        """Say that the connection ended. Raises ConnectionLost unless that is how the answer ends."""
        self.keep = False
        if self._head is None or self._left is not None or self._chunk >= 0:
            raise ConnectionLost
        return self._whole()

    def _take_head(self, head: bytes) -> None:
        known = _heads.get(head)
        if known is not None:
            self._head, self._left, self._chunk, self.keep = known
            self._interim = self._interim or self._head is None
            if self._left is not None and self._left > self.limit:
                raise self._too_large()
            return
        self._read_head(head)
        if len(head) <= KNOWN_BYTES_MAX:
            if len(_heads) >= KNOWN_MAX:
                _heads.clear()
            _heads[head] = (self._head, self._left, self._chunk, self.keep)

    def _read_head(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        match = _STATUS_LINE.fullmatch(first)
        if match is None:
            raise BadResponse("The answer is not HTTP/1.1")
        minor, status, reason = match[1] == b"1", int(match[2]), match[3] or b""
        found: dict[bytes, bytes] = {}
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon or not _NAME.fullmatch(name):
                raise BadResponse("The answer has a malformed header")
            name = name.lower()
            if name in _READ:
                value = value.strip(b" \t")
                if name in found and name != b"content-type" and name != b"location":
                    value = found[name] + b", " + value
                found[name] = value
        if status < 200:
            # Interim answers say nothing that matters here, but for one that ends HTTP.
            if status == 101:
                raise BadResponse("The answer is not HTTP/1.1")
            self._interim = True
            return
        self._frame(status, minor, found)
        location = found.get(b"location")
        self._head = Response(
            status,
            reason.decode("latin-1").strip(),
            found.get(b"content-type", b"").decode("latin-1").lower(),
            b"",
            None if location is None else location.decode("utf-8", "replace"),
            found.get(b"content-encoding", b"").decode("latin-1").lower(),
        )

    def _frame(self, status: int, minor: bool, found: dict[bytes, bytes]) -> None:
        """Work out where the body ends."""
        options = [option.strip().lower() for option in found.get(b"connection", b"").split(b",")]
        self.keep = b"close" not in options and (minor or b"keep-alive" in options)
        length, coding = found.get(b"content-length"), found.get(b"transfer-encoding")
        if coding is not None:
            if length is not None or not minor or coding.lower() != b"chunked":
                raise BadResponse("The answer's length cannot be told")
            self._left, self._chunk = None, 0
        elif length is not None:
            lengths = {one.strip(b" \t") for one in length.split(b",")}
            only = lengths.pop()
            if lengths or not _DIGITS.fullmatch(only):
                raise BadResponse("The answer's length cannot be told")
            self._left = int(only)
            if self._left > self.limit and status not in (204, 304):
                raise TooLarge(self.limit, status)
        elif status not in (204, 304):
            self._left, self.keep = None, False
        if status in (204, 304):
            if self._left or self._chunk >= 0:
                # A body where none can be: if it comes, no further request may get it for its answer.
                self.keep = False
            self._left, self._chunk = 0, -1

    def _read_chunks(self) -> Response | None:
        data = self._data
        while True:
            if self._chunk > 0:
                # A chunk and the end of its line.
                if len(data) < self._chunk + 2:
                    return None
                if data[self._chunk : self._chunk + 2] != b"\r\n":
                    raise BadResponse("The answer has a malformed chunk")
                self._take(self._chunk)
                del data[:2]
                self._chunk = 0
            end = data.find(b"\r\n", 0, CHUNK_LINE_BYTES_MAX)
            if end < 0:
                if len(data) >= CHUNK_LINE_BYTES_MAX:
                    raise BadResponse("The answer has a malformed chunk")
                return None
            if self._left is None:
                match = _CHUNK_LINE.fullmatch(data[:end])
                if match is None:
                    raise BadResponse("The answer has a malformed chunk")
                del data[: end + 2]
                self._chunk = int(match[1], 16)
                if self._chunk + self._size > self.limit:
                    raise self._too_large()
                if not self._chunk:
                    # The last one: trailers follow, bounded like a head.
                    self._left = HEAD_BYTES_MAX
                continue
            del data[: end + 2]
            if not end:
                return self._whole()
            self._left -= end
            if self._left < 0:
                raise BadResponse("The head of the answer is too large")

    def _take(self, count: int) -> None:
        self._size += count
        if self._size > self.limit:
            raise self._too_large()
        if count:
            self._body += self._data[:count]
            del self._data[:count]

    def _too_large(self) -> TooLarge:
        return TooLarge(self.limit, self.status)

    def _whole(self) -> Response:
        head, keep = self._head, self.keep
        assert head is not None
        if self._size:
            status, reason, kind, _, location, encoding = head
            head = Response(status, reason, kind, bytes(self._body), location, encoding)
        # Bytes behind an answer that nobody asked for: no further request may get them for its own.
        self.reset()
        self.keep = keep and not self._data
        return head


def decoded(answer: Response, limit: int = BODY_BYTES_MAX) -> Response:
    """Undo the content coding of an answer; its body may become `limit` bytes long. Raises BadResponse."""
    coding = answer.encoding
    if not coding or coding == "identity" or not answer.body:
        return answer
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise BadResponse(f"The answer has the content coding {coding[:40]}, which is not known")
    inflater = zlib.decompressobj(47 if coding != "deflate" else 15)
    try:
        body = inflater.decompress(answer.body, limit + 1)
    except zlib.error:
        raise BadResponse("The answer's content coding is damaged") from None
    if len(body) > limit:
        raise BadResponse(f"The answer is larger than {limit >> 20} MB")
    if not inflater.eof:
        raise BadResponse("The answer's content coding is damaged")
    return answer._replace(body=body, encoding="")

"""Messages of the backend protocol, in MessagePack: the hello, calls that come, answers that go; and why a connection is closed.

The first message of a client is a hello (`Hello`), answered by `Welcome`. Each further one is `[acknowledged, [call, …]]`, with calls
`[number, name, queue, args, now?]` in rising numbers. The node answers with lists of `[number, code, result or text]`, several at once,
in any order.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

PROTOCOL = 1
# Calls of one connection that are not answered, and bytes that they came in; calls that wait for something do not count.
CALLS_MAX = 1_024
CALLS_BYTES_MAX = 8 << 20
# Those of one connection that wait.
WAITS_MAX = 10_000
SESSION_CHARS_MAX = 64
NAME_CHARS_MAX = 200
# Answers that are ready together leave together, up to about so many bytes.
MESSAGE_BYTES = 1 << 20

# Close codes, beside those of RFC 6455: 1001 the node is leaving, 1009 the message is larger than maxMessage.
BAD_MESSAGE = 4400
BAD_TOKEN = 4401
BAD_SESSION = 4403
NO_HELLO = 4408
TOO_MANY = 4429


class Hello(Struct):
    """What a client says first.

    protocol: the version that it speaks.  client: what it is, for the log.  session: a name of its own making, at random, under which it
    sends unanswered calls again after a reconnection, here or elsewhere.  token: unless it came in `Authorization`.
    """

    protocol: int
    session: str
    client: str = ""
    token: str | None = None


class InFlightWindow(Struct):
    """What may be unanswered at once. calls; bytes: of the messages that they came in."""

    calls: int
    bytes: int


class Welcome(Struct, rename="camel"):
    """What a node answers.

    server: its name and version.  node: its id.  nodes: where the members of the cluster answer, as far as it knows.  clock: whose
    time holds, `server` or `client`.  max_message: bytes of one message.  window: of unanswered calls.  level: the feature level.
    """

    protocol: int
    server: str
    node: str
    nodes: list[str]
    clock: str
    max_message: int
    window: InFlightWindow
    level: int


class CallRequest(Struct, array_like=True):
    """One call. now: the client's time, where the node says that that holds."""

    number: int
    name: str
    queue: str
    args: Raw
    now: int | None = None


class CallBatch(Struct, array_like=True):
    """A message of calls. acknowledged: the number up to which all calls have been answered to the client."""

    acknowledged: int
    calls: list[CallRequest]


READ_HELLO = msgspec.msgpack.Decoder(Hello, strict=False).decode
READ_MESSAGE = msgspec.msgpack.Decoder(CallBatch, strict=False).decode
ENCODE = msgspec.msgpack.Encoder().encode


def answered(number: int, code: int, packed: bytes) -> bytes:
    """Return one answer. packed: its result, or text, in MessagePack."""
    return b"\x93%b%b%b" % (ENCODE(number), ENCODE(code), packed)


def together(answers: list[bytes]) -> bytes:
    """Return a message of answers."""
    count = len(answers)
    head = bytes([0x90 | count]) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
    if count > 0xFFFF:
        head = b"\xdd" + count.to_bytes(4, "big")
    return head + b"".join(answers)


def packed(value: Any) -> bytes:
    """Write a result."""
    return ENCODE(value)

"""What each message between members must look like, checked before anybody acts on it.

A handler may then rely on its fields: a malformed message is refused as a whole, and cannot leave something half done. What the
messages mean, and whether they come at the right time, is for their handlers to judge.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from quorumq.cluster.log import MEMBERSHIP
from quorumq.cluster.membership import decode
from quorumq.cluster.replica import members_of

Message = dict[str, Any]
Check = Callable[[Any], bool]

_NUMBER_MAX = 1 << 62
TIME_MAX = 1 << 48
"""Milliseconds since the epoch that a message may name: to the year 10889."""
_NAME_CHARS_MAX = 256
_TEXT_CHARS_MAX = 4096
_DIGESTS_MAX = 64
_NAMES_MAX = 64
_PORT_MAX = 65_535
_DIGEST_BYTES_MAX = 64
_SNAPSHOT = re.compile(r"[0-9a-f]{16}-[0-9a-f]{8,16}\.snapshot")
_UNSETTLED_MAX = 1 << 20
"""From the oldest batch that an origin still waits for to its newest, at most: more than any node sends before its deadlines."""
# A log command: the engine's type byte, and for the one replicated method its number and its one argument, in msgpack.
_NO_OP, _APPLY = b"\x01", b"\x00\x92\x00\x91"
_LENGTH_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}


class Malformed(ValueError):
    """A message that no member of this version sends; says which field, never what it holds."""


def _number(value: Any) -> bool:
    return type(value) is int and 0 <= value < _NUMBER_MAX


def _number_or_none(value: Any) -> bool:
    return value is None or _number(value)


def _time(value: Any) -> bool:
    return _number(value) and value < TIME_MAX


def _time_or_none(value: Any) -> bool:
    return value is None or _time(value)


def _flag(value: Any) -> bool:
    return type(value) is bool


def _bytes(value: Any) -> bool:
    return type(value) is bytes


def _name(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= _NAME_CHARS_MAX


def _text(value: Any) -> bool:
    return type(value) is str and len(value) <= _TEXT_CHARS_MAX


def _snapshot_name(value: Any) -> bool:
    return type(value) is str and _SNAPSHOT.fullmatch(value) is not None


def _batch(value: Any) -> bool:
    return (
        type(value) is tuple
        and len(value) == 5
        and _name(value[0])
        and all(map(_number, value[1:4]))
        # The floor is the oldest batch without an outcome, so never above this one.
        and 0 <= value[2] - value[3] <= _UNSETTLED_MAX
        and _bytes(value[4])
    )


def _digests(value: Any) -> bool:
    return (
        type(value) is tuple
        and len(value) <= _DIGESTS_MAX
        and all(
            type(point) is tuple
            and len(point) == 3
            and _number(point[0])
            and all(_bytes(digest) and len(digest) <= _DIGEST_BYTES_MAX for digest in point[1:])
            for point in value
        )
    )


def _names(value: Any) -> bool:
    return type(value) is tuple and len(value) <= _NAMES_MAX and all(map(_name, value))


def _doors(value: Any) -> bool:
    return (
        type(value) is dict
        and len(value) <= _NAMES_MAX
        and all(_name(name) and _number(port) and port <= _PORT_MAX for name, port in value.items())
    )


def _inner(value: Any) -> bool:
    """A message within one that is passed on: any but another of that kind."""
    return type(value) is dict and type(kind := value.get("type")) is str and not kind.startswith("relay")


_LAST_LOG: dict[str, Check] = {"term": _number, "last_log_index": _number, "last_log_term": _number}
_TERM: dict[str, Check] = {"term": _number}
_ROUTE: dict[str, Check] = {"to": _name, "from": _name}

FIELDS: dict[str, dict[str, Check]] = {
    "append_entries": {"term": _number, "commit_index": _number},
    "next_node_idx": {"term": _number, "next_node_idx": _number, "reset": _flag, "success": _flag},
    "request_vote": {**_LAST_LOG, "transfer": _flag},
    "response_vote": _TERM,
    "pre_vote": _LAST_LOG,
    "pre_vote_granted": _TERM,
    "stale_term": _TERM,
    "stepped_down": _TERM,
    "timeout_now": _TERM,
    # log_ms: None when this node does not know the log's clock.
    "vitals": {"wall_ms": _time, "log_ms": _time_or_none, "disk_ms": _time},
    "present": {"term": _number, "history": _flag, "whole": _flag},
    "digests": {"shape": _text, "life": _name, "points": _digests},
    "change": {"number": _number, "action": _name, "node": _name, "address": _text},
    "changed": {"number": _number, "code": _text, "error": _text},
    "batch": {"batch": _batch},
    "batch_no": {"epoch": _number, "seq": _number},
    "read": {"question": _number},
    "read_index": {"question": _number, "index": _number_or_none},
    "round": {"term": _number, "number": _number},
    "round_ok": {"term": _number, "number": _number},
    "relay": {**_ROUTE, "token": _number, "message": _inner},
    "relay_ask": {**_ROUTE, "nonce": _number},
    "relay_open": {**_ROUTE, "nonce": _number, "token": _number},
    "relay_closed": {**_ROUTE, "token": _number},
    "snapshot_begin": {"name": _snapshot_name, "size": _number},
    "snapshot_piece": {"name": _snapshot_name, "offset": _number, "data": _bytes},
    "snapshot_held": {"name": _snapshot_name, "offset": _number},
    "snapshot_installed": {"index": _number},
    "snapshot_turn": {"taken": _flag},
}
"""Every message that is acted upon, by its type. A type that is not listed is of a newer version, and ignored."""

OPTIONAL: dict[str, dict[str, Check]] = {
    "present": {"version": _text, "level": _number, "answers": _flag, "doors": _doors},
    "vitals": {"reaches": _names},
}
"""Fields that older versions do not send."""


def check(message: Any, entry_bytes_max: int) -> None:
    """Raise Malformed unless `message` is one that its handler can rely on."""
    if type(message) is not dict or type(kind := message.get("type")) is not str:
        raise Malformed("a message without a type")
    for field, valid in FIELDS.get(kind, {}).items():
        if field not in message or not valid(message[field]):
            raise Malformed(f"{kind} without a valid {field}")
    for field, valid in OPTIONAL.get(kind, {}).items():
        if field in message and not valid(message[field]):
            raise Malformed(f"{kind} without a valid {field}")
    if kind == "append_entries":
        _check_entries(message)
    elif kind in ("request_vote", "pre_vote") and message["last_log_term"] > message["term"]:
        raise Malformed(f"{kind} with a log of a later term than its own")
    elif kind == "batch" and len(message["batch"][4]) > entry_bytes_max:
        # Its entry would be larger than any follower takes, and the leader would offer it for ever.
        raise Malformed("batch larger than an entry may be")


def _check_entries(message: Message) -> None:
    if "prevLogIdx" not in message:
        if message.get("serialized") is not None or "entries" in message:
            raise Malformed("append_entries without a previous index")
        return
    index, term, entries = message["prevLogIdx"], message.get("prevLogTerm"), message.get("entries")
    if term == -1:  # what a log says of the entry before its first one, when it does not know
        term = 0
    if not _number(index) or not _number(term) or type(entries) is not tuple or "transmission" in message:
        raise Malformed("append_entries without valid entries")
    for entry in entries:
        if type(entry) is not tuple or len(entry) != 3 or not _command(entry[0]):
            raise Malformed("append_entries with an entry that is none")
        if entry[1] != index + 1 or type(entry[1]) is not int or not _number(entry[2]) or entry[2] < term:
            raise Malformed("append_entries with entries that do not follow each other")
        index, term = entry[1], entry[2]
    if term > message["term"]:
        raise Malformed("append_entries with entries of a later term than its own")


def replicated(command: bytes) -> bytes | None:
    """What a log command gives to the replica (replica.py), or None for one that is the engine's own."""
    if command[:1] == MEMBERSHIP:
        return command[1:]
    if command[:4] == _APPLY and (size := _LENGTH_BYTES.get(command[4])) is not None:
        return command[5 + size :]
    return None


def _command(command: Any) -> bool:
    """Whether a log command can be applied: one that cannot would stop every node that gets to it."""
    if type(command) is not bytes:
        return False
    if command[:1] == MEMBERSHIP:
        try:
            decode(members_of(command[1:]))
        except (msgspec.MsgspecError, ValueError, TypeError, IndexError, AssertionError):
            return False
        return True
    if command[:4] == _APPLY and len(command) > 5:
        size = _LENGTH_BYTES.get(command[4])
        return size is not None and len(command) - 5 - size == int.from_bytes(command[5 : 5 + size], "big")
    return command == _NO_OP

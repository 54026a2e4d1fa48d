"""MessagePack and JSON: what a client of the TCP protocol sends comes back as it was, whatever JSON lacks a word for."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorumq.api.commands import messagepack
from quorumq.api.commands.messagepack import BadFrame, count, decoded, encoded, encoded_json, number_of

UNDEFINED = msgpack.ExtType(0, b"\0")
MOMENT = datetime(2026, 11, 27, 10, 0, 0, 123_000, tzinfo=UTC)


def packed(value: Any) -> bytes:
    made: bytes = msgpack.packb(value, datetime=True)
    return made


def there(value: Any) -> Any:
    """Return what JSON is kept of a value."""
    return json.loads(encoded_json(decoded(packed({"cmd": "x", "data": value}))))["data"]


def and_back(value: Any) -> Any:
    reply = b'{"ok":true,"data":%b}' % json.dumps(there(value), separators=(",", ":")).encode()
    return msgpack.unpackb(encoded(reply), timestamp=3)["data"]


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (MOMENT, {"$date": "2026-11-27T10:00:00.123Z"}),
        (MOMENT.replace(microsecond=1), {"$date": "2026-11-27T10:00:00.000001Z"}),
        (datetime(1970, 1, 1, tzinfo=UTC), {"$date": "1970-01-01T00:00:00.000Z"}),
        (b"hi", {"$binary": {"base64": "aGk=", "subType": "00"}}),
        (b"", {"$binary": {"base64": "", "subType": "00"}}),
        (math.inf, {"$numberDouble": "Infinity"}),
        (-math.inf, {"$numberDouble": "-Infinity"}),
        ({"$date": 1}, {"$literal": {"$date": 1}}),
        ({"$date": MOMENT}, {"$literal": {"$date": {"$date": "2026-11-27T10:00:00.123Z"}}}),
        ({"$literal": {"$date": "x"}}, {"$literal": {"$literal": {"$literal": {"$date": "x"}}}}),
        ({"$date": "2026", "and": 1}, {"$date": "2026", "and": 1}),
        ([{"at": [MOMENT]}], [{"at": [{"$date": "2026-11-27T10:00:00.123Z"}]}]),
        ({"$": 1, "text": "$date"}, {"$": 1, "text": "$date"}),
    ],
)
def test_what_json_has_no_word_for_comes_back_as_it_was(value: Any, kept: Any) -> None:
    assert there(value) == kept
    assert and_back(value) == value


def test_what_is_no_number_comes_back_as_it_was() -> None:
    assert there(math.nan) == {"$numberDouble": "NaN"}
    assert math.isnan(and_back(math.nan))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**31), 2**32 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes(datetime(1971, 1, 1), datetime(2500, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - bounds of ones with zones
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.text() | st.sampled_from(["$date", "$binary", "$literal", "$numberDouble", "base64"]), inner
        )
    ),
)


@given(VALUES)
def test_any_value_comes_back_as_it_was(value: Any) -> None:
    assert and_back(value) == value


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ({"a": UNDEFINED, "b": 1}, {"b": 1}),
        ([UNDEFINED, 1], [None, 1]),
        ({"a": {"b": UNDEFINED}}, {"a": {}}),
        ({1: "x"}, {"1": "x"}),
    ],
)
def test_undefined_is_absent_and_keys_are_texts(value: Any, kept: Any) -> None:
    made = msgpack.packb({"cmd": "x", "data": value})
    assert json.loads(encoded_json(decoded(made)))["data"] == kept


@pytest.mark.parametrize(
    ("value", "first"),
    [
        (2**32 - 1, 0xCE),
        (-(2**31), 0xD2),
        (2**32, 0xCB),
        (-(2**31) - 1, 0xCB),
        (1_795_315_514_128, 0xCB),
        (2**80, 0xCB),
        (1.5, 0xCB),
        (7, 7),
    ],
)
def test_a_number_beyond_32_bits_goes_out_as_a_float(value: float, first: int) -> None:
    reply = b'{"n":%b}' % json.dumps(value).encode()
    # A map of one, its key of one character.
    assert encoded(reply)[3] == first
    assert msgpack.unpackb(encoded(reply))["n"] == value
    nested = msgpack.unpackb(encoded(b'{"a":[{"b":%b}]}' % json.dumps(value).encode()))
    assert isinstance(nested["a"][0]["b"], float) == (first == 0xCB)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'"\\ud83d"', "�"),
        (b"1e999", math.inf),
        (b"1" * 400, math.inf),
        (b"-%b" % (b"1" * 5000), -math.inf),
        (b'{"$date":"no date"}', {"$date": "no date"}),
        (b'{"$date":"2026-11-27T10:00:00"}', {"$date": "2026-11-27T10:00:00"}),
        (b'{"$date":5}', {"$date": 5}),
        (b'{"$binary":{"base64":"a","subType":"00"}}', {"$binary": {"base64": "a", "subType": "00"}}),
        (b'{"$binary":{"base64":"aGk=","subType":"04"}}', {"$binary": {"base64": "aGk=", "subType": "04"}}),
        (b'{"$numberDouble":"1"}', {"$numberDouble": "1"}),
        (b'{"$literal":1}', {"$literal": 1}),
        (b'{ "$date" : "2026-11-27T10:00:00.123Z" }', MOMENT),
    ],
)
def test_whatever_came_over_http_can_be_told(text: bytes, value: Any) -> None:
    assert msgpack.unpackb(encoded(b'{"ok":true,"data":[%b]}' % text), timestamp=3)["data"] == [value]


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (b"", "Invalid command format"),
        (b"\xc1", "Invalid command format"),
        (b"\x81\xa1a", "Invalid command format"),
        (b"\x80\x80", "Invalid command format"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "Invalid command format"),
        (b"\x81\xa1a\xc6\xff\xff\xff\xff", "Invalid command format"),
        (b"\x81\xa1a\xa1\xff", "Invalid command format"),
        (b"\x81\xa1a" + b"\x91" * 5000 + b"\x90", "Invalid command format"),
        (b"\x81\xa1a\xd4\x07\x00", "Invalid command: MessagePack's extension 7 is not known"),
        (
            b"\x81\xa1a\xc7\x0c\xff" + b"\xff" * 12,
            "Invalid command: Invalid MessagePack timestamp: nanoseconds out of range",
        ),
        (b"\x81\xa1a\xc7\x0c\xff" + b"\0" * 4 + b"\x7f" * 8, "Invalid command: Timestamp is out of range"),
        (b"\x81\xa1a\x81\xc0\x01", "Invalid command format"),
        (b"\x90", "Invalid command"),
        (b"\xc0", "Invalid command"),
        (b"\xa3cmd", "Invalid command"),
    ],
)
def test_what_is_no_command_is_refused(frame: bytes, text: str) -> None:
    with pytest.raises(BadFrame) as refused:
        encoded_json(decoded(frame))
    assert str(refused.value) == text


def test_a_large_frame_is_counted_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messagepack, "UNCOUNTED_BYTES", 10)
    monkeypatch.setattr(messagepack, "VALUES_MAX", 100)
    assert decoded(packed({"a": ["x" * 1000] * 97}))["a"][0] == "x" * 1000
    with pytest.raises(BadFrame, match="at most 100 values"):
        decoded(packed({"a": [[]] * 98}))
    with pytest.raises(BadFrame, match="Invalid command format"):
        decoded(b"\x81\xa1a\xdd\xff\xff\xff\xff" + b"\x90" * 20)


@given(VALUES)
def test_counting_sees_every_value(value: Any) -> None:
    def values(one: Any) -> int:
        if isinstance(one, dict):
            return 1 + sum(1 + values(inner) for inner in one.values())
        return 1 + sum(map(values, one)) if isinstance(one, list) else 1

    assert count(packed(value)) == values(value)


@pytest.mark.parametrize(
    "value", [1, -1, 200, -200, 70_000, -70_000, 2**40, -(2**40), 1.5, None, True, "x" * 40, b"x" * 300]
)
def test_counting_knows_every_form(value: Any) -> None:
    for length in (1, 20, 70_000):
        assert count(packed([value] * length)) == 1 + length
        assert count(packed({str(at): value for at in range(length)})) == 1 + 2 * length
    for size in (1, 2, 4, 8, 16, 17, 300, 70_000):
        assert count(packed([msgpack.ExtType(5, b"x" * size)] * 2)) == 3


@pytest.mark.parametrize("at", ["first", "second", "last"])
def test_the_number_of_a_command_that_was_not_taken(at: str) -> None:
    data = {"data": [{"reqId": "no", "x": 1}] * 200}
    fields = {
        "first": {"reqId": "17", "cmd": "PUSH", **data},
        "second": {"cmd": "PUSH", "reqId": "17", **data},
        "last": {"cmd": "PUSH", **data, "reqId": "17"},
    }
    frame = packed(fields[at])
    assert number_of(frame[:1024], frame[-1024:]) == "17"
    assert number_of(frame[:1024], frame[-1024:-1]) == (None if at == "last" else "17")
    assert number_of(b"\xc1", b"\xc1") is None

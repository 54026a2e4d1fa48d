"""Reading answers: whatever way they are cut they come out the same, and what is not plain HTTP/1.1 is an error."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorumq.api.outgoing.response import BadResponse, ConnectionLost, Response, ResponseReader, decoded

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: Application/JSON\r\nContent-Length: 4\r\nX-More: \xff\r\n\r\n{\r\n}"
CHUNKED = (
    b"HTTP/1.1 201 Created\r\ntransfer-encoding: Chunked\r\n\r\n"
    b"5\r\nhello\r\n6;name=value\r\n world\r\n0\r\nTrailer: x\r\n\r\n"
)
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + PLAIN
EMPTY = b"HTTP/1.1 204 No Content\r\nDate: now\r\n\r\n"
NO_PHRASE = b"HTTP/1.1 500\r\nContent-Length: 0\r\n\r\n"
MOVED = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n"
OLD = b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nok"
WHOLE = [
    (PLAIN, Response(200, "OK", "application/json", b"{\r\n}"), True),
    (CHUNKED, Response(201, "Created", "", b"hello world"), True),
    (INTERIM, Response(200, "OK", "application/json", b"{\r\n}"), True),
    (EMPTY, Response(204, "No Content", "", b""), True),
    (NO_PHRASE, Response(500, "", "", b""), True),
    (MOVED, Response(307, "Temporary Redirect", "", b"", "/there"), True),
    (OLD, Response(200, "OK", "", b"ok"), True),
    (OLD.replace(b"Keep-Alive", b"x"), Response(200, "OK", "", b"ok"), False),
    (
        PLAIN.replace(b"X-More: \xff", b"Connection: x, Close"),
        Response(200, "OK", "application/json", b"{\r\n}"),
        False,
    ),
    # Nobody asked for what follows.
    (PLAIN + b"x", Response(200, "OK", "application/json", b"{\r\n}"), False),
]


@pytest.mark.parametrize(("sent", "answer", "keep"), WHOLE)
@given(cuts=st.lists(st.integers(1, 40), max_size=30))
def test_an_answer_is_the_same_however_it_is_cut(sent: bytes, answer: Response, keep: bool, cuts: list[int]) -> None:
    reader, at, found = ResponseReader(), 0, None
    for cut in [*cuts, len(sent)]:
        part = sent[at : at + cut]
        at += len(part)
        if part and (found := reader.feed(part)) is not None:
            break
    assert found == answer
    # What came in the same piece decides: later bytes find a connection that nobody reads from.
    assert reader.keep == (keep or at < len(sent))


def test_one_reader_takes_one_answer_after_the_other() -> None:
    reader = ResponseReader()
    for sent, answer, keep in WHOLE:
        if keep:
            assert reader.feed(sent) == answer
            assert reader.keep


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    reader = ResponseReader()
    assert reader.feed(b"HTTP/1.1 200 OK\r\n\r\nto the") is None
    assert reader.feed(b" end") is None
    assert reader.end() == Response(200, "OK", "", b"to the end")
    assert not reader.keep


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\n", PLAIN[:-1], CHUNKED[:-1], CHUNKED[:-20]])
def test_an_answer_that_ends_too_early_is_lost(sent: bytes) -> None:
    reader = ResponseReader()
    assert reader.feed(sent) is None
    assert reader.begun == bool(sent)
    with pytest.raises(ConnectionLost):
        reader.end()


@pytest.mark.parametrize(
    "sent",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"http/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 O\x00K\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nNo colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: no name\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length : 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: folded\r\n line\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 2000,
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
    ],
)
def test_what_is_not_plain_http_is_an_error(sent: bytes) -> None:
    with pytest.raises(BadResponse):
        ResponseReader().feed(sent)


def test_the_same_length_twice_is_one_length() -> None:
    answer = ResponseReader().feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok")
    assert answer is not None and answer.body == b"ok"


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nabcdef\r\n6\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nabcdefghijk",
    ],
)
def test_what_is_too_large_is_refused_as_soon_as_it_shows(sent: bytes) -> None:
    for _ in range(2):
        with pytest.raises(BadResponse):
            ResponseReader(limit=10).feed(sent)
    # A head that was known under another bound is held against this one's.
    ResponseReader(limit=20).feed(sent)
    with pytest.raises(BadResponse):
        ResponseReader(limit=10).feed(sent)


@pytest.mark.parametrize("more", [b"Content-Length: 5\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_a_body_where_none_can_be_is_no_answer_to_the_next_request(status: bytes, more: bytes) -> None:
    reader = ResponseReader()
    for _ in range(2):
        # The body itself comes later, if at all: then nobody may be waiting on this connection.
        answer = reader.feed(b"HTTP/1.1 " + status + b"\r\n" + more)
        assert answer is not None and answer.body == b""
        assert not reader.keep


def test_an_interim_answer_says_that_the_request_has_arrived() -> None:
    reader = ResponseReader()
    assert not reader.begun
    for _ in range(2):
        assert reader.feed(b"HTTP/1.1 102 Processing\r\n\r\n") is None
        assert reader.begun
        with pytest.raises(ConnectionLost):
            reader.end()
        assert reader.feed(PLAIN) is not None
        assert not reader.begun


def test_many_small_chunks_take_no_more_memory_than_their_bytes() -> None:
    reader, size = ResponseReader(), 1 << 20
    tracemalloc.start()
    try:
        reader.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(size // 4096):
            assert reader.feed(b"2\r\nab\r\n" * 2048) is None
        assert tracemalloc.get_traced_memory()[1] < 3 * size
        assert reader.received == size and reader.length is None
        answer = reader.feed(b"0\r\n\r\n")
    finally:
        tracemalloc.stop()
    assert answer is not None and answer.body == b"ab" * (size // 2)


@given(st.binary(max_size=300))
def test_no_bytes_do_anything_but_be_refused(data: bytes) -> None:
    reader = ResponseReader(limit=1000)
    try:
        reader.feed(b"HTTP/1.1 200 OK\r\n" + data)
        reader.end()
    except (BadResponse, ConnectionLost):
        pass


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(b"hello", mtime=0)),
        ("x-gzip", gzip.compress(b"hello", mtime=0)),
        ("deflate", zlib.compress(b"hello")),
        ("identity", b"hello"),
        ("", b"hello"),
    ],
)
def test_codings_are_undone(coding: str, body: bytes) -> None:
    assert decoded(Response(200, "OK", "", body, None, coding)).body == b"hello"


@pytest.mark.parametrize(
    ("coding", "body"),
    [("br", b"x"), ("gzip, gzip", b"x"), ("gzip", b"hello"), ("gzip", gzip.compress(b"hello", mtime=0)[:-4])],
)
def test_codings_that_cannot_be_undone_are_errors(coding: str, body: bytes) -> None:
    with pytest.raises(BadResponse):
        decoded(Response(200, "OK", "", body, None, coding))


def test_a_small_body_does_not_become_a_large_one() -> None:
    with pytest.raises(BadResponse):
        decoded(Response(200, "OK", "", gzip.compress(bytes(1 << 20)), None, "gzip"), limit=1000)

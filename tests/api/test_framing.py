"""Frames of the TCP protocol: put together however they are cut, under the bounds of bodies."""

from __future__ import annotations

import asyncio
from typing import Any

import msgpack
import pytest

from quorumq.api.commands.framing import FRAME_BYTES_MAX, Frame, FrameReader, FrameTooLarge, RefusedFrame
from quorumq.api.limits import SMALL_BYTES, Bodies, Pace
from tests.support.tcp_client import framed


class Taken:
    """A reader with what it gave."""

    def __init__(self, *, bytes_max: int = FRAME_BYTES_MAX, pending: int = 0, pace: Pace | None = None) -> None:
        self.bodies = Bodies(1 << 20, pending, pace)
        self.frames: list[Any] = []
        self.slow = 0
        self.reader = FrameReader(self.bodies, bytes_max, self.take, self.too_slow)

    def take(self, frame: Frame | RefusedFrame) -> None:
        if isinstance(frame, Frame):
            self.bodies.release(frame.counted)
            self.frames.append(bytes(frame.body))
        else:
            self.frames.append(frame)

    def too_slow(self) -> None:
        self.slow += 1


async def test_frames_are_put_together_however_they_are_cut() -> None:
    wanted = [b"", b"a", b"x" * 300, b"\x80", b"y" * 70_000, b"z"]
    sent = b"".join(map(framed, wanted))
    for size in (1, 2, 3, 5, 7, 299, 1000, 65_536, len(sent)):
        taken = Taken()
        for at in range(0, len(sent), size):
            taken.reader.feed(sent[at : at + size])
        assert taken.frames == wanted and not taken.reader.in_part
        assert taken.bodies.pending_bytes == 0
    short = b"".join(map(framed, [b"ab", b"", b"c"]))
    for cut in range(len(short) + 1):
        taken = Taken()
        taken.reader.feed(short[:cut])
        taken.reader.feed(short[cut:])
        assert taken.frames == [b"ab", b"", b"c"]


async def test_a_frame_beyond_its_bound_is_refused_by_its_head() -> None:
    taken = Taken(bytes_max=10)
    taken.reader.feed(framed(b"x" * 10))
    with pytest.raises(FrameTooLarge, match="Frame too large: 11 bytes exceeds maximum 10"):
        taken.reader.feed((11).to_bytes(4, "big"))
    taken = Taken()
    with pytest.raises(FrameTooLarge, match="Frame too large: 67108865 bytes exceeds maximum 67108864"):
        taken.reader.feed((FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
    assert taken.frames == []


async def test_a_frame_for_which_there_is_no_room_is_dropped_as_it_comes() -> None:
    taken = Taken(pending=100_000)
    taken.bodies.reserve(60_000)
    frame = framed(msgpack.packb({"cmd": "PUSH", "data": "x" * 300_000, "reqId": "5"}))
    for at in range(0, len(frame), 10_000):
        taken.reader.feed(frame[at : at + 10_000])
        # What has come of it is not kept.
        assert taken.bodies.pending_bytes <= 100_000
    assert taken.frames == [RefusedFrame("5")]
    assert taken.bodies.pending_bytes == 60_000
    # A short one is let in, and the next long one, when there is room again.
    half = framed(b"y" * (SMALL_BYTES - 10))
    taken.reader.feed(half[:100])
    taken.reader.feed(half[100:])
    taken.bodies.release(60_000)
    taken.reader.feed(framed(b"z" * 99_000)[:50_000])
    taken.reader.feed(framed(b"z" * 99_000)[50_000:])
    assert [len(one) for one in taken.frames[1:]] == [SMALL_BYTES - 10, 99_000]
    assert taken.bodies.pending_bytes == 0


async def test_what_a_frame_in_part_takes_is_given_back_at_the_end() -> None:
    taken = Taken()
    taken.reader.feed(framed(b"x" * 1000)[:500])
    assert taken.bodies.pending_bytes == 496 and taken.reader.in_part
    taken.reader.end()
    assert taken.bodies.pending_bytes == 0
    taken.reader.feed(framed(b"more"))
    assert taken.frames == []


@pytest.mark.parametrize("beginning", [b"\0", framed(b"x" * 1000)[:10]])
async def test_a_frame_in_part_has_to_go_on(beginning: bytes) -> None:
    ended: list[str] = []
    pace = Pace(100, window_s=0.05)
    pace.ended = ended.append  # type: ignore[assignment]
    taken = Taken(pace=pace)
    taken.reader.feed(framed(b"whole"))
    await asyncio.sleep(0.1)
    assert taken.slow == 0
    taken.reader.feed(beginning)
    async with asyncio.timeout(10):
        while not taken.slow:
            await asyncio.sleep(0.01)
    assert ended == ["body"] and taken.bodies.pending_bytes == 0


async def test_a_frame_that_comes_fast_enough_takes_its_time() -> None:
    taken = Taken(pace=Pace(100, window_s=1))
    sent = framed(b"x" * 2000)
    for at in range(0, len(sent), 400):
        taken.reader.feed(sent[at : at + 400])
        await asyncio.sleep(0.1)
    assert taken.slow == 0 and [len(one) for one in taken.frames] == [2000]

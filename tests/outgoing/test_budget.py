"""Memory for large answers: who waits, who goes on, and that nobody waits for ever."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from quorumq.api.outgoing.budget import ReceiveBudget


class Reading:
    """Reads when it may. goes: how often it was told to go on."""

    def __init__(self) -> None:
        self.reads = True
        self.goes = 0

    def stop_reading(self) -> None:
        assert self.reads
        self.reads = False

    def go_on(self) -> None:
        assert not self.reads
        self.reads = True
        self.goes += 1


async def test_those_beyond_the_bound_wait_in_order() -> None:
    room, readers = ReceiveBudget(100), [Reading() for _ in range(4)]
    for reader in readers:
        room.want(reader, 50)
    assert [reader.reads for reader in readers] == [True, True, False, False]
    assert (room.taken, room.waiting) == (100, 2)
    room.leave(readers[1])
    await asyncio.sleep(0)
    assert [reader.reads for reader in readers] == [True, True, True, False]
    room.leave(readers[0])
    room.leave(readers[3])
    await asyncio.sleep(0)
    assert [reader.goes for reader in readers] == [0, 0, 1, 0] and room.taken == 50
    room.leave(readers[2])
    assert (room.taken, room.waiting) == (0, 0)


async def test_the_oldest_goes_on_so_that_growing_answers_never_wait_for_each_other() -> None:
    room, first, second = ReceiveBudget(100), Reading(), Reading()
    room.want(first, 50)
    room.want(second, 50)
    room.want(second, 100)
    assert not second.reads
    room.want(first, 100)
    await asyncio.sleep(0)
    assert first.reads and room.taken == 150
    room.leave(first)
    await asyncio.sleep(0)
    assert second.reads and room.taken == 100


async def test_what_is_held_counts_until_it_is_released() -> None:
    room, first, second = ReceiveBudget(100), Reading(), Reading()
    room.want(first, 80)
    room.want(second, 80)
    # As a whole answer does it: it is read no more, and kept.
    room.leave(first)
    room.hold(120)
    await asyncio.sleep(0)
    assert not second.reads
    room.release(120)
    await asyncio.sleep(0)
    assert second.reads and room.taken == 80


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 60)), max_size=60))
def test_whatever_happens_all_come_to_their_end(steps: list[tuple[int, int]]) -> None:
    async def run() -> None:
        room, readers = ReceiveBudget(100), [Reading() for _ in range(6)]
        sizes = dict.fromkeys(readers, 0)
        for number, more in steps:
            reader = readers[number]
            if reader.reads:
                sizes[reader] += more
                room.want(reader, sizes[reader])
            await asyncio.sleep(0)
            # One may be read beyond the bound, with what it has.
            assert room.taken <= 100 + max(sizes.values())
        unfinished = [reader for reader in readers if sizes[reader]]
        while unfinished:
            ready = [reader for reader in unfinished if reader.reads]
            assert ready, "all wait for each other"
            room.leave(ready[-1])
            unfinished.remove(ready[-1])
            await asyncio.sleep(0)
        assert (room.taken, room.waiting) == (0, 0)

    asyncio.run(run())

"""Memory that connections and bodies have left behind, and how it goes back to the system.

The C library keeps what is free as long as anything small lies above it; asked (`malloc_trim`), it gives whole pages back from in
between. Python keeps small objects in arenas of a megabyte, and gives an arena back when all of it is free: a few jobs that came during
a burst of connections lie in every arena that the burst had, and hold all of them. So what Python has free is claimed here in blocks, the
pages that are wholly of such blocks are given back, and the blocks stay claimed until connections come again. How the allocator
lays them out is only believed as far as the blocks themselves show it. Measured with 10,000 connections of `scripts/attack` that went:
59 MB before, 190 MB with them, 160 MB without this, 99 MB with it, 15 s after the end. An allocator that gives pages back by itself
(PYTHONMALLOC=malloc) costs a quarter of every request.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import mmap
from array import array
from collections.abc import Iterable
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quorumq.api.server import Server

log = logging.getLogger(__name__)

# How often it is looked whether there is memory to give back.
GIVE_BACK_S = 10.0
# Connections that have to go, or come, for it to be worth it.
MANY_CONNECTIONS = 500
# The largest that Python's own allocator serves: fewest blocks to a page.
BLOCK_BYTES = 512
# Its pools, each with a header in front and, at its end, what is too little for another block.
POOL_BYTES = 16 << 10
# What is claimed between two looks at the process' size, and at most in all.
SLICE = 2048
CLAIMED_BYTES_MAX = 512 << 20
MADV_DONTNEED = 4


def resident_bytes() -> int:
    """Return the memory of this process that is in RAM; 0 where the system does not say."""
    try:
        with Path("/proc/self/statm").open("rb") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


async def give_back(server: Server) -> None:
    """Give memory back that bodies and connections have left. Runs until it is cancelled.

    It is done when large bodies have come and none is under way, or when many connections have gone; what takes long is done in a
    thread, or in slices.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    claim = Claim()
    seen = most = fewest = claimed_at = 0
    going = False
    while True:
        await asyncio.sleep(GIVE_BACK_S)
        bodies, connections = server.bodies, len(server.door.connections)
        most, fewest = max(most, server.door.most()), min(fewest, connections)
        if claim.bytes and (connections > fewest + MANY_CONNECTIONS or resident_bytes() > claimed_at + claim.bytes):
            # There is use for it again.
            await claim.let_go()
        # What they leave takes a moment to come to its end.
        many_gone, going = going, connections + MANY_CONNECTIONS < most and not going
        if not many_gone and (bodies.taken == seen or bodies.pending_bytes):
            continue
        seen = bodies.taken
        if many_gone:
            before, gone, most = resident_bytes(), most - connections, connections
            await claim.let_go()
            # Connections, requests and what they were waiting for know each other.
            gc.collect()
        if trim is not None:
            await asyncio.to_thread(trim, 0)
        if many_gone:
            await claim.take()
            fewest, claimed_at = connections, resident_bytes()
            log.info("%d connections have gone: %d MB of memory went back", gone, max(before - claimed_at, 0) >> 20)


class Claim:
    """Blocks of Python's allocator that were free, whose pages are the system's again."""

    def __init__(self) -> None:
        self._malloc: Any = ctypes.pythonapi.PyObject_Malloc
        self._malloc.argtypes, self._malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
        self._free: Any = ctypes.pythonapi.PyObject_Free
        self._free.argtypes, self._free.restype = (ctypes.c_void_p,), None
        self._madvise: Any = getattr(ctypes.CDLL(None, use_errno=True), "madvise", None)
        if self._madvise is not None:
            self._madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        # As many numbers as objects of Python would be a tenth of what they claim.
        self._blocks = array("Q")

    @property
    def bytes(self) -> int:
        """Address space that is claimed."""
        return len(self._blocks) * BLOCK_BYTES

    async def take(self) -> None:
        """Claim what is free until the process would grow by it, in slices that hold nobody up, and give its pages back."""
        if self._madvise is None or not resident_bytes():
            return
        while self.bytes < CLAIMED_BYTES_MAX:
            before = resident_bytes()
            piece = list(map(self._malloc, repeat(BLOCK_BYTES, SLICE)))
            if resident_bytes() - before > SLICE * BLOCK_BYTES // 2:
                # These were none that Python had: it got them from the system just now, and gives them back as a whole.
                self._release(piece)
                break
            self._blocks.extend(piece)
            piece.sort()
            for begins, length in pages(piece, ends_at=pool_bytes(piece)):
                self._madvise(begins, length, MADV_DONTNEED)
            await asyncio.sleep(0)

    async def let_go(self) -> None:
        """Let Python have the blocks again."""
        while self._blocks:
            piece = self._blocks[-SLICE:]
            del self._blocks[-SLICE:]
            self._release(piece)
            await asyncio.sleep(0)

    def _release(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._free(block)


def pool_bytes(blocks: list[int]) -> int:
    """Return POOL_BYTES if Python's allocator has its blocks in pools of that size, or of a part of it; else 0. blocks: sorted, of one go.

    It fills a pool before it begins the next, and in a larger one every 32nd block would lie across such a boundary.
    """
    whole = len(blocks) >= 4 * POOL_BYTES // BLOCK_BYTES
    return POOL_BYTES if whole and all(block % POOL_BYTES + BLOCK_BYTES <= POOL_BYTES for block in blocks) else 0


def pages(blocks: list[int], *, ends_at: int = 0) -> list[tuple[int, int]]:
    """Return where runs of whole pages begin that lie within neighbouring blocks, and how long they are. blocks: sorted.

    ends_at: the size of a pool; what is left at its end, less than a block, is nobody's.
    """
    found = []
    first = last = 0
    for block in [*blocks, 0]:
        if block and block == last:
            last += BLOCK_BYTES
            continue
        begins = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
        if ends_at and last % ends_at > ends_at - BLOCK_BYTES:
            last = -(-last // ends_at) * ends_at
        ends = last // mmap.PAGESIZE * mmap.PAGESIZE
        if ends > begins:
            found.append((begins, ends - begins))
        first, last = block, block + BLOCK_BYTES
    return found

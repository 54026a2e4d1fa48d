"""Links between the members of a cluster that go wrong in user space: no root, and no namespaces.

Every member is reached through a door of its own, a port of this process, and every member's PEERS names the doors. Who dials
shows in the handshake's first frame, so that each direction of each pair can be treated by itself. TLS would hide that.

What can be wrong with a direction: `cut`, nothing arrives any more and nobody is told; `slow`, everything arrives late and little
at a time; `lossy`, pieces arrive late as if they had been sent again, and now and then the connection breaks in the middle of a frame.
A connection cannot be opened while either direction of its pair is cut. When a cut heals, what was under way arrives late or the
connection breaks, by chance; both are what TCP does.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from quorumq.cluster import codec
from tests.support.local_cluster import HOST, LocalNode

Way = tuple[str, str]
"""From whom, to whom."""

PIECE_BYTES = 16 << 10
HELLO_BYTES_MAX = 4096
HELLO_S = 5.0
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True)
class Manner:
    """How a direction behaves.

    delay_s: each piece arrives so much later, and up to twice as much by chance.  bytes_per_s: 0 for no bound.
    lost: share of the pieces that arrive `again_s` later, as what was sent again.  broken: share of the pieces at which the
    connection ends.
    """

    delay_s: float = 0.0
    bytes_per_s: float = 0.0
    lost: float = 0.0
    again_s: float = 0.2
    broken: float = 0.0


WELL = Manner()


class Links:
    """All doors of a cluster. cuts: what does not arrive.  manners: what arrives otherwise than it should.

    broken: connections that a fault has ended.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.cuts: set[Way] = set()
        self.manners: dict[Way, Manner] = {}
        self.broken = 0
        self._doors: dict[str, asyncio.Server] = {}
        self._pipes: set[_Pipe] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._healed = asyncio.Condition()

    async def open(self, node: LocalNode) -> str:
        """Open the door of a node, which listens on its peer port; returns the address that the others are to dial."""

        async def came(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                await self._join(node, reader, writer)
            finally:
                self._tasks.discard(task)
                writer.close()

        server = await asyncio.start_server(came, HOST, 0, limit=PIECE_BYTES)
        self._doors[node.id] = server
        return f"{HOST}:{server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        for server in self._doors.values():
            server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- Faults

    def cut(self, source: str, target: str) -> None:
        """Let nothing from `source` arrive at `target` any more."""
        self.cuts.add((source, target))

    def heal(self, source: str, target: str) -> None:
        """Undo what is wrong with a direction."""
        self.manners.pop((source, target), None)
        if (source, target) in self.cuts:
            self.cuts.discard((source, target))
            for pipe in tuple(self._pipes):
                if pipe.way == (source, target) and self.rng.random() < 0.5:
                    self._break(pipe)
            self._wake()

    def heal_all(self) -> None:
        """Undo everything."""
        for source, target in sorted(self.cuts | self.manners.keys()):
            self.heal(source, target)

    def treat(self, ways: Iterable[Way], manner: Manner) -> None:
        """Have directions behave in a manner until they are healed."""
        for way in ways:
            self.manners[way] = manner

    def _wake(self) -> None:
        async def wake() -> None:
            async with self._healed:
                self._healed.notify_all()

        task = asyncio.ensure_future(wake())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _break(self, pipe: _Pipe) -> None:
        self.broken += 1
        pipe.abort()

    async def _until_whole(self, *ways: Way) -> None:
        async with self._healed:
            await self._healed.wait_for(lambda: self.cuts.isdisjoint(ways))

    # -- Connections

    async def _join(self, node: LocalNode, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Join somebody who came to the node's door with the node, as soon as both can hear each other."""
        try:
            async with asyncio.timeout(HELLO_S):
                hello = await first_frame(reader)
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError, ValueError):
            return
        dialler = str(codec.loads(hello[_LENGTH.size :]).get("from", ""))
        there, back = (dialler, node.id), (node.id, dialler)
        await self._until_whole(there, back)
        try:
            onward, outward = await asyncio.open_connection(node.host, node.peer_port, limit=PIECE_BYTES)
        except OSError:
            # As a closed port does, and not as one who hangs up: the dialling side takes the latter for a node that ended.
            writer.transport.abort()
            return
        pipes = [_Pipe(there, reader, outward, (writer, outward)), _Pipe(back, onward, writer, (writer, outward))]
        self._pipes.update(pipes)
        try:
            outward.write(hello)
            # Either end takes the other with it, once what was under way has arrived.
            async with asyncio.TaskGroup() as both:
                for pipe in pipes:
                    both.create_task(self._carry(pipe))
        finally:
            self._pipes.difference_update(pipes)
            outward.close()

    async def _carry(self, pipe: _Pipe) -> None:
        """Carry pieces until one end closes or the connection breaks."""
        try:
            while piece := await pipe.source.read(PIECE_BYTES):
                manner = self.manners.get(pipe.way, WELL)
                if manner is not WELL and not await self._late(manner, piece):
                    # Half a frame has gone out already, or nothing.
                    pipe.target.write(piece[: len(piece) // 2])
                    self._break(pipe)
                    return
                if pipe.way in self.cuts:
                    await self._until_whole(pipe.way)
                pipe.target.write(piece)
                await pipe.target.drain()
        except ConnectionError:
            pass
        # A process that was killed shows to the other side at once, but not through a cut.
        if pipe.way in self.cuts:
            await self._until_whole(pipe.way)
        pipe.end()

    async def _late(self, manner: Manner, piece: bytes) -> bool:
        """Wait as long as the manner has it; returns whether the piece arrives at all."""
        if self.rng.random() < manner.broken:
            return False
        wait_s = manner.delay_s * self.rng.uniform(1, 2)
        if manner.bytes_per_s:
            wait_s += len(piece) / manner.bytes_per_s
        if self.rng.random() < manner.lost:
            wait_s += manner.again_s * self.rng.uniform(1, 2)
        await asyncio.sleep(wait_s)
        return True


class _Pipe:
    """One direction of one connection."""

    def __init__(
        self,
        way: Way,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
    ) -> None:
        self.way = way
        self.source = source
        self.target = target
        self._ends = ends

    def abort(self) -> None:
        """Reset both ends."""
        for end in self._ends:
            end.transport.abort()

    def end(self) -> None:
        """Pass on that one side has closed."""
        with contextlib.suppress(ConnectionError):
            self.target.close()


async def first_frame(reader: asyncio.StreamReader) -> bytes:
    """Return the first frame of a connection with its length. Raises ValueError for one that is no handshake's."""
    head = await reader.readexactly(_LENGTH.size)
    (length,) = _LENGTH.unpack(head)
    if length > HELLO_BYTES_MAX:
        raise ValueError("not a handshake")
    return head + await reader.readexactly(length)

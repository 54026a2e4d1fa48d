"""The whole state as bytes and back: a header, then each queue with its jobs, in an order that the state alone decides.

Every piece carries its length, so a reader may get them cut anywhere. Equal states give equal images, whatever their
histories. Old images must stay readable: fields are only appended, and what cannot be read that way raises `VERSION`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from operator import attrgetter

import msgspec

from node.state.job import ACTIVE, COMPLETED, DEFAULT, DELAYED, FAILED, WAITING, WAITING_CHILDREN, Job, LogLine
from node.state.queue import Queue, QueueCounters, QueueSettings
from node.state.state import Remembered, State

VERSION = 1
PIECE_BYTES = 1 << 20
# A record without its data, roughly; it only has to keep pieces near their size.
RECORD_BYTES = 120
_LENGTH_BYTES = 4


class ImageDamaged(Exception):
    """The bytes are not an image, or not all of it, or of a version that this program cannot read."""


class Header(msgspec.Struct, tag="header", gc=False):
    """What is not in any queue. remembered: ids of completed jobs whose records are gone, oldest first."""

    version: int
    index: int
    digest: bytes
    now_ms: int
    seq: int
    fence: int
    endings: int
    mark: int
    jobs: int
    remembered: list[str] = []


class QueuePiece(msgspec.Struct, tag="queue", gc=False):
    """A queue without its jobs; the pieces with its jobs follow."""

    name: str
    settings: QueueSettings
    counters: QueueCounters
    rate_level: int = 0
    rate_at: int = 0


class JobsPiece(msgspec.Struct, tag="jobs", gc=False):
    """Some jobs of the queue that came last."""

    jobs: list[Job]


class LogsPiece(msgspec.Struct, tag="logs", gc=False):
    """Log lines of some jobs, in the order in which the jobs were logged to last."""

    lines: list[tuple[str, list[LogLine]]]


class End(msgspec.Struct, tag="end", gc=False):
    """The last piece: an image without it is not whole."""


Piece = Header | QueuePiece | JobsPiece | LogsPiece | End

_encoder = msgspec.msgpack.Encoder()
_decode = msgspec.msgpack.Decoder(Piece).decode


def write(state: State, index: int, digest: bytes) -> Iterator[bytes]:
    """Yield the image of a state piece by piece."""
    yield _frame(
        Header(
            version=VERSION,
            index=index,
            digest=digest,
            now_ms=state.now_ms,
            seq=state.seq,
            fence=state.fence,
            endings=state.endings,
            mark=state.mark,
            jobs=len(state.jobs),
            remembered=state.remembered.ids(),
        )
    )
    for queue in state.queues.values():
        yield _frame(QueuePiece(queue.name, queue.settings, queue.counters, queue.rate_level, queue.rate_at))
        # Active jobs come first: they decide which jobs of a group may stand among the ready ones.
        jobs = chain(
            queue.active.values(),
            queue.waiting(),
            queue.delayed,
            queue.waiting_children.values(),
            queue.completed,
            queue.failed,
        )
        for part in _parts(jobs):
            yield _frame(JobsPiece(part))
    for lines in _batched(state.logs):
        yield _frame(LogsPiece(lines))
    yield _frame(End())


def _batched(logs: dict[str, list[LogLine]]) -> Iterator[list[tuple[str, list[LogLine]]]]:
    part: list[tuple[str, list[LogLine]]] = []
    size = 0
    for job_id, lines in logs.items():
        part.append((job_id, lines))
        size += sum(len(line.message) + RECORD_BYTES for line in lines)
        if size >= PIECE_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _parts(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    part: list[Job] = []
    size = 0
    for job in jobs:
        part.append(job)
        size += len(job.data) + RECORD_BYTES
        if job.result is not None:
            size += len(job.result)
        if size >= PIECE_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _frame(piece: Piece) -> bytes:
    frame = bytearray(_LENGTH_BYTES)
    _encoder.encode_into(piece, frame, _LENGTH_BYTES)
    frame[:_LENGTH_BYTES] = (len(frame) - _LENGTH_BYTES).to_bytes(_LENGTH_BYTES, "big")
    return bytes(frame)


def read(pieces: Iterable[bytes]) -> tuple[State, int, bytes]:
    """Build the state of an image; return it with its log index and digest. Raises ImageDamaged."""
    frames = _unframe(pieces)
    header = next(frames, None)
    if not isinstance(header, Header):
        raise ImageDamaged("the image does not begin with its header")
    if header.version != VERSION:
        raise ImageDamaged(f"the image has version {header.version}, this program reads version {VERSION}")
    state = State()
    state.now_ms, state.seq, state.fence = header.now_ms, header.seq, header.fence
    state.endings, state.mark = header.endings, header.mark
    state.remembered = Remembered(header.remembered)
    queue: Queue | None = None
    for piece in frames:
        if isinstance(piece, QueuePiece):
            _close(queue)
            queue = Queue(piece.name, piece.settings)
            queue.counters = piece.counters
            queue.rate_level, queue.rate_at = piece.rate_level, piece.rate_at
            state.queues[queue.name] = queue
        elif isinstance(piece, JobsPiece) and queue is not None:
            _place(state, queue, piece.jobs)
        elif isinstance(piece, LogsPiece):
            state.logs.update(piece.lines)
        elif isinstance(piece, End):
            _close(queue)
            if len(state.jobs) != header.jobs:
                raise ImageDamaged(f"the image holds {len(state.jobs)} jobs, its header says {header.jobs}")
            return state, header.index, header.digest
        else:
            raise ImageDamaged("the pieces of the image are out of order")
    raise ImageDamaged("the image ends too early")


_STATES = {name: name for name in (ACTIVE, COMPLETED, DELAYED, FAILED, WAITING, WAITING_CHILDREN)}


def _place(state: State, queue: Queue, jobs: list[Job]) -> None:
    # Values that jobs share in a living state come out of the decoder as one object each; sharing them again saves a
    # quarter of the memory.
    name = queue.name
    created_at = 0
    for job in jobs:
        job.queue = name
        job.state = _STATES[job.state]
        if job.opts == DEFAULT:
            job.opts = DEFAULT
        seq = job.seq
        if job.order == seq:
            job.order = seq
        if job.created_at == created_at:
            job.created_at = created_at
        else:
            created_at = job.created_at
        if job.run_at == created_at:
            job.run_at = created_at
        state.place(queue, job)


def _close(queue: Queue | None) -> None:
    """Put the jobs of a queue, which came by state, into the order of their births."""
    if queue is not None:
        queue.jobs = {job.id: job for job in sorted(queue.jobs.values(), key=attrgetter("seq"))}


def _unframe(pieces: Iterable[bytes]) -> Iterator[Piece]:
    pending = bytearray()
    for piece in pieces:
        pending += piece
        start = 0
        while len(pending) - start >= _LENGTH_BYTES:
            begin = start + _LENGTH_BYTES
            end = begin + int.from_bytes(pending[start:begin], "big")
            if end > len(pending):
                break
            try:
                yield _decode(memoryview(pending)[begin:end].toreadonly())
            except msgspec.DecodeError as error:
                raise ImageDamaged(f"a piece of the image cannot be read: {error}") from None
            start = end
        del pending[:start]
    if pending:
        raise ImageDamaged("the image ends in the middle of a piece")

"""The whole state as bytes and back: a header, then each queue with its jobs, in an order that the state alone decides.

Every piece carries its length, so a reader may get them cut anywhere. Equal states give equal images, whatever their
histories. Old images must stay readable: fields are only appended, and what cannot be read that way raises `VERSION`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain
from operator import attrgetter, itemgetter
from typing import TypeVar

import msgspec

from node.state.job import ACTIVE, COMPLETED, DEFAULT, DELAYED, FAILED, WAITING, WAITING_CHILDREN, Job, LogLine
from node.state.outcomes import Outcome, weight_of
from node.state.pusher import Pusher
from node.state.queue import GroupSettings, Queue, QueueCounters, QueueSettings, Sums
from node.state.schedule import Cron, Following
from node.state.state import Remembered, State, weight
from node.state.webhook import Delivery, Webhook
from node.state.webhook import weight_of as weight_of_delivery
from node.state.worker import Gone, Worker

VERSION = 1
PIECE_BYTES = 1 << 20
# A record without its data, roughly; it only has to keep pieces near their size.
RECORD_BYTES = 120
_LENGTH_BYTES = 4
_JOBS_PER_STEP = 1000


class ImageDamaged(ValueError):
    """The bytes are not an image, or not all of it, or of a version that this program cannot read."""


class Header(msgspec.Struct, tag="header", gc=False):
    """What is not in any queue. remembered: ids of completed jobs whose records are gone, oldest first.

    gone: what went through queues that are no more.
    """

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
    grace_until: int = 0
    gone: Sums = msgspec.field(default_factory=Sums)


class QueuePiece(msgspec.Struct, tag="queue", gc=False):
    """A queue without its jobs; the pieces with its jobs follow."""

    name: str
    settings: QueueSettings
    counters: QueueCounters
    rate_level: int = 0
    rate_at: int = 0
    number: int = 0
    window_at: int = 0
    window_count: int = 0
    held_until: int = 0
    group_settings: list[tuple[str, GroupSettings]] = []


class KeysPiece(msgspec.Struct, tag="keys", gc=False):
    """Some unique keys of the queue that came last: those with a time of their own. (end, key, id of the job that holds it)."""

    keys: list[tuple[int, str, str]]


class JobsPiece(msgspec.Struct, tag="jobs", gc=False):
    """Some jobs of the queue that came last."""

    jobs: list[Job]


class LogsPiece(msgspec.Struct, tag="logs", gc=False):
    """Log lines of some jobs, in the order in which the jobs were logged to last."""

    lines: list[tuple[str, list[LogLine]]]


class OutcomesPiece(msgspec.Struct, tag="outcomes", gc=False):
    """What some requests with an idempotency key were answered, oldest first."""

    outcomes: list[tuple[str, Outcome]]


class SchedulePiece(msgspec.Struct, tag="schedule", gc=False):
    """Some crons in order of creation, and jobs that are to follow others."""

    crons: list[Cron]
    following: list[Following] = []


class WorkersPiece(msgspec.Struct, tag="workers", gc=False):
    """All registered workers in order of registration, and what others did before."""

    workers: list[Worker]
    gone: Gone


class WebhookPiece(msgspec.Struct, tag="webhook", gc=False):
    """A webhook, or more of what waits for it."""

    webhook: Webhook
    deliveries: list[Delivery] = []


class PushersPiece(msgspec.Struct, tag="pushers", gc=False):
    """Some registrations of endpoints, in order; and the nodes that call endpoints."""

    pushers: list[Pusher]
    nodes: list[str]
    generation: int


class End(msgspec.Struct, tag="end", gc=False):
    """The last piece: an image without it is not whole."""


Piece = (
    Header
    | QueuePiece
    | KeysPiece
    | JobsPiece
    | LogsPiece
    | OutcomesPiece
    | SchedulePiece
    | WorkersPiece
    | WebhookPiece
    | PushersPiece
    | End
)

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
            grace_until=state.grace_until,
            gone=state.gone,
        )
    )
    for queue in state.queues.values():
        yield _frame(
            QueuePiece(
                queue.name,
                queue.settings,
                queue.counters,
                queue.rate_level,
                queue.rate_at,
                queue.number,
                queue.window_at,
                queue.window_count,
                queue.held_until,
                sorted(queue.group_settings.items(), key=itemgetter(0)),
            )
        )
        # Active jobs come first: they decide which jobs of a group may stand among the ready ones.
        jobs = chain(
            queue.active.values(),
            queue.waiting(),
            queue.delayed,
            queue.waiting_children.values(),
            queue.completed,
            queue.failed,
        )
        for part in _in_pieces(jobs, _weight_of_job):
            yield _frame(JobsPiece(part))
        held = sorted((until, key, queue.unique[key]) for key, until in queue.throttled.items())
        for keys in _in_pieces(held, _weight_of_key):
            yield _frame(KeysPiece(keys))
    for lines in _in_pieces(state.logs.items(), _weight_of_lines):
        yield _frame(LogsPiece(lines))
    for crons in _in_pieces(state.schedule.crons.values(), _weight_of_template):
        yield _frame(SchedulePiece(crons))
    for following in _in_pieces(state.schedule.following.values(), _weight_of_template):
        yield _frame(SchedulePiece([], following))
    if state.workers.by_id or state.workers.gone != Gone():
        yield _frame(WorkersPiece(list(state.workers.by_id.values()), state.workers.gone))
    for webhook in state.webhooks.by_id.values():
        yield _frame(WebhookPiece(webhook))
        for deliveries in _in_pieces(state.webhooks.outboxes[webhook.id].deliveries, weight_of_delivery):
            yield _frame(WebhookPiece(webhook, deliveries))
    pushers = state.pushers
    if pushers.generation or pushers.nodes:
        for some in _in_pieces(pushers.by_queue.values(), _weight_of_pusher):
            yield _frame(PushersPiece(some, [], pushers.generation))
        yield _frame(PushersPiece([], list(pushers.nodes), pushers.generation))
    for outcomes in _in_pieces(state.outcomes.items(), _weight_of_outcome):
        yield _frame(OutcomesPiece(outcomes))
    yield _frame(End())


T = TypeVar("T")


def _in_pieces(items: Iterable[T], weigh: Callable[[T], int]) -> Iterator[list[T]]:
    """Cut items into lists of about the size of a piece."""
    part: list[T] = []
    size = 0
    for item in items:
        part.append(item)
        size += weigh(item)
        if size >= PIECE_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _weight_of_key(item: tuple[int, str, str]) -> int:
    return RECORD_BYTES + len(item[1])


def _weight_of_lines(item: tuple[str, list[LogLine]]) -> int:
    return sum(len(line.message) + RECORD_BYTES for line in item[1])


def _weight_of_outcome(item: tuple[str, Outcome]) -> int:
    return weight_of(*item)


def _weight_of_template(item: Cron | Following) -> int:
    return RECORD_BYTES + len(item.job.data if isinstance(item, Cron) else item.data)


def _weight_of_pusher(pusher: Pusher) -> int:
    return RECORD_BYTES + len(pusher.url) + sum(len(name) + len(value) for name, value in pusher.headers)


def _weight_of_job(job: Job) -> int:
    return RECORD_BYTES + weight(job)


def _frame(piece: Piece) -> bytes:
    frame = bytearray(_LENGTH_BYTES)
    _encoder.encode_into(piece, frame, _LENGTH_BYTES)
    frame[:_LENGTH_BYTES] = (len(frame) - _LENGTH_BYTES).to_bytes(_LENGTH_BYTES, "big")
    return bytes(frame)


def read(pieces: Iterable[bytes]) -> tuple[State, int, bytes]:
    """Build the state of an image; return it with its log index and digest. Raises ImageDamaged."""
    steps = reading(pieces)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: tuple[State, int, bytes] = end.value
            return found


def reading(pieces: Iterable[bytes]) -> Generator[None, None, tuple[State, int, bytes]]:
    """Do what `read` does in steps of a few milliseconds, yielding between them."""
    frames = _unframe(pieces)
    header = next(frames, None)
    if not isinstance(header, Header):
        raise ImageDamaged("the image does not begin with its header")
    if header.version != VERSION:
        raise ImageDamaged(f"the image has version {header.version}, this program reads version {VERSION}")
    state = State()
    state.now_ms, state.seq, state.fence = header.now_ms, header.seq, header.fence
    state.endings, state.mark = header.endings, header.mark
    state.grace_until = header.grace_until
    state.gone = header.gone
    state.remembered = Remembered(header.remembered)
    queue: Queue | None = None
    for piece in frames:
        yield
        if isinstance(piece, QueuePiece):
            yield from _close(queue)
            queue = Queue(piece.name, piece.settings)
            queue.counters = piece.counters
            queue.rate_level, queue.rate_at, queue.number = piece.rate_level, piece.rate_at, piece.number
            queue.window_at, queue.window_count = piece.window_at, piece.window_count
            queue.held_until = piece.held_until
            queue.group_settings = dict(piece.group_settings)
            state.queues[queue.name] = queue
        elif isinstance(piece, JobsPiece) and queue is not None:
            for start in range(0, len(piece.jobs), _JOBS_PER_STEP):
                _place(state, queue, piece.jobs[start : start + _JOBS_PER_STEP])
                yield
        elif isinstance(piece, KeysPiece) and queue is not None:
            for until, key, holder in piece.keys:
                state.place_key(queue, key, holder, until)
        elif isinstance(piece, LogsPiece):
            state.logs.update(piece.lines)
        elif isinstance(piece, SchedulePiece):
            for cron in piece.crons:
                state.schedule.put(cron)
            state.schedule.following.update((job.id, job) for job in piece.following)
        elif isinstance(piece, WorkersPiece):
            state.workers.restore(piece.workers, piece.gone)
        elif isinstance(piece, WebhookPiece):
            state.webhooks.put(piece.webhook)
            state.webhooks.restore(piece.webhook.id, piece.deliveries)
        elif isinstance(piece, PushersPiece):
            state.pushers.restore(piece.pushers, piece.nodes, piece.generation)
        elif isinstance(piece, OutcomesPiece):
            state.outcomes.restore(piece.outcomes)
        elif isinstance(piece, End):
            yield from _close(queue)
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


def _close(queue: Queue | None) -> Iterator[None]:
    """Put the jobs of a queue, which came by state, into the order of their births."""
    if queue is None or not queue.jobs:
        return
    # In parts, because sorting a million jobs at once would hold up everything else for half a second.
    jobs = list(queue.jobs.values())
    first = last = jobs[0].seq
    for start in range(0, len(jobs), _JOBS_PER_STEP):
        yield
        seqs = [job.seq for job in jobs[start : start + _JOBS_PER_STEP]]
        first, last = min(first, *seqs), max(last, *seqs)
    width = (last - first) * _JOBS_PER_STEP // len(jobs) + 1
    parts: list[list[Job]] = [[] for _ in range((last - first) // width + 1)]
    for start in range(0, len(jobs), _JOBS_PER_STEP):
        yield
        for job in jobs[start : start + _JOBS_PER_STEP]:
            parts[(job.seq - first) // width].append(job)
    queue.jobs = {}
    for part in parts:
        yield
        part.sort(key=attrgetter("seq"))
        queue.jobs.update((job.id, job) for job in part)


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

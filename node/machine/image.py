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
from msgspec import UNSET, UnsetType

from quorumq.cluster.errors import NotUnderstood
from quorumq.node.machine.levels import KNOWN
from quorumq.node.machine.lifecycle import indexes, retention, unique_keys
from quorumq.node.machine.state.bullmq import BullMQ
from quorumq.node.machine.state.bullmq.facts import QueueFacts, weight_of_facts
from quorumq.node.machine.state.bullmq.metas import weight_of as weight_of_meta
from quorumq.node.machine.state.bullmq.presence import Client
from quorumq.node.machine.state.bullmq.sessions import Answer
from quorumq.node.machine.state.bullmq.sessions import weight_of as weight_of_answer
from quorumq.node.machine.state.bullmq.streams import Entry as EventEntry
from quorumq.node.machine.state.bullmq.streams import weight_of as weight_of_event
from quorumq.node.machine.state.dependents import Remembered
from quorumq.node.machine.state.digests import Digests
from quorumq.node.machine.state.group import GroupSettings, GroupUse
from quorumq.node.machine.state.job import (
    ACTIVE,
    COMPLETED,
    DEFAULT,
    DELAYED,
    FAILED,
    WAITING,
    WAITING_CHILDREN,
    Job,
    LogLine,
    weight,
    weight_of_links,
)
from quorumq.node.machine.state.minutes import Minutes
from quorumq.node.machine.state.outcomes import Outcome, ScopedOutcome, scope_of, weight_of
from quorumq.node.machine.state.pusher import Pusher
from quorumq.node.machine.state.queue import Queue, QueueCounters, QueueSettings, Retention, Sums
from quorumq.node.machine.state.schedule import Cron, Following, Held
from quorumq.node.machine.state.state import State
from quorumq.node.machine.state.webhook import Delivery, Webhook
from quorumq.node.machine.state.webhook import weight_of as weight_of_delivery
from quorumq.node.machine.state.worker import Gone, Worker

VERSION = 1 + KNOWN
"""The highest that is read. An image's version is one more than its feature level: a program that does not know the level refuses it."""
PIECE_BYTES = 1 << 20
# A record without its data, roughly; it only has to keep pieces near their size.
RECORD_BYTES = 120
_LENGTH_BYTES = 4
_JOBS_PER_STEP = 1000


class ImageDamaged(ValueError):
    """The bytes are not an image, or not all of it, or of a version that this program cannot read."""


class UnderWay(msgspec.Struct, gc=False, omit_defaults=True):
    """What is half done, from feature level 1 on.

    unreleased: ids of jobs whose ends others have not been told yet.  retiming: queues and states whose jobs get other timers, and
    up to which one they have them.  failing: ids of jobs that fail because a child did, with the reason.
    """

    digests: Digests
    unreleased: list[tuple[str, bytes | None]] = []
    retiming: list[tuple[str, str, int]] = []
    failing: list[tuple[str, str]] = []


class Header(msgspec.Struct, tag="header", gc=False):
    """What is not in any queue. remembered: ids of completed jobs whose records are gone, oldest first.

    gone: what went through queues that are no more.  retention: what queues keep that have no settings of their own for it.
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
    retention: Retention | UnsetType = UNSET
    under_way: UnderWay | UnsetType = UNSET


class MinutesOf(msgspec.Struct, gc=False, array_like=True):
    """When jobs of a queue ended in one way. From feature level 1 on."""

    last_at: int
    packed: list[int]


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
    group_uses: list[tuple[str, GroupUse]] | UnsetType = UNSET
    completions: MinutesOf | UnsetType = UNSET
    failures: MinutesOf | UnsetType = UNSET


class KeysPiece(msgspec.Struct, tag="keys", gc=False):
    """Some unique keys of the queue that came last: those with a time of their own. (end, key, id of the job that holds it)."""

    keys: list[tuple[int, str, str]]


class JobsPiece(msgspec.Struct, tag="jobs", gc=False):
    """Some jobs of the queue that came last."""

    jobs: list[Job]


class LogsPiece(msgspec.Struct, tag="logs", gc=False):
    """Log lines of some jobs, in the order in which the jobs were logged to last."""

    lines: list[tuple[str, list[LogLine]]]


class LongLogsPiece(msgspec.Struct, tag="long_logs", gc=False):
    """Ids of jobs whose logs may be long, in the order in which they were logged to last. From feature level 1 on."""

    ids: list[str]


class OutcomesPiece(msgspec.Struct, tag="outcomes", gc=False):
    """What some requests with an idempotency key were answered, oldest first."""

    outcomes: list[tuple[str, Outcome]]


class AnswersPiece(msgspec.Struct, tag="answers", gc=False):
    """The same from feature level 1 on, each with its scope. evicted, lost: outcomes and digests that had to go early, so far."""

    answers: list[tuple[str, ScopedOutcome]]
    evicted: int = 0
    lost: int = 0


class ForgottenPiece(msgspec.Struct, tag="forgotten", gc=False):
    """Digests of keys of one scope and one hour of the log's clock, eight bytes each. From feature level 1 on."""

    scope: str
    hour: int
    digests: bytes


class SchedulePiece(msgspec.Struct, tag="schedule", gc=False):
    """Some crons in order of creation, and jobs that are to follow others."""

    crons: list[Cron]
    following: list[Following] = []


class HeldPiece(msgspec.Struct, tag="held", gc=False):
    """Some jobs that come at their time and are not there before. From feature level 1 on."""

    held: list[Held]


class SkippedPiece(msgspec.Struct, tag="skipped", gc=False):
    """How many executions of some crons made no job. From feature level 1 on."""

    skipped: list[tuple[str, int]]


class SpentPiece(msgspec.Struct, tag="spent", gc=False):
    """Tokens of earlier deliveries of some jobs. From feature level 1 on."""

    spent: list[tuple[str, list[int]]]


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


class EventsPiece(msgspec.Struct, tag="events", gc=False):
    """Some events of one queue's stream, oldest first. From feature level 1 on. floor: no new stream begins below it."""

    queue: str
    last: int
    most: int
    entries: list[EventEntry]
    floor: int = 0


class FactsPiece(msgspec.Struct, tag="facts", gc=False):
    """What is known of some queues because clients of the backend protocol work on them. From feature level 1 on."""

    facts: list[tuple[str, QueueFacts]]


class MetasPiece(msgspec.Struct, tag="metas", gc=False):
    """Fields that clients keep with some queues. From feature level 1 on."""

    metas: list[tuple[str, dict[str, str]]]


class SessionsPiece(msgspec.Struct, tag="sessions", gc=False):
    """A session of the backend protocol, or more of what its calls were answered. From feature level 1 on."""

    session: str
    seen_ms: int
    floor: int
    answers: list[tuple[int, Answer]]


class ClientsPiece(msgspec.Struct, tag="clients", gc=False):
    """Clients of the backend protocol at one node. From feature level 1 on."""

    node: str
    until_ms: int
    clients: list[Client]


class End(msgspec.Struct, tag="end", gc=False):
    """The last piece: an image without it is not whole."""


Piece = (
    Header
    | QueuePiece
    | KeysPiece
    | JobsPiece
    | LogsPiece
    | LongLogsPiece
    | OutcomesPiece
    | AnswersPiece
    | ForgottenPiece
    | SchedulePiece
    | HeldPiece
    | SkippedPiece
    | SpentPiece
    | WorkersPiece
    | WebhookPiece
    | PushersPiece
    | EventsPiece
    | FactsPiece
    | MetasPiece
    | SessionsPiece
    | ClientsPiece
    | End
)

_encoder = msgspec.msgpack.Encoder()
_decode = msgspec.msgpack.Decoder(Piece).decode


def _under_way(state: State) -> UnderWay:
    retiming = [(*key, done) for key, done in sorted(state.retiming.items())]
    return UnderWay(state.digests, list(state.unreleased.items()), retiming, list(state.failing.items()))


def _minutes_of(minutes: Minutes | None) -> MinutesOf | UnsetType:
    return UNSET if minutes is None else MinutesOf(minutes.last_at, minutes.packed)


def _minutes(piece: MinutesOf | UnsetType) -> Minutes | None:
    return None if piece is UNSET else Minutes(piece.last_at, piece.packed)


def write(state: State, index: int, digest: bytes) -> Iterator[bytes]:
    """Yield the image of a state piece by piece."""
    yield frame(
        Header(
            version=1 + state.level,
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
            retention=UNSET if state.retention == Retention() else state.retention,
            under_way=_under_way(state) if state.level >= 1 else UNSET,
        )
    )
    for queue in state.queues.values():
        yield frame(
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
                sorted(queue.group_uses.items(), key=itemgetter(0)) if queue.group_uses else UNSET,
                _minutes_of(queue.completions),
                _minutes_of(queue.failures),
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
            yield frame(JobsPiece(part))
        held = sorted((until, key, queue.unique[key]) for key, until in queue.throttled.items())
        for keys in _in_pieces(held, _weight_of_key):
            yield frame(KeysPiece(keys))
    for lines in _in_pieces(state.logs.by_job.items(), _weight_of_lines):
        yield frame(LogsPiece(lines))
    for ids in _in_pieces(state.logs.long, _weight_of_id):
        yield frame(LongLogsPiece(ids))
    for crons in _in_pieces(state.schedule.crons.values(), _weight_of_template):
        yield frame(SchedulePiece(crons))
    for following in _in_pieces(state.schedule.following.values(), _weight_of_template):
        yield frame(SchedulePiece([], following))
    for coming in _in_pieces(state.schedule.held.values(), _weight_of_held):
        yield frame(HeldPiece(coming))
    for skipped in _in_pieces(state.schedule.skipped.items(), _weight_of_note):
        yield frame(SkippedPiece(skipped))
    for spent in _in_pieces(state.spent.by_job.items(), _weight_of_spent):
        yield frame(SpentPiece(spent))
    if state.workers.by_id or state.workers.gone != Gone():
        yield frame(WorkersPiece(list(state.workers.by_id.values()), state.workers.gone))
    for webhook in state.webhooks.by_id.values():
        yield frame(WebhookPiece(webhook))
        for deliveries in _in_pieces(state.webhooks.outboxes[webhook.id].deliveries, weight_of_delivery):
            yield frame(WebhookPiece(webhook, deliveries))
    pushers = state.pushers
    if pushers.generation or pushers.nodes:
        for some in _in_pieces(pushers.by_queue.values(), _weight_of_pusher):
            yield frame(PushersPiece(some, [], pushers.generation))
        yield frame(PushersPiece([], list(pushers.nodes), pushers.generation))
    for outcomes in _in_pieces(state.outcomes.items(), _weight_of_outcome):
        if state.level < 1:
            yield frame(OutcomesPiece(outcomes))
        else:
            answers = [(key, _scoped(outcome)) for key, outcome in outcomes]
            yield frame(AnswersPiece(answers, state.outcomes.evicted, state.outcomes.lost))
    if not state.outcomes and state.outcomes.evicted:
        yield frame(AnswersPiece([], state.outcomes.evicted, state.outcomes.lost))
    for scope, digests in state.outcomes.slices():
        yield frame(ForgottenPiece(scope, digests.hour, digests.bytes()))
    yield from _of_bullmq(state.bullmq)
    yield frame(End())


def _of_bullmq(tables: BullMQ) -> Iterator[bytes]:
    streams = tables.streams
    for queue, stream in streams.by_queue.items():
        yield frame(EventsPiece(queue, stream.last, stream.most, [], streams.floor))
        for entries in _in_pieces(stream.entries, weight_of_event):
            yield frame(EventsPiece(queue, stream.last, stream.most, entries, streams.floor))
    if streams.floor and not streams.by_queue:
        yield frame(EventsPiece("", 0, 0, [], streams.floor))
    for facts in _in_pieces(tables.facts.by_queue.items(), weight_of_facts):
        yield frame(FactsPiece(facts))
    for metas in _in_pieces(tables.metas.by_queue.items(), _weight_of_meta):
        yield frame(MetasPiece(metas))
    for session_id, session in tables.sessions.by_id.items():
        # One without answers has a piece, too: that it is known says that its calls are not forgotten.
        for answers in _in_pieces(session.answers.items(), _weight_of_answer) if session.answers else ([],):
            yield frame(SessionsPiece(session_id, session.seen_ms, session.floor, answers))
    for node, clients in tables.presence.by_node.items():
        for some in _in_pieces(clients.by_id.values(), _weight_of_client) if clients.by_id else ([],):
            yield frame(ClientsPiece(node, clients.until_ms, some))


def _scoped(outcome: Outcome) -> ScopedOutcome:
    if isinstance(outcome, ScopedOutcome):
        return outcome
    fields = (outcome.fingerprint, outcome.at, outcome.operation, outcome.reply, outcome.refusal)
    return ScopedOutcome(*fields, scope_of(outcome))


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


def _weight_of_held(held: Held) -> int:
    return _weight_of_template(held.job)


def _weight_of_note(item: tuple[str, int]) -> int:
    return RECORD_BYTES + len(item[0])


def _weight_of_spent(item: tuple[str, list[int]]) -> int:
    return RECORD_BYTES + len(item[0]) + 9 * len(item[1])


def _weight_of_id(job_id: str) -> int:
    return len(job_id)


def _weight_of_answer(item: tuple[int, Answer]) -> int:
    return weight_of_answer(item[1])


def _weight_of_client(client: Client) -> int:
    return RECORD_BYTES + len(client.id) + len(client.queue) + len(client.name)


def _weight_of_meta(item: tuple[str, dict[str, str]]) -> int:
    return RECORD_BYTES + len(item[0]) + weight_of_meta(item[1])


def _weight_of_pusher(pusher: Pusher) -> int:
    return RECORD_BYTES + len(pusher.url) + sum(len(name) + len(value) for name, value in pusher.headers)


def _weight_of_job(job: Job) -> int:
    record = job.record
    size = RECORD_BYTES + weight(job) + (0 if job.flow is None else weight_of_links(job.flow))
    return size if record is None else size + len(record.stacks or b"") + len(record.parent or b"")


def frame(piece: Piece) -> bytes:
    """Return a piece with its length before it."""
    framed = bytearray(_LENGTH_BYTES)
    _encoder.encode_into(piece, framed, _LENGTH_BYTES)
    framed[:_LENGTH_BYTES] = (len(framed) - _LENGTH_BYTES).to_bytes(_LENGTH_BYTES, "big")
    return bytes(framed)


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
    frames = unframe(pieces)
    header = next(frames, None)
    if not isinstance(header, Header):
        raise ImageDamaged("the image does not begin with its header")
    if header.version > VERSION:
        raise NotUnderstood(f"the image has version {header.version}, this program reads versions up to {VERSION}")
    state = State()
    state.now_ms, state.seq, state.fence = header.now_ms, header.seq, header.fence
    state.endings, state.mark = header.endings, header.mark
    state.grace_until = header.grace_until
    state.gone = header.gone
    state.level = header.version - 1
    if header.retention is not UNSET:
        state.retention = header.retention
    if header.under_way is not UNSET:
        state.digests = header.under_way.digests
        state.unreleased = dict(header.under_way.unreleased)
        state.retiming = {(name, kind): done for name, kind, done in header.under_way.retiming}
        state.failing = dict(header.under_way.failing)
    state.remembered = Remembered(header.remembered)
    queue: Queue | None = None
    for piece in frames:
        yield
        if isinstance(piece, QueuePiece):
            yield from _close(state, queue)
            queue = Queue(piece.name, piece.settings)
            queue.counters = piece.counters
            queue.rate_level, queue.rate_at, queue.number = piece.rate_level, piece.rate_at, piece.number
            queue.window_at, queue.window_count = piece.window_at, piece.window_count
            queue.held_until = piece.held_until
            for group_id, settings in piece.group_settings:
                queue.set_group(group_id, settings)
            queue.completions, queue.failures = _minutes(piece.completions), _minutes(piece.failures)
            if piece.group_uses is not UNSET:
                queue.group_uses = dict(piece.group_uses)
                state.group_limits.restore(queue)
            state.queues[queue.name] = queue
        elif isinstance(piece, JobsPiece) and queue is not None:
            for start in range(0, len(piece.jobs), _JOBS_PER_STEP):
                _place(state, queue, piece.jobs[start : start + _JOBS_PER_STEP])
                yield
        elif isinstance(piece, KeysPiece) and queue is not None:
            for until, key, holder in piece.keys:
                unique_keys.place_key(state, queue, key, holder, until)
        elif isinstance(piece, LogsPiece):
            state.logs.restore(piece.lines)
        elif isinstance(piece, LongLogsPiece):
            for job_id in piece.ids:
                state.logs.restore_long(job_id)
        elif isinstance(piece, SchedulePiece):
            for cron in piece.crons:
                state.schedule.put(cron)
            state.schedule.following.update((job.id, job) for job in piece.following)
        elif isinstance(piece, HeldPiece):
            for held in piece.held:
                state.schedule.hold(held)
        elif isinstance(piece, SkippedPiece):
            state.schedule.skipped.update(piece.skipped)
        elif isinstance(piece, SpentPiece):
            state.spent.by_job.update(piece.spent)
        elif isinstance(piece, WorkersPiece):
            state.workers.restore(piece.workers, piece.gone)
        elif isinstance(piece, WebhookPiece):
            state.webhooks.put(piece.webhook)
            state.webhooks.restore(piece.webhook.id, piece.deliveries)
        elif isinstance(piece, PushersPiece):
            state.pushers.restore(piece.pushers, piece.nodes, piece.generation)
        elif isinstance(piece, OutcomesPiece):
            state.outcomes.restore(piece.outcomes)
        elif isinstance(piece, AnswersPiece):
            state.outcomes.restore(piece.answers)
            state.outcomes.evicted, state.outcomes.lost = piece.evicted, piece.lost
        elif isinstance(piece, ForgottenPiece):
            state.outcomes.restore_digests(piece.scope, piece.hour, piece.digests)
        elif isinstance(piece, EventsPiece):
            state.bullmq.streams.floor = piece.floor
            if piece.queue:
                state.bullmq.streams.restore(piece.queue, piece.last, piece.most, piece.entries)
        elif isinstance(piece, FactsPiece):
            for name, facts in piece.facts:
                state.bullmq.facts.restore(name, facts)
        elif isinstance(piece, MetasPiece):
            state.bullmq.metas.restore(piece.metas)
        elif isinstance(piece, SessionsPiece):
            state.bullmq.sessions.restore(piece.session, piece.seen_ms, piece.floor, piece.answers)
        elif isinstance(piece, ClientsPiece):
            state.bullmq.presence.restore(piece.node, piece.until_ms, piece.clients)
        elif isinstance(piece, End):
            yield from _close(state, queue)
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
        indexes.restore(state, queue, job)


def _close(state: State, queue: Queue | None) -> Iterator[None]:
    """Put the jobs of a queue, which came by state, into the order of their creation."""
    if queue is None or not queue.jobs:
        return
    if state.level >= 1:
        retention.note_overfull(state, queue)
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


def unframe(pieces: Iterable[bytes]) -> Iterator[Piece]:
    """Yield the pieces of an image, however its bytes are cut. Raises ImageDamaged."""
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
                found: Piece = _decode(memoryview(pending)[begin:end].toreadonly())
            except msgspec.DecodeError as error:
                raise ImageDamaged(f"a piece of the image cannot be read: {error}") from None
            for job in found.jobs if isinstance(found, JobsPiece) else ():
                if job.dependencies is not None or job.extra is not None:
                    job.settle_form()
            yield found
            start = end
        del pending[:start]
    if pending:
        raise ImageDamaged("the image ends in the middle of a piece")

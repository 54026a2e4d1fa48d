"""Reads the whole state a little at a time, in an order that the state alone decides, for a digest of what it holds.

A step reads a few hundred records where the last one stopped, so no entry takes long. Each record is read through the index that holds
it, together with what the other tables say of it: so a damaged index shows as damaged data does. Histograms are left out, because
nodes that were upgraded at different entries differ in them.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from hashlib import blake2b
from itertools import islice
from typing import Any

import msgspec

from quorumq.node.machine.operation import CATALOGUE, reply_type
from quorumq.node.machine.operations.flows import AddedFlow
from quorumq.node.machine.refusals import Refusal
from quorumq.node.machine.state import State
from quorumq.node.machine.state.bullmq.facts import QueueFacts, weight_of_facts
from quorumq.node.machine.state.bullmq.metas import weight_of as weight_of_meta
from quorumq.node.machine.state.bullmq.presence import Client
from quorumq.node.machine.state.bullmq.sessions import Answer
from quorumq.node.machine.state.digests import START, Place
from quorumq.node.machine.state.group import GroupSettings, GroupUse
from quorumq.node.machine.state.job import WAITING, Job, LogLine, due_rank_of, rank_of, weight_of_links
from quorumq.node.machine.state.outcomes import Outcome, scope_of, weight_of
from quorumq.node.machine.state.pusher import Pusher
from quorumq.node.machine.state.queue import Queue, QueueSettings, Retention, Sums
from quorumq.node.machine.state.schedule import Cron, Following, Held
from quorumq.node.machine.state.webhook import Delivery, Webhook
from quorumq.node.machine.state.worker import Gone, Worker

REVISION = 3
"""Rises when records are read in another way or order, so that nodes that do it differently are not compared."""
STEP_RECORDS = 500
STEP_BYTES = 512 << 10
"""One step ends with the record that passes either: about a millisecond, longer only for a single large job."""
RECORD_BYTES = 200
# Jobs passed over in one step while those are looked for that wait behind others of their group.
_PASSED_MAX = 5_000


def _refusal(value: Any) -> Any:
    if isinstance(value, Refusal):
        return [value.code, [each if isinstance(each, str | int | float) else str(each) for each in value.args]]
    # Nothing that an operation replies; its kind is better than nothing, and the same everywhere.
    return type(value).__name__


encode = msgspec.msgpack.Encoder(enc_hook=_refusal).encode


def brief(outcomes: list[list[Any]]) -> list[list[Any]]:
    """Return outcomes without the records of flows, ten thousand perhaps: they are what the entry says, and are read with all others."""
    return [[each.brief() if type(each) is AddedFlow else each for each in batch] for batch in outcomes]


class _Hand:
    """What one step has read, and whether there is room for more."""

    __slots__ = ("bytes", "records")

    def __init__(self) -> None:
        self.records: list[Any] = []
        self.bytes = 0

    @property
    def left(self) -> int:
        return STEP_RECORDS - len(self.records) if self.bytes < STEP_BYTES else 0

    def add(self, record: Any, size: int = RECORD_BYTES) -> bool:
        """Take a record; say whether that was enough."""
        self.records.append(record)
        self.bytes += size
        return len(self.records) >= STEP_RECORDS or self.bytes >= STEP_BYTES


def read(state: State, place: Place) -> tuple[bytes, Place]:
    """Return what comes next as bytes, and where to go on: START when everything has been read."""
    hand = _Hand()
    while True:
        place = _PARTS[place.part](state, place, hand)
        if not hand.left or place == START:
            return encode(hand.records), place


def whole(state: State) -> Iterator[bytes]:
    """Yield everything that one round reads, step by step; the state must not change meanwhile."""
    place = START
    while True:
        piece, place = read(state, place)
        yield piece
        if place == START:
            return


# -- What belongs to no queue


def _facts(state: State, place: Place, hand: _Hand) -> Place:
    remembered = state.remembered.ids()
    facts = (
        state.level,
        state.seq,
        state.fence,
        state.endings,
        state.grace_until,
        state.gone,
        state.retention,
        len(state.jobs),
        len(state.queues),
        len(state.dependents),
        sorted(state.overfull),
        list(state.unreleased),
        sorted(state.retiming.items()),
        list(state.failing.items()),
        remembered,
        state.workers.gone,
        state.pushers.generation,
        list(state.pushers.nodes),
        (state.bullmq.streams.floor, state.bullmq.streams.size),
    )
    hand.add(facts, RECORD_BYTES + 40 * len(remembered))
    return Place(place.part + 1)


# -- Queues: for each what is known of it, then its jobs by index


def _queues(state: State, place: Place, hand: _Hand) -> Place:
    number, stage, after = place.number, place.stage, place.after
    for queue in islice(state.queues.values(), number, None):
        while stage < len(_STAGES):
            after = _STAGES[stage](state, queue, after, hand)
            if after:
                return Place(place.part, number, stage, after)
            # The head tells how many jobs each index holds, which for a queue without any is all.
            stage = stage + 1 if queue.jobs else len(_STAGES)
            if not hand.left:
                return Place(place.part, number, stage)
        number, stage = number + 1, 0
    return Place(place.part + 1)


def _head(state: State, queue: Queue, after: str, hand: _Hand) -> str:
    counters = queue.counters
    groups: list[tuple[str, Any]] = sorted(queue.group_settings.items()) if queue.group_settings else []
    if queue.group_uses:
        groups += sorted(queue.group_uses.items())
    minutes = [(each.last_at, each.packed) for each in (queue.completions, queue.failures) if each is not None]
    head = (
        queue.name,
        queue.settings,
        (counters.pushed, counters.pulled, counters.completed, counters.failed),
        (queue.rate_level, queue.rate_at, queue.number, queue.window_at, queue.window_count, queue.held_until),
        groups,
        (len(queue.jobs), len(queue.ready), queue.parked, len(queue.delayed), len(queue.active)),
        (
            len(queue.waiting_children),
            len(queue.completed),
            len(queue.failed),
            queue.completed_bytes,
            queue.failed_bytes,
        ),
        (
            queue.prioritized,
            queue.lowered,
            len(queue.unique),
            len(queue.throttled),
            len(queue.groups),
            len(queue.aside),
        ),
        sorted(queue.priorities.items()) if queue.priorities else [],
        minutes,
    )
    hand.add(head, RECORD_BYTES + 60 * len(groups) + 9 * sum(len(packed) for _, packed in minutes))
    return ""


def _take(state: State, queue: Queue, hand: _Hand, job: Job, rank_holds: bool) -> bool:
    """Take a job with what the other tables say of it; say whether that was enough."""
    job_id, key = job.id, job.unique_key
    agree = (
        rank_holds
        + 2 * (queue.jobs.get(job_id) is job)
        + 4 * (state.jobs.get(job_id) is job)
        + 8 * (not job.due or state.timers.holds(job))
    )
    size = RECORD_BYTES + len(job.data)
    if job.result is not None:
        size += len(job.result)
    if job.dependencies is not None:
        size += 60 * len(job.dependencies.ids)
        size += sum(len(value) for value in job.dependencies.values.values() if value is not None)
        if job.flow is not None:
            size += weight_of_links(job.flow)
    if job.extra is not None and (record := job.record) is not None:
        size += len(record.stacks or b"") + len(record.parent or b"")
    return hand.add((job, agree, None if key is None else queue.unique.get(key)), size)


_Stage = Callable[[State, Queue, str, _Hand], str]


def _ranked(index: str, rank: Callable[[Job], int]) -> _Stage:
    def stage(state: State, queue: Queue, after: str, hand: _Hand) -> str:
        for at, job in getattr(queue, index).after(int(after) if after else None, hand.left):
            if _take(state, queue, hand, job, at == rank(job)):
                return str(at)
        return ""

    return stage


def _listed(index: str) -> _Stage:
    def stage(state: State, queue: Queue, after: str, hand: _Hand) -> str:
        begin = int(after) if after else 0
        for at, job in enumerate(islice(getattr(queue, index).values(), begin, None), begin + 1):
            if _take(state, queue, hand, job, rank_holds=True):
                return str(at)
        return ""

    return stage


def _parked(state: State, queue: Queue, after: str, hand: _Hand) -> str:
    """Jobs behind others of their group: their indexes have no common order, so they are looked for among all."""
    if not queue.parked:
        return ""
    begin = int(after) if after else 0
    at = begin
    for at, job in enumerate(islice(queue.jobs.values(), begin, begin + _PASSED_MAX), begin + 1):
        if job.group_id is None or job.state != WAITING:
            continue
        group = queue.groups[job.group_id]
        if group.heads.holds(rank_of(job)):
            continue
        holds = group.parked.holds(rank_of(job))
        if _take(state, queue, hand, job, holds):
            return str(at)
    if at < begin + _PASSED_MAX:
        return ""
    hand.bytes += STEP_BYTES
    return str(at)


_STAGES: tuple[_Stage, ...] = (
    _head,
    _listed("active"),
    _ranked("ready", rank_of),
    _parked,
    _ranked("delayed", due_rank_of),
    _listed("waiting_children"),
    _ranked("completed", lambda job: job.ending),
    _ranked("failed", lambda job: job.ending),
)

# -- Tables of the whole state, by position

_Part = Callable[[State, Place, _Hand], Place]


def _table(records: Callable[[State, int], Iterable[tuple[Any, int]]]) -> _Part:
    def part(state: State, place: Place, hand: _Hand) -> Place:
        begin = place.number
        for at, (record, size) in enumerate(records(state, begin), begin + 1):
            if hand.add(record, size):
                return Place(place.part, at)
        return Place(place.part + 1)

    return part


def _keys(state: State, begin: int) -> Iterator[tuple[Any, int]]:
    for until, name, key in state.throttles.islice(begin):
        yield (until, name, key, state.queues[name].unique.get(key)), RECORD_BYTES


def _logs(state: State, begin: int) -> Iterator[tuple[Any, int]]:
    for item in islice(state.logs.by_job.items(), begin, None):
        job_id, lines = item
        told = (job_id, lines, job_id in state.logs.long, state.logs.sizes[job_id])
        yield told, sum(len(line.message) + RECORD_BYTES for line in lines)


def _crons(state: State, begin: int) -> Iterator[tuple[Any, int]]:
    for cron in islice(state.schedule.crons.values(), begin, None):
        yield cron, RECORD_BYTES + len(cron.job.data)


def _following(state: State, begin: int) -> Iterator[tuple[Any, int]]:
    for following in islice(state.schedule.following.values(), begin, None):
        yield following, RECORD_BYTES + len(following.data)


def _held(state: State, begin: int) -> Iterator[tuple[Any, int]]:
    for held in islice(state.schedule.held.values(), begin, None):
        yield held, RECORD_BYTES + len(held.job.data)


def _skipped(state: State, begin: int) -> Iterator[tuple[Any, int]]:
    for item in islice(state.schedule.skipped.items(), begin, None):
        yield item, RECORD_BYTES


def _spent(state: State, begin: int) -> Iterator[tuple[Any, int]]:
    for item in islice(state.spent.by_job.items(), begin, None):
        yield item, RECORD_BYTES + 9 * len(item[1])


def _workers(state: State, begin: int) -> Iterator[tuple[Any, int]]:
    for worker in islice(state.workers.by_id.values(), begin, None):
        yield worker, RECORD_BYTES


def _pushers(state: State, begin: int) -> Iterator[tuple[Any, int]]:
    for pusher in islice(state.pushers.by_queue.values(), begin, None):
        yield pusher, RECORD_BYTES


def _outcomes(state: State, begin: int) -> Iterator[tuple[Any, int]]:
    for key, outcome in islice(state.outcomes.items(), begin, None):
        fields = (outcome.fingerprint, outcome.at, outcome.operation, outcome.reply, outcome.refusal)
        yield (key, scope_of(outcome), fields), weight_of(key, outcome)


def _forgotten(state: State, begin: int) -> Iterator[tuple[Any, int]]:
    for scope, some in islice(state.outcomes.slices(), begin, None):
        yield (scope, some.hour, some.bytes()), RECORD_BYTES + 8 * len(some)


def _streams(state: State, begin: int) -> Iterator[tuple[Any, int]]:
    """Of each stream of events its ends: what lies between them was at its end once."""
    for queue, stream in islice(state.bullmq.streams.by_queue.items(), begin, None):
        entries = stream.entries
        ends = (entries[0], entries[-1]) if entries else ()
        yield (queue, stream.last, stream.most, stream.size, len(entries), ends), RECORD_BYTES


def _bullmq_facts(state: State, begin: int) -> Iterator[tuple[Any, int]]:
    for item in islice(state.bullmq.facts.by_queue.items(), begin, None):
        yield item, weight_of_facts(item)


def _metas(state: State, begin: int) -> Iterator[tuple[Any, int]]:
    for queue, fields in islice(state.bullmq.metas.by_queue.items(), begin, None):
        yield (queue, fields), RECORD_BYTES + weight_of_meta(fields)


def _sessions(state: State, begin: int) -> Iterator[tuple[Any, int]]:
    for session_id, session in islice(state.bullmq.sessions.by_id.items(), begin, None):
        facts = (session_id, session.seen_ms, session.floor, session.size, list(session.answers.items()))
        yield facts, RECORD_BYTES + session.size


def _clients(state: State, begin: int) -> Iterator[tuple[Any, int]]:
    for node, clients in islice(state.bullmq.presence.by_node.items(), begin, None):
        facts = (node, clients.until_ms, list(clients.by_id.values()))
        yield facts, RECORD_BYTES * (1 + len(clients.by_id))


def _webhooks(state: State, place: Place, hand: _Hand) -> Place:
    number, after = place.number, place.after
    for webhook in islice(state.webhooks.by_id.values(), number, None):
        begin = int(after) if after else 0
        if not begin:
            hand.add(webhook)
        waiting = islice(state.webhooks.outboxes[webhook.id].deliveries, begin, None)
        for at, delivery in enumerate(waiting, begin + 1):
            if hand.add(delivery, RECORD_BYTES + len(delivery.data or b"") + len(delivery.error or "")):
                return Place(place.part, number, 0, str(at))
        number, after = number + 1, ""
        if not hand.left:
            return Place(place.part, number)
    return Place(place.part + 1)


def _end(state: State, place: Place, hand: _Hand) -> Place:
    return START


_PARTS: tuple[_Part, ...] = (
    _facts,
    _queues,
    _table(_keys),
    _table(_logs),
    _table(_crons),
    _table(_following),
    _table(_held),
    _table(_skipped),
    _table(_spent),
    _table(_workers),
    _webhooks,
    _table(_pushers),
    _table(_outcomes),
    _table(_forgotten),
    _table(_streams),
    _table(_bullmq_facts),
    _table(_metas),
    _table(_sessions),
    _table(_clients),
    _end,
)

# -- Who can be compared


@cache
def shape() -> bytes:
    """Return what stands for the fields of all records that are read, and of all replies.

    Nodes whose programs have other fields there hash other bytes for the same state: they are not compared.
    """
    kinds = (
        Job,
        LogLine,
        QueueSettings,
        GroupSettings,
        GroupUse,
        Retention,
        Sums,
        Cron,
        Following,
        Held,
        Worker,
        Gone,
        Webhook,
        Delivery,
        Pusher,
        Outcome,
        QueueFacts,
        Answer,
        Client,
    )
    replies = [reply_type(CATALOGUE[name].record) for name in sorted(CATALOGUE)]
    seen: set[type] = set()
    described = [str(REVISION), *(_described(kind, seen) for kind in (*kinds, *replies))]
    return blake2b("\n".join(described).encode(), digest_size=8).digest()


def _described(kind: Any, seen: set[type]) -> str:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if kind in seen:
            return kind.__name__
        seen.add(kind)
        fields = [
            f"{field.encode_name}: {_described(field.type, seen)} = {field.default!r}"
            for field in msgspec.structs.fields(kind)
        ]
        return f"{kind.__name__}{kind.__struct_config__.array_like}({', '.join(fields)})"
    parts = typing.get_args(kind)
    if hasattr(kind, "__metadata__"):  # Annotated: its bounds and words change no byte
        return _described(parts[0], seen)
    name = getattr(kind, "__name__", None) or repr(typing.get_origin(kind))
    return f"{name}[{', '.join(_described(part, seen) for part in parts)}]" if parts else str(name)

"""The image of a state whose clock had run ahead, with its clock set back: for a new cluster made of an old one's state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import msgspec

from quorumq.node.leader.crontime import InvalidSchedule, next_due_ms
from quorumq.node.machine import image
from quorumq.node.machine.state.bullmq.facts import QueueFacts
from quorumq.node.machine.state.digests import Digests
from quorumq.node.machine.state.forgotten import HOUR_MS
from quorumq.node.machine.state.group import GroupUse
from quorumq.node.machine.state.job import (
    FAR_MS,
    ClientRecord,
    Dependencies,
    Extra,
    Failures,
    Job,
    LogLine,
    Moment,
    Run,
    TiedDependencies,
)
from quorumq.node.machine.state.limits import RateLimit
from quorumq.node.machine.state.minutes import Minutes
from quorumq.node.machine.state.outcomes import Outcome, ScopedOutcome
from quorumq.node.machine.state.pusher import Circuit, Pusher
from quorumq.node.machine.state.schedule import Cron, Following, Held
from quorumq.node.machine.state.webhook import Delivery, Webhook
from quorumq.node.machine.state.worker import Worker

Record = TypeVar("Record", bound=msgspec.Struct)
Move = Callable[[int], int]

TIMES: dict[type[msgspec.Struct], tuple[str, ...]] = {
    image.Header: ("now_ms", "grace_until"),
    image.QueuePiece: ("rate_at", "window_at", "held_until"),
    RateLimit: ("until_ms",),
    image.MinutesOf: ("last_at",),
    GroupUse: ("window_at", "held_until", "look_at"),
    Job: ("created_at", "run_at", "started_at", "finished_at", "lock_until", "last_heartbeat", "due"),
    Dependencies: ("done_at",),
    TiedDependencies: ("done_at",),
    Failures: ("last_retry_at", "next_retry_at"),
    Run: ("started_at", "failed_at"),
    Moment: ("at",),
    Extra: ("processed_at", "delayed_at"),
    ClientRecord: ("processed_at", "delayed_at"),
    LogLine: ("at",),
    Outcome: ("at",),
    ScopedOutcome: ("at",),
    Cron: ("next_due", "set_at", "last_fired"),
    Following: ("after_ms",),
    Held: ("at_ms",),
    Worker: ("registered_at", "last_seen"),
    Webhook: ("created_at", "last_triggered"),
    Delivery: ("at",),
    Pusher: ("registered_at",),
    Circuit: ("next_try_at",),
    Digests: ("began_ms", "read_ms"),
    QueueFacts: ("limit_until", "checked_until", "marked_at"),
    image.SessionsPiece: ("seen_ms",),
    image.ClientsPiece: ("until_ms",),
}
"""Every field of an image that is a time of the log's clock. Not `Cron.until`, which a client names by the calendar; nor the ids of
events, which rise for ever: whoever read up to one of the wrong time reads on from there."""


def rewound(pieces: Iterable[bytes], to_ms: int) -> Iterator[bytes]:
    """Yield the image with its clock at `to_ms`, milliseconds since the epoch, if it was later; else as it was.

    By as much as the clock is set back, every time later than `to_ms` is made earlier: what was still to wait, to be locked
    or to be kept for some time on the log's clock is so for the same time from now on. So a job with a delay that was
    pushed while the clock was wrong becomes due when its delay is over; one that was pushed before, and is due later than
    the wrong clock, becomes due too early by the error. Times up to `to_ms` stay. Crons with an expression fire at its
    next time after `to_ms`, perhaps once more at one that the clock had run past.
    Raises image.ImageDamaged.
    """
    by = 0

    def move(at: int) -> int:
        return at - by if to_ms < at < FAR_MS else at

    for piece in image.unframe(pieces):
        if isinstance(piece, image.Header):
            by = max(0, piece.now_ms - to_ms)
        yield image.frame(_moved(piece, move, to_ms) if by else piece)


def _moved(piece: image.Piece, move: Move, to_ms: int) -> image.Piece:
    if isinstance(piece, image.Header) and piece.under_way is not msgspec.UNSET:
        piece.under_way.digests = _times(piece.under_way.digests, move)
    if isinstance(piece, image.JobsPiece):
        return image.JobsPiece([_job(job, move) for job in piece.jobs])
    if isinstance(piece, image.QueuePiece):
        rate = piece.settings.rate
        if rate is not None:
            piece.settings = msgspec.structs.replace(piece.settings, rate=_times(rate, move))
        if piece.completions is not msgspec.UNSET:
            piece.completions = _minutes(piece.completions, move)
        if piece.failures is not msgspec.UNSET:
            piece.failures = _minutes(piece.failures, move)
        if piece.group_uses is not msgspec.UNSET:
            piece.group_uses = [(group_id, _times(use, move)) for group_id, use in piece.group_uses]
    elif isinstance(piece, image.KeysPiece):
        piece.keys = [(move(until), key, holder) for until, key, holder in piece.keys]
    elif isinstance(piece, image.FactsPiece):
        piece.facts = [(queue, _times(facts, move)) for queue, facts in piece.facts]
    elif isinstance(piece, image.LogsPiece):
        piece.lines = [(job_id, [_times(line, move) for line in lines]) for job_id, lines in piece.lines]
    elif isinstance(piece, image.OutcomesPiece):
        piece.outcomes = [(key, _times(outcome, move)) for key, outcome in piece.outcomes]
    elif isinstance(piece, image.AnswersPiece):
        piece.answers = [(key, _times(outcome, move)) for key, outcome in piece.answers]
    elif isinstance(piece, image.ForgottenPiece):
        piece.hour = move(piece.hour * HOUR_MS) // HOUR_MS
    elif isinstance(piece, image.SchedulePiece):
        piece.crons = [_cron(cron, move, to_ms) for cron in piece.crons]
        piece.following = [_times(job, move) for job in piece.following]
    elif isinstance(piece, image.HeldPiece):
        piece.held = [_times(Held(_times(held.job, move), held.at_ms), move) for held in piece.held]
    elif isinstance(piece, image.WorkersPiece):
        piece.workers = [_times(worker, move) for worker in piece.workers]
    elif isinstance(piece, image.WebhookPiece):
        piece.webhook = _times(piece.webhook, move)
        piece.deliveries = [_times(delivery, move) for delivery in piece.deliveries]
    elif isinstance(piece, image.PushersPiece):
        piece.pushers = [
            msgspec.structs.replace(_times(each, move), circuit=_times(each.circuit, move)) for each in piece.pushers
        ]
    return _times(piece, move)


def _times(record: Record, move: Move) -> Record:
    """The record with the times that are its own moved."""
    changed = {}
    for name in TIMES.get(type(record), ()):
        at = getattr(record, name)
        if at and move(at) != at:
            changed[name] = move(at)
    return msgspec.structs.replace(record, **changed) if changed else record


def _minutes(piece: image.MinutesOf, move: Move) -> image.MinutesOf:
    minutes = Minutes(piece.last_at, piece.packed).moved(move)
    return image.MinutesOf(minutes.last_at, minutes.packed)


def _job(job: Job, move: Move) -> Job:
    job = _times(job, move)
    if job.dependencies is not None:
        job.dependencies = _times(job.dependencies, move)
    if job.failures is not None:
        job.failures = _times(job.failures, move)
        job.failures.runs = [_times(run, move) for run in job.failures.runs]
    if job.past:
        job.past = [_times(moment, move) for moment in job.past]
    if job.extra is not None:
        job.extra = _times(job.extra, move)
    return job


def _cron(cron: Cron, move: Move, to_ms: int) -> Cron:
    due = cron.next_due
    cron = _times(cron, move)
    if cron.schedule is not None and due > to_ms:
        try:
            cron.next_due = min(due, next_due_ms(cron.schedule, cron.timezone, to_ms))
        except InvalidSchedule:
            pass  # an expression that an earlier version took: it fires when its time has come, and then no more
    return cron

"""What a history says of the cluster's promises: each job's requests put together and examined, and what holds across jobs.

Promised, and looked for here: nothing acknowledged is lost; nothing is applied twice; of two locks on a job one is not valid; what
ended for good stays so; a cron's due time makes one job; a read shows all that was acknowledged before it; fencing tokens rise; a
stream of events that says nothing of a gap has none.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from scripts.tools.chaos import linear, model
from scripts.tools.chaos.events import Reader, Segment, job_in
from scripts.tools.chaos.history import DONE, FAILED, REFUSED, UNKNOWN, Request
from scripts.tools.chaos.model import Job, Op

LOST = "an acknowledged job is lost"
TWICE = "one push, more than one job"
LOCKS = "two valid locks"
UNDONE = "what ended for good did not stay so"
STALE = "a stale read"
CRON_TWICE = "a cron's due time made more than one run"
CRON_LOST = "a cron's due time made no job"
FENCES = "a fencing token was given twice, or did not rise"
GAP = "a gap in a stream of events"
EARLY = "a delayed job was given out before its time"
OUTDATED = "a token was accepted after another one had taken its place"
ORDER = "no order explains it"

STALLS_MAX = {"bullmq": 1}
STALLS_MAX_ELSE = 2
"""So many locks of a job may run out, by the dialect that pushed it; one more, and it has failed."""


@dataclass
class Violation:
    """kind: one of those above.  job: our name of it, or empty.  ops: the offending history.  culprits: requests that break it."""

    kind: str
    text: str
    job: str = ""
    ops: list[Op] = field(default_factory=list)
    culprits: set[int] = field(default_factory=set)
    order: list[int] = field(default_factory=list)


@dataclass
class Verdict:
    """jobs: examined.  undecided: those with which the search gave up.  steps: of all searches together."""

    jobs: int = 0
    ops: int = 0
    steps: int = 0
    unknown: int = 0
    undecided: list[str] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    events_compared: int = 0
    events_expected: int = 0
    gaps_told: int = 0

    @property
    def passed(self) -> bool:
        return not self.violations and not self.undecided

    def add(self, other: Verdict) -> None:
        self.jobs += other.jobs
        self.ops += other.ops
        self.steps += other.steps
        self.unknown += other.unknown
        self.undecided += other.undecided
        self.violations += other.violations
        self.events_compared += other.events_compared
        self.events_expected += other.events_expected
        self.gaps_told += other.gaps_told


@dataclass
class Known:
    """One job as its requests tell of it."""

    queue: str = ""
    dialect: str = ""
    ops: list[Op] = field(default_factory=list)


def judge(requests: Sequence[Request], readers: Sequence[Reader] = (), steps_max: int = linear.STEPS_MAX) -> Verdict:
    """Judge the history of one cluster, whole."""
    verdict = Verdict()
    jobs = by_job(requests)
    unknown_pulls = first_unknown_pulls(requests)
    for key, known in sorted(jobs.items()):
        job = Job(
            *unknown_pulls.get(known.queue, (math.inf, 0.0)),
            stalls_max=STALLS_MAX.get(known.dialect, STALLS_MAX_ELSE),
            scheduled=key.startswith("cron:"),
        )
        found = linear.examine(job, known.ops, steps_max)
        verdict.jobs += 1
        verdict.ops += len(known.ops)
        verdict.unknown += sum(not op.is_known for op in known.ops)
        verdict.steps += found.steps
        if found.verdict == linear.UNDECIDED:
            verdict.undecided.append(key)
        elif found.verdict == linear.ILLEGAL:
            verdict.violations.append(explained(key, known, found))
    verdict.violations += fences(requests)
    verdict.violations += crons(requests)
    events(verdict, requests, readers)
    return verdict


# -- One job


def by_job(requests: Iterable[Request]) -> dict[str, Known]:
    """Take a history apart by job."""
    jobs: dict[str, Known] = defaultdict(Known)
    for request in requests:
        if request.outcome == FAILED:
            continue
        for key, op in ops_of(request):
            known = jobs[key]
            known.queue = known.queue or request.queue
            if op.kind == model.PUSH:
                known.dialect = request.dialect
            known.ops.append(op)
    return jobs


def ops_of(request: Request) -> Iterable[tuple[str, Op]]:
    """What a request did, or may have done, to each of the jobs that it was about."""
    args, key = request.args, request.key
    outcome = {DONE: model.DONE, REFUSED: model.REFUSED, UNKNOWN: model.UNKNOWN}[request.outcome]
    end = math.inf if outcome == model.UNKNOWN else request.end
    common = {"start": request.start, "end": end, "outcome": outcome, "request": request.number}
    match request.op:
        case "push" if outcome != model.REFUSED:
            job_id = request.result["id"] if outcome == model.DONE else args.get("id")
            yield key, Op(model.PUSH, job_id=job_id, delay_s=args.get("delay_s", 0.0), **common)
        case "pull" if outcome == model.DONE:
            for taken in request.result:
                lock_s = args["lock_s"]
                yield taken["key"], Op(model.TAKE, job_id=taken["id"], token=taken["token"], lock_s=lock_s, **common)
        case "ack":
            yield key, Op(model.ACK, token=args["token"], result=args["result"], **common)
        case "fail":
            yield key, Op(model.FAIL, token=args["token"], final=args["final"], **common)
        case "extend":
            yield key, Op(model.EXTEND, token=args["token"], lock_s=args["lock_s"], **common)
        case "leave":
            # The node gives them back when it notices, if it does.
            for held in args["held"]:
                yield held["key"], Op(model.LEAVE, request.start, math.inf, model.UNKNOWN, token=held["token"])
        case "read" if outcome == model.DONE:
            yield key, read_of(request, request.result, args.get("id"))
        case "list" if outcome == model.DONE:
            for row in request.result:
                yield row["key"], read_of(request, row, row["id"])


def read_of(request: Request, seen: dict[str, str], job_id: str | None) -> Op:
    return Op(
        model.READ,
        request.start,
        request.end,
        job_id=job_id,
        seen=seen["state"],
        result=seen.get("result"),
        request=request.number,
    )


def first_unknown_pulls(requests: Iterable[Request]) -> dict[str, tuple[float, float]]:
    """By queue: the start of the first pull that may have taken what nobody was told of, and the shortest lock of them."""
    found: dict[str, tuple[float, float]] = {}
    for request in requests:
        # One that was sent again under its key may have taken, given back and taken anew.
        if request.op == "pull" and (request.outcome == UNKNOWN or request.args.get("again")):
            start, lock_s = found.get(request.queue, (math.inf, math.inf))
            found[request.queue] = min(request.start, start), min(request.args["lock_s"], lock_s)
    return found


def explained(key: str, known: Known, found: linear.Finding) -> Violation:
    """Name what is wrong with a job's history."""
    kind = kind_of(key, known, found)
    culprits = {op.request for op in found.culprits}
    which = ", ".join(f"{op.kind} #{op.request}" for op in found.culprits[:4]) or "no single request"
    return Violation(
        kind,
        f"{key}: {kind} ({which})",
        key,
        sorted(known.ops, key=lambda op: op.start),
        culprits,
        [op.request for op in found.order],
    )


def kind_of(key: str, known: Known, found: linear.Finding) -> str:
    culprits = found.culprits or known.ops
    ids = {op.job_id for op in known.ops if op.job_id is not None and op.kind in (model.PUSH, model.TAKE, model.READ)}
    if len(ids) > 1:
        return TWICE
    if any(op.kind == model.READ and op.seen == "unknown" for op in culprits):
        # Only what is read after all others were told can be gone; before that the reader was behind.
        last = max(op.end for op in known.ops if op.is_known)
        gone = [op for op in culprits if op.kind == model.READ and op.seen == "unknown"]
        later = any(op.kind == model.READ and op.seen != "unknown" and op.start > gone[0].end for op in known.ops)
        return STALE if later or last > gone[-1].end + 1 else LOST
    finals = [op for op in known.ops if op.outcome == model.DONE and (op.kind == model.ACK or op.final)]
    for final in finals:
        after = [op for op in culprits if op.start > final.end and op.kind in (model.TAKE, model.ACK, model.FAIL)]
        if any(op.outcome == model.DONE for op in after) or len(finals) > 1:
            return CRON_TWICE if key.startswith("cron:") else UNDONE
    if all(op.kind == model.READ for op in culprits):
        fine = [op for op in known.ops if op.kind == model.READ and op not in culprits]
        if all(any(later.start > op.end for later in fine) for op in culprits):
            # Somebody read it right afterwards.
            return STALE
        return UNDONE if finals else ORDER
    takes = sorted((op for op in known.ops if op.kind == model.TAKE), key=lambda op: op.start)
    for one, other in itertools.pairwise(takes):
        if (one in culprits or other in culprits) and other.end < one.start + one.lock_s / (1 + model.FAST):
            return LOCKS
    if any(outdated(op, takes) for op in known.ops):
        return OUTDATED
    pushed = next((op for op in known.ops if op.kind == model.PUSH), None)
    if pushed is not None and takes and takes[0].end < pushed.start + pushed.delay_s / (1 + model.FAST):
        return EARLY
    return ORDER


def outdated(op: Op, takes: Sequence[Op]) -> bool:
    """Whether a token was good though somebody else had been given the job since."""
    if op.kind not in (model.ACK, model.FAIL, model.EXTEND) or op.outcome != model.DONE:
        return False
    own = [take for take in takes if take.token == op.token]
    return any(own[-1].end < take.start and take.end < op.start for take in takes) if own else False


# -- Across jobs


def fences(requests: Iterable[Request]) -> list[Violation]:
    """Fencing tokens are given once, and one is above all that somebody had been told before it was asked for."""
    wrong: list[Violation] = []
    by_fence: dict[int, tuple[str, int]] = {}
    told: list[tuple[float, int]] = []
    pulls = [each for each in requests if each.op == "pull" and each.outcome == DONE]
    for request in sorted(pulls, key=lambda each: each.end):
        told.extend((request.end, taken["fence"]) for taken in request.result if taken["fence"] is not None)
    highest = list(itertools.accumulate((fence for _, fence in told), max))
    ends = [end for end, _ in told]
    for request in pulls:
        before = bisect.bisect_left(ends, request.start)
        floor = highest[before - 1] if before else 0
        for taken in request.result:
            fence, key = taken["fence"], taken["key"]
            if fence is None:
                continue
            if fence in by_fence:
                other, number = by_fence[fence]
                text = f"{fence} was given with {other} (#{number}) and with {key} (#{request.number})"
                wrong.append(Violation(FENCES, text, key))
            if fence <= floor:
                text = f"{fence} of {key} (#{request.number}) is not above {floor}, which somebody had been told before"
                wrong.append(Violation(FENCES, text, key))
            by_fence[fence] = key, request.number
    return wrong


def crons(requests: Iterable[Request]) -> list[Violation]:
    """Each due time of a cron makes a job: what lies between two of them makes none, and none of them is left out."""
    wrong: list[Violation] = []
    every_ms: dict[str, int] = {}
    due: dict[str, set[int]] = defaultdict(set)
    for request in requests:
        if request.op == "cron" and request.outcome == DONE:
            every_ms[request.key] = request.args["every_ms"]
        if request.op in ("pull", "list") and request.outcome == DONE:
            for each in request.result:
                if each["key"].startswith("cron:"):
                    _, name, time_ms = each["key"].split(":")
                    due[name].add(int(time_ms))
    for name, times in due.items():
        every = every_ms[name]
        for one, other in itertools.pairwise(sorted(times)):
            text = f"{name} made jobs for {one} and next for {other}, and is due every {every} ms"
            if (other - one) % every:
                wrong.append(Violation(CRON_TWICE, text, f"cron:{name}"))
            elif other - one != every:
                wrong.append(Violation(CRON_LOST, text, f"cron:{name}"))
    return wrong


# -- Streams of events


def events(verdict: Verdict, requests: Sequence[Request], readers: Sequence[Reader]) -> None:
    """Two readers saw the same where both say they missed nothing, and what was acknowledged meanwhile is in it."""
    segments = [segment for reader in readers for segment in reader.segments]
    verdict.gaps_told += sum(max(0, len(reader.segments) - 1) for reader in readers)
    for one, other in itertools.combinations(segments, 2):
        if one.reader != other.reader:
            verdict.violations += compared(verdict, one, other)
    done = [each for each in requests if each.outcome == DONE]
    pushed = {job_in(each.queue, each.result["id"]): each for each in done if each.op == "push"}
    acked = {job_in(each.queue, each.args["id"]): each for each in done if each.op == "ack"}
    for segment in segments:
        verdict.violations += out_of_order(segment)
        for name, known in (("job:pushed", pushed), ("job:completed", acked)):
            verdict.violations += missing(verdict, segment, name, known)


def out_of_order(segment: Segment) -> list[Violation]:
    places = [event.place for event in segment.events]
    for one, other in itertools.pairwise(places):
        if one >= other:
            return [Violation(GAP, f"{segment.reader} got {other} after {one}")]
    return []


def compared(verdict: Verdict, one: Segment, other: Segment) -> list[Violation]:
    """Both have the same events between the places where the later one begins and the earlier one ends."""
    if not one.events or not other.events:
        return []
    low, high = max(one.begins, other.begins), min(one.events[-1].place, other.events[-1].place)
    seen, seen_too = (
        {event.place: (event.name, event.job) for event in segment.events if low < event.place <= high}
        for segment in (one, other)
    )
    verdict.events_compared += len(seen)
    if seen == seen_too:
        return []
    place = min(place for place in seen.keys() | seen_too.keys() if seen.get(place) != seen_too.get(place))
    text = (
        f"at {place[0]}.{place[1]} {one.reader} got {seen.get(place, 'nothing')} and "
        f"{other.reader} got {seen_too.get(place, 'nothing')}; neither was told that it missed something"
    )
    return [Violation(GAP, text)]


def missing(verdict: Verdict, segment: Segment, name: str, known: dict[str, Request]) -> list[Violation]:
    """What was asked for after the stream began, and answered before something was asked for that is in it, is in it."""
    seen = Counter(event.job for event in segment.events if event.name == name)
    until = max((known[job].start for job in seen if job in known), default=-math.inf)
    wrong = []
    for job, request in known.items():
        if segment.began <= request.start and request.end < until:
            verdict.events_expected += 1
            if seen[job] != 1:
                text = f"{segment.reader} got {name} of {job} {seen[job]} times; #{request.number} was answered"
                wrong.append(Violation(GAP, text, request.key))
    return wrong[:20]

"""Pushing jobs: what clients send, the rules for it, what is answered, and the rows."""

from __future__ import annotations

import copy
import math
import time
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from quorumq.api.errors import Invalid
from quorumq.api.ids import new_id, new_ids
from quorumq.api.limits import DATA_BYTES_MAX
from quorumq.api.request import Call, Route
from quorumq.api.rows import grouped, write
from quorumq.api.rules import apply, says
from quorumq.api.scopes import its_dependencies
from quorumq.api.values import (
    BAD_JSON,
    BATCH_MAX,
    COUNT_MAX,
    DAY_MS,
    KEY_CHARS_MAX,
    NOT_AN_OBJECT,
    YEAR_MS,
    Number,
    check_text,
    decoded,
    is_finite,
    members,
    whole,
)
from quorumq.node.leader import crontime
from quorumq.node.machine.operations.jobs import JobTies, PushJobs
from quorumq.node.machine.operations.jobs import Pushed as PushReply
from quorumq.node.machine.refusals import DependencyNotFound
from quorumq.node.machine.state import DEFAULT, Backoff, Dedup, JobSpec, Options, Repeat

from . import errors, replies
from .ties import FamilyBody, ties_of
from .values import (
    NAME_CHARS_MAX,
    TAGS_MAX,
    Millis,
    as_key,
    as_texts,
    check_number,
    check_queue,
    checked_data,
    cut,
    integer,
    key,
    loosened,
    number,
    read_unchecked,
    truth,
)

# All jobs of a request together: each is a look-up, and on its own a place in an index, in every node.
DEPENDS_MAX = 20_000
TAGS_TOGETHER_MAX = 100_000
PRIORITY_MAX = 1_000_000
ATTEMPTS_MAX = 1_000
# Not documented: a hundred years, so that every due time can be stored.
REPEAT_MS_MAX = 100 * YEAR_MS
# What an option of the state is called in a body, where that is all there is to it.
OPTIONS = (
    ("priority", "priority"), ("delay_ms", "delay"), ("timeout_ms", "timeout"), ("backoff", "backoff"), ("ttl_ms", "ttl"), ("name", "name"),
    ("repeat", "repeat"),
)  # fmt: skip
FLAGS = ("lifo", "remove_on_complete", "remove_on_fail", "durable")


def checked_name(name: str, value: Any) -> str | None:
    """Return a job's name; what is no text is none. Raises Invalid."""
    if isinstance(value, str) and not 0 < len(value) <= NAME_CHARS_MAX:
        raise Invalid(f"Job name must be a non-empty string of at most {NAME_CHARS_MAX} characters")
    return value if isinstance(value, str) else None


def checked_dedup(name: str, value: Any) -> Dedup:
    """Return how long a unique key keeps others away. Raises Invalid."""
    if not isinstance(value, dict):
        raise Invalid("dedup must be an object")
    ttl = value.get("ttl")
    if ttl is not None:
        check_number("dedup.ttl", ttl, 1, YEAR_MS)
    for flag in ("extend", "replace"):
        if not isinstance(value.get(flag, False), bool | None):
            raise Invalid(f"dedup.{flag} must be a boolean")
    return Dedup(None if ttl is None else math.ceil(ttl), bool(value.get("extend")), bool(value.get("replace")))


def checked_depends(name: str, value: Any) -> tuple[str, ...]:
    """Return the ids that a job depends on. Raises Invalid."""
    ids = as_texts([value] if isinstance(value, str) else value)
    if len(ids) > BATCH_MAX:
        raise Invalid(f"dependsOn must have at most {BATCH_MAX} items")
    return tuple(dict.fromkeys(map(cut, ids)))


def checked_tags(name: str, value: Any) -> tuple[str, ...]:
    """Return the tags; what is no list holds none. Raises Invalid."""
    tags = as_texts(value)
    if len(tags) > TAGS_MAX:
        raise Invalid(f"tags must have at most {TAGS_MAX} items")
    if any(len(tag) > KEY_CHARS_MAX for tag in tags):
        raise Invalid(f"tag too long (max {KEY_CHARS_MAX} characters)")
    return tuple(tags)


def checked_group(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise Invalid("groupId must be a string")
    if not value:
        raise Invalid("groupId must be a non-empty string")
    key = as_key(name, value)
    assert key is not None
    return key


def checked_backoff(name: str, value: Any) -> Number | Backoff:
    """Return a number of milliseconds, or type and delay. Raises Invalid."""
    if not isinstance(value, dict):
        check_number("backoff", value, 0, DAY_MS)
        return whole(value)
    if value.get("type") not in ("fixed", "exponential"):
        raise Invalid("backoff.type must be 'fixed' or 'exponential'")
    if value.get("delay") is None:
        raise Invalid("backoff.delay is required")
    check_number("backoff.delay", value["delay"], 0, DAY_MS)
    return Backoff(value["type"], whole(value["delay"]))


def checked_repeat(name: str, value: Any) -> Repeat:
    """Return how a job repeats. Raises Invalid."""
    if not isinstance(value, dict):
        value = {}
    every, pattern = value.get("every"), value.get("pattern") or value.get("cron")
    if (every is None) == (pattern is None):
        raise Invalid("repeat requires exactly one of every or pattern")
    if every is not None and (
        isinstance(every, bool) or not isinstance(every, (int, float)) or not is_finite(every) or every <= 0
    ):
        raise Invalid("repeat.every must be a positive finite number")
    if every is not None:
        check_number("repeat.every", every, 0, REPEAT_MS_MAX)
    limit = value.get("limit")
    if limit is not None:
        check_number("repeat.limit", limit, 0, COUNT_MAX, integer=True)
    zone = None if value.get("tz") is None else cut(value["tz"])
    if pattern is not None:
        check_pattern(pattern, zone)
    return Repeat(None if every is None else whole(every), pattern, None if limit is None else int(limit), tz=zone)


def check_pattern(pattern: Any, zone: str | None) -> None:
    """Raises Invalid when this is no cron expression, or no time zone."""
    try:
        crontime.next_due_ms(pattern if isinstance(pattern, str) else "", zone, time.time_ns() // 1_000_000)
    except crontime.InvalidSchedule as error:
        raise Invalid(f"Invalid repeat pattern: {error}") from None


class PushBody(FamilyBody, gc=False, rename="camel"):
    """One job as a client sends it. null stands for the default of every option."""

    # The data comes before all of these (spec).
    CHECKED: ClassVar = (
        "group_id", "priority", "delay", "timeout", "max_attempts", "attempts", "backoff", "ttl", "stall_timeout", "depends_on", "name",
        "unique_key", "dedup", "job_id", "custom_id", "repeat", "tags",
    )  # fmt: skip

    data: Annotated[
        Raw | UnsetType,
        says(
            "What the worker gets: any JSON, up to 10 MB; kept as it was sent.",
            bound=DATA_BYTES_MAX,
            required=True,
            elsewhere=True,
        ),
    ] = UNSET
    name: Annotated[
        str | None,
        says(
            "A name for the kind of job.",
            reads=checked_name,
            default="default",
            max_chars=NAME_CHARS_MAX,
        ),
    ] = None
    priority: Annotated[int | None, integer("Higher goes first.", -PRIORITY_MAX, PRIORITY_MAX, default=0)] = None
    delay: Annotated[Millis, number("Milliseconds before it may be taken.", 0, YEAR_MS, default=0)] = None
    max_attempts: Annotated[
        int | None, integer("Runs allowed before the dead letter queue.", 1, ATTEMPTS_MAX, default=3)
    ] = None
    attempts: Annotated[int | None, integer("The same as maxAttempts.", 1, ATTEMPTS_MAX, instead_of="max_attempts")] = (
        None
    )
    backoff: Annotated[
        Number | dict[str, Any] | None,
        says(
            "Milliseconds before the first retry, doubled for each further one up to a day; or "
            '`{"type": "fixed" | "exponential", "delay": ms}`.',
            reads=checked_backoff,
            bound=0,
            default=1000,
            low=0,
            high=DAY_MS,
        ),
    ] = None
    ttl: Annotated[Millis, number("Milliseconds from its creation after which it is dropped untaken.", 0, YEAR_MS)] = (
        None
    )
    timeout: Annotated[Millis, number("Milliseconds a run may take; 0 for no bound.", 0, DAY_MS)] = None
    stall_timeout: Annotated[Millis, number("Accepted and ignored; stall detection is set per queue.", 0, DAY_MS)] = (
        None
    )
    unique_key: Annotated[str | None, key("While an unfinished job of the queue has this key, a push returns it.")] = (
        None
    )
    dedup: Annotated[
        dict[str, Any] | None,
        says(
            '`{"ttl"?: ms, "extend"?: flag, "replace"?: flag}`: `uniqueKey` is kept for so long, whether the job is finished or not; '
            "a push that it keeps away starts the time anew, or takes the place of a job that is not active yet.",
            reads=checked_dedup,
            bound=0,
            only_with="unique_key",
        ),
    ] = None
    job_id: Annotated[
        str | None, key("The job's id; while an unfinished job of the cluster has it, a push returns it.")
    ] = None
    custom_id: Annotated[str | None, key("The same as jobId.", instead_of="job_id")] = None
    tags: Annotated[
        list[str] | None,
        says("Labels.", reads=checked_tags, default=[], max_items=TAGS_MAX),
    ] = None
    group_id: Annotated[
        str | None,
        says(
            "Jobs of one group are worked on one at a time; others overtake.",
            reads=checked_group,
            max_chars=KEY_CHARS_MAX,
        ),
    ] = None
    lifo: Annotated[bool | None, truth("Go before the waiting jobs of the same priority.", default=False)] = None
    remove_on_complete: Annotated[bool | None, truth("Forget it once it completed.", default=False)] = None
    remove_on_fail: Annotated[bool | None, truth("Forget it in place of the dead letter queue.", default=False)] = None
    durable: Annotated[bool | None, truth("Accepted; every job is durable.", default=False)] = None
    depends_on: Annotated[
        list[str] | None,
        says(
            "Ids of jobs that must complete first.",
            reads=checked_depends,
            default=[],
            max_items=BATCH_MAX,
        ),
    ] = None
    repeat: Annotated[
        dict[str, Any] | None,
        says('`{"every": ms, "limit"?: n}` or `{"cron": expression, "limit"?: n, "tz"?: zone}`.',
             reads=checked_repeat, bound=2 * KEY_CHARS_MAX),
    ] = None  # fmt: skip


class BulkBody(Struct, gc=False):
    """Jobs for one queue: all are pushed, or none."""

    jobs: Annotated[
        list[PushBody] | None, says("The jobs, in order.", required=True, elsewhere=True, max_items=BATCH_MAX)
    ] = None


class OddBulkBody(BulkBody, gc=False):
    """One that does not fit the types: values in it may be equal, as 1 and true are, and not mean the same."""


class LooseBulkBody(Struct):
    jobs: Annotated[list[Raw] | None, says(bound=BATCH_MAX)] = None


PUSH = msgspec.json.Decoder(PushBody)
BULK = msgspec.json.Decoder(BulkBody)
LOOSE_BULK = msgspec.json.Decoder(LooseBulkBody)
# Raw reads any value and a struct compares in C: a job with nothing but data is told from the rest by one comparison.
ONLY_DATA = PushBody()


class Alike:
    """The last job of a bulk that was checked, if it said nothing of its own but its data: the next one mostly says the same, and
    what was made of that is known."""

    def __init__(self) -> None:
        self.body, self.opts = ONLY_DATA, DEFAULT
        self.group_id: str | None = None

    def remember(self, body: PushBody, made: JobSpec) -> None:
        """body: as it came, without its data, and tied to no other job."""
        objects = body.dedup or body.repeat or isinstance(body.backoff, dict)
        if not (objects or made.custom or made.unique_key is not None or made.depends_on or made.opts.tags):
            self.body, self.opts, self.group_id = body, made.opts, made.group_id


ALIKE = Alike()


def push(call: Call) -> PushJobs:
    queue = check_queue(call.path["queue"])
    body = read_unchecked(PUSH, call.body, required=True)
    # What a job says of its family begins with feature level 1.
    tied = ties_of(0, body) if call.level >= 1 else None
    return PushJobs(queue, [spec(body, new_id())], () if tied is None else (tied,))


def bulk(call: Call) -> PushJobs:
    queue = check_queue(call.path["queue"])
    if not call.body:
        raise Invalid(BAD_JSON)
    check_text(call.body)
    found = decoded(call.body, BULK.decode, loose_bulk)
    jobs = found.jobs
    # What a job says of its family begins with feature level 1.
    level, fits = call.level, call.level >= 1 and type(found) is BulkBody
    if jobs is None:
        raise Invalid("jobs must be an array")
    if not jobs:
        return PushJobs(queue=queue, jobs=[])
    if len(jobs) > BATCH_MAX:
        raise Invalid(f"jobs must have at most {BATCH_MAX} items")
    specs: list[JobSpec] = []
    ties: list[JobTies] = []
    depends = tags = 0
    for position, (job, new) in enumerate(zip(jobs, new_ids(len(jobs)), strict=True)):
        data, job.data = job.data, UNSET
        try:
            if fits and job == ALIKE.body:
                specs.append(JobSpec(new, checked_data(data), ALIKE.opts, group_id=ALIKE.group_id))
                continue
            as_it_came, tied = copy.copy(job), ties_of(position, job) if level >= 1 else None
            if tied is not None:
                ties.append(tied)
                depends += len(tied.children_ids)
            job.data = data
            specs.append(spec(job, new))
            if fits and tied is None:
                ALIKE.remember(as_it_came, specs[-1])
        except Invalid as error:
            raise Invalid(f"jobs[{position}]: {error}") from None
        depends += len(specs[-1].depends_on)
        tags += len(specs[-1].opts.tags)
        if depends > DEPENDS_MAX:
            raise Invalid(f"jobs[{position}]: dependsOn must have at most {DEPENDS_MAX} items in all jobs of a request")
        if tags > TAGS_TOGETHER_MAX:
            raise Invalid(
                f"jobs[{position}]: tags must have at most {TAGS_TOGETHER_MAX} items in all jobs of a request"
            )
    return PushJobs(queue, specs, tuple(ties))


def loose_bulk(body: bytes) -> BulkBody:
    """Decode a bulk that does not fit the types, job by job. Raises Invalid."""
    try:
        items = LOOSE_BULK.decode(body).jobs
    except msgspec.ValidationError:
        members(body)
        raise Invalid("jobs must be an array") from None
    if items is None:
        return OddBulkBody()
    jobs = []
    for position, item in enumerate(items[: BATCH_MAX + 1]):
        try:
            jobs.append(loosened(PushBody, members(item)))
        except Invalid as error:
            text = "must be an object" if str(error) == NOT_AN_OBJECT else str(error)
            raise Invalid(f"jobs[{position}]: {text}") from None
    return OddBulkBody(jobs)


def spec(body: PushBody, new: str) -> JobSpec:
    """Check one job and make what goes into the log of it. Raises Invalid."""
    data = checked_data(body.data)
    body.data = UNSET
    if body == ONLY_DATA:
        return JobSpec(new, data)
    return checked_spec(body, new, data)


def checked_spec(body: PushBody, new: str, data: bytes) -> JobSpec:
    """Check the options of one job and make what goes into the log of it. data: checked already, and taken out of the body.

    Raises Invalid.
    """
    checked: Any = apply(body)
    custom = checked.job_id or checked.custom_id
    depends = checked.depends_on or ()
    if checked.repeat is not None and (custom is not None or depends):
        raise Invalid("repeat cannot be combined with jobId or dependsOn")
    attempts = checked.attempts if checked.max_attempts is None else checked.max_attempts
    given: dict[str, Any] = {}
    for option, field in OPTIONS:
        value = getattr(checked, field)
        if value is not None:
            given[option] = value
    if not given.get("timeout_ms", 1):
        # The documented server takes 0 for no timeout at all.
        del given["timeout_ms"]
    if attempts is not None:
        given["max_attempts"] = attempts
    if checked.dedup is not None and checked.unique_key is not None:
        given["dedup"] = checked.dedup
    for flag in FLAGS:
        if getattr(checked, flag):
            given[flag] = True
    if checked.tags:
        given["tags"] = checked.tags
    options = Options(**given) if given else DEFAULT
    return JobSpec(custom or new, data, options, custom is not None, checked.unique_key, checked.group_id, depends)


class Pushed(replies.Success):
    id: str


class PushedMany(replies.Success):
    ids: list[str]


def pushed(reply: PushReply) -> bytes:
    return b'{"ok":true,"id":%b}' % replies.ENCODE(reply.ids[0])


def pushed_many(reply: PushReply) -> bytes:
    return b'{"ok":true,"ids":%b}' % replies.ENCODE(reply.ids)


ROUTES: tuple[Route, ...] = grouped(
    "Jobs",
    write("POST", "/queues/{queue}/jobs", PushJobs, push, pushed,
          takes=PushBody, reply=Pushed, right="produce", body="data", about="Push a job.",
          check=its_dependencies, command="PUSH"),
    write("POST", "/queues/{queue}/jobs/bulk", PushJobs, bulk, pushed_many,
          takes=BulkBody, reply=PushedMany, right="produce",
          refusals={DependencyNotFound: errors.word_bulk_dependency}, about="Push jobs, all or none.",
          check=its_dependencies, command="PUSHB"),
)  # fmt: skip

"""What producers send: jobs with all their options, checked in the recorded order and refused in the recorded words.

An add is decoded once, with data left as it was sent. Options are many jobs' own text: what one text means is worked out
once and remembered.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from quorumq.api.errors import Invalid
from quorumq.api.limits import DATA_BYTES_MAX
from quorumq.api.reply import Pieced, Reply
from quorumq.api.request import Call
from quorumq.api.rules import apply_to_members, says
from quorumq.api.steps import in_steps, with_commas
from quorumq.api.values import (
    BAD_JSON,
    BATCH_MAX,
    COUNT_MAX,
    KEY_CHARS_MAX,
    check_text,
    decoded,
    value_of,
    whole,
)
from quorumq.node.machine.operations.adding import Added, AddJobs
from quorumq.node.machine.operations.repeatables import AddedRepeating, AddRepeating
from quorumq.node.machine.state import Backoff, Dedup, JobSpec, Keep, Options
from quorumq.node.machine.state.job import OnChildFailure

from . import replies
from .repeatables import RepeatRule, checked_repeat, repetition
from .values import (
    EMPTY_BODY,
    INTEGER,
    MILLIS_MAX,
    boolean,
    flag,
    integer,
    is_integer,
    is_number,
    number,
    queue_of,
    shown,
    text,
)

PRIORITY_MAX = 2_097_152
BACKOFFS = ("fixed", "exponential", "linear")
NAME_CHARS_MAX = 1_024
ITEM_KEYS = frozenset({"name", "data", "opts"})
BACKOFF_KEYS = frozenset({"type", "delay", "jitter"})
DEDUPLICATION_KEYS = frozenset({"id", "ttl", "extend", "replace"})
KEEP_KEYS = frozenset({"age", "count"})
PARENT_KEYS = frozenset({"id", "queue"})
# What becomes of a parent when its child fails for good, by the option that says it.
POLICIES: dict[str, OnChildFailure] = {
    "failParentOnFailure": "fail",
    "continueParentOnFailure": "continue",
    "ignoreDependencyOnFailure": "ignore",
    "removeDependencyOnFailure": "remove",
}
NO_OBJECT = "opts must be an object"
# What BullMQ's rules are besides the options that a client can send.
BULLMQ: dict[str, Any] = {"rejoin_last": True, "stalls_allowed": 1}
REMOVE = Keep(None, 0)
KEEP = Keep(None, None)
# What a text of options means; those with an id of their own are not worth remembering.
_known: dict[tuple[str, bytes], Wanted] = {}
KNOWN_MAX = 4_096
KNOWN_BYTES_MAX = 1_024
Clock = Callable[[], int]


class AddItem(Struct, gc=False, forbid_unknown_fields=True):
    """One job as it is decoded; NewJob is how it is documented."""

    name: Annotated[str, says(bound=NAME_CHARS_MAX)] = ""
    data: Annotated[Raw | UnsetType, says(bound=DATA_BYTES_MAX)] = UNSET
    # What is kept of it is bounded by the rules of JobOpts.
    opts: Annotated[Raw | None, says(bound=0)] = None


class BackoffOpts(Struct):
    """How long a failed job waits before its next run."""

    type: Annotated[
        str | None,
        says("fixed; exponential: doubled each time; linear: delay times the failures.", bound=len("exponential")),
    ] = None
    delay: Annotated[float | None, says("Milliseconds.", default=0, low=0, high=MILLIS_MAX)] = None
    jitter: Annotated[float | None, says("Share of the delay that chance may take off.", default=0)] = None


class DeduplicationOpts(Struct):
    """Adds with the same id add nothing while it is held: until the job ends, or for ttl."""

    id: Annotated[str | None, says("The id.", required=True, max_chars=KEY_CHARS_MAX)] = None
    ttl: Annotated[float | None, says("Milliseconds the id is held, even if the job ends before.", low=0)] = None
    extend: Annotated[bool | None, says("An add that adds nothing restarts the ttl.", default=False)] = None
    replace: Annotated[bool | None, says("A new job takes the place of one that is still delayed.", default=False)] = (
        None
    )


class KeepOpts(Struct):
    """Which finished jobs are kept, looked at when a job of that kind ends."""

    age: Annotated[float | None, says("Seconds.", low=0)] = None
    count: Annotated[int | None, says("Jobs.", low=0)] = None


class RepeatOpts(Struct, rename="camel"):
    """How a job repeats: by an interval or by a pattern."""

    every: Annotated[float | None, says("Milliseconds; times lie on the grid of the epoch.")] = None
    pattern: Annotated[
        str | None, says("Cron expression, with seconds in front if there are six fields.", bound=KEY_CHARS_MAX)
    ] = None
    cron: Annotated[str | None, says("The same as pattern.", bound=KEY_CHARS_MAX)] = None
    tz: Annotated[str | None, says("Time zone of the pattern.", bound=KEY_CHARS_MAX, default="UTC")] = None
    limit: Annotated[int | None, says("Jobs, in all.")] = None
    immediately: Annotated[bool | None, says("The first one now.", default=False)] = None
    start_date: Annotated[
        float | str | None, says("The first time it may be due; milliseconds or an ISO date.", bound=0)
    ] = None
    end_date: Annotated[
        float | str | None, says("The last time it may be due; milliseconds or an ISO date.", bound=0)
    ] = None
    offset: Annotated[float | None, says("Milliseconds after the grid of `every`.")] = None
    key: Annotated[
        str | None, says("Name of the repetition; left out, made of name and options.", bound=KEY_CHARS_MAX)
    ] = None


class ParentOpts(Struct):
    """A job that is there already, and waits for this one from now on."""

    id: Annotated[str | None, says("Its id.", required=True, max_chars=KEY_CHARS_MAX)] = None
    queue: Annotated[str | None, says("Its queue, with or without the prefix.", required=True, bound=KEY_CHARS_MAX)] = (
        None
    )


def checked_backoff(name: str, value: Any) -> Backoff | int:
    """Return how long a failed job waits. Raises Invalid."""
    if is_number(value):
        return backoff_of("fixed", value, 0)
    if not isinstance(value, dict):
        raise Invalid(f"Invalid backoff {shown(value)}, must be a number or an object")
    if not value:
        raise Invalid("Invalid backoff {}, must be a number or an object with at least the type field")
    for key in value:
        if key not in BACKOFF_KEYS:
            raise Invalid(f"Unexpected field: opts.{shown(key)}")
    delay, jitter, kind = value.get("delay", UNSET), value.get("jitter", 0), value.get("type", UNSET)
    if delay is UNSET:
        if kind not in BACKOFFS:
            # The recorded server takes such a job, and cannot say what to do when it fails.
            raise Invalid(f'Invalid backoff type {shown(kind)}, must be "fixed", "exponential" or "linear"')
        delay = 0
    elif not is_number(delay):
        raise Invalid(f"Invalid backoff delay {shown(delay)}, must be a number")
    elif kind not in BACKOFFS:
        raise Invalid(f'Invalid backoff type {shown(kind)}, must be "fixed" or "exponential" if delay is provided')
    if not is_number(jitter) or not 0 <= jitter <= 1:
        raise Invalid(f"Invalid backoff jitter {shown(jitter)}, must be a number from 0 to 1")
    return backoff_of(kind, delay, jitter)


def backoff_of(kind: Any, delay: float, jitter: float) -> Backoff | int:
    if not 0 <= delay <= MILLIS_MAX:
        bound = "greater than 0" if delay < 0 else f"at most {MILLIS_MAX}"
        raise Invalid(f"Invalid backoff delay {shown(delay)}, must be {bound}")
    return Backoff(kind, whole(delay), jitter) if delay else 0


def checked_job_id(name: str, value: Any) -> str:
    """Return the id that a client chose; empty counts as none. Raises Invalid."""
    job_id = text("jobId", value)
    if INTEGER.fullmatch(job_id):
        raise Invalid("Custom Id cannot be integers")
    if ":" in job_id and job_id.count(":") != 2:
        # As in BullMQ, where three parts are the ids of repeating jobs.
        raise Invalid("Custom Id cannot contain :")
    return job_id


def checked_deduplication(name: str, value: Any) -> tuple[str, Dedup]:
    """Return id and rule of a deduplication. Raises Invalid."""
    if not isinstance(value, dict):
        raise Invalid(f"Invalid deduplication {shown(value)}, must be an object")
    for key in value:
        if key not in DEDUPLICATION_KEYS:
            raise Invalid(f"Unexpected field: opts.{shown(key)}")
    found = text("deduplication.id", value.get("id", UNSET))
    if not found:
        raise Invalid("deduplication.id is required")
    ttl = value.get("ttl", 0)
    if not is_number(ttl):
        raise Invalid(f"Invalid deduplication.ttl {shown(ttl)}, must be a number")
    if not 0 <= ttl <= MILLIS_MAX:
        bound = "greater than 0" if ttl < 0 else f"at most {MILLIS_MAX}"
        raise Invalid(f"Invalid deduplication.ttl {shown(ttl)}, must be {bound}")
    extend = boolean("deduplication.extend", value.get("extend", False))
    replace = boolean("deduplication.replace", value.get("replace", False))
    return found, Dedup(math.ceil(ttl) or None, extend, replace)


def checked_keep(name: str, value: Any) -> Keep:
    """Return which finished jobs are kept. Raises Invalid."""
    if isinstance(value, bool):
        return REMOVE if value else KEEP
    if is_integer(value, -1, COUNT_MAX):
        return Keep(None, int(value)) if value >= 0 else KEEP
    if not isinstance(value, dict):
        raise Invalid(f"Invalid {name} {shown(value)}, must be a boolean, a number or an object")
    for key in value:
        if key not in KEEP_KEYS:
            raise Invalid(f"Unexpected field: opts.{name}.{shown(key)}")
    age = integer(f"{name}.age", value["age"], 0, MILLIS_MAX // 1000) * 1000 if "age" in value else None
    count = integer(f"{name}.count", value["count"]) if "count" in value else None
    return Keep(age, count)


class JobOpts(Struct, rename="camel"):
    """Options of a job."""

    CHECKED: ClassVar = ("delay", "priority", "attempts", "backoff", "lifo", "job_id")

    attempts: Annotated[int | None, number("Runs allowed; 0 is one run.", in_schema=False, default=0)] = None
    backoff: Annotated[
        float | BackoffOpts | None,
        says("Wait before the next run after a failed one; a number is fixed.", reads=checked_backoff, bound=0),
    ] = None
    delay: Annotated[float | None, number("Milliseconds before the first run.", 0, MILLIS_MAX)] = None
    priority: Annotated[int | None, number("Lower goes first; jobs without one go before all.", 1, PRIORITY_MAX)] = None
    lifo: Annotated[bool | None, flag("Go before all waiting jobs; ignored with a priority.", default=False)] = None
    job_id: Annotated[
        str | None,
        says(
            "The job's id, unique in its queue; while there is a job with it, in whatever state, an add adds nothing.",
            reads=checked_job_id,
            max_chars=KEY_CHARS_MAX,
        ),
    ] = None
    deduplication: Annotated[
        DeduplicationOpts | None,
        says("Keeps jobs of the same id away.", reads=checked_deduplication, bound=KEY_CHARS_MAX),
    ] = None
    remove_on_complete: Annotated[
        bool | int | KeepOpts | None, says("true: at once; a number: keep so many.", reads=checked_keep, bound=0)
    ] = None
    remove_on_fail: Annotated[
        bool | int | KeepOpts | None, says("true: at once; a number: keep so many.", reads=checked_keep, bound=0)
    ] = None
    # These are checked together with others (checked_opts).
    repeat: Annotated[RepeatOpts | None, says("Jobs like this one again and again.")] = None
    parent: Annotated[ParentOpts | None, says("The job that is to wait for it, in whatever queue.")] = None
    fail_parent_on_failure: Annotated[
        bool | None, flag("When it fails for good, its parent fails at once, too.", default=False)
    ] = None
    continue_parent_on_failure: Annotated[
        bool | None, flag("When it fails for good, its parent goes on at once.", default=False)
    ] = None
    ignore_dependency_on_failure: Annotated[
        bool | None, flag("When it fails for good, its parent goes on without its result.", default=False)
    ] = None
    remove_dependency_on_failure: Annotated[
        bool | None,
        flag("When it fails for good, its parent goes on as if there had been no such child.", default=False),
    ] = None


class NewJob(Struct):
    """One job."""

    name: Annotated[str | None, says("For its worker.", required=True, max_chars=NAME_CHARS_MAX)] = None
    data: Annotated[
        Raw | UnsetType,
        says("What the worker gets: any JSON, up to 10 MB; kept as it was sent.", bound=DATA_BYTES_MAX, required=True),
    ] = UNSET
    opts: Annotated[JobOpts | None, says("How it is to be worked on.")] = None


class Wanted(Struct, frozen=True):
    """What a text of options means. shown: the options as the answer of the add shows them, all of them."""

    options: Options
    shown: bytes
    job_id: str = ""
    dedup_id: str | None = None
    delay: float | None = None
    priority: int = 0
    repeat: RepeatRule | None = None
    # Id and queue of the job that is to wait for it, as they were sent.
    parent: tuple[str, str] | None = None
    on_failure: OnChildFailure = "wait"


ITEMS = msgspec.json.Decoder(list[AddItem])
RAW_ITEMS = msgspec.json.Decoder(list[Raw])
MEMBERS = msgspec.json.Decoder(dict[str, Raw])
OPTIONS = frozenset(field.encode_name for field in msgspec.structs.fields(JobOpts))


class Adding(Struct, frozen=True):
    """An add, checked: items as they came and what each of them means."""

    queue: str
    items: list[AddItem]
    wanted: list[Wanted]


def add(call: Call) -> Adding:
    """Check an add, all of it, before anything is stored. Raises Invalid."""
    queue = queue_of(call)
    if not call.body:
        raise Invalid(EMPTY_BODY)
    check_text(call.body)
    items = decoded(call.body, ITEMS.decode, loose_items)
    if len(items) > BATCH_MAX:
        raise Invalid(f"Body must have at most {BATCH_MAX} items")
    return Adding(queue, items, [checked_item(item, call.node.now_ms) for item in items])


def loose_items(body: bytes) -> list[AddItem]:
    """Decode an add that does not fit the types, job by job, to find the first thing wrong with it. Raises Invalid."""
    try:
        raws = RAW_ITEMS.decode(body)
    except msgspec.ValidationError:
        # Only what is JSON at all is told what is wrong with it.
        value_of(Raw(body))
        raise Invalid("Body must be an array") from None
    except (msgspec.DecodeError, RecursionError):
        raise Invalid(BAD_JSON) from None
    return [loose_item(raw) for raw in raws[: BATCH_MAX + 1]]


def loose_item(raw: Raw) -> AddItem:
    try:
        found = MEMBERS.decode(raw)
    except msgspec.ValidationError:
        # Whatever it is, it has no name.
        raise Invalid("name is required") from None
    except (msgspec.DecodeError, RecursionError):
        raise Invalid(BAD_JSON) from None
    name = value_of(found["name"]) if "name" in found else None
    if not name:
        raise Invalid("name is required")
    text("name", name, NAME_CHARS_MAX)
    if "data" not in found:
        raise Invalid("data is required")
    for key in found:
        if key not in ITEM_KEYS:
            raise Invalid(f"Unexpected field: {shown(key)}")
    return AddItem(name, found["data"], found.get("opts"))


def checked_item(item: AddItem, clock: Clock) -> Wanted:
    """Check one job. clock: what repetitions go by. Raises Invalid."""
    if not item.name:
        raise Invalid("name is required")
    if len(item.name) > NAME_CHARS_MAX:
        text("name", item.name, NAME_CHARS_MAX)
    data = item.data
    if isinstance(data, UnsetType):
        raise Invalid("data is required")
    if len(data) > DATA_BYTES_MAX:
        raise Invalid("Job data too large (max 10MB)")
    return wanted(item.name, b"" if item.opts is None else bytes(item.opts), clock)


def wanted(name: str, opts: bytes, clock: Clock) -> Wanted:
    """Say what a text of options means. Raises Invalid."""
    key = (name, opts)
    found = _known.get(key)
    if found is None:
        found = checked_opts(name, read_opts(opts), clock)
        if (
            not found.job_id
            and found.dedup_id is None
            and found.repeat is None
            and found.parent is None
            and len(opts) + len(name) <= KNOWN_BYTES_MAX
        ):
            if len(_known) >= KNOWN_MAX:
                _known.clear()
            _known[key] = found
    return found


def read_opts(opts: bytes) -> Any:
    """Decode options. Raises Invalid."""
    value = value_of(Raw(opts)) if opts else None
    if value == math.inf and opts[:1] == b"{":
        # One of their numbers is beyond a float; which one, the checks are to say.
        return {key: value_of(raw) for key, raw in MEMBERS.decode(opts).items()}
    return value


def checked_opts(name: str, opts: Any, clock: Clock) -> Wanted:
    """Check options, in the recorded order and words. Raises Invalid."""
    if opts is None:
        opts = {}
    if not isinstance(opts, dict):
        raise Invalid("Unexpected field: opts.0" if isinstance(opts, (str, list)) and opts else NO_OBJECT)
    for key in opts:
        if key not in OPTIONS:
            raise Invalid(f"Unexpected field: opts.{shown(key)}")
    given = apply_to_members(JobOpts, opts)
    priority, job_id = given.get("priority", 0), given.get("job_id", "")
    dedup_id, dedup = given.get("deduplication", (None, None))
    asked: dict[str, Any] = {"name": name, "max_attempts": given.get("attempts") or 1, "backoff": 0, **BULLMQ}
    of_options = {
        "delay_ms": given.get("delay"),
        "priority": -priority or None,
        "backoff": given.get("backoff"),
        # Where a job goes first among its equals, one with a priority does not.
        "lifo": (given.get("lifo") and not priority) or None,
        "dedup": dedup,
        "keep_completed": given.get("remove_on_complete"),
        "keep_failed": given.get("remove_on_fail"),
    }
    asked |= {option: value for option, value in of_options.items() if value is not None}
    repeat = None
    if "repeat" in opts:
        repeat = checked_repeat(name, opts["repeat"], clock())
        if dedup_id is not None or job_id:
            raise Invalid("Invalid repeat, cannot be used with jobId or deduplication")
        # When it runs is what repeat says.
        asked.pop("delay_ms", None)
    parent, on_failure = checked_parent(opts)
    shown_opts = {"attempts": 0, **opts}
    sent = {
        key: value
        for key, value in shown_opts.items()
        if key not in ("deduplication", "parent") and not (key == "jobId" and value)
    }
    return Wanted(
        Options(**asked, sent=replies.ENCODE(sent)),
        replies.ENCODE(shown_opts),
        job_id,
        dedup_id,
        asked.get("delay_ms"),
        priority,
        repeat,
        parent,
        on_failure,
    )


def checked_parent(opts: dict[str, Any]) -> tuple[tuple[str, str] | None, OnChildFailure]:
    """Return id and queue of the parent that a job is to have, and what becomes of it by the job's failure. Raises Invalid."""
    chosen = [name for name in POLICIES if name in opts and boolean(name, opts[name])]
    if len(chosen) > 1:
        raise Invalid(f"The following options cannot be used together: {', '.join(chosen)}")
    on_failure = POLICIES[chosen[0]] if chosen else "wait"
    if "parent" not in opts:
        return None, on_failure
    value = opts["parent"]
    if not isinstance(value, dict):
        raise Invalid(f"Invalid parent {shown(value)}, must be an object")
    for key in value:
        if key not in PARENT_KEYS:
            raise Invalid(f"Unexpected field: opts.parent.{shown(key)}")
    job_id = text("parent.id", value.get("id", UNSET))
    queue = text("parent.queue", value.get("queue", UNSET))
    if not job_id or not queue:
        raise Invalid("parent must have id and queue")
    return (job_id, queue), on_failure


class AddedJob(replies.BullShown, kw_only=True):
    """A job as the answer of an add shows it: what was sent, under its id."""

    name: str
    data: Annotated[Raw, Meta(description="As it was sent.")]
    opts: Annotated[dict[str, Any], Meta(description="The options as they were sent, with `attempts`.")]
    id: Annotated[
        str,
        Meta(description="Counted per queue, or the `jobId`; for an add that added nothing that of the job there is."),
    ]
    progress: Literal[0]
    returnvalue: None
    stacktrace: None
    delay: Annotated[int | UnsetType, Meta(description="Milliseconds, where it was asked for.")] = UNSET
    priority: int
    attempts_started: Literal[0]
    attempts_made: Literal[0]
    stalled_counter: Literal[0]
    timestamp: replies.Millis
    deduplication_id: str | UnsetType = UNSET
    queue_qualified_name: str


AddedJobs = list[AddedJob]


def operation(adding: Adding) -> AddJobs | AddRepeating:
    """Make what goes into the log of an add."""
    both = list(zip(adding.items, adding.wanted, strict=True))
    jobs = AddJobs(adding.queue, [spec(item, one) for item, one in both if one.repeat is None])
    repetitions = [repetition(one.repeat, spec(item, one)) for item, one in both if one.repeat is not None]
    return AddRepeating(jobs, repetitions) if repetitions else jobs


def spec(item: AddItem, one: Wanted) -> JobSpec:
    assert not isinstance(item.data, UnsetType)
    return JobSpec(one.job_id, bytes(item.data), one.options, bool(one.job_id), one.dedup_id)


async def answered(adding: Adding, prefix: str, reply: Added | AddedRepeating) -> Reply:
    """Render the jobs of an add as they were sent, each under the id that it has, or that of the job that stands for it."""
    qualified = replies.ENCODE(f"{prefix}:{adding.queue}")
    plain = reply.added if isinstance(reply, AddedRepeating) else reply
    ids = iter(plain.ids)
    dues = iter(reply.next_due_ms if isinstance(reply, AddedRepeating) else ())

    def text(item: AddItem, one: Wanted) -> bytes:
        if one.repeat is None:
            return added_text(item, one, next(ids), one.delay, plain.at_ms, qualified)
        return repeating_text(item, one, next(dues), plain.at_ms, qualified)

    return Pieced(200, [b"[", *with_commas(await in_steps(text, adding.items, adding.wanted)), b"]"])


def repeating_text(item: AddItem, one: Wanted, due_ms: int, at_ms: int, qualified: bytes) -> bytes:
    """Render the first job of a repetition, as it will be."""
    assert one.repeat is not None
    job_id = f"repeat:{one.repeat.key}:{due_ms}"
    return added_text(item, one, job_id, max(due_ms - at_ms, 0), at_ms, qualified)


def added_text(item: AddItem, one: Wanted, job_id: str, delay: float | None, at_ms: int, qualified: bytes) -> bytes:
    assert not isinstance(item.data, UnsetType)
    return (
        b'{"name":%b,"data":%b,"opts":%b,"id":%b,"progress":0,"returnvalue":null,"stacktrace":null%b,"priority":%d,'
        b'"attemptsStarted":0,"attemptsMade":0,"stalledCounter":0,"timestamp":%d%b,"queueQualifiedName":%b}'
        % (
            replies.ENCODE(item.name),
            item.data,
            one.shown,
            replies.ENCODE(job_id),
            b"" if delay is None else b',"delay":%d' % delay,
            one.priority,
            at_ms,
            b"" if one.dedup_id is None else b',"deduplicationId":%b' % replies.ENCODE(one.dedup_id),
            qualified,
        )
    )

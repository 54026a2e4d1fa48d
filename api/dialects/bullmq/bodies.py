"""What producers send: jobs with all their options, checked in the recorded order and refused in the recorded words.

An add is decoded once, with data left as it was sent. Options are many jobs' own text: what one text means is worked out
once and remembered.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from api.http import Call, Invalid
from api.limits import DATA_BYTES_MAX
from api.values import (
    BAD_JSON,
    BATCH_MAX,
    COUNT_MAX,
    KEY_CHARS_MAX,
    check_text,
    decoded,
    says,
    value_of,
    whole,
)
from node.operations.adding import AddJobs
from node.operations.repeatables import AddRepeating
from node.state import Backoff, Dedup, JobSpec, Keep, Options

from .repeatables import Repeat, checked_repeat, repetition
from .values import (
    EMPTY_BODY,
    INTEGER,
    MILLIS_MAX,
    boolean,
    integer,
    is_integer,
    is_number,
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
NO_OBJECT = "opts must be an object"
# What BullMQ's rules are besides the options that a client can send.
BULLMQ: dict[str, Any] = {"rejoin_last": True, "stalls_allowed": 1}
REMOVE = Keep(None, 0)
KEEP = Keep(None, None)
ENCODE = msgspec.json.Encoder().encode
# What a text of options means; those with an id of their own are not worth remembering.
_known: dict[tuple[str, bytes], Wanted] = {}
KNOWN_MAX = 4_096
KNOWN_BYTES_MAX = 1_024


class AddItem(Struct, gc=False, forbid_unknown_fields=True):
    """One job as it is decoded; NewJob is how it is documented."""

    name: str = ""
    data: Raw | UnsetType = UNSET
    opts: Raw | None = None


class BackoffOpts(Struct):
    """How long a failed job waits before its next run."""

    type: Annotated[str | None, says("fixed; exponential: doubled each time; linear: delay times the failures.")] = None
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
    pattern: Annotated[str | None, says("Cron expression, with seconds in front if there are six fields.")] = None
    cron: Annotated[str | None, says("The same as pattern.")] = None
    tz: Annotated[str | None, says("Time zone of the pattern.", default="UTC")] = None
    limit: Annotated[int | None, says("Jobs, in all.")] = None
    immediately: Annotated[bool | None, says("The first one now.", default=False)] = None
    start_date: Annotated[float | str | None, says("None before; milliseconds or an ISO date.")] = None
    end_date: Annotated[float | str | None, says("None after; milliseconds or an ISO date.")] = None
    offset: Annotated[float | None, says("Milliseconds after the grid of `every`.")] = None
    key: Annotated[str | None, says("Name of the repetition; left out, made of name and options.")] = None


class JobOpts(Struct, rename="camel"):
    """Options of a job."""

    attempts: Annotated[int | None, says("Runs allowed; 0 is one run.", default=0, low=0)] = None
    backoff: Annotated[
        float | BackoffOpts | None, says("Wait before the next run after a failed one; a number is fixed.")
    ] = None
    delay: Annotated[float | None, says("Milliseconds before the first run.", low=0, high=MILLIS_MAX)] = None
    priority: Annotated[
        int | None, says("Lower goes first; jobs without one go before all.", low=1, high=PRIORITY_MAX)
    ] = None
    lifo: Annotated[bool | None, says("Go before all waiting jobs; ignored with a priority.", default=False)] = None
    job_id: Annotated[
        str | None,
        says(
            "The job's id, unique in its queue; while there is a job with it, in whatever state, an add adds nothing.",
            max_chars=KEY_CHARS_MAX,
        ),
    ] = None
    deduplication: Annotated[DeduplicationOpts | None, says("Keeps jobs of the same id away.")] = None
    remove_on_complete: Annotated[bool | int | KeepOpts | None, says("true: at once; a number: keep so many.")] = None
    remove_on_fail: Annotated[bool | int | KeepOpts | None, says("true: at once; a number: keep so many.")] = None
    repeat: Annotated[RepeatOpts | None, says("Jobs like this one again and again.")] = None


class NewJob(Struct):
    """One job."""

    name: Annotated[str | None, says("For its worker.", required=True, max_chars=NAME_CHARS_MAX)] = None
    data: Annotated[
        Raw | UnsetType, says("What the worker gets: any JSON, up to 10 MB; kept as it was sent.", required=True)
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
    repeat: Repeat | None = None


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
    return Adding(queue, items, [checked_item(item) for item in items])


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


def checked_item(item: AddItem) -> Wanted:
    """Check one job. Raises Invalid."""
    if not item.name:
        raise Invalid("name is required")
    if len(item.name) > NAME_CHARS_MAX:
        text("name", item.name, NAME_CHARS_MAX)
    data = item.data
    if isinstance(data, UnsetType):
        raise Invalid("data is required")
    if len(data) > DATA_BYTES_MAX:
        raise Invalid("Job data too large (max 10MB)")
    return wanted(item.name, b"" if item.opts is None else bytes(item.opts))


def wanted(name: str, opts: bytes) -> Wanted:
    """Say what a text of options means. Raises Invalid."""
    key = (name, opts)
    found = _known.get(key)
    if found is None:
        found = checked_opts(name, read_opts(opts))
        if (
            not found.job_id
            and found.dedup_id is None
            and found.repeat is None
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


def checked_opts(name: str, opts: Any) -> Wanted:
    """Check options, in the recorded order and words. Raises Invalid."""
    if opts is None:
        opts = {}
    if not isinstance(opts, dict):
        raise Invalid("Unexpected field: opts.0" if isinstance(opts, (str, list)) and opts else NO_OBJECT)
    for key in opts:
        if key not in OPTIONS:
            raise Invalid(f"Unexpected field: opts.{shown(key)}")
    asked: dict[str, Any] = {"name": name, "max_attempts": 1, "backoff": 0, **BULLMQ}
    priority = 0
    if "delay" in opts:
        asked["delay_ms"] = integer("delay", opts["delay"], 0, MILLIS_MAX)
    if "priority" in opts:
        priority = integer("priority", opts["priority"], 1, PRIORITY_MAX)
        asked["priority"] = -priority
    if "attempts" in opts:
        asked["max_attempts"] = integer("attempts", opts["attempts"]) or 1
    if "backoff" in opts:
        asked["backoff"] = checked_backoff(opts["backoff"])
    if "lifo" in opts and boolean("lifo", opts["lifo"]) and not priority:
        # Where a job goes first among its equals, one with a priority does not.
        asked["lifo"] = True
    job_id = checked_job_id(opts["jobId"]) if "jobId" in opts else ""
    dedup_id = None
    if "deduplication" in opts:
        dedup_id, asked["dedup"] = checked_deduplication(opts["deduplication"])
    if "removeOnComplete" in opts:
        asked["keep_completed"] = checked_keep("removeOnComplete", opts["removeOnComplete"])
    if "removeOnFail" in opts:
        asked["keep_failed"] = checked_keep("removeOnFail", opts["removeOnFail"])
    repeat = None
    if "repeat" in opts:
        repeat = checked_repeat(name, opts["repeat"])
        if dedup_id is not None or job_id:
            raise Invalid("Invalid repeat, cannot be used with jobId or deduplication")
        # When it runs is what repeat says.
        asked.pop("delay_ms", None)
    shown_opts = {"attempts": 0, **opts}
    sent = {
        key: value for key, value in shown_opts.items() if key != "deduplication" and not (key == "jobId" and value)
    }
    return Wanted(
        Options(**asked, sent=ENCODE(sent)),
        ENCODE(shown_opts),
        job_id,
        dedup_id,
        asked.get("delay_ms"),
        priority,
        repeat,
    )


def checked_backoff(value: Any) -> Backoff | int:
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


def checked_job_id(value: Any) -> str:
    """Return the id that a client chose; empty counts as none. Raises Invalid."""
    job_id = text("jobId", value)
    if INTEGER.fullmatch(job_id):
        raise Invalid("Custom Id cannot be integers")
    if ":" in job_id and job_id.count(":") != 2:
        # As in BullMQ, where three parts are the ids of repeating jobs.
        raise Invalid("Custom Id cannot contain :")
    return job_id


def checked_deduplication(value: Any) -> tuple[str, Dedup]:
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


def operation(adding: Adding) -> AddJobs | AddRepeating:
    """Make what goes into the log of an add."""
    both = list(zip(adding.items, adding.wanted, strict=True))
    jobs = AddJobs(adding.queue, [spec(item, one) for item, one in both if one.repeat is None])
    repetitions = [repetition(one.repeat, spec(item, one)) for item, one in both if one.repeat is not None]
    return AddRepeating(jobs, repetitions) if repetitions else jobs


def spec(item: AddItem, one: Wanted) -> JobSpec:
    assert not isinstance(item.data, UnsetType)
    return JobSpec(one.job_id, bytes(item.data), one.options, bool(one.job_id), one.dedup_id)

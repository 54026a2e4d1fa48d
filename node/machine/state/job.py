"""The records of a job: what a producer asks for, what the cluster keeps, and the history of its runs.

Records hold facts and answer questions about themselves; only node/machine/lifecycle moves a job from state to state. They are
untracked by the garbage collector (`gc=False`): no record may refer, directly or not, to something that refers to it.
"""

from __future__ import annotations

from collections.abc import Container
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from quorumq.node.machine.refusals import ChildrenFailed, ChildrenPending

JobState = Literal["waiting", "delayed", "active", "waiting-children", "completed", "failed"]

WAITING: Final = "waiting"
DELAYED: Final = "delayed"
ACTIVE: Final = "active"
WAITING_CHILDREN: Final = "waiting-children"
COMPLETED: Final = "completed"
FAILED: Final = "failed"
# A record that is no longer in any table; only code that still holds a reference sees it.
REMOVED: Final = "removed"

# Why a job is in the dead letter queue.
EXPLICIT_FAIL: Final = "explicit_fail"
MAX_ATTEMPTS: Final = "max_attempts_exceeded"
TIMEOUT: Final = "timeout"
STALLED: Final = "stalled"
UNKNOWN: Final = "unknown"

BACKOFF_MS_MAX = 24 * 3600 * 1000
# Past any date that a program can name, and small enough that a time plus this stays exact wherever it is written.
FAR_MS = 1 << 52
TIMED_OUT = "Job timeout exceeded"
STALLED_TOO_OFTEN = "job stalled more than allowable limit"
# Room for the numbers that count jobs, below the bits of a priority or a time: more than a quadrillion jobs.
ORDER_BITS = 50
PAST_MAX = 40
# What a lock lasts when nobody says it.
LOCK_MS = 30_000
RUNS_MAX = 20
# Of the errors and stacks of those runs together, and of the error that a step of the past tells: characters. From feature level 1 on.
RUNS_CHARS_MAX = 256 << 10
STEP_CHARS_MAX = 1_024
# What BullMQ's clients call queues with, unless a setting says otherwise.
QUEUE_PREFIX = "bull"


class Backoff(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """How long a failed job waits before its next run, without a bound.

    jitter: share of the delay, 0 to 1, that chance may take off.
    """

    type: Literal["fixed", "exponential", "linear"]
    delay: int | float
    jitter: int | float = 0


class Repeat(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """How a job repeats. limit: repeats after the first run.  count: repeats so far."""

    every_ms: int | float | None = None
    pattern: str | None = None
    limit: int | None = None
    count: int = 0
    tz: str | None = None


class Keep(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """Which finished jobs stay when another one of their kind ends: none older than age_ms, and the `count` newest.

    None: no such bound. A count of 0 removes the job that ends, and nothing else.

    limit: jobs too old that go at most when one ends; as BullMQ's clients say it, from feature level 1 on.
    """

    age_ms: int | None = None
    count: int | None = None
    limit: int | None = None


class Dedup(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """How long a job's unique key keeps others away; without ttl_ms as long as the job is unfinished.

    ttl_ms: so long, whether the job is finished or not.  extend: a job that is kept away starts the time anew.
    replace: a job that is still delayed makes room for the new one.

    Of jobs named over the backend protocol only, from feature level 1 on.  reschedule: a job that is still delayed waits anew, as
    long as the one that is kept away would.  keep_last: the last one that is kept away while the job is active comes after it.
    """

    ttl_ms: int | None = None
    extend: bool = False
    replace: bool = False
    reschedule: bool = False
    keep_last: bool = False


class Options(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """What a producer may ask for and many jobs share; equal options are one object. Defaults are those of seed 001.

    priority: higher first.  max_attempts: runs allowed.  backoff: milliseconds, exponential, or a Backoff.
    ttl_ms: from creation, the job is dropped when it has not been taken by then.  timeout_ms: for one run.

    The rest are BullMQ's rules.  rejoin_last: a job that comes back, from a delay or a failed run, goes behind all that
    wait with its priority; else where its creation puts it. A lifo job comes first again.  stalls_allowed: a lost lock puts the
    job first and is no failed run; more of them than this fail it for good.  None: the queue's stall settings, each stall
    is a failed run.  keep_completed, keep_failed: None leaves it to the queue.  dedup: of its unique key.
    sent: JSON text of the options as the client sent them.
    """

    priority: int = 0
    delay_ms: int | float = 0
    max_attempts: int = 3
    backoff: int | float | Backoff = 1000
    ttl_ms: int | float | None = None
    timeout_ms: int | float | None = None
    lifo: bool = False
    remove_on_complete: bool = False
    remove_on_fail: bool = False
    durable: bool = False
    name: str = "default"
    tags: tuple[str, ...] = ()
    repeat: Repeat | None = None
    rejoin_last: bool = False
    stalls_allowed: int | None = None
    keep_completed: Keep | None = None
    keep_failed: Keep | None = None
    dedup: Dedup | None = None
    sent: bytes | None = None

    def retry_delay_ms(self, failures: int, chance: float | None = None) -> int:
        """Return how long to wait after the failure number `failures` (1 for the first).

        chance: 0 to 1; the smaller, the more of the jitter is taken off. Without it nothing is.
        """
        backoff = self.backoff
        if not isinstance(backoff, Backoff):
            kind, delay, most = "exponential", backoff, BACKOFF_MS_MAX
        else:
            kind, delay, most = backoff.type, backoff.delay, FAR_MS
        if kind == "exponential":
            # Two to the 60th is past any cap; a larger exponent would only make a larger number.
            delay = delay * 2 ** min(failures - 1, 60)
        elif kind == "linear":
            delay = delay * failures
        if chance is not None and isinstance(backoff, Backoff):
            delay -= delay * min(max(backoff.jitter, 0), 1) * (1 - min(max(chance, 0), 1))
        return ceil(min(delay, most))


DEFAULT = Options()


class JobSpec(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """One job as pushed, and as it lies in the log. Jobs with the same options should share one Options.

    data: the JSON text, never parsed below the edge.  custom: the client chose the id.
    """

    id: str
    data: bytes
    opts: Options = DEFAULT
    custom: bool = False
    unique_key: str | None = None
    group_id: str | None = None
    depends_on: tuple[str, ...] = ()


def job_spec(
    id: str,  # noqa: A002 - the field's name
    data: bytes,
    *,
    custom: bool = False,
    unique_key: str | None = None,
    group_id: str | None = None,
    depends_on: tuple[str, ...] = (),
    **options: object,
) -> JobSpec:
    """Make a JobSpec from flat arguments; options are the fields of Options."""
    opts = msgspec.convert(options, Options, strict=True) if options else DEFAULT
    return JobSpec(id, data, opts, custom, unique_key, group_id, depends_on)


class Moment(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One step of a job's past. attempt: number of failed runs by then, for a failure."""

    state: str
    at: int
    error: str | None = None
    attempt: int | None = None


class Run(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One run that did not complete. stack: where in the worker's program it failed, as the worker says."""

    attempt: int
    started_at: int | None
    failed_at: int
    reason: str
    error: str | None
    stack: str | None = None


class LogLine(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One line that a worker attached to a job."""

    at: int
    level: str
    message: str


class Failures(msgspec.Struct, gc=False, array_like=True):
    """What went wrong with a job. reason: why it is, or was last, in the dead letter queue.

    runs: the last RUNS_MAX.  retries: returns from the dead letter queue.  next_retry_at: of the automatic ones.
    """

    runs: list[Run] = []
    reason: str | None = None
    retries: int = 0
    last_retry_at: int | None = None
    next_retry_at: int | None = None


class Dependencies(msgspec.Struct, gc=False, array_like=True):
    """The jobs that must complete first. remaining: those that have not.  values: results of those that have.

    done_at: when the last of them completed that this one had to wait for; 0 while it waits or when it never had to.
    """

    ids: tuple[str, ...]
    remaining: list[str] = []
    values: dict[str, bytes | None] = {}
    done_at: int = 0


# What becomes of a parent when a child of its fails for good: it waits until the child is retried, fails too, goes on at once
# with the failure recorded, goes on when the others are done with the failure recorded, or as if there had been no such child.
OnChildFailure = Literal["wait", "fail", "continue", "ignore", "remove"]
WAIT: Final = "wait"
FAIL: Final = "fail"
CONTINUE: Final = "continue"
IGNORE: Final = "ignore"
REMOVE: Final = "remove"
# How a child counts in its parent once it is not pending any more.
PROCESSED: Final = "processed"
CONTINUED: Final = "continued"
IGNORED: Final = "ignored"
UNSUCCESSFUL: Final = "failed"


class ChildEnd(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """How a child ended, as its parent keeps it. how: processed, continued, ignored or failed.  queue: the child's.

    result: of a processed child, JSON text.  reason: why one of the others failed.
    """

    how: Literal["processed", "continued", "ignored", "failed"]
    queue: str
    result: bytes | None = None
    reason: str | None = None


# Shared by all jobs of flows that have none of these, 200 bytes less for each of them: whoever adds something makes one first.
NO_NAMES: Final[list[str]] = []
NO_VALUES: Final[dict[str, bytes | None]] = {}
NO_CHILDREN: Final[dict[str, ChildEnd | None]] = {}


class FlowLinks(msgspec.Struct, gc=False, array_like=True):
    """What ties a job to others of its flow, in whatever queues.

    parent: id of the job that waits for this one.  parent_queue: that one's queue.  on_failure: what becomes of it when this one
    fails for good.  children: by id, in order of addition; None for one that is pending.  pending, failed: how many of them.
    waived: whether the job may complete though children are pending, because a failed child let it go on.  prefix: of queues with a bare
    name, as BullMQ's clients who gave it children call them.
    """

    parent: str | None = None
    parent_queue: str = ""
    on_failure: OnChildFailure = WAIT
    children: dict[str, ChildEnd | None] = {}
    pending: int = 0
    failed: int = 0
    waived: bool = False
    prefix: str = QUEUE_PREFIX

    def add_pending(self, child_id: str) -> None:
        """Add a child that has not ended, or let one that has not be pending again."""
        if self.children is NO_CHILDREN:
            self.children = {}
        self.children[child_id] = None
        self.pending += 1


class TiedDependencies(Dependencies, gc=False, array_like=True):
    """The same of a job of a flow. No job had this below feature level 1, so that the others' records are what they were."""

    flow: FlowLinks | None = None


if TYPE_CHECKING:
    AnyDependencies = Dependencies
else:
    # Records are read as the longer form; `Job.settle_form` makes the shorter one again of those that have no more.
    AnyDependencies = TiedDependencies


class Extra(msgspec.Struct, gc=False, array_like=True):
    """What few jobs have to remember.

    starts: those that are neither failed runs nor the present or last one: moved back, or stalls that do not count.
    progress_json: JSON text of a progress that is more than a number.  processed_at: start of the last run, where
    `Job.started_at` says no more.  delayed_at: when the job was told to wait.
    """

    starts: int = 0
    progress_json: bytes | None = None
    processed_at: int | None = None
    delayed_at: int = 0


class ClientRecord(Extra, gc=False, array_like=True):
    """The same of a job that a client of BullMQ's backend protocol added or took, with what that client keeps there. From level 1 on.

    timestamp: when its producer made it, by that one's clock; 0 or more in each such record.  fence: of the last delivery to such a
    client, whose lock is strict: once it ran out it ends nothing.  processed_by: name of the worker.  deferred: why the next worker
    is to fail it.  stacks: JSON text of the stack traces.  parent_key, parent: of its parent, as sent; JSON text.  repeat_key: the
    scheduler that made it.  delay: what it waits, or waited last, in milliseconds.
    """

    timestamp: int = -1
    fence: int = 0
    processed_by: str | None = None
    deferred: str | None = None
    stacks: bytes | None = None
    parent_key: str | None = None
    parent: bytes | None = None
    repeat_key: str | None = None
    delay: int = 0


if TYPE_CHECKING:
    AnyExtra = Extra
else:
    # Read as the longer form, as `AnyDependencies`.
    AnyExtra = ClientRecord


class Job(msgspec.Struct, gc=False, array_like=True, eq=False):
    """The canonical record of one job; every dialect renders it. Order of fields is the image's format: only append.

    custom: whether the client chose the id; or the id that it had before a new job took that, while it lay in the dead letter
    queue.  seq: unique, by creation.  order: its place among waiting jobs of equal priority.  ending: unique, by end; 0 before it.
    attempts: runs that failed.  fence: rises with every delivery of any job.  token: of the run under way, or of one
    whose lock ran out while nobody else has taken the job.  due: its timer.  past: steps before the present run.
    Times are milliseconds since the epoch.
    """

    id: str
    queue: str
    data: bytes
    opts: Options
    state: str
    seq: int
    order: int
    created_at: int
    run_at: int
    custom: bool | str = False
    unique_key: str | None = None
    group_id: str | None = None
    started_at: int | None = None
    finished_at: int | None = None
    attempts: int = 0
    stalls: int = 0
    fence: int = 0
    token: str | None = None
    owner: str | None = None
    lock_ms: int = 0
    lock_until: int = 0
    last_heartbeat: int | None = None
    progress: int | float = 0
    progress_message: str | None = None
    error: str | None = None
    result: bytes | None = None
    due: int = 0
    ending: int = 0
    dependencies: AnyDependencies | None = None
    failures: Failures | None = None
    past: list[Moment] | None = None
    first_state: str | None = None
    extra: AnyExtra | None = None

    @property
    def finished(self) -> bool:
        """Whether the job has come to its end: completed, or in the dead letter queue."""
        return self.state == COMPLETED or self.state == FAILED

    @property
    def locked(self) -> bool:
        """Whether the run under way is held by a token."""
        return self.lock_until != 0

    @property
    def failed_reason(self) -> str | None:
        """Why the last failed run failed; in a word of the server where the worker gave no reason."""
        if self.error is not None or self.state != FAILED or self.failures is None:
            return self.error
        return self.failures.reason

    @property
    def shown_state(self) -> str:
        """The state as the dialects name it: a job that waits with a priority is `prioritized`."""
        return "prioritized" if self.state == WAITING and self.opts.priority > 0 else self.state

    @property
    def starts(self) -> int:
        """How often the job was taken, the run under way included; what was given back unseen does not count."""
        return self.attempts + self.extra_starts + (1 if self.state in (ACTIVE, COMPLETED) else 0)

    @property
    def extra_starts(self) -> int:
        """Starts that are neither failed runs nor the present or last one."""
        return self.extra.starts if self.extra else 0

    @property
    def called(self) -> str | None:
        """The id that it had before a new job took that; None for nearly all jobs."""
        return self.custom if isinstance(self.custom, str) else None

    @property
    def custom_id(self) -> str | None:
        """The id that the client chose, if it did; or the one that it had before a new job took that."""
        return self.custom if isinstance(self.custom, str) else self.id if self.custom else None

    @property
    def progress_json(self) -> bytes | None:
        """JSON text of the progress, when it is more than a number."""
        return self.extra.progress_json if self.extra else None

    @property
    def processed_at(self) -> int | None:
        """When the present or last run began; None before the first one."""
        if self.started_at is not None:
            return self.started_at
        return self.extra.processed_at if self.extra else None

    @property
    def delay_left(self) -> int:
        """How long the job was told to wait, when it is delayed; else 0."""
        if self.state != DELAYED:
            return 0
        since = max(self.created_at, self.extra.delayed_at if self.extra else 0)
        if self.past and self.past[-1].state == DELAYED:
            since = max(since, self.past[-1].at)
        return max(self.run_at - since, 0)

    @property
    def stacks(self) -> list[str]:
        """Where the last runs failed, oldest first, as far as their workers said it."""
        return [run.stack for run in self.failures.runs if run.stack is not None] if self.failures else []

    @property
    def scheduled(self) -> bool:
        """Whether a scheduler of the BullMQ dialect made the job."""
        return self.id.startswith(scoped_id(self.queue, "repeat:"))

    @property
    def depends_on(self) -> tuple[str, ...]:
        return self.dependencies.ids if self.dependencies else ()

    @property
    def flow(self) -> FlowLinks | None:
        """What ties it to other jobs of its flow; None for nearly all jobs."""
        dependencies = self.dependencies
        # For a struct's type this is twice as quick as isinstance.
        return dependencies.flow if type(dependencies) is TiedDependencies else None

    @property
    def pending_children(self) -> int:
        """How many children have neither ended nor been let go of."""
        links = self.flow
        return 0 if links is None else links.pending

    @property
    def record(self) -> ClientRecord | None:
        """What clients of the backend protocol keep with it; None for a job that none of them named."""
        extra = self.extra
        return extra if isinstance(extra, ClientRecord) and extra.timestamp >= 0 else None

    @property
    def is_strict(self) -> bool:
        """Whether the run under way was given to a client of the backend protocol, whose lock ends with its time and rings no timer."""
        record = self.record
        return record is not None and record.fence == self.fence

    def named(self) -> ClientRecord:
        """Return what clients of the backend protocol keep with it, made when it is new."""
        record = self.record
        if record is None:
            before = self.extra or Extra()
            fields = (before.starts, before.progress_json, before.processed_at, before.delayed_at)
            record = self.extra = ClientRecord(*fields, timestamp=self.created_at)
        return record

    def forget_past(self) -> None:
        """Remember none of what came before, but for what clients of the backend protocol keep."""
        record = self.record
        if record is None:
            self.extra = None
        else:
            record.starts = record.delayed_at = 0
            record.progress_json = record.processed_at = record.deferred = record.stacks = None

    def settle_form(self) -> None:
        """Give a record that was read the form that it had when it was written."""
        extra = self.extra
        if extra is not None and self.record is None:
            self.extra = Extra(extra.starts, extra.progress_json, extra.processed_at, extra.delayed_at)
        read = self.dependencies
        if read is not None and self.flow is None:
            self.dependencies = Dependencies(read.ids, read.remaining, read.values, read.done_at)

    def with_extra(self) -> Extra:
        """Return what few jobs remember, made when it is new."""
        extra = self.extra
        if extra is None:
            extra = self.extra = Extra()
        return extra

    def remember_step(self, step: Moment) -> None:
        """Note a state that the job went through, forgetting the oldest past PAST_MAX."""
        if self.past is None:
            self.past = []
        self.past.append(step)
        del self.past[:-PAST_MAX]

    def tied(self) -> FlowLinks:
        """Return what ties it to other jobs, made when it is new."""
        others = self.dependencies
        if type(others) is TiedDependencies and others.flow is not None:
            return others.flow
        links = FlowLinks(children=NO_CHILDREN)
        if others is None:
            self.dependencies = TiedDependencies((), NO_NAMES, NO_VALUES, 0, links)
        else:
            self.dependencies = TiedDependencies(others.ids, others.remaining, others.values, others.done_at, links)
        return links

    @property
    def expires_at(self) -> int:
        """When the job is dropped if nobody has taken it; 0 for never."""
        ttl = self.opts.ttl_ms
        return 0 if ttl is None else self.created_at + ceil(ttl)

    @property
    def timeline(self) -> list[Moment]:
        """The states the job went through, oldest first; at most PAST_MAX steps before the present run."""
        steps = [Moment(self.first_state or WAITING, self.created_at), *(self.past or ())]
        if self.started_at is not None and self.state in (ACTIVE, COMPLETED):
            steps.append(Moment(ACTIVE, self.started_at))
        if self.state == COMPLETED and self.finished_at is not None:
            steps.append(Moment(COMPLETED, self.finished_at))
        return steps


def weight_of_run(run: Run) -> int:
    """Return the characters that a failed run left."""
    return len(run.error or "") + len(run.stack or "")


def weight_of_failed(job: Job) -> int:
    """Return what a failed job counts for: its data, and what its runs left; it does not change unless its data do."""
    record, failures = job.record, job.failures
    return (
        len(job.data)
        + len(job.error or "")
        + (0 if failures is None else sum(map(weight_of_run, failures.runs)))
        + (0 if record is None else len(record.stacks or b""))
    )


def scoped_id(queue: str, own: str) -> str:
    """Return the canonical id of a job that is called `own` within its queue, as the BullMQ dialect has it."""
    return f"bull:{queue}:{own}"


def own_id(job: Job) -> str:
    """Return what a job is called within its queue."""
    return unscoped(job.queue, job.id)


def unscoped(queue: str, job_id: str) -> str:
    """Return what a canonical id is within a queue."""
    return job_id.removeprefix(scoped_id(queue, ""))


def child_key(queue: str, job_id: str) -> str:
    """Return how a parent calls a child: by its queue and its id; an id of BullMQ tells the queue already."""
    return job_id if job_id.startswith(scoped_id(queue, "")) else f"{queue}:{job_id}"


def rank_of(job: Job) -> int:
    """Return the key of a waiting job: higher priority first, then by order. At priority 0 it is the order itself."""
    return job.order - (job.opts.priority << ORDER_BITS)


def due_rank_of(job: Job) -> int:
    """Return the key of a delayed job: by the time it is due, then by creation."""
    return (job.run_at << ORDER_BITS) + job.seq


def next_id(job_id: str, now_ms: int) -> str:
    """Make the id of a job that follows from another one, the same on every replica: a UUID v7 of that moment."""
    chance = int.from_bytes(blake2b(f"{job_id}@{now_ms}".encode(), digest_size=10).digest(), "big")
    bits = (now_ms & (1 << 48) - 1) << 80 | 7 << 76 | (chance >> 62 & 0xFFF) << 64 | 2 << 62 | chance & (1 << 62) - 1
    text = f"{bits:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def aside_id(job: Job, taken: Container[str]) -> str:
    """Make an id for a dead letter whose own id a new job takes, the same on every replica; one that no job has."""
    at_ms = job.finished_at or job.created_at
    salt, found = 0, job.id
    while found == job.id or found in taken:
        found = next_id(f"{job.id}#{job.seq}#{salt}", at_ms)
        if job.id.startswith(scoped_id(job.queue, "")):
            found = scoped_id(job.queue, found)
        salt += 1
    return found


def ceil(ms: float) -> int:
    """Round a duration up to whole milliseconds, so that nothing happens early."""
    whole = int(ms)
    return whole if whole == ms else whole + 1


def holds_for_a_time(job: Job) -> bool:
    """Whether the job's unique key is not held for as long as it is unfinished, but for a time of its own."""
    return job.opts.dedup is not None and bool(job.opts.dedup.ttl_ms)


def weight(job: Job) -> int:
    """Return the bytes a finished job counts for."""
    return len(job.data) + (len(job.result) if job.result is not None else 0)


def weight_of_links(links: FlowLinks) -> int:
    """Return the bytes that a job's ties take, roughly."""
    ends = [end for end in links.children.values() if end is not None]
    return 60 * (1 + len(links.children)) + sum(len(end.result or b"") + len(end.reason or "") for end in ends)


def check_may_complete(job: Job) -> None:
    """Raises ChildrenPending, ChildrenFailed."""
    flow = job.flow
    if flow is not None:
        if flow.pending and not flow.waived:
            raise ChildrenPending(job.id)
        if flow.failed:
            raise ChildrenFailed(job.id)

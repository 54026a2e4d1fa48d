"""The records of a job: what a producer asks for, what the cluster keeps, and the history of its runs.

Records hold facts and answer questions about themselves; only `node.state` moves a job from state to state. They are
untracked by the garbage collector (`gc=False`): no record may refer, directly or not, to something that refers to it.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final, Literal

import msgspec

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
STALLED_TOO_OFTEN = "job stalled more than allowable limit"
# Room for the numbers that count jobs, below the bits of a priority or a time: more than a quadrillion jobs.
ORDER_BITS = 50
PAST_MAX = 40
RUNS_MAX = 20


class Backoff(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """How long a failed job waits before its next run, without a bound.

    jitter: share of the delay, 0 to 1, that chance may take off.
    """

    type: Literal["fixed", "exponential", "linear"]
    delay: int | float
    jitter: int | float = 0


class Repeat(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """How a job repeats. limit: repeats after the first run.  count: repeats so far."""

    every_ms: int | float | None = None
    pattern: str | None = None
    limit: int | None = None
    count: int = 0
    tz: str | None = None


class Keep(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Which finished jobs stay when another one of their kind ends: none older than age_ms, and the `count` newest.

    None: no such bound. A count of 0 removes the job that ends, and nothing else.
    """

    age_ms: int | None = None
    count: int | None = None


class Dedup(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """How long a job's unique key keeps others away; without ttl_ms as long as the job is unfinished.

    ttl_ms: so long, whether the job is finished or not.  extend: a job that is kept away starts the time anew.
    replace: a job that is still delayed makes room for the new one.
    """

    ttl_ms: int | None = None
    extend: bool = False
    replace: bool = False


class Options(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What a producer may ask for and many jobs share; equal options are one object. Defaults are those of seed 001.

    priority: higher first.  max_attempts: runs allowed.  backoff: milliseconds, exponential, or a Backoff.
    ttl_ms: from creation, the job is dropped when it has not been taken by then.  timeout_ms: for one run.

    The rest are BullMQ's rules.  rejoin_last: a job that comes back, from a delay or a failed run, goes behind all that
    wait with its priority; else where its birth puts it, as a lifo job always does.  stalls_allowed: a lost lock puts the
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


class JobSpec(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
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


class Job(msgspec.Struct, gc=False, array_like=True, eq=False):
    """The canonical record of one job; every dialect renders it. Order of fields is the image's format: only append.

    seq: unique, by birth.  order: its place among waiting jobs of equal priority.  ending: unique, by end; 0 before it.
    attempts: runs that failed.  fence: rises with every delivery of any job.  token: of the run under way, or of one
    whose lock ran out while nobody else has taken the job.  due: its alarm.  past: steps before the present run.
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
    custom: bool = False
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
    dependencies: Dependencies | None = None
    failures: Failures | None = None
    past: list[Moment] | None = None
    first_state: str | None = None
    extra: Extra | None = None

    @property
    def finished(self) -> bool:
        """Whether the job has come to its end: completed, or in the dead letter queue."""
        return self.state == COMPLETED or self.state == FAILED

    @property
    def locked(self) -> bool:
        """Whether the run under way is held by a token."""
        return self.lock_until != 0

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


def scoped_id(queue: str, own: str) -> str:
    """Return the canonical id of a job that is called `own` within its queue, as the BullMQ dialect has it."""
    return f"bull:{queue}:{own}"


def own_id(job: Job) -> str:
    """Return what a job is called within its queue."""
    return job.id.removeprefix(f"bull:{job.queue}:")


def rank_of(job: Job) -> int:
    """Return the key of a waiting job: higher priority first, then by order. At priority 0 it is the order itself."""
    return job.order - (job.opts.priority << ORDER_BITS)


def due_rank_of(job: Job) -> int:
    """Return the key of a delayed job: by the time it is due, then by birth."""
    return (job.run_at << ORDER_BITS) + job.seq


def next_id(job_id: str, now_ms: int) -> str:
    """Make the id of a job that follows from another one, the same on every replica: a UUID v7 of that moment."""
    chance = int.from_bytes(blake2b(f"{job_id}@{now_ms}".encode(), digest_size=10).digest(), "big")
    bits = (now_ms & (1 << 48) - 1) << 80 | 7 << 76 | (chance >> 62 & 0xFFF) << 64 | 2 << 62 | chance & (1 << 62) - 1
    text = f"{bits:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def ceil(ms: float) -> int:
    """Round a duration up to whole milliseconds, so that nothing happens early."""
    whole = int(ms)
    return whole if whole == ms else whole + 1

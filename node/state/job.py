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
# Room for the numbers that count jobs, below the bits of a priority or a time: more than a quadrillion jobs.
ORDER_BITS = 50
PAST_MAX = 40
RUNS_MAX = 20


class Backoff(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """How long a failed job waits before its next run. jitter: share of the delay, 0 to 1, that chance may take off."""

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


class Options(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What a producer may ask for and many jobs share; equal options are one object. Defaults are those of seed 001.

    priority: higher first.  max_attempts: runs allowed.  backoff: milliseconds, exponential, or a Backoff.
    ttl_ms: from creation, the job is dropped when it has not been taken by then.  timeout_ms: for one run.
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

    def retry_delay_ms(self, failures: int, chance: float | None = None) -> int:
        """Return how long to wait after the failure number `failures` (1 for the first).

        chance: 0 to 1; the smaller, the more of the jitter is taken off. Without it nothing is.
        """
        backoff = self.backoff
        if not isinstance(backoff, Backoff):
            kind, delay = "exponential", backoff
        else:
            kind, delay = backoff.type, backoff.delay
        if kind == "exponential":
            # Two to the 60th is past any cap; a larger exponent would only make a larger number.
            delay = delay * 2 ** min(failures - 1, 60)
        elif kind == "linear":
            delay = delay * failures
        if chance is not None and isinstance(backoff, Backoff):
            delay -= delay * min(max(backoff.jitter, 0), 1) * (1 - min(max(chance, 0), 1))
        return ceil(min(delay, BACKOFF_MS_MAX))


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
    """One run that did not complete."""

    attempt: int
    started_at: int | None
    failed_at: int
    reason: str
    error: str | None


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

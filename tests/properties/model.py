"""The job queue once more, as plainly as it can be written: lists that are searched, nothing that is kept in order.

It knows the rules, not the indexes. Whatever it answers, the machine has to answer, in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from quorumq.node.machine.state import Keep
from quorumq.node.machine.state.job import next_id
from tests.properties.model_groups import ModelGroups

QUEUED = ("waiting", "delayed", "waiting-children")
DAY_MS = 24 * 3600 * 1000
STALL_MS = 30_000
GRACE_MS = 5_000
STALLS_MAX = 3
DLQ_AGE_MS = 604_800_000


@dataclass
class ModelJob:
    id: str
    queue: str
    seq: int
    created_at: int
    opts: dict[str, Any]
    state: str = "waiting"
    run_at: int = 0
    attempts: int = 0
    stalls: int = 0
    token: str | None = None
    owner: str | None = None
    lock_until: int = 0
    lock_ms: int = 0
    started_at: int = 0
    heard_at: int = 0
    finished_at: int = 0
    ending: int = 0
    fence: int = 0
    progress: float = 0
    result: bytes | None = None
    waits_for: list[str] = field(default_factory=list)
    place: int = 0
    starts: int = 0
    # When the runs began that were not given back.
    began: list[int] = field(default_factory=list)
    told_delay: int = 0
    # Tokens of earlier deliveries, and whether there were some that nobody remembers.
    spent: set[str] = field(default_factory=set)
    was_locked: bool = False
    any_spent: bool = False
    # The id that it had before a new job took it from a dead letter.
    called: str | None = None

    def spend(self) -> None:
        """Let the token go: it ends no later run."""
        if self.token is not None:
            self.spent.add(self.token)
        self.token, self.lock_until = None, 0

    def opt(self, name: str, default: Any = None) -> Any:
        return self.opts.get(name, default)

    @property
    def order(self) -> tuple[int, int]:
        return (-self.opt("priority", 0), self.place or (-self.seq if self.opt("lifo") else self.seq))

    @property
    def finished(self) -> bool:
        return self.state in ("completed", "failed")

    @property
    def processed_at(self) -> int | None:
        return self.began[-1] if self.began else None

    @property
    def delay_left(self) -> int:
        return self.told_delay if self.state == "delayed" else 0

    def due(self) -> int | None:
        """When something happens to this job by itself."""
        moments: list[int] = []
        if self.state in QUEUED and self.opt("ttl_ms") is not None:
            moments.append(self.created_at + self.opt("ttl_ms"))
        if self.state == "delayed":
            moments.append(self.run_at)
        if self.state == "active":
            if self.lock_until:
                moments.append(self.lock_until)
            else:
                moments.append(max(self.heard_at + STALL_MS, self.started_at + GRACE_MS))
            if self.opt("timeout_ms"):
                moments.append(self.started_at + self.opt("timeout_ms"))
        if self.state == "failed":
            moments.append(self.finished_at + DLQ_AGE_MS)
        return min(moments, default=None)


class Refused(Exception):
    """Carries the code of the refusal the machine should give."""


class Model:
    """All queues. Every method answers what the operation of the same name replies, in plain values."""

    def __init__(self, now_ms: int) -> None:
        self.now = now_ms
        self.seq = self.fence = self.endings = 0
        self.jobs: list[ModelJob] = []
        self.gone: set[str] = set()
        self.paused: set[str] = set()
        self.concurrency: dict[str, int] = {}
        self.rates: dict[str, tuple[int, Fraction, int]] = {}
        self.windows: dict[str, tuple[int, int]] = {}
        self.started: dict[str, tuple[int, int]] = {}
        self.held_until: dict[str, int] = {}
        self.defaults: dict[str, dict[str, Any]] = {}
        self.numbers: dict[str, int] = {}
        self.groups = ModelGroups()
        # Who holds a unique key, and until when: None for as long as the job is unfinished.
        self.keys: dict[tuple[str, str], tuple[str, int | None]] = {}

    # -- Looking

    def find(self, job_id: str) -> ModelJob | None:
        return next((job for job in self.jobs if job.id == job_id), None)

    def in_state(self, queue: str, *states: str) -> list[ModelJob]:
        return [job for job in self.jobs if job.queue == queue and job.state in states]

    def waiting(self, queue: str) -> list[ModelJob]:
        return sorted(self.in_state(queue, "waiting"), key=lambda job: job.order)

    def list_all(self, queue: str) -> list[str]:
        found = [job for job in self.jobs if job.queue == queue]
        return [job.id for job in sorted(found, key=lambda job: job.order)]

    def counts(self, queue: str) -> dict[str, int]:
        states = ("waiting", "delayed", "active", "waiting-children", "completed", "failed")
        counts = {state.replace("-", "_"): len(self.in_state(queue, state)) for state in states}
        counts["prioritized"] = len([job for job in self.waiting(queue) if job.opt("priority", 0) > 0])
        counts["lowered"] = len([job for job in self.waiting(queue) if job.opt("priority", 0) < 0])
        return counts

    def list_status(self, queue: str, status: str) -> list[str]:
        if status in ("waiting", "prioritized"):
            jobs = [job for job in self.waiting(queue) if (job.opt("priority", 0) < 0) == (status == "prioritized")]
        elif status == "delayed":
            jobs = sorted(self.in_state(queue, status), key=lambda job: (job.run_at, job.seq))
        elif status == "active":
            jobs = sorted(self.in_state(queue, status), key=lambda job: job.fence)
        else:
            jobs = sorted(self.in_state(queue, status), key=lambda job: job.ending)
        return [job.id for job in jobs]

    # -- Unique keys

    def holder(self, queue: str, key: str) -> str | None:
        job_id, until = self.keys.get((queue, key), (None, None))
        return None if until is not None and until <= self.now else job_id

    def let_go(self, job: ModelJob, *, removed: bool) -> None:
        key = (job.queue, job.opt("unique_key"))
        held = self.keys.get(key)
        if held is not None and held[0] == job.id and (removed or held[1] is None):
            del self.keys[key]

    def hold(self, job: ModelJob, until: int | None = None) -> None:
        key, dedup = job.opt("unique_key"), job.opt("dedup")
        if key is not None:
            timed = dedup is not None and dedup.ttl_ms
            until = (until or self.now + dedup.ttl_ms) if timed else None
            self.keys[(job.queue, key)] = (job.id, until)

    def free(self, queue: str, key: str) -> int:
        holder = self.holder(queue, key)
        if holder is None:
            return 0
        del self.keys[(queue, key)]
        job = self.find(holder)
        if job is not None and job.queue == queue and job.opt("unique_key") == key:
            job.opts = {**job.opts, "unique_key": None}
        return 1

    def remove_job(self, job: ModelJob) -> None:
        self.let_go(job, removed=True)
        self.jobs.remove(job)

    def priority_counts(self, queue: str) -> dict[int, int]:
        counts: dict[int, int] = {}
        for job in self.in_state(queue, "waiting", "delayed"):
            priority = job.opt("priority", 0)
            counts[priority] = counts.get(priority, 0) + 1
        return dict(sorted(counts.items()))

    # -- Time

    def advance(self, to_ms: int) -> None:
        self.now = to_ms
        while True:
            due = [(job.due(), job.seq, job) for job in self.jobs]
            ripe = sorted((when, seq) for when, seq, _ in due if when is not None and when <= to_ms)
            if not ripe:
                return
            self.ring(next(job for _, seq, job in due if seq == ripe[0][1]))

    def next_due(self) -> int | None:
        whens = [when for job in self.jobs if (when := job.due()) is not None]
        return min(whens + self.groups.ends(self.now), default=None)

    def ring(self, job: ModelJob) -> None:
        if job.state in QUEUED:
            if job.opt("ttl_ms") is not None and job.created_at + job.opt("ttl_ms") <= self.now:
                self.remove_job(job)
            else:
                self.rejoin(job)
                job.state = "waiting"
        elif job.state == "failed":
            self.jobs.remove(job)
        elif job.opt("timeout_ms") and job.started_at + job.opt("timeout_ms") <= self.now:
            job.stalls += 1
            allowed = self.stalls_allowed(job)
            self.end_run(job, final=job.stalls >= STALLS_MAX if allowed is None else job.stalls > allowed)
        else:
            token, was_locked = job.token, job.lock_until > 0
            job.stalls += 1
            allowed = self.stalls_allowed(job)
            if allowed is not None:
                if job.stalls > allowed:
                    self.end_run(job, final=True)
                else:
                    self.put_first(job)
                    job.token = token
                return
            backoff = 0 if was_locked else self.backoff(job, job.attempts + 1)
            self.end_run(job, final=job.stalls >= STALLS_MAX, delay=backoff)
            if not job.finished:
                job.token = token

    def stalls_allowed(self, job: ModelJob) -> int | None:
        """How often a job may stall that counts this for itself; None for the others."""
        allowed: int | None = job.opt("stalls_allowed")
        return None if allowed is None else self.defaults.get(job.queue, {}).get("stalls_allowed", allowed)

    def backoff(self, job: ModelJob, failures: int) -> int:
        return min(job.opt("backoff", 1000) * 2 ** (failures - 1), DAY_MS)

    def rejoin(self, job: ModelJob) -> None:
        if job.opt("lifo"):
            self.seq += 1
            job.place = -self.seq
        elif job.opt("rejoin_last"):
            self.seq += 1
            job.place = self.seq

    def put_first(self, job: ModelJob) -> None:
        self.seq += 1
        job.state, job.run_at = "waiting", self.now
        job.spend()
        job.place = -self.seq

    def end_run(self, job: ModelJob, *, final: bool, delay: int | None = None) -> None:
        job.attempts += 1
        job.spend()
        if final or job.attempts >= job.opt("max_attempts", 3):
            self.bury(job)
        else:
            job.told_delay = self.backoff(job, job.attempts) if delay is None else delay
            job.run_at = self.now + job.told_delay
            self.rejoin(job)
            job.state = "delayed" if job.run_at > self.now else "waiting"

    def bury(self, job: ModelJob) -> None:
        self.endings += 1
        self.let_go(job, removed=False)
        job.state, job.finished_at, job.ending = "failed", self.now, self.endings
        job.spend()
        job.waits_for = []
        self.keep(job, job.opt("remove_on_fail"))

    def keep(self, job: ModelJob, remove: bool) -> None:
        """Remove the job that has just ended, or what it lets go."""
        kind = job.state
        keep: Keep | None = job.opt(f"keep_{kind}") or self.defaults.get(job.queue, {}).get(f"keep_{kind}")
        gone: list[ModelJob] = []
        if remove or (keep is not None and keep.count == 0):
            gone = [job]
        elif keep is not None:
            ended = sorted(self.in_state(job.queue, kind), key=lambda other: other.ending)
            if keep.age_ms is not None:
                gone = [other for other in ended if other.finished_at <= self.now - keep.age_ms]
            ended = [other for other in ended if other not in gone]
            if keep.count is not None:
                gone += ended[: max(len(ended) - keep.count, 0)]
        for other in gone:
            self.jobs.remove(other)
            if kind == "completed":
                self.gone.add(other.id)

    # -- Operations

    def push(self, queue: str, job_id: str, **opts: Any) -> str:
        depends_on = opts.get("depends_on", ())
        for other_id in depends_on:
            if other_id == job_id or (self.find(other_id) is None and other_id not in self.gone):
                raise Refused("dependency_not_found")
        present = self.find(job_id)
        if present is not None and not present.finished:
            return job_id
        holder, until = self.deduplicate(queue, opts, ("waiting", "delayed", "waiting-children"))
        if holder is not None:
            return holder
        made_room = present
        if present is not None and present.state == "completed":
            self.remove_job(present)
        elif present is not None:
            self.set_aside(present)
        self.bear(queue, job_id, opts, until)
        born = self.find(job_id)
        if born is not None and made_room is not None:
            born.spent = set(made_room.spent)
            born.any_spent = made_room.any_spent or (made_room.state == "completed" and made_room.was_locked)
        return job_id

    def set_aside(self, job: ModelJob) -> None:
        """Keep a dead letter whose id a new job takes under an id of its own."""
        at_ms, salt, found = job.finished_at, 0, job.id
        while self.find(found) is not None:
            found = next_id(f"{job.id}#{job.seq}#{salt}", at_ms)
            if job.id.startswith(f"bull:{job.queue}:"):
                found = f"bull:{job.queue}:{found}"
            salt += 1
        job.called = job.called or job.id
        self.rename(job, found)

    def rename(self, job: ModelJob, job_id: str) -> None:
        key = (job.queue, job.opt("unique_key"))
        if key in self.keys and self.keys[key][0] == job.id:
            self.keys[key] = (job_id, self.keys[key][1])
        job.place = job.place or (-job.seq if job.opt("lifo") else job.seq)
        self.seq += 1
        job.id, job.seq = job_id, self.seq

    def called(self, queue: str, state: str, job_id: str) -> list[ModelJob]:
        """The finished job of an id, else the youngest of those that had it."""
        jobs = self.in_state(queue, state)
        found = [job for job in jobs if job.id == job_id]
        return found or sorted((job for job in jobs if job.called == job_id), key=lambda job: job.seq)[-1:]

    def add(self, queue: str, own: str, **opts: Any) -> tuple[str, bool]:
        """Return the id, and whether it was there already."""
        number = self.numbers[queue] = self.numbers.get(queue, 0) + 1
        job_id = f"bull:{queue}:{own}"
        if own and self.find(job_id) is not None:
            return job_id, True
        while not own:
            job_id = f"bull:{queue}:{number}"
            if self.find(job_id) is None:
                break
            number = self.numbers[queue] = number + 1
        holder, until = self.deduplicate(queue, opts, ("delayed",))
        if holder is not None:
            return holder, True
        self.bear(queue, job_id, opts, until)
        return job_id, False

    def deduplicate(
        self, queue: str, opts: dict[str, Any], replaceable: tuple[str, ...]
    ) -> tuple[str | None, int | None]:
        """Return who stands for a new job, if anyone; else until when it has the key in the place of another."""
        key, dedup = opts.get("unique_key"), opts.get("dedup")
        holder = None if key is None else self.holder(queue, key)
        if key is None or holder is None:
            return None, None
        present, held_until = self.find(holder), self.keys[(queue, key)][1]
        if (
            dedup is not None
            and dedup.replace
            and present is not None
            and (present.queue, present.opt("unique_key")) == (queue, key)
            and present.state in replaceable
            and (len(replaceable) == 1 or not self.awaited(holder, opts))
        ):
            self.remove_job(present)
            return None, None if dedup.extend else held_until
        if dedup is not None and dedup.extend and not dedup.replace and dedup.ttl_ms and held_until is not None:
            self.keys[(queue, key)] = (holder, self.now + dedup.ttl_ms)
        return holder, None

    def awaited(self, job_id: str, opts: dict[str, Any]) -> bool:
        return job_id in opts.get("depends_on", ()) or any(job_id in job.waits_for for job in self.jobs)

    def bear(self, queue: str, job_id: str, opts: dict[str, Any], until: int | None = None) -> None:
        self.seq += 1
        job = ModelJob(job_id, queue, self.seq, self.now, opts)
        job.run_at = self.now + opts.get("delay_ms", 0)
        job.told_delay = opts.get("delay_ms", 0)
        self.jobs.append(job)
        self.hold(job, until)
        for other_id in opts.get("depends_on", ()):
            other = self.find(other_id)
            if other is not None and other.state != "completed":
                job.waits_for.append(other_id)
        if job.waits_for:
            job.state = "waiting-children"
        elif job.run_at > self.now:
            job.state = "delayed"
        if opts.get("ttl_ms") == 0:
            self.remove_job(job)

    def pull(
        self,
        queue: str,
        count: int,
        owner: str | None,
        lock_ms: int,
        seed: str,
        token: str | None = None,
        active_max: int | None = None,
    ) -> list[str]:
        taken: list[str] = []
        while len(taken) < count and queue not in self.paused:
            active = self.in_state(queue, "active")
            if len(active) >= self.concurrency.get(queue, 10**9):
                break
            if queue in self.rates and self.tokens(queue) < 1:
                break
            if self.now < self.held_until.get(queue, 0) or not self.window_room(queue):
                break
            if active_max is not None and len([job for job in active if job.owner == owner]) >= active_max:
                break
            job = next((job for job in self.waiting(queue) if self.group_lets(job)), None)
            if job is None:
                break
            if job.opt("group_id") is not None:
                self.groups.of(queue, job.opt("group_id")).count_start(self.now)
            self.fence += 1
            job.state, job.fence, job.started_at, job.heard_at = "active", self.fence, self.now, self.now
            job.spend()
            job.owner, job.lock_ms = owner, lock_ms
            if token is None:
                job.token = None if owner is None else f"{seed}-{len(taken)}"
            else:
                job.token = token
            job.lock_until = 0 if job.token is None else self.now + lock_ms
            job.was_locked |= job.token is not None
            job.starts += 1
            job.began.append(self.now)
            taken.append(job.id)
            self.spend(queue, 1)
            self.count_start(queue, 1)
        return taken

    def group_lets(self, job: ModelJob) -> bool:
        group_id = job.opt("group_id")
        if group_id is None:
            return True
        active = len([other for other in self.in_state(job.queue, "active") if other.opt("group_id") == group_id])
        return self.groups.of(job.queue, group_id).may_start(active, self.now)

    def active(self, job_id: str) -> ModelJob:
        job = self.find(job_id)
        if job is None:
            raise Refused("job_not_found")
        if job.state != "active":
            raise Refused("job_not_active")
        return job

    def held(self, job_id: str, token: str | None, *, late: bool, must_hold: bool = False) -> ModelJob:
        job = self.find(job_id)
        if (
            late
            and job is not None
            and job.state in ("waiting", "delayed")
            and token is not None
            and job.token == token
        ):
            return job
        job = self.active(job_id)
        self.check_token(job, token, must_hold=must_hold)
        return job

    def check_token(self, job: ModelJob, token: str | None, *, must_hold: bool = False) -> None:
        if job.token is not None:
            if job.token != token:
                raise Refused("lock_required" if token is None else "lock_lost")
        elif token is not None and (must_hold or job.any_spent or token in job.spent):
            raise Refused("lock_lost")

    def ack(self, job_id: str, token: str | None, result: bytes | None, must_hold: bool = False) -> str:
        job = self.held(job_id, token, late=True, must_hold=must_hold)
        self.endings += 1
        self.let_go(job, removed=False)
        job.state, job.result, job.finished_at, job.ending = "completed", result, self.now, self.endings
        job.token, job.lock_until = None, 0
        self.keep(job, job.opt("remove_on_complete"))
        for other in self.jobs:
            if job_id in other.waits_for:
                other.waits_for = [i for i in other.waits_for if i != job_id]
                if not other.waits_for:
                    if other.opt("lifo"):
                        self.rejoin(other)
                    other.state = "delayed" if other.run_at > self.now else "waiting"
        return job_id

    def fail(self, job_id: str, token: str | None, unrecoverable: bool) -> str:
        job = self.held(job_id, token, late=False)
        self.end_run(job, final=unrecoverable)
        return job_id

    def heartbeat(self, job_id: str, token: str | None, duration_ms: int | None) -> str:
        job = self.active(job_id)
        if token is not None and job.token != token:
            raise Refused("lock_lost")
        self.beat(job, duration_ms)
        return job_id

    def extend_lock(self, job_id: str, token: str | None, duration_ms: int | None) -> str:
        job = self.active(job_id)
        if not job.lock_until:
            raise Refused("job_not_locked")
        return self.heartbeat(job_id, token, duration_ms)

    def beat(self, job: ModelJob, duration_ms: int | None) -> None:
        job.heard_at = self.now
        if job.lock_until:
            job.lock_ms = job.lock_ms if duration_ms is None else duration_ms
            job.lock_until = self.now + job.lock_ms

    def report(self, job_id: str, progress: float) -> str:
        job = self.active(job_id)
        job.progress, job.heard_at = min(max(progress, 0), 100), self.now
        return job_id

    def cancel(self, job_id: str) -> str:
        job = self.find(job_id)
        if job is None:
            raise Refused("job_not_found")
        if job.finished:
            raise Refused("job_in_wrong_state")
        self.remove_job(job)
        return job_id

    def remove(self, job_id: str) -> str:
        job = self.find(job_id)
        if job is None:
            raise Refused("job_not_found")
        if job.state == "active" and job.lock_until > self.now:
            raise Refused("job_locked")
        self.remove_job(job)
        return job_id

    def promote(self, job_id: str) -> str:
        job = self.find(job_id)
        if job is None:
            raise Refused("job_not_found")
        if job.state != "delayed":
            raise Refused("job_in_wrong_state")
        self.rejoin(job)
        job.state, job.run_at = "waiting", self.now
        return job_id

    def requeue(self, job_id: str, token: str | None, forced: bool) -> str:
        job = self.find(job_id)
        if job is None:
            raise Refused("job_not_found")
        if job.state == "active":
            if token is not None or not forced:
                self.check_token(job, token)
            self.put_first(job)
        elif job.state == "delayed":
            self.promote(job_id)
        elif job.state == "failed":
            self.revive(job.queue, "failed", job.id)
        elif job.state != "waiting" or forced:
            raise Refused("job_in_wrong_state")
        return job_id

    # -- Managing

    def unfinished(self, job_id: str, *states: str) -> ModelJob:
        job = self.find(job_id)
        if job is None:
            raise Refused("job_not_found")
        if job.state not in states:
            raise Refused("job_in_wrong_state")
        return job

    def change_priority(self, job_id: str, priority: int) -> str:
        job = self.unfinished(job_id, *QUEUED)
        job.opts = {**job.opts, "priority": priority}
        if job.state in ("waiting", "delayed") and not job.opt("lifo"):
            self.rejoin(job)
        return job_id

    def move_to_wait(self, job_id: str, token: str | None) -> str:
        self.put_first(self.held(job_id, token, late=False, must_hold=True))
        return job_id

    def delay(self, job_id: str, delay_ms: int, token: str | None, *, asks: bool) -> str:
        """asks: whether a locked run is taken away by its token only."""
        job = self.unfinished(job_id, "active", "waiting", "delayed")
        if token is not None or (asks and job.state == "active"):
            self.check_token(job, token)
        job.run_at = self.now + delay_ms
        job.spend()
        job.told_delay = delay_ms
        self.rejoin(job)
        job.state = "delayed" if delay_ms > 0 else "waiting"
        return job_id

    def discard(self, job_id: str) -> str:
        job = self.unfinished(job_id, "active", *QUEUED)
        self.bury(job)
        return job_id

    def drain(self, queue: str, *, delayed: bool = True) -> int:
        return self.drop(self.in_state(queue, "waiting", *(["delayed"] if delayed else [])))

    def obliterate(self, queue: str, *, only_idle: bool = False) -> int:
        if only_idle and self.in_state(queue, "active"):
            raise Refused("queue_busy")
        self.paused.discard(queue)
        for table in (
            self.concurrency,
            self.rates,
            self.windows,
            self.started,
            self.held_until,
            self.defaults,
            self.numbers,
        ):
            table.pop(queue, None)  # type: ignore[attr-defined]
        self.groups.forget(queue)
        count = self.drop([job for job in self.jobs if job.queue == queue])
        self.keys = {key: held for key, held in self.keys.items() if key[0] != queue}
        return count

    def drop(self, jobs: list[ModelJob]) -> int:
        for job in jobs:
            self.remove_job(job)
        return len(jobs)

    def clean(self, queue: str, grace_ms: int, state: str | None, limit: int) -> list[str]:
        if state in ("completed", "failed"):
            old = [job for job in self.in_state(queue, state) if job.finished_at <= self.now - grace_ms]
            old.sort(key=lambda job: job.ending)
        else:
            states = ("waiting", "delayed") if state is None else (state,)
            old = [job for job in self.in_state(queue, *states) if job.created_at <= self.now - grace_ms]
            old.sort(key=lambda job: job.seq)
        self.drop(old[:limit])
        return [job.id for job in old[:limit]]

    def promote_jobs(self, queue: str, count: int | None) -> int:
        jobs = sorted(self.in_state(queue, "delayed"), key=lambda job: (job.run_at, job.seq))[:count]
        for job in jobs:
            self.promote(job.id)
        return len(jobs)

    def revive(self, queue: str, state: str, job_id: str | None) -> int:
        jobs = self.in_state(queue, state) if job_id is None else self.called(queue, state, job_id)
        for job in sorted(jobs, key=lambda job: job.ending):
            job.any_spent |= state == "completed" and job.was_locked
            job.state, job.attempts, job.stalls, job.progress, job.result = "waiting", 0, 0, 0, None
            self.come_back(job, state)
            if job.opt("lifo"):
                self.rejoin(job)
            job.starts, job.began = 0, []
        return len(jobs)

    def come_back(self, job: ModelJob, was: str) -> None:
        waited_for = any(job.id in other.waits_for for other in self.jobs)
        if was == "failed" and job.called is not None and self.find(job.called) is None and not waited_for:
            self.rename(job, job.called)
            job.called = None
        job.run_at, job.ending = self.now, 0
        key, dedup = job.opt("unique_key"), job.opt("dedup")
        if key is not None and not (dedup is not None and dedup.ttl_ms):
            if self.holder(job.queue, key) not in (None, job.id):
                job.opts = {**job.opts, "unique_key": None}
            else:
                self.hold(job)
        if job.opt("ttl_ms") is not None and job.created_at + job.opt("ttl_ms") <= self.now:
            job.opts = {**job.opts, "ttl_ms": None}

    def rerun(self, job: ModelJob, reset: bool = False) -> None:
        job.any_spent |= job.state == "completed" and job.was_locked
        job.attempts = 0 if reset else job.attempts + (job.state == "completed")
        was, job.state, job.result, job.began = job.state, "waiting", None, []
        self.come_back(job, was)
        self.seq += 1
        job.place = -self.seq if job.opt("lifo") else self.seq

    def retry(self, job_id: str, state: str | None, reset: bool) -> str:
        job = self.unfinished(job_id, *(("completed", "failed") if state is None else (state,)))
        self.rerun(job, reset)
        return job_id

    def retry_jobs(self, queue: str, state: str, count: int | None) -> int:
        jobs = sorted(self.in_state(queue, state), key=lambda job: job.ending)[:count]
        for job in jobs:
            self.rerun(job)
        return len(jobs)

    def set_window(self, queue: str, most: int | None, duration_ms: int) -> None:
        self.windows.pop(queue, None)
        if most is not None:
            self.windows[queue] = (most, duration_ms)

    def window_room(self, queue: str) -> bool:
        if queue not in self.windows:
            return True
        most, duration_ms = self.windows[queue]
        at, count = self.started.get(queue, (0, 0))
        return most > (count if self.now < at + duration_ms else 0)

    def count_start(self, queue: str, by: int) -> None:
        if queue in self.windows:
            at, count = self.started.get(queue, (0, 0))
            if self.now >= at + self.windows[queue][1]:
                if by < 0:
                    return
                at, count = self.now, 0
            self.started[queue] = (at, max(count + by, 0))

    def purge(self, queue: str) -> int:
        return self.drop(self.in_state(queue, "failed"))

    def set_rate(self, queue: str, limit: int) -> None:
        if queue not in self.rates or self.rates[queue][0] != limit:
            self.rates[queue] = (limit, Fraction(limit), self.now)

    def tokens(self, queue: str) -> Fraction:
        limit, left, at = self.rates[queue]
        return min(Fraction(limit), left + Fraction((self.now - at) * limit, 1000))

    def spend(self, queue: str, count: int) -> None:
        if queue in self.rates:
            self.rates[queue] = (self.rates[queue][0], self.tokens(queue) - count, self.now)

    def release(self, job_id: str, fence: int) -> int:
        job = self.find(job_id)
        if job is None or job.state != "active" or job.fence != fence:
            return 0
        job.state = "waiting"
        job.spend()
        job.starts -= 1
        job.began.pop()
        self.spend(job.queue, -1)
        self.count_start(job.queue, -1)
        if job.opt("group_id") is not None:
            self.groups.of(job.queue, job.opt("group_id")).take_back(job.started_at, self.now)
        return 1

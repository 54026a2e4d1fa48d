"""The tables of the cluster and every transition of a job: the only code that moves one from index to index.

The methods assume that an operation has checked what it wants; they do not refuse. Nothing here reads a clock: the
time of everything is `now_ms`, which `advance` sets from the log entry.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgspec
from sortedcontainers import SortedList

from node.events import (
    CronDeleted,
    CronFired,
    CronSkipped,
    DlqAdded,
    DlqExpired,
    DlqRetried,
    Event,
    FlowCompleted,
    FlowFailed,
    JobActive,
    JobCompleted,
    JobDelayed,
    JobDuplicated,
    JobExpired,
    JobFailed,
    JobLockExpired,
    JobPushed,
    JobRemoved,
    JobRetried,
    JobStalled,
    JobTimedOut,
    JobWaiting,
    JobWaitingChildren,
    QueueCreated,
    WorkerRemovedStale,
)
from node.refusals import JobNotActive, JobNotFound, LockLost, LockRequired
from node.state import webhook as hook
from node.state.job import (
    ACTIVE,
    COMPLETED,
    DEFAULT,
    DELAYED,
    FAILED,
    MAX_ATTEMPTS,
    PAST_MAX,
    REMOVED,
    RUNS_MAX,
    STALLED,
    STALLED_TOO_OFTEN,
    TIMEOUT,
    WAITING,
    WAITING_CHILDREN,
    Dependencies,
    Extra,
    Failures,
    Job,
    JobSpec,
    Keep,
    LogLine,
    Moment,
    Options,
    Repeat,
    Run,
    ceil,
    due_rank_of,
    next_id,
    rank_of,
    scoped_id,
)
from node.state.outcomes import Outcome, Outcomes
from node.state.pusher import Pushers, settings_under
from node.state.queue import Group, GroupSettings, Queue, QueueSettings, Sums, ready_since
from node.state.ranked import Ranked
from node.state.schedule import Cron, Following, Schedule
from node.state.timers import Timers
from node.state.webhook import Webhooks
from node.state.worker import Workers

# Jobs moved by time in one entry; what is left moves with the next, so that no entry holds a node up for long.
ADVANCE_MAX = 2_000
# Ids of completed jobs that are remembered after their records are gone, for jobs that depend on them.
REMEMBERED_MAX = 10_000
# Distinct option records kept to be shared.
SHARED_MAX = 4_096
LOCK_MS = 30_000
# What workers get to be heard once there is a leader again: enough to connect to another node and repeat a request.
GRACE_MS = 1_000
# Log lines kept of one job, and jobs that have any; the oldest go first.
LOG_LINES_MAX = 100
LOGGED_JOBS_MAX = 10_000
# Finished jobs that one more lets go, and unique keys with a time of their own; those that end first are forgotten early.
KEEP_STEP = 5_000
THROTTLED_MAX = 250_000


class Remembered:
    """The last ids of completed jobs whose records are gone."""

    __slots__ = ("_ids", "_order")

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._order = deque(ids)
        self._ids = set(self._order)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._ids

    def add(self, job_ids: Iterable[str]) -> None:
        """Remember ids, forgetting the oldest past the bound."""
        ids, order = self._ids, self._order
        for job_id in job_ids:
            if job_id not in ids:
                ids.add(job_id)
                order.append(job_id)
        while len(order) > REMEMBERED_MAX:
            ids.discard(order.popleft())

    def ids(self) -> list[str]:
        """Return the ids, oldest first."""
        return list(self._order)


class State:
    """Everything that is replicated, and what the present entry did (events, signals for the node's waiters)."""

    def __init__(self) -> None:
        self.now_ms = 0
        # No run is taken from its worker before.
        self.grace_until = 0
        # Births, deliveries and endings, each counted over the whole state.
        self.seq = 0
        self.fence = 0
        self.endings = 0
        self.queues: dict[str, Queue] = {}
        # What went through queues that are no more.
        self.gone = Sums()
        self.jobs: dict[str, Job] = {}
        self.timers = Timers()
        self.dependents: dict[str, list[Job]] = {}
        self.remembered = Remembered()
        # Log lines by job; the job that was logged to last comes last.
        self.logs: dict[str, list[LogLine]] = {}
        # Unique keys with a time of their own, in its order: (end, queue, key).
        self.throttles: SortedList = SortedList()
        # Crons, and jobs that are to follow others.
        self.schedule = Schedule()
        self.workers = Workers()
        self.webhooks = Webhooks()
        self.pushers = Pushers()
        # What requests with an idempotency key were answered.
        self.outcomes = Outcomes()
        # A running sum over every transition, folded into the digest.
        self.mark = 0
        # Not replicated: the same options as one object.
        self._shared: dict[Options, Options] = {}
        # Not replicated: what the entry under way did. Events are collected only while somebody listens.
        self.events: list[Event] | None = None
        # Not part of the image: until when all nodes collect them, for clients that may come over from another node.
        self.events_until = 0
        self.woken: dict[str, None] = {}
        self.stalled: list[Job] = []
        self.watched: dict[str, int] = {}
        self.ended: list[Job] = []

    # -- Looking up, with refusals

    def job(self, job_id: str) -> Job:
        """Return a job. Raises JobNotFound."""
        job = self.jobs.get(job_id)
        if job is None:
            raise JobNotFound(job_id)
        return job

    def active_job(self, job_id: str) -> Job:
        """Return a job that is being worked on. Raises JobNotFound, JobNotActive."""
        job = self.jobs.get(job_id)
        if job is None:
            raise JobNotFound(job_id)
        if job.state != ACTIVE:
            raise JobNotActive(job_id, job.shown_state)
        return job

    def held_job(self, job_id: str, token: str | None) -> Job:
        """Return the job that the holder of `token` may complete or fail.

        An active job without a lock needs no token. A job whose lock ran out still belongs to its old token until somebody
        takes it. Raises JobNotFound, JobNotActive, LockRequired, LockLost.
        """
        job = self.jobs.get(job_id)
        if job is None:
            raise JobNotFound(job_id)
        if job.state != ACTIVE:
            if token is not None and job.token == token and job.state in (WAITING, DELAYED):
                return job
            raise JobNotActive(job_id, job.shown_state)
        if job.token is not None and job.token != token:
            raise LockRequired(job_id) if token is None else LockLost(job_id)
        return job

    def queue(self, name: str) -> Queue:
        """Return a queue, created when it is new."""
        queue = self.queues.get(name)
        if queue is None:
            queue = self.queues[name] = Queue(name)
            pusher = self.pushers.by_queue.get(name)
            if pusher is not None:
                queue.settings = settings_under(queue.settings, pusher)
            self.emit(QueueCreated(name))
        return queue

    # -- Events and signals

    def emit(self, event: Event) -> None:
        """Report something that happened, if anyone listens."""
        if self.events is not None:
            self.events.append(event)

    # -- Time

    def advance(self, now_ms: int, limit: int = ADVANCE_MAX) -> int:
        """Move the clock, and the jobs whose alarm is due, oldest first; at most `limit`. Returns how many."""
        self.now_ms = now_ms = max(now_ms, self.now_ms)
        moved = 0
        while moved < limit:
            job = self.timers.pop_due(now_ms)
            if job is None:
                break
            moved += 1
            self._ring(job)
        if self.throttles:
            self._free_throttled(limit)
        if self.workers.by_id:
            for worker in self.workers.age(now_ms):
                self.mark += 101
                self.emit(WorkerRemovedStale(worker.id, worker.name))
        return moved

    def resume(self, now_ms: int) -> None:
        """Take no run from its worker for a moment: nobody could hear signs of life or results just before `now_ms`."""
        self.grace_until = max(now_ms, self.now_ms) + GRACE_MS

    def _spare(self, job: Job) -> None:
        """Let a run whose time is up, or whose lock, go on to the end of the grace."""
        if 0 < job.lock_until < self.grace_until:
            job.lock_until = self.grace_until
        self.timers.set(job, self.grace_until)
        self.mark += job.fence * 103

    def next_due_ms(self, now_ms: int) -> int | None:
        """Return when to look for due work again: never late, early by a second at most; None when nothing is set."""
        due = self.timers.next_due(now_ms)
        silent = self.workers.next_due() if self.workers.by_id else 0
        return due if not silent else silent if due is None else min(due, silent)

    def due_at(self, job: Job) -> int:
        """Work out when a job has to be looked at again, from its state alone; 0 for never."""
        opts = job.opts
        if job.state == ACTIVE:
            if job.lock_until:
                due = job.lock_until
            else:
                stall = self.queues[job.queue].settings.stall
                due = 0
                if stall.enabled and stall.interval_ms > 0:
                    started = job.started_at or 0
                    due = max((job.last_heartbeat or started) + stall.interval_ms, started + stall.grace_ms)
            if opts.timeout_ms and job.started_at is not None:
                ends = job.started_at + ceil(opts.timeout_ms)
                due = min(due, ends) if due else ends
            return due
        if job.state == FAILED:
            return self._dlq_due(job)
        if job.state == COMPLETED:
            return 0
        due = job.expires_at
        if job.state == DELAYED:
            due = min(due, job.run_at) if due else job.run_at
        return due

    def _ring(self, job: Job) -> None:
        # One alarm stands for the earliest of several reasons; which one it was shows in the record.
        now_ms = self.now_ms
        if job.state == ACTIVE and now_ms < self.grace_until:
            self._spare(job)
        elif job.state == ACTIVE:
            timeout = job.opts.timeout_ms
            if timeout and job.started_at is not None and job.started_at + ceil(timeout) <= now_ms:
                self.emit(JobTimedOut(job.queue, job.id))
                self.fail(job, "Job timeout exceeded", reason=TIMEOUT)
            elif job.lock_until:
                self.emit(JobLockExpired(job.queue, job.id))
                self.stall(job, 0)
            else:
                self.stall(job, job.opts.retry_delay_ms(job.attempts + 1))
        elif job.state == FAILED:
            self._age(job)
        elif job.expires_at and job.expires_at <= now_ms:
            self.expire(job)
        elif job.state == DELAYED:
            self.undelay(job)

    # -- Births

    def push(self, name: str, specs: Iterable[JobSpec]) -> list[str]:
        """Add jobs to a queue. Returns their ids, or those of the unfinished jobs that were there already."""
        queue = self.queues.get(name) or self.queue(name)
        now_ms = self.now_ms
        jobs, own, ready, events = self.jobs, queue.jobs, queue.ready, self.events
        listening = self.webhooks.listening
        seq = self.seq
        ids: list[str] = []
        for spec in specs:
            job_id = spec.id
            present = jobs.get(job_id)
            if present is not None and not present.finished:
                self.emit(JobDuplicated(present.queue, job_id))
                ids.append(job_id)
                continue
            if spec.unique_key is not None:
                holder = self.holder_of(queue, spec.unique_key)
                if holder is not None:
                    self.emit(JobDuplicated(name, holder))
                    ids.append(holder)
                    continue
            if present is not None:
                # A finished job gives its id to a new generation.
                self.delete(present)
            seq += 1
            job = Job(job_id, name, spec.data, spec.opts, WAITING, seq, seq, now_ms, now_ms, spec.custom)
            jobs[job_id] = own[job_id] = job
            ids.append(job_id)
            if events is not None:
                events.append(JobPushed(name, job_id))
            if listening:
                self.webhooks.post(hook.PUSHED, now_ms, job_id, name)
            if job.opts is DEFAULT and not spec.depends_on and spec.group_id is None and spec.unique_key is None:
                ready.add(seq, job)
            else:
                self._settle(queue, job, spec)
        pushed = seq - self.seq
        self.seq = seq
        queue.counters.pushed += pushed
        self.mark += pushed * 31 + seq
        self.woken[name] = None
        return ids

    def add(self, name: str, specs: Iterable[JobSpec]) -> tuple[list[str], list[bool]]:
        """Add jobs by BullMQ's rules: ids within the queue, and a job in any state keeps another one of its id away.

        Returns canonical ids, and which of them were there already.
        """
        queue = self.queues.get(name) or self.queue(name)
        ids: list[str] = []
        duplicates: list[bool] = []
        for spec in specs:
            queue.number += 1
            if spec.id:
                job_id = scoped_id(name, spec.id)
                present = job_id if job_id in self.jobs else None
            else:
                job_id, present = scoped_id(name, str(queue.number)), None
                while job_id in self.jobs:
                    # Somebody chose this very id.
                    queue.number += 1
                    job_id = scoped_id(name, str(queue.number))
            until = 0
            if present is None and spec.unique_key is not None:
                present, until = self._deduplicate(queue, spec, spec.unique_key)
            duplicates.append(present is not None)
            if present is not None:
                self.emit(JobDuplicated(name, present))
                ids.append(present)
                continue
            ids.append(job_id)
            self._bear(queue, job_id, spec)
            if until and spec.unique_key in queue.throttled:
                self._throttle(queue, spec.unique_key, until)
        self.mark += queue.number * 83
        return ids, duplicates

    def _bear(self, queue: Queue, job_id: str, spec: JobSpec) -> None:
        """Create a job whose id is new."""
        now_ms, name = self.now_ms, queue.name
        self.seq = seq = self.seq + 1
        job = Job(job_id, name, spec.data, spec.opts, WAITING, seq, seq, now_ms, now_ms, bool(spec.id))
        self.jobs[job_id] = queue.jobs[job_id] = job
        queue.counters.pushed += 1
        self.mark += 31 + seq
        if self.events is not None:
            self.events.append(JobPushed(name, job_id))
        if self.webhooks.listening:
            self.webhooks.post(hook.PUSHED, now_ms, job_id, name)
        self._settle(queue, job, spec)

    def _settle(self, queue: Queue, job: Job, spec: JobSpec) -> None:
        """Give a new job with wishes of its own its first place."""
        job.opts = opts = self.shared(spec.opts)
        job.group_id = spec.group_id
        if opts.lifo:
            job.order = -job.seq
        if spec.unique_key is not None:
            job.unique_key = spec.unique_key
            queue.unique[spec.unique_key] = job.id
            if opts.dedup is not None and opts.dedup.ttl_ms:
                self._throttle(queue, spec.unique_key, self.now_ms + opts.dedup.ttl_ms)
        job.run_at = job.created_at + ceil(opts.delay_ms)
        if spec.depends_on:
            self._await(queue, job, spec.depends_on)
        if job.state != WAITING_CHILDREN:
            self._line_up(queue, job)
        job.first_state = None if job.shown_state == WAITING else job.shown_state
        expires = job.expires_at
        if expires and expires <= self.now_ms:
            self.expire(job)

    def shared(self, opts: Options) -> Options:
        """Return the one object that stands for these options."""
        found = self._shared.get(opts)
        if found is None:
            if len(self._shared) >= SHARED_MAX:
                self._shared.clear()
            found = self._shared[opts] = DEFAULT if opts == DEFAULT else opts
        return found

    # -- Unique keys

    def holder_of(self, queue: Queue, key: str) -> str | None:
        """Return the id of the job that keeps others with this key away; the job itself may be gone."""
        holder = queue.unique.get(key)
        return None if holder is None or queue.throttled.get(key, self.now_ms + 1) <= self.now_ms else holder

    def _deduplicate(self, queue: Queue, spec: JobSpec, key: str) -> tuple[str | None, int]:
        """Return the id of the job that stands for a new one, if any; and until when the new one's key is to be held, 0
        for as long as it says itself, when it takes the place of a delayed one."""
        holder, dedup, until = self.holder_of(queue, key), spec.opts.dedup, queue.throttled.get(key, 0)
        if holder is None or dedup is None:
            return holder, 0
        job = self.jobs.get(holder)
        if (
            dedup.replace
            and job is not None
            and job.state == DELAYED
            and (job.queue, job.unique_key) == (queue.name, key)
        ):
            self.remove(job)
            return None, 0 if dedup.extend else until
        if dedup.extend and not dedup.replace and dedup.ttl_ms and until:
            self._throttle(queue, key, self.now_ms + dedup.ttl_ms)
        return holder, 0

    def _throttle(self, queue: Queue, key: str, until: int) -> None:
        """Hold a key until a time, whatever becomes of its job."""
        present = queue.throttled.get(key)
        if present is not None:
            self.throttles.remove((present, queue.name, key))
        queue.throttled[key] = until
        self.throttles.add((until, queue.name, key))
        self.mark += until * 89
        if len(self.throttles) > THROTTLED_MAX:
            _, name, first = self.throttles[0]
            self.free_key(self.queues[name], first)

    def free_key(self, queue: Queue, key: str) -> None:
        """Let a key be free, whoever holds it."""
        queue.unique.pop(key, None)
        until = queue.throttled.pop(key, None)
        if until is not None:
            self.throttles.remove((until, queue.name, key))

    def _free_throttled(self, limit: int) -> None:
        """Forget keys whose time is over, at most `limit`; what is left counts for nothing and goes with the next entry."""
        throttles, now_ms = self.throttles, self.now_ms
        while throttles and throttles[0][0] <= now_ms and limit > 0:
            _, name, key = throttles[0]
            self.free_key(self.queues[name], key)
            limit -= 1

    def _let_go(self, queue: Queue, job: Job, *, removed: bool = False) -> None:
        """Free the key that a job holds; one with a time of its own only because the job was removed."""
        key = job.unique_key
        if key is not None and queue.unique.get(key) == job.id and (removed or key not in queue.throttled):
            self.free_key(queue, key)

    # -- Dependencies

    def _await(self, queue: Queue, job: Job, ids: tuple[str, ...]) -> None:
        """Note what a new job depends on, and park it when something of that is not completed yet."""
        dependencies = job.dependencies = Dependencies(ids)
        for job_id in dict.fromkeys(ids):
            other = self.jobs.get(job_id)
            if other is not None and other.state == COMPLETED:
                dependencies.values[job_id] = other.result
            elif other is not None:
                dependencies.remaining.append(job_id)
                self.dependents.setdefault(job_id, []).append(job)
        if dependencies.remaining:
            job.state = WAITING_CHILDREN
            queue.waiting_children[job.id] = job
            self.timers.set(job, self.due_at(job))
            self.emit(JobWaitingChildren(queue.name, job.id))

    def _release_dependents(self, done: Job) -> None:
        for job in self.dependents.pop(done.id):
            dependencies = job.dependencies
            assert dependencies is not None and job.state == WAITING_CHILDREN
            dependencies.remaining.remove(done.id)
            dependencies.values[done.id] = done.result
            if not dependencies.remaining:
                dependencies.done_at = self.now_ms
                queue = self.queues[job.queue]
                self.emit(FlowCompleted(job.id, queue.name, len(set(dependencies.ids))))
                self._leave(queue, job)
                self._line_up(queue, job)
                if job.state == WAITING:
                    self.emit(JobWaiting(queue.name, job.id))

    def _await_no_more(self, job: Job) -> None:
        """Let a job that leaves before all it depends on is completed be told of none of that."""
        dependencies = job.dependencies
        assert dependencies is not None
        for job_id in dependencies.remaining:
            waiting = self.dependents[job_id]
            waiting.remove(job)
            if not waiting:
                del self.dependents[job_id]
        dependencies.remaining = []

    # -- Places of a job that is not finished

    def _line_up(self, queue: Queue, job: Job) -> None:
        """Put a job among the delayed or the waiting, by its run_at."""
        if job.run_at > self.now_ms:
            self._enter_delayed(queue, job)
        else:
            self._enter_waiting(queue, job)

    def _enter_waiting(self, queue: Queue, job: Job) -> None:
        priority = job.opts.priority
        job.state = WAITING
        self.mark += job.seq * 3
        if priority:
            queue.priorities[priority] = queue.priorities.get(priority, 0) + 1
            if priority > 0:
                queue.prioritized += 1
            else:
                queue.lowered += 1
        if job.group_id is None:
            queue.ready.add(rank_of(job), job)
        else:
            self._enter_group(queue, job)
        self.timers.set(job, job.expires_at)
        self.woken[queue.name] = None

    def _enter_delayed(self, queue: Queue, job: Job) -> None:
        priority = job.opts.priority
        job.state = DELAYED
        self.mark += job.run_at + job.seq * 23
        if priority:
            queue.priorities[priority] = queue.priorities.get(priority, 0) + 1
        queue.delayed.add(due_rank_of(job), job)
        self.timers.set(job, self.due_at(job))
        self.emit(JobDelayed(queue.name, job.id, job.run_at - self.now_ms))

    def _leave(self, queue: Queue, job: Job) -> None:
        """Take a job out of the index of its state, and its alarm away. It must enter another one or be forgotten."""
        state = job.state
        self.timers.clear(job)
        if state == ACTIVE:
            del queue.active[job.id]
            if job.group_id is not None:
                group = queue.groups[job.group_id]
                group.active -= 1
                self._fill_group(queue, job.group_id, group)
            if queue.settings.concurrency is not None:
                self.woken[queue.name] = None
        elif state == COMPLETED:
            queue.completed.remove(job.ending)
            queue.completed_bytes -= weight(job)
        elif state == FAILED:
            queue.failed.remove(job.ending)
        elif state == WAITING_CHILDREN:
            del queue.waiting_children[job.id]
            self._await_no_more(job)
        else:
            priority = job.opts.priority
            if priority:
                left = queue.priorities[priority] - 1
                if left:
                    queue.priorities[priority] = left
                else:
                    del queue.priorities[priority]
            if state == DELAYED:
                queue.delayed.remove(due_rank_of(job))
            else:
                if priority > 0:
                    queue.prioritized -= 1
                elif priority:
                    queue.lowered -= 1
                if job.group_id is None:
                    queue.ready.remove(rank_of(job))
                else:
                    self._leave_group(queue, job)

    def undelay(self, job: Job) -> None:
        """Let a delayed job wait no longer."""
        queue = self.queues[job.queue]
        self._leave(queue, job)
        self._rejoin(job)
        self._enter_waiting(queue, job)
        self.emit(JobWaiting(queue.name, job.id))

    def _rejoin(self, job: Job) -> None:
        """Give a job that comes back, and is in no index, the last place of its priority, if it wants that."""
        if job.opts.rejoin_last and not job.opts.lifo:
            self.seq += 1
            job.order = self.seq

    # -- Groups: the queue's ready index holds only as many jobs of a group as may start

    def _enter_group(self, queue: Queue, job: Job) -> None:
        assert job.group_id is not None
        group = queue.group(job.group_id)
        if group.room <= 0:
            last = max(group.heads, key=rank_of, default=None)
            if last is None or rank_of(last) < rank_of(job):
                group.parked.add(rank_of(job), job)
                queue.parked += 1
                return
            group.heads.remove(last)
            queue.ready.remove(rank_of(last))
            group.parked.add(rank_of(last), last)
            queue.parked += 1
        group.heads.append(job)
        queue.ready.add(rank_of(job), job)

    def _leave_group(self, queue: Queue, job: Job) -> None:
        assert job.group_id is not None
        group = queue.groups[job.group_id]
        if job in group.heads:
            group.heads.remove(job)
            queue.ready.remove(rank_of(job))
        else:
            group.parked.remove(rank_of(job))
            queue.parked -= 1
        self._fill_group(queue, job.group_id, group)

    def _fill_group(self, queue: Queue, group_id: str, group: Group) -> None:
        """Let the next jobs of a group stand among the ready ones, or forget a group without jobs."""
        while group.room > 0 and len(group.parked):
            job = group.parked.pop_first(1)[0]
            queue.parked -= 1
            group.heads.append(job)
            queue.ready.add(rank_of(job), job)
            self.woken[queue.name] = None
        if not group.active and not group.heads and not len(group.parked):
            del queue.groups[group_id]

    def configure_group(self, queue: Queue, group_id: str, settings: GroupSettings) -> None:
        """Let more jobs of a group be active at once, or fewer; those that are active go on."""
        if settings == GroupSettings():
            queue.group_settings.pop(group_id, None)
        else:
            queue.group_settings[group_id] = settings
        group = queue.groups.get(group_id)
        if group is not None:
            group.limit = settings.limit
            while group.room < 0 and group.heads:
                last = max(group.heads, key=rank_of)
                group.heads.remove(last)
                queue.ready.remove(rank_of(last))
                group.parked.add(rank_of(last), last)
                queue.parked += 1
            self._fill_group(queue, group_id, group)
        self.mark += 109

    # -- Runs

    def take(
        self,
        queue: Queue,
        count: int,
        owner: str | None,
        lock_ms: int,
        token_seed: str,
        token: str | None = None,
        active_max: int | None = None,
    ) -> list[Job]:
        """Make the next `count` jobs active. With an owner each gets a lock: token `{token_seed}-{i}`, for lock_ms.

        token: locks them, too, in the place of all those.  active_max: the owner is to have no more of this queue.
        """
        now_ms = self.now_ms
        count = min(count, queue.claimable(now_ms))
        if count > 0 and active_max is not None:
            count = min(count, queue.room_for(owner, active_max))
        if count <= 0:
            return []
        taken = queue.ready.pop_first(count)
        if queue.settings.rate is not None:
            queue.spend(len(taken), now_ms)
        if queue.settings.window is not None:
            queue.count_starts(len(taken), now_ms)
        stall = queue.settings.stall
        silent = max(stall.interval_ms, stall.grace_ms)
        if not stall.enabled or stall.interval_ms <= 0:
            silent = 0
        locks = owner is not None or token is not None
        due = now_ms + lock_ms if locks else now_ms + silent if silent else 0
        fence, active, timers, events = self.fence, queue.active, self.timers, self.events
        listening = self.webhooks.listening
        counters = queue.counters
        since, first = -1, 0
        for i, job in enumerate(taken):
            ready_at = job.run_at if job.dependencies is None else ready_since(job)
            if ready_at != since:
                # Jobs that were pushed together waited equally long, and are counted together.
                if i:
                    counters.waited(now_ms - since, i - first)
                since, first = ready_at, i
            opts = job.opts
            if opts.priority:
                self._count_taken(queue, opts.priority)
            if job.group_id is not None:
                group = queue.groups[job.group_id]
                group.heads.remove(job)
                group.active += 1
            if job.due:
                timers.clear(job)
            fence += 1
            job.state = ACTIVE
            job.fence = fence
            job.started_at = job.last_heartbeat = now_ms
            active[job.id] = job
            if not locks:
                job.token = None
                job.lock_until = 0
            else:
                job.owner = owner
                job.token = f"{token_seed}-{i}" if token is None else token
                job.lock_ms = lock_ms
                job.lock_until = due
            if opts.timeout_ms:
                timers.set(job, self.due_at(job))
            elif due:
                job.due = due
                timers.enter(job)
            if events is not None:
                events.append(JobActive(queue.name, job.id))
            if listening:
                self.webhooks.post(hook.STARTED, now_ms, job.id, queue.name)
        self.mark += (fence - self.fence) * 17 + fence + taken[0].seq
        self.fence = fence
        counters.pulled += len(taken)
        counters.waited(now_ms - since, len(taken) - first)
        return taken

    def _count_taken(self, queue: Queue, priority: int) -> None:
        left = queue.priorities[priority] - 1
        if left:
            queue.priorities[priority] = left
        else:
            del queue.priorities[priority]
        if priority > 0:
            queue.prioritized -= 1
        else:
            queue.lowered -= 1

    def release(self, job: Job) -> None:
        """Give an active job back as it was before it was taken: its place, its attempts."""
        queue = self.queues[job.queue]
        self._leave(queue, job)
        self._unlock(job)
        if queue.settings.rate is not None:
            queue.spend(-1, self.now_ms)
        if queue.settings.window is not None:
            queue.count_starts(-1, self.now_ms)
        job.started_at = job.last_heartbeat = None
        self._enter_waiting(queue, job)
        self.emit(JobWaiting(queue.name, job.id))

    def beat(self, job: Job, lock_ms: int | None = None) -> None:
        """Note a sign of life of an active job; a lock lasts from now again, for lock_ms or as long as before."""
        job.last_heartbeat = self.now_ms
        if job.lock_until:
            if lock_ms is not None:
                job.lock_ms = lock_ms
            job.lock_until = self.now_ms + job.lock_ms
        self.timers.set(job, self.due_at(job))
        self.mark += job.fence * 5

    def report(self, job: Job, progress: float, message: str | None, value: bytes | None = None) -> None:
        """Note the progress of an active job, 0 to 100; it is a sign of life that leaves the lock as it is.

        value: JSON text of a progress that is more than a number.
        """
        job.progress = min(max(progress, 0), 100)
        if value is not None:
            self._extra(job).progress_json = value
        elif job.extra is not None:
            job.extra.progress_json = None
        if message is not None:
            job.progress_message = message
        job.last_heartbeat = self.now_ms
        self.timers.set(job, self.due_at(job))
        self.mark += job.fence * 7
        if self.webhooks.listening:
            self.webhooks.post(hook.PROGRESS, self.now_ms, job.id, job.queue, progress=job.progress)

    def complete(self, job: Job, result: bytes | None, *, alone: bool = True) -> None:
        """End a job well. alone: count its run and keep to the bounds on completed jobs; else the caller does, after several."""
        queue = self.queues[job.queue]
        opts, settings = job.opts, queue.settings
        if job.state == ACTIVE and job.group_id is None:
            # The usual way out, without the general steps of _leave.
            del queue.active[job.id]
            if job.due:
                self.timers.clear(job)
            if settings.concurrency is not None:
                self.woken[queue.name] = None
        else:
            if job.state != ACTIVE:
                # Its old token completes it after all: the start that seemed lost has led to this.
                self._extra(job).starts -= 1
            self._leave(queue, job)
        if job.unique_key is not None:
            self._let_go(queue, job)
        job.token = job.owner = None
        job.lock_until = 0
        job.result = result
        job.finished_at = self.now_ms
        job.state = COMPLETED
        queue.counters.completed += 1
        self.endings = ending = self.endings + 1
        self.mark += ending + job.seq * 11
        if self.events is not None:
            self.events.append(JobCompleted(queue.name, job.id))
        if self.webhooks.listening:
            self.webhooks.post(hook.COMPLETED, self.now_ms, job.id, queue.name, result)
        if job.id in self.watched:
            self.ended.append(job)
        keep = settings.default_keep_completed if opts.keep_completed is None else opts.keep_completed
        if opts.remove_on_complete or (keep is not None and keep.count == 0):
            self._forget(queue, job)
            self.remembered.add((job.id,))
        else:
            job.ending = ending
            queue.completed.add(ending, job)
            queue.completed_bytes += len(job.data) if result is None else len(job.data) + len(result)
            if keep is not None:
                surplus = self._surplus(queue.completed, keep)
                if surplus:
                    self._drop_completed(queue, queue.completed.pop_first(surplus))
            if alone:
                self.trim_completed(queue)
        if alone and job.started_at is not None:
            queue.counters.ran(self.now_ms - job.started_at)
        if self.dependents and job.id in self.dependents:
            self._release_dependents(job)
        if opts.repeat is not None:
            self._repeat(queue, job, opts.repeat)

    def count_runs(self, name: str, started_at: int | None, count: int) -> None:
        """Count completed runs of a queue that began at the same moment; without one they were counted when they stalled."""
        if count and started_at is not None:
            self.queues[name].counters.ran(self.now_ms - started_at, count)

    def _repeat(self, queue: Queue, done: Job, repeat: Repeat) -> None:
        """Create the job that follows a completed one: due one interval after that one was, or by its pattern."""
        if repeat.limit is not None and repeat.count >= repeat.limit:
            return
        job_id = next_id(done.id, self.now_ms)
        opts = msgspec.structs.replace(done.opts, repeat=msgspec.structs.replace(repeat, count=repeat.count + 1))
        following = Following(
            job_id, queue.name, done.data, self.shared(opts), done.unique_key, done.group_id, self.now_ms
        )
        if repeat.every_ms is not None:
            self.follow(following, max(done.run_at + ceil(repeat.every_ms), self.now_ms))
        elif repeat.pattern is not None:
            # Its time is worked out by the leader and comes with job.follow.
            self.schedule.following[job_id] = following
            self.mark += done.seq * 79

    def follow(self, following: Following, run_at: int) -> bool:
        """Create a job that follows a completed one; say whether, for its id or unique key may be taken meanwhile."""
        queue, key, job_id = self.queue(following.queue), following.unique_key, following.id
        if job_id in self.jobs or (key is not None and self.holder_of(queue, key) is not None):
            return False
        self.seq += 1
        opts, now_ms = self.shared(following.opts), self.now_ms
        job = Job(job_id, queue.name, following.data, opts, WAITING, self.seq, self.seq, now_ms, now_ms)
        job.run_at = run_at
        job.group_id = following.group_id
        if key is not None:
            job.unique_key = key
            queue.unique[key] = job_id
        self.jobs[job_id] = queue.jobs[job_id] = job
        queue.counters.pushed += 1
        self.emit(JobPushed(queue.name, job_id))
        self.webhooks.post(hook.PUSHED, now_ms, job_id, queue.name)
        self._line_up(queue, job)
        job.first_state = None if job.shown_state == WAITING else job.shown_state
        return True

    def trim_completed(self, queue: Queue) -> None:
        """Drop the oldest completed jobs past the bounds of the queue, in number and in bytes."""
        settings = queue.settings
        surplus = len(queue.completed) - settings.keep_completed
        if surplus > 0:
            self._drop_completed(queue, queue.completed.pop_first(surplus))
        while queue.completed_bytes > settings.keep_completed_bytes and len(queue.completed) > 1:
            self._drop_completed(queue, queue.completed.pop_first(1))

    def _surplus(self, ended: Ranked, keep: Keep) -> int:
        """Count the oldest finished jobs that have to go, KEEP_STEP at most: those too old first, then those too many."""
        surplus = 0
        if keep.age_ms is not None:
            until = self.now_ms - keep.age_ms
            for job in ended:
                if (job.finished_at or 0) > until or surplus >= KEEP_STEP:
                    break
                surplus += 1
        if keep.count is not None:
            surplus = max(surplus, len(ended) - keep.count)
        return min(surplus, KEEP_STEP)

    def _drop_completed(self, queue: Queue, dropped: list[Job]) -> None:
        jobs, own, size = self.jobs, queue.jobs, 0
        for job in dropped:
            size += len(job.data) if job.result is None else len(job.data) + len(job.result)
            job_id = job.id
            del jobs[job_id], own[job_id]
            if self.logs:
                self.logs.pop(job_id, None)
        queue.completed_bytes -= size
        self.remembered.add([job.id for job in dropped])

    def fail(
        self,
        job: Job,
        error: str | None,
        *,
        reason: str = MAX_ATTEMPTS,
        final: bool = False,
        chance: float | None = None,
        stack: str | None = None,
    ) -> None:
        """End a run badly: the job is tried again after its backoff, or goes to the dead letter queue.

        reason: what the run died of.  final: no further run, whatever the attempts allowed.  chance: for its jitter.
        stack: where in the worker's program it failed.
        """
        queue = self.queues[job.queue]
        self._leave(queue, job)
        self._end_run(job, error, reason, stack)
        if not final and job.attempts < job.opts.max_attempts:
            self._retry(queue, job, job.opts.retry_delay_ms(job.attempts, chance))
        else:
            self._bury(queue, job, reason)

    def stall(self, job: Job, delay_ms: int) -> None:
        """Take an active job from a worker that gave no sign of life; it waits for another, delay_ms later.

        The token of a lock that ran out stays with the job, and completes it until somebody else takes it. A job that
        counts its stalls for themselves goes to the front.
        """
        self.stalled.append(job)
        if job.opts.stalls_allowed is not None:
            self._stall_apart(job, job.opts.stalls_allowed)
            return
        queue = self.queues[job.queue]
        stall = queue.settings.stall
        token = job.token
        self._leave(queue, job)
        job.stalls += 1
        is_last = job.stalls >= stall.max_stalls or job.attempts + 1 >= job.opts.max_attempts
        self._end_run(job, f"Job stalled {job.stalls} times" if is_last else job.error, STALLED)
        self.emit(JobStalled(queue.name, job.id))
        if is_last:
            self._bury(queue, job, STALLED if job.stalls >= stall.max_stalls else MAX_ATTEMPTS)
        else:
            job.token = token
            self._retry(queue, job, delay_ms)

    def _stall_apart(self, job: Job, allowed: int) -> None:
        """Put a job whose worker is lost first, without a failed run, as long as it has not stalled too often.

        Its token completes it until somebody else takes it, as that of any lock that ran out.
        """
        queue = self.queues[job.queue]
        if queue.settings.default_stalls_allowed is not None:
            allowed = queue.settings.default_stalls_allowed
        job.stalls += 1
        self.emit(JobStalled(queue.name, job.id))
        if job.stalls > allowed and not job.scheduled:
            self._leave(queue, job)
            self._end_run(job, STALLED_TOO_OFTEN, STALLED)
            self._bury(queue, job, STALLED)
        else:
            token = job.token
            self.put_first(job)
            job.token = token

    def _end_run(self, job: Job, error: str | None, reason: str, stack: str | None = None) -> None:
        started_at = job.started_at
        if started_at is not None:
            self.queues[job.queue].counters.ran(self.now_ms - started_at)
        job.attempts += 1
        job.error = error
        if job.failures is None:
            job.failures = Failures()
        job.failures.runs.append(Run(job.attempts, started_at, self.now_ms, reason, error, stack))
        del job.failures.runs[:-RUNS_MAX]
        if started_at is not None:
            self._remember_step(job, Moment(ACTIVE, started_at))
        self._remember_step(job, Moment(FAILED, self.now_ms, error, job.attempts))
        self._unlock(job)

    def _unlock(self, job: Job) -> None:
        job.token = job.owner = None
        job.lock_until = 0

    def _remember_step(self, job: Job, step: Moment) -> None:
        if job.past is None:
            job.past = []
        job.past.append(step)
        del job.past[:-PAST_MAX]

    def _extra(self, job: Job) -> Extra:
        extra = job.extra
        if extra is None:
            extra = job.extra = Extra()
        return extra

    def _retry(self, queue: Queue, job: Job, delay_ms: int) -> None:
        self._extra(job).processed_at = job.started_at
        job.started_at = job.last_heartbeat = None
        job.run_at = self.now_ms + delay_ms
        self._rejoin(job)
        self._line_up(queue, job)
        self._remember_step(job, Moment(job.shown_state, self.now_ms))
        if self.events is not None:
            self.events.append(JobFailed(queue.name, job.id, job.error))
            self.events.append(JobRetried(queue.name, job.id))
        self._post_failure(job)

    def _post_failure(self, job: Job) -> None:
        if self.webhooks.listening:
            self.webhooks.post(hook.FAILED, self.now_ms, job.id, job.queue, job.data, job.error)

    # -- Endings

    def bury(self, job: Job, reason: str, *, always: bool = False) -> None:
        """Send an unfinished job to the dead letter queue without another run. always: whatever remove_on_fail says."""
        queue = self.queues[job.queue]
        if job.state == ACTIVE and job.started_at is not None:
            queue.counters.ran(self.now_ms - job.started_at)
            self._extra(job).starts += 1
        self._leave(queue, job)
        self._unlock(job)
        self._remember_step(job, Moment(FAILED, self.now_ms, None, job.attempts))
        self._bury(queue, job, reason, always=always)

    def _bury(self, queue: Queue, job: Job, reason: str, *, always: bool = False) -> None:
        if job.unique_key is not None:
            self._let_go(queue, job)
        if job.failures is None:
            job.failures = Failures()
        job.failures.reason = reason
        job.finished_at = self.now_ms
        job.state = FAILED
        queue.counters.failed += 1
        self.endings += 1
        self.mark += self.endings + job.seq * 13
        self.emit(JobFailed(queue.name, job.id, job.error, final=True))
        for waiting in self.dependents.get(job.id, ()):
            self.emit(FlowFailed(waiting.id, job.id, waiting.queue, job.error))
        self._post_failure(job)
        keep = queue.settings.default_keep_failed if job.opts.keep_failed is None else job.opts.keep_failed
        if (job.opts.remove_on_fail and not always) or (keep is not None and keep.count == 0):
            self._forget(queue, job)
            return
        job.ending = self.endings
        queue.failed.add(job.ending, job)
        self.timers.set(job, self.due_at(job))
        self.emit(DlqAdded(queue.name, job.id, reason))
        if keep is not None:
            self._drop_failed(queue, self._surplus(queue.failed, keep))
        self.trim_dlq(queue)

    def trim_dlq(self, queue: Queue) -> None:
        """Drop the oldest jobs of a dead letter queue that holds more than it may."""
        self._drop_failed(queue, len(queue.failed) - queue.settings.dlq.max_entries)

    def _drop_failed(self, queue: Queue, count: int) -> None:
        for oldest in queue.failed.slice(0, count) if count > 0 else ():
            self._leave(queue, oldest)
            self._forget(queue, oldest)
            self.emit(DlqExpired(queue.name, oldest.id))

    def _dlq_due(self, job: Job) -> int:
        dlq = self.queues[job.queue].settings.dlq
        entered = job.finished_at or 0
        due = 0 if dlq.max_age_ms is None else entered + dlq.max_age_ms
        failures = job.failures
        assert failures is not None
        failures.next_retry_at = None
        if dlq.auto_retry and failures.retries < dlq.max_auto_retries:
            failures.next_retry_at = again = entered + dlq.auto_retry_interval_ms
            due = min(due, again) if due else again
        return due

    def _age(self, job: Job) -> None:
        queue = self.queues[job.queue]
        dlq = queue.settings.dlq
        if dlq.max_age_ms is not None and (job.finished_at or 0) + dlq.max_age_ms <= self.now_ms:
            self._leave(queue, job)
            self._forget(queue, job)
            self.emit(DlqExpired(queue.name, job.id))
        else:
            self.revive(job)
            self.emit(DlqRetried(queue.name, job.id))

    def revive(self, job: Job) -> None:
        """Let a finished job start anew: from the dead letter queue or from the completed ones, attempts from zero."""
        queue = self.queues[job.queue]
        self._raise(queue, job)
        job.attempts = job.stalls = 0
        job.progress = 0
        job.progress_message = job.extra = None
        self._enter_waiting(queue, job)
        self._remember_step(job, Moment(job.shown_state, self.now_ms))

    def rerun(self, job: Job, *, reset_attempts: bool = False) -> None:
        """Let a finished job wait once more as BullMQ does: behind all others, or first (lifo), its attempts as they are."""
        queue = self.queues[job.queue]
        if job.state == COMPLETED:
            job.attempts += 1
        self._raise(queue, job)
        job.error = None
        if reset_attempts and job.attempts:
            self._extra(job).starts += job.attempts
            job.attempts = 0
        if job.extra is not None:
            job.extra.processed_at = None
        self.seq += 1
        job.order = -self.seq if job.opts.lifo else self.seq
        self._enter_waiting(queue, job)
        self._remember_step(job, Moment(job.shown_state, self.now_ms))
        self.emit(JobWaiting(queue.name, job.id))

    def _raise(self, queue: Queue, job: Job) -> None:
        """Take a finished job out of its index, and its end out of the record."""
        was = job.state
        if was == COMPLETED:
            if job.started_at is not None:
                self._remember_step(job, Moment(ACTIVE, job.started_at))
            self._remember_step(job, Moment(COMPLETED, job.finished_at or self.now_ms))
        self._leave(queue, job)
        if was == FAILED:
            assert job.failures is not None
            job.failures.retries += 1
            job.failures.last_retry_at = self.now_ms
            job.failures.next_retry_at = None
        job.ending = 0
        job.result = job.started_at = job.finished_at = job.last_heartbeat = None
        job.run_at = self.now_ms
        if job.unique_key is not None and not holds_for_a_time(job):
            if self.holder_of(queue, job.unique_key) not in (None, job.id):
                # Another job took the key meanwhile and keeps it.
                job.unique_key = None
            else:
                self.free_key(queue, job.unique_key)
                queue.unique[job.unique_key] = job.id
        if job.opts.ttl_ms is not None and job.expires_at <= self.now_ms:
            # Its time to live has passed; whoever revives it wants it run all the same.
            job.opts = self.shared(msgspec.structs.replace(job.opts, ttl_ms=None))

    def expire(self, job: Job) -> None:
        """Drop a job that nobody took within its time to live."""
        age = self.now_ms - job.created_at
        ttl = job.opts.ttl_ms or 0
        self.delete(job)
        self.emit(JobExpired(job.queue, job.id, ttl, age))

    def remove(self, job: Job) -> None:
        """Delete a job because somebody asked for it."""
        prev = job.state
        self.delete(job)
        self.emit(JobRemoved(job.queue, job.id, prev))

    def delete(self, job: Job) -> None:
        """Take a job out of every table, in any state."""
        queue = self.queues[job.queue]
        self._leave(queue, job)
        self._let_go(queue, job, removed=True)
        self._forget(queue, job)
        self.mark += job.seq * 19

    def _forget(self, queue: Queue, job: Job) -> None:
        del self.jobs[job.id], queue.jobs[job.id]
        if self.logs:
            self.logs.pop(job.id, None)
        if not job.finished:
            job.state = REMOVED

    # -- Changing what is there

    def update_data(self, job: Job, data: bytes) -> None:
        """Replace the data of an unfinished job."""
        job.data = data
        self.mark += job.seq * 29

    def renew(self, job: Job, spec: JobSpec) -> None:
        """Give a job that waits other data and options; among those of its priority it keeps its place."""
        if job.opts != spec.opts:
            queue = self.queues[job.queue]
            self._leave(queue, job)
            job.opts = self.shared(spec.opts)
            self._line_up(queue, job)
        self.update_data(job, spec.data)

    def change_priority(self, job: Job, priority: int, *, first: bool = False) -> None:
        """Give an unfinished job another priority, and its place among its new equals; first: in front of them."""
        queue = self.queues[job.queue]
        opts = self.shared(msgspec.structs.replace(job.opts, priority=priority))
        if job.state in (WAITING, DELAYED):
            self._leave(queue, job)
            job.opts = opts
            if first:
                self.seq += 1
                job.order = -self.seq
            else:
                self._rejoin(job)
            self._line_up(queue, job)
        else:
            job.opts = opts
        self.mark += job.seq * 37

    def put_first(self, job: Job) -> None:
        """Put an active job back in front of all waiting jobs of its priority; its run counts for nothing."""
        queue = self.queues[job.queue]
        self._leave(queue, job)
        self._unlock(job)
        self._note_start(job)
        # A number that no job had as its order, lower than those of earlier births and earlier returns.
        self.seq += 1
        job.order = -self.seq
        job.run_at = self.now_ms
        self._enter_waiting(queue, job)
        self.emit(JobWaiting(queue.name, job.id))

    def _note_start(self, job: Job) -> None:
        """Remember a start that leads to no end, before it is forgotten."""
        if job.started_at is not None:
            extra = self._extra(job)
            extra.starts += 1
            extra.processed_at = job.started_at
            job.started_at = job.last_heartbeat = None

    def delay(self, job: Job, delay_ms: float) -> None:
        """Make a waiting, delayed or active job wait from now; its run, if one was under way, counts for nothing."""
        queue = self.queues[job.queue]
        self._leave(queue, job)
        self._unlock(job)
        self._note_start(job)
        job.run_at = self.now_ms + ceil(max(delay_ms, 0))
        self._rejoin(job)
        self._line_up(queue, job)
        if job.state == DELAYED:
            self._extra(job).delayed_at = self.now_ms

    def add_log(self, job: Job, level: str, message: str, keep: int = LOG_LINES_MAX) -> int:
        """Attach a line to a job, of which the last `keep` stay (LOG_LINES_MAX at most); return how many it has."""
        lines = self.logs.pop(job.id, None) or []
        lines.append(LogLine(self.now_ms, level, message))
        del lines[: -min(max(keep, 1), LOG_LINES_MAX)]
        self.logs[job.id] = lines
        if len(self.logs) > LOGGED_JOBS_MAX:
            del self.logs[next(iter(self.logs))]
        self.mark += job.seq * 41
        return len(lines)

    def clear_logs(self, job_id: str, keep: int = 0) -> None:
        """Drop a job's lines but for the last `keep`."""
        lines = self.logs.get(job_id)
        if lines is not None:
            if keep > 0:
                del lines[:-keep]
            else:
                del self.logs[job_id]
            self.mark += 43

    # -- Crons

    def fire_cron(self, cron: Cron, due_ms: int) -> None:
        """Push a cron's job for one due time, unless the last one is still there; remove a cron that may fire no more."""
        key = cron.unique_key
        queue = self.queue(cron.queue)
        if cron.needs_worker and cron.queue not in self.workers.queues:
            self.emit(CronSkipped(cron.name, cron.queue, "no-worker"))
            return
        if cron.key is not None:
            self._fire_repeating(cron, due_ms)
        elif key is not None and self.holder_of(queue, key) is not None:
            cron.executions += 1
            self.emit(CronSkipped(cron.name, cron.queue, "overlap"))
        else:
            # The id tells the due time, so that another attempt at the same one would find the job.
            job_id = next_id(f"cron:{cron.name}", due_ms)
            self.push(cron.queue, (msgspec.structs.replace(cron.job, id=job_id, unique_key=key),))
            cron.executions += 1
            cron.last_fired = self.now_ms
            self.emit(CronFired(cron.name, cron.queue))
        self.mark += cron.executions * 71
        if cron.max_limit is not None and cron.executions >= cron.max_limit:
            self.remove_cron(cron)

    def _fire_repeating(self, cron: Cron, due_ms: int) -> None:
        """Push the job of a repetition, unless the last one still waits; its id tells repetition and time."""
        if self.waiting_of(cron) is not None:
            self.emit(CronSkipped(cron.name, cron.queue, "overlap"))
            return
        cron.last_id = scoped_id(cron.queue, f"repeat:{cron.key}:{due_ms}")
        self.push(cron.queue, (msgspec.structs.replace(cron.job, id=cron.last_id),))
        cron.executions += 1
        cron.last_fired = self.now_ms
        self.emit(CronFired(cron.name, cron.queue))

    def waiting_of(self, cron: Cron) -> Job | None:
        """Return the job of a repetition that nobody has taken yet, if there is one."""
        last = self.jobs.get(cron.last_id)
        return last if last is not None and last.state in (WAITING, DELAYED) and not last.starts else None

    def remove_cron(self, cron: Cron) -> None:
        """Take a cron away."""
        self.schedule.remove(cron)
        self.mark += 73
        self.emit(CronDeleted(cron.name))

    # -- Requests

    def remember_outcome(self, key: str, outcome: Outcome) -> None:
        """Remember what a request with an idempotency key was answered."""
        self.outcomes.put(key, outcome)
        self.mark += len(self.outcomes) * 59 + self.outcomes.size

    def forget_outcome(self, key: str) -> None:
        """Let a key be as if it had never come."""
        if self.outcomes.forget(key):
            self.mark += 61

    # -- Whole queues

    def drain(self, queue: Queue, *, delayed: bool = True) -> int:
        """Delete all waiting jobs of a queue, and the delayed ones. Returns how many."""
        gone = [*queue.waiting(), *(queue.delayed if delayed else ())]
        jobs, own, logs = self.jobs, queue.jobs, self.logs
        stay = {} if delayed else queue.priorities
        # The indexes are emptied at once: taking out a million jobs one by one would hold the node up for seconds.
        for job in gone:
            if job.due:
                self.timers.clear(job)
            if job.unique_key is not None:
                self._let_go(queue, job, removed=True)
            if logs:
                logs.pop(job.id, None)
            del jobs[job.id], own[job.id]
            job.state = REMOVED
            if stay and job.opts.priority:
                stay[job.opts.priority] -= 1
        queue.ready = Ranked()
        if delayed:
            queue.delayed = Ranked()
        queue.parked = queue.prioritized = queue.lowered = 0
        queue.priorities = {priority: left for priority, left in stay.items() if left}
        for group in queue.groups.values():
            group.heads, group.parked = [], Ranked()
        queue.groups = {group_id: group for group_id, group in queue.groups.items() if group.active}
        self.mark += len(gone) * 53
        return len(gone)

    def hold(self, queue: Queue, duration_ms: int) -> None:
        """Give out no jobs of a queue for a while."""
        queue.held_until = self.now_ms + max(duration_ms, 0)
        self.mark += queue.held_until * 97
        self.woken[queue.name] = None

    def check_stalled(self, queue: Queue) -> None:
        """Deal with all locks of a queue that have run out, which `advance` may have left for later."""
        now_ms = self.now_ms
        for job in [job for job in queue.active.values() if job.lock_until and job.lock_until <= now_ms]:
            self._ring(job)

    def obliterate(self, queue: Queue) -> int:
        """Delete a queue with all its jobs, settings and counters, which stay in the sums. Returns how many jobs."""
        count = len(queue.jobs)
        self.drain(queue)
        for job in list(queue.jobs.values()):
            self.delete(job)
        for key in list(queue.throttled):
            self.free_key(queue, key)
        schedule = self.schedule
        for job_id in [key for key, job in schedule.following.items() if job.queue == queue.name]:
            del schedule.following[job_id]
        self.gone.add(queue.counters)
        del self.queues[queue.name]
        self.woken.pop(queue.name, None)
        return count

    def configure(self, queue: Queue, settings: QueueSettings) -> None:
        """Give a queue other settings, and its jobs the alarms that follow from them."""
        before = queue.settings
        queue.settings = settings
        if settings.stall != before.stall:
            for job in list(queue.active.values()):
                self.timers.set(job, self.due_at(job))
        if settings.dlq != before.dlq:
            self.trim_dlq(queue)
            for job in queue.failed:
                self.timers.set(job, self.due_at(job))
        if settings.rate != before.rate:
            queue.fill_bucket(self.now_ms)
        self.trim_completed(queue)
        self.woken[queue.name] = None
        self.mark += 47

    # -- Restoring

    def place(self, queue: Queue, job: Job) -> None:
        """Put a job that comes from an image where its record says it is."""
        state = job.state
        if job.opts is not DEFAULT:
            job.opts = self.shared(job.opts)
        self.jobs[job.id] = queue.jobs[job.id] = job
        priority = job.opts.priority
        if state == WAITING:
            if priority > 0:
                queue.prioritized += 1
            elif priority:
                queue.lowered += 1
            if job.group_id is None:
                queue.ready.add(rank_of(job), job)
            else:
                self._enter_group(queue, job)
        elif state == DELAYED:
            queue.delayed.add(due_rank_of(job), job)
        elif state == ACTIVE:
            queue.active[job.id] = job
            if job.group_id is not None:
                queue.group(job.group_id).active += 1
        elif state == WAITING_CHILDREN:
            queue.waiting_children[job.id] = job
            assert job.dependencies is not None
            for job_id in job.dependencies.remaining:
                self.dependents.setdefault(job_id, []).append(job)
        elif state == COMPLETED:
            queue.completed.add(job.ending, job)
            queue.completed_bytes += weight(job)
        else:
            queue.failed.add(job.ending, job)
        if priority and state in (WAITING, DELAYED):
            queue.priorities[priority] = queue.priorities.get(priority, 0) + 1
        if job.unique_key is not None and not job.finished and not holds_for_a_time(job):
            queue.unique[job.unique_key] = job.id
        if job.due:
            self.timers.enter(job)

    def place_key(self, queue: Queue, key: str, holder: str, until: int) -> None:
        """Put a key with a time of its own, from an image, where it was."""
        queue.unique[key] = holder
        queue.throttled[key] = until
        self.throttles.add((until, queue.name, key))


def holds_for_a_time(job: Job) -> bool:
    """Whether the job's unique key is not held for as long as it is unfinished, but for a time of its own."""
    return job.opts.dedup is not None and bool(job.opts.dedup.ttl_ms)


def weight(job: Job) -> int:
    """Return the bytes a finished job counts for."""
    return len(job.data) + (len(job.result) if job.result is not None else 0)

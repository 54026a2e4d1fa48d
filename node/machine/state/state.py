"""All tables of the cluster, how to find what is in them, and what the entry under way did.

Nothing here moves a job: its transitions are in ../lifecycle. Nothing reads a clock: the time of everything is `now_ms`,
which an entry of the log sets (lifecycle/clock.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from sortedcontainers import SortedList

from quorumq.node.machine.events import (
    Event,
    QueueCreated,
    WorkerErred,
)
from quorumq.node.machine.levels import KNOWN
from quorumq.node.machine.refusals import JobNotActive, JobNotFound, LockLost, LockRequired, TooManyQueues
from quorumq.node.machine.state.bullmq import BullMQ
from quorumq.node.machine.state.dependents import Dependents, Remembered
from quorumq.node.machine.state.digests import Digests
from quorumq.node.machine.state.group_limits import GroupLimits
from quorumq.node.machine.state.job import (
    ACTIVE,
    DEFAULT,
    DELAYED,
    WAITING,
    Job,
    Options,
    check_may_complete,
)
from quorumq.node.machine.state.logs import LogTable
from quorumq.node.machine.state.outcomes import Outcome, Outcomes
from quorumq.node.machine.state.pusher import Pushers, settings_under
from quorumq.node.machine.state.queue import (
    Queue,
    QueueSettings,
    Retention,
    Sums,
    with_retention,
)
from quorumq.node.machine.state.schedule import Schedule
from quorumq.node.machine.state.spent import Spent
from quorumq.node.machine.state.timers import Timers
from quorumq.node.machine.state.webhook import WebhookTable
from quorumq.node.machine.state.worker import FAILURES_SHOWN, TOTAL_MAX, Worker, WorkerTable

# Distinct option records kept to be shared.
SHARED_MAX = 4_096
QUEUES_MAX = 100_000
# What workers get to be heard once there is a leader again: enough to connect to another node and repeat a request.
GRACE_MS = 1_000


class State:
    """Everything that is replicated, and what the present entry did (events, signals for the node's waiters)."""

    def __init__(self) -> None:
        self.now_ms = 0
        # Not replicated: whether calls of clients say what time it is (CLOCK=clients), and entries do not.
        self.timed_by_clients = False
        # The feature level in force (node/machine/levels.py).
        self.level = KNOWN
        # No run is taken from its worker before.
        self.grace_until = 0
        # Created jobs, deliveries and finished jobs, each counted over the whole state.
        self.seq = 0
        self.fence = 0
        self.endings = 0
        self.queues: dict[str, Queue] = {}
        # What queues keep that have no settings of their own for it.
        self.retention = Retention()
        # What went through queues that are no more.
        self.gone = Sums()
        self.jobs: dict[str, Job] = {}
        self.timers = Timers()
        self.dependents = Dependents()
        # Completed jobs whose dependents are told in the entries to come, because they are so many: id to result.
        self.unreleased: dict[str, bytes | None] = {}
        # Not replicated: dependents that the entry under way may still tell (lifecycle/clock.py).
        self.release_budget = 0
        self.remembered = Remembered()
        # Parents that fail because a child did, with the reason: more of them at once than one entry deals with.
        self.failing: dict[str, str] = {}
        # Not replicated: whether they are being dealt with.
        self.is_cascading = False
        self.logs = LogTable()
        # Tokens of deliveries that are over.
        self.spent = Spent()
        # Unique keys with a time of their own, in its order: (end, queue, key).
        self.throttles: SortedList = SortedList()
        # When groups that are held, or have used up their rate limit, may go on.
        self.group_limits = GroupLimits()
        # Crons, and jobs that are to follow others.
        self.schedule = Schedule()
        self.workers = WorkerTable()
        self.webhooks = WebhookTable()
        self.pushers = Pushers()
        # What requests with an idempotency key were answered.
        self.outcomes = Outcomes()
        # What clients of BullMQ's backend protocol have here beside jobs and queues.
        self.bullmq = BullMQ()
        # Not replicated, for it is a part of that: the queues that have a stream of events.
        self.streaming = self.bullmq.streams.by_queue
        # Queues that hold more finished jobs than they may, for no entry lets go of very many at once; from level 1 on.
        self.overfull: dict[str, None] = {}
        # Queues and states whose jobs get the timers of other settings bit by bit: up to which fence, or end, they have them.
        self.retiming: dict[tuple[str, str], int] = {}
        # A running sum over every transition, folded into the digest below level 1; no new transition needs one.
        self.mark = 0
        # How far the digests of level 1 have come.
        self.digests = Digests()
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

    def held_job(self, job_id: str, token: str | None, *, must_hold: bool = False) -> Job:
        """Return the job that the holder of `token` may complete.

        An active job without a lock needs no token. A job whose lock ran out still belongs to its old token until somebody
        takes it. must_hold: as check_token has it. Raises JobNotFound, JobNotActive, LockRequired, LockLost, and ChildrenPending
        and ChildrenFailed for a job that may not complete yet.
        """
        job = self.jobs.get(job_id)
        if job is None:
            raise JobNotFound(job_id)
        if job.state != ACTIVE:
            if token is None or job.token != token or job.state not in (WAITING, DELAYED):
                raise JobNotActive(job_id, job.shown_state)
        elif job.token != token:
            self.check_token(job, token, must_hold=must_hold)
        if job.dependencies is not None:
            check_may_complete(job)
        return job

    def check_token(self, job: Job, token: str | None, *, must_hold: bool = False) -> None:
        """Refuse whoever does not hold the run of a job under way: none but the lock's token ends it.

        A run without a lock needs no token and takes any but those of the job's earlier deliveries, whose workers were
        replaced, and those made for a lock: they are of another job, or of one that had this id before; must_hold: it takes
        none. Raises LockRequired, LockLost.
        """
        if job.token is not None:
            if job.token != token:
                raise LockRequired(job.id) if token is None else LockLost(job.id)
        elif (
            token is not None
            and self.level >= 1
            and (must_hold or self.spent.is_made(token) or self.spent.holds(job.id, token))
        ):
            raise LockLost(job.id)

    def queue(self, name: str, *, always: bool = False) -> Queue:
        """Return a queue, created when it is new. Raises TooManyQueues, but not when time brings the queue (always)."""
        queue = self.queues.get(name)
        if queue is None:
            if not always:
                self.check_room_for(name)
            queue = self.queues[name] = Queue(name, self.new_settings())
            pusher = self.pushers.by_queue.get(name)
            if pusher is not None:
                queue.settings = settings_under(queue.settings, pusher)
            if self.level < 1:
                self.emit(QueueCreated(name))
        return queue

    def announce(self, queue: Queue) -> None:
        """A queue is about to have its first job, which is what brings it into the lists of queues: say so."""
        if self.level >= 1 and not queue.is_listed:
            self.emit(QueueCreated(queue.name))

    def check_room_for(self, *names: str) -> None:
        """Raise TooManyQueues when these queues, each named once, would be too many."""
        if self.level >= 1 and len(self.queues) + len(names) > QUEUES_MAX:
            new = sum(name not in self.queues for name in names)
            if new and len(self.queues) + new > QUEUES_MAX:
                raise TooManyQueues(QUEUES_MAX)

    def new_settings(self) -> QueueSettings:
        """Return the settings that a new queue has."""
        default = QueueSettings()
        return default if self.retention == Retention() else with_retention(default, self.retention)

    def listed_queues(self) -> Iterator[Queue]:
        """Return the queues that have ever had a job, in order of creation."""
        return (queue for queue in self.queues.values() if queue.is_listed)

    # -- Events and signals

    def emit(self, event: Event) -> None:
        """Report something that happened, if anyone listens."""
        if self.events is not None:
            self.events.append(event)

    # -- Time

    def follow_clients(self) -> None:
        """Take the time from calls of clients, forwards and backwards: what only the passing of time would end does not end."""
        self.timed_by_clients = self.bullmq.sessions.lasting = self.bullmq.presence.lasting = True

    def resume(self, now_ms: int) -> None:
        """Take no run from its worker for a moment: heartbeats and results could not be received just before `now_ms`."""
        self.grace_until = max(now_ms, self.now_ms) + GRACE_MS

    def next_due_ms(self, now_ms: int) -> int | None:
        """Return when to look for due work again: never late, early by a second at most; None when nothing is set."""
        if self.overfull or self.unreleased or self.retiming or self.failing or self.bullmq.facts.released:
            return now_ms
        dues = (self.timers.next_due(now_ms), self.group_limits.next_due(), self.workers.next_due())
        return min((due for due in dues if due), default=None)

    # -- Jobs and workers

    def shared(self, opts: Options) -> Options:
        """Return the one object that stands for these options."""
        found = self._shared.get(opts)
        if found is None:
            if len(self._shared) >= SHARED_MAX:
                self._shared.clear()
            found = self._shared[opts] = DEFAULT if opts == DEFAULT else opts
        return found

    def count_work(self, owner: str, *, active: int = 0, processed: int = 0, failed: int = 0) -> None:
        """Let the figures of a registered worker follow what it takes under its id, and what becomes of that."""
        worker = self.workers.by_id.get(owner)
        if worker is not None and self.level >= 1:
            worker.active_jobs = max(worker.active_jobs + active, 0)
            worker.processed = min(worker.processed + processed, TOTAL_MAX)
            if failed:
                self.count_failures(worker, worker.failed + failed)

    def count_failures(self, worker: Worker, failed: int) -> None:
        """Note how many jobs a worker has failed; some of these numbers are worth an event."""
        before, worker.failed = worker.failed, min(failed, TOTAL_MAX)
        if any(before < shown <= worker.failed for shown in FAILURES_SHOWN):
            total = worker.processed + worker.failed
            self.emit(
                WorkerErred(
                    worker.id, worker.name, worker.failed, worker.processed, worker.failed / total, worker.queues
                )
            )

    # -- Requests

    def remember_outcome(self, key: str, outcome: Outcome) -> None:
        """Remember what a request with an idempotency key was answered."""
        self.outcomes.put(key, outcome, level=self.level)
        self.mark += len(self.outcomes) * 59 + self.outcomes.size

    def forget_outcome(self, key: str) -> None:
        """Let a key be as if it had never come."""
        if self.outcomes.forget(key):
            self.mark += 61

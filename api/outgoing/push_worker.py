"""Push workers on one node: it takes the jobs of the queues that are assigned to it and calls their endpoints.

Nothing here has to be right for jobs to be safe: how many may be under way, and who may take them, is decided in the log
(`node.machine.operations.pushers`); a job whose node is gone comes back when its lock runs out. What an endpoint is sent is
rendered by a dialect.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from quorumq.cluster.addresses import parted
from quorumq.cluster.errors import ClusterError, EntryTooLarge
from quorumq.cluster.metrics import Histogram
from quorumq.node.batching import Batcher
from quorumq.node.engine import ReplicatedLog
from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operation import Entry, Operation
from quorumq.node.machine.operations.jobs import MoveToWait
from quorumq.node.machine.operations.pushers import (
    CircuitNote,
    JoinPushing,
    LeavePushing,
    NoteCircuits,
    PullForPusher,
    push_active,
)
from quorumq.node.machine.operations.runs import AckedBatch, AckJobs, ExtendLocks, FailJob, Pulled, ReleaseJobs
from quorumq.node.machine.refusals import ChildrenFailed, ChildrenPending, Refusal
from quorumq.node.machine.state.job import LOCK_MS, Job
from quorumq.node.machine.state.pusher import CLOSED, Circuit, Pushers
from quorumq.node.machine.state.queue import Queue
from quorumq.node.proposals import AGAIN_S, propose_once, propose_until_answered

from .budget import SMALL_BYTES
from .client import CallTimedOut, CannotConnect, HttpClient
from .delivery import FAILURES_MAX, PAUSE_MAX_S, PAUSE_S, JobDelivery, Serving
from .egress import CallPolicy, caller_of
from .response import CallError, Response
from .result import is_local, is_unavailable, result_of

log = logging.getLogger("quorumq.pushing")

# Calls under way on this node; registrations beyond take turns.
CALLS_MAX = 5_000
# Jobs taken by one pull, and about how many bytes of them.
PULL_MAX = 500
PULL_BYTES = 32 << 20
# Bytes of the jobs being sent by this node, over which it takes no more.
BYTES_MAX = 256 << 20
# Acknowledgements in one operation.
ACKS_MAX = 1_000
ACK_BYTES = 1 << 20
# A queue that gave less than it seemed to have is looked at again after this long.
SHORT_S = 0.02

# What is known of circuits is told to the other nodes no more often than this.
NOTE_EVERY_S = 1.0

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
Render = Callable[[Job, str], bytes]


class PushFigures(msgspec.Struct):
    """What this node's push workers have done since it started."""

    deliveries: int = 0
    completed: int = 0
    failed: int = 0
    put_back: int = 0
    """Jobs that went back untried, because their endpoint was down or this node stopped."""
    lost: int = 0
    """Results that nobody wanted any more: the job's lock had been lost."""
    seconds: Histogram = msgspec.field(default_factory=lambda: Histogram(SECONDS))


class PushWorkers:
    """Calls the endpoints of the registrations that are assigned to this node.

    render: the body for a job and its token; runs inside the local apply.  clock: milliseconds since the epoch.
    lock_ms: how long a job stays this node's without a sign of life; it gives one every half of that.
    """

    def __init__(
        self,
        engine: ReplicatedLog,
        machine: Machine,
        batcher: Batcher,
        clock: Callable[[], int],
        render: Render,
        *,
        policy: CallPolicy | None = None,
        lock_ms: int = LOCK_MS,
        calls_max: int = CALLS_MAX,
        write_timeout_s: float = 15.0,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._engine = engine
        self._machine = machine
        self._batcher = batcher
        self._clock = clock
        self._render = render
        self._policy = policy or CallPolicy()
        self._lock_ms = lock_ms
        self._lock_s = lock_ms / 1000
        self._calls_max = calls_max
        self._timeout_s = write_timeout_s
        self._pause_s = pause_s
        self.figures = PushFigures()
        self._servings: dict[str, Serving] = {}
        self._seen: tuple[Pushers | None, int] = (None, -1)
        # Jobs of which the log has not been told what became of them: dictionaries for their order.
        self._held: dict[JobDelivery, None] = {}
        self._asked = 0
        # Bytes of the jobs that are being sent, and, by a guess, of those that pulls under way will bring.
        self._bytes = 0
        self._coming = 0
        self._looking: dict[Serving, None] = {}
        self._starved: dict[Serving, None] = {}
        self._acks: list[tuple[JobDelivery, bytes | None]] = []
        self._others: list[tuple[JobDelivery, Operation]] = []
        self._returns: list[JobDelivery] = []
        self._notes: dict[str, None] = {}
        self._noting: asyncio.TimerHandle | None = None
        self._renewing: asyncio.TimerHandle | None = None
        self._joining = False
        self._turning = False
        self._proposing = 0
        self._draining = False
        self._stopped = False
        self._empty: asyncio.Future[None] | None = None
        self._client: HttpClient | None = None

    # -- Life

    def start(self) -> None:
        """Serve what is assigned to this node from now on."""
        self._loop = asyncio.get_running_loop()
        self._machine.listen(self._on_entry)
        self._sync()

    @property
    def under_way(self) -> int:
        """Jobs that this node holds."""
        return len(self._held)

    @property
    def served(self) -> int:
        """Registrations that this node serves."""
        return len(self._servings)

    @property
    def open_circuits(self) -> int:
        """Endpoints that this node knows to be down."""
        return sum(serving.is_open for serving in self._servings.values())

    @property
    def connections(self) -> int:
        """Connections to endpoints."""
        return 0 if self._client is None else self._client.connections

    def drain(self) -> None:
        """Take no more jobs, and let other nodes serve; calls under way go on."""
        if self._draining:
            return
        self._draining = True
        for serving in self._servings.values():
            serving.wake()
        if self._seen[0] is not None and self._engine.node_id in self._machine.state.pushers.nodes:
            self._mention(LeavePushing(self._engine.node_id))

    async def stop(self, within_s: float) -> None:
        """Let calls under way finish for so long, then put their jobs back for others."""
        self.drain()
        if self._held or self._asked:
            self._empty = self._loop.create_future()
            await asyncio.wait([self._empty], timeout=within_s)
        self._stopped = True
        put_back: list[asyncio.Future[Any]] = []
        # The one that was taken first is to be the first again.
        for delivery in sorted(self._held, key=lambda delivery: -delivery.fence):
            if delivery.call is not None:
                delivery.call.give_up()
                self.figures.put_back += 1
                said = self._mention(MoveToWait(delivery.job_id, delivery.token))
                put_back += [said] if said is not None else []
        if put_back:
            await asyncio.wait(put_back, timeout=AGAIN_S * 5)
        self._held.clear()
        for handle in (self._renewing, self._noting):
            if handle is not None:
                handle.cancel()
        if self._client is not None:
            self._client.close()

    def _mention(self, operation: Operation) -> asyncio.Future[Any] | None:
        return propose_once(self._batcher, operation, self._timeout_s)

    # -- What the log brings

    def _on_entry(self, entry: Entry) -> None:
        pushers = self._machine.state.pushers
        if self._seen[1] != pushers.version or self._seen[0] is not pushers:
            self._sync()
        if self._servings:
            for name in entry.woken:
                serving = self._servings.get(name)
                if serving is not None:
                    self._look(serving)

    def _sync(self) -> None:
        """Serve what is assigned to this node, and nothing else."""
        pushers, node = self._machine.state.pushers, self._engine.node_id
        self._seen = pushers, pushers.version
        mine = {pusher.queue: pusher for pusher in pushers.of_node(node)}
        for name in [name for name in self._servings if name not in mine]:
            self._servings.pop(name).wake()
        for name, pusher in mine.items():
            serving = self._servings.get(name)
            if serving is None:
                serving = self._servings[name] = Serving(pusher)
                wait_ms = pusher.circuit.next_try_at - self._clock()
                serving.next_try_at = self._loop.time() + min(max(wait_ms / 1000, 0), PAUSE_MAX_S)
            elif serving.generation != pusher.generation:
                serving.take(pusher)
            else:
                continue
            serving.pause_s = self._pause_s
            self._look(serving)
        if pushers.by_queue and node not in pushers.nodes:
            self._join()

    def _join(self) -> None:
        """Say that this node serves push workers, until the log knows."""
        if self._joining or self._draining:
            return
        self._joining = True
        self._loop.call_soon(self._try_to_join)

    def _try_to_join(self) -> None:
        pushers = self._machine.state.pushers
        if self._draining or not pushers.by_queue or self._engine.node_id in pushers.nodes:
            self._joining = False
            return
        self._mention(JoinPushing(self._engine.node_id))
        self._loop.call_later(AGAIN_S * 5, self._try_to_join)

    # -- Turns: what happened since the last one goes into the log together, what it made room for is taken

    def _look(self, serving: Serving) -> None:
        """See in the next turn whether there is something for an endpoint."""
        self._looking[serving] = None
        self._soon()

    def _soon(self) -> None:
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turning = False
        if not self._proposing or len(self._acks) >= ACKS_MAX:
            self._send_ends()
        # A pull comes behind what ended, so that it finds the room that was made.
        looking, self._looking = self._looking, {}
        for serving in looking:
            if self._servings.get(serving.queue) is serving:
                self._pull(serving)

    # -- Taking jobs

    def _pull(self, serving: Serving) -> None:
        """Take as many jobs as the endpoint may get now, or find out when to look again."""
        if self._draining or serving.target is None or serving.asked:
            return
        free = serving.concurrency - serving.calls
        if serving.is_open:
            wait_s = serving.next_try_at - self._loop.time()
            if wait_s > 0:
                serving.sleep(wait_s, self._look)
                return
            free = 0 if serving.probing else 1
        queue = self._machine.state.queues.get(serving.queue)
        if free <= 0 or queue is None:
            return
        now_ms = max(self._clock(), self._machine.state.now_ms)
        if queue.claimable(now_ms) <= 0:
            at_ms = next_claim_ms(queue, now_ms)
            if at_ms is not None:
                serving.sleep((at_ms - now_ms) / 1000, self._look)
            return
        if serving.short and push_active(self._machine.state, serving.queue) >= serving.concurrency:
            # Others hold jobs of this registration: calls of another node, or of one that is gone.
            serving.sleep(SHORT_S, self._look)
            return
        free = min(free, PULL_MAX, self._calls_max - len(self._held) - self._asked)
        if free <= 0 or self._bytes + self._coming >= BYTES_MAX:
            self._starved[serving] = None
            return
        first = queue.ready.first()
        each = 1 if first is None else len(first.data) + 1
        free = max(1, min(free, PULL_BYTES // each))
        self._ask(serving, free, free * each)

    def _ask(self, serving: Serving, count: int, size: int) -> None:
        token = serving.next_token()
        taken: list[JobDelivery] = []

        def look(reply: Pulled) -> list[JobDelivery]:
            taken.extend(self._prepare(serving, job, token) for job in reply.jobs)
            return taken

        operation = PullForPusher(serving.queue, self._engine.node_id, count, self._lock_ms, token)
        try:
            future = self._batcher.add(operation, look, self._timeout_s)
        except ClusterError as error:
            log.debug("a pull did not get through: %s", error)
            serving.sleep(AGAIN_S, self._look)
            return
        serving.asked = count
        self._asked += count
        self._coming += size
        future.add_done_callback(partial(self._pulled, serving, count, size))

    def _prepare(self, serving: Serving, job: Job, token: str) -> JobDelivery:
        body: bytes | None = None
        try:
            body = self._render(job, token)
        except Exception as error:
            # The job fails for it, alone; a pull that raised would leave all of them to their locks. The message may quote data.
            log.error("the call for a job of queue %r cannot be written: %s", job.queue, type(error).__name__)
        return JobDelivery(serving, job, token, body)

    def _pulled(self, serving: Serving, count: int, size: int, future: asyncio.Future[list[JobDelivery]]) -> None:
        serving.asked = 0
        self._asked -= count
        self._coming -= size
        error = None if future.cancelled() else future.exception()
        if error is not None or future.cancelled():
            if not isinstance(error, ClusterError | Refusal):
                log.error("a pull for queue %r failed", serving.queue, exc_info=error)
            serving.sleep(AGAIN_S, self._look)
            self._make_room()
            return
        taken = future.result()
        serving.short = len(taken) < count
        if self._draining:
            # Nobody has been called for these.
            if taken:
                self._mention(ReleaseJobs([(delivery.job_id, delivery.fence) for delivery in taken]))
            self._make_room()
            return
        for delivery in taken:
            self._deliver(delivery)
        self._make_room()
        if taken:
            serving.misses = 0
            self._look(serving)
        else:
            # Others were faster, or this node's clock is ahead of the log's.
            serving.sleep(min(SHORT_S * 2**serving.misses, AGAIN_S * 5), self._look)
            serving.misses = min(serving.misses + 1, 10)

    # -- Calling

    def _deliver(self, delivery: JobDelivery) -> None:
        serving, now = delivery.serving, self._loop.time()
        self._held[delivery] = None
        delivery.began = now
        delivery.renew_at = now + self._lock_s / 2
        if self._renewing is None:
            self._renewing = self._loop.call_at(delivery.renew_at, self._renew)
        serving.calls += 1
        self._bytes += delivery.size
        self.figures.deliveries += 1
        body, delivery.body = delivery.body, None
        if serving.is_open:
            delivery.probe = serving.probing = True
        if body is None or serving.target is None:
            self._ended(delivery, CallError("The job cannot be delivered: see the log of the server"))
            return
        if self._client is None:
            status = self._engine.status()
            self._client = HttpClient(self._policy, own_hosts=self._own_hosts, caller=caller_of(status.cluster_id))
        call = self._client.call(serving.target, body, serving.timeout_s, partial(self._ended, delivery))
        if not call.ended:
            delivery.call = call

    def _own_hosts(self) -> list[str]:
        """The hosts of the members."""
        return [parted(member.address)[0] for member in self._engine.status().members]

    def _ended(self, delivery: JobDelivery, outcome: Response | CallError) -> None:
        """Take the end of a call."""
        serving = delivery.serving
        self._bytes -= delivery.size
        delivery.call = None
        self.figures.seconds.observe(self._loop.time() - delivery.began)
        unreachable = isinstance(outcome, CannotConnect) or (
            isinstance(outcome, CallTimedOut) and not outcome.connected
        )
        was_open = serving.is_open
        self._note(delivery, outcome, is_down=unreachable or is_unavailable(outcome))
        if unreachable and (was_open or delivery.probe or is_local(outcome)):
            # Nothing has reached the endpoint, and it was known to be down, or this node is at fault: the job goes back as if
            # it had not been taken, its place and its attempts as they were.
            self.figures.put_back += 1
            self._returns.append(delivery)
        else:
            result, error = result_of(outcome)
            if error is None:
                self.figures.completed += 1
                self._hold(delivery, len(result or b""))
                self._acks.append((delivery, result))
            else:
                self.figures.failed += 1
                failed = FailJob(
                    delivery.job_id, delivery.token, error, chance=random.random(), stack=f"Error: {error}"
                )
                self._others.append((delivery, failed))
        self._soon()

    def _hold(self, delivery: JobDelivery, size: int) -> None:
        """Count a large result until the log has it, so that no more of them are fetched than can be kept."""
        if size > SMALL_BYTES and self._client is not None:
            delivery.reserved = size
            self._client.budget.hold(size)

    def _release(self, delivery: JobDelivery) -> None:
        if delivery.reserved and self._client is not None:
            self._client.budget.release(delivery.reserved)
            delivery.reserved = 0

    # -- Telling the log

    def _send_ends(self) -> None:
        """Propose the outcomes of all jobs that ended while others were on their way to the log, in one go.

        That is what makes entries few and large under load; with nothing under way nothing waits.
        """
        others, self._others = self._others, []
        for delivery, operation in others:
            self._propose([delivery], operation)
        returns, self._returns = self._returns, []
        if returns:
            self._propose(returns, ReleaseJobs([(delivery.job_id, delivery.fence) for delivery in returns]))
        acks, self._acks = self._acks, []
        start = 0
        while start < len(acks):
            end, size = start, 0
            while end < len(acks) and end - start < ACKS_MAX and (end == start or size < ACK_BYTES):
                size += len(acks[end][1] or b"")
                end += 1
            part = acks[start:end]
            start = end
            deliveries = [delivery for delivery, _ in part]
            operation = AckJobs(
                [delivery.job_id for delivery in deliveries],
                [delivery.token for delivery in deliveries],
                [result for _, result in part],
            )
            self._propose(deliveries, operation)

    def _propose(self, deliveries: list[JobDelivery], operation: Operation) -> None:
        """Propose the outcomes of jobs until the log has answered; a result is never given up while the job may be ours."""
        for delivery in deliveries:
            if not delivery.proposed:
                # Its place is free in the entry that says so, for a pull behind it.
                delivery.proposed = True
                delivery.serving.calls -= 1
                self._looking[delivery.serving] = None
        self._proposing += 1
        future = propose_until_answered(self._batcher, operation, _turned_down, self._timeout_s, self._goes_on)
        future.add_done_callback(partial(self._settled, deliveries))

    def _goes_on(self) -> bool:
        return not self._stopped

    def _settled(self, deliveries: list[JobDelivery], future: asyncio.Future[list[Refusal]]) -> None:
        self._proposing -= 1
        error = None if future.cancelled() else future.exception()
        if isinstance(error, EntryTooLarge):
            for delivery in deliveries:
                self._fail(delivery, "The result is too large")
        elif error is not None:
            if isinstance(error, Refusal):
                # A repeat of what had been heard is refused, too.
                self.figures.lost += len(deliveries)
                log.debug("a result came too late: %s", error.code)
            elif not isinstance(error, ClusterError):
                log.error("results could not be noted", exc_info=error)
            self._release_all(deliveries)
        else:
            self._accepted(deliveries, [] if future.cancelled() else future.result())
        if self._acks or self._others or self._returns:
            self._soon()
        self._make_room()

    def _accepted(self, deliveries: list[JobDelivery], refused: list[Refusal]) -> None:
        """Let jobs go whose end the log has taken, or that are not ours any more; those that cannot have completed have failed."""
        waiting = {
            refusal.job_id: refusal.message
            for refusal in refused
            if isinstance(refusal, ChildrenPending | ChildrenFailed)
        }
        self.figures.lost += len(refused) - len(waiting)
        if waiting:
            for delivery in deliveries:
                if delivery.job_id in waiting:
                    self._fail(delivery, waiting[delivery.job_id])
            deliveries = [delivery for delivery in deliveries if delivery.job_id not in waiting]
        self._release_all(deliveries)

    def _fail(self, delivery: JobDelivery, error: str) -> None:
        """Have a run fail whose result the log does not take."""
        self._release(delivery)
        self._others.append((delivery, FailJob(delivery.job_id, delivery.token, error, chance=random.random())))

    def _release_all(self, deliveries: list[JobDelivery]) -> None:
        for delivery in deliveries:
            self._release(delivery)
            self._held.pop(delivery, None)
            if delivery.serving.short:
                self._look(delivery.serving)

    def _make_room(self) -> None:
        """Let registrations go on that had to wait for others, and whoever waits for the last job."""
        if self._starved:
            self._looking |= self._starved
            self._starved = {}
            self._soon()
        if self._empty is not None and not self._held and not self._asked and not self._empty.done():
            self._empty.set_result(None)

    # -- Locks

    def _renew(self) -> None:
        """Extend the locks that have lasted for half of their time, or nearly so, all of them together."""
        self._renewing = None
        if self._stopped or not self._held:
            return
        now = self._loop.time()
        due = [delivery for delivery in self._held if delivery.renew_at <= now + self._lock_s / 8]
        if due:
            self._extend(due)
        for delivery in due:
            delivery.renew_at = now + self._lock_s / 2
        soonest = min(delivery.renew_at for delivery in self._held)
        self._renewing = self._loop.call_at(max(soonest, now + self._lock_s / 16), self._renew)

    def _extend(self, due: list[JobDelivery]) -> None:
        operation = ExtendLocks([delivery.job_id for delivery in due], [delivery.token for delivery in due])
        # By then the next renewal says the same.
        until = self._loop.time() + self._lock_s / 2

        def wanted() -> bool:
            return not self._stopped and self._loop.time() < until and any(one in self._held for one in due)

        propose_until_answered(self._batcher, operation, _nothing, self._timeout_s, wanted).add_done_callback(
            self._extended
        )

    def _extended(self, future: asyncio.Future[None]) -> None:
        error = None if future.cancelled() else future.exception()
        if error is not None and not isinstance(error, ClusterError):
            log.error("locks could not be extended", exc_info=error)

    # -- Circuits

    def _note(self, delivery: JobDelivery, outcome: Response | CallError, *, is_down: bool) -> None:
        """Learn from the end of a call how it stands with its endpoint."""
        serving, now = delivery.serving, self._loop.time()
        if delivery.generation != serving.generation:
            # Another endpoint's affair by now.
            return
        if delivery.probe:
            serving.probing = False
        if not is_down:
            if serving.failures:
                serving.failures, serving.error = 0, None
                serving.pause_s = self._pause_s
                if serving.is_open:
                    serving.is_open = False
                    log.info("the endpoint of queue %r answers again", serving.queue)
                    self._note_circuit(serving)
            return
        serving.failures += 1
        serving.error = outcome.reason if isinstance(outcome, Response) else str(outcome)
        if serving.is_open:
            if delivery.probe:
                serving.pause_s = min(serving.pause_s * 2, PAUSE_MAX_S)
                serving.next_try_at = now + serving.pause_s
                self._note_circuit(serving)
        elif serving.failures >= FAILURES_MAX:
            serving.is_open = True
            serving.pause_s = self._pause_s
            serving.next_try_at = now + serving.pause_s
            log.warning("the endpoint of queue %r cannot be reached: %s", serving.queue, serving.error)
            self._note_circuit(serving)

    def _note_circuit(self, serving: Serving) -> None:
        self._notes[serving.queue] = None
        if self._noting is None:
            self._noting = self._loop.call_later(0, self._note_circuits)

    def _note_circuits(self) -> None:
        """Tell the other nodes of the circuits that have changed; then not again for a while."""
        self._noting = None
        if self._stopped or not self._notes:
            return
        notes: list[CircuitNote] = []
        for name in self._notes:
            serving = self._servings.get(name)
            if serving is not None:
                notes.append(CircuitNote(name, serving.generation, self._circuit_of(serving)))
        self._notes = {}
        if notes:
            self._mention(NoteCircuits(notes))
        self._noting = self._loop.call_later(NOTE_EVERY_S, self._note_circuits)

    def _circuit_of(self, serving: Serving) -> Circuit:
        if not serving.is_open:
            return CLOSED
        wait_ms = int((serving.next_try_at - self._loop.time()) * 1000)
        return Circuit(serving.failures, self._clock() + max(wait_ms, 0), serving.error)


def next_claim_ms(queue: Queue, now_ms: int) -> int | None:
    """Return when a queue that has jobs but gives none may give one by time alone; None when something must happen first."""
    at_ms = queue.next_free_ms(now_ms)
    return None if at_ms is None or at_ms <= now_ms else at_ms


def _turned_down(reply: Any) -> list[Refusal]:
    """What an acknowledgement was refused for, job by job."""
    return reply.refused if isinstance(reply, AckedBatch) else []


def _nothing(reply: object) -> None:
    return None

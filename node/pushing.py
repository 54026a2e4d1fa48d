"""Push workers on one node: it takes the jobs of the queues that are assigned to it and calls their endpoints.

Nothing here has to be right for jobs to be safe: how many may be under way, and who may take them, is decided in the log
(`node.operations.pushers`); a job whose node is gone comes back when its lock runs out. What an endpoint is sent is rendered by the API.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from cluster.errors import ClusterError, EntryTooLarge
from cluster.metrics import Histogram
from node.addresses import CallPolicy
from node.answers import Answer, CallError
from node.batching import Batcher
from node.engine import Engine
from node.machine import Entry, Machine
from node.operation import Operation
from node.operations.jobs import AckedBatch, AckJobs, ExtendLocks, FailJob, MoveToWait, Pulled, ReleaseJobs
from node.operations.pushers import CircuitNote, JoinPushing, LeavePushing, NoteCircuits, PullForPusher, push_active
from node.outgoing import Call, CannotConnect, Client, Target, TimedOut
from node.refusals import Refusal
from node.room import SMALL_BYTES
from node.state.job import Job
from node.state.pusher import CLOSED, Circuit, Pusher, Pushers
from node.state.queue import Queue
from node.state.state import LOCK_MS

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
# What did not get through is tried again after this long.
AGAIN_S = 0.2
# A queue that gave less than it seemed to have is looked at again after this long.
SHORT_S = 0.02
# No look at a queue is closer to the one before, whatever its limit says.
LOOK_S = 0.005

# Calls in a row that find nobody before an endpoint counts as down; then the pauses between single tries.
FAILURES_MAX = 5
PAUSE_S = 1.0
PAUSE_MAX_S = 30.0
# Answers that a server, or a proxy before it, gives when nobody is there to work.
UNAVAILABLE = (502, 503, 504)
# What is known of circuits is told to the other nodes no more often than this.
NOTE_EVERY_S = 1.0

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
EMPTY_TEXT = b'""'
# A text as JSON: it may be longer than what the endpoint sent.
TEXT_BYTES_MAX = 12 << 20
_decode = msgspec.json.Decoder(msgspec.Raw).decode

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


class Delivery:
    """One job on its way: taken, called, told to the log."""

    __slots__ = (
        "began",
        "body",
        "call",
        "fence",
        "generation",
        "job_id",
        "probe",
        "renew_at",
        "room",
        "serving",
        "size",
        "token",
        "told",
    )

    def __init__(self, serving: Serving, job: Job, token: str, body: bytes | None) -> None:
        self.serving = serving
        self.job_id = job.id
        self.fence = job.fence
        self.token = token
        self.body = body
        self.size = 0 if body is None else len(body)
        self.call: Call | None = None
        self.generation = serving.generation
        self.probe = self.told = False
        # Bytes of a large result that the log has not heard of yet.
        self.room = 0
        self.renew_at = 0.0
        self.began = 0.0


class Serving:
    """One registration that this node serves. calls: jobs under way here.  asked: jobs that the pull under way may bring."""

    __slots__ = (
        "asked",
        "calls",
        "concurrency",
        "error",
        "failures",
        "generation",
        "is_open",
        "misses",
        "next_try_at",
        "number",
        "pause_s",
        "probing",
        "queue",
        "short",
        "target",
        "timeout_s",
        "timer",
        "worker_id",
    )

    def __init__(self, pusher: Pusher) -> None:
        self.queue = pusher.queue
        self.worker_id = str(uuid.uuid4())
        self.number = 0
        self.calls = self.asked = 0
        self.timer: asyncio.TimerHandle | None = None
        # Whether the last pull brought less than it should have, and how many in a row brought nothing.
        self.short = False
        self.misses = 0
        self.take(pusher)

    def take(self, pusher: Pusher) -> None:
        """Go by a registration from now on."""
        self.generation = pusher.generation
        self.concurrency = pusher.concurrency
        self.timeout_s = pusher.timeout_ms / 1000
        self.target: Target | None = None
        try:
            self.target = Target(pusher.method, pusher.url, pusher.headers)
        except ValueError as error:
            # The edge lets no such registration in; another version's edge may have.
            log.error("the endpoint of queue %r cannot be called from here: %s", pusher.queue, error)
        # The circuit: what is known of an endpoint that cannot be reached. Times are the loop's.
        self.failures = pusher.circuit.failures
        self.is_open = self.failures >= FAILURES_MAX
        self.error = pusher.circuit.error
        self.next_try_at = 0.0
        self.pause_s = PAUSE_S
        self.probing = False

    def next_token(self) -> str:
        """Make the token of the next pull."""
        self.number += 1
        return f"{self.worker_id}:{self.number - 1}"

    def sleep(self, after_s: float, wake: Callable[[Serving], None]) -> None:
        """Look again after a while, and not before unless something happens."""
        self.wake()
        self.timer = asyncio.get_running_loop().call_later(max(after_s, LOOK_S), wake, self)

    def wake(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Pushing:
    """Calls the endpoints of the registrations that are assigned to this node.

    render: the body for a job and its token; runs inside the local apply.  clock: milliseconds since the epoch.
    lock_ms: how long a job stays this node's without a sign of life; it gives one every half of that.
    """

    def __init__(
        self,
        engine: Engine,
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
        self._held: dict[Delivery, None] = {}
        self._asked = 0
        # Bytes of the jobs that are being sent, and, by a guess, of those that pulls under way will bring.
        self._bytes = 0
        self._coming = 0
        self._looking: dict[Serving, None] = {}
        self._starved: dict[Serving, None] = {}
        self._acks: list[tuple[Delivery, bytes | None]] = []
        self._others: list[tuple[Delivery, Operation]] = []
        self._returns: list[Delivery] = []
        self._notes: dict[str, None] = {}
        self._noting: asyncio.TimerHandle | None = None
        self._renewing: asyncio.TimerHandle | None = None
        self._joining = False
        self._turning = False
        self._telling = 0
        self._draining = False
        self._stopped = False
        self._empty: asyncio.Future[None] | None = None
        self._client: Client | None = None

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
            self._send(LeavePushing(self._engine.node_id))

    async def stop(self, timeout_s: float) -> None:
        """Let calls under way finish for so long, then put their jobs back for others."""
        self.drain()
        if self._held or self._asked:
            self._empty = self._loop.create_future()
            await asyncio.wait([self._empty], timeout=timeout_s)
        self._stopped = True
        put_back: list[asyncio.Future[Any]] = []
        # The one that was taken first is to be the first again.
        for delivery in sorted(self._held, key=lambda delivery: -delivery.fence):
            if delivery.call is not None:
                delivery.call.give_up()
                self.figures.put_back += 1
                put_back += self._send(MoveToWait(delivery.job_id, delivery.token))
        if put_back:
            await asyncio.wait(put_back, timeout=AGAIN_S * 5)
        self._held.clear()
        for handle in (self._renewing, self._noting):
            if handle is not None:
                handle.cancel()
        if self._client is not None:
            self._client.close()

    def _send(self, operation: Operation) -> list[asyncio.Future[None]]:
        """Have the log take note of something if it can; not doing it only costs time."""
        try:
            future = self._batcher.submit(operation, _nothing, self._timeout_s)
        except ClusterError as error:
            log.debug("%s did not get through: %s", type(operation).__name__, error)
            return []
        future.add_done_callback(_heard)
        return [future]

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
        self._send(JoinPushing(self._engine.node_id))
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
        if not self._telling or len(self._acks) >= ACKS_MAX:
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
        taken: list[Delivery] = []

        def look(reply: Pulled) -> list[Delivery]:
            taken.extend(self._prepare(serving, job, token) for job in reply.jobs)
            return taken

        operation = PullForPusher(serving.queue, self._engine.node_id, count, self._lock_ms, token)
        try:
            future = self._batcher.submit(operation, look, self._timeout_s)
        except ClusterError as error:
            log.debug("a pull did not get through: %s", error)
            serving.sleep(AGAIN_S, self._look)
            return
        serving.asked = count
        self._asked += count
        self._coming += size
        future.add_done_callback(partial(self._pulled, serving, count, size))

    def _prepare(self, serving: Serving, job: Job, token: str) -> Delivery:
        body: bytes | None = None
        try:
            body = self._render(job, token)
        except Exception as error:
            # The job fails for it, alone; a pull that raised would leave all of them to their locks. The message may quote data.
            log.error("the call for a job of queue %r cannot be written: %s", job.queue, type(error).__name__)
        return Delivery(serving, job, token, body)

    def _pulled(self, serving: Serving, count: int, size: int, future: asyncio.Future[list[Delivery]]) -> None:
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
                self._send(ReleaseJobs([(delivery.job_id, delivery.fence) for delivery in taken]))
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

    def _deliver(self, delivery: Delivery) -> None:
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
            self._client = Client(self._policy)
        call = self._client.call(serving.target, body, serving.timeout_s, partial(self._ended, delivery))
        if not call.ended:
            delivery.call = call

    def _ended(self, delivery: Delivery, outcome: Answer | CallError) -> None:
        """Take the end of a call."""
        serving = delivery.serving
        self._bytes -= delivery.size
        delivery.call = None
        self.figures.seconds.observe(self._loop.time() - delivery.began)
        unreachable = isinstance(outcome, CannotConnect) or (isinstance(outcome, TimedOut) and not outcome.connected)
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

    def _hold(self, delivery: Delivery, size: int) -> None:
        """Count a large result until the log has it, so that no more of them are fetched than can be kept."""
        if size > SMALL_BYTES and self._client is not None:
            delivery.room = size
            self._client.room.hold(size)

    def _release(self, delivery: Delivery) -> None:
        if delivery.room and self._client is not None:
            self._client.room.release(delivery.room)
            delivery.room = 0

    # -- Telling the log

    def _send_ends(self) -> None:
        """Tell what became of jobs: all that has ended while the log was being told of others, in one go.

        That is what makes entries few and large under load; with nothing under way nothing waits.
        """
        others, self._others = self._others, []
        for delivery, operation in others:
            self._tell([delivery], operation, partial(self._try_again, delivery, operation))
        returns, self._returns = self._returns, []
        if returns:
            released = ReleaseJobs([(delivery.job_id, delivery.fence) for delivery in returns])
            self._tell(returns, released, partial(self._return_again, returns))
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
            self._tell(deliveries, operation, partial(self._ack_again, part))

    def _try_again(self, delivery: Delivery, operation: Operation) -> None:
        self._others.append((delivery, operation))

    def _ack_again(self, acks: list[tuple[Delivery, bytes | None]]) -> None:
        self._acks += acks

    def _return_again(self, returns: list[Delivery]) -> None:
        self._returns += returns

    def _tell(self, deliveries: list[Delivery], operation: Operation, again: Callable[[], None]) -> None:
        """Tell the log what became of jobs, until it has heard; a result is never given up while the job may be ours."""
        for delivery in deliveries:
            if not delivery.told:
                # Its place is free in the entry that says so, for a pull behind it.
                delivery.told = True
                delivery.serving.calls -= 1
                self._looking[delivery.serving] = None
        try:
            future = self._batcher.submit(operation, _refused, self._timeout_s)
        except ClusterError:
            self._loop.call_later(AGAIN_S, self._again, again)
            return
        self._telling += 1
        future.add_done_callback(partial(self._told, deliveries, again))

    def _told(self, deliveries: list[Delivery], again: Callable[[], None], future: asyncio.Future[int]) -> None:
        self._telling -= 1
        if self._acks or self._others or self._returns:
            self._soon()
        error = None if future.cancelled() else future.exception()
        if isinstance(error, EntryTooLarge):
            for delivery in deliveries:
                self._release(delivery)
                self._others.append((delivery, FailJob(delivery.job_id, delivery.token, "The result is too large")))
            self._soon()
            return
        if isinstance(error, ClusterError):
            # It may have happened all the same; then the repeat is refused, and that is that.
            self._loop.call_later(AGAIN_S, self._again, again)
            return
        if error is None:
            self.figures.lost += 0 if future.cancelled() else future.result()
        elif isinstance(error, Refusal):
            self.figures.lost += len(deliveries)
            log.debug("a result came too late: %s", error.code)
        else:
            log.error("results could not be noted", exc_info=error)
        for delivery in deliveries:
            self._release(delivery)
            self._held.pop(delivery, None)
            if delivery.serving.short:
                self._look(delivery.serving)
        self._make_room()

    def _again(self, again: Callable[[], None]) -> None:
        if not self._stopped:
            again()
            self._soon()

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

    def _extend(self, due: list[Delivery]) -> None:
        operation = ExtendLocks([delivery.job_id for delivery in due], [delivery.token for delivery in due])
        try:
            future = self._batcher.submit(operation, _nothing, self._timeout_s)
        except ClusterError:
            self._loop.call_later(AGAIN_S, self._renew_now, due)
            return
        future.add_done_callback(partial(self._extended, due))

    def _extended(self, due: list[Delivery], future: asyncio.Future[None]) -> None:
        error = None if future.cancelled() else future.exception()
        if isinstance(error, ClusterError):
            self._loop.call_later(AGAIN_S, self._renew_now, due)
        elif error is not None:
            log.error("locks could not be extended", exc_info=error)

    def _renew_now(self, due: list[Delivery]) -> None:
        held = [delivery for delivery in due if delivery in self._held]
        if held and not self._stopped:
            self._extend(held)

    # -- Circuits

    def _note(self, delivery: Delivery, outcome: Answer | CallError, *, is_down: bool) -> None:
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
                    self._tell_circuit(serving)
            return
        serving.failures += 1
        serving.error = outcome.reason if isinstance(outcome, Answer) else str(outcome)
        if serving.is_open:
            if delivery.probe:
                serving.pause_s = min(serving.pause_s * 2, PAUSE_MAX_S)
                serving.next_try_at = now + serving.pause_s
                self._tell_circuit(serving)
        elif serving.failures >= FAILURES_MAX:
            serving.is_open = True
            serving.pause_s = self._pause_s
            serving.next_try_at = now + serving.pause_s
            log.warning("the endpoint of queue %r cannot be reached: %s", serving.queue, serving.error)
            self._tell_circuit(serving)

    def _tell_circuit(self, serving: Serving) -> None:
        self._notes[serving.queue] = None
        if self._noting is None:
            self._noting = self._loop.call_later(0, self._tell_circuits)

    def _tell_circuits(self) -> None:
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
            self._send(NoteCircuits(notes))
        self._noting = self._loop.call_later(NOTE_EVERY_S, self._tell_circuits)

    def _circuit_of(self, serving: Serving) -> Circuit:
        if not serving.is_open:
            return CLOSED
        wait_ms = int((serving.next_try_at - self._loop.time()) * 1000)
        return Circuit(serving.failures, self._clock() + max(wait_ms, 0), serving.error)


def is_local(outcome: Answer | CallError) -> bool:
    """Whether a call failed for want of something on this machine, such as file descriptors."""
    return isinstance(outcome, CannotConnect) and outcome.is_local


def is_unavailable(outcome: Answer | CallError) -> bool:
    """Whether an answer says that nobody is there to work."""
    return isinstance(outcome, Answer) and outcome.status in UNAVAILABLE


def result_of(outcome: Answer | CallError) -> tuple[bytes | None, str | None]:
    """Return what an outcome means for its job: a result as JSON text, or the error it failed with."""
    if isinstance(outcome, CallError):
        return None, str(outcome)
    if not 200 <= outcome.status < 300:
        return None, outcome.reason or f"HTTP {outcome.status}"
    body = outcome.body.removeprefix(b"\xef\xbb\xbf")
    if outcome.status == 204:
        return EMPTY_TEXT, None
    if "application/json" not in outcome.content_type:
        text = msgspec.json.encode(body.decode("utf-8", "replace"))
        return (text, None) if len(text) <= TEXT_BYTES_MAX else (None, "The answer is too large for a result")
    if not body.isascii():
        # As fetch reads it: what is no UTF-8 becomes a replacement character.
        body = body.decode("utf-8", "replace").encode()
    try:
        return bytes(_decode(body)), None
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        # Half a surrogate pair is JSON, though msgspec has no place for it.
        json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None, json_error(body)
    return body.strip(), None


def _no_number(name: str) -> Any:
    raise ValueError(name)


def json_error(body: bytes) -> str:
    """Say what is wrong with JSON in the words of the documented server's runtime."""
    text = body.strip()
    if not text:
        return "Unexpected end of JSON input"
    closing = {b"{": "}", b"[": "]"}.get(text[:1])
    return f"JSON Parse error: Expected '{closing}'" if closing else "JSON Parse error: Unexpected token"


def next_claim_ms(queue: Queue, now_ms: int) -> int | None:
    """Return when a queue that has jobs but gives none may give one by time alone; None when something must happen first."""
    at_ms = queue.next_free_ms(now_ms)
    return None if at_ms is None or at_ms <= now_ms else at_ms


def _refused(reply: Any) -> int:
    return len(reply.refused) if isinstance(reply, AckedBatch) else 0


def _nothing(reply: object) -> None:
    return None


def _heard(future: asyncio.Future[Any]) -> None:
    # Asking for the exception keeps the loop from reporting one that nobody waits for.
    if not future.cancelled():
        future.exception()

"""What push workers keep of one job on its way, and of one registration that this node serves."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable

from quorumq.node.machine.state.job import Job
from quorumq.node.machine.state.pusher import Pusher

from .client import OutgoingCall, Target

log = logging.getLogger("quorumq.pushing")

# Calls in a row that find nobody before an endpoint counts as down; then the pauses between single tries.
FAILURES_MAX = 5
PAUSE_S = 1.0
PAUSE_MAX_S = 30.0
# No look at a queue is closer to the one before, whatever its limit says.
LOOK_S = 0.005


class JobDelivery:
    """One job on its way: taken, called, told to the log."""

    __slots__ = (
        "began",
        "body",
        "call",
        "fence",
        "generation",
        "job_id",
        "probe",
        "proposed",
        "renew_at",
        "reserved",
        "serving",
        "size",
        "token",
    )

    def __init__(self, serving: Serving, job: Job, token: str, body: bytes | None) -> None:
        self.serving = serving
        self.job_id = job.id
        self.fence = job.fence
        self.token = token
        self.body = body
        self.size = 0 if body is None else len(body)
        self.call: OutgoingCall | None = None
        self.generation = serving.generation
        self.probe = self.proposed = False
        # Bytes of a large result that the log has not heard of yet.
        self.reserved = 0
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

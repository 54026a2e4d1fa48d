"""What empties the outboxes of the webhooks: on the leader, one task per receiver that has something to get.

In order per webhook, at least once: a delivery stays in the replicated outbox until the log says that it arrived or was
given up, so the next leader goes on where this one stopped. A slow receiver keeps only its own task waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
from collections.abc import Callable
from itertools import islice
from typing import Any

import msgspec

from quorumq.cluster.errors import ClusterError
from quorumq.node.batching import Batcher
from quorumq.node.engine import ReplicatedLog
from quorumq.node.leader.duty import LeaderDuty
from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operation import Entry, Operation
from quorumq.node.machine.operations.webhooks import NoteDelivered, NoteUndeliverable
from quorumq.node.machine.state.webhook import Delivery, Webhook
from quorumq.node.proposals import propose_once, propose_until_answered

from .client import CallTimedOut, HttpClient, Target, lines_of
from .egress import caller_of, webhook_policy
from .response import CallError, Response

log = logging.getLogger("quorumq.deliveries")

CALL_TIMEOUT_S = 10.0
# Seconds before each retry: three of them, as the documentation of webhooks says.
RETRY_AFTER_S = (1.0, 2.0, 4.0)
# Deliveries that have arrived are noted together: so many at most, and none later than this.
NOTE_MAX = 50
NOTE_AFTER_S = 0.2
NOTE_TIMEOUT_S = 5.0
# A task that ended by a bug is started again after this long.
LOG_AFTER_S = 60.0
AFTER_BUG_S = 1.0
# What is read of an answer, so that its connection can be used again.
ANSWER_BYTES_MAX = 1 << 16
ERROR_CHARS_MAX = 200


class WebhookDeliveries(LeaderDuty):
    """Delivers while this node leads.

    retry_after_s: waits before the retries; when all have failed, the delivery is given up.
    """

    def __init__(
        self,
        engine: ReplicatedLog,
        machine: Machine,
        batcher: Batcher,
        *,
        allow_private: bool = False,
        timeout_s: float = CALL_TIMEOUT_S,
        retry_after_s: tuple[float, ...] = RETRY_AFTER_S,
    ) -> None:
        super().__init__(engine, machine, batcher)
        self._policy = webhook_policy(allow_private=allow_private)
        self._timeout_s = timeout_s
        self._retry_after_s = retry_after_s
        self._client: HttpClient | None = None
        # Of the webhooks that have a task, by id: where their deliveries go.
        self._targets: dict[str, Target] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._dropped = 0
        self._log_at = float("-inf")

    def drain(self) -> None:
        """Nothing waits for deliveries: the next leader goes on with them."""

    async def stop(self, within_s: float = 0) -> None:
        """Deliver no more; what is under way is cut off and will be delivered by the next leader."""
        self._stopped = True
        tasks = self._halt()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._client is not None:
            self._client.close()

    def _on_role_change(self, leads: bool) -> None:
        super()._on_role_change(leads)
        if not leads:
            self._halt()

    def _on_entry(self, entry: Entry) -> None:
        webhooks = self._machine.state.webhooks
        if self._leads and webhooks.waiting:
            self._log_dropped(webhooks.dropped)
            self.look()

    def _log_dropped(self, count: int) -> None:
        """Say, once a minute at most, that receivers are slower than what happens."""
        if count < self._dropped:
            self._dropped = 0  # the state is another one now
        now = asyncio.get_running_loop().time()
        if count > self._dropped and now >= self._log_at:
            log.warning(
                "%d deliveries to webhooks were dropped: too many wait for receivers that do not take them",
                count - self._dropped,
            )
            self._dropped, self._log_at = count, now + LOG_AFTER_S

    def look(self) -> None:
        """Start a task for each webhook that has something to get and has none."""
        if self._stopped or not self._leads or not self._engine.is_leader:
            return
        for webhook_id in self._machine.state.webhooks.waiting:
            if webhook_id not in self._tasks:
                task = asyncio.get_running_loop().create_task(self._serve(webhook_id))
                self._tasks[webhook_id] = task
                task.add_done_callback(self._ended(webhook_id))

    def _halt(self) -> list[asyncio.Task[None]]:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        return tasks

    def _ended(self, webhook_id: str) -> Callable[[asyncio.Task[None]], None]:
        def ended(task: asyncio.Task[None]) -> None:
            del self._tasks[webhook_id]
            self._targets.pop(webhook_id, None)
            loop = asyncio.get_running_loop()
            if not task.cancelled() and task.exception() is not None:
                log.error("deliveries of webhook %s ended", webhook_id, exc_info=task.exception())
                loop.call_later(AFTER_BUG_S, self.look)
            else:
                # Something may have come while the task was ending, or this node leads again.
                loop.call_soon(self.look)

        return ended

    # -- One receiver

    async def _serve(self, webhook_id: str) -> None:
        """Deliver what waits for a webhook until nothing does."""
        while self._leads:
            webhooks = self._machine.state.webhooks
            webhook = webhooks.by_id.get(webhook_id)
            if webhook is None or webhook_id not in webhooks.waiting or not self._wanted(webhook_id):
                return
            waiting = list(islice(webhooks.outboxes[webhook_id].deliveries, NOTE_MAX))
            await self._run(webhook, waiting)

    async def _run(self, webhook: Webhook, waiting: list[Delivery]) -> None:
        """Deliver some of what waits, in order, and note what became of it."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + NOTE_AFTER_S
        arrived: NoteDelivered | None = None
        try:
            for delivery in waiting:
                if not self._wanted(webhook.id):
                    break
                outcome = await self._call(webhook, delivery)
                if isinstance(outcome, str):
                    if arrived is not None:
                        # Retries take seconds: what has arrived is noted before them.
                        noted, arrived = arrived, None
                        await self._note(noted)
                    outcome = await self._retry(webhook, delivery, outcome)
                if isinstance(outcome, str):
                    if self._wanted(webhook.id):
                        await self._note(NoteUndeliverable(webhook.id, delivery.number, outcome))
                    return
                arrived = NoteDelivered(webhook.id, delivery.number, outcome)
                if loop.time() >= ends:
                    break
        except asyncio.CancelledError:
            # This node leads no more. What has arrived can still be said, to whoever leads now, and need not come again.
            if arrived is not None:
                propose_once(self._batcher, arrived, NOTE_TIMEOUT_S)
            raise
        if arrived is not None:
            await self._note(arrived)

    def _wanted(self, webhook_id: str) -> bool:
        """Whether this node should still deliver to a webhook."""
        webhook = self._machine.state.webhooks.by_id.get(webhook_id)
        return self._leads and self._engine.is_leader and webhook is not None and webhook.enabled

    async def _retry(self, webhook: Webhook, delivery: Delivery, error: str) -> int | str:
        """Try a failed delivery again after a while, and again. Returns as `_call`."""
        for wait_s in self._retry_after_s:
            log.info("webhook %s: delivery %d failed: %s", webhook.id, delivery.number, error)
            await asyncio.sleep(wait_s)
            if not self._wanted(webhook.id):
                break
            outcome = await self._call(webhook, delivery)
            if isinstance(outcome, int):
                return outcome
            error = outcome
        return error

    async def _call(self, webhook: Webhook, delivery: Delivery) -> int | str:
        """Make one attempt. Returns the status of an answer that accepts it, or what went wrong."""
        body = body_of(delivery)
        try:
            target = self._targets.get(webhook.id)
            if target is None:
                target = self._targets[webhook.id] = Target("POST", webhook.url)
            more = lines_of(headers_of(webhook, delivery, body).items())
            answer: Response | CallError = await self._opened().ask(target, body, self._timeout_s, more)
        except (CallError, ValueError) as error:
            status = error.status if isinstance(error, CallError) else 0
            if not status:
                late = isinstance(error, CallTimedOut)
                return f"no answer within {self._timeout_s:g} s" if late else str(error)[:ERROR_CHARS_MAX]
        else:
            status = answer.status
        return status if 200 <= status < 300 else f"HTTP {status}"

    def _opened(self) -> HttpClient:
        if self._client is None:
            caller = caller_of(self._engine.status().cluster_id)
            # The tasks bound the connections: each has one.
            self._client = HttpClient(self._policy, body_bytes_max=ANSWER_BYTES_MAX, caller=caller, by_status=True)
        return self._client

    async def _note(self, operation: Operation) -> None:
        """Have the log take note of an outcome, however long that takes; not doing it means delivering again."""
        with contextlib.suppress(ClusterError):
            await propose_until_answered(self._batcher, operation, _nothing, NOTE_TIMEOUT_S, self._goes_on)

    def _goes_on(self) -> bool:
        return self._leads and not self._stopped


def body_of(delivery: Delivery) -> bytes:
    """Return the body of a delivery; the same for each attempt."""
    body: dict[str, Any] = {
        "event": delivery.event,
        "timestamp": delivery.at,
        "jobId": delivery.job_id,
        "queue": delivery.queue,
    }
    if delivery.progress is not None:
        body["progress"] = delivery.progress
    if delivery.data is not None:
        body["data"] = msgspec.Raw(delivery.data)
    if delivery.error is not None:
        body["error"] = delivery.error
    return msgspec.json.encode(body)


def headers_of(webhook: Webhook, delivery: Delivery, body: bytes) -> dict[str, str]:
    """Return the headers of one delivery. Its id is the same for each attempt, so that receivers can drop repeats."""
    headers = {
        "Content-Type": "application/json",
        "X-Webhook-Event": delivery.event,
        "X-Webhook-Timestamp": str(delivery.at),
        "X-Webhook-Delivery": f"{webhook.id}-{delivery.number}",
    }
    if webhook.secret:
        secret = webhook.secret.encode("utf-8", "surrogatepass")
        headers["X-Webhook-Signature"] = hmac.new(secret, body, hashlib.sha256).hexdigest()
    return headers


def _nothing(reply: object) -> None:
    return None

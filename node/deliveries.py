"""What empties the outboxes of the webhooks: on the leader, one task per receiver that has something to get.

In order per webhook, at least once: a delivery stays in the replicated outbox until the log says that it arrived or was
given up, so the next leader goes on where this one stopped. A slow receiver keeps only its own task waiting.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import socket
from collections.abc import Callable
from itertools import islice
from typing import Any

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from cluster.errors import ClusterError
from node.addresses import literal, refused_address
from node.batching import Batcher
from node.engine import Engine
from node.leading import LeaderDuty
from node.machine import Entry, Machine
from node.operation import Operation
from node.operations.webhooks import NoteDelivered, NoteUndeliverable
from node.state.webhook import Delivery, Webhook

log = logging.getLogger("quorumq.deliveries")

CALL_TIMEOUT_S = 10.0
# Seconds before each retry: three of them, as the documentation of webhooks says.
RETRY_AFTER_S = (1.0, 2.0, 4.0)
# Deliveries that have arrived are noted together: so many at most, and none later than this.
NOTE_MAX = 50
NOTE_AFTER_S = 0.2
NOTE_TIMEOUT_S = 5.0
NOTE_AGAIN_S = 0.2
# A task that ended by a bug is started again after this long.
AFTER_BUG_S = 1.0
# What is read of an answer, so that its connection can be used again.
ANSWER_BYTES_MAX = 1 << 16
ERROR_CHARS_MAX = 200


class AddressRefused(OSError):
    """The receiver's name leads to an address that must not be called."""


class CheckedResolver(AbstractResolver):
    """Resolves names, and refuses those that lead anywhere but to the open internet.

    The connection goes to the very addresses that were checked, so a name that changes its mind gains nothing.
    """

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a name. Raises OSError, AddressRefused."""
        loop = asyncio.get_running_loop()
        infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
        found: list[ResolveResult] = []
        for kind, _, proto, _, address in infos:
            where = str(address[0])
            self.check(where)
            found.append(
                ResolveResult(
                    hostname=host,
                    host=where,
                    port=port,
                    family=kind,
                    proto=proto,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            )
        return found

    def check(self, address: str) -> None:
        """Raise AddressRefused for an address that must not be called."""
        kind = None if self._allow_private else refused_address(address)
        if kind is not None:
            raise AddressRefused(f"address refused: {kind}")

    async def close(self) -> None:
        """Nothing is held."""


class Deliveries(LeaderDuty):
    """Delivers while this node leads.

    retry_after_s: waits before the retries; when all have failed, the delivery is given up.
    """

    def __init__(
        self,
        engine: Engine,
        machine: Machine,
        batcher: Batcher,
        *,
        allow_private: bool = False,
        timeout_s: float = CALL_TIMEOUT_S,
        retry_after_s: tuple[float, ...] = RETRY_AFTER_S,
    ) -> None:
        super().__init__(engine, machine, batcher)
        self._resolver = CheckedResolver(allow_private=allow_private)
        self._timeout_s = timeout_s
        self._retry_after_s = retry_after_s
        self._session: aiohttp.ClientSession | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def stop(self) -> None:
        """Deliver no more; what is under way is cut off and will be delivered by the next leader."""
        self._stopped = True
        tasks = self._halt()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def _on_role_change(self, leads: bool) -> None:
        super()._on_role_change(leads)
        if not leads:
            self._halt()

    def _on_entry(self, entry: Entry) -> None:
        if self._leads and self._machine.state.webhooks.waiting:
            self.look()

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
                self._mention(arrived)
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
            address = literal(webhook_host(webhook.url))
            if address is not None:
                # Addresses do not pass through the resolver.
                self._resolver.check(str(address))
            async with self._opened().post(
                webhook.url, data=body, headers=headers_of(webhook, delivery, body), allow_redirects=False
            ) as answer:
                await answer.content.read(ANSWER_BYTES_MAX)
                return answer.status if 200 <= answer.status < 300 else f"HTTP {answer.status}"
        except TimeoutError:
            return f"no answer within {self._timeout_s:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return (str(error) or type(error).__name__)[:ERROR_CHARS_MAX]

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            # The tasks bound the connections: each has one.
            connector = aiohttp.TCPConnector(resolver=self._resolver, use_dns_cache=False, limit=0)
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=self._timeout_s),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers={"User-Agent": "quorumq"},
            )
        return self._session

    async def _note(self, operation: Operation) -> None:
        """Have the log take note of an outcome, however long that takes; not doing it means delivering again."""
        while self._leads and not self._stopped:
            try:
                await self._batcher.submit(operation, _nothing, NOTE_TIMEOUT_S)
                return
            except ClusterError as error:
                log.debug("an outcome did not get through: %s", error)
                await asyncio.sleep(NOTE_AGAIN_S)

    def _mention(self, operation: Operation) -> None:
        """Have the log take note of an outcome if it can."""
        try:
            self._batcher.submit(operation, _nothing, NOTE_TIMEOUT_S).add_done_callback(_heard)
        except ClusterError as error:
            log.debug("an outcome did not get through: %s", error)


def webhook_host(url: str) -> str:
    """Return the host of a URL as a connection would take it."""
    return (URL(url).raw_host or "").lower()


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
    """Return the headers of a delivery. Its id is the same for each attempt, so that receivers can drop repeats."""
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


def _heard(future: asyncio.Future[None]) -> None:
    # Asking for the exception keeps the loop from reporting one that nobody waits for.
    if not future.cancelled():
        future.exception()

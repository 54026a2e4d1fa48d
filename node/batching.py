"""Operations that arrive together travel together: one payload, one log entry, one fsync for all of them.

A batch leaves when the loop has taken in what had arrived; while a few are under way the next one collects. Callers get
their replies inside the local apply, so what they render is the state of that very moment.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from quorumq.cluster.errors import ClusterError, EntryTooLarge, NotApplied, NotUnderstood, Unavailable
from quorumq.node.engine import ReplicatedLog
from quorumq.node.machine.operation import Operation, read_operation
from quorumq.node.machine.refusals import OperationNotKnown, Refusal

T = TypeVar("T")

# A batch closes when it is this large; a single operation may be larger.
BATCH_BYTES = 1 << 20
BATCH_OPERATIONS_MAX = 4_096
# Batches under way, so that collecting one overlaps with replicating others.
UNDER_WAY_MAX = 3
# What may wait to be sent. Past it a caller is told to come back, before memory runs out.
PENDING_BYTES_MAX = 128 << 20
PENDING_OPERATIONS_MAX = 100_000


def same(reply: T) -> T:
    """A view that shows a reply as it is: one that nobody changes when the apply is over."""
    return reply


class _Pending(msgspec.Struct, gc=False):
    payload: bytes
    deadline: float
    future: asyncio.Future[Any]
    view: Callable[[Any], Any]
    abandoned: Callable[[Any], None] | None


class Batcher:
    """Collects operations into batches for the engine and hands each caller its own outcome."""

    def __init__(
        self, engine: ReplicatedLog, *, batch_bytes: int = BATCH_BYTES, under_way_max: int = UNDER_WAY_MAX
    ) -> None:
        self._engine = engine
        self._batch_bytes = batch_bytes
        self._under_way_max = under_way_max
        self._under_way = 0
        self._pending: deque[_Pending] = deque()
        self._pending_bytes = 0
        self._scheduled = False
        self._idle: asyncio.Future[None] | None = None
        self._encode = msgspec.msgpack.Encoder().encode

    @property
    def backlog(self) -> int:
        """Operations that wait to be sent."""
        return len(self._pending)

    def add(
        self,
        operation: Operation,
        view: Callable[[Any], T],
        timeout_s: float,
        abandoned: Callable[[Any], None] | None = None,
    ) -> asyncio.Future[T]:
        """Replicate an operation; the future gets `view(reply)`, a Refusal or a cluster error.

        `view` runs inside the local apply. When the future was cancelled by then, `abandoned(reply)` runs in its place.
        Raises Unavailable when too much is waiting already, OperationNotKnown for what no node could read: it would stop them all.
        """
        payload = self._encode(operation)
        try:
            read_operation(payload)
        except NotUnderstood as error:
            raise OperationNotKnown(str(error)) from None
        if len(self._pending) >= PENDING_OPERATIONS_MAX or (
            self._pending and self._pending_bytes + len(payload) > PENDING_BYTES_MAX
        ):
            raise NotApplied("too many writes are waiting on this node")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._pending.append(_Pending(payload, loop.time() + timeout_s, future, view, abandoned))
        self._pending_bytes += len(payload)
        self._schedule(loop)
        return future

    async def idle(self) -> None:
        """Return when nothing waits and nothing is under way."""
        while self._pending or self._under_way:
            if self._idle is None:
                self._idle = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._idle)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._scheduled and self._under_way < self._under_way_max:
            self._scheduled = True
            loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send what has collected, as far as batches may be under way."""
        self._scheduled = False
        loop = asyncio.get_running_loop()
        while self._pending and self._under_way < self._under_way_max:
            batch = self._next_batch(loop.time())
            if batch:
                self._send(batch)
        self._check_idle()

    def _next_batch(self, now: float) -> list[_Pending]:
        batch: list[_Pending] = []
        size = 0
        while self._pending and len(batch) < BATCH_OPERATIONS_MAX:
            first = self._pending[0]
            if batch and size + len(first.payload) > self._batch_bytes:
                break
            self._pending.popleft()
            self._pending_bytes -= len(first.payload)
            if first.future.done():
                # Its caller left before it was sent, so it need not happen.
                continue
            if first.deadline <= now:
                first.future.set_exception(NotApplied("the write waited too long to be sent"))
                continue
            batch.append(first)
            size += len(first.payload)
        return batch

    def _send(self, batch: list[_Pending]) -> None:
        self._under_way += 1

        def done(outcome: Any, error: ClusterError | None) -> None:
            self._under_way -= 1
            self._resolve(batch, outcome, error)
            if self._pending:
                self._schedule(asyncio.get_running_loop())
            self._check_idle()

        payload = _array_header(len(batch)) + b"".join([item.payload for item in batch])
        deadline = max(item.deadline for item in batch)
        # The callers' own deadlines differ by little; the one that matters is that none is cut short.
        self._engine.propose(payload, deadline, done)

    def _resolve(self, batch: list[_Pending], outcome: Any, error: ClusterError | None) -> None:
        if error is not None or isinstance(outcome, Refusal):
            reason: Exception = error if error is not None else outcome
            for item in batch:
                if not item.future.done():
                    item.future.set_exception(_own(reason))
            return
        for item, reply in zip(batch, outcome, strict=True):
            future = item.future
            if future.done():
                if item.abandoned is not None and not isinstance(reply, Refusal):
                    item.abandoned(reply)
            elif isinstance(reply, Refusal):
                future.set_exception(reply)
            else:
                try:
                    future.set_result(item.view(reply))
                except Exception as problem:
                    # A view is the caller's code: its failure is the caller's, not the others'.
                    future.set_exception(problem)

    def _check_idle(self) -> None:
        if self._idle is not None and not self._pending and not self._under_way:
            self._idle.set_result(None)
            self._idle = None


def _own(error: Exception) -> Exception:
    """Return an error that one caller may raise without adding its traceback to the others'."""
    if isinstance(error, Unavailable):
        return type(error)(str(error), error.retry_after_s)
    if isinstance(error, EntryTooLarge):
        return EntryTooLarge(str(error))
    if isinstance(error, Refusal):
        return type(error)(*error.args)
    return error


def _array_header(count: int) -> bytes:
    """Return the msgpack header of an array, whose items follow as they are."""
    if count < 16:
        return bytes([0x90 | count])
    if count < 1 << 16:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")

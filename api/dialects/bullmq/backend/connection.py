"""One connection of the backend protocol: its calls in their order, what is under way, what waits, and the answers.

Writes are handed to the log in the order in which they came, many under way at once. Reads that come together share one look
at the newest state, after the writes before them. A call that waits has a task of its own and takes none of the window.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from quorumq.api.auth import EVERYTHING, Forbidden, Grant
from quorumq.api.commands.connection import AUTH_S, UNSENT_BYTES_MAX
from quorumq.api.commands.messagepack import UNCOUNTED_BYTES, BadFrame, count
from quorumq.api.events.feed import SendQueue
from quorumq.api.events.frames import RefusedMessage, WebSocket
from quorumq.api.host import Host
from quorumq.api.limits import BodyTooLarge
from quorumq.cluster.errors import ClusterError
from quorumq.cluster.version import VERSION
from quorumq.node.machine.operation import Query
from quorumq.node.machine.refusals import Refusal
from quorumq.node.node import Keyed

from . import codes, names, protocol
from .codes import coded
from .events import EventCredit
from .protocol import (
    CALLS_BYTES_MAX,
    CALLS_MAX,
    MESSAGE_BYTES,
    WAITS_MAX,
    CallBatch,
    CallRequest,
    Hello,
    answered,
    packed,
)
from .rows import Asked, Own, Read, Row, Write
from .table import DECODERS, QUEUELESS, ROWS
from .waits import Holds

log = logging.getLogger(__name__)

# Queues that a connection remembers to have a right name.
QUEUES_KNOWN_MAX = 1_000
NULL = packed(None)
# Calls by which workers ask for a job after they were woken.
TAKES = frozenset({"moveToActive"})
# Calls with a handler of their own that reads see.
SEEN = frozenset({"register"})
DOOR = "GET /bullmq/v1/socket"


class PendingRead(NamedTuple):
    """A read that waits for the next look. size: bytes that it counts in the window."""

    number: int
    query: Query
    view: Callable[[Any], Any]
    size: int


class BackendConnection:
    """One connection. grant: None until it has said hello with a token that is one, or where none is needed."""

    def __init__(self, server: Host, request: web.BaseRequest, ws: WebSocket, grant: Grant | None, port: int) -> None:
        self.server = server
        self.node = server.node
        self.request = request
        self.ws = ws
        self.shown = grant
        self.grant: Grant | None = None
        self.port = port
        self.session = ""
        self.acknowledged = 0
        self.send_queue = SendQueue(UNSENT_BYTES_MAX)
        self.close_code: int = WSCloseCode.GOING_AWAY
        self.close_reason = b""
        self.leaving = False
        # Whether it is being ended: nothing more is listened to.
        self.refused = False
        self.ended = False
        # Under way: calls, bytes of their messages, writes by number in their order, what waits by number.
        self.calls = 0
        self.bytes = 0
        self.writes: dict[int, asyncio.Future[Any]] = {}
        self.waits: dict[int, asyncio.Task[None]] = {}
        self.holds = Holds(self.node.waiters.leave)
        # Subscriptions among what waits, by number.
        self.subscriptions: dict[int, EventCredit] = {}
        # Workers and readers of events that said that they are there, by id.
        self.clients: dict[str, None] = {}
        self.room = asyncio.Event()
        self._reads: list[PendingRead] = []
        self._reader: asyncio.Task[None] | None = None
        self._answers: list[bytes] = []
        self._flushing = False
        self._queues: dict[str, str] = {}
        self._hello_timer: asyncio.TimerHandle | None = None
        self.prefix = server.config.queue_prefix
        # Whether its calls say what time it is: in tests only.
        self.says_time = server.config.clock == "clients"

    @property
    def address(self) -> str:
        """Where its client is, as far as proxies are trusted."""
        return self.server.proxies.client_of(self.request)

    # -- Life

    async def serve(self) -> None:
        """Serve it until it ends."""
        writer = asyncio.create_task(self._write())
        self._hello_timer = asyncio.get_running_loop().call_later(
            AUTH_S, self.refuse, protocol.NO_HELLO, "no hello came in time"
        )
        self.server.sessions[self] = None
        self.server.backends[self] = None
        try:
            await self._read()
        finally:
            self.ended = True
            self._hello_timer.cancel()
            self.server.sessions.pop(self, None)
            self.server.backends.pop(self, None)
            self.holds.end()
            for task in self.waits.values():
                task.cancel()
            if self.session:
                self.node.connected.leave(self.session)
            for client_id in self.clients:
                self.node.connected.unregister(client_id)
            self.ws.frames.end()
            self.ws.forget()
            writer.cancel()
            await asyncio.shield(asyncio.gather(writer, *self.waits.values(), return_exceptions=True))

    def refuse(self, code: int, reason: str) -> None:
        """End the connection, and say why."""
        if self.close_code == WSCloseCode.GOING_AWAY:
            self.close_code, self.close_reason = code, reason.encode()[:120]
        self.refused = True
        self.send_queue.end()

    def close(self) -> None:
        """Its token is none any more."""
        self.refuse(protocol.BAD_TOKEN, "the token is not valid any more")

    def leave(self) -> None:
        """The node is leaving: take no more calls, and end once those under way are answered."""
        self.leaving = True
        for number in list(self.waits):
            self.cancel(number)
        self._leave_when_idle()

    def _leave_when_idle(self) -> None:
        if self.leaving and not self.calls and not self.waits:
            self._flush()
            self.send_queue.end()

    async def _read(self) -> None:
        async for message in self.ws:
            if message.type != WSMsgType.BINARY or self.refused:
                continue
            frame = message.data
            if isinstance(frame, RefusedMessage):
                if isinstance(frame.error, BodyTooLarge):
                    self.refuse(WSCloseCode.MESSAGE_TOO_BIG, str(frame.error))
                else:
                    self.refuse(protocol.TOO_MANY, "the bodies under way take all the memory set aside for them")
                continue
            try:
                if len(frame) > UNCOUNTED_BYTES:
                    await asyncio.to_thread(count, frame)
                if self.grant is None:
                    self._hello(protocol.READ_HELLO(frame))
                else:
                    self._take(protocol.READ_MESSAGE(frame), len(frame))
            except (msgspec.MsgspecError, BadFrame, RecursionError) as error:
                self.refuse(protocol.BAD_MESSAGE, f"malformed message: {error}")
            # A client that does not read its answers, or sends more than may be under way, is not listened to.
            while (self.send_queue.full or self.bytes > CALLS_BYTES_MAX) and not self.ws.closed:
                self.room.clear()
                await self.room.wait()

    async def _write(self) -> None:
        try:
            while (frame := await self.send_queue.take()) is not None:
                await self.ws.send_frame(frame, WSMsgType.BINARY)
                self.room.set()
        except (ConnectionError, RuntimeError):
            # The client is gone; the reader hears of it as well.
            return
        finally:
            self.room.set()
        await self.ws.close(code=self.close_code, message=self.close_reason)

    # -- Hello

    def _hello(self, hello: Hello) -> None:
        if hello.protocol != protocol.PROTOCOL:
            self.refuse(protocol.BAD_MESSAGE, f"protocol {protocol.PROTOCOL} is served, and no other")
            return
        if not 0 < len(hello.session) <= protocol.SESSION_CHARS_MAX:
            self.refuse(protocol.BAD_SESSION, f"session must have 1 to {protocol.SESSION_CHARS_MAX} characters")
            return
        access = self.server.access
        grant = self.shown if hello.token is None else access.find(hello.token)
        if access.is_open:
            grant = EVERYTHING
        if grant is None:
            self.server.audit.unknown(self.request, DOOR)
            self.refuse(protocol.BAD_TOKEN, "the token is not known")
            return
        assert self._hello_timer is not None
        self._hello_timer.cancel()
        self.grant = grant
        # A session is its token's: nobody else can be answered what this client was.
        self.session = f"{grant.owner}/{hello.session}"
        self.node.connected.join(self.session)
        self.ws.frames.bytes_max = self.server.bodies.body_bytes_max
        self.send_queue.put(
            packed(
                protocol.Welcome(
                    protocol.PROTOCOL,
                    f"quorumq {VERSION}",
                    self.node.id,
                    self._members(),
                    "client" if self.says_time else "server",
                    self.server.bodies.body_bytes_max,
                    protocol.InFlightWindow(CALLS_MAX, CALLS_BYTES_MAX),
                    self.node.machine.level,
                )
            )
        )

    def _members(self) -> list[str]:
        """Return where the members answer, as they told this node; one that has not yet at this port, unless several share its host."""
        scheme = "http" if self.server.certificate is None else "https"
        door = "bullmq" if self.port == self.server.config.bullmq_port else "http"
        members = [(member.address.rpartition(":")[0], member) for member in self.node.status().members]
        hosts = Counter(host for host, _ in members)
        found = []
        for host, member in members:
            port = self.port if member.self else member.doors.get(door) or (self.port if hosts[host] == 1 else 0)
            if host and port:
                found.append(f"{scheme}://{host}:{port}")
        return found

    # -- Calls

    def _take(self, message: CallBatch, size: int) -> None:
        self.acknowledged = max(self.acknowledged, message.acknowledged)
        calls = message.calls
        if self.calls + len(calls) > CALLS_MAX:
            self.refuse(protocol.TOO_MANY, f"more than {CALLS_MAX} calls are unanswered")
            return
        each = size // len(calls) if calls else 0
        for sent in calls:
            try:
                self._begin(sent, each)
            except Exception as error:
                self._failed(sent.number, sent.name, error)

    def _begin(self, sent: CallRequest, size: int) -> None:
        """Begin a call. Raises whatever it is refused for."""
        row, grant = ROWS.get(sent.name), self.grant
        assert grant is not None
        if row is None:
            self.answer(sent.number, codes.UNKNOWN, packed(f"unknown call: {sent.name[:100]}"))
            return
        if self.leaving or self.server.stopping:
            self.answer(sent.number, codes.AGAIN, packed("the node is leaving"))
            return
        if not self.server.node_started or self.server.full:
            self.answer(sent.number, codes.AGAIN, packed(self.server.readiness()[1] or "too many requests under way"))
            return
        limit = self.server.request_limit
        if limit is not None and limit.admit(self.server.proxies.client_of(self.request), time.monotonic()):
            self.answer(sent.number, codes.AGAIN, packed("rate limit exceeded"))
            return
        if not grant.unlimited and not any(grant.may(right) for right in row.rights):
            raise Forbidden(f"Forbidden: the token does not have the right {row.right}")
        queue = "" if row.name in QUEUELESS else self.queue(sent.queue, grant)
        asked = Asked(self, sent.number, sent.queue, queue, grant, sent.now if self.says_time else None)
        try:
            args = DECODERS[row.name](sent.args)
        except msgspec.MsgspecError as error:
            self.answer(sent.number, codes.REFUSED, packed(f"{row.name}: {error}"))
            return
        match row:
            case Write():
                self._begin_write(row, asked, row.decode(asked, args), size)
            case Read():
                self._count(size)
                self._reads.append(PendingRead(sent.number, row.decode(asked, args), row.viewing(self.prefix), size))
                if self._reader is None:
                    self._reader = asyncio.create_task(self._look())
            case Own():
                if len(self.waits) >= WAITS_MAX:
                    self.answer(sent.number, codes.REFUSED, packed(f"more than {WAITS_MAX} calls wait"))
                    return
                self.waits[sent.number] = task = asyncio.create_task(self._run(row, asked, args))
                if row.name in SEEN:
                    self.writes[sent.number] = task

    def queue(self, qualified: str, grant: Grant) -> str:
        """Return what a queue is called in the state. Raises Invalid, Forbidden."""
        known = self._queues.get(qualified)
        if known is not None:
            return known
        if not grant.every_queue and not grant.covers(names.named_for_token(qualified, self.prefix)):
            raise Forbidden("Forbidden: the token is not for this queue")
        found = names.named_in_state(qualified, self.prefix)
        if len(self._queues) >= QUEUES_KNOWN_MAX:
            self._queues.clear()
        self._queues[qualified] = found
        return found

    def _count(self, size: int) -> None:
        self.calls += 1
        self.bytes += size
        self.server.begun()

    def _uncount(self, size: int) -> None:
        self.calls -= 1
        self.bytes -= size
        self.server.done()
        self.room.set()
        if self.leaving:
            self._leave_when_idle()

    # -- Writes

    def _begin_write(self, row: Write, asked: Asked, operation: Any, size: int) -> None:
        view = row.viewing(self.prefix)
        number = asked.number
        answered = min(self.acknowledged, number - 1)
        keyed = Keyed(self.session, number, answered, asked.said_ms) if number > 0 else None
        future = self.node.begin(operation, lambda reply: packed(view(reply)), keyed)
        self._count(size)
        self.writes[asked.number] = future
        future.add_done_callback(partial(self._written, asked, row.name, size))

    def _written(self, asked: Asked, name: str, size: int, future: asyncio.Future[bytes]) -> None:
        number = asked.number
        self.writes.pop(number, None)
        if name in TAKES:
            self.holds.asked(asked.queue)
        error = None if future.cancelled() else future.exception()
        if future.cancelled():
            self.answer(number, codes.AGAIN, packed("the node is stopping"))
        elif error is not None:
            self._failed(number, name, error)
        else:
            self.answer(number, codes.DONE, future.result())
        self._uncount(size)

    # -- Reads

    async def _look(self) -> None:
        """Answer the reads that have come, and those that come meanwhile."""
        try:
            while self._reads:
                reads, self._reads = self._reads, []
                before = list(self.writes.values())
                try:
                    # What was written before is seen, whether it got through or not.
                    if before:
                        await asyncio.wait(before)
                    await self.node.refresh()
                except Exception as error:
                    for reading in reads:
                        self._failed(reading.number, type(reading.query).__name__, error)
                        self._uncount(reading.size)
                    continue
                for reading in reads:
                    try:
                        answer = reading.query.answer(self.node.machine.state)
                        self.answer(reading.number, codes.DONE, packed(reading.view(answer)))
                    except Exception as error:
                        self._failed(reading.number, type(reading.query).__name__, error)
                    self._uncount(reading.size)
        finally:
            self._reader = None

    # -- What has a handler of its own

    async def _run(self, row: Row, asked: Asked, args: Any) -> None:
        try:
            self.answer(asked.number, codes.DONE, packed(await row.decode(asked, args)))
        except asyncio.CancelledError:
            if not self.ended:
                self.answer(asked.number, codes.DONE, NULL)
        except Exception as error:
            self._failed(asked.number, row.name, error)
        finally:
            self.waits.pop(asked.number, None)
            self.writes.pop(asked.number, None)
            if self.leaving:
                self._leave_when_idle()

    def cancel(self, number: int) -> None:
        """Have what waits under a number wait no longer."""
        task = self.waits.get(number)
        if task is not None:
            task.cancel()

    # -- Answers

    def answer(self, number: int, code: int, result: bytes) -> None:
        """Answer a call, or tell more of one that goes on. result: in MessagePack."""
        self._answers.append(answered(number, code, result))
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        answers, self._answers = self._answers, []
        begin = size = 0
        for at, one in enumerate(answers):
            size += len(one)
            if size > MESSAGE_BYTES:
                self.send_queue.put(protocol.together(answers[begin : at + 1]))
                begin, size = at + 1, 0
        if begin < len(answers):
            self.send_queue.put(protocol.together(answers[begin:]))

    def _failed(self, number: int, name: str, error: BaseException) -> None:
        """Answer a call that was refused, or not done."""
        assert isinstance(error, Exception)
        code, text = coded(error)
        if isinstance(error, Forbidden):
            with contextlib.suppress(AttributeError):
                assert self.grant is not None
                self.server.audit.subscription_refused(self.request, self.grant, f"{DOOR} {name}")
        elif code == codes.REFUSED and not isinstance(error, (Refusal, ClusterError)) and text == codes.UNEXPECTED:
            # Where it happened and what kind it is, but not its message, which may quote job data.
            where = "".join(traceback.format_tb(error.__traceback__))
            log.error("%s %s failed: %s\n%s", DOOR, name, type(error).__name__, where)
        self.answer(number, code, packed(text))

"""bunqueue's own protocol: commands as MessagePack over TCP, or over TLS from the first byte.

A connection is let in at the same door as HTTP's, and its frames count among the bodies under way. Replies overtake each other. A
client that does not read what it is sent is listened to no more, and ended when much is unsent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Coroutine, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import msgspec
from msgspec import Raw

from quorumq.api.auth import EVERYTHING, Forbidden
from quorumq.api.dialects.bunqueue.values import check_queue
from quorumq.api.door import LINGER_S, TURNED_AWAY, Turned
from quorumq.api.errors import Invalid
from quorumq.api.handshake import Handshake
from quorumq.api.host import Host
from quorumq.api.limits import LARGE_BYTES, Busy
from quorumq.api.path import trouble
from quorumq.api.scopes import needs
from quorumq.api.sockets import BACKLOG, KEEP_ALIVE_S, cannot_listen, listen
from quorumq.api.values import as_text, members, value_of
from quorumq.api.weight import weigh
from quorumq.cluster.addresses import join_address
from quorumq.cluster.errors import ClusterError
from quorumq.node.machine.operations.runs import ReleaseJobs

from .connection import OK, UNSENT_BYTES_MAX, CommandConnection, Task
from .connection import failed as refusal
from .framing import FRAME_BYTES_MAX, STRANGER_BYTES_MAX, Frame, FrameReader, FrameTooLarge, RefusedFrame, framed
from .messagepack import END_BYTES, BadFrame, encoded, number_of
from .polls import KNOWN_MAX, Poll, Polls
from .requests import NOTHING, Known, Large, UndeliveredJobs, read, waits
from .subscriptions import Subscriptions
from .wire import Wire

if TYPE_CHECKING:
    from aiohttp import web

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
TOO_LARGE = f"The reply would be larger than {FRAME_BYTES_MAX >> 20} MB: ask for fewer jobs"
BUSY = "The bodies under way take all the memory set aside for them"


class TcpPeer:
    """The other end of a connection, as the audit and the request limit see it: an address, and no headers."""

    def __init__(self, remote: str) -> None:
        self.remote = remote
        self.headers: Mapping[str, str] = NO_HEADERS


class TcpConnection(CommandConnection, asyncio.Protocol):
    """One client's connection."""

    own = frozenset({"SubscribeEvents", "UnsubscribeEvents"})
    binds_workers = True

    def __init__(self, listener: TcpListener) -> None:
        host = listener.host
        self.wire = Wire(host.door)
        sender = cast("web.BaseRequest", TcpPeer("unknown"))
        super().__init__(host, sender, self.wire, EVERYTHING if host.access.is_open else None, door="TCP")
        self.listener = listener
        self.frames = FrameReader(
            host.bodies,
            STRANGER_BYTES_MAX if self.grant is None else FRAME_BYTES_MAX,
            self.take,
            self.too_slow,
        )
        self.transport: asyncio.Transport | None = None
        # Frames that came with others, and wait until there is room for what they ask.
        self.waiting: deque[Frame] = deque()
        self.reading = True
        # When it is looked again whether a client that is behind reads.
        self.late: asyncio.TimerHandle | None = None
        # Polls that found nothing, by all that they say, and how many are under way.
        self.known_polls: dict[bytes, Known] = {}
        self.polling = 0
        # The only queue of whose events it is told.
        self.events_of = ""
        # What the door asks of a connection.
        self.client = ""
        self.turned_away: Turned | None = None
        self.idle_since = 0.0

    # -- At the door

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way, nothing is held, and nobody waits for events."""
        return not (
            self.tasks or self.held.fences or self.workers or self.events_of or self.waiting or self.frames.in_part
        )

    @property
    def idle_until(self) -> float:
        """When it would be closed for being idle, if it were HTTP's: the earliest goes first."""
        return self.idle_since + KEEP_ALIVE_S

    def drop(self) -> None:
        """End it at once; what was written still goes out, as far as the client reads it."""
        transport = self.transport
        if transport is not None:
            transport.close()
            if transport.get_write_buffer_size():
                asyncio.get_running_loop().call_later(LINGER_S, transport.abort)

    def too_late(self) -> None:
        """It is never asked to: a connection without a token has its own time."""
        self.drop()

    def too_slow(self) -> None:
        """A frame came more slowly than it may."""
        self.drop()

    # -- The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = self.wire.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(UNSENT_BYTES_MAX)
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            cast(TcpPeer, self.sender).remote = peer[0]
        self.idle_since = asyncio.get_running_loop().time()
        self.listener.connections_open.add(self)
        self.turned_away = self.host.door.enter(self, self.transport)
        self.begin()
        if self.turned_away is not None:
            self.wire.put(refusal(TURNED_AWAY[self.turned_away], "busy"))
            self.drop()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.transport = self.wire.transport = None
        self.listener.connections_open.discard(self)
        self.host.door.leave(self)
        self.frames.end()
        self.stop_clock()
        self.unsubscribe()
        while self.waiting:
            self.host.bodies.release(self.waiting.popleft().counted)
        self.ended()
        # A client of a node that leaves is still there: it comes back at another one, with its locks.
        stays = self.host.leaving or self.host.stopping
        if self.tasks or (not stays and (self.held.fences or self.workers)):
            self.host.meanwhile(self.give_back(stays=stays))

    def data_received(self, data: bytes) -> None:
        try:
            self.frames.feed(data)
        except FrameTooLarge as error:
            self.host.door.note("frame")
            self.wire.put(refusal(str(error)))
            self.frames.end()
            self.drop()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self.wire.paused = True
        self.listen_or_not()
        self.see_pace()

    def resume_writing(self) -> None:
        self.wire.paused = False
        self.stop_clock()
        self.go_on()

    def see_pace(self, before: int | None = None) -> None:
        """Hold a client that is behind to the least rate of reading. before: what it had read when that was looked at last."""
        pace, transport = self.host.pace, self.transport
        if not pace.least or transport is None:
            return
        now = self.wire.read
        if before is not None and now - before < pace.least:
            pace.ended("reply")
            transport.abort()
            return
        self.late = asyncio.get_running_loop().call_later(pace.window_s, self.see_pace, now)

    def stop_clock(self) -> None:
        if self.late is not None:
            self.late.cancel()
            self.late = None

    def listen_or_not(self) -> None:
        """Read what comes, unless too much is under way already."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        wanted = not self.waiting and not self.is_busy
        if wanted != self.reading:
            self.reading = wanted
            (transport.resume_reading if wanted else transport.pause_reading)()

    def go_on(self) -> None:
        """Take up what has waited for room, as far as there is some."""
        while self.waiting and not self.is_busy:
            self.look(self.waiting.popleft())
        if not self.reading or self.waiting:
            self.listen_or_not()
        if not (self.tasks or self.polling):
            self.idle_since = asyncio.get_running_loop().time()
            if self.wire.ending or self.host.leaving:
                self.leave_quietly()

    def close(self) -> None:
        """Come to an end, when what is under way is answered."""
        self.wire.ending = True
        self.leave_quietly()

    def leave_quietly(self) -> None:
        """End the connection at a moment when nothing is under way, if this is one."""
        if not (self.tasks or self.polling or self.waiting):
            self.drop()

    # -- Commands

    def admitted(self) -> None:
        self.frames.bytes_max = FRAME_BYTES_MAX
        # What another token was allowed this one may not be.
        self.known_polls.clear()
        self.unsubscribe()

    def take(self, frame: Frame | RefusedFrame) -> None:
        """A frame is there; it is looked at when there is room for what it asks."""
        if isinstance(frame, RefusedFrame):
            self.answer(refusal(BUSY, "busy"), frame.number)
        elif self.waiting or self.is_busy:
            self.waiting.append(frame)
            self.listen_or_not()
        else:
            self.look(frame)

    def look(self, frame: Frame) -> None:
        """Begin what a frame asks for."""
        self.listener.commands += 1
        if len(frame.body) > LARGE_BYTES:
            large = Large(frame)
            task = self.start(self.look_slowly(large), len(frame.body))
            # Also when it is cancelled before it has begun.
            task.add_done_callback(lambda _: self.host.bodies.let_go(large))
            return
        try:
            body, number = read(frame.body)
            known = self.known_polls.get(body)
            if known is not None:
                self.poll(known, body, number)
            else:
                self.command(members(body), body, number, len(frame.body))
        except (BadFrame, Invalid) as error:
            self.malformed(frame.body, error)
        if frame.counted:
            self.host.bodies.release(frame.counted)

    async def look_slowly(self, large: Large) -> None:
        """Decode a large frame in its turn and in a thread, and do what it asks for."""
        bodies, frame = self.host.bodies, large.body
        try:
            await bodies.await_turn(large, self.host.node.timeout_s)
            body, number = await asyncio.to_thread(read, frame)
            await asyncio.to_thread(weigh, body)
            fields = await asyncio.to_thread(members, body)
            bodies.end_turn(large)
            task = self.command(fields, body, number, 0)
            if task is not None:
                # Its bytes are there until it is done.
                await asyncio.wait([task])
        except (BadFrame, Invalid) as error:
            self.malformed(frame, error)
        except Busy:
            self.answer(refusal(BUSY, "busy"), number_of(bytes(frame[:END_BYTES]), bytes(frame[-END_BYTES:])))

    def malformed(self, frame: bytes | bytearray, error: Exception) -> None:
        self.answer(refusal(str(error)), number_of(bytes(frame[:END_BYTES]), bytes(frame[-END_BYTES:])))

    def start(self, doing: Coroutine[Any, Any, None], size: int) -> Task:
        self.host.begun()
        return super().start(doing, size)

    def done(self, size: int, task: Task) -> None:
        super().done(size, task)
        self.host.done()
        self.go_on()

    # -- Polls

    def note(self, name: str, fields: Mapping[str, Raw], body: bytes, reply: bytes) -> None:
        super().note(name, fields, body, reply)
        if reply in NOTHING and self.grant is not None and self.grant.unlimited and not waits(fields):
            if len(self.known_polls) >= KNOWN_MAX:
                self.known_polls.clear()
            self.known_polls[body] = Known(as_text(value_of(fields["queue"])) or "", reply)

    def poll(self, known: Known, body: bytes, number: Any) -> None:
        """Take up a poll that was right and found nothing before."""
        if self.host.request_limit is not None or self.host.full:
            self.command(members(body), body, number, len(body))
            return
        self.polling += 1
        self.host.begun()
        self.listener.polls.ask(Poll(self, known.queue, body, known.reply, number))

    def empty(self, poll: Poll) -> None:
        self.answer(poll.reply, poll.number)
        self.polled()

    def promising(self, poll: Poll) -> None:
        if self.transport is not None:
            self.command(members(poll.body), poll.body, poll.number, len(poll.body))
        self.polled()

    def failed(self, poll: Poll, error: Exception) -> None:
        route = self.streams.commands.route("PULL")
        assert route is not None
        self.answer(trouble(self.streams.commands.dialect, route, error).body, poll.number)
        self.polled()

    def polled(self) -> None:
        self.polling -= 1
        self.host.done()
        self.go_on()

    async def reply(self, name: str, reply: bytes, number: Any) -> None:
        if len(reply) <= LARGE_BYTES:
            self.answer(reply, number)
            return
        async with self.listener.large_replies:
            packed = await asyncio.to_thread(encoded, reply, number)
        if len(packed) > FRAME_BYTES_MAX:
            packed = encoded(refusal(TOO_LARGE, "reply_too_large"), number)
            if name == "PULLB":
                await self.give_up(msgspec.json.decode(reply, type=UndeliveredJobs))
        self.wire.send(packed)

    async def give_up(self, undelivered: UndeliveredJobs) -> None:
        """Return jobs to their queue that the client cannot be told of."""
        fences = [(job.id, self.held.fences.pop(job.id)) for job in undelivered.jobs if job.id in self.held.fences]
        with contextlib.suppress(ClusterError):
            await self.host.node.submit(ReleaseJobs(fences))

    def answer(self, reply: bytes, number: Any) -> None:
        self.wire.send(encoded(reply, number))

    # -- Events

    def tell(self, frames: bytes, count: int) -> None:
        self.wire.offer(frames, count)

    def own_command(self, name: str, fields: Mapping[str, Raw]) -> bytes:
        """Be told the events of one queue, or of none; a second subscription takes the place of the first."""
        if name == "UnsubscribeEvents":
            self.unsubscribe()
            return OK
        refused = self.may_subscribe(name)
        if refused is not None:
            return refused
        queue = check_queue((as_text(value_of(fields["queue"])) if "queue" in fields else None) or "")
        assert self.grant is not None
        try:
            needs(self.grant, queue)
        except Forbidden as error:
            self.host.audit.subscription_refused(self.sender, self.grant, f"{self.door} {name}")
            return refusal(str(error), "forbidden")
        self.unsubscribe()
        self.events_of = queue
        self.listener.subscriptions.add(self, queue, self.streams.feed)
        return OK

    def unsubscribe(self) -> None:
        if self.events_of:
            self.listener.subscriptions.remove(self, self.events_of, self.streams.feed)
            self.events_of = ""


def without_tls() -> bytes:
    """Return the whole answer to a client that came without TLS where there is some."""
    return framed(encoded(refusal("This port speaks TLS", "tls_required")))


class TcpListener:
    """The port of the protocol. With TLS it begins with the first byte."""

    setting = "TCP_PORT"

    def __init__(self, host: Host, address: str, port: int) -> None:
        self.host = host
        self.large_replies = asyncio.Semaphore(1)
        self.polls = Polls(host.node)
        self.subscriptions = Subscriptions()
        # How many there were.
        self.commands = 0
        self.connections_open: set[TcpConnection] = set()
        self._bind = (address, port)
        self._listening: asyncio.Server | None = None
        self._address: tuple[str, int] = ("", 0)

    @property
    def address(self) -> str:
        return join_address(*self._address)

    @property
    def port(self) -> int:
        """The port that is bound; the system's choice when the setting is 0."""
        return self._address[1]

    @property
    def connections(self) -> int:
        return len(self.connections_open)

    @property
    def polls_known(self) -> int:
        return self.polls.asked

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            socket = listen(*self._bind)
            self._address = socket.getsockname()[:2]
            self._listening = await loop.create_server(self._protocol, sock=socket, backlog=BACKLOG)
        except OSError as error:
            raise cannot_listen(error, *self._bind, self.setting) from None

    def _protocol(self) -> asyncio.Protocol:
        certificate = self.host.certificate
        if certificate is None:
            return TcpConnection(self)
        plain = None if self.host.config.tls == "optional" else without_tls
        return Handshake(certificate.context, self.host.door, lambda: TcpConnection(self), plain)

    async def take_no_more(self) -> None:
        if self._listening is not None:
            self._listening.close()

    def leave(self) -> None:
        """End every connection at a moment when nothing of it is under way, so that the client goes elsewhere."""
        for connection in list(self.connections_open):
            connection.leave_quietly()

    async def close(self) -> None:
        await self.take_no_more()
        for connection in list(self.connections_open):
            connection.drop()
        self._listening = None

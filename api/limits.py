"""Bounds on what a client may send: the size of a body, read under its bound, and the number of requests in a window.

A body longer than its bound is never held in memory: reading stops at the bound, the answer is sent, and what is
still on its way is dropped unseen (door.py). Nothing is inflated of a body that was not let in.
"""

from __future__ import annotations

import asyncio
import ipaddress
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Literal, Protocol

from aiohttp import web

from quorumq.node.machine import bounds

MIB = 1 << 20
# The seconds over which a least rate holds.
PACE_S = 10.0
# Pieces of bodies and of what is dropped, each of 256 KB at most, that are taken in before others get their turn.
PIECES_AT_ONCE = 4
# A body that is no longer than this is taken in whatever others take; a connection holds as much anyway.
SMALL_BYTES = 64 << 10
# A body larger than this is looked at in its turn, so many at once, and so many may wait.
LARGE_BYTES = 256 << 10
LARGE_AT_ONCE = 1
LARGE_WAITING_MAX = 256
# How long a turn lasts at most, and the rest between two.
TURN_S = 2.0
REST_S = 0.5
# A body that nobody asked for is read up to here, so that the connection can go on.
SKIPPED_BYTES_MAX = 64 << 10
INFLATED = ("gzip", "deflate")
# What a client may be tempted to send, because others take it. A name of no coding, as in `Content-Encoding: utf-8`, is let pass.
NOT_INFLATED = ("br", "zstd", "compress", "x-compress", "dcb", "dcz")
# As much inflates without being noticed, and is made in one step.
AT_ONCE_BYTES = 64 << 10
STEP_BYTES = 64 << 10
# A file of gzip is one member; that it may be several has its uses, that it may be millions of empty ones has none.
MEMBERS_MAX = 100
# The document's bound on a job's data, on a result and on any other opaque value.
DATA_BYTES_MAX = bounds.DATA_BYTES_MAX


class BodyTooLarge(Exception):
    """A request body is longer than the bound. limit: the bound in bytes. length: as far as it is known."""

    def __init__(self, limit: int, length: int) -> None:
        super().__init__(f"Request body too large (max {describe(limit)})")
        self.limit = limit
        self.length = length


class Busy(Exception):
    """The bodies being received already take all the memory that is set aside for them."""


def describe(count: int) -> str:
    """Write a number of bytes as people write bounds: 16MB, 100KB, 7 bytes."""
    for unit, name in ((MIB, "MB"), (1 << 10, "KB")):
        if count >= unit and count % unit == 0:
            return f"{count // unit}{name}"
    return f"{count} bytes"


class TooSlow(Exception):
    """A body comes more slowly than it may."""


class Unsupported(Exception):
    """A body is compressed in a way that is not read here. encoding: as the client names it."""

    def __init__(self, encoding: str) -> None:
        super().__init__(f"Content-Encoding {encoding} is not supported (send gzip, deflate or none)")


class Pace:
    """The least rate at which a client sends a body and reads a reply, over every PACE_S seconds; 0: any.

    A client that is slower is cut off: what it holds meanwhile is not its own.
    """

    def __init__(self, bytes_per_s: int = 0, window_s: float = PACE_S) -> None:
        self.window_s = window_s
        self.least = bytes_per_s * window_s
        # Told of each who was cut off: "body" or "reply".
        self.ended: Callable[[Literal["body", "reply"]], None] = lambda what: None

    async def drain(self, request: web.BaseRequest) -> None:
        """Wait until the client has read most of what was written. Raises ConnectionError when it is gone or too slow."""
        if request.protocol.writing_paused:
            await self.while_read(request, request.writer.drain())

    async def while_read(self, request: web.BaseRequest, writing: Awaitable[None]) -> None:
        """Await what waits for the client to read. Raises ConnectionError when it is gone or too slow."""
        transport = request.transport
        if not self.least or transport is None:
            await writing
            return None
        task = asyncio.ensure_future(writing)
        try:
            while True:
                before = transport.get_write_buffer_size()
                done, _ = await asyncio.wait([task], timeout=self.window_s)
                if done:
                    return task.result()
                if before - transport.get_write_buffer_size() < self.least:
                    self.ended("reply")
                    transport.abort()
                    raise ConnectionResetError("the client reads too slowly")
        finally:
            task.cancel()


class PaceClock:
    """Holds what is on its way over one connection to the least rate of bodies. too_slow: called when it comes more slowly."""

    def __init__(self, pace: Pace, too_slow: Callable[[], None]) -> None:
        self._pace = pace
        self._too_slow = too_slow
        # When it is too slow, and what has come of it lately.
        self._late: asyncio.TimerHandle | None = None
        self._lately = 0

    def came(self, count: int, *, unfinished: bool) -> None:
        """Note bytes that have come. unfinished: something is on its way still."""
        pace = self._pace
        if not pace.least:
            return
        if not unfinished:
            self.stop()
            return
        self._lately += count
        if self._late is None or self._lately >= pace.least:
            self.stop()
            self._late = asyncio.get_running_loop().call_later(pace.window_s, self._over)

    def stop(self) -> None:
        """Wait for nothing any more."""
        self._lately = 0
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _over(self) -> None:
        self._pace.ended("body")
        self._too_slow()


class Turnstile:
    """Lets a few through in each turn of the loop, in the order they came, so that those who send much leave time for the others."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._queue: deque[Callable[[], object]] = deque()
        self._scheduled = False

    def enter(self, through: Callable[[], object]) -> None:
        """Call `through` when it is its turn, which is never at once."""
        self._queue.append(through)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    async def passing(self) -> None:
        """Return when it is one's turn."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.enter(partial(release, future))
        await future

    def _turn(self) -> None:
        for _ in range(min(self._at_once, len(self._queue))):
            self._queue.popleft()()
        self._scheduled = bool(self._queue)
        if self._scheduled:
            asyncio.get_running_loop().call_soon(self._turn)


def release(future: asyncio.Future[None]) -> None:
    """Let go on who waits, if he still does."""
    if not future.done():
        future.set_result(None)


class BodyHolder(Protocol):
    """A request that may hold some of what requests share. counted: bytes of its body; in_turn: whether it is a large one's turn."""

    counted: int
    in_turn: asyncio.TimerHandle | None


class Bodies:
    """Reads request bodies.

    body_bytes_max: bytes of one body, also of what a compressed one becomes.  pending_bytes_max: bytes of all bodies that did not
    come with their heads, until they are answered; a thousand slow clients in the middle of large bodies must not take the memory of
    the state.  A large body waits for its turn, in which it is inflated, looked at, replicated and applied; so what comes
    between two of them waits for one only.
    """

    def __init__(self, body_bytes_max: int, pending_bytes_max: int = 0, pace: Pace | None = None) -> None:
        self.body_bytes_max = body_bytes_max
        self.pending_bytes_max = pending_bytes_max or max(16 * body_bytes_max, 64 * MIB)
        self.pending_bytes = 0
        self.pace = pace or Pace()
        self.turnstile = Turnstile(PIECES_AT_ONCE)
        self._turns = asyncio.Semaphore(LARGE_AT_ONCE)
        # Large bodies that wait for their turn, and those that have had it.
        self.waiting = 0
        self.turns = 0
        # Bodies that were longer than a short one, whether they were wanted or not.
        self.taken = 0

    async def read(self, request: web.BaseRequest, held: BodyHolder, wait_s: float = 15) -> bytes:
        """Return the whole body, inflated. wait_s: how long a large one may wait for its turn.

        Whoever calls it calls `let_go` afterwards.  Raises BodyTooLarge, Busy, TooSlow, Unsupported, RequestPayloadError.
        """
        content = request.content
        encoding = coding_of(request) if "Content-Encoding" in request.headers else None
        if content.is_eof():
            # The usual case: head and body came together.
            body = content.read_nowait()
            if len(body) > self.body_bytes_max:
                raise BodyTooLarge(self.body_bytes_max, len(body))
        else:
            body = await self._read_slowly(request, held)
        if len(body) > LARGE_BYTES:
            await self.await_turn(held, wait_s)
        if encoding in INFLATED:
            body = await self._inflated(body, encoding, held, wait_s)
        return body

    async def skip(self, request: web.BaseRequest, held: BodyHolder) -> None:
        """Read and forget a body that is not asked for, if it is short; a longer one is left, and ends the connection."""
        if (request.content_length or SKIPPED_BYTES_MAX + 1) <= SKIPPED_BYTES_MAX and not expects(request):
            await self._read_slowly(request, held)
            self.let_go(held)

    def reserve(self, count: int) -> None:
        """Count bytes of a body that has arrived only in part. Raises Busy where there is no room for them, and counts nothing."""
        if self.pending_bytes + count > self.pending_bytes_max:
            raise Busy
        self.pending_bytes += count

    def release(self, count: int) -> None:
        """Count such bytes no more."""
        self.pending_bytes -= count

    async def _read_slowly(self, request: web.BaseRequest, held: BodyHolder) -> bytes:
        declared = request.content_length or 0
        if declared > self.body_bytes_max:
            raise BodyTooLarge(self.body_bytes_max, declared)
        if expects(request) and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        loop = asyncio.get_running_loop()
        pace, lately = self.pace, 0
        body = bytearray()
        try:
            async with asyncio.timeout(pace.window_s if pace.least else None) as limit:
                while True:
                    chunk = await request.content.readany()
                    if not chunk:
                        return bytes(body)
                    self.pending_bytes += len(chunk)
                    held.counted += len(chunk)
                    if held.counted > self.body_bytes_max:
                        raise BodyTooLarge(self.body_bytes_max, max(declared, held.counted))
                    body += chunk
                    lately += len(chunk)
                    if held.counted > SMALL_BYTES:
                        self.taken += held.counted - len(chunk) <= SMALL_BYTES
                        # A short body is let in even where long ones take everything.
                        if self.pending_bytes > self.pending_bytes_max:
                            raise Busy
                        await self.turnstile.passing()
                    if lately >= pace.least > 0:
                        lately = 0
                        limit.reschedule(loop.time() + pace.window_s)
        except TimeoutError:
            pace.ended("body")
            raise TooSlow from None

    async def _inflated(self, body: bytes, encoding: str, held: BodyHolder, wait_s: float) -> bytes:
        """Inflate a body that was let in; a short one at once, whatever takes longer in its turn and in a thread."""
        # One at a time: what becomes longer than can be made at once is begun again in a thread.
        whole = inflated(body, encoding, AT_ONCE_BYTES) if len(body) <= AT_ONCE_BYTES else None
        if whole is None:
            await self.await_turn(held, wait_s)
            whole = await asyncio.to_thread(inflated, body, encoding, self.body_bytes_max)
            if whole is None:
                raise BodyTooLarge(self.body_bytes_max, self.body_bytes_max + 1)
        if len(whole) > self.body_bytes_max:
            raise BodyTooLarge(self.body_bytes_max, len(whole))
        return whole

    async def await_turn(self, held: BodyHolder, wait_s: float) -> None:
        """Wait for the turn of a large body, unless it has come. Raises Busy."""
        if held.in_turn is not None:
            return
        if self._turns.locked() and self.waiting >= LARGE_WAITING_MAX:
            raise Busy
        self.waiting += 1
        try:
            async with asyncio.timeout(wait_s):
                await self._turns.acquire()
        except TimeoutError:
            raise Busy from None
        finally:
            self.waiting -= 1
        self.turns += 1
        # Without a quorum the answer may take long, and what then waits for it takes no time of anybody's.
        held.in_turn = asyncio.get_running_loop().call_later(TURN_S, self.end_turn, held)

    def end_turn(self, held: BodyHolder) -> None:
        """The turn of a large body is over, if it was its turn."""
        if held.in_turn is None:
            return
        loop = asyncio.get_running_loop()
        took_s = TURN_S - max(held.in_turn.when() - loop.time(), 0)
        held.in_turn.cancel()
        held.in_turn = None
        if self.waiting:
            # As long again is left to those who sent little.
            loop.call_later(min(took_s, REST_S), self._turns.release)
        else:
            self._turns.release()

    def let_go(self, held: BodyHolder) -> None:
        """Give back what a request holds: its body has done its work."""
        self.pending_bytes -= held.counted
        held.counted = 0
        self.end_turn(held)


def expects(request: web.BaseRequest) -> bool:
    """Whether a client waits to be told to send its body."""
    return request.headers.get("Expect", "").lower() == "100-continue"


def coding_of(request: web.BaseRequest) -> str:
    """Return how a body is compressed, as its headers say. Raises Unsupported, also when it was done more than once."""
    named = ",".join(request.headers.getall("Content-Encoding")).lower().split(",")
    codings = [coding.strip().replace("x-gzip", "gzip") for coding in named]
    codings = [coding for coding in codings if coding not in ("", "identity")]
    if len(codings) > 1 or any(coding in NOT_INFLATED for coding in codings):
        raise Unsupported(", ".join(codings[:MEMBERS_MAX]))
    return codings[0] if codings else ""


def inflated(body: bytes, encoding: str, most: int) -> bytes | None:
    """Inflate a body in steps; None when it becomes longer than `most` bytes. Raises RequestPayloadError.

    zlib lets others run while it works, so in a thread this holds up nobody.
    """
    if not body:
        return body
    bits = 16 + zlib.MAX_WBITS if encoding == "gzip" else zlib.MAX_WBITS
    if encoding == "deflate" and body[:1] and body[0] & 0x0F != zlib.DEFLATED:
        # What some clients send for it: the same without its head.
        bits = -zlib.MAX_WBITS
    made = bytearray()
    view = memoryview(body)
    at = members = 0
    try:
        while at < len(view):
            members += 1
            if members > MEMBERS_MAX:
                raise web.RequestPayloadError("too many members")
            inflater = zlib.decompressobj(bits)
            while not inflater.eof:
                piece: bytes | memoryview = inflater.unconsumed_tail
                if not piece:
                    piece = view[at : at + STEP_BYTES]
                    at += len(piece)
                made_now = inflater.decompress(piece, STEP_BYTES)
                if not piece and not made_now and not inflater.eof:
                    raise web.RequestPayloadError("it ends early")
                made += made_now
                if len(made) > most:
                    return None
            at -= len(inflater.unused_data)
            if encoding != "gzip":
                break
    except zlib.error:
        raise web.RequestPayloadError("it cannot be inflated") from None
    if at < len(view):
        raise web.RequestPayloadError("something follows its end")
    return bytes(made)


# The window of the request limit moves in steps of this share of it.
STEPS = 64
# Clients counted at once; beyond it the one that has been silent longest is forgotten.
CLIENTS_MAX = 10_000
CLIENT_CHARS_MAX = 64
COUNT_BITS = 32
COUNT_MASK = (1 << COUNT_BITS) - 1


class RequestWindow:
    """What one client sent within the window. steps: number of a step and requests in it, packed, oldest first."""

    __slots__ = ("steps", "total")

    def __init__(self) -> None:
        self.steps: deque[int] = deque()
        self.total = 0

    def forget(self, before: int) -> None:
        """Drop the steps with lower numbers than `before`."""
        steps = self.steps
        while steps and steps[0] >> COUNT_BITS < before:
            self.total -= steps.popleft() & COUNT_MASK


class RequestLimit:
    """At most requests_max requests of a client in any window of window_ms.

    The window slides in steps; a request counts until the step it came in has left the window whole, so the limit is never
    exceeded, and a client waits at most one step longer than it must. A client takes a few kilobytes at most.
    cleanup_ms: how often clients without requests in the window are forgotten.
    """

    def __init__(self, requests_max: int, window_ms: int, cleanup_ms: int) -> None:
        self.requests_max = requests_max
        self.step_s = window_ms / 1000 / STEPS
        self.cleanup_s = cleanup_ms / 1000
        self.clients: dict[str, RequestWindow] = {}
        self._cleanup_at = 0.0

    def admit(self, client: str, now: float) -> float:
        """Count a request; return 0, or the seconds until the client may send the next one, when it was one too many.

        now: seconds of a clock that never goes back.
        """
        step = int(now / self.step_s)
        if now >= self._cleanup_at:
            self._clean_up(step)
            self._cleanup_at = now + self.cleanup_s
        # Taken out and put back, so that the order of the dictionary is that of the last requests.
        sent = self.clients.pop(client, None) or RequestWindow()
        if len(self.clients) >= CLIENTS_MAX:
            del self.clients[next(iter(self.clients))]
        self.clients[client] = sent
        sent.forget(step - STEPS)
        if sent.total >= self.requests_max:
            oldest = sent.steps[0] >> COUNT_BITS
            return max((oldest + 1 + STEPS) * self.step_s - now, self.step_s)
        sent.total += 1
        if sent.steps and sent.steps[-1] >> COUNT_BITS == step:
            sent.steps[-1] += 1
        else:
            sent.steps.append(step << COUNT_BITS | 1)
        return 0.0

    def _clean_up(self, step: int) -> None:
        gone = [client for client, sent in self.clients.items() if sent.steps[-1] >> COUNT_BITS < step - STEPS]
        for client in gone:
            del self.clients[client]


class Proxies:
    """Who is believed when a header says for whom a request is sent."""

    def __init__(self, trusted: Iterable[str]) -> None:
        texts = [text for text in trusted if text != "none"]
        self.everyone = "*" in texts
        self._networks = [ipaddress.ip_network(text, strict=False) for text in texts if text != "*"]

    def trusts(self, address: str) -> bool:
        """Say whether an address is a proxy's."""
        if self.everyone:
            return True
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(parsed, "ipv4_mapped", None)
        return any((mapped or parsed) in network for network in self._networks)

    def client_of(self, request: web.BaseRequest) -> str:
        """Return the address that a request is counted for.

        With every sender believed it is the first of X-Forwarded-For, as documented; with proxies named it is the last
        one that is no proxy's, because what stands before it anyone can write. Then X-Real-IP, then the connection's.
        """
        peer = request.remote or "unknown"
        if not self.trusts(peer):
            return peer
        forwarded = request.headers.get("X-Forwarded-For")
        if forwarded:
            addresses = [address.strip() for address in forwarded[:4096].split(",")]
            if self.everyone:
                return addresses[0][:CLIENT_CHARS_MAX] or peer
            for address in reversed(addresses):
                if not self.trusts(address):
                    return address[:CLIENT_CHARS_MAX]
            return addresses[0][:CLIENT_CHARS_MAX]
        return request.headers.get("X-Real-IP", "").strip()[:CLIENT_CHARS_MAX] or peer

"""A connection that sends commands: who is at the other end, the commands under way, and what goes when it ends.

A transport (`/ws`, TCP) brings frames, and says how a reply is written; everything that a command means is the rows' (commands.py of
the dialect). Each command has a task of its own, so that a long PULL holds up nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec import Raw

from quorumq.api.auth import BEARER, EVERYTHING, Grant
from quorumq.api.dialects.bunqueue.commands import TakenJobs
from quorumq.api.dialects.bunqueue.streams import LiveStreams
from quorumq.api.errors import Invalid
from quorumq.api.host import Host
from quorumq.api.path import trouble
from quorumq.api.values import as_text, value_of
from quorumq.cluster.errors import ClusterError
from quorumq.cluster.version import VERSION
from quorumq.node.machine.operations.job_reads import GetJob
from quorumq.node.machine.operations.workers import UnregisterWorker
from quorumq.node.machine.refusals import Refusal
from quorumq.node.machine.state.job import ACTIVE

if TYPE_CHECKING:
    from aiohttp import web

# How long a client that has to show a token has for it.
AUTH_S = 10
# Commands of one connection under way at once, and their bytes, beyond which it is not listened to until some are done.
UNDER_WAY_MAX = 1_000
UNDER_WAY_BYTES_MAX = 32 << 20
# A client that is further behind than this misses events, and is not listened to.
UNSENT_BYTES_MAX = 1 << 20
# Workers of one connection that go with it.
WORKERS_MAX = 1_000
OK = b'{"ok":true}'
Task = asyncio.Task[None]
ENCODE = msgspec.json.Encoder().encode


class Out(Protocol):
    """Where a connection's frames go: a frame is JSON here, whatever becomes of it."""

    @property
    def full(self) -> bool:
        """Whether the client is too far behind."""

    def put(self, frame: bytes) -> None:
        """Send a frame."""

    def end(self) -> None:
        """Close the connection once everything is sent."""


class CommandConnection:
    """One connection.

    door: how it is called in the audit.  grant: None until it has shown a token.  number: of a command, repeated in its reply, is
    whatever the transport makes of `reqId`.
    """

    # Its own commands, beyond those that are rows.
    own: frozenset[str] = frozenset()
    # Whether a worker goes when the connection ends over which it was registered.
    binds_workers = False

    def __init__(self, host: Host, sender: web.BaseRequest, out: Out, grant: Grant | None, *, door: str) -> None:
        self.host = host
        self.streams = host.service(LiveStreams)
        self.sender = sender
        self.out = out
        self.grant = grant
        self.door = door
        self.held = TakenJobs()
        # Workers that were registered, or heard of, over it, and when that was last.
        self.workers: dict[str, int] = {}
        self.tasks: set[Task] = set()
        self.under_way_bytes = 0
        self._auth_timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        self.out.end()

    # -- Life

    def begin(self) -> None:
        """The connection is there; without a token it has a while to show one."""
        self.host.sessions[self] = None
        if self.grant is None:
            self._auth_timer = asyncio.get_running_loop().call_later(AUTH_S, self.close)
        else:
            self.admitted()

    def admitted(self) -> None:
        """It has shown a token, perhaps another one, or needs none."""

    def ended(self) -> None:
        """The connection is gone; who waits for a job waits for nothing now, and the node takes back what was just given to him."""
        if self._auth_timer is not None:
            self._auth_timer.cancel()
        self.host.sessions.pop(self, None)
        for task in self.tasks:
            task.cancel()

    async def give_back(self, *, stays: bool = False) -> None:
        """Return the jobs that the client has not finished to their queues, as they were, and take its workers off the registry.

        stays: the client is still there, since it was this node that ended the connection: it keeps what it has.
        """
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if stays:
            return
        operation = self.held.release()
        # Without a quorum their locks, or stall detection, bring them back, and workers that are silent are forgotten.
        with contextlib.suppress(ClusterError, Refusal):
            if operation is not None:
                await self.host.node.submit(operation)
        for worker_id, heard_at in self.workers.items():
            with contextlib.suppress(ClusterError, Refusal):
                await self.host.node.submit(UnregisterWorker(worker_id, heard_at))

    @property
    def is_busy(self) -> bool:
        """Whether so much is under way that nothing more is listened to."""
        return len(self.tasks) >= UNDER_WAY_MAX or self.under_way_bytes > UNDER_WAY_BYTES_MAX or self.out.full

    # -- Commands

    def command(self, fields: Mapping[str, Raw], body: bytes, number: Any, size: int) -> Task | None:
        """Answer a command at once, or begin it; return the task that carries it out. size: bytes that it came in."""
        try:
            return self._command(fields, body, number, size)
        except Invalid as error:
            self.answer(failed(str(error)), number)
            return None

    def _command(self, fields: Mapping[str, Raw], body: bytes, number: Any, size: int) -> Task | None:
        name = as_text(value_of(fields["cmd"])) if "cmd" in fields else None
        limit = self.host.request_limit
        if not name:
            self.answer(failed("Invalid command"), number)
        elif limit is not None and limit.admit(self.host.proxies.client_of(self.sender), time.monotonic()):
            self.answer(failed("Rate limit exceeded", "rate_limited"), number)
        elif name == "Auth":
            self.answer(self.authenticate(fields), number)
        elif self.grant is None:
            self.answer(failed("Not authenticated"), number)
        elif name == "Hello":
            self.answer(hello(self.host.config.bunqueue_version or VERSION), number)
        elif name in self.own:
            self.answer(self.own_command(name, fields), number)
        elif self.streams.commands.route(name) is None:
            self.answer(failed(f"Unknown command: {name[:100]}"), number)
        elif not self.host.node_started:
            self.answer(failed(f"Not ready: {self.host.readiness()[1]}", "unavailable"), number)
        elif len(self.tasks) >= UNDER_WAY_MAX or self.host.full:
            self.answer(failed("Too many commands under way", "busy"), number)
        else:
            return self.start(self.run(name, fields, body, number, self.grant), size)
        return None

    def start(self, doing: Coroutine[Any, Any, None], size: int) -> Task:
        """Have a task do something for the client."""
        task = asyncio.create_task(doing)
        self.tasks.add(task)
        self.under_way_bytes += size
        task.add_done_callback(partial(self.done, size))
        return task

    def done(self, size: int, task: Task) -> None:
        """A command is over. size: bytes that it came in."""
        self.tasks.discard(task)
        self.under_way_bytes -= size

    async def run(self, name: str, fields: Mapping[str, Raw], body: bytes, number: Any, grant: Grant) -> None:
        commands = self.streams.commands
        try:
            reply = await commands.run(self.host, self.sender, self.held, name, fields, body, grant)
        except Exception as error:
            route = commands.route(name)
            assert route is not None
            reply = trouble(commands.dialect, route, error).body
        else:
            self.note(name, fields, body, reply)
        await self.reply(name, reply, number)
        self.held.tidy(self.still_held)

    def note(self, name: str, fields: Mapping[str, Raw], body: bytes, reply: bytes) -> None:
        """A command has been carried out: remember what is to go with the connection."""
        if not self.binds_workers:
            return
        if name == "RegisterWorker":
            self.note_worker(msgspec.json.decode(reply)["data"]["workerId"])
        elif name == "Heartbeat":
            self.note_worker(as_text(value_of(fields["id"])) or "")
        elif name == "UnregisterWorker":
            self.workers.pop(as_text(value_of(fields["workerId"])) or "", None)

    def note_worker(self, worker_id: str) -> None:
        worker = self.host.node.machine.state.workers.by_id.get(worker_id)
        if worker is not None:
            self.workers[worker_id] = worker.last_seen
            if len(self.workers) > WORKERS_MAX:
                del self.workers[next(iter(self.workers))]

    def still_held(self, job_id: str, fence: int) -> bool:
        try:
            job = GetJob(job_id).answer(self.host.node.machine.state)
        except Refusal:
            return False
        return job.state == ACTIVE and job.fence == fence

    async def reply(self, name: str, reply: bytes, number: Any) -> None:
        """Send the reply of a row."""
        self.answer(reply, number)

    def answer(self, reply: bytes, number: Any) -> None:
        """Send a reply; it repeats the number of its command, if that had one."""
        raise NotImplementedError

    def own_command(self, name: str, fields: Mapping[str, Raw]) -> bytes:
        """Carry out one of the transport's own commands."""
        raise NotImplementedError

    def authenticate(self, fields: Mapping[str, Raw]) -> bytes:
        token = as_text(value_of(fields["token"])) if "token" in fields else None
        access = self.host.access
        grant = EVERYTHING if access.is_open else access.find((token or "").removeprefix(BEARER))
        if grant is None:
            self.host.audit.unknown(self.sender, f"{self.door} Auth")
            return failed("Invalid token")
        self.grant = grant
        if self._auth_timer is not None:
            self._auth_timer.cancel()
        self.admitted()
        return OK

    def may_subscribe(self, name: str) -> bytes | None:
        """Return the error for a token that may not read events."""
        if self.grant is None or self.grant.may("read"):
            return None
        self.host.audit.subscription_refused(self.sender, self.grant, f"{self.door} {name}")
        return failed("Forbidden: the token does not have the right read")


def failed(text: str, code: str | None = None) -> bytes:
    return ENCODE({"ok": False, "error": text} | ({"code": code} if code else {}))


def hello(version: str) -> bytes:
    return ENCODE(
        {
            "ok": True,
            "protocolVersion": 3,
            "capabilities": ["pipelining", "separate-job-name"],
            "server": "quorumq",
            "version": version,
        }
    )

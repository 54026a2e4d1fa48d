"""Commands: what a client sends over a WebSocket as one JSON object, `{"cmd": …}`, run through the row of the HTTP table that names it.

A command has the operation, the rules and the reply of its row: the object is the row's body, and the fields that HTTP
has in its path and query are taken out of it. Job data stays the bytes that were sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import msgspec
from msgspec import Raw

from quorumq.api.auth import Grant
from quorumq.api.errors import Invalid
from quorumq.api.host import Host
from quorumq.api.limits import LARGE_BYTES
from quorumq.api.path import trouble
from quorumq.api.reply import Reply
from quorumq.api.request import Call, Command, Handler, Route
from quorumq.api.router import Dialect
from quorumq.api.rows import success
from quorumq.api.scopes import its_jobs, permit, unmask
from quorumq.api.values import as_text, value_of
from quorumq.node.machine.operations.runs import AckedBatch, AckJobs, Pulled, PullJobs, ReleaseJobs
from quorumq.node.machine.refusals import JobNotActive, JobNotFound, LockLost, Refusal
from quorumq.node.node import IdempotencyKey

from . import finishing, pull_groups, pulling, replies
from .values import check_queue, read

if TYPE_CHECKING:
    from aiohttp import web

# What `Metrics` means when it names a queue or a type.
QUEUE_METRICS = "Metrics of a queue"
ENCODE = msgspec.json.Encoder().encode
# What a row's path calls a thing, and the field that names it unless a command says otherwise.
FIELDS = {
    "group": "groupId",
    "unique_key": "deduplicationId",
    "custom_id": "customId",
    "worker_id": "workerId",
    "webhook_id": "webhookId",
}
# Held jobs are looked through again when there are this many of them, and twice as many as after the last time.
HELD_CHECKED = 1_000


class CommandCall(Call):
    """A command on its way through a row. query: the fields that HTTP has in its query."""

    __slots__ = ()
    over_http = False

    def __init__(
        self,
        host: Host,
        request: web.BaseRequest,
        route: Route,
        path: Mapping[str, str],
        query: dict[str, str],
        body: bytes,
        grant: Grant,
    ) -> None:
        super().__init__(host, request, route, path, "&".join(query), body, grant)
        self._query = query

    @property
    def once(self) -> IdempotencyKey | None:
        """None: the headers are those of the handshake."""
        return None


# Commands after which a job is not with its worker any more.
ENDING = frozenset({"ACK", "FAIL", "MoveToDelayed", "MoveToWait", "MoveToWaitingChildren", "Discard", "Cancel"})


class TakenJobs:
    """The jobs that a connection has taken and not finished: they go back when it closes."""

    def __init__(self) -> None:
        self.fences: dict[str, int] = {}
        self._check_at = HELD_CHECKED

    def take(self, reply: Pulled) -> None:
        """Note jobs, at the moment when they are taken."""
        for job in reply.jobs:
            self.fences[job.id] = job.fence

    def drop(self, job_ids: Iterable[str]) -> None:
        for job_id in job_ids:
            self.fences.pop(job_id, None)

    def release(self) -> ReleaseJobs | None:
        """Return what gives all of them back; a job that was finished or given to another worker is left alone by it."""
        return ReleaseJobs(list(self.fences.items())) if self.fences else None

    def tidy(self, still_held: Callable[[str, int], bool]) -> None:
        """Forget what was finished in other ways, now and then."""
        if len(self.fences) >= self._check_at:
            self.fences = {job_id: fence for job_id, fence in self.fences.items() if still_held(job_id, fence)}
            self._check_at = max(HELD_CHECKED, 2 * len(self.fences))


class Commands:
    """The commands of a dialect, each with its row."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.rows = {command.name: (command, route) for route in dialect.routes for command in route.commands}

    def route(self, name: str) -> Route | None:
        """Return the row that a command means, or None for an unknown one."""
        found = self.rows.get(name)
        return None if found is None else found[1]

    async def run(
        self,
        host: Host,
        request: web.BaseRequest,
        held: TakenJobs,
        name: str,
        fields: Mapping[str, Raw],
        body: bytes,
        grant: Grant,
    ) -> bytes:
        """Carry out a command and return its reply. Raises what the row raises."""
        if name in ("PULL", "PULLB"):
            return await self._take(host, request, held, name, fields, body, grant)
        if name == "ACKB":
            return await self._acknowledge(host, request, held, body, grant)
        if name == "Metrics" and ("queue" in fields or "type" in fields):
            name = QUEUE_METRICS
        command, route = self.rows[name]
        path = path_of(route, command, fields)
        query = {ask.name: text for ask in route.asks if (text := listed_of(fields, ask.name)) is not None}
        call = CommandCall(host, request, route, path, query, body, grant)
        try:
            reply = await permitted(host, self.dialect, call, route.handler)
        finally:
            host.bodies.let_go(call)
        if name in ENDING:
            held.drop([path["id"]])
        return command.reply(reply.body) if command.reply is not None and reply.status == 200 else reply.body

    async def _take(
        self,
        host: Host,
        request: web.BaseRequest,
        held: TakenJobs,
        name: str,
        fields: Mapping[str, Raw],
        body: bytes,
        grant: Grant,
    ) -> bytes:
        """Take jobs for a connection, which holds them unless the client said `detach`."""
        queue = check_queue(text_of(fields, "queue") or "")
        if name == "PULL":
            body = with_count(fields)
        call = CommandCall(host, request, self.rows[name][1], {"queue": queue}, {}, body, grant)
        bound = "detach" not in fields or value_of(fields["detach"]) is not True
        show = one_with_token if name == "PULL" else pulling.pulled_many

        def view(reply: Pulled) -> bytes | Refusal:
            if bound:
                held.take(reply)
            return show(reply)

        async def handler(call: Call) -> Reply:
            operation, wait_ms, group = pulling.asked_for_several(call)
            if group is not None:
                await pull_groups.keep_to(call, pull_groups.usual_of(operation.queue, group))
            with host.latency.timing(operation, wait_ms):
                return success(await pull(host, operation, view, wait_ms))

        return (await permitted(host, self.dialect, call, handler)).body

    async def _acknowledge(
        self, host: Host, request: web.BaseRequest, held: TakenJobs, body: bytes, grant: Grant
    ) -> bytes:
        """Complete jobs. Workers repeat this when no answer came: what a token says too late is told as ignored, and is no error."""
        route = self.rows["ACKB"][1]
        call = CommandCall(host, request, route, {}, {}, body, grant)

        async def handler(call: Call) -> Reply:
            decode = finishing.ack_batch
            operation = decode(call) if len(call.body) <= LARGE_BYTES else await call.decoded(decode)
            if not call.grant.every_queue:
                operation = cast(AckJobs, await its_jobs(call, operation))
            return success(await call.write(operation, partial(acknowledged, operation)))

        try:
            reply = await permitted(host, self.dialect, call, handler)
        finally:
            host.bodies.let_go(call)
        held.drop(read(finishing.ACK_BATCH, body).ids or ())
        return reply.body


def acknowledged(operation: AckJobs, reply: AckedBatch) -> bytes | Refusal:
    """Say which jobs of a batch were late, by their places; one that was refused for another reason is the answer."""
    done, late, refused = iter(reply.job_ids), [], iter(reply.refused)
    following = next(done, None)
    for place, job_id in enumerate(operation.job_ids):
        if job_id == following:
            following = next(done, None)
            continue
        refusal = next(refused)
        token = operation.tokens[place] if operation.tokens else None
        if token is None or not isinstance(refusal, JobNotFound | JobNotActive | LockLost):
            return refusal
        late.append(place)
    if not late:
        return replies.OK
    return ENCODE({"ok": True, "data": {"ignoredIndices": late, "ignoredIds": [operation.job_ids[at] for at in late]}})


async def permitted(host: Host, dialect: Dialect, call: Call, handler: Handler) -> Reply:
    """Run a row's handler if the sender may, as a request over HTTP would; the audit hears of both. Raises what it raises."""
    try:
        if not call.grant.unlimited:
            await permit(call)
        reply = await handler(call)
    except Exception as error:
        failed = trouble(dialect, call.route, error)
        host.audit.refused(call, error, failed.status)
        if not call.masked:
            raise
        reply = failed
    else:
        host.audit.done(call, reply.status)
    return reply.replaced(unmask(call, reply.body)) if call.masked else reply


async def pull(
    host: Host, operation: PullJobs, view: Callable[[Pulled], bytes | Refusal], wait_ms: int
) -> bytes | Refusal:
    return await host.node.pull(operation, view, wait_ms=wait_ms)


def with_count(fields: Mapping[str, Raw]) -> bytes:
    """Make a pull of one job a pull of several."""
    kept = {name: fields[name] for name in ("timeout", "owner", "lockTtl", "group") if name in fields}
    return ENCODE({**kept, "count": 1})


def one_with_token(reply: Pulled) -> bytes:
    text = pulling.pulled_one(reply)
    if reply.tokens is None:
        return text
    return b'%b,"token":%b}' % (text[:-1], ENCODE(reply.tokens[0] if reply.tokens else None))


def path_of(route: Route, command: Command, fields: Mapping[str, Raw]) -> dict[str, str]:
    """Return what HTTP has in its path. Raises Invalid."""
    path = {}
    for segment in route.path.split("/"):
        if segment.startswith("{"):
            parameter = segment[1:-1]
            field = command.fields.get(parameter) or FIELDS.get(parameter, parameter)
            text = text_of(fields, field)
            # A queue's name has rules of its own, with their texts.
            if not text and parameter != "queue":
                raise Invalid(f"{field} is required")
            path[parameter] = text or ""
    return path


def listed_of(fields: Mapping[str, Raw], name: str) -> str | None:
    """Return what HTTP has in its query, where a list has commas between its items, and an object is JSON."""
    value: Any = value_of(fields[name]) if name in fields else None
    if isinstance(value, dict):
        return bytes(fields[name]).decode()
    return ",".join(as_text(one) or "" for one in value) if isinstance(value, list) else as_text(value)


def text_of(fields: Mapping[str, Raw], name: str) -> str | None:
    raw = fields.get(name)
    return None if raw is None else as_text(value_of(raw))

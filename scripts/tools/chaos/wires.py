"""The same handful of requests in three dialects: bunqueue over HTTP, bunqueue over a WebSocket, BullMQ over HTTP.

Each says what came of a request: done, refused (an answer, too), certainly not done, or unknown. Jobs carry our own name for them in
their data, so that a job of one dialect is known again in another.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import uuid
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import aiohttp

from scripts.tools.chaos.history import DONE, FAILED, REFUSED, UNKNOWN
from tests.support.local_cluster import LocalNode

REQUEST_S = 8.0
CONNECT_S = 1.5
ATTEMPTS = 1000
BACKOFF_MS = 20
TEXT = "x" * 150
# What says that nothing was done, whatever it was.
NOT_DONE = frozenset({"not_applied", "busy"})
# What a repeat under an idempotency key gets in place of an answer that was not kept.
DONE_BEFORE = "was done before"


class Answer(NamedTuple):
    """outcome: of history.py.  value: what the request was for.  said: what there was in its place."""

    outcome: str
    value: Any = None
    said: str = ""


@dataclass(frozen=True)
class Taken:
    """A job in a worker's hands. id: as the dialect that gave it calls it.  fence: None where the dialect has none."""

    key: str
    id: str
    token: str
    fence: int | None


@dataclass(frozen=True)
class Own:
    """What a push says of its job besides the data. job_id: an id of the client's own, or None."""

    job_id: str | None = None
    delay_ms: int = 0

    @property
    def named(self) -> dict[str, str]:
        return {"jobId": self.job_id} if self.job_id else {}


class Wire(Protocol):
    """One client's way to the nodes. Keys are idempotency keys, and None for none."""

    dialect: str
    has_keys: bool

    async def push(self, node: LocalNode, queue: str, key: str, own: Own, once: str | None) -> Answer: ...
    async def pull(self, node: LocalNode, queue: str, count: int, lock_s: float, once: str | None) -> Answer: ...
    async def ack(self, node: LocalNode, queue: str, job: Taken, result: str, once: str | None) -> Answer: ...
    async def fail(self, node: LocalNode, queue: str, job: Taken, final: bool, once: str | None) -> Answer: ...
    async def extend(self, node: LocalNode, queue: str, job: Taken, lock_s: float, once: str | None) -> Answer: ...
    async def read(self, node: LocalNode, queue: str, job_id: str) -> Answer: ...


def data_of(key: str) -> dict[str, str]:
    return {"key": key, "text": TEXT}


def key_of(job_id: str, data: Any) -> str:
    """Our name for a job; of a cron's, its due time makes one."""
    if isinstance(data, dict) and "cron" in data:
        return f"cron:{data['cron']}:{due_time(job_id)}"
    return str(data["key"])


def due_time(job_id: str) -> int:
    """The due time for which a cron's job was made, in milliseconds since the epoch: its id begins with it."""
    return int(job_id.replace("-", "")[:12], 16)


def short_id(job_id: str, queue: str) -> str:
    """A job's id without the scope that another dialect shows it with."""
    return job_id.removeprefix(f"bull:{queue}:")


def lost(error: Exception, *, reads: bool) -> Answer:
    """What a request came to that got no answer."""
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.WSServerHandshakeError):
        return Answer(FAILED, said="no connection")
    said = "timed out" if isinstance(error, TimeoutError) else "connection lost"
    return Answer(FAILED if reads else UNKNOWN, said=said)


def meaning(status: int, text: str) -> str:
    """What an answer below 500 says that is not one of success."""
    if DONE_BEFORE in text:
        # What it answered then is gone.
        return UNKNOWN
    return REFUSED if status in (400, 404, 409) else FAILED


class Http:
    """Requests over HTTP, and what their statuses mean."""

    has_keys = True

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def ask(
        self, node: LocalNode, method: str, path: str, body: Any = None, once: str | None = None, *, reads: bool = False
    ) -> Answer:
        headers = dict(node.allowed)
        if once is not None:
            headers["Idempotency-Key"] = once
        timeout = aiohttp.ClientTimeout(total=REQUEST_S, sock_connect=CONNECT_S)
        try:
            async with self.session.request(
                method, node.url + path, json=body, headers=headers, timeout=timeout
            ) as reply:
                text = await reply.text()
                status = reply.status
        except (aiohttp.ClientError, TimeoutError) as error:
            if isinstance(error, aiohttp.ServerTimeoutError) and "connect" in str(error).lower():
                return Answer(FAILED, said="no connection")
            return lost(error, reads=reads)
        try:
            value = json.loads(text) if text else None
        except ValueError:
            value = text
        if status == 200:
            return Answer(DONE, value)
        code = value.get("code", "") if isinstance(value, dict) else ""
        if status < 500:
            return Answer(meaning(status, text), value, f"{status} {code}".strip())
        return Answer(FAILED if reads or code in NOT_DONE else UNKNOWN, value, f"{status} {code}".strip())


class Bunqueue(Http):
    """bunqueue's dialect."""

    dialect = "bunqueue"

    async def push(self, node: LocalNode, queue: str, key: str, own: Own, once: str | None) -> Answer:
        body = {"data": data_of(key), "maxAttempts": ATTEMPTS, "backoff": BACKOFF_MS, "delay": own.delay_ms}
        answer = await self.ask(node, "POST", f"/queues/{queue}/jobs", body | own.named, once)
        return answer._replace(value={"id": answer.value["id"]}) if answer.outcome == DONE else answer

    async def pull(self, node: LocalNode, queue: str, count: int, lock_s: float, once: str | None) -> Answer:
        body = {"count": count, "timeout": 100, "owner": self.dialect, "lockTtl": round(lock_s * 1000)}
        answer = await self.ask(node, "POST", f"/queues/{queue}/jobs/pull-batch", body, once)
        return answer._replace(value=taken_of(answer.value, queue)) if answer.outcome == DONE else answer

    async def ack(self, node: LocalNode, queue: str, job: Taken, result: str, once: str | None) -> Answer:
        return await self.ask(node, "POST", f"/jobs/{job.id}/ack", {"token": job.token, "result": result}, once)

    async def fail(self, node: LocalNode, queue: str, job: Taken, final: bool, once: str | None) -> Answer:
        body = {"token": job.token, "error": "as chaos wills", "unrecoverable": final}
        return await self.ask(node, "POST", f"/jobs/{job.id}/fail", body, once)

    async def extend(self, node: LocalNode, queue: str, job: Taken, lock_s: float, once: str | None) -> Answer:
        body = {"token": job.token, "duration": round(lock_s * 1000)}
        return await self.ask(node, "POST", f"/jobs/{job.id}/extend-lock", body, once)

    async def read(self, node: LocalNode, queue: str, job_id: str) -> Answer:
        answer = await self.ask(node, "GET", f"/jobs/{job_id}", reads=True)
        if answer.outcome == REFUSED and answer.said.startswith("404"):
            return Answer(DONE, {"state": "unknown"})
        return answer._replace(value=seen_of(answer.value["job"])) if answer.outcome == DONE else answer


def taken_of(value: Any, queue: str) -> list[Taken]:
    """The jobs of a pull's reply."""
    tokens = value.get("tokens") or []
    return [
        Taken(key_of(short_id(job["id"], queue), job["data"]), job["id"], token, job["fencingToken"])
        for job, token in zip(value["jobs"], tokens, strict=True)
    ]


def seen_of(job: Any) -> dict[str, str]:
    """What a read tells of a job: its state, and the result where it has one."""
    result = job.get("returnvalue")
    return {"state": job["state"]} | ({"result": result} if job["state"] == "completed" else {})


class Bullmq(Http):
    """BullMQ's dialect, its jobs processed by hand."""

    dialect = "bullmq"

    async def push(self, node: LocalNode, queue: str, key: str, own: Own, once: str | None) -> Answer:
        opts = {"attempts": ATTEMPTS, "backoff": {"type": "fixed", "delay": BACKOFF_MS}, "delay": own.delay_ms}
        body = [{"name": "job", "data": data_of(key), "opts": opts | own.named}]
        answer = await self.ask(node, "POST", f"/bullmq/queues/{queue}/jobs", body, once)
        if answer.outcome != DONE:
            return answer
        return answer._replace(value={"id": f"bull:{queue}:{answer.value[0]['id']}"})

    async def pull(self, node: LocalNode, queue: str, count: int, lock_s: float, once: str | None) -> Answer:
        # One at a time. The token is part of what is asked, and so the same when it is asked again.
        token = once or uuid.uuid4().hex
        body = {"token": token, "lockDuration": round(lock_s * 1000), "timeout": 100}
        answer = await self.ask(node, "POST", f"/bullmq/queues/{queue}/jobs/next", body, once)
        if answer.outcome != DONE:
            return answer
        jobs = [answer.value] if answer.value else []
        taken = [Taken(key_of(job["id"], job["data"]), job["id"], token, None) for job in jobs]
        return answer._replace(value=taken)

    def _path(self, queue: str, job: Taken, what: str) -> str:
        return f"/bullmq/queues/{queue}/jobs/{short_id(job.id, queue)}/{what}"

    async def ack(self, node: LocalNode, queue: str, job: Taken, result: str, once: str | None) -> Answer:
        body = {"token": job.token, "returnValue": result}
        return await self.ask(node, "POST", self._path(queue, job, "move-to-completed"), body, once)

    async def fail(self, node: LocalNode, queue: str, job: Taken, final: bool, once: str | None) -> Answer:
        body = {"token": job.token, "error": "as chaos wills", "unrecoverable": final}
        return await self.ask(node, "POST", self._path(queue, job, "move-to-failed"), body, once)

    async def extend(self, node: LocalNode, queue: str, job: Taken, lock_s: float, once: str | None) -> Answer:
        body = {"token": job.token, "duration": round(lock_s * 1000)}
        return await self.ask(node, "POST", self._path(queue, job, "extend-lock"), body, once)

    async def read(self, node: LocalNode, queue: str, job_id: str) -> Answer:
        return await self.ask(node, "GET", f"/bullmq/queues/{queue}/jobs/{short_id(job_id, queue)}/state", reads=True)


class Socket:
    """bunqueue's commands over one WebSocket, to one node at a time. Without idempotency keys: commands have none.

    A node gives the jobs that a connection holds back when it ends. heard: when the connection was last known to be alive;
    it may have ended at the node any time after.
    """

    dialect = "websocket"
    has_keys = False

    def __init__(self, session: aiohttp.ClientSession, now: Any) -> None:
        self.session = session
        self.heard = 0.0
        self.ends = 0
        self._now = now
        self._numbers = itertools.count(1)
        self._node: LocalNode | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._reader: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """End the connection, as a client that goes away."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
            self._reader = None
        if self._socket is not None:
            socket, self._socket = self._socket, None
            self.ends += 1
            with contextlib.suppress(Exception):
                await asyncio.wait_for(socket.close(), 1)
        self._node = None

    async def _connect(self, node: LocalNode) -> None:
        if self._node is node and self._socket is not None and not self._socket.closed:
            return
        await self.close()
        url = f"{node.url}/ws"
        self._socket = await asyncio.wait_for(
            self.session.ws_connect(url, headers=node.allowed, timeout=aiohttp.ClientWSTimeout(ws_close=1)),
            CONNECT_S,
        )
        self._node = node
        self._reader = asyncio.create_task(self._read(self._socket))
        # Whoever never says which events it wants gets all of them.
        await self._socket.send_json({"cmd": "Unsubscribe", "events": []})

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        try:
            async for message in socket:
                self.heard = self._now()
                if message.type == aiohttp.WSMsgType.TEXT:
                    value = json.loads(message.data)
                    waiting = self._waiting.pop(value.get("reqId", 0), None)
                    if waiting is not None and not waiting.done():
                        waiting.set_result(value)
        finally:
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionResetError("the connection ended"))
            self._waiting.clear()

    async def ask(self, node: LocalNode, command: str, fields: dict[str, Any], *, reads: bool = False) -> Answer:
        try:
            await self._connect(node)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return Answer(FAILED, said="no connection")
        assert self._socket is not None
        number = next(self._numbers)
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(REQUEST_S):
                await self._socket.send_json({"cmd": command, "reqId": number, **fields})
                value = await waiting
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            self._waiting.pop(number, None)
            waiting.cancel()
            await self.close()
            return lost(error, reads=reads)
        if value.get("ok"):
            return Answer(DONE, value)
        code, text = value.get("code", ""), str(value.get("error", ""))
        if not code or code in ("idempotency_key_reused",):
            return Answer(REFUSED, value, text[:60])
        return Answer(FAILED if reads or code in NOT_DONE else UNKNOWN, value, f"503 {code}")

    async def push(self, node: LocalNode, queue: str, key: str, own: Own, once: str | None) -> Answer:
        fields: dict[str, Any] = {"queue": queue, "data": data_of(key), "maxAttempts": ATTEMPTS, "backoff": BACKOFF_MS}
        fields["delay"] = own.delay_ms
        answer = await self.ask(node, "PUSH", fields | own.named)
        return answer._replace(value={"id": answer.value["id"]}) if answer.outcome == DONE else answer

    async def pull(self, node: LocalNode, queue: str, count: int, lock_s: float, once: str | None) -> Answer:
        fields = {"queue": queue, "count": count, "timeout": 100, "owner": self.dialect}
        answer = await self.ask(node, "PULLB", fields | {"lockTtl": round(lock_s * 1000)})
        return answer._replace(value=taken_of(answer.value, queue)) if answer.outcome == DONE else answer

    async def ack(self, node: LocalNode, queue: str, job: Taken, result: str, once: str | None) -> Answer:
        return await self.ask(node, "ACK", {"id": job.id, "token": job.token, "result": result})

    async def fail(self, node: LocalNode, queue: str, job: Taken, final: bool, once: str | None) -> Answer:
        fields = {"id": job.id, "token": job.token, "error": "as chaos wills", "unrecoverable": final}
        return await self.ask(node, "FAIL", fields)

    async def extend(self, node: LocalNode, queue: str, job: Taken, lock_s: float, once: str | None) -> Answer:
        fields = {"id": job.id, "token": job.token, "duration": round(lock_s * 1000)}
        return await self.ask(node, "ExtendLock", fields)

    async def read(self, node: LocalNode, queue: str, job_id: str) -> Answer:
        answer = await self.ask(node, "GetState", {"id": job_id}, reads=True)
        return answer._replace(value={"state": answer.value["state"]}) if answer.outcome == DONE else answer

"""A client of the BullMQ dialect that holds every reply against what its route declares, and the calls that tests make most."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec
from yarl import URL

from quorumq.api import surrogates
from quorumq.api.rows import Text
from tests.api.conftest import Answer, Client
from tests.support.waiting import after_entries

TOKEN = "tok1"
STATUSES = {200, 400, 401, 403, 404, 409, 413, 422, 429, 503}


class Bull:
    """Sends requests to the BullMQ dialect of a server, on the listener of its own or under a prefix."""

    def __init__(self, client: Client, prefix: str = "") -> None:
        self.client = client
        self.engine = client.engine
        self.server = client.server
        self.prefix = prefix
        self.listener = self.server.main if prefix else self.server.listeners[1]
        self.base = f"http://127.0.0.1:{self.listener.port}{prefix}"

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        raw: bytes | None = None,
        headers: Any = None,
        token: str | None = TOKEN,
    ) -> Answer:
        """Send a request. body: made into JSON; raw: sent as it is; token: the bearer, None for no header."""
        sent = raw if body is None else json.dumps(body).encode()
        data = io.BytesIO(sent) if sent and len(sent) > 1 << 20 else sent
        given = {} if token is None else {"Authorization": f"Bearer {token}"}
        url = URL(self.base + path, encoded=True)
        async with self.client.session.request(method, url, data=data, headers=given | (headers or {})) as response:
            answer = Answer(response.status, response.headers, await response.read())
        self.check(method, path, answer)
        return answer

    def check(self, method: str, path: str, answer: Answer) -> None:
        """Hold a reply against its route's declaration."""
        assert answer.status in STATUSES, (method, path, answer.status, answer.body)
        kind = answer.headers["Content-Type"]
        found = self.listener.find(method, self.prefix + urlsplit(path).path)
        if answer.status != 200:
            if kind != "application/json":
                assert kind == "text/plain; charset=utf-8"
                assert answer.body.decode()
            return
        assert found is not None, (method, path)
        route = found[0].route
        if route.reply is Text:
            assert kind == "text/plain; charset=utf-8"
            return
        assert kind == "application/json"
        covered = surrogates.cover(answer.body)
        msgspec.json.decode(covered[0] if covered else answer.body, type=route.reply, strict=True)

    async def get(self, path: str, **more: Any) -> Answer:
        return await self.send("GET", path, **more)

    async def post(self, path: str, body: Any = None, **more: Any) -> Answer:
        return await self.send("POST", path, body, **more)

    async def delete(self, path: str, **more: Any) -> Answer:
        return await self.send("DELETE", path, **more)

    async def until(self, check: Callable[[], Any]) -> None:
        """Wait until something is so; looked at after each entry."""
        await after_entries(self.server.node.machine, check)

    # -- What tests do most

    async def add_many(self, *jobs: Any, queue: str = "que") -> list[str]:
        """Add jobs in one request; return their ids. jobs: names, or what an item of the body holds."""
        items = [{"name": job, "data": 1} if isinstance(job, str) else {"name": "job", "data": 1} | job for job in jobs]
        answer = await self.post(f"/queues/{queue}/jobs", items)
        assert answer.status == 200, answer.body
        return [job["id"] for job in answer.json]

    async def add(self, name: str = "job", data: Any = 1, *, queue: str = "que", **opts: Any) -> str:
        """Add one job; return its id."""
        return (await self.add_many({"name": name, "data": data, "opts": opts}, queue=queue))[0]

    async def next(self, token: str = "t1", *, queue: str = "que", **more: Any) -> Any:
        """Take the next job, or None."""
        answer = await self.post(f"/queues/{queue}/jobs/next", {"token": token, **more})
        assert answer.status == 200, answer.body
        return answer.json

    async def move(self, job: Any, what: str, *, token: str = "t1", queue: str = "que", **body: Any) -> Answer:
        """Move a job: `what` is the last part of the path."""
        job_id = job if isinstance(job, str) else job["id"]
        return await self.post(f"/queues/{queue}/jobs/{job_id}/{what}", {"token": token, **body})

    async def complete(self, job: Any, value: Any = None, **more: Any) -> Any:
        answer = await self.move(job, "move-to-completed", returnValue=value, **more)
        assert answer.status == 200, answer.body
        return answer.json

    async def fail(self, job: Any, error: Any = "broken", **more: Any) -> Any:
        answer = await self.move(job, "move-to-failed", error=error, **more)
        assert answer.status == 200, answer.body
        return answer.json

    async def job(self, job_id: str, *, queue: str = "que") -> Any:
        answer = await self.get(f"/queues/{queue}/jobs/{job_id}")
        assert answer.status == 200, answer.body
        return answer.json

    async def state(self, job_id: str, *, queue: str = "que") -> str:
        return str((await self.get(f"/queues/{queue}/jobs/{job_id}/state")).json["state"])

    async def names(self, status: str, *, queue: str = "que") -> list[str]:
        """Names of the jobs of a status as the list shows them: newest first."""
        answer = await self.get(f"/queues/{queue}/jobs?statuses={status}&length=0")
        assert answer.status == 200, answer.body
        return [job["name"] for job in answer.json["jobs"]]

    async def counts(self, *, queue: str = "que") -> dict[str, int]:
        found: dict[str, int] = (await self.get(f"/queues/{queue}/counts")).json
        return found

    async def run(self, token: str = "t1", *, queue: str = "que") -> list[str]:
        """Take and complete jobs until there is none; return their names in order."""
        names = []
        while (job := await self.next(token, queue=queue)) is not None:
            names.append(job["name"])
            await self.complete(job, token=token, queue=queue)
        return names

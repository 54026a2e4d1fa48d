"""Load on one node over HTTP, and what it measured: by wrk with the scripts of bench.d, or by a client of our own.

Both do the same: a fixed number of connections, each with one request under way at a time, for a number of seconds.  The
rate is that of the useful replies between the first and the last of them, so that a queue that runs dry early does not
count against the node.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

LUA = Path(__file__).parent.parent / "bench.d"
CONNECTIONS = 32


@dataclass(frozen=True)
class Measured:
    """One run. Latencies are of requests."""

    requests: int
    jobs: int
    errors: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float

    @property
    def jobs_per_s(self) -> float:
        return self.jobs / self.seconds if self.seconds > 0 else 0.0


class Script:
    """What the connections of a run send, and how many jobs a reply stands for; the same as the Lua script of its name."""

    name = ""

    def __init__(self, **environment: str) -> None:
        self.environment = environment

    def next(self) -> bytes:
        """Return the next request."""
        raise NotImplementedError

    def useful(self, body: bytes) -> int:
        """Return how many jobs a reply with status 200 stands for."""
        raise NotImplementedError


def request(method: str, path: str, body: str = "") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + body).encode()


class Push(Script):
    name = "push"

    def __init__(self, queue: str, data: str, bulk: int = 0) -> None:
        super().__init__(QUEUE=queue, DATA=data, BULK=str(bulk))
        job = f'{{"data":{data}}}'
        body = f'{{"jobs":[{",".join([job] * bulk)}]}}' if bulk else job
        self.request = request("POST", f"/queues/{queue}/jobs{'/bulk' if bulk else ''}", body)
        self.jobs = max(bulk, 1)

    def next(self) -> bytes:
        return self.request

    def useful(self, body: bytes) -> int:
        return self.jobs


class Pull(Script):
    name = "pull"

    def __init__(self, queue: str, count: int) -> None:
        super().__init__(QUEUE=queue, COUNT=str(count))
        self.request = request("POST", f"/queues/{queue}/jobs/pull-batch", f'{{"count":{count}}}')
        self.count = count

    def next(self) -> bytes:
        return self.request

    def useful(self, body: bytes) -> int:
        return self.count if len(body) > 100 else 0


class Ack(Script):
    name = "ack"

    def __init__(self, ids: Path, count: int) -> None:
        super().__init__(IDS=str(ids), COUNT=str(count))
        self.ids = ids.read_text().split()
        self.count = count
        self.cursor = 0
        self.remaining = True

    def next(self) -> bytes:
        part = self.ids[self.cursor : self.cursor + self.count]
        self.remaining = bool(part)
        self.cursor += len(part)
        return request("POST", "/jobs/ack-batch", json.dumps({"ids": part}))

    def useful(self, body: bytes) -> int:
        return self.count if self.remaining else 0


class Cycle(Script):
    name = "cycle"

    def __init__(self, queue: str, data: str) -> None:
        super().__init__(QUEUE=queue, DATA=data)
        self.push = request("POST", f"/queues/{queue}/jobs", f'{{"data":{data}}}')
        self.pull = request("GET", f"/queues/{queue}/jobs")
        self.active: deque[str] = deque()
        self.backlog = 0

    def next(self) -> bytes:
        if self.active:
            return request("POST", f"/jobs/{self.active.popleft()}/ack", '{"result":{"sent":true}}')
        if self.backlog:
            self.backlog -= 1
            return self.pull
        return self.push

    def useful(self, body: bytes) -> int:
        if b'"job":' in body:
            if job := json.loads(body)["job"]:
                self.active.append(job["id"])
            return 0
        if b'"id":' in body:
            self.backlog += 1
            return 0
        return 1


def has_wrk() -> bool:
    return shutil.which("wrk") is not None


async def run(script: Script, url: str, seconds: float, *, use_wrk: bool) -> Measured:
    """Put the script's load on the node at `url`."""
    return await (run_wrk(script, url, seconds) if use_wrk else run_own(script, url, seconds))


async def run_wrk(script: Script, url: str, seconds: float) -> Measured:
    process = await asyncio.create_subprocess_exec(
        *("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{max(round(seconds), 1)}s", "--latency", "--timeout", "30s"),
        *("-s", str(LUA / f"{script.name}.lua"), url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | script.environment | {"LUA_DIR": str(LUA)},
    )
    output = (await process.communicate())[0].decode()
    for line in output.splitlines():
        if line.startswith("RESULT "):
            return Measured(**json.loads(line.removeprefix("RESULT ")))
    raise RuntimeError(f"wrk gave no result:\n{output}")


class Recorder:
    """Counts replies and keeps latencies."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.latencies: list[float] = []
        self.jobs = self.errors = 0
        self.first = self.last = 0.0

    def take(self, status: bytes, body: bytes, began: float) -> None:
        now = time.perf_counter()
        self.latencies.append((now - began) * 1000)
        if status != b"200":
            self.errors += 1
        elif count := self.script.useful(body):
            self.jobs += count
            self.last = now
            self.first = self.first or now

    def measured(self) -> Measured:
        ordered = sorted(self.latencies) or [0.0]
        p50, p99 = (ordered[min(int(len(ordered) * part), len(ordered) - 1)] for part in (0.5, 0.99))
        return Measured(len(self.latencies), self.jobs, self.errors, self.last - self.first, p50, p99, ordered[-1])


async def run_own(script: Script, url: str, seconds: float) -> Measured:
    recorder, until = Recorder(script), time.perf_counter() + seconds
    parts = urlsplit(url)

    async def connection() -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 24)
        while (began := time.perf_counter()) < until:
            writer.write(script.next())
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                length_of(line) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
            )
            recorder.take(head[9:12], await reader.readexactly(length), began)
        writer.close()

    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    return recorder.measured()


def length_of(line: bytes) -> int:
    return int(line.partition(b":")[2])

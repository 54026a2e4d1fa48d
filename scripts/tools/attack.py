"""What other clients notice while one node is attacked: real nodes on loopback, a fixed number of connections, a fixed time.

Each part of the attack is a client that a node on the internet meets: sockets that never speak, polls that wait, heads that
never end, small bodies that inflate to large ones, bodies that stop halfway, large bodies all at once, jobs that depend on
thousands. The bystander is a process of its own. It says beside every latency how late its own timer was, because on a
busy machine a slow answer may be a client that was not woken. Nothing but nodes that this script started is attacked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import multiprocessing
import os
import resource
import sys
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, cast

import uvloop

from quorumq.cli.admin import NoAnswer
from tests.support.local_cluster import HOST, ClusterTrouble, LocalCluster, LocalNode

MIB = 1 << 20
# How often the bystander asks, and what it does not wait for longer.
EVERY_S = 0.05
PATIENCE_S = 60.0
# Connections that are opened at once; more would only fill the listener's queue.
OPENING = 200
P99_MS = 250.0
# Strangers have none.
TOKEN = "a token of this run"
# How long the connections of a part may take to be there.
FILL_S = 120.0
# How much more memory than before may be left a minute later: what an allocator keeps, and 10%.
MEMORY_SLACK = 64 * MIB
SETTLE_S = 60.0
# What a node is told so that it lets all of this in at all: the bounds are there so that it would not.
RAISED = {
    "CONNECTIONS_MAX": "15000",
    "CONNECTIONS_PER_CLIENT_MAX": "off",
    "HEAD_TIMEOUT_MS": "120000",
    "CLIENT_BYTES_PER_S_MIN": "0",
    "WEBSOCKETS_MAX": "5000",
}


# -- The bystander


def bystander(url: str, pipe: Pipe) -> None:
    """Push a job and ask for counts, in turn, until told to stop; send what was measured through the pipe."""
    host, _, port = url.removeprefix("http://").partition(":")
    took: list[float] = []
    late: list[float] = []
    statuses: Counter[str] = Counter()
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE_S)
    allowed = {"Authorization": f"Bearer {TOKEN}"}
    turn = 0
    due = time.monotonic()
    while not pipe.poll(max(due - time.monotonic(), 0)):
        now = time.monotonic()
        late.append(now - due)
        try:
            if turn % 2:
                connection.request("GET", "/queues/bystander/counts", headers=allowed)
            else:
                connection.request("POST", "/queues/bystander/jobs", b'{"data":1}', headers=allowed)
            reply = connection.getresponse()
            reply.read()
            statuses[str(reply.status)] += 1
        except (OSError, http.client.HTTPException) as error:
            statuses[type(error).__name__] += 1
            connection.close()
        took.append(time.monotonic() - now)
        turn += 1
        due = max(now + EVERY_S, time.monotonic())
    pipe.recv()
    pipe.send((took, late, dict(statuses)))


@dataclass
class Seen:
    """What the bystander measured. took: seconds of each request; late: how late its own timer was before each."""

    took: list[float]
    late: list[float]
    statuses: dict[str, int]

    def row(self, name: str) -> str:
        said = " ".join(f"{status}:{count}" for status, count in sorted(self.statuses.items()))
        return (
            f"{name:22} {len(self.took):6} {ms(self.took, 0.5):8.1f} {ms(self.took, 0.99):8.1f} {ms(self.took, 1):8.1f}"
            f" {ms(self.late, 0.99):8.1f} {ms(self.late, 1):8.1f}  {said}"
        )


HEAD = f"{'other clients of':22} {'asked':>6} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8} {'own p99':>8} {'own max':>8}  answers"


def ms(seconds: list[float], share: float) -> float:
    ordered = sorted(seconds)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000 if ordered else 0.0


class Bystander:
    """The process that asks, from the outside."""

    def __init__(self, url: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=bystander, args=(url, theirs), daemon=True)
        self._process.start()

    async def end(self) -> Seen:
        self._pipe.send("stop")
        found = await asyncio.to_thread(self._pipe.recv)
        await asyncio.to_thread(self._process.join)
        return Seen(*found)


# -- The attack


class Line(asyncio.Protocol):
    """One connection of the attack: it sends what it is told and counts what comes back."""

    def __init__(self, attack: Attack, name: str, first: bytes) -> None:
        self._attack = attack
        self.name = name
        self._first = first
        self.transport: asyncio.Transport | None = None
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._attack.opened[self.name] += 1
        self._attack.open[self.name] += 1
        self.send(self._first)

    def send(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1 "):
            self._attack.answers[self.name][data[9:12].decode("latin-1")] += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._attack.open[self.name] -= 1
        self.transport = None
        if not self.ended.done():
            self.ended.set_result(None)


def head(method: str, path: str, *lines: str, token: str = TOKEN) -> bytes:
    allowed = (f"Authorization: Bearer {token}",) if token else ()
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *allowed, *lines, "", ""]).encode()


SOCKET = head(
    "GET",
    "/ws",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
POLL = head("GET", "/queues/nothing/jobs?timeout=30000")
UNFINISHED = b"GET /queues/q/counts HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
HALF = head("POST", "/queues/half/jobs", f"Content-Length: {8 * MIB}") + b'{"data":"' + b"x" * (MIB - 9)


@dataclass
class Attack:
    """Everything that is under way against one node. share: of the usual number of connections."""

    node: LocalNode
    share: float = 1.0
    opened: Counter[str] = field(default_factory=Counter)
    open: Counter[str] = field(default_factory=Counter)
    answers: dict[str, Counter[str]] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    troubles: Counter[str] = field(default_factory=Counter)

    def many(self, count: int) -> int:
        return max(round(count * self.share), 1)

    async def line(self, name: str, first: bytes) -> Line | None:
        """Open one connection; None when it is not let in."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(30):
                _, line = await loop.create_connection(lambda: Line(self, name, first), HOST, self.node.http_port)
        except (OSError, TimeoutError) as error:
            self.troubles[f"{name} {type(error).__name__}"] += 1
            return None
        self.lines.append(line)
        return line

    async def fill(self, name: str, count: int, first: bytes) -> None:
        """Open so many connections and leave them as they are."""
        for at in range(0, count, OPENING):
            await asyncio.gather(*(self.line(name, first) for _ in range(min(OPENING, count - at))))

    async def again(self, name: str, workers: int, request: Callable[[], bytes]) -> None:
        """Send a request on a new connection, again and again, so many at a time."""

        async def one() -> None:
            while True:
                line = await self.line(name, request())
                if line is None:
                    await asyncio.sleep(0.1)
                    continue
                await asyncio.wait([line.ended], timeout=PATIENCE_S)
                self.lines.remove(line)
                if line.transport is not None:
                    line.transport.abort()

        await asyncio.gather(*(one() for _ in range(workers)))

    # -- Parts

    async def sockets(self) -> None:
        await self.fill("sockets", self.many(2_000), SOCKET)

    async def polls(self) -> None:
        await self.fill("polls", self.many(5_000), POLL)

    async def heads(self) -> None:
        """Heads that go on for ever, a letter at a time."""
        await self.fill("heads", self.many(3_000), UNFINISHED)
        self.tasks.append(asyncio.create_task(self.drip()))

    async def drip(self) -> None:
        while True:
            await asyncio.sleep(5)
            for line in self.lines:
                if line.name == "heads":
                    line.send(b"x")

    async def idle(self) -> None:
        await self.fill("idle", self.many(2_000), b"")

    async def bombs(self) -> None:
        """A megabyte that inflates to a gigabyte, eight at a time, without a token and without an end of the supply."""
        body = BOMB[0]
        lines = ("Content-Encoding: gzip", f"Content-Length: {len(body)}", "Connection: close")
        await self.again("bombs", 8, lambda: head("POST", "/queues/bombs/jobs", *lines, token="") + body)

    async def open_bombs(self) -> None:
        """The same where they are let in."""
        body = BOMB[0]
        lines = ("Content-Encoding: gzip", f"Content-Length: {len(body)}", "Connection: close")
        await self.again("open-bombs", 8, lambda: head("POST", "/queues/bombs/jobs", *lines) + body)

    async def halves(self) -> None:
        await self.fill("halves", self.many(290), HALF)

    async def large(self) -> None:
        """Fifty bodies of ten megabytes at once, again and again."""
        body = b'{"data":"' + b"x" * (10 * MIB - 100) + b'","removeOnComplete":true}'
        whole = head("POST", "/queues/large/jobs", f"Content-Length: {len(body)}", "Connection: close") + body
        await self.fill("large", 50, whole)

    async def depends(self) -> None:
        """One request of 80 jobs that depend on 10,000 each."""
        ids = json.dumps([f"no-such-job-{n}" for n in range(10_000)])
        body = ('{"jobs":[' + ",".join([f'{{"data":1,"dependsOn":{ids}}}'] * 80) + "]}").encode()
        whole = head("POST", "/queues/depends/jobs/bulk", f"Content-Length: {len(body)}", "Connection: close") + body
        await self.again("depends", 1, lambda: whole)

    # -- Life

    async def begin(self, part: str) -> None:
        """Start a part; those that only open connections have opened them when this returns."""
        name = part.replace("_", "-")
        self.answers.setdefault(name, Counter())
        run: Callable[[], Awaitable[None]] = getattr(self, part)
        task = asyncio.ensure_future(run())
        self.tasks.append(task)  # type: ignore[arg-type]
        await asyncio.wait([task], timeout=FILL_S if part in FILLING else 1)

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        for problem in await asyncio.gather(*self.tasks, return_exceptions=True):
            if problem is not None and not isinstance(problem, asyncio.CancelledError):
                raise problem
        for line in self.lines:
            if line.transport is not None:
                line.transport.abort()

    def rows(self) -> list[str]:
        rows = [f"{'attack':22} {'opened':>6} {'still open':>10}  answers"]
        for name, answers in self.answers.items():
            said = " ".join(f"{status}:{count}" for status, count in sorted(answers.items()))
            rows.append(f"{name:22} {self.opened[name]:6} {self.open[name]:10}  {said}")
        rows += [f"not let in: {name}: {count}" for name, count in self.troubles.items()]
        return rows


PARTS = ("sockets", "polls", "heads", "idle", "bombs", "open_bombs", "halves", "large", "depends")
FILLING = ("sockets", "polls", "heads", "idle", "halves")
USUAL = ("sockets", "polls", "heads", "bombs")
# Made once, in the process that attacks.
BOMB: list[bytes] = []


def make_bomb() -> None:
    """Make a gigabyte of nothing as gzip, which is about a megabyte."""
    if not BOMB:
        squeeze = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
        block = bytes(8 * MIB)
        BOMB.append(b"".join(squeeze.compress(block) for _ in range(128)) + squeeze.flush())


def cpu_s(node: LocalNode) -> float:
    """Seconds of a processor that a node has used."""
    fields = Path(f"/proc/{node.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def leadership(cluster: LocalCluster) -> tuple[str, int]:
    leader = await cluster.leader()
    return leader.id, int((await leader.cluster())["term"])


async def attack(
    parts: tuple[str, ...], *, seconds: float, share: float, settle_s: float, raised: bool = True
) -> dict[str, Any]:
    """Run it; print the tables and return what was found."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    make_bomb()
    async with LocalCluster(3, AUTH_TOKENS=TOKEN, **(RAISED if raised else {})) as cluster:
        leader = await cluster.leader()
        target = leader
        other = next(node for node in cluster.nodes if node is not leader)
        before = await leadership(cluster)
        quiet = Bystander(target.url)
        await asyncio.sleep(min(seconds, 5))
        calm = await quiet.end()
        memory = target.rss_bytes()
        watching = {"the attacked node": Bystander(target.url), "another node": Bystander(other.url)}
        under = Attack(target, share)
        began, used = time.monotonic(), cpu_s(target)
        for part in parts:
            await under.begin(part)
        filled_s = time.monotonic() - began
        peak = 0
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            peak = max(peak, target.rss_bytes())
            await asyncio.sleep(0.25)
        rows = under.rows()
        used, lasted = cpu_s(target) - used, time.monotonic() - began
        seen = {name: await one.end() for name, one in watching.items()}
        await under.end()
        ended = time.monotonic()
        left = target.rss_bytes()
        while (left := target.rss_bytes()) > memory * 1.1 + MEMORY_SLACK and time.monotonic() < ended + settle_s:
            await asyncio.sleep(0.5)
        back_s = time.monotonic() - ended
        with contextlib.suppress(NoAnswer, ClusterTrouble):
            after = await leadership(cluster)
    print("\n".join(rows))
    print(HEAD)
    print(calm.row("nobody attacked"))
    for name, one in seen.items():
        print(one.row(name))
    print(
        f"the attacked node used {used:.1f} s of a processor in {lasted:.1f} s; load of the machine {os.getloadavg()[0]:.1f}"
    )
    print(f"the connections were there after {filled_s:.1f} s; leader and term before {before}, after {after}")
    print(
        f"memory before {memory // MIB} MB, highest {peak // MIB} MB, {left // MIB} MB {back_s:.1f} s after the end",
        flush=True,
    )
    return {
        "calm": calm,
        "seen": seen,
        "before": before,
        "after": after,
        "memory": (memory, peak, left),
        "attack": under,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; by default {' '.join(USUAL)}")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--share", type=float, default=1.0, help="of the usual number of connections")
    parser.add_argument("--bounds", action="store_true", help="leave the node's bounds as they are by default")
    arguments = parser.parse_args()
    parts = tuple(arguments.parts) or USUAL
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    found = uvloop.run(
        attack(parts, seconds=arguments.seconds, share=arguments.share, settle_s=SETTLE_S, raised=not arguments.bounds)
    )
    return verdict(found)


def verdict(found: dict[str, Any]) -> int:
    """Say what does not hold. The load generator's own delay is not the node's."""
    wrong = []
    for name, seen in found["seen"].items():
        p99, own = ms(seen.took, 0.99), ms(seen.late, 0.99)
        if p99 - own > P99_MS:
            wrong.append(f"{name}: p99 {p99:.0f} ms, {own:.0f} ms of it the generator's own")
        if set(seen.statuses) != {"200"}:
            wrong.append(f"{name}: answers {seen.statuses}")
    if found["before"] != found["after"]:
        wrong.append(f"the leader changed: {found['before']} to {found['after']}")
    memory, _, left = found["memory"]
    if left > memory * 1.1 + MEMORY_SLACK:
        wrong.append(f"memory is not back: {memory // MIB} MB before, {left // MIB} MB after")
    print("\n".join(wrong) or "holds")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""Clients that load a cluster in three dialects and write down every request: pushers, workers, readers, and a cron's worker.

They behave as clients should, and as clients do: some repeat a request under its idempotency key until there is an answer, some send an
acknowledgement again without one, some hold a job until its lock has run out, and try all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import uuid
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from scripts.tools.chaos.events import Reader
from scripts.tools.chaos.history import DONE, FAILED, REFUSED, UNKNOWN, History, Request
from scripts.tools.chaos.wires import Answer, Bullmq, Bunqueue, Http, Own, Socket, Taken, Wire, key_of, short_id
from tests.support.local_cluster import LocalCluster, LocalNode

# Far fewer than a queue keeps, and few enough that an unknown pull puts few jobs in doubt.
JOBS_PER_QUEUE = 400
CRON, CRON_QUEUE, CRON_EVERY_MS = "often", "chaos-cron", 1500
PAGE = 500
LOCK_S = 4.0
WORK_S = 0.03
FAILS, FAILS_FOR_GOOD, EXTENDS, OVERSLEEPS, OWN_ID, DELAYED = 0.1, 0.02, 0.1, 0.01, 0.5, 0.1
KEYED = 0.5
REPEATS_S = 20.0
BACK_OFF_S = 0.15
DRAIN_S = 120.0
# Pushers wait for workers while so many jobs are to be done: what waits for long is looked at by few.
BACKLOG_MAX = 300

Send = Callable[[LocalNode], Awaitable[Answer]]


class Load:
    """All clients of one cluster; an async context manager that stops them on the way out.

    epoch: what tells this cluster's jobs and queues from those of the ones before.  states: jobs at the end, by state.
    """

    def __init__(
        self,
        cluster: LocalCluster,
        rng: random.Random,
        history: History,
        *,
        pushes_per_s: float = 40.0,
        epoch: int = 0,
    ) -> None:
        self.cluster = cluster
        self.history = history
        self.readers: list[Reader] = []
        self.states: Counter[str] = Counter()
        self._rng = rng
        self._epoch = epoch
        self._pause_s = 3 / pushes_per_s
        self._count = 0
        # Keys that are to be done, by queue; ids of the jobs that were pushed lately, for reads.
        self._open: dict[str, set[str]] = defaultdict(set)
        self._lately: list[tuple[str, str, str]] = []
        self._pushing = True
        self._stopping = False
        self._going = asyncio.Event()
        self._going.set()
        self._busy = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._pushers: list[asyncio.Task[None]] = []
        self._sockets: list[Socket] = []

    async def __aenter__(self) -> Load:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self._plain = Http(self._session)
        self.history.paused()
        now = self.history.now()
        self.history.add(Request(self.history.number(), "", "", "", "epoch", "", str(self._epoch), now, now, DONE))
        await self._add_cron()
        for number in range(3):
            reader = Reader(f"reader {number + 1}", lambda: self.cluster.nodes, self._rng, self.history.now)
            self.readers.append(reader)
            self._tasks.append(asyncio.create_task(reader.run(self._session)))
        for make in (self._bunqueue, self._socket, self._bullmq):
            self._pushers.append(asyncio.create_task(self._push(Client(self, make(), "pusher"))))
            for name in ("worker", "second worker"):
                self._tasks.append(asyncio.create_task(self._work(Client(self, make(), name))))
            self._tasks.append(asyncio.create_task(self._read(Client(self, make(), "asker"))))
        self._tasks.append(asyncio.create_task(self._work(Client(self, self._bunqueue(), "cron worker"), CRON_QUEUE)))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._pushing, self._stopping = False, True
        for task in (*self._pushers, *self._tasks):
            task.cancel()
        await asyncio.gather(*self._pushers, *self._tasks, return_exceptions=True)
        for socket in self._sockets:
            await socket.close()
        await self._session.close()

    def _bunqueue(self) -> Wire:
        return Bunqueue(self._session)

    def _bullmq(self) -> Wire:
        return Bullmq(self._session)

    def _socket(self) -> Wire:
        socket = Socket(self._session, self.history.now)
        self._sockets.append(socket)
        return socket

    def check_alive(self) -> None:
        """Raise what ended a client, if one has ended: a load that stopped proves nothing."""
        for task in (*self._pushers, *self._tasks):
            if task.done() and not task.cancelled() and (error := task.exception()):
                raise error

    async def _add_cron(self) -> None:
        """The cron is there before anything goes wrong."""
        body = {
            "name": CRON,
            "queue": CRON_QUEUE,
            "data": {"cron": CRON},
            "repeatEvery": CRON_EVERY_MS,
            "preventOverlap": False,
        }
        while True:
            start = self.history.now()
            answer = await self._plain.ask(self._rng.choice(self.cluster.nodes), "POST", "/crons", body)
            if answer.outcome == DONE:
                break
            await asyncio.sleep(BACK_OFF_S)
        self.history.add(
            Request(
                *(self.history.number(), "", "bunqueue", "", "cron", CRON_QUEUE, CRON, start, self.history.now(), DONE),
                args={"every_ms": CRON_EVERY_MS},
            )
        )

    # -- Pauses and the end

    @contextlib.asynccontextmanager
    async def resting(self) -> Any:
        """No client has a request under way, nor begins one, until the block ends."""
        self._going.clear()
        try:
            async with asyncio.timeout(60):
                while self._busy:
                    await asyncio.sleep(0.02)
                    self.check_alive()
            yield
        finally:
            self.history.paused()
            self._going.set()

    @contextlib.asynccontextmanager
    async def turn(self) -> Any:
        """A client's request under way."""
        await self._going.wait()
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1

    async def drain(self) -> str | None:
        """Push no more, and wait until every job that is known to exist is finished. Returns what is wrong, or None."""
        self._pushing = False
        await asyncio.gather(*self._pushers)
        # Times of its cron would go on for ever.
        while (await self._plain.ask(self._rng.choice(self.cluster.nodes), "DELETE", f"/crons/{CRON}")).outcome not in (
            DONE,
            REFUSED,
        ):
            await asyncio.sleep(BACK_OFF_S)
        deadline = self.history.now() + DRAIN_S
        while left := await self._unfinished():
            self.check_alive()
            if self.history.now() > deadline:
                return f"{left} jobs were not finished within {DRAIN_S:.0f} s after everything was healed"
            await asyncio.sleep(0.2)
        # What readers of events have not got yet is on its way.
        await asyncio.sleep(1)
        self._stopping = True
        for task in self._tasks[len(self.readers) :]:
            await task
        return None

    async def _unfinished(self) -> int:
        left = 0
        for queue in self.queues():
            if not self._open[queue] and queue != CRON_QUEUE:
                continue
            answer = await self._plain.ask(
                self._rng.choice(self.cluster.nodes), "GET", f"/queues/{queue}/counts", reads=True
            )
            counts = answer.value["counts"] if answer.outcome == DONE else {"waiting": 1}
            here = sum(counts.get(state, 0) for state in ("waiting", "prioritized", "active", "delayed"))
            if not here and answer.outcome == DONE:
                # What is open by our books was never pushed, or its end was not told.
                self._open[queue].clear()
            left += here
        return left

    def queues(self) -> list[str]:
        """Names of all queues so far."""
        return [*(self._queue(number) for number in range(self._count // JOBS_PER_QUEUE + 1)), CRON_QUEUE]

    def _queue(self, number: int) -> str:
        return f"chaos-{self._epoch}-{number}"

    async def list_all(self, node: LocalNode) -> str | None:
        """Write down what a node holds in the end: every job that was ever named. Returns what is wrong, or None."""
        known = {(each.queue, each.key): each.args.get("id") for each in self.history.requests if self._pushed(each)}
        self.states = Counter()
        for queue in self.queues():
            rows: list[dict[str, Any]] = []
            start = self.history.now()
            for offset in itertools.count(0, PAGE):
                path = f"/queues/{queue}/jobs/list?limit={PAGE}&offset={offset}"
                answer = await self._plain.ask(node, "GET", path, reads=True)
                if answer.outcome != DONE:
                    return f"{node.id} does not list its jobs at the end: {answer.said}"
                rows += [row_of(job, queue) for job in answer.value["jobs"]]
                if len(answer.value["jobs"]) < PAGE:
                    break
            self.states.update(row["state"] for row in rows)
            there = {row["key"] for row in rows}
            rows += [
                {"key": key, "id": job_id, "state": "unknown"}
                for (name, key), job_id in known.items()
                if name == queue and key not in there
            ]
            number = self.history.number()
            self.history.add(
                Request(number, "at the end", "", node.id, "list", queue, "", start, self.history.now(), DONE, {}, rows)
            )
        return None

    def _pushed(self, request: Request) -> bool:
        return request.op == "push" and request.key.startswith(f"{self._epoch}-")

    # -- What clients do

    async def _push(self, client: Client) -> None:
        while self._pushing:
            if sum(map(len, self._open.values())) > BACKLOG_MAX:
                await asyncio.sleep(WORK_S)
                continue
            queue = self._queue(self._count // JOBS_PER_QUEUE)
            key = f"{self._epoch}-{self._count}"
            self._count += 1
            own = Own(
                f"job-{key}" if self._rng.random() < OWN_ID else None,
                self._rng.randint(300, 3_000) if self._rng.random() < DELAYED else 0,
            )
            self._open[queue].add(key)
            once = client.once()
            # Never sent again without a key: once finished, an id may be used for another job, and that would not be an error.
            answer = await client.asked(
                *("push", queue, key, {"id": own.job_id, "delay_s": own.delay_ms / 1000}),
                lambda node, queue=queue, key=key, own=own, once=once: client.wire.push(node, queue, key, own, once),
                once,
            )
            if answer.outcome == DONE:
                self._lately.append((queue, key, answer.value["id"]))
                del self._lately[:-300]
                await asyncio.sleep(self._pause_s * self._rng.uniform(0.5, 1.5))
            else:
                if answer.outcome == FAILED:
                    self._open[queue].discard(key)
                await client.elsewhere()

    async def _work(self, client: Client, only: str | None = None) -> None:
        while not self._stopping:
            open_queues = [queue for queue, keys in self._open.items() if keys]
            queue = only or (self._rng.choice(open_queues[-3:] + open_queues[:2]) if open_queues else self._queue(0))
            once = client.once()
            count = 1 if client.wire.dialect == "bullmq" else 4
            answer = await client.asked(
                *("pull", queue, "", {"count": count, "lock_s": LOCK_S}),
                lambda node, queue=queue, count=count, once=once: client.wire.pull(node, queue, count, LOCK_S, once),
                once,
            )
            if answer.outcome != DONE:
                await client.elsewhere()
                continue
            if not answer.value:
                await asyncio.sleep(WORK_S)
            for job in answer.value:
                client.holds(job)
            for job in answer.value:
                await asyncio.sleep(self._rng.uniform(0, WORK_S))
                await self._finish(client, queue, job)

    async def _finish(self, client: Client, queue: str, job: Taken) -> None:
        """Complete or fail a job; try again elsewhere when there is no answer, as a good worker would."""
        rng, wire = self._rng, client.wire
        if rng.random() < EXTENDS:
            await client.asked(
                *("extend", queue, job.key, {"token": job.token, "lock_s": LOCK_S}),
                lambda node: wire.extend(node, queue, job, LOCK_S, None),
            )
        if rng.random() < OVERSLEEPS:
            await asyncio.sleep(LOCK_S * rng.uniform(0.9, 1.6))
        # A cron's jobs have few attempts, and so none of theirs is wasted.
        final = rng.random() < FAILS_FOR_GOOD and queue != CRON_QUEUE
        fails = final or (rng.random() < FAILS and queue != CRON_QUEUE)
        once = client.once()
        shown = short_id(job.id, queue)
        for _ in range(3):
            if fails:
                args: dict[str, Any] = {"token": job.token, "final": final}
                answer = await client.asked(
                    *("fail", queue, job.key, args), lambda node: wire.fail(node, queue, job, final, once), once
                )
            else:
                args = {"token": job.token, "result": f"by {job.token}", "id": shown}
                answer = await client.asked(
                    *("ack", queue, job.key, args),
                    lambda node: wire.ack(node, queue, job, f"by {job.token}", once),
                    once,
                )
            if answer.outcome in (DONE, REFUSED):
                if answer.outcome == DONE and (final or not fails):
                    self._open[queue].discard(job.key)
                break
            await client.elsewhere()
        client.let_go(job)

    async def _read(self, client: Client) -> None:
        """Read, anywhere, what somebody was told or is about to be told: it may not be older than that."""
        while not self._stopping:
            await asyncio.sleep(self._rng.uniform(0.02, 0.1))
            if not self._lately:
                continue
            # Rather what is being worked on.
            queue, key, job_id = self._lately[-min(int(self._rng.expovariate(1 / 30)) + 1, len(self._lately))]
            answer = await client.asked(
                *("read", queue, key, {"id": short_id(job_id, queue)}),
                lambda node, queue=queue, job_id=job_id: client.wire.read(node, queue, job_id),
            )
            if answer.outcome != DONE:
                await client.elsewhere()


class Client:
    """One client: it has one request under way at a time, at a node of its choice."""

    def __init__(self, load: Load, wire: Wire, name: str) -> None:
        self.load = load
        self.wire = wire
        self.name = f"{name} ({wire.dialect})"
        self.node = load._rng.choice(load.cluster.nodes)
        self._held: dict[str, Taken] = {}
        self._ends = 0

    def once(self) -> str | None:
        """An idempotency key for the next request, or none."""
        return uuid.uuid4().hex if self.wire.has_keys and self.load._rng.random() < KEYED else None

    def holds(self, job: Taken) -> None:
        self._held[job.token] = job

    def let_go(self, job: Taken) -> None:
        self._held.pop(job.token, None)

    async def elsewhere(self) -> None:
        """What a balancer would do after an error: another node, a moment later."""
        nodes = self.load.cluster.nodes
        self.node = self.load._rng.choice([other for other in nodes if other is not self.node] or nodes)
        await asyncio.sleep(BACK_OFF_S)

    async def asked(
        self, op: str, queue: str, key: str, args: dict[str, Any], send: Send, once: str | None = None
    ) -> Answer:
        """Send a request, with a key again and again until it is answered, and write it down as the one request that it is."""
        history = self.load.history
        sent, unsure = 0, False
        async with self.load.turn():
            number, start = history.number(), history.now()
            while True:
                heard = getattr(self.wire, "heard", 0.0)
                if self.node not in self.load.cluster.nodes:
                    # It is no member any more.
                    self.node = self.load._rng.choice(self.load.cluster.nodes)
                answer, node = await send(self.node), self.node
                sent += 1
                self._left(heard)
                unsure |= answer.outcome == UNKNOWN
                if answer.outcome in (DONE, REFUSED) or once is None or history.now() - start > REPEATS_S:
                    break
                await self.elsewhere()
            end = history.now()
        if op in ("push", "pull") and answer.outcome == REFUSED:
            raise RuntimeError(f"{self.name}: {op} was refused, which nothing here gives a reason for: {answer}")
        outcome = UNKNOWN if answer.outcome == FAILED and unsure else answer.outcome
        if op == "pull" and unsure:
            args = args | {"again": True}
        result = answer.value if outcome == DONE else None
        if op == "pull" and result is not None:
            result = [
                {"key": job.key, "id": short_id(job.id, queue), "token": job.token, "fence": job.fence}
                for job in result
            ]
        elif op == "push" and result is not None:
            result = {"id": short_id(result["id"], queue)}
        elif op in ("ack", "fail", "extend"):
            result = None
        history.add(
            Request(
                *(number, self.name, self.wire.dialect, node.id, op, queue, key, start, end, outcome),
                *(args, result, sent, once is not None, answer.said),
            )
        )
        return answer

    def _left(self, heard: float) -> None:
        """A connection that ended takes the jobs with it that it held, from when it was last known to be alive."""
        ends = getattr(self.wire, "ends", 0)
        if ends == self._ends:
            return
        self._ends = ends
        if not self._held:
            return
        history = self.load.history
        held = [{"key": job.key, "token": job.token} for job in self._held.values()]
        history.add(
            Request(
                *(history.number(), self.name, self.wire.dialect, "", "leave", "", "", heard, history.now(), UNKNOWN),
                args={"held": held},
                said="a socket ended with jobs in its hands",
            )
        )


def row_of(job: Any, queue: str) -> dict[str, Any]:
    """What the list at the end tells of one job."""
    shown = short_id(job["id"], queue)
    row = {"key": key_of(job["id"], job["data"]), "id": shown, "state": job["state"]}
    return row | ({"result": job.get("returnvalue")} if job["state"] == "completed" else {})

"""bunqueue's TCP protocol against three real processes: whatever goes over one node can go on over another, and leaders are killed."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.support.local_cluster import PATIENCE, LocalCluster, LocalNode
from tests.support.tcp_client import TcpClient

pytestmark = pytest.mark.asyncio(loop_scope="module")
AGAIN_S = 0.05


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[LocalCluster]:
    async with LocalCluster(3, **PATIENCE) as running:
        yield running


async def opened(node: LocalNode) -> TcpClient:
    assert node.tcp_port is not None
    return await TcpClient.open(node.tcp_port)


@pytest_asyncio.fixture(loop_scope="module")
async def clients(cluster: LocalCluster) -> AsyncIterator[list[TcpClient]]:
    """A connection to each node."""
    made = [await opened(node) for node in cluster.nodes]
    yield made
    for one in made:
        await one.close()


async def test_what_one_node_gave_another_takes(clients: list[TcpClient]) -> None:
    first, second, third = clients
    await third.ok("SubscribeEvents", queue="q")
    for turn in range(20):
        pushed = (await first.ok("PUSH", queue="q", data={"turn": turn}))["id"]
        taken = await second.ok("PULL", queue="q", owner="w", lockTtl=30_000)
        assert taken["job"]["id"] == pushed
        beaten = await first.ok("JobHeartbeatB", ids=[pushed], tokens=[taken["token"]])
        assert beaten["data"] == {"ok": True, "count": 1}
        await third.ok("ACKB", ids=[pushed], tokens=[taken["token"]], results=[turn])
        assert (await second.ok("GetResult", id=pushed))["result"] == turn
        seen = [(await third.event())["event"] for _ in range(3)]
        assert [(one["eventType"], one["jobId"]) for one in seen] == [
            (kind, pushed) for kind in ("pushed", "pulled", "completed")
        ]


async def test_an_empty_poll_is_true_whichever_node_was_pushed_to(clients: list[TcpClient]) -> None:
    first, second, third = clients
    poll = {"queue": "polled", "timeout": 0, "owner": "w", "lockTtl": 30_000}
    for turn in range(30):
        # Known as one that finds nothing, so that it goes the short way.
        for one in (second, third):
            assert (await one.ok("PULL", **poll))["job"] is None
        await first.ok("PUSH", queue="polled", data=turn)
        taken = await random.choice((second, third)).ok("PULL", **poll)
        assert taken["job"] is not None and taken["job"]["data"] == turn


async def test_what_a_connection_took_goes_back_for_all_nodes_when_it_ends(
    cluster: LocalCluster, clients: list[TcpClient]
) -> None:
    first, second, _ = clients
    worker = await opened(cluster.nodes[2])
    await worker.ok("RegisterWorker", name="n", queues=["back"], workerId="gone")
    ids = (await first.ok("PUSHB", queue="back", jobs=[{"data": n} for n in range(3)]))["ids"]
    taken = await worker.ok("PULLB", queue="back", count=3, owner="gone")
    await second.ok("ACK", id=ids[0], token=taken["tokens"][0])
    waiting = second.send("PULL", queue="back", owner="v", timeout=60_000)
    await worker.close()
    again = await waiting
    assert again["job"]["id"] == ids[1] and again["job"]["attempts"] == 0
    async with asyncio.timeout(60):
        while (await first.ok("ListWorkers"))["data"]["workers"]:
            await asyncio.sleep(AGAIN_S)
    assert (await first.ok("GetState", id=ids[0]))["state"] == "completed"
    assert (await first.ok("GetState", id=ids[2]))["state"] == "waiting"


# -- Leaders that are killed -------------------------------------------------------------------------------------------


class Member:
    """A client that keeps a connection to some node, as those of bunqueue do behind a balancer: when it ends, to the next."""

    def __init__(self, nodes: list[LocalNode], chance: random.Random) -> None:
        self.nodes = nodes
        self.chance = chance
        self.client: TcpClient | None = None

    async def run(self, cmd: str, **fields: Any) -> Any:
        """Send a command once. Raises ConnectionError, TimeoutError when its reply is not known."""
        if self.client is None or self.client.ended:
            try:
                self.client = await opened(self.chance.choice(self.nodes))
            except OSError as error:
                raise ConnectionError(str(error)) from None
        return await self.client.run(cmd, **fields)

    async def close(self) -> None:
        if self.client is not None:
            await self.client.close()


class Work:
    """Producers and workers, and what they were told."""

    def __init__(self, cluster: LocalCluster, seed: int) -> None:
        self.cluster = cluster
        self.chance = random.Random(seed)
        self.pushed: set[str] = set()
        # How often a job was acknowledged and that counted, and acknowledgements whose end is not known.
        self.completed: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        # How often a push was sent again: one that comes when the job is finished is a new job under the same id.
        self.repeated: Counter[str] = Counter()
        self.numbers = itertools.count()
        self.stopping = False

    def member(self) -> Member:
        return Member(self.cluster.nodes, self.chance)

    async def produce(self) -> None:
        member = self.member()
        while not self.stopping:
            job_id = f"job-{next(self.numbers)}"
            while True:
                # Under an id of its own a push is repeated without harm, unless the job has been finished meanwhile.
                try:
                    reply = await member.run("PUSH", queue="q", jobId=job_id, data={"id": job_id})
                except (ConnectionError, TimeoutError):
                    self.repeated[job_id] += 1
                    await asyncio.sleep(AGAIN_S)
                    continue
                if reply["ok"]:
                    assert reply["id"] == job_id
                    self.pushed.add(job_id)
                    break
                self.repeated[job_id] += 1
                await asyncio.sleep(AGAIN_S)
            await asyncio.sleep(0.01)
        await member.close()

    async def consume(self, name: str) -> None:
        # As a worker of bunqueue: one connection pulls, another one acknowledges.
        pulls, acks = self.member(), self.member()
        while not (self.stopping and self.done):
            try:
                taken = await pulls.run("PULLB", queue="q", count=5, owner=name, lockTtl=5_000, timeout=500)
            except (ConnectionError, TimeoutError):
                await asyncio.sleep(AGAIN_S)
                continue
            if not taken["ok"] or not taken["jobs"]:
                await asyncio.sleep(AGAIN_S)
                continue
            await self.acknowledge(acks, [job["id"] for job in taken["jobs"]], taken["tokens"])
        await pulls.close()
        await acks.close()

    async def acknowledge(self, member: Member, ids: list[str], tokens: list[str]) -> None:
        """Send the batch as long as nobody answered, three times as bunqueue's worker does."""
        lost = 0
        for _ in range(3):
            try:
                reply = await member.run("ACKB", ids=ids, tokens=tokens, results=[None] * len(ids))
            except (ConnectionError, TimeoutError):
                lost += 1
                await asyncio.sleep(AGAIN_S)
                continue
            if reply["ok"]:
                late = set(reply.get("data", {}).get("ignoredIndices", ()))
                for at, job_id in enumerate(ids):
                    if at not in late:
                        self.completed[job_id] += 1
                    elif lost:
                        self.unknown[job_id] += 1
                return
            if reply.get("code") not in ("unavailable", "not_applied", "outcome_unknown"):
                break
            await asyncio.sleep(AGAIN_S)
        self.unknown.update(ids)

    @property
    def done(self) -> bool:
        return all(self.completed[job_id] or self.unknown[job_id] for job_id in self.pushed)


async def under_kills(kills: int, seed: int) -> None:
    print(f"seed {seed}")
    async with LocalCluster(3) as cluster:
        # A long run completes more than a queue keeps by default, and what has gone would count as lost.
        async with aiohttp.ClientSession() as session:
            kept = session.put(f"{cluster.nodes[0].url}/admin/queues/q/retention", json={"completed": 1_000_000})
            async with kept as answer:
                assert answer.status == 200
        work = Work(cluster, seed)
        producers = [asyncio.create_task(work.produce()) for _ in range(3)]
        workers = [asyncio.create_task(work.consume(f"w{n}")) for n in range(4)]
        for _ in range(kills):
            await cluster.until("work goes on", partial(more, work, work.completed.total() + 50), 120)
            leader = await cluster.leader()
            await leader.kill()
            await cluster.until("the survivors go on", partial(more, work, work.completed.total() + 50), 120)
            await leader.start()
            await cluster.ready([leader])
        work.stopping = True
        await asyncio.gather(*producers)
        # A worker ends when it knows what became of every job; until then an answer may be on its way that a node gave already.
        ended, at_work = await asyncio.wait(workers, timeout=120)
        for worker in at_work:
            worker.cancel()
        assert [worker.exception() for worker in ended] == [None] * len(ended)
        await cluster.until("all is worked off", lambda: finished(cluster), 120)
        # Nothing that was acknowledged is lost, and nothing was completed twice.
        assert {job: count for job, count in work.completed.items() if count > 1 + work.repeated[job]} == {}
        assert [job for job in work.pushed if not (work.completed[job] or work.unknown[job])] == []
        some = work.chance.sample(sorted(work.pushed), min(50, len(work.pushed)))
        client = await opened(cluster.nodes[0])
        assert [(await client.ok("GetState", id=job))["state"] for job in some] == ["completed"] * len(some)
        await client.close()
        await cluster.converged()


async def more(work: Work, wanted: int) -> bool:
    return work.completed.total() >= wanted


async def finished(cluster: LocalCluster) -> bool:
    status, body = await cluster.nodes[0].ask("/queues/q/counts")
    return status == 200 and not any(body["counts"][state] for state in ("waiting", "active", "delayed"))


async def test_leaders_are_killed_and_workers_go_on_over_other_nodes() -> None:
    await under_kills(2, seed=1)


@pytest.mark.long
@pytest.mark.timeout(3_600)
async def test_leaders_are_killed_for_a_long_time() -> None:
    await under_kills(20, seed=random.randrange(10**6))

"""Three real processes that nothing bad happens to, except what clients and strangers send: one cluster for all tests here."""

from __future__ import annotations

import asyncio
import io
import os
import struct
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest
import pytest_asyncio

from tests.support.local_cluster import HOST, PATIENCE, LocalCluster, LocalNode

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[LocalCluster]:
    async with LocalCluster(3, **PATIENCE) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as client:
        yield client


async def counts(session: aiohttp.ClientSession, node: LocalNode, queue: str) -> dict[str, int]:
    async with session.get(f"{node.url}/queues/{queue}/counts") as reply:
        found: dict[str, int] = (await reply.json())["counts"]
        return found


async def test_each_step_is_visible_at_once_on_all_nodes(cluster: LocalCluster, session: aiohttp.ClientSession) -> None:
    n1, n2, n3 = cluster.nodes
    for turn in range(20):
        queue = f"steps-{turn}"
        async with session.post(f"{n1.url}/queues/{queue}/jobs", json={"data": {"turn": turn}}) as reply:
            assert reply.status == 200
            job_id = (await reply.json())["id"]
        for node in cluster.nodes:
            assert (await counts(session, node, queue))["waiting"] == 1
        async with session.get(f"{n2.url}/queues/{queue}/jobs") as reply:
            job = (await reply.json())["job"]
        assert (job["id"], job["data"]) == (job_id, {"turn": turn})
        for node in cluster.nodes:
            async with session.get(f"{node.url}/jobs/{job_id}/state") as reply:
                assert (await reply.json())["state"] == "active"
        async with session.post(f"{n3.url}/jobs/{job_id}/ack", json={"result": {"turn": turn}}) as reply:
            assert reply.status == 200
        for node in cluster.nodes:
            assert (await counts(session, node, queue))["completed"] == 1
            async with session.get(f"{node.url}/jobs/{job_id}/result") as reply:
                assert (await reply.json())["result"] == {"turn": turn}


@pytest.mark.parametrize(("door", "path"), [("url", "/bullmq/v1/socket"), ("bullmq_url", "/v1/socket")])
async def test_each_node_tells_clients_of_bullmqs_backend_where_all_are(
    cluster: LocalCluster, session: aiohttp.ClientSession, door: str, path: str
) -> None:
    """They share a host, so that only they themselves can say which ports are theirs."""
    urls = {getattr(node, door) for node in cluster.nodes}
    for url in urls:
        told: set[str] = set()
        async with asyncio.timeout(60):
            while told != urls:
                async with session.ws_connect(url + path) as ws:
                    await ws.send_bytes(msgspec.msgpack.encode({"protocol": 1, "session": "s"}))
                    told = set(msgspec.msgpack.decode(await ws.receive_bytes())["nodes"])


async def test_a_job_wakes_the_worker_that_waits_at_another_node(
    cluster: LocalCluster, session: aiohttp.ClientSession
) -> None:
    n1, n2, _ = cluster.nodes

    async def wait_for_job() -> dict[str, object]:
        async with session.get(f"{n2.url}/queues/waited/jobs?timeout=20000") as reply:
            answer: dict[str, object] = await reply.json()
            return answer

    waiting = asyncio.create_task(wait_for_job())
    async with session.post(f"{n1.url}/queues/waited/jobs", json={"data": 1}) as reply:
        pushed = await reply.json()
    async with asyncio.timeout(20):
        answer = await waiting
    assert isinstance(answer["job"], dict)
    assert answer["job"]["id"] == pushed["id"]


async def test_two_workers_at_different_nodes_never_get_the_same_job(
    cluster: LocalCluster, session: aiohttp.ClientSession
) -> None:
    jobs = {"jobs": [{"data": i} for i in range(600)]}
    async with session.post(f"{cluster.nodes[0].url}/queues/shared/jobs/bulk", json=jobs) as reply:
        pushed = set((await reply.json())["ids"])
    taken: list[str] = []

    async def pull(node: LocalNode) -> None:
        while True:
            async with session.post(f"{node.url}/queues/shared/jobs/pull-batch", json={"count": 7}) as reply:
                batch = (await reply.json())["jobs"]
            if not batch:
                return
            taken.extend(job["id"] for job in batch)

    await asyncio.gather(*(pull(node) for node in cluster.nodes for _ in range(3)))
    assert len(taken) == 600
    assert set(taken) == pushed


async def test_a_body_of_12_mb_is_refused_and_harms_nothing(
    cluster: LocalCluster, session: aiohttp.ClientSession
) -> None:
    term = (await cluster.nodes[0].cluster())["term"]
    body = b'{"data":"' + b"x" * (12 << 20) + b'"}'
    headers = {"Content-Type": "application/json"}
    for node in cluster.nodes:
        async with session.post(f"{node.url}/queues/large/jobs", data=io.BytesIO(body), headers=headers) as reply:
            assert reply.status in (400, 413)
            assert (await reply.json())["ok"] is False
        async with session.post(f"{node.url}/queues/large/jobs", json={"data": "small"}) as reply:
            assert reply.status == 200
    assert (await counts(session, cluster.nodes[0], "large"))["waiting"] == 3
    assert (await cluster.nodes[0].cluster())["term"] == term


async def test_a_job_of_9_mb_reaches_every_node_without_an_election(
    cluster: LocalCluster, session: aiohttp.ClientSession
) -> None:
    term = (await cluster.nodes[0].cluster())["term"]
    text = "x" * (9 << 20)
    body = b'{"data":"' + text.encode() + b'"}'
    headers = {"Content-Type": "application/json"}
    for i, node in enumerate(cluster.nodes):
        async with session.post(f"{node.url}/queues/nine-{i}/jobs", data=io.BytesIO(body), headers=headers) as reply:
            assert reply.status == 200, await reply.text()
        async with session.get(f"{cluster.nodes[i - 1].url}/queues/nine-{i}/jobs") as reply:
            assert (await reply.json())["job"]["data"] == text
    assert (await cluster.nodes[0].cluster())["term"] == term


BROKEN_FRAMES = {
    "text": b"GET / HTTP/1.1\r\nHost: peer\r\n\r\n",
    "random": os.urandom(200_000),
    "zeros": b"\0" * 4096,
    "length of 4 GB": struct.pack(">I", 0xFFFFFFFF),
    "length above the bound, with bytes": struct.pack(">I", 1 << 30) + b"x" * 10_000,
    "frame that is no msgpack": struct.pack(">I", 5) + b"\xc1\xc1\xc1\xc1\xc1",
    "frame that is a number": struct.pack(">I", 1) + b"\x01",
    "frame that is an empty map": struct.pack(">I", 1) + b"\x80",
    "pickle": struct.pack(">I", 40)
    + b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system".ljust(40, b"."),
}


@pytest.mark.parametrize("name", BROKEN_FRAMES)
async def test_broken_frames_on_the_peer_port_end_that_connection_only(
    cluster: LocalCluster, session: aiohttp.ClientSession, name: str
) -> None:
    before = [await node.cluster() for node in cluster.nodes]
    for node in cluster.nodes:
        reader, writer = await asyncio.open_connection(HOST, node.peer_port)
        writer.write(BROKEN_FRAMES[name])
        async with asyncio.timeout(10):
            try:
                await reader.read()
            except ConnectionError:
                pass
        writer.close()
    for node in cluster.nodes:
        async with session.post(f"{node.url}/queues/broken/jobs", json={"data": name}) as reply:
            assert reply.status == 200
    after = [await node.cluster() for node in cluster.nodes]
    assert [(one["term"], one["leader"]) for one in after] == [(one["term"], one["leader"]) for one in before]
    assert all(member["connected"] for one in after for member in one["members"])


async def test_status_agrees_on_all_nodes_and_digests_are_equal(
    cluster: LocalCluster, session: aiohttp.ClientSession
) -> None:
    digest = await cluster.converged()
    answers = [await node.cluster() for node in cluster.nodes]
    assert len({answer["digest"] for answer in answers}) == 1
    assert [(await node.contents())[1] for node in cluster.nodes] == [digest] * 3
    assert [(answer["apart"], answer["differing"]) for answer in answers] == [("", [])] * 3
    assert len({(answer["cluster_id"], answer["term"], answer["leader"]) for answer in answers}) == 1
    roles = sorted(answer["role"] for answer in answers)
    assert roles == ["follower", "follower", "leader"]
    for answer in answers:
        assert [member["id"] for member in answer["members"]] == ["n1", "n2", "n3"]
        assert all(member["connected"] for member in answer["members"])

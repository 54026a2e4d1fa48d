"""Real nodes, of which one has lost its link to the leader alone: its clients notice nothing, whatever they ask for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.support.links import Links
from tests.support.local_cluster import PATIENCE, LocalCluster, LocalNode

CUTS = {"from the leader": (True, False), "to the leader": (False, True), "both ways": (True, True)}
TOKEN = "token-of-this-test"


class Linked(LocalCluster):
    """A cluster whose nodes reach each other through doors that a test shuts in one direction."""

    def __init__(self, **settings: str) -> None:
        super().__init__(**settings)
        self.links = Links(random.Random(1))

    async def start(self) -> None:
        peers = ",".join([f"{node.id}={await self.links.open(node)}" for node in self.nodes])
        for node in self.nodes:
            node.settings |= {"PEERS": peers, "PEER_PORT": str(node.peer_port)}
        await super().start()

    async def close(self) -> None:
        await super().close()
        await self.links.close()


@contextlib.asynccontextmanager
async def cut_cluster(
    ways: tuple[bool, bool],
) -> AsyncIterator[tuple[Linked, LocalNode, LocalNode, aiohttp.ClientSession]]:
    """A cluster, its leader, a node that has lost its link to that, and a client."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with Linked(AUTH_TOKENS=TOKEN, **PATIENCE) as cluster, aiohttp.ClientSession(headers=headers) as session:
        leader = await cluster.leader()
        alone = next(node for node in cluster.nodes if node is not leader)
        if ways[0]:
            cluster.links.cut(leader.id, alone.id)
        if ways[1]:
            cluster.links.cut(alone.id, leader.id)
        yield cluster, leader, alone, session


async def call(session: aiohttp.ClientSession, method: str, url: str, body: Any = None, **more: Any) -> Any:
    async with session.request(method, url, json=body, **more) as reply:
        text = await reply.text()
        assert reply.status == 200, (reply.status, text)
        return json.loads(text)


@pytest.mark.parametrize("ways", CUTS.values(), ids=CUTS)
async def test_every_door_of_a_node_without_a_link_to_the_leader_stays_open(ways: tuple[bool, bool]) -> None:
    async with cut_cluster(ways) as (cluster, leader, alone, session):
        term = (await leader.cluster())["term"]

        # The cut has not been noticed yet: the first request waits, and is done.
        first = await call(session, "POST", f"{alone.url}/queues/q/jobs", {"data": 0})
        assert (await call(session, "GET", f"{leader.url}/jobs/{first['id']}"))["job"]["state"] == "waiting"

        # A long poll, a WebSocket and a stream of events, all at that node, get what comes from elsewhere.
        polling = asyncio.create_task(call(session, "GET", f"{alone.url}/queues/polled/jobs?timeout=20000"))
        async with session.ws_connect(f"{alone.url}/ws") as socket:
            for number in range(5):
                pushed = await call(session, "POST", f"{alone.url}/queues/q/jobs", {"data": number})
                # Strict reads, both ways.
                assert (await call(session, "GET", f"{leader.url}/jobs/{pushed['id']}"))["ok"]
                theirs = await call(session, "POST", f"{leader.url}/queues/q/jobs", {"data": number})
                assert (await call(session, "GET", f"{alone.url}/jobs/{theirs['id']}"))["ok"]
            await socket.send_json({"cmd": "PUSH", "queue": "socket", "data": 1, "reqId": "1"})
            while (said := await socket.receive_json(timeout=15)).get("reqId") != "1":
                pass
            assert said["ok"], said
        assert not polling.done()
        await call(session, "POST", f"{leader.url}/queues/polled/jobs", {"data": "here"})
        taken = (await polling)["job"]
        assert taken["data"] == "here"
        await call(session, "POST", f"{alone.url}/jobs/{taken['id']}/ack", {})

        # A key that was used at the leader is known here, and the other way round.
        key = {"Idempotency-Key": "k"}
        once = await call(session, "POST", f"{leader.url}/queues/q/jobs", {"data": 1}, headers=key)
        assert await call(session, "POST", f"{alone.url}/queues/q/jobs", {"data": 1}, headers=key) == once

        # The other dialects.
        jobs = await call(session, "POST", f"{alone.bullmq_url}/queues/bull/jobs", [{"name": "a", "data": 1}])
        assert jobs[0]["id"] == "1"
        found = await call(session, "GET", f"{leader.bullmq_url}/queues/bull/jobs?statuses=waiting")
        assert [job["id"] for job in found["jobs"]] == ["1"]

        # It is shown, the leader is the same, and no cluster is made anew for it.
        through = next(node.id for node in cluster.nodes if node not in (leader, alone))
        for one, other in ((leader, alone), (alone, leader)):
            # What gets through in one direction alone is no connection either.
            seen = {member["id"]: member for member in (await one.cluster())["members"]}
            assert (seen[other.id]["via"], seen[other.id]["connected"]) == (through, True)
            assert "what this node tells it goes through" in one.log_text()
        assert (await alone.ask("/ready"))[0] == 200
        now = await leader.cluster()
        assert (now["role"], now["term"]) == ("leader", term)
        assert "passes on what" in cluster.by_id(through).log_text()

        cluster.links.heal_all()

        async def direct() -> bool:
            seen = [member for node in (leader, alone) for member in (await node.cluster())["members"]]
            return all(member["via"] is None for member in seen)

        await cluster.until("every node is reached directly", direct, 30)
        await call(session, "POST", f"{alone.url}/queues/q/jobs", {"data": 9})
        await cluster.converged()

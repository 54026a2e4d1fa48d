"""`quorumq members resize` against real nodes: three become five and three again, while jobs are pushed and done."""

from __future__ import annotations

import fcntl
import random
import socket
from pathlib import Path

import pytest

from quorumq.cluster.errors import NodeRemoved
from tests.cluster.test_members import command, members
from tests.cluster.test_strangers import not_started
from tests.cluster.traffic import Traffic, broken
from tests.support.local_cluster import HOST, PATIENCE, LocalCluster, LocalNode

NODES = 5


def free_row() -> int:
    """Return a tenth of ports of which as many as there are nodes are free, one after the other."""
    while True:
        row = random.randint(1_200, 3_000)
        held = [socket.socket() for _ in range(NODES)]
        try:
            for number, one in enumerate(held):
                one.bind((HOST, row * 10 + number))
        except OSError:
            continue
        finally:
            for one in held:
                one.close()
        return row


def as_pods(cluster: LocalCluster) -> str:
    """Have nodes be called as pods are, and find each other by a name, here one for the ports of all; return their address."""
    row = free_row()
    names = ",".join(f"{HOST}:{row}{number}" for number in range(NODES))
    for number, node in enumerate(cluster.nodes):
        del node.settings["PEERS"]
        node.id, node.peer_port = f"q-{number}", row * 10 + number
        node.settings |= {
            "NODE_ID": node.id,
            "PEERS_DNS": names,
            "CLUSTER_SIZE": "3",
            "PEER_PORT": str(node.peer_port),
            "ADVERTISE": f"{HOST}:{node.peer_port}",
        }
    return f"{HOST}:{row}{{number}}"


async def resize(node: LocalNode, size: int, address: str, *more: str) -> str:
    status, said = await command(
        node, "resize", str(size), "--name", "q", "--address", address, "--timeout", "60", *more
    )
    assert status == 0, said
    return said


@pytest.mark.timeout(300)
async def test_three_become_five_and_three_again_and_lose_nothing() -> None:
    async with not_started(NODES, **PATIENCE) as cluster:
        address = as_pods(cluster)
        founders, late = cluster.nodes[:3], cluster.nodes[3:]
        cluster.nodes[3:] = []
        for node in founders:
            await node.start()
        await cluster.ready()
        first = founders[0]
        async with Traffic(cluster, pushers=2, workers=2) as traffic:
            await traffic.until(acked=20)

            # Before their pods start: they learn, and their going leaves what votes as it is.
            said = await resize(first, 5, address, "--no-promote")
            assert "q-3 was added and learns" in said and "caught up" not in said
            assert await members(first) == {f"q-{n}": n < 3 for n in range(5)}
            for node in late:
                await node.start()
            # Ready without a vote: whoever waits for the pods to be ready does not wait for the second half.
            await cluster.ready(late)
            said = await resize(first, 5, address, "--no-remove")
            assert "q-4 has caught up and votes" in said
            assert await members(first) == {f"q-{n}": True for n in range(5)}
            again = await resize(first, 5, address)
            assert "added" not in again and "caught up" not in again and "removed" not in again

            # The one that is to go leads: leadership goes first.
            assert (await command(first, "transfer", "q-4"))[0] == 0
            said = await resize(first, 3, address, "--no-promote")
            assert "leads in place of q-4" in said and said.index("q-4 was removed") < said.index("q-3 was removed")
            assert [await node.exited() for node in late] == [NodeRemoved.exit_code] * 2
            assert await members(first) == {f"q-{n}": True for n in range(3)}

            # With their old disks they are turned away; once these are set aside they are members again.
            await late[0].start()
            assert await late[0].exited() == NodeRemoved.exit_code
            for node in late:
                held = contents(node.data)
                status, said = await command(first, "set-aside", node.id, str(node.data))
                assert status == 0 and "is set aside as" in said and not node.data.exists()
                (kept,) = node.data.parent.glob(f"{node.data.name}-removed-*")
                assert contents(kept) == held
                assert (await command(first, "set-aside", node.id, str(node.data)))[
                    1
                ].strip() == f"{node.id} has no data"
            await resize(first, 5, address, "--no-promote")
            for node in late:
                await node.start()
            await resize(first, 5, address)
            assert await members(first) == {f"q-{n}": True for n in range(5)}
            cluster.nodes += late
            await traffic.until(acked=60)
        await cluster.converged()
        assert await broken(traffic.promises, first) == []


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below, by its path."""
    return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


async def test_only_the_data_of_a_node_that_is_no_member_and_does_not_run_is_set_aside(tmp_path: Path) -> None:
    async with not_started(2) as cluster:
        address = as_pods(cluster)
        one, other = cluster.nodes
        for node in cluster.nodes:
            node.settings["CLUSTER_SIZE"] = "2"
            await node.start()
        await cluster.ready()
        # A member's, whether it runs or not: it may only have been scaled away.
        await other.stop()
        held = contents(other.data)
        await other.start()
        await cluster.ready()
        for node in cluster.nodes:
            status, said = await command(one, "set-aside", node.id, str(node.data))
            assert (status, said.strip()) == (0, f"{node.id} is a member: its data stays")
        await resize(one, 1, address, "--no-promote")
        assert await other.exited() == NodeRemoved.exit_code
        # Somebody else's.
        status, said = await command(one, "set-aside", "q-7", str(other.data))
        assert status == 1 and f"is the data of {other.id}, not of q-7: it stays" in said
        # One that is in use: here by a process that has taken the lock as a node does.
        with (other.data / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            status, said = await command(one, "set-aside", other.id, str(other.data))
            assert status == 1 and "is in use" in said
        # And where nobody can say who the members are, nothing is done.
        await one.kill()
        assert (await command(one, "set-aside", other.id, str(other.data)))[0] == 1
        assert set(held) <= set(contents(other.data)) | {"process.json"}
        assert (await command(one, "set-aside", "q-8", str(tmp_path)))[0] == 1


async def test_members_are_not_removed_when_the_rest_would_be_no_quorum() -> None:
    async with not_started(3, **PATIENCE) as cluster:
        address = as_pods(cluster)
        for node in cluster.nodes:
            await node.start()
        await cluster.ready()
        first, _, last = cluster.nodes
        await cluster.nodes[1].kill()
        arguments = ("resize", "1", "--name", "q", "--address", address, "--timeout", "5")
        status, said = await command(first, *arguments)
        assert (status, "no quorum would remain" in said) == (1, True), said
        assert await members(first) == {"q-0": True, "q-1": True, "q-2": True}
        assert last.running
        # Nodes of another name are none of its business.
        status, said = await command(first, "resize", "1", "--name", "p", "--address", "{id}.p:1", "--no-promote")
        assert status == 0 and "p-0 was added" in said
        assert await members(first) == {"p-0": False, "q-0": True, "q-1": True, "q-2": True}

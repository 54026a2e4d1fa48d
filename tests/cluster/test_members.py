"""Members that come and go while three real processes serve: a fourth joins and votes, one is removed and ends itself."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from quorumq.cli.admin import fetch
from quorumq.cluster.errors import NodeRemoved
from tests.cluster.traffic import Traffic, broken
from tests.support.local_cluster import HOST, PATIENCE, LocalCluster, LocalNode, free_ports


async def command(node: LocalNode, *arguments: str) -> tuple[int, str]:
    """Run `quorumq members` against a node; return its status and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "quorumq", "members", *arguments, "--url", node.url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=node.settings | {"COLUMNS": "200"},
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def members(node: LocalNode) -> dict[str, bool]:
    """Return who belongs, as a node sees it, and whether each votes."""
    return {one["id"]: one["voter"] for one in (await node.cluster())["members"]}


def joining(cluster: LocalCluster, node_id: str) -> LocalNode:
    """Make a node that knows the cluster's members, and is none yet."""
    http_port, bullmq_port, peer_port = free_ports(3)
    node = LocalNode(node_id, http_port, bullmq_port, peer_port, cluster.folder)
    own = {
        "HTTP_PORT": str(http_port),
        "BULLMQ_PORT": str(bullmq_port),
        "TCP_PORT": "off",
        "NODE_ID": node_id,
        "DATA_PATH": str(node.data),
    }
    peers = f"{cluster.nodes[0].settings['PEERS']},{node_id}={HOST}:{peer_port}"
    node.settings = cluster.nodes[0].settings | own | {"PEERS": peers}
    cluster.nodes.append(node)
    return node


async def test_a_fourth_node_joins_and_another_is_removed() -> None:
    async with LocalCluster(3, **PATIENCE) as cluster:
        leader, followers = await cluster.leader(), await cluster.followers()
        async with Traffic(cluster, pushers=2, workers=2) as traffic:
            await traffic.until(acked=20)
            new = joining(cluster, "n4")

            # Asked of a follower: any node will do.
            status, said = await command(followers[0], "add", "n4", f"{HOST}:{new.peer_port}")
            assert status == 0, said
            assert await members(followers[0]) == {"n1": True, "n2": True, "n3": True, "n4": False}
            status, said = await command(leader, "promote", "n4")
            assert (status, "catch up" in said) == (1, True), said
            await new.start()

            async def promoted() -> bool:
                body: Any
                path = "/admin/cluster/members/n4/promote"
                code, body = await asyncio.to_thread(fetch, leader.url + path, method="POST", timeout_s=30)
                assert code == 200 or "catch up" in body["error"] or "try again" in body["error"], body
                return code == 200

            await cluster.until("n4 has caught up and votes", promoted, timeout_s=30)
            await cluster.ready([new])

            async def known() -> bool:
                return await members(new) == {"n1": True, "n2": True, "n3": True, "n4": True}

            await cluster.until("n4 knows that it votes", known, timeout_s=30)
            acked = len(traffic.promises.acked)

            status, said = await command(leader, "remove", leader.id)
            assert (status, f"{leader.id} leads" in said) == (1, True), said
            status, said = await command(followers[0], "transfer", "n4")
            assert status == 0, said
            assert (await cluster.leader()).id == "n4"

            gone = followers[1]

            async def removed() -> bool:
                # A leader that was held up for a moment has not heard the others just now.
                status, said = await command(new, "remove", gone.id)
                assert status == 0 or "try again" in said, said
                return status == 0

            await cluster.until(f"{gone.id} is removed", removed, timeout_s=30)
            assert await gone.exited() == NodeRemoved.exit_code == 3
            (last,) = [line for line in gone.log_text().splitlines() if "ERROR" in line and "cannot go on" in line]
            assert "was removed from this cluster" in last
            assert "Traceback" not in gone.log_text()
            cluster.nodes.remove(gone)
            assert gone.id not in await members(new)
            await traffic.until(acked=50)
            assert len(traffic.promises.acked) > acked

            # With its old data it is refused, and says so again.
            await gone.start()
            assert await gone.exited() == 3
        await cluster.converged()
        assert await broken(traffic.promises, new) == []

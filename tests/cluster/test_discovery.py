"""Real nodes that are given a name, here one that stands for several ports, in place of a list of each other."""

from __future__ import annotations

import shutil

from tests.cluster.test_strangers import logged, not_started
from tests.cluster.traffic import Traffic
from tests.support.local_cluster import HOST, LocalCluster, free_ports


def found_by_name(cluster: LocalCluster) -> None:
    """Take the list from every node, and give it the name."""
    names = ",".join(f"{HOST}:{node.peer_port}" for node in cluster.nodes)
    for node in cluster.nodes:
        del node.settings["PEERS"]
        node.settings |= {
            "PEERS_DNS": names,
            "CLUSTER_SIZE": "3",
            "PEER_PORT": str(node.peer_port),
            "ADVERTISE": f"{HOST}:{node.peer_port}",
        }


async def test_three_nodes_find_each_other_found_one_cluster_and_keep_it() -> None:
    async with not_started(3) as cluster:
        found_by_name(cluster)
        first, second, late = cluster.nodes
        await first.start()
        await second.start()
        await logged(cluster, first, "found 2 of 3 nodes: n1, n2")
        status, said = await first.ask("/ready")
        assert status == 503 and "no cluster yet" in str(said)
        await late.start()
        await cluster.ready()

        async def named() -> str:
            return str((await first.cluster())["cluster_id"])

        name = await cluster.until("the cluster has its id", named, timeout_s=30)
        async with Traffic(cluster) as traffic:
            await traffic.until(acked=50)
            # One loses its disk, and another its address: the name brings both back.
            await late.kill()
            shutil.rmtree(late.data)
            await late.start()
            await cluster.ready()
            moved = second.peer_port
            await second.kill()
            second.peer_port = free_ports(1)[0]
            for node in cluster.nodes:
                node.settings["PEERS_DNS"] = node.settings["PEERS_DNS"].replace(str(moved), str(second.peer_port))
            second.settings |= {"PEER_PORT": str(second.peer_port), "ADVERTISE": f"{HOST}:{second.peer_port}"}
            await second.start()
            await cluster.ready()
            await traffic.until(acked=50)
        await cluster.converged()
        assert {(await node.cluster())["cluster_id"] for node in cluster.nodes} == {name}
        # All at once, as after a power cut.
        for node in cluster.nodes:
            await node.kill()
        await cluster.start()
        await cluster.converged()
        assert {(await node.cluster())["cluster_id"] for node in cluster.nodes} == {name}

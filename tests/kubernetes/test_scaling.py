"""More and fewer nodes on a real control plane: by values, whose hooks change the members, and by `kubectl scale`, which does not."""

from __future__ import annotations

import pytest

from tests.kubernetes.clients import Clients
from tests.kubernetes.release import NAME, Release, installed, is_ready
from tests.support.kubernetes.cluster import Cluster, Trouble

pytestmark = pytest.mark.timeout(600)


async def uids(one: Release, count: int) -> dict[str, str]:
    """Which pods are there, by name, of the first `count`."""
    wanted = {f"{NAME}-{number}" for number in range(count)}
    return {name: pod["metadata"]["uid"] for name, pod in (await one.pods()).items() if name in wanted}


def of(count: int) -> list[str]:
    return [f"{NAME}-{number}" for number in range(count)]


async def test_three_become_five_three_and_five_under_load(kubernetes: Cluster) -> None:
    async with installed(kubernetes, "scale") as one:
        kept = await uids(one, 3)
        async with Clients(one, rate=100) as clients:
            await clients.until(20)
            await one.upgrade(values={"replicaCount": "5"})
            await one.ready(5)
            assert sorted(await one.voters(5)) == of(5)
            await clients.until(20)

            await one.upgrade(values={"replicaCount": "3"})
            await one.ready(3)
            assert sorted(await one.voters(3)) == of(3)
            # The disks of those that were removed are there, with all that they hold.
            claims = {claim["metadata"]["name"] for claim in await one.objects("persistentvolumeclaims")}
            assert claims == {f"data-{name}" for name in of(5)}
            await clients.until(20)

            await one.upgrade(values={"replicaCount": "5"})
            await one.ready(5)
            assert sorted(await one.voters(5)) == of(5)
            await clients.until(20)
        print(clients.summary())
        assert clients.failed == []
        for pod in of(5):
            assert await clients.broken(pod) == []
        await one.converged(5)
        # Nobody else was restarted, and what the removed ones had is kept beside what they have now.
        assert await uids(one, 3) == kept
        for pod in of(5)[3:]:
            said = (
                await one.execute(pod, "sh", "-c", "ls -d /var/lib/quorumq/data*; ls /var/lib/quorumq/data-removed-*")
            ).split()
            assert said[0] == "/var/lib/quorumq/data" and said[1].startswith("/var/lib/quorumq/data-removed-")
            assert {"identity.json", "log"} <= set(said)


async def test_nodes_are_not_removed_when_the_rest_would_be_no_quorum(kubernetes: Cluster) -> None:
    async with installed(kubernetes, "quorum", replicaCount="5") as one:
        leader = await one.leader()
        lost = [pod for pod in of(3) if pod != leader][:2]
        pods = await one.pods()
        machines = [pods[pod]["spec"]["nodeName"] for pod in lost]
        try:
            for machine in machines:
                await one.cluster.control("lose", machine=machine)

            async def noticed() -> bool:
                nodes = [await one.api.get(f"/api/v1/nodes/{machine}") for machine in machines]
                return not any(is_ready(node) for node in nodes)

            await one.until("Kubernetes knows that they are gone", noticed)
            # Of three two would be away.
            with pytest.raises(Trouble, match="pre-upgrade hooks failed"):
                await one.upgrade(values={"replicaCount": "3", "membership.timeoutSeconds": "5"})
            assert len(await one.members(leader)) == 5
            (stateful,) = await one.objects("statefulsets", "/apis/apps/v1")
            assert stateful["spec"]["replicas"] == 5
        finally:
            for machine in machines:
                await one.cluster.control("find", machine=machine)
        async with Clients(one) as clients:
            await clients.until(20)
        await one.ready(5)
        assert clients.failed == []


@pytest.mark.long
async def test_kubectl_scale_loses_no_write(kubernetes: Cluster) -> None:
    async with installed(kubernetes, "kubectl") as one:
        async with Clients(one, rate=100) as clients:
            await clients.until(20)
            # Upwards: they wait, and take part in nothing.
            await one.kubectl("scale", "statefulset", NAME, "--replicas=5")

            async def strangers() -> bool:
                said = [one.log(pod) for pod in of(5)[3:]]
                return all("not a member yet" in text for text in said)

            await one.until("the new pods say what they wait for", strangers)
            assert [name for name, pod in (await one.pods()).items() if not is_ready(pod)] == of(5)[3:]
            assert len(await one.members()) == 3
            await clients.until(20)
            # And helm makes them members.
            await one.upgrade(values={"replicaCount": "5"})
            await one.ready(5)
            assert sorted(await one.voters(5)) == of(5)
            await clients.until(20)

            # Downwards: members stop, and are still members; three of five go on.
            await one.kubectl("scale", "statefulset", NAME, "--replicas=3")
            await one.ready(3)
            assert len(await one.members()) == 5
            await clients.until(20)
            # They come back with their disks.
            await one.kubectl("scale", "statefulset", NAME, "--replicas=5")
            await one.ready(5)
            await clients.until(20)

            # Downwards, and then helm is told: those that are away lose their seats.
            await one.kubectl("scale", "statefulset", NAME, "--replicas=3")
            await one.ready(3)
            await one.upgrade(values={"replicaCount": "3"})
            assert sorted(await one.voters(3)) == of(3)
            await clients.until(20)
        print(clients.summary())
        assert clients.failed == []
        for pod in of(3):
            assert await clients.broken(pod) == []
        await one.converged(3)

"""Pods and links that go, on a real control plane: a drained machine, kill -9, partitions, all pods at once, a majority for good."""

from __future__ import annotations

import asyncio

import pytest

from tests.kubernetes.clients import Clients
from tests.kubernetes.release import NAME, Release, installed, is_ready
from tests.support.kubernetes.api import Refused
from tests.support.kubernetes.cluster import Cluster, Trouble

pytestmark = pytest.mark.timeout(900)


async def finished(one: Release, clients: Clients, count: int = 3) -> None:
    """Everything is well again, and every promise was kept."""
    await one.ready(count)
    await clients.until(30)
    await clients.stop()
    print(clients.summary())
    for pod in await one.pods():
        assert await clients.broken(pod) == []
    await one.converged(count)


async def evict(one: Release, pod: str) -> None:
    """What `kubectl drain` asks for. Raises Refused."""
    body = {"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": pod, "namespace": one.namespace}}
    await one.api.ask("POST", f"/api/v1/namespaces/{one.namespace}/pods/{pod}/eviction", body)


async def test_a_machine_is_drained_and_no_request_fails(kubernetes: Cluster) -> None:
    async with installed(kubernetes, "drain") as one:
        pod = await one.leader()
        before = await one.pods()
        machine = before[pod]["spec"]["nodeName"]
        other = next(name for name in before if name != pod)
        async with Clients(one) as clients:
            await clients.until(50)
            await one.kubectl("cordon", machine)
            try:
                await evict(one, pod)
                # Nobody else may be taken away meanwhile.
                with pytest.raises(Refused) as refused:
                    await evict(one, other)
                assert refused.value.status == 429

                async def moved() -> bool:
                    now = (await one.pods()).get(pod)
                    return (
                        now is not None and now["metadata"]["uid"] != before[pod]["metadata"]["uid"] and is_ready(now)
                    )

                await one.until("the pod is on another machine", moved)
                assert (await one.pods())[pod]["spec"]["nodeName"] != machine
                await finished(one, clients)
            finally:
                await one.kubectl("uncordon", machine)
        assert clients.failed == []


async def test_the_leaders_pod_is_killed_and_nothing_is_lost(kubernetes: Cluster) -> None:
    async with installed(kubernetes, "kill") as one, Clients(one, rate=100) as clients:
        for _ in range(2):
            await clients.until(20)
            pod = await one.leader()
            before = (await one.pods())[pod]["status"]["containerStatuses"][0]["restartCount"]
            await one.kill(pod)

            async def again(pod: str = pod, before: int = before) -> bool:
                (status,) = (await one.pods())[pod]["status"]["containerStatuses"]
                return status["restartCount"] > before and status["ready"]

            await one.until(f"{pod} runs again", again)
        await finished(one, clients)


@pytest.mark.long
async def test_a_pod_is_deleted_by_force_and_comes_back_with_its_disk(kubernetes: Cluster) -> None:
    async with installed(kubernetes, "force") as one, Clients(one, rate=100) as clients:
        await clients.until(20)
        pod = await one.leader()
        uid = (await one.pods())[pod]["metadata"]["uid"]
        await one.kubectl("delete", "pod", pod, "--force", "--grace-period=0")

        async def again() -> bool:
            now = (await one.pods()).get(pod)
            return now is not None and now["metadata"]["uid"] != uid and is_ready(now)

        await one.until(f"there is another {pod}", again)
        await finished(one, clients)


async def test_partitions_cost_no_promise(kubernetes: Cluster) -> None:
    async with installed(kubernetes, "cut") as one, Clients(one, rate=100) as clients:
        await clients.until(20)
        # One way: what the leader sends to one follower is lost.
        leader = await one.leader()
        followers = [pod for pod in await one.pods() if pod != leader]
        await cut(one, (leader, followers[0]))
        await clients.until(60)
        await one.cluster.control("heal")
        await one.ready(3)

        # One way: nobody hears the leader, who hears everybody.
        leader = await one.leader()
        others = [pod for pod in await one.pods() if pod != leader]
        await cut(one, *((leader, other) for other in others))
        await another_leads(one, leader, others)
        await clients.until(30)
        await one.cluster.control("heal")
        await one.ready(3)

        # Both ways: the leader is alone. It is taken out of the Service, and the others go on.
        leader = await one.leader()
        others = [pod for pod in await one.pods() if pod != leader]
        await cut(one, *((leader, other) for other in others), *((other, leader) for other in others))
        await another_leads(one, leader, others)

        async def out() -> bool:
            pods = await one.pods()
            return [name for name, pod in pods.items() if not is_ready(pod)] == [leader]

        await one.until(f"{leader} is not ready", out)
        await asyncio.sleep(2)
        since = clients.now
        await clients.until(60)
        # Whoever comes now is led to one of the two.
        assert clients.failed_since(since) == []
        # A node that is cut off is well: it is not for a probe to kill it.
        assert sum(pod["status"]["containerStatuses"][0]["restartCount"] for pod in (await one.pods()).values()) == 0
        await one.cluster.control("heal")
        await finished(one, clients)


async def cut(one: Release, *links: tuple[str, str]) -> None:
    for source, target in links:
        await one.cluster.control("cut", source=f"{one.namespace}/{source}", target=f"{one.namespace}/{target}")


async def another_leads(one: Release, leader: str, others: list[str]) -> None:
    async def led() -> bool:
        return (await one.ask(others[0], "/admin/cluster"))["leader"] in others

    await one.until(f"another than {leader} leads", led)


async def test_all_pods_are_killed_at_once(kubernetes: Cluster) -> None:
    async with installed(kubernetes, "all") as one:
        async with Clients(one, rate=100) as clients:
            await clients.until(40)
            await one.kill(*await one.pods())

            async def again() -> bool:
                statuses = [pod["status"]["containerStatuses"][0] for pod in (await one.pods()).values()]
                return all(status["restartCount"] == 1 for status in statuses)

            await one.until("all three were started again", again)
            await finished(one, clients)
        # And all pods, not only what runs in them.
        await one.kubectl(
            "delete", "pods", "--selector=app.kubernetes.io/component=node", "--force", "--grace-period=0"
        )
        await one.ready(3)
        await one.converged(3)
        for pod in await one.pods():
            assert await clients.broken(pod) == []


@pytest.mark.long
async def test_a_majority_is_lost_for_good_and_the_cluster_is_founded_anew(kubernetes: Cluster) -> None:
    """docs/kubernetes.md, "A majority is lost for good", word for word."""
    async with installed(kubernetes, "majority") as one:
        async with Clients(one, rate=100) as clients:
            await clients.until(30)
        await one.converged(3)
        await one.kubectl("scale", "statefulset", NAME, "--replicas=0")
        await one.ready(0)
        for number in (0, 1):
            await one.kubectl("delete", "pvc", f"data-{NAME}-{number}")
        await one.upgrade(values={"diagnosticMode.enabled": "true"})
        await one.ready(3)
        said = await one.execute(f"{NAME}-2", "quorumq", "recover", "/var/lib/quorumq/data", "--dry-run")
        assert "becomes a new cluster" in said
        await one.execute(f"{NAME}-2", "quorumq", "recover", "/var/lib/quorumq/data", "--yes")
        with pytest.raises(Trouble):
            await one.execute(f"{NAME}-0", "ls", "/var/lib/quorumq/data")
        await one.kubectl("scale", "statefulset", NAME, "--replicas=0")
        await one.ready(0)
        # Not to be waited for: the others are ready only when the Job that comes after it has made them members.
        await one.upgrade(values={"diagnosticMode.enabled": "false"}, wait=False)
        await one.ready(3)
        await one.voters(3)
        for pod in await one.pods():
            assert await clients.broken(pod) == []
        async with Clients(one) as more:
            more.history.jobs |= clients.history.jobs
            await more.until(20)
        assert more.failed == []

"""The chart on a real control plane: what `helm install` makes of it, from nothing to three nodes that take jobs."""

from __future__ import annotations

import time

import pytest

from tests.kubernetes.clients import Clients
from tests.kubernetes.release import NAME, Release, is_ready, release
from tests.support.kubernetes.cluster import Cluster, Trouble

pytestmark = pytest.mark.timeout(400)


async def waiting(one: Release) -> list[str]:
    """Why the first containers of the pods do not run."""
    found = [pod["status"].get("containerStatuses", [{}])[0] for pod in (await one.pods()).values()]
    return [status.get("state", {}).get("waiting", {}).get("message", "") for status in found]


async def test_pods_wait_for_the_secrets_and_then_found_a_cluster(kubernetes: Cluster) -> None:
    async with release(kubernetes, "install") as one:
        said = await one.install(wait=False)
        assert "create secret generic quorumq-cluster" in said

        async def all_wait() -> bool:
            reasons = await waiting(one)
            return len(reasons) == 3 and all('secret "quorumq-cluster" not found' in reason for reason in reasons)

        await one.until("three pods wait for the secret", all_wait)
        began = time.monotonic()
        await one.secrets()
        pods = await one.ready(3)
        print(f"three ready pods {time.monotonic() - began:.1f} s after the secrets")

        # Each on a machine of its own, and each in the Service, which learns it a moment after the pods' state says so.
        assert len({pod["spec"]["nodeName"] for pod in pods.values()}) == 3

        async def all_serve() -> bool:
            (subset,) = (await one.api.get(f"/api/v1/namespaces/install/endpoints/{NAME}"))["subsets"]
            return sorted(place["targetRef"]["name"] for place in subset.get("addresses", ())) == sorted(pods)

        await one.until("three pods are in the Service", all_serve, 30.0)
        members = await one.members()
        assert sorted(members) == sorted(pods) and all(member["voter"] for member in members.values())

        # What the security contexts say is so: nobody special, no rights, nothing to write to but the disk and /tmp.
        said = await one.execute(f"{NAME}-0", "sh", "-c", "id -u; id -g; grep -E 'CapEff|NoNewPrivs' /proc/1/status")
        assert said.split() == ["10001", "10001", "CapEff:", "0000000000000000", "NoNewPrivs:", "1"]
        with pytest.raises(Trouble, match="Read-only file system"):
            await one.execute(f"{NAME}-0", "touch", "/opt/file")
        assert "leader" in await one.execute(f"{NAME}-0", "quorumq", "status")

        try:
            assert "Succeeded" in await one.cluster.helm("test", NAME, "--namespace=install", "--timeout=120s")
        except Trouble as trouble:
            trouble.add_note(one.log(f"{NAME}-test", "test"))
            raise

        async with Clients(one) as clients:
            await clients.until(acknowledged := 20)
        assert clients.failed == [] and len(clients.acknowledged) >= acknowledged
        assert await clients.broken(f"{NAME}-1") == []
        await one.converged(3)
        assert all(is_ready(pod) for pod in (await one.pods()).values())

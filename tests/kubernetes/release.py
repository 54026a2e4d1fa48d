"""A release of the chart in a namespace of its own, on a real control plane, and what tests ask of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from quorumq.cli.admin import NoAnswer, fetch
from tests.kubernetes.rendering import CHART
from tests.support.kubernetes.api import Api, Object, Refused
from tests.support.kubernetes.cluster import Cluster, Trouble

TOKEN = "a token of this test"
NAME = "quorumq"
POLL_S = 0.1
READY_S = 120.0
# A leader shall not change because the machine, on which much else runs, pauses for a second.
VALUES = {
    "image.tag": "present",
    "persistence.size": "1Gi",
    "config.election_min_ms": "4000",
    "config.election_max_ms": "5000",
}


def flags(values: dict[str, str]) -> list[str]:
    return [f"--set={name}={value}" for name, value in values.items()]


class Release:
    """The chart as `quorumq` in `namespace`. values: of the chart, on top of the ones above, for this and later upgrades."""

    def __init__(self, cluster: Cluster, api: Api, namespace: str, chart: Path = CHART) -> None:
        self.cluster = cluster
        self.api = api
        self.namespace = namespace
        self.chart = chart
        self.values = dict(VALUES)

    # -- helm --------------------------------------------------------------------------------------------------------

    async def secrets(self) -> None:
        """Make the two Secrets that the pods wait for."""
        for name, key, value in (("cluster", "secret", "s" * 64), ("auth", "token", TOKEN)):
            body = {"metadata": {"name": f"quorumq-{name}"}, "stringData": {key: value}}
            await self.api.ask("POST", f"/api/v1/namespaces/{self.namespace}/secrets", body)

    async def install(self, *arguments: str, wait: bool = True, **values: str) -> str:
        return await self._helm("install", *arguments, wait=wait, values=values)

    async def upgrade(self, *arguments: str, wait: bool = True, values: dict[str, str] | None = None) -> str:
        return await self._helm("upgrade", *arguments, wait=wait, values=values or {})

    async def _helm(self, what: str, *arguments: str, wait: bool, values: dict[str, str]) -> str:
        self.values |= values
        waits = ["--wait", "--timeout=300s"] if wait else []
        own = f"--namespace={self.namespace}"
        return await self.cluster.helm(what, NAME, str(self.chart), own, *waits, *flags(self.values), *arguments)

    async def kubectl(self, *arguments: str) -> str:
        return await self.cluster.kubectl(f"--namespace={self.namespace}", *arguments)

    # -- what there is -----------------------------------------------------------------------------------------------

    async def objects(self, kind: str, group: str = "/api/v1") -> list[Object]:
        return await self.api.items(f"{group}/namespaces/{self.namespace}/{kind}")

    async def pods(self) -> dict[str, Object]:
        """The nodes' pods by name."""
        listed = await self.api.items(
            f"/api/v1/namespaces/{self.namespace}/pods?labelSelector=app.kubernetes.io%2Fcomponent%3Dnode"
        )
        return {one["metadata"]["name"]: one for one in listed}

    async def address(self, pod: str) -> str:
        """Address of a pod that runs. Raises Trouble."""
        found = await self.cluster.control("pods")
        try:
            return found[f"{self.namespace}_{pod}"]
        except KeyError:
            raise Trouble(f"{pod} does not run") from None

    async def url(self) -> str:
        """Where clients go: the Service's address, behind which the ready pods are."""
        service = await self.api.get(f"/api/v1/namespaces/{self.namespace}/services/{NAME}")
        return f"http://{service['spec']['clusterIP']}:6790"

    async def ask(self, pod: str, path: str, **how: Any) -> Any:
        """Send a node a request as an administrator. Raises NoAnswer."""
        address = await self.address(pod)
        status, body = await asyncio.to_thread(
            fetch, f"http://{address}:6790{path}", token=TOKEN, timeout_s=10.0, **how
        )
        if status != 200:
            raise NoAnswer(f"{pod} {path}: {status} {body}")
        return body

    async def execute(self, pod: str, *command: str) -> str:
        """What `kubectl exec` does, which the machines of these tests have no streams for. Raises Trouble."""
        status, said = await self.cluster.control("execute", pod=f"{self.namespace}/{pod}", command=list(command))
        if status:
            raise Trouble(f"{pod}: {' '.join(command)}: {status}\n{said}")
        return said

    async def kill(self, *pods: str) -> None:
        """kill -9 of nodes, at once."""
        await asyncio.gather(*(self.cluster.control("kill", pod=f"{self.namespace}/{pod}") for pod in pods))

    # -- waiting -----------------------------------------------------------------------------------------------------

    async def until(self, what: str, check: Callable[[], Any], timeout_s: float = READY_S) -> Any:
        """Ask `check` until it gives something true; return that. Raises Trouble with what is known of the pods."""
        ends = time.monotonic() + timeout_s
        said = ""
        while True:
            try:
                if found := await check():
                    return found
            except (NoAnswer, Trouble, Refused) as error:
                said = str(error)
            if time.monotonic() > ends:
                raise Trouble(f"not within {timeout_s:.0f} s: {what} ({said})\n{await self.report()}")
            await asyncio.sleep(POLL_S)

    async def ready(self, count: int, timeout_s: float = READY_S) -> dict[str, Object]:
        """Wait until exactly so many pods are there and all are ready."""

        async def all_ready() -> Any:
            pods = await self.pods()
            going = [one for one in pods.values() if "deletionTimestamp" in one["metadata"]]
            return len(pods) == count and not going and all(is_ready(one) for one in pods.values()) and [pods]

        return (await self.until(f"{count} pods are ready", all_ready, timeout_s))[0]

    async def members(self, pod: str = f"{NAME}-0") -> dict[str, Object]:
        """The members as a node sees them, by id."""
        return {one["id"]: one for one in (await self.ask(pod, "/admin/cluster/members"))["members"]}

    async def voters(self, count: int) -> dict[str, Object]:
        """Wait until there are exactly so many members and all of them vote."""

        async def all_vote() -> Any:
            members = await self.members()
            return len(members) == count and all(one["voter"] for one in members.values()) and members

        return await self.until(f"{count} members vote", all_vote)

    async def leader(self) -> str:
        """Name of the pod that leads, once it says so itself."""

        async def found() -> str | None:
            for pod in await self.pods():
                with contextlib.suppress(NoAnswer, Trouble):
                    if (await self.ask(pod, "/admin/cluster"))["role"] == "leader":
                        return pod
            return None

        return await self.until("somebody leads", found)

    async def converged(self, count: int) -> str:
        """Wait until so many nodes have applied the same entries; return the digest of what they hold. Raises Trouble."""

        async def same() -> str | None:
            pods = await self.pods()
            held = [await self.ask(pod, "/admin/contents") for pod in pods]
            if len(held) != count or len({one["index"] for one in held}) != 1:
                return None
            assert len({one["digest"] for one in held}) == 1, held
            return str(held[0]["digest"])

        return await self.until(f"{count} nodes hold the same", same)

    async def report(self) -> str:
        """What a person would look at."""
        lines = self.cluster.log_text().splitlines()[-40:]
        for name, pod in (await self.pods()).items():
            lines.append(f"--- {name} on {pod['spec'].get('nodeName')}: {pod['status'].get('containerStatuses')}")
            lines += self.log(name).splitlines()[-15:]
        return "\n".join(lines)

    def log(self, pod: str, container: str = NAME) -> str:
        """All that a pod of this name has said."""
        path = self.cluster.folder / "logs" / f"{self.namespace}_{pod}_{container}.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""


def is_ready(pod: Object) -> bool:
    conditions = pod["status"].get("conditions") or []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


@contextlib.asynccontextmanager
async def release(cluster: Cluster, namespace: str, chart: Path = CHART) -> AsyncIterator[Release]:
    """A release that is yet to be installed; its namespace goes at the end, with all that is in it."""
    async with cluster.api() as api:
        await api.ask("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
        try:
            yield Release(cluster, api, namespace, chart)
        finally:
            await cleared(api, namespace)


async def cleared(api: Api, namespace: str) -> None:
    """Take a namespace away, at once, and wait until nothing of it runs."""
    at_once = {"gracePeriodSeconds": 0, "propagationPolicy": "Background"}
    for kind in (
        "/apis/apps/v1/namespaces/{}/statefulsets",
        "/apis/batch/v1/namespaces/{}/jobs",
        "/api/v1/namespaces/{}/pods",
    ):
        with contextlib.suppress(Refused):
            await api.ask("DELETE", kind.format(namespace), at_once)
    await api.ask("DELETE", f"/api/v1/namespaces/{namespace}", at_once)
    async with asyncio.timeout(60):
        while True:
            try:
                await api.get(f"/api/v1/namespaces/{namespace}")
            except Refused:
                return
            await asyncio.sleep(POLL_S)


@contextlib.asynccontextmanager
async def installed(cluster: Cluster, namespace: str, **values: str) -> AsyncIterator[Release]:
    """A release of three ready nodes, or as many as `replicaCount` says."""
    async with release(cluster, namespace) as one:
        await one.secrets()
        one.values |= values
        await one.install()
        await one.ready(int(values.get("replicaCount", 3)))
        yield one

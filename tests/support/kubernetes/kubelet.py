"""Machines: they register, run the pods that the scheduler gives them, and have disks for claims; Services and names follow the API."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from pathlib import Path

import aiohttp

from tests.support.kubernetes.api import Api, Object, Refused
from tests.support.kubernetes.network import GATEWAY, Network
from tests.support.kubernetes.pod import Pod, now
from tests.support.kubernetes.processes import Image

log = logging.getLogger("kubelet")

HEARTBEAT_S = 5.0
CLASS = "disks"
CAPACITY = {"cpu": "8", "memory": "16Gi", "pods": "110", "ephemeral-storage": "50Gi"}
NOTHING = (
    "machineID",
    "systemUUID",
    "bootID",
    "kernelVersion",
    "osImage",
    "kubeProxyVersion",
    "operatingSystem",
    "architecture",
)


class Kubelet:
    """All machines of a cluster; an async context manager.

    folder: for pods, disks and logs. lag_s: how long what Services lead to is behind what the API says.
    images: what may be run, by name.
    """

    def __init__(
        self, api: Api, network: Network, folder: Path, machines: list[str], images: dict[str, Image], lag_s: float
    ) -> None:
        self.api = api
        self.network = network
        self.folder = folder
        self.machines = machines
        self.images = images
        self.address = GATEWAY
        self.disks = folder / "disks"
        self.logs = folder / "logs"
        self.pods: dict[str, Pod] = {}
        self.lost: set[str] = set()
        self._lag_s = lag_s
        self._began = now()
        self._known: dict[str, Object] = {}
        self._services: dict[str, Object] = {}
        self._endpoints: dict[str, Object] = {}
        self._changed = asyncio.Event()
        self._leaving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Kubelet:
        for folder in (self.disks, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
        await self.api.ask(
            "POST",
            "/apis/storage.k8s.io/v1/storageclasses",
            {
                "metadata": {"name": CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
                "provisioner": "tests/folders",
                "reclaimPolicy": "Delete",
            },
        )
        await self._beat()
        work = (self._beats(), self._follow_pods(), self._follow_services(), self._follow_endpoints(), self._publish())
        self.tasks = [asyncio.create_task(one) for one in (*work, self._follow_claims(), self._follow_disks())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.gather(*(pod.drop() for pod in self.pods.values()), return_exceptions=True)
        await self.session.close()

    # -- machines ----------------------------------------------------------------------------------------------------

    async def _beats(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            with contextlib.suppress(Refused, aiohttp.ClientError, TimeoutError):
                await self._beat()

    async def _beat(self) -> None:
        for machine in self.machines:
            if machine not in self.lost:
                await self._heartbeat(machine)

    async def _heartbeat(self, machine: str) -> None:
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "lastHeartbeatTime": now(),
            "lastTransitionTime": self._began,
        }
        info = dict.fromkeys(NOTHING, "") | {
            "kubeletVersion": "v1.20.2-tests",
            "containerRuntimeVersion": "processes://1",
        }
        status = {
            "capacity": CAPACITY,
            "allocatable": CAPACITY,
            "conditions": [ready],
            "addresses": [{"type": "InternalIP", "address": self.address}],
            "nodeInfo": info,
        }
        try:
            await self.api.merge(f"/api/v1/nodes/{machine}/status", {"status": status})
        except Refused as error:
            if error.status != 404:
                raise
            labels = {"kubernetes.io/hostname": machine, "kubernetes.io/os": "linux"}
            labels["topology.kubernetes.io/zone"] = f"zone-{machine}"
            await self.api.ask("POST", "/api/v1/nodes", {"metadata": {"name": machine, "labels": labels}})
            await self.api.merge(f"/api/v1/nodes/{machine}/status", {"status": status})
        leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        at = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
        lease = {"spec": {"holderIdentity": machine, "leaseDurationSeconds": 40, "renewTime": at}}
        try:
            await self.api.merge(f"{leases}/{machine}", lease)
        except Refused as error:
            # Its namespace is made by a controller, a while after the start.
            if error.status != 404:
                raise
            with contextlib.suppress(Refused):
                await self.api.ask("POST", leases, {"metadata": {"name": machine}} | lease)

    async def lose(self, machine: str) -> None:
        """The machine is gone, with everything that ran on it; nobody is told. Its disks stay."""
        self.lost.add(machine)
        gone = [pod for pod in self.pods.values() if pod.machine == machine]
        for pod in gone:
            del self.pods[pod.uid]
        await asyncio.gather(*(pod.drop() for pod in gone))

    def find(self, machine: str) -> None:
        """The machine is back, and starts the pods anew that are still its own."""
        self.lost.discard(machine)
        self._reconcile(self._known)

    # -- pods --------------------------------------------------------------------------------------------------------

    async def _follow_pods(self) -> None:
        async for held in self.api.watched("/api/v1/pods"):
            self._known = held
            try:
                self._reconcile(held)
            except Exception:
                log.exception("pods")

    def _reconcile(self, held: dict[str, Object]) -> None:
        for uid, given in held.items():
            machine = given["spec"].get("nodeName")
            if machine not in self.machines or machine in self.lost:
                continue
            over = given["status"].get("phase") in ("Succeeded", "Failed")
            leaving = "deletionTimestamp" in given["metadata"]
            if uid in self.pods:
                self.pods[uid].object = given
                if leaving:
                    grace = given["metadata"].get("deletionGracePeriodSeconds", 30)
                    self._later(self.pods[uid].delete(grace))
            elif leaving:
                self._later(self._forget(given))
            elif not over:
                self.pods[uid] = Pod(self, given)
        for uid in self.pods.keys() - held.keys():
            # Deleted by force, or by ourselves when it had ended.
            pod = self.pods.pop(uid)
            if not pod.deleting:
                self._later(pod.drop())

    def _later(self, work: object) -> None:
        task = asyncio.create_task(work)  # type: ignore[arg-type]
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _forget(self, given: Object) -> None:
        """A pod that is to go and of which nothing runs."""
        meta = given["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        with contextlib.suppress(Refused, aiohttp.ClientError):
            await self.api.ask("DELETE", path, {"gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}})

    # -- Services ----------------------------------------------------------------------------------------------------

    async def _follow_services(self) -> None:
        async for held in self.api.watched("/api/v1/services"):
            self._services = held
            self._changed.set()

    async def _follow_endpoints(self) -> None:
        async for held in self.api.watched("/api/v1/endpoints"):
            self._endpoints = held
            self._changed.set()

    async def _publish(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            # What is published is what the API said this long ago.
            services, endpoints = list(self._services.values()), list(self._endpoints.values())
            await asyncio.sleep(self._lag_s)
            try:
                self.network.publish(services, endpoints)
            except Exception:
                log.exception("services")

    # -- disks -------------------------------------------------------------------------------------------------------

    async def _follow_claims(self) -> None:
        made: set[str] = set()
        async for held in self.api.watched("/api/v1/persistentvolumeclaims"):
            for uid, claim in held.items():
                spec = claim["spec"]
                if uid in made or spec.get("storageClassName") != CLASS or spec.get("volumeName"):
                    continue
                made.add(uid)
                name = f"disk-{uid}"
                (self.disks / name).mkdir()
                meta = claim["metadata"]
                volume = {
                    "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": "tests/folders"}},
                    "spec": {
                        "capacity": spec["resources"]["requests"],
                        "accessModes": spec["accessModes"],
                        "storageClassName": CLASS,
                        "persistentVolumeReclaimPolicy": "Delete",
                        "hostPath": {"path": str(self.disks / name)},
                        "claimRef": {
                            "kind": "PersistentVolumeClaim",
                            "namespace": meta["namespace"],
                            "name": meta["name"],
                            "uid": uid,
                        },
                    },
                }
                with contextlib.suppress(Refused, aiohttp.ClientError):
                    await self.api.ask("POST", "/api/v1/persistentvolumes", volume)

    async def _follow_disks(self) -> None:
        async for held in self.api.watched("/api/v1/persistentvolumes"):
            for volume in held.values():
                name, keep = volume["metadata"]["name"], volume["spec"]["persistentVolumeReclaimPolicy"] != "Delete"
                if (
                    volume["status"].get("phase") not in ("Released", "Failed")
                    or keep
                    or "deletionTimestamp" in volume["metadata"]
                ):
                    continue
                shutil.rmtree(self.disks / name, ignore_errors=True)
                with contextlib.suppress(Refused, aiohttp.ClientError):
                    await self.api.ask("DELETE", f"/api/v1/persistentvolumes/{name}")

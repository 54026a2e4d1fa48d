"""One pod on a machine: its network, volumes and containers, started, probed, restarted and stopped as a kubelet does, and its status."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.support.kubernetes import volumes
from tests.support.kubernetes.api import Object, Refused
from tests.support.kubernetes.processes import Process, Rights
from tests.support.kubernetes.volumes import NotYet

if TYPE_CHECKING:
    from tests.support.kubernetes.kubelet import Kubelet

log = logging.getLogger("kubelet")

AGAIN_S = 1.0
# A container that ended is started again after this long, and each time after twice as long, up to a bound.
BACK_OFF_S, BACK_OFF_MAX_S = 1.0, 30.0
# After running this long it begins anew.
WELL_S = 60.0


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Container:
    """One container of a pod, and what is known of it."""

    def __init__(self, pod: Pod, spec: Object) -> None:
        self.pod = pod
        self.spec = spec
        self.name: str = spec["name"]
        log_file = pod.kubelet.logs / f"{pod.name}_{self.name}.log"
        self.process = Process(self.name, pod.folder, pod.place, log_file)
        self.state: Object = {"waiting": {"reason": "ContainerCreating"}}
        self.last: Object = {}
        self.ready = False
        self.started = False
        self.restarts = 0
        # Set while somebody ends it: then it is not for a probe to do so.
        self.ending = False

    async def begin(self) -> None:
        """Start it once. Raises NotYet."""
        pod = self.pod
        image = pod.kubelet.images.get(self.spec["image"])
        if image is None:
            raise NotYet("ImagePullBackOff", f'no image "{self.spec["image"]}"')
        try:
            rights = Rights.of(pod.object, self.spec)
        except ValueError as error:
            raise NotYet("CreateContainerConfigError", str(error)) from None
        variables = await volumes.variables(pod.kubelet.api, pod.object, self.spec, pod.place.address, image)
        mounts = volumes.mounts(self.spec, pod.volumes)
        names = pod.kubelet.network.folder
        self.ending = False
        await self.process.start(image, self.spec, rights, variables, mounts, names)
        self.started = "startupProbe" not in self.spec
        self.ready = self.started and "readinessProbe" not in self.spec
        self.state = {"running": {"startedAt": now()}}
        log.info("%s %s started", pod.name, self.name)
        await pod.tell()

    async def begun(self) -> None:
        """Start it, as often as it needs."""
        while True:
            try:
                return await self.begin()
            except NotYet as error:
                self.state = {"waiting": {"reason": error.reason, "message": str(error)}}
                await self.pod.tell()
            await asyncio.sleep(AGAIN_S)

    async def once(self) -> int:
        """Start it and wait until it has ended; return its status."""
        await self.begun()
        probes = [
            asyncio.create_task(self.probe(kind, self.spec[f"{kind}Probe"]))
            for kind in ("startup", "readiness", "liveness")
            if f"{kind}Probe" in self.spec
        ]
        try:
            status = await self.process.wait()
        finally:
            for task in probes:
                task.cancel()
            await asyncio.gather(*probes, return_exceptions=True)
        self.ready = False
        reason = "Completed" if status == 0 else "Error"
        self.state = {"terminated": {"exitCode": status, "reason": reason, "finishedAt": now()}}
        log.info("%s %s ended with status %d", self.pod.name, self.name, status)
        await self.pod.tell()
        return status

    async def run(self) -> int:
        """Keep it running as its pod says; return the status that it ended with for good."""
        policy, back_off = self.pod.object["spec"].get("restartPolicy", "Always"), 0.0
        while True:
            began = time.monotonic()
            status = await self.once()
            if self.pod.deleting or policy == "Never" or (policy == "OnFailure" and status == 0):
                return status
            back_off = (
                BACK_OFF_S if time.monotonic() - began > WELL_S else min(max(BACK_OFF_S, 2 * back_off), BACK_OFF_MAX_S)
            )
            self.last, self.restarts = self.state, self.restarts + 1
            self.state = {"waiting": {"reason": "CrashLoopBackOff"}}
            await self.pod.tell()
            await asyncio.sleep(back_off)

    # -- probes ------------------------------------------------------------------------------------------------------

    async def probe(self, kind: str, how: Object) -> None:
        """Probe until the container ends; what follows from it is done."""
        failures = successes = 0
        await asyncio.sleep(how.get("initialDelaySeconds", 0))
        while True:
            if kind != "startup" and not self.started:
                await asyncio.sleep(0.1)
                continue
            good = await self.asked(how)
            failures, successes = (0, successes + 1) if good else (failures + 1, 0)
            failed = failures >= how.get("failureThreshold", 3)
            if kind == "startup" and good:
                self.started = True
                self.ready = "readinessProbe" not in self.spec
                return await self.pod.tell()
            if kind == "readiness":
                ready = successes >= how.get("successThreshold", 1) or (self.ready and not failed)
                if ready != self.ready:
                    self.ready = ready
                    log.info("%s %s is %s", self.pod.name, self.name, "ready" if ready else "NOT READY")
                    await self.pod.tell()
            elif failed and not self.pod.deleting:
                log.info("%s %s failed its %s probe: it is ended", self.pod.name, self.name, kind)
                # Not a part of this task, which ends with the container.
                self.pod.later(self.end(self.pod.grace))
                return None
            await asyncio.sleep(how.get("periodSeconds", 10))

    async def asked(self, how: Object) -> bool:
        """Ask once."""
        seconds = how.get("timeoutSeconds", 1)
        if "exec" in how:
            return (await self.process.execute(how["exec"]["command"], seconds))[0] == 0
        given = how["httpGet"]
        scheme, port = given.get("scheme", "HTTP").lower(), self.port(given["port"])
        headers = {one["name"]: one["value"] for one in given.get("httpHeaders") or []}
        url = f"{scheme}://{self.pod.place.address}:{port}{given.get('path', '/')}"
        try:
            async with self.pod.kubelet.session.get(
                url, ssl=False, headers=headers, timeout=aiohttp.ClientTimeout(total=seconds), allow_redirects=False
            ) as reply:
                return 200 <= reply.status < 400
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    def port(self, given: int | str) -> int:
        """The number of a port that is given by its name."""
        if isinstance(given, int):
            return given
        return next(one["containerPort"] for one in self.spec["ports"] if one["name"] == given)

    # -- its end -----------------------------------------------------------------------------------------------------

    async def end(self, grace_s: float) -> None:
        """preStop, SIGTERM, and SIGKILL when the time is over, of which preStop is a part."""
        if self.ending or not self.process.running:
            return
        self.ending = True
        ends = time.monotonic() + grace_s
        hook: Object = (self.spec.get("lifecycle") or {}).get("preStop") or {}
        if "exec" in hook and grace_s > 0:
            began = time.monotonic()
            status, said = await self.process.execute(hook["exec"]["command"], grace_s)
            text = said.strip().replace("\n", "; ")
            log.info(
                "%s %s preStop: %d in %.1f s: %s", self.pod.name, self.name, status, time.monotonic() - began, text
            )
        self.process.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(asyncio.shield(self.process.wait()), max(0.0, ends - time.monotonic()))
        except TimeoutError:
            log.info("%s %s is killed: its %.0f s are over", self.pod.name, self.name, grace_s)
            self.process.signal(signal.SIGKILL)
            await self.process.wait()

    def status(self) -> Object:
        return {
            "name": self.name,
            "image": self.spec["image"],
            "imageID": self.spec["image"],
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
            "state": self.state,
            "lastState": self.last,
        }


class Pod:
    """Runs from its making until `delete` or `drop` is done."""

    def __init__(self, kubelet: Kubelet, given: Object) -> None:
        self.kubelet = kubelet
        self.object = given
        meta = given["metadata"]
        self.uid: str = meta["uid"]
        self.name = f"{meta['namespace']}_{meta['name']}"
        self.path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        self.machine: str = given["spec"]["nodeName"]
        self.grace: float = given["spec"].get("terminationGracePeriodSeconds", 30)
        self.folder: Path = kubelet.folder / "pods" / f"{self.name}_{self.uid[:8]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.place = kubelet.network.add()
        self.volumes: dict[str, Path] = {}
        self.containers = [Container(self, one) for one in given["spec"]["containers"]]
        self.preparing = [Container(self, one) for one in given["spec"].get("initContainers") or []]
        self.phase = "Pending"
        self.prepared = False
        self.deleting = False
        self._gone = False
        self._began = now()
        self._conditions: dict[str, Object] = {}
        self._writing = asyncio.Lock()
        self._tasks = {asyncio.create_task(self._run())}

    def later(self, work: Any) -> None:
        """Do something beside the rest, and keep hold of it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        try:
            await self._prepare()
            self.phase = "Running"
            statuses = await asyncio.gather(*(one.run() for one in self.containers))
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("%s", self.name)
            raise
        if not self.deleting:
            self.phase = "Failed" if any(statuses) else "Succeeded"
            await self.tell()

    async def _prepare(self) -> None:
        kubelet = self.kubelet
        while True:
            try:
                self.volumes = await volumes.folders(kubelet.api, self.object, self.folder, kubelet.disks)
                break
            except NotYet as error:
                for one in self.containers:
                    one.state = {"waiting": {"reason": error.reason, "message": str(error)}}
                await self.tell()
            await asyncio.sleep(AGAIN_S)
        for one in self.preparing:
            back_off = BACK_OFF_S
            while await one.once():
                await asyncio.sleep(back_off)
                back_off = min(2 * back_off, BACK_OFF_MAX_S)
        self.prepared = True

    async def delete(self, grace_s: float) -> None:
        """End its containers in order, and say that it is gone."""
        if self.deleting:
            return
        self.deleting = True
        began = time.monotonic()
        await asyncio.gather(*(one.end(grace_s) for one in (*self.preparing, *self.containers)))
        for one in self.containers:
            one.ready = False
        await self.tell()
        await self.drop()
        log.info("%s is gone after %.1f s", self.name, time.monotonic() - began)
        with contextlib.suppress(Refused):
            body = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}}
            await self.kubelet.api.ask("DELETE", self.path, body)

    async def drop(self) -> None:
        """Be gone at once, and tell nobody."""
        self.deleting = True
        for one in (*self.preparing, *self.containers):
            one.process.signal(signal.SIGKILL)
        mine = asyncio.current_task()
        rest = [task for task in self._tasks if task is not mine]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        for one in (*self.preparing, *self.containers):
            if one.process.running:
                await one.process.wait()
        if not self._gone:
            self._gone = True
            self.kubelet.network.remove(self.place)

    # -- status ------------------------------------------------------------------------------------------------------

    def _condition(self, kind: str, holds: bool) -> Object:
        said = "True" if holds else "False"
        old = self._conditions.get(kind)
        if old is None or old["status"] != said:
            self._conditions[kind] = {"type": kind, "status": said, "lastTransitionTime": now()}
        return self._conditions[kind]

    async def tell(self) -> None:
        """Write its status."""
        if self.machine in self.kubelet.lost:
            return
        async with self._writing:
            ready = self.phase == "Running" and all(one.ready for one in self.containers)
            status = {
                "phase": self.phase,
                "podIP": self.place.address,
                "podIPs": [{"ip": self.place.address}],
                "hostIP": self.kubelet.address,
                "startTime": self._began,
                "containerStatuses": [one.status() for one in self.containers],
                "initContainerStatuses": [one.status() for one in self.preparing],
                "conditions": [
                    self._condition("Initialized", self.prepared),
                    self._condition("Ready", ready),
                    self._condition("ContainersReady", ready),
                    self._condition("PodScheduled", True),
                ],
            }
            try:
                await self.kubelet.api.merge(f"{self.path}/status", {"metadata": {"uid": self.uid}, "status": status})
            except (Refused, aiohttp.ClientError, TimeoutError) as error:
                # One that is deleted while it ends is nobody's concern.
                if getattr(error, "status", None) != 404:
                    log.info("%s: its status was not taken: %s", self.name, error)

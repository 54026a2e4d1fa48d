"""The whole cluster as one process, the first in namespaces of its own: when it ends, everything that it started ends.

`python -m tests.support.kubernetes.world FOLDER PROGRAMS [--while-stdin]`. In FOLDER are then `kubeconfig`, the logs, the disks, and a
socket by which tests do what only the outside of a cluster can: a line of JSON in, `{"do": …}`, a line out, `{"ok": …}` or `{"error": …}`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.support.kubernetes.api import Api
from tests.support.kubernetes.control_plane import URL, ControlPlane
from tests.support.kubernetes.kubelet import Kubelet
from tests.support.kubernetes.network import Network
from tests.support.kubernetes.pod import Pod
from tests.support.kubernetes.processes import Image

SOCKET = "control"
MACHINES = ["m1", "m2", "m3", "m4", "m5"]
# How long kube-proxy and name servers are behind: more than they usually are.
LAG_S = 1.0


class Control:
    """What may be asked for at the socket."""

    def __init__(self, kubelet: Kubelet) -> None:
        self._kubelet = kubelet
        self._known: dict[str, Callable[..., Awaitable[Any]]] = {
            "image": self.image,
            "kill": self.kill,
            "execute": self.execute,
            "cut": self.cut,
            "heal": self.heal,
            "lose": self.lose,
            "find": self.find,
            "pods": self.pods,
        }

    def _pod(self, name: str) -> Pod:
        for pod in self._kubelet.pods.values():
            if pod.name == name.replace("/", "_") and not pod.deleting:
                return pod
        raise KeyError(f"no pod {name} runs")

    async def image(self, name: str, **given: Any) -> None:
        """Make an image known."""
        self._kubelet.images[name] = Image(**given)

    async def kill(self, pod: str) -> None:
        """End a pod's processes with SIGKILL."""
        for one in self._pod(pod).containers:
            one.process.signal(signal.SIGKILL)

    async def execute(self, pod: str, command: list[str]) -> list[Any]:
        """Run a command in a pod's first container: status and what it wrote."""
        return list(await self._pod(pod).containers[0].process.execute(command))

    async def cut(self, source: str, target: str) -> None:
        """Let nothing from one pod arrive at another."""
        self._kubelet.network.cut(self._pod(source).place.address, self._pod(target).place.address)

    async def heal(self) -> None:
        self._kubelet.network.heal()

    async def lose(self, machine: str) -> None:
        await self._kubelet.lose(machine)

    async def find(self, machine: str) -> None:
        self._kubelet.find(machine)

    async def pods(self) -> dict[str, str]:
        """Addresses of the pods that run, by `namespace_name`."""
        return {pod.name: pod.place.address for pod in self._kubelet.pods.values() if not pod.deleting}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            given = json.loads(line)
            try:
                answer = {"ok": await self._known[given.pop("do")](**given)}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()


async def main(folder: Path, programs: Path, while_stdin: bool) -> None:
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    if while_stdin:
        loop.add_reader(sys.stdin.fileno(), lambda: os.read(sys.stdin.fileno(), 1) or over.set())
    network = Network(folder / "names")
    plane = ControlPlane(programs, folder)
    await plane.start()
    async with Api(URL, plane.token) as api, Kubelet(api, network, folder, MACHINES, {}, LAG_S) as kubelet:
        server = await asyncio.start_unix_server(Control(kubelet).serve, folder / SOCKET, limit=1 << 20)
        async with server:
            print("ready", flush=True)
            ended = asyncio.create_task(over.wait())
            await asyncio.wait([ended, *kubelet.tasks], return_when=asyncio.FIRST_COMPLETED)
            if not over.is_set():
                logging.error("a part of the cluster ended: %s", kubelet.tasks)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("programs", type=Path)
    arguments.add_argument("--while-stdin", action="store_true")
    parsed = arguments.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    asyncio.run(main(parsed.folder, parsed.programs, parsed.while_stdin))

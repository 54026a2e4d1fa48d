"""A Kubernetes cluster by hand: a real control plane, five machines that run pods as processes, and the chart with three nodes.

    scripts/kubernetes build               the control plane's programs, once (about ten minutes)
    scripts/kubernetes up                  the cluster, and the chart as `quorumq` with its secrets
    scripts/kubernetes kubectl get pods    any kubectl, and helm, in it
    scripts/kubernetes exec quorumq-0 quorumq status
    scripts/kubernetes down                all of it ends, and nothing is left
    scripts/kubernetes test                the tests of the chart, those that need a cluster and the long ones too

Images are `quorumq:present` and `quorumq:next`, which are this checkout, and the earlier version by its number. Everything is in
.venv/kubernetes/cluster: kubeconfig, logs of the control plane and of the pods, disks.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from scripts.tools import control_plane, kubernetes
from scripts.tools.kubernetes import CACHE, Unavailable
from tests.kubernetes.rendering import CHART
from tests.support.kubernetes import images
from tests.support.kubernetes.cluster import Cluster, Trouble, missing
from tests.support.versions import PREVIOUS

FOLDER = CACHE / "cluster"
COMMANDS = ("up", "down", "test", "build", "kubectl", "helm", "exec")


def running() -> Cluster | None:
    """The cluster that runs, if one does."""
    try:
        outer = int((FOLDER / "pid").read_text())
        words = Path(f"/proc/{outer}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return Cluster(FOLDER) if b"tests.support.kubernetes.world" in words else None


def needed() -> Cluster:
    """The cluster that runs. Raises Trouble."""
    if (found := running()) is None:
        raise Trouble("no cluster runs: scripts/kubernetes up")
    return found


def up() -> int:
    if running():
        raise Trouble("a cluster runs already: scripts/kubernetes down")
    if why := missing():
        raise Trouble(why)
    shutil.rmtree(FOLDER, ignore_errors=True)
    cluster = Cluster(FOLDER)
    cluster.start(while_stdin=False)
    for name in ("present", "next"):
        cluster.add_image(f"quorumq:{name}", images.present(FOLDER))
    cluster.add_image(f"quorumq:{PREVIOUS}", images.previous(FOLDER, PREVIOUS))
    secret = os.urandom(16).hex()
    commands = (
        (kubernetes.kubectl(), "create", "secret", "generic", "quorumq-cluster", f"--from-literal=secret={secret}"),
        (kubernetes.kubectl(), "create", "secret", "generic", "quorumq-auth", f"--from-literal=token={secret}"),
        (kubernetes.helm(), "install", "quorumq", CHART, "--set=image.tag=present", "--wait"),
        (kubernetes.kubectl(), "get", "pods", "--output=wide"),
    )
    with cluster.network():
        for command in commands:
            subprocess.run(list(map(str, command)), env=cluster.variables, check=True)
    return 0


def down() -> int:
    if (cluster := running()) is not None:
        os.kill(int((cluster.folder / "pid").read_text()), signal.SIGKILL)
    shutil.rmtree(FOLDER, ignore_errors=True)
    return 0


def build() -> int:
    print(control_plane.build())
    return 0


def test(arguments: list[str]) -> int:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "", "tests/kubernetes", *arguments], check=False
    ).returncode


def within(program: Path, arguments: list[str]) -> int:
    """Run a program in the cluster's network."""
    cluster = needed()
    with cluster.network():
        return subprocess.run([str(program), *arguments], env=cluster.variables, check=False).returncode


def execute(pod: str, command: list[str]) -> int:
    """Run a command in a pod: `kubectl exec`, for which these machines have no streams."""
    name = pod if "/" in pod else f"default/{pod}"
    status, said = asyncio.run(needed().control("execute", pod=name, command=command))
    print(said, end="")
    return int(status)


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in COMMANDS or (arguments[0] == "exec" and len(arguments) < 3):
        print(__doc__)
        return 2
    command, *rest = arguments
    try:
        if command == "exec":
            return execute(rest[0], rest[1:])
        if command == "test":
            return test(rest)
        if command in ("kubectl", "helm"):
            return within(kubernetes.program(command), rest)
        return {"up": up, "down": down, "build": build}[command]()
    except (Trouble, Unavailable) as error:
        print(f"scripts/kubernetes: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

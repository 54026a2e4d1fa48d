"""A network of their own for the nodes of a cluster, whose links can be cut one way or both, and a small disk.

Everything is made inside namespaces that only this process and its children are in (`enter` replaces the process by itself
in fresh ones), so that the system takes it all back when they end, however they end. A link is cut by giving the
sender a wrong hardware address for the receiver: packets leave and nobody takes them, as on a real network.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from tests.support.local_cluster import LocalCluster, LocalNode

INSIDE = "QUORUMQ_CHAOS_INSIDE"
BRIDGE = "chaos"
SUBNET = "10.77.0"
HERE = f"{SUBNET}.254"
NOBODY = "02:00:00:00:00:ff"
NAMES = "/run/netns"


class NoNamespaces(Exception):
    """This machine does not let us have namespaces; says why."""


def ip(*arguments: str) -> str:
    """Run `ip`. Raises NoNamespaces with what it said."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoNamespaces(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def unshare() -> list[str]:
    """The command that starts another in namespaces of its own."""
    own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *own, "--net", "--mount", "--propagation", "private"]


def missing() -> str | None:
    """Why there can be no namespaces here, or None."""
    for tool in ("unshare", "ip", "mount"):
        if shutil.which(tool) is None:
            return f"there is no `{tool}`"
    # What will be needed, tried out and taken back by the end of the shell: names, a pair of devices, a small disk.
    attempt = (
        f"mkdir -p {NAMES} && mount -t tmpfs tmpfs {NAMES} && ip netns add probe && "
        "ip link add probe0 type veth peer name eth0 netns probe && ip link add probe1 type bridge"
    )
    done = subprocess.run([*unshare(), "sh", "-c", attempt], capture_output=True, text=True, check=False)
    return (done.stderr.strip().splitlines() or ["not permitted"])[-1] if done.returncode else None


def inside() -> bool:
    """Whether this process is in namespaces of its own already."""
    return os.environ.get(INSIDE) == str(os.getpid())


def enter(module: str, arguments: list[str]) -> NoReturn:
    """Begin again as `module` in fresh namespaces: the same process, so that whoever waits for it need not know."""
    os.environ[INSIDE] = str(os.getpid())
    command = [*unshare(), sys.executable, "-m", module, *arguments]
    os.execvp(command[0], command)


class Network:
    """Each node in a network namespace with one device, all on a bridge that this process is on too."""

    def __init__(self, cluster: LocalCluster) -> None:
        """Make it, and move the nodes of `cluster`, which must not run yet, into it. Raises NoNamespaces."""
        self.addresses: dict[str, str] = {}
        self.hardware: dict[str, str] = {}
        self.cuts: set[tuple[str, str]] = set()
        # Hides the names that others may have given, and takes ours away with it.
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", NAMES], check=True)
        ip("link", "set", "lo", "up")
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("address", "add", f"{HERE}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for number, node in enumerate(cluster.nodes, 1):
            self._add(node.id, f"{SUBNET}.{number}")
        peers = ",".join(f"{node.id}={self.addresses[node.id]}:{node.peer_port}" for node in cluster.nodes)
        for node in cluster.nodes:
            node.host = self.addresses[node.id]
            node.within = ("ip", "netns", "exec", node.id)
            node.settings |= {"HOST": node.host, "PEERS": peers}

    def _add(self, name: str, address: str) -> None:
        self.addresses[name] = address
        ip("netns", "add", name)
        ip("link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", f"to-{name}", "master", BRIDGE, "up")
        ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")
        words = ip("-n", name, "-brief", "link", "show", "eth0").split()
        self.hardware[name] = next(word for word in words if word.count(":") == 5)

    def cut(self, source: str, target: str) -> None:
        """Let nothing from `source` arrive at `target` any more."""
        self.cuts.add((source, target))
        self._point(source, target, NOBODY)

    def heal(self, source: str, target: str) -> None:
        """Undo a cut."""
        if (source, target) in self.cuts:
            self.cuts.remove((source, target))
            self._point(source, target, self.hardware[target])

    def heal_all(self) -> None:
        """Undo every cut."""
        for source, target in sorted(self.cuts):
            self.heal(source, target)

    def _point(self, source: str, target: str, hardware: str) -> None:
        ip(
            *("-n", source, "neighbour", "replace", self.addresses[target]),
            *("lladdr", hardware, "dev", "eth0", "nud", "permanent"),
        )


class SmallDisk:
    """The data folder of one node as a file system of its own, that can be filled up."""

    def __init__(self, node: LocalNode, megabytes: int) -> None:
        self.node = node
        self.folder: Path = node.data
        self.folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(self.folder)]
        subprocess.run(command, check=True)

    @property
    def ballast(self) -> Path:
        return self.folder / "ballast"

    def fill(self) -> None:
        """Take all the space there is."""
        with self.ballast.open("ab") as file:
            for block in (1 << 20, 1 << 12):
                try:
                    while True:
                        os.write(file.fileno(), bytes(block))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        """Give the space back."""
        self.ballast.unlink(missing_ok=True)

    def close(self) -> None:
        """Take the file system away; what still uses it keeps it until it ends."""
        subprocess.run(["umount", "--lazy", str(self.folder)], check=False)

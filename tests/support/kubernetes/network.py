"""The network between pods: a namespace for each on one bridge, Services by address translation, names, and links that can be cut.

Everything is in the network and mount namespaces of this process, which has them for itself, and goes with them.
"""

from __future__ import annotations

import ipaddress
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.kubernetes.api import Object

BRIDGE = "pods"
SUBNET = ipaddress.ip_network("10.77.0.0/24")
GATEWAY = "10.77.0.1"
NAMES = "/run/netns"
SERVICES = "10.96.0.0/16"
TABLES = f"""
table ip services {{
    chain entering {{ type nat hook prerouting priority -100; jump chosen; }}
    chain own {{ type nat hook output priority -100; jump chosen; }}
    chain leaving {{ type nat hook postrouting priority 100; ct status dnat masquerade; }}
    chain chosen {{ }}
    chain nobody {{ ip daddr {SERVICES} reject; }}
    chain nobody_own {{ type filter hook output priority 0; jump nobody; }}
    chain nobody_passing {{ type filter hook forward priority 0; jump nobody; }}
}}
table bridge cuts {{
    set links {{ type ipv4_addr . ipv4_addr; }}
    chain passing {{ type filter hook forward priority 0; ip saddr . ip daddr @links drop; }}
}}
"""


def run(*command: str, given: str | None = None) -> None:
    """Run a command. Raises RuntimeError with what it said."""
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


@dataclass(frozen=True)
class Place:
    """Where a pod is in the network."""

    number: int
    address: str
    namespace: str

    @property
    def path(self) -> str:
        return f"{NAMES}/{self.namespace}"


class Network:
    """One for a process. folder: for the file of names, which pods mount."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._used: set[int] = set()
        self._next = 10
        folder.mkdir(parents=True, exist_ok=True)
        self._write_names([])
        # Hides the names that others may have given, and takes ours away with it.
        Path(NAMES).mkdir(parents=True, exist_ok=True)
        run("mount", "-t", "tmpfs", "tmpfs", NAMES)
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{GATEWAY}/{SUBNET.prefixlen}", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        for name, value in (
            ("ip_forward", "1"),
            ("conf/all/send_redirects", "0"),
            (f"conf/{BRIDGE}/send_redirects", "0"),
        ):
            Path(f"/proc/sys/net/ipv4/{name}").write_text(value)
        # A process of this namespace needs a route before its packets are given another address.
        run("ip", "route", "add", SERVICES, "dev", BRIDGE)
        run("nft", "-f", "-", given=TABLES)

    def add(self) -> Place:
        """Make a namespace with an address that was not used lately."""
        number = next(one for k in range(240) if (one := 10 + (self._next - 10 + k) % 240) not in self._used)
        self._used.add(number)
        self._next = number + 1
        place = Place(number, str(SUBNET[number]), f"pod-{number}")
        run("ip", "netns", "add", place.namespace)
        near = f"pod{number}"
        run("ip", "link", "add", near, "type", "veth", "peer", "name", "eth0", "netns", place.namespace)
        run("ip", "link", "set", near, "master", BRIDGE, "up")
        # A hardware address of its own for each, or a neighbour's memory of the last pod here would be right by chance.
        inside = ("ip", "-n", place.namespace)
        run(*inside, "address", "add", f"{place.address}/{SUBNET.prefixlen}", "dev", "eth0")
        run(*inside, "link", "set", "eth0", "up")
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "route", "add", "default", "via", GATEWAY)
        return place

    def remove(self, place: Place) -> None:
        run("ip", "netns", "delete", place.namespace)
        # The namespace lives as long as a process in it, and the device with it.
        subprocess.run(["ip", "link", "delete", f"pod{place.number}"], capture_output=True, check=False)
        self._used.discard(place.number)

    # -- faults ------------------------------------------------------------------------------------------------------

    def cut(self, source: str, target: str) -> None:
        """Let nothing from one address arrive at another any more."""
        run("nft", "add", "element", "bridge", "cuts", "links", f"{{ {source} . {target} }}")

    def heal(self) -> None:
        """Undo all cuts."""
        run("nft", "flush", "set", "bridge", "cuts", "links")

    # -- Services ----------------------------------------------------------------------------------------------------

    def publish(self, services: list[Object], endpoints: list[Object]) -> None:
        """Have the addresses of Services lead to the ready pods, and their names to addresses."""
        found = {key(one): one for one in endpoints}
        rules, names = ["flush chain ip services chosen"], []
        for service in services:
            behind = found.get(key(service), {}).get("subsets") or []
            namespace, name = key(service)
            address = service["spec"].get("clusterIP")
            if address in (None, "", "None"):
                for pod in (pod for subset in behind for pod in subset.get("addresses") or []):
                    names.append((pod["ip"], f"{name}.{namespace}.svc"))
                    if pod.get("hostname"):
                        names.append((pod["ip"], f"{pod['hostname']}.{name}.{namespace}.svc"))
                continue
            names.append((address, f"{name}.{namespace}.svc"))
            ports = service["spec"].get("ports") or []
            led = ((port, targets(behind, port.get("name"))) for port in ports)
            rules += [rule(address, port, pods) for port, pods in led if pods]
        run("nft", "-f", "-", given="\n".join(rules) + "\n")
        self._write_names(names)

    def _write_names(self, names: list[tuple[str, str]]) -> None:
        lines = ["127.0.0.1 localhost", *(f"{address} {name} {name}.cluster.local" for address, name in names)]
        unfinished = self.folder / "hosts.part"
        unfinished.write_text("\n".join(lines) + "\n")
        unfinished.replace(self.folder / "hosts")


def key(one: Object) -> tuple[str, str]:
    return one["metadata"]["namespace"], one["metadata"]["name"]


def targets(subsets: list[Object], port: str | None) -> list[tuple[str, int]]:
    """Addresses and ports of the ready pods behind a port of a Service."""
    return [
        (pod["ip"], one["port"])
        for subset in subsets
        for one in subset.get("ports") or []
        if one.get("name") == port
        for pod in subset.get("addresses") or []
    ]


def rule(address: str, port: Object, behind: list[tuple[str, int]]) -> str:
    """The rule of one port that somebody is behind."""
    head = f"add rule ip services chosen ip daddr {address} tcp dport {port['port']}"
    chosen = ", ".join(f"{number} : {ip} . {at}" for number, (ip, at) in enumerate(behind))
    return f"{head} dnat ip to numgen random mod {len(behind)} map {{ {chosen} }}"

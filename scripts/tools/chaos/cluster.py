"""A cluster for chaos: each node behind a door that can be shut, on a machine whose disk and clock can go wrong, of either version.

There is one node more than members: the one that joins next.
"""

from __future__ import annotations

import random
from pathlib import Path

from quorumq.cluster.version import VERSION
from tests.support.faulty import Machine
from tests.support.links import Links
from tests.support.local_cluster import LocalCluster, LocalNode
from tests.support.versions import PREVIOUS, unpacked

# Small bounds, so that snapshots are written, sent and installed all the time.
SETTINGS = {
    "SNAPSHOT_LOG_BYTES": str(2 << 20),
    "SNAPSHOT_LOG_ENTRIES": "2000",
    "WRITE_TIMEOUT_MS": "5000",
    # BullMQ's dialect answers nobody without one.
    "AUTH_TOKENS": "a token of this run",
}


class ChaosCluster(LocalCluster):
    """spare: no member now.  machines, addresses: by node, of every node.  clocks_off: nodes whose clock is wrong now."""

    def __init__(self, members: int, rng: random.Random, folder: Path | None = None) -> None:
        super().__init__(members + 1, folder, **SETTINGS)
        self.everyone = list(self.nodes)
        self.spare = self.nodes.pop()
        self.links = Links(rng)
        self.addresses: dict[str, str] = {}
        self.clocks_off: set[str] = set()
        self.versions: dict[str, str] = {}
        self.upwards = True
        self.final = False
        self.machines = {node.id: Machine(self.folder / f"{node.id}.faults") for node in self.everyone}
        for node in self.everyone:
            self.run(node, VERSION)

    async def start(self) -> None:
        """Open the doors, start every member and wait until all are ready."""
        if not self.addresses:
            for node in self.everyone:
                self.addresses[node.id] = await self.links.open(node)
            founders = [node.id for node in self.nodes]
            for node in self.everyone:
                known = founders if node.id in founders else [*founders, node.id]
                node.settings["PEERS"] = ",".join(f"{name}={self.addresses[name]}" for name in known)
                node.settings["PEER_PORT"] = str(node.peer_port)
        await super().start()

    async def close(self) -> None:
        # Of the spare one, too.
        self.nodes = self.everyone
        await super().close()
        await self.links.close()

    def tails(self) -> str:
        """The last lines of every node's log, without those that only say who asked."""
        texts = []
        for node in self.everyone:
            lines = [line for line in node.log_text().splitlines() if "quorumq.audit" not in line]
            texts.append("\n".join([f"--- {node.id}", *lines[-12:]]))
        return "\n".join(texts)

    # -- Versions

    def run(self, node: LocalNode, version: str) -> None:
        """Have a node run a version from its next start on."""
        machine = self.machines[node.id]
        node.program = machine.program
        node.settings = {name: value for name, value in node.settings.items() if name != "QUORUMQ_FROM"}
        node.settings |= machine.settings
        if version != VERSION:
            node.settings["QUORUMQ_FROM"] = str(unpacked(version, self.folder))
        self.versions[node.id] = version

    @property
    def has_earlier(self) -> bool:
        """Whether a member runs the earlier version."""
        return any(self.versions[node.id] != VERSION for node in self.nodes)

    def other_version(self, node: LocalNode) -> str:
        return PREVIOUS if self.versions[node.id] == VERSION else VERSION

    def next_to_roll(self, taken: set[str]) -> str | None:
        """Whose turn it is: upwards until all run this version, then back, as long as it is not final."""
        behind = [node.id for node in self.nodes if (self.versions[node.id] == VERSION) != self.upwards]
        if not behind and not self.final:
            self.upwards = not self.upwards
            behind = [node.id for node in self.nodes if (self.versions[node.id] == VERSION) != self.upwards]
        return next((name for name in behind if name not in taken), "nobody")

"""Breaks a cluster of real processes in every way, under load, from one seed, and then asks whether a promise was broken.

Faults: kill -9 of one node and of all at once, a frozen process, links between nodes cut one way and both ways, a full disk.
Cut links and the full disk need Linux namespaces (namespaces.py); where they cannot be made, those faults are left out, and the
output says so. history.py makes the load and the check.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from scripts.tools import namespaces
from scripts.tools.history import Load
from scripts.tools.local_cluster import ClusterTrouble, LocalCluster, LocalNode
from scripts.tools.namespaces import Network, SmallDisk

# Small bounds, so that snapshots are written, sent and installed all the time.
SETTINGS = {
    "SNAPSHOT_LOG_BYTES": str(2 << 20),
    "SNAPSHOT_LOG_ENTRIES": "2000",
    "WRITE_TIMEOUT_MS": "5000",
}
DISK_MB = 256
TOGETHER = 0.25
"""How often a second fault begins while the first one lasts."""


@dataclass
class Report:
    """What came of a run."""

    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.violations


class Chaos:
    """The schedule of faults, each with victims that no other fault has at that time."""

    def __init__(
        self,
        cluster: LocalCluster,
        rng: random.Random,
        network: Network | None,
        disk: SmallDisk | None,
        longest_s: float,
    ) -> None:
        self.cluster = cluster
        self.rng = rng
        self.network = network
        self.disk = disk
        self.longest_s = longest_s
        self.done: Counter[str] = Counter()
        self.violations: list[str] = []
        self._began = time.monotonic()
        self._free = {node.id for node in cluster.nodes}
        self._faults: dict[str, Callable[[], Awaitable[None]]] = {
            "kill -9": self.kill,
            "freeze": self.freeze,
            "kill -9 of all": self.kill_all,
        }
        if network is not None:
            self._faults |= {"cut both ways": self.cut, "cut one way": self.cut_one_way, "isolate": self.isolate}
        if disk is not None:
            self._faults["full disk"] = self.fill

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:7.1f} s  {text}", flush=True)

    async def run(self, seconds: float, load: Load) -> None:
        """Inflict one fault after another, sometimes two at once, with calm in between."""
        ends = time.monotonic() + seconds
        names = list(self._faults)
        self.rng.shuffle(names)
        # Each kind once before any comes again: a short run sees all of them, however slow the machine is.
        left = list(names)
        while left or time.monotonic() < ends:
            await self._calm(load)
            first = left.pop() if left else self.rng.choice(names)
            both = [self._inflict(first)]
            if self.rng.random() < TOGETHER and first != "kill -9 of all":
                second = self.rng.choice([name for name in names if name != "kill -9 of all"])
                both.append(self._inflict(second))
            await asyncio.gather(*both)
            self._look_for_the_dead()
        await self.heal()

    async def _calm(self, load: Load) -> None:
        """Wait until writes go on, for without load there is nothing to break; and then a moment longer."""
        goal = len(load.history.acknowledged) + self.rng.randint(5, 150)
        deadline = time.monotonic() + 30
        while len(load.history.acknowledged) < goal:
            load.check_alive()
            self._look_for_the_dead()
            if time.monotonic() > deadline:
                self.violations.append(
                    "no writes were acknowledged for 30 s in a whole cluster\n" + self.cluster.tails()
                )
                return
            await asyncio.sleep(0.02)

    async def _inflict(self, name: str) -> None:
        self.done[name] += 1
        await self._faults[name]()

    def _look_for_the_dead(self) -> None:
        for node in self.cluster.nodes:
            if node.process is not None and node.process.returncode is not None and node.id in self._free:
                text = f"{node.id} ended by itself with status {node.process.returncode}\n{node.tail(30)}"
                self.violations.append(text)
                node.process = None

    @contextlib.asynccontextmanager
    async def _victims(self, count: int, *, only: str | None = None) -> AsyncIterator[list[LocalNode]]:
        """Nodes that no other fault has; none when there are not enough. Half of the time the leader is the first."""
        leader = None
        if self.rng.random() < 0.5:
            with contextlib.suppress(ClusterTrouble):
                leader = (await self.cluster.leader(timeout_s=1.0)).id
        ids = sorted(self._free & ({only} if only else self._free))
        self.rng.shuffle(ids)
        ids.sort(key=lambda name: name != leader)
        chosen = ids[:count] if len(ids) >= count else []
        self._free -= set(chosen)
        try:
            yield [self.cluster.by_id(name) for name in chosen]
        finally:
            self._free |= set(chosen)

    async def _last(self) -> None:
        await asyncio.sleep(self.rng.uniform(0.1, self.longest_s))

    # -- the faults ----------------------------------------------------------------------------------------------------

    async def kill(self) -> None:
        async with self._victims(1) as victims:
            for node in victims:
                self.say(f"kill -9 of {node.id}")
                await node.kill()
                await self._last()
                await node.start()
                await self._back(node)

    async def _back(self, node: LocalNode) -> None:
        """Wait a while for a node to be ready again, but go on without it: a second fault may keep it from that."""
        with contextlib.suppress(ClusterTrouble):
            await self.cluster.ready([node], timeout_s=5.0)

    async def kill_all(self) -> None:
        async with self._victims(len(self.cluster.nodes)) as victims:
            if victims:
                self.say("kill -9 of all nodes at once")
                for node in victims:
                    if node.running:
                        node.signal(signal.SIGKILL)
                await asyncio.gather(*(node.kill() for node in victims))
                for node in victims:
                    await node.start()
                    await asyncio.sleep(self.rng.uniform(0, 0.3))
                for node in victims:
                    await self._back(node)

    async def freeze(self) -> None:
        async with self._victims(1) as victims:
            for node in victims:
                self.say(f"freeze {node.id}")
                node.signal(signal.SIGSTOP)
                try:
                    await self._last()
                finally:
                    node.signal(signal.SIGCONT)

    async def _without(self, ways: list[tuple[str, str]], text: str) -> None:
        assert self.network is not None
        self.say(text)
        for source, target in ways:
            self.network.cut(source, target)
        try:
            await self._last()
        finally:
            for source, target in ways:
                self.network.heal(source, target)

    async def cut(self) -> None:
        async with self._victims(2) as victims:
            if victims:
                a, b = (node.id for node in victims)
                await self._without([(a, b), (b, a)], f"cut {a} - {b}")

    async def cut_one_way(self) -> None:
        async with self._victims(2) as victims:
            if victims:
                a, b = (node.id for node in victims)
                if self.rng.random() < 0.5:
                    a, b = b, a
                await self._without([(a, b)], f"cut {a} > {b}")

    async def isolate(self) -> None:
        """Cut one node off from all others, one way or both; its clients still reach it."""
        async with self._victims(1) as victims:
            for node in victims:
                others = [other.id for other in self.cluster.nodes if other is not node]
                hears, speaks = [(other, node.id) for other in others], [(node.id, other) for other in others]
                ways, text = self.rng.choice([(hears + speaks, "cut off"), (hears, "made deaf"), (speaks, "made dumb")])
                await self._without(ways, f"{node.id} is {text}")

    async def fill(self) -> None:
        assert self.disk is not None
        async with self._victims(1, only=self.disk.node.id) as victims:
            for node in victims:
                self.say(f"the disk of {node.id} is full")
                await asyncio.to_thread(self.disk.fill)
                try:
                    await self._last()
                finally:
                    self.disk.free()

    async def heal(self) -> None:
        """Undo everything that may still stand, and start what does not run."""
        if self.network is not None:
            self.network.heal_all()
        if self.disk is not None:
            self.disk.free()
        for node in self.cluster.nodes:
            if node.running:
                node.signal(signal.SIGCONT)
            else:
                await node.start()


async def chaos(
    seconds: float, seed: int, *, nodes: int = 3, longest_s: float = 6.0, pushes_per_s: float = 60.0
) -> Report:
    """Load and break a cluster for so long, heal it, and check; prints as it goes."""
    rng = random.Random(seed)
    report = Report(seed)
    cluster = LocalCluster(nodes, **SETTINGS)
    disk: SmallDisk | None = None
    try:
        network = Network(cluster) if namespaces.inside() else None
        disk = SmallDisk(cluster.nodes[-1], DISK_MB) if namespaces.inside() else None
        await cluster.start()
        faults = Chaos(cluster, rng, network, disk, longest_s)
        async with Load(cluster, random.Random(seed + 1), pushes_per_s=pushes_per_s) as load:
            try:
                await faults.run(seconds, load)
                faults.say("healed: waiting until every node is ready and every job is done")
                await cluster.ready()
                await load.drain()
                digest = await cluster.converged()
                report.lines.append(f"all digests equal: {digest}")
            except ClusterTrouble as error:
                report.violations.append(str(error))
            states = await load.verify(cluster.nodes[0])
            for node in cluster.nodes[1:]:
                if await load.verify(node) != states:
                    report.violations.append(f"{node.id} holds other jobs than {cluster.nodes[0].id}")
            statuses = [await node.cluster() for node in cluster.nodes]
    finally:
        if disk is not None:
            disk.close()
        await cluster.close()
    history = load.history
    report.faults = faults.done
    report.violations += faults.violations + history.wrong
    told = history.jobs.values()
    report.lines += [
        f"faults: {some(faults.done)}",
        f"promises: {sum(one.pushed for one in told):,} of {len(told):,} pushes and "
        f"{sum(one.acked is not None for one in told):,} completions acknowledged, {len(history.deliveries):,} deliveries",
        f"answers: {some(history.answers)}",
        f"errors: {some(history.errors)}",
        f"jobs at the end: {some(states)}; term {statuses[0]['term']}, entry {statuses[0]['applied_index']:,}, "
        f"snapshots at {', '.join(str(status['snapshot_index']) for status in statuses)}",
        f"longest pause of all writes: {history.longest_pause_s():.2f} s",
    ]
    return report


def some(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())) or "none"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the run (default: 10)")
    parser.add_argument(
        "--seed", type=int, default=None, help="of the schedule of faults; random, and printed, when left out"
    )
    parser.add_argument("--nodes", type=int, default=3, help="nodes of the cluster (default: 3)")
    parser.add_argument(
        "--longest", type=float, default=6.0, metavar="SECONDS", help="how long a fault lasts at most (default: 6)"
    )
    parser.add_argument("--rate", type=float, default=60.0, help="pushes a second, about (default: 60)")
    parser.add_argument(
        "--no-namespaces", action="store_true", help="leave out what needs them: cut links, the full disk"
    )
    options = parser.parse_args()
    if not namespaces.inside():
        if options.seed is None:
            options.seed = random.randrange(1 << 32)
            sys.argv += ["--seed", str(options.seed)]
        why = "not wanted" if options.no_namespaces else namespaces.missing()
        if why is None:
            namespaces.enter("scripts.tools.chaos", sys.argv[1:])
        print(f"no namespaces here ({why}): links are not cut, and no disk is filled", flush=True)
    print(f"seed {options.seed}", flush=True)
    report = asyncio.run(
        chaos(
            options.minutes * 60,
            options.seed,
            nodes=options.nodes,
            longest_s=options.longest,
            pushes_per_s=options.rate,
        )
    )
    for line in report.lines:
        print(line)
    for violation in report.violations[:50]:
        print(f"VIOLATED: {violation}")
    print(f"chaos: seed {options.seed}: {'passed' if report.passed else f'{len(report.violations)} violations'}")
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())

"""What is done to a cluster, and when: from one seed, one fault after the other and sometimes two at once, with calm in between.

Each fault has nodes that no other one has at that time, undoes itself, and is noted with its beginning and its end. Two of them would
take away by design what was acknowledged, and so never meet: a node whose disk is wiped, while another one has not got back yet what
it lost. Which faults a version stands is `Chaos.possible`'s to know.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from quorumq.cli.admin import NoAnswer, fetch
from scripts.tools.chaos.clients import Load
from scripts.tools.chaos.cluster import ChaosCluster
from tests.support.links import Manner
from tests.support.local_cluster import ClusterTrouble, LocalNode
from tests.support.namespaces import SmallDisk

TOGETHER = 0.25
"""How often a second fault begins while the first one lasts."""
CALM_S = 45.0
"""In a cluster that is whole again, writes go on within this time; a wiped node may have to catch up first."""
BACK_S = 8.0
RECOVERED_S = 60.0
CHANGE_S = 90.0
MADE_ALREADY = ("votes already", "is a member already")
CHANGE_SHOWN_S = 5.0
HOUR_MS = 3_600_000

SLOW = Manner(delay_s=0.05, bytes_per_s=400_000)
LOSSY = Manner(lost=0.1, broken=0.004)

KILL, KILL_ALL, FREEZE, RESTART, TRANSFER = "kill -9", "kill -9 of all", "freeze", "restart", "hand over"
CUT, ONE_WAY, ISOLATE, SLOW_LINK, LOSSY_LINK = "cut", "cut one way", "isolate", "slow link", "lossy link"
WIPE, HANG, SLOW_DISK, CLOCK, FULL = "wiped disk", "hung disk", "slow disk", "clock jump", "full disk"
MEMBERS, ROLL = "membership change", "rolling upgrade"

ABOUT = {
    KILL: "a process is killed and started again",
    KILL_ALL: "all processes at once",
    FREEZE: "a process stands still and goes on (SIGSTOP, SIGCONT)",
    RESTART: "a node is stopped as an operator does, and started again",
    TRANSFER: "leadership is handed over",
    CUT: "nothing passes between two nodes",
    ONE_WAY: "nothing passes from one node to another",
    ISOLATE: "a node is cut off from all others, or deaf, or dumb",
    SLOW_LINK: f"{SLOW.delay_s * 1000:.0f} to {SLOW.delay_s * 2000:.0f} ms and {SLOW.bytes_per_s / 1000:.0f} kB/s",
    LOSSY_LINK: "pieces are sent again, connections break in the middle of a frame",
    WIPE: "a node is killed and comes back with an empty disk",
    HANG: "no sync of a node returns",
    SLOW_DISK: "each sync of a node takes 50 to 500 ms longer",
    CLOCK: "a node's wall clock jumps by up to an hour, and back",
    FULL: "a node's disk has no room",
    MEMBERS: "a node joins and votes, another one is removed",
    ROLL: "a node is stopped and started with the other version",
}
"""Every fault, with what it does."""
ROOT_ONLY = {FULL: "a file system of its own, which takes root or namespaces"}
OF_EARLIER = frozenset({KILL, KILL_ALL, FREEZE, RESTART, CUT, ONE_WAY, ISOLATE, ROLL})
"""What the earlier version promises to stand; the others came after it."""


@dataclass
class Span:
    """A fault with its beginning and end, in seconds since the run began."""

    name: str
    text: str
    start: float
    end: float
    nodes: list[str] = field(default_factory=list)


class Chaos:
    """The schedule of faults. done: how often each was inflicted.  spans: all of them.  violations: what nodes did meanwhile."""

    def __init__(
        self,
        cluster: ChaosCluster,
        rng: random.Random,
        load: Load,
        disk: SmallDisk | None,
        longest_s: float,
        *,
        brief: bool = False,
    ) -> None:
        self.cluster = cluster
        self.rng = rng
        self.load = load
        self.disk = disk
        self.longest_s = longest_s
        self.brief = brief
        self.done: Counter[str] = Counter()
        self.spans: list[Span] = []
        self.violations: list[str] = []
        self._taken: set[str] = set()
        self._wiping = asyncio.Lock()
        self._faults: dict[str, Callable[[Span], Awaitable[None]]] = {
            KILL: self.kill,
            KILL_ALL: self.kill_all,
            FREEZE: self.freeze,
            RESTART: self.restart,
            TRANSFER: self.transfer,
            CUT: self.cut,
            ONE_WAY: self.cut_one_way,
            ISOLATE: self.isolate,
            SLOW_LINK: self.slow_link,
            LOSSY_LINK: self.lossy_link,
            WIPE: self.wipe,
            HANG: self.hang,
            SLOW_DISK: self.slow_disk,
            CLOCK: self.clock,
            FULL: self.fill,
            MEMBERS: self.change_members,
            ROLL: self.roll,
        }

    def now(self) -> float:
        return self.load.history.now()

    def say(self, text: str) -> None:
        print(f"{self.now():7.1f} s  {text}", flush=True)

    def possible(self, names: list[str]) -> list[str]:
        """Those of some faults that can be inflicted now."""
        return [
            name
            for name in names
            if (not self.cluster.has_earlier or name in OF_EARLIER)
            and (name != FULL or (self.disk is not None and self.disk.node in self.cluster.nodes))
        ]

    async def one(self, name: str, among: list[str]) -> None:
        """Wait until writes go on, and inflict a fault, and sometimes another one with it."""
        await self._calm()
        both = [self._inflict(name)]
        second = [each for each in self.possible(among) if each not in (KILL_ALL, ROLL, MEMBERS)]
        if second and not self.brief and self.rng.random() < TOGETHER and name != KILL_ALL:
            both.append(self._inflict(self.rng.choice(second)))
        await asyncio.gather(*both)
        self._look_for_the_dead()

    async def _calm(self) -> None:
        """Wait until writes go on, for without load there is nothing to break; and then a moment longer."""
        history = self.load.history
        goal = history.written + (5 if self.brief else self.rng.randint(5, 100))
        deadline = time.monotonic() + CALM_S
        while history.written < goal:
            self.load.check_alive()
            self._look_for_the_dead()
            if time.monotonic() > deadline:
                text = f"no writes were acknowledged for {CALM_S:.0f} s in a whole cluster\n{self.cluster.tails()}"
                self.violations.append(text)
                return
            await asyncio.sleep(0.02)

    async def _inflict(self, name: str) -> None:
        self.done[name] += 1
        span = Span(name, name, self.now(), self.now())
        try:
            await self._faults[name](span)
        finally:
            span.end = self.now()
            if span.nodes or span.text != name:
                self.spans.append(span)
            else:
                # It found no node that was free.
                self.done[name] -= 1

    def _began(self, span: Span, text: str, *nodes: LocalNode) -> None:
        span.text, span.nodes, span.start = text, [node.id for node in nodes], self.now()
        self.say(text)

    def _look_for_the_dead(self) -> None:
        for node in self.cluster.nodes:
            if node.process is not None and node.process.returncode is not None and node.id not in self._taken:
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
        free = {node.id for node in self.cluster.nodes} - self._taken
        ids = sorted(free & ({only} if only else free))
        self.rng.shuffle(ids)
        ids.sort(key=lambda name: name != leader)
        chosen = ids[:count] if len(ids) >= count else []
        self._taken.update(chosen)
        try:
            yield [self.cluster.by_id(name) for name in chosen]
        finally:
            self._taken.difference_update(chosen)

    async def _last(self, least_s: float = 0.1) -> None:
        await asyncio.sleep(self.rng.uniform(least_s, max(self.longest_s, least_s)))

    async def _back(self, node: LocalNode, timeout_s: float = BACK_S) -> None:
        """Wait a while for a node to be ready again, but go on without it: a second fault may keep it from that."""
        with contextlib.suppress(ClusterTrouble):
            await self.cluster.ready([node], timeout_s=timeout_s)

    # -- Processes

    async def kill(self, span: Span) -> None:
        async with self._victims(1) as victims:
            for node in victims:
                self._began(span, f"kill -9 of {node.id}", node)
                await node.kill()
                await self._last()
                await node.start()
                await self._back(node)

    async def kill_all(self, span: Span) -> None:
        async with self._victims(len(self.cluster.nodes)) as victims:
            if victims:
                self._began(span, "kill -9 of all nodes at once", *victims)
                for node in victims:
                    if node.running:
                        node.signal(signal.SIGKILL)
                await asyncio.gather(*(node.kill() for node in victims))
                for node in victims:
                    await node.start()
                    await asyncio.sleep(self.rng.uniform(0, 0.3))
                for node in victims:
                    await self._back(node)

    async def freeze(self, span: Span) -> None:
        async with self._victims(1) as victims:
            for node in victims:
                self._began(span, f"freeze {node.id}", node)
                node.signal(signal.SIGSTOP)
                try:
                    await self._last()
                finally:
                    node.signal(signal.SIGCONT)

    async def restart(self, span: Span) -> None:
        async with self._victims(1) as victims:
            for node in victims:
                self._began(span, f"restart {node.id}", node)
                await self._stop(node)
                await node.start()
                await self._back(node)

    async def _stop(self, node: LocalNode) -> None:
        """Stop a node as an operator does; a status of failure is one."""
        status = await node.stop(60)
        if status != 0:
            self.violations.append(f"{node.id} stopped with status {status}\n{node.tail(30)}")

    async def transfer(self, span: Span) -> None:
        async with self._victims(1) as victims:
            for node in victims:
                self._began(span, f"hand over to {node.id}", node)
                await self._admin("POST", "/admin/cluster/transfer", {"to": node.id})

    async def roll(self, span: Span) -> None:
        async with self._victims(1, only=self.cluster.next_to_roll(self._taken)) as victims:
            for node in victims:
                version = self.cluster.other_version(node)
                self._began(span, f"{node.id} goes to {version}", node)
                await self._stop(node)
                self.cluster.run(node, version)
                await node.start()
                await self._back(node, RECOVERED_S)

    # -- Links

    async def _without(self, ways: list[tuple[str, str]]) -> None:
        for source, target in ways:
            self.cluster.links.cut(source, target)
        try:
            await self._last()
        finally:
            for source, target in ways:
                self.cluster.links.heal(source, target)

    async def cut(self, span: Span) -> None:
        async with self._victims(2) as victims:
            if victims:
                a, b = (node.id for node in victims)
                self._began(span, f"cut {a} from {b}", *victims)
                await self._without([(a, b), (b, a)])

    async def cut_one_way(self, span: Span) -> None:
        async with self._victims(2) as victims:
            if victims:
                a, b = (node.id for node in victims)
                if self.rng.random() < 0.5:
                    a, b = b, a
                self._began(span, f"cut {a} to {b}", *victims)
                await self._without([(a, b)])

    def _ways(self, node: LocalNode) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        others = [other.id for other in self.cluster.everyone if other is not node]
        return [(other, node.id) for other in others], [(node.id, other) for other in others]

    async def isolate(self, span: Span) -> None:
        """Cut one node off from all others, one way or both; its clients still reach it."""
        async with self._victims(1) as victims:
            for node in victims:
                hears, speaks = self._ways(node)
                ways, text = self.rng.choice([(hears + speaks, "cut off"), (hears, "deaf"), (speaks, "dumb")])
                self._began(span, f"{node.id} is {text}", node)
                await self._without(ways)

    async def _treated(self, span: Span, manner: Manner, text: str) -> None:
        async with self._victims(1) as victims:
            for node in victims:
                hears, speaks = self._ways(node)
                ways = self.rng.choice([hears + speaks, hears, speaks])
                self._began(span, f"links of {node.id} are {text}", node)
                self.cluster.links.treat(ways, manner)
                try:
                    await self._last(1.0)
                finally:
                    for source, target in ways:
                        self.cluster.links.heal(source, target)

    async def slow_link(self, span: Span) -> None:
        await self._treated(span, SLOW, "slow")

    async def lossy_link(self, span: Span) -> None:
        await self._treated(span, LOSSY, "lossy")

    # -- Disks and clocks

    async def wipe(self, span: Span) -> None:
        """Empty the disk of a node. No other is emptied before this one has got everything back."""
        async with self._wiping, self._victims(1) as victims:
            for node in victims:
                self._began(span, f"the disk of {node.id} is wiped", node)
                await node.kill()
                empty(node)
                await node.start()
                await self._whole(node)

    async def _whole(self, node: LocalNode) -> None:
        """Wait until a node that was empty counts again."""
        deadline = time.monotonic() + RECOVERED_S
        while not is_whole(node):
            if not node.running:
                self.violations.append(f"{node.id} ended by itself after its disk was wiped\n{node.tail(30)}")
                return
            if time.monotonic() > deadline:
                text = f"{node.id} has not got back what it lost within {RECOVERED_S:.0f} s\n{self.cluster.tails()}"
                self.violations.append(text)
                return
            await asyncio.sleep(0.05)

    async def hang(self, span: Span) -> None:
        async with self._victims(1) as victims:
            for node in victims:
                self._began(span, f"the disk of {node.id} hangs", node)
                machine = self.cluster.machines[node.id]
                machine.hang()
                try:
                    await self._last(1.0)
                finally:
                    machine.answer()

    async def slow_disk(self, span: Span) -> None:
        async with self._victims(1) as victims:
            for node in victims:
                ms = self.rng.randint(50, 500)
                self._began(span, f"the disk of {node.id} takes {ms} ms longer", node)
                machine = self.cluster.machines[node.id]
                machine.slow(ms)
                try:
                    await self._last(1.0)
                finally:
                    machine.slow(0)

    async def clock(self, span: Span) -> None:
        """One node's clock jumps, there and back; a majority's are right all the time."""
        if self.cluster.clocks_off:
            return
        async with self._victims(1) as victims:
            for node in victims:
                off_ms = self.rng.choice([-1, 1]) * self.rng.choice([300, 5_000, 60_000, HOUR_MS])
                self._began(span, f"the clock of {node.id} jumps by {off_ms / 1000:+,.1f} s", node)
                self.cluster.clocks_off.add(node.id)
                machine = self.cluster.machines[node.id]
                machine.set_clock(off_ms)
                try:
                    await self._last(1.0)
                finally:
                    machine.set_clock(0)
                    self.cluster.clocks_off.discard(node.id)

    async def fill(self, span: Span) -> None:
        assert self.disk is not None
        async with self._victims(1, only=self.disk.node.id) as victims:
            for node in victims:
                self._began(span, f"the disk of {node.id} is full", node)
                await asyncio.to_thread(self.disk.fill)
                try:
                    await self._last()
                finally:
                    self.disk.free()

    # -- Members

    async def _admin(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Ask any node that answers; (0, None) when none does."""
        for node in self.rng.sample(self.cluster.nodes, len(self.cluster.nodes)):
            with contextlib.suppress(NoAnswer):
                return await asyncio.to_thread(
                    fetch, node.url + path, method=method, body=body, token=node.token, timeout_s=10
                )
        return 0, None

    async def change(self, what: str, method: str, path: str, body: Any = None) -> Any:
        """Ask for a change until it is made, and return the answer; None when it never was.

        A cluster that other faults keep busy refuses for a while; what it says is shown.
        """
        began = time.monotonic()
        told: Any = None
        while time.monotonic() < began + CHANGE_S:
            status, said = await self._admin(method, path, body)
            reason = said.get("error") if isinstance(said, dict) else said
            # An attempt of which no answer came may have been the one.
            if status == 200 or (status == 409 and str(reason).endswith(MADE_ALREADY)):
                return said
            if reason != told and time.monotonic() > began + CHANGE_SHOWN_S:
                self.say(f"{what} waits: {status} {reason}")
                told = reason
            await asyncio.sleep(0.2)
        self.violations.append(f"{what} could not be done within {CHANGE_S:.0f} s: {told}\n{self.cluster.tails()}")
        return None

    async def change_members(self, span: Span) -> None:
        """The spare node joins with an empty disk, catches up and votes; another one is removed and is the spare one then."""
        async with self._wiping, self._victims(1) as victims:
            for leaving in victims:
                joining = self.cluster.spare
                self._began(span, f"{joining.id} joins, {leaving.id} leaves", joining, leaving)
                members = "/admin/cluster/members"
                where = {"id": joining.id, "address": self.cluster.addresses[joining.id]}
                if not await self.change(f"adding {joining.id}", "POST", members, where):
                    return
                empty(joining)
                await joining.start()
                if not await self.change(f"promoting {joining.id}", "POST", f"{members}/{joining.id}/promote"):
                    return
                await self._whole(joining)
                self.cluster.nodes.append(joining)
                if not await self._remove(leaving):
                    return
                self.cluster.nodes.remove(leaving)
                # It is told, or else learns it when it asks; and either way it ends.
                with contextlib.suppress(ClusterTrouble):
                    await leaving.exited(10)
                await leaving.kill()
                self.cluster.spare = leaving

    async def _remove(self, leaving: LocalNode) -> bool:
        """Remove a member; a leader hands over first."""
        deadline = time.monotonic() + CHANGE_S
        path = f"/admin/cluster/members/{leaving.id}"
        said: Any = None
        while time.monotonic() < deadline:
            status, said = await self._admin("DELETE", path)
            if status in (200, 404) or (status == 409 and "not a member" in str(said)):
                return True
            if "leads" in str(said):
                await self._admin("POST", "/admin/cluster/transfer", {})
            await asyncio.sleep(0.2)
        self.violations.append(
            f"{leaving.id} could not be removed within {CHANGE_S:.0f} s: {said}\n{self.cluster.tails()}"
        )
        return False

    # -- The end

    async def heal(self) -> None:
        """Undo everything that may still stand, and start what does not run."""
        self.cluster.links.heal_all()
        for machine in self.cluster.machines.values():
            machine.heal()
        if self.disk is not None:
            self.disk.free()
        for node in self.cluster.nodes:
            if node.running:
                node.signal(signal.SIGCONT)
            else:
                await node.start()


def empty(node: LocalNode) -> None:
    """Take everything from a node's disk; a mount of its own stays."""
    for path in node.data.glob("*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def is_whole(node: LocalNode) -> bool:
    """Whether a node holds all that it has promised, as it has written down itself."""
    try:
        return bool(json.loads((node.data / "identity.json").read_text())["whole"])
    except (OSError, ValueError, KeyError):
        return False

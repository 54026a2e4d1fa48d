"""One cluster from its founding to the verdict: load, faults, checkpoints at which all contents are compared, the end, and the judge.

An episode with the rolling upgrade begins with every node on the earlier version, and with the faults that this one stands; nodes
go up, back and up again, one at a time. Then the feature level is raised, there is no way back, and everything else is inflicted.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from quorumq.cluster.version import VERSION
from scripts.tools.chaos import faults as all_faults
from scripts.tools.chaos.clients import Load
from scripts.tools.chaos.cluster import ChaosCluster
from scripts.tools.chaos.faults import ROLL, Chaos, Span
from scripts.tools.chaos.history import History
from scripts.tools.chaos.judge import Verdict, judge
from tests.support.local_cluster import ClusterTrouble, LocalNode
from tests.support.namespaces import SmallDisk
from tests.support.versions import PREVIOUS

DISK_MB = 256
SAMPLE_S = 0.5
MIXED_SHARE = 0.25
"""Of an episode's time, with two versions."""
ROLLS_MIN = 5
HEALED_S = 120.0


@dataclass
class Sample:
    """Who leads, as a majority says, and who is ready; at a moment of the run."""

    at: float
    leader: str | None
    term: int
    ready: list[str]


@dataclass
class Checkpoint:
    """A moment at which nothing was under way. equal: whether all nodes held the same."""

    at: float
    equal: bool
    text: str


@dataclass
class Result:
    """What came of one or more episodes. troubles: what broke a promise without being in the history."""

    verdict: Verdict = field(default_factory=Verdict)
    faults: Counter[str] = field(default_factory=Counter)
    spans: list[Span] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return self.verdict.passed and not self.troubles


@dataclass(frozen=True)
class Plan:
    """names: faults to inflict.  checkpoint_s: between two checkpoints, at least.  disk: whether a file system may be made.

    brief: each fault once and no more, none of them beside another; nodes are upgraded and do not go back.
    """

    names: list[str]
    seconds: float
    nodes: int = 3
    longest_s: float = 6.0
    pushes_per_s: float = 40.0
    checkpoint_s: float = 60.0
    disk: bool = False
    brief: bool = False


class Episode:
    """One cluster under a plan."""

    def __init__(
        self, plan: Plan, rng: random.Random, history: History, epoch: int, folder: Path | None = None
    ) -> None:
        self.plan = plan
        self.rng = rng
        self.history = history
        self.epoch = epoch
        self.result = Result()
        self.cluster = ChaosCluster(plan.nodes, rng, folder)
        self._ends = time.monotonic() + plan.seconds
        self._checked_at = time.monotonic()

    def trouble(self, text: str) -> None:
        """Note what breaks a promise, and say so at once."""
        self.result.troubles.append(text)
        print(f"{self.history.now():7.1f} s  VIOLATED: {text}", flush=True)

    async def run(self) -> Result:
        """All of it; prints as it goes."""
        cluster, plan = self.cluster, self.plan
        first = len(self.history.requests)
        mixed = ROLL in plan.names
        if mixed:
            for node in cluster.everyone:
                cluster.run(node, PREVIOUS)
        disk: SmallDisk | None = None
        try:
            disk = SmallDisk(cluster.nodes[0], DISK_MB) if plan.disk else None
            await cluster.start()
            async with Load(cluster, self.rng, self.history, pushes_per_s=plan.pushes_per_s, epoch=self.epoch) as load:
                chaos = Chaos(cluster, self.rng, load, disk, plan.longest_s, brief=plan.brief)
                watch = asyncio.create_task(self._watch())
                try:
                    await self._break(chaos, load, mixed=mixed)
                    await self._end(chaos, load)
                except ClusterTrouble as error:
                    self.trouble(str(error))
                finally:
                    watch.cancel()
                    await asyncio.gather(watch, return_exceptions=True)
                    self.result.faults, self.result.spans = chaos.done, chaos.spans
                    for text in chaos.violations:
                        self.trouble(text)
                readers = load.readers
                states = load.states
        finally:
            if disk is not None:
                disk.close()
            if self.result.troubles:
                self.result.lines.append(kept(cluster))
            await cluster.close()
        chaos.say("judging")
        self.result.verdict = await asyncio.to_thread(judge, self.history.requests[first:], readers)
        self.result.lines.append(f"jobs at the end: {some(states)}")
        return self.result

    # -- Faults

    async def _break(self, chaos: Chaos, load: Load, *, mixed: bool) -> None:
        names = [name for name in self.plan.names if name != ROLL]
        if mixed:
            await self._roll(chaos, load, names)
        left = self._shuffled(chaos.possible(names))
        # Each kind once before any comes again: a short run sees all of them, however slow the machine is.
        while left or time.monotonic() < self._ends:
            possible = chaos.possible(names)
            name = left.pop() if left else self.rng.choice(possible)
            await chaos.one(name, names)
            await self._perhaps_check(chaos, load)

    def _shuffled(self, names: list[str]) -> list[str]:
        shuffled = list(names)
        self.rng.shuffle(shuffled)
        return shuffled

    async def _roll(self, chaos: Chaos, load: Load, names: list[str]) -> None:
        """Go up, with a step back, and with the faults between the steps that the earlier version stands, as long as there is time."""
        cluster, until = self.cluster, time.monotonic() + MIXED_SHARE * self.plan.seconds
        among = chaos.possible(names)
        rolls = 0
        while not self.plan.brief and (rolls < ROLLS_MIN or time.monotonic() < until):
            # Forwards twice, back once, and forwards again: each version has led and followed the other.
            cluster.upwards = rolls % 5 != 2
            await chaos.one(ROLL, among)
            rolls += 1
            if among and time.monotonic() < until:
                await chaos.one(self.rng.choice(among), among)
            await self._perhaps_check(chaos, load)
        cluster.upwards = cluster.final = True
        while cluster.has_earlier:
            await chaos.one(ROLL, among)
        cluster.run(cluster.spare, VERSION)
        await self._raise_level(chaos)

    async def _raise_level(self, chaos: Chaos) -> None:
        """Let the rules of this version hold; a leader that is new, or has not heard from everybody yet, refuses for a moment."""
        await chaos.heal()
        await self.cluster.ready(timeout_s=HEALED_S)
        said = await chaos.change("raising the feature level", "POST", "/admin/cluster/level", {})
        if said is None:
            raise ClusterTrouble("the feature level could not be raised")
        chaos.say(f"all nodes run {VERSION}: feature level {said['level']}")

    # -- Checkpoints and the end

    async def _perhaps_check(self, chaos: Chaos, load: Load) -> None:
        if time.monotonic() - self._checked_at >= self.plan.checkpoint_s and not self.cluster.has_earlier:
            await chaos.heal()
            await self.cluster.ready(timeout_s=HEALED_S)
            async with load.resting():
                await self._checkpoint(chaos)
            self._checked_at = time.monotonic()

    async def _checkpoint(self, chaos: Chaos) -> None:
        """All nodes have applied the same entries, and hold the same."""
        try:
            digest = await self.cluster.converged(HEALED_S)
            found = Checkpoint(self.history.now(), True, f"all hold {digest}")
        except ClusterTrouble as error:
            found = Checkpoint(self.history.now(), False, str(error).splitlines()[0])
            self.trouble(f"at a checkpoint: {error}")
        self.result.checkpoints.append(found)
        chaos.say(f"checkpoint: {found.text}")

    async def _end(self, chaos: Chaos, load: Load) -> None:
        chaos.say("healing: waiting until every node is ready and every job is done")
        await chaos.heal()
        await self.cluster.ready(timeout_s=HEALED_S)
        if wrong := await load.drain():
            self.trouble(wrong)
        await self._checkpoint(chaos)
        for node in self.cluster.nodes:
            if wrong := await load.list_all(node):
                self.trouble(wrong)

    async def _watch(self) -> None:
        """Take note of who leads, all the time."""
        timeout = aiohttp.ClientTimeout(total=1.0)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                answers = await asyncio.gather(*(told(session, node) for node in self.cluster.nodes))
                self.result.samples.append(sample(self.history.now(), [each for each in answers if each]))
                await asyncio.sleep(SAMPLE_S)


async def told(session: aiohttp.ClientSession, node: LocalNode) -> dict[str, Any] | None:
    """What a node says of the cluster, if it says anything."""
    with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
        async with session.get(f"{node.url}/admin/cluster", headers=node.allowed) as reply:
            found: dict[str, Any] = await reply.json()
            return found if reply.status == 200 else None
    return None


def sample(now: float, answers: list[dict[str, Any]]) -> Sample:
    """Who leads is who says so in the highest term that anybody knows."""
    leading = [each for each in answers if each["role"] == "leader"]
    leader = max(leading, key=lambda each: each["term"], default=None)
    term = max((each["term"] for each in answers), default=0)
    ready = [each["node_id"] for each in answers if each.get("ready")]
    return Sample(now, leader["node_id"] if leader is not None else None, term, ready)


def kept(cluster: ChaosCluster) -> str:
    """The nodes' logs, where they can still be read when their folder is gone."""
    folder = Path(tempfile.mkdtemp(prefix="quorumq-chaos-logs-"))
    for node in cluster.everyone:
        (folder / node.log.name).write_text(node.log_text())
    return f"the nodes' logs are in {folder}"


def some(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())) or "none"


def choose(wanted: str, can_fill: bool) -> list[str]:
    """The faults that a list of names, or `all`, means. Raises ValueError for a name that is none."""
    known = list(all_faults.ABOUT)
    if wanted == "all":
        return [name for name in known if can_fill or name not in all_faults.ROOT_ONLY]
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(
            f"no fault is called {', '.join(map(repr, unknown)) or 'nothing'}; there are: {', '.join(known)}"
        )
    return names

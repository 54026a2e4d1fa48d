"""A crash at each step of a snapshot, of compaction and of a snapshot's transfer: what was acknowledged is there afterwards.

The points need no switch in the code under test: they are the steps on its disk, each named by what is about to be done, or has
just been done, to which file. At each one the disk is copied as it is at that moment; then a node is started from what a
crash would have left of that copy.
"""

from __future__ import annotations

import asyncio
import copy
import errno
import os
import random
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from quorumq.cluster.engine import Engine
from quorumq.cluster.environment import NodeEnvironment
from tests.consensus.counting import Recorder
from tests.consensus.disks import MemoryDisk, MemoryFile, _Handle
from tests.consensus.test_engine import Cluster, fresh, until, write

WRITES_MAX = 3000
SNAPSHOT = [
    "before the unfinished snapshot is opened",
    "before the unfinished snapshot is written",
    "after the unfinished snapshot is written",
    "before the unfinished snapshot is synced",
    "after the unfinished snapshot is synced",
    "before the unfinished snapshot is renamed",
    "after the unfinished snapshot is renamed",
    "before a snapshot is removed",
    "after a snapshot is removed",
]
COMPACTION = [
    "before a segment is opened",
    "before a segment is written",
    "after a segment is written",
    "after a segment is synced",
    "before a segment is removed",
    "after a segment is removed",
]
TRANSFER = [
    "before the received snapshot is opened",
    "before the received snapshot is written",
    "after the received snapshot is written",
    "before the received snapshot is synced",
    "after the received snapshot is synced",
    "before the received snapshot is renamed",
    "after the received snapshot is renamed",
    "before a segment is written",
    "after a segment is written",
    "after a segment is synced",
]
KINDS = {
    r"writing\.part": "the unfinished snapshot",
    r"receiving\.part": "the received snapshot",
    r".*\.snapshot": "a snapshot",
    r".*\.log": "a segment",
    r"identity\.json": "the identity",
}
SEEDS = range(2)
Files = dict[str, dict[str, MemoryFile]]


class Captured:
    """The files of a node as they were at one moment, and how many writes had been acknowledged by then."""

    def __init__(self, files: Files, acknowledged: int) -> None:
        self.files = files
        self.acknowledged = acknowledged


class Watched(MemoryDisk):
    """Tells what is about to happen and what has happened."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = tell

    def step(self, when: str, name: str, done: str) -> None:  # type: ignore[override]
        kind = next((words for pattern, words in KINDS.items() if re.fullmatch(pattern, name)), name)
        self._tell(f"{when} {kind} is {done}")

    def append(self, name: str) -> _Handle:
        self.step("before", name, "opened")
        super().append(name)
        return WatchedFile(self, name)

    def rename(self, old: str, new: str) -> None:
        self.step("before", old, "renamed")
        super().rename(old, new)
        self.step("after", old, "renamed")

    def remove(self, name: str) -> None:
        if name in self.files:
            self.step("before", name, "removed")
            super().remove(name)
            self.step("after", name, "removed")


class WatchedFile(_Handle):
    def write(self, data: bytes) -> None:
        disk = self._disk
        assert isinstance(disk, Watched)
        disk.step("before", self._name, "written")
        super().write(data)
        disk.step("after", self._name, "written")

    def sync(self) -> None:
        disk = self._disk
        assert isinstance(disk, Watched)
        disk.step("before", self._name, "synced")
        super().sync()
        disk.step("after", self._name, "synced")


class AtOnce:
    """Writes snapshots in this process: at the next poll, which is the moment of which they are."""

    def __init__(self) -> None:
        self.fork_s = self.stall_s = 0.0
        self.stalls = 0
        self._next: tuple[Any, Any] | None = None

    def start(self, work: Any, done: Any) -> None:
        work(lambda: None)
        self._next = (work, done)

    def poll(self) -> None:
        if self._next is not None:
            (_, done), self._next = self._next, None
            done(None)

    def stop(self) -> None:
        self._next = None


class Machine(NodeEnvironment):
    """A computer whose disks stay when the process on it ends, and are watched while `watching`."""

    def __init__(self, files: Files | None = None) -> None:
        self.watching = False
        self.acknowledged = 0
        self.captured: dict[str, list[Captured]] = {}
        self.disks: dict[str, Watched] = {}
        for name, content in (files or {}).items():
            self.disks[name] = Watched(self._step)
            self.disks[name].files = content

    def _step(self, step: str) -> None:
        if self.watching:
            files = {name: copy.deepcopy(disk.files) for name, disk in self.disks.items()}
            kept = self.captured.setdefault(step, [])
            kept.append(Captured(files, self.acknowledged))
            # The first, and the last ones: in between they are alike.
            del kept[1:-3]

    def after_a_crash(self, point: str, seed: int) -> list[tuple[Machine, int]]:
        """Computers that crashed at `point`, with the writes acknowledged by then."""
        rng = random.Random(seed)
        crashed = []
        for captured in self.captured[point]:
            machine = Machine(copy.deepcopy(captured.files))
            for disk in machine.disks.values():
                disk.crash(rng)
            crashed.append((machine, captured.acknowledged))
        return crashed

    def disk(self, directory: Path) -> Any:
        name = directory.name if directory.name in ("log", "snapshots") else "root"
        return self.disks.setdefault(name, Watched(self._step))

    def lock(self, directory: Path) -> None:
        return None

    def snapshot_writer(self) -> Any:
        return AtOnce()


class OnMachines(Cluster):
    """A cluster of such computers."""

    def __init__(self, directory: Path, count: int) -> None:
        super().__init__(
            directory,
            count,
            snapshot_log_entries=20,
            snapshot_interval_ms=0,
            tail_entries=3,
            segment_bytes=4000,
            # A lone node has nobody to wait for.
            **({"heartbeat_ms": 10, "election_min_ms": 40, "election_max_ms": 60} if count == 1 else {}),
        )
        self.machines = {node: Machine() for node in self.peers}

    async def start(self, *nodes: str) -> None:
        for node in nodes or self.peers:
            engine = Engine(self.config(node), Recorder(), self.machines[node])
            await engine.start()
            self.engines[node] = engine

    async def close(self) -> None:
        for node in list(self.engines):
            await self.stop(node)


def payload(number: int) -> bytes:
    return b"%d " % number + b"x" * 3000


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A node that has taken snapshots and compacted its log, watched from its start to its end."""

    async def run() -> Machine:
        cluster = OnMachines(tmp_path_factory.mktemp("lone"), 1)
        machine = cluster.machines["n1"]
        machine.watching = True
        try:
            await cluster.start()
            # Until the third snapshot has taken the place of the first: how soon that is, is a matter of its writer's pace.
            while machine.acknowledged < 120 or (
                SNAPSHOT[-1] not in machine.captured and machine.acknowledged < WRITES_MAX
            ):
                await cluster.write("n1", payload(machine.acknowledged))
                machine.acknowledged += 1
        finally:
            await cluster.close()
        return machine

    return asyncio.run(run())


@pytest.mark.parametrize("point", [*SNAPSHOT, *COMPACTION])
async def test_a_lone_node_that_crashed_has_all_that_was_acknowledged(
    tmp_path: Path, lone: Machine, point: str
) -> None:
    for seed in SEEDS:
        for machine, acknowledged in lone.after_a_crash(point, seed):
            cluster = OnMachines(tmp_path, 1)
            cluster.machines["n1"] = machine
            try:
                await cluster.start()
                await fresh(cluster.engines["n1"])
                applied = list(cluster.applied("n1"))
                # One more may have been on its way when the crash came.
                assert applied in ([payload(n) for n in range(acknowledged + more)] for more in (0, 1))
                await cluster.write("n1", b"afterwards")
                assert cluster.applied("n1")[-1] == b"afterwards"
            finally:
                await cluster.close()


class Failing(Machine):
    """A computer whose disk refuses one step, once or a few times, when it has done that step before."""

    def __init__(self, point: str, times: int) -> None:
        super().__init__()
        self.point = point
        self.armed = False
        self.failures = [errno.ENOSPC] * times
        self.seen = 0

    def _step(self, step: str) -> None:
        if self.armed and step == self.point:
            self.seen += 1
            if self.seen > 1 and self.failures:
                code = self.failures.pop()
                raise OSError(code, os.strerror(code))


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("point", [point for point in [*SNAPSHOT, *COMPACTION] if point.startswith("before")])
async def test_a_step_on_the_disk_that_fails_loses_nothing_and_stops_nobody(
    tmp_path: Path, point: str, times: int
) -> None:
    cluster = OnMachines(tmp_path, 1)
    machine = cluster.machines["n1"] = Failing(point, times)
    try:
        await cluster.start()
        await fresh(cluster.engines["n1"])
        machine.armed = True
        count = 0
        while count < 60 or machine.failures:
            await cluster.write("n1", payload(count))
            count += 1
        assert not cluster.engines["n1"].failed.done()
        machine.armed = False
        await cluster.stop("n1", transfer=True)
        await cluster.start()
        await fresh(cluster.engines["n1"])
        assert cluster.applied("n1") == [payload(number) for number in range(count)]
    finally:
        await cluster.close()


class Followed:
    """Two nodes that are far ahead of a third, and all that a crash of the third could leave while it catches up."""

    def __init__(self, directory: Path) -> None:
        self.cluster = OnMachines(directory, 3)
        self.count = 0

    async def write(self, count: int) -> None:
        node = next(iter(self.cluster.engines))
        numbers = range(self.count, self.count + count)
        self.count += count
        for number in numbers:
            await self.cluster.write(node, payload(number))

    async def begin(self) -> None:
        await self.cluster.start()
        await self.write(10)
        await fresh(self.cluster.engines["n3"])
        await self.cluster.stop("n3", transfer=True)
        await self.write(200)
        # Further than any tail: only a snapshot helps n3.
        behind = self.cluster.machines["n3"]
        behind.watching = True
        await self.cluster.start("n3")
        await self.caught_up()
        behind.watching = False
        await self.cluster.stop("n3", transfer=True)

    async def caught_up(self) -> None:
        await fresh(self.cluster.engines["n3"])
        assert self.cluster.applied("n3") == [payload(number) for number in range(self.count)]


@pytest.fixture
async def followed(tmp_path: Path) -> AsyncIterator[Followed]:
    followed = Followed(tmp_path)
    try:
        await followed.begin()
        yield followed
    finally:
        await followed.cluster.close()


async def crash_while_following(followed: Followed, point: str, seeds: range) -> None:
    behind = followed.cluster.machines["n3"]
    for seed in seeds:
        for machine, _ in behind.after_a_crash(point, seed):
            followed.cluster.machines["n3"] = machine
            await followed.cluster.start("n3")
            await followed.caught_up()
            # What it holds now is its own: it can be the one that makes a majority.
            await until(lambda: any(engine.is_leader for engine in followed.cluster.engines.values()))
            leader = followed.cluster.leader.node_id
            other = next(node for node in ("n1", "n2") if node != leader)
            await followed.cluster.stop(other, transfer=True)
            await write(followed.cluster.engines["n3"], payload(followed.count))
            followed.count += 1
            await followed.cluster.start(other)
            await until(lambda: all(engine.status().ready for engine in followed.cluster.engines.values()))
            await followed.cluster.stop("n3", transfer=True)


@pytest.mark.parametrize("point", TRANSFER)
async def test_a_node_that_crashed_while_it_got_a_snapshot_gets_all_of_it(followed: Followed, point: str) -> None:
    await crash_while_following(followed, point, range(1))


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("point", TRANSFER)
async def test_a_node_that_crashed_while_it_got_a_snapshot_gets_all_of_it_every_time(
    followed: Followed, point: str
) -> None:
    await crash_while_following(followed, point, range(1, 8))


async def test_every_step_on_the_disk_has_its_point(lone: Machine, followed: Followed) -> None:
    about_snapshots = {step for step in lone.captured if "snapshot" in step}
    assert about_snapshots == set(SNAPSHOT)
    assert set(COMPACTION) <= set(lone.captured)
    received = {step for step in followed.cluster.machines["n3"].captured if "received" in step}
    assert received == {point for point in TRANSFER if "received" in point}

"""The feature level: who must know it before it rises, how it rises, and what becomes of those that do not know it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgpack
import pytest

from quorumq.cluster.engine import Engine
from quorumq.cluster.errors import NotUnderstood
from quorumq.cluster.levels import FOUNDING_S, Announced, Levels
from quorumq.cluster.log import Log, read_record
from quorumq.cluster.membership import ChangeRefused
from quorumq.cluster.replica import LEVEL, Replica, encode_level
from quorumq.cluster.version import VERSION
from tests.consensus.counting import Recorder
from tests.consensus.disks import MemoryDisk
from tests.consensus.test_engine import Cluster, running, until

AFTER_S = 600.0


class Leader:
    """The levels of a leader n1 of three, whose log takes everything at once."""

    def __init__(self, known: int = 1) -> None:
        self.level = 0
        self.members = ["n1", "n2", "n3"]
        self.levels = Levels(
            "n1",
            known,
            AFTER_S,
            members=lambda: self.members,
            level=lambda: self.level,
            may_propose=lambda: True,
            propose=self._propose,
        )

    def _propose(self, level: int) -> None:
        self.level = level

    def hears(self, **levels: int | None) -> None:
        for peer, level in levels.items():
            if level is None:
                self.levels.lost(peer)
            else:
                self.levels.on_announced(peer, Announced("9.9.9", level))

    def at(self, now: float, *, leads: bool = True) -> int:
        self.levels.drive(now, leads=leads)
        return self.level


def test_the_level_rises_when_all_members_have_known_it_for_a_while() -> None:
    leader = Leader(known=3)
    leader.hears(n2=2)
    assert leader.at(0.0) == 0 and leader.at(2 * AFTER_S) == 0
    leader.hears(n3=2)
    assert leader.at(2000.0) == 0
    assert leader.at(2000.0 + AFTER_S - 1) == 0
    assert leader.at(2000.0 + AFTER_S) == 2


@pytest.mark.parametrize("lost", ["a member", "leadership", "a member that comes back older"])
def test_the_wait_begins_anew(lost: str) -> None:
    leader = Leader()
    leader.hears(n2=1, n3=1)
    leader.at(0.0)
    if lost == "leadership":
        leader.at(AFTER_S - 2, leads=False)
    else:
        leader.hears(n3=None if lost == "a member" else 0)
        leader.at(AFTER_S - 2)
        leader.hears(n3=1)
    assert leader.at(AFTER_S - 1) == 0 and leader.at(AFTER_S) == 0
    assert leader.at(2 * AFTER_S - 1) == 1


def test_a_learner_must_know_it_too() -> None:
    leader = Leader()
    leader.members.append("n4")
    leader.hears(n2=1, n3=1)
    leader.at(0.0)
    assert leader.at(AFTER_S) == 0
    leader.hears(n4=1)
    leader.at(AFTER_S)
    assert leader.at(2 * AFTER_S) == 1


def test_a_new_cluster_begins_at_what_all_its_founders_know() -> None:
    leader = Leader()
    leader.levels.founded(0.0)
    assert leader.at(0.1) == 0
    leader.hears(n2=1, n3=1)
    assert leader.at(0.2) == 1
    # An older founder, or one that is slow to come, makes it a cluster like any other.
    for n3, then in ((0, 1.0), (None, FOUNDING_S)):
        other = Leader()
        other.levels.founded(0.0)
        other.hears(n2=1, n3=n3)
        other.at(0.5)
        other.hears(n3=1)
        assert other.at(then) == 0 and other.at(then + AFTER_S) == 1


def test_a_command_says_who_does_not_know_it() -> None:
    leader = Leader()
    leader.hears(n2=0)
    with pytest.raises(ChangeRefused, match=r"n2 runs 9\.9\.9, which knows 0; n3 is not connected"):
        leader.levels.raise_to(1)
    leader.hears(n2=1, n3=1)
    leader.levels.raise_to(1)
    assert leader.level == 1
    leader.levels.raise_to(1)
    with pytest.raises(ChangeRefused, match="never goes back"):
        leader.levels.raise_to(0)
    with pytest.raises(ChangeRefused, match=f"n1 runs {VERSION}, which knows 1"):
        leader.levels.raise_to(2)


class Versions(Cluster):
    """Engines whose programs know different levels."""

    def __init__(self, directory: Path, known: dict[str, int], **settings: Any) -> None:
        super().__init__(directory, len(known), **settings)
        self.known = known

    async def start(self, *nodes: str) -> None:
        for node in nodes or self.peers:
            machine = Recorder()
            machine.level_known = self.known[node]
            engine = Engine(self.config(node), machine)
            await engine.start()
            self.engines[node] = engine

    def levels(self) -> list[int]:
        return [engine.status().level for engine in self.engines.values()]

    async def told(self) -> None:
        """Wait until everybody has announced what it runs, and the leader has taken note: a cluster is being founded until then."""
        await until(lambda: all(one.version for one in self.leader.status().members))
        await until(lambda: self.leader._levels._founded_at == float("-inf"))


def formats(folder: Path) -> list[int]:
    """Formats of the log's segments."""
    return [format_of(path.read_bytes()) for path in sorted(folder.glob("log/*.log"))]


def format_of(segment: bytes) -> int:
    found = read_record(segment, 0)
    assert found is not None
    return int(msgpack.unpackb(found[1])[0])


def test_an_entry_or_a_level_that_is_not_known_is_not_passed_over() -> None:
    machine = Recorder()
    replica = Replica(machine, lambda batch, outcome: None)
    with pytest.raises(NotUnderstood, match=f"knows levels up to {machine.level_known}"):
        replica.apply(2, encode_level(5, machine.level_known + 1))
    with pytest.raises(NotUnderstood, match=f"is of kind {LEVEL + 1}"):
        replica.apply(2, msgpack.packb((LEVEL + 1, 5, b"")))
    assert (replica.level, replica.now_ms) == (0, 0)


async def test_founders_that_all_know_a_level_begin_there(tmp_path: Path) -> None:
    async with running(Versions(tmp_path, {"n1": 1, "n2": 1, "n3": 1})) as cluster:
        await until(lambda: cluster.levels() == [1, 1, 1])
        await cluster.write("n2", b"a")
        assert [machine.level for machine in (engine.machine for engine in cluster.engines.values())] == [1, 1, 1]
        for node in list(cluster.peers):
            await cluster.stop(node)
        # Versions without levels must not open these.
        assert all(formats(tmp_path / node)[-1] == 2 for node in cluster.peers)
        await cluster.start()
        await until(lambda: cluster.levels() == [1, 1, 1])


async def test_below_a_level_versions_serve_together_and_above_it_the_older_ones_stop(tmp_path: Path) -> None:
    cluster = Versions(tmp_path, {"n1": 1, "n2": 1, "n3": 0})
    async with running(cluster):
        await cluster.led()
        await cluster.write("n3", b"a")
        await cluster.told()
        with pytest.raises(ChangeRefused, match=r"n3 runs .*, which knows 0"):
            await cluster.engines["n3"].change_members("level", "1")
        assert cluster.levels() == [0, 0, 0]
        # The roll goes on, and back, and on again.
        for known in (1, 0, 1):
            await cluster.stop("n3")
            cluster.known["n3"] = known
            await cluster.start("n3")
            await cluster.write("n3", b"b%d" % known)
            await cluster.told()
        await cluster.engines["n3"].change_members("level", "1")
        await until(lambda: cluster.levels() == [1, 1, 1])
        await cluster.write("n3", b"c")
        await cluster.stop("n3")
        cluster.known["n3"] = 0
        # Its own folder says so.
        await cluster.start("n3")
        with pytest.raises(NotUnderstood, match=r"feature level 1, and .* knows levels up to 0"):
            await cluster.engines["n3"].failed
        await cluster.stop("n3")


async def test_a_member_is_known_again_after_one_of_the_two_connections_with_it_broke(tmp_path: Path) -> None:
    async with running(Versions(tmp_path, {"n1": 1, "n2": 1, "n3": 1}, level_after_ms=3_600_000)) as cluster:
        await cluster.led()
        await cluster.told()
        leader = cluster.leader
        others = cluster.peers.keys() - {leader.config.node_id}
        await until(lambda: leader._probations.whole == others)
        for peer in others:
            # The leader dials anew, and the other one goes on with the connection that it has dialled.
            link = leader._links._links[peer]
            old = await until(lambda link=link: link.connection)
            old.transport.abort()
            await until(lambda link=link, old=old: link.connection not in (None, old))
        await until(lambda: all(leader._levels.announced(peer) for peer in others))
        await until(lambda: leader._probations.whole == others)


async def test_who_missed_the_raise_is_told_by_the_others(tmp_path: Path) -> None:
    cluster = Versions(tmp_path, {"n1": 1, "n2": 1, "n3": 1}, level_after_ms=3_600_000)
    async with running(cluster):
        await until(lambda: cluster.levels() == [1, 1, 1])
        await cluster.stop("n3")
        # A folder from before, as a rolled-back disk would be.
        shutil.rmtree(tmp_path / "n3")
        cluster.known["n3"] = 0
        await cluster.start("n3")
        with pytest.raises(NotUnderstood, match="this cluster is at feature level 1"):
            await cluster.engines["n3"].failed
        await cluster.stop("n3")


def test_a_log_above_level_0_begins_a_segment_that_older_versions_refuse() -> None:
    disk = MemoryDisk()
    log = Log(disk, 1 << 20)
    log.add(b"\x01", 2, 1)
    log.flush()
    log.format = 2
    for index in (3, 4):
        log.add(b"\x01", index, 1)
        log.flush()
    assert [format_of(disk.read(name)) for name in disk.list()] == [1, 2]
    assert Log(disk, 1 << 20).last_index == 4

"""A folder that lost a part of what it held: its node is not trusted with it, and gets it back from the others."""

from __future__ import annotations

import asyncio
import errno
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quorumq.cluster import engine as engine_module
from quorumq.cluster import held, identity, links
from quorumq.cluster.disk import Disk
from quorumq.cluster.engine import Engine
from quorumq.cluster.errors import ClusterError, LogDamaged
from quorumq.cluster.held import HeldFile, HighWaterMark
from quorumq.cluster.log import _COMMIT, _ENTRY, _MARK, _RECORD_ENTRY, _SECTOR, _U64, Log, read_only, record
from tests.consensus.counting import Recorder
from tests.consensus.disks import MemoryDisk
from tests.consensus.test_engine import Cluster, fresh, running, until

WRITES = 40


def newest_segment(folder: Path) -> Path:
    return max((folder / "log").glob("*.log"))


def remove_log(folder: Path) -> None:
    shutil.rmtree(folder / "log")


def empty_log_and_snapshots(folder: Path) -> None:
    for file in [*(folder / "log").iterdir(), *(folder / "snapshots").iterdir()]:
        file.unlink()


def keep_only_the_identity(folder: Path) -> None:
    for each in folder.iterdir():
        if each.is_dir():
            shutil.rmtree(each)
        elif each.name != "identity.json":
            each.unlink()


def cut_to_a_quarter(folder: Path) -> None:
    segment = newest_segment(folder)
    data = segment.read_bytes()
    segment.write_bytes(data[: len(data) // 4])


def remove_the_last_segment(folder: Path) -> None:
    newest_segment(folder).unlink()


def flip_a_bit_of_the_last_group(folder: Path) -> None:
    segment = newest_segment(folder)
    data = bytearray(segment.read_bytes())
    data[-3] ^= 4
    segment.write_bytes(bytes(data))


def as_of_the_version_before(folder: Path) -> None:
    """Version 0.1.0 noted nothing beside the log."""
    (folder / "held").unlink()
    file = folder / "identity.json"
    kept = json.loads(file.read_bytes())
    for field in ("noted", "doubted"):
        del kept[field]
    file.write_text(json.dumps(kept))


DAMAGES: list[Callable[[Path], None]] = [
    remove_log,
    empty_log_and_snapshots,
    keep_only_the_identity,
    cut_to_a_quarter,
    remove_the_last_segment,
    flip_a_bit_of_the_last_group,
]


async def acknowledged_without_n3(cluster: Cluster, snapshot: str = "") -> None:
    """Entries that n1 and n2 alone have acknowledged; all nodes are stopped then."""
    await cluster.start()
    await cluster.led()
    await cluster.write("n1", b"first")
    await until(lambda: all(engine.metrics.whole for engine in cluster.engines.values()))
    await until(lambda: all(engine.cluster_id() for engine in cluster.engines.values()))
    await cluster.stop("n3", transfer=True)
    for number in range(WRITES):
        await cluster.write("n2", b"%d" % number)
    await fresh(cluster.engines["n1"])
    if snapshot:
        await cluster.engines[snapshot].snapshot(10.0)
    for node in ("n1", "n2"):
        await cluster.stop(node)


async def is_not_trusted(cluster: Cluster) -> None:
    """n1 and n3 alone do nothing; with n2 everything is there, and n1 is whole again."""
    await cluster.start("n1", "n3")
    doubted = cluster.engines["n1"]
    assert not doubted.metrics.whole
    await until(lambda: all(engine._links.connected(other) for engine, other in zip(
        (doubted, cluster.engines["n3"]), ("n3", "n1"), strict=True)))  # fmt: skip
    with pytest.raises(ClusterError):
        await cluster.write("n3", b"not acknowledged", timeout_s=1.5)
    assert not any(engine.is_leader or engine.status().ready for engine in cluster.engines.values())
    await cluster.start("n2")
    await until(lambda: doubted.metrics.whole)
    await cluster.write("n1", b"last")
    expected = [b"%d" % number for number in range(WRITES)]
    for node in cluster.peers:
        await fresh(cluster.engines[node])
        assert [each for each in cluster.applied(node) if each in expected] == expected
    assert identity.load(Disk(cluster.directory / "n1"), "n1", "quorumq").whole


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_folder_that_lost_a_part_counts_for_nothing_until_it_has_it_again(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    cluster = Cluster(tmp_path, segment_bytes=1500)
    try:
        await acknowledged_without_n3(cluster)
        damage(tmp_path / "n1")
        await is_not_trusted(cluster)
    finally:
        for node in list(cluster.engines):
            await cluster.stop(node)


@pytest.mark.parametrize("damage", [remove_log, empty_log_and_snapshots, flip_a_bit_of_the_last_group])
@pytest.mark.parametrize("snapshot", ["", "n1"])
async def test_a_folder_of_the_version_before_that_lost_a_part_is_noticed_too(
    tmp_path: Path, damage: Callable[[Path], None], snapshot: str
) -> None:
    cluster = Cluster(tmp_path)
    try:
        await acknowledged_without_n3(cluster, snapshot)
        as_of_the_version_before(tmp_path / "n1")
        damage(tmp_path / "n1")
        await is_not_trusted(cluster)
    finally:
        for node in list(cluster.engines):
            await cluster.stop(node)


async def test_a_log_deleted_beside_its_snapshot_is_noticed(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    try:
        await acknowledged_without_n3(cluster, "n1")
        remove_log(tmp_path / "n1")
        await is_not_trusted(cluster)
    finally:
        for node in list(cluster.engines):
            await cluster.stop(node)


async def test_folders_of_the_version_before_that_lost_nothing_are_as_whole_as_they_were(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    try:
        await acknowledged_without_n3(cluster, "n1")
        for node in cluster.peers:
            as_of_the_version_before(tmp_path / node)
        await cluster.start("n1", "n3")
        await cluster.write("n3", b"acknowledged")
        assert all(engine.metrics.whole for engine in cluster.engines.values())
        # And from now on it is noted.
        for node in ("n1", "n3"):
            await cluster.stop(node)
            remove_log(tmp_path / node)
        await cluster.start("n1", "n3")
        assert not any(engine.metrics.whole for engine in cluster.engines.values())
    finally:
        for node in list(cluster.engines):
            await cluster.stop(node)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_lone_node_does_not_start_with_less_than_it_held(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    cluster = Cluster(tmp_path, 1, segment_bytes=1500)
    async with running(cluster):
        for number in range(WRITES):
            await cluster.write("n1", b"%d" % number)
    damage(tmp_path / "n1")
    (tmp_path / "n1" / "lock").touch()
    damaged = {file: file.read_bytes() for file in (tmp_path / "n1").rglob("*") if file.is_file()}
    for _ in range(2):
        with pytest.raises(LogDamaged, match="quorumq recover"):
            await cluster.start()
    assert {file: file.read_bytes() for file in (tmp_path / "n1").rglob("*") if file.is_file()} == damaged


async def test_what_is_cut_though_it_may_have_been_promised_is_kept_aside(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    try:
        await acknowledged_without_n3(cluster)
        flip_a_bit_of_the_last_group(tmp_path / "n1")
        before = newest_segment(tmp_path / "n1").read_bytes()
        await cluster.start("n1")
        (aside,) = (tmp_path / "n1" / "log").glob("*.damaged")
        offset = int(aside.name.split(".")[2])
        assert aside.read_bytes() == before[offset:]
    finally:
        for node in list(cluster.engines):
            await cluster.stop(node)


async def test_a_node_in_doubt_stays_on_probation_when_it_is_started_again(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    try:
        await acknowledged_without_n3(cluster)
        remove_log(tmp_path / "n1")
        for _ in range(3):
            await cluster.start("n1")
            assert not cluster.engines["n1"].metrics.whole
            assert cluster.engines["n1"]._probations.probation.history  # type: ignore[union-attr]
            await cluster.stop("n1")
    finally:
        for node in list(cluster.engines):
            await cluster.stop(node)


def without_peers(cluster: Cluster) -> Engine:
    """n1 as it is when nobody told it of the others; they can reach it."""
    listen = cluster.peers["n1"].replace("127.0.0.1", "0.0.0.0")
    engine = Engine(cluster.config("n1", peers={"n1": cluster.peers["n1"]}, listen=listen), Recorder())
    cluster.engines["n1"] = engine
    return engine


async def test_a_wiped_node_without_peers_joins_its_old_members(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine_module._ALONE_S > links._RETRY_MOST_S
    monkeypatch.setattr(engine_module, "_ALONE_S", 60.0)  # however late they dial on a busy machine
    cluster = Cluster(tmp_path)
    try:
        await acknowledged_without_n3(cluster)
        shutil.rmtree(tmp_path / "n1")
        engine = without_peers(cluster)
        await engine.start()
        await cluster.start("n2", "n3")
        await until(lambda: engine.metrics.whole and engine.status().ready)
        assert "counts this node among the members" in caplog.text
        assert engine.cluster_id() == cluster.engines["n2"].cluster_id()
        assert sorted(engine._raft.peers) == ["n2", "n3"]
        await cluster.write("n1", b"last")
        assert [each for each in cluster.applied("n1") if each.isdigit()] == [
            b"%d" % number for number in range(WRITES)
        ]
    finally:
        for node in list(cluster.engines):
            await cluster.stop(node)


async def test_a_wiped_node_without_peers_that_hears_nobody_makes_a_cluster_that_mixes_with_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_ALONE_S", 0.0)
    cluster = Cluster(tmp_path)
    try:
        await acknowledged_without_n3(cluster)
        shutil.rmtree(tmp_path / "n1")
        engine = without_peers(cluster)
        await engine.start()
        await until(lambda: engine.status().ready and engine.cluster_id())
        await cluster.start("n2", "n3")
        await until(lambda: "the data is of another cluster" in caplog.text)
        await until(lambda: any(cluster.engines[node].is_leader for node in ("n2", "n3")))
        assert engine.cluster_id() != cluster.engines["n2"].cluster_id()
    finally:
        for node in list(cluster.engines):
            await cluster.stop(node)


async def test_a_new_node_without_peers_that_nobody_knows_founds_its_own_cluster(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 1)
    engine = Engine(cluster.config("n1", listen=cluster.peers["n1"].replace("127.0.0.1", "0.0.0.0")), Recorder())
    cluster.engines["n1"] = engine
    try:
        await engine.start()
        assert not engine.metrics.whole
        await cluster.write("n1", b"first")
        assert engine.metrics.whole and identity.read(Disk(tmp_path / "n1")).whole
    finally:
        await cluster.stop("n1")


OLD = """
import asyncio, sys
from pathlib import Path
from cluster.disk import Disk
from cluster import identity
from cluster.log import Log

async def main(folder):
    root = Disk(folder)
    mine = identity.IdentityFile(root, identity.load(root, "n1", "quorumq"))
    log = Log(Disk(folder / "log"), 1500)
    print(log.last_index, log.term, log.voted_for, log.tail_cut_bytes)
    for _ in range(5):
        log.add(bytes(40), log.last_index + 1, log.term)
        log.flush()
    while log.durable < log.appended:
        await asyncio.sleep(0.01)
    mine.held.store(root)
    print(log.last_index)

asyncio.run(main(Path(sys.argv[1])))
"""


async def test_the_version_before_reads_and_continues_a_folder_and_hands_it_back(tmp_path: Path) -> None:
    (wheel,) = (Path(__file__).parents[1] / "versions").glob("quorumq-0.1.0-*.whl")
    cluster = Cluster(tmp_path, 1, segment_bytes=1500)
    async with running(cluster):
        for number in range(WRITES):
            await cluster.write("n1", b"%d" % number)
        journal = cluster.engines["n1"]._log
        held_now = (journal.last_index, journal.term, journal.voted_for)
    folder = tmp_path / "n1"
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", OLD, str(folder)],
        env={"PYTHONPATH": str(wheel)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    first, last = ran.stdout.splitlines()
    assert first == f"{held_now[0]} {held_now[1]} {held_now[2]} 0"
    root = Disk(folder)
    again = read_only(Disk(folder / "log"))
    owner = identity.read(root)
    assert owner is not None and not owner.noted
    assert again.last_index == int(last) == held_now[0] + 5
    assert (again.doubt, held.lacking(root, owner, again, 0, alone=True)) == ("", "")
    # What that version wrote without announcing it is judged by its records.
    flip_a_bit_of_the_last_group(folder)
    assert "damaged at offset" in read_only(Disk(folder / "log")).doubt


# -- the note ------------------------------------------------------------------------------------------------------------


def a_noted_log(disk: MemoryDisk, root: MemoryDisk) -> tuple[Log, HeldFile]:
    file = HeldFile(root)
    log = Log(disk, 600, file)
    number, size = log.end
    assert file.begin(HighWaterMark(number, size, log.last_index, log.term, 0))
    return log, file


def fill(log: Log, upto: int) -> None:
    for index in range(log.last_index + 1, upto + 1):
        log.add(b"\0" + bytes(40), index, 1)
        log.flush()


def whole(disk: MemoryDisk) -> identity.Identity:
    return identity.Identity(1, "n1", "test", "c" * 32, True, noted=True)


def test_the_note_follows_the_log() -> None:
    disk, root = MemoryDisk(), MemoryDisk()
    log, file = a_noted_log(disk, root)
    for upto in range(2, 60):
        fill(log, upto)
        note = held.read(root)
        assert note is not None
        assert ((note.segment, note.size), note.last_index) == (log.end, log.last_index)
    assert log.segments > 2
    log.deleteEntriesFrom(50)
    log.flush()
    assert held.lacking(root, whole(root), Log(disk, 600, settle=False), 0) == ""
    file.covered(30)
    fill(log, 70)
    assert held.read(root).snapshot == 30  # type: ignore[union-attr]


def test_after_a_power_cut_the_note_is_never_ahead_of_the_log() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        disk, root = MemoryDisk(immediate=False), MemoryDisk()
        log, file = a_noted_log(disk, root)
        for index in range(2, rng.randint(3, 40)):
            log.add(b"\0" + rng.randbytes(rng.randint(1, 80)), index, 1)
            log.flush()
            while rng.random() < 0.7 and disk.step():
                pass
            if rng.random() < 0.1:
                file.sync()
        disk.crash(rng)
        root.crash(rng)
        again = Log(disk, 600, settle=False)
        assert held.lacking(root, whole(root), again, 0) == ""
        assert again.doubt == ""


def test_a_note_that_is_torn_leaves_the_one_before() -> None:
    disk, root = MemoryDisk(), MemoryDisk()
    log, _ = a_noted_log(disk, root)
    fill(log, 20)
    content = root.read(held.FILE)
    note = held.read(root)
    assert note is not None and len(content) == 1024
    newer = 512 * (note.number % 2)
    torn = bytearray(content)
    torn[newer + 12] ^= 1
    root.files[held.FILE].durable, root.files[held.FILE].patches = bytes(torn), []
    before = held.read(root)
    assert before is not None and before.number == note.number - 1
    root.files[held.FILE].durable = bytes(1024)
    assert "cannot be read" in held.lacking(root, whole(root), log, 0)


def test_a_note_that_is_gone_is_missed_whatever_the_log_says() -> None:
    """Without it nobody knows whether a log that reads well has lost its end."""
    disk, root = MemoryDisk(), MemoryDisk()
    log, _ = a_noted_log(disk, root)
    fill(log, 20)
    root.remove(held.FILE)
    assert "held is missing" in held.lacking(root, whole(root), Log(disk, 600, settle=False), 0)
    never = identity.Identity(1, "n1", "test", "c" * 32, True, noted=False)
    assert held.lacking(root, never, Log(disk, 600, settle=False), 0) == ""


def test_a_snapshot_that_is_gone_is_missed_where_the_log_does_not_reach_as_far() -> None:
    disk, root = MemoryDisk(), MemoryDisk()
    log, file = a_noted_log(disk, root)
    fill(log, 20)
    file.covered(30)
    again = Log(disk, 600, settle=False)
    assert "snapshot of entry 30, and what is left ends at entry 20" in held.lacking(root, whole(root), again, 0)
    assert "what is left ends at entry 25" in held.lacking(root, whole(root), again, 25)
    assert held.lacking(root, whole(root), again, 30) == ""


def test_a_full_disk_neither_keeps_a_node_from_starting_nor_its_log_from_being_written() -> None:
    disk, root = MemoryDisk(), MemoryDisk()
    root.fail_writes = errno.ENOSPC
    file = HeldFile(root)
    log = Log(disk, 600, file)
    assert not file.begin(HighWaterMark())
    fill(log, 9)
    assert log.durable_index == 9 and isinstance(file.failure, OSError)
    root.fail_writes = None
    fill(log, 10)
    assert file.failure is None and held.read(root).last_index == 10  # type: ignore[union-attr]
    root.fail_writes = errno.EIO
    fill(log, 12)
    assert log.durable_index == 12 and isinstance(file.failure, OSError)
    root.fail_writes = None
    fill(log, 13)
    assert file.failure is None and held.read(root).last_index == 13  # type: ignore[union-attr]


@pytest.mark.parametrize("fails", ["fail_writes", "fail_syncs"])
def test_a_note_that_was_refused_is_written_again_also_when_nothing_more_comes_into_the_log(fails: str) -> None:
    """A disk that ran full is well again, and a quiet log is cut: that must be noticed."""
    disk, root = MemoryDisk(), MemoryDisk()
    log, file = a_noted_log(disk, root)
    fill(log, 3)
    setattr(root, fails, errno.ENOSPC)
    fill(log, 9)
    file.sync()
    assert file.failure is not None and file.due(100.0)
    setattr(root, fails, None)
    root.files[held.FILE].patches = []  # what a disk could not take is not kept for it either
    file.sync()
    assert file.failure is None and not file.due(101.5)
    root.crash(random.Random(1))
    note = held.read(root)
    assert note is not None and ((note.segment, note.size), note.last_index) == (log.end, 9)


def test_a_note_that_could_not_be_begun_is_written_when_the_disk_takes_it() -> None:
    root = MemoryDisk()
    root.fail_writes = errno.ENOSPC
    file = HeldFile(root)
    assert not file.begin(HighWaterMark(3, 700, 20, 2)) and file.due(100.0)
    root.fail_writes = None
    file.sync()
    note = held.read(root)
    assert note is not None and (note.segment, note.size, note.last_index) == (3, 700, 20)


def test_it_is_synced_once_a_second_and_only_when_there_is_something_new() -> None:
    disk, root = MemoryDisk(), MemoryDisk()
    log, file = a_noted_log(disk, root)
    assert not file.due(100.0)
    fill(log, 3)
    assert file.due(100.0) and not file.due(100.5)
    assert root.files[held.FILE].patches
    file.sync()
    assert not root.files[held.FILE].patches and not file.due(102.0)
    fill(log, 4)
    assert file.due(102.0)


# -- torn, or whole and wrong -----------------------------------------------------------------------------------------------


def last_group(log: Log, disk: MemoryDisk) -> tuple[str, int, bytes]:
    """Write one more group; its segment, where it begins, and the segment with it."""
    before = log.end[1]
    log.add(b"\0" + b"last" * 9, log.last_index + 1, 1)
    log.setCurrentTerm(2, "n1")
    log.flush()
    name = disk.list()[-1]
    return name, before, disk.read(name)


def a_copy(disk: MemoryDisk, name: str, data: bytes) -> MemoryDisk:
    copy = MemoryDisk()
    for other in disk.list():
        copy.append(other).write(data if other == name else disk.read(other))
    return copy


def filled() -> tuple[Log, MemoryDisk]:
    disk = MemoryDisk()
    log = Log(disk, 1 << 20)
    fill(log, 30)
    return log, disk


def test_every_bit_of_the_last_group_puts_the_log_in_doubt() -> None:
    log, disk = filled()
    name, begins, data = last_group(log, disk)
    for position in range(begins, len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            copy = a_copy(disk, name, bytes(flipped))
            again = Log(copy, 1 << 20)
            assert f"{name} is damaged at offset" in again.doubt, (position, bit)
            # What is left is whole, and the next start finds nothing in doubt.
            assert again.last_index in (30, 31)
            assert Log(copy, 1 << 20).doubt == ""


@pytest.mark.parametrize("beyond", range(1, 8))
def test_zeros_at_its_end_do_not_make_a_damaged_group_a_torn_one(beyond: int) -> None:
    """The last bytes of a group are a small number, and they are all that lies in its last sector."""
    log, disk = filled()
    begins = log.end[1]
    empty = len(record(_RECORD_ENTRY, _ENTRY.pack(1, 1) + b"\0"))
    around = len(record(_MARK, _U64.pack(0))) + len(record(_COMMIT, _U64.pack(9))) + empty
    log.add(b"\0" + b"x" * (-(begins + around - beyond) % _SECTOR), log.last_index + 1, 1)
    log.setRaftCommitIndex(9)
    log.flush()
    name = disk.list()[-1]
    data = disk.read(name)
    assert len(data) % _SECTOR == beyond and data.endswith(bytes(beyond))
    for position in range(begins, len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1
        assert Log(a_copy(disk, name, bytes(flipped)), 1 << 20).doubt, position


def test_a_group_that_is_shorter_than_announced_is_torn_whatever_it_holds() -> None:
    log, disk = filled()
    name, begins, data = last_group(log, disk)
    for size in range(begins, len(data)):
        for kept in (data[:size], data[: (begins + size) // 2].ljust(size, b"\xaa")):
            if len(kept) - begins >= 17 and kept[begins : begins + 17] != data[begins : begins + 17]:
                continue  # its announcement had not arrived: what it was to be is not known
            again = Log(a_copy(disk, name, kept), 1 << 20)
            assert again.doubt == "", size
            assert again.tail_cut_bytes == 0 or again.last_index in (30, 31)


def test_sectors_that_had_not_arrived_are_torn() -> None:
    log, disk = filled()
    while log.end[1] % 512 < 450:
        fill(log, log.last_index + 1)
    name, begins, data = last_group(log, disk)
    sector = begins // 512 * 512 + 512
    assert begins < sector < len(data)
    last = log.last_index - 1
    again = Log(a_copy(disk, name, data[:sector] + bytes(len(data) - sector)), 1 << 20)
    assert (again.doubt, again.last_index) == ("", last)
    again = Log(a_copy(disk, name, data[:begins] + bytes(len(data) - begins)), 1 << 20)
    assert (again.doubt, again.last_index) == ("", last)


def test_a_group_of_the_version_before_is_judged_by_its_records(monkeypatch: pytest.MonkeyPatch) -> None:
    import quorumq.cluster.log as log_module

    monkeypatch.setattr(log_module, "_ANNOUNCED", 0)
    log, disk = filled()
    name, begins, data = last_group(log, disk)
    monkeypatch.undo()
    assert Log(a_copy(disk, name, data), 1 << 20).doubt == ""
    flipped = bytearray(data)
    flipped[begins + 17 + 30] ^= 1
    assert "damaged at offset" in Log(a_copy(disk, name, bytes(flipped)), 1 << 20).doubt
    for size in range(begins, len(data)):
        assert Log(a_copy(disk, name, data[:size]), 1 << 20).doubt == ""


def test_what_cannot_be_trusted_is_said_and_nothing_is_changed() -> None:
    log, disk = filled()
    name, _, data = last_group(log, disk)
    flipped = bytearray(data)
    flipped[-1] ^= 1
    copy: Any = a_copy(disk, name, bytes(flipped))
    assert name in read_only(copy).doubt
    assert copy.read(name) == bytes(flipped) and copy.list() == disk.list()


@pytest.mark.parametrize("noted", range(4))
def test_a_note_that_is_put_in_place_of_another_holds_whatever_that_ones_number(noted: int) -> None:
    """A start that found less than was noted says what is there now; an old note with a higher number would doubt it again."""
    disk = MemoryDisk()
    old = HeldFile(disk)
    assert old.begin(HighWaterMark(1, 100, 10, 1, 0))
    for step in range(noted):
        old.reached(1, 200 + step, 20 + step, 1, sync=True)
    now = HeldFile(disk)
    assert now.begin(HighWaterMark(1, 50, 5, 1, 0))
    found = held.read(disk)
    assert found is not None and (found.size, found.last_index) == (50, 5)

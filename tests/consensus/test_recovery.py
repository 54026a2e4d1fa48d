"""What a start makes of a disk: the newest sound snapshot, the log behind it, and what of them cannot be trusted."""

from __future__ import annotations

from pathlib import Path

import pytest

from quorumq.cluster import recovery, snapshots
from quorumq.cluster.config import ClusterConfig
from quorumq.cluster.errors import LogDamaged
from quorumq.cluster.log import Log, read_record
from quorumq.cluster.replica import Replica
from quorumq.cluster.snapshots import Head
from tests.consensus.counting import Recorder
from tests.consensus.disks import MemoryDisk


class Found:
    """A node's two disks, and what its next start finds there."""

    def __init__(self) -> None:
        self.log, self.snapshots = MemoryDisk(), MemoryDisk()

    def snapshot(self, index: int, term: int = 1, payload: bytes = b"x") -> str:
        recorder = Recorder()
        recorder.apply(2, 1, [payload])
        head = Head(1, index, term, Replica(recorder, lambda batch, outcome: None).head())
        return snapshots.write(self.snapshots, "part", head, recorder.image(), lambda: None)

    def entries(self, last: int, term: int = 1, after: int = 1) -> None:
        journal = Log(self.log, 1 << 20)
        if after > 1:
            journal.reset(after, term)
        for index in range(after + 1, last + 1):
            journal.add(b"\0" + bytes([index]), index, term)
        journal.flush()

    def recover(self, directory: Path) -> tuple[Log, str, int, list[bytes]]:
        config = ClusterConfig(node_id="n1", peers={"n1": "n1:1"}, listen="n1:1", data_dir=directory)
        recorder = Recorder()
        replica = Replica(recorder, lambda batch, outcome: None)
        return *recovery.recover(config, self.log, self.snapshots, replica), recorder.applied


@pytest.fixture
def found() -> Found:
    return Found()


def test_entries_above_the_snapshot_are_kept(tmp_path: Path, found: Found) -> None:
    found.entries(12)
    name = found.snapshot(7)
    journal, *rest = found.recover(tmp_path)
    assert (rest, journal.last_index, journal.term_at(7)) == ([name, 7, [b"x"]], 12, 1)


@pytest.mark.parametrize(("index", "term"), [(7, 3), (20, 1)], ids=["contradicts", "ends below"])
def test_a_log_that_does_not_lead_to_the_snapshot_begins_anew_behind_it(
    tmp_path: Path, found: Found, index: int, term: int
) -> None:
    found.entries(12)
    found.snapshot(index, term)
    journal, _, reached, _ = found.recover(tmp_path)
    assert (reached, journal.last_index, journal.last_term) == (index, index, term)


@pytest.mark.parametrize("newest", [7, None], ids=["a gap", "no snapshot"])
def test_a_log_that_begins_above_what_is_held_stops_the_start(tmp_path: Path, found: Found, newest: int | None) -> None:
    found.entries(12, after=9)
    if newest is not None:
        found.snapshot(newest)
    with pytest.raises(LogDamaged, match="the log begins after entry 9"):
        found.recover(tmp_path)
    assert Log(found.log, 1 << 20).last_index == 12


def test_the_snapshot_before_a_damaged_one_does_as_well(tmp_path: Path, found: Found) -> None:
    found.entries(12)
    older, damaged = found.snapshot(7, payload=b"older"), found.snapshot(9, payload=b"newer")
    found.snapshots.truncate(damaged, found.snapshots.size(damaged) - 1)
    journal, *rest = found.recover(tmp_path)
    assert (rest, journal.last_index) == ([older, 7, [b"older"]], 12)


@pytest.mark.parametrize(
    "order",
    ["1234", "0124", "01123", "0123", "012344", "012340", "0"],
    ids=["no head", "a piece less", "no end", "cut", "two ends", "something behind", "head alone"],
)
def test_a_snapshot_is_whole_or_none(order: str) -> None:
    """Each of its records is sound by itself."""
    disk = MemoryDisk()
    head = Head(1, 7, 3, Replica(Recorder(), lambda batch, outcome: None).head())
    name = snapshots.write(disk, "part", head, iter((b"one", b"two", b"three")), lambda: None)
    assert snapshots.verify(disk, name) == head
    data, records = disk.read(name), []
    while data:
        record = read_record(data, 0)
        assert record is not None
        records.append(data[: record[2]])
        data = data[record[2] :]
    assert len(records) == 5
    disk.write_atomic(name, b"".join(records[int(at)] for at in order))
    with pytest.raises(LogDamaged):
        snapshots.verify(disk, name)

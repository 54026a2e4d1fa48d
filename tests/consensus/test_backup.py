"""A data directory made from a backup: whole, or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from quorumq.cluster import backup, identity, recovery, snapshots
from quorumq.cluster.disk import Disk
from quorumq.cluster.identity import Identity
from quorumq.cluster.replica import Batch, Replica, encode_batches
from quorumq.cluster.snapshots import Head
from tests.consensus.counting import Recorder

BATCH = Batch("n1", 77, 1, 1, b"a")


def a_backup(directory: Path, *payloads: bytes) -> Path:
    recorder = Recorder()
    replica = Replica(recorder, lambda batch, outcome: None)
    replica.cluster_id = "f" * 32
    replica.apply(2, encode_batches(1, [BATCH]))
    for index, payload in enumerate(payloads, 3):
        recorder.apply(index, 1, [payload])
    head = Head(1, 7, 3, replica.head())
    return directory / snapshots.write(Disk(directory), "writing.part", head, recorder.image(), lambda: None)


def restored(source: Path, target: Path, node_id: str = "n1", cluster_name: str = "test") -> Replica:
    backup.restore(source, target, node_id, cluster_name)
    replica = Replica(Recorder(), lambda batch, outcome: None)
    assert recovery.newest_sound(Disk(target / "snapshots"), replica)[0]
    return replica


def test_nodes_of_one_backup_are_one_cluster_and_those_of_others_are_not(tmp_path: Path) -> None:
    one, other = a_backup(tmp_path / "one", b"b"), a_backup(tmp_path / "other", b"c")
    held = restored(one, tmp_path / "n1").cluster_id
    assert held != "f" * 32 and held == restored(one, tmp_path / "n2", "n2").cluster_id
    ids = {
        restored(each, tmp_path / f"{each.parent.name} {name}", "n1", name).cluster_id
        for each in (one, other)
        for name in ("test", "another")
    }
    assert len(ids) == 4 and held in ids


def test_a_restored_node_has_its_state_and_nobodys_requests(tmp_path: Path) -> None:
    replica = restored(a_backup(tmp_path / "backup"), tmp_path / "data")
    assert isinstance(replica.machine, Recorder) and replica.machine.applied == [b"a"]
    assert not replica.was_applied(BATCH) and replica.membership == b""
    # It may vote: whatever it promised, it promised it to the cluster before.
    assert identity.load(Disk(tmp_path / "data"), "n1", "test").whole


@pytest.mark.parametrize("step", ["sync", "identity", "stopped"])
def test_a_restore_that_fails_leaves_nothing_and_can_be_tried_again(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = a_backup(tmp_path / "backup"), tmp_path / "data"

    def full(*args: object) -> None:
        raise KeyboardInterrupt if step == "stopped" else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        if step == "identity":
            patched.setattr(Identity, "store", full)
        else:
            patched.setattr(os, "fdatasync", full)
        with pytest.raises((OSError, KeyboardInterrupt)):
            backup.restore(source, target, "n1", "test")
    assert list(target.iterdir()) == []
    head = backup.restore(source, target, "n1", "test")
    assert (head.index, head.term) == (7, 0)
    assert sorted(each.name for each in target.iterdir()) == ["held", "identity.json", "snapshots"]

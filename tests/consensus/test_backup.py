"""A data directory made from a backup: whole, or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from quorumq.cluster import backup, snapshots
from quorumq.cluster.disk import Disk
from quorumq.cluster.identity import Identity
from quorumq.cluster.replica import Replica
from quorumq.cluster.snapshots import Head
from tests.consensus.counting import Recorder


def a_backup(directory: Path) -> Path:
    recorder = Recorder()
    recorder.apply(2, 1, [b"a", b"b"])
    head = Head(1, 7, 3, Replica(recorder, lambda batch, outcome: None).head())
    return directory / snapshots.write(Disk(directory), "writing.part", head, recorder.image(), lambda: None)


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

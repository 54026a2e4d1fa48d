"""What a data directory says of its owner: changes that come together, and writes that fail."""

from __future__ import annotations

import contextlib
import errno
from types import SimpleNamespace
from typing import Any

import pytest

from quorumq.cluster import identity
from quorumq.cluster.belonging import Belonging
from quorumq.cluster.errors import LogDamaged
from quorumq.cluster.identity import IdentityFile
from quorumq.cluster.probation import Probations
from tests.consensus.disks import MemoryDisk


def made(disk: Any) -> IdentityFile:
    return IdentityFile(disk, identity.load(disk, "n1", "test"))


def test_changes_that_come_together_are_all_on_the_disk() -> None:
    disk = MemoryDisk(immediate=False)
    file = made(disk)
    ended: list[Exception | None] = []
    # The probation of a first start ends, and the log names the cluster before that is written.
    file.write(ended.append, whole=True)
    file.remember_cluster("c" * 32)
    file.write(ended.append, founders=["n1", "n2"])
    assert file.held.cluster_id == "c" * 32 and not file.held.whole
    while disk.step():
        pass
    assert ended == [None, None]
    held: Any = disk
    stored = identity.load(held, "n1", "test")
    assert stored == file.held
    assert (stored.whole, stored.cluster_id, stored.founders) == (True, "c" * 32, ["n1", "n2"])


@pytest.mark.parametrize("named", ["c", "d", ""], ids=["its own", "another", "none yet"])
def test_a_log_is_of_the_cluster_that_the_data_is_of(named: str) -> None:
    file = made(MemoryDisk())
    file.remember_cluster("c" * 32)
    rest: Any = None
    belonging = Belonging(SimpleNamespace(cluster_id=named * 32), rest, rest, rest, file, rest, rest)  # type: ignore[arg-type]
    with pytest.raises(LogDamaged, match="the log of cluster") if named == "d" else contextlib.nullcontext():
        belonging.remember()
    assert file.held.cluster_id == "c" * 32


def test_a_change_that_cannot_be_written_is_not_in_force_and_does_not_keep_others_back() -> None:
    disk = MemoryDisk(immediate=False)
    file = made(disk)
    ended: list[Exception | None] = []
    disk.fail_writes = errno.ENOSPC
    file.write(ended.append, whole=True)
    file.write(ended.append, founders=["n1"])
    disk.step()
    disk.fail_writes = None
    while disk.step():
        pass
    assert isinstance(ended[0], OSError) and ended[1] is None
    held: Any = disk
    stored = identity.load(held, "n1", "test")
    assert stored == file.held
    assert (stored.whole, stored.founders) == (False, ["n1"])


def test_a_probation_that_cannot_be_written_off_goes_on_and_is_tried_again() -> None:
    """Else the promises made from now on would not count after the next crash."""
    ended: list[str] = []
    later: list[Any] = []
    driver: Any = SimpleNamespace(
        loop=SimpleNamespace(call_later=lambda after_s, *call: later.append(call)), poke=lambda: ended.append("poked")
    )
    raft: Any = SimpleNamespace(id="n1", membership=SimpleNamespace(seats={"n1": None}))
    rest: Any = None
    probation = SimpleNamespace(writing=True, history=False)
    probations = Probations(
        raft,
        driver,
        rest,
        probation,  # type: ignore[arg-type]
        rest,
        belongs=lambda: True,
        has_history=lambda: True,
        changed=lambda: ended.append("changed"),
    )
    probations._written(OSError(errno.ENOSPC, "no space"))
    assert probations.probation is not None and not ended
    ((call, *given),) = later
    call(*given)
    assert not probation.writing
    probations._written(None)
    assert probations.probation is None and ended == ["changed", "poked"]

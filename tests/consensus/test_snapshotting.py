"""Snapshots of a running node: one being written while another is installed, one that cannot be begun, transfers from two leaders."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quorumq.cluster import recovery, snapshots
from quorumq.cluster.config import ClusterConfig
from quorumq.cluster.errors import NotUnderstood, Unavailable
from quorumq.cluster.membership import Membership, Seat
from quorumq.cluster.replica import Replica, encode_members
from quorumq.cluster.snapshots import Head, SnapshotReceiver
from quorumq.node.machine import image
from quorumq.node.machine.machine import Machine
from tests.consensus.counting import Recorder
from tests.consensus.disks import MemoryDisk
from tests.consensus.test_engine import Cluster, fresh, until
from tests.consensus.test_fuzz import Driven

ID = "f" * 32


class Slow:
    """Writes what it is to write at once; that it is done is known when the test says so."""

    fork_s = stall_s = 0.0
    stalls = 0

    def __init__(self) -> None:
        self.done: Any = None

    def start(self, work: Callable[[Callable[[], None]], Any], done: Callable[[Exception | None], None]) -> None:
        work(lambda: None)
        self.done = done

    def poll(self) -> None:
        pass

    def stop(self) -> None:
        pass


@contextlib.asynccontextmanager
async def leading(directory: Path, **settings: int) -> AsyncIterator[tuple[Driven, Slow]]:
    """A node that leads others played by the test, whose snapshots are done when the test says so."""
    driven, slow = Driven(directory, ID, **settings), Slow()
    driven.around.snapshot_writer = lambda: slow  # type: ignore[method-assign,assignment,return-value]
    driven.around.addresses = {}  # type: ignore[attr-defined]
    await driven.start()
    try:
        driven.lead()
        yield driven, slow
    finally:
        await driven.engine.stop(transfer=False)


def files(*contents: bytes, name: str) -> dict[str, bytes]:
    """Snapshots of one `name` with these contents, by content."""
    made = {}
    for content in contents:
        disk = MemoryDisk()
        index, _, term = name.partition(".")[0].partition("-")
        head = Head(1, int(index, 16), int(term, 16), Replica(Recorder(), lambda batch, outcome: None).head())
        snapshots.write(disk, "writing.part", head, iter((content,)), lambda: None)
        made[content.decode()[:1]] = disk.read(name)
    return made


async def test_a_snapshot_that_is_done_after_a_newer_one_was_installed_changes_nothing(tmp_path: Path) -> None:
    async with leading(tmp_path) as (driven, slow):
        for _ in range(5):
            driven.raft.propose(b"\x93\x00\x01\x90")
            driven.acknowledge()
        backup = asyncio.create_task(driven.engine.snapshot(30.0))
        await until(lambda: slow.done)
        # Meanwhile another leads, adds a member and sends a snapshot that holds all of it.
        seats = {node: Seat(f"{node}:7790", True) for node in ("n1", "n2", "n3")}
        replica = Replica(Recorder(), lambda batch, outcome: None)
        replica.cluster_id = ID
        replica.apply(40, encode_members(1, Membership({**seats, "n4": Seat("n4:7790", False)}).encode()))
        disk = MemoryDisk()
        name = snapshots.write(disk, "writing.part", Head(1, 50, 9, replica.head()), iter(()), lambda: None)
        content = disk.read(name)
        driven.receive("n2", {"type": "append_entries", "term": 9, "commit_index": 50, "serialized": None})
        driven.receive("n2", {"type": "snapshot_begin", "name": name, "size": len(content)})
        driven.receive("n2", {"type": "snapshot_piece", "name": name, "offset": 0, "data": content})
        await until(lambda: driven.engine.applied_index == 50)
        slow.done(None)
        assert sorted(driven.raft.membership.seats) == ["n1", "n2", "n3", "n4"]
        assert await backup == tmp_path / "n1" / "snapshots" / name
        assert driven.engine.status().snapshot_index == 50
        driven.engine._driver.drive()
        assert not driven.engine.failed.done()


async def test_a_snapshot_that_cannot_be_begun_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(tmp_path, 1, snapshot_log_entries=5, snapshot_interval_ms=0)
    await cluster.start()
    try:
        engine = cluster.engines["n1"]
        await fresh(engine)

        def no_fork() -> int:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

        with monkeypatch.context() as patched:
            patched.setattr(os, "fork", no_fork)
            for number in range(10):
                await cluster.write("n1", b"%d" % number)
            await until(lambda: engine.metrics.snapshot_failures)
            with pytest.raises(Unavailable, match="could not be written"):
                await engine.snapshot(10.0)
            assert not engine.failed.done()
        await cluster.write("n1", b"more")
        await until(lambda: engine.status().snapshot_index > 5)
    finally:
        await cluster.stop("n1")


def test_a_transfer_goes_on_only_with_the_node_that_began_it() -> None:
    name = snapshots.file_name(7, 2)
    images = files(b"a" * 1000, b"b" * 1000, name=name)
    disk, sent, installed = MemoryDisk(), [], []

    def install(name: str, head: Head, done: Callable[[bool], None]) -> None:
        installed.append(disk.read(name))
        done(True)

    receiver = SnapshotReceiver(disk, lambda peer, message: sent.append((peer, message)) or True, install)  # type: ignore[func-returns-value]
    size = len(images["a"])
    assert len(images["b"]) == size
    receiver.begin("n2", {"name": name, "size": size})
    receiver.piece("n2", {"name": name, "offset": 0, "data": images["a"][:100]})
    assert (sent[-1][0], sent[-1][1]["offset"]) == ("n2", 100)
    # The same node goes on where it was ...
    receiver.begin("n2", {"name": name, "size": size})
    assert (sent[-1][0], sent[-1][1]["offset"]) == ("n2", 100)
    # ... another one begins anew, and what is still on its way from the first is not mixed into it.
    receiver.begin("n3", {"name": name, "size": size})
    assert (sent[-1][0], sent[-1][1]["offset"]) == ("n3", 0)
    receiver.piece("n3", {"name": name, "offset": 0, "data": images["b"][:100]})
    receiver.piece("n2", {"name": name, "offset": 100, "data": images["a"][100:]})
    assert not installed
    receiver.piece("n3", {"name": name, "offset": 100, "data": images["b"][100:]})
    assert installed == [images["b"]]


def test_a_piece_counts_only_where_the_one_before_it_ends() -> None:
    name = snapshots.file_name(7, 2)
    content = files(b"a" * 1000, name=name)["a"]
    disk, sent, installed = MemoryDisk(), [], []
    receiver = SnapshotReceiver(
        disk,
        lambda peer, message: sent.append(message["offset"]) or True,  # type: ignore[func-returns-value]
        lambda name, head, done: installed.append(name),
    )
    receiver.begin("n2", {"name": name, "size": len(content)})
    for begins, ends in ((300, 500), (0, 200), (0, 200), (400, 600), (100, 300), (200, len(content))):
        receiver.piece("n2", {"name": name, "offset": begins, "data": content[begins:ends]})
    assert (sent, installed) == ([0, 200], [name])
    assert disk.read(name) == content


def test_pieces_on_their_way_to_the_disk_do_not_count_for_a_transfer_that_took_their_place() -> None:
    disk, sent = MemoryDisk(immediate=False), []
    receiver = SnapshotReceiver(disk, lambda peer, message: sent.append(message) or True, lambda name, head, done: None)  # type: ignore[func-returns-value]
    name = snapshots.file_name(7, 2)
    receiver.begin("n2", {"name": name, "size": 300})
    receiver.piece("n2", {"name": name, "offset": 0, "data": b"x" * 100})
    receiver.piece("n2", {"name": name, "offset": 100, "data": b"x" * 100})
    disk.fail_writes = errno.ENOSPC
    disk.step()
    disk.fail_writes = None
    receiver.begin("n2", {"name": name, "size": 300})
    assert sent[-1]["offset"] == 0
    receiver.piece("n2", {"name": name, "offset": 0, "data": b"x" * 100})
    while disk.step():
        pass
    # Of the new one its first piece is held, whatever became of the old one's second.
    assert [message["offset"] for message in sent] == [0, 0, 100]


class Unreadable(Machine):
    """A machine whose image a program of the present version cannot read."""

    def image(self) -> Iterator[bytes]:
        content = b"".join(super().image())
        version = content.index(b"version") + len(b"version")
        yield content[:version] + bytes([image.VERSION + 1]) + content[version + 1 :]


def test_an_image_of_a_newer_version_stops_the_start(tmp_path: Path) -> None:
    disk = MemoryDisk()
    for index, machine in ((3, Machine()), (9, Unreadable())):
        head = Head(1, index, 1, Replica(machine, lambda batch, outcome: None).head())
        snapshots.write(disk, "writing.part", head, machine.image(), lambda: None)
    config = ClusterConfig(node_id="n1", peers={"n1": "n1:1"}, listen="n1:1", data_dir=tmp_path)
    # The older one beside it would do, and what the log holds behind it may be of the newer version too.
    with pytest.raises(NotUnderstood, match="reads versions up to"):
        recovery.recover(config, MemoryDisk(), disk, Replica(Machine(), lambda batch, outcome: None))


async def test_a_snapshot_that_somebody_removed_is_written_anew_for_the_peer_that_needs_it(tmp_path: Path) -> None:
    async with leading(tmp_path) as (driven, slow):
        driven.raft.propose(b"\x93\x00\x01\x90")
        driven.acknowledge()
        snapshot = asyncio.create_task(driven.engine.snapshot(30.0))
        await until(lambda: slow.done)
        first = slow.done
        first(None)
        name = (await snapshot).name
        disk = driven.around.disks["snapshots"]
        disk.remove(name)
        # The writer rests between two snapshots.
        driven.engine._snapshots._policy.ended(float("-inf"))
        driven.engine._snapshots.want("n3")
        driven.engine._driver.drive()
        assert not driven.engine.failed.done()
        assert driven.engine.status().snapshot_index == 0
        driven.engine._snapshots.want("n3")
        driven.engine._driver.drive()
        await until(lambda: slow.done is not first)
        slow.done(None)
        assert disk.list() == [name]
        driven.engine._snapshots.want("n3")
        driven.engine._driver.drive()
        assert ("n3", {"type": "snapshot_begin", "name": name, "size": disk.size(name)}) in driven.around.sent


@pytest.mark.parametrize("step", ["remove", "append"])
def test_a_disk_that_takes_no_snapshot_ends_no_connection(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = snapshots.file_name(7, 2)
    content = files(b"a" * 1000, name=name)["a"]
    disk, installed = MemoryDisk(), []

    def install(name: str, head: Head, done: Callable[[bool], None]) -> None:
        installed.append(name)
        done(True)

    def broken(name: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    receiver = SnapshotReceiver(disk, lambda peer, message: True, install)
    with monkeypatch.context() as patched:
        patched.setattr(disk, step, broken)
        receiver.begin("n2", {"name": name, "size": len(content)})
        receiver.piece("n2", {"name": name, "offset": 0, "data": content})
    assert not installed
    receiver.begin("n2", {"name": name, "size": len(content)})
    receiver.piece("n2", {"name": name, "offset": 0, "data": content})
    assert installed == [name]


async def test_a_snapshot_that_is_being_sent_stays_until_it_is(tmp_path: Path) -> None:
    async with leading(tmp_path, tail_entries=0) as (driven, slow):

        async def another() -> str:
            slow.done = None
            driven.raft.propose(b"\x93\x00\x01\x90")
            driven.acknowledge()
            snapshot = asyncio.create_task(driven.engine.snapshot(30.0))
            await until(lambda: slow.done)
            slow.done(None)
            return (await snapshot).name

        disk = driven.around.disks["snapshots"]
        first = await another()
        driven.engine._snapshots.want("n3")
        driven.engine._driver.drive()
        assert driven.around.sent[-1][1]["type"] == "snapshot_begin"
        second, third = await another(), await another()
        assert disk.list() == [first, second, third]
        # And so does the log behind it, which the peer needs then.
        journal, index = driven.raft.journal, int(first.partition("-")[0], 16)
        assert journal.base_index == index
        driven.receive("n3", {"type": "snapshot_installed", "index": index})
        fourth = await another()
        assert disk.list() == [third, fourth]
        assert journal.base_index == int(fourth.partition("-")[0], 16)


async def test_a_snapshot_that_the_log_overtook_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with leading(tmp_path) as (driven, _):
        begun: list[Any] = []
        monkeypatch.setattr(driven.engine._driver, "step_by_step", lambda *work: begun.append(work))
        replica = Replica(Recorder(), lambda batch, outcome: None)
        replica.cluster_id = ID
        head = Head(1, driven.raft.applied_index + 1, driven.raft.term, replica.head())
        name = snapshots.write(driven.around.disks["snapshots"], "part", head, iter(()), lambda: None)
        ended: list[bool] = []
        driven.engine._snapshots._install(name, head, ended.append)
        for _ in range(3):
            driven.raft.propose(b"\x93\x00\x01\x90")
            driven.acknowledge()
        (steps, put_in_place), applied = begun.pop(), driven.raft.applied_index
        assert applied > head.index and not ended
        with pytest.raises(StopIteration) as built:
            while True:
                next(steps)
        put_in_place(built.value.value)
        assert (ended, begun, driven.raft.applied_index) == ([True], [], applied)


async def test_a_node_whose_state_differs_writes_none(tmp_path: Path) -> None:
    async with leading(tmp_path, snapshot_log_entries=3, snapshot_interval_ms=0) as (driven, slow):
        driven.engine._agreement.apart = "its state differs"
        for _ in range(5):
            driven.raft.propose(b"\x93\x00\x01\x90")
            driven.acknowledge()
        assert slow.done is None
        driven.engine._agreement.apart = ""
        driven.engine._driver.drive()
        assert slow.done is not None


class Unanswering(MemoryDisk):
    """A disk that may be touched only from its own thread: everything else would hold the event loop up if it hung."""

    def __init__(self) -> None:
        super().__init__(immediate=False)
        self.at_work = False

    def step(self) -> bool:
        self.at_work = True
        try:
            return super().step()
        finally:
            self.at_work = False

    def append(self, name: str) -> Any:
        assert self.at_work
        return super().append(name)

    def remove(self, name: str) -> None:
        assert self.at_work
        super().remove(name)


def test_taking_a_snapshot_in_never_waits_for_the_disk() -> None:
    source = MemoryDisk()
    recorder = Recorder()
    recorder.apply(2, 1, [b"a"])
    head = Head(1, 7, 3, Replica(recorder, lambda batch, outcome: None).head())
    name = snapshots.write(source, "writing.part", head, recorder.image(), lambda: None)
    content = source.read(name)
    disk, sent, installed = Unanswering(), [], []

    def send(peer: str, message: dict[str, Any]) -> bool:
        sent.append((message["type"], message.get("offset")))
        return True

    receiver = SnapshotReceiver(disk, send, lambda name, head, done: installed.append(name))
    for damaged in (True, False):
        data = content[:-1] + b"?" if damaged else content
        receiver.begin("n2", {"name": name, "size": len(data)})
        receiver.piece("n2", {"name": name, "offset": 0, "data": data})
        assert (sent[-1], disk.files) == (("snapshot_held", 0), {})
        while disk.step():
            pass
        assert installed == ([] if damaged else [name])
    assert disk.list() == [name]

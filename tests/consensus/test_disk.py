"""The real disk, call by call: the simulation stands in for it, so what it asks of the system is looked at here.

Every call that changes a file, and every sync, is recorded with what the file, or the folder, held when it was made. A sync that is left
out, or comes too early, leaves a record that lacks it; what a power cut would leave of such a record is worked out by `survives`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from quorumq.cluster import identity, snapshots
from quorumq.cluster.disk import Disk
from quorumq.cluster.held import HeldFile, HighWaterMark
from quorumq.cluster.identity import Identity, IdentityFile
from quorumq.cluster.log import Log
from tests.consensus.disks import MemoryDisk


class Call(NamedTuple):
    """kind: sync, write, truncate, rename, unlink or create.  holds: bytes of the file, or names in the folder, at that moment."""

    kind: str
    name: str
    holds: Any = None


class Recorder:
    """What was asked of the system below one folder, in order."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[Call] = []

    def name(self, handle: int) -> str:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else ""

    def note(self, kind: str, name: str, holds: Any = None) -> None:
        self.calls.append(Call(kind, name, holds))

    def synced(self, handle: int) -> None:
        name = self.name(handle)
        if not name:
            return
        path = self.root / name
        self.note("sync", name, sorted(os.listdir(path)) if path.is_dir() else path.read_bytes())

    def take(self) -> list[Call]:
        calls, self.calls = self.calls, []
        return calls

    def kinds(self) -> list[tuple[str, str]]:
        """The same without what was held, and without what creates and writes."""
        return [(call.kind, call.name) for call in self.take() if call.kind in ("sync", "rename")]

    def survives(self) -> dict[str, bytes]:
        """What a power cut leaves for sure: of each name that a sync of its folder held, the bytes that a sync of its file held."""
        contents: dict[str, bytes] = {}
        named: dict[str, str] = {}
        called: dict[str, str] = {}  # by the name that a file has now: the one that it was synced under
        for call in self.calls:
            if call.kind == "rename":
                called[call.holds] = called.pop(call.name, call.name)
            elif call.kind == "sync" and isinstance(call.holds, bytes):
                contents[called.get(call.name, call.name)] = call.holds
            elif call.kind == "sync":
                folder = "" if call.name == "." else f"{call.name}/"
                for each in call.holds:
                    named[folder + each] = called.get(folder + each, folder + each)
        return {name: contents[file] for name, file in named.items() if file in contents}


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """Records what is asked of the system from now on."""
    recorder = Recorder(tmp_path)

    def wrapped(name: str, note: Callable[..., None]) -> None:
        call = getattr(os, name)

        def record(*args: Any, **options: Any) -> Any:
            result = call(*args, **options)
            note(*args)
            return result

        monkeypatch.setattr(os, name, record)

    def below(path: Any) -> str:
        path = Path(path)
        return str(path.relative_to(tmp_path)) if path.is_relative_to(tmp_path) else ""

    wrapped("fsync", recorder.synced)
    wrapped("fdatasync", recorder.synced)
    wrapped("rename", lambda old, new, **_: recorder.note("rename", below(old), below(new)))
    wrapped("unlink", lambda path, **_: recorder.note("unlink", below(path)))
    wrapped("write", lambda handle, data, *_: recorder.note("write", recorder.name(handle), bytes(data)))
    wrapped("pwrite", lambda handle, data, *_: recorder.note("write", recorder.name(handle), bytes(data)))
    yield recorder


def test_the_recorder_sees_what_is_left_out(system: Recorder) -> None:
    """A proof must be able to fail: each step of a safe replacement, left out, and the new content is not sure to be there."""
    for without in ("", "sync of the file", "sync of the folder", "early sync"):
        file = os.open(system.root / "a.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        if without == "early sync":
            os.fsync(file)
        os.write(file, b"new")
        if without not in ("sync of the file", "early sync"):
            os.fsync(file)
        os.close(file)
        (system.root / "a.tmp").rename(system.root / "a")
        if without != "sync of the folder":
            folder = os.open(system.root, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        assert (system.survives().get("a") == b"new") == (not without), without
        system.take()
        (system.root / "a").unlink()
        system.take()


def test_a_small_file_is_written_synced_renamed_and_its_folder_synced(tmp_path: Path, system: Recorder) -> None:
    disk = Disk(tmp_path)
    for data in (b"first", b"second, and longer"):
        disk.write_atomic("identity.json", data)
        assert system.survives() == {"identity.json": data}
        renamed = [call.kind for call in system.calls].index("rename")
        synced = [number for number, call in enumerate(system.calls) if call.kind == "sync"]
        assert [system.calls[number].name for number in synced] == ["identity.json.tmp", "."]
        # The whole content before the name, the name before anybody is told.
        assert synced[0] < renamed < synced[1]
        assert system.calls[synced[0]].holds == data
        assert system.calls[synced[1]].holds == ["identity.json"]
        assert (tmp_path / "identity.json").read_bytes() == data
        system.take()


def test_a_truncation_is_on_the_disk_when_it_returns(tmp_path: Path, system: Recorder) -> None:
    disk = Disk(tmp_path)
    (tmp_path / "a.log").write_bytes(b"0123456789")
    disk.truncate("a.log", 4)
    assert [(call.name, call.holds) for call in system.take() if call.kind == "sync"] == [("a.log", b"0123")]


def test_a_rename_is_on_the_disk_when_it_returns(tmp_path: Path, system: Recorder) -> None:
    disk = Disk(tmp_path)
    (tmp_path / "a").write_bytes(b"1")
    disk.rename("a", "b")
    assert system.kinds() == [("rename", "a"), ("sync", ".")]
    assert (tmp_path / "b").exists() and not (tmp_path / "a").exists()


def test_a_sync_of_a_folder_is_of_that_folder(tmp_path: Path, system: Recorder) -> None:
    disk = Disk(tmp_path / "log")
    (tmp_path / "log" / "a").touch()
    disk.sync_directory()
    assert system.take() == [Call("sync", "log", ["a"])]


def test_what_is_appended_is_on_the_disk_after_its_sync_and_whole(tmp_path: Path, system: Recorder) -> None:
    disk = Disk(tmp_path)
    file = disk.append("a.log")
    file.write(b"one")
    file.write(b"two")
    file.sync()
    assert system.take()[-1] == Call("sync", "a.log", b"onetwo")
    file.close()
    again = disk.append("a.log")
    again.write(b"three")
    again.sync()
    again.close()
    assert system.take()[-1] == Call("sync", "a.log", b"onetwothree")


def test_a_write_that_the_system_takes_in_parts_is_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, bytes(data)[:3]))
    file = Disk(tmp_path).append("a.log")
    file.write(b"0123456789")
    file.close()
    assert (tmp_path / "a.log").read_bytes() == b"0123456789"


def test_a_write_of_which_nothing_is_taken_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Disk(tmp_path).append("a.log")
    monkeypatch.setattr(os, "write", lambda handle, data: 0)
    with pytest.raises(OSError, match="No space left"):
        file.write(b"0123456789")
    monkeypatch.undo()
    file.close()


def test_what_is_written_in_place_is_on_the_disk_after_its_sync(tmp_path: Path, system: Recorder) -> None:
    disk = Disk(tmp_path)
    (tmp_path / "held").write_bytes(b"0123456789")
    file = disk.patch("held")
    file.put(2, b"ab")
    file.sync()
    file.close()
    assert system.take()[-1] == Call("sync", "held", b"01ab456789")


def test_the_first_identity_is_on_the_disk_before_anything_else_is_done(tmp_path: Path, system: Recorder) -> None:
    held = identity.load(Disk(tmp_path), "n1", "c")
    assert system.survives() == {identity.FILE: held.encode()}


def test_an_identity_in_force_is_on_the_disk(tmp_path: Path, system: Recorder) -> None:
    disk = Disk(tmp_path)
    file = IdentityFile(disk, identity.load(disk, "n1", "c"))
    file.keep_now(whole=True)
    assert msgspec.json.decode(system.survives()[identity.FILE], type=Identity).whole
    assert file.held.whole


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_probation_has_ended_only_when_the_disk_says_so(tmp_path: Path, system: Recorder) -> None:
    disk = Disk(tmp_path)
    file = IdentityFile(disk, identity.load(disk, "n1", "c"))
    told: list[bool] = []
    file.write(
        lambda error: told.append(msgspec.json.decode(system.survives()[identity.FILE], type=Identity).whole),
        whole=True,
    )
    assert not file.held.whole
    await _until(lambda: told)
    assert told == [True] and file.held.whole
    disk.close()


async def test_a_group_of_the_log_is_durable_when_its_bytes_and_its_file_are(tmp_path: Path, system: Recorder) -> None:
    disk = Disk(tmp_path)
    log = Log(disk, 600)
    sure: list[tuple[int, int]] = []

    def durable() -> None:
        # What a power cut at this moment leaves, read by another log.
        rest = MemoryDisk()
        for name, data in system.survives().items():
            file = rest.append(name)
            file.write(data)
            file.sync()
        sure.append((log.durable_index, Log(rest, 600).last_index))

    log.on_durable = durable
    for index in range(2, 40):
        log.add(b"\0" + b"x" * 40, index, 1)
        log.flush()
        await _until(lambda: log.durable == log.appended)
    assert log.segments > 2
    assert sure[-1] == (39, 39)
    assert all(held >= promised for promised, held in sure), sure
    disk.close()
    log.close()


async def test_a_start_makes_sure_of_what_it_believes_and_of_what_it_cuts(tmp_path: Path, system: Recorder) -> None:
    disk = Disk(tmp_path)
    log = Log(disk, 100_000)
    for index in range(2, 6):
        log.add(b"\0" + b"x" * 40, index, 1)
    log.flush()
    await _until(lambda: log.durable == log.appended)
    log.close()
    disk.close()
    (segment,) = tmp_path.iterdir()
    whole = segment.read_bytes()
    segment.write_bytes(whole + whole[-30:-10])
    system.take()
    again = Log(Disk(tmp_path), 100_000)
    calls = [(call.name, call.holds) for call in system.take() if call.kind == "sync"]
    assert again.tail_cut_bytes == 20
    assert (segment.name, whole) in calls, "the cut"
    assert (f"{segment.name}.{len(whole)}.damaged", whole[-30:-10]) in calls, "what was cut, which is kept"
    assert calls[-1][0] == "." and segment.name in calls[-1][1], "its name"
    again.close()
    # The process before ended between a write and its sync: that is made good before anything is believed.
    once_more = Log(Disk(tmp_path), 100_000)
    synced = [call for call in system.take() if call.kind == "sync"]
    assert [call.name for call in synced] == [segment.name, "."] and synced[0].holds == whole
    once_more.close()


async def test_a_failed_group_is_cut_for_good_before_it_is_written_again(
    tmp_path: Path, system: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(tmp_path)
    log = Log(disk, 100_000)
    log.add(b"\0first", 2, 1)
    log.flush()
    await _until(lambda: log.durable == log.appended)
    (segment,) = tmp_path.iterdir()
    before = segment.read_bytes()
    sync = os.fdatasync

    def fails(handle: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fails)
    log.add(b"\0second", 3, 1)
    log.flush()
    await _until(lambda: log.failure)
    assert log.durable_index == 2
    monkeypatch.setattr(os, "fdatasync", sync)
    system.take()
    log.retry()
    await _until(lambda: log.durable == log.appended)
    synced = [call.holds for call in system.take() if call.kind == "sync"]
    assert synced[0] == before, "what a failed sync left is cut, and the cut synced"
    assert synced[-1] == segment.read_bytes() and len(synced[-1]) > len(before)
    disk.close()
    log.close()


def test_a_snapshot_has_its_name_only_when_it_is_whole_on_the_disk(tmp_path: Path, system: Recorder) -> None:
    disk = Disk(tmp_path)
    pieces = [b"x" * 600_000, b"y" * 600_000, b"z"]
    name = snapshots.write(disk, "writing.part", snapshots.Head(1, 7, 2, b""), iter(pieces), lambda: None)
    renamed = [call.kind for call in system.calls].index("rename")
    before = [call for call in system.calls[:renamed] if call.kind == "sync"]
    assert before[-1].holds == (tmp_path / name).read_bytes()
    assert len(before) == 2, "a large one is synced as it grows"
    assert set(system.survives()) == {name}


async def test_a_received_snapshot_has_its_name_only_when_it_is_whole_on_the_disk(
    tmp_path: Path, system: Recorder
) -> None:
    source = MemoryDisk()
    name = snapshots.write(source, "writing.part", snapshots.Head(1, 7, 2, b""), iter([b"x" * 1000]), lambda: None)
    data = source.read(name)
    installed: list[bytes | None] = []
    disk = Disk(tmp_path)
    receiver = snapshots.SnapshotReceiver(
        disk,
        lambda peer, message: True,
        lambda name, head, done: installed.append(system.survives().get(name)),
    )
    receiver.begin("n2", {"name": name, "size": len(data)})
    receiver.piece("n2", {"name": name, "offset": 0, "data": data})
    await _until(lambda: installed)
    assert installed == [data]
    disk.close()


def test_the_note_of_what_is_held_is_on_the_disk_where_it_has_to_be(tmp_path: Path, system: Recorder) -> None:
    file = HeldFile(Disk(tmp_path))
    assert file.begin(HighWaterMark(1, 100, 5, 1, 0))
    first = system.survives()["held"]
    # In place, from now on: with a new segment and with a snapshot at once, else when it is due.
    file.reached(1, 200, 6, 1)
    assert system.survives()["held"] == first
    assert file.due(1e9)
    file.sync()
    assert system.survives()["held"] == (tmp_path / "held").read_bytes() != first
    file.reached(2, 50, 7, 1, sync=True)
    assert system.survives()["held"] == (tmp_path / "held").read_bytes()
    file.covered(7)
    assert system.survives()["held"] == (tmp_path / "held").read_bytes()
    file.reached(2, 60, 8, 1)
    file.close()
    assert system.survives()["held"] == (tmp_path / "held").read_bytes()

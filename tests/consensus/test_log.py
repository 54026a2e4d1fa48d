"""The write-ahead log: what is durable comes back, what was torn is cut, what is damaged is refused."""

from __future__ import annotations

import asyncio
import errno
import random
from pathlib import Path

import pytest

from quorumq.cluster.disk import Disk
from quorumq.cluster.errors import LogDamaged
from quorumq.cluster.log import Log, describe, read_only
from tests.consensus.disks import MemoryDisk

SEGMENT = 600


def a_log(disk: MemoryDisk | None = None) -> tuple[Log, MemoryDisk]:
    disk = disk or MemoryDisk()
    return Log(disk, SEGMENT), disk


def fill(log: Log, upto: int, term: int = 1, size: int = 40) -> None:
    for index in range(log.last_index + 1, upto + 1):
        log.add(b"\0" + bytes([index % 256]) * size, index, term)
        log.flush()


def entries(log: Log) -> list[tuple[bytes, int, int]]:
    return log[1:]


def test_what_was_flushed_comes_back() -> None:
    log, disk = a_log()
    log.setCurrentTerm(3, "n2")
    fill(log, 30, term=3)
    log.setRaftCommitIndex(20)
    log.setCurrentTerm(4, None)
    log.flush()
    again, _ = a_log(disk)
    assert entries(again) == entries(log)
    assert (again.term, again.voted_for, again.commit) == (4, None, 20)
    assert again.segments > 2
    assert again.tail_cut_bytes == 0


def test_an_empty_disk_is_an_empty_log() -> None:
    log, _ = a_log()
    assert log.last_index == 1 and log.last_term == 0 and log.durable_index == 1


def test_durable_follows_the_sync_not_the_append() -> None:
    disk = MemoryDisk(immediate=False)
    log, _ = a_log(disk)
    fired: list[int] = []
    log.on_durable = lambda: fired.append(log.durable_index)
    log.add(b"\0a", 2, 1)
    log.flush()
    log.add(b"\0b", 3, 1)
    log.flush()
    assert log.durable < log.appended and log.durable_index == 1
    assert len(disk.work) == 1, "the second entry waits for the group under way"
    disk.step()
    assert fired == [2] and log.durable_index == 2
    disk.step()
    assert fired == [2, 3] and log.durable == log.appended
    assert disk.syncs == 2


def test_all_that_waits_shares_one_sync() -> None:
    disk = MemoryDisk(immediate=False)
    log, _ = a_log(disk)
    log.add(b"\0a", 2, 1)
    log.flush()
    for index in range(3, 40):
        log.add(b"\0b", index, 1)
        log.flush()
    disk.step()
    disk.step()
    assert disk.syncs == 2 and log.durable_index == 39


def test_a_conflict_is_overwritten_also_on_disk() -> None:
    log, disk = a_log()
    fill(log, 12)
    log.deleteEntriesFrom(8)  # entries 9.. go
    assert log.last_index == 8 and log.durable_index == 8
    fill(log, 14, term=2)
    again, _ = a_log(disk)
    assert entries(again) == entries(log)
    assert [term for _, _, term in entries(again)] == [1] * 7 + [2] * 6


def test_what_was_cut_off_does_not_come_back_also_when_nothing_came_in_its_place() -> None:
    log, disk = a_log()
    fill(log, 9)
    log.deleteEntriesFrom(5)
    log.setCurrentTerm(7, "n2")
    log.flush()
    again, _ = a_log(disk)
    assert (again.last_index, again.term) == (5, 7)
    assert entries(again) == entries(log)


def test_a_truncation_while_a_group_is_written_lowers_what_it_makes_durable() -> None:
    disk = MemoryDisk(immediate=False)
    log, _ = a_log(disk)
    for index in range(2, 8):
        log.add(b"\0a", index, 1)
    log.flush()
    log.deleteEntriesFrom(3)  # entries 4.. contradict the leader
    log.add(b"\0c", 4, 2)
    log.flush()
    disk.step()
    assert log.durable_index == 3
    disk.step()
    assert log.durable_index == 4
    again, _ = a_log(disk)
    assert [entry[1:] for entry in entries(again)] == [(2, 1), (3, 1), (4, 2)]


def test_reset_makes_everything_before_void() -> None:
    log, disk = a_log()
    fill(log, 10)
    log.reset(500, 7)
    log.flush()
    fill(log, 505, term=8)
    again, _ = a_log(disk)
    assert again.base_index == 500 and again.term_at(500) == 7
    assert entries(again) == entries(log)
    assert again.commit == 500


def test_compaction_drops_memory_and_whole_segments() -> None:
    log, disk = a_log()
    fill(log, 60)
    before = log.segments
    log.compact(40)
    assert log.base_index == 40 and log.term_at(40) == 1 and log.term_at(39) is None
    assert log.segments < before
    assert log.bytes == sum(len(command) for command, _, _ in entries(log))
    again, _ = a_log(disk)
    assert again.last_index == 60 and again.base_index <= 40
    assert again[41 - again.base_index :] == log[1:]


def test_a_segment_that_cannot_be_removed_leaves_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    log, disk = a_log()
    fill(log, 60)
    remove, failures = disk.remove, [1]

    def sometimes(name: str) -> None:
        if failures:
            raise OSError(failures.pop(), name)
        remove(name)

    monkeypatch.setattr(disk, "remove", sometimes)
    log.compact(30)
    assert not failures
    fill(log, 120)
    log.compact(90)
    again, _ = a_log(disk)
    assert entries(again)[-30:] == entries(log)
    # And what stayed behind is gone by now.
    assert again.segments == log.segments


def test_compaction_over_an_overwritten_tail_still_reads_back() -> None:
    """A segment that begins above the point to which its own first entries go back."""
    log, disk = a_log()
    fill(log, 20)
    while log.segments < 3:
        fill(log, log.last_index + 1)
    log.deleteEntriesFrom(15)  # back to entry 15, in an earlier segment
    fill(log, 60, term=2)
    log.compact(50)
    again, _ = a_log(disk)
    assert again.last_index == 60
    assert again[51 - again.base_index :] == log[1:]


@pytest.mark.parametrize("upto", [5, 11, 16])
def test_cut_at_every_byte_of_the_last_group(upto: int) -> None:
    log, disk = a_log()
    fill(log, upto)
    name = disk.list()[-1]
    whole = disk.read(name)
    log.add(b"\0last" * 5, upto + 1, 1)
    log.setCurrentTerm(2, "n1")
    log.flush()
    last_name = disk.list()[-1]
    if last_name != name:
        whole = b""
    full = disk.read(last_name)
    for size in range(len(whole), len(full)):
        copy = MemoryDisk()
        for other in disk.list():
            copy.append(other).write(disk.read(other))
        copy.truncate(last_name, size)
        again, _ = a_log(copy)
        assert entries(again)[: upto - 1] == entries(log)[: upto - 1], size
        # An entry may have become whole without the term behind it: it was never acknowledged, so either is right.
        assert again.last_index in (upto, upto + 1)
        assert again.term in ((0, 2) if again.last_index > upto else (0,))
        # What was cut is cut on disk as well: the next start finds nothing torn.
        fill(again, upto + 3, term=3)
        third, _ = a_log(copy)
        assert third.tail_cut_bytes == 0 and entries(third) == entries(again)


def test_a_bit_flipped_anywhere_is_never_taken_for_data() -> None:
    log, disk = a_log()
    log.setCurrentTerm(1, "n3")
    fill(log, 24)
    rng = random.Random(7)
    for name in disk.list():
        data = disk.read(name)
        for position in sorted(rng.sample(range(len(data)), min(len(data), 120))):
            copy = MemoryDisk()
            for other in disk.list():
                copy.append(other).write(disk.read(other))
            flipped = bytearray(data)
            flipped[position] ^= 1 << rng.randrange(8)
            copy.files[name].unsynced = [bytes(flipped)]
            try:
                again, _ = a_log(copy)
            except LogDamaged as error:
                assert name in str(error)
            else:
                # Only in the last group can damage look like a torn write; all before it must be as it was.
                assert name == disk.list()[-1]
                assert entries(again) == entries(log)[: len(entries(again))]
                assert len(entries(again)) >= len(entries(log)) - 1


def test_damage_before_the_tail_names_file_and_offset() -> None:
    log, disk = a_log()
    fill(log, 8)
    name = disk.list()[0]
    data = bytearray(disk.read(name))
    data[len(data) // 2] ^= 0xFF
    disk.files[name].durable = bytes(data)
    with pytest.raises(LogDamaged, match=rf"{name} is damaged at offset \d+ of {len(data)}"):
        a_log(disk)


def test_a_missing_segment_is_noticed() -> None:
    log, disk = a_log()
    fill(log, 60)
    disk.remove(disk.list()[1])
    with pytest.raises(LogDamaged, match="segment 2 is missing"):
        a_log(disk)


def test_a_segment_of_another_place_is_noticed() -> None:
    log, disk = a_log()
    fill(log, 30)
    disk.files["000000000001.log"] = disk.files["000000000002.log"]
    with pytest.raises(LogDamaged, match="renamed or copied"):
        a_log(disk)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_promises_nothing_and_is_made_good(code: int) -> None:
    log, disk = a_log()
    failures: list[Exception] = []
    log.on_failure = failures.append
    fill(log, 5)
    synced: list[float] = []
    log.on_synced = synced.append
    disk.fail_writes = code
    fill(log, 8)
    assert log.durable_index == 5 and len(failures) == 1 and log.failure is not None
    log.retry()
    assert log.durable_index == 5 and len(failures) == 1
    # What failed is no sync, and no figure of how fast the disk is.
    assert synced == []
    disk.fail_writes = None
    log.retry()
    assert log.failure is None
    fill(log, 9)
    assert log.durable_index == 9
    again, _ = a_log(disk)
    assert entries(again) == entries(log)


def test_a_failed_write_after_a_torn_tail_keeps_what_came_before() -> None:
    """Found by the simulation: the size of a segment whose tail was cut was taken for zero, and a retry cut it all."""
    log, disk = a_log()
    fill(log, 5)
    disk.append(disk.list()[-1]).write(b"torn")
    log, _ = a_log(disk)
    disk.fail_writes = errno.ENOSPC
    fill(log, 6)
    disk.fail_writes = None
    log.retry()
    again, _ = a_log(disk)
    assert entries(again) == entries(log)
    assert again.last_index == 6


def test_compaction_waits_for_the_segment_that_takes_over() -> None:
    """Found by the simulation: old segments went while the first write of the next one was still failing."""
    log, disk = a_log()
    fill(log, 6)
    assert log.segments == 1
    while disk.size(disk.list()[-1]) < SEGMENT:
        fill(log, log.last_index + 1)
    disk.fail_writes = errno.ENOSPC
    fill(log, log.last_index + 1)
    log.compact(log.durable_index)
    assert describe(read_only(disk))["last_index"] == log.durable_index


def test_random_lives_and_power_cuts_keep_what_was_durable() -> None:
    for seed in range(60):
        rng = random.Random(seed)
        disk = MemoryDisk(immediate=False)
        log, _ = a_log(disk)
        for _ in range(40):
            action = rng.random()
            if action < 0.6:
                log.add(bytes([0]) + rng.randbytes(rng.randint(0, 80)), log.last_index + 1, max(1, log.term))
            elif action < 0.7:
                log.setCurrentTerm(log.term + 1, rng.choice(["n1", "n2", None]))
            elif action < 0.75 and log.last_index > max(log.commit, log.base_index) + 1:
                log.deleteEntriesFrom(rng.randint(max(log.commit, log.base_index) + 1, log.last_index) - log.base_index)
            elif action < 0.85:
                log.setRaftCommitIndex(min(log.durable_index, log.last_index))
            elif action < 0.88 and log.commit > log.base_index:
                log.compact(rng.randint(log.base_index, log.commit))
            log.flush()
            while rng.random() < 0.6 and disk.step():
                pass
            if rng.random() < 0.05:
                durable = {entry[1]: entry for entry in log[1:] if entry[1] <= log.durable_index}
                base, known, committed = log.base_index, log.durable_index, log.commit
                disk.crash(rng)
                log, _ = a_log(disk)
                assert log.last_index >= known, seed
                for index, entry in durable.items():
                    if index <= committed:  # what was not committed may have been replaced by what came after
                        assert log[index - log.base_index] == entry, (seed, index)
                assert log.base_index <= base


def test_what_a_process_left_unsynced_is_synced_before_the_next_one_believes_it() -> None:
    """Killed between write and sync: the machine goes on, the next process reads the group, and then the power is cut."""
    log, disk = a_log()
    fill(log, 5)
    disk.immediate = False
    log.add(b"\0last", 6, 1)
    log.flush()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.consensus.disks._Handle.sync", lambda handle: None)
        disk.step()
    disk.immediate = True
    again, _ = a_log(disk)
    assert again.durable_index == 6
    for file in disk.files.values():
        file.unsynced = []
    assert a_log(disk)[0].last_index == 6


def test_describe_changes_nothing_and_says_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    log, disk = a_log()
    fill(log, 9)
    name = disk.list()[-1]
    disk.append(name).write(b"torn")
    held = disk.read(name)
    assert describe(read_only(disk))["last_index"] == 9
    assert describe(read_only(disk))["unfinished_bytes"] == 4
    assert disk.read(name) == held
    assert caplog.text == ""
    a_log(disk)
    assert "cut 4 bytes of an unfinished write" in caplog.text


async def test_a_closed_disk_does_no_more_work(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    done: list[str] = []
    disk.run(lambda: done.append("before"), lambda result, error: None)
    await asyncio.to_thread(disk.close)
    # What the end of earlier work asks for comes after the close, when the directory may be another process's.
    disk.run(lambda: done.append("after"), lambda result, error: None)
    assert disk._thread is None and done == ["before"]

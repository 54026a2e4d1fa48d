"""Log lines by BullMQ's rules, within bounds of bytes."""

from __future__ import annotations

import pytest

from quorumq.node.machine.operations.bullmq.logs import AppendLog, CutLog, ListLog
from quorumq.node.machine.operations.job_reads import GetLogs
from quorumq.node.machine.operations.jobs import AddLog, RemoveJob
from quorumq.node.machine.refusals import JobNotFound
from quorumq.node.machine.state import logs
from tests.support.world import World


def add(world: World, own: str, *messages: str, keep: int | None = None) -> int:
    count = 0
    for message in messages:
        count = world.do(AppendLog("q", own, message, keep)).count
    return count


def page(world: World, start: int = 0, end: int = -1, *, asc: bool = True, own: str = "1") -> str:
    return "".join(world.ask(ListLog("q", own, start, end, asc)).lines)


def checked(world: World) -> logs.LogTable:
    found = world.machine.state.logs
    assert found.sizes == {job_id: sum(map(logs.weight_of, lines)) for job_id, lines in found.by_job.items()}
    assert found.size == sum(found.sizes.values())
    assert found.long_size == sum(found.sizes[job_id] for job_id in found.long)
    return found


@pytest.mark.parametrize(
    ("start", "end", "asc", "expected"),
    [
        (0, -1, True, "abcde"),
        (0, -1, False, "edcba"),
        (0, 1, True, "ab"),
        (0, 1, False, "ed"),
        (1, 3, False, "dcb"),
        (-2, -1, True, "de"),
        (-2, -1, False, "ba"),
        (3, 99, True, "de"),
        (5, 9, True, ""),
        (3, 2, True, ""),
    ],
)
def test_pages_count_from_either_end(world: World, start: int, end: int, asc: bool, expected: str) -> None:
    world.add()
    add(world, "1", *"abcde")
    assert page(world, start, end, asc=asc) == expected
    assert world.ask(ListLog("q", "1", start, end, asc)).count == 5


def test_more_lines_are_kept_than_elsewhere_and_as_many_as_asked_for(world: World) -> None:
    job = world.add()
    assert add(world, "1", *map(str, range(150))) == 150
    assert world.do(AddLog(job.id, "from elsewhere")).count == 151
    assert len(world.ask(GetLogs(job.id))) == 151
    assert add(world, "1", "x", keep=2) == 2
    assert page(world) == "from elsewherex"
    world.do(CutLog("q", "1", 1))
    assert page(world) == "x"
    checked(world)
    world.do(CutLog("q", "1"))
    assert page(world) == ""
    assert not checked(world).long


def test_a_job_that_is_not_there(world: World) -> None:
    with pytest.raises(JobNotFound):
        add(world, "1", "x")
    world.do(CutLog("q", "1"))
    assert world.ask(ListLog("q", "1")).count == 0


def test_a_log_is_bounded_in_lines_and_bytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LONG_LINES_MAX", 4)
    world.add()
    assert add(world, "1", *"abcdef") == 4
    assert page(world) == "cdef"
    monkeypatch.setattr(logs, "JOB_BYTES_MAX", 3 * (logs.LINE_BYTES + 1))
    assert add(world, "1", "g") == 3
    assert add(world, "1", "x" * 2000) == 1
    checked(world)


def test_all_logs_together_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "ALL_LONG_BYTES_MAX", 5 * (logs.LINE_BYTES + 1))
    for own in "123":
        world.add()
        add(world, own, "a")
    add(world, "1", *"bcd")
    assert [page(world, own=own) for own in "123"] == ["abcd", "", "a"]
    checked(world)
    world.do(RemoveJob("bull:q:1"))
    assert checked(world).long_size == logs.LINE_BYTES + 1
    monkeypatch.setattr(logs, "LOGGED_JOBS_MAX", 1)
    add(world, "2", "z")
    assert list(checked(world).by_job) == ["bull:q:2"]


def test_an_image_keeps_long_logs(world: World) -> None:
    for own in "12":
        world.add()
        add(world, own, *map(str, range(120)))
    add(world, "1", "last")
    world.do(AddLog(world.add().id, "elsewhere"))
    restored = world.restored().state.logs
    for table in ("by_job", "sizes", "long"):
        assert list(getattr(restored, table).items()) == list(getattr(checked(world), table).items())
    assert (restored.size, restored.long_size) == (world.machine.state.logs.size, world.machine.state.logs.long_size)

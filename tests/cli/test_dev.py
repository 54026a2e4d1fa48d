"""`quorumq dev` before it starts anything: whose folder it is, which ports, what a node that is started again needs."""

from __future__ import annotations

import asyncio
import fcntl
import gc
from pathlib import Path

import pytest

from quorumq.cli.dev import DevFailed, folder_for_us, given_variables, members, ready_or_stopped, write_settings
from tests.cli.conftest import run


def a_cluster_that_ran(folder: Path) -> None:
    cluster = members(2, folder, 6790, 8080, 7790)
    write_settings(cluster)
    for member in cluster:
        member.data.mkdir()
        (member.data / "lock").touch()


def test_a_second_cluster_neither_removes_nor_writes_what_the_first_one_uses(tmp_path: Path) -> None:
    a_cluster_that_ran(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ports = ("--http-port", "20000", "--bullmq-port", "20100", "--peer-port", "20200")
    with folder_for_us(tmp_path):
        status, output, error = run("dev", "--data", str(tmp_path), "--fresh", *ports)
    assert (status, output) == (1, "")
    assert error == f"quorumq: another cluster runs in {tmp_path}: stop it, or choose another folder with --data\n"
    assert {path: path.read_bytes() for path in before} == before


def test_a_node_that_was_started_by_hand_keeps_its_folder(tmp_path: Path) -> None:
    a_cluster_that_ran(tmp_path)
    with (tmp_path / "n2" / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DevFailed, match=r"a node runs in \S+n2: stop it"), folder_for_us(tmp_path):
            pass
    # What was tried does not stay locked: the nodes of this cluster need it.
    with folder_for_us(tmp_path), (tmp_path / "n2" / "lock").open() as free:
        fcntl.flock(free, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, _, error = run("dev", "--data", str(tmp_path / "file"))
    assert (status, error) == (1, f"quorumq: the folder {tmp_path / 'file'} cannot be used: File exists\n")


@pytest.mark.parametrize("option", ["--http-port", "--bullmq-port", "--peer-port"])
def test_a_port_that_is_none_is_refused(tmp_path: Path, option: str) -> None:
    status, _, error = run("dev", "--data", str(tmp_path), option, "65530")
    assert status == 2
    assert option in error


def test_a_node_that_is_started_again_needs_the_settings_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTH_TOKENS", "secret")
    monkeypatch.setenv("LOG_LEVEL", "")
    monkeypatch.setenv("HTTP_PORT", "1")
    given = given_variables()
    assert "AUTH_TOKENS" in given
    assert "secret" not in given
    assert not {"LOG_LEVEL", "HTTP_PORT"} & set(given)


async def test_being_told_to_stop_while_nodes_start_leaves_no_error_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("quorumq.cli.dev.wait_ready", never)
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    stop = asyncio.Event()
    stop.set()
    assert not await ready_or_stopped(members(3, Path("unused"), 1, 2, 3), stop)
    gc.collect()
    assert complaints == []

"""Nobody but the node's own user reads its files, those of earlier versions included."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from quorumq.cluster import backup
from quorumq.cluster.disk import private_file
from tests.consensus.test_backup import a_backup
from tests.consensus.test_engine import Cluster, running


@pytest.fixture(autouse=True)
def open_to_all() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes(directory: Path) -> dict[str, int]:
    found = {".": directory} | {str(path.relative_to(directory)): path for path in directory.rglob("*")}
    there: dict[str, int] = {}
    for name, path in found.items():
        # A running node may just have renamed it.
        with contextlib.suppress(FileNotFoundError):
            there[name] = stat.S_IMODE(path.stat().st_mode)
    return there


def assert_private(directory: Path) -> None:
    found = modes(directory)
    assert {"log", "snapshots", "identity.json", "lock", "."} <= set(found)
    for name, mode in found.items():
        assert mode == (0o700 if (directory / name).is_dir() else 0o600), name


async def test_what_a_node_writes_is_its_users_alone(tmp_path: Path) -> None:
    async with running(Cluster(tmp_path, 1)) as cluster:
        await cluster.write("n1", b"a")
        (await backup.take(cluster.engines["n1"])).close()
        assert_private(tmp_path / "n1")
        assert any("snapshots/" in name for name in modes(tmp_path / "n1"))


async def test_what_was_open_is_closed_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(Cluster(tmp_path, 1)) as cluster:
        await cluster.write("n1", b"a")
        (await backup.take(cluster.engines["n1"])).close()
        await cluster.stop("n1")
        for path in (tmp_path / "n1", *(tmp_path / "n1").rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o644)
        await cluster.start("n1")
        assert_private(tmp_path / "n1")
        assert "stays open" not in caplog.text


async def test_a_folder_with_other_things_in_it_is_left_open_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "n1"
    directory.mkdir(0o755)
    (directory / "program").touch(0o755)
    with caplog.at_level(logging.WARNING):
        async with running(Cluster(tmp_path, 1)) as cluster:
            await cluster.write("n1", b"a")
            found = modes(directory)
            assert (found["."], found["program"], found["log"], found["identity.json"]) == (0o755, 0o755, 0o700, 0o600)
    assert f"{directory} stays open to other users: it holds more than a node's files (program)" in caplog.text


async def test_what_cannot_be_closed_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "n1"
    directory.mkdir(0o775)

    def refused(self: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted", str(self))

    monkeypatch.setattr(Path, "chmod", refused)
    with caplog.at_level(logging.WARNING):
        async with running(Cluster(tmp_path, 1)) as cluster:
            await cluster.write("n1", b"a")
    assert f"{directory} stays open to other users: Operation not permitted" in caplog.text


def test_a_restored_folder_is_private(tmp_path: Path) -> None:
    backup.restore(a_backup(tmp_path / "backup"), tmp_path / "data", "n1", "test")
    assert {name: mode & 0o077 for name, mode in modes(tmp_path / "data").items()} == dict.fromkeys(
        modes(tmp_path / "data"), 0
    )


def test_a_private_file_takes_no_other_files_place_for_its_own(tmp_path: Path) -> None:
    elsewhere, path = tmp_path / "elsewhere", tmp_path / "file"
    elsewhere.write_text("kept")
    path.symlink_to(elsewhere)
    with private_file(path) as file:
        file.write(b"new")
    assert (elsewhere.read_text(), path.read_text(), path.is_symlink()) == ("kept", "new", False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
